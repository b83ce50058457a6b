//! TLS at the admin listener, with the programs themselves: the gateway, and the command line that asks it.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::gateway::tls::{Authority, LOCALHOST, client, der, presented, refusal};
use crate::gateway::{End, Request};
use crate::process::{self, Engine, Gateway, binary, completion};
use crate::wait::until;

const WARNING: &str = "open beyond loopback without TLS";

/// A gateway's settings, its only pod, and the files of its certificates.
struct Place {
    dir: TempDir,
    pod: Engine,
    authority: Authority,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let authority = Authority::named("ours");
        fs::write(dir.path().join("ca.crt"), authority.pem()).expect("a file can be written");
        authority.certify().write(dir.path());
        Self { dir, pod: Engine::start(), authority }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, admin: &str, settings: &[(&str, PathBuf)]) -> Gateway {
        let mut command = Command::new(binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", admin, "--data-dir"]).arg(self.file("data"));
        command.args(["--target", &format!("pod=http://{}", self.pod.address)]);
        command.envs(settings.iter().map(|(key, value)| (format!("SNAPGATE_ADMIN_TLS_{key}"), value)));
        Gateway::start(command)
    }

    fn start_in_tls(&self) -> Gateway {
        self.start("127.0.0.1:0", &[("CERT", self.file("tls.crt")), ("KEY", self.file("tls.key"))])
    }

    /// `snapgate` with its first argument, the address in this scheme, and the rest.
    fn asks(&self, gateway: &Gateway, scheme: &str, arguments: &str) -> Output {
        let mut words = arguments.split_whitespace();
        let mut command = Command::new(binary());
        let admin = format!("{scheme}://{LOCALHOST}:{}", gateway.admin.port());
        command.args(words.next()).args(["--admin", &admin]).args(words).current_dir(self.dir.path());
        // The system believes nobody.
        command.env("SSL_CERT_FILE", self.file("none")).env_remove("SSL_CERT_DIR").env_remove("SNAPGATE_TOKEN");
        command.stdin(Stdio::null()).output().expect("the program starts")
    }
}

/// A request's ID.
fn made(gateway: &Gateway) -> String {
    let answer = process::Client::connect(gateway.data).and_then(|mut client| client.ask(&completion(false), |_| {}));
    answer.expect("it is answered").id.expect("every answer has an ID")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[test]
fn the_command_line_asks_in_tls_and_believes_whom_it_is_told_to() {
    let place = Place::new();
    let gateway = place.start_in_tls();
    let id = made(&gateway);
    let found = place.asks(&gateway, "https", &format!("lookup --ca ca.crt {id}"));
    assert!(found.status.success() && said(&found).starts_with("completed in "), "{found:?}");
    until("it is stored and exported", || {
        let exported = place.asks(&gateway, "https", "export --ca ca.crt --since 1h --shape flat --format csv");
        assert!(exported.status.success(), "{exported:?}");
        said(&exported).contains(&id).then_some(())
    });
    for (scheme, arguments, words) in [
        ("https", "lookup", "UnknownIssuer: is this the name in its certificate, and does --ca name who issued that?"),
        ("https", "tail --ca tls.key", "tls.key holds no certificate in PEM"),
        ("http", "tail", "it speaks TLS: write https; give the admin listener's address"),
        ("http", "tail --ca ca.crt", "certificates go with https, and this would be plain text"),
    ] {
        let key = if arguments == "lookup" { id.as_str() } else { "" };
        let refused = place.asks(&gateway, scheme, &format!("{arguments} {key}"));
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(said(&refused).contains(words), "{words}: {refused:?}");
    }
    // The system's authorities are believed unless others are named.
    let mut by_default = Command::new(binary());
    by_default.args(["lookup", &id, "--admin", &format!("https://{LOCALHOST}:{}", gateway.admin.port())]);
    let found = by_default.env("SSL_CERT_FILE", place.file("ca.crt")).output().expect("the program starts");
    assert!(found.status.success(), "{found:?}");

    let other = Place::new();
    let plain = other.start("127.0.0.1:0", &[]);
    let refused = place.asks(&plain, "https", &format!("lookup --ca ca.crt {id}"));
    assert!(said(&refused).contains("does it speak TLS? If not, write http://"), "{refused:?}");
}

#[test]
fn a_replaced_certificate_is_presented_and_a_stop_waits_for_no_handshake() {
    let place = Place::new();
    let mut gateway = place.start_in_tls();
    let config = place.authority.client(None);
    let mut kept = client(gateway.admin, &config);
    assert_eq!(kept.ask(&Request::get("/healthz")).status, 200);
    let identity = place.authority.certify();
    identity.write(place.dir.path());
    until("the new certificate is presented", || {
        (presented(gateway.admin, &config) == der(&identity.cert)).then_some(())
    });
    let page = kept.ask(&Request::get("/metrics"));
    assert_eq!((page.status, page.end), (200, End::Clean), "older connections go on");
    assert!(page.text().contains("snapgate_rotations_total{section=\"admin_tls\",result=\"done\"}"), "{}", page.text());

    // The beginning of a handshake, and silence.
    let mut silent = TcpStream::connect(gateway.admin).expect("it accepts connections");
    silent.write_all(b"\x16\x03\x01\x02\x00\x01").expect("it takes what is sent");
    assert!(gateway.stop().success());
    assert!(!gateway.last_words().contains("cut short"), "{}", gateway.last_words());
}

#[test]
fn clients_without_a_certificate_are_turned_away_where_one_is_asked_for() {
    let place = Place::new();
    let clients = Authority::named("clients");
    let known = clients.certify();
    for (name, text) in [("clients.crt", &clients.pem()), ("me.crt", &known.cert), ("me.key", &known.key)] {
        fs::write(place.file(name), text).expect("a file can be written");
    }
    let files = [("CERT", "tls.crt"), ("KEY", "tls.key"), ("CLIENT_CA", "clients.crt")];
    let gateway = place.start("127.0.0.1:0", &files.map(|(key, name)| (key, place.file(name))));
    let id = made(&gateway);
    let refused = refusal(gateway.admin, &place.authority.client(None));
    assert!(refused.contains("CertificateRequired"), "{refused}");
    let refused = place.asks(&gateway, "https", &format!("lookup --ca ca.crt {id}"));
    assert!(said(&refused).contains("it may want a certificate: --client-cert and --client-key"), "{refused:?}");
    let found =
        place.asks(&gateway, "https", &format!("lookup --ca ca.crt --client-cert me.crt --client-key me.key {id}"));
    assert!(found.status.success(), "{found:?}");
}

#[test]
fn tokens_in_clear_are_warned_of_beyond_loopback_only() {
    let place = Place::new();
    for (admin, tls, warned) in [("127.0.0.1:0", false, false), ("0.0.0.0:0", true, false), ("0.0.0.0:0", false, true)]
    {
        let files = [("CERT", place.file("tls.crt")), ("KEY", place.file("tls.key"))];
        let mut gateway = place.start(admin, if tls { &files } else { &[] });
        assert!(gateway.stop().success());
        assert_eq!(gateway.last_words().contains(WARNING), warned, "{}", gateway.last_words());
        let closed = gateway.last_words().contains("lookups are closed");
        assert_eq!(closed, admin.starts_with("0.0.0.0"), "there are no tokens: {}", gateway.last_words());
    }
}

#[test]
fn a_certificate_that_may_sign_others_is_named_as_that() {
    let place = Place::new();
    let mut parameters = rcgen::CertificateParams::new([LOCALHOST.to_owned()]).expect("it is a name");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let certificate = parameters.self_signed(&key).expect("these parameters can be signed");
    for (name, pem) in [("own.crt", certificate.pem()), ("own.key", key.serialize_pem())] {
        fs::write(place.file(name), pem).expect("a file can be written");
    }
    let gateway = place.start("127.0.0.1:0", &[("CERT", place.file("own.crt")), ("KEY", place.file("own.key"))]);
    let refused = place.asks(&gateway, "https", "lookup --ca own.crt 019ab3c2d1e0a7f14c1f7a0f3e5b9d26");
    let said = said(&refused);
    assert!(said.contains("marked CA:TRUE") && said.contains("CA:FALSE") && !said.contains("OtherError"), "{said}");
}

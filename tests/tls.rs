//! TLS at the listener for requests: who gets in, who is told what, and certificates that change under way.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::gateway::tls::{Authority, client, der, dial, presented, refusal};
use crate::gateway::{Client, End, Gateway, Request, Setup, Sims, Then, Upstream, in_time, until};

/// A gateway with a certificate of this authority, and where that is.
fn setup(authority: &Authority, targets: &[std::net::SocketAddr]) -> (Setup, TempDir) {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let (cert, key) = authority.certify().write(dir.path());
    let setup = Setup::before(targets).set("tls.cert", cert.display()).set("tls.key", key.display());
    (setup, dir)
}

/// How often handshakes failed for a reason.
fn failures(gateway: &Gateway, reason: &str) -> u64 {
    counted(gateway, &format!("snapgate_tls_handshake_failures_total{{section=\"tls\",reason=\"{reason}\"}}"))
}

fn rotations(gateway: &Gateway, result: &str) -> u64 {
    counted(gateway, &format!("snapgate_rotations_total{{section=\"tls\",result=\"{result}\"}}"))
}

fn counted(gateway: &Gateway, name: &str) -> u64 {
    let page = gateway.admin("/metrics").text;
    let count = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    count.map_or(0, |count| count.parse().expect("a counter is a number"))
}

#[track_caller]
fn until_counted(gateway: &Gateway, reason: &str) {
    until(&format!("a handshake failed: {reason}"), || (failures(gateway, reason) == 1).then_some(()));
}

/// Ends what runs until then, also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_answer_over_tls_is_what_it_is_without() {
    let upstream = Upstream::start(|exchange| {
        if exchange.request.head.path() == "/v1/models" {
            exchange.answer("200 OK", "", "{}");
            return Then::Next;
        }
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun");
        Then::Reset
    });
    let authority = Authority::named("ours");
    let (setup, _dir) = setup(&authority, &[upstream.address]);
    let gateway = setup.start();
    let config = authority.client(None);
    let mut client = client(gateway.data, &config);
    for _kept in 0..2 {
        let answer = client.ask(&Request::get("/v1/models"));
        assert_eq!((answer.status, answer.text(), answer.end), (200, "{}", End::Clean));
        assert_eq!(gateway.ended(&answer.id()).text_at("/outcome/ending"), Some("completed"));
    }
    let answer = client.ask(&Request::chat());
    assert_eq!((answer.status, answer.text(), answer.end), (200, "begun", End::BrokenOff));
    assert_eq!(gateway.ended(&answer.id()).text_at("/outcome/ending"), Some("upstream_reset"));
}

#[test]
fn http2_is_spoken_with_whom_it_was_agreed_on() {
    let (sims, authority) = (Sims::one(), Authority::named("ours"));
    let (setup, _dir) = setup(&authority, sims.addresses());
    let gateway = setup.start();
    let mut config = (*authority.client(None)).clone();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut stream = dial(gateway.data, &config.into());
    // The preface, and settings that change nothing.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("the gateway takes it");
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).expect("the gateway answers");
    assert_eq!((stream.conn.alpn_protocol(), frame[3]), (Some(&b"h2"[..]), 4), "its first frame are its settings");
}

#[test]
fn who_does_not_speak_tls_is_told_so_and_counted() {
    let (sims, authority) = (Sims::one(), Authority::named("ours"));
    let (setup, _dir) = setup(&authority, sims.addresses());
    let gateway = setup.start();
    let answer = Client::to(gateway.data).ask(&Request::chat());
    assert_eq!((answer.status, answer.end), (400, End::Clean));
    assert!(answer.text().contains("speaks TLS"), "{}", answer.text());
    until_counted(&gateway, "not_tls");

    // A record of the handshake, and in it nothing of the kind.
    let mut stream = TcpStream::connect(gateway.data).expect("the gateway accepts connections");
    stream.write_all(b"\x16\x03\x01\x00\x05hello").expect("the gateway takes what is sent");
    stream.read_to_end(&mut Vec::new()).expect("the connection ends, and is not reset");
    until_counted(&gateway, "protocol");
    drop(TcpStream::connect(gateway.data).expect("the gateway accepts connections"));
    until_counted(&gateway, "closed");
    until("nobody is connected", || gateway.admin("/metrics").text.contains("snapgate_connections 0\n").then_some(()));
    assert_eq!(client(gateway.data, &authority.client(None)).ask(&Request::chat()).status, 200);
    let stranger = Authority::named("another").client(None);
    assert!(refusal(gateway.data, &stranger).contains("UnknownIssuer"));
    until_counted(&gateway, "refused");
}

#[test]
fn who_falls_silent_in_the_handshake_is_let_go_and_counted() {
    const LIMIT: Duration = Duration::from_millis(200);
    let (sims, authority) = (Sims::one(), Authority::named("ours"));
    let (setup, _dir) = setup(&authority, sims.addresses());
    let gateway = setup.set("timeouts.tls_handshake", format!("{}ms", LIMIT.as_millis())).start();
    let mut connected = 0;
    // The beginning of a record, and nothing at all.
    for bytes in [b"\x16\x03\x01\x02\x00\x01".as_slice(), b""] {
        let mut stream = in_time(LIMIT, || {
            let mut stream = TcpStream::connect(gateway.data).expect("the gateway accepts connections");
            connected += 1;
            stream.write_all(bytes).map(|()| stream)
        });
        stream.read_to_end(&mut Vec::new()).expect("the connection ends, and is not reset");
    }
    // Of those that were too late some may be counted, too.
    until("both are counted", || (2..=connected).contains(&failures(&gateway, "timeout")).then_some(()));
}

#[test]
fn only_certified_clients_get_in_where_they_have_to_be() {
    let (sims, servers, clients) = (Sims::one(), Authority::named("servers"), Authority::named("clients"));
    let (setup, dir) = setup(&servers, sims.addresses());
    let client_ca = dir.path().join("ca.crt");
    fs::write(&client_ca, clients.pem()).expect("a file can be written");
    let gateway = setup.set("tls.client_ca", client_ca.display()).start();
    let cases =
        [(None, "CertificateRequired", "no_certificate"), (Some(servers.certify()), "UnknownCA", "bad_certificate")];
    for (identity, alert, reason) in cases {
        let refusal = refusal(gateway.data, &servers.client(identity.as_ref()));
        assert!(refusal.contains(alert), "{alert}: {refusal}");
        until_counted(&gateway, reason);
    }
    let refusal = refusal(gateway.data, &servers.client(Some(&clients.certify_until(2001))));
    assert!(refusal.contains("CertificateExpired"), "{refusal}");
    until("both are counted", || (failures(&gateway, "bad_certificate") == 2).then_some(()));
    let known = servers.client(Some(&clients.certify()));
    assert_eq!(client(gateway.data, &known).ask(&Request::chat()).status, 200);
}

#[test]
fn certificates_are_replaced_under_load_and_no_request_is_lost() {
    let (sims, authority) = (Sims::one(), Authority::named("ours"));
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = |name: &str| dir.path().join(name);
    let identities = [authority.certify(), authority.certify(), authority.certify()];
    for (number, identity) in identities.iter().enumerate() {
        fs::create_dir(path(&number.to_string())).expect("a directory can be made");
        identity.write(&path(&number.to_string()));
    }
    // As Kubernetes does it: all files of a secret are changed by one link.
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), path(name)).expect("a link can be made");
    }
    let point_at = |version: &str| {
        symlink(version, path("..next")).expect("a link can be made");
        fs::rename(path("..next"), path("..data")).expect("a link can be replaced");
    };
    point_at("0");
    let setup = Setup::before(sims.addresses()).set("tls.cert", path("tls.crt").display());
    let gateway = setup.set("tls.key", path("tls.key").display()).start();
    let (config, stop) = (authority.client(None), AtomicBool::new(false));
    let mut kept = client(gateway.data, &config);
    let asked = thread::scope(|scope| {
        let _stopped = Stop(&stop);
        let load = || {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = client(gateway.data, &config).ask(&Request::chat());
                assert_eq!((answer.status, answer.end), (200, End::Clean));
                asked += 1;
            }
            asked
        };
        let threads = [scope.spawn(load), scope.spawn(load)];
        for (number, identity) in identities.iter().enumerate() {
            point_at(&number.to_string());
            let is_used = || (presented(gateway.data, &config) == der(&identity.cert)).then_some(());
            until("the certificate is used", is_used);
            assert_eq!(kept.ask(&Request::chat()).status, 200, "older connections go on");
        }
        // A key that is of another certificate.
        fs::write(path("2").join("tls.key"), &identities[0].key).expect("a file can be written");
        until("the pair is refused", || (rotations(&gateway, "refused") > 0).then_some(()));
        assert_eq!(presented(gateway.data, &config), der(&identities[2].cert), "nothing has changed");
        assert_eq!(gateway.admin("/readyz").status, 200);
        stop.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().expect("no request is lost")).iter().sum::<u64>()
    });
    assert_eq!(rotations(&gateway, "done"), 2);
    let stopped = gateway.stop();
    assert_eq!(stopped.balance.offered, asked + 3, "each request has one record");
}

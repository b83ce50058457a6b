//! TLS and credentials towards the targets: whom the gateway believes, what it presents, and that nobody else sees it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tokio_rustls::rustls::ServerConfig;

use crate::gateway::tls::{Authority, LOCALHOST, serve};
use crate::gateway::{Client, Gateway, Request, Setup, Then, Upstream, until};

/// A pod that speaks TLS and answers everything with an empty object.
fn pod(config: Arc<ServerConfig>) -> Upstream {
    Upstream::over(
        move |socket| serve(socket, &config),
        |exchange| {
            exchange.answer("200 OK", "", "{}");
            Then::Next
        },
    )
}

/// Files of a test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("a file can be written");
        path
    }
}

/// Before one target with this host in its URL.
fn before(pod: &Upstream, host: &str) -> Setup {
    Setup::before(&[]).set("targets", format!("t=https://{host}:{}", pod.address.port())).set("threads", 1)
}

/// The only attempt of a request that was not connected.
#[track_caller]
fn unconnected(gateway: &Gateway) -> String {
    let answer = gateway.ask(&Request::chat());
    assert_eq!(answer.status, 502, "{}", answer.text());
    let found = gateway.ended(&answer.id());
    found.text_at("/attempts/0/error").expect("it says why").to_owned()
}

#[test]
fn a_target_in_tls_is_watched_asked_and_kept_connected() {
    let (authority, files) = (Authority::named("ours"), Files::new());
    let pod = pod(authority.server(None));
    let setup = before(&pod, LOCALHOST).set("upstream.ca", files.write("ca", &authority.pem()).display());
    let gateway = setup.set("timeouts.pool_idle", "1h").start();
    until("its probes come through", || {
        (gateway.admin("/v1/fleet").list("/targets")[0]["health"] == "healthy").then_some(())
    });
    for _ in 0..2 {
        let answer = gateway.ask(&Request::chat());
        assert_eq!((answer.status, answer.text()), (200, "{}"));
        let found = gateway.ended(&answer.id());
        let address = format!("https://{LOCALHOST}:{}", pod.address.port());
        assert_eq!(found.text_at("/attempts/0/address"), Some(&*address));
    }
    let received = pod.received();
    assert_eq!(received.iter().map(|request| request.connection).collect::<Vec<_>>(), [0, 0]);
    let host = format!("{LOCALHOST}:{}", pod.address.port());
    assert_eq!(received[0].head.header("host"), Some(&*host));
}

#[test]
fn a_target_that_cannot_prove_who_it_is_gets_nothing() {
    let (authority, files) = (Authority::named("ours"), Files::new());
    let pod = pod(authority.server(None));
    let other = files.write("other", &Authority::named("another").pem());
    let ours = files.write("ours", &authority.pem());
    for (host, ca, why) in [(LOCALHOST, &other, "UnknownIssuer"), ("127.0.0.1", &ours, "not valid for name")] {
        let gateway = before(&pod, host).set("upstream.ca", ca.display()).start();
        let error = unconnected(&gateway);
        assert!(error.contains(why), "{why}: {error}");
    }
    assert!(pod.received().is_empty());
}

#[test]
fn a_caller_does_not_read_which_name_a_certificate_should_have_had() {
    const TOKENS: &str = r#"[{ name = "ops", token = "the-operators-token" }]"#;
    let (authority, files) = (Authority::named("ours"), Files::new());
    let pod = pod(authority.server(None));
    let setup = before(&pod, "127.0.0.1").set("upstream.ca", files.write("ca", &authority.pem()).display());
    let gateway = setup.set("lookup.tokens", TOKENS).start();
    let answer = gateway.ask(&Request::chat().with("x-api-key", "sk-mine"));
    assert_eq!(answer.status, 502, "{}", answer.text());
    let seen_by = |name: &str, value: &str, form: &str| {
        let request = Request::get(format!("/v1/snapshots/{}?wait=30s", answer.id()));
        let seen = Client::to(gateway.admin).ask(&request.with(name, value).with("accept", form));
        assert_eq!(seen.status, 200, "{}", seen.text());
        seen.text().to_owned()
    };
    for form in ["application/json", "text/plain"] {
        let all = seen_by("authorization", "Bearer the-operators-token", form);
        assert!(all.contains("not valid for name") && all.contains("127.0.0.1"), "an operator reads it: {all}");
        let own = seen_by("x-api-key", "sk-mine", form);
        for told in ["127.0.0.1", "not valid for name", &pod.address.port().to_string()] {
            assert!(!own.contains(told), "{told}: {own}");
        }
        assert!(own.contains("(not shown)") && own.contains("502"), "{own}");
    }
}

#[test]
fn the_gateway_presents_its_certificate() {
    let (servers, clients, files) = (Authority::named("servers"), Authority::named("clients"), Files::new());
    let pod = pod(servers.server(Some(&clients)));
    let setup = || before(&pod, LOCALHOST).set("upstream.ca", files.write("ca", &servers.pem()).display());
    let answer = setup().start().ask(&Request::chat());
    assert_eq!(answer.status, 502, "without one it is not let in");
    let (cert, key) = clients.certify().write(files.0.path());
    let gateway = setup().set("upstream.cert", cert.display()).set("upstream.key", key.display()).start();
    assert_eq!(gateway.ask(&Request::chat()).status, 200);
}

#[test]
fn whom_the_gateway_believes_and_what_it_presents_are_replaced_while_it_serves() {
    let (servers, clients, others) =
        (Authority::named("servers"), Authority::named("clients"), Authority::named("others"));
    let (pod, files) = (pod(servers.server(Some(&clients))), Files::new());
    let believe = |authority: &Authority| {
        let next = files.write("next", &authority.pem());
        fs::rename(next, files.0.path().join("ca")).expect("a file can be replaced");
    };
    believe(&others);
    let (cert, key) = others.certify().write(files.0.path());
    let setup = before(&pod, LOCALHOST).set("upstream.ca", files.0.path().join("ca").display());
    let setup = setup.set("upstream.cert", cert.display()).set("upstream.key", key.display());
    // So that each request is on a connection of its own, and shows who is believed now.
    let gateway = setup.set("upstream.pool_idle_per_target", 0).start();
    let is_unknown = || unconnected(&gateway).contains("UnknownIssuer");
    assert!(is_unknown());
    believe(&servers);
    until("the new authority is believed", || (!is_unknown()).then_some(()));
    assert!(pod.received().is_empty(), "the target does not know the gateway yet");
    clients.certify().write(files.0.path());
    until("the new certificate is presented", || (gateway.ask(&Request::chat()).status == 200).then_some(()));
    believe(&others);
    until("the authority is not believed any more", || (gateway.ask(&Request::chat()).status == 502).then_some(()));
    assert!(is_unknown());
}

#[test]
fn credentials_go_to_the_targets_and_nowhere_else() {
    const SECRETS: [&str; 4] = ["the-first-engine-key", "the-second-engine-key", "the-watchers-key", "the-clients-key"];
    let files = Files::new();
    let pod = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let engine_key = files.write("engine.key", &format!("{}\n", SECRETS[0]));
    let setup = Setup::before(&[pod.address])
        .set("upstream.authorization_file", engine_key.display())
        .set("fleet.authorization", format!("Basic {}", SECRETS[2]))
        .set("fleet.probe_path", "/alive");
    let shown = format!("{} {:?}", setup.config().text(), setup.config());
    let gateway = setup.start();
    let ask = || {
        let answer = gateway.ask(&Request::chat().with("authorization", format!("Bearer {}", SECRETS[3])));
        assert_eq!(answer.status, 200);
        let received = pod.received();
        let request = received.iter().rfind(|request| request.head.path() != "/alive").expect("it has come");
        (gateway.ended(&answer.id()).text, request.head.header("authorization").map(str::to_owned))
    };
    let (document, authorization) = ask();
    assert_eq!(authorization.as_deref(), Some("Bearer the-first-engine-key"));
    files.write("engine.key", SECRETS[1]);
    until("the new one is used", || (ask().1.as_deref() == Some("Bearer the-second-engine-key")).then_some(()));
    until("it is probed", || pod.received().into_iter().find(|request| request.head.path() == "/alive").map(drop));
    let received = pod.received();
    let probe = received.iter().find(|request| request.head.path() == "/alive").expect("just seen");
    assert_eq!(probe.head.header("authorization"), Some("Basic the-watchers-key"));
    let metrics = gateway.admin("/metrics").text;
    for secret in SECRETS {
        for (place, text) in [("configuration", &shown), ("document", &document), ("metrics", &metrics)] {
            assert!(!text.contains(secret), "{secret} is in the {place}: {text}");
        }
    }
}

#[test]
fn a_target_may_have_a_credential_of_its_own_that_no_other_gets() {
    const SECRETS: [&str; 3] = ["the-key-of-the-first", "the-key-of-the-second", "the-new-key-of-the-second"];
    let files = Files::new();
    let pods: [_; 3] = std::array::from_fn(|_| {
        Upstream::start(|exchange| {
            exchange.answer("200 OK", "", "{}");
            Then::Next
        })
    });
    let failing = Upstream::start(|_| Then::Close);
    let key = files.write("second.key", SECRETS[1]);
    let entry = |name: &str, pod: &Upstream, own: &str| {
        format!("{{ name = \"{name}\", url = \"http://{}\"{own} }}", pod.address)
    };
    let (first, second) = (
        format!(", authorization = \"Bearer {}\"", SECRETS[0]),
        format!(", authorization_file = \"{}\"", key.display()),
    );
    let targets =
        [entry("first", &pods[0], &first), entry("second", &pods[1], &second), entry("third", &pods[2], "")].join(", ");
    let setup = || Setup::before(&[]).set("targets", format!("[{targets}]")).set("choice.allow_forced", true);
    let shown = format!("{} {:?}", setup().config().text(), setup().config());
    let gateway = setup().start();
    let presented = |gateway: &Gateway, place: usize| {
        let name = ["first", "second", "third"][place];
        let request = Request::chat().with("authorization", "Bearer the-clients-key").with("target-pod", name);
        let answer = gateway.ask(&request);
        assert_eq!((answer.status, answer.header("target-pod")), (200, Some(name)));
        let document = gateway.ended(&answer.id()).text;
        for secret in SECRETS {
            let places =
                [("configuration", &shown), ("document", &document), ("metrics", &gateway.admin("/metrics").text)];
            assert!(places.iter().all(|(_, text)| !text.contains(secret)), "{secret}");
        }
        let received = pods[place].received();
        received.last().expect("it has come").head.header("authorization").map(str::to_owned)
    };
    assert_eq!(presented(&gateway, 0).as_deref(), Some("Bearer the-key-of-the-first"));
    assert_eq!(presented(&gateway, 1).as_deref(), Some("Bearer the-key-of-the-second"));
    assert_eq!(presented(&gateway, 2).as_deref(), Some("Bearer the-clients-key"));
    files.write("second.key", SECRETS[2]);
    let is_new = || presented(&gateway, 1).as_deref() == Some("Bearer the-new-key-of-the-second");
    until("the new one is used", || is_new().then_some(()));
    let gateway = setup().set("upstream.authorization", "the-key-of-all").start();
    assert_eq!(presented(&gateway, 0).as_deref(), Some("Bearer the-key-of-the-first"));
    assert_eq!(presented(&gateway, 2).as_deref(), Some("Bearer the-key-of-all"));

    // Another try, at another target, takes nothing along.
    let targets = format!("[{}, {}]", entry("failing", &failing, &first), entry("third", &pods[2], ""));
    let gateway = Setup::before(&[]).set("targets", targets).set("policy", "round_robin").start();
    let before = pods[2].received().len();
    for _ in 0..2 {
        assert_eq!(gateway.ask(&Request::chat()).header("target-pod"), Some("third"));
    }
    assert!(!failing.received().is_empty());
    let received = &pods[2].received()[before..];
    assert!(received.iter().all(|request| request.head.header("authorization").is_none()), "{received:?}");
}

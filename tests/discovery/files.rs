//! Targets from files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::churn::{self, churn};
use super::{Pod, completion, until_fleet, until_healthy, until_no_problem, until_problem};
use crate::gateway::{Gateway, Setup, Then, Upstream, until};

/// A file of targets that is written by a test.
struct Listing {
    dir: TempDir,
}

impl Listing {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("targets.json")
    }

    /// As it should be done: written beside, and moved into place.
    fn put(&self, text: &str) {
        put(&self.path(), text);
    }

    fn start(&self) -> Gateway {
        self.setup().start()
    }

    fn setup(&self) -> Setup {
        Setup::before(&[]).set("discovery", source(&self.path()))
    }
}

fn put(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).expect("the file can be written");
    fs::rename(next, path).expect("the file can be moved");
}

fn source(path: &Path) -> String {
    format!(r#"[{{ kind = "file", path = "{}", interval = "10ms" }}]"#, path.display())
}

fn list(pods: &[(&str, &Pod)]) -> String {
    let entry = |(name, pod): &(&str, &Pod)| json!({"name": name, "url": format!("http://{}", pod.address())});
    json!(pods.iter().map(entry).collect::<Vec<_>>()).to_string()
}

#[test]
fn sixty_changes_of_a_file_lose_no_request_and_send_none_to_who_is_gone() {
    let pods = churn::Pod::all();
    let listing = Listing::new();
    listing.put("[]");
    let gateway = listing.start();
    churn(&pods, gateway, |there| {
        listing
            .put(&json!(there.iter().map(|pod| format!("http://{}", pod.address())).collect::<Vec<_>>()).to_string());
    });
}

#[test]
fn what_is_no_list_leaves_the_last_targets_and_says_so_everywhere() {
    let (a, b) = (Pod::start(), Pod::start());
    let listing = Listing::new();
    let whole = list(&[("a", &a), ("b", &b)]);
    listing.put(&whole);
    let gateway = listing.start();
    until_fleet(&gateway, "name", &["a", "b"]);
    for (text, part) in [
        (&whole[..whole.len() - 9], "no list of targets in JSON"),
        ("\u{0}\u{1}garbage", "no list of targets in JSON"),
        ("", "no list of targets in JSON"),
        (r#"["http://h"]"#, "has no port"),
        (r#"[{"url": "http://h:1", "name": "a b"}]"#, "is not a name"),
    ] {
        listing.put(text);
        let page = until_problem(&gateway, part);
        assert_eq!(page.list("/targets").len(), 2, "{text}");
        assert_eq!(page.at("/discovery/0/targets"), 2);
    }
    fs::remove_file(listing.path()).expect("it is there");
    until_problem(&gateway, "cannot be read");
    fs::create_dir(listing.path()).expect("a directory in its place");
    until_problem(&gateway, "cannot be read: Is a directory");

    let ready = gateway.admin("/readyz");
    assert_eq!((ready.status, ready.at("/ready")), (200, &json!(true)), "the last targets serve");
    let warning = "discovery file-1: it cannot be reached or read; its last 2 targets stay";
    assert_eq!(ready.at("/warnings"), &json!([warning]), "everybody may read it");
    let metrics = gateway.admin("/metrics").text;
    for line in [
        "snapgate_discovery_failing{source=\"file-1\"} 1",
        "snapgate_discovery_targets{source=\"file-1\"} 2",
        "snapgate_discovery_answers_total{source=\"file-1\",result=\"taken\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    assert_eq!(gateway.ask(&completion()).status, 200);

    fs::remove_dir(listing.path()).expect("it is empty");
    listing.put(&list(&[("b", &b)]));
    until_fleet(&gateway, "name", &["b"]);
    until_no_problem(&gateway);
    assert!(gateway.admin("/readyz").text == r#"{"ready":true}"#);
}

#[test]
fn an_empty_list_is_obeyed_and_no_file_at_the_start_is_none() {
    let pod = Pod::start();
    let listing = Listing::new();
    let gateway = listing.start();
    until_problem(&gateway, "cannot be read");
    let ready = gateway.admin("/readyz");
    assert_eq!((ready.status, ready.text_at("/reasons/0")), (503, Some("there are no targets yet")));
    let warning = "discovery file-1: it cannot be reached or read; it has no targets yet";
    assert_eq!(ready.text_at("/warnings/0"), Some(warning));
    listing.put(&list(&[("a", &pod)]));
    until_fleet(&gateway, "name", &["a"]);
    assert_eq!(gateway.ask(&completion()).status, 200);
    listing.put("[]");
    until_fleet(&gateway, "name", &[]);
    assert_eq!(gateway.ask(&completion()).status, 503);
    until_no_problem(&gateway);
    assert_eq!(gateway.admin("/readyz").text_at("/reasons/0"), Some("there are no targets"));
}

#[test]
fn what_a_source_and_its_file_say_of_a_target_is_how_it_is_read_and_asked() {
    let serve = |page: &'static str| {
        Upstream::start(move |exchange| {
            let is_page = exchange.request.head.path() == "/page";
            exchange.answer("200 OK", "", if is_page { page } else { "{}" });
            Then::Next
        })
    };
    let (usual, other) = (serve("tgi_queue_size 3\n"), serve("llamacpp:requests_deferred 4\n"));
    let listing = Listing::new();
    let entry = |name: &str, pod: &Upstream, more: &str| {
        format!(r#"{{"name": "{name}", "url": "http://{}"{more}}}"#, pod.address)
    };
    let said = r#", "engine": "llama_cpp", "ask_for_load_report": "none""#;
    listing.put(&format!("[{}, {}]", entry("usual", &usual, ""), entry("other", &other, said)));
    let source = format!(
        r#"[{{ kind = "file", path = "{}", interval = "10ms", engine = "tgi", metrics = "/page", ask_for_load_report = "json" }}]"#,
        listing.path().display()
    );
    let gateway = Setup::before(&[]).set("discovery", source).set("policy", "round_robin").start();
    let known = || {
        let page = gateway.admin("/v1/fleet");
        let targets = page.list("/targets").iter();
        targets.map(|it| json!([it["name"], it["engine"], it["state"]["waiting"]])).collect::<Vec<_>>()
    };
    let expected = [json!(["other", "llama_cpp", 4]), json!(["usual", "tgi", 3])];
    until("both pages are read by their engines' tables", || (known() == expected).then_some(()));
    until_healthy(&gateway, &["other", "usual"]);
    for _request in 0..4 {
        assert_eq!(gateway.ask(&completion()).status, 200);
    }
    for (pod, format) in [(&usual, Some("json")), (&other, None)] {
        let received = pod.received().into_iter().filter(|request| request.head.first_line.starts_with("POST"));
        let asked: Vec<_> =
            received.map(|request| request.head.header("endpoint-load-metrics-format").map(str::to_owned)).collect();
        assert_eq!(asked, [format.map(str::to_owned), format.map(str::to_owned)]);
    }
}

#[test]
fn names_belong_to_who_has_them_first() {
    let (configured, one, other) = (Pod::start(), Pod::start(), Pod::start());
    let listing = Listing::new();
    listing.put(&list(&[("t0", &one), ("x", &other), ("y", &configured)]));
    let gateway = Setup::before(&[configured.address()]).set("discovery", source(&listing.path())).start();
    until_fleet(&gateway, "name", &["t0", "x"]);
    let page = gateway.admin("/v1/fleet");
    let kept = &page.list("/targets")[0];
    assert_eq!((&kept["name"], &kept["address"]), (&json!("t0"), &json!(configured.address().to_string())));
    let expected = [
        format!("t0 at {}: the configuration has a target of this name", one.address()),
        format!("y at {}: this is the address of t0", configured.address()),
    ];
    assert_eq!(
        (page.at("/discovery/0/left_out"), page.at("/discovery/0/first_left_out")),
        (&json!(2), &json!(expected))
    );
    let warning = "discovery file-1: 2 of its 3 targets are left out: others have their names or addresses";
    assert_eq!(gateway.admin("/readyz").at("/warnings"), &json!([warning]));
    // When the name is free, it has it.
    listing.put(&list(&[("z", &one), ("x", &other)]));
    until_fleet(&gateway, "name", &["t0", "x", "z"]);
    assert_eq!(gateway.admin("/v1/fleet").at("/discovery/0/left_out"), 0);
}

#[test]
fn a_target_that_leaves_ends_what_it_has_and_gets_nothing_new() {
    use std::sync::mpsc;
    use std::time::Duration;

    let (release, released) = mpsc::channel::<()>();
    let (arrived, arrival) = mpsc::channel::<()>();
    let (released, arrived) = (std::sync::Mutex::new(released), std::sync::Mutex::new(arrived));
    let slow = Upstream::start(move |exchange| {
        if exchange.request.head.first_line.starts_with("POST") {
            arrived.lock().unwrap().send(()).expect("the test waits");
            released.lock().unwrap().recv_timeout(Duration::from_secs(30)).expect("the test lets it go");
        }
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let other = Pod::start();
    let listing = Listing::new();
    let entry = format!(r#"{{"name": "slow", "url": "http://{}"}}"#, slow.address);
    listing.put(&format!("[{entry}]"));
    let gateway = listing.start();
    until_fleet(&gateway, "name", &["slow"]);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| gateway.ask(&completion()));
        arrival.recv().expect("the request arrives");
        listing.put(&list(&[("other", &other)]));
        until_fleet(&gateway, "name", &["other"]);
        let page = gateway.admin("/v1/fleet");
        assert_eq!((page.at("/leaving/0/name"), page.at("/leaving/0/gateway_in_flight")), (&json!("slow"), &json!(1)));
        assert!(gateway.admin("/metrics").text.contains("snapgate_targets_leaving 1"));
        for _ in 0..20 {
            assert_eq!(gateway.ask(&completion()).status, 200);
        }
        assert_eq!(other.asked().len(), 20, "whoever has left gets nothing new");
        release.send(()).expect("it waits");
        let answer = asked.join().expect("it is answered");
        assert_eq!(answer.status, 200);
        let found = gateway.ended(&answer.id());
        assert_eq!(found.text_at("/outcome/target"), Some("slow"), "the record keeps its name");
    });
    until("it is gone", || gateway.admin("/v1/fleet").list("/leaving").is_empty().then_some(()));
}

#[test]
fn a_newcomer_gets_nothing_before_it_has_shown_that_it_is_alive() {
    let old = Pod::start();
    let dead = crate::gateway::Sims::refusing(1);
    let listing = Listing::new();
    listing.put(&list(&[("old", &old)]));
    let gateway = listing.start();
    until_healthy(&gateway, &["old"]);
    let entry = |name: &str, address| format!(r#"{{"name": "{name}", "url": "http://{address}"}}"#);
    let both = format!("[{},{}]", entry("old", old.address()), entry("new", dead.addresses()[0]));
    listing.put(&both);
    until_fleet(&gateway, "name", &["new", "old"]);
    for _ in 0..20 {
        let answer = gateway.ask(&completion());
        assert_eq!(answer.status, 200);
        let found = gateway.ended(&answer.id());
        assert_eq!(
            (found.at("/outcome/attempt_count"), found.at("/decision/excluded/unhealthy")),
            (&json!(1), &json!(1))
        );
    }
    // If nobody else is there, it is tried.
    listing.put(&format!("[{}]", entry("new", dead.addresses()[0])));
    until_fleet(&gateway, "name", &["new"]);
    let answer = gateway.ask(&completion());
    assert_eq!(gateway.ended(&answer.id()).at("/decision/eligible"), 1);
}

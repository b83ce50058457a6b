//! Sources that come, go and are renamed, and a fleet that cannot be changed.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::mpsc;

use super::*;

fn file(name: &str, path: &str) -> Settings {
    let kind = Kind::File(FileSettings { path: path.into(), interval: Duration::from_secs(1) });
    Settings { name: name.into(), kind, defaults: Defaults::default() }
}

fn target(name: &str) -> TargetSettings {
    TargetSettings::new(name, &format!("{name}:1"))
}

/// Sources that nobody asks.
fn discovery(sources: &[Settings]) -> Arc<Discovery> {
    Discovery::new(Vec::new(), sources, Metrics::new(), |_| Change::default())
}

impl Discovery {
    /// The source of this name has found this target.
    fn finds(self: &Arc<Self>, source: &str, found: &str) {
        self.report(source).found(vec![target(found)]);
    }

    fn report(self: &Arc<Self>, source: &str) -> Report {
        let id = self.board().sources.iter().find(|other| other.settings.name == source).expect("there is one").id;
        Report { discovery: Arc::clone(self), id }
    }

    /// The names of the targets after a reload, as they are put into effect.
    fn after_reload(&self, sources: &[Settings]) -> Vec<String> {
        let mut names = Vec::new();
        self.reload(Vec::new(), sources, |targets| {
            names = targets.iter().map(|target| target.name.clone()).collect();
            Change::default()
        });
        names
    }
}

#[test]
fn a_source_that_is_asked_the_same_keeps_its_targets_whatever_it_is_called() {
    let discovery = discovery(&[file("file-1", "a"), file("file-2", "b")]);
    discovery.finds("file-1", "of-a");
    discovery.finds("file-2", "of-b");
    let before = discovery.report("file-1").id;
    // Another one above them moves both, and takes a name that one of them had.
    let moved = [file("file-1", "c"), file("file-2", "a"), file("file-3", "b")];
    assert_eq!(discovery.after_reload(&moved), ["of-a", "of-b"]);
    assert_eq!(discovery.report("file-2").id, before, "nobody else is asked in its place");
    discovery.finds("file-1", "of-c");
    let named = [file("c", "c"), file("file-2", "a"), file("b", "b")];
    assert_eq!(discovery.after_reload(&named), ["of-c", "of-a", "of-b"]);
    // Who is asked otherwise goes by the name, and is asked anew.
    assert_eq!(discovery.after_reload(&[file("file-2", "d")]), ["of-a"]);
    assert_ne!(discovery.report("file-2").id, before);
    assert!(discovery.after_reload(&[file("other", "e")]).is_empty());
}

#[test]
fn what_holds_on_is_confirmed_only_if_it_was_good() {
    let discovery = discovery(&[file("f", "a")]);
    let report = discovery.report("f");
    let found = || discovery.board().sources[0].found;
    report.holds();
    assert_eq!(found(), None, "nothing was found yet");
    discovery.finds("f", "x");
    let first = found();
    report.failed(Trouble::Unusable, "nonsense".to_owned());
    report.holds();
    assert_eq!(found(), first);
    discovery.finds("f", "x");
    let second = found();
    report.holds();
    assert!(second > first && found() > second);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_targets_are_put_into_effect_ends_nothing() {
    let (applied, mut seen) = mpsc::channel(1);
    let tries = AtomicUsize::new(0);
    let apply = move |targets: &[TargetSettings]| {
        assert!(tries.fetch_add(1, Relaxed) > 0, "the first time it panics, which is what is tested here");
        applied.try_send(targets.to_vec()).expect("it is looked at");
        Change::default()
    };
    let discovery = Discovery::new(Vec::new(), &[file("f", "/does/not/exist.json")], Metrics::new(), apply);
    discovery.finds("f", "x");
    tokio::select! {
        () = Arc::clone(&discovery).run(std::future::pending()) => unreachable!("nobody stops it"),
        targets = seen.recv() => assert_eq!(targets, Some(vec![target("x")])),
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_asked_less_and_less() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = KubernetesSettings {
        api: format!("http://{}", silent.local_addr().unwrap()),
        ca: None,
        token_file: None,
        namespace: Some("llm".into()),
        selector: "a=b".into(),
        port_name: None,
    };
    let source = Settings { name: "k".into(), kind: Kind::Kubernetes(settings), defaults: Defaults::default() };
    let discovery = discovery(&[source]);
    // Each question takes ten seconds; if the pauses did not grow there would be almost thirty.
    let asked = Arc::clone(&discovery).run(std::future::pending());
    tokio::time::timeout(Duration::from_secs(300), asked).await.expect_err("it goes on");
    let failures = discovery.board().sources[0].failures;
    assert!((5..20).contains(&failures), "{failures}");
}

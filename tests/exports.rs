//! `snapgate export` and `snapgate tail` as programs: what they write, and how they end.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::Value;

use crate::gateway::{Gateway, Request, Setup, Sims, until};
use crate::process::binary;
use crate::schema::checked;

fn snapgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env_remove("SNAPGATE_TOKEN").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    snapgate(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it writes text")
}

/// IDs of finished and stored requests, in the order in which they were made.
fn make(gateway: &Gateway, count: usize) -> Vec<String> {
    let ask =
        Request::post("/v1/chat/completions", r#"{"model":"llama-3.1-8b","messages":[{"role":"user","content":"a"}]}"#);
    let ids: Vec<_> = (0..count).map(|_| gateway.ask(&ask).id()).collect();
    for id in &ids {
        gateway.stored(id);
    }
    ids
}

#[test]
fn an_export_is_the_same_from_a_gateway_and_from_its_store() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let mut ids = make(&gateway, 5);
    // Within a millisecond their order is that of their random digits.
    ids.sort_unstable_by(|a, b| b.cmp(a));
    let admin = format!("http://{}", gateway.admin);
    let asked = |more: &[&str]| run(&[&["export", "--admin", &admin, "--since", "1h"], more].concat());
    let documents = asked(&[]);
    assert!(documents.status.success(), "{documents:?}");
    let lines: Vec<Value> =
        text(&documents.stdout).lines().map(|line| checked(serde_json::from_str(line).unwrap())).collect();
    assert_eq!(lines.iter().map(|line| line["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    let table = asked(&["--format", "csv", "--target", "t0"]);
    assert_eq!(text(&table.stdout).lines().count(), 1 + ids.len(), "{table:?}");
    assert_eq!(text(&asked(&["--format", "csv", "--status", "5xx"]).stdout).lines().count(), 1, "a head and no rows");

    let stopped = gateway.stop();
    let data = stopped.dir.path().join("data");
    let data = data.to_str().expect("a temporary directory has a plain name");
    let read = |more: &[&str]| run(&[&["export", "--data-dir", data], more].concat());
    assert_eq!(text(&read(&[]).stdout), text(&documents.stdout));
    let file = stopped.dir.path().join("all.csv");
    let name = file.to_str().expect("it has a plain name");
    let written = read(&["--format", "csv", "-o", name]);
    assert_eq!(std::fs::read_to_string(&file).expect("the file is there"), text(&table.stdout));
    assert_eq!(
        (text(&written.stdout), text(&written.stderr)),
        ("", format!("snapgate: 5 rows are in {name}\n").as_str())
    );
    assert!(!file.with_extension("csv.partial").exists());
}

#[test]
fn an_export_that_fails_leaves_no_file_and_says_why() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let file = dir.path().join("out");
    let name = file.to_str().expect("it has a plain name");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port is free");
    let (admin, absent) = (format!("http://{nobody}"), dir.path().join("absent").display().to_string());
    for (arguments, code, words) in [
        (vec!["--admin", &admin, "-o", name], 1, "is the gateway running"),
        (vec!["--data-dir", &absent, "-o", name], 1, "absent"),
        (vec!["--since", "soon", "-o", name], 64, "since=\"soon\" is no time"),
        (vec!["--shape", "document", "--format", "csv", "-o", name], 64, "no columns"),
        (vec!["--label", "nothing"], 64, "NAME=VALUE"),
    ] {
        let done = run(&[&["export"], &arguments[..]].concat());
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {done:?}");
        assert!(text(&done.stderr).contains(words), "{arguments:?}: {done:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("it can be read").count(), 0);
    let columns = run(&["export", "--shape", "flat", "--columns"]);
    assert!(text(&columns.stdout).starts_with("column,type,description\nschema,string,"), "{columns:?}");
}

/// `snapgate tail`, and its lines.
struct Tail {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Tail {
    fn start(arguments: &[&str]) -> Self {
        let mut child = snapgate(&[&["tail"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line can be read");
        line
    }

    /// Its exit code after a signal, and what it said.
    fn interrupted(mut self) -> (Option<i32>, String) {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "the signal could not be sent");
        let mut said = String::new();
        self.child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("it says text");
        (self.child.wait().expect("it ends").code(), said)
    }
}

#[test]
fn a_tail_shows_what_ends_over_a_restart_until_it_is_stopped() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let before = make(&gateway, 1);
    let at = gateway.admin;
    let admin = format!("http://{at}");
    let mut tail = Tail::start(&["--admin", &admin, "--json", "--target", "t0"]);
    // It has begun when it shows something that was made later.
    let (first, made) = while_making(&gateway, || tail.line());
    let id =
        |line: &str| checked(serde_json::from_str(line).expect("a document"))["id"].as_str().expect("an ID").to_owned();
    let begun = made.iter().position(|it| *it == id(&first)).expect("it shows what was made since it began");
    assert!(!before.contains(&id(&first)));
    for expected in &made[begun + 1..] {
        assert_eq!(id(&tail.line()), *expected);
    }

    let dir = gateway.stop().dir;
    let gateway = Setup::in_dir(dir, sims.addresses()).set("admin", at).start();
    until("the gateway serves again", || (gateway.admin("/readyz").status == 200).then_some(()));
    for expected in make(&gateway, 2) {
        assert_eq!(id(&tail.line()), expected, "each once, in their order");
    }
    let (code, said) = tail.interrupted();
    assert_eq!(code, Some(0), "{said}");

    let mut people = Tail::start(&["--admin", &admin]);
    while_making(&gateway, || {
        let line = people.line();
        assert!(line.contains("  200  completed  t0  llama-3.1-8b  "), "{line}");
        // Nobody reads on: that is no failure.
        drop(people.lines);
        assert_eq!(people.child.wait().expect("it ends").code(), Some(0));
    });
}

/// Makes requests until something is done, and says which they were.
fn while_making<T>(gateway: &Gateway, work: impl FnOnce() -> T) -> (T, Vec<String>) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let making = scope.spawn(|| {
            let mut made = Vec::new();
            while !done.load(Relaxed) {
                made.extend(make(gateway, 1));
            }
            made
        });
        let worked = work();
        done.store(true, Relaxed);
        (worked, making.join().expect("requests can be made"))
    })
}

#[test]
fn a_tail_of_nobody_ends_at_once() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port is free");
    let done = run(&["tail", "--admin", &format!("http://{nobody}")]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("is the gateway running"), "{done:?}");
    assert_eq!(run(&["tail", "--status", "bad"]).status.code(), Some(64));
}

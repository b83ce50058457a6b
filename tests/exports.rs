//! `snapgate export`, `tail`, `delete` and `lookup --around` as programs: what they write, and how they end.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::Value;

use crate::gateway::{Client, Gateway, Request, Setup, Sims, until};
use crate::process::{self, Engine, binary, completion};
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
    let written = read(&["-o", name]);
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
        (vec!["--shape", "document", "--columns"], 64, "no columns"),
        (vec!["--tenant", "foo", "-o", name], 64, "no tenant"),
        (vec!["--label", "nothing"], 64, "NAME=VALUE"),
    ] {
        let done = run(&[&["export"], &arguments[..]].concat());
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {done:?}");
        assert!(text(&done.stderr).contains(words), "{arguments:?}: {done:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("it can be read").count(), 0);
    for words in [&["export", "--columns"][..], &["export", "--shape", "flat", "--columns"]] {
        let columns = run(words);
        assert!(text(&columns.stdout).starts_with("column,type,description\nschema,string,"), "{columns:?}");
    }
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
    let nobody = Sims::refusing(1);
    let done = run(&["tail", "--admin", &format!("http://{}", nobody.addresses()[0])]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("is the gateway running"), "{done:?}");
    for nonsense in [["--status", "bad"], ["--status", "6xx"], ["--tenant", "foo"]] {
        assert_eq!(run(&[&["tail"], &nonsense[..]].concat()).status.code(), Some(64), "{nonsense:?}");
    }
}

#[test]
fn a_lookup_tells_what_else_went_wrong_from_a_gateway_and_from_its_store() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let ids = make(&gateway, 2);
    let broken = gateway.ask(&Request::stream(3).with("x-sim-fault", "reset")).id();
    gateway.stored(&broken);
    let admin = format!("http://{}", gateway.admin);
    let (words, wrong) = ("Around it, t0 got 2 other requests from ", "of which 1 went wrong: 1 x upstream_reset.");
    let asked = run(&["lookup", &ids[0], "--admin", &admin, "--around", "30s"]);
    let said = text(&asked.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        said.contains(words) && said.contains(wrong) && said.contains(&format!("{broken} 502 upstream_reset ")),
        "{asked:?}"
    );
    let json = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).expect("a document")["around"].clone();
    let around = json(&run(&["lookup", &ids[0], "--admin", &admin, "--around", "30s", "--json"]));
    assert_eq!(around["nearest"][0]["id"], *broken);

    let stopped = gateway.stop();
    let data = stopped.dir.path().join("data");
    let data = data.to_str().expect("a temporary directory has a plain name");
    let read = run(&["lookup", &ids[0], "--data-dir", data, "--around", "30s"]);
    assert_eq!(text(&read.stdout), text(&asked.stdout));
    assert_eq!(json(&run(&["lookup", &ids[0], "--data-dir", data, "--around", "30s", "--json"])), around);
    let misused = run(&["lookup", &ids[0], "--data-dir", data, "--around", "30"]);
    assert_eq!(misused.status.code(), Some(64), "{misused:?}");
    assert!(text(&misused.stderr).contains("--around has no unit"), "{misused:?}");
}

/// Who may read, and who may delete.
const TOKENS: &str = r#"[{ name = "dpo", token = "the-token-that-may-delete", scope = ["read", "delete"] },
    { name = "ops", token = "the-token-that-may-read" }]"#;

#[test]
fn a_deletion_says_what_is_gone_and_needs_a_yes_and_a_right() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).set("lookup.tokens", TOKENS).start();
    let state = |id: &str| {
        let ask = Request::get(format!("/v1/snapshots/{id}")).with("authorization", "Bearer the-token-that-may-read");
        let answer = Client::to(gateway.admin).ask(&ask);
        let page: Value = serde_json::from_str(answer.text()).expect("JSON");
        page.get("state").or(page.get("phase")).and_then(Value::as_str).expect("it says").to_owned()
    };
    let chat = |key: &str| {
        let id = gateway.ask(&Request::chat().with("authorization", format!("Bearer {key}"))).id();
        until("it has ended", || (state(&id) == "complete").then_some(()));
        id
    };
    let (first, second, kept) = (chat("sk-one"), chat("sk-one"), chat("sk-two"));
    let admin = format!("http://{}", gateway.admin);
    let delete = |token: &str, words: &[&str]| {
        let mut command = snapgate(&[&["delete", "--admin", &admin], words].concat());
        command.env("SNAPGATE_TOKEN", token).output().expect("the program starts")
    };
    let may = "the-token-that-may-delete";
    for (token, words, code, why) in [
        (may, vec![first.as_str()], 64, "say so with --yes"),
        (may, vec!["--yes", &first, "not-an-id"], 64, "\"not-an-id\" is no snapshot ID: nothing was deleted"),
        ("the-token-that-may-read", vec!["--yes", &first], 1, "scope"),
        ("no-token-of-this-gateway", vec!["--yes", &first], 1, "token"),
        (may, vec!["--yes", "--tenant", "t_00000000"], 1, "Nothing to delete"),
    ] {
        let refused = delete(token, &words);
        assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(code), ""), "{words:?}: {refused:?}");
        assert!(text(&refused.stderr).contains(why), "{why}: {refused:?}");
    }
    assert_eq!(state(&first), "complete", "nothing has been deleted");

    // One that is not there keeps the others from nothing.
    let absent = format!("{}{}", &first[..16], "0123456789abcdef");
    let done = delete(may, &["--yes", &absent, &first]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(text(&done.stdout).starts_with(&format!("Deleted {first}: ")), "{done:?}");
    assert!(text(&done.stderr).contains("Nothing to delete"), "{done:?}");
    assert_eq!((state(&first).as_str(), state(&second).as_str()), ("deleted", "complete"));

    let document = Request::get(format!("/v1/snapshots/{second}")).with("authorization", format!("Bearer {may}"));
    let document: Value = serde_json::from_str(Client::to(gateway.admin).ask(&document).text()).expect("a document");
    let tenant = document["request"]["tenant"].as_str().expect("it has a tenant");
    let done = delete(may, &["--yes", "--json", "--tenant", tenant]);
    let page: Value = serde_json::from_slice(&done.stdout).expect("one line of JSON");
    let gone = page["deleted"].as_u64().zip(page["kept_out"].as_u64()).map(|(stored, fresh)| stored + fresh);
    assert_eq!((gone, page["by"].as_str()), (Some(1), Some("dpo")), "{page}");
    assert_eq!((state(&second).as_str(), state(&kept).as_str()), ("deleted", "complete"));

    // On a terminal it asks.
    for (typed, code, then) in [("no\n", 1, "complete"), ("yes\n", 0, "deleted")] {
        let done = on_a_terminal(&format!("{} delete --admin {admin} {kept}", binary().display()), may, typed);
        assert_eq!(done.status.code(), Some(code), "{done:?}");
        assert!(text(&done.stdout).contains(&format!("delete {kept} at {admin}?")), "{done:?}");
        assert_eq!(state(&kept), then, "{done:?}");
    }
}

#[test]
fn a_terminal_gets_nothing_to_obey_and_a_pipe_gets_what_was_recorded() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let named = r#"{"model":"a\u001b]0;owned\u0007\u009b2J\u202eb","prompt":"2+2="}"#;
    let id = gateway.ask(&Request::post("/v1/completions", named)).id();
    gateway.stored(&id);
    let admin = format!("http://{}", gateway.admin);
    let exported = ["export", "--admin", &admin, "--since", "1h", "--format", "csv"];
    assert!(text(&run(&exported).stdout).contains("a\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}b"), "digit by digit");
    for words in [
        &exported[..],
        &exported[..5],
        &["lookup", "--admin", &admin, "--json", &id],
        &["lookup", "--admin", &admin, &id],
    ] {
        let done = on_a_terminal(&format!("{} {}", binary().display(), words.join(" ")), "", "");
        let shown = text(&done.stdout);
        assert!(shown.contains("owned") && !shown.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{shown:?}");
    }
}

/// Runs a command on a terminal of its own, by `script` of Debian's bsdutils, and types.
fn on_a_terminal(command: &str, token: &str, typed: &str) -> Output {
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", command, "/dev/null"]).env("SNAPGATE_TOKEN", token);
    let mut child =
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("`script` is there");
    child.stdin.as_mut().expect("it is piped").write_all(typed.as_bytes()).expect("it reads what is typed");
    child.wait_with_output().expect("it ends")
}

#[test]
fn the_files_alone_do_not_say_of_a_request_in_flight_that_it_was_never_issued() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let pod = Engine::start();
    let mut command = Command::new(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
    command.args(["--target", &format!("pod=http://{}", pod.address)]);
    let mut gateway = process::Gateway::start(command);
    // The tag is that of an answer; the time is now, and nothing has it: as of a request that is not committed yet.
    let answer = process::Client::connect(gateway.data).and_then(|mut client| client.ask(&completion(false), |_| {}));
    let answered = answer.expect("it is answered").id.expect("every answer has an ID");
    let id = format!("{}0123456789abcdef", &answered[..16]);
    let data = dir.path().to_str().expect("a temporary directory has a plain name");
    let look =
        || text(&run(&["lookup", "--data-dir", data, &id]).stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    let alive = look();
    assert!(
        alive.starts_with("Not in the files: ") && alive.contains("a gateway is running on these files"),
        "{alive}"
    );
    gateway.kill();
    let dead = look();
    assert!(dead.contains("state lost"), "{dead}");
}

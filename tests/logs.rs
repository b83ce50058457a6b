//! The JSON log and the gateway's own log as files and pipes: what a rotation, a full disk or a reader who does not read may
//! cost, which is never a request and never a line of the JSON log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::Value;
use snapgate::demo::sim::SimSettings;

use crate::disk_full::namespace;
use crate::gateway::{Request, Setup, Sims};
use crate::process::{Client, Engine, Gateway, binary, completion};
use crate::schema::checked;
use crate::wait::until;

/// Clients at once.
const CLIENTS: usize = 4;

/// Requests of each.
const REQUESTS: usize = 250;

/// A gateway in front of `engine`, after the words of `before` and with these variables.
fn serve(before: &[&str], dir: &Path, engine: &Engine, variables: &[(&str, &str)]) -> Command {
    let program = binary().to_str().expect("it has a plain name").to_owned();
    let words = [before, &[&program, "serve"]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.args(["--target", &format!("engine=http://{}", engine.address)]);
    command.arg("--data-dir").arg(dir.join("data")).envs(variables.iter().copied());
    command
}

/// Makes requests, which must succeed, and answers their IDs.
fn requests(gateway: &Gateway, count: usize) -> Vec<String> {
    let mut client = Client::connect(gateway.data).expect("the data listener accepts");
    let ask = |_| {
        let answer = client.ask(&completion(false), |_| {}).expect("a request is answered");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.id.expect("every answer has an ID")
    };
    (0..count).map(ask).collect()
}

/// How often each ID is in the files of a directory. Every line has to be a document.
fn logged(dir: &Path) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("the directory can be read") {
        let path = entry.expect("likewise").path();
        for line in fs::read_to_string(&path).expect("it is text").lines() {
            let document: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let document = checked(document);
            *found.entry(document["id"].as_str().expect("a document has an ID").to_owned()).or_default() += 1;
        }
    }
    found
}

/// Each of these once, and nothing else.
#[track_caller]
fn assert_each_once(found: &BTreeMap<String, usize>, issued: &[String]) {
    let missing = issued.iter().filter(|id| !found.contains_key(*id)).count();
    let doubled = found.values().filter(|count| **count > 1).count();
    assert_eq!((missing, doubled, found.len()), (0, 0, issued.len()), "missing, doubled, and how many there are");
}

#[test]
fn a_log_that_is_rotated_by_size_and_by_logrotate_under_load_loses_and_doubles_no_line() {
    let (dir, engine) = (tempfile::tempdir().expect("a directory"), Engine::start());
    let logs = dir.path().join("logs");
    let log = logs.join("snapshots.jsonl");
    let settings = [("SNAPGATE_JSON_LOG_MAX_BYTES", "256KiB"), ("SNAPGATE_JSON_LOG_KEEP", "0")];
    let mut command = serve(&[], dir.path(), &engine, &settings);
    command.arg("--json-log").arg(&log);
    let mut gateway = Gateway::start(command);
    let done = AtomicBool::new(false);
    let (issued, moved) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| requests(&gateway, REQUESTS))).collect();
        let (done, log, logs) = (&done, &log, &logs);
        // As logrotate does it, and faster than anybody would.
        let mover = scope.spawn(move || {
            let mut moved = 0;
            while !done.load(Relaxed) {
                let size = fs::metadata(log).map_or(0, |metadata| metadata.len());
                if size > 32 * 1024 && fs::rename(log, logs.join(format!("moved.{moved}"))).is_ok() {
                    moved += 1;
                }
                std::thread::yield_now();
            }
            moved
        });
        let issued: Vec<_> = clients.into_iter().flat_map(|client| client.join().expect("requests succeed")).collect();
        done.store(true, Relaxed);
        (issued, mover.join().expect("the mover does not panic"))
    });
    assert!(gateway.stop().success());
    assert!(moved > 3, "the log was moved only {moved} times");
    assert_each_once(&logged(&logs), &issued);
}

#[test]
fn files_are_put_aside_by_size_and_only_as_many_are_kept_as_are_wanted() {
    let (dir, engine) = (tempfile::tempdir().expect("a directory"), Engine::start());
    let logs = dir.path().join("logs");
    let log = logs.join("snapshots.jsonl");
    let settings = [("SNAPGATE_JSON_LOG_MAX_BYTES", "64KiB"), ("SNAPGATE_JSON_LOG_KEEP", "2")];
    let mut command = serve(&[], dir.path(), &engine, &settings);
    command.arg("--json-log").arg(&log);
    let mut gateway = Gateway::start(command);
    let issued = requests(&gateway, 200);
    assert!(gateway.stop().success());
    let mut names: Vec<_> = fs::read_dir(&logs)
        .expect("the directory can be read")
        .map(|entry| entry.expect("likewise").file_name().into_string().expect("a plain name"))
        .collect();
    names.sort_unstable();
    let [first, second, last] = &names[..] else { panic!("{names:?}") };
    assert!(first.starts_with("snapshots-20") && second.starts_with("snapshots-20"), "{names:?}");
    assert_eq!(last, "snapshots.jsonl");
    let said = gateway.last_words();
    assert!(said.contains("an old file of the json log was deleted"), "what is deleted is said: {said}");
    // What is left is the end, without a gap.
    let found = logged(&logs);
    assert_each_once(&found, &issued[issued.len() - found.len()..]);
}

/// Mounts a disk for four files at `$1`, and becomes what follows.
const ON_DISK_OF_FEW_FILES: &str = r#"mount -t tmpfs -o nr_inodes=5 snapgate-test "$1" && shift && exec "$@""#;

#[test]
fn a_disk_that_has_no_room_for_the_next_file_costs_no_request_and_no_line() {
    let Some(namespace) = namespace() else {
        eprintln!("SKIPPED: no small disk can be mounted here: run as root, or allow user namespaces");
        return;
    };
    let (dir, engine) = (tempfile::tempdir().expect("a directory"), Engine::start());
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).expect("the temporary directory can be written");
    let before = [&["unshare"], namespace, &["sh", "-c", ON_DISK_OF_FEW_FILES, "sh"]].concat();
    let before = [before, vec![disk.to_str().expect("a plain name")]].concat();
    let settings = [("SNAPGATE_JSON_LOG_MAX_BYTES", "64KiB"), ("SNAPGATE_JSON_LOG_KEEP", "0")];
    let mut command = serve(&before, dir.path(), &engine, &settings);
    command.arg("--json-log").arg(disk.join("log"));
    let mut gateway = Gateway::start(command);
    let root = PathBuf::from(format!("/proc/{}/root", gateway.pid()));
    let disk = root.join(disk.strip_prefix("/").expect("a temporary directory has an absolute path"));

    let mut issued = Vec::new();
    let refused = r#"snapgate_exit_errors_total{exit="json_log",reason="disk_full"}"#;
    let written = r#"snapgate_snapshots_delivered_total{exit="json_log"}"#;
    until("the next file finds no room", || {
        issued.extend(requests(&gateway, 20));
        (gateway.metrics().get(refused) > 0.0).then_some(())
    });
    issued.extend(requests(&gateway, 50));
    let aside = dir.path().join("aside");
    fs::create_dir(&aside).expect("the temporary directory can be written");
    until("what was put aside makes room for all that waits", || {
        for entry in fs::read_dir(&disk).expect("the small disk can be read") {
            let path = entry.expect("likewise").path();
            let name = path.file_name().expect("it has a name");
            // What has a time in its name is complete.
            if name != "log" {
                fs::copy(&path, aside.join(name)).expect("it can be copied");
                fs::remove_file(path).expect("it can be removed");
            }
        }
        // That none is pending says little: the last ones may not have been offered yet, and find no room again.
        (gateway.metrics().get(written) == issued.len() as f64).then_some(())
    });
    // The disk goes with the process, but for who still holds it.
    let held = File::open(&disk).expect("the small disk can be opened");
    assert!(gateway.stop().success());
    let left = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held)));
    let mut found = logged(&left);
    for (id, count) in logged(&aside) {
        *found.entry(id).or_default() += count;
    }
    assert_each_once(&found, &issued);
}

/// The IDs in whole lines of standard output, which carries nothing but documents, and how many bytes follow the last line.
fn ids(output: &str) -> (Vec<String>, usize) {
    let (whole, torn) = output.rsplit_once('\n').map_or(("", output), |(whole, torn)| (whole, torn));
    let id = |line: &str| {
        let document = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let document: Value = checked(document);
        assert!(document["schema"].is_string() && document.get("decision").is_some(), "no document: {line}");
        document["id"].as_str().expect("a document has an ID").to_owned()
    };
    (whole.lines().map(id).collect(), torn.len())
}

#[test]
fn a_log_on_standard_output_is_one_document_a_line_and_nothing_else() {
    let (dir, engine) = (tempfile::tempdir().expect("a directory"), Engine::start());
    let settings = [("SNAPGATE_JSON_LOG", "stdout"), ("SNAPGATE_LOG_LEVEL", "debug")];
    let (mut gateway, mut stdout) = Gateway::start_with_output(serve(&[], dir.path(), &engine, &settings));
    let (issued, output) = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut output = String::new();
            stdout.read_to_string(&mut output).expect("it is text");
            output
        });
        let issued = requests(&gateway, 200);
        assert!(gateway.stop().success());
        (issued, reader.join().expect("the reader does not panic"))
    });
    let (found, torn) = ids(&output);
    assert_eq!((found, torn), (issued, 0), "in the order of their ends, which is that of one client's requests");
}

#[test]
fn who_does_not_read_standard_output_holds_up_no_request_and_no_shutdown_and_loses_nothing() {
    let (dir, engine) = (tempfile::tempdir().expect("a directory"), Engine::start());
    let settings = [("SNAPGATE_JSON_LOG", "stdout"), ("SNAPGATE_TIMEOUTS_SHUTDOWN_GRACE", "1s")];
    let (mut gateway, mut unread) = Gateway::start_with_output(serve(&[], dir.path(), &engine, &settings));
    let pending = r#"snapgate_snapshots_pending{exit="json_log"}"#;
    let stored = r#"snapgate_snapshots_delivered_total{exit="store"}"#;
    // A pipe holds 64 KiB, some thirty lines.
    let mut issued = Vec::new();
    until("lines wait for a reader", || {
        issued.extend(requests(&gateway, 50));
        (gateway.metrics().get(pending) > 100.0).then_some(())
    });
    issued.extend(requests(&gateway, 200));
    until("all are stored", || (gateway.metrics().get(stored) == issued.len() as f64).then_some(()));
    assert!(gateway.metrics().get(pending) > 300.0, "still nobody reads");
    assert!(gateway.stop().success(), "the end does not wait for a reader either");
    let mut output = String::new();
    unread.read_to_string(&mut output).expect("it is text");
    let (mut found, _) = ids(&output);
    assert!(found.len() < issued.len(), "what lay in the pipe");

    let (mut gateway, mut stdout) = Gateway::start_with_output(serve(&[], dir.path(), &engine, &settings));
    let rest = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut output = String::new();
            stdout.read_to_string(&mut output).expect("it is text");
            output
        });
        until("nothing waits", || (gateway.metrics().get(pending) == 0.0).then_some(()));
        assert!(gateway.stop().success());
        reader.join().expect("the reader does not panic")
    });
    let (rest, torn) = ids(&rest);
    assert_eq!(torn, 0);
    // What was under way comes again.
    found.extend(rest);
    let found: BTreeSet<_> = found.into_iter().collect();
    assert_eq!(found, issued.into_iter().collect());
}

#[test]
fn who_does_not_read_the_log_holds_up_no_request_and_no_shutdown() {
    let (dir, engine) = (tempfile::tempdir().expect("a directory"), Engine::start());
    let command = serve(&[], dir.path(), &engine, &[("SNAPGATE_LOG_LEVEL", "debug")]);
    let (mut gateway, unread) = Gateway::start_unread(command);
    // Each says a line; a pipe holds 64 KiB, the queue four thousand lines.
    let dropped = until("lines are dropped", || {
        requests(&gateway, 200);
        Some(gateway.metrics().get("snapgate_log_lines_dropped_total")).filter(|dropped| *dropped > 0.0)
    });
    requests(&gateway, 50);
    assert!(gateway.metrics().get("snapgate_log_lines_dropped_total") > dropped, "still nobody reads");
    assert!(gateway.stop().success(), "the end does not wait for a reader either");
    drop(unread);
}

#[test]
fn a_line_about_a_request_has_its_snapshot_id() {
    let (dir, engine) = (tempfile::tempdir().expect("a directory"), Engine::start());
    let gateway = Gateway::start(serve(&[], dir.path(), &engine, &[("SNAPGATE_LOG_LEVEL", "debug")]));
    let id = requests(&gateway, 1).remove(0);
    until("its line is written", || {
        let said = gateway.last_words();
        let mut lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok());
        lines.find(|line| line["message"] == "request ended" && line["snapshot_id"] == *id)
    });
}

/// What somebody would like to read in a log that is not so, after a line's end or where a terminal obeys.
const FORGED: [&str; 2] = ["\n{\"event\":\"forged\"}", "\u{1b}[2Jforged"];

/// Text as it can stand in a path or a query.
fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// Sends requests with such text wherever one has room for it. Answers how many were read, and so have records.
fn forge(gateway: &Gateway) -> usize {
    let post = |path: &str, headers: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nhost: a\r\n{headers}content-length: {length}\r\n\r\n{body}")
    };
    let mut read = 0;
    for text in FORGED {
        let body = serde_json::json!({"model": format!("model{text}"), "prompt": text}).to_string();
        let encoded = percent_encoded(text);
        for (request, status) in [
            (post("/v1/completions", "", &body), 200),
            (post(&format!("/v1/completions?{encoded}"), &format!("x-request-id: {encoded}\r\n"), &body), 200),
            (post(&format!("/v1/{encoded}"), &format!("user-agent: {encoded}\r\n"), &body), 400),
            (format!("GET /v1/models?model={encoded} HTTP/1.1\r\nhost: a\r\n\r\n"), 200),
            (
                format!(
                    "GET /v1/realtime?model=model{encoded} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                ),
                200,
            ),
            // Raw, they are in no request that could be read.
            (post(&format!("/v1/completions?{text}"), "", &body), 400),
            (post("/v1/completions", &format!("user-agent: a{text}\r\n"), &body), 400),
        ] {
            let answer = Client::connect(gateway.data).and_then(|mut client| client.ask(request.as_bytes(), |_| {}));
            let answer = answer.unwrap_or_else(|error| panic!("{error}: {request}"));
            assert_eq!(answer.status, status, "{request:?}: {}", answer.text());
            read += usize::from(answer.id.is_some());
        }
        for path in [format!("/v1/snapshots/{encoded}"), format!("/v1/fleet?{encoded}"), format!("/{encoded}")] {
            assert!(crate::process::ask_once(gateway.admin, &path).status < 500, "{path}");
        }
    }
    read
}

#[test]
fn nothing_a_client_sends_begins_a_line_of_its_own_in_a_log() {
    for format in ["json", "text"] {
        let (dir, engine) = (tempfile::tempdir().expect("a directory"), Engine::start());
        let logs = dir.path().join("logs");
        let settings =
            [("SNAPGATE_LOG_FORMAT", format), ("SNAPGATE_LOG_LEVEL", "trace"), ("SNAPGATE_ROUTES_ALLOW", "*")];
        let mut command = serve(&[], dir.path(), &engine, &settings);
        command.arg("--json-log").arg(logs.join("snapshots.jsonl"));
        let mut gateway = Gateway::start(command);
        let read = forge(&gateway);
        assert!(gateway.stop().success());
        let records = fs::read_to_string(logs.join("snapshots.jsonl")).expect("it is text");
        assert_eq!((logged(&logs).len(), records.lines().count()), (read, read), "one line for each");
        let log = gateway.whole_log();
        assert!(log.contains("request ended") && log.contains("DEBUG"), "it says much: {log}");
        for (name, text) in [("JSON log", &records), ("own log", &log)] {
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "a terminal obeys the {name}: {text:?}");
            let forged =
                text.lines().find(|line| line.starts_with("{\"event\":\"forged") || line.starts_with("forged"));
            assert_eq!(forged, None, "in the {name}");
        }
        for text in FORGED {
            let model = format!("model{text}");
            let has = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|it| it["request"]["model"] == *model);
            assert!(records.lines().any(has), "{model:?} is recorded as it was sent: {records}");
        }
        if format == "json" {
            let broken = log.lines().find(|line| serde_json::from_str::<Value>(line).is_err());
            assert_eq!(broken, None, "each line is JSON");
        }
    }
}

#[test]
fn a_line_has_as_many_candidates_as_are_wanted_and_says_how_many_targets_there_were() {
    let sims = Sims::start(std::iter::repeat_n(SimSettings::instant(), 3));
    for (wanted, shown) in [("chosen", 1), ("2", 2), ("all", 3)] {
        let gateway = Setup::before(sims.addresses()).set("json_log.candidates", wanted).start();
        let ask = Request::post("/v1/completions", r#"{"model":"m","prompt":"2+2=","max_tokens":1}"#);
        let id = gateway.ask(&ask).id();
        let kept = gateway.stored(&id);
        let log = gateway.stop().log();
        let line: Value = serde_json::from_str(&log[&id][0]).expect("it is a document");
        let decision = &line["decision"];
        assert_eq!(decision["candidates"].as_array().map(Vec::len), Some(shown), "{wanted}");
        assert_eq!((&decision["eligible"], &decision["candidates"][0]["chosen"]), (&3.into(), &true.into()));
        assert_eq!(kept.list("/decision/candidates").len(), 3, "the store keeps them all");
    }
}

/// Run by a shell that lowers the limit of open files, so that the log has something to say as the start fails.
#[test]
fn a_start_that_fails_says_why_in_one_line_after_the_log() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("the disk takes it");
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n 1024; exec "$0" "$@""#]).arg(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--target", "http://127.0.0.1:9"]);
    command.arg("--data-dir").arg(file.join("below"));
    let output = command.output().expect("the shell starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).expect("it is text");
    let (log, complaint): (Vec<_>, Vec<_>) = said.lines().partition(|line| line.starts_with('{'));
    let [complaint] = complaint[..] else { panic!("{said}") };
    assert!(complaint.starts_with("snapgate: ") && said.ends_with(&format!("{complaint}\n")), "{said}");
    assert!(log.iter().any(|line| line.contains("too few open files")), "{said}");
}

//! SIGTERM: first not ready, then no new connections, then the rest; and a second one for whoever cannot wait.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::gateway::{Client, End, Request, Then, Upstream};
use crate::process::{Gateway, binary};
use crate::wait::until;

/// Run by a shell that lowers the limit, as many systems have it.
#[test]
fn the_limit_of_open_files_is_raised_and_a_low_one_is_named() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let mut command = Command::new("sh");
    let program = r#"ulimit -Sn 128; ulimit -Hn 4096; exec "$0" "$@""#;
    command.args(["-c", program]).arg(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--target", "http://127.0.0.1:9"]);
    command.arg("--data-dir").arg(dir.path());
    let mut gateway = Gateway::start(command);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).expect("Linux says so");
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).expect("it is among them");
    assert_eq!(open_files.split_whitespace().nth(3), Some("4096"), "{open_files}");
    assert!(gateway.stop().success());
    let words = gateway.last_words();
    assert!(words.contains("too few open files") && words.contains("\"wanted\":21024"), "{words}");
}

#[test]
fn the_first_signal_turns_clients_away_and_the_second_ends_it() {
    let upstream = Upstream::start(|exchange| {
        if exchange.request.head.header("x-endless").is_none() {
            exchange.answer("200 OK", "", "{}");
            return Then::Next;
        }
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun");
        exchange.is_left();
        Then::Close
    });
    let dir = tempfile::tempdir().expect("a directory can be made");
    let mut command = Command::new(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
    command.args(["--target", &format!("http://{}", upstream.address)]);
    command.env("SNAPGATE_TIMEOUTS_SHUTDOWN_DELAY", "1h").env("SNAPGATE_TIMEOUTS_SHUTDOWN_GRACE", "1h");
    let mut gateway = Gateway::start(command);
    gateway.until_ready();

    let mut endless = Client::to(gateway.data);
    endless.send(&Request::stream(9).with("x-endless", 1));
    endless.head();
    gateway.terminate();
    until("the gateway is not ready", || (gateway.ready().status == 503).then_some(()));
    let answer = Client::to(gateway.data).ask(&Request::chat());
    assert_eq!((answer.status, answer.text()), (200, "{}"), "within the delay clients are served");

    gateway.terminate();
    assert!(gateway.ended().success());
    assert_eq!(endless.piece(), Ok(b"begun".to_vec()));
    assert_eq!(endless.piece(), Err(End::BrokenOff));
    let words = gateway.last_words();
    let last = words.lines().last().expect("it said something");
    let line: Value = serde_json::from_str(last.trim()).expect("the closing line is JSON");
    assert_eq!(line, json!({"event": "stopped", "offered": 2, "stored": 2, "dropped": 0, "exits": {}}));
}

/// The longest that one delivery may take is ten seconds; the stop ends it.
#[test]
fn a_receiver_that_never_answers_holds_up_no_stop() {
    let receiver = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let upstream = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let dir = tempfile::tempdir().expect("a directory can be made");
    let mut command = Command::new(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
    command.args(["--target", &format!("http://{}", upstream.address)]);
    command.env("SNAPGATE_OTLP_ENDPOINT", format!("http://{}", receiver.local_addr().expect("it has one")));
    command.env("SNAPGATE_TIMEOUTS_SHUTDOWN_GRACE", "1s");
    let mut gateway = Gateway::start(command);
    gateway.until_ready();
    assert_eq!(Client::to(gateway.data).ask(&Request::chat()).status, 200);
    receiver.accept().expect("the gateway begins to deliver");
    gateway.terminate();
    assert!(gateway.ended().success());
    let words = gateway.last_words();
    assert!(words.contains("the exit ran out of time at shutdown"), "{words}");
    assert!(!words.contains("the exit is stuck in a delivery"), "{words}");
    let last = words.lines().last().expect("it said something");
    let line: Value = serde_json::from_str(last.trim()).expect("the closing line is JSON");
    assert_eq!((&line["stored"], &line["exits"]["otlp_traces"]["left"]), (&json!(1), &json!(1)), "{line}");
}

/// What one run's closing line says of the exit for spans, which has nobody to deliver to, after so many requests.
fn last_word_of_an_exit(data_dir: &Path, target: SocketAddr, sample_ratio: &str, requests: usize) -> Value {
    let mut command = Command::new(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
    command.args(["--target", &format!("http://{target}"), "--otlp", "http://127.0.0.1:1"]);
    command.env("SNAPGATE_TRACE_SAMPLE_RATIO", sample_ratio).env("SNAPGATE_TIMEOUTS_SHUTDOWN_GRACE", "1s");
    let mut gateway = Gateway::start(command);
    gateway.until_ready();
    for _ in 0..requests {
        assert_eq!(Client::to(gateway.data).ask(&Request::chat()).status, 200);
    }
    gateway.terminate();
    assert!(gateway.ended().success());
    let words = gateway.last_words();
    // The log may still tell after it how often something was said.
    let stopped = words.lines().find(|line| line.contains("\"event\":\"stopped\"")).expect("it said how it ended");
    let line: Value = serde_json::from_str(stopped.trim()).expect("the closing line is JSON");
    line["exits"]["otlp_traces"].clone()
}

/// offered + recovered = delivered + rejected + dropped + skipped + left, without a word from elsewhere.
#[test]
fn the_closing_line_accounts_for_every_record_of_an_exit() {
    let upstream = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let dir = tempfile::tempdir().expect("a directory can be made");
    let books = |offered: u64, recovered: u64, skipped: u64, left: u64| {
        json!({
            "offered": offered, "recovered": recovered, "skipped": skipped, "left": left,
            "delivered": 0, "rejected": 0, "dropped": 0,
        })
    };
    let run = |sample_ratio, requests| last_word_of_an_exit(dir.path(), upstream.address, sample_ratio, requests);
    assert_eq!(run("0", 3), books(3, 0, 3, 0), "those that are not sampled");
    assert_eq!(run("1", 2), books(2, 0, 0, 2), "those that nobody took");
    assert_eq!(run("1", 0), books(0, 2, 0, 2), "those of the run before");
}

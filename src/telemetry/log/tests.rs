//! What is said, how often, and what becomes of it when nobody reads.

use std::io::{Read as _, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Mutex;

use serde_json::Value;
use tracing::subscriber::with_default;

use super::*;

/// What is written is kept.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of a log of this level while `say` says something, and the closing lines after it.
fn said(level: &str, say: impl FnOnce()) -> Vec<Value> {
    let (kept, repeats) = (Kept::default(), Arc::new(Repeats::default()));
    let queue = Queue::start(kept.clone(), Counter::default(), || {}).unwrap();
    let limited = Limited::new(LogFilter::parse(level).unwrap().0, Arc::clone(&repeats));
    let subscriber = tracing_subscriber::registry().with(lines(queue.clone(), false, false)).with(limited);
    with_default(subscriber, || {
        say();
        repeats.close_all();
    });
    queue.flush(FLUSH_MAX * 30);
    let written = kept.0.lock().unwrap();
    std::str::from_utf8(&written).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_is_an_object_with_its_fields_beside_its_message() {
    let lines = said("info", || {
        tracing::info!(pod = "vllm-0", failures = 3, "pod is healthy again");
        tracing::debug!("not wanted");
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"pod is healthy again".into()));
    assert_eq!((&line["pod"], &line["failures"]), (&"vllm-0".into(), &3.into()));
    assert!(line["timestamp"].is_string() && line["target"].is_string(), "{line}");
}

#[test]
fn modules_have_their_own_levels_and_libraries_keep_quiet_unless_they_are_named() {
    let say = || {
        tracing::debug!(target: "snapgate::gateway::pool", "own");
        tracing::debug!(target: "snapgate::store", "own");
        tracing::info!(target: "h2::proto", "a library's");
        tracing::warn!(target: "h2::proto", "a library's");
    };
    let targets = |level| said(level, say).iter().map(|line| line["target"].to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!(targets("debug"), r#""snapgate::gateway::pool" "snapgate::store" "h2::proto""#);
    assert_eq!(targets("info,snapgate::gateway=debug"), r#""snapgate::gateway::pool" "h2::proto""#);
    assert_eq!(targets("error,h2=info"), r#""h2::proto" "h2::proto""#);
    assert_eq!(targets("error"), "");
}

#[test]
fn what_is_said_again_and_again_is_cut_short_and_the_rest_is_counted() {
    let lines = said("debug", || {
        for turn in 0..100 {
            tracing::warn!(pod = "vllm-0", turn, "metrics page cannot be read");
            tracing::info!(turn, "something began");
            if turn % 20 == 0 {
                tracing::warn!(pod = "vllm-1", turn, "metrics page cannot be read");
                tracing::error!(turn, "data is lost");
            }
        }
    });
    let count = |message: &str, pod: Option<&str>| {
        lines.iter().filter(|line| line["message"] == message && line["pod"].as_str() == pod).count()
    };
    assert_eq!(count("metrics page cannot be read", Some("vllm-0")), 5);
    assert_eq!(count("metrics page cannot be read", Some("vllm-1")), 5, "of another pod it is another line");
    assert_eq!((count("something began", None), count("data is lost", None)), (100, 5));
    let closing: Vec<_> = lines.iter().filter(|line| line.get("suppressed").is_some()).collect();
    let [closing] = closing[..] else { panic!("{closing:?}") };
    assert_eq!((&closing["suppressed"], &closing["level"]), (&95.into(), &"WARN".into()));
    let text = closing["text"].as_str().unwrap();
    assert!(text.contains("metrics page cannot be read") && text.contains("vllm-0"), "{text}");
}

#[test]
fn a_thousand_subjects_are_told_apart_and_more_share_what_is_left() {
    let lines = said("warn", || {
        for pod in 0..2_000 {
            tracing::warn!(pod, "pod is gone");
        }
    });
    let shown = lines.iter().filter(|line| line["message"] == "pod is gone").count();
    let suppressed: u64 = lines.iter().filter_map(|line| line["suppressed"].as_u64()).sum();
    assert_eq!((shown, suppressed), (1_024 + 5, 2_000 - 1_024 - 5));
}

#[test]
fn who_speaks_never_waits_for_who_reads_and_what_is_missing_is_counted() {
    let (out, mut reader) = UnixStream::pair().unwrap();
    let dropped = Counter::default();
    let queue = Queue::start(out, dropped.clone(), || {}).unwrap();
    let (line, lines) = ([b'x'; 999].as_slice(), 20_000);
    let line = [line, b"\n"].concat();
    for _ in 0..lines {
        queue.push(&line);
    }
    // It says more than socket and queue hold, and yet the loop has ended.
    let missing = dropped.get();
    assert!(missing > 0, "all of it found room");
    queue.flush(Duration::ZERO);
    drop(queue);
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(dropped.get(), missing, "what was taken is written");
    assert_eq!(read.len() as u64, (lines - missing) * line.len() as u64);
}

/// The hook is the process's, so it is set in a process of its own.
#[test]
fn a_panic_is_a_line_with_its_thread_and_place() {
    let this = std::env::current_exe().unwrap();
    let name = "telemetry::log::tests::panics_in_a_process_of_its_own";
    let mut child = Command::new(this);
    child.args([name, "--exact", "--ignored", "--nocapture"]).env_remove("RUST_BACKTRACE");
    let output = child.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let line = stderr.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{stderr}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["level"], &line["thread"]), (&"ERROR".into(), &"data-7".into()));
    assert_eq!(line["panic"], "off by \"one\"\nand a line's end");
    assert!(line["location"].as_str().unwrap().contains("src/telemetry/log/tests.rs:"), "{line}");
    assert!(!stderr.contains("thread 'data-7'"), "the usual lines are not there as well: {stderr}");
}

#[test]
#[ignore = "sets the panic hook of its process: the test above runs it in one of its own"]
fn panics_in_a_process_of_its_own() {
    let settings = LogSettings { format: LogFormat::Json, filter: LogFilter::parse("info").unwrap() };
    let log = start_log(&settings).unwrap();
    log_panics(&log);
    let thread = std::thread::Builder::new().name("data-7".into());
    let panicking = thread.spawn(|| panic!("off by \"one\"\nand a line's end")).unwrap();
    assert!(panicking.join().is_err());
}

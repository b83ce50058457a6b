//! The gateway's own log, on standard error: standard output belongs to snapshots.
//!
//! # Levels
//!
//! | level | means | so whoever reads it |
//! |---|---|---|
//! | `error` | data is lost, or something stays broken until somebody comes | is woken |
//! | `warn` | something is worse than it should be, and is being tried again | looks into it in the morning |
//! | `info` | something began, changed or ended | sees what the gateway went through |
//! | `debug` | one request, one connection | follows a single case |
//!
//! A line about one request has its `snapshot_id`. Messages are lower-case and always the same; what varies is a field.
//!
//! # Never in a request's way
//!
//! A line is formatted where it is said, and written by a thread of its own (`queue`): when standard error is a pipe that
//! nobody reads, lines are dropped and counted, and requests go on. What is said again and again is cut short (`repeats`).

mod panics;
mod queue;
mod repeats;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt};

use super::metrics::Counter;
pub(crate) use panics::tell_of_bug;
pub use panics::{Panic, last_panic, log_panics};
use queue::Queue;
use repeats::{Limited, Repeats};

/// How long the end of the process waits for the last lines to be read.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// The log is the process's, and so is what it lost.
static LINES_DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Lines that the process's log has dropped so far.
pub(super) fn lines_dropped() -> Counter {
    LINES_DROPPED.clone()
}

/// How the gateway's own log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
    /// For people on a terminal, JSON elsewhere.
    Auto,
}

/// Which lines are written: a level for the gateway, and others for single modules of it or for libraries.
#[derive(Clone, Debug, PartialEq)]
pub struct LogFilter(Targets);

impl LogFilter {
    /// From a level's name, or from several that are for modules: `info,snapgate::gateway=debug`. `None` if it is neither.
    ///
    /// Libraries say nothing below `warn` unless they are named: what they would say is about themselves, and it may hold
    /// headers.
    pub fn parse(text: &str) -> Option<Self> {
        let (mut own, mut named) = (None, Vec::new());
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None if own.is_none() => own = Some(level(part)?),
                Some((module, part)) if is_module(module) => named.push((module, level(part)?)),
                _ => return None,
            }
        }
        let own = own.unwrap_or(Level::INFO);
        let filter = Targets::new().with_default(own.min(Level::WARN)).with_target(env!("CARGO_CRATE_NAME"), own);
        Some(Self(filter.with_targets(named)))
    }
}

fn level(name: &str) -> Option<Level> {
    const LEVELS: [(&str, Level); 5] = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    LEVELS.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
}

fn is_module(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':')
}

/// How the log is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// JSON or text.
    pub format: LogFormat,
    /// Which lines.
    pub filter: LogFilter,
}

/// The running log. When it is dropped, the last lines are written, if anybody reads them.
#[derive(Debug)]
pub struct Log {
    queue: Queue,
    repeats: Arc<Repeats>,
}

impl Log {
    /// A line that is written whatever the level, as it is.
    pub fn announce(&self, line: &str) {
        self.queue.push(format!("{line}\n").as_bytes());
    }

    /// Waits until all lines so far are written, if anybody reads them.
    pub fn catch_up(&self) {
        self.flush(FLUSH_MAX);
    }

    /// Waits until all lines so far are written, but no longer than that.
    fn flush(&self, within: Duration) {
        self.repeats.close_all();
        self.queue.flush(within);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.catch_up();
    }
}

/// Starts the log, to be called once in a process: if there is a log already, only announcements go to this one.
///
/// # Errors
/// Standard error cannot be duplicated, or the thread cannot be started.
pub fn start_log(settings: &LogSettings) -> io::Result<Log> {
    let stderr = io::stderr();
    let terminal = stderr.is_terminal();
    // Not by the standard library's handle, whose lock everybody would wait for who says something while nobody reads.
    let out = File::from(stderr.as_fd().try_clone_to_owned()?);
    let repeats = Arc::new(Repeats::default());
    let closing = Arc::clone(&repeats);
    let queue = Queue::start(out, lines_dropped(), move || closing.close_old())?;
    let text = match settings.format {
        LogFormat::Json => false,
        LogFormat::Text => true,
        LogFormat::Auto => terminal,
    };
    let limited = Limited::new(settings.filter.0.clone(), Arc::clone(&repeats));
    let lines = lines(queue.clone(), text, terminal);
    // Refused only if there is a log already, which then serves.
    tracing_subscriber::registry().with(lines).with(limited).try_init().ok();
    Ok(Log { queue, repeats })
}

/// What makes lines of what is said.
fn lines(queue: Queue, text: bool, colour: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = fmt::layer().with_writer(queue).with_ansi(text && colour);
    if text {
        lines.with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    }
}

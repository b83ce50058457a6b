//! A panic is one line of the log, as everything else that went wrong: with its thread and its place.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::thread;
use std::time::Duration;

use super::Log;

/// A panic may be the last that this process does, so its line is waited for; shortly, because it may also be one request's.
const FLUSH_MAX: Duration = Duration::from_millis(50);

/// From now on the process's panics go to the log. For programs alone: a test's own output is worth more to it.
pub fn log_panics(log: &Log) {
    let queue = log.queue.clone();
    panic::set_hook(Box::new(move |info| {
        say(info);
        queue.flush(FLUSH_MAX);
    }));
}

fn say(info: &PanicHookInfo<'_>) {
    let current = thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let location = info.location().map(ToString::to_string);
    let panic = info.payload_as_str().unwrap_or("its value is no text");
    // Only if the environment asks for one, as usual.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(thread, location, panic, backtrace, "a bug: a thread panicked");
}

//! A panic is one line of the log, as everything else that went wrong: with its thread and its place.
//!
//! Whose request it ended is known only to who caught it, on the same thread: [`last_panic`] tells what there is to say again.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::panic::{self, PanicHookInfo};
use std::thread;
use std::time::Duration;

use super::Log;

/// A panic may be the last that this process does, so its line is waited for; shortly, because it may also be one request's.
const FLUSH_MAX: Duration = Duration::from_millis(50);

/// Says which bug befell a request: what the panic said that this thread has caught last, or is unwinding from. Each place that
/// says so is one of its own to who counts repeats.
macro_rules! tell_of_bug {
    ($id:expr, $what:literal) => {{
        let $crate::telemetry::log::Panic { location, panic } = $crate::telemetry::log::last_panic();
        tracing::error!(snapshot_id = %$id, location, panic, $what)
    }};
}
pub(crate) use tell_of_bug;

/// What there is to say of a panic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Panic {
    /// Where in the source.
    pub location: Option<String>,
    /// Its message.
    pub panic: Option<String>,
}

thread_local! {
    /// Written by a panic, and only then.
    static LAST: RefCell<Panic> = const { RefCell::new(Panic { location: None, panic: None }) };
}

/// The panic that this thread has caught last, or is unwinding from. Empty if panics do not go to the log, and if it was asked
/// for before.
pub fn last_panic() -> Panic {
    LAST.try_with(RefCell::take).unwrap_or_default()
}

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
    // A thread at its end has no such place any more, and nobody who would ask.
    LAST.try_with(|last| last.replace(Panic { location: location.clone(), panic: Some(panic.to_owned()) })).ok();
    // Only if the environment asks for one, as usual.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(thread, location, panic, backtrace, "a bug: a thread panicked");
}

//! The gateway's own log, on standard error.

use std::io;

/// How the gateway's own log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// The gateway's own log, on standard error: standard output belongs to snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// JSON or text.
    pub format: LogFormat,
    /// The least important level that is written: `error` is data lost or an operator needed, `warn` is something that
    /// will become one if it stays, `info` is a change of state, `debug` is for whoever works on the gateway.
    pub level: tracing::Level,
}

/// Starts the log. To be called once in a process; a second call changes nothing.
pub fn start_log(settings: &LogSettings) {
    let lines = tracing_subscriber::fmt().with_max_level(settings.level).with_writer(io::stderr);
    // Refused only if there is a log already, which then serves.
    match settings.format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init().ok(),
        LogFormat::Text => lines.with_target(false).try_init().ok(),
    };
}

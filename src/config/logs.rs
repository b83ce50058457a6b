//! What the keys about logs hold that is more than a word: levels by module, and a number of candidates.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::build::Values;
use super::keys::WIDTH_MAX;
use crate::sink::json_log::{self, Destination, Rotation};
use crate::telemetry::{LogFilter, LogFormat, LogSettings};

/// Checks `log.level`.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    let form = "write error, warn, info, debug or trace, or such as info,snapgate::gateway=debug";
    LogFilter::parse(text).map(|_| text.to_owned()).ok_or_else(|| format!("\"{text}\" is no level: {form}"))
}

/// Checks a number of candidates.
pub(super) fn candidates(text: &str) -> Result<String, String> {
    parse_candidates(text).map(|_| text.to_owned())
}

/// How many candidates are shown at most; `None` for all.
pub(super) fn parse_candidates(text: &str) -> Result<Option<NonZeroUsize>, String> {
    match text {
        "all" => Ok(None),
        "chosen" => Ok(Some(NonZeroUsize::MIN)),
        _ => {
            let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() as u64 <= WIDTH_MAX);
            let wrong = || format!("\"{text}\" is neither \"all\" nor \"chosen\" nor a number from 1 to {WIDTH_MAX}");
            count.map(Some).ok_or_else(wrong)
        }
    }
}

/// Those of the gateway's own log.
pub(super) fn log_settings(values: &Values<'_>) -> LogSettings {
    LogSettings {
        format: match values.text("log.format") {
            "text" => LogFormat::Text,
            "auto" => LogFormat::Auto,
            _ => LogFormat::Json,
        },
        filter: LogFilter::parse(values.text("log.level")).expect("its check has parsed it"),
    }
}

/// Those of the JSON log; `None` if there is none.
pub(super) fn json_log_settings(values: &Values<'_>) -> Option<json_log::Settings> {
    let destination = match values.text("json_log.to") {
        "off" => return None,
        "stdout" => Destination::Stdout,
        file => Destination::File(PathBuf::from(file)),
    };
    let rotation = Rotation {
        max_bytes: values.bytes("json_log.max_bytes"),
        max_age: values.duration("json_log.max_age"),
        keep: values.count("json_log.keep"),
    };
    let candidates = parse_candidates(values.text("json_log.candidates")).expect("its check has parsed it");
    Some(json_log::Settings { destination, rotation, candidates })
}

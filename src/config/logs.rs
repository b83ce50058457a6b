//! What the keys about logs hold that is more than a word: levels by module, and a number of candidates.

use std::num::NonZeroUsize;

use super::keys::WIDTH_MAX;
use crate::telemetry::LogFilter;

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

//! `?wait=5s`: holds an answer back until its request has ended, within bounds.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Lookup;
use super::resolve::{Found, LookupError};

/// The longest wait a client may ask for. Less than the 60 s after which proxies give up on a silent answer.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(30);

/// How soon the end is looked for first, and how often at most: a request that is about to end is not kept waiting.
const LOOK_MIN: Duration = Duration::from_millis(2);

/// How seldom it is looked for at least: so many waits at the limit cost a few per cent of a core.
const LOOK_MAX: Duration = Duration::from_millis(20);

/// Whoever follows what is stored is told so often at most; the store commits every 25 ms.
pub(super) const FOLLOW_PAUSE: Duration = Duration::from_millis(100);

/// How long a client is willing to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Patience(Duration);

impl FromStr for Patience {
    type Err = PatienceError;

    /// A number with its unit: `500ms`, `1.5s`.
    fn from_str(text: &str) -> Result<Self, PatienceError> {
        let span: jiff::SignedDuration = text.parse().map_err(|_| PatienceError::NoDuration)?;
        let patience = Duration::try_from(span).map_err(|_| PatienceError::NoDuration)?;
        if patience > WAIT_MAX { Err(PatienceError::TooLong) } else { Ok(Self(patience)) }
    }
}

/// The text is no wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatienceError {
    /// No number with a unit, or below zero.
    NoDuration,
    /// Longer than [`WAIT_MAX`].
    TooLong,
}

impl fmt::Display for PatienceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = WAIT_MAX.as_secs();
        match self {
            Self::NoDuration => {
                write!(f, "no duration: give a number with its unit, such as 500ms or 5s, up to {limit}s")
            }
            Self::TooLong => write!(f, "longer than {limit}s: wait for a shorter time and ask again"),
        }
    }
}

impl std::error::Error for PatienceError {}

impl Patience {
    /// When it ends; `None` if it has not even begun.
    pub(super) fn deadline(self) -> Option<Instant> {
        (!self.0.is_zero()).then(|| Instant::now() + self.0)
    }
}

/// Waits until every request that was found has ended, or until the deadline. What is there then is the answer.
pub(super) async fn until_complete(
    lookup: &Lookup,
    found: &mut [&mut Found],
    deadline: Option<Instant>,
) -> Result<(), LookupError> {
    let Some(deadline) = deadline.filter(|_| !all_ended(found)) else { return Ok(()) };
    let _permit = Arc::clone(&lookup.waits).try_acquire_owned().map_err(|_| LookupError::Busy("wait for an end"))?;
    let mut pause = LOOK_MIN;
    while !all_ended(found) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        sleep(pause.min(left)).await;
        pause = (pause * 5 / 4).min(LOOK_MAX);
    }
    for one in found {
        // It may have been committed meanwhile: then it has left the ledger, and not as a drop.
        let ledger = &lookup.state.ledger;
        let id = one.record.id();
        let left = one.record.outcome().is_some() && ledger.get(id).is_none() && ledger.dropped(id).is_none();
        one.stored |= left && lookup.state.reader.is_some();
    }
    Ok(())
}

fn all_ended(found: &[&mut Found]) -> bool {
    found.iter().all(|one| one.record.outcome().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_has_a_unit_and_a_limit() {
        for (text, want) in [
            ("5s", Ok(Duration::from_secs(5))),
            ("500ms", Ok(Duration::from_millis(500))),
            ("1.5s", Ok(Duration::from_millis(1500))),
            ("0s", Ok(Duration::ZERO)),
            ("30s", Ok(WAIT_MAX)),
            ("30001ms", Err(PatienceError::TooLong)),
            ("1h", Err(PatienceError::TooLong)),
            ("5", Err(PatienceError::NoDuration)),
            ("", Err(PatienceError::NoDuration)),
            ("-5s", Err(PatienceError::NoDuration)),
            ("5 parsecs", Err(PatienceError::NoDuration)),
            ("99999999999999999999s", Err(PatienceError::NoDuration)),
        ] {
            assert_eq!(text.parse(), want.map(Patience), "{text}");
        }
    }
}

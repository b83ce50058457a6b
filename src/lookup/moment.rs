//! Times as people and programs write them: RFC 3339, Unix seconds, milliseconds or microseconds, or `15m` ago.

use std::fmt;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};

use crate::snapshot::Moment;

/// Why a text is no time or no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeError {
    /// Neither of the forms, or out of range.
    NoTime,
    /// No number with a unit, or below zero.
    NoDuration,
}

impl fmt::Display for TimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTime => {
                "no time: give RFC 3339 with an offset (2026-11-23T12:13:15Z), Unix seconds, milliseconds or microseconds, \
                 or how long ago (15m, 2h30m, 7d)"
            }
            Self::NoDuration => "no duration: give a number with its unit, such as 500ms, 2s or 1h30m",
        })
    }
}

impl std::error::Error for TimeError {}

/// A time, as seen from `now`.
pub fn moment(text: &str, now: Moment) -> Result<Moment, TimeError> {
    if let Ok(ago) = duration(text) {
        return Ok(now.minus(ago));
    }
    if let Ok(number) = text.parse::<u64>() {
        // What is a second, a millisecond or a microsecond is told by its length, which is right from 2001 to 2286.
        let us_per_unit = match text.len() {
            ..=10 => 1_000_000,
            11..=13 => 1_000,
            _ => 1,
        };
        return number.checked_mul(us_per_unit).map(Moment).ok_or(TimeError::NoTime);
    }
    // In a query a plus is a blank, and few remember to write %2B.
    let timestamp: Timestamp = text.replace(' ', "+").parse().map_err(|_| TimeError::NoTime)?;
    u64::try_from(timestamp.as_microsecond()).map(Moment).map_err(|_| TimeError::NoTime)
}

/// A length of time; days have 24 hours.
pub(super) fn duration(text: &str) -> Result<Duration, TimeError> {
    let span: Span = text.parse().map_err(|_| TimeError::NoDuration)?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| TimeError::NoDuration)?;
    Duration::try_from(length).map_err(|_| TimeError::NoDuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(1_795_435_995_123_456);

    #[test]
    fn a_time_is_read_in_every_form() {
        let second = Moment(1_795_435_995_000_000);
        for (text, want) in [
            ("2026-11-23T12:13:15.123456Z", NOW),
            ("2026-11-23t13:13:15+01:00", second),
            ("2026-11-23T13:13:15 01:00", second),
            ("1795435995", second),
            ("1795435995123", Moment(1_795_435_995_123_000)),
            ("1795435995123456", NOW),
            ("0", Moment(0)),
            ("15m", NOW.minus(Duration::from_secs(900))),
            ("2h30m", NOW.minus(Duration::from_secs(9000))),
            ("7d", NOW.minus(Duration::from_secs(7 * 86_400))),
            ("0s", NOW),
        ] {
            assert_eq!(moment(text, NOW), Ok(want), "{text}");
        }
        for text in
            ["", "yesterday", "2026-11-23", "2026-11-23T12:13:15", "12:13", "-15m", "-1", "1.5", "99999999999999999999"]
        {
            assert_eq!(moment(text, NOW), Err(TimeError::NoTime), "{text}");
        }
    }

    #[test]
    fn a_duration_has_a_unit() {
        for (text, want) in [("500ms", 500), ("2s", 2_000), ("1.5s", 1_500), ("1h30m", 5_400_000), ("1d", 86_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(want)), "{text}");
        }
        for text in ["", "5", "-5s", "soon", "1 month", "P1M", "99999999999999999999s"] {
            assert_eq!(duration(text), Err(TimeError::NoDuration), "{text}");
        }
    }
}

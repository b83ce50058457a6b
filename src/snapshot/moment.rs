//! An instant as a number that means the same in every process: Unix microseconds.

use std::fmt;
use std::time::Duration;

/// Unix time in microseconds, by the slewed clock of the process that wrote it. Zero means "never".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// Unix milliseconds, as a snapshot ID carries them.
    pub const fn unix_ms(self) -> u64 {
        self.0 / 1000
    }

    /// Zero if `earlier` is in fact later: two threads may read the clock in either order.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Whole milliseconds since `earlier`, the unit of every age in the document.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }

    /// The moment `after` this one.
    pub const fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after.as_micros() as u64))
    }

    /// The moment `before` this one.
    pub const fn minus(self, before: Duration) -> Self {
        Self(self.0.saturating_sub(before.as_micros() as u64))
    }
}

/// RFC 3339 in UTC with six digits after the point, so that texts sort as moments do.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0 as i64) {
            Ok(timestamp) => write!(f, "{timestamp:.6}"),
            Err(_) => write!(f, "unix_us:{}", self.0),
        }
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prints_as_rfc_3339_with_microseconds() {
        assert_eq!(Moment(1_795_435_995_123_456).to_string(), "2026-11-23T12:13:15.123456Z");
        assert_eq!(Moment(1_795_435_995_000_000).to_string(), "2026-11-23T12:13:15.000000Z");
    }

    #[test]
    fn an_age_is_never_negative() {
        assert_eq!(Moment(5).since(Moment(9)), Duration::ZERO);
        assert_eq!(Moment(9_000).ms_since(Moment(1_999)), 7);
    }
}

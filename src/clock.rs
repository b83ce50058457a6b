//! The one place that reads the wall clock: start time plus the monotonic clock, slewed.
//!
//! A wall clock that steps would repeat or reorder snapshot IDs and make ages negative. So time here is read from the
//! monotonic clock, and [`Clock::discipline`], called once a second, steers it towards the wall clock by running a
//! little faster or slower. It never jumps and never runs backwards.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use crate::snapshot::Moment;

/// How much faster or slower than the monotonic clock time may run while it is steered: NTP's own limit.
const SLEW_PPM_MAX: i64 = 500;

/// Over how long a difference is meant to be worked off; with the limit above it decides how hard to steer.
const SLEW_OVER: Duration = Duration::from_secs(10);

/// A wall clock that is further away than this has stepped: age retention waits until it is confirmed.
pub const STEP_MIN: Duration = Duration::from_secs(60);

/// Microseconds of Unix time that never go back. Cheap to read from any thread.
#[derive(Debug)]
pub struct Clock {
    origin: Instant,
    line: ArcSwap<Line>,
}

/// Time as a straight line through an anchor: from there on it runs at `1 + rate_ppm / 10^6`.
#[derive(Clone, Copy, Debug)]
struct Line {
    anchor_elapsed_us: i64,
    anchor_unix_us: i64,
    rate_ppm: i64,
}

impl Line {
    fn unix_us(&self, elapsed_us: i64) -> i64 {
        let since = elapsed_us - self.anchor_elapsed_us;
        self.anchor_unix_us + since + since * self.rate_ppm / 1_000_000
    }

    /// The line from here on that meets `wall_unix_us` as soon as the slew limit lets it.
    fn steered(&self, elapsed_us: i64, wall_unix_us: i64) -> Self {
        let here = self.unix_us(elapsed_us);
        let behind = wall_unix_us - here;
        let rate_ppm = behind.saturating_mul(1_000_000) / SLEW_OVER.as_micros() as i64;
        Self {
            anchor_elapsed_us: elapsed_us,
            anchor_unix_us: here,
            rate_ppm: rate_ppm.clamp(-SLEW_PPM_MAX, SLEW_PPM_MAX),
        }
    }
}

impl Clock {
    /// Starts at the wall clock's time.
    pub fn start() -> Arc<Self> {
        let line = Line { anchor_elapsed_us: 0, anchor_unix_us: wall_unix_us(), rate_ppm: 0 };
        Arc::new(Self { origin: Instant::now(), line: ArcSwap::from_pointee(line) })
    }

    /// Now.
    pub fn now(&self) -> Moment {
        self.at(Instant::now())
    }

    /// The moment of an instant that was read since the start.
    pub fn at(&self, instant: Instant) -> Moment {
        let elapsed_us = instant.saturating_duration_since(self.origin).as_micros() as i64;
        Moment(self.line.load().unix_us(elapsed_us).max(0) as u64)
    }

    /// Steers towards the wall clock; to be called once a second. Answers how far away the wall clock is, so that
    /// a step (more than [`STEP_MIN`]) can be noticed.
    pub fn discipline(&self) -> Duration {
        let elapsed_us = self.origin.elapsed().as_micros() as i64;
        let wall = wall_unix_us();
        let line = self.line.load();
        let away = (wall - line.unix_us(elapsed_us)).unsigned_abs();
        self.line.store(Arc::new(line.steered(elapsed_us, wall)));
        Duration::from_micros(away)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn wall_unix_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Line = Line { anchor_elapsed_us: 0, anchor_unix_us: 1_000_000_000_000, rate_ppm: 0 };

    #[test]
    fn a_small_error_is_worked_off() {
        let mut line = START;
        for second in 1..=60 {
            let elapsed = second * 1_000_000;
            line = line.steered(elapsed, START.anchor_unix_us + elapsed + 2_000);
        }
        let away = START.anchor_unix_us + 60_000_000 + 2_000 - line.unix_us(60_000_000);
        assert!(away.abs() < 50, "still {away} us away after a minute");
    }

    #[test]
    fn an_hours_step_moves_time_by_the_slew_limit_only() {
        let line = START.steered(0, START.anchor_unix_us - 3_600_000_000);
        assert_eq!(line.unix_us(1_000_000), START.anchor_unix_us + 1_000_000 - SLEW_PPM_MAX);
    }

    proptest! {
        #[test]
        fn time_never_goes_back(steps in prop::collection::vec((0i64..5_000_000, -10_000_000_000i64..10_000_000_000), 1..50)) {
            let (mut line, mut elapsed, mut last) = (START, 0, 0);
            for (pause, error) in steps {
                elapsed += pause;
                let before = line.unix_us(elapsed);
                line = line.steered(elapsed, before + error);
                prop_assert!(before >= last && line.unix_us(elapsed) >= before);
                last = before;
            }
        }
    }
}

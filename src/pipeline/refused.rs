//! How many requests that no target was chosen for are recorded. Such a request costs its client next to nothing, so a flood of
//! them must not turn over what retention keeps of those that were served.
//!
//! A bucket of records: so many drop into it each second, one with every record of a request that was decided, and each
//! record of one that was not takes one out. So at most about half of what is stored is theirs, and a little a second.

use std::time::{Duration, Instant};

/// The bucket holds so many: a bad deployment of a client shows in full at first, and a flood is over after a blink.
pub(super) const BURST: u32 = 2_000;

/// What is left for records of undecided requests. For one thread; `now` is an argument.
#[derive(Debug)]
pub(super) struct Allowance {
    per_second: u32,
    left: f64,
    filled: Instant,
}

impl Allowance {
    /// Full.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, left: BURST.into(), filled: now }
    }

    /// What the time since the last call has brought.
    pub(super) fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled);
        self.filled = now;
        self.add(f64::from(self.per_second) * since.as_secs_f64());
    }

    /// So many records of decided requests have come.
    pub(super) fn earn(&mut self, decided: usize) {
        self.add(decided as f64);
    }

    /// Whether there is one left.
    pub(super) fn any(&self) -> bool {
        self.left >= 1.0
    }

    /// Takes one out, if there is one.
    pub(super) fn take(&mut self) -> bool {
        let any = self.any();
        if any {
            self.left -= 1.0;
        }
        any
    }

    fn add(&mut self, records: f64) {
        self.left = (self.left + records).min(BURST.into());
    }
}

/// How long after the last drop a flood counts as over.
const OVER_AFTER: Duration = Duration::from_secs(10);

/// A flood, for the log and for `/readyz`.
#[derive(Debug, Default)]
pub(super) struct Flood {
    last: Option<Instant>,
    dropped: u64,
}

/// What is to be said of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Begins,
    /// After so many drops.
    Ends(u64),
}

impl Flood {
    /// So many records were dropped since the last call. Answers whether the flood has begun with them, or is over.
    pub(super) fn dropped(&mut self, count: u64, now: Instant) -> Option<Turn> {
        self.dropped += count;
        if count > 0 {
            return self.last.replace(now).is_none().then_some(Turn::Begins);
        }
        self.last.take_if(|last| now.saturating_duration_since(*last) >= OVER_AFTER)?;
        Some(Turn::Ends(std::mem::take(&mut self.dropped)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(allowance: &mut Allowance, tries: u32) -> u32 {
        (0..tries).filter(|_| allowance.take()).count() as u32
    }

    #[test]
    fn a_burst_is_let_through_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut allowance = Allowance::new(10, start);
        assert_eq!(taken(&mut allowance, 100_000), BURST);
        for (ms, expected) in [(50, 0), (150, 1), (1_150, 10), (60_150, 590)] {
            allowance.fill(start + Duration::from_millis(ms));
            assert_eq!(taken(&mut allowance, 100_000), expected, "at {ms} ms");
        }
        allowance.fill(start + Duration::from_secs(1_000_000));
        assert_eq!(taken(&mut allowance, 100_000), BURST, "more is never saved up");
    }

    #[test]
    fn each_request_that_was_decided_pays_for_one_that_was_not() {
        let start = Instant::now();
        let mut allowance = Allowance::new(0, start);
        taken(&mut allowance, BURST);
        allowance.fill(start + Duration::from_secs(3600));
        assert!(!allowance.take(), "nothing comes of time alone");
        allowance.earn(700);
        assert_eq!(taken(&mut allowance, 100_000), 700);
    }

    #[test]
    fn a_flood_begins_once_and_ends_once_with_its_sum() {
        let start = Instant::now();
        let mut flood = Flood::default();
        for (second, dropped, expected) in [
            (0, 0, None),
            (1, 500, Some(Turn::Begins)),
            (2, 0, None),
            (10, 30, None),
            (19, 0, None),
            (20, 0, Some(Turn::Ends(530))),
            (21, 0, None),
            (22, 1, Some(Turn::Begins)),
        ] {
            assert_eq!(flood.dropped(dropped, start + Duration::from_secs(second)), expected, "second {second}");
        }
    }
}

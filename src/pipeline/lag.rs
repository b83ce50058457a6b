//! How late an exit is: when the oldest record ended that it has not taken yet.

use std::collections::VecDeque;
use std::time::Duration;

use crate::snapshot::Moment;

/// Batches within this time are remembered as one, so an exit seems later than it is by so much at most.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// Marks at most: a day's. An exit that is later than that seems to be as late as the last of them.
const MARKS_MAX: usize = 86_400;

/// Sequence numbers that an exit has still to get past, with the time of the first record of each.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// The last number of each, and the moment of its first.
    marks: VecDeque<(u64, Moment)>,
}

impl Lag {
    /// Records up to number `last` are there, the first of them from `moment`.
    pub(super) fn mark(&mut self, last: u64, moment: Moment) {
        let full = self.marks.len() == MARKS_MAX;
        match self.marks.back_mut() {
            Some((end, since)) if full || moment.since(*since) < MARK_EVERY => *end = last,
            _ => self.marks.push_back((last, moment)),
        }
    }

    /// When the oldest record after number `cursor` ended, give or take; `None` if there is none.
    pub(super) fn oldest(&mut self, cursor: u64) -> Option<Moment> {
        while self.marks.front().is_some_and(|(last, _)| *last <= cursor) {
            self.marks.pop_front();
        }
        self.marks.front().map(|(_, moment)| *moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(1_795_435_995_000_000);

    fn at(ms: u64) -> Moment {
        START.plus(Duration::from_millis(ms))
    }

    #[test]
    fn the_oldest_is_that_of_the_first_second_not_passed() {
        let mut lag = Lag::default();
        for (last, ms) in [(10, 0), (20, 25), (30, 1_000), (40, 1_999), (50, 3_000)] {
            lag.mark(last, at(ms));
        }
        for (cursor, expected) in [(0, Some(0)), (19, Some(0)), (20, Some(1_000)), (40, Some(3_000)), (50, None)] {
            assert_eq!(lag.oldest(cursor), expected.map(at), "at {cursor}");
        }
    }

    #[test]
    fn the_marks_are_bounded_and_the_first_stays() {
        let mut lag = Lag::default();
        for second in 0..MARKS_MAX as u64 + 5 {
            lag.mark(second + 1, at(second * 1_000));
        }
        assert_eq!((lag.marks.len(), lag.oldest(0)), (MARKS_MAX, Some(at(0))));
        assert_eq!(
            lag.oldest(MARKS_MAX as u64 + 4),
            Some(at((MARKS_MAX as u64 - 1) * 1_000)),
            "the last absorbs the rest"
        );
    }
}

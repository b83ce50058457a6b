//! How many more tries the requests of a data thread may have: a share of the requests, so that an outage is not
//! multiplied by those who suffer from it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What one try costs. Shares are whole thousandths of it: one at least, unless there shall be none.
const TRY: u32 = 1_000;

/// Tries that may be saved up, and that there are at the start: a thread with few requests has some for its first failures.
const SAVED_MAX: u32 = 10;

/// One data thread's budget. Only that thread touches it: the atomic is for the compiler's sake.
#[derive(Debug)]
pub(super) struct RetryBudget {
    saved: AtomicU32,
}

impl RetryBudget {
    /// `share` of the requests, 0..1, may be tried again; with 0 none may.
    pub(super) fn new(share: f64) -> Self {
        let saved = if per_request(share) == 0 { 0 } else { SAVED_MAX * TRY };
        Self { saved: AtomicU32::new(saved) }
    }

    /// A request earns the share that is configured now.
    pub(super) fn earn(&self, share: f64) {
        let saved = self.saved.load(Relaxed);
        if saved < SAVED_MAX * TRY {
            self.saved.store((saved + per_request(share)).min(SAVED_MAX * TRY), Relaxed);
        }
    }

    /// Takes one try, if there is one.
    pub(super) fn spend(&self) -> bool {
        let left = self.saved.load(Relaxed).checked_sub(TRY);
        if let Some(left) = left {
            self.saved.store(left, Relaxed);
        }
        left.is_some()
    }
}

fn per_request(share: f64) -> u32 {
    let rounded = (share.clamp(0.0, 1.0) * f64::from(TRY)).round() as u32;
    if share > 0.0 { rounded.max(1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_requests_and_some_at_first() {
        let budget = RetryBudget::new(0.1);
        let failing = |requests: usize| {
            let tried_again = |_| {
                budget.earn(0.1);
                budget.spend()
            };
            (0..requests).map(tried_again).filter(|again| *again).count()
        };
        assert_eq!(failing(1_000), 109, "when every request fails");
        (0..100_000).for_each(|_| budget.earn(0.1));
        assert_eq!((0..100).filter(|_| budget.spend()).count(), SAVED_MAX as usize, "however long all went well");
    }

    #[test]
    fn however_small_a_share_is_some_are_tried_again() {
        let budget = RetryBudget::new(0.000_1);
        assert_eq!((0..100).filter(|_| budget.spend()).count(), SAVED_MAX as usize);
        (0..TRY).for_each(|_| budget.earn(0.000_1));
        assert!(budget.spend());
    }

    #[test]
    fn without_a_share_nothing_is_tried_again() {
        let budget = RetryBudget::new(0.0);
        budget.earn(0.0);
        assert!(!budget.spend());
    }
}

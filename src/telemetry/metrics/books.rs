//! The books of the exits: offered + recovered = delivered + rejected + dropped + skipped + pending.
//!
//! Whatever moves a record from one side to the other does both at once, under one lock, and the page reads all of an exit
//! under it: so the equation holds on every page, also while records are on their way. Nothing is derived: what is pending is
//! counted for itself, and a record that is entered wrongly shows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::number::locked;
use crate::snapshot::Moment;

/// Why records are dropped, of any exit.
const DROPS: [&str; 8] =
    ["queue_full", "store_failed", "shutdown", "refused_flood", "panic", "expired", "erased", "not_stored"];

/// Why any exit may fail; each has more reasons of its own, see [`ExitBooks::may_fail`].
const ERRORS: [&str; 2] = ["panic", "store_read"];

/// The books of one exit. Clones are the same books.
#[derive(Clone, Debug)]
pub struct ExitBooks(Arc<Exit>);

#[derive(Debug)]
struct Exit {
    name: &'static str,
    /// Held for a few additions, once a batch, or once a record that is dropped before it is in one.
    counts: Mutex<Counts>,
    /// Unix microseconds; 0 if nothing is pending.
    oldest: AtomicU64,
    queued: AtomicUsize,
}

/// What one exit's books say in all, whatever the reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Records of this run that it had to get.
    pub offered: u64,
    /// Those of earlier runs.
    pub recovered: u64,
    /// Records it has taken.
    pub delivered: u64,
    /// Records it has refused for good.
    pub rejected: u64,
    /// Records that were not meant for it.
    pub skipped: u64,
    /// Records it will never get.
    pub dropped: u64,
    /// Records it still has to get.
    pub pending: u64,
}

/// What the page says of one exit.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    pub(super) offered: u64,
    pub(super) recovered: u64,
    pub(super) delivered: u64,
    pub(super) rejected: u64,
    pub(super) skipped: u64,
    pub(super) pending: u64,
    pub(super) dropped: BTreeMap<&'static str, u64>,
    pub(super) errors: BTreeMap<&'static str, u64>,
}

impl ExitBooks {
    pub(super) fn new(name: &'static str) -> Self {
        let at_zero = |reasons: &[&'static str]| reasons.iter().map(|reason| (*reason, 0)).collect();
        let counts = Counts {
            offered: 0,
            recovered: 0,
            delivered: 0,
            rejected: 0,
            skipped: 0,
            pending: 0,
            dropped: at_zero(&DROPS),
            errors: at_zero(&ERRORS),
        };
        let (oldest, queued) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self(Arc::new(Exit { name, counts: Mutex::new(counts), oldest, queued }))
    }

    /// Why the exit may fail besides: these stand at 0 until it does.
    pub fn may_fail(&self, reasons: &[&'static str]) {
        self.enter(|counts| reasons.iter().for_each(|reason| *counts.errors.entry(reason).or_default() += 0));
    }

    /// Records of an earlier run, which the exit still has to get.
    pub fn recover(&self, count: u64) {
        self.enter(|counts| {
            counts.recovered += count;
            counts.pending += count;
        });
    }

    /// Records of this run, which the exit has to get.
    pub fn offer(&self, count: u64) {
        self.enter(|counts| {
            counts.offered += count;
            counts.pending += count;
        });
    }

    /// What became of pending records: taken by the exit, refused by it for good, or not meant for it.
    pub fn settle(&self, delivered: u64, rejected: u64, skipped: u64) {
        self.enter(|counts| {
            counts.delivered += delivered;
            counts.rejected += rejected;
            counts.skipped += skipped;
            counts.pending = counts.pending.saturating_sub(delivered + rejected + skipped);
        });
    }

    /// Pending records that the exit will never get.
    pub fn lose(&self, reason: &'static str, count: u64) {
        self.enter(|counts| {
            *counts.dropped.entry(reason).or_default() += count;
            counts.pending = counts.pending.saturating_sub(count);
        });
    }

    /// Records that were offered and taken in one step.
    pub fn offered_and_delivered(&self, count: u64) {
        self.enter(|counts| {
            counts.offered += count;
            counts.delivered += count;
        });
    }

    /// Records that were offered and are not meant for the exit.
    pub fn offered_and_skipped(&self, count: u64) {
        self.enter(|counts| {
            counts.offered += count;
            counts.skipped += count;
        });
    }

    /// Records that were offered and lost in one step.
    pub fn offered_and_dropped(&self, reason: &'static str, count: u64) {
        self.enter(|counts| {
            counts.offered += count;
            *counts.dropped.entry(reason).or_default() += count;
        });
    }

    /// A try that failed; what it meant for the records is counted elsewhere.
    pub fn error(&self, reason: &'static str) {
        self.enter(|counts| *counts.errors.entry(reason).or_default() += 1);
    }

    /// When the oldest of the pending records ended; `None` if there is none.
    pub fn set_oldest(&self, oldest: Option<Moment>) {
        self.0.oldest.store(oldest.map_or(0, |moment| moment.0), Relaxed);
    }

    /// How many records are in the exit's queue.
    pub fn set_queued(&self, records: usize) {
        self.0.queued.store(records, Relaxed);
    }

    /// All of the books at one moment: so the equation holds in the answer, too.
    pub fn sums(&self) -> Sums {
        let Counts { offered, recovered, delivered, rejected, skipped, pending, dropped, .. } = self.read();
        Sums { offered, recovered, delivered, rejected, skipped, pending, dropped: dropped.values().sum() }
    }

    pub(super) fn name(&self) -> &'static str {
        self.0.name
    }

    pub(super) fn read(&self) -> Counts {
        locked(&self.0.counts).clone()
    }

    pub(super) fn queued(&self) -> usize {
        self.0.queued.load(Relaxed)
    }

    /// How long ago the oldest of the pending records ended, in seconds.
    pub(super) fn lag(&self, now: Moment) -> f64 {
        match self.0.oldest.load(Relaxed) {
            0 => 0.0,
            oldest => now.since(Moment(oldest)).as_secs_f64(),
        }
    }

    fn enter(&self, entry: impl FnOnce(&mut Counts)) {
        entry(&mut locked(&self.0.counts));
    }
}

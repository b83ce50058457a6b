//! Counters and gauges: numbers that are shared with whoever moves them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Only ever grows. Clones are the same counter.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// So many more.
    pub fn inc_by(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down. Clones are the same gauge.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// One less.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// So many now.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// A counter for each of a few rows of words, for what is counted rarely. The words come from closed sets of the program's
/// own, so it is bounded by them.
#[derive(Debug)]
pub(super) struct ByWords<const LABELS: usize>(Mutex<BTreeMap<[&'static str; LABELS], u64>>);

impl<const LABELS: usize> ByWords<LABELS> {
    /// With these at 0, so that the first time is seen as an increase.
    pub(super) fn of(rows: impl IntoIterator<Item = [&'static str; LABELS]>) -> Self {
        Self(Mutex::new(rows.into_iter().map(|row| (row, 0)).collect()))
    }

    pub(super) fn inc(&self, row: [&'static str; LABELS]) {
        *locked(&self.0).entry(row).or_default() += 1;
    }

    pub(super) fn list(&self) -> Vec<([&'static str; LABELS], u64)> {
        locked(&self.0).iter().map(|(row, count)| (*row, *count)).collect()
    }
}

/// What is behind these locks is whole between any two statements that hold them.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

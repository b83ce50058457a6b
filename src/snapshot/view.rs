//! The fleet at one moment: immutable, swapped whole, captured by one pointer.

use std::any::Any;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::members::{Member, Members};
use super::moment::Moment;
use super::pools::Pools;
use super::sample::Quantity;

/// Everything a choice may look at that does not move with each request.
#[derive(Debug)]
pub struct FleetView {
    /// When it was published.
    pub published: Moment,
    /// Every target of the fleet, by slot.
    pub members: Members,
    /// Which of them may be chosen, for which model. Shared by views until that changes.
    pub pools: Arc<Pools>,
    /// What came with the targets: whoever set both finds both in one view.
    pub with: Attached,
}

/// Whatever belongs to a set of targets; only who attached it knows what it is.
pub type Attached = Option<Arc<dyn Any + Send + Sync>>;

impl FleetView {
    /// The target in a slot; `None` if it is no longer, or not yet, one of the fleet.
    pub fn member(&self, slot: u32) -> Option<&Member> {
        self.members.of_slot(slot)
    }
}

#[cfg(test)]
impl FleetView {
    /// A view of targets that serve any model, each of which may be chosen unless its probe says that it is down.
    pub(crate) fn of_any_model(published: Moment, members: impl IntoIterator<Item = Member>) -> Self {
        use super::pools::{Serving, Standing};
        let members: Members = members.into_iter().collect();
        let serving = members.iter().map(|Member { sample, .. }| {
            let standing = match sample.health {
                super::sample::Health::Unhealthy => Standing::Down,
                _ => Standing::Up,
            };
            Serving { target: &sample.target, models: &[], standing }
        });
        let pools = Arc::new(Pools::new(&serving.collect::<Vec<_>>(), None));
        Self { published, members, pools, with: None }
    }
}

/// What moves with every request to a target. Relaxed throughout: each number stands for itself.
#[derive(Debug, Default)]
// A line of its own: two targets' counters must not slow each other.
#[repr(align(64))]
pub struct Live {
    in_flight: AtomicU32,
    requests: AtomicU64,
    tokens: AtomicU64,
    requests_per_second: AtomicU64,
    tokens_per_second: AtomicU64,
    failures: AtomicU32,
    ejections: AtomicU32,
    /// There is something in `reported`: looked at ten times a second, so it is not behind the lock.
    has_report: AtomicBool,
    /// Elsewhere, so that all that moves with each request stays in one line.
    reported: Box<Mutex<Reported>>,
    /// Written by scrapes and read by people; no request comes by here. Elsewhere, likewise.
    watched: Box<Mutex<Arc<Watched>>>,
}

/// What the target's load reports have said since the fleet's last tick.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reported {
    /// The latest value of each quantity and when it came, in the order of [`Quantity::ALL`].
    pub values: [Option<(f64, Moment)>; Quantity::COUNT],
    /// Requests of this gateway at the target when the last one came.
    pub in_flight: u32,
}

/// How it goes with watching the target, its metrics page above all: for operators, not for choices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watched {
    /// Whose page it is; `None` until one could be read.
    pub engine: Option<Arc<str>>,
    /// The series that were expected on the last good page and were not on it, by their newest name, without `_total`.
    pub series_missing: Vec<String>,
    /// Lines of the last good page that could not be read or believed.
    pub garbage_lines: u32,
    /// Scrapes that have failed since the last good one.
    pub scrape_failures: u32,
    /// Why the last scrape failed; `None` if it did not.
    pub scrape_error: Option<Box<str>>,
    /// How long the last scrape took, good or not; `None` before the first.
    pub scrape_duration: Option<Duration>,
    /// How long after the start of the last scrape the next one starts; more than configured if it was stretched.
    pub scrape_interval: Option<Duration>,
    /// Up to which age what the last good page said is fresh; `None` before it.
    pub fresh_within: Option<Duration>,
    /// Why the last probe failed; `None` if it did not.
    pub probe_error: Option<Box<str>>,
}

impl Watched {
    /// What a good page said is stale before the next one is asked for. Of a page that fails something else is wrong.
    pub fn is_seldom(&self) -> bool {
        self.scrape_failures == 0 && self.fresh_within.is_some_and(|fresh| self.scrape_interval > Some(fresh))
    }
}

impl Live {
    /// How it goes with the target's page.
    pub fn watched(&self) -> Arc<Watched> {
        Arc::clone(&self.watched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changed by the fleet's scrapes and probes only. Whoever looked before keeps what was there.
    pub fn watch<T>(&self, change: impl FnOnce(&mut Watched) -> T) -> T {
        change(Arc::make_mut(&mut *self.watched.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// A request was sent to the target.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
    }

    /// The request has ended, however it did.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// The target generated `count` tokens.
    pub fn add_tokens(&self, count: u64) {
        self.tokens.fetch_add(count, Relaxed);
    }

    /// Requests of this gateway at the target now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Requests sent and tokens seen since the start; the fleet makes rates of them.
    pub fn totals(&self) -> (u64, u64) {
        (self.requests.load(Relaxed), self.tokens.load(Relaxed))
    }

    /// The target did not answer, or broke off, or answered with an error of its own.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// The target answered as it should.
    pub fn answered(&self) {
        // Looking first keeps the line shared when there is nothing to forget.
        if self.failures() > 0 {
            self.forget_failures();
        }
    }

    /// Requests in a row that the target has failed.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// The next failure is the first.
    pub fn forget_failures(&self) {
        self.failures.store(0, Relaxed);
    }

    /// The target is passed over for a while.
    pub fn eject(&self) {
        self.ejections.fetch_add(1, Relaxed);
    }

    /// How often it was.
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }

    /// Written by the fleet's tick only.
    pub fn set_rates(&self, requests_per_second: f64, tokens_per_second: f64) {
        self.requests_per_second.store(requests_per_second.to_bits(), Relaxed);
        self.tokens_per_second.store(tokens_per_second.to_bits(), Relaxed);
    }

    /// Requests and tokens per second over the fleet's window, as of the last tick.
    pub fn rates(&self) -> (f64, f64) {
        let read = |bits: &AtomicU64| f64::from_bits(bits.load(Relaxed));
        (read(&self.requests_per_second), read(&self.tokens_per_second))
    }

    /// A load report of the target came at `at`, and says this of its quantities. Two at the same moment do not wait for each
    /// other: each is as good as the other, and one is enough.
    pub fn reported(&self, values: [Option<f64>; Quantity::COUNT], at: Moment) {
        if values.iter().all(Option::is_none) {
            return;
        }
        let Ok(mut reported) = self.reported.try_lock() else { return };
        for (latest, value) in reported.values.iter_mut().zip(values) {
            *latest = value.map(|value| (value, at)).or(*latest);
        }
        reported.in_flight = self.in_flight();
        self.has_report.store(true, Release);
    }

    /// What was reported since the last call, for the fleet's tick.
    pub fn take_reported(&self) -> Option<Reported> {
        // Looking first keeps the line shared: most targets report nothing.
        let there = self.has_report.load(Relaxed) && self.has_report.swap(false, Acquire);
        // Whoever panicked here has left values that are each whole.
        there.then(|| std::mem::take(&mut *self.reported.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

//! What is known of one target: written by its scrapes and probes, read by the publisher.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::TargetSettings;
use super::engine::Observation;
use crate::snapshot::{Health, Live, Moment, Quantity, Target};

/// One target's place in the fleet.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) target: Arc<Target>,
    /// The models it serves; none named means any.
    pub(super) models: Box<[Box<str>]>,
    pub(super) live: Arc<Live>,
    /// It came to targets that were there: as long as those can serve, it has to prove itself first.
    pub(super) newcomer: bool,
    /// There is something in `known` that no sample has yet. Read ten times a second, so it is not behind the lock.
    changed: AtomicBool,
    known: Mutex<Known>,
}

/// What is known. The lock is held for a copy, never across an await.
#[derive(Clone, Debug)]
struct Known {
    state: State,
    problems: Problems,
}

/// What a sample is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) health: Health,
    pub(super) values: [Option<Observed>; Quantity::COUNT],
    /// The gateway's requests in flight when the last page that said something was asked for.
    pub(super) in_flight_at_scrape: Option<u32>,
}

/// A value and when it was true.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) value: f64,
    pub(super) at: Moment,
}

/// What stands in the way of knowing a target: for operators, not for choices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problems {
    /// Why the last scrape failed; `None` if it did not.
    pub scrape_error: Option<Box<str>>,
    /// How many scrapes have failed since the last good one.
    pub scrape_failures: u32,
    /// How long the last scrape took, good or not; `None` before the first.
    pub scrape_duration: Option<Duration>,
    /// How long after the start of the last scrape the next one starts; more than configured if it was stretched.
    pub scrape_interval: Option<Duration>,
    /// Lines of the last good page that could not be read or believed.
    pub garbage_lines: u32,
    /// The series that were expected on the last good page and were not on it, by their newest name, without `_total`.
    pub series_missing: Box<[&'static str]>,
    /// Why the last probe failed; `None` if it did not.
    pub probe_error: Option<Box<str>>,
}

impl Slot {
    /// Nothing is known of the target yet.
    pub(super) fn new(slot: u32, settings: &TargetSettings) -> Self {
        let state = State { health: Health::Unknown, values: [None; Quantity::COUNT], in_flight_at_scrape: None };
        Self::of(slot, settings, Arc::default(), Known { state, problems: Problems::default() })
    }

    /// The same, of a target that comes while the fleet runs.
    pub(super) fn newcomer(slot: u32, settings: &TargetSettings) -> Self {
        Self { newcomer: true, ..Self::new(slot, settings) }
    }

    /// The same target, described otherwise: its counters go on, and what was known is known.
    pub(super) fn described(&self, settings: &TargetSettings) -> Self {
        let slot = Self::of(self.target.slot, settings, Arc::clone(&self.live), self.lock().clone());
        slot.changed.store(true, Ordering::Release);
        Self { newcomer: self.newcomer, ..slot }
    }

    fn of(slot: u32, settings: &TargetSettings, live: Arc<Live>, known: Known) -> Self {
        let TargetSettings { name, address, gpus, models, place } = settings;
        let target = Target { gpus: *gpus, place: place.clone(), ..Target::new(slot, name, address) };
        Self {
            target: Arc::new(target),
            models: models.iter().map(|model| model.as_str().into()).collect(),
            live,
            newcomer: false,
            changed: AtomicBool::new(false),
            known: Mutex::new(known),
        }
    }

    /// Whether this is its description, too.
    pub(super) fn is_described(&self, settings: &TargetSettings) -> bool {
        let Target { name, address, gpus, place, .. } = &*self.target;
        let models = self.models.iter().map(|model| &**model);
        **name == *settings.name
            && **address == *settings.address
            && *gpus == settings.gpus
            && *place == settings.place
            && models.eq(settings.models.iter().map(String::as_str))
    }

    /// A page was asked for at `at`, when the gateway had so many requests in flight at the target, and read. What it does
    /// not say keeps its value and its age. Answers how many scrapes before had failed in a row.
    pub(super) fn scraped(&self, at: Moment, in_flight: u32, page: &Observation) -> u32 {
        let mut known = self.lock();
        let says_something = page.values.iter().any(Option::is_some);
        for (known, value) in known.state.values.iter_mut().zip(page.values) {
            if let Some(value) = value {
                *known = Some(Observed { value, at });
            }
        }
        if says_something {
            known.state.in_flight_at_scrape = Some(in_flight);
        }
        let problems = &mut known.problems;
        problems.scrape_error = None;
        let failures = std::mem::take(&mut problems.scrape_failures);
        problems.garbage_lines = page.garbage;
        if *problems.series_missing != *page.absent {
            problems.series_missing = page.absent.as_slice().into();
        }
        drop(known);
        if says_something {
            self.changed.store(true, Ordering::Release);
        }
        failures
    }

    /// A page could not be read: every value keeps its age. Answers how many scrapes in a row have failed.
    pub(super) fn scrape_failed(&self, error: &str) -> u32 {
        let problems = &mut self.lock().problems;
        problems.scrape_error = Some(error.into());
        problems.scrape_failures = problems.scrape_failures.saturating_add(1);
        problems.scrape_failures
    }

    /// How long a scrape took, and how long after its start the next one comes.
    pub(super) fn paced(&self, duration: Duration, interval: Duration) {
        let problems = &mut self.lock().problems;
        problems.scrape_duration = Some(duration);
        problems.scrape_interval = Some(interval);
    }

    /// How a probe ended, and what that makes of the target.
    pub(super) fn probed(&self, health: Health, error: Option<&str>) {
        let mut known = self.lock();
        known.problems.probe_error = error.map(Into::into);
        if known.state.health != health {
            known.state.health = health;
            drop(known);
            self.changed.store(true, Ordering::Release);
        }
    }

    /// The next view gets a new sample, whatever it says.
    pub(super) fn touch(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// How many scrapes in a row have failed.
    pub(super) fn scrape_failures(&self) -> u32 {
        self.lock().problems.scrape_failures
    }

    /// What has changed since the last call; `None` if nothing.
    pub(super) fn take_changed(&self) -> Option<State> {
        // Looking first keeps the line shared: most targets have not changed since the last tick.
        let changed = self.changed.load(Ordering::Relaxed) && self.changed.swap(false, Ordering::Acquire);
        changed.then(|| self.known())
    }

    /// What is known now.
    pub(super) fn known(&self) -> State {
        self.lock().state
    }

    pub(super) fn problems(&self) -> Problems {
        self.lock().problems.clone()
    }

    /// A writer that panicked has left whole values behind: every write above is complete in itself.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What is known of one target: written by its scrapes and probes, read by the publisher.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::engine::{self, Observation};
use super::gpu::{Found, GpusOf, Heard};
use super::{MetricsAt, TargetSettings};
use crate::snapshot::{GpuUuids, Health, Live, Moment, Quantity, Reported, Source, Target};

/// One target's place in the fleet.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) target: Arc<Target>,
    /// The models it serves; none named means any.
    pub(super) models: Box<[Box<str>]>,
    /// Whose metrics it serves, if anybody said of this target.
    pub(super) engine: Option<Box<str>>,
    /// Where its metrics are, as far as that is elsewhere.
    pub(super) metrics_at: MetricsAt,
    /// Which GPUs are its; `None` if nobody is asked about them.
    pub(super) gpus_of: Option<GpusOf>,
    pub(super) live: Arc<Live>,
    /// It came to targets that were there: as long as those can serve, it has to prove itself first.
    pub(super) newcomer: bool,
    /// When it began to be asked which GPUs are its.
    pub(super) gpus_wanted_since: Instant,
    /// There is something in `known` that no sample has yet. Read ten times a second, so it is not behind the lock.
    changed: AtomicBool,
    known: Mutex<Known>,
}

/// What is known. The lock is held for a copy, never across an await.
#[derive(Clone, Debug)]
struct Known {
    state: State,
    gpus: Heard,
}

/// What a sample is made of.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) health: Health,
    pub(super) values: [Option<Observed>; Quantity::COUNT],
    /// Which quantities the target's engine can give.
    pub(super) gives: [bool; Quantity::COUNT],
    /// The gateway's requests in flight when the last page that said something was asked for; and of those that have come
    /// or gone since, the ones that a load report has told of.
    pub(super) in_flight_at_scrape: Option<u32>,
    /// The GPUs that the GPU values are of.
    pub(super) gpu_uuids: Option<GpuUuids>,
    /// Up to which age what the page said is fresh; zero before it said anything.
    pub(super) fresh_within: Duration,
}

/// A value, when it was true and who said so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) value: f64,
    pub(super) at: Moment,
    pub(super) source: Source,
}

impl Observed {
    /// Takes its place in what is known, unless something newer has it.
    fn place(self, known: &mut Option<Self>) -> bool {
        let is_newer = known.is_none_or(|known| known.at <= self.at);
        if is_newer {
            *known = Some(self);
        }
        is_newer
    }
}

/// What exporters of GPUs say.
pub(super) const GPU_QUANTITIES: [Quantity; 2] = [Quantity::GpuUtilization, Quantity::GpuMemoryUtilization];

impl Slot {
    /// Nothing is known of the target yet.
    pub(super) fn new(slot: u32, settings: &TargetSettings) -> Self {
        let (values, gives) = ([None; Quantity::COUNT], engine::EXPECTED);
        let state = State {
            health: Health::Unknown,
            values,
            gives,
            in_flight_at_scrape: None,
            gpu_uuids: None,
            fresh_within: Duration::ZERO,
        };
        let known = Known { state, gpus: Heard::default() };
        Self::of(slot, settings, Arc::default(), known)
    }

    /// The same, of a target that comes while the fleet runs.
    pub(super) fn newcomer(slot: u32, settings: &TargetSettings) -> Self {
        Self { newcomer: true, ..Self::new(slot, settings) }
    }

    /// The same target, described otherwise: its counters go on, and what was known is known.
    pub(super) fn described(&self, settings: &TargetSettings) -> Self {
        let mut known = self.lock().clone();
        if self.gpus_of != settings.gpus_of {
            // What exporters have said is of other GPUs.
            known.gpus = Heard::default();
            known.state.gpu_uuids = None;
            for value in &mut known.state.values {
                *value = value.filter(|value| value.source != Source::Dcgm);
            }
        }
        let slot = Self::of(self.target.slot, settings, Arc::clone(&self.live), known);
        slot.changed.store(true, Ordering::Release);
        let has_other_gpus = self.gpus_of != slot.gpus_of;
        let gpus_wanted_since = if has_other_gpus { slot.gpus_wanted_since } else { self.gpus_wanted_since };
        Self { newcomer: self.newcomer, gpus_wanted_since, ..slot }
    }

    fn of(slot: u32, settings: &TargetSettings, live: Arc<Live>, known: Known) -> Self {
        let TargetSettings { name, address, gpus, gpus_of, models, engine, metrics_at, place, ask_for_load_report } =
            settings;
        let (gpus, ask_for_load_report) = (*gpus, *ask_for_load_report);
        let target = Target { gpus, place: place.clone(), ask_for_load_report, ..Target::new(slot, name, address) };
        Self {
            target: Arc::new(target),
            models: models.iter().map(|model| model.as_str().into()).collect(),
            engine: engine.as_deref().map(Into::into),
            metrics_at: metrics_at.clone(),
            gpus_of: gpus_of.clone(),
            live,
            newcomer: false,
            gpus_wanted_since: Instant::now(),
            changed: AtomicBool::new(false),
            known: Mutex::new(known),
        }
    }

    /// Whether this is its description, too.
    pub(super) fn is_described(&self, settings: &TargetSettings) -> bool {
        let Target { slot: _, name, address, gpus, place, ask_for_load_report } = &*self.target;
        let models = self.models.iter().map(|model| &**model);
        **name == *settings.name
            && **address == *settings.address
            && *gpus == settings.gpus
            && self.engine.as_deref() == settings.engine.as_deref()
            && self.metrics_at == settings.metrics_at
            && self.gpus_of == settings.gpus_of
            && *place == settings.place
            && *ask_for_load_report == settings.ask_for_load_report
            && models.eq(settings.models.iter().map(String::as_str))
    }

    /// A page was asked for at `at`, when the gateway had so many requests in flight at the target, and read. What it does
    /// not say, or a load report has said since, keeps its value and its age. Answers how many scrapes before had failed in a row.
    pub(super) fn scraped(&self, at: Moment, in_flight: u32, page: &Observation) -> u32 {
        let mut known = self.lock();
        let says_something = page.values.iter().any(Option::is_some);
        for (known, value) in known.state.values.iter_mut().zip(page.values) {
            if let Some(value) = value {
                Observed { value, at, source: Source::Scrape }.place(known);
            }
        }
        if says_something {
            known.state.in_flight_at_scrape = Some(in_flight);
        }
        let gives_otherwise = std::mem::replace(&mut known.state.gives, page.gives) != page.gives;
        drop(known);
        let failures = self.live.watch(|watched| {
            watched.engine = Some(Arc::clone(&page.engine));
            watched.series_missing.clone_from(&page.absent);
            watched.garbage_lines = page.garbage;
            watched.scrape_error = None;
            std::mem::take(&mut watched.scrape_failures)
        });
        if says_something || gives_otherwise {
            self.changed.store(true, Ordering::Release);
        }
        failures
    }

    /// Load reports came with answers: each value takes the place of an older one.
    pub(super) fn reported(&self, reported: &Reported) {
        let mut known = self.lock();
        let state = &mut known.state;
        let [waiting, running] = [Quantity::Waiting, Quantity::Running].map(|quantity| quantity as usize);
        let waited = state.values[waiting].map(|waiting| waiting.value);
        let mut taken = [false; Quantity::COUNT];
        for ((known, value), taken) in state.values.iter_mut().zip(reported.values).zip(&mut taken) {
            if let Some((value, at)) = value {
                *taken = Observed { value, at, source: Source::Orca }.place(known);
            }
        }
        if let (true, Some(now)) = (taken[waiting], state.values[waiting]) {
            state.in_flight_at_scrape = match (taken[running], state.in_flight_at_scrape) {
                (true, _) => Some(reported.in_flight),
                (false, Some(before)) => Some(accounted(before, reported.in_flight, waited, now.value)),
                (false, None) => None,
            };
        }
        drop(known);
        if taken.contains(&true) {
            self.changed.store(true, Ordering::Release);
        }
    }

    /// A page could not be read: every value keeps its age. Answers how many scrapes in a row have failed.
    pub(super) fn scrape_failed(&self, error: &str) -> u32 {
        self.live.watch(|watched| {
            watched.scrape_error = Some(error.into());
            watched.scrape_failures = watched.scrape_failures.saturating_add(1);
            watched.scrape_failures
        })
    }

    /// Before the first page: which quantities are to be expected.
    pub(super) fn expects(&self, gives: [bool; Quantity::COUNT]) {
        let mut known = self.lock();
        if self.live.watched().engine.is_none() && known.state.gives != gives {
            known.state.gives = gives;
            drop(known);
            self.changed.store(true, Ordering::Release);
        }
    }

    /// The exporter of a node tells of the target's GPUs, on a page that was asked for at `at`. What it does not say, or what
    /// another exporter's page that is no older than `fresh_within` has said, too, keeps its value and its age.
    pub(super) fn gpus_told(&self, node: &Arc<str>, at: Moment, fresh_within: Duration, found: Found) {
        let mut known = self.lock();
        let Known { state, gpus, .. } = &mut *known;
        let mut has_news = false;
        let problem = match gpus.claim(node, at, fresh_within) {
            Err(problem) => Some(problem),
            Ok(()) => {
                let count = found.uuids.as_ref().map(|uuids| uuids.len() as u32);
                for (quantity, value) in GPU_QUANTITIES.into_iter().zip([found.utilization, found.memory]) {
                    if let Some(value) = value {
                        let observed = Observed { value, at, source: Source::Dcgm };
                        has_news |= observed.place(&mut state.values[quantity as usize]);
                    }
                }
                if found.uuids.is_some() && found.uuids != state.gpu_uuids {
                    state.gpu_uuids = found.uuids;
                    has_news = true;
                }
                found.problem.or_else(|| {
                    let (configured, count) = self.counted_gpus().zip(count).filter(|(one, other)| one != other)?;
                    Some(
                        format!("{configured} GPUs are configured, and the exporter of {node} tells of {count}").into(),
                    )
                })
            }
        };
        let is_new = gpus.find(problem.clone());
        drop(known);
        if has_news {
            self.changed.store(true, Ordering::Release);
        }
        if let (true, Some(problem)) = (is_new, problem) {
            self.warn_of_gpus(&problem);
        }
    }

    /// No exporter tells of the target's GPUs, and this is why; unless one has told meanwhile.
    pub(super) fn gpus_missed(&self, problem: Box<str>) {
        let mut known = self.lock();
        if known.gpus.is_unexplained() && known.gpus.find(Some(problem.clone())) {
            drop(known);
            self.warn_of_gpus(&problem);
        }
    }

    /// Whether an exporter has told of the target's GPUs, or it is known why none does.
    pub(super) fn gpus_are_explained(&self) -> bool {
        !self.lock().gpus.is_unexplained()
    }

    fn warn_of_gpus(&self, problem: &str) {
        tracing::warn!(pod = &*self.target.name, problem, "the GPUs of the pod are not known as they should be");
    }

    /// How many GPUs an exporter should tell of, if the configuration says so by their number alone.
    fn counted_gpus(&self) -> Option<u32> {
        let by_name = matches!(&self.gpus_of, Some(GpusOf::Node { ids, .. }) if !ids.is_empty());
        self.target.gpus.filter(|_| !by_name)
    }

    /// The exporter of a node has told of the target's GPUs, and does not any more.
    pub(super) fn gpus_not_told(&self, node: &Arc<str>) {
        self.lock().gpus.disclaim(node);
    }

    /// What is in the way of knowing the target's GPUs.
    pub(super) fn gpu_problem(&self) -> Option<Box<str>> {
        self.gpus_of.as_ref()?;
        self.lock().gpus.problem().map(Box::from)
    }

    /// How long a scrape took, how long after its start the next one comes, and up to which age what it said is fresh; `None`
    /// if it said nothing.
    pub(super) fn paced(&self, duration: Duration, interval: Duration, fresh_within: Option<Duration>) {
        self.live.watch(|watched| {
            watched.scrape_duration = Some(duration);
            watched.scrape_interval = Some(interval);
            watched.fresh_within = fresh_within.or(watched.fresh_within);
        });
        let Some(fresh_within) = fresh_within else { return };
        let mut known = self.lock();
        if std::mem::replace(&mut known.state.fresh_within, fresh_within) != fresh_within {
            drop(known);
            self.changed.store(true, Ordering::Release);
        }
    }

    /// How a probe ended, and what that makes of the target.
    pub(super) fn probed(&self, health: Health, error: Option<&str>) {
        self.live.watch(|watched| watched.probe_error = error.map(Into::into));
        let mut known = self.lock();
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
        self.live.watched().scrape_failures
    }

    /// What has changed since the last call; `None` if nothing.
    pub(super) fn take_changed(&self) -> Option<State> {
        // Looking first keeps the line shared: most targets have not changed since the last tick.
        let changed = self.changed.load(Ordering::Relaxed) && self.changed.swap(false, Ordering::Acquire);
        changed.then(|| self.known())
    }

    /// What is known now.
    pub(super) fn known(&self) -> State {
        self.lock().state.clone()
    }

    /// A writer that panicked has left whole values behind: every write above is complete in itself.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of the gateway's requests are in the readings, when a report has told of the queue and not of what runs: as
/// many more as the queue has grown, but no more than have come. So a choice that adds what has changed since does not
/// count a request twice, and what other gateways have sent counts.
fn accounted(before: u32, in_flight: u32, waited: Option<f64>, waiting: f64) -> u32 {
    let grown = waited.map_or(0.0, |waited| waiting - waited);
    let (least, most) = (before.min(in_flight), before.max(in_flight));
    (f64::from(before) + grown).clamp(least.into(), most.into()).round() as u32
}

//! What is counted of each finished request: once, from memory, by whoever takes it over from the data path.
//!
//! An [`Observer`] remembers where the requests with the same labels are counted, so that a request costs a few look-ups and
//! additions and no allocation. What it counts into is shared by all observers and read by the page.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex};

use super::OTHER;
use super::histogram::{Exemplar, Histogram};
use super::number::{Counter, locked};
use super::page::Page;
use super::targets::{OfTarget, Targets};
use crate::snapshot::{
    Attempt, Decision, Ending, Fallback, Operation, Outcome, Policy, Quantity, Reason, Record, Target,
};
use crate::telemetry::names;

/// Models with series of their own. A model gets them when a request for it has first ended well, so that names that clients
/// make up take no room.
const MODELS_MAX: usize = 100;

/// A longer name of a model is no label.
const MODEL_BYTES_MAX: usize = 128;

/// Combinations of operation, model and target. Each has three histograms of about a kilobyte and a half.
const SERIES_MAX: usize = 2_000;

/// Combinations of method, status and error: more would be a target that makes up statuses. Others are counted without their
/// status, which adds at most one for each method and ending.
pub(super) const HTTP_SERIES_MAX: usize = 200;

/// Errors that one of [`SERIES_MAX`] tells apart; statuses beyond are counted as one.
pub(super) const ERRORS_MAX: usize = 20;

/// Methods that all know; others are counted as one, as the conventions have it.
const METHODS: [&str; 10] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE", "QUERY"];

/// Places of a model's name that is no name.
const NO_MODEL: u32 = 0;
const OTHER_MODEL: u32 = 1;

/// Why a request failed, as a label: nothing, a status, or how the request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum ErrorType {
    None,
    Status(u16),
    /// A status for which there is no room.
    Other,
    Ended(&'static str),
}

impl ErrorType {
    /// As in spans: of what a target or the gateway is to blame for, the status of an answer that was delivered, else how it
    /// ended.
    fn of(outcome: &Outcome) -> Self {
        use crate::snapshot::Fault;
        match (outcome.fault(), outcome.ending, outcome.status) {
            (Some(Fault::Target | Fault::Gateway), Ending::Completed, Some(status)) => Self::Status(status),
            (Some(Fault::Target | Fault::Gateway), ending, _) => Self::Ended(ending.name()),
            _ => Self::None,
        }
    }

    /// The same if there is no room for more statuses.
    fn without_status(self) -> Self {
        if matches!(self, Self::Status(_)) { Self::Other } else { self }
    }

    fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Other => OTHER.to_owned(),
            Self::Status(status) => status.to_string(),
            Self::Ended(name) => name.to_owned(),
        }
    }
}

/// Method, status and error.
type HttpKey = (&'static str, Option<u16>, ErrorType);

/// Operation, model and target.
type SeriesKey = (&'static str, Arc<str>, Arc<str>);

/// What is counted of requests with the same operation, model and target.
#[derive(Debug)]
struct Series {
    /// Of those that ended well, or badly by the client's fault.
    duration: Histogram,
    /// Of all others.
    failed: Mutex<BTreeMap<ErrorType, Arc<Histogram>>>,
    first_token: Histogram,
    per_token: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
}

impl Series {
    fn new() -> Self {
        Self {
            duration: Histogram::new(&names::GEN_AI_DURATION),
            failed: Mutex::default(),
            first_token: Histogram::new(&names::FIRST_TOKEN),
            per_token: Histogram::new(&names::PER_TOKEN),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            completion_tokens: Counter::default(),
        }
    }

    /// Whether the error was counted as another one, for want of room.
    fn observe(&self, outcome: &Outcome, error: ErrorType, exemplar: &Exemplar) -> bool {
        self.observe_tokens(outcome, exemplar);
        let duration = seconds(outcome.timings.end_offset_us);
        if error == ErrorType::None {
            self.duration.observe(duration, Some(exemplar));
            return false;
        }
        let mut failed = locked(&self.failed);
        let fits = failed.len() < ERRORS_MAX || failed.contains_key(&error);
        let counted = if fits { error } else { error.without_status() };
        let histogram = failed.entry(counted).or_insert_with(|| Arc::new(Histogram::new(&names::GEN_AI_DURATION)));
        histogram.observe(duration, Some(exemplar));
        counted != error
    }

    fn observe_tokens(&self, outcome: &Outcome, exemplar: &Exemplar) {
        let answer = &outcome.answer;
        self.prompt_tokens.inc_by(answer.prompt_tokens.unwrap_or(0));
        self.cached_tokens.inc_by(answer.cached_tokens.unwrap_or(0));
        self.completion_tokens.inc_by(answer.completion_tokens.unwrap_or(0));
        let streamed_well = ended_well(outcome) && outcome.events > 0;
        let Some(first) = outcome.timings.first_content_offset_us.filter(|_| streamed_well) else { return };
        self.first_token.observe(seconds(first), Some(exemplar));
        if let Some(after_first @ 1..) = answer.completion_tokens.map(|tokens| tokens.saturating_sub(1)) {
            let streaming = outcome.timings.end_offset_us.saturating_sub(first);
            self.per_token.observe(seconds(streaming) / after_first as f64, Some(exemplar));
        }
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn ended_well(outcome: &Outcome) -> bool {
    outcome.ending == Ending::Completed && outcome.fault().is_none()
}

/// Everything that is counted of finished requests.
#[derive(Debug)]
pub(super) struct Requests {
    /// By ending and fault, in the orders of [`Ending::ALL`] and [`FAULTS`].
    ended: [[AtomicU64; FAULTS.len()]; Ending::ALL.len()],
    http: Mutex<BTreeMap<HttpKey, Arc<Histogram>>>,
    series: Mutex<BTreeMap<SeriesKey, Arc<Series>>>,
    models: Mutex<HashSet<Arc<str>>>,
    /// Moves when a target goes or comes: what observers remember is then of yesterday.
    generation: AtomicU64,
    model_overflowed: Counter,
    target_overflowed: Counter,
    status_overflowed: Counter,
    error_overflowed: Counter,
    decided: [[AtomicU64; Reason::ALL.len()]; Policy::ALL.len()],
    fallbacks: [AtomicU64; Fallback::ALL.len()],
    /// In the order of [`EXCLUSIONS`].
    excluded: [AtomicU64; EXCLUSIONS.len()],
    choose: Histogram,
    chosen_waiting: Histogram,
    chosen_kv_cache: Histogram,
    chosen_age: Histogram,
}

/// Whose fault it was, as a label.
const FAULTS: [&str; 4] = ["none", "client", "target", "gateway"];

/// The members of [`crate::snapshot::Excluded`].
const EXCLUSIONS: [&str; 4] = ["unhealthy", "ejected", "model", "no_fresh_state"];

fn fault_index(ending: Ending, status: Option<u16>) -> usize {
    ending.fault(status).map_or(0, |fault| fault as usize + 1)
}

impl Requests {
    pub(super) fn new() -> Self {
        Self {
            ended: Default::default(),
            http: Mutex::default(),
            series: Mutex::default(),
            models: Mutex::default(),
            generation: AtomicU64::new(0),
            model_overflowed: Counter::default(),
            target_overflowed: Counter::default(),
            status_overflowed: Counter::default(),
            error_overflowed: Counter::default(),
            decided: Default::default(),
            fallbacks: Default::default(),
            excluded: Default::default(),
            choose: Histogram::new(&names::CHOOSE_DURATION),
            chosen_waiting: Histogram::new(&names::CHOSEN_WAITING),
            chosen_kv_cache: Histogram::new(&names::CHOSEN_KV_CACHE),
            chosen_age: Histogram::new(&names::CHOSEN_AGE),
        }
    }

    /// The targets are others now: series of those that are gone leave.
    pub(super) fn targets_changed(&self, targets: &Targets) {
        let is_there = |target: &str| target.is_empty() || target == OTHER || targets.has(target);
        locked(&self.series).retain(|(_, _, target), _| is_there(target));
        self.generation.fetch_add(1, Release);
    }

    fn decision(&self, decision: &Decision, exemplar: &Exemplar) {
        self.decided[decision.policy as usize][decision.reason as usize].fetch_add(1, Relaxed);
        if let Some(fallback) = decision.fallback {
            self.fallbacks[fallback as usize].fetch_add(1, Relaxed);
        }
        let excluded = decision.excluded;
        let counts = [excluded.unhealthy, excluded.ejected, excluded.model, excluded.no_fresh_state];
        for (sum, count) in self.excluded.iter().zip(counts).filter(|(_, count)| *count > 0) {
            sum.fetch_add(u64::from(count), Relaxed);
        }
        self.choose.observe(decision.choose_ns as f64 / 1e9, None);
        let sample = &decision.chosen().sample;
        let waiting = sample.reading(Quantity::Waiting);
        if let Some(value) = waiting.value {
            self.chosen_waiting.observe(value, Some(exemplar));
            self.chosen_age.observe(decision.decided.since(waiting.observed).as_secs_f64(), Some(exemplar));
        }
        if let Some(value) = sample.reading(Quantity::KvCacheUsage).value {
            self.chosen_kv_cache.observe(value, Some(exemplar));
        }
    }

    /// Where such a request is counted, and whether that is without its status, for want of room.
    fn http(&self, key: HttpKey) -> (Arc<Histogram>, bool) {
        let mut http = locked(&self.http);
        let (method, status, error) = key;
        let fits = http.len() < HTTP_SERIES_MAX || http.contains_key(&key);
        let key = if fits { key } else { (method, None, error.without_status()) };
        let histogram = http.entry(key).or_insert_with(|| Arc::new(Histogram::new(&names::HTTP_DURATION)));
        (Arc::clone(histogram), status.is_some() && !fits)
    }

    /// Where such a request is counted, with its labels there.
    fn series(&self, (operation, model, target): SeriesKey) -> CountedSeries {
        let mut all = locked(&self.series);
        let other = || Arc::<str>::from(OTHER);
        let mut key = (operation, model, target);
        if all.len() >= SERIES_MAX && !all.contains_key(&key) {
            key = (operation, other(), other());
        }
        let (model_is_other, target_is_other) = (&*key.1 == OTHER, &*key.2 == OTHER);
        let series = Arc::clone(all.entry(key).or_insert_with(|| Arc::new(Series::new())));
        CountedSeries { series, model_is_other, target_is_other }
    }

    /// Whether a model has a name on the page, or gets one now because a request for it has `ended_well`.
    fn admit(&self, model: &str, ended_well: bool) -> Option<Arc<str>> {
        let mut models = locked(&self.models);
        if let Some(model) = models.get(model) {
            return Some(Arc::clone(model));
        }
        let admitted = ended_well && models.len() < MODELS_MAX && model.len() <= MODEL_BYTES_MAX;
        admitted.then(|| {
            let model = Arc::<str>::from(model);
            models.insert(Arc::clone(&model));
            model
        })
    }
}

/// One of [`Requests::series`], and whether its labels are the request's own.
#[derive(Debug)]
struct CountedSeries {
    series: Arc<Series>,
    model_is_other: bool,
    target_is_other: bool,
}

/// Counts finished requests. Each thread that does so regularly has its own.
#[derive(Debug)]
pub struct Observer {
    requests: Arc<Requests>,
    targets: Arc<Targets>,
    generation: u64,
    http: HashMap<HttpKey, (Arc<Histogram>, bool)>,
    models: HashMap<Arc<str>, u32>,
    /// The label of each model, by its place.
    labels: Vec<Arc<str>>,
    /// By slot: where the target is counted, and its label.
    of_targets: HashMap<u32, (Arc<OfTarget>, Arc<str>)>,
    /// By the places of operation and model, and by slot.
    series: HashMap<(Operation, u32, u32), CountedSeries>,
}

/// The place of a target that a request has none of; no slot is.
const NO_TARGET: u32 = u32::MAX;

impl Observer {
    pub(super) fn new(requests: Arc<Requests>, targets: Arc<Targets>) -> Self {
        let generation = requests.generation.load(Acquire);
        let labels = vec!["".into(), OTHER.into()];
        let (http, models, of_targets, series) = Default::default();
        Self { requests, targets, generation, http, models, labels, of_targets, series }
    }

    /// A request has ended, and nobody has counted it yet.
    pub fn finished(&mut self, record: &Record) {
        let Some(outcome) = record.outcome() else { return };
        let fault = fault_index(outcome.ending, outcome.status);
        self.requests.ended[outcome.ending as usize][fault].fetch_add(1, Relaxed);
        let exemplar = Exemplar::of(record);
        let error = ErrorType::of(outcome);
        self.observe_http(&record.issued.request.method, outcome, error, &exemplar);
        let Some(decision) = &record.issued.decision else { return };
        self.requests.decision(decision, &exemplar);
        let generation = self.requests.generation.load(Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.of_targets.clear();
            self.series.clear();
        }
        self.target(decision.target()).0.decided();
        for Attempt { target, status, error, .. } in &outcome.attempts {
            self.target(target).0.attempted(status.is_some() && error.is_none());
        }
        self.observe_series(record, outcome, error, &exemplar);
    }

    fn observe_http(&mut self, method: &str, outcome: &Outcome, error: ErrorType, exemplar: &Exemplar) {
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("_OTHER");
        let key = (method, outcome.status, error);
        let (histogram, overflowed) = match self.http.get(&key) {
            Some(place) => place,
            None if self.http.len() < HTTP_SERIES_MAX => {
                self.http.entry(key).or_insert_with(|| self.requests.http(key))
            }
            None => &self.requests.http(key),
        };
        histogram.observe(seconds(outcome.timings.end_offset_us), Some(exemplar));
        if *overflowed {
            self.requests.status_overflowed.inc();
        }
    }

    fn observe_series(&mut self, record: &Record, outcome: &Outcome, error: ErrorType, exemplar: &Exemplar) {
        let request = &record.issued.request;
        let model = self.model(request.model.as_deref(), ended_well(outcome));
        let target = outcome.target();
        let key = (request.operation, model, target.map_or(NO_TARGET, |target| target.slot));
        if !self.series.contains_key(&key) {
            let target = target.map_or_else(|| "".into(), |target| Arc::clone(&self.target(target).1));
            let labels = (request.operation.name(), Arc::clone(&self.labels[model as usize]), target);
            self.series.insert(key, self.requests.series(labels));
        }
        let CountedSeries { series, model_is_other, target_is_other } = &self.series[&key];
        if series.observe(outcome, error, exemplar) {
            self.requests.error_overflowed.inc();
        }
        if *model_is_other {
            self.requests.model_overflowed.inc();
        }
        if *target_is_other {
            self.requests.target_overflowed.inc();
        }
    }

    fn target(&mut self, target: &Target) -> &(Arc<OfTarget>, Arc<str>) {
        self.of_targets.entry(target.slot).or_insert_with(|| self.targets.of(&target.name))
    }

    /// The place of a model's label.
    fn model(&mut self, model: Option<&str>, ended_well: bool) -> u32 {
        let Some(model) = model.filter(|model| !model.is_empty()) else { return NO_MODEL };
        if let Some(place) = self.models.get(model) {
            return *place;
        }
        let Some(label) = self.requests.admit(model, ended_well) else { return OTHER_MODEL };
        let place = self.labels.len() as u32;
        self.models.insert(Arc::clone(&label), place);
        self.labels.push(label);
        place
    }
}

/// The parts of the page, in its order.
impl Requests {
    pub(super) fn write_http(&self, page: &mut Page) {
        let http: Vec<_> = locked(&self.http).iter().map(|(key, histogram)| (*key, Arc::clone(histogram))).collect();
        let text = |((method, status, error), histogram): (HttpKey, Arc<Histogram>)| {
            (method, status.map_or(String::new(), |status| status.to_string()), error.text(), histogram)
        };
        let http: Vec<_> = http.into_iter().map(text).collect();
        let labels: Vec<_> = http.iter().map(|(method, status, error, _)| [*method, &**status, &**error]).collect();
        let series = labels.iter().zip(&http).map(|(labels, (.., histogram))| (&labels[..], &**histogram));
        page.histograms(&names::HTTP_DURATION, series);

        let mut ended = Vec::new();
        for ending in Ending::ALL {
            // Whatever the status: these are all that there can be.
            let mut faults: Vec<_> = [200, 400, 500].map(|status| fault_index(ending, Some(status))).into();
            faults.dedup();
            for fault in faults {
                let count = self.ended[ending as usize][fault].load(Relaxed);
                ended.push(([ending.name(), FAULTS[fault]], count));
            }
        }
        page.rows(&names::REQUESTS, &ended);
    }

    /// `provider` is what the targets are; of operations that are not known to be GenAI's it makes no claim, as on spans.
    pub(super) fn write_series(&self, page: &mut Page, provider: &str) {
        let provider = |operation: &str| if operation == Operation::Other.name() { "" } else { provider };
        let all: Vec<_> = locked(&self.series).iter().map(|(key, series)| (key.clone(), Arc::clone(series))).collect();
        let mut durations = Vec::new();
        for ((operation, model, target), series) in &all {
            let failed = locked(&series.failed);
            let failed = failed.iter().map(|(error, histogram)| (error.text(), Some(Arc::clone(histogram))));
            for (error, histogram) in [(String::new(), None)].into_iter().chain(failed) {
                durations.push((([*operation, &**model, &**target], error), histogram, series));
            }
        }
        let labels: Vec<_> = durations
            .iter()
            .map(|(([operation, model, target], error), ..)| [*operation, provider(operation), model, target, error])
            .collect();
        let histograms = durations.iter().map(|(_, failed, series)| failed.as_deref().unwrap_or(&series.duration));
        page.histograms(&names::GEN_AI_DURATION, labels.iter().map(|labels| &labels[..]).zip(histograms));

        let labels: Vec<_> = all
            .iter()
            .map(|((operation, model, target), _)| [*operation, provider(operation), &**model, &**target])
            .collect();
        let each = || labels.iter().zip(&all).map(|(labels, (_, series))| (labels, series));
        page.histograms(&names::FIRST_TOKEN, each().map(|(labels, series)| (&labels[..], &series.first_token)));
        page.histograms(&names::PER_TOKEN, each().map(|(labels, series)| (&labels[..], &series.per_token)));
        self.write_tokens(page, &all);
        let overflowed = [
            ("http_response_status_code", &self.status_overflowed),
            ("error_type", &self.error_overflowed),
            ("model", &self.model_overflowed),
            ("target", &self.target_overflowed),
        ];
        let overflowed = overflowed.map(|(label, count)| ([label], count.get()));
        page.rows(&names::LABELS_OVERFLOWED, &overflowed);
    }

    /// Operations are summed up: they are no label of tokens.
    fn write_tokens(&self, page: &mut Page, all: &[(SeriesKey, Arc<Series>)]) {
        let mut sums: BTreeMap<[&str; 2], [u64; 3]> = BTreeMap::new();
        for ((_, model, target), series) in all {
            let tokens = [&series.prompt_tokens, &series.cached_tokens, &series.completion_tokens].map(Counter::get);
            let sum = sums.entry([model, target]).or_default();
            sum.iter_mut().zip(tokens).for_each(|(sum, tokens)| *sum += tokens);
        }
        for (index, definition) in
            [&names::PROMPT_TOKENS, &names::CACHED_TOKENS, &names::COMPLETION_TOKENS].into_iter().enumerate()
        {
            page.family(definition, sums.iter().map(|(labels, sums)| (&labels[..], sums[index])));
        }
    }

    pub(super) fn write_decisions(&self, page: &mut Page) {
        let mut decided = Vec::new();
        for policy in Policy::ALL {
            for reason in Reason::ALL {
                let count = self.decided[policy as usize][reason as usize].load(Relaxed);
                if count > 0 {
                    decided.push(([policy.name(), reason.name()], count));
                }
            }
        }
        page.rows(&names::DECISIONS, &decided);
    }

    pub(super) fn write_choices(&self, page: &mut Page) {
        let load = |(label, count): (&'static str, &AtomicU64)| ([label], count.load(Relaxed));
        let fallbacks: Vec<_> = Fallback::ALL.map(Fallback::name).into_iter().zip(&self.fallbacks).map(load).collect();
        page.rows(&names::FALLBACKS, &fallbacks);
        let excluded: Vec<_> = EXCLUSIONS.into_iter().zip(&self.excluded).map(load).collect();
        page.rows(&names::EXCLUSIONS, &excluded);
        for (definition, histogram) in [
            (&names::CHOOSE_DURATION, &self.choose),
            (&names::CHOSEN_WAITING, &self.chosen_waiting),
            (&names::CHOSEN_KV_CACHE, &self.chosen_kv_cache),
            (&names::CHOSEN_AGE, &self.chosen_age),
        ] {
            page.histograms(definition, [(&[][..], histogram)]);
        }
    }
}

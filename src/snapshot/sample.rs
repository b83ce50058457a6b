//! What the gateway knows of one target: eight quantities, each with its age, source and freshness.

use std::sync::{Arc, OnceLock};

use super::document::StateJson;
use super::load_report::ReportFormat;
use super::moment::Moment;
use super::place::Place;
use serde::{Deserialize, Serialize};

/// One inference pod. Its address is for operators; its name is for everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its place in the fleet of this run, from 0; never given to another target in the same run.
    pub slot: u32,
    /// As configured, or made from the address.
    pub name: Box<str>,
    /// `host:port`, and before it `https://` if it is spoken to in TLS.
    pub address: Box<str>,
    /// How many GPUs it has, if the configuration says so; see [`Sample::gpus`].
    pub gpus: Option<u32>,
    /// The pod that it is, if discovery said.
    pub place: Option<Arc<Place>>,
    /// In which format it is asked for load reports, none being one, too; `None` if as all others are. No record has it.
    pub ask_for_load_report: Option<Option<ReportFormat>>,
}

/// What stands before the address of a target that is spoken to in TLS.
pub const TLS_SCHEME: &str = "https://";

impl Target {
    /// One of which nothing else is known.
    pub fn new(slot: u32, name: &str, address: &str) -> Self {
        let (name, address) = (name.into(), address.into());
        Self { slot, name, address, gpus: None, place: None, ask_for_load_report: None }
    }

    /// Whether it is spoken to in TLS.
    pub fn is_tls(&self) -> bool {
        self.address.starts_with(TLS_SCHEME)
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        self.address.strip_prefix(TLS_SCHEME).unwrap_or(&self.address)
    }

    /// Where it is, as a URL without a path.
    pub fn url(&self) -> String {
        if self.is_tls() { self.address.to_string() } else { format!("http://{}", self.address) }
    }

    /// A number made of the name, spread evenly over 64 bits: a target keeps it over restarts and in every gateway. Old
    /// records are replayed with it, so it stays as it is.
    pub fn identity(&self) -> u64 {
        self.name.as_bytes().chunks(8).fold(self.name.len() as u64, |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(hash ^ u64::from_le_bytes(word))
        })
    }
}

/// The finish of the generator splitmix64: spreads 64 bits so that each depends on all.
pub const fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The quantities a snapshot records for every target, in the order of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Requests waiting in the engine's queue.
    Waiting,
    /// Requests the engine is working on.
    Running,
    /// Share of the KV cache in use, 0..1.
    KvCacheUsage,
    /// Share of prompt tokens found in the prefix cache over the window, 0..1; unknown when nothing was asked.
    PrefixCacheHitRatio,
    /// Share of time the GPUs were busy, 0..1.
    GpuUtilization,
    /// Share of GPU memory in use, 0..1.
    GpuMemoryUtilization,
    /// Requests the engine finished per second, over the window.
    EngineRequestsPerSecond,
    /// Tokens the engine generated per second, over the window.
    EngineTokensPerSecond,
}

impl Quantity {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// All, in the order of [`Sample::readings`].
    pub const ALL: [Self; Self::COUNT] = [
        Self::Waiting,
        Self::Running,
        Self::KvCacheUsage,
        Self::PrefixCacheHitRatio,
        Self::GpuUtilization,
        Self::GpuMemoryUtilization,
        Self::EngineRequestsPerSecond,
        Self::EngineTokensPerSecond,
    ];

    /// Its name in the document, in the store's columns and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::KvCacheUsage => "kv_cache_usage",
            Self::PrefixCacheHitRatio => "prefix_cache_hit_ratio",
            Self::GpuUtilization => "gpu_utilization",
            Self::GpuMemoryUtilization => "gpu_memory_utilization",
            Self::EngineRequestsPerSecond => "engine_requests_per_second",
            Self::EngineTokensPerSecond => "engine_tokens_per_second",
        }
    }
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The engine's metrics page.
    Scrape,
    /// An ORCA load report.
    Orca,
    /// NVIDIA's DCGM exporter.
    Dcgm,
    /// The gateway's own count.
    Gateway,
}

impl Source {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Scrape, Self::Orca, Self::Dcgm, Self::Gateway];

    /// Its name in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scrape => "scrape",
            Self::Orca => "orca",
            Self::Dcgm => "dcgm",
            Self::Gateway => "gateway",
        }
    }
}

/// How far a value may be trusted at the moment its sample was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// Observed within the limit.
    Fresh,
    /// Observed, but longer ago than the limit.
    Stale,
    /// Asked for, and not yet (or never) seen.
    Missing,
    /// No source that is configured can give it.
    Unsupported,
}

impl Freshness {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Fresh, Self::Stale, Self::Missing, Self::Unsupported];

    /// Its name in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Missing => "missing",
            Self::Unsupported => "unsupported",
        }
    }
}

/// One value of one quantity. Missing is never 0: the value is `None` until something was observed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// What was observed, in the quantity's unit.
    pub value: Option<f64>,
    /// When; zero if never.
    pub observed: Moment,
    /// By whom.
    pub source: Option<Source>,
    /// As of [`Sample::published`].
    pub freshness: Freshness,
}

impl Reading {
    /// A quantity nobody has observed yet.
    pub const MISSING: Self = Self { value: None, observed: Moment(0), source: None, freshness: Freshness::Missing };

    /// A quantity that no configured source can give.
    pub const UNSUPPORTED: Self =
        Self { value: None, observed: Moment(0), source: None, freshness: Freshness::Unsupported };

    /// The value if it may be used for a choice.
    pub fn fresh(&self) -> Option<f64> {
        if self.freshness == Freshness::Fresh { self.value } else { None }
    }

    /// How old it was at `now`, in milliseconds; `None` if there is no value.
    pub fn age_ms(&self, now: Moment) -> Option<u64> {
        self.value.map(|_| now.ms_since(self.observed))
    }
}

/// GPUs by their UUIDs, in their order on the node; an instance of a divided one as `UUID/INSTANCE`. Shared by all samples
/// until they are others.
pub type GpuUuids = Arc<[Box<str>]>;

/// What the active probe thinks of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not probed yet; it may be chosen, so that a starting gateway serves at once.
    Unknown,
    /// It answered its last probe.
    Healthy,
    /// It failed as many probes in a row as the configuration allows.
    Unhealthy,
}

/// The state of one target as published: the unit that decisions share and the store keeps once.
///
/// A new one is made only when something in it changed, so a target that is quiet costs nothing.
#[derive(Debug)]
pub struct Sample {
    /// Whose state it is.
    pub target: Arc<Target>,
    /// Counts the target's samples within the run, from 1.
    pub n: u64,
    /// When it was published.
    pub published: Moment,
    /// By the active probe.
    pub health: Health,
    /// In the order of [`Quantity::ALL`].
    pub readings: [Reading; Quantity::COUNT],
    /// Over which time rates and ratios were taken, in milliseconds.
    pub window_ms: u32,
    /// Requests of this gateway at the target when its page was last asked for: what has changed since is in none of the
    /// readings. `None` before the first page.
    pub in_flight_at_scrape: Option<u32>,
    /// The GPUs that the GPU readings are of; `None` until somebody has said.
    pub gpu_uuids: Option<GpuUuids>,
    /// The document's form of the readings, made once by whoever first needs it.
    json: OnceLock<StateJson>,
}

impl Sample {
    /// A sample is immutable from here on.
    pub fn new(
        target: Arc<Target>,
        n: u64,
        published: Moment,
        health: Health,
        readings: [Reading; Quantity::COUNT],
        window_ms: u32,
    ) -> Self {
        let (in_flight_at_scrape, gpu_uuids, json) = (None, None, OnceLock::new());
        Self { target, n, published, health, readings, window_ms, in_flight_at_scrape, gpu_uuids, json }
    }

    /// The same, with what the gateway had in flight at the target when its page was asked for.
    pub fn with_in_flight_at_scrape(self, in_flight_at_scrape: Option<u32>) -> Self {
        Self { in_flight_at_scrape, ..self }
    }

    /// The same, with the GPUs that its GPU readings are of.
    pub fn with_gpu_uuids(self, gpu_uuids: Option<GpuUuids>) -> Self {
        Self { gpu_uuids, ..self }
    }

    /// How many GPUs the target has: what was configured, else how many are known by name.
    pub fn gpus(&self) -> Option<u32> {
        let known = || self.gpu_uuids.as_ref().map(|uuids| u32::try_from(uuids.len()).unwrap_or(u32::MAX));
        self.target.gpus.or_else(known)
    }

    /// The reading of one quantity.
    pub fn reading(&self, quantity: Quantity) -> &Reading {
        &self.readings[quantity as usize]
    }

    /// The document's `candidates[].state`, with ages as of [`Sample::published`]; made once, then copied.
    pub fn json(&self) -> &StateJson {
        self.json.get_or_init(|| StateJson::of(self))
    }
}

/// The cached JSON is derived, so it has no say.
impl PartialEq for Sample {
    fn eq(&self, other: &Self) -> bool {
        self.target == other.target
            && self.n == other.n
            && self.published == other.published
            && self.health == other.health
            && self.readings == other.readings
            && self.window_ms == other.window_ms
            && self.in_flight_at_scrape == other.in_flight_at_scrape
            && self.gpu_uuids == other.gpu_uuids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_value_has_no_age_and_is_never_fresh() {
        assert_eq!(Reading::MISSING.age_ms(Moment(5)), None);
        assert_eq!(Reading::MISSING.fresh(), None);
        let stale = Reading {
            value: Some(3.0),
            observed: Moment(1_000),
            source: Some(Source::Scrape),
            freshness: Freshness::Stale,
        };
        assert_eq!((stale.fresh(), stale.age_ms(Moment(8_000))), (None, Some(7)));
    }

    #[test]
    fn the_configuration_says_how_many_gpus_there_are_and_who_knows_them_by_name_is_asked_after_it() {
        let sample = |gpus, uuids: Option<&[&str]>| {
            let target = Target { gpus, ..Target::new(0, "t", "") };
            let readings = [Reading::UNSUPPORTED; Quantity::COUNT];
            let uuids = uuids.map(|uuids| uuids.iter().map(|uuid| (*uuid).into()).collect());
            Sample::new(Arc::new(target), 1, Moment(1), Health::Healthy, readings, 0).with_gpu_uuids(uuids).gpus()
        };
        assert_eq!(sample(None, None), None);
        assert_eq!(sample(None, Some(&["GPU-a", "GPU-b"])), Some(2));
        assert_eq!(sample(Some(4), Some(&["GPU-a", "GPU-b"])), Some(4));
    }

    #[test]
    fn the_order_of_the_quantities_is_their_place() {
        for (place, quantity) in Quantity::ALL.into_iter().enumerate() {
            assert_eq!(quantity as usize, place);
        }
    }
}

//! The state of a target in a document: flat, so that the commonest question needs no search in a list.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::{Json, Object, raw};
use crate::snapshot::decision::Decision;
use crate::snapshot::moment::Moment;
use crate::snapshot::sample::{Freshness, Quantity, Sample, Source};

/// One quantity of a state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StateReading {
    /// In the quantity's unit.
    pub value: Option<f64>,
    /// In milliseconds.
    pub age_ms: Option<u64>,
    /// By whom it was observed.
    pub source: Option<Source>,
    /// `None` only where nothing was decided.
    pub freshness: Option<Freshness>,
}

/// The state of a target, flat: four keys a quantity, then the window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct State {
    /// In the order of [`Quantity::ALL`].
    pub readings: [StateReading; Quantity::COUNT],
    /// GPUs of the target, if anybody said.
    pub gpus: Option<u32>,
    /// Over which time rates and ratios were taken.
    pub window_ms: Option<u32>,
    /// Requests of this gateway at the target when its page was last asked for.
    pub gateway_in_flight_at_scrape: Option<u32>,
}

impl State {
    /// A sample's values, with ages as of `now`.
    pub fn at(sample: &Sample, now: Moment) -> Self {
        let readings = sample.readings.map(|reading| StateReading {
            value: reading.value,
            age_ms: reading.age_ms(now),
            source: reading.source,
            freshness: Some(reading.freshness),
        });
        Self {
            readings,
            gpus: sample.target.gpus,
            window_ms: Some(sample.window_ms),
            gateway_in_flight_at_scrape: sample.in_flight_at_scrape,
        }
    }

    /// The reading of one quantity.
    pub fn reading(&self, quantity: Quantity) -> &StateReading {
        &self.readings[quantity as usize]
    }

    /// Appends the state as JSON.
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        self.write_readings(&mut object);
        self.write_rest(&mut object);
        object.close();
    }

    /// The state as JSON that can be copied into any number of documents.
    pub fn to_raw(&self) -> Box<RawValue> {
        raw(|out| self.json(out))
    }

    fn write_readings(&self, object: &mut Object<'_>) {
        for (quantity, reading) in Quantity::ALL.into_iter().zip(&self.readings) {
            let [value, age, source, freshness] = state_keys(quantity);
            object.put(value, &reading.value);
            object.put(age, &reading.age_ms);
            object.put(source, &reading.source);
            object.put(freshness, &reading.freshness);
        }
    }

    fn write_rest(&self, object: &mut Object<'_>) {
        object.put("gpus", &self.gpus);
        object.put("window_ms", &self.window_ms);
        object.put("gateway_in_flight_at_scrape", &self.gateway_in_flight_at_scrape);
    }

    fn read(map: &BTreeMap<String, serde_json::Value>) -> serde_json::Result<Self> {
        let mut state = Self {
            gpus: field(map, "gpus")?,
            window_ms: field(map, "window_ms")?,
            gateway_in_flight_at_scrape: field(map, "gateway_in_flight_at_scrape")?,
            ..Self::default()
        };
        for (quantity, reading) in Quantity::ALL.into_iter().zip(&mut state.readings) {
            let [value, age, source, freshness] = state_keys(quantity);
            *reading = StateReading {
                value: field(map, value)?,
                age_ms: field(map, age)?,
                source: field(map, source)?,
                freshness: field(map, freshness)?,
            };
        }
        Ok(state)
    }
}

/// The chosen target's state at the decision: its sample's, with exact ages, and the gateway's own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChosenState {
    /// Its sample's.
    pub state: State,
    /// Requests of this gateway at the target.
    pub gateway_in_flight: Option<u32>,
    /// Requests per second sent to it over the window.
    pub gateway_requests_per_second: Option<f64>,
    /// Tokens per second seen from it over the window.
    pub gateway_tokens_per_second: Option<f64>,
}

impl ChosenState {
    pub(super) fn of(decision: &Decision) -> Self {
        let chosen = decision.chosen();
        Self {
            state: State::at(&chosen.sample, decision.decided),
            gateway_in_flight: Some(chosen.in_flight),
            gateway_requests_per_second: Some(chosen.requests_per_second),
            gateway_tokens_per_second: Some(chosen.tokens_per_second),
        }
    }
}

impl Json for ChosenState {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        self.state.write_readings(&mut object);
        object.put("gateway_in_flight", &self.gateway_in_flight);
        object.put("gateway_requests_per_second", &self.gateway_requests_per_second);
        object.put("gateway_tokens_per_second", &self.gateway_tokens_per_second);
        self.state.write_rest(&mut object);
        object.close();
    }
}

/// For answers that contain a state. They are JSON: no other format can take it.
impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_raw().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&BTreeMap::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for ChosenState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::deserialize(deserializer)?;
        let read = || -> serde_json::Result<Self> {
            Ok(Self {
                state: State::read(&map)?,
                gateway_in_flight: field(&map, "gateway_in_flight")?,
                gateway_requests_per_second: field(&map, "gateway_requests_per_second")?,
                gateway_tokens_per_second: field(&map, "gateway_tokens_per_second")?,
            })
        };
        read().map_err(D::Error::custom)
    }
}

fn field<T: for<'de> Deserialize<'de>>(
    map: &BTreeMap<String, serde_json::Value>,
    key: &str,
) -> serde_json::Result<Option<T>> {
    map.get(key).filter(|value| !value.is_null()).map(T::deserialize).transpose()
}

/// The four keys of a quantity. Written out, so that a search for a key of the document finds it here.
const fn state_keys(quantity: Quantity) -> [&'static str; 4] {
    match quantity {
        Quantity::Waiting => ["waiting", "waiting_age_ms", "waiting_source", "waiting_freshness"],
        Quantity::Running => ["running", "running_age_ms", "running_source", "running_freshness"],
        Quantity::KvCacheUsage => {
            ["kv_cache_usage", "kv_cache_usage_age_ms", "kv_cache_usage_source", "kv_cache_usage_freshness"]
        }
        Quantity::PrefixCacheHitRatio => [
            "prefix_cache_hit_ratio",
            "prefix_cache_hit_ratio_age_ms",
            "prefix_cache_hit_ratio_source",
            "prefix_cache_hit_ratio_freshness",
        ],
        Quantity::GpuUtilization => {
            ["gpu_utilization", "gpu_utilization_age_ms", "gpu_utilization_source", "gpu_utilization_freshness"]
        }
        Quantity::GpuMemoryUtilization => [
            "gpu_memory_utilization",
            "gpu_memory_utilization_age_ms",
            "gpu_memory_utilization_source",
            "gpu_memory_utilization_freshness",
        ],
        Quantity::EngineRequestsPerSecond => [
            "engine_requests_per_second",
            "engine_requests_per_second_age_ms",
            "engine_requests_per_second_source",
            "engine_requests_per_second_freshness",
        ],
        Quantity::EngineTokensPerSecond => [
            "engine_tokens_per_second",
            "engine_tokens_per_second_age_ms",
            "engine_tokens_per_second_source",
            "engine_tokens_per_second_freshness",
        ],
    }
}

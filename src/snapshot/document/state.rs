//! The state of a target in a document: flat, so that the commonest question needs no search in a list.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::{Json, Object, key, put, raw};
use super::parts::CandidatePart;
use crate::snapshot::decision::Decision;
use crate::snapshot::moment::Moment;
use crate::snapshot::sample::{Freshness, GpuUuids, Quantity, Sample, Source};

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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// In the order of [`Quantity::ALL`].
    pub readings: [StateReading; Quantity::COUNT],
    /// GPUs of the target, if anybody said.
    pub gpus: Option<u32>,
    /// Those that its GPU readings are of, if anybody said.
    pub gpu_uuids: Option<GpuUuids>,
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
            gpus: sample.gpus(),
            gpu_uuids: sample.gpu_uuids.clone(),
            window_ms: Some(sample.window_ms),
            gateway_in_flight_at_scrape: sample.in_flight_at_scrape,
        }
    }

    /// The reading of one quantity.
    pub fn reading(&self, quantity: Quantity) -> &StateReading {
        &self.readings[quantity as usize]
    }

    /// Its rates by GPU, with those of the gateway: requests and tokens per second.
    pub fn per_gpu(&self, gateway: [Option<f64>; 2]) -> PerGpu {
        let engine = [Quantity::EngineRequestsPerSecond, Quantity::EngineTokensPerSecond];
        PerGpu::of(self.gpus, engine.map(|quantity| self.reading(quantity).value), gateway)
    }

    /// Appends what is measured, and answers where the ages stand.
    fn write_readings(&self, object: &mut Object<'_>) -> [Range<usize>; Quantity::COUNT] {
        let mut ages = [const { 0..0 }; Quantity::COUNT];
        for ((quantity, reading), place) in Quantity::ALL.into_iter().zip(&self.readings).zip(&mut ages) {
            let [value, age, source, freshness] = state_keys(quantity);
            object.put_named(value, &reading.value);
            *place = object.put_named(age, &reading.age_ms);
            object.put_named(source, &reading.source);
            object.put_named(freshness, &reading.freshness);
        }
        ages
    }

    fn write_rest(&self, object: &mut Object<'_>) {
        object.put(key!("gpus"), &self.gpus);
        object.put(key!("gpu_uuids"), &self.gpu_uuids);
        object.put(key!("window_ms"), &self.window_ms);
        object.put(key!("gateway_in_flight_at_scrape"), &self.gateway_in_flight_at_scrape);
    }

    fn read(map: &BTreeMap<String, serde_json::Value>) -> serde_json::Result<Self> {
        let mut state = Self {
            gpus: field(map, "gpus")?,
            gpu_uuids: field(map, "gpu_uuids")?,
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

/// A target's rates by GPU, its engine's and those of this gateway; `None` where a rate or the number of GPUs is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct PerGpu {
    pub engine_requests_per_second_per_gpu: Option<f64>,
    pub engine_tokens_per_second_per_gpu: Option<f64>,
    pub gateway_requests_per_second_per_gpu: Option<f64>,
    pub gateway_tokens_per_second_per_gpu: Option<f64>,
}

impl PerGpu {
    /// Of requests and tokens per second, the engine's and the gateway's.
    pub fn of(gpus: Option<u32>, engine: [Option<f64>; 2], gateway: [Option<f64>; 2]) -> Self {
        let gpus = gpus.filter(|gpus| *gpus > 0).map(f64::from);
        let by_gpu = |rate: Option<f64>| Some(rate? / gpus?);
        let ([engine_requests, engine_tokens], [gateway_requests, gateway_tokens]) =
            (engine.map(by_gpu), gateway.map(by_gpu));
        Self {
            engine_requests_per_second_per_gpu: engine_requests,
            engine_tokens_per_second_per_gpu: engine_tokens,
            gateway_requests_per_second_per_gpu: gateway_requests,
            gateway_tokens_per_second_per_gpu: gateway_tokens,
        }
    }
}

/// A state as JSON that is made once and copied into any number of documents.
#[derive(Debug)]
pub struct StateJson {
    raw: Box<RawValue>,
    /// Where in it the ages stand, in the order of [`Quantity::ALL`]: they are all that changes until the decision.
    ages: [Range<usize>; Quantity::COUNT],
    /// Where what is measured ends.
    readings_end: usize,
}

impl StateJson {
    /// Of a sample, with ages as of its publication.
    pub fn of(sample: &Sample) -> Self {
        let (mut ages, mut readings_end) = ([const { 0..0 }; Quantity::COUNT], 0);
        let raw = raw(|out| {
            let (state, mut object) = (State::at(sample, sample.published), Object::open(out));
            ages = state.write_readings(&mut object);
            readings_end = object.len();
            state.write_rest(&mut object);
            object.close();
        });
        Self { raw, ages, readings_end }
    }

    /// As it is.
    pub fn raw(&self) -> &RawValue {
        &self.raw
    }

    /// What is measured with other ages, then what `between` appends, then the rest.
    fn write_at(&self, readings: &[StateReading], out: &mut Vec<u8>, between: impl FnOnce(&mut Vec<u8>)) {
        let text = self.raw.get().as_bytes();
        let mut from = 0;
        for (age, reading) in self.ages.iter().zip(readings) {
            out.extend_from_slice(&text[from..age.start]);
            reading.age_ms.json(out);
            from = age.end;
        }
        out.extend_from_slice(&text[from..self.readings_end]);
        between(out);
        out.extend_from_slice(&text[self.readings_end..]);
    }
}

/// The chosen target's state at the decision: its sample's, with exact ages, and the gateway's own counters.
#[derive(Clone, Debug, Default)]
pub struct ChosenState<'a> {
    /// Its sample's.
    pub state: State,
    /// Requests of this gateway at the target.
    pub gateway_in_flight: Option<u32>,
    /// Requests per second sent to it over the window.
    pub gateway_requests_per_second: Option<f64>,
    /// Tokens per second seen from it over the window.
    pub gateway_tokens_per_second: Option<f64>,
    /// The sample's, if it is at hand: then all but the ages is copied from there.
    json: Option<&'a StateJson>,
}

impl<'a> ChosenState<'a> {
    pub(super) fn of(decision: &'a Decision) -> Self {
        let chosen = decision.chosen();
        Self {
            state: State::at(chosen.sample, decision.decided),
            gateway_in_flight: Some(chosen.in_flight),
            gateway_requests_per_second: Some(chosen.requests_per_second),
            gateway_tokens_per_second: Some(chosen.tokens_per_second),
            json: Some(chosen.sample.json()),
        }
    }

    /// Leaves out by which names its GPUs are known.
    pub fn hide_gpu_uuids(&mut self) {
        // What the sample has ready has them in it.
        (self.state.gpu_uuids, self.json) = (None, None);
    }

    /// The keys that only the chosen target's state has.
    fn write_counters(&self, out: &mut Vec<u8>) {
        put(out, key!("gateway_in_flight"), &self.gateway_in_flight);
        put(out, key!("gateway_requests_per_second"), &self.gateway_requests_per_second);
        put(out, key!("gateway_tokens_per_second"), &self.gateway_tokens_per_second);
        let per_gpu = self.state.per_gpu([self.gateway_requests_per_second, self.gateway_tokens_per_second]);
        put(out, key!("engine_requests_per_second_per_gpu"), &per_gpu.engine_requests_per_second_per_gpu);
        put(out, key!("engine_tokens_per_second_per_gpu"), &per_gpu.engine_tokens_per_second_per_gpu);
        put(out, key!("gateway_requests_per_second_per_gpu"), &per_gpu.gateway_requests_per_second_per_gpu);
        put(out, key!("gateway_tokens_per_second_per_gpu"), &per_gpu.gateway_tokens_per_second_per_gpu);
    }
}

impl CandidatePart<'_> {
    /// Leaves out by which names its GPUs are known; what is no state is left out whole.
    pub fn hide_gpu_uuids(&mut self) {
        let state = State { gpu_uuids: None, ..serde_json::from_str(self.state.get()).unwrap_or_default() };
        self.state = Cow::Owned(serde_json::value::to_raw_value(&state).expect("memory does not refuse a write"));
    }
}

impl Json for ChosenState<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        if let Some(json) = self.json {
            return json.write_at(&self.state.readings, out, |out| self.write_counters(out));
        }
        let mut object = Object::open(out);
        self.state.write_readings(&mut object);
        object.append(|out| self.write_counters(out));
        self.state.write_rest(&mut object);
        object.close();
    }
}

/// For answers that contain a state. They are JSON: no other format can take it.
impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json = raw(|out| {
            let mut object = Object::open(out);
            self.write_readings(&mut object);
            self.write_rest(&mut object);
            object.close();
        });
        json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&BTreeMap::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for ChosenState<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::deserialize(deserializer)?;
        let read = || -> serde_json::Result<Self> {
            Ok(Self {
                state: State::read(&map)?,
                gateway_in_flight: field(&map, "gateway_in_flight")?,
                gateway_requests_per_second: field(&map, "gateway_requests_per_second")?,
                gateway_tokens_per_second: field(&map, "gateway_tokens_per_second")?,
                json: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_by_gpu_are_known_only_where_both_are() {
        let mut state = State { gpus: Some(4), ..State::default() };
        state.readings[Quantity::EngineTokensPerSecond as usize].value = Some(1_000.0);
        let known = PerGpu {
            engine_tokens_per_second_per_gpu: Some(250.0),
            gateway_requests_per_second_per_gpu: Some(2.0),
            ..PerGpu::default()
        };
        assert_eq!(state.per_gpu([Some(8.0), None]), known);
        for gpus in [None, Some(0)] {
            assert_eq!(State { gpus, ..state.clone() }.per_gpu([Some(8.0), Some(9.0)]), PerGpu::default());
        }
    }
}

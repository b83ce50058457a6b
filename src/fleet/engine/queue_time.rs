//! How long a request waited in an engine's queue, from the header in which the engine says so with its answer. vLLM says it in
//! the answer's body, which the gateway's scanner reads.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::Fleet;
use super::Engines;
use crate::snapshot::Live;

/// The longest wait that is believed: a day, in microseconds.
const QUEUE_US_MAX: f64 = 86_400e6;

/// Where an engine says how long a request waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueTime {
    /// The header of its answers.
    pub header: HeaderName,
    /// What the number there counts.
    pub unit: TimeUnit,
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeUnit {
    /// `us`.
    Microseconds,
    /// `ms`.
    Milliseconds,
    /// `s`.
    Seconds,
}

impl TimeUnit {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Microseconds, Self::Milliseconds, Self::Seconds];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
        }
    }

    const fn us(self) -> f64 {
        match self {
            Self::Microseconds => 1.0,
            Self::Milliseconds => 1e3,
            Self::Seconds => 1e6,
        }
    }

    /// A wait of so many, in microseconds; `None` if it is no time, or one that cannot be true.
    pub fn wait_us(self, count: f64) -> Option<u64> {
        let us = count * self.us();
        (0.0..=QUEUE_US_MAX).contains(&us).then(|| us.round() as u64)
    }
}

impl QueueTime {
    /// In microseconds; `None` if it is no time, or one that cannot be true.
    fn read(&self, value: &HeaderValue) -> Option<u64> {
        self.unit.wait_us(value.to_str().ok()?.trim().parse().ok()?)
    }
}

impl Engines {
    /// What the answer of a target says of its wait, if its engine is one that does: another one's header of that name may
    /// mean anything. Most answers have no such header, and for these nobody is asked whose they are.
    fn queue_us(&self, live: &Live, headers: &HeaderMap) -> Option<u64> {
        let telling = || self.all.iter().filter_map(|engine| Some((&engine.name, engine.queue_time.as_ref()?)));
        if !telling().any(|(_, queue_time)| headers.contains_key(&queue_time.header)) {
            return None;
        }
        let whose = live.watched().engine.clone()?;
        let (_, queue_time) = telling().find(|(name, _)| **name == whose)?;
        queue_time.read(headers.get(&queue_time.header)?)
    }
}

impl Fleet {
    /// How many microseconds a request waited in the engine's queue, by the head of the answer of the target with these
    /// counters; `None` if its engine does not say. Whose engine that is, its metrics page says.
    pub fn engine_queue_us(&self, live: &Live, headers: &HeaderMap) -> Option<u64> {
        self.watch.engines.queue_us(live, headers)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EngineSettings, Input, Row};
    use super::*;

    #[test]
    fn only_a_time_that_can_be_true_counts() {
        let read = |unit, text: &str| {
            QueueTime { header: HeaderName::from_static("x-wait"), unit }.read(&HeaderValue::from_str(text).unwrap())
        };
        for (unit, text, us) in [
            (TimeUnit::Milliseconds, "37", Some(37_000)),
            (TimeUnit::Milliseconds, "0", Some(0)),
            (TimeUnit::Milliseconds, " 1.5 ", Some(1_500)),
            (TimeUnit::Seconds, "0.25", Some(250_000)),
            (TimeUnit::Microseconds, "12", Some(12)),
            (TimeUnit::Seconds, "86400", Some(86_400_000_000)),
            (TimeUnit::Seconds, "86401", None),
            (TimeUnit::Milliseconds, "-1", None),
            (TimeUnit::Milliseconds, "NaN", None),
            (TimeUnit::Milliseconds, "inf", None),
            (TimeUnit::Milliseconds, "37ms", None),
            (TimeUnit::Milliseconds, "", None),
        ] {
            assert_eq!(read(unit, text), us, "{text} {unit:?}");
        }
    }

    #[test]
    fn a_header_counts_only_with_answers_of_the_engine_that_has_it() {
        let queue_time = Some(QueueTime { header: HeaderName::from_static("x-wait"), unit: TimeUnit::Seconds });
        let row = Row { input: Input::Waiting, combine: Input::Waiting.combine(), scale: 1.0, names: vec!["q".into()] };
        let engines = Engines::new(&[EngineSettings { name: "ours".into(), rows: vec![row], queue_time }]);
        let of = |engine: Option<&str>, name: &'static str| {
            let live = Live::default();
            live.watch(|watched| watched.engine = engine.map(Into::into));
            engines.queue_us(&live, &HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from(2))]))
        };
        assert_eq!((of(Some("ours"), "x-wait"), of(Some("tgi"), "x-queue-time")), (Some(2_000_000), Some(2_000)));
        assert_eq!(
            (of(Some("vllm"), "x-wait"), of(Some("ours"), "x-queue-time"), of(None, "x-wait")),
            (None, None, None)
        );
        assert_eq!(of(Some("ours"), "x-other"), None);
    }
}

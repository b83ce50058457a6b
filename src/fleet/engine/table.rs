//! What a row of an engine's table says, and how rows are found by the name of a series.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;

use super::queue_time::{QueueTime, TimeUnit};
use crate::snapshot::Quantity;

/// The largest count that is believed: beyond it a double no longer counts one by one. It keeps every sum finite.
const COUNT_MAX: f64 = (1u64 << 53) as f64;

/// One number that is looked for on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Requests in the queue.
    Waiting,
    /// Requests at work.
    Running,
    /// 0..1.
    KvCacheUsage,
    /// Tokens, blocks or prompts that were looked for in the prefix cache.
    PrefixQueries,
    /// Those of them that were found.
    PrefixHits,
    /// Those that were not: for engines that count these in place of the queries.
    PrefixMisses,
    /// 0..1, for engines that give nothing else; counters are preferred, because they say over which time.
    PrefixHitRatio,
    /// 0..1.
    GpuUtilization,
    /// 0..1.
    GpuMemoryUtilization,
    /// Requests that have ended, however they did.
    Requests,
    /// Tokens generated.
    Tokens,
}

impl Input {
    /// All there are.
    pub const ALL: [Self; 11] = [
        Self::Waiting,
        Self::Running,
        Self::KvCacheUsage,
        Self::PrefixQueries,
        Self::PrefixHits,
        Self::PrefixMisses,
        Self::PrefixHitRatio,
        Self::GpuUtilization,
        Self::GpuMemoryUtilization,
        Self::Requests,
        Self::Tokens,
    ];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::KvCacheUsage => "kv_cache_usage",
            Self::PrefixQueries => "prefix_cache_queries",
            Self::PrefixHits => "prefix_cache_hits",
            Self::PrefixMisses => "prefix_cache_misses",
            Self::PrefixHitRatio => "prefix_cache_hit_ratio",
            Self::GpuUtilization => "gpu_utilization",
            Self::GpuMemoryUtilization => "gpu_memory_utilization",
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }

    /// How several series become one number, if nobody says otherwise.
    pub const fn combine(self) -> Combine {
        match self {
            Self::Waiting | Self::Running => Combine::Sum,
            Self::KvCacheUsage | Self::PrefixHitRatio | Self::GpuUtilization | Self::GpuMemoryUtilization => {
                Combine::Max
            }
            _ => Combine::Growth,
        }
    }

    /// The largest value that can be true.
    pub(super) const fn most(self) -> f64 {
        match self.combine() {
            Combine::Max => 1.0,
            Combine::Sum | Combine::Growth => COUNT_MAX,
        }
    }
}

/// How the series of several engines (data parallelism: one series per `engine` label) become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// A gauge of things that add up.
    Sum,
    /// A share: the fullest engine is the one that will refuse work.
    Max,
    /// A counter: the growth of each series adds up, so that one engine's restart is not taken for all of them.
    Growth,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it gives.
    pub input: Input,
    /// For a gauge, [`Combine::Sum`] or [`Combine::Max`].
    pub combine: Combine,
    /// What a value is multiplied by: 0.01 makes a ratio of a percentage.
    pub scale: f64,
    /// Newest first, as `NAME` or `NAME{label="value"}`. The first that is on the page counts and hides the others: a version
    /// in between sends both. Counters stand without `_total`, which OpenMetrics demands and other exporters leave out.
    pub names: Vec<String>,
}

/// A shipped engine: data and nothing else.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Whether it was compared with pages of the engine itself, or follows its documentation alone.
    pub(super) tried: bool,
    pub(super) rows: &'static [(Input, &'static [&'static str])],
    /// Counters whose series are not on a page before they have counted something: until then they are 0, not missing.
    pub(super) from_zero: &'static [Input],
    /// In which header of its answers it says how long a request waited in its queue, and in what.
    pub(super) queue_time: Option<(&'static str, TimeUnit)>,
}

impl Table {
    pub(super) fn engine(&self) -> Engine {
        let row = |(input, names): &(Input, &[&str])| Row {
            input: *input,
            combine: input.combine(),
            scale: 1.0,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let queue_time =
            self.queue_time.map(|(header, unit)| QueueTime { header: HeaderName::from_static(header), unit });
        let rows = self.rows.iter().map(row).collect();
        Engine { from_zero: self.from_zero, ..Engine::new(self.name, rows, queue_time) }
    }
}

/// An engine's table, ready to be searched.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) name: Arc<str>,
    pub(super) rows: Vec<Row>,
    /// Which quantities its rows can give, in the order of [`Quantity::ALL`].
    pub(super) gives: [bool; Quantity::COUNT],
    /// See [`Table::from_zero`].
    pub(super) from_zero: &'static [Input],
    /// Where it says how long a request waited in its queue; `None` if it does not.
    pub(super) queue_time: Option<QueueTime>,
    places: HashMap<Box<[u8]>, Vec<Place>>,
    /// The lengths that names have: most other names are told apart by theirs.
    lengths: u128,
}

/// Where a series belongs.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) row: usize,
    /// How new the name is; 0 is the newest.
    pub(super) rank: usize,
    /// What has to stand among its labels.
    label: Option<Box<[u8]>>,
}

impl Engine {
    pub(super) fn new(name: &str, rows: Vec<Row>, queue_time: Option<QueueTime>) -> Self {
        let mut places = HashMap::<Box<[u8]>, Vec<Place>>::new();
        let mut lengths = 0;
        for (row, Row { combine, names, .. }) in rows.iter().enumerate() {
            for (rank, name) in names.iter().enumerate() {
                let (metric, label) = name.split_once('{').unwrap_or((name, ""));
                let label = label.trim_end_matches('}');
                let forms = if *combine == Combine::Growth { &["", "_total"][..] } else { &[""] };
                for form in forms {
                    let metric = format!("{metric}{form}").into_bytes();
                    lengths |= length_bit(metric.len());
                    let label = (!label.is_empty()).then(|| label.as_bytes().into());
                    places.entry(metric.into()).or_default().push(Place { row, rank, label });
                }
            }
        }
        let has = |input| rows.iter().any(|row| row.input == input);
        let gives = Quantity::ALL.map(|quantity| match quantity {
            Quantity::Waiting => has(Input::Waiting),
            Quantity::Running => has(Input::Running),
            Quantity::KvCacheUsage => has(Input::KvCacheUsage),
            Quantity::PrefixCacheHitRatio => {
                let by_counters = has(Input::PrefixQueries) || has(Input::PrefixMisses);
                has(Input::PrefixHitRatio) || has(Input::PrefixHits) && by_counters
            }
            Quantity::GpuUtilization => has(Input::GpuUtilization),
            Quantity::GpuMemoryUtilization => has(Input::GpuMemoryUtilization),
            Quantity::EngineRequestsPerSecond => has(Input::Requests),
            Quantity::EngineTokensPerSecond => has(Input::Tokens),
        });
        Self { name: name.into(), rows, gives, from_zero: &[], queue_time, places, lengths }
    }

    /// Where series of this name belong; `None` if nowhere.
    pub(super) fn places(&self, name: &[u8]) -> Option<&[Place]> {
        if self.lengths & length_bit(name.len()) == 0 {
            return None;
        }
        self.places.get(name).map(Vec::as_slice)
    }
}

impl Place {
    /// Whether a series with these labels is meant.
    pub(super) fn takes(&self, labels: &[u8]) -> bool {
        let Some(label) = &self.label else { return true };
        memchr::memmem::find_iter(labels, &**label).any(|at| at == 0 || matches!(labels[at - 1], b',' | b' ' | b'\t'))
    }
}

/// All lengths from 127 on share a bit.
fn length_bit(length: usize) -> u128 {
    1 << length.min(127)
}

//! The exits: one file or folder each. A sink writes; whether and when to try again is the lane's business.

pub mod json_log;
pub mod otlp;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::snapshot::Record;

/// Somewhere finished snapshots go.
pub trait Sink: Debug + Send {
    /// Its name in metrics and in the store's cursors.
    fn name(&self) -> &'static str;

    /// Why it may refuse: all of the names that a [`Refusal`] of its can have.
    fn reasons(&self) -> &'static [&'static str];

    /// Where it is told the moment of a stop's end, so that a delivery that is under way then ends; `None` if none takes long.
    fn stop_at(&self) -> Option<watch::Sender<Option<Instant>>> {
        None
    }

    /// Takes `records` from the first on, as many as suit it, and answers how many it is done with. The slice is never
    /// empty, and neither is what an `Ok` is done with or refuses: who can take none refuses. An `Err` is about all of them.
    ///
    /// May block: the lane is its own thread. What was not taken it gets again, after [`Refusal::Later`] and
    /// [`Refusal::After`] once some time has passed.
    fn deliver(&mut self, records: &[Arc<Record>]) -> Result<Taken, Refusal>;
}

/// What became of the first records of a delivery. The sink is done with all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// How many these are, in all.
    pub records: usize,
    /// Of them, refused by the receiver for good, without saying which.
    pub rejected: u64,
    /// Of them, not meant for this exit.
    pub skipped: u64,
    /// Why the next ones were not taken, and how many that is about; `None` if they were not offered to anybody yet.
    pub refused: Option<(Refusal, usize)>,
}

impl Taken {
    /// That many, and every one of them.
    pub const fn all(records: usize) -> Self {
        Self { records, rejected: 0, skipped: 0, refused: None }
    }

    /// Those that arrived.
    pub const fn delivered(&self) -> u64 {
        (self.records as u64).saturating_sub(self.rejected + self.skipped)
    }

    /// Whether it can be the answer about so many records.
    pub fn makes_sense_of(&self, offered: usize) -> bool {
        let refused = self.refused.map_or(0, |(_, about)| about);
        let says_something = self.records > 0 || self.refused.is_some();
        says_something
            && self.refused.is_none_or(|(_, about)| about > 0)
            && self.records.saturating_add(refused) <= offered
            && self.rejected.saturating_add(self.skipped) <= self.records as u64
    }
}

/// Why records were not taken: a short name for metrics, from a closed set per sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The same records may be taken later.
    Later(&'static str),
    /// The same, and the receiver has said how long it wants to be left alone.
    After(&'static str, Duration),
    /// The same records will never be taken.
    Hopeless(&'static str),
}

impl Refusal {
    /// The name for metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Later(reason) | Self::After(reason, _) | Self::Hopeless(reason) => reason,
        }
    }
}

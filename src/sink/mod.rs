//! The exits: one file each. A sink writes; whether and when to try again is the lane's business.

pub mod json_log;

use std::fmt::Debug;
use std::sync::Arc;

use crate::snapshot::Record;

/// Somewhere finished snapshots go.
pub trait Sink: Debug + Send {
    /// Its name in metrics and in the store's cursors.
    fn name(&self) -> &'static str;

    /// Takes all of `records` or none of them; never an empty slice.
    ///
    /// May block: the lane is its own thread. After [`Refusal::Later`] it is called again with the same records.
    fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Refusal>;
}

/// Why records were not taken: a short name for metrics, from a closed set per sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The same records may be taken later.
    Later(&'static str),
    /// The same records will never be taken.
    Hopeless(&'static str),
}

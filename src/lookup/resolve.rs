//! From a key to an answer: first the ledger, then what it remembers of drops, then the store.
//!
//! The order is what makes the answer true while a record moves: it is committed before it leaves the ledger, and
//! remembered as dropped before it leaves, so whoever misses it in one place finds it in the next.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Lookup;
use super::key::Key;
use crate::ledger::{DropReason, Ledger};
use crate::snapshot::{Document, Moment, Record, SnapshotId};
use crate::store::{ReadError, Reader, Resolution};

/// The most records that one key answers; more are cut off, newest first, and the answer says so.
pub const MATCHES_MAX: usize = 100;

/// How long a lookup waits for its turn to read the store before it is told to come again.
const TURN_WAIT_MAX: Duration = Duration::from_secs(1);

/// One record that answers a key.
#[derive(Clone, Debug)]
pub struct Found {
    /// The request, as far as it has come.
    pub record: Arc<Record>,
    /// Whether it is committed, so that it survives this process.
    pub stored: bool,
}

/// What a key answers, or why it answers nothing.
pub type Answer = Result<Matches, Absence>;

/// The records a key answers.
#[derive(Clone, Debug)]
pub enum Matches {
    /// The key is the ID of this one.
    One(Found),
    /// The key is a trace ID or a client's request ID, which can repeat: all that bear it, newest first.
    Several {
        /// At least one.
        found: Vec<Found>,
        /// There are no more than these.
        complete: bool,
    },
}

/// Why there is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It was never issued here.
    Unknown,
    /// Nobody knows: it is not in memory, and the store is off.
    NotKept,
    /// Its tag is another instance's.
    IssuedElsewhere,
    /// Retention has deleted it.
    Expired {
        /// Everything issued before this is deleted.
        horizon: Moment,
    },
    /// It finished, but was never stored.
    Dropped {
        /// Why.
        reason: DropReason,
        /// The second of its issue and how many were dropped in it; `None` while its own ID is remembered.
        counted: Option<(Moment, u64)>,
    },
    /// The process that issued it died before it was stored.
    Lost {
        /// When that process began.
        run_started: Moment,
        /// When it was last known to be alive.
        last_heartbeat: Moment,
    },
}

/// Why a lookup has no answer, although there may be one.
#[derive(Debug)]
pub(super) enum LookupError {
    /// Too many lookups at one time: of which kind.
    Busy(&'static str),
    /// The store could not be read.
    Store(ReadError),
    /// The reading thread panicked or was stopped.
    Stopped(tokio::task::JoinError),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(what) => write!(f, "too many lookups at one time {what}: try again in a second"),
            Self::Store(error) => write!(f, "the store could not be read: {error}"),
            Self::Stopped(error) => write!(f, "the lookup was stopped: {error}"),
        }
    }
}

impl std::error::Error for LookupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Busy(_) => None,
            Self::Store(error) => Some(error),
            Self::Stopped(error) => Some(error),
        }
    }
}

impl Found {
    /// The record's document, of one piece: a finish that comes while it is put together would show in half of it.
    pub fn document(&self) -> Document<'_> {
        Document::of(&self.record)
    }
}

/// Answers a key. What is in memory is answered at once; the store is read on a blocking thread.
pub(super) async fn resolve(lookup: &Lookup, key: Key) -> Result<Answer, LookupError> {
    if let Some(answer) = key.id().and_then(|id| in_memory(&lookup.state.ledger, id)) {
        return Ok(answer);
    }
    let permit = match timeout(TURN_WAIT_MAX, Arc::clone(&lookup.reads).acquire_owned()).await {
        Ok(permit) => permit.expect("the semaphore lives as long as the router and is never closed"),
        Err(_) => return Err(LookupError::Busy("read the store")),
    };
    let (ledger, reader) = (Arc::clone(&lookup.state.ledger), lookup.state.reader.clone());
    let now = lookup.state.clock.now();
    let read = move || {
        // Held by the thread, not by the request: a client that leaves does not stop a read that has begun.
        let _permit = permit;
        search(Some(&ledger), reader.as_ref(), &key, now)
    };
    tokio::task::spawn_blocking(read).await.map_err(LookupError::Stopped)?.map_err(LookupError::Store)
}

/// The answer if the ledger has it.
fn in_memory(ledger: &Ledger, id: SnapshotId) -> Option<Answer> {
    if let Some(record) = ledger.get(id) {
        return Some(Ok(Matches::One(Found { record, stored: false })));
    }
    ledger.dropped(id).map(|reason| Err(Absence::Dropped { reason, counted: None }))
}

/// Answers a key from the ledger, if there is one, and the store, if there is one. Blocks while it reads.
///
/// A key that reads as an ID but is none that has a record is tried as a trace ID and a client's request ID, too; if it
/// is none of these either, the ID's own answer stands.
pub fn search(ledger: Option<&Ledger>, reader: Option<&Reader>, key: &Key, now: Moment) -> Result<Answer, ReadError> {
    let mut absence = if reader.is_some() { Absence::Unknown } else { Absence::NotKept };
    if let Some(id) = key.id() {
        if let Some(answer) = ledger.and_then(|ledger| in_memory(ledger, id)) {
            return Ok(answer);
        }
        if let Some(reader) = reader {
            absence = match reader.resolve(id, now)? {
                Resolution::Found(record) => return Ok(Ok(Matches::One(Found { record, stored: true }))),
                Resolution::Expired { horizon } => Absence::Expired { horizon },
                Resolution::Dropped { reason, second, count } => {
                    Absence::Dropped { reason, counted: Some((second, count)) }
                }
                Resolution::Lost { run_started, last_heartbeat } => Absence::Lost { run_started, last_heartbeat },
                Resolution::Unknown => Absence::Unknown,
                Resolution::IssuedElsewhere => Absence::IssuedElsewhere,
            };
        }
    }
    if let Some(trace) = key.trace() {
        let fresh = in_flight(ledger, |record| record.issued.trace.trace_id == trace);
        let stored = reader.map_or(Ok(Vec::new()), |reader| reader.by_trace(trace, MATCHES_MAX + 1))?;
        if let Some(matches) = several(fresh, stored) {
            return Ok(Ok(matches));
        }
    }
    for alias in key.client_request_ids() {
        let fresh = in_flight(ledger, |record| record.issued.request.client_request_id.as_deref() == Some(alias));
        let stored = reader.map_or(Ok(Vec::new()), |reader| reader.by_client_request_id(alias, MATCHES_MAX + 1))?;
        if let Some(matches) = several(fresh, stored) {
            return Ok(Ok(matches));
        }
    }
    Ok(Err(absence))
}

fn in_flight(ledger: Option<&Ledger>, wanted: impl Fn(&Record) -> bool) -> Vec<Arc<Record>> {
    ledger.map_or_else(Vec::new, |ledger| ledger.search(MATCHES_MAX + 1, wanted))
}

/// Joins what both places have; a record in both was committed a moment ago.
fn several(fresh: Vec<Arc<Record>>, stored: Vec<Arc<Record>>) -> Option<Matches> {
    let fresh = fresh.into_iter().map(|record| Found { record, stored: false });
    let stored = stored.into_iter().map(|record| Found { record, stored: true });
    let by_id: BTreeMap<_, _> = fresh.chain(stored).map(|found| (Reverse(found.record.id()), found)).collect();
    let complete = by_id.len() <= MATCHES_MAX;
    let found: Vec<_> = by_id.into_values().take(MATCHES_MAX).collect();
    if found.is_empty() { None } else { Some(Matches::Several { found, complete }) }
}

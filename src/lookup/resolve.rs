//! From a key to an answer: first the ledger, then what it remembers of drops, then the store.
//!
//! The order is what makes the answer true while a record moves: it is committed before it leaves the ledger, and
//! remembered as dropped before it leaves, so whoever misses it in one place finds it in the next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Lookup;
use super::key::Key;
use crate::ledger::{DropCount, DropReason, Ledger};
use crate::snapshot::{Document, Moment, Record, SnapshotId};
use crate::store::{ReadError, Reader, Resolution};

/// The most records that one key answers; more are cut off, newest first, and the answer says so.
pub const MATCHES_MAX: usize = 100;

/// When so many records are found for several keys, the rest of the keys has to wait: memory is bounded by this and one key's.
const FOUND_MAX: usize = 256;

/// How long a lookup waits for its turn to read the store before it is told to come again.
pub(super) const TURN_WAIT_MAX: Duration = Duration::from_secs(1);

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
    /// It is not in the files, and the gateway that they belong to runs and may know it.
    NotInFiles,
    /// Its tag is another instance's.
    IssuedElsewhere,
    /// Retention has deleted it.
    Expired {
        /// Everything issued before this is deleted.
        horizon: Moment,
    },
    /// Somebody had it deleted.
    Erased,
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

impl Absence {
    /// The ID says nothing of a request here, so the key may be another name of one.
    const fn is_open(self) -> bool {
        matches!(self, Self::Unknown | Self::NotKept | Self::NotInFiles | Self::IssuedElsewhere)
    }
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

impl Matches {
    /// All of them, newest first.
    pub fn found(&self) -> &[Found] {
        match self {
            Self::One(found) => std::slice::from_ref(found),
            Self::Several { found, .. } => found,
        }
    }

    pub(super) fn found_mut(&mut self) -> &mut [Found] {
        match self {
            Self::One(found) => std::slice::from_mut(found),
            Self::Several { found, .. } => found,
        }
    }

    /// There are no more than these.
    pub fn complete(&self) -> bool {
        !matches!(self, Self::Several { complete: false, .. })
    }
}

impl Found {
    /// The record's document, of one piece: a finish that comes while it is put together would show in half of it.
    pub fn document(&self) -> Document<'_> {
        Document::of(&self.record)
    }

    /// Appends the document, and whether it is stored.
    pub(super) fn write(&self, body: &mut Vec<u8>) {
        write_with(&self.document(), self.stored, &[], body);
    }
}

/// Appends a document with more keys after its own, and their values as JSON. Spliced in, so that its bytes are those of the
/// store and the log.
pub(super) fn write_with(document: &Document<'_>, stored: bool, more: &[(&str, Vec<u8>)], body: &mut Vec<u8>) {
    document.write(body);
    let end = body.pop();
    debug_assert_eq!(end, Some(b'}'), "a document is a JSON object");
    body.extend_from_slice(format!(r#","stored":{stored}"#).as_bytes());
    for (key, json) in more {
        body.extend_from_slice(format!(r#","{key}":"#).as_bytes());
        body.extend_from_slice(json);
    }
    body.push(b'}');
}

/// Answers a key. What is in memory is answered at once; the store is read on a blocking thread.
pub(super) async fn resolve(lookup: &Lookup, key: Key) -> Result<Answer, LookupError> {
    if let Some(answer) = key.id().and_then(|id| in_memory(&lookup.state.ledger, id)) {
        return Ok(answer);
    }
    let ledger = Arc::clone(&lookup.state.ledger);
    let now = lookup.state.clock.now();
    in_turn(lookup, TURN_WAIT_MAX, move |reader| search(Some(&ledger), reader, &key, now)).await
}

/// Reads the store, if there is one, on a thread that may block, when it is its turn, for which it waits `patience` at most.
pub(super) async fn in_turn<T: Send + 'static>(
    lookup: &Lookup,
    patience: Duration,
    read: impl FnOnce(Option<&Reader>) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, LookupError> {
    let permit = match timeout(patience, Arc::clone(&lookup.reads).acquire_owned()).await {
        Ok(permit) => permit.expect("the semaphore lives as long as the router and is never closed"),
        Err(_) => return Err(LookupError::Busy("read the store")),
    };
    let reader = lookup.state.reader.clone();
    let reads = move || {
        // Held by the thread, not by the request: a client that leaves does not stop a read that has begun.
        let _permit = permit;
        read(reader.as_ref())
    };
    tokio::task::spawn_blocking(reads).await.map_err(LookupError::Stopped)?.map_err(LookupError::Store)
}

/// The answer if the ledger has it.
fn in_memory(ledger: &Ledger, id: SnapshotId) -> Option<Answer> {
    if let Some(record) = ledger.get(id) {
        return Some(Ok(Matches::One(Found { record, stored: false })));
    }
    ledger.dropped(id).map(|reason| Err(Absence::Dropped { reason, counted: None }))
}

/// Whether it may be one of the drops that a store with a full disk cannot even count.
fn not_stored_yet(ledger: &Ledger, id: SnapshotId) -> Option<Absence> {
    let DropCount { second, reason, count } = ledger.counted(id)?;
    Some(Absence::Dropped { reason, counted: Some((Moment(second * 1_000_000), count)) })
}

/// Answers a key from the ledger, if there is one, and the store, if there is one. Blocks while it reads.
///
/// A key that reads as an ID but is none that was issued here is tried as a trace ID and a client's request ID, too. Of one
/// that was, or may have been before this instance forgot it, the ID's own answer stands: whoever sends it as the ID of
/// a request or a trace of his own does not take its place.
///
/// # Errors
/// The store could not be read.
pub fn search(ledger: Option<&Ledger>, reader: Option<&Reader>, key: &Key, now: Moment) -> Result<Answer, ReadError> {
    search_all(ledger, reader, &[key], now).pop().expect("the first key is always answered")
}

/// Answers keys as [`search`] does, each for itself and in their order, but looks through the ledger once for all of them.
/// It stops after the key with which more than [`FOUND_MAX`] records were found: the rest is to be asked for again.
pub(super) fn search_all(
    ledger: Option<&Ledger>,
    reader: Option<&Reader>,
    keys: &[&Key],
    now: Moment,
) -> Vec<Result<Answer, ReadError>> {
    let mut answers: Vec<_> = keys.iter().map(|key| by_id(ledger, reader, key, now)).collect();
    let is_open = |answer: &Result<Answer, ReadError>| matches!(answer, Ok(Err(absence)) if absence.is_open());
    let open = keys.iter().zip(&answers).filter(|(_, answer)| is_open(answer)).map(|(key, _)| *key);
    let fresh = Fresh::of(ledger, open);
    let mut found = 0;
    for (place, key) in keys.iter().enumerate() {
        if found > FOUND_MAX {
            answers.truncate(place);
            break;
        }
        if is_open(&answers[place])
            && let Some(answer) = by_other_names(&fresh, reader, key).transpose()
        {
            answers[place] = answer.map(Ok);
        }
        found += answers[place].iter().flatten().map(|matches| matches.found().len()).sum::<usize>();
    }
    answers
}

fn by_id(ledger: Option<&Ledger>, reader: Option<&Reader>, key: &Key, now: Moment) -> Result<Answer, ReadError> {
    let Some(id) = key.id() else {
        return Ok(Err(if reader.is_some() { Absence::Unknown } else { Absence::NotKept }));
    };
    if let Some(answer) = ledger.and_then(|ledger| in_memory(ledger, id)) {
        return Ok(answer);
    }
    let Some(reader) = reader else { return Ok(Err(Absence::NotKept)) };
    Ok(match reader.resolve(id, now)? {
        Resolution::Found(record) => Ok(Matches::One(Found { record, stored: true })),
        Resolution::Expired { horizon } => Err(Absence::Expired { horizon }),
        Resolution::Dropped { reason, second, count } => {
            Err(Absence::Dropped { reason, counted: Some((second, count)) })
        }
        Resolution::Lost { run_started, last_heartbeat } => Err(Absence::Lost { run_started, last_heartbeat }),
        Resolution::Erased => Err(Absence::Erased),
        Resolution::Unknown if reader.may_be_running(id, now) => Err(Absence::NotInFiles),
        Resolution::Unknown => Err(ledger.and_then(|ledger| not_stored_yet(ledger, id)).unwrap_or(Absence::Unknown)),
        Resolution::IssuedElsewhere => Err(Absence::IssuedElsewhere),
    })
}

fn by_other_names(fresh: &Fresh, reader: Option<&Reader>, key: &Key) -> Result<Option<Matches>, ReadError> {
    if let Some(trace) = key.trace() {
        let fresh = fresh.bearing(|record| record.issued.trace.trace_id == trace);
        let stored = reader.map_or(Ok(Vec::new()), |reader| reader.by_trace(trace, MATCHES_MAX + 1))?;
        if let Some(matches) = several(fresh, stored) {
            return Ok(Some(matches));
        }
    }
    for alias in key.client_request_ids() {
        let fresh = fresh.bearing(|record| record.issued.request.client_request_id.as_deref() == Some(alias));
        let stored = reader.map_or(Ok(Vec::new()), |reader| reader.by_client_request_id(alias, MATCHES_MAX + 1))?;
        if let Some(matches) = several(fresh, stored) {
            return Ok(Some(matches));
        }
    }
    Ok(None)
}

/// What the ledger has under the other names of some keys, newest first. The ledger has no index by them, so that the data
/// path does not pay for one: a look through it takes some milliseconds when it is full.
struct Fresh(Vec<Arc<Record>>);

impl Fresh {
    fn of<'k>(ledger: Option<&Ledger>, keys: impl Iterator<Item = &'k Key>) -> Self {
        let (mut traces, mut aliases) = (HashSet::new(), HashSet::new());
        for key in keys {
            traces.extend(key.trace());
            aliases.extend(key.client_request_ids());
        }
        let wanted = |record: &Record| {
            traces.contains(&record.issued.trace.trace_id)
                || record.issued.request.client_request_id.as_deref().is_some_and(|id| aliases.contains(id))
        };
        let ledger = ledger.filter(|_| !aliases.is_empty());
        Self(ledger.map_or_else(Vec::new, |ledger| ledger.search(usize::MAX, wanted)))
    }

    fn bearing(&self, wanted: impl Fn(&Record) -> bool) -> Vec<Arc<Record>> {
        self.0.iter().filter(|record| wanted(record)).take(MATCHES_MAX + 1).cloned().collect()
    }
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

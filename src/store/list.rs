//! Lists of records: newest first by their IDs, whose order is that of time, or in the order in which they were stored.
//!
//! No index serves the conditions: each would be written at random places with every record. Rows are looked at one after
//! the other instead, which is bounded, and a page that reaches its bounds says where to go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Params;

use super::ReadError;
use super::filter::{FACTS, Filter};
use super::meta::{self, Key};
use super::pool::Session;
use super::reader::{self, MATCHES_MAX, Reader, TRANSACTION_MAX, failure};
use super::row::{int, nat};
use crate::snapshot::{InstanceTag, Record, SnapshotId};

/// Rows that are looked at for one page.
const ROWS_PER_PAGE: usize = 100_000;

/// The clock is read for every row that is wanted, and once for so many that are not.
const ROWS_PER_LOOK: usize = 64;

/// One page of a list; `P` says where the next one begins.
#[derive(Clone, Debug)]
pub struct Page<P> {
    /// In the list's order.
    pub records: Vec<Arc<Record>>,
    /// Where to go on; `None` at the end.
    pub next: Option<P>,
    /// `false` if so much was looked at that the page ended before it was full.
    pub complete: bool,
}

impl Reader {
    /// Records that a filter accepts, with IDs below `below`, newest first, at most `limit`.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn newest(&self, filter: &Filter, below: SnapshotId, limit: usize) -> Result<Page<SnapshotId>, ReadError> {
        const SQL: &str = "FROM records WHERE id < ?1 AND id >= ?2 ORDER BY id DESC";
        // The first ID that can have been issued within a millisecond.
        let first_of = |unix_ms| SnapshotId::new(unix_ms, InstanceTag(0), 0);
        let from = filter.since.map_or(first_of(0), |since| first_of(since.unix_ms()));
        let below = filter.until.map_or(below, |until| below.min(first_of(until.unix_ms() + 1)));
        self.pool().read(|session| {
            if let Some(page) = by_alias(session, filter, below, limit)? {
                return Ok(page);
            }
            let mut scan = Scan::new(filter, limit, (0, below), self.answer_time);
            while scan.end.is_none() {
                scan.slice(session, SQL, (scan.last.1.to_bytes(), from.to_bytes()))?;
            }
            let next = match scan.end {
                Some(End::NoMore) => None,
                _ => Some(scan.last.1),
            };
            Ok(scan.page(next))
        })
    }

    /// Records that a filter accepts, in the order in which they were stored, of those after the sequence number `after`,
    /// at most `limit`. There always is a place to go on: what is stored later.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn stored_after(&self, filter: &Filter, after: u64, limit: usize) -> Result<Page<u64>, ReadError> {
        const SQL: &str = "FROM records WHERE seq > ?1 ORDER BY seq";
        self.pool().read(|session| {
            let mut scan = Scan::new(filter, limit, (after, SnapshotId::from_u128(0)), self.answer_time);
            while scan.end.is_none() {
                scan.slice(session, SQL, [int(scan.last.0)])?;
            }
            let next = scan.last.0;
            Ok(scan.page(Some(next)))
        })
    }

    /// The sequence number of what was stored last, or deleted last if nothing is left; 0 if there never was anything.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn last_seq(&self) -> Result<u64, ReadError> {
        self.pool().read(|session| {
            let mut statement = session.connection.prepare_cached("SELECT ifnull(max(seq), 0) FROM records")?;
            let last = statement.query_row([], |row| row.get(0).map(nat))?;
            Ok(last.max(meta::get(&session.connection, Key::HorizonSeq)?))
        })
    }
}

/// Why a page ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    NoMore,
    /// Another record would follow.
    Full,
    Spent,
}

/// A page that is being filled.
pub(super) struct Scan<'f> {
    filter: &'f Filter,
    limit: usize,
    found: Vec<Arc<Record>>,
    /// Sequence number and ID of the last row that need not be looked at again.
    pub(super) last: (u64, SnapshotId),
    pub(super) rows_left: usize,
    until: Instant,
    pub(super) end: Option<End>,
}

impl<'f> Scan<'f> {
    pub(super) fn new(filter: &'f Filter, limit: usize, last: (u64, SnapshotId), time: Duration) -> Self {
        let (found, until) = (Vec::new(), Instant::now() + time);
        Self { filter, limit, found, last, rows_left: ROWS_PER_PAGE, until, end: None }
    }

    pub(super) fn page<P>(self, next: Option<P>) -> Page<P> {
        let complete = self.end != Some(End::Spent) || self.found.len() == self.limit;
        Page { records: self.found, next, complete }
    }

    /// One transaction's worth of rows.
    pub(super) fn slice(&mut self, session: &mut Session, from: &str, params: impl Params) -> Result<(), ReadError> {
        let Session { connection, known } = session;
        let begun = Instant::now();
        let mut statement = connection.prepare_cached(&format!("SELECT {FACTS} {from}"))?;
        let mut rows = statement.query(params)?;
        while let Some(row) = rows.next()? {
            let (seq, id) = (nat(row.get(0)?), SnapshotId::from_bytes(row.get(1)?));
            let wanted = self.filter.accepts_row(row, connection, known).map_err(|error| failure(error, seq))?;
            if wanted {
                if self.found.len() == self.limit {
                    self.end = Some(End::Full);
                    return Ok(());
                }
                self.found.extend(reader::by_seq(connection, known, seq)?);
            }
            self.last = (seq, id);
            self.rows_left -= 1;
            let look = wanted || self.rows_left.is_multiple_of(ROWS_PER_LOOK);
            if self.rows_left == 0 || (look && Instant::now() > self.until) {
                self.end = Some(End::Spent);
                return Ok(());
            }
            if look && begun.elapsed() > TRANSACTION_MAX {
                return Ok(());
            }
        }
        self.end = Some(End::NoMore);
        Ok(())
    }
}

/// The page by way of an index, if it is worth it: where a name is on more records than the index answers, they lie so
/// close together that looking at all rows finds them as fast.
fn by_alias(
    session: &mut Session,
    filter: &Filter,
    below: SnapshotId,
    limit: usize,
) -> Result<Option<Page<SnapshotId>>, ReadError> {
    let Some(alias) = filter.alias() else { return Ok(None) };
    let seqs = alias.search(&session.connection, MATCHES_MAX)?;
    if seqs.len() == MATCHES_MAX {
        return Ok(None);
    }
    let Session { connection, known } = session;
    // A trace that began here has the snapshot's ID and is not entered as an alias.
    let root = filter.trace.map(|trace| SnapshotId::from_u128(trace.as_u128()));
    let root = root.map(|id| reader::by_id(connection, known, id)).transpose()?.flatten();
    let wanted = |record: &Arc<Record>| record.id() < below && filter.accepts(record);
    let mut records: Vec<_> = root.into_iter().filter(wanted).collect();
    for seq in seqs {
        records.extend(reader::by_seq(connection, known, seq)?.filter(wanted));
    }
    records.sort_unstable_by_key(|record| std::cmp::Reverse(record.id()));
    let more = records.len() > limit;
    records.truncate(limit);
    let next = records.last().filter(|_| more).map(|record| record.id());
    Ok(Some(Page { records, next, complete: true }))
}

//! Deletes what a person asks to have deleted: one record by its ID, or all of a tenant, in slices between commits.
//!
//! The rows go, their entries under other names go with them, and SQLite overwrites both with zeros (`secure_delete`), so
//! that nothing is left in the file once the log has been taken over. What stays is the ID, so that a lookup can say
//! `deleted` and an exit that reads the store later knows a gap from a loss, until retention passes it; and one row about
//! the deletion itself: who asked, for what, when, and how many records that was.

use std::fmt;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension as _, Transaction};

use super::alias::Alias;
use super::meta::Horizon;
use super::reader::Reader;
use super::retention::Rows;
use super::row::{int, nat};
use super::{CommitError, ReadError, Writer};
use crate::snapshot::{InstanceTag, Moment, Record, SnapshotId, Tenant};

/// Rows looked through in one read transaction for tenants: some milliseconds.
const ROWS_PER_TRANSACTION: usize = 2_000;

/// What is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One record.
    Id(SnapshotId),
    /// All records of a tenant.
    Tenant(Tenant),
}

impl Subject {
    /// Whether a record is meant.
    pub fn means(&self, record: &Record) -> bool {
        match self {
            Self::Id(id) => record.id() == *id,
            Self::Tenant(tenant) => record.issued.request.tenant == Some(*tenant),
        }
    }
}

/// As the log and the table of deletions show it: an ID, or the eight digits of a tenant.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Tenant(tenant) => tenant.fmt(f),
        }
    }
}

/// A deletion as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// What is to go.
    pub subject: Subject,
    /// Who asks: a token's name.
    pub by: Box<str>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Records that were stored, and are not any more.
    pub records: u64,
    /// Requests that have not ended, or were not stored yet: they never will be.
    pub on_their_way: u64,
}

/// Why a deletion was not carried out, or not to its end.
#[derive(Debug)]
pub enum NotErased {
    /// Of as many subjects as may be, requests on their way are being kept out: it was not begun.
    TooManyBarred,
    /// The store refused it.
    Store(CommitError),
}

impl fmt::Display for NotErased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyBarred => {
                f.write_str("after as many deletions as can be, requests on their way are still being kept out")
            }
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for NotErased {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooManyBarred => None,
            Self::Store(error) => error.source(),
        }
    }
}

/// A deletion under way.
#[derive(Debug)]
pub struct ErasureJob {
    subject: Subject,
    row: i64,
    /// Sequence numbers up to here are done.
    done: u64,
    /// The last one there was when the job began: what comes later is the worker's to keep out.
    last: u64,
    rows: Rows,
    records: u64,
}

/// What is needed of a row to delete it.
struct Doomed {
    seq: u64,
    id: SnapshotId,
    trace: Option<[u8; 16]>,
    client_request_id: Option<Box<str>>,
}

impl Writer {
    /// Enters a deletion in its table. Everything stored by now is what it deletes.
    ///
    /// # Errors
    /// Nothing was entered.
    pub fn begin_erasure(&mut self, erasure: &Erasure, now: Moment) -> Result<ErasureJob, CommitError> {
        let row = self.transact(|transaction| {
            transaction
                .prepare_cached("INSERT INTO erasures (requested_unix_us, requested_by, subject) VALUES (?1, ?2, ?3)")?
                .execute((int(now.0), &*erasure.by, erasure.subject.to_string()))?;
            Ok(transaction.last_insert_rowid())
        })?;
        let last = self.next_seq() - 1;
        Ok(ErasureJob { subject: erasure.subject, row, done: 0, last, rows: Rows::default(), records: 0 })
    }

    /// Goes on with a deletion for about `budget`; answers how many records it has deleted when there are no more.
    ///
    /// # Errors
    /// The slice under way was not deleted; the next call tries it again.
    pub fn erase(&mut self, job: &mut ErasureJob, budget: Duration, now: Moment) -> Result<Option<u64>, CommitError> {
        let started = Instant::now();
        while started.elapsed() < budget {
            let slice = Instant::now();
            if self.erase_slice(job)? {
                return self.end_erasure(job, now).map(Some);
            }
            job.rows.adapt(slice.elapsed());
        }
        Ok(None)
    }

    /// Notes that these IDs were kept out of the store.
    ///
    /// # Errors
    /// Nothing was noted.
    pub fn entomb(&mut self, ids: &[SnapshotId]) -> Result<(), CommitError> {
        self.transact(|transaction| ids.iter().try_for_each(|id| entomb(transaction, *id, None)))
    }

    /// One transaction; whether there are no more.
    fn erase_slice(&mut self, job: &mut ErasureJob) -> Result<bool, CommitError> {
        let (subject, done, last, rows, row) = (job.subject, job.done, job.last, job.rows, job.row);
        self.overwrite_freed(true)?;
        let slice = self.transact(|transaction| {
            let (doomed, reached) = match subject {
                Subject::Id(id) => (by_id(transaction, id)?, last),
                Subject::Tenant(tenant) => of_tenant(transaction, tenant, done, last, rows.get())?,
            };
            for Doomed { seq, id, trace, client_request_id } in &doomed {
                Alias::delete_all(transaction, *id, *seq, *trace, client_request_id.as_deref())?;
                transaction.prepare_cached("DELETE FROM records WHERE seq = ?1")?.execute([int(*seq)])?;
                entomb(transaction, *id, Some(*seq))?;
            }
            transaction
                .prepare_cached("UPDATE erasures SET records = records + ?1 WHERE erasure = ?2")?
                .execute((doomed.len() as i64, row))?;
            Ok((doomed.len() as u64, reached))
        });
        self.overwrite_freed(false)?;
        let (deleted, reached) = slice?;
        (job.records, job.done) = (job.records + deleted, reached);
        Ok(reached >= last)
    }

    fn end_erasure(&mut self, job: &ErasureJob, now: Moment) -> Result<u64, CommitError> {
        self.transact(|transaction| {
            transaction
                .prepare_cached("UPDATE erasures SET ended_unix_us = ?1 WHERE erasure = ?2")?
                .execute((int(now.0), job.row))
        })?;
        Ok(job.records)
    }
}

/// Leaves the ID, and the sequence number if it had one.
fn entomb(transaction: &Transaction<'_>, id: SnapshotId, seq: Option<u64>) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached("INSERT OR IGNORE INTO erased (id, seq) VALUES (?1, ?2)")?;
    statement.execute((id.to_bytes(), seq.map(int)))?;
    Ok(())
}

fn doomed(row: &rusqlite::Row<'_>) -> rusqlite::Result<Doomed> {
    let (seq, id) = (nat(row.get(0)?), SnapshotId::from_bytes(row.get(1)?));
    Ok(Doomed { seq, id, trace: row.get(2)?, client_request_id: row.get(3)? })
}

fn by_id(transaction: &Transaction<'_>, id: SnapshotId) -> rusqlite::Result<Vec<Doomed>> {
    let sql = "SELECT seq, id, trace_id, client_request_id FROM records WHERE id = ?1";
    transaction.prepare_cached(sql)?.query_map([id.to_bytes()], doomed)?.collect()
}

/// The tenant's among the next `rows` rows, and how far these went.
fn of_tenant(
    transaction: &Transaction<'_>,
    tenant: Tenant,
    done: u64,
    last: u64,
    rows: usize,
) -> rusqlite::Result<(Vec<Doomed>, u64)> {
    let sql = "SELECT seq, id, trace_id, client_request_id, tenant IS ?1 FROM records WHERE seq > ?2 AND seq <= ?3 \
               ORDER BY seq LIMIT ?4";
    let mut statement = transaction.prepare_cached(sql)?;
    let mut found = statement.query((tenant.0, int(done), int(last), rows as i64))?;
    let (mut dooms, mut reached, mut read) = (Vec::new(), last, 0);
    while let Some(row) = found.next()? {
        read += 1;
        if read == rows {
            reached = nat(row.get(0)?);
        }
        if row.get(4)? {
            dooms.push(doomed(row)?);
        }
    }
    Ok((dooms, reached))
}

/// Whether a record with this ID was deleted on request.
pub(super) fn is_erased(connection: &Connection, id: SnapshotId) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM erased WHERE id = ?1")?;
    Ok(statement.query_row([id.to_bytes()], |_| Ok(())).optional()?.is_some())
}

/// IDs below the horizon say nothing more: they have expired. At most `rows` go.
pub(super) fn forget_erased(transaction: &Transaction<'_>, rows: usize, horizon: Horizon) -> rusqlite::Result<usize> {
    let first_kept = SnapshotId::new(horizon.unix_ms.saturating_add(1), InstanceTag(0), 0);
    transaction
        .prepare_cached("DELETE FROM erased WHERE id IN (SELECT id FROM erased WHERE id < ?1 LIMIT ?2)")?
        .execute((first_kept.to_bytes(), rows as i64))
}

impl Reader {
    /// How many of the sequence numbers above `seq` and up to `up_to` were deleted on request.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn erased_seqs(&self, seq: u64, up_to: u64) -> Result<u64, ReadError> {
        self.pool.read(|session| {
            let sql = "SELECT count(*) FROM erased WHERE seq > ?1 AND seq <= ?2";
            let mut statement = session.connection.prepare_cached(sql)?;
            Ok(nat(statement.query_row((int(seq), int(up_to)), |row| row.get(0))?))
        })
    }

    /// The tenants in the store that are shown with these eight digits: hardly ever more than one. Reads all records.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn tenants_shown_as(&self, digits: [u8; 4]) -> Result<Vec<Tenant>, ReadError> {
        let (mut found, mut last) = (Vec::new(), 0);
        loop {
            let more = self.pool.read(|session| {
                let sql = "SELECT seq, tenant FROM records WHERE seq > ?1 ORDER BY seq LIMIT ?2";
                let mut statement = session.connection.prepare_cached(sql)?;
                let mut rows = statement.query((int(last), ROWS_PER_TRANSACTION as i64))?;
                let mut read = 0;
                while let Some(row) = rows.next()? {
                    (read, last) = (read + 1, nat(row.get(0)?));
                    let tenant = row.get::<_, Option<[u8; 32]>>(1)?.filter(|tenant| tenant.starts_with(&digits));
                    if let Some(tenant) = tenant.map(Tenant).filter(|tenant| !found.contains(tenant)) {
                        found.push(tenant);
                    }
                }
                Ok(read == ROWS_PER_TRANSACTION)
            })?;
            if !more {
                return Ok(found);
            }
        }
    }
}

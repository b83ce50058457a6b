//! What is too old or too much is deleted, the oldest first, in slices of about two milliseconds between commits.
//!
//! Each slice moves the horizon in the transaction that deletes, so that what is gone is `expired` and never `unknown`.
//! Whoever writes faster than that waits: where there is too much already, no slice is spared until it is no more than before.
//! So the store never has more than its limit and what one commit adds; only what is too much at the start, because the limit was
//! lowered, goes little by little.
//!
//! Records go in the order of their sequence numbers; with them go their aliases, and the samples, drop counts and runs that
//! nothing refers to any more. Targets go with their run: of a run that goes on all that it ever had stay, a row each.

use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::alias::Alias;
use super::erase::forget_erased;
use super::meta::Horizon;
use super::reader::LOST_AFTER_HEARTBEAT;
use super::row::{int, nat};
use super::shared::sample_floor;
use crate::snapshot::{Moment, SnapshotId};

/// How long one slice may take.
const SLICE: Duration = Duration::from_millis(2);

/// Rows of the first slice; later ones follow what it took.
const ROWS_START: usize = 128;

/// So few rows are deleted even on a slow disk, or retention would never catch up.
const ROWS_MIN: usize = 32;

/// So many are enough on a fast one.
const ROWS_MAX: usize = 4_096;

/// What a record with its entries in the indices takes, about; rather more, so that no slice deletes too many.
const RECORD_BYTES: u64 = 512;

/// Samples deleted for each record: of those that it refers to, most are other records', too.
const SAMPLES_PER_ROW: usize = 4;

/// How often to look for leftovers when no record is to be deleted.
const LEFTOVERS_EVERY: Duration = Duration::from_secs(10);

/// What is to be kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Records issued before this are deleted; zero while the wall clock is not to be trusted.
    pub(super) oldest: Moment,
    /// What may be stored, in bytes.
    pub(super) bytes: u64,
    /// Bytes of a page.
    pub(super) page_bytes: u64,
}

/// Deletes what is beyond the limits.
#[derive(Debug)]
pub(super) struct Retention {
    rows: Rows,
    leftovers_at: Option<Instant>,
    /// Bytes in use after the last run; before the first there is nothing to compare with.
    used_before: u64,
}

impl Retention {
    pub(super) fn new() -> Self {
        Self { rows: Rows::default(), leftovers_at: None, used_before: u64::MAX }
    }

    /// Deletes slice by slice until nothing is left to delete or the budget is spent, which it is not while the store is over
    /// its limit and larger than after the last call. Answers how many records went.
    pub(super) fn run(
        &mut self,
        connection: &mut Connection,
        limits: Limits,
        budget: Duration,
    ) -> rusqlite::Result<u64> {
        let started = Instant::now();
        let most = limits.bytes.max(self.used_before);
        let mut expired = 0;
        loop {
            let used = used_bytes(connection, limits.page_bytes)?;
            let in_time = started.elapsed() < budget;
            self.used_before = used;
            if !in_time && used <= most {
                break;
            }
            let excess = used.saturating_sub(limits.bytes);
            let over = excess > 0;
            let due = oldest_record(connection)?.is_some_and(|issued_at| over || issued_at < limits.oldest);
            if !due && self.leftovers_at.is_some_and(|at| started < at) {
                break;
            }
            let slice = Instant::now();
            // Once the time is up, commits wait anyway, and every transaction less is a gain.
            let (rows, excess) = if in_time { (self.rows.get(), excess) } else { (ROWS_MAX, used - most) };
            let (deleted, more) = self.slice(connection, limits, rows, excess)?;
            expired += deleted;
            if in_time {
                self.rows.adapt(slice.elapsed());
            }
            if !more && deleted == 0 {
                self.leftovers_at = Some(started + LEFTOVERS_EVERY);
            } else {
                self.leftovers_at = None;
            }
        }
        Ok(expired)
    }

    /// One transaction: how many records it deleted, and whether it left something else to delete.
    fn slice(
        &self,
        connection: &mut Connection,
        limits: Limits,
        rows: usize,
        excess: u64,
    ) -> rusqlite::Result<(u64, bool)> {
        // Of a store that is a little too large only a little is deleted, however fast that would be.
        let enough = usize::try_from(excess / RECORD_BYTES).unwrap_or(usize::MAX).max(ROWS_MIN);
        let (over, rows) = if excess > 0 { (true, rows.min(enough)) } else { (false, rows) };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = Horizon::read(&transaction)?;
        let mut horizon = before;
        let deleted = delete_records(&transaction, rows, limits.oldest, over, &mut horizon)?;
        pass_old_drops(&transaction, self.rows.get(), limits.oldest, &mut horizon)?;
        if horizon != before {
            horizon.write(&transaction)?;
        }
        let samples = delete_samples(&transaction, rows.max(self.rows.get()) * SAMPLES_PER_ROW, horizon)?;
        let drops = delete_drops(&transaction, horizon)?;
        let runs = delete_oldest_run(&transaction, self.rows.get(), horizon)?;
        let erased = forget_erased(&transaction, self.rows.get(), horizon)?;
        let more = samples + drops + runs + erased > 0 || horizon != before;
        if more || deleted > 0 {
            transaction.commit()?;
        }
        Ok((deleted, more))
    }
}

/// How many rows a slice takes, so that it lasts about [`SLICE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows(usize);

impl Default for Rows {
    fn default() -> Self {
        Self(ROWS_START)
    }
}

impl Rows {
    pub(super) const fn get(self) -> usize {
        self.0
    }

    /// Follows what a slice took.
    pub(super) fn adapt(&mut self, took: Duration) {
        if took > SLICE {
            self.0 = (self.0 / 2).max(ROWS_MIN);
        } else if took < SLICE / 2 {
            self.0 = (self.0 + self.0 / 4).min(ROWS_MAX);
        }
    }
}

/// Bytes of the pages in use: what retention by size looks at. A file does not shrink; its free pages are used again.
pub(super) fn used_bytes(connection: &Connection, page_bytes: u64) -> rusqlite::Result<u64> {
    let free: i64 = connection.prepare_cached("PRAGMA freelist_count")?.query_row([], |row| row.get(0))?;
    Ok(file_bytes(connection, page_bytes)?.saturating_sub(nat(free) * page_bytes))
}

/// Bytes of the file once the log is taken over.
pub(super) fn file_bytes(connection: &Connection, page_bytes: u64) -> rusqlite::Result<u64> {
    let pages: i64 = connection.prepare_cached("PRAGMA page_count")?.query_row([], |row| row.get(0))?;
    Ok(nat(pages) * page_bytes)
}

fn oldest_record(connection: &Connection) -> rusqlite::Result<Option<Moment>> {
    let mut statement = connection.prepare_cached("SELECT issued_at_unix_us FROM records ORDER BY seq LIMIT 1")?;
    let mut rows = statement.query([])?;
    Ok(match rows.next()? {
        Some(row) => Some(Moment(nat(row.get(0)?))),
        None => None,
    })
}

/// Deletes at most `rows` of the oldest records, with their aliases, and moves the horizon to the last of them.
fn delete_records(
    transaction: &Transaction<'_>,
    rows: usize,
    oldest: Moment,
    over: bool,
    horizon: &mut Horizon,
) -> rusqlite::Result<u64> {
    let mut deleted = 0;
    {
        let mut statement = transaction.prepare_cached(
            "SELECT seq, id, issued_at_unix_us, trace_id, client_request_id FROM records ORDER BY seq LIMIT ?1",
        )?;
        let mut found = statement.query([rows as i64])?;
        while let Some(row) = found.next()? {
            if !over && Moment(nat(row.get(2)?)) >= oldest {
                break;
            }
            let (seq, id) = (nat(row.get(0)?), SnapshotId::from_bytes(row.get(1)?));
            let client: Option<Box<str>> = row.get(4)?;
            Alias::delete_all(transaction, id, seq, row.get(3)?, client.as_deref())?;
            horizon.seq = horizon.seq.max(seq);
            horizon.unix_ms = horizon.unix_ms.max(id.unix_ms());
            deleted += 1;
        }
    }
    if deleted > 0 {
        transaction.prepare_cached("DELETE FROM records WHERE seq <= ?1")?.execute([int(horizon.seq)])?;
    }
    Ok(deleted)
}

/// Where nothing was stored for long, only drop counts are old: the horizon passes them, so that they can go.
fn pass_old_drops(
    transaction: &Transaction<'_>,
    seconds: usize,
    oldest: Moment,
    horizon: &mut Horizon,
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached("SELECT min(second) FROM drops")?;
    let first: Option<i64> = statement.query_row([], |row| row.get(0))?;
    let above = oldest.unix_ms() / 1000;
    if let Some(first) = first.map(nat)
        && first < above
    {
        let passed = above.min(first + seconds as u64);
        horizon.unix_ms = horizon.unix_ms.max(passed * 1000 - 1);
    }
    Ok(())
}

fn delete_samples(transaction: &Transaction<'_>, rows: usize, horizon: Horizon) -> rusqlite::Result<usize> {
    let floor = sample_floor(transaction, horizon.seq)?;
    let deleted = transaction
        .prepare_cached("DELETE FROM samples WHERE sample < min(?1, (SELECT min(sample) FROM samples) + ?2)")?
        .execute((floor, rows as i64))?;
    transaction
        .prepare_cached(
            "DELETE FROM generations WHERE first_seq < (SELECT max(first_seq) FROM generations WHERE first_seq <= ?1)",
        )?
        .execute([int(horizon.seq) + 1])?;
    Ok(deleted)
}

/// Counts of seconds that lie below the horizon whole. As many as one slice of records or of drops has passed.
fn delete_drops(transaction: &Transaction<'_>, horizon: Horizon) -> rusqlite::Result<usize> {
    transaction.prepare_cached("DELETE FROM drops WHERE second < ?1")?.execute([int((horizon.unix_ms + 1) / 1000)])
}

/// A run whose records are gone and whose IDs are all below the horizon says nothing more. Its targets go first.
fn delete_oldest_run(transaction: &Transaction<'_>, rows: usize, horizon: Horizon) -> rusqlite::Result<usize> {
    /// The oldest run that is not the newest, and where the next one begins. A run that was reloaded has several rows.
    const OLDEST: &str = "SELECT a.run, max(a.heartbeat_unix_us, ifnull(a.ended_unix_us, 0)), b.first_seq, b.first_target \
                          FROM runs a JOIN runs b ON b.run > a.run AND b.run_id <> a.run_id ORDER BY a.run, b.run LIMIT 1";
    let mut statement = transaction.prepare_cached(OLDEST)?;
    let mut found = statement.query([])?;
    let Some(row) = found.next()? else { return Ok(0) };
    let (run, alive): (i64, i64) = (row.get(0)?, row.get(1)?);
    let (next_seq, next_target): (i64, i64) = (row.get(2)?, row.get(3)?);
    drop(found);
    let over = Moment(nat(alive)).plus(LOST_AFTER_HEARTBEAT).unix_ms();
    if nat(next_seq) > horizon.seq + 1 || over > horizon.unix_ms {
        return Ok(0);
    }
    let targets = transaction
        .prepare_cached("DELETE FROM targets WHERE target < min(?1, (SELECT min(target) FROM targets) + ?2)")?
        .execute((next_target, rows as i64))?;
    if targets > 0 {
        return Ok(targets);
    }
    transaction.prepare_cached("DELETE FROM runs WHERE run = ?1")?.execute([run])?;
    transaction.prepare_cached("DELETE FROM configs WHERE hash NOT IN (SELECT config FROM runs)")?.execute([])?;
    Ok(1)
}

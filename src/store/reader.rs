//! Questions to the store. Every one blocks: callers in async code ask from a thread that may.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension as _, ToSql};

use super::alias::Alias;
use super::codes::Coded as _;
use super::data_dir::{database_file, is_held};
use super::decode::{self, Known};
use super::encode::COLUMNS;
use super::erase::is_erased;
use super::meta::{self, Horizon, Key};
use super::pool::{self, Pool, Session};
use super::row::{RowError, int, nat};
use super::{DataDir, OpenError, ReadError, Resolution, Writer};
use crate::ledger::DropReason;
use crate::snapshot::id::EPOCH_UNIX_MS;
use crate::snapshot::{InstanceTag, Moment, Record, SnapshotId, TraceId};

/// The most records that a search by trace or by client request ID answers.
pub const MATCHES_MAX: usize = 1_000;

/// An ID from further ahead than this was never issued: no two clocks of ours are so far apart.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// A run's clock is slewed from its start: an ID may seem a little older than its run.
const LOST_BEFORE_START: Duration = Duration::from_secs(1);

/// Heartbeats come each second, so a killed run has ended at most so long after its last one.
pub(super) const LOST_AFTER_HEARTBEAT: Duration = Duration::from_secs(3);

/// A read transaction begins anew after this, well before it could hold up the log.
pub(super) const TRANSACTION_MAX: Duration = Duration::from_millis(50);

/// Time that is spent on one answer that has to look at many rows, and with the last step a little more.
const ANSWER_TIME: Duration = Duration::from_millis(200);

/// Rows a catching-up lane gets in one transaction, at most.
const ROWS_PER_TRANSACTION: usize = 500;

/// Reads the store. Cheap to clone; clones share a few connections.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) pool: Arc<Pool>,
    /// [`ANSWER_TIME`].
    pub(super) answer_time: Duration,
    tag: InstanceTag,
    whose: Whose,
}

/// Who reads.
#[derive(Clone, Debug)]
enum Whose {
    /// The gateway, whose run has this first row.
    Run(i64),
    /// The command line, in this directory: a gateway is alive as long as it holds the directory's lock.
    Outside(Arc<PathBuf>),
}

impl Reader {
    pub(super) fn of_run(dir: &DataDir, writer: &Writer) -> Self {
        let pool = Pool::new(database_file(dir.path()), Some(writer.file()));
        Self { pool: Arc::new(pool), answer_time: ANSWER_TIME, tag: dir.tag(), whose: Whose::Run(writer.run()) }
    }

    /// For the command line: reads the store of a gateway that may be running. Makes nothing.
    ///
    /// # Errors
    /// There is no store, it is another version's, or it cannot be read.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let tag = match DataDir::open_read_only(dir) {
            Ok(dir) => dir.tag(),
            Err(_) if !database_file(dir).exists() => return Err(OpenError::Missing { file: database_file(dir) }),
            Err(error) => return Err(OpenError::DataDir(error)),
        };
        let file = database_file(dir);
        // Found out now rather than at the first question.
        drop(pool::connect(&file)?);
        let whose = Whose::Outside(Arc::new(dir.to_owned()));
        Ok(Self { pool: Arc::new(Pool::new(file, None)), answer_time: ANSWER_TIME, tag, whose })
    }

    /// For tests that want whole answers, however busy the machine is.
    #[cfg(test)]
    pub(crate) fn patient(self) -> Self {
        Self { answer_time: Duration::from_secs(3_600), ..self }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What the store knows of an ID.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn resolve(&self, id: SnapshotId, now: Moment) -> Result<Resolution, ReadError> {
        if !is_possible(id, now) {
            return Ok(Resolution::Unknown);
        }
        if id.instance_tag() != self.tag {
            return Ok(Resolution::IssuedElsewhere);
        }
        self.pool.read(|session| {
            if let Some(record) = by_id(&session.connection, &mut session.known, id)? {
                return Ok(Resolution::Found(record));
            }
            // Asked after the record, so what retention has deleted in between counts as expired.
            let transaction = session.connection.unchecked_transaction()?;
            let answer = self.why_not_found(&transaction, id)?;
            transaction.finish()?;
            Ok(answer)
        })
    }

    /// Whether an ID of which the store knows nothing may be one of a gateway that runs: of a request in flight, or of one that is
    /// not committed yet. Only a reader from outside has to ask: a gateway knows what it has issued.
    pub fn may_be_running(&self, id: SnapshotId, now: Moment) -> bool {
        let Whose::Outside(dir) = &self.whose else { return false };
        is_possible(id, now) && id.instance_tag() == self.tag && is_held(dir)
    }

    /// Records of a trace, newest first, at most `limit` and at most [`MATCHES_MAX`].
    ///
    /// # Errors
    /// The file could not be read.
    pub fn by_trace(&self, trace: TraceId, limit: usize) -> Result<Vec<Arc<Record>>, ReadError> {
        self.pool.read(|session| {
            // A trace that began here has the snapshot's ID and is not entered as an alias.
            let Session { connection, known } = &mut *session;
            let root = by_id(connection, known, SnapshotId::from_u128(trace.as_u128()))?;
            let wanted = |record: &Record| record.issued.trace.trace_id == trace;
            search(session, Alias::of_trace(trace), root.filter(|root| wanted(root)), limit, wanted)
        })
    }

    /// Records that a client gave this ID, newest first, at most `limit` and at most [`MATCHES_MAX`]: it may repeat.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn by_client_request_id(&self, id: &str, limit: usize) -> Result<Vec<Arc<Record>>, ReadError> {
        self.pool.read(|session| {
            let wanted = |record: &Record| record.issued.request.client_request_id.as_deref() == Some(id);
            search(session, Alias::of_client_request_id(id), None, limit, wanted)
        })
    }

    /// Records with sequence numbers above `seq` and up to `up_to`, ascending, at most `limit`: fewer only if there are
    /// no more.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn after(&self, seq: u64, up_to: u64, limit: usize) -> Result<Vec<(u64, Arc<Record>)>, ReadError> {
        self.pool.read(|session| {
            let (mut found, mut last) = (Vec::new(), seq);
            while found.len() < limit {
                let rows = (limit - found.len()).min(ROWS_PER_TRANSACTION);
                let more = read_range(session, (BY_SEQ, bound(last), bound(up_to)), rows, &mut found)?;
                last = found.last().map_or(last, |(seq, _)| *seq);
                if !more {
                    break;
                }
            }
            Ok(found)
        })
    }

    /// Records with IDs above `after` and up to `up_to`, ascending, which is the order of their issue, at most `limit`: fewer
    /// only if there are no more.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn issued(&self, after: SnapshotId, up_to: SnapshotId, limit: usize) -> Result<Vec<Arc<Record>>, ReadError> {
        self.pool.read(|session| {
            let (mut found, mut last) = (Vec::new(), after);
            while found.len() < limit {
                let rows = (limit - found.len()).min(ROWS_PER_TRANSACTION);
                let range = (BY_ID, last.to_bytes(), up_to.to_bytes());
                let more = read_range(session, range, rows, &mut found)?;
                last = found.last().map_or(last, |(_, record)| record.id());
                if !more {
                    break;
                }
            }
            Ok(found.into_iter().map(|(_, record)| record).collect())
        })
    }

    /// The highest ID that is stored, of those up to `up_to`.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn newest_issued(&self, up_to: SnapshotId) -> Result<Option<SnapshotId>, ReadError> {
        const NEWEST: &str = "SELECT id FROM records WHERE id <= ?1 ORDER BY id DESC LIMIT 1";
        self.pool.read(|session| {
            let newest = session.connection.query_row(NEWEST, [up_to.to_bytes()], |row| row.get(0)).optional()?;
            Ok(newest.map(SnapshotId::from_bytes))
        })
    }

    /// About how many records [`Reader::issued`] has for these IDs: by where the first and the last were stored.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn about_issued(&self, after: SnapshotId, up_to: SnapshotId) -> Result<u64, ReadError> {
        const ENDS: &str = "SELECT (SELECT seq FROM records WHERE id > ?1 ORDER BY id LIMIT 1),
            (SELECT seq FROM records WHERE id <= ?2 ORDER BY id DESC LIMIT 1)";
        self.pool.read(|session| {
            let ends = (after.to_bytes(), up_to.to_bytes());
            let ends: (Option<i64>, Option<i64>) =
                session.connection.query_row(ENDS, ends, |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(ends.0.zip(ends.1).map_or(0, |(first, last)| nat(last).saturating_sub(nat(first)) + 1))
        })
    }

    /// How far a lane has come; `None` for one that was never seen.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn cursor(&self, lane: &str) -> Result<Option<u64>, ReadError> {
        self.one("SELECT cursor FROM lanes WHERE name = ?1", lane, |row| Ok(nat(row.get(0)?)))
    }

    /// The highest sequence number that retention has deleted, 0 if none: a lane whose cursor is below it has a gap.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn horizon_seq(&self) -> Result<u64, ReadError> {
        self.pool.read(|session| Ok(meta::get(&session.connection, Key::HorizonSeq)?))
    }

    /// The highest sequence number that is stored, 0 if there is none.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn newest_seq(&self) -> Result<u64, ReadError> {
        const NEWEST: &str = "SELECT ifnull(max(seq), 0) FROM records";
        self.pool.read(|session| Ok(session.connection.query_row(NEWEST, [], |row| Ok(nat(row.get(0)?)))?))
    }

    /// How many of the sequence numbers above `seq` and up to `up_to` no record ever had: a start after a kill skips all that
    /// were reserved. What the killed process had in hand is among them, and so is what retention has deleted across a kill.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn unused_seqs(&self, seq: u64, up_to: u64) -> Result<u64, ReadError> {
        const STARTS: &str = "SELECT r.first_seq, ifnull((SELECT max(seq) FROM records WHERE seq < r.first_seq), 0),
                 ifnull((SELECT p.ended_unix_us IS NOT NULL FROM runs p WHERE p.first_seq < r.first_seq
                         ORDER BY p.first_seq DESC, p.run LIMIT 1), 0)
             FROM runs r WHERE r.first_seq > ?1 + 1 ORDER BY r.run";
        self.pool.read(|session| {
            let horizon = meta::get(&session.connection, Key::HorizonSeq)?;
            let mut statement = session.connection.prepare_cached(STARTS)?;
            let mut rows = statement.query([int(seq)])?;
            let (mut unused, mut floor) = (0, seq.max(horizon));
            while let Some(row) = rows.next()? {
                let (first, stored, ended_cleanly) = (nat(row.get(0)?), nat(row.get(1)?), row.get::<_, bool>(2)?);
                if !ended_cleanly {
                    unused += (first - 1).min(up_to).saturating_sub(stored.max(floor));
                }
                floor = floor.max(first - 1);
            }
            Ok(unused)
        })
    }

    /// The configuration that a record's `gateway.config` names.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn config_text(&self, hash: &str) -> Result<Option<String>, ReadError> {
        self.one("SELECT text FROM configs WHERE hash = ?1", hash, |row| row.get(0))
    }

    fn one<T>(
        &self,
        sql: &str,
        key: &str,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, ReadError> {
        self.pool.read(|session| Ok(session.connection.prepare_cached(sql)?.query_row([key], read).optional()?))
    }

    fn why_not_found(&self, connection: &Connection, id: SnapshotId) -> Result<Resolution, ReadError> {
        if is_erased(connection, id)? {
            return Ok(Resolution::Erased);
        }
        let horizon = Horizon::read(connection)?;
        if id.unix_ms() <= horizon.unix_ms {
            return Ok(Resolution::Expired { horizon: Moment(horizon.unix_ms * 1000 + 999) });
        }
        if let Some(dropped) = dropped(connection, id.unix_ms() / 1000)? {
            return Ok(dropped);
        }
        self.lost(connection, Moment(id.unix_ms() * 1000))
    }

    /// Whether a run that was killed may have issued an ID then.
    fn lost(&self, connection: &Connection, issued: Moment) -> Result<Resolution, ReadError> {
        let mut statement = connection.prepare_cached(
            "SELECT run, started_unix_us, heartbeat_unix_us,
                    run_id = (SELECT run_id FROM runs ORDER BY run DESC LIMIT 1) FROM runs
             WHERE ended_unix_us IS NULL ORDER BY run DESC",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (run, newest): (i64, bool) = (row.get(0)?, row.get(3)?);
            let (run_started, last_heartbeat) = (Moment(nat(row.get(1)?)), Moment(nat(row.get(2)?)));
            let alive = match &self.whose {
                Whose::Run(own) => run == *own,
                Whose::Outside(dir) => newest && is_held(dir),
            };
            let window = run_started.minus(LOST_BEFORE_START)..=last_heartbeat.plus(LOST_AFTER_HEARTBEAT);
            if !alive && window.contains(&issued) {
                return Ok(Resolution::Lost { run_started, last_heartbeat });
            }
        }
        Ok(Resolution::Unknown)
    }
}

/// Whether an ID is of a time at which one can have been issued.
fn is_possible(id: SnapshotId, now: Moment) -> bool {
    (EPOCH_UNIX_MS..=now.plus(AHEAD_MAX).unix_ms()).contains(&id.unix_ms())
}

/// The most frequent reason of a second; a flood's only where there was no other, as [`crate::ledger::Ledger::counted`] has it.
fn dropped(connection: &Connection, second: u64) -> Result<Option<Resolution>, ReadError> {
    let mut statement = connection
        .prepare_cached("SELECT reason, count FROM drops WHERE second = ?1 ORDER BY reason = ?2, count DESC LIMIT 1")?;
    let key = [int(second), DropReason::RefusedFlood.code()];
    let most: Option<(i64, i64)> = statement.query_row(key, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((code, count)) = most else { return Ok(None) };
    // A reason that this binary does not know is a newer binary's: that something was dropped is still the answer.
    let reason = DropReason::from_code(code).unwrap_or(DropReason::StoreFailed);
    Ok(Some(Resolution::Dropped { reason, second: Moment(second * 1_000_000), count: nat(count) }))
}

pub(super) fn by_id(
    connection: &Connection,
    known: &mut Known,
    id: SnapshotId,
) -> Result<Option<Arc<Record>>, ReadError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE id = ?1"))?;
    let mut rows = statement.query([id.to_bytes()])?;
    match rows.next()? {
        Some(row) => Ok(Some(decoded(row, connection, known)?.1)),
        None => Ok(None),
    }
}

pub(super) fn by_seq(connection: &Connection, known: &mut Known, seq: u64) -> Result<Option<Arc<Record>>, ReadError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE seq = ?1"))?;
    let mut rows = statement.query([int(seq)])?;
    match rows.next()? {
        Some(row) => Ok(Some(decoded(row, connection, known)?.1)),
        None => Ok(None),
    }
}

/// Above one key and up to another.
const BY_SEQ: &str = "WHERE seq > ?1 AND seq <= ?2 ORDER BY seq";
const BY_ID: &str = "WHERE id > ?1 AND id <= ?2 ORDER BY id";

/// SQLite's largest number is half of ours, and no sequence number comes near either.
fn bound(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// One transaction's worth of a range; answers whether there may be more.
fn read_range(
    session: &mut Session,
    (range, above, up_to): (&str, impl ToSql, impl ToSql),
    limit: usize,
    found: &mut Vec<(u64, Arc<Record>)>,
) -> Result<bool, ReadError> {
    let Session { connection, known } = session;
    let sql = format!("SELECT {COLUMNS} FROM records {range} LIMIT ?3");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query((above, up_to, limit as i64))?;
    let (started, mut read) = (Instant::now(), 0);
    while let Some(row) = rows.next()? {
        found.push(decoded(row, connection, known)?);
        read += 1;
        if started.elapsed() > TRANSACTION_MAX {
            return Ok(true);
        }
    }
    Ok(read == limit)
}

/// Reads what an alias leads to, newest first; `first` is a match that needs no alias.
fn search(
    session: &mut Session,
    alias: Alias,
    first: Option<Arc<Record>>,
    limit: usize,
    wanted: impl Fn(&Record) -> bool,
) -> Result<Vec<Arc<Record>>, ReadError> {
    let limit = limit.min(MATCHES_MAX);
    let Session { connection, known } = session;
    let mut found = Vec::new();
    for seq in alias.search(connection, MATCHES_MAX)? {
        // Between the two reads retention may have deleted it; and another name may have the same hash.
        if let Some(record) = by_seq(connection, known, seq)?.filter(|record| wanted(record)) {
            found.push(record);
        }
        if found.len() == limit {
            break;
        }
    }
    found.extend(first);
    found.sort_unstable_by_key(|record| std::cmp::Reverse(record.id()));
    found.truncate(limit);
    Ok(found)
}

fn decoded(
    row: &rusqlite::Row<'_>,
    connection: &Connection,
    known: &mut Known,
) -> Result<(u64, Arc<Record>), ReadError> {
    match decode::record(row, connection, known) {
        Ok((seq, record)) => Ok((seq, Arc::new(record))),
        Err(error) => Err(failure(error, nat(row.get(0)?))),
    }
}

/// Why the record with a sequence number cannot be read.
pub(super) fn failure(error: RowError, seq: u64) -> ReadError {
    match error {
        RowError::Sqlite(error) => ReadError::Sqlite(error),
        RowError::Corrupt(what) => ReadError::Corrupt { seq, what },
    }
}

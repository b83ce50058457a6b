//! The one connection that writes. It belongs to the pipeline's worker, which commits batches and, between them, lets it
//! look after itself.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, ffi};

use super::alias::Alias;
use super::ballast::Ballast;
use super::begin::{Begun, SEQ_RESERVE, begin_run, reserve};
use super::checkpoint::{Bounds, Checkpointer, FULL_HOLD_MAX, HOLD_MAX, Overflow, Site, refused};
use super::codes::Coded as _;
use super::data_dir::{ballast_file, database_file, make_file};
use super::encode::{Encoder, insert_sql};
use super::meta::Key;
use super::retention::{self, Limits, Retention};
use super::room::Room;
use super::row::int;
use super::shared::Shared;
use super::wal;
use super::{CommitError, DataDir, DropCount, Durability, OpenError, Settings, schema};
use crate::snapshot::{Moment, Record, Run};

/// How long a transaction waits for somebody else's: nobody else should write, but an operator's shell may.
pub(super) const BUSY_WAIT: Duration = Duration::from_millis(250);

/// Page cache of the writer: the upper levels of every index and the ends that are written.
const CACHE_KIB: i64 = 16 * 1024;

/// Page cache of the checkpoint's connection, which reads no tables.
const CHECKPOINT_CACHE_KIB: i64 = 64;

/// While the disk is full, how often to look for space.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// The store's one writer.
#[derive(Debug)]
pub struct Writer {
    /// First, so that its thread has ended when the last connection is closed.
    checkpointer: Checkpointer,
    connection: Connection,
    settings: Settings,
    /// The first row of this run, which says whether it lives; those above it are the same run after reloads.
    run: i64,
    insert: String,
    encoder: Encoder,
    shared: Shared,
    next_seq: u64,
    reserved_seq: u64,
    page_bytes: u64,
    wal_bytes: u64,
    store_bytes: u64,
    retention: Retention,
    ballast: Ballast,
    room: Room,
    /// The disk bounds the store, not `retention_bytes`.
    cramped: bool,
    look_for_space_at: Option<Instant>,
    /// A transaction is under way, or a panic has ended it.
    in_transaction: bool,
    /// The last transaction's failure, in words for `/readyz`.
    trouble: Option<String>,
}

/// What [`Writer::maintain`] did and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// Bytes of the store's file.
    pub store_bytes: u64,
    /// Bytes of the log that readers may still need; its file may be larger.
    pub wal_bytes: u64,
    /// Bytes of the reserve; 0 while it is given back.
    pub ballast_bytes: u64,
    /// Records that were deleted by this call.
    pub expired: u64,
    /// How long commits and heartbeats since the last call were held back, so that the log could begin anew.
    pub held_back: Duration,
    /// Why the gateway should not count as ready, and what to do about it.
    pub problem: Option<String>,
}

impl Writer {
    pub(super) fn open(dir: &DataDir, settings: Settings, run: &Run, now: Moment) -> Result<Self, OpenError> {
        let file = database_file(dir.path());
        let failed = |source| OpenError::Sqlite { file: file.clone(), source };
        // SQLite would make it for everybody to read.
        make_file(&file, false).map_err(|error| failed(refused(&error, ffi::SQLITE_CANTOPEN)))?;
        let mut ballast = Ballast::new(ballast_file(dir.path()), settings.ballast_bytes);
        let mut connection = match connect(&file, settings.durability) {
            // A full disk must not keep a gateway from starting: that is what the ballast is for.
            Err(OpenError::Sqlite { source, .. }) if is_full(&source) => {
                ballast.release();
                connect(&file, settings.durability)?
            }
            answer => answer?,
        };
        let begun = match begin_run(&mut connection, run, now) {
            Err(error) if is_full(&error) => {
                ballast.release();
                // Spent before the last process ended, perhaps. Then the log it left has room that it needs no more; what
                // fails here shows itself in what comes next.
                wal::restart(&connection).ok();
                begin_run(&mut connection, run, now)
            }
            answer => answer,
        };
        let Begun { row, next_seq, reserved_seq } = begun.map_err(failed)?;
        if !ballast.is_spent()
            && let Err(error) = ballast.restore()
        {
            tracing::warn!(%error, bytes = ballast.bytes(), "no space for the store's ballast: a full disk will not be survived as well");
        }
        let page_bytes = wal::page_bytes(&connection).map_err(failed)?;
        // What a reader has made larger is made as small again when the log begins anew.
        wal::limit(&connection, settings.wal_max_bytes).map_err(failed)?;
        Ok(Self {
            checkpointer: start_checkpointer(&file, &settings, page_bytes)?,
            run: row,
            insert: insert_sql(),
            encoder: Encoder::default(),
            shared: Shared::start(&connection, row, run).map_err(failed)?,
            next_seq,
            reserved_seq,
            page_bytes,
            wal_bytes: 0,
            store_bytes: 0,
            retention: Retention::new(),
            ballast,
            room: Room::new(dir.path().to_owned(), settings.ballast_bytes + 2 * settings.wal_checkpoint_bytes),
            cramped: false,
            look_for_space_at: None,
            in_transaction: false,
            trouble: None,
            connection,
            settings,
        })
    }

    /// The store's file, for the reader to keep open: see [`Site`].
    pub(super) fn file(&self) -> Arc<File> {
        self.checkpointer.file()
    }

    /// The run's row: the reader knows by it that the run is alive.
    pub(super) fn run(&self) -> i64 {
        self.run
    }

    /// The next record's sequence number. No number below it is ever given out again, whatever became of its record.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Stores records under the sequence numbers from `first_seq` on, the lanes' cursors and counts of what was dropped, in
    /// one transaction. A record whose ID is stored already stays as it is. The numbers are used up even on failure.
    ///
    /// # Errors
    /// Nothing was stored; the next call may succeed. Without space, calls fail at once until [`Writer::maintain`] has
    /// found some.
    pub fn commit(
        &mut self,
        first_seq: u64,
        records: &[Arc<Record>],
        cursors: &[(&str, u64)],
        drops: &[DropCount],
        now: Moment,
    ) -> Result<(), CommitError> {
        self.next_seq = self.next_seq.max(first_seq + records.len() as u64);
        if self.ballast.is_spent() {
            return Err(CommitError::DiskFull);
        }
        self.checkpointer.let_finish();
        if self.in_transaction {
            // A panic took back the rows that it stored.
            self.shared.forget();
        }
        self.in_transaction = true;
        let answer = self.transaction(first_seq, records, cursors, drops, now);
        self.in_transaction = false;
        if answer.is_err() {
            self.shared.forget();
        }
        self.judge(answer)
    }

    /// A transaction of another kind, judged like a commit.
    pub(super) fn transact<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, CommitError> {
        self.checkpointer.let_finish();
        let mut done = None;
        let answer =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
                done = Some(work(&transaction)?);
                transaction.commit()
            });
        self.judge(answer)?;
        Ok(done.expect("it was put there before the commit"))
    }

    /// Whether pages that become free from now on are overwritten with zeros, too, which costs a write for each.
    pub(super) fn overwrite_freed(&self, on: bool) -> Result<(), CommitError> {
        self.connection.pragma_update(None, "secure_delete", if on { "ON" } else { "FAST" }).map_err(CommitError::Other)
    }

    /// Notes that the run is alive; to be called each second. What is not stored when the process dies is `lost` up to
    /// a few seconds after the last call.
    ///
    /// # Errors
    /// It was not noted; the next call may succeed.
    pub fn heartbeat(&mut self, now: Moment) -> Result<(), CommitError> {
        self.checkpointer.let_finish();
        let answer = self.beat(now);
        self.judge(answer)
    }

    /// What is to be done between transactions: has the log taken over when there is enough of it, deletes by retention for
    /// at most about `budget`, and while the disk was full looks for space. `wall_stepped` suspends retention by age.
    pub fn maintain(&mut self, now: Moment, wall_stepped: bool, budget: Duration) -> Maintenance {
        self.checkpointer.let_finish();
        let looks_for_space = self.ballast.is_spent() && self.look_for_space_at.is_none_or(|at| Instant::now() >= at);
        // Space is looked for after the log was taken over into what the ballast has left free.
        let made_room = looks_for_space && self.make_room();
        let expired = self.expire(now, wall_stepped, budget).unwrap_or_else(|error| {
            let _judged = self.judge(Err(error));
            0
        });
        if made_room {
            self.look_for_space();
        }
        // What cannot be found out now is as it was.
        if let Ok(bytes) = retention::file_bytes(&self.connection, self.page_bytes) {
            self.store_bytes = bytes;
        }
        // Last, because the next transaction may be held back from here on.
        self.keep_log_small();
        Maintenance {
            store_bytes: self.store_bytes,
            wal_bytes: self.wal_bytes,
            ballast_bytes: if self.ballast.is_spent() { 0 } else { self.ballast.bytes() },
            expired,
            held_back: self.checkpointer.take_held(),
            problem: self.problem(),
        }
    }

    /// Marks the run as ended cleanly and takes the whole log over. What fails is logged: the run then counts as killed.
    pub fn close(self, now: Moment) {
        drop(self.checkpointer);
        let ended = self.connection.execute(
            "UPDATE runs SET heartbeat_unix_us = ?1, ended_unix_us = ?1 WHERE run = ?2",
            (int(now.0), self.run),
        );
        let given_back = self
            .connection
            .execute("UPDATE meta SET value = ?1 WHERE key = ?2", (int(self.next_seq), Key::ReservedSeq.name()));
        if let Err(error) = ended.and(given_back).and_then(|_| wal::truncate(&self.connection)) {
            tracing::warn!(%error, "the store was not closed cleanly: what was committed is safe");
        }
    }

    /// For tests in which what a commit waits for comes as late as it comes.
    #[cfg(test)]
    pub(super) fn checkpoint_bounds(&mut self) -> &mut Bounds {
        self.checkpointer.bounds()
    }

    /// For tests that make the checkpoint slow or end its thread.
    #[cfg(test)]
    pub(super) fn checkpoint_hook(&self) -> super::checkpoint::Hook {
        self.checkpointer.hook()
    }

    /// For tests that have no small disk.
    #[cfg(test)]
    pub(super) fn pretend_free(&mut self, bytes: u64) {
        self.room.pretend(bytes);
    }

    /// For tests that look at the file as the writer sees it, or keep it from growing.
    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    fn transaction(
        &mut self,
        first_seq: u64,
        records: &[Arc<Record>],
        cursors: &[(&str, u64)],
        drops: &[DropCount],
        now: Moment,
    ) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !records.is_empty() {
            self.shared.begin_batch(&transaction, first_seq, now)?;
            let mut insert = transaction.prepare_cached(&self.insert)?;
            for (seq, record) in (first_seq..).zip(records) {
                self.encoder.insert(&mut insert, &transaction, &mut self.shared, seq, record)?;
                for alias in Alias::all_of(&record.issued).into_iter().flatten() {
                    alias.insert(&transaction, record.id(), seq)?;
                }
            }
        }
        for (lane, cursor) in cursors {
            transaction
                .prepare_cached("INSERT INTO lanes (name, cursor) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET cursor = excluded.cursor")?
                .execute((lane, int(*cursor)))?;
        }
        for drop in drops {
            transaction
                .prepare_cached("INSERT INTO drops (second, reason, count) VALUES (?1, ?2, ?3) ON CONFLICT (second, reason) DO UPDATE SET count = count + excluded.count")?
                .execute((int(drop.second), drop.reason.code(), int(drop.count)))?;
        }
        let reserved_seq = reserve(&transaction, self.next_seq, self.reserved_seq, 0)?;
        transaction.commit()?;
        self.reserved_seq = reserved_seq;
        Ok(())
    }

    fn beat(&mut self, now: Moment) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction
            .prepare_cached("UPDATE runs SET heartbeat_unix_us = max(heartbeat_unix_us, ?1) WHERE run = ?2")?
            .execute((int(now.0), self.run))?;
        let reserved_seq = reserve(&transaction, self.next_seq, self.reserved_seq, SEQ_RESERVE / 2)?;
        transaction.commit()?;
        self.reserved_seq = reserved_seq;
        Ok(())
    }

    fn expire(&mut self, now: Moment, wall_stepped: bool, budget: Duration) -> rusqlite::Result<u64> {
        let oldest = if wall_stepped { Moment(0) } else { now.minus(self.settings.retention_age) };
        self.room.look();
        // While nothing can be stored, there is nothing to make room for.
        let bounded = !self.ballast.is_spent();
        let file_bytes = retention::file_bytes(&self.connection, self.page_bytes)?;
        let room = self.room.limit(file_bytes).filter(|_| bounded);
        let wanted = self.settings.retention_bytes;
        self.cramped = room.is_some_and(|room| room < wanted && room <= file_bytes);
        let limits = Limits { oldest, bytes: room.unwrap_or(wanted).min(wanted), page_bytes: self.page_bytes };
        self.retention.run(&mut self.connection, limits, budget)
    }

    fn keep_log_small(&mut self) {
        match self.checkpointer.keep_small(&self.connection) {
            Ok(extent) => self.wal_bytes = extent.bytes(self.page_bytes),
            // A full disk shows itself here as often as in a commit. The outcome is kept for `problem`; the next call tries again.
            Err(error) => {
                let _judged = self.judge(Err(error));
            }
        }
    }

    /// Takes the log over while commits are refused; whether space can be looked for now.
    fn make_room(&mut self) -> bool {
        match self.checkpointer.take_over_here(&self.connection) {
            Ok(tried) => tried,
            Err(error) => {
                // Retention may make room yet.
                let _judged = self.judge(Err(error));
                true
            }
        }
    }

    fn look_for_space(&mut self) {
        self.look_for_space_at = Some(Instant::now() + FULL_RETRY);
        // `trouble` stays until a transaction succeeds: there is space for the reserve, and perhaps for nothing else.
        let mut restored = self.ballast.restore();
        // The log's file keeps its size when it begins anew: all of it was taken over, so that room can be given back. If a reader
        // is in the way, the next look tries again.
        if restored.is_err() && wal::shrink(&self.connection, self.settings.wal_max_bytes).is_ok() {
            restored = self.ballast.restore();
        }
        tracing::debug!(?restored, "looked for space on the store's disk");
    }

    /// Remembers what came of a transaction, and frees the ballast if the disk is full.
    fn judge(&mut self, answer: rusqlite::Result<()>) -> Result<(), CommitError> {
        match answer {
            Ok(()) => {
                // A heartbeat needs little: while the ballast is spent, its success proves nothing.
                if !self.ballast.is_spent() {
                    self.trouble = None;
                }
                Ok(())
            }
            Err(error) if is_full(&error) => {
                self.ballast.release();
                self.trouble = Some(CommitError::DiskFull.to_string());
                Err(CommitError::DiskFull)
            }
            Err(error) => {
                self.trouble = Some(format!("the store refused a transaction: {error}: look at its file and its disk"));
                Err(CommitError::Other(error))
            }
        }
    }

    fn problem(&self) -> Option<String> {
        let log = self.checkpointer.overflow().map(|overflow| {
            let why = match overflow {
                Overflow::Reader => {
                    "because another program keeps a read transaction open on the store: end that program (sqlite3, a \
                     backup), for the log grows as long as it reads"
                }
                Overflow::Disk => {
                    "because its disk is slower than what is written to it, and commits wait for it: give the data \
                     directory a faster disk, or the gateway fewer requests"
                }
            };
            let (mib, max_mib) = (self.wal_bytes >> 20, self.settings.wal_max_bytes >> 20);
            format!("the store's log has {mib} MiB, more than store.wal_max_bytes ({max_mib} MiB), {why}")
        });
        let disk = self.cramped.then(|| {
            format!(
                "the store's disk has {} MiB left: the oldest records are deleted so that the newest fit, sooner than \
                 store.retention_age and store.retention_bytes say: make space, or lower store.retention_bytes",
                self.room.free() >> 20
            )
        });
        self.trouble.clone().or_else(|| self.checkpointer.trouble().map(str::to_owned)).or(log).or(disk)
    }
}

fn connect(file: &Path, durability: Durability) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Sqlite { file: file.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_WAIT).map_err(failed)?;
    schema::migrate(&mut connection, file, schema::MIGRATIONS)?;
    tune(&connection, durability, CACHE_KIB).map_err(failed)?;
    Ok(connection)
}

/// Another connection to a store that is open already, for taking its log over.
pub(super) fn connect_again(file: &Path, durability: Durability) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY_WAIT)?;
    tune(&connection, durability, CHECKPOINT_CACHE_KIB)?;
    // Opens the log: without a first read there is none for this connection.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

fn tune(connection: &Connection, durability: Durability, cache_kib: i64) -> rusqlite::Result<()> {
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    schema::prepare(connection, cache_kib)?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    // What is deleted within a page, or moved out of it, is overwritten there, which costs no write. Without this a page
    // that was split keeps old copies of its rows, which no deletion would ever find. For freed pages see `erase.rs`.
    connection.pragma_update(None, "secure_delete", "FAST")?;
    // The log is taken over by a thread of its own, see `checkpoint.rs`.
    connection.pragma_update(None, "wal_autocheckpoint", 0)
}

fn start_checkpointer(path: &Path, settings: &Settings, page_bytes: u64) -> Result<Checkpointer, OpenError> {
    let failed = |source| OpenError::Sqlite { file: path.to_owned(), source };
    let bounds = Bounds {
        page_bytes,
        from_bytes: settings.wal_checkpoint_bytes,
        max_bytes: settings.wal_max_bytes,
        hold_max: HOLD_MAX,
        full_hold_max: FULL_HOLD_MAX,
    };
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| failed(refused(&error, ffi::SQLITE_CANTOPEN)))?;
    let site = Site { path: path.to_owned(), durability: settings.durability, file: Arc::new(file) };
    Checkpointer::start(bounds, site).map_err(failed)
}

/// Whether the disk is full. Where it has no room for the log's index, SQLite says so in other words.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

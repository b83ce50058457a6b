//! What records share: targets, samples and the configurations of a run, stored when a record first refers to them.
//!
//! A sample's row is used for a generation of at most half a minute and by the one that follows at once, then the state is
//! stored again. So records from a generation's first on refer only to rows from the generation before it on, and retention can
//! delete what is older without asking any record. Counted in rows, not in time: a clock that steps does no harm.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use rusqlite::Connection;

use super::readings::exact;
use super::row::{Binder, int, nat};
use crate::snapshot::{GpuUuids, Moment, Run, Sample, Target};

/// How long a sample's row is used before a new generation begins; the next one may still use it.
const GENERATION: Duration = Duration::from_secs(30);

/// Samples remembered in one generation: a larger fleet begins a new one sooner, so memory is bounded to a few megabytes.
const GENERATION_SAMPLES_MAX: usize = 32_768;

/// Targets remembered. A run with more targets than this over its life stores some of them twice.
const TARGETS_MAX: usize = 65_536;

/// Descriptions of one target that are remembered at a time: records of before a change end after it, among those of after it.
const DESCRIPTIONS_MAX: usize = 4;

/// The rows that the writer knows of.
#[derive(Debug)]
pub(super) struct Shared {
    /// The run's first row, and the hash of the configuration it was started with.
    run: (i64, Box<str>),
    /// The run's rows by their configurations.
    runs: HashMap<Box<str>, i64>,
    /// By slot.
    targets: HashMap<u32, ArrayVec<Described, DESCRIPTIONS_MAX>>,
    next_target: i64,
    current: Generation,
    previous: Generation,
    next_sample: i64,
}

/// A row of `targets`.
#[derive(Debug)]
struct Described {
    target: Arc<Target>,
    gpu_uuids: Option<GpuUuids>,
    row: i64,
}

impl Described {
    fn is_of(&self, target: &Arc<Target>) -> bool {
        Arc::ptr_eq(&self.target, target) || self.target == *target
    }

    /// The lists are long and hardly ever others, so that the same list is told by its place.
    fn has(&self, gpu_uuids: Option<&GpuUuids>) -> bool {
        match (&self.gpu_uuids, gpu_uuids) {
            (Some(known), Some(uuids)) => Arc::ptr_eq(known, uuids) || known == uuids,
            (known, uuids) => known.is_none() && uuids.is_none(),
        }
    }
}

#[derive(Debug, Default)]
struct Generation {
    /// `None` before its first batch.
    began: Option<Moment>,
    /// The lowest row it can have stored.
    floor: i64,
    /// By target row and the sample's number.
    rows: HashMap<(i64, u64), i64>,
}

impl Shared {
    /// For a run's start: knows of no row, and numbers new ones above all that were ever stored.
    pub(super) fn start(connection: &Connection, row: i64, run: &Run) -> rusqlite::Result<Self> {
        let next_sample = next_sample(connection)?;
        let mut shared = Self {
            run: (row, run.config.clone()),
            runs: HashMap::new(),
            targets: HashMap::new(),
            next_target: next_target(connection)?,
            current: Generation::default(),
            previous: Generation::default(),
            next_sample,
        };
        shared.forget();
        Ok(shared)
    }

    /// A transaction failed, and with it the rows it stored. The numbers are not used again.
    pub(super) fn forget(&mut self) {
        self.runs.clear();
        self.targets.clear();
        self.current = Generation { floor: self.next_sample, ..Generation::default() };
        self.previous = Generation { floor: self.next_sample, ..Generation::default() };
    }

    /// To be called before the records of a batch: begins a new generation if it is time.
    pub(super) fn begin_batch(&mut self, connection: &Connection, first_seq: u64, now: Moment) -> rusqlite::Result<()> {
        let young = self.current.began.is_some_and(|began| now.since(began) < GENERATION);
        if young && self.current.rows.len() < GENERATION_SAMPLES_MAX {
            return Ok(());
        }
        let next = Generation { began: Some(now), floor: self.next_sample, rows: HashMap::new() };
        self.previous = mem::replace(&mut self.current, next);
        // After a pause the last rows are older than two generations would be.
        if self.previous.began.is_none_or(|began| now.since(began) >= 2 * GENERATION) {
            self.previous = Generation { floor: self.next_sample, ..Generation::default() };
        }
        let mut statement = connection
            .prepare_cached("INSERT OR REPLACE INTO generations (first_seq, sample_floor) VALUES (?1, ?2)")?;
        statement.execute((int(first_seq), self.previous.floor))?;
        Ok(())
    }

    /// The row of the run under the configuration that a record was made with. After a reload it is another row, which says
    /// the same of the run otherwise. It counts as ended from the start, so that only the first one says whether the run lives
    /// and needs a heartbeat, however often the configuration has changed.
    pub(super) fn run(&mut self, connection: &Connection, run: &Run) -> rusqlite::Result<i64> {
        let (first, started_with) = &self.run;
        if run.config == *started_with {
            return Ok(*first);
        }
        if let Some(row) = self.runs.get(&run.config) {
            return Ok(*row);
        }
        keep_config(connection, run)?;
        connection.execute(
            "INSERT INTO runs (run_id, instance, instance_tag, version, config, started_unix_us, heartbeat_unix_us,
                               ended_unix_us, first_seq, first_target)
             SELECT run_id, instance, instance_tag, version, ?2, started_unix_us, heartbeat_unix_us,
                    heartbeat_unix_us, first_seq, first_target
             FROM runs WHERE run = ?1",
            (first, &*run.config),
        )?;
        let row = connection.last_insert_rowid();
        self.runs.insert(run.config.clone(), row);
        Ok(row)
    }

    /// The row of a target, which is stored if it is not known, or not as it is now. Which GPUs it had then is said elsewhere.
    pub(super) fn target(&mut self, connection: &Connection, target: &Arc<Target>) -> rusqlite::Result<i64> {
        match self.described(target, |_| true) {
            Some(row) => Ok(row),
            None => self.describe(connection, target, None),
        }
    }

    fn described(&self, target: &Arc<Target>, with: impl Fn(&Described) -> bool) -> Option<i64> {
        let known = self.targets.get(&target.slot)?.iter().rev();
        known.into_iter().find(|known| known.is_of(target) && with(known)).map(|known| known.row)
    }

    fn describe(
        &mut self,
        connection: &Connection,
        target: &Arc<Target>,
        gpu_uuids: Option<&GpuUuids>,
    ) -> rusqlite::Result<i64> {
        let row = self.next_target;
        let mut statement = connection.prepare_cached(
            "INSERT INTO targets (target, run, slot, name, address, gpus, gpu_uuids, place) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        let uuids = gpu_uuids.map(|uuids| serde_json::to_string(uuids).expect("texts are JSON"));
        let place = target.place.as_deref().map(|place| serde_json::to_string(place).expect("texts are JSON"));
        let (name, address) = (&*target.name, &*target.address);
        statement.execute((row, self.run.0, target.slot, name, address, target.gpus, uuids, place))?;
        self.next_target += 1;
        if self.targets.len() >= TARGETS_MAX {
            self.targets.clear();
        }
        let known = self.targets.entry(target.slot).or_default();
        if known.is_full() {
            known.remove(0);
        }
        known.push(Described { target: Arc::clone(target), gpu_uuids: gpu_uuids.cloned(), row });
        Ok(row)
    }

    /// The row of a sample, which is stored if this generation and the one before did not.
    pub(super) fn sample(&mut self, connection: &Connection, sample: &Sample) -> rusqlite::Result<i64> {
        let gpu_uuids = sample.gpu_uuids.as_ref();
        let target = match self.described(&sample.target, |known| known.has(gpu_uuids)) {
            Some(row) => row,
            None => self.describe(connection, &sample.target, gpu_uuids)?,
        };
        let key = (target, sample.n);
        if let Some(row) = self.current.rows.get(&key).or_else(|| self.previous.rows.get(&key)) {
            return Ok(*row);
        }
        let row = self.next_sample;
        insert_sample(connection, row, target, sample)?;
        self.next_sample += 1;
        self.current.rows.insert(key, row);
        Ok(row)
    }
}

/// Keeps the text of a run's configuration under its hash.
pub(super) fn keep_config(connection: &Connection, run: &Run) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("INSERT OR IGNORE INTO configs (hash, text) VALUES (?1, ?2)")?;
    statement.execute((&*run.config, &*run.config_text))?;
    Ok(())
}

fn insert_sample(connection: &Connection, row: i64, target: i64, sample: &Sample) -> rusqlite::Result<()> {
    /// One `?` a column of `samples`: six, four for each of eight quantities, and the last two.
    const INSERT: &str = "INSERT INTO samples VALUES (?,?,?,?,?,?, ?,?,?,?, ?,?,?,?, ?,?,?,?, ?,?,?,?, ?,?,?,?, ?,?,?,?, \
                          ?,?,?,?, ?,?,?,?, ?,?)";
    let mut statement = connection.prepare_cached(INSERT)?;
    let mut binder = Binder::new(&mut statement);
    binder.value(row)?;
    binder.value(target)?;
    binder.int(sample.n)?;
    binder.int(sample.published.0)?;
    binder.code(sample.health)?;
    binder.value(sample.window_ms)?;
    for reading in &sample.readings {
        let observed = Some(reading.observed).filter(|observed| *observed != Moment(0));
        binder.value(reading.value)?;
        binder.int_or_null(observed.map(|observed| sample.published.0.wrapping_sub(observed.0)))?;
        binder.code_or_null(reading.source)?;
        binder.code(reading.freshness)?;
    }
    binder.value(exact(&sample.readings))?;
    binder.value(sample.in_flight_at_scrape)?;
    binder.run()?;
    Ok(())
}

/// Above every row that is there and every row that a generation said might be: retention may have deleted the newest.
fn next_sample(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row(
        "SELECT max(ifnull((SELECT max(sample) FROM samples), 0) + 1,
                    ifnull((SELECT max(sample_floor) FROM generations), 1))",
        [],
        |row| row.get(0),
    )
}

/// Above every row that is there. Retention deletes a run's targets with its records, so no record can be misled.
pub(super) fn next_target(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT ifnull(max(target), 0) + 1 FROM targets", [], |row| row.get(0))
}

/// From here on samples are referred to by records above the sequence number `deleted`.
pub(super) fn sample_floor(connection: &Connection, deleted: u64) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached("SELECT max(sample_floor) FROM generations WHERE first_seq <= ?1")?;
    statement.query_row([int(nat(int(deleted)) + 1)], |row| Ok(row.get::<_, Option<i64>>(0)?.unwrap_or(0)))
}

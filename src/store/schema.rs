//! The tables, their versions and how a file of an earlier version is brought up to date.
//!
//! `records` is compact: names are numbers (`codes.rs`), targets, runs and samples are referred to by row. People read the
//! views (`views.rs`), which show names; `rest` holds what nobody filters by (`rest.rs`).

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::OpenError;
use super::views;

/// Marks the file as ours, for `file(1)` and against a wrong path: "snap" in ASCII.
pub(super) const APPLICATION_ID: i64 = 0x736e_6170;

/// A record takes some 350 bytes: in pages of 8 KiB fewer of them are wasted at a page's end than in SQLite's usual 4 KiB,
/// and an index entry still does not make much more than itself be written.
const PAGE_BYTES: u32 = 8192;

/// What brings a file from version n to n + 1 stands at place n. Append only: a released entry is never edited.
pub(super) const MIGRATIONS: &[&str] = &[VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6];

const VERSION_1: &str = "
-- Single numbers: see `meta.rs` for the keys.
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

-- The configurations that runs were started with.
CREATE TABLE configs (hash TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;

-- One row a process run. `ended_unix_us` is NULL while it runs, and for ever if it was killed. Records of the run have
-- `seq >= first_seq`, its targets `target >= first_target`; those of the next run are above.
CREATE TABLE runs (
    run INTEGER PRIMARY KEY, run_id INTEGER NOT NULL, instance TEXT NOT NULL, instance_tag INTEGER NOT NULL,
    version TEXT NOT NULL, config TEXT NOT NULL, started_unix_us INTEGER NOT NULL, heartbeat_unix_us INTEGER NOT NULL,
    ended_unix_us INTEGER, first_seq INTEGER NOT NULL, first_target INTEGER NOT NULL
);

-- A target as it was described at some time in a run.
CREATE TABLE targets (
    target INTEGER PRIMARY KEY, run INTEGER NOT NULL, slot INTEGER NOT NULL, name TEXT NOT NULL, address TEXT NOT NULL,
    gpus INTEGER
);

-- A target's published state, once for all decisions that saw it in the half minute after it was first stored.
-- `_age_us` is from observation to publication, NULL if never observed. `exact`: see `readings.rs`.
CREATE TABLE samples (
    sample INTEGER PRIMARY KEY, target INTEGER NOT NULL, n INTEGER NOT NULL, published_unix_us INTEGER NOT NULL,
    health INTEGER NOT NULL, window_ms INTEGER NOT NULL,
    waiting REAL, waiting_age_us INTEGER, waiting_source INTEGER, waiting_freshness INTEGER NOT NULL,
    running REAL, running_age_us INTEGER, running_source INTEGER, running_freshness INTEGER NOT NULL,
    kv_cache_usage REAL, kv_cache_usage_age_us INTEGER, kv_cache_usage_source INTEGER,
    kv_cache_usage_freshness INTEGER NOT NULL,
    prefix_cache_hit_ratio REAL, prefix_cache_hit_ratio_age_us INTEGER, prefix_cache_hit_ratio_source INTEGER,
    prefix_cache_hit_ratio_freshness INTEGER NOT NULL,
    gpu_utilization REAL, gpu_utilization_age_us INTEGER, gpu_utilization_source INTEGER,
    gpu_utilization_freshness INTEGER NOT NULL,
    gpu_memory_utilization REAL, gpu_memory_utilization_age_us INTEGER, gpu_memory_utilization_source INTEGER,
    gpu_memory_utilization_freshness INTEGER NOT NULL,
    engine_requests_per_second REAL, engine_requests_per_second_age_us INTEGER,
    engine_requests_per_second_source INTEGER, engine_requests_per_second_freshness INTEGER NOT NULL,
    engine_tokens_per_second REAL, engine_tokens_per_second_age_us INTEGER, engine_tokens_per_second_source INTEGER,
    engine_tokens_per_second_freshness INTEGER NOT NULL,
    exact BLOB
);

-- Records from `first_seq` on refer to samples from `sample_floor` on: what retention needs to know to delete samples.
CREATE TABLE generations (first_seq INTEGER PRIMARY KEY, sample_floor INTEGER NOT NULL);

-- One row a request, in the order of their ends. `trace_id` is NULL where it is the ID, `path` where it is the usual one
-- of the operation. The state columns are the chosen
-- target's, with ages at the decision. `candidates` is JSON, best first: [[sample, in_flight, requests_per_second,
-- tokens_per_second, score], …]. `fault`, `outcome_target` and `attempts` repeat what `rest` says, for queries.
CREATE TABLE records (
    seq INTEGER PRIMARY KEY, id BLOB NOT NULL, run INTEGER NOT NULL, issued_at_unix_us INTEGER NOT NULL, trace_id BLOB,
    client_request_id TEXT, tenant BLOB, operation INTEGER NOT NULL, path TEXT, model TEXT, stream INTEGER,
    body_bytes INTEGER NOT NULL, max_tokens INTEGER,
    policy INTEGER, reason INTEGER, target INTEGER, decided_offset_ns INTEGER, choose_ns INTEGER,
    waiting REAL, waiting_age_ms INTEGER, running REAL, running_age_ms INTEGER,
    kv_cache_usage REAL, kv_cache_usage_age_ms INTEGER, prefix_cache_hit_ratio REAL, prefix_cache_hit_ratio_age_ms INTEGER,
    gpu_utilization REAL, gpu_utilization_age_ms INTEGER, gpu_memory_utilization REAL,
    gpu_memory_utilization_age_ms INTEGER, engine_requests_per_second REAL, engine_requests_per_second_age_ms INTEGER,
    engine_tokens_per_second REAL, engine_tokens_per_second_age_ms INTEGER,
    candidates TEXT,
    ending INTEGER, status INTEGER, fault INTEGER, outcome_target INTEGER, attempts INTEGER, response_bytes INTEGER,
    events INTEGER, finish_reason TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, cached_tokens INTEGER,
    first_byte_offset_us INTEGER, first_event_offset_us INTEGER, first_content_offset_us INTEGER, end_offset_us INTEGER,
    rest BLOB NOT NULL
);
CREATE UNIQUE INDEX records_id ON records (id);

-- Where to look for a trace or a client's request ID; see `alias.rs`.
CREATE TABLE aliases (
    bucket INTEGER NOT NULL, hash INTEGER NOT NULL, kind INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (bucket, hash, kind, seq)
) WITHOUT ROWID;

-- How far each exit has come: the highest sequence number it has taken.
CREATE TABLE lanes (name TEXT PRIMARY KEY, cursor INTEGER NOT NULL) WITHOUT ROWID;

-- Finished requests that were not stored, by the second of their issue.
CREATE TABLE drops (
    second INTEGER NOT NULL, reason INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (second, reason)
) WITHOUT ROWID;
";

/// More policies, and what they choose by. In `records.candidates` the place and the parts of the score come after the score.
const VERSION_2: &str = "
-- Requests of the gateway at the target when its page was asked for; NULL before the first page.
ALTER TABLE samples ADD COLUMN gateway_in_flight_at_scrape INTEGER;
";

/// Deletion on request.
const VERSION_3: &str = "
-- IDs of records that were deleted on request, until retention passes them; `seq` is NULL for what was never stored.
CREATE TABLE erased (id BLOB PRIMARY KEY, seq INTEGER) WITHOUT ROWID;
CREATE INDEX erased_seq ON erased (seq);

-- Who had what deleted: the proof, which is kept for good, with about a hundred bytes for each deletion. `subject` is an ID or
-- a tenant's eight digits, `requested_by` a token's name. `ended_unix_us` is NULL while it goes on, and for ever if the process
-- ended before it was done: then it has to be asked for again.
CREATE TABLE erasures (
    erasure INTEGER PRIMARY KEY, requested_unix_us INTEGER NOT NULL, ended_unix_us INTEGER, requested_by TEXT NOT NULL,
    subject TEXT NOT NULL, records INTEGER NOT NULL DEFAULT 0
);
";

/// What people ask for in SQL moves out of `rest`.
const VERSION_4: &str = "
-- Why `least_request` stood in for the policy; NULL where it had not to, and in records of versions 2 and 3, where `rest` has it.
ALTER TABLE records ADD COLUMN fallback INTEGER;
";

/// Which GPUs a target has. A target whose GPUs become known, or others, is described anew.
const VERSION_5: &str = "
-- A list of texts in JSON; NULL until somebody has said, and in rows of earlier versions. `gpus` is what the configuration says.
ALTER TABLE targets ADD COLUMN gpu_uuids TEXT;
";

/// Targets that were discovered.
const VERSION_6: &str = "
-- The pod that the target is, as JSON: namespace, pod, uid, node and labels. NULL if nobody said which.
ALTER TABLE targets ADD COLUMN place TEXT;
";

/// What every connection of ours is set to. `cache_kib` is the most its page cache takes.
pub(super) fn prepare(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // A broken disk is then an error of a call, not a signal that ends the process.
    connection.pragma_update(None, "mmap_size", 0)
}

/// Prepared statements kept by a connection: there are about thirty different ones.
const STATEMENTS: usize = 64;

/// Makes or upgrades the file, by the one connection that writes.
pub(super) fn migrate(connection: &mut Connection, file: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    let failed = |source| OpenError::Sqlite { file: file.to_owned(), source };
    connection.pragma_update(None, "page_size", PAGE_BYTES).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    let known = migrations.len() as u64;
    let mut found = check_version(connection, file, known)?;
    while found < known {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        transaction.execute_batch(migrations[found as usize]).map_err(failed)?;
        found += 1;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        transaction.pragma_update(None, "user_version", found as i64).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    views::refresh(connection).map_err(failed)
}

/// The file's version, 0 if it is new. An error if it is nobody's or a newer binary's.
pub(super) fn check_version(connection: &Connection, file: &Path, known: u64) -> Result<u64, OpenError> {
    let failed = |source| OpenError::Sqlite { file: file.to_owned(), source };
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map_err(failed);
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION_ID && (application != 0 || version != 0 || tables != 0) {
        return Err(OpenError::NotAStore { file: file.to_owned() });
    }
    let found = u64::try_from(version).unwrap_or(0);
    if found > known {
        return Err(OpenError::Newer { file: file.to_owned(), found, known });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_of(file: &Path) -> i64 {
        Connection::open(file).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn each_step_is_taken_once_and_only_the_missing_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.db");
        migrate(&mut Connection::open(&file).unwrap(), &file, MIGRATIONS).unwrap();
        assert_eq!(version_of(&file), MIGRATIONS.len() as i64);

        let next = [MIGRATIONS, &["CREATE TABLE later (number INTEGER); INSERT INTO later VALUES (7);"]].concat();
        for _ in 0..2 {
            let mut connection = Connection::open(&file).unwrap();
            migrate(&mut connection, &file, &next).unwrap();
            let rows: i64 = connection.query_row("SELECT count(*) FROM later", [], |row| row.get(0)).unwrap();
            assert_eq!((rows, version_of(&file)), (1, next.len() as i64));
        }

        let error = migrate(&mut Connection::open(&file).unwrap(), &file, MIGRATIONS).unwrap_err();
        let known_here = MIGRATIONS.len() as u64;
        assert!(
            matches!(error, OpenError::Newer { found, known, .. } if (found, known) == (known_here + 1, known_here)),
            "{error}"
        );
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.db");
        let broken = [MIGRATIONS, &["CREATE TABLE half (number INTEGER); SELECT nonsense;"]].concat();
        migrate(&mut Connection::open(&file).unwrap(), &file, &broken).unwrap_err();
        let connection = Connection::open(&file).unwrap();
        let halves: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'half'", [], |row| row.get(0))
            .unwrap();
        assert_eq!((halves, version_of(&file)), (0, MIGRATIONS.len() as i64));
    }

    #[test]
    fn somebody_elses_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.db");
        Connection::open(&file).unwrap().execute_batch("CREATE TABLE theirs (number INTEGER)").unwrap();
        let error = check_version(&Connection::open(&file).unwrap(), &file, 1).unwrap_err();
        assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    }
}

//! What a target went through around one request: read outwards from it, within bounds, so that what is nearest in time is
//! read first.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::ReadError;
use super::codes::Coded as _;
use super::reader::Reader;
use super::row::nat;
use crate::snapshot::{Ending, InstanceTag, SnapshotId};

/// Rows read for one question.
const ROWS_MAX: usize = 100_000;

/// Rows of one step, which is a transaction of its own: a few milliseconds.
const ROWS_PER_STEP: usize = 1_000;

/// Requests that are answered one by one.
const NEAREST_MAX: usize = 10;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Up to this Unix millisecond, by the IDs, everything before the request was looked at.
    pub from_unix_ms: u64,
    /// And up to this after it.
    pub to_unix_ms: u64,
    /// Other requests that ended at the target.
    pub requests: u64,
    /// Those that went wrong, by ending and status, most first.
    pub wrong: Vec<(Ending, Option<u16>, u64)>,
    /// Some of these, the nearest first.
    pub nearest: Vec<Near>,
    /// Everything that was asked for was looked at.
    pub complete: bool,
}

/// One request that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near {
    /// Its ID.
    pub id: SnapshotId,
    /// How it ended.
    pub ending: Ending,
    /// The status that its client got, if it got one.
    pub status: Option<u16>,
    /// How long it took, in microseconds.
    pub end_offset_us: Option<u64>,
}

/// One direction of time.
#[derive(Clone, Copy)]
struct Side {
    /// Read up to here, in IDs.
    at: SnapshotId,
    end: SnapshotId,
    sql: &'static str,
    done: bool,
}

/// The two directions differ in a sign and an order. `?3` is the target's name; the list of its rows is made once.
const LATER: &str = "SELECT id, ending, fault IS NOT NULL, ifnull(outcome_target, target) IN (SELECT target FROM targets WHERE name = ?3),
    status, end_offset_us FROM records WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?4";
const EARLIER: &str = "SELECT id, ending, fault IS NOT NULL, ifnull(outcome_target, target) IN (SELECT target FROM targets WHERE name = ?3),
    status, end_offset_us FROM records WHERE id < ?1 AND id >= ?2 ORDER BY id DESC LIMIT ?4";

impl Reader {
    /// Requests that ended at the target called `target` and were issued at most `width` before or after the request `id`.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn around(&self, target: &str, id: SnapshotId, width: Duration) -> Result<Surroundings, ReadError> {
        let width_ms = u64::try_from(width.as_millis()).unwrap_or(u64::MAX);
        let (from_unix_ms, to_unix_ms) = (id.unix_ms().saturating_sub(width_ms), id.unix_ms().saturating_add(width_ms));
        let first = SnapshotId::new(from_unix_ms, InstanceTag(0), 0);
        let last = SnapshotId::new(to_unix_ms, InstanceTag(u16::MAX), u64::MAX);
        let mut sides = [
            Side { at: id, end: first, sql: EARLIER, done: false },
            Side { at: id, end: last, sql: LATER, done: false },
        ];
        let mut tally = Tally::default();
        let started = Instant::now();
        self.pool.read(|session| {
            while sides.iter().any(|side| !side.done) && tally.rows < ROWS_MAX && started.elapsed() < self.answer_time {
                for side in sides.iter_mut().filter(|side| !side.done) {
                    step(&session.connection, target, side, &mut tally)?;
                }
            }
            Ok(())
        })?;
        let reached = |side: Side, whole| if side.done { whole } else { side.at.unix_ms() };
        let [earlier, later] = sides;
        Ok(tally.answer(id, (reached(earlier, from_unix_ms), reached(later, to_unix_ms)), earlier.done && later.done))
    }
}

#[derive(Default)]
struct Tally {
    rows: usize,
    requests: u64,
    wrong: BTreeMap<(&'static str, Option<u16>), (Ending, u64)>,
    nearest: Vec<Near>,
}

impl Tally {
    fn answer(mut self, id: SnapshotId, (from_unix_ms, to_unix_ms): (u64, u64), complete: bool) -> Surroundings {
        self.keep_nearest(id);
        let wrong = self.wrong.into_iter().map(|((_, status), (ending, count))| (ending, status, count));
        let mut wrong: Vec<_> = wrong.collect();
        wrong.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
        Surroundings { from_unix_ms, to_unix_ms, requests: self.requests, wrong, nearest: self.nearest, complete }
    }

    fn keep_nearest(&mut self, id: SnapshotId) {
        self.nearest.sort_by_key(|other| other.id.unix_ms().abs_diff(id.unix_ms()));
        self.nearest.truncate(NEAREST_MAX);
    }
}

/// Reads on in one direction. Each step goes a little further, so the first IDs of a direction are its nearest.
fn step(connection: &Connection, target: &str, side: &mut Side, tally: &mut Tally) -> Result<(), ReadError> {
    let mut statement = connection.prepare_cached(side.sql)?;
    let mut rows = statement.query((side.at.to_bytes(), side.end.to_bytes(), target, ROWS_PER_STEP as i64))?;
    let (mut read, mut kept) = (0, 0);
    while let Some(row) = rows.next()? {
        read += 1;
        side.at = SnapshotId::from_bytes(row.get(0)?);
        if !row.get::<_, Option<bool>>(3)?.unwrap_or(false) {
            continue;
        }
        tally.requests += 1;
        let Some(ending) = row.get::<_, Option<i64>>(1)?.and_then(Ending::from_code) else { continue };
        if ending != Ending::Completed || row.get(2)? {
            let (status, end_offset_us) = (row.get(4)?, row.get::<_, Option<i64>>(5)?.map(nat));
            tally.wrong.entry((ending.name(), status)).or_insert((ending, 0)).1 += 1;
            if kept < NEAREST_MAX {
                kept += 1;
                tally.nearest.push(Near { id: side.at, ending, status, end_offset_us });
            }
        }
    }
    tally.rows += read;
    side.done = read < ROWS_PER_STEP;
    Ok(())
}

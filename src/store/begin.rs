//! The begin of a run in the store, and the sequence numbers that it may give out.

use rusqlite::{Connection, TransactionBehavior};

use super::meta::{self, Horizon, Key};
use super::row::{int, nat};
use super::shared;
use crate::snapshot::{Moment, Run};

/// So many sequence numbers are reserved ahead, so that a process that dies after failed commits gives none out again.
/// At ten thousand failed records a second they last for half an hour; each start after a kill skips as many.
pub(super) const SEQ_RESERVE: u64 = 1 << 24;

/// A run that has entered.
pub(super) struct Begun {
    pub(super) row: i64,
    pub(super) next_seq: u64,
    pub(super) reserved_seq: u64,
}

/// Enters the run and its configuration, and finds the first sequence number that was certainly never given out.
pub(super) fn begin_run(connection: &mut Connection, run: &Run, now: Moment) -> rusqlite::Result<Begun> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let highest: i64 = transaction.query_row(
        "SELECT max(ifnull((SELECT max(seq) FROM records), 0), ifnull((SELECT max(cursor) FROM lanes), 0))",
        [],
        |row| row.get(0),
    )?;
    let deleted = Horizon::read(&transaction)?.seq;
    let next_seq = (nat(highest).max(deleted) + 1).max(meta::get(&transaction, Key::ReservedSeq)?);
    let reserved_seq = reserve(&transaction, next_seq, 0, 0)?;
    shared::keep_config(&transaction, run)?;
    transaction.execute(
        "INSERT INTO runs (run_id, instance, instance_tag, version, config, started_unix_us, heartbeat_unix_us, first_seq,
                           first_target) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        (
            int(run.id.0),
            &*run.instance,
            run.tag.0,
            &*run.version,
            &*run.config,
            int(run.started.0),
            int(now.0),
            int(next_seq),
            shared::next_target(&transaction)?,
        ),
    )?;
    let row = transaction.last_insert_rowid();
    transaction.commit()?;
    Ok(Begun { row, next_seq, reserved_seq })
}

/// Reserves sequence numbers if those above `next_seq` are fewer than `spare`; answers up to where they are reserved.
pub(super) fn reserve(connection: &Connection, next_seq: u64, reserved_seq: u64, spare: u64) -> rusqlite::Result<u64> {
    if next_seq + spare <= reserved_seq {
        return Ok(reserved_seq);
    }
    let reserved_seq = next_seq + SEQ_RESERVE;
    meta::raise(connection, Key::ReservedSeq, reserved_seq)?;
    Ok(reserved_seq)
}

//! Other names of a record: the trace it belongs to, and the ID the client gave it.
//!
//! Both are random, so an index over them alone would touch a page somewhere for each record. Here an entry is found by
//! the time bucket of its issue first, so that inserts stay within the last few megabytes; a search looks into each
//! bucket, newest first. Only a hash is kept: whoever finds an entry compares the record itself.

use rusqlite::Connection;

use super::row::{int, nat};
use crate::snapshot::{Issued, SnapshotId, TraceId};

/// A bucket is 2^18 ms, a little over four minutes: about 2,300 of them in a week.
const BUCKET_SHIFT: u32 = 18;

/// How many buckets a search looks into in one read transaction: some milliseconds.
const BUCKETS_PER_TRANSACTION: u64 = 512;

/// One name, as the table holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    hash: i64,
    kind: i64,
}

impl Alias {
    /// A trace ID that the client brought.
    pub(super) fn of_trace(trace: TraceId) -> Self {
        let folded = (trace.as_u128() >> 64) as u64 ^ trace.as_u128() as u64;
        Self { hash: short(folded), kind: 0 }
    }

    /// The client's own ID for the request.
    pub(super) fn of_client_request_id(id: &str) -> Self {
        let [a, b, c, d, ..] = *blake3::hash(id.as_bytes()).as_bytes();
        Self { hash: short(u64::from(u32::from_le_bytes([a, b, c, d]))), kind: 1 }
    }

    /// The names that a record is entered under: a trace only if its ID is not the snapshot's.
    pub(super) fn all_of(issued: &Issued) -> [Option<Self>; 2] {
        let trace = Some(issued.trace.trace_id).filter(|trace| trace.as_u128() != issued.id.as_u128());
        [trace.map(Self::of_trace), issued.request.client_request_id.as_deref().map(Self::of_client_request_id)]
    }

    /// Enters it for the record.
    pub(super) fn insert(self, connection: &Connection, id: SnapshotId, seq: u64) -> rusqlite::Result<()> {
        let mut statement = connection
            .prepare_cached("INSERT OR IGNORE INTO aliases (bucket, hash, kind, seq) VALUES (?1, ?2, ?3, ?4)")?;
        statement.execute((int(bucket(id)), self.hash, self.kind, int(seq)))?;
        Ok(())
    }

    /// Takes back what [`Alias::insert`] entered.
    fn delete(self, connection: &Connection, id: SnapshotId, seq: u64) -> rusqlite::Result<()> {
        let mut statement = connection
            .prepare_cached("DELETE FROM aliases WHERE bucket = ?1 AND hash = ?2 AND kind = ?3 AND seq = ?4")?;
        statement.execute((int(bucket(id)), self.hash, self.kind, int(seq)))?;
        Ok(())
    }

    /// Takes back all that a record was entered under, from what its row says.
    pub(super) fn delete_all(
        connection: &Connection,
        id: SnapshotId,
        seq: u64,
        trace: Option<[u8; 16]>,
        client_request_id: Option<&str>,
    ) -> rusqlite::Result<()> {
        let trace = trace.and_then(|bytes| TraceId::new(u128::from_be_bytes(bytes)));
        let all = [trace.map(Self::of_trace), client_request_id.map(Self::of_client_request_id)];
        all.into_iter().flatten().try_for_each(|alias| alias.delete(connection, id, seq))
    }

    /// Sequence numbers of records that may bear it, newest bucket first, at most `limit`.
    pub(super) fn search(self, connection: &Connection, limit: usize) -> rusqlite::Result<Vec<u64>> {
        let mut found = Vec::new();
        let mut above = newest_below(connection, u64::MAX >> 1)?.map_or(0, |newest| newest + 1);
        while above > 0 && found.len() < limit {
            let from = above.saturating_sub(BUCKETS_PER_TRANSACTION);
            self.entries(connection, from, above, limit, &mut found)?;
            above = newest_below(connection, from)?.map_or(0, |newest| newest + 1);
        }
        Ok(found)
    }

    /// Adds the entries in the buckets `from..above`, newest first, read in one transaction.
    fn entries(
        self,
        connection: &Connection,
        from: u64,
        above: u64,
        limit: usize,
        found: &mut Vec<u64>,
    ) -> rusqlite::Result<()> {
        let transaction = connection.unchecked_transaction()?;
        {
            let mut statement = transaction.prepare_cached(
                "SELECT seq FROM aliases WHERE bucket = ?1 AND hash = ?2 AND kind = ?3 ORDER BY seq DESC LIMIT ?4",
            )?;
            for bucket in (from..above).rev() {
                let left = limit - found.len();
                let mut rows = statement.query((int(bucket), self.hash, self.kind, left as i64))?;
                while let Some(row) = rows.next()? {
                    found.push(nat(row.get(0)?));
                }
            }
        }
        transaction.finish()
    }
}

fn bucket(id: SnapshotId) -> u64 {
    id.unix_ms() >> BUCKET_SHIFT
}

/// Four bytes are enough to make a false match rare within one bucket.
fn short(hash: u64) -> i64 {
    i64::from((hash ^ hash >> 32) as u32 as i32)
}

/// The newest bucket below `above` that has an entry: a gap, however long, costs one step.
fn newest_below(connection: &Connection, above: u64) -> rusqlite::Result<Option<u64>> {
    let mut statement = connection.prepare_cached("SELECT max(bucket) FROM aliases WHERE bucket < ?1")?;
    statement.query_row([int(above)], |row| Ok(row.get::<_, Option<i64>>(0)?.map(nat)))
}

//! The write-ahead log: how full it is, and the ways of taking it over into the file.
//!
//! SQLite would do this inside some commit. Here `checkpoint.rs` chooses the moment and the thread.

use std::time::Duration;

use rusqlite::Connection;

use super::row::int;
use super::schema;

/// How long the writer waits for readers when nothing else helps: for longer than any read transaction of ours lasts, which is
/// 100 ms.
const RESTART_WAIT: Duration = Duration::from_millis(200);

/// So much of the log's file stays when it is made small because its disk is full: a start after a kill writes into it, and needs
/// no other room.
const KEPT_BYTES: i64 = 1 << 20;

/// Bytes of a frame's header in the log.
const FRAME_HEADER_BYTES: u64 = 24;

/// How full the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Pages in the log.
    pub(super) pages: u64,
    /// Pages of them that are in the file, too.
    pub(super) taken_over: u64,
}

impl Extent {
    /// Pages that are only in the log.
    pub(super) fn tail(self) -> u64 {
        self.pages.saturating_sub(self.taken_over)
    }

    /// Bytes of the log that a reader may still need.
    pub(super) fn bytes(self, page_bytes: u64) -> u64 {
        self.pages * (page_bytes + FRAME_HEADER_BYTES)
    }
}

/// Bytes of one page of the file.
pub(super) fn page_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
}

/// How full the log is; takes no lock.
pub(super) fn extent(connection: &Connection) -> rusqlite::Result<Extent> {
    checkpoint(connection, "NOOP")
}

/// Takes over what no reader needs; takes no lock that a commit or a reader waits for.
pub(super) fn passive(connection: &Connection) -> rusqlite::Result<Extent> {
    checkpoint(connection, "PASSIVE")
}

/// Takes over everything and lets the log begin anew, waiting a little for readers. Commits wait meanwhile. Answers also whether
/// a reader has prevented it, which is then none of ours.
pub(super) fn restart(connection: &Connection) -> rusqlite::Result<(Extent, bool)> {
    connection.busy_timeout(RESTART_WAIT)?;
    let answer = checkpoint_or_busy(connection, "RESTART");
    connection.busy_timeout(super::writer::BUSY_WAIT)?;
    answer
}

/// Takes over everything, and gives back what the log's file has beyond a start's need. Does nothing while a reader is in the way.
pub(super) fn shrink(connection: &Connection, limit_bytes: u64) -> rusqlite::Result<()> {
    let (_, is_read) = restart(connection)?;
    if is_read {
        return Ok(());
    }
    connection.pragma_update(None, "journal_size_limit", KEPT_BYTES)?;
    // The file is cut by the first commit into a log that begins anew; this one changes nothing.
    let cut = connection.pragma_update(None, "application_id", schema::APPLICATION_ID);
    limit(connection, limit_bytes)?;
    cut
}

/// How large the log's file may stay when the log begins anew.
pub(super) fn limit(connection: &Connection, bytes: u64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_size_limit", int(bytes))
}

/// Takes over everything and empties the log; for a clean end.
pub(super) fn truncate(connection: &Connection) -> rusqlite::Result<()> {
    checkpoint(connection, "TRUNCATE").map(|_| ())
}

fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Extent> {
    checkpoint_or_busy(connection, mode).map(|(extent, _)| extent)
}

fn checkpoint_or_busy(connection: &Connection, mode: &str) -> rusqlite::Result<(Extent, bool)> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    statement.query_row([], |row| {
        // Both are -1 before the first transaction, and while another program takes the log over.
        let count = |column| row.get::<_, i64>(column).map(|count| count.max(0).cast_unsigned());
        Ok((Extent { pages: count(1)?, taken_over: count(2)? }, row.get::<_, i64>(0)? != 0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_made_small_keeps_room_for_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("some.db");
        let connection = Connection::open(&file).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        connection.execute_batch("CREATE TABLE rows (bytes BLOB)").unwrap();
        let write = || connection.execute("INSERT INTO rows VALUES (zeroblob(100000))", []).unwrap();
        let length = || std::fs::metadata(dir.path().join("some.db-wal")).unwrap().len().cast_signed();
        (0..40).for_each(|_| _ = write());
        assert!(length() > 4 * KEPT_BYTES, "{}", length());
        shrink(&connection, 64 << 20).unwrap();
        assert_eq!(length(), KEPT_BYTES);
        (0..40).for_each(|_| _ = write());
        assert!(length() > 4 * KEPT_BYTES, "it may grow again: {}", length());
    }
}

//! The single numbers of the store: how far retention has come, and which sequence numbers may have been given out.

use rusqlite::{Connection, OptionalExtension as _};

use super::row::{int, nat};

/// A key of the table `meta`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    /// The highest sequence number that retention has deleted; 0 if none.
    HorizonSeq,
    /// IDs of this Unix millisecond and before it may have been deleted; 0 if none.
    HorizonUnixMs,
    /// Sequence numbers below this may have been given out, whether or not their records were stored.
    ReservedSeq,
}

impl Key {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::HorizonSeq => "horizon_seq",
            Self::HorizonUnixMs => "horizon_unix_ms",
            Self::ReservedSeq => "reserved_seq",
        }
    }
}

/// The number, 0 if it was never set.
pub(super) fn get(connection: &Connection, key: Key) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    let value: Option<i64> = statement.query_row([key.name()], |row| row.get(0)).optional()?;
    Ok(value.map_or(0, nat))
}

/// Raises the number; it never falls.
pub(super) fn raise(connection: &Connection, key: Key, value: u64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
    )?;
    statement.execute((key.name(), int(value)))?;
    Ok(())
}

/// Where retention stands: what is at or below it and not found has expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Horizon {
    /// The highest sequence number deleted.
    pub(super) seq: u64,
    /// In Unix milliseconds, as IDs carry it.
    pub(super) unix_ms: u64,
}

impl Horizon {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        Ok(Self { seq: get(connection, Key::HorizonSeq)?, unix_ms: get(connection, Key::HorizonUnixMs)? })
    }

    pub(super) fn write(self, connection: &Connection) -> rusqlite::Result<()> {
        raise(connection, Key::HorizonSeq, self.seq)?;
        raise(connection, Key::HorizonUnixMs, self.unix_ms)
    }
}

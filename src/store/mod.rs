//! The embedded store: SQLite, one writer, a few readers. What has been committed here survives the process.
//!
//! In the order of a record's life: [`DataDir`] is where it lives, `encode` and `shared` make rows of it, [`Writer`]
//! commits it, `retention` deletes it at last. [`Reader`] and `decode` make it a record again, `alias` finds it by its
//! other names, `list` among others by what a [`Filter`] asks for, and `around` says what else went on then; `erase` deletes
//! it for the person it is about. `schema` has the tables, `codes`, `rest`, `readings` and `row` how values lie in them,
//! `views` how people read them; `begin` enters a run, `checkpoint`, `wal`, `room` and `ballast` keep the log and the disk in
//! bounds, `pool` lends connections to readers.
//!
//! What holds throughout:
//! - Sequence numbers are given out once, in the order of commits, over restarts, too; they may have gaps.
//! - The records of a transaction are stored with everything they refer to, or not at all.
//! - What is read is what was written, to the last bit.
//! - No read transaction lasts over 100 ms, so the log can always be taken over into the file.

mod alias;
mod around;
mod ballast;
mod begin;
mod checkpoint;
mod codes;
mod data_dir;
mod decode;
mod encode;
mod erase;
mod filter;
mod list;
mod meta;
mod pool;
mod reader;
mod readings;
mod rest;
mod retention;
mod room;
mod row;
mod schema;
mod shared;
#[cfg(test)]
mod tests;
mod views;
mod wal;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use around::{Near, Surroundings};
pub use data_dir::{DataDir, DataDirError, ReadOnlyDataDir};
pub use erase::{Erased, Erasure, ErasureJob, NotErased, Subject};
pub use filter::Filter;
pub use list::Page;
pub use reader::{MATCHES_MAX, Reader};
pub use writer::{Maintenance, Writer};

pub use crate::ledger::DropCount;
use crate::ledger::DropReason;
use crate::snapshot::{Moment, Record, Run};

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, however it ends. The operating system writes to the disk when it likes.
    Process,
    /// A power cut, too: every commit waits for the disk.
    Power,
}

/// What an operator can set.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What a commit survives.
    pub durability: Durability,
    /// Records older than this are deleted.
    pub retention_age: Duration,
    /// When what is stored takes more bytes than this, the oldest records are deleted; the log and the ballast not counted.
    pub retention_bytes: u64,
    /// When the log has more bytes than this, the store says that it has a problem.
    pub wal_max_bytes: u64,
    /// When the log has so many bytes, they are taken over into the file, which lets the log begin anew. Commits go on meanwhile;
    /// a small log is quickly taken over and stays in the processor's and the system's caches.
    pub wal_checkpoint_bytes: u64,
    /// Reserved on the disk and given back when it is full, so that the log can be taken over and retention can delete.
    pub ballast_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            durability: Durability::Process,
            retention_age: Duration::from_secs(7 * 24 * 60 * 60),
            retention_bytes: 10 << 30,
            wal_max_bytes: 512 << 20,
            wal_checkpoint_bytes: 8 << 20,
            ballast_bytes: 16 << 20,
        }
    }
}

/// The store of a data directory.
#[derive(Debug)]
pub struct Store;

impl Store {
    /// Opens the store, makes or upgrades its file if needed, and enters the run, whose tag must be the directory's.
    /// The text of its configuration is kept, too. The writer is for one thread, the reader for many.
    ///
    /// # Errors
    /// The file is not a store, is a newer binary's, or cannot be read or written.
    pub fn open(dir: &DataDir, settings: &Settings, run: Arc<Run>, now: Moment) -> Result<(Writer, Reader), OpenError> {
        debug_assert_eq!(run.tag, dir.tag(), "IDs carry the directory's tag");
        let writer = Writer::open(dir, settings.clone(), &run, now)?;
        let reader = Reader::of_run(dir, &writer);
        Ok((writer, reader))
    }
}

/// What the store knows of an ID.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// It is stored.
    Found(Arc<Record>),
    /// It is not, and retention has deleted what was issued then.
    Expired {
        /// Up to here.
        horizon: Moment,
    },
    /// It is not, and requests of that second were dropped.
    Dropped {
        /// Why most of them were, those of a flood of refused requests left aside if there were others.
        reason: DropReason,
        /// The second's begin.
        second: Moment,
        /// How many were for that reason.
        count: u64,
    },
    /// It is not, and the process that ran then was killed: it may have issued the ID and not come to store it.
    Lost {
        /// When that process began.
        run_started: Moment,
        /// When it was last known to live.
        last_heartbeat: Moment,
    },
    /// It is not, because it was deleted on request.
    Erased,
    /// It is not, and nothing says that it was ever issued.
    Unknown,
    /// Its tag is another instance's.
    IssuedElsewhere,
}

/// Why a store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The data directory has no usable identity.
    DataDir(DataDirError),
    /// There is no store to read.
    Missing {
        /// Where it should be.
        file: PathBuf,
    },
    /// The file is some other program's database.
    NotAStore {
        /// Which file.
        file: PathBuf,
    },
    /// The file was written by a newer snapgate.
    Newer {
        /// Which file.
        file: PathBuf,
        /// Its version.
        found: u64,
        /// The newest version this binary knows.
        known: u64,
    },
    /// The file was written by an older snapgate, and only reading was asked for.
    Older {
        /// Which file.
        file: PathBuf,
        /// Its version.
        found: u64,
        /// The version this binary reads.
        known: u64,
    },
    /// SQLite refused.
    Sqlite {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DataDir(_) => f.write_str("the data directory cannot be used"),
            Self::Missing { file } => {
                write!(f, "there is no store at {}: give the --data-dir of a gateway that has run", file.display())
            }
            Self::NotAStore { file } => {
                write!(f, "{} is not a snapgate store: choose another --data-dir", file.display())
            }
            Self::Newer { file, found, known } => write!(
                f,
                "{} has schema version {found} and this snapgate knows versions up to {known}: use the newer snapgate that \
                 wrote it, or choose another --data-dir",
                file.display()
            ),
            Self::Older { file, found, known } => write!(
                f,
                "{} has schema version {found} and this snapgate reads version {known}: start this gateway on it once to \
                 upgrade it",
                file.display()
            ),
            Self::Sqlite { file, source } if writer::is_full(source) => write!(
                f,
                "there is no space for the store {}: make some, 1 MiB is enough to start, or choose another --data-dir",
                file.display()
            ),
            Self::Sqlite { file, .. } => {
                write!(
                    f,
                    "cannot open the store {}: check that it may be read and written and is intact",
                    file.display()
                )
            }
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::DataDir(source) => Some(source),
            Self::Sqlite { source, .. } => Some(source),
            Self::Missing { .. } | Self::NotAStore { .. } | Self::Newer { .. } | Self::Older { .. } => None,
        }
    }
}

impl From<DataDirError> for OpenError {
    fn from(source: DataDirError) -> Self {
        Self::DataDir(source)
    }
}

/// Why a transaction was not committed. Nothing of it was stored, and the next one may be tried.
#[derive(Debug)]
pub enum CommitError {
    /// There is no space. Commits are refused at once until [`Writer::maintain`] finds some.
    DiskFull,
    /// SQLite refused for another reason.
    Other(rusqlite::Error),
}

impl CommitError {
    /// All names in metrics.
    pub const REASONS: &'static [&'static str] = &["disk_full", "sqlite"];

    /// Its name in metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::Other(_) => "sqlite",
        }
    }
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DiskFull => f.write_str("the store's disk is full: make space; records are dropped until then"),
            Self::Other(_) => f.write_str("the store refused a transaction"),
        }
    }
}

impl std::error::Error for CommitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::DiskFull => None,
            Self::Other(source) => Some(source),
        }
    }
}

/// Why a question was not answered.
#[derive(Debug)]
pub enum ReadError {
    /// A connection for reading could not be opened.
    Open(OpenError),
    /// SQLite refused.
    Sqlite(rusqlite::Error),
    /// A record is stored and cannot be read: the file is damaged, or a newer binary's.
    Corrupt {
        /// The record's sequence number.
        seq: u64,
        /// What is wrong with it.
        what: String,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(_) => f.write_str("the store could not be opened for reading"),
            Self::Sqlite(_) => f.write_str("the store could not be read"),
            Self::Corrupt { seq, what } => write!(
                f,
                "record {seq} of the store cannot be read ({what}): run `PRAGMA integrity_check` on the file, and restore \
                 it from a backup if that complains"
            ),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open(source) => Some(source),
            Self::Sqlite(source) => Some(source),
            Self::Corrupt { .. } => None,
        }
    }
}

impl From<rusqlite::Error> for ReadError {
    fn from(source: rusqlite::Error) -> Self {
        Self::Sqlite(source)
    }
}

//! One line of JSON per snapshot, to stdout or to a file: the document, nothing before it and nothing after it.
//!
//! A line is whole or it is not there. Lines are written in pieces; a piece that was begun is finished where it was begun,
//! whatever the disk says meanwhile, and only between two pieces does the file change: when it has become too large or too
//! old, or when somebody has moved it away.

mod file;
mod rotated;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::file::OpenError;
use self::file::{LogFile, is_full};
use super::{Refusal, Sink, Taken};
use crate::snapshot::{Document, Moment, Record, SnapshotId};

/// Why it refuses.
const DISK_FULL: &str = "disk_full";
const OPEN: &str = "open";
const WRITE: &str = "write";

/// The exit's name in metrics and in the store's cursors.
pub const NAME: &str = "json_log";

/// Lines are written in pieces of about this size: large enough to be few, small enough to stay in the processor's cache
/// between being made and being copied by the kernel.
const PIECE_BYTES: usize = 128 * 1024;

/// Records of one delivery at most, some hundred pieces: after each a stop is heard.
const RECORDS_MAX: usize = 4_096;

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output, which then carries nothing else.
    Stdout,
    /// A file, appended to, made if it is not there.
    File(PathBuf),
}

/// When a file is put aside for a new one, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The largest file in bytes; 0 for any. One piece of lines is written whole, even where it is more.
    pub max_bytes: u64,
    /// From the end of a file's first snapshot to that of its last, about; zero for any.
    pub max_age: Duration,
    /// Files put aside that are kept; 0 for all.
    pub keep: usize,
}

/// What is written where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the lines go.
    pub destination: Destination,
    /// For a file; what is no regular file is never put aside.
    pub rotation: Rotation,
    /// Candidates of a decision in its line at most, the best ones; `None` for all.
    pub candidates: Option<NonZeroUsize>,
}

/// The exit.
pub struct JsonLog {
    out: Out,
    candidates: Option<NonZeroUsize>,
    /// The lines that are being written.
    piece: Vec<u8>,
    /// When the first of their snapshots ended.
    piece_ended: Moment,
    /// How many of their bytes are written: a batch that failed halfway goes on there, so no line is torn.
    written: usize,
    /// How many records of the batch are rendered.
    rendered: usize,
    /// Which batch is under way: its first and last record.
    batch: Option<(SnapshotId, SnapshotId)>,
}

enum Out {
    Stream(Box<dyn Write + Send>),
    File(LogFile),
}

impl fmt::Debug for JsonLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLog").field("batch", &self.batch).field("rendered", &self.rendered).finish_non_exhaustive()
    }
}

impl JsonLog {
    /// Opens the destination.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let out = match &settings.destination {
            Destination::Stdout => Out::Stream(Box::new(io::stdout())),
            Destination::File(path) => Out::File(LogFile::open(path, settings.rotation)?),
        };
        Ok(Self { candidates: settings.candidates, ..Self::onto(out) })
    }

    /// Writes to `out`, with all candidates.
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        Self::onto(Out::Stream(out))
    }

    fn onto(out: Out) -> Self {
        let (piece, piece_ended) = (Vec::new(), Moment::default());
        Self { out, candidates: None, piece, piece_ended, written: 0, rendered: 0, batch: None }
    }

    /// The next lines of the batch. What was written before is forgotten.
    fn render(&mut self, records: &[Arc<Record>]) {
        self.piece.clear();
        self.written = 0;
        let first = records.get(self.rendered);
        self.piece_ended = first.and_then(|record| record.ended()).unwrap_or(self.piece_ended);
        for record in &records[self.rendered..] {
            Document::with_candidates(record, self.candidates).write(&mut self.piece);
            self.piece.push(b'\n');
            self.rendered += 1;
            if self.piece.len() >= PIECE_BYTES {
                break;
            }
        }
    }

    /// Writes what is left of the piece.
    fn write(&mut self) -> Result<(), Refusal> {
        if self.written == 0 && !self.piece.is_empty() {
            self.out.prepare(self.piece.len(), self.piece_ended).map_err(|error| refused(OPEN, &error))?;
        }
        while self.written < self.piece.len() {
            match self.out.write(&self.piece[self.written..]) {
                Ok(0) => return Err(refused(WRITE, &io::ErrorKind::WriteZero.into())),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(refused(WRITE, &error)),
            }
        }
        Ok(())
    }
}

impl Out {
    /// To be called before a piece, and not within one.
    fn prepare(&mut self, bytes: usize, ended: Moment) -> io::Result<()> {
        match self {
            Self::Stream(_) => Ok(()),
            Self::File(file) => file.prepare(bytes as u64, ended),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stream(out) => out.write(bytes),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(out) => out.flush(),
            // Nothing stands between it and the kernel.
            Self::File(_) => Ok(()),
        }
    }
}

impl Sink for JsonLog {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reasons(&self) -> &'static [&'static str] {
        &[DISK_FULL, OPEN, WRITE]
    }

    fn deliver(&mut self, records: &[Arc<Record>]) -> Result<Taken, Refusal> {
        let records = &records[..records.len().min(RECORDS_MAX)];
        let batch = records.first().zip(records.last()).map(|(first, last)| (first.id(), last.id()));
        if self.batch != batch {
            // Another batch than the one that failed, after a panic of the lane's: the line that was begun is finished.
            if self.written > 0 {
                self.write()?;
            }
            self.batch = batch;
            self.rendered = 0;
            self.render(records);
        }
        loop {
            self.write()?;
            if self.rendered == records.len() {
                break;
            }
            self.render(records);
        }
        self.out.flush().map_err(|error| refused(WRITE, &error))?;
        self.batch = None;
        Ok(Taken::all(records.len()))
    }
}

fn refused(doing: &'static str, error: &io::Error) -> Refusal {
    tracing::warn!(%error, doing, "the json log could not be written; trying again");
    Refusal::Later(if is_full(error) { DISK_FULL } else { doing })
}

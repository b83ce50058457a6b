//! One line of JSON per snapshot, to stdout or to a file: the document, nothing before it and nothing after it.
//!
//! A line is whole or it is not there. Lines are written in pieces; a line that was begun is finished where it was begun,
//! whatever the disk says meanwhile, and only between two lines does the file change: when it has become too large or too
//! old, or when somebody has moved it away. A line that is whole is taken, whatever becomes of the rest of its piece: the next
//! run, too, begins with the first one that is not.

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

/// Lines are written in pieces of about this size, one a delivery: large enough to be few, small enough to stay in the
/// processor's cache between being made and being copied by the kernel.
const PIECE_BYTES: usize = 128 * 1024;

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
    /// What is being written. Behind its last line there may be a part of one, if rendering it has panicked.
    piece: Vec<u8>,
    /// The lines in it.
    lines: Vec<Line>,
    /// How many of its bytes are written: what failed halfway goes on there, so no line is torn.
    written: usize,
}

/// One line of a piece.
#[derive(Clone, Copy, Debug)]
struct Line {
    id: SnapshotId,
    /// When its snapshot ended.
    ended: Moment,
    /// Where it ends in the piece.
    end: usize,
}

enum Out {
    Stream(Box<dyn Write + Send>),
    File(LogFile),
}

impl fmt::Debug for JsonLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLog").field("lines", &self.lines).field("written", &self.written).finish_non_exhaustive()
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
        Self { out, candidates: None, piece: Vec::new(), lines: Vec::new(), written: 0 }
    }

    /// Whether the lines of the piece are those of the first of these records.
    fn is_of(&self, records: &[Arc<Record>]) -> bool {
        let mut lines = self.lines.iter().zip(records);
        self.lines.len() <= records.len() && lines.all(|(line, record)| line.id == record.id())
    }

    /// Begins a piece. What was in it is forgotten.
    fn render(&mut self, records: &[Arc<Record>]) {
        self.forget(self.lines.len());
        self.piece.clear();
        for record in records {
            Document::with_candidates(record, self.candidates).write(&mut self.piece);
            self.piece.push(b'\n');
            let ended = record.ended().unwrap_or_default();
            self.lines.push(Line { id: record.id(), ended, end: self.piece.len() });
            if self.piece.len() >= PIECE_BYTES {
                break;
            }
        }
    }

    /// Writes what is left of the piece.
    fn write(&mut self) -> Result<(), Refusal> {
        let Some(end) = self.lines.last().map(|last| last.end) else { return Ok(()) };
        if self.written == 0 {
            self.out.prepare(end, self.lines[0].ended).map_err(|error| refused(OPEN, &error))?;
        }
        while self.written < end {
            match self.out.write(&self.piece[self.written..end]) {
                Ok(0) => return Err(refused(WRITE, &io::ErrorKind::WriteZero.into())),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(refused(WRITE, &error)),
            }
        }
        self.out.flush().map_err(|error| refused(WRITE, &error))
    }

    /// How many lines of a piece that failed are whole.
    fn whole(&mut self) -> usize {
        // What lies in a buffer may stay there.
        if self.out.flush().is_err() {
            return 0;
        }
        self.lines.partition_point(|line| line.end <= self.written)
    }

    /// The first lines of the piece are done with.
    fn forget(&mut self, count: usize) {
        let Some(last) = self.lines.drain(..count).next_back() else { return };
        self.piece.drain(..last.end);
        self.written = self.written.saturating_sub(last.end);
        self.lines.iter_mut().for_each(|line| line.end -= last.end);
    }
}

impl Out {
    /// To be called before a line, and not within one.
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
        if self.lines.is_empty() || !self.is_of(records) {
            // Other records than those that failed, after a panic of the lane's: what was begun is finished.
            if self.written > 0 {
                self.write()?;
            }
            self.render(records);
        }
        let answer = self.write();
        let whole = if answer.is_ok() { self.lines.len() } else { self.whole() };
        self.forget(whole);
        match answer.err().filter(|_| !self.lines.is_empty()) {
            Some(refusal) if whole == 0 => Err(refusal),
            refused => Ok(Taken { refused: refused.map(|why| (why, self.lines.len())), ..Taken::all(whole) }),
        }
    }
}

fn refused(doing: &'static str, error: &io::Error) -> Refusal {
    tracing::warn!(%error, doing, "the json log could not be written; trying again");
    Refusal::Later(if is_full(error) { DISK_FULL } else { doing })
}

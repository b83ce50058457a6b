//! One line of JSON per snapshot, to stdout or to a file: the document, nothing before it and nothing after it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Refusal, Sink};
use crate::snapshot::{Document, Record, SnapshotId};

/// The exit's name in metrics and in the store's cursors.
pub const NAME: &str = "json_log";

/// Lines are written in pieces of about this size: large enough to be few, small enough to stay in the processor's cache
/// between being made and being copied by the kernel.
const PIECE_BYTES: usize = 128 * 1024;

/// Lines say who asked for what and when: they are for the owner and his group.
const FILE_MODE: u32 = 0o640;

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output, which then carries nothing else.
    Stdout,
    /// A file, appended to, made if it is not there.
    File(PathBuf),
}

/// The file could not be opened.
#[derive(Debug)]
pub struct OpenError {
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, source } = self;
        write!(f, "json log {}: {source}: choose a file this user may write, or --json-log off", path.display())
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The exit.
pub struct JsonLog {
    out: Box<dyn Write + Send>,
    /// The lines that are being written.
    piece: Vec<u8>,
    /// How many of their bytes are written: a batch that failed halfway goes on there, so no line is torn.
    written: usize,
    /// How many records of the batch are rendered.
    rendered: usize,
    /// Which batch is under way: its first and last record.
    batch: Option<(SnapshotId, SnapshotId)>,
}

impl fmt::Debug for JsonLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLog").field("batch", &self.batch).field("rendered", &self.rendered).finish_non_exhaustive()
    }
}

impl JsonLog {
    /// Opens the destination.
    pub fn open(destination: &Destination) -> Result<Self, OpenError> {
        match destination {
            Destination::Stdout => Ok(Self::to(Box::new(io::stdout()))),
            Destination::File(path) => Ok(Self::to(Box::new(append_to(path)?))),
        }
    }

    /// Writes to `out`.
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        Self { out, piece: Vec::new(), written: 0, rendered: 0, batch: None }
    }

    /// The next lines of the batch.
    fn render(&mut self, records: &[Arc<Record>]) {
        self.piece.clear();
        self.written = 0;
        for record in &records[self.rendered..] {
            Document::of(record).write(&mut self.piece);
            self.piece.push(b'\n');
            self.rendered += 1;
            if self.piece.len() >= PIECE_BYTES {
                break;
            }
        }
    }

    /// Writes what is left of the piece.
    fn write(&mut self) -> io::Result<()> {
        while self.written < self.piece.len() {
            match self.out.write(&self.piece[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn append_to(path: &Path) -> Result<File, OpenError> {
    let open = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let torn = ends_in_torn_line(path);
        let mut file = OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(path)?;
        if torn {
            file.write_all(b"\n")?;
        }
        Ok(file)
    };
    open().map_err(|source| OpenError { path: path.to_owned(), source })
}

/// A process that was killed may have left half a line, which must not spoil the next one; its record comes again. What
/// cannot be read, such as a pipe or a file without that permission, is taken to be whole.
fn ends_in_torn_line(path: &Path) -> bool {
    let last = || -> io::Result<u8> {
        let mut last = [0];
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        Ok(last[0])
    };
    path.is_file() && last().is_ok_and(|last| last != b'\n')
}

impl Sink for JsonLog {
    fn name(&self) -> &'static str {
        NAME
    }

    fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Refusal> {
        let batch = records.first().zip(records.last()).map(|(first, last)| (first.id(), last.id()));
        if self.batch != batch {
            self.batch = batch;
            self.rendered = 0;
            self.render(records);
        }
        loop {
            self.write().map_err(|error| refused(&error))?;
            if self.rendered == records.len() {
                break;
            }
            self.render(records);
        }
        self.out.flush().map_err(|error| refused(&error))?;
        self.batch = None;
        Ok(())
    }
}

fn refused(error: &io::Error) -> Refusal {
    tracing::warn!(%error, "the json log could not be written; trying again");
    Refusal::Later(match error.kind() {
        io::ErrorKind::StorageFull => "disk_full",
        _ => "write",
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::snapshot::record::tests::finished;

    /// Takes a few bytes at a time and fails every third call.
    #[derive(Clone, Default)]
    struct Awkward(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Awkward {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (written, calls) = &mut *self.0.lock().unwrap();
            *calls += 1;
            if calls.is_multiple_of(3) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(100);
            written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_fills_up_tears_no_line() {
        let out = Awkward::default();
        let mut log = JsonLog::to(Box::new(out.clone()));
        let records: Vec<_> = (1..=3).map(|number| Arc::new(finished(number))).collect();
        let mut refusals = 0;
        while let Err(refusal) = log.deliver(&records) {
            assert_eq!(refusal, Refusal::Later("disk_full"));
            refusals += 1;
        }
        assert!(refusals > 3, "the writer was meant to be awkward");
        let mut expected = Vec::new();
        for record in &records {
            Document::of(record).write(&mut expected);
            expected.push(b'\n');
        }
        let written = String::from_utf8(out.0.lock().unwrap().0.clone()).unwrap();
        assert_eq!(written, String::from_utf8(expected).unwrap());
    }

    #[test]
    fn a_line_that_a_kill_has_torn_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        for (before, after) in [("", ""), ("{}\n", "{}\n"), ("{}\n{\"id", "{}\n{\"id\n")] {
            let path = dir.path().join("log");
            std::fs::write(&path, before).unwrap();
            let mut log = JsonLog::open(&Destination::File(path.clone())).unwrap();
            log.deliver(&[Arc::new(finished(1))]).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let line = text.strip_prefix(after).unwrap_or_else(|| panic!("{text}"));
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_written_says_so() {
        let error = JsonLog::open(&Destination::File("/proc/none/log".into())).unwrap_err();
        assert!(error.to_string().starts_with("json log /proc/none/log: "), "{error}");
    }
}

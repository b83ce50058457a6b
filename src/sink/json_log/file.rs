//! A file of lines that is followed by another one: by ours, when it has become too large or too old, or by nobody's, when it
//! was moved away or deleted and a new one is to be begun under its name.

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Rotation;
use super::rotated::Names;
use crate::snapshot::{Document, Moment};

/// Lines say who asked for what and when: they are for the owner and his group.
const FILE_MODE: u32 = 0o640;

/// How long a file that could not be put aside grows on before that is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The longest line that is looked at to learn how old a file is: many times the longest that is written.
const FIRST_LINE_BYTES_MAX: u64 = 1 << 20;

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

/// A path, and the file that is open there.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    /// `None` while there should be a new one and the system has not given it.
    open: Option<Open>,
    /// Until then a file that could not be put aside is left alone.
    again: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Device and inode: what the path leads to as long as nobody has moved it.
    identity: (u64, u64),
    /// A pipe or a device is neither put aside nor looked for.
    is_regular: bool,
    bytes: u64,
    /// When the first snapshot in it ended; `None` if there is none, or none that can be read.
    began: Option<Moment>,
    /// It ends in a torn line, which the next write ends first: opening needs no space.
    is_torn: bool,
}

impl LogFile {
    /// Opens the file, and makes it with its directories if it is not there. One that a full disk has no room for is made
    /// when there is some.
    pub(super) fn open(path: &Path, rotation: Rotation) -> Result<Self, OpenError> {
        let open = match Open::at(path) {
            Ok(open) => Some(open),
            Err(error) if is_full(&error) => {
                tracing::warn!(file = %path.display(), %error, "no space for the json log: make some; its lines wait");
                None
            }
            Err(source) => return Err(OpenError { path: path.to_owned(), source }),
        };
        Ok(Self { path: path.to_owned(), rotation, open, again: None })
    }

    /// Before a piece of so many bytes, whose first snapshot ended then: makes sure that it goes to the file at the path, and
    /// to a new one if it is time for that.
    pub(super) fn prepare(&mut self, bytes: u64, ended: Moment) -> io::Result<()> {
        self.follow();
        if self.is_due(bytes, ended) {
            self.put_aside(ended);
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::at(&self.path)?),
        };
        open.began.get_or_insert(ended);
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let open = self.open.as_mut().ok_or(io::ErrorKind::NotFound)?;
        open.end_torn_line()?;
        let count = open.file.write(bytes)?;
        open.bytes += count as u64;
        Ok(count)
    }

    /// Lets go of a file that is not at the path any more: `logrotate` moves it, and people delete it.
    fn follow(&mut self) {
        let Some(open) = self.open.as_mut().filter(|open| open.is_regular) else { return };
        match fs::metadata(&self.path) {
            // Somebody may have cut it off, too.
            Ok(now) if identity(&now) == open.identity => {
                open.bytes = now.len();
                open.is_torn &= open.bytes > 0;
            }
            _ => {
                tracing::info!(file = %self.path.display(), "the json log was moved away: it is begun anew");
                self.open = None;
            }
        }
    }

    fn is_due(&self, bytes: u64, ended: Moment) -> bool {
        let Some(open) = self.open.as_ref().filter(|open| open.is_regular && open.bytes > 0) else { return false };
        let Rotation { max_bytes, max_age, .. } = self.rotation;
        let is_full = max_bytes > 0 && open.bytes + bytes > max_bytes;
        let is_old = !max_age.is_zero() && open.began.is_some_and(|began| ended.since(began) >= max_age);
        let may_be = self.again.is_none_or(|again| Instant::now() >= again);
        (is_full || is_old) && may_be
    }

    /// Gives the file the name under which it is kept, and deletes those that are too many. A kill at any moment in between
    /// leaves every line in one file or the other. What cannot be put aside grows on: no line is worth less than a name.
    fn put_aside(&mut self, ended: Moment) {
        if let Some(open) = &mut self.open {
            // Without space for that, the torn line is the last of its file.
            open.end_torn_line().ok();
        }
        let names = Names::of(&self.path);
        let renamed = names.next(ended).and_then(|kept| fs::rename(&self.path, &kept).map(|()| kept));
        match renamed {
            Ok(kept) => {
                let bytes = self.open.take().map_or(0, |open| open.bytes);
                self.again = None;
                tracing::info!(file = %kept.display(), bytes, "the json log goes on in a new file");
                // Before the new one is made: a full disk may have room then.
                names.prune(self.rotation.keep);
            }
            Err(error) => {
                self.again = Some(Instant::now() + AGAIN_AFTER);
                let file = self.path.display();
                tracing::warn!(%file, %error, "the json log could not be put aside and grows on; trying again");
            }
        }
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let (is_torn, began) = (ends_in_torn_line(path), first_ended(path));
        let file = OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(path)?;
        let metadata = file.metadata()?;
        let is_regular = metadata.is_file();
        Ok(Self { file, identity: identity(&metadata), is_regular, bytes: metadata.len(), began, is_torn })
    }

    /// Ends the torn line, if there is one, so that what comes next has a line of its own.
    fn end_torn_line(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
            self.bytes += 1;
            self.is_torn = false;
        }
        Ok(())
    }
}

/// Whether there is no room, on the disk or for this user.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
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

/// When the first snapshot of a file ended, so that its age does not begin anew with a restart.
fn first_ended(path: &Path) -> Option<Moment> {
    let file = File::open(path).ok().filter(|_| path.is_file())?;
    let mut line = String::new();
    BufReader::new(file.take(FIRST_LINE_BYTES_MAX)).read_line(&mut line).ok()?;
    let document: Document<'_> = serde_json::from_str(&line).ok()?;
    let offset = Duration::from_micros(document.timings.end_offset_us?);
    Some(Moment(document.issued_at_unix_us).plus(offset))
}

//! The data directory: one process at a time, and what an instance keeps for ever: its tag and its tenant secret.
//!
//! `lock` is held by the running gateway, `instance` and `secret` are drawn once, `snapshots.db` is the store's file and
//! `ballast` its reserve. A file that cannot be read as what it should be is an error, never silently replaced: a new tag
//! would make every earlier ID "issued elsewhere", and a new secret would take every tenant's records away.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::snapshot::InstanceTag;

/// A data directory that this process owns: its lock is held until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    tag: InstanceTag,
    secret: Secret,
    /// Closing the file frees the lock, also when the process is killed.
    _lock: File,
}

/// A data directory that somebody else may own: the command line reads it and changes nothing.
#[derive(Debug)]
pub struct ReadOnlyDataDir {
    path: PathBuf,
    tag: InstanceTag,
}

/// The key of the tenant hash. Never printed.
#[derive(Clone, Copy)]
struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a data directory cannot be used.
#[derive(Debug)]
pub enum DataDirError {
    /// Another process holds the lock.
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file in it is not what it should be.
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The operating system refused.
    Io {
        /// What was tried, as in "read the file".
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl fmt::Display for DataDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { path } => write!(
                f,
                "data directory {} is in use by another snapgate (lock held on {}): stop it or choose another --data-dir",
                path.display(),
                path.join(LOCK_FILE).display()
            ),
            Self::Corrupt { file, expected } => write!(
                f,
                "{} should hold {expected} and does not: restore it from a backup, or choose another --data-dir",
                file.display()
            ),
            Self::Io { action, path, source } if source.kind() == io::ErrorKind::StorageFull => {
                write!(f, "cannot {action} {}: make space on its disk, or choose another --data-dir", path.display())
            }
            Self::Io { action, path, .. } => {
                write!(f, "cannot {action} {}: check that it exists and who may use it", path.display())
            }
        }
    }
}

impl std::error::Error for DataDirError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::InUse { .. } | Self::Corrupt { .. } => None,
        }
    }
}

const LOCK_FILE: &str = "lock";
const INSTANCE_FILE: &str = "instance";
const SECRET_FILE: &str = "secret";

const INSTANCE_EXPECTED: &str = "the instance tag, 4 hex digits";
const SECRET_EXPECTED: &str = "the tenant secret, 64 hex digits";

/// Who may read what is stored, if it was made by us: the owner, and a group that he lets in. SQLite gives the log the mode of
/// the store's file.
const FILE_MODE: u32 = 0o640;

/// How files of the store are made: for reading and writing, and emptied if `truncate`.
pub(super) fn make_file(file: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(truncate).write(true).mode(FILE_MODE).open(file)
}

/// A start asks so often for the lock, and pauses so long in between: whoever only looks whether it is held has it for some
/// microseconds.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Takes the lock, unless another process has it.
fn take(lock: &File) -> Result<(), TryLockError> {
    for _ in 1..LOCK_TRIES {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            answer => return answer,
        }
    }
    lock.try_lock()
}

/// Whether a process holds the lock of a data directory. Where that cannot be found out, one may.
pub(super) fn is_held(dir: &Path) -> bool {
    match File::open(dir.join(LOCK_FILE)) {
        Ok(lock) => lock.try_lock_shared().is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The store's file in a data directory.
pub(super) fn database_file(dir: &Path) -> PathBuf {
    dir.join("snapshots.db")
}

/// The store's reserve in a data directory.
pub(super) fn ballast_file(dir: &Path) -> PathBuf {
    dir.join("ballast")
}

impl DataDir {
    /// Makes the directory if it is not there, locks it, and reads or draws its tag and its secret.
    ///
    /// # Errors
    /// Another process holds the lock, a file is corrupt, or the operating system refuses.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        // Records say who asked for what and when: they are for the owner, and for a group that he lets in.
        let made = DirBuilder::new().recursive(true).mode(0o750).create(path);
        made.map_err(|source| io_error("create the directory", path, source))?;
        let lock_file = path.join(LOCK_FILE);
        let lock = make_file(&lock_file, false).map_err(|source| io_error("open the lock file", &lock_file, source))?;
        match take(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataDirError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock the file", &lock_file, source)),
        }
        let [high, low] = read_or_draw(&path.join(INSTANCE_FILE), INSTANCE_EXPECTED)?;
        let secret = read_or_draw(&path.join(SECRET_FILE), SECRET_EXPECTED)?;
        let tag = InstanceTag(u16::from_be_bytes([high, low]));
        Ok(Self { path: path.to_owned(), tag, secret: Secret(secret), _lock: lock })
    }

    /// For the command line: takes no lock, makes nothing, and does not need to be allowed to read the secret.
    ///
    /// # Errors
    /// There is no data directory at `path`, or its tag cannot be read.
    pub fn open_read_only(path: &Path) -> Result<ReadOnlyDataDir, DataDirError> {
        let file = path.join(INSTANCE_FILE);
        let [high, low] = read_hex(&file, INSTANCE_EXPECTED)?;
        Ok(ReadOnlyDataDir { path: path.to_owned(), tag: InstanceTag(u16::from_be_bytes([high, low])) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The instance's tag: part of every ID that is issued from here.
    pub fn tag(&self) -> InstanceTag {
        self.tag
    }

    /// The key of the tenant hash.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret.0
    }
}

impl ReadOnlyDataDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The instance's tag.
    pub fn tag(&self) -> InstanceTag {
        self.tag
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> DataDirError {
    DataDirError::Io { action, path: path.to_owned(), source }
}

fn read_or_draw<const N: usize>(file: &Path, expected: &'static str) -> Result<[u8; N], DataDirError> {
    match read_hex(file, expected) {
        Err(DataDirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        answer => return answer,
    }
    let mut drawn = [0; N];
    rand::fill(&mut drawn);
    write_hex(file, &drawn).map_err(|source| io_error("write the file", file, source))?;
    Ok(drawn)
}

fn read_hex<const N: usize>(file: &Path, expected: &'static str) -> Result<[u8; N], DataDirError> {
    let text = fs::read(file).map_err(|source| io_error("read the file", file, source))?;
    parse_hex(text.trim_ascii()).ok_or_else(|| DataDirError::Corrupt { file: file.to_owned(), expected })
}

fn parse_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

/// Written whole under another name first: a crash leaves either no file or a good one.
fn write_hex(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = file.with_extension("new");
    let mut writer = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(writer, "{digits}")?;
    writer.sync_all()?;
    fs::rename(&unfinished, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_and_secret_are_drawn_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/by/open");
        let (tag, secret) = {
            let opened = DataDir::open(&path).unwrap();
            (opened.tag(), *opened.secret())
        };
        let again = DataDir::open(&path).unwrap();
        assert_eq!((again.tag(), *again.secret()), (tag, secret));
        assert_eq!(DataDir::open_read_only(&path).unwrap().tag(), tag, "also while it is locked");
        assert!(!format!("{again:?}").contains(&format!("{:?}", secret)), "a secret is never printed");
    }

    #[test]
    fn only_its_owner_may_read_the_secret() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let _opened = DataDir::open(dir.path()).unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(SECRET_FILE), mode(LOCK_FILE) & 0o007), (0o600, 0));
    }

    #[test]
    fn a_second_owner_is_told_who_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let opened = DataDir::open(dir.path()).unwrap();
        let text = DataDir::open(dir.path()).unwrap_err().to_string();
        let lock = dir.path().join(LOCK_FILE).display().to_string();
        assert!(text.contains(&lock) && text.contains("--data-dir"), "{text}");
        drop(opened);
        DataDir::open(dir.path()).expect("the lock ends with its owner");
    }

    #[test]
    fn a_corrupt_file_is_an_error_and_stays_as_it_is() {
        for (name, text) in
            [(INSTANCE_FILE, ""), (INSTANCE_FILE, "12g4"), (INSTANCE_FILE, "12345"), (SECRET_FILE, "00ff")]
        {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), text).unwrap();
            let error = DataDir::open(dir.path()).unwrap_err();
            assert!(
                matches!(&error, DataDirError::Corrupt { file, .. } if file.ends_with(name)),
                "{name} {text:?}: {error}"
            );
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), text);
        }
    }

    #[test]
    fn reading_only_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let error = DataDir::open_read_only(&dir.path().join("absent")).unwrap_err();
        assert!(matches!(error, DataDirError::Io { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

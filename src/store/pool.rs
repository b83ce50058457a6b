//! A few connections for reading, lent one at a time. They are opened when they are first needed.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::decode::Known;
use super::{OpenError, ReadError, schema};

/// So many readers at a time; the next one waits. More would only wait for the disk instead.
const CONNECTIONS_MAX: usize = 4;

/// Page cache of one connection: the upper levels of the indices and some of the last records.
const CACHE_KIB: i64 = 4 * 1024;

/// How long a reader waits for a lock; it meets one only while a log is recovered.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// A connection, and what it has read that records share.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) known: Known,
}

/// The connections of one store's readers.
pub(super) struct Pool {
    file: PathBuf,
    state: Mutex<State>,
    returned: Condvar,
    /// The file as the writer has it open: closed after the connections, because closing it frees their locks.
    _writers: Option<Arc<File>>,
}

#[derive(Default)]
struct State {
    idle: VecDeque<Session>,
    open: usize,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Pool {
    /// `writers` is the file as the writer of this process has it open, if there is one.
    pub(super) fn new(file: PathBuf, writers: Option<Arc<File>>) -> Self {
        Self { file, state: Mutex::default(), returned: Condvar::new(), _writers: writers }
    }

    /// Does some reading on a connection, waiting for one if all are lent.
    pub(super) fn read<T>(&self, work: impl FnOnce(&mut Session) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let mut loan = Loan { pool: self, session: self.wait() };
        if loan.session.is_none() {
            let connection = connect(&self.file).map_err(ReadError::Open)?;
            loan.session = Some(Session { connection, known: Known::default() });
        }
        work(loan.session.as_mut().expect("a session was put there two lines above"))
    }

    /// An idle session, or none and the right to open one.
    fn wait(&self) -> Option<Session> {
        let mut state = self.locked();
        loop {
            if let Some(session) = state.idle.pop_back() {
                return Some(session);
            }
            if state.open < CONNECTIONS_MAX {
                state.open += 1;
                return None;
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A panic under this lock cannot leave the state torn: nothing in it can fail half-way.
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the session back, or the right to open one, whatever becomes of the work.
struct Loan<'p> {
    pool: &'p Pool,
    session: Option<Session>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        // A panic may have left a transaction open or a memory half filled: such a connection is closed.
        let session = self.session.take().filter(|_| !std::thread::panicking());
        let mut state = self.pool.locked();
        match session {
            Some(session) => state.idle.push_back(session),
            None => state.open -= 1,
        }
        drop(state);
        self.pool.returned.notify_one();
    }
}

/// Opens the store's file for reading and checks that this binary can read it. Makes nothing: a file without a log was
/// closed cleanly and has no writer, so it is read as it is, without the files that SQLite would put beside it.
pub(super) fn connect(file: &Path) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Sqlite { file: file.to_owned(), source };
    if !file.exists() {
        return Err(OpenError::Missing { file: file.to_owned() });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = if log_file(file).exists() {
        Connection::open_with_flags(file, flags)
    } else {
        Connection::open_with_flags(immutable_uri(file), flags | OpenFlags::SQLITE_OPEN_URI)
    };
    let connection = connection.map_err(failed)?;
    connection.busy_timeout(BUSY_WAIT).map_err(failed)?;
    let known = schema::MIGRATIONS.len() as u64;
    let found = schema::check_version(&connection, file, known)?;
    if found < known {
        return Err(OpenError::Older { file: file.to_owned(), found, known });
    }
    schema::prepare(&connection, CACHE_KIB).map_err(failed)?;
    Ok(connection)
}

fn log_file(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// Every byte that could mean something in a URI is escaped.
fn immutable_uri(file: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in file.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

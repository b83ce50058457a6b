//! Takes the log over into the file on a thread of its own, so that no commit waits for the disk.
//!
//! A pass copies pages while commits go on, and syncs the log and the file. SQLite begins the log anew only at a commit that
//! finds all of it taken over, which never happens by itself while there is a commit every few milliseconds. So passes are
//! repeated until the rest is small and the disk is quick, and for the last one the worker holds its next commit back, for
//! at most [`HOLD_MAX`]. Whatever comes of it, the next hold is at least [`HOLD_PAUSE`] later; a log that grows meanwhile does no
//! harm, so the blocking way is left for a log that is nearly too large. One that is too large makes commits wait, first for the
//! pass that is under way and then for the log to begin anew: so it outgrows its limit only by what is written from one look
//! at it to the next, unless somebody else's read transaction needs it, which no waiting would end.
//!
//! The worker drives: it gives the thread one pass at a time and reads what came of it between transactions.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ffi};

use super::Durability;
use super::wal::{self, Extent};
use super::writer::connect_again;

/// For so long at most is a commit held back. With a commit every 25 ms, half of it is time in which none is due; so
/// what ended is stored within 100 ms also then.
pub(super) const HOLD_MAX: Duration = Duration::from_millis(50);

/// For so long at most is a commit held back for a pass while the log is too large: what the disk cannot take must not be
/// written, but records that wait have only so much room.
pub(super) const FULL_HOLD_MAX: Duration = Duration::from_secs(1);

/// From one hold to the next: at most one commit of forty is held back.
const HOLD_PAUSE: Duration = Duration::from_secs(1);

/// The last pass is tried with at most so many pages left, a few commits' worth: 2 MiB to copy and to sync.
const TAIL_PAGES_MAX: u64 = 512;

/// From three quarters of the largest size on commits wait for the log to begin anew, if at most so many pages are left: 16 MiB.
/// At the largest size, whatever is left.
const RESTART_TAIL_PAGES_MAX: u64 = 8 * TAIL_PAGES_MAX;

/// After a pass that did not halve the rest, because a reader needs it or the disk is slow, how long until the next.
const PASS_PAUSE: Duration = Duration::from_millis(250);

/// After a wait for a reader that was in vain, how long until the next.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// How long after the thread's unexpected end, or a failed start, it is started again.
const REVIVE_PAUSE: Duration = Duration::from_secs(1);

/// One pass of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// While commits go on. The file is synced as well, so that little is left to sync in the last pass.
    Pass,
    /// While the next commit is held back.
    LastPass,
}

/// What came of a pass.
#[derive(Debug)]
struct Report {
    job: Job,
    took: Duration,
    result: rusqlite::Result<Extent>,
}

#[derive(Debug)]
enum Stage {
    Idle,
    /// The thread is at work.
    Passing,
    /// It is, and the next commit waits for it, until then.
    Holding {
        until: Instant,
    },
}

/// Which store the passes are for.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) path: PathBuf,
    pub(super) durability: Durability,
    /// The file at `path`, for syncing it. It is kept open by everybody with connections to it, because closing it frees the
    /// locks that SQLite has on it in this process.
    pub(super) file: Arc<File>,
}

/// The bounds of the log, and of what commits wait for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of one page.
    pub(super) page_bytes: u64,
    /// From so many bytes of log on it is taken over.
    pub(super) from_bytes: u64,
    /// More is a problem.
    pub(super) max_bytes: u64,
    /// For so long at most is a commit held back for the last pass: [`HOLD_MAX`].
    pub(super) hold_max: Duration,
    /// For so long at most for a pass while the log is too large: [`FULL_HOLD_MAX`].
    pub(super) full_hold_max: Duration,
}

/// Why the log is larger than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    /// A read transaction, which is none of ours, still needs it.
    Reader,
    /// It is not yet taken over.
    Disk,
}

/// The worker's end: decides what the thread does, and owns it.
pub(super) struct Checkpointer {
    bounds: Bounds,
    site: Site,
    thread: Option<Thread>,
    stage: Stage,
    /// Read while a transaction was held back, to be judged between transactions.
    returned: Option<Report>,
    /// The last pass was so quick that the next may be the last one.
    rehearsed: bool,
    /// Pages that were left when the last pass was given out.
    tail_before: u64,
    pause_until: Option<Instant>,
    hold_at: Option<Instant>,
    /// A reader has kept the log from beginning anew when that was last tried: when to try again.
    blocked_until: Option<Instant>,
    overflow: Option<Overflow>,
    revive_at: Option<Instant>,
    held: Duration,
    trouble: Option<String>,
    #[cfg(test)]
    hook: Hook,
}

/// Called before each pass, for tests that make it slow, let it fail or end the thread.
#[cfg(test)]
pub(super) type Hook = Arc<std::sync::Mutex<Option<Box<dyn FnMut(Job) -> rusqlite::Result<()> + Send>>>>;

impl std::fmt::Debug for Checkpointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpointer").field("bounds", &self.bounds).field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Checkpointer {
    /// Starts the thread.
    ///
    /// # Errors
    /// The file cannot be opened, or the operating system has no thread to give.
    pub(super) fn start(bounds: Bounds, site: Site) -> rusqlite::Result<Self> {
        let mut checkpointer = Self {
            bounds,
            site,
            thread: None,
            stage: Stage::Idle,
            returned: None,
            rehearsed: false,
            tail_before: 0,
            pause_until: None,
            hold_at: None,
            blocked_until: None,
            overflow: None,
            revive_at: None,
            held: Duration::ZERO,
            trouble: None,
            #[cfg(test)]
            hook: Hook::default(),
        };
        checkpointer.thread = Some(checkpointer.spawn()?);
        Ok(checkpointer)
    }

    /// The store's file, for others with connections to it to keep open.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.site.file)
    }

    /// Why the log is not taken over, for `/readyz`; `None` as soon as a pass succeeds.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Why the log is larger than it may be, if it is.
    pub(super) fn overflow(&self) -> Option<Overflow> {
        self.overflow
    }

    /// How long transactions were held back since the last call.
    pub(super) fn take_held(&mut self) -> Duration {
        std::mem::take(&mut self.held)
    }

    /// To be called before each transaction: waits for the last pass if one is under way, never past its time.
    pub(super) fn let_finish(&mut self) {
        let Stage::Holding { until } = self.stage else { return };
        let Some(thread) = &self.thread else { return };
        let began = Instant::now();
        let answer = thread.reports.recv_timeout(until.saturating_duration_since(began));
        let held = began.elapsed();
        self.held += held;
        tracing::debug!(?held, finished = answer.is_ok(), "a transaction was held back for the store's log");
        // If it is not done it goes on, and what it takes over counts. If it has ended, the next look for its report notices.
        self.returned = answer.ok();
        self.stage = Stage::Passing;
    }

    /// To be called between transactions: reads what came of a pass, and gives out the next one if it is time.
    ///
    /// # Errors
    /// A pass failed, or the log cannot be looked at; the next call goes on.
    pub(super) fn keep_small(&mut self, connection: &Connection) -> rusqlite::Result<Extent> {
        let now = Instant::now();
        self.revive(now);
        let passed = self.collect();
        let extent = wal::extent(connection)?;
        let gained = passed?.is_some() && extent.tail() <= self.tail_before / 2;
        let extent = self.restart_if_large(connection, extent, now)?;
        let waits = |at: Option<Instant>| at.is_some_and(|at| now < at);
        if extent.bytes(self.bounds.page_bytes) < self.bounds.from_bytes
            || extent.tail() == 0
            || !self.is_idle()
            || (waits(self.pause_until) && !gained)
        {
            return Ok(extent);
        }
        if self.rehearsed && extent.tail() <= TAIL_PAGES_MAX {
            if !waits(self.hold_at) {
                self.hold_at = Some(now + HOLD_PAUSE);
                self.give(Job::LastPass, extent);
            }
        } else {
            self.pause_until = Some(now + PASS_PAUSE);
            self.give(Job::Pass, extent);
        }
        Ok(extent)
    }

    /// Commits wait for a log that is too large, or nearly so and soon done with; but not for a reader that has not ended the last
    /// time.
    fn restart_if_large(&mut self, connection: &Connection, extent: Extent, now: Instant) -> rusqlite::Result<Extent> {
        let (bytes, max_bytes) = (extent.bytes(self.bounds.page_bytes), self.bounds.max_bytes);
        let full = bytes >= max_bytes;
        let nearly = bytes >= max_bytes / 4 * 3 && extent.tail() <= RESTART_TAIL_PAGES_MAX;
        self.overflow = None;
        if extent.tail() == 0 || !(full || nearly) {
            return Ok(extent);
        }
        if self.blocked_until.is_some_and(|until| now < until) {
            self.overflow = full.then_some(Overflow::Reader);
            return Ok(extent);
        }
        if !self.is_idle() {
            if full {
                self.overflow = Some(Overflow::Disk);
                self.stage = Stage::Holding { until: now + self.bounds.full_hold_max };
            }
            return Ok(extent);
        }
        let restarted = wal::restart(connection);
        let blocked = matches!(restarted, Ok((_, true)));
        self.blocked_until = blocked.then(|| now + RESTART_PAUSE);
        self.overflow = (blocked && full).then_some(Overflow::Reader);
        let restarted = restarted.map(|(extent, _)| extent);
        self.note(&restarted);
        restarted
    }

    /// Takes over what it can on the worker's own connection: for a full disk, when commits are refused anyway. Answers
    /// whether it was tried; it is not while the thread is at work.
    pub(super) fn take_over_here(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        self.collect()?;
        if !self.is_idle() {
            return Ok(false);
        }
        let passed = wal::passive(connection);
        self.note(&passed);
        passed.map(|_| true)
    }

    /// For tests in which what a commit waits for comes as late as it comes.
    #[cfg(test)]
    pub(super) fn bounds(&mut self) -> &mut Bounds {
        &mut self.bounds
    }

    /// For tests that disturb the passes.
    #[cfg(test)]
    pub(super) fn hook(&self) -> Hook {
        Arc::clone(&self.hook)
    }

    fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    fn give(&mut self, job: Job, extent: Extent) {
        let Some(thread) = &self.thread else { return };
        self.rehearsed = false;
        self.tail_before = extent.tail();
        // There is room for the one pass. If the thread has ended, the next look for its report notices.
        thread.jobs.as_ref().map(|jobs| jobs.try_send(job).ok());
        self.stage = match job {
            Job::Pass => Stage::Passing,
            Job::LastPass => Stage::Holding { until: Instant::now() + self.bounds.hold_max },
        };
    }

    /// What came of the pass that has ended since, if one has.
    fn collect(&mut self) -> rusqlite::Result<Option<Extent>> {
        let Some(thread) = &self.thread else { return Ok(None) };
        let report = match self.returned.take() {
            Some(report) => report,
            None => match thread.reports.try_recv() {
                Ok(report) => report,
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => {
                    self.bury();
                    return Ok(None);
                }
            },
        };
        self.stage = Stage::Idle;
        self.note(&report.result);
        tracing::debug!(job = ?report.job, took = ?report.took, result = ?report.result, "the store's log was taken over");
        // The next one may hold commits back only if this disk would be done in time.
        self.rehearsed = report.job == Job::Pass && report.took <= self.bounds.hold_max && report.result.is_ok();
        report.result.map(Some)
    }

    fn note(&mut self, passed: &rusqlite::Result<Extent>) {
        self.trouble = passed.as_ref().err().map(|error| {
            format!("the store's log cannot be taken over into its file: {error}: look at the file and its disk")
        });
    }

    /// The thread has ended by itself, which only a panic can do.
    fn bury(&mut self) {
        tracing::error!("the store's checkpoint thread has ended; it is started again");
        self.trouble =
            Some("the store's checkpoint thread has ended and is started again: report this with the log".into());
        self.stage = Stage::Idle;
        self.rehearsed = false;
        self.thread = None;
        self.revive_at = Some(Instant::now() + REVIVE_PAUSE);
    }

    fn revive(&mut self, now: Instant) {
        if self.thread.is_some() || self.revive_at.is_some_and(|at| now < at) {
            return;
        }
        match self.spawn() {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                self.revive_at = Some(now + REVIVE_PAUSE);
                self.trouble =
                    Some(format!("the store's checkpoint thread cannot be started: {error}: restart the gateway"));
            }
        }
    }

    fn spawn(&self) -> rusqlite::Result<Thread> {
        // One pass at a time is given and reported, so neither end ever waits for room.
        let (jobs, given) = mpsc::sync_channel(1);
        let (report, reports) = mpsc::sync_channel(1);
        let passes = Passes {
            connection: connect_again(&self.site.path, self.site.durability)?,
            file: Arc::clone(&self.site.file),
            #[cfg(test)]
            hook: Arc::clone(&self.hook),
        };
        let handle = std::thread::Builder::new()
            .name("snapgate-checkpoint".into())
            .spawn(move || passes.run(&given, &report))
            .map_err(|error| refused(&error, ffi::SQLITE_NOMEM))?;
        Ok(Thread { jobs: Some(jobs), reports, handle: Some(handle) })
    }
}

/// The thread, seen from the worker. Dropping it ends it after the pass that is under way.
struct Thread {
    /// `None` when it is to end.
    jobs: Option<SyncSender<Job>>,
    reports: Receiver<Report>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.jobs = None;
        // A panic was said by the panic hook and noticed by the missing report.
        let _ended = self.handle.take().map(JoinHandle::join);
    }
}

/// The thread's end.
struct Passes {
    connection: Connection,
    file: Arc<File>,
    #[cfg(test)]
    hook: Hook,
}

impl Passes {
    fn run(self, jobs: &Receiver<Job>, reports: &SyncSender<Report>) {
        while let Ok(job) = jobs.recv() {
            let began = Instant::now();
            let result = self.pass(job);
            // Nobody reads it when the store is being closed; the end of the jobs says so next.
            reports.try_send(Report { job, took: began.elapsed(), result }).ok();
        }
    }

    fn pass(&self, job: Job) -> rusqlite::Result<Extent> {
        #[cfg(test)]
        if let Some(hook) = self.hook.lock().unwrap_or_else(std::sync::PoisonError::into_inner).as_mut() {
            hook(job)?;
        }
        let extent = wal::passive(&self.connection)?;
        // SQLite syncs the file itself only in a pass that no commit overtakes, which is what the last one is for.
        if job == Job::Pass {
            self.file.sync_data().map_err(|error| {
                let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                refused(&error, if full { ffi::SQLITE_FULL } else { ffi::SQLITE_IOERR_FSYNC })
            })?;
        }
        Ok(extent)
    }
}

/// The operating system's refusal in SQLite's terms, because it is judged like SQLite's own.
pub(super) fn refused(error: &io::Error, code: std::ffi::c_int) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(error.to_string()))
}

//! The log is taken over beside the commits: what is slow or broken there is seen, and keeps no commit from its time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Instant;

use rusqlite::ffi;

use super::*;
use crate::store::checkpoint::Job;

/// A writer that commits as the worker does, only more often and less at a time.
struct Load {
    writer: Writer,
    randoms: u64,
    /// How many records there are when the commit that is under way is done.
    wanted: Arc<AtomicU64>,
    until: Instant,
}

impl Load {
    fn start(place: &mut Place) -> (Self, Reader) {
        let settings = Settings { wal_checkpoint_bytes: 256 << 10, ..small() };
        let (writer, reader) = place.open_at(&settings, NOW);
        (Self::of(writer), reader)
    }

    fn of(writer: Writer) -> Self {
        Self { writer, randoms: 0, wanted: Arc::default(), until: Instant::now() + PATIENCE }
    }

    fn commit(&mut self) -> Maintenance {
        assert!(Instant::now() < self.until, "what was waited for did not come");
        let records = plains(NOW, self.randoms..self.randoms + 5);
        self.randoms += 5;
        self.wanted.store(self.randoms, Relaxed);
        store(&mut self.writer, &records, NOW);
        let done = self.writer.maintain(NOW, false, SECOND);
        // The worker's pace, not a wait for anything.
        std::thread::sleep(Duration::from_millis(1));
        done
    }

    fn commit_until(&mut self, mut reached: impl FnMut(&Maintenance) -> bool) -> Maintenance {
        loop {
            let done = self.commit();
            if reached(&done) {
                return done;
            }
        }
    }

    /// Commits until the log has begun anew.
    fn commit_until_restart(&mut self) {
        let mut before = 0;
        self.commit_until(|done| std::mem::replace(&mut before, done.wal_bytes) > done.wal_bytes);
    }

    fn on_pass(&self, hook: impl FnMut(Job) -> rusqlite::Result<()> + Send + 'static) {
        *self.writer.checkpoint_hook().lock().unwrap() = Some(Box::new(hook));
    }

    /// Passes of this kind stand still from now on: answers their begins, and what lets all go on when it is dropped.
    fn stop_at(&self, stopped: Job) -> (mpsc::Receiver<()>, mpsc::SyncSender<()>) {
        let (begin, begun) = mpsc::sync_channel(1);
        let (release, released) = mpsc::sync_channel::<()>(0);
        self.on_pass(move |job| {
            if job == stopped {
                begin.try_send(()).ok();
                assert!(
                    released.recv_timeout(PATIENCE).is_err_and(|error| error == mpsc::RecvTimeoutError::Disconnected)
                );
            }
            Ok(())
        });
        (begun, release)
    }
}

fn log_bytes(place: &Place) -> u64 {
    fs::metadata(database_file(place.path()).with_extension("db-wal")).map_or(0, |file| file.len())
}

#[test]
fn commits_go_on_while_a_pass_is_slow() {
    let mut place = Place::new();
    let (mut load, reader) = Load::start(&mut place);
    let (begun, release) = load.stop_at(Job::Pass);
    load.commit_until(|_| begun.try_recv().is_ok());
    let first = load.writer.next_seq();
    for _ in 0..100 {
        let done = load.commit();
        assert_eq!((done.held_back, done.problem), (Duration::ZERO, None));
    }
    assert_eq!(
        reader.after(first - 1, u64::MAX, 1_000).unwrap().len(),
        500,
        "all of them are there, the pass is not done"
    );
    drop(release);
    load.commit_until_restart();
    assert_eq!(place.sql::<String>("PRAGMA integrity_check"), "ok");
}

#[test]
fn a_commit_waits_for_the_last_pass() {
    let mut place = Place::new();
    let (mut load, reader) = Load::start(&mut place);
    // However late the thread is, the pass has its time.
    load.writer.checkpoint_bounds().hold_max = PATIENCE;
    let (end, ended) = mpsc::channel();
    let wanted = Arc::clone(&load.wanted);
    load.on_pass(move |job| {
        if job == Job::LastPass {
            let stored = || reader.last_seq().unwrap();
            let (first, until) = (stored(), Instant::now() + PATIENCE);
            while wanted.load(Relaxed) == first && Instant::now() < until {
                std::thread::yield_now();
            }
            // Nobody listens after the first.
            end.send((0..5_000).all(|_| stored() == first)).ok();
        }
        Ok(())
    });
    // The commit that is held back is the one after the maintenance that gave out the pass.
    load.commit_until(|done| !done.held_back.is_zero());
    assert_eq!(ended.try_recv(), Ok(true), "nothing was stored while the pass was under way and a commit wanted to");
}

#[test]
fn a_commit_waits_for_the_last_pass_not_past_its_time() {
    let mut place = Place::new();
    let (mut load, reader) = Load::start(&mut place);
    let (begun, release) = load.stop_at(Job::LastPass);
    // It comes back while the pass stands still.
    load.commit_until(|done| !done.held_back.is_zero());
    begun.recv_timeout(PATIENCE).expect("nothing else holds a commit back");
    for _ in 0..20 {
        assert_eq!(load.commit().held_back, Duration::ZERO, "the pass had its time");
    }
    assert_eq!(reader.after(0, u64::MAX, 100_000).unwrap().len() as u64, load.randoms);
    drop(release);
    load.commit_until_restart();
}

#[test]
fn the_log_begins_anew_under_continuous_commits() {
    let mut place = Place::new();
    let (mut load, _) = Load::start(&mut place);
    let (mut restarts, mut before) = (0, 0);
    load.commit_until(|done| {
        assert_eq!(done.problem, None);
        restarts += u32::from(done.wal_bytes < before);
        before = done.wal_bytes;
        restarts == 4
    });
}

#[test]
fn the_log_stays_within_its_limit_however_fast_commits_come() {
    let mut place = Place::new();
    let max = 2 << 20;
    let settings = Settings { wal_checkpoint_bytes: 256 << 10, wal_max_bytes: max, ..small() };
    let (mut writer, reader) = place.open_at(&settings, NOW);
    // However late the thread is, commits wait for it.
    writer.checkpoint_bounds().full_hold_max = PATIENCE;
    let (mut before, mut written) = (0, 0);
    for round in 0..300 {
        store(&mut writer, &plains(NOW, round * 200..round * 200 + 200), NOW);
        if round % 10 == 0 {
            // Lookups go on meanwhile; their transactions are short.
            assert_eq!(reader.after(round * 200, u64::MAX, 100).unwrap().len(), 100);
        }
        let done = writer.maintain(NOW, false, Duration::from_millis(1));
        written += done.wal_bytes.saturating_sub(before);
        before = done.wal_bytes;
        // A thread that does not get to run for a while is a slow disk, for as long as that.
        let slow = done.problem.as_ref().is_none_or(|problem| problem.contains("disk is slower"));
        assert!(slow, "in round {round}: {done:?}");
        // One commit has some 200 KiB.
        let log = log_bytes(&place);
        assert!(log <= max + (512 << 10), "the log has {log} bytes in round {round}");
    }
    assert!(written > 10 * max, "{written} bytes went through the log");
    let mut load = Load { randoms: 60_000, ..Load::of(writer) };
    load.commit_until(|done| done.problem.is_none());
}

#[test]
fn commits_wait_for_a_disk_that_is_slower_than_they_are_and_the_problem_says_so() {
    let mut place = Place::new();
    let max = 1 << 20;
    let settings = Settings { wal_checkpoint_bytes: 256 << 10, wal_max_bytes: max, ..small() };
    let (writer, _) = place.open_at(&settings, NOW);
    let mut load = Load::of(writer);
    let (begun, release) = load.stop_at(Job::Pass);
    let full = load.commit_until(|done| done.wal_bytes > max);
    begun.recv_timeout(PATIENCE).expect("the disk is at work");
    assert!(full.problem.as_ref().is_some_and(|problem| problem.contains("disk is slower")), "{full:?}");
    let slowed = load.commit();
    assert!(!slowed.held_back.is_zero(), "the log grows by a commit at a time only: {slowed:?}");
    drop(release);
    load.commit_until(|done| done.problem.is_none());
    assert!(load.commit().wal_bytes < max);
}

#[test]
fn a_clean_end_waits_for_the_thread_and_leaves_an_empty_log() {
    for clean in [true, false] {
        let mut place = Place::new();
        let (mut load, reader) = Load::start(&mut place);
        load.commit_until_restart();
        // A reader's connection keeps the log's file from being removed.
        assert_eq!(reader.after(0, u64::MAX, 100_000).unwrap().len() as u64, load.randoms);
        assert!(log_bytes(&place) > 0);
        let hook = load.writer.checkpoint_hook();
        assert_eq!(Arc::strong_count(&hook), 3, "one here, one with the writer, one with the thread");
        if clean {
            load.writer.close(NOW);
            assert_eq!(log_bytes(&place), 0);
        } else {
            drop(load.writer);
        }
        assert_eq!(Arc::strong_count(&hook), 1, "the thread has ended");
        assert_eq!(place.sql::<i64>("SELECT count(*) FROM records").cast_unsigned(), load.randoms);
    }
}

#[test]
fn a_thread_that_panics_is_noticed_and_replaced() {
    let mut place = Place::new();
    let (mut load, _) = Load::start(&mut place);
    let mut panics = 0..1;
    load.on_pass(move |_| {
        assert!(panics.next().is_none(), "a bug in the checkpoint");
        Ok(())
    });
    let done = load.commit_until(|done| done.problem.is_some());
    assert!(done.problem.as_ref().unwrap().contains("checkpoint thread has ended"), "{done:?}");
    let still = load.commit();
    assert_eq!(still.problem, done.problem, "a commit that succeeds does not hide it");
    load.commit_until(|done| done.problem.is_none());
    load.commit_until_restart();
}

#[test]
fn a_pass_that_fails_is_a_problem_until_one_succeeds() {
    let mut place = Place::new();
    let (mut load, _) = Load::start(&mut place);
    let mut failures = 0..3;
    load.on_pass(move |_| match failures.next() {
        Some(_) => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), None)),
        None => Ok(()),
    });
    let done = load.commit_until(|done| done.problem.is_some());
    let still = load.commit();
    assert!(still.problem.as_ref().is_some_and(|problem| problem.contains("taken over")), "{done:?}, {still:?}");
    load.commit_until(|done| done.problem.is_none());
    load.commit_until_restart();
}

#[test]
fn a_disk_that_is_full_for_a_pass_costs_the_ballast_until_there_is_space() {
    let mut place = Place::new();
    let (mut load, _) = Load::start(&mut place);
    let (begin, begun) = mpsc::sync_channel(1);
    load.on_pass(move |_| match begin.try_send(()) {
        Ok(()) => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None)),
        Err(_) => Ok(()),
    });
    let done = load.commit_until(|done| done.problem.is_some());
    assert!(done.problem.as_ref().is_some_and(|problem| problem.contains("full")), "{done:?}");
    let ballast = place.path().join("ballast");
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 0, "the reserve was given back");
    let refused = load.writer.commit(load.writer.next_seq(), &[], &[], &[], NOW).unwrap_err();
    assert!(matches!(refused, CommitError::DiskFull), "{refused}");
    drop(begun);
    // There is space, as the next look finds.
    load.writer.maintain(NOW, false, SECOND);
    assert_eq!(fs::metadata(&ballast).unwrap().len(), small().ballast_bytes);
    load.commit_until(|done| done.problem.is_none());
    load.commit_until_restart();
}

//! One exit: a thread, a small queue and a cursor.
//!
//! A lane takes a batch from memory only if it continues its cursor; otherwise it reads the store from there. So an exit
//! that was slow, down or restarted catches up in bounded memory, and nothing upstream of it ever waits.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tokio::sync::watch;

use super::PANICS_PER_BATCH_MAX;
use super::lag::Lag;
use super::lot::{Batch, Room};
use super::pause::{BACKOFF, pause_after};
use crate::sink::{Refusal, Sink, Taken};
use crate::snapshot::Record;
use crate::store::{ReadError, Reader};
use crate::telemetry::{ExitBooks, Metrics};

/// Records between worker and lane. More would only be memory: what does not fit is read from the store.
pub(super) const QUEUE_RECORDS: usize = 16_384;

/// Batches that hold them. While there is little traffic they are small: these are 25 seconds' worth, which is all that an
/// exit can be late when the store is off or full.
const QUEUE_BATCHES: usize = 1_024;

/// How often an idle lane looks whether it missed something.
const IDLE: Duration = Duration::from_millis(500);

/// A receiver that has refused so many single records in a row, for good, refuses everything, such as for want of a
/// credential: from then on what it refuses is rejected whole, because the search would only find every one of them. The
/// first record that is taken ends that.
pub(super) const REFUSED_IN_A_ROW_MAX: u32 = 32;

/// A sink that has not come back so long after the deadline is left behind: the process ends without it.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// The worker's end of a lane.
#[derive(Debug)]
pub(super) struct Feed {
    name: &'static str,
    sender: Sender<Arc<Batch>>,
    shared: Arc<Shared>,
    books: ExitBooks,
}

/// Sequence numbers, written by one side and read by the other.
#[derive(Debug, Default)]
struct Shared {
    /// The last record there is. Written after its batch was sent or refused, see [`State::work`].
    head: AtomicU64,
    /// The last record that is done with, one way or the other.
    cursor: AtomicU64,
    /// Records in the queue.
    queued: AtomicUsize,
}

/// A running lane, to wait for.
#[derive(Debug)]
pub(super) struct Lane {
    name: &'static str,
    deadline: Sender<Instant>,
    /// Where the sink itself hears of it.
    stop_at: Option<watch::Sender<Option<Instant>>>,
    /// The lane's last cursor.
    ended: Receiver<u64>,
    shared: Arc<Shared>,
    books: ExitBooks,
    thread: JoinHandle<()>,
}

/// Starts a lane for `sink`. Its first record is the one after its stored cursor, or, for an exit nobody has seen
/// before, the one after `end`.
pub(super) fn start(
    sink: Box<dyn Sink>,
    reader: Option<Reader>,
    end: u64,
    metrics: &Metrics,
) -> io::Result<(Lane, Feed)> {
    let name = sink.name();
    let (cursor, owed) = owed(name, reader.as_ref(), end).map_err(io::Error::other)?;
    let (books, stop_at) = (metrics.exit(name), sink.stop_at());
    books.may_fail(sink.reasons());
    books.recover(owed);
    let shared = Shared { head: AtomicU64::new(end), cursor: AtomicU64::new(cursor), queued: AtomicUsize::new(0) };
    let shared = Arc::new(shared);
    let (sender, input) = bounded(QUEUE_BATCHES);
    let (deadline, stop) = bounded(1);
    let (done, ended) = bounded(1);
    let feed = Feed { name, sender, shared: Arc::clone(&shared), books: books.clone() };
    let state = State {
        sink,
        reader,
        input,
        stop,
        deadline: None,
        shared: Arc::clone(&shared),
        books: books.clone(),
        in_hand: None,
        ahead: None,
        cursor,
        refused_in_a_row: 0,
        gaps_counted: cursor,
    };
    let run = move || {
        // Refused only if nobody waits for it any more.
        done.try_send(state.run()).ok();
    };
    let thread = std::thread::Builder::new().name(format!("snapgate-{name}")).spawn(run)?;
    Ok((Lane { name, deadline, stop_at, ended, shared, books, thread }, feed))
}

/// The lane's cursor, and how many records up to `end` it has still to get.
fn owed(name: &str, reader: Option<&Reader>, end: u64) -> Result<(u64, u64), ReadError> {
    let Some(reader) = reader else { return Ok((end, 0)) };
    let Some(cursor) = reader.cursor(name)? else { return Ok((end, 0)) };
    let cursor = cursor.min(end);
    let unused = if cursor < end { reader.unused_seqs(cursor, end)? } else { 0 };
    Ok((cursor, end - cursor - unused))
}

impl Feed {
    /// Gives the lane a batch, or leaves it to read it from the store later. Never waits.
    pub(super) fn offer(&self, batch: &Arc<Batch>) {
        let count = batch.records.len() as u64;
        self.books.offer(count);
        // Only the worker adds, so what fits now will fit. Full: the lane finds the gap by its cursor, and what of it cannot
        // be read again is counted there.
        if self.shared.queued.load(Relaxed) + batch.records.len() <= QUEUE_RECORDS {
            self.shared.queued.fetch_add(batch.records.len(), Relaxed);
            if self.sender.try_send(Arc::clone(batch)).is_err() {
                self.shared.queued.fetch_sub(batch.records.len(), Relaxed);
            }
        }
        self.shared.head.store(batch.last_seq(), Release);
    }

    /// Records that the lane is not to have.
    pub(super) fn skip(&self, count: u64) {
        self.books.offered_and_skipped(count);
    }

    /// Records that the lane will never get.
    pub(super) fn withhold(&self, reason: &'static str, count: u64) {
        self.books.offered_and_dropped(reason, count);
    }

    /// The lane's name and the number of the last record it is done with.
    pub(super) fn cursor(&self) -> (&'static str, u64) {
        (self.name, self.shared.cursor.load(Relaxed))
    }

    /// Says how late the lane is, and how much is in its queue.
    pub(super) fn report(&self, lag: &mut Lag) {
        self.books.set_oldest(lag.oldest(self.shared.cursor.load(Relaxed)));
        self.books.set_queued(self.shared.queued.load(Relaxed));
    }
}

impl Lane {
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn books(&self) -> ExitBooks {
        self.books.clone()
    }

    /// Tells the lane and its sink when they have to be done.
    pub(super) fn stop(&self, deadline: Instant) {
        // The lane may have ended already, and then needs no deadline.
        self.deadline.try_send(deadline).ok();
        if let Some(stop_at) = &self.stop_at {
            stop_at.send_replace(Some(deadline));
        }
    }

    /// Waits until the lane is done or `deadline`, of which it was told, has come; answers with its cursor. Its feed must be
    /// gone.
    pub(super) fn join(self, deadline: Instant) -> u64 {
        if let Ok(cursor) = self.ended.recv_deadline(deadline + STUCK_AFTER) {
            // It has sent its last word, so this does not wait; and it cannot have panicked any more.
            self.thread.join().ok();
            return cursor;
        }
        tracing::error!(exit = self.name, "the exit is stuck in a delivery: what is left stays for the next start");
        self.shared.cursor.load(Relaxed)
    }
}

struct State {
    sink: Box<dyn Sink>,
    reader: Option<Reader>,
    input: Receiver<Arc<Batch>>,
    stop: Receiver<Instant>,
    deadline: Option<Instant>,
    shared: Arc<Shared>,
    books: ExitBooks,
    /// What is being delivered. Kept here so that a panic does not lose it.
    in_hand: Option<Arc<Batch>>,
    /// Taken from the queue when the lot before it was full.
    ahead: Option<Arc<Batch>>,
    cursor: u64,
    /// Single records refused for good since the last one that was taken.
    refused_in_a_row: u32,
    /// Up to here, records that could not be read are in the books.
    gaps_counted: u64,
}

/// The shutdown's deadline has come.
struct OutOfTime;

impl State {
    fn run(mut self) -> u64 {
        let mut pause = BACKOFF.0;
        // A panic is a bug in one batch's way, not a reason to lose the exit: go on with what was there.
        let ended = loop {
            match catch_unwind(AssertUnwindSafe(|| self.work())) {
                Ok(ended) => break ended,
                Err(_) => {
                    self.books.error("panic");
                    tracing::error!(exit = self.sink.name(), "the exit's thread panicked; it goes on where it was");
                    if self.pause(&mut pause, None).is_err() {
                        break Err(OutOfTime);
                    }
                }
            }
        };
        if ended.is_err() {
            let left = self.books.sums().pending;
            tracing::warn!(exit = self.sink.name(), left, "the exit ran out of time at shutdown");
        }
        self.cursor
    }

    fn work(&mut self) -> Result<(), OutOfTime> {
        loop {
            if let Some(batch) = self.in_hand.clone() {
                self.take(&batch)?;
                self.in_hand = None;
            }
            // Read before the wait: what it names was sent or refused by then, so if nothing comes, it was refused. A
            // later head may name a batch that is still on its way here, which must not count as missing.
            let refused_up_to = self.shared.head.load(Acquire);
            match self.next_lot() {
                Ok(lot) => self.in_hand = Some(lot),
                Err(RecvTimeoutError::Timeout) => self.catch_up(refused_up_to)?,
                Err(RecvTimeoutError::Disconnected) => return self.catch_up(self.shared.head.load(Acquire)),
            }
        }
    }

    /// The next batch, and with it those that are in the queue already and continue it.
    fn next_lot(&mut self) -> Result<Arc<Batch>, RecvTimeoutError> {
        let first = match self.ahead.take() {
            Some(batch) => batch,
            None => self.received(self.input.recv_timeout(IDLE)?),
        };
        let mut room = Room::LOT.beside(&first.records);
        let mut lot = Batch { first_seq: first.first_seq, records: Vec::new() };
        while let Ok(next) = self.input.try_recv() {
            let next = self.received(next);
            let last_seq = if lot.records.is_empty() { first.last_seq() } else { lot.last_seq() };
            room = match room.with(&next.records) {
                Some(left) if next.first_seq == last_seq + 1 => left,
                _ => {
                    self.ahead = Some(next);
                    break;
                }
            };
            if lot.records.is_empty() {
                lot.records.clone_from(&first.records);
            }
            lot.records.extend(next.records.iter().cloned());
        }
        Ok(if lot.records.is_empty() { first } else { Arc::new(lot) })
    }

    fn received(&self, batch: Arc<Batch>) -> Arc<Batch> {
        self.shared.queued.fetch_sub(batch.records.len(), Relaxed);
        batch
    }

    fn take(&mut self, batch: &Batch) -> Result<(), OutOfTime> {
        self.catch_up(batch.first_seq - 1)?;
        self.in_time()?;
        // What was read from the store already is not delivered twice.
        let done = (self.cursor + 1).saturating_sub(batch.first_seq) as usize;
        if done < batch.records.len() {
            let seqs: Vec<_> = (batch.first_seq..=batch.last_seq()).collect();
            self.deliver(&batch.records[done..], &seqs[done..])?;
        }
        Ok(())
    }

    /// Delivers from the store what lies between the cursor and `up_to`.
    fn catch_up(&mut self, up_to: u64) -> Result<(), OutOfTime> {
        while self.cursor < up_to {
            let (mut seqs, mut records, mut end, mut room) = (Vec::new(), Vec::new(), self.cursor, Room::LOT);
            while end < up_to && room.page() > 0 {
                self.in_time()?;
                let (after, limit) = (end, room.page());
                let page = self.patiently(|reader| reader.after(after, up_to, limit))?.unwrap_or_default();
                let begin = seqs.len();
                end = page.last().filter(|_| page.len() == limit).map_or(up_to, |(seq, _)| *seq);
                for (seq, record) in page {
                    seqs.push(seq);
                    records.push(record);
                }
                self.count_gaps(&seqs[begin..], end)?;
                room = room.beside(&records[begin..]);
            }
            self.deliver(&records, &seqs)?;
            self.move_to(end);
        }
        Ok(())
    }

    /// Enters into the books what a page should hold and does not. Once: after a panic the page is read again.
    fn count_gaps(&mut self, seqs: &[u64], page_end: u64) -> Result<(), OutOfTime> {
        let from = self.gaps_counted.max(self.cursor);
        let there = seqs.iter().filter(|seq| **seq > from).count() as u64;
        let mut missing = page_end.saturating_sub(from).saturating_sub(there);
        if missing > 0 {
            let unused = self.patiently(|reader| reader.unused_seqs(from, page_end))?;
            let horizon = self.patiently(|reader| reader.horizon_seq())?;
            missing -= unused.unwrap_or(0).min(missing);
            let erased = self.patiently(|reader| reader.erased_seqs(from, page_end))?.unwrap_or(0).min(missing);
            missing -= erased;
            let expired = missing.min(horizon.unwrap_or(0).saturating_sub(from));
            for (reason, count) in [("erased", erased), ("expired", expired), ("not_stored", missing - expired)] {
                if count > 0 {
                    self.books.lose(reason, count);
                }
            }
        }
        self.gaps_counted = self.gaps_counted.max(page_end);
        Ok(())
    }

    /// Asks the store, if there is one, until it answers.
    fn patiently<T>(&mut self, ask: impl Fn(&Reader) -> Result<T, ReadError>) -> Result<Option<T>, OutOfTime> {
        let mut pause = BACKOFF.0;
        loop {
            let Some(reader) = &self.reader else { return Ok(None) };
            match ask(reader) {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) => {
                    self.books.error("store_read");
                    tracing::warn!(exit = self.sink.name(), %error, "the store could not be read; trying again");
                    self.pause(&mut pause, None)?;
                }
            }
        }
    }

    /// Delivers all of `records`, whose numbers are `seqs`, and moves the cursor over them; what the sink refuses for good
    /// is found by halving and counted.
    fn deliver(&mut self, mut records: &[Arc<Record>], mut seqs: &[u64]) -> Result<(), OutOfTime> {
        let (mut pause, mut panics) = (BACKOFF.0, 0);
        while !seqs.is_empty() {
            let (refusal, about) = match self.try_sink(records, &mut panics) {
                Ok(taken) => {
                    if taken.records > 0 {
                        self.book(taken, seqs);
                        (records, seqs) = (&records[taken.records..], &seqs[taken.records..]);
                        (pause, panics) = (BACKOFF.0, 0);
                    }
                    match taken.refused {
                        Some(refused) => refused,
                        None if seqs.is_empty() => break,
                        None => {
                            self.in_time()?;
                            continue;
                        }
                    }
                }
                Err(refusal) => (refusal, records.len()),
            };
            self.books.error(refusal.reason());
            match refusal {
                Refusal::Hopeless(reason) => {
                    self.halve(&records[..about], &seqs[..about], reason)?;
                    (records, seqs) = (&records[about..], &seqs[about..]);
                }
                Refusal::Later(_) => self.pause(&mut pause, None)?,
                Refusal::After(_, asked) => self.pause(&mut pause, Some(asked))?,
            }
        }
        Ok(())
    }

    /// Enters into the books what a sink has taken, and moves the cursor over it.
    fn book(&mut self, taken: Taken, seqs: &[u64]) {
        self.books.settle(taken.delivered(), taken.rejected, taken.skipped);
        if taken.delivered() > 0 {
            self.refused_in_a_row = 0;
        }
        self.move_to(seqs[taken.records - 1]);
    }

    /// A panic is a refusal: it may be a whim at first, but not when it repeats. So is an answer that makes no sense.
    fn try_sink(&mut self, records: &[Arc<Record>], panics: &mut u32) -> Result<Taken, Refusal> {
        let sink = &mut self.sink;
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let answer = sink.deliver(records);
            if let Ok(taken) = &answer {
                assert!(taken.makes_sense_of(records.len()), "{taken:?} of {}", records.len());
            }
            answer
        }));
        answer.unwrap_or_else(|_| {
            *panics += 1;
            tracing::error!(exit = self.sink.name(), records = records.len(), "the exit panicked at a delivery");
            if *panics < PANICS_PER_BATCH_MAX { Err(Refusal::Later("panic")) } else { Err(Refusal::Hopeless("panic")) }
        })
    }

    /// Looks in both halves for what the sink refuses for good; a single record, or all if it refuses everything, is it.
    fn halve(&mut self, records: &[Arc<Record>], seqs: &[u64], reason: &'static str) -> Result<(), OutOfTime> {
        let exit = self.sink.name();
        if let [culprit] = records {
            tracing::error!(exit, snapshot_id = %culprit.id(), reason, "the exit refused a snapshot");
            self.refused_in_a_row += 1;
        } else if self.refused_in_a_row >= REFUSED_IN_A_ROW_MAX {
            tracing::error!(exit, snapshots = records.len(), reason, "the exit refuses whatever it is offered");
        } else {
            let middle = records.len() / 2;
            self.deliver(&records[..middle], &seqs[..middle])?;
            return self.deliver(&records[middle..], &seqs[middle..]);
        }
        self.book(Taken { rejected: records.len() as u64, ..Taken::all(records.len()) }, seqs);
        Ok(())
    }

    fn move_to(&mut self, seq: u64) {
        self.cursor = seq;
        self.shared.cursor.store(seq, Relaxed);
    }

    /// Whether there is still time to deliver more.
    fn in_time(&mut self) -> Result<(), OutOfTime> {
        if self.deadline.is_none() {
            self.deadline = self.stop.try_recv().ok();
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(OutOfTime),
            _ => Ok(()),
        }
    }

    /// Waits before another try, as long as the receiver `asked` if that is longer; shutdown shortens it, and its deadline
    /// ends it.
    fn pause(&mut self, pause: &mut Duration, asked: Option<Duration>) -> Result<(), OutOfTime> {
        let now = pause_after(*pause, asked, rand::random());
        if self.deadline.is_some() {
            std::thread::sleep(BACKOFF.0);
        } else {
            match self.stop.recv_timeout(now) {
                Ok(deadline) => self.deadline = Some(deadline),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody will ever say when to stop.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(now),
            }
        }
        *pause = (*pause * 2).min(BACKOFF.1);
        self.in_time()
    }
}

//! The one door from the data path into the pipeline: a bounded `try_send` that never waits.
//!
//! Behind it are two queues: requests that no target was chosen for, which cost their clients nothing, have a small one of
//! their own, so that they never take the room of the others. The worker stores of them what [`Allowance`] lets through.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use super::Settings;
use super::refused::Allowance;
use crate::ledger::{DropReason, Ledger};
use crate::snapshot::Record;
use crate::telemetry::metrics::{ExitBooks, Metrics, QueueFill};

/// The queue of undecided requests has this part of the other's room on top of it, and of a transaction so much is theirs while
/// others wait: a hundred thousand a second fit, as long as the worker comes by every 25 ms.
const UNDECIDED_SHARE: usize = 8;

/// The data path's end. Cloned freely; the worker ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Intake {
    decided: Way,
    undecided: Way,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
    lost: Arc<Lost>,
    /// Of every exit: a record that does not get in is lost to all of them.
    books: Arc<[ExitBooks]>,
}

/// One of the two queues, from the data path.
#[derive(Clone, Debug)]
struct Way {
    sender: Sender<Arc<Record>>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    /// When it is full.
    reason: DropReason,
}

/// How many records did not get in since the worker last asked, for its log.
#[derive(Debug, Default)]
struct Lost {
    decided: AtomicUsize,
    undecided: AtomicUsize,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Queue {
    decided: End,
    undecided: End,
    allowance: Allowance,
    lost: Arc<Lost>,
}

/// One of the two queues, from the worker.
#[derive(Debug)]
struct End {
    /// Nobody else holds it for longer than a look: without it the queue is closed.
    receiver: Arc<Receiver<Arc<Record>>>,
    bytes: Arc<AtomicUsize>,
}

/// How [`Queue::drain`] left the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drained {
    /// There may be more to take at once.
    pub(super) full: bool,
    /// Something may come again.
    pub(super) open: bool,
}

pub(super) fn channel(
    settings: &Settings,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
    books: Vec<ExitBooks>,
) -> (Intake, Queue) {
    let (records_max, bytes_max) = (settings.queue_records, settings.queue_bytes);
    let (decided, decided_end) = way(records_max, bytes_max, DropReason::QueueFull);
    let (undecided, undecided_end) =
        way(records_max.div_ceil(UNDECIDED_SHARE), bytes_max.div_ceil(UNDECIDED_SHARE), DropReason::RefusedFlood);
    watch([(&decided, &decided_end), (&undecided, &undecided_end)], &metrics);
    let lost = Arc::<Lost>::default();
    let queue = Queue {
        decided: decided_end,
        undecided: undecided_end,
        allowance: Allowance::new(settings.refused_per_second, Instant::now()),
        lost: Arc::clone(&lost),
    };
    (Intake { decided, undecided, ledger, metrics, lost, books: books.into() }, queue)
}

fn way(records_max: usize, bytes_max: usize, reason: DropReason) -> (Way, End) {
    let (sender, receiver) = bounded(records_max);
    let bytes = Arc::<AtomicUsize>::default();
    let end = End { receiver: Arc::new(receiver), bytes: Arc::clone(&bytes) };
    (Way { sender, bytes, bytes_max, reason }, end)
}

/// Lets the metrics look at both queues, as one, for as long as there are any.
fn watch(ways: [(&Way, &End); 2], metrics: &Metrics) {
    let bytes_max = ways.iter().map(|(way, _)| way.bytes_max).sum();
    let ends = ways.map(|(_, end)| (Arc::downgrade(&end.receiver), Arc::clone(&end.bytes)));
    metrics.watch_intake(move || {
        let mut fill = QueueFill { records: 0, records_max: 0, bytes: 0, bytes_max };
        for (receiver, bytes) in &ends {
            let receiver = receiver.upgrade()?;
            fill.records += receiver.len();
            fill.records_max += receiver.capacity().unwrap_or(0);
            fill.bytes += bytes.load(Relaxed);
        }
        Some(fill)
    });
}

impl Intake {
    /// Hands over a finished record, or marks it as dropped. Never waits, and never wakes a thread: the worker polls.
    pub fn offer(&self, record: Arc<Record>) {
        let way = if record.issued.decision.is_some() { &self.decided } else { &self.undecided };
        let weight = record.weight();
        let fits = way.bytes.fetch_add(weight, Relaxed) + weight <= way.bytes_max;
        let refused = if fits { way.sender.try_send(record).err() } else { Some(TrySendError::Full(record)) };
        match refused {
            None => return,
            Some(TrySendError::Full(record)) => self.drop_record(&record, way.reason),
            // The worker has ended, and nothing will be stored any more.
            Some(TrySendError::Disconnected(record)) => self.drop_record(&record, DropReason::Shutdown),
        }
        way.bytes.fetch_sub(weight, Relaxed);
    }

    #[cold]
    fn drop_record(&self, record: &Record, reason: DropReason) {
        let lost = if reason == DropReason::RefusedFlood { &self.lost.undecided } else { &self.lost.decided };
        lost.fetch_add(1, Relaxed);
        self.ledger.drop_record(record.id(), reason);
        // Not recorded, but it did happen: the request counts as every other.
        self.metrics.finished(record);
        for books in &*self.books {
            books.offered_and_dropped(reason.name(), 1);
        }
    }
}

impl Queue {
    /// Moves what is there into `batch`, until it holds `up_to`, and what is there of undecided requests beyond the allowance
    /// into `flood`, for which the batch has no place.
    pub(super) fn drain(
        &mut self,
        batch: &mut Vec<Arc<Record>>,
        flood: &mut Vec<Arc<Record>>,
        up_to: usize,
    ) -> Drained {
        self.allowance.fill(Instant::now());
        // Only those that are there: what comes meanwhile waits for the next call.
        let undecided = self.undecided.receiver.len();
        let decided_max = up_to - undecided.min(up_to / UNDECIDED_SHARE);
        let before = batch.len();
        let mut open = false;
        while batch.len() < decided_max {
            match self.decided.take() {
                Ok(record) => batch.push(record),
                Err(end) => {
                    open = end == TryRecvError::Empty;
                    break;
                }
            }
        }
        let mut full = batch.len() >= decided_max;
        self.allowance.earn(batch.len() - before);
        for _ in 0..undecided {
            if batch.len() >= up_to && self.allowance.any() {
                full = true;
                break;
            }
            let Ok(record) = self.undecided.take() else { break };
            if self.allowance.take() { batch.push(record) } else { flood.push(record) }
        }
        Drained { full, open: open || full || !self.undecided.receiver.is_empty() }
    }

    /// How many records of decided requests did not get in since the last call.
    pub(super) fn take_lost(&self) -> usize {
        self.lost.decided.swap(0, Relaxed)
    }

    /// How many of undecided ones.
    pub(super) fn take_flooded(&self) -> usize {
        self.lost.undecided.swap(0, Relaxed)
    }
}

impl End {
    fn take(&self) -> Result<Arc<Record>, TryRecvError> {
        let record = self.receiver.try_recv()?;
        self.bytes.fetch_sub(record.weight(), Relaxed);
        Ok(record)
    }
}

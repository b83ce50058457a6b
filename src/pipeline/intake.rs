//! The one door from the data path into the pipeline: a bounded `try_send` that never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use super::Settings;
use crate::ledger::{DropReason, Ledger};
use crate::snapshot::Record;
use crate::telemetry::metrics::{ExitBooks, Metrics, QueueFill};

/// The data path's end. Cloned freely; the worker ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Intake {
    sender: Sender<Arc<Record>>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
    /// Refused since the worker last asked, for its log.
    refused: Arc<AtomicUsize>,
    /// Of every exit: a record that does not get in is lost to all of them.
    books: Arc<[ExitBooks]>,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Queue {
    /// Nobody else holds it for longer than a look: without it the queue is closed.
    receiver: Arc<Receiver<Arc<Record>>>,
    bytes: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

pub(super) fn channel(
    settings: &Settings,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
    books: Vec<ExitBooks>,
) -> (Intake, Queue) {
    let (sender, receiver) = bounded(settings.queue_records);
    let (bytes, refused) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let receiver = Arc::new(receiver);
    watch(settings, &receiver, &bytes, &metrics);
    let queue = Queue { receiver, bytes: Arc::clone(&bytes), refused: Arc::clone(&refused) };
    let bytes_max = settings.queue_bytes;
    (Intake { sender, bytes, bytes_max, ledger, metrics, refused, books: books.into() }, queue)
}

/// Lets the metrics look at the queue for as long as there is one.
fn watch(settings: &Settings, receiver: &Arc<Receiver<Arc<Record>>>, bytes: &Arc<AtomicUsize>, metrics: &Metrics) {
    let (receiver, bytes) = (Arc::downgrade(receiver), Arc::clone(bytes));
    let (records_max, bytes_max) = (settings.queue_records, settings.queue_bytes);
    metrics.watch_intake(move || {
        let records = receiver.upgrade()?.len();
        Some(QueueFill { records, records_max, bytes: bytes.load(Relaxed), bytes_max })
    });
}

impl Intake {
    /// Hands over a finished record, or marks it as dropped. Never waits, and never wakes a thread: the worker polls.
    pub fn offer(&self, record: Arc<Record>) {
        let weight = record.weight();
        let fits = self.bytes.fetch_add(weight, Relaxed) + weight <= self.bytes_max;
        let refused = if fits { self.sender.try_send(record).err() } else { Some(TrySendError::Full(record)) };
        match refused {
            None => return,
            Some(TrySendError::Full(record)) => self.drop_record(&record, DropReason::QueueFull),
            // The worker has ended, and nothing will be stored any more.
            Some(TrySendError::Disconnected(record)) => self.drop_record(&record, DropReason::Shutdown),
        }
        self.bytes.fetch_sub(weight, Relaxed);
    }

    #[cold]
    fn drop_record(&self, record: &Record, reason: DropReason) {
        self.refused.fetch_add(1, Relaxed);
        self.ledger.drop_record(record.id(), reason);
        // Not recorded, but it did happen: the request counts as every other.
        self.metrics.finished(record);
        for books in &*self.books {
            books.offered_and_dropped(reason.name(), 1);
        }
    }
}

impl Queue {
    /// Moves what is there into `batch`, until it holds `up_to`. `false` when nothing will ever come again.
    pub(super) fn drain(&self, batch: &mut Vec<Arc<Record>>, up_to: usize) -> bool {
        while batch.len() < up_to {
            match self.receiver.try_recv() {
                Ok(record) => {
                    self.bytes.fetch_sub(record.weight(), Relaxed);
                    batch.push(record);
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    /// How many records did not get in since the last call.
    pub(super) fn take_refused(&self) -> usize {
        self.refused.swap(0, Relaxed)
    }
}

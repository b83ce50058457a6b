//! The hand-off: what happens to a record after its request has ended, and nothing of it can be felt by a request.
//!
//! ```text
//! gateway ──try_send─┬▶ [65,536 records, 64 MiB] ─┬▶ worker ──▶ store
//!                    └▶ [an eighth] ── refused.rs ─┘
//!                         intake.rs                 worker.rs ──▶ [16,384 records] ──▶ lane.rs ──▶ a Sink, one thread each
//!                                                                     the store ──▶ [a lot: lot.rs] ──┘ when it is behind
//! ```
//!
//! The eighth is for requests that no target was chosen for: a flood of them must not displace the others, here or in the store.
//!
//! Closing goes the same way: when the last [`Intake`] is gone the worker drains and ends, and with it the lanes' queues.

mod erase;
mod intake;
mod lag;
mod lane;
mod lot;
mod pause;
mod refused;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use erase::Eraser;
pub use intake::Intake;
use lag::Lag;
use lane::Lane;
use worker::Worker;

use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::sink::Sink;
use crate::store::{CommitError, Reader, Writer};
use crate::telemetry::{ExitBooks, Metrics, Sums};

/// The name of the store in the books of the exits.
pub const STORE_EXIT: &str = "store";

/// A batch that made a thread of the pipeline panic this often is not tried as a whole again: the culprit is looked for.
const PANICS_PER_BATCH_MAX: u32 = 2;

/// The longest that a request can have been issued without being in the ledger, which it enters when its body is there: no body
/// may be given more time.
pub const UNLISTED_MAX: Duration = Duration::from_secs(3600);

/// How the hand-off is bounded and how often it commits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Records between the gateway and the worker.
    pub queue_records: usize,
    /// Their estimated memory in bytes.
    pub queue_bytes: usize,
    /// How long a finished record waits at most before its transaction begins.
    pub commit_interval: Duration,
    /// Records in one transaction at most.
    pub commit_records: usize,
    /// So many records of requests that no target was chosen for are let through each second, besides one for each of the
    /// others and a burst of two thousand.
    pub refused_per_second: u32,
}

/// What the pipeline needs from the rest of the program.
#[derive(Debug)]
pub struct Parts {
    /// Where finished records leave when they are committed.
    pub ledger: Arc<Ledger>,
    /// The store's two ends; `None` when nothing is to be stored.
    pub store: Option<(Writer, Reader)>,
    /// One lane is made for each.
    pub sinks: Vec<Box<dyn Sink>>,
    /// The time.
    pub clock: Arc<Clock>,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// Told once a second what the store needs somebody to know; `None` when all is well.
    pub problem: Arc<arc_swap::ArcSwapOption<String>>,
    /// Told once a second whether more requests are refused than are recorded; `None` when all are.
    pub flood: Arc<arc_swap::ArcSwapOption<String>>,
}

/// The running pipeline. It ends by itself when the last intake is gone; this handle is to wait for it.
#[derive(Debug)]
pub struct Pipeline {
    eraser: Option<Eraser>,
    worker: JoinHandle<worker::Closing>,
    /// Of the store.
    books: ExitBooks,
    lanes: Vec<Lane>,
}

/// What was done and what was left, for the closing line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Finished requests that the worker took.
    pub offered: u64,
    /// Of these, committed.
    pub stored: u64,
    /// Finished requests that could not be stored.
    pub dropped: u64,
    /// The other exits.
    pub exits: Vec<ExitBalance>,
}

/// What one exit did in this run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitBalance {
    /// Its name.
    pub name: &'static str,
    /// What became of each record; what is pending is left for its cursor.
    pub sums: Sums,
}

/// Starts the worker and a lane for each sink.
pub fn start(settings: &Settings, parts: Parts) -> io::Result<(Intake, Pipeline)> {
    let exits: Vec<_> = std::iter::once(STORE_EXIT).chain(parts.sinks.iter().map(|sink| sink.name())).collect();
    let books: Vec<_> = exits.iter().map(|exit| parts.metrics.exit(exit)).collect();
    let store_books = books[0].clone();
    store_books.may_fail(CommitError::REASONS);
    let (intake, queue) = intake::channel(settings, Arc::clone(&parts.ledger), Arc::clone(&parts.metrics), books);

    let (writer, reader) = parts.store.unzip();
    let end = writer.as_ref().map_or(0, |writer| writer.next_seq() - 1);
    let (mut lanes, mut feeds) = (Vec::new(), Vec::new());
    for sink in parts.sinks {
        let (lane, feed) = lane::start(sink, reader.clone(), end, &parts.metrics)?;
        parts.metrics.exit_queue(lane.name(), lane::QUEUE_RECORDS);
        let lag = lag_at_start(&feed, reader.as_ref(), end, &parts.clock);
        lanes.push(lane);
        feeds.push((feed, lag));
    }
    let (eraser, erasures) = erase::channel();
    let eraser = Some(eraser).filter(|_| writer.is_some());
    let worker = Worker::new(settings.clone(), queue, erasures, writer, feeds);
    let worker = worker.start(parts.ledger, parts.clock, parts.metrics, (parts.problem, parts.flood))?;
    Ok((intake, Pipeline { eraser, worker, books: store_books, lanes }))
}

/// How late an exit is whose first records are of an earlier run.
fn lag_at_start(feed: &lane::Feed, reader: Option<&Reader>, end: u64, clock: &Clock) -> Lag {
    let mut lag = Lag::default();
    let (_, cursor) = feed.cursor();
    if let Some(reader) = reader.filter(|_| cursor < end) {
        // If it cannot be read, the lane will say so.
        let first = reader.after(cursor, end, 1).unwrap_or_default().pop();
        lag.mark(end, first.and_then(|(_, record)| record.ended()).unwrap_or_else(|| clock.now()));
    }
    lag
}

impl Pipeline {
    /// For deleting on request; `None` if nothing is stored.
    pub fn eraser(&self) -> Option<Eraser> {
        self.eraser.clone()
    }

    /// Waits until everything that was handed in is stored, and until the lanes are done or `deadline` has come; what
    /// they have not delivered by then stays for their cursors.
    ///
    /// All intakes must be gone, or this waits for ever.
    pub fn join(self, deadline: Instant) -> Balance {
        let mut closing = self.worker.join().unwrap_or_default();
        let mut exits = Vec::new();
        let mut cursors = Vec::new();
        // All at once: one that pauses shall not first hear of it when those before it are done.
        self.lanes.iter().for_each(|lane| lane.stop(deadline));
        for lane in self.lanes {
            let (name, books) = (lane.name(), lane.books());
            cursors.push((name, lane.join(deadline)));
            exits.push(ExitBalance { name, sums: books.sums() });
        }
        closing.close(&cursors);
        Balance { offered: closing.offered, stored: closing.stored, dropped: self.books.sums().dropped, exits }
    }
}

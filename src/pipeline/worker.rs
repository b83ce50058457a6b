//! The one thread that commits: it takes what has come, stores it in one transaction, and hands it to the lanes.
//!
//! It polls the queue instead of waiting on it, so that a request that ends never pays for waking a thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::erase::Erasures;
use super::intake::{Drained, Queue};
use super::lag::Lag;
use super::lane::Feed;
use super::lot::Batch;
use super::refused::{Flood, Turn};
use super::{PANICS_PER_BATCH_MAX, STORE_EXIT, Settings};
use crate::clock::{Clock, STEP_MIN};
use crate::ledger::{DropReason, Ledger};
use crate::snapshot::{Moment, Record};
use crate::store::{CommitError, DropCount, Writer};
use crate::telemetry::metrics::{ExitBooks, Metrics, Observer};

/// How often the clock is steered and the run's heartbeat and the lanes' cursors are written.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long retention may work between two transactions, so that commits stay on time. At 40 transactions a second it
/// deletes several times as many records as one gateway can make.
const MAINTENANCE_BUDGET: Duration = Duration::from_millis(4);

/// While the store refuses, how often the log says so.
const REFUSAL_LOG_EVERY: Duration = Duration::from_secs(10);

/// For the log and for `/readyz`.
const FLOOD: &str = "requests end before a target is chosen for them, and faster than pipeline.refused_per_second lets them be \
                     recorded: snapgate_requests_total counts them all and says how they end; see who sends them";

pub(super) struct Worker {
    settings: Settings,
    queue: Queue,
    erasures: Erasures,
    writer: Option<Writer>,
    feeds: Vec<(Feed, Lag)>,
}

/// What the worker leaves behind when its input has ended.
#[derive(Debug, Default)]
pub(super) struct Closing {
    pub(super) offered: u64,
    pub(super) stored: u64,
    store: Option<(Writer, Arc<Ledger>, Arc<Clock>)>,
}

impl Closing {
    /// Writes the lanes' last cursors and what was dropped since the last commit, and ends the run cleanly.
    pub(super) fn close(&mut self, cursors: &[(&str, u64)]) {
        let Some((mut writer, ledger, clock)) = self.store.take() else { return };
        let drops = ledger.take_drop_counts();
        if let Err(error) = writer.commit(writer.next_seq(), &[], cursors, &drops, clock.now()) {
            tracing::error!(
                %error,
                "the last positions of the exits and the last counts of drops could not be stored: the exits will repeat \
                 some records, and lookups will not know of some drops"
            );
        }
        writer.close(clock.now());
    }
}

impl Worker {
    pub(super) fn new(
        settings: Settings,
        queue: Queue,
        erasures: Erasures,
        writer: Option<Writer>,
        feeds: Vec<(Feed, Lag)>,
    ) -> Self {
        Self { settings, queue, erasures, writer, feeds }
    }

    pub(super) fn start(
        self,
        ledger: Arc<Ledger>,
        clock: Arc<Clock>,
        metrics: Arc<Metrics>,
        (problem, flood_warning): (Arc<ArcSwapOption<String>>, Arc<ArcSwapOption<String>>),
    ) -> io::Result<JoinHandle<Closing>> {
        let next_seq = self.writer.as_ref().map_or(1, Writer::next_seq);
        let state = State {
            books: metrics.exit(STORE_EXIT),
            observer: metrics.observer(),
            commit_records: self.settings.commit_records,
            queue: self.queue,
            erasures: self.erasures,
            writer: self.writer,
            feeds: self.feeds,
            ledger,
            clock,
            metrics,
            problem,
            flood_warning,
            batch: Vec::new(),
            flood: Vec::new(),
            flooding: Flood::default(),
            flooded: 0,
            drops: Vec::new(),
            flushing: false,
            panics: 0,
            refusals: Refusals::default(),
            next_seq,
            last_heartbeat: Instant::now(),
            untidy: true,
            wall_stepped: false,
            offered: 0,
            stored: 0,
        };
        let interval = self.settings.commit_interval;
        std::thread::Builder::new().name("snapgate-worker".into()).spawn(move || state.run(interval))
    }
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stored,
    /// There is no store.
    NotWanted,
    Failed,
    /// It makes this thread panic.
    Panicked,
}

struct State {
    queue: Queue,
    erasures: Erasures,
    writer: Option<Writer>,
    feeds: Vec<(Feed, Lag)>,
    ledger: Arc<Ledger>,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    books: ExitBooks,
    observer: Observer,
    problem: Arc<ArcSwapOption<String>>,
    flood_warning: Arc<ArcSwapOption<String>>,
    commit_records: usize,
    /// What is being committed. Kept here so that a panic does not lose it.
    batch: Vec<Arc<Record>>,
    /// Undecided requests beyond the allowance, to be dropped, likewise.
    flood: Vec<Arc<Record>>,
    flooding: Flood,
    /// How many of them were dropped since the last heartbeat.
    flooded: u64,
    /// Counts taken from the ledger for the transaction under way, likewise.
    drops: Vec<DropCount>,
    /// A flush is under way: a panic is its batch's.
    flushing: bool,
    /// How often what is being committed made this thread panic.
    panics: u32,
    refusals: Refusals,
    next_seq: u64,
    last_heartbeat: Instant,
    /// There may be something to check in the store: it was written to, or retention is not done.
    untidy: bool,
    wall_stepped: bool,
    offered: u64,
    stored: u64,
}

/// For the log: a store that refuses does so forty times a second.
#[derive(Debug, Default)]
struct Refusals {
    since: Option<Instant>,
    logged: Option<Instant>,
    records: u64,
}

impl Refusals {
    fn add(&mut self, error: &CommitError, records: usize) {
        let now = Instant::now();
        self.since.get_or_insert(now);
        self.records += records as u64;
        if self.logged.is_none_or(|logged| now - logged >= REFUSAL_LOG_EVERY) {
            self.logged = Some(now);
            let source = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(%error, source, records = self.records, "the store refuses: these records are lost to it");
        }
    }

    fn end(&mut self) {
        if let Some(since) = self.since {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(seconds, records = self.records, "the store takes records again; these were lost to it");
            *self = Self::default();
        }
    }
}

impl State {
    fn run(mut self, interval: Duration) -> Closing {
        // A panic is a bug in one batch's way, not a reason to lose the pipeline: go on with what was there.
        while !catch_unwind(AssertUnwindSafe(|| self.work(interval))).unwrap_or(false) {
            self.after_panic();
            // What panics again and again does so no more often than commits are due.
            std::thread::sleep(interval);
        }
        let Self { writer, ledger, clock, offered, stored, .. } = self;
        Closing { offered, stored, store: writer.map(|writer| (writer, ledger, clock)) }
    }

    /// Collect until full or due, flush, stop when the input has ended.
    fn work(&mut self, interval: Duration) -> bool {
        loop {
            let due = Instant::now() + interval;
            let open = loop {
                let Drained { full, open } = self.queue.drain(&mut self.batch, &mut self.flood, self.commit_records);
                self.drop_flood();
                self.flush();
                self.report();
                self.tidy();
                if !full {
                    break open;
                }
            };
            if !open {
                return true;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }

    /// How late the exits are, and the store before them, whose oldest record is stored by now.
    fn report(&mut self) {
        self.books.set_oldest(None);
        for (feed, lag) in &mut self.feeds {
            feed.report(lag);
        }
    }

    /// Undecided requests beyond the allowance: they count as every other, but no exit gets them.
    fn drop_flood(&mut self) {
        const REASON: DropReason = DropReason::RefusedFlood;
        while let Some(record) = self.flood.pop() {
            self.flooded += 1;
            self.offered += 1;
            self.books.offered_and_dropped(REASON.name(), 1);
            self.feeds.iter().for_each(|(feed, _)| feed.withhold(REASON.name(), 1));
            self.ledger.drop_record(record.id(), REASON);
            self.observer.finished(&record);
        }
    }

    fn watch_flood(&mut self) {
        let dropped = std::mem::take(&mut self.flooded) + self.queue.take_flooded() as u64;
        match self.flooding.dropped(dropped, Instant::now()) {
            Some(Turn::Begins) => {
                tracing::warn!("{FLOOD}");
                self.flood_warning.store(Some(Arc::new(FLOOD.to_owned())));
            }
            Some(Turn::Ends(records)) => {
                tracing::info!(records, "requests that no target is chosen for are all recorded again; these were not");
                self.flood_warning.store(None);
            }
            None => {}
        }
    }

    /// After a panic record by record, so that only the culprit is lost.
    fn flush(&mut self) {
        self.flushing = true;
        self.keep_out();
        while !self.batch.is_empty() {
            let count = if self.panics == 0 { self.batch.len() } else { 1 };
            let now = self.clock.now();
            let fate = if self.panics < PANICS_PER_BATCH_MAX { self.commit(count, now) } else { Fate::Panicked };
            self.panics = self.panics.min(1);
            self.untidy = true;
            let rest = self.batch.split_off(count);
            let records = std::mem::replace(&mut self.batch, rest);
            self.hand_on(records, fate);
        }
        self.panics = 0;
        self.flushing = false;
    }

    /// What somebody had deleted while it was on its way is not stored, and goes to no exit.
    fn keep_out(&mut self) {
        let kept_out = self.erasures.sift(&mut self.batch);
        let Some(writer) = self.writer.as_mut().filter(|_| !kept_out.is_empty()) else { return };
        let ids: Vec<_> = kept_out.iter().map(|record| record.id()).collect();
        // Before they leave the ledger, so that a lookup never finds nothing.
        if let Err(error) = writer.entomb(&ids) {
            tracing::warn!(%error, records = ids.len(), "lookups of what was deleted on its way will say unknown");
        }
        let count = ids.len() as u64;
        self.offered += count;
        self.books.offered_and_skipped(count);
        self.feeds.iter().for_each(|(feed, _)| feed.skip(count));
        for record in kept_out {
            self.ledger.settle(record.id());
            self.observer.finished(&record);
        }
        self.metrics.erased.inc_by(count);
    }

    /// What was committed, or could not be, leaves the ledger and goes to the lanes.
    fn hand_on(&mut self, records: Vec<Arc<Record>>, fate: Fate) {
        let batch = Arc::new(Batch { first_seq: self.next_seq, records });
        let count = batch.records.len() as u64;
        self.next_seq += count;
        self.offered += count;
        if fate == Fate::Stored {
            self.stored += count;
        }
        self.settle(&batch.records, fate);
        let first = batch.records.first().and_then(|record| record.ended());
        for (feed, lag) in &mut self.feeds {
            feed.offer(&batch);
            first.into_iter().for_each(|first| lag.mark(self.next_seq - 1, first));
        }
    }

    fn commit(&mut self, count: usize, now: Moment) -> Fate {
        let Some(writer) = &mut self.writer else { return Fate::NotWanted };
        let cursors: Vec<_> = self.feeds.iter().map(|(feed, _)| feed.cursor()).collect();
        self.drops = self.ledger.take_drop_counts();
        let began = Instant::now();
        self.books.set_oldest(self.batch.first().and_then(|record| record.ended()));
        #[cfg(test)]
        super::tests::spring_trap(&self.batch[..count]);
        match writer.commit(self.next_seq, &self.batch[..count], &cursors, &self.drops, now) {
            Ok(()) => {
                self.drops.clear();
                self.metrics.transaction(began.elapsed().as_secs_f64());
                self.refusals.end();
                Fate::Stored
            }
            Err(error) => {
                self.ledger.return_drop_counts(std::mem::take(&mut self.drops));
                self.books.error(error.reason());
                self.refusals.add(&error, count);
                Fate::Failed
            }
        }
    }

    fn settle(&mut self, records: &[Arc<Record>], fate: Fate) {
        let count = records.len() as u64;
        match fate {
            Fate::Stored => self.books.offered_and_delivered(count),
            Fate::NotWanted => self.books.offered_and_skipped(count),
            Fate::Failed => self.books.offered_and_dropped(DropReason::StoreFailed.name(), count),
            Fate::Panicked => self.books.offered_and_dropped("panic", count),
        }
        let committed = self.clock.now();
        for record in records {
            match fate {
                Fate::Stored | Fate::NotWanted => self.ledger.settle(record.id()),
                Fate::Failed | Fate::Panicked => self.ledger.drop_record(record.id(), DropReason::StoreFailed),
            }
            self.observer.finished(record);
            if let Some(ended) = record.ended().filter(|_| fate == Fate::Stored) {
                self.metrics.committed(record, committed.since(ended));
            }
        }
    }

    /// Between transactions: once a second the clock, the heartbeat and the cursors; whenever there was work, the
    /// checkpoint and retention.
    fn tidy(&mut self) {
        let due = self.last_heartbeat.elapsed() >= HEARTBEAT;
        if due {
            self.last_heartbeat = Instant::now();
            self.watch_clock();
            let lost = self.queue.take_lost();
            if lost > 0 {
                tracing::error!(records = lost, "the queue to the store was full: these records are lost");
            }
            self.watch_flood();
            self.heartbeat();
        }
        if due || self.untidy {
            self.maintain();
        }
        if let Some(writer) = self.writer.as_mut().filter(|_| self.erasures.is_busy()) {
            let now = self.clock.now();
            let erased = self.erasures.go_on(writer, &self.ledger, now, MAINTENANCE_BUDGET);
            self.metrics.erased.inc_by(erased.unwrap_or(0));
            self.untidy = true;
        }
        self.erasures.lift(&self.ledger, self.clock.now());
    }

    fn watch_clock(&mut self) {
        let away = self.clock.discipline();
        let stepped = away > STEP_MIN;
        if stepped && !self.wall_stepped {
            let seconds = away.as_secs();
            tracing::warn!(
                seconds,
                "the system's clock has stepped: IDs keep the old time and nothing expires by age; restart to take the new time"
            );
        }
        self.wall_stepped = stepped;
    }

    fn heartbeat(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let now = self.clock.now();
        let cursors: Vec<_> = self.feeds.iter().map(|(feed, _)| feed.cursor()).collect();
        self.drops = self.ledger.take_drop_counts();
        match writer.heartbeat(now).and_then(|()| writer.commit(writer.next_seq(), &[], &cursors, &self.drops, now)) {
            // That it takes this says little: the log says "again" with the next record.
            Ok(()) => self.drops.clear(),
            Err(error) => {
                self.ledger.return_drop_counts(std::mem::take(&mut self.drops));
                self.books.error(error.reason());
                self.refusals.add(&error, 0);
            }
        }
    }

    fn maintain(&mut self) {
        // Already now: after a panic it waits for the next heartbeat.
        self.untidy = false;
        let Some(writer) = &mut self.writer else { return };
        #[cfg(test)]
        super::tests::spring_upkeep_trap(self.commit_records, self.stored);
        let report = writer.maintain(self.clock.now(), self.wall_stepped, MAINTENANCE_BUDGET);
        self.untidy = report.expired > 0;
        self.metrics.store_bytes.set(report.store_bytes as i64);
        self.metrics.wal_bytes.set(report.wal_bytes as i64);
        self.metrics.ballast_bytes.set(report.ballast_bytes as i64);
        self.metrics.expired.inc_by(report.expired);
        self.metrics.store_in_trouble.set(report.problem.is_some().into());
        if self.problem.load().as_deref() != report.problem.as_ref() {
            self.problem.store(report.problem.map(Arc::new));
        }
    }

    fn after_panic(&mut self) {
        self.books.error("panic");
        self.panics += u32::from(std::mem::take(&mut self.flushing));
        self.ledger.return_drop_counts(std::mem::take(&mut self.drops));
        tracing::error!(records = self.batch.len(), "the pipeline's worker panicked; it goes on with the same batch");
    }
}

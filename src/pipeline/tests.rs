//! The hand-off with a real store and scripted exits: what each has to get, in which order, and that the books balance.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc;
use std::sync::{Condvar, Mutex};
use std::thread::sleep;

use arc_swap::ArcSwapOption;
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::watch;

use super::erase::{BARRED_LOOK, BARRED_MAX, BARRED_MIN, Erasures};
use super::intake::Drained;
use super::lane::{QUEUE_RECORDS, REFUSED_IN_A_ROW_MAX};
use super::lot::LOT_RECORDS;
use super::pause::{ASKED_PAUSE_MAX, pause_after};
use super::refused::BURST;
use super::*;
use crate::ledger::DropReason;
use crate::sink::{Refusal, Taken as Done};
use crate::snapshot::record::tests::{decided as finished, finished as undecided};
use crate::snapshot::{Moment, Record, Run, RunId, SnapshotId, Tenant};
use crate::store::{DataDir, Erased, Erasure, NotErased, Resolution, Store, Subject};

/// The scripted exit's name.
const EXIT: &str = "scripted";

/// How long anything may take that should take no time.
const PATIENCE: Duration = Duration::from_secs(30);

/// The record of this number makes the worker panic as often as it is committed.
const TRAP: u64 = 666_666;

/// Called by the worker before each transaction.
pub(super) fn spring_trap(records: &[Arc<Record>]) {
    assert!(records.iter().all(|record| number(record) != TRAP), "the trap was sprung, as this test wants it");
}

/// A worker that commits so many records at once panics whenever it looks after the store, until it has stored a thousand.
const UPKEEP_TRAP: usize = 777;

/// Called by the worker before it looks after the store.
pub(super) fn spring_upkeep_trap(commit_records: usize, stored: u64) {
    assert!(commit_records != UPKEEP_TRAP || stored >= 1_000, "the trap was sprung, as this test wants it");
}

fn number(record: &Record) -> u64 {
    record.outcome().expect("only finished records are handed in").response_bytes
}

fn id(number: u64) -> SnapshotId {
    finished(number).id()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(2));
    }
}

/// An exit that follows a rule and notes what it took.
struct Scripted<F> {
    name: &'static str,
    taken: Taken,
    stop_at: Option<watch::Sender<Option<Instant>>>,
    rule: F,
}

#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<u64>>>);

impl Taken {
    fn numbers(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }

    /// All or none, as the rule says.
    fn sink<F>(&self, mut rule: F) -> Vec<Box<dyn Sink>>
    where
        F: FnMut(&[u64]) -> Result<(), Refusal> + Send + 'static,
    {
        self.partly(move |numbers| rule(numbers).map(|()| Done::all(numbers.len())))
    }

    /// As many as the rule says.
    fn partly<F>(&self, rule: F) -> Vec<Box<dyn Sink>>
    where
        F: FnMut(&[u64]) -> Result<Done, Refusal> + Send + 'static,
    {
        vec![Box::new(Scripted { name: EXIT, taken: self.clone(), stop_at: None, rule })]
    }
}

impl<F> std::fmt::Debug for Scripted<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(EXIT)
    }
}

impl<F: FnMut(&[u64]) -> Result<Done, Refusal> + Send> Sink for Scripted<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reasons(&self) -> &'static [&'static str] {
        &[]
    }

    fn stop_at(&self) -> Option<watch::Sender<Option<Instant>>> {
        self.stop_at.clone()
    }

    fn deliver(&mut self, records: &[Arc<Record>]) -> Result<Done, Refusal> {
        assert!(!records.is_empty(), "a sink never gets an empty batch");
        let numbers: Vec<_> = records.iter().map(|record| number(record)).collect();
        let done = (self.rule)(&numbers)?;
        self.taken.0.lock().unwrap().extend(&numbers[..done.records]);
        Ok(done)
    }
}

/// A data directory over several runs.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self, clock: &Clock) -> (Writer, Reader) {
        let dir = DataDir::open(self.0.path()).unwrap();
        let run = Run {
            id: RunId(1),
            instance: "gw-1".into(),
            tag: dir.tag(),
            version: "0.1.0".into(),
            config: "c0ffee12".into(),
            config_text: "".into(),
            started: clock.now(),
        };
        let settings = crate::store::Settings { ballast_bytes: 0, ..crate::store::Settings::default() };
        Store::open(&dir, &settings, Arc::new(run), clock.now()).unwrap()
    }

    /// What an operator's shell could do to the store.
    fn sql(&self, sql: &str) {
        let shell = rusqlite::Connection::open(self.0.path().join("snapshots.db")).unwrap();
        shell.busy_timeout(PATIENCE).unwrap();
        shell.execute_batch(sql).unwrap();
    }
}

/// A running pipeline.
struct Running {
    intake: Intake,
    pipeline: Pipeline,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
    reader: Option<Reader>,
    problem: Arc<ArcSwapOption<String>>,
    flood: Arc<ArcSwapOption<String>>,
}

fn settings(commit_records: usize) -> Settings {
    Settings {
        queue_records: 10_000,
        queue_bytes: 64 << 20,
        commit_interval: Duration::from_millis(2),
        commit_records,
        refused_per_second: 0,
    }
}

fn start(place: Option<&Place>, commit_records: usize, sinks: Vec<Box<dyn Sink>>) -> Running {
    let clock = Clock::start();
    let (ledger, metrics) = (Arc::<Ledger>::default(), Metrics::new());
    let (problem, flood) = <[Arc<ArcSwapOption<String>>; 2]>::default().into();
    let store = place.map(|place| place.open(&clock));
    let reader = store.as_ref().map(|(_, reader)| reader.clone());
    let parts = Parts {
        ledger: Arc::clone(&ledger),
        store,
        sinks,
        clock,
        metrics: Arc::clone(&metrics),
        problem: Arc::clone(&problem),
        flood: Arc::clone(&flood),
    };
    let (intake, pipeline) = super::start(&settings(commit_records), parts).unwrap();
    Running { intake, pipeline, ledger, metrics, reader, problem, flood }
}

impl Running {
    fn offer(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let record = Arc::new(finished(number));
            self.ledger.insert(Arc::clone(&record));
            self.intake.offer(record);
        }
    }

    /// Requests that no target was chosen for.
    fn offer_undecided(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let record = Arc::new(undecided(number));
            self.ledger.insert(Arc::clone(&record));
            self.intake.offer(record);
        }
    }

    fn until_settled(&self) {
        eventually("the worker has taken everything", || self.ledger.is_empty());
    }

    fn stored(&self) -> Vec<u64> {
        let page = self.reader.as_ref().unwrap().after(0, u64::MAX, 100_000).unwrap();
        page.iter().map(|(_, record)| number(record)).collect()
    }

    /// Ends it as the application does, and looks at the books.
    fn stop(self, patience: Duration) -> (Balance, Arc<Metrics>) {
        let Self { intake, pipeline, metrics, ledger, .. } = self;
        drop(intake);
        let balance = pipeline.join(Instant::now() + patience);
        for ExitBalance { name, sums } in &balance.exits {
            let became = sums.delivered + sums.rejected + sums.skipped + sums.dropped + sums.pending;
            assert_eq!(sums.offered + sums.recovered, became, "the last word of {name} balances: {sums:?}");
        }
        assert!(ledger.is_empty(), "whatever became of a record, it has left the ledger");
        for exit in [STORE_EXIT, EXIT] {
            let got = count(&metrics, "offered_total", exit) + count(&metrics, "recovered_total", exit);
            let nouns = ["delivered_total", "rejected_total", "skipped_total", "dropped_total", "pending"];
            let done: u64 = nouns.iter().map(|noun| count(&metrics, noun, exit)).sum();
            assert_eq!(got, done, "the books of {exit} balance: {}", metrics.page());
        }
        (balance, metrics)
    }
}

/// A number of the metrics page, over all reasons.
fn count(metrics: &Metrics, noun: &str, exit: &str) -> u64 {
    sum(metrics, &format!("snapgate_snapshots_{noun}{{exit=\"{exit}\""))
}

fn sum(metrics: &Metrics, prefix: &str) -> u64 {
    let page = metrics.page();
    let values = page.lines().filter(|line| line.starts_with(prefix)).map(|line| line.rsplit_once(' ').unwrap().1);
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

fn balanced(delivered: u64, left: u64) -> ExitBalance {
    recovered(0, delivered, left)
}

/// The same for an exit that had so many still to get from the runs before.
fn recovered(recovered: u64, delivered: u64, left: u64) -> ExitBalance {
    let offered = delivered + left - recovered;
    ExitBalance { name: EXIT, sums: Sums { offered, recovered, delivered, pending: left, ..Sums::default() } }
}

fn dropped(metrics: &Metrics, exit: &str, reason: &str) -> u64 {
    sum(metrics, &format!("snapgate_snapshots_dropped_total{{exit=\"{exit}\",reason=\"{reason}\"}}"))
}

fn errors(metrics: &Metrics, exit: &str, reason: &str) -> u64 {
    sum(metrics, &format!("snapgate_exit_errors_total{{exit=\"{exit}\",reason=\"{reason}\"}}"))
}

fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

#[test]
fn a_full_queue_drops_what_comes_and_says_so_everywhere() {
    let weight = finished(0).weight();
    for (queue_records, queue_bytes) in [(3, 64 << 20), (100, 3 * weight + weight / 2)] {
        let (ledger, metrics) = (Arc::<Ledger>::default(), Metrics::new());
        let settings = Settings { queue_records, queue_bytes, ..settings(100) };
        let books = vec![metrics.exit(STORE_EXIT), metrics.exit(EXIT)];
        let (intake, mut queue) = intake::channel(&settings, Arc::clone(&ledger), Arc::clone(&metrics), books);
        let offer = |number| {
            let record = Arc::new(finished(number));
            ledger.insert(Arc::clone(&record));
            intake.offer(record);
        };
        (0..5).for_each(offer);
        for number in 0..5 {
            let (kept, reason) = if number < 3 { (true, None) } else { (false, Some(DropReason::QueueFull)) };
            assert_eq!((ledger.get(id(number)).is_some(), ledger.dropped(id(number))), (kept, reason), "{number}");
        }
        for exit in [STORE_EXIT, EXIT] {
            assert_eq!((count(&metrics, "offered_total", exit), dropped(&metrics, exit, "queue_full")), (2, 2));
        }
        assert_eq!(sum(&metrics, "snapgate_requests_total{"), 2, "requests count, recorded or not");
        assert_eq!((queue.take_lost(), queue.take_lost()), (2, 0));

        let mut batch = Vec::new();
        let emptied = Drained { full: false, open: true };
        assert_eq!(queue.drain(&mut batch, &mut Vec::new(), 100), emptied);
        offer(5);
        assert_eq!(queue.drain(&mut batch, &mut Vec::new(), 100), emptied, "what was drained has made room");
        assert_eq!(batch.iter().map(|record| number(record)).collect::<Vec<_>>(), [0, 1, 2, 5]);
        drop(queue);
        offer(6);
        assert_eq!(ledger.dropped(id(6)), Some(DropReason::Shutdown), "nobody will take it any more");
    }
}

#[test]
fn a_flood_of_refused_requests_takes_neither_the_room_of_others_nor_their_place_in_memory() {
    let (ledger, metrics) = (Arc::<Ledger>::default(), Metrics::new());
    let settings = Settings { queue_records: 80, ..settings(100) };
    let books = vec![metrics.exit(STORE_EXIT), metrics.exit(EXIT)];
    let (intake, queue) = intake::channel(&settings, Arc::clone(&ledger), Arc::clone(&metrics), books);
    let offer = |record: Arc<Record>| {
        ledger.insert(Arc::clone(&record));
        intake.offer(record);
    };
    (0..81).for_each(|number| offer(Arc::new(finished(number))));
    (1_000..101_000).for_each(|number| offer(Arc::new(undecided(number))));
    assert_eq!((ledger.len(), queue.take_lost(), queue.take_flooded()), (80 + 10, 1, 100_000 - 10));
    assert_eq!(
        ledger.dropped(id(80)),
        Some(DropReason::QueueFull),
        "the flood has not pushed out what was known by ID"
    );
    let counted = ledger.counted(id(1_500)).map(|drops| (drops.reason, drops.count));
    assert_eq!(counted, Some((DropReason::RefusedFlood, 990)));
    for exit in [STORE_EXIT, EXIT] {
        assert_eq!((dropped(&metrics, exit, "queue_full"), dropped(&metrics, exit, "refused_flood")), (1, 99_990));
    }
    assert_eq!(sum(&metrics, "snapgate_requests_total{"), 1 + 99_990, "requests count, recorded or not");
}

#[test]
fn while_others_wait_refused_requests_have_an_eighth_of_a_transaction() {
    let (ledger, metrics) = (Arc::<Ledger>::default(), Metrics::new());
    let (intake, mut queue) = intake::channel(&settings(16), ledger, metrics, Vec::new());
    (0..20).for_each(|number| intake.offer(Arc::new(finished(number))));
    (100..110).for_each(|number| intake.offer(Arc::new(undecided(number))));
    drop(intake);
    let mut drain = || {
        let (mut batch, mut flood) = (Vec::new(), Vec::new());
        let drained = queue.drain(&mut batch, &mut flood, 16);
        assert!(flood.is_empty(), "the allowance is not used up");
        (batch.iter().map(|record| number(record)).collect::<Vec<_>>(), drained)
    };
    let more = Drained { full: true, open: true };
    assert_eq!(drain(), ([numbers(0..14), numbers(100..102)].concat(), more));
    assert_eq!(drain(), ([numbers(14..20), numbers(102..110)].concat(), Drained { full: false, open: false }));
}

#[test]
fn of_a_flood_as_much_is_stored_as_the_allowance_lets_through() {
    let (place, taken) = (Place::new(), Taken::default());
    std::fs::write(place.0.path().join("instance"), format!("{}\n", id(0).instance_tag())).unwrap();
    let running = start(Some(&place), 100, taken.sink(|_| Ok(())));
    let burst = u64::from(BURST);
    let decided = numbers(0..300);
    // No more at a time than their queue holds, so that it is the worker that drops.
    for lot in 1..=10 {
        running.offer_undecided(lot * 1_000..lot * 1_000 + 1_000);
        running.until_settled();
    }
    running.offer(decided.clone());
    running.until_settled();
    running.offer_undecided(20_000..21_000);
    running.until_settled();
    let expected = [numbers(1_000..1_000 + burst), decided, numbers(20_000..20_300)].concat();
    assert_eq!(running.stored(), expected, "each that was decided pays for one that was not");
    let reader = running.reader.clone().unwrap();
    eventually("the store knows of the drops", || {
        let resolution = reader.resolve(id(20_999), Moment(u64::MAX)).unwrap();
        matches!(resolution, Resolution::Dropped { reason: DropReason::RefusedFlood, count: 700, .. })
    });
    eventually("/readyz can say so", || {
        running.flood.load().as_ref().is_some_and(|text| text.contains("refused_per_second"))
    });
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!((balance.offered, balance.stored, balance.dropped), (11_300, 2_600, 8_700));
    assert_eq!(taken.numbers(), expected, "the exits get what is stored");
    for exit in [STORE_EXIT, EXIT] {
        assert_eq!(dropped(&metrics, exit, "refused_flood"), 8_700);
    }
    assert_eq!(sum(&metrics, "snapgate_requests_total{"), 11_300, "requests count, recorded or not");
}

#[test]
fn every_record_is_stored_and_delivered_once_and_in_order() {
    let (place, taken) = (Place::new(), Taken::default());
    let running = start(Some(&place), 7, taken.sink(|_| Ok(())));
    running.offer(0..100);
    running.until_settled();
    assert_eq!(running.stored(), numbers(0..100));
    running.offer(100..150);
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!((balance.offered, balance.stored), (150, 150));
    assert_eq!(balance.exits, [balanced(150, 0)]);
    assert_eq!(taken.numbers(), numbers(0..150));
    assert_eq!(sum(&metrics, "snapgate_requests_total{"), 150);
    assert_eq!(sum(&metrics, "snapgate_commit_delay_seconds_count"), 150);
}

#[test]
fn without_a_store_the_exits_get_everything() {
    let taken = Taken::default();
    let running = start(None, 7, taken.sink(|_| Ok(())));
    running.offer(0..100);
    running.until_settled();
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!((balance.offered, balance.stored, balance.exits[0].sums.delivered), (100, 0, 100));
    assert_eq!(taken.numbers(), numbers(0..100));
    assert_eq!(count(&metrics, "skipped_total", STORE_EXIT), 100);
}

#[test]
fn an_exit_that_asks_for_patience_gets_the_same_records_again() {
    let (place, taken) = (Place::new(), Taken::default());
    let mut refusals = 0;
    let running = start(
        Some(&place),
        100,
        taken.sink(move |_| {
            refusals += 1;
            if refusals <= 2 { Err(Refusal::Later("busy")) } else { Ok(()) }
        }),
    );
    running.offer(0..20);
    eventually("the exit has them", || taken.numbers() == numbers(0..20));
    let (_, metrics) = running.stop(PATIENCE);
    assert_eq!(errors(&metrics, EXIT, "busy"), 2);
    assert_eq!(count(&metrics, "rejected_total", EXIT), 0);
}

#[test]
fn a_record_that_an_exit_will_never_take_is_found_and_passed() {
    let (place, taken) = (Place::new(), Taken::default());
    let refuses = |numbers: &[u64]| numbers.iter().any(|number| [13, 77].contains(number));
    let running = start(
        Some(&place),
        100,
        taken.sink(move |numbers| if refuses(numbers) { Err(Refusal::Hopeless("poison")) } else { Ok(()) }),
    );
    running.offer(0..100);
    running.until_settled();
    let (balance, metrics) = running.stop(PATIENCE);
    let expected: Vec<_> = (0..100).filter(|number| ![13, 77].contains(number)).collect();
    assert_eq!(taken.numbers(), expected);
    assert_eq!((count(&metrics, "rejected_total", EXIT), balance.exits[0].sums.pending), (2, 0));
}

#[test]
fn what_a_receiver_refuses_in_part_is_rejected_and_never_offered_again() {
    let (place, taken) = (Place::new(), Taken::default());
    let answer = |numbers: &[u64]| {
        let records = numbers.len().min(7);
        let these = |remainder| numbers[..records].iter().filter(|number| *number % 10 == remainder).count() as u64;
        Ok(Done { records, rejected: these(3), skipped: these(5), refused: None })
    };
    let running = start(Some(&place), 100, taken.partly(answer));
    running.offer(0..100);
    running.until_settled();
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!(taken.numbers(), numbers(0..100), "each once, in order");
    assert_eq!(
        (balance.exits[0].sums.delivered, balance.exits[0].sums.rejected, balance.exits[0].sums.pending),
        (80, 10, 0)
    );
    assert_eq!(count(&metrics, "skipped_total", EXIT), 10);
}

#[test]
fn who_refuses_everything_is_not_asked_about_every_record() {
    let (place, taken) = (Place::new(), Taken::default());
    let calls = Arc::new(AtomicU32::new(0));
    let called = Arc::clone(&calls);
    let (open, gate) = mpsc::sync_channel::<()>(1);
    let running = start(
        Some(&place),
        1_000,
        taken.sink(move |numbers| {
            // Opened by being dropped, when all are there: each lot is a search of its own.
            gate.recv().ok();
            called.fetch_add(1, Relaxed);
            if numbers[0] < 5_000 { Err(Refusal::Hopeless("forbidden")) } else { Ok(()) }
        }),
    );
    running.offer(0..5_000);
    running.until_settled();
    drop(open);
    eventually("all are rejected", || count(&running.metrics, "rejected_total", EXIT) == 5_000);
    let asked = calls.load(Relaxed);
    assert!(asked > REFUSED_IN_A_ROW_MAX && asked < 500, "{asked} times for 5,000");
    running.offer(5_000..5_010);
    let (balance, _) = running.stop(PATIENCE);
    assert_eq!((balance.exits[0].sums.delivered, balance.exits[0].sums.rejected), (10, 5_000));
}

#[test]
fn a_receiver_is_left_alone_as_long_as_it_asks_within_reason() {
    let (ms, asked) = (Duration::from_millis, |seconds| Some(Duration::from_secs(seconds)));
    assert_eq!((pause_after(ms(100), None, 0), pause_after(ms(100), None, u16::MAX)), (ms(50), ms(100)));
    assert_eq!(pause_after(ms(100), asked(7), 9), Duration::from_secs(7));
    assert_eq!(pause_after(ms(100), Some(ms(1)), 0), ms(50), "our own pause grows, whatever it asks");
    assert_eq!(pause_after(ms(100), asked(u64::MAX), 0), ASKED_PAUSE_MAX);

    let (place, taken) = (Place::new(), Taken::default());
    let mut refused = None::<Instant>;
    let rule = move |_: &[u64]| match refused {
        None => {
            refused = Some(Instant::now());
            Err(Refusal::After("busy", Duration::from_millis(200)))
        }
        Some(then) if then.elapsed() < Duration::from_millis(200) => Err(Refusal::Hopeless("too early")),
        Some(_) => Ok(()),
    };
    let running = start(Some(&place), 100, taken.sink(rule));
    running.offer(0..20);
    eventually("the exit has them", || taken.numbers() == numbers(0..20));
    let (_, metrics) = running.stop(PATIENCE);
    assert_eq!((errors(&metrics, EXIT, "busy"), count(&metrics, "rejected_total", EXIT)), (1, 0));
}

#[test]
fn a_refusal_after_some_were_taken_counts_and_the_receiver_is_left_alone_as_long_as_it_asks() {
    let (place, taken, asked) = (Place::new(), Taken::default(), Duration::from_millis(200));
    let (open, gate) = mpsc::sync_channel::<()>(1);
    let mut refused = None::<Instant>;
    let rule = move |numbers: &[u64]| {
        // Opened by being dropped.
        gate.recv().ok();
        match refused {
            // The first of its requests is taken, the next one not.
            None if numbers.len() > 2 => {
                refused = Some(Instant::now());
                Ok(Done { refused: Some((Refusal::After("busy", asked), 2)), ..Done::all(1) })
            }
            Some(then) if then.elapsed() < asked => Err(Refusal::Hopeless("too early")),
            _ => Ok(Done::all(numbers.len())),
        }
    };
    let running = start(Some(&place), 100, taken.partly(rule));
    running.offer(0..20);
    running.until_settled();
    drop(open);
    eventually("the exit has them", || taken.numbers() == numbers(0..20));
    let (_, metrics) = running.stop(PATIENCE);
    assert_eq!((errors(&metrics, EXIT, "busy"), count(&metrics, "rejected_total", EXIT)), (1, 0));
}

#[test]
fn what_is_refused_for_good_after_some_were_taken_is_searched_alone() {
    let (place, taken) = (Place::new(), Taken::default());
    let largest = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&largest);
    // Requests of five; the one with 13 is refused, and what comes after it is no part of the search.
    let rule = move |numbers: &[u64]| {
        let refuses = |numbers: &[u64]| numbers.contains(&13);
        let mut done = Done::default();
        for request in numbers.chunks(5) {
            if refuses(request) {
                seen.fetch_max(request.len() as u32, Relaxed);
                done.refused = Some((Refusal::Hopeless("poison"), request.len()));
                break;
            }
            done.records += request.len();
        }
        Ok(done)
    };
    let running = start(Some(&place), 100, taken.partly(rule));
    running.offer(0..100);
    running.until_settled();
    let (balance, metrics) = running.stop(PATIENCE);
    let expected: Vec<_> = (0..100).filter(|number| *number != 13).collect();
    assert_eq!(taken.numbers(), expected);
    assert_eq!((count(&metrics, "rejected_total", EXIT), balance.exits[0].sums.pending), (1, 0));
    assert!(errors(&metrics, EXIT, "poison") <= 4, "five, two or three, one or two, one");
    assert!((1..=5).contains(&largest.load(Relaxed)));
}

/// What a scripted exit answers, apart from how many it was asked about.
#[derive(Clone, Debug)]
enum Say {
    Take { at_most: usize, rejected: u64, skipped: u64, then: Option<(Refusal, usize)> },
    Later,
    Hopeless,
    Panic,
}

fn say() -> impl Strategy<Value = Say> {
    let refusal = prop_oneof![
        Just(Refusal::Later("busy")),
        Just(Refusal::After("busy", Duration::from_millis(1))),
        Just(Refusal::Hopeless("poison")),
    ];
    let take = (0usize..40, 0u64..3, 0u64..3, proptest::option::of((refusal, 1usize..20)));
    prop_oneof![
        6 => take.prop_map(|(at_most, rejected, skipped, then)| Say::Take { at_most, rejected, skipped, then }),
        1 => Just(Say::Later),
        2 => Just(Say::Hopeless),
        1 => Just(Say::Panic),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_an_exit_answers_its_books_balance(script in vec(say(), 1..12), with_store: bool) {
        let (place, taken) = (Place::new(), Taken::default());
        let (mut script, total) = (script.into_iter(), 60);
        let rule = move |numbers: &[u64]| {
            let Some(say) = script.next() else { return Ok(Done::all(numbers.len())) };
            match say {
                Say::Take { at_most, rejected, skipped, then } => {
                    let least = usize::from(then.is_none());
                    let records = at_most.max(least).min(numbers.len());
                    let rejected = rejected.min(records as u64);
                    let rest = numbers.len() - records;
                    let refused = then.filter(|_| rest > 0).map(|(refusal, about)| (refusal, about.min(rest)));
                    Ok(Done { records, rejected, skipped: skipped.min(records as u64 - rejected), refused })
                }
                Say::Later => Err(Refusal::Later("busy")),
                Say::Hopeless => Err(Refusal::Hopeless("poison")),
                Say::Panic => panic!("as this test wants it"),
            }
        };
        let running = start(with_store.then_some(&place), 15, taken.partly(rule));
        running.offer(0..total);
        running.until_settled();
        // Which looks at the books.
        let (balance, metrics) = running.stop(PATIENCE);
        let done = count(&metrics, "delivered_total", EXIT) + count(&metrics, "rejected_total", EXIT) + count(&metrics, "skipped_total", EXIT);
        prop_assert_eq!((done, balance.exits[0].sums.pending), (total, 0));
        let got = taken.numbers();
        prop_assert!(got.is_sorted_by(|a, b| a < b), "each at most once, in order: {:?}", got);
    }
}

#[test]
fn a_slow_exit_holds_nobody_up_and_catches_up_from_the_store() {
    let (place, taken) = (Place::new(), Taken::default());
    let (open, gate) = mpsc::sync_channel::<()>(1);
    let running = start(
        Some(&place),
        500,
        taken.sink(move |_| {
            // Opened by being dropped.
            gate.recv().ok();
            Ok(())
        }),
    );
    // Far more than lies in its queue; the worker takes it all while the exit has not taken one.
    let all = numbers(0..2 * QUEUE_RECORDS as u64);
    for some in all.chunks(settings(0).queue_records / 2) {
        running.offer(some.iter().copied());
        running.until_settled();
    }
    assert_eq!((running.stored(), taken.numbers()), (all.clone(), vec![]));
    assert_eq!(count(&running.metrics, "pending", EXIT), all.len() as u64);
    drop(open);
    eventually("the exit has caught up", || taken.numbers().len() >= all.len());
    assert_eq!(taken.numbers(), all, "in order, and none twice");
    running.stop(PATIENCE);
}

#[test]
fn what_waits_in_the_store_comes_in_lots_as_large_as_from_memory() {
    let (place, taken) = (Place::new(), Taken::default());
    let behind = start(Some(&place), 500, taken.sink(|_| Err(Refusal::Later("down"))));
    let all = numbers(0..20_000);
    for some in all.chunks(settings(0).queue_records / 2) {
        behind.offer(some.iter().copied());
        behind.until_settled();
    }
    behind.stop(Duration::ZERO);
    let lots = Arc::<Mutex<Vec<usize>>>::default();
    let seen = Arc::clone(&lots);
    let running = start(
        Some(&place),
        500,
        taken.sink(move |numbers| {
            seen.lock().unwrap().push(numbers.len());
            Ok(())
        }),
    );
    eventually("the exit has caught up", || taken.numbers().len() >= all.len());
    running.stop(PATIENCE);
    assert_eq!(taken.numbers(), all, "in order, and none twice");
    assert_eq!(*lots.lock().unwrap(), [LOT_RECORDS, all.len() - LOT_RECORDS]);
}

/// A receiver of OTLP over HTTP that takes its time, and answers nobody before so many have waited at once.
#[derive(Default)]
struct SlowReceiver {
    /// Requests that wait for their answers now, and at most.
    waiting: Mutex<(usize, usize)>,
    changed: Condvar,
    /// The sizes of those that it has answered.
    answered: Mutex<Vec<u64>>,
}

impl SlowReceiver {
    /// It ends with the tests.
    fn start(at_once: usize, answer_after: Duration) -> (std::net::SocketAddr, Arc<Self>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, receiver) = (listener.local_addr().unwrap(), Arc::<Self>::default());
        let own = Arc::clone(&receiver);
        let accept = move || {
            std::thread::scope(|scope| {
                for connection in listener.incoming().flatten() {
                    scope.spawn(|| own.serve(connection, at_once, answer_after));
                }
            });
        };
        drop(std::thread::Builder::new().name("receiver".into()).spawn(accept).unwrap());
        (address, receiver)
    }

    /// Answers one request after the other, until the client closes the connection.
    fn serve(&self, connection: std::net::TcpStream, at_once: usize, answer_after: Duration) -> Option<()> {
        use std::io::{BufRead as _, BufReader, Read as _, Write as _};
        let mut reader = BufReader::new(connection.try_clone().ok()?);
        let (mut line, mut length) = (String::new(), 0);
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(number) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = number.trim().parse().ok()?;
            }
            if line == "\r\n" {
                io::copy(&mut reader.by_ref().take(length), &mut io::sink()).ok()?;
                self.wait(at_once, answer_after);
                self.answered.lock().unwrap().push(length);
                (&connection).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
            }
        }
    }

    fn wait(&self, at_once: usize, answer_after: Duration) {
        let change = |by: isize| {
            let mut waiting = self.waiting.lock().unwrap();
            waiting.0 = waiting.0.checked_add_signed(by).unwrap();
            waiting.1 = waiting.1.max(waiting.0);
            self.changed.notify_all();
            waiting
        };
        // If they never come, the test says so.
        drop(self.changed.wait_timeout_while(change(1), PATIENCE, |waiting| waiting.1 < at_once));
        // Time for more than may come.
        sleep(answer_after);
        drop(change(-1));
    }
}

#[test]
fn what_waits_in_the_store_goes_in_full_requests_side_by_side_with_the_default_settings() {
    use crate::config::{Config, Machine, Sources, Targets};
    use crate::sink::otlp::{Otlp, Signal};
    const EXPORTED: &str = "otlp_logs";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let exit = |address: std::net::SocketAddr| -> Vec<Box<dyn Sink>> {
        let text = format!(
            "[otlp]\nendpoint = \"http://{address}/\"\nprotocol = \"http/protobuf\"\ntraces = false\nlogs = true\n"
        );
        let sources = Sources::of_text("the test", &text, Machine { hostname: "test".into(), cores: 1 });
        let settings = Config::load(&sources, Targets::Optional).unwrap().otlp;
        assert_eq!(Signal::Logs.exit(), EXPORTED);
        let clock = Arc::new(Clock::start());
        Otlp::exits(&settings, &[], &clock, runtime.handle()).into_iter().map(|it| Box::new(it) as _).collect()
    };
    let place = Place::new();
    // Nobody listens there, and nobody can while the port is held.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let behind = start(Some(&place), 500, exit(held.local_addr().unwrap()));
    let all = numbers(0..20_000);
    for some in all.chunks(settings(0).queue_records / 2) {
        behind.offer(some.iter().copied());
        behind.until_settled();
    }
    behind.stop(Duration::ZERO);

    let (address, receiver) = SlowReceiver::start(4, Duration::from_millis(300));
    let running = start(Some(&place), 500, exit(address));
    eventually("it has caught up", || count(&running.metrics, "delivered_total", EXPORTED) == all.len() as u64);
    assert_eq!(count(&running.metrics, "dropped_total", EXPORTED), 0);
    running.stop(PATIENCE);
    assert_eq!(receiver.waiting.lock().unwrap().1, 4, "otlp.in_flight");
    // All are full, but for the last one of each lot.
    let sizes = receiver.answered.lock().unwrap();
    let full = sizes.iter().sum::<u64>().div_ceil(3 << 20);
    assert!(full > 12 && sizes.len() as u64 <= full + 4, "{sizes:?} is more than {full} would be: otlp.batch_bytes");
}

#[test]
fn what_an_exit_had_no_time_for_is_delivered_by_the_next_start() {
    let (place, taken) = (Place::new(), Taken::default());
    let first = start(
        Some(&place),
        10,
        taken.sink(|numbers| if numbers[0] < 20 { Ok(()) } else { Err(Refusal::Later("down")) }),
    );
    first.offer(0..20);
    eventually("the first are taken", || taken.numbers().len() == 20);
    first.offer(20..50);
    first.until_settled();
    let (balance, _) = first.stop(Duration::ZERO);
    assert_eq!((balance.stored, &balance.exits[..]), (50, &[balanced(20, 30)][..]));

    let second = start(Some(&place), 10, taken.sink(|_| Ok(())));
    assert_eq!(count(&second.metrics, "recovered_total", EXIT), 30);
    second.offer(50..60);
    let (balance, _) = second.stop(PATIENCE);
    assert_eq!(balance.exits, [recovered(30, 40, 0)]);
    assert_eq!(taken.numbers(), numbers(0..60), "in order, and none twice");
}

#[test]
fn a_deadline_ends_an_exit_that_takes_everything_slowly() {
    let (place, taken) = (Place::new(), Taken::default());
    let (begin, begun) = mpsc::channel();
    let (stop_at, mut stopped) = watch::channel(None);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut deliveries = 0;
    let rule = move |_: &[u64]| {
        deliveries += 1;
        // Nobody listens once the test is over.
        begin.send(()).ok();
        if deliveries > 1 {
            // It is told after the lane was.
            runtime.block_on(stopped.wait_for(Option::is_some)).unwrap();
        }
        // How many the worker hands on at once is its own affair: one is always there.
        Ok(Done::all(1))
    };
    let sink = Scripted { name: EXIT, taken: taken.clone(), stop_at: Some(stop_at), rule };
    let running = start(Some(&place), 10, vec![Box::new(sink)]);
    running.offer(0..50);
    running.until_settled();
    begun.recv().unwrap();
    begun.recv().unwrap();
    // The delivery under way ends after the deadline, and no other begins.
    let (balance, _) = running.stop(Duration::ZERO);
    assert_eq!(balance.exits, [balanced(2, 48)], "the rest stays for the next start");
    assert_eq!(taken.numbers(), numbers(0..2));
    assert!(begun.try_recv().is_err());
}

#[test]
fn all_exits_hear_of_the_deadline_at_once() {
    let (place, taken) = (Place::new(), Taken::default());
    let (open, gate) = mpsc::sync_channel::<()>(1);
    let (refused, is_refused) = mpsc::channel();
    let first = move |numbers: &[u64]| {
        // Opened by the other one.
        gate.recv().ok();
        Ok(Done::all(numbers.len()))
    };
    let mut tries = 0;
    let second = move |numbers: &[u64]| {
        tries += 1;
        if tries == 1 {
            refused.send(()).unwrap();
            return Err(Refusal::After("busy", ASKED_PAUSE_MAX));
        }
        open.try_send(()).ok();
        Ok(Done::all(numbers.len()))
    };
    let mut sinks = taken.partly(first);
    sinks.push(Box::new(Scripted { name: "patient", taken: taken.clone(), stop_at: None, rule: second }));
    let running = start(Some(&place), 10, sinks);
    running.offer([7]);
    is_refused.recv().unwrap();
    let (balance, _) = running.stop(PATIENCE);
    assert_eq!(balance.exits, [balanced(1, 0), ExitBalance { name: "patient", ..balanced(1, 0) }]);
    assert_eq!(taken.numbers(), [7, 7]);
}

#[test]
fn an_exit_that_never_comes_back_is_left_behind() {
    let (place, taken) = (Place::new(), Taken::default());
    let (open, gate) = mpsc::sync_channel::<()>(1);
    let running = start(
        Some(&place),
        10,
        taken.sink(move |_| {
            gate.recv().ok();
            Ok(())
        }),
    );
    running.offer(0..10);
    let (balance, _) = running.stop(Duration::ZERO);
    assert_eq!(balance.exits, [balanced(0, 10)]);
    drop(open);
}

#[test]
fn a_new_exit_starts_at_the_end() {
    let (place, taken) = (Place::new(), Taken::default());
    let first = start(Some(&place), 10, Vec::new());
    first.offer(0..30);
    first.stop(PATIENCE);
    let second = start(Some(&place), 10, taken.sink(|_| Ok(())));
    assert_eq!(count(&second.metrics, "recovered_total", EXIT), 0);
    second.offer(30..40);
    second.stop(PATIENCE);
    assert_eq!(taken.numbers(), numbers(30..40));
}

#[test]
fn after_a_kill_an_exit_is_owed_what_was_stored_and_nothing_that_never_was() {
    let (place, taken) = (Place::new(), Taken::default());
    let clock = Clock::start();
    for kill in 0..3 {
        let (mut writer, _) = place.open(&clock);
        let records: Vec<_> = (kill * 10..kill * 10 + 10).map(|number| Arc::new(finished(number))).collect();
        writer.commit(writer.next_seq(), &records, &[], &[], clock.now()).unwrap();
        if kill == 0 {
            writer.commit(writer.next_seq(), &[], &[(EXIT, 4)], &[], clock.now()).unwrap();
        }
        // Not closed: to the next start it looks as if it had been killed.
        drop(writer);
    }
    let running = start(Some(&place), 10, taken.sink(|_| Ok(())));
    assert_eq!(count(&running.metrics, "recovered_total", EXIT), 26);
    running.offer(30..40);
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!(balance.exits, [recovered(26, 36, 0)]);
    assert_eq!(taken.numbers(), numbers(4..40));
    assert_eq!(count(&metrics, "dropped_total", EXIT), 0);
}

#[test]
fn what_retention_has_overtaken_is_counted_as_expired() {
    let (place, taken) = (Place::new(), Taken::default());
    let clock = Clock::start();
    let (mut writer, _) = place.open(&clock);
    let records: Vec<_> = (0..20).map(|number| Arc::new(finished(number))).collect();
    writer.commit(writer.next_seq(), &records, &[(EXIT, 5)], &[], clock.now()).unwrap();
    // In the far future everything is too old.
    writer.maintain(Moment(u64::MAX >> 2), false, PATIENCE);
    writer.commit(writer.next_seq(), &[Arc::new(finished(20))], &[], &[], clock.now()).unwrap();
    writer.close(clock.now());
    let running = start(Some(&place), 10, taken.sink(|_| Ok(())));
    let (_, metrics) = running.stop(PATIENCE);
    assert_eq!((count(&metrics, "recovered_total", EXIT), dropped(&metrics, EXIT, "expired")), (16, 15));
    assert_eq!(taken.numbers(), [20]);
}

#[test]
fn a_store_that_refuses_costs_the_exits_nothing() {
    let (place, taken) = (Place::new(), Taken::default());
    let running = start(Some(&place), 10, taken.sink(|_| Ok(())));
    running.offer(0..20);
    running.until_settled();
    place.sql("CREATE TRIGGER refuse BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'no'); END");
    running.offer(20..50);
    running.until_settled();
    let reasons: Vec<_> = (20..50).filter_map(|number| running.ledger.dropped(id(number))).collect();
    assert_eq!(reasons, [DropReason::StoreFailed; 30]);
    // A heartbeat is not refused and says that all is well, until the next record.
    let mut end = 50;
    eventually("/readyz can say so", || {
        running.offer([end]);
        end += 1;
        running.until_settled();
        running.problem.load().as_ref().is_some_and(|text| text.contains("refused"))
    });
    place.sql("DROP TRIGGER refuse");
    running.offer(end..end + 10);
    running.until_settled();
    eventually("the problem is over", || running.problem.load().is_none());
    let expected: Vec<_> = (0..20).chain(end..end + 10).collect();
    assert_eq!(running.stored(), expected);
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!((balance.offered, balance.stored, balance.exits[0].sums.delivered), (end + 10, 30, end + 10));
    assert_eq!(taken.numbers(), numbers(0..end + 10));
    assert_eq!(dropped(&metrics, STORE_EXIT, "store_failed"), end - 20);
}

#[test]
fn what_was_dropped_at_the_very_end_is_remembered_by_the_store() {
    let place = Place::new();
    let running = start(Some(&place), 10, Vec::new());
    place.sql("CREATE TRIGGER refuse BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'no'); END");
    running.offer(0..10);
    running.stop(PATIENCE);
    let shell = rusqlite::Connection::open(place.0.path().join("snapshots.db")).unwrap();
    let counted: i64 = shell.query_row("SELECT sum(count) FROM drops", [], |row| row.get(0)).unwrap();
    assert_eq!(counted, 10);
}

#[test]
fn a_panic_in_an_exit_costs_at_most_the_record_that_causes_it() {
    for (repeats, lost) in [(false, 0), (true, 1)] {
        let (place, taken) = (Place::new(), Taken::default());
        let mut panics = 0;
        let running = start(
            Some(&place),
            100,
            taken.sink(move |numbers| {
                if numbers.contains(&13) && (repeats || panics == 0) {
                    panics += 1;
                    panic!("as this test wants it");
                }
                Ok(())
            }),
        );
        running.offer(0..100);
        running.until_settled();
        let (balance, metrics) = running.stop(PATIENCE);
        let expected: Vec<_> = (0..100).filter(|number| lost == 0 || *number != 13).collect();
        assert_eq!(taken.numbers(), expected);
        assert_eq!(count(&metrics, "rejected_total", EXIT), lost);
        assert_eq!((balance.stored, balance.exits[0].sums.pending), (100, 0), "nothing else notices");
        assert!(errors(&metrics, EXIT, "panic") > 0);
    }
}

#[test]
fn a_panic_in_the_worker_costs_the_record_that_causes_it() {
    let (place, taken) = (Place::new(), Taken::default());
    let running = start(Some(&place), 100, taken.sink(|_| Ok(())));
    let all: Vec<_> = (0..50).chain([TRAP]).chain(50..100).collect();
    running.offer(all.iter().copied());
    running.until_settled();
    assert_eq!(running.ledger.dropped(id(TRAP)), Some(DropReason::StoreFailed));
    assert_eq!(running.stored(), numbers(0..100));
    running.offer(100..110);
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!((balance.offered, balance.stored), (111, 110));
    let expected: Vec<_> = all.into_iter().chain(100..110).collect();
    assert_eq!(taken.numbers(), expected, "the exits get it, in its place");
    assert_eq!(dropped(&metrics, STORE_EXIT, "panic"), 1);
    assert_eq!(errors(&metrics, STORE_EXIT, "panic"), 2);
}

#[test]
fn a_panic_between_transactions_slows_nothing_down() {
    let place = Place::new();
    let running = start(Some(&place), UPKEEP_TRAP, Vec::new());
    let heartbeat = || {
        let shell = rusqlite::Connection::open(place.0.path().join("snapshots.db")).unwrap();
        shell.query_row("SELECT heartbeat_unix_us FROM runs", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let first = heartbeat();
    eventually("a heartbeat", || heartbeat() > first);
    let panics = errors(&running.metrics, STORE_EXIT, "panic");
    assert!((1..10).contains(&panics), "{panics}, and not at the start and with each heartbeat");
    running.offer(0..2_000);
    running.until_settled();
    let transactions = sum(&running.metrics, "snapgate_commit_duration_seconds_count");
    assert!((1..1_000).contains(&transactions), "{transactions}: no batch is to blame, so none is taken apart");
    assert_eq!(running.stored(), numbers(0..2_000));
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!((balance.offered, balance.stored), (2_000, 2_000));
    assert_eq!(dropped(&metrics, STORE_EXIT, "panic"), 0);
}

/// A finished request of an even or an odd tenant.
fn owned(number: u64) -> Arc<Record> {
    let mut record = finished(number);
    record.issued.request.tenant = Some(Tenant([(number % 2) as u8; 32]));
    record.issued.issued_at = Clock::start().now();
    Arc::new(record)
}

fn of_odd() -> Erasure {
    Erasure { subject: Subject::Tenant(Tenant([1; 32])), by: "ops".into() }
}

#[test]
fn what_a_tenant_wants_deleted_goes_from_wherever_it_is() {
    let (place, taken) = (Place::new(), Taken::default());
    let running = start(Some(&place), 7, taken.sink(|_| Ok(())));
    let offer = |record: &Arc<Record>| {
        running.ledger.insert(Arc::clone(record));
        running.intake.offer(Arc::clone(record));
    };
    (0..20).for_each(|number| offer(&owned(number)));
    running.until_settled();
    // Its request has not ended when the deletion is asked for.
    let on_its_way = owned(21);
    running.ledger.insert(Arc::clone(&on_its_way));
    let erased = running.pipeline.eraser().unwrap().erase(of_odd()).unwrap().blocking_recv().unwrap().unwrap();
    assert_eq!(erased, Erased { records: 10, on_their_way: 1 });
    running.intake.offer(on_its_way);
    offer(&owned(22));
    running.until_settled();
    // What the tenant asks for afterwards is recorded as ever.
    offer(&owned(23));
    running.until_settled();

    let even = (0..20).filter(|number| number % 2 == 0).chain([22, 23]).collect::<Vec<_>>();
    assert_eq!(running.stored(), even);
    assert_eq!(running.reader.as_ref().unwrap().erased_seqs(0, u64::MAX >> 1).unwrap(), 10);
    let (balance, metrics) = running.stop(PATIENCE);
    assert_eq!((balance.offered, balance.stored), (23, 22));
    assert_eq!(count(&metrics, "skipped_total", STORE_EXIT), 1);
    assert_eq!(sum(&metrics, "snapgate_snapshots_erased_total"), 11);
    assert!(!taken.numbers().contains(&21), "nor do the exits get what was kept out");
    let shell = rusqlite::Connection::open(place.0.path().join("snapshots.db")).unwrap();
    let audit: (String, String, i64, bool) = shell
        .query_row("SELECT requested_by, subject, records, ended_unix_us NOT NULL FROM erasures", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap();
    assert_eq!(audit, ("ops".to_owned(), "t_01010101".to_owned(), 10, true));
}

/// Deletions without a worker: its clock is the test's.
struct Deleting {
    eraser: Eraser,
    erasures: Erasures,
    writer: Writer,
    ledger: Ledger,
    now: Moment,
}

impl Deleting {
    fn start(place: &Place) -> Self {
        let (clock, (eraser, erasures)) = (Clock::start(), erase::channel());
        let (writer, _) = place.open(&clock);
        Self { eraser, erasures, writer, ledger: Ledger::default(), now: clock.now().plus(Duration::from_secs(60)) }
    }

    fn erase(&mut self, subject: Subject) -> Result<Erased, NotErased> {
        let answer = self.eraser.erase(Erasure { subject, by: "ops".into() }).unwrap();
        while self.erasures.is_busy() {
            self.erasures.go_on(&mut self.writer, &self.ledger, self.now, PATIENCE);
        }
        answer.blocking_recv().unwrap()
    }

    /// Time passes, and the worker looks.
    fn after(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.erasures.lift(&self.ledger, self.now);
    }

    fn keeps_out(&self, record: &Arc<Record>) -> bool {
        !self.erasures.sift(&mut vec![Arc::clone(record)]).is_empty()
    }
}

#[test]
fn a_tenant_is_kept_out_until_none_of_its_requests_can_be_on_its_way() {
    let place = Place::new();
    let mut deleting = Deleting::start(&place);
    // In the order of their ends: one whose body still comes, one that streams, and another tenant's that streams for days.
    let (coming, streaming, stranger) = (owned(1), owned(3), owned(2));
    for record in [&streaming, &stranger] {
        deleting.ledger.insert(Arc::clone(record));
    }
    assert_eq!(deleting.erase(of_odd().subject).unwrap(), Erased { records: 0, on_their_way: 1 });
    deleting.after(UNLISTED_MAX);
    assert!(deleting.keeps_out(&coming) && !deleting.keeps_out(&stranger));
    deleting.after(BARRED_MIN - UNLISTED_MAX);
    assert!(deleting.keeps_out(&streaming), "it is in the ledger");
    deleting.ledger.settle(streaming.id());
    deleting.after(BARRED_LOOK);
    assert!(!deleting.keeps_out(&streaming), "the stranger's holds up nobody");
}

#[test]
fn a_deletion_beyond_what_can_be_kept_out_is_refused_and_an_id_needs_no_room() {
    let place = Place::new();
    let mut deleting = Deleting::start(&place);
    let tenant = |number: usize| {
        Subject::Tenant(Tenant([(number % 256) as u8, (number / 256) as u8].repeat(16).try_into().unwrap()))
    };
    for number in 0..BARRED_MAX {
        deleting.erase(tenant(number)).unwrap();
    }
    assert!(matches!(deleting.erase(tenant(BARRED_MAX)), Err(NotErased::TooManyBarred)));
    deleting.erase(tenant(0)).expect("it has its place already");
    let (stored, open) = (owned(1), owned(3));
    deleting.ledger.insert(Arc::clone(&open));
    deleting.erase(Subject::Id(stored.id())).expect("nothing of it is on its way");
    assert!(matches!(deleting.erase(Subject::Id(open.id())), Err(NotErased::TooManyBarred)));
    deleting.after(BARRED_MIN);
    let erased = deleting.erase(Subject::Id(open.id())).unwrap();
    assert_eq!((erased.on_their_way, deleting.keeps_out(&open)), (1, true));
    deleting.ledger.settle(open.id());
    deleting.after(BARRED_LOOK);
    assert!(!deleting.keeps_out(&open));
}

#[test]
fn an_exit_that_was_behind_counts_what_was_deleted_meanwhile_as_that() {
    let (place, taken) = (Place::new(), Taken::default());
    let first = start(Some(&place), 10, taken.sink(|_| Err(Refusal::Later("busy"))));
    for number in 0..10 {
        let record = owned(number);
        first.ledger.insert(Arc::clone(&record));
        first.intake.offer(record);
    }
    first.until_settled();
    first.stop(Duration::ZERO);
    {
        let clock = Clock::start();
        let (mut writer, _) = place.open(&clock);
        let mut job = writer.begin_erasure(&of_odd(), clock.now()).unwrap();
        while writer.erase(&mut job, PATIENCE, clock.now()).unwrap().is_none() {}
        writer.close(clock.now());
    }
    let second = start(Some(&place), 10, taken.sink(|_| Ok(())));
    eventually("the exit has caught up", || taken.numbers().len() == 5);
    let (_, metrics) = second.stop(PATIENCE);
    assert_eq!(taken.numbers(), [0, 2, 4, 6, 8]);
    assert_eq!((dropped(&metrics, EXIT, "erased"), dropped(&metrics, EXIT, "not_stored")), (5, 0));
}

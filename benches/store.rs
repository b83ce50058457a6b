//! The store at size: how fast records go in, whether that lasts, what they weigh, and how long lookups take then.
//!
//! `cargo bench --bench store -- [RECORDS] [PER_SECOND] [DIRECTORY]`, by default one million records, issued at ten
//! thousand a second, in the system's temporary directory. At fewer a second a search by trace or by client request ID has
//! more buckets to look into, and more records bring states that no other refers to. Every tenth record brings a trace of its own, every tenth other one a client's request ID. Not a criterion
//! bench: the question is what the last million costs, so each record is inserted once.
#![expect(clippy::print_stdout, reason = "a bench prints what it found")]

mod records;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use records::{START, spread};
use snapgate::snapshot::{
    Health, InstanceTag, Issued, Moment, Policy, Record, Request, Run, Sample, SnapshotId, Target, TraceContext,
    TraceId,
};
use snapgate::store::{DataDir, Reader, Resolution, Settings, Store, Writer};

/// Records of one transaction.
const BATCH: u64 = 500;

/// Pods of the simulated fleet; each publishes a state every [`TICK`].
const TARGETS: u64 = 3;

/// How often the fleet's view is published.
const TICK: Duration = Duration::from_millis(100);

/// Lookups measured of each kind.
const LOOKUPS: u64 = 2_000;

/// Longer than any run of records.
const KEPT: Duration = Duration::from_secs(1 << 26);

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let records = arguments.next().map_or(1_000_000, |text| text.parse().expect("RECORDS is a number"));
    let per_second = arguments.next().map_or(10_000.0, |text| text.parse().expect("PER_SECOND is a number"));
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let temp = tempfile::tempdir_in(directory).expect("the directory can be written");
    let dir = DataDir::open(temp.path()).expect("a new directory can be opened");
    let fleet = Fleet::new(dir.tag(), per_second);
    // Nothing is deleted at first: the question is what a full store costs.
    let settings = Settings { retention_bytes: u64::MAX, retention_age: KEPT, ..Settings::default() };
    let (mut writer, reader) =
        Store::open(&dir, &settings, Arc::clone(&fleet.run), START).expect("a new store can be opened");

    insert(&mut writer, &fleet, records, temp.path());
    let now = fleet.moment(records);
    for (name, lookup) in lookups() {
        let mut took: Vec<Duration> = (0..LOOKUPS)
            .map(|number| {
                let index = spread(number) % records / 20 * 20;
                let started = Instant::now();
                lookup(&reader, &fleet, index, now);
                started.elapsed()
            })
            .collect();
        took.sort_unstable();
        let at = |share: usize| took[took.len() * share / 100];
        println!("lookup by {name}: p50 {:?}, p99 {:?}", at(50), at(99));
    }
    expire(&mut writer, now.plus(KEPT));
    writer.close(now);
}

/// Deletes everything, as retention does it between commits.
fn expire(writer: &mut Writer, now: Moment) {
    let (started, mut expired, mut longest) = (Instant::now(), 0, Duration::ZERO);
    loop {
        let begin = Instant::now();
        let done = writer.maintain(now, false, Duration::from_millis(2));
        longest = longest.max(begin.elapsed());
        expired += done.expired;
        if done.expired == 0 {
            break;
        }
    }
    let rate = f64::from(u32::try_from(expired).expect("a bench inserts fewer")) / started.elapsed().as_secs_f64();
    println!("retention: {expired} records at {rate:.0}/s, longest maintenance {longest:?}");
}

/// Inserts all records, and says for each million how fast, what it weighs and the longest that the worker was held up.
fn insert(writer: &mut Writer, fleet: &Fleet, records: u64, path: &Path) {
    const SHARE: u64 = 1_000_000;
    let (mut inserting, mut made, mut bytes) = (Usage::default(), 0, 0);
    let (mut commit_max, mut maintain_max) = (Duration::ZERO, Duration::ZERO);
    while made < records {
        let batch: Vec<_> = (made..(made + BATCH).min(records)).map(|index| fleet.record(index)).collect();
        let (started, now) = (Usage::now(), fleet.moment(made));
        let begin = Instant::now();
        writer.commit(writer.next_seq(), &batch, &[], &[], now).expect("the disk has room");
        let committed = begin.elapsed();
        // No gateway brings records this fast: where the disk cannot follow, the log grows to its bound, and the store then
        // waits for the disk within this call. So that it is too large for a moment is no failure here.
        let done = writer.maintain(now, false, Duration::from_millis(2));
        inserting.add(started);
        commit_max = commit_max.max(committed);
        maintain_max = maintain_max.max(begin.elapsed() - committed);
        made += batch.len() as u64;
        if made % SHARE == 0 || made == records {
            let count = if made % SHARE == 0 { SHARE } else { made % SHARE };
            let grown = done.store_bytes - bytes;
            bytes = done.store_bytes;
            println!(
                "{made:>9} records: {:.0}/s, {:.2} us elapsed and {:.2} us CPU each, {} bytes each; longest commit \
                 {commit_max:?}, longest maintenance {maintain_max:?}",
                count as f64 / inserting.elapsed.as_secs_f64(),
                inserting.elapsed.as_secs_f64() * 1e6 / count as f64,
                inserting.cpu.as_secs_f64() * 1e6 / count as f64,
                grown / count,
            );
            (inserting, commit_max, maintain_max) = (Usage::default(), Duration::ZERO, Duration::ZERO);
        }
    }
    let on_disk: u64 = std::fs::read_dir(path)
        .and_then(|files| files.map(|file| Ok(file?.metadata()?.len())).sum())
        .expect("the directory can be read");
    println!("{} MiB in the directory, log and ballast included", on_disk >> 20);
}

type Lookup = fn(&Reader, &Fleet, u64, Moment);

fn lookups() -> [(&'static str, Lookup); 4] {
    [
        ("ID", |reader, fleet, index, now| {
            let answer = reader.resolve(fleet.id(index), now).expect("the store can be read");
            assert!(matches!(answer, Resolution::Found(_)), "{answer:?}");
        }),
        ("an unknown ID", |reader, fleet, index, now| {
            let id = SnapshotId::from_u128(fleet.id(index).as_u128() ^ 1);
            let answer = reader.resolve(id, now).expect("the store can be read");
            assert!(matches!(answer, Resolution::Unknown), "{answer:?}");
        }),
        ("trace ID", |reader, _, index, _| {
            let trace = brought_trace(index).expect("every twentieth record brings a trace");
            assert_eq!(reader.by_trace(trace, 10).expect("the store can be read").len(), 1);
        }),
        ("client request ID", |reader, _, index, _| {
            let alias = brought_id(index + 5).expect("so does the fifth after it bring an ID");
            assert_eq!(reader.by_client_request_id(&alias, 10).expect("the store can be read").len(), 1);
        }),
    ]
}

/// Time that passed, and time that this process worked.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    elapsed: Duration,
    cpu: Duration,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    cpu: Duration,
}

impl Usage {
    fn now() -> Begun {
        Begun { at: Instant::now(), cpu: cpu_time() }
    }

    fn add(&mut self, begun: Begun) {
        self.elapsed += begun.at.elapsed();
        self.cpu += cpu_time() - begun.cpu;
    }
}

/// Of this thread, from Linux's scheduler; zero elsewhere.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

fn brought_trace(index: u64) -> Option<TraceId> {
    let value = u128::from(spread(index ^ 1 << 60)) << 64 | u128::from(spread(index ^ 1 << 61));
    if index.is_multiple_of(10) { TraceId::new(value) } else { None }
}

fn brought_id(index: u64) -> Option<String> {
    (index % 10 == 5).then(|| format!("req-{:016x}", spread(index ^ 1 << 62)))
}

struct Fleet {
    run: Arc<Run>,
    /// From one record to the next.
    step: Duration,
    targets: Vec<Arc<Target>>,
    samples: std::cell::RefCell<(u64, Vec<Arc<Sample>>)>,
}

impl Fleet {
    fn new(tag: InstanceTag, per_second: f64) -> Self {
        let target = |slot| {
            let target = Target::new(slot as u32, &format!("vllm-{slot}"), &format!("10.0.3.{slot}:8000"));
            Arc::new(Target { gpus: Some(1), ..target })
        };
        let targets = (0..TARGETS).map(target).collect();
        Self {
            run: records::run(tag),
            step: Duration::from_secs_f64(1.0 / per_second),
            targets,
            samples: std::cell::RefCell::default(),
        }
    }

    fn moment(&self, index: u64) -> Moment {
        Moment(START.0 + (index as f64 * self.step.as_secs_f64() * 1e6) as u64)
    }

    fn id(&self, index: u64) -> SnapshotId {
        SnapshotId::new(self.moment(index).unix_ms(), self.run.tag, spread(index))
    }

    /// The fleet's states at a moment, new every tick.
    fn samples(&self, moment: Moment) -> Vec<Arc<Sample>> {
        let tick = (moment.0 - START.0) / TICK.as_micros() as u64 + 1;
        let mut current = self.samples.borrow_mut();
        if current.0 != tick {
            let make = |target: &Arc<Target>| sample(target, tick, moment);
            *current = (tick, self.targets.iter().map(make).collect());
        }
        current.1.clone()
    }

    fn record(&self, index: u64) -> Arc<Record> {
        let (id, moment, draw) = (self.id(index), self.moment(index), spread(index ^ 1 << 63));
        let mut trace = TraceContext::root(id);
        trace.trace_id = brought_trace(index).unwrap_or(trace.trace_id);
        let client_request_id = brought_id(index).map(Into::into);
        let request = Request { client_request_id, ..records::request(draw) };
        let parts = |rank: usize| [(draw % 40) as f64 + rank as f64, 0.0, 0.0];
        let decision = records::decision(Policy::LeastRequest, moment, self.samples(moment), draw, parts);
        let outcome = records::outcome(id, Arc::clone(decision.target()), draw);
        let issued =
            Issued { id, issued_at: moment, run: Arc::clone(&self.run), trace, request, decision: Some(decision) };
        Arc::new(Record::closed(issued, outcome))
    }
}

fn sample(target: &Arc<Target>, n: u64, published: Moment) -> Arc<Sample> {
    let readings = records::readings(published, spread(n ^ u64::from(target.slot) << 32));
    Arc::new(Sample::new(Arc::clone(target), n, published, Health::Healthy, readings, 10_000))
}

//! The store at size: how fast records go in, whether that lasts, what they weigh, and how long lookups take then.
//!
//! `cargo bench --bench store -- [RECORDS] [PER_SECOND] [DIRECTORY]`, by default one million records, issued at ten
//! thousand a second, in the system's temporary directory. At fewer a second a search by trace or by client request ID has
//! more buckets to look into, and more records bring states that no other refers to. Every tenth record brings a trace of its own, every tenth other one a client's request ID. Not a criterion
//! bench: the question is what the last million costs, so each record is inserted once.
#![expect(clippy::print_stdout, reason = "a bench prints what it found")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapgate::snapshot::outcome::Answer;
use snapgate::snapshot::{
    Attempt, Candidate, Decision, Ending, Excluded, Freshness, Health, Inputs, InstanceTag, Issued, Moment, Operation,
    Outcome, Policy, Quantity, Reading, Reason, Record, Request, Run, RunId, Sample, SnapshotId, Source, Target,
    Timings, TraceContext, TraceId,
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

const START: Moment = Moment(1_795_435_995_000_000);

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

/// The finaliser of splitmix64: numbers that look random and can be made again.
fn spread(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
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
        let run = Run {
            id: RunId(7),
            instance: "bench".into(),
            tag,
            version: "0.1.0".into(),
            config: "c0ffee12".into(),
            config_text: "".into(),
            started: START,
        };
        let target = |slot| {
            let target = Target::new(slot as u32, &format!("vllm-{slot}"), &format!("10.0.3.{slot}:8000"));
            Arc::new(Target { gpus: Some(1), ..target })
        };
        let targets = (0..TARGETS).map(target).collect();
        Self {
            run: Arc::new(run),
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
        let request = Request {
            method: "POST".into(),
            path: "/v1/chat/completions".into(),
            operation: Operation::Chat,
            model: Some("llama-3.1-8b".into()),
            stream: Some(true),
            body_bytes: 400 + draw % 4_000,
            body_unread: false,
            max_tokens: Some(256),
            client_request_id: brought_id(index).map(Into::into),
            tenant: None,
            user_agent: Some("OpenAI/Python 1.52.0".into()),
            labels: Vec::new(),
        };
        let decision = self.decision(moment, draw);
        let outcome = outcome(id, Arc::clone(decision.target()), draw);
        let issued =
            Issued { id, issued_at: moment, run: Arc::clone(&self.run), trace, request, decision: Some(decision) };
        Arc::new(Record::closed(issued, outcome))
    }

    fn decision(&self, moment: Moment, draw: u64) -> Decision {
        let mut samples = self.samples(moment);
        let first = draw as usize % samples.len();
        samples.rotate_left(first);
        let candidate = |(index, sample): (usize, Arc<Sample>)| Candidate {
            sample: sample.into(),
            place: Some(((first + index) as u64 % TARGETS) as u32),
            in_flight: (draw % 40) as u32 + index as u32,
            requests_per_second: (30_000 + draw % 900) as f64 / 10.0,
            tokens_per_second: (1_480_000 + draw % 9_000) as f64 / 10.0,
            score: Some((draw % 40) as f64 + index as f64),
            score_parts: [(draw % 40) as f64 + index as f64, 0.0, 0.0],
        };
        Decision {
            policy: Policy::LeastRequest,
            reason: Reason::LowestScore,
            forced: false,
            fallback: None,
            decided_offset_ns: 20_000 + draw % 40_000,
            choose_ns: 1_000 + draw % 900,
            decided: Moment(moment.0 + 30),
            view_published: Moment(moment.0 - draw % 100_000),
            eligible: TARGETS as u32,
            excluded: Excluded::default(),
            candidates: samples.into_iter().enumerate().map(candidate).collect(),
            inputs: Inputs { draw, ..Inputs::default() },
        }
    }
}

fn sample(target: &Arc<Target>, n: u64, published: Moment) -> Arc<Sample> {
    let draw = spread(n ^ u64::from(target.slot) << 32);
    let reading = |value| Reading {
        value: Some(value),
        observed: Moment(published.0 - draw % 500_000),
        source: Some(Source::Scrape),
        freshness: Freshness::Fresh,
    };
    let mut readings = [Reading::UNSUPPORTED; Quantity::COUNT];
    readings[Quantity::Waiting as usize] = reading((draw % 5) as f64);
    readings[Quantity::Running as usize] = reading((draw % 40) as f64);
    readings[Quantity::KvCacheUsage as usize] = reading(draw as f64 / u64::MAX as f64);
    readings[Quantity::PrefixCacheHitRatio as usize] = reading((draw >> 7) as f64 / u64::MAX as f64);
    readings[Quantity::EngineRequestsPerSecond as usize] = reading((draw % 1000) as f64 / 7.0);
    readings[Quantity::EngineTokensPerSecond as usize] = reading((draw % 1_000_000) as f64 / 7.0);
    Arc::new(Sample::new(Arc::clone(target), n, published, Health::Healthy, readings, 10_000))
}

fn outcome(id: SnapshotId, target: Arc<Target>, draw: u64) -> Outcome {
    let first_byte = 3_000 + draw % 9_000;
    let tokens = 20 + draw % 400;
    let attempt = Attempt {
        target,
        started_offset_us: 60 + draw % 60,
        connect_us: Some(0),
        first_byte_offset_us: Some(first_byte),
        status: Some(200),
        error: None,
    };
    let answer = Answer {
        finish_reason: Some("stop".into()),
        response_id: Some(format!("chatcmpl-{id}").into()),
        response_model: Some("llama-3.1-8b".into()),
        prompt_tokens: Some(50 + draw % 2_000),
        completion_tokens: Some(tokens),
        cached_tokens: Some(draw % 50),
        tokens_estimated: false,
    };
    let timings = Timings {
        first_byte_offset_us: Some(first_byte),
        first_event_offset_us: Some(first_byte + 200),
        first_content_offset_us: Some(first_byte + 40_000),
        end_offset_us: first_byte + 12_000 * tokens,
        inter_token_p50_us: Some(11_000 + draw % 500),
        inter_token_p99_us: Some(30_000 + draw % 5_000),
        inter_token_max_us: Some(41_000 + draw % 50_000),
    };
    Outcome {
        ending: Ending::Completed,
        status: Some(200),
        error: None,
        attempts: vec![attempt],
        response_bytes: tokens * 113,
        events: tokens + 2,
        answer,
        timings,
        trace_exported: None,
    }
}

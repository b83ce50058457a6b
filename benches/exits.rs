//! What an exit costs for one snapshot, by the number of candidates. `cargo bench --bench exits`.
//!
//! `json_log/render` makes the lines in memory; `json_log/nowhere` has the exit write them where the kernel throws them away;
//! `json_log/file` to a file, whose pages the kernel has to find and fill. `otlp_traces` and `otlp_logs` encode export
//! requests. One element is one snapshot.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, Write};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use snapgate::config::{Config, Machine, Sources, Targets};
use snapgate::sink::Sink as _;
use snapgate::sink::json_log::JsonLog;
use snapgate::sink::otlp::{Encoder, Signal};
use snapgate::snapshot::outcome::Answer;
use snapgate::snapshot::{
    Attempt, Candidate, Decision, Document, Ending, Excluded, Freshness, Health, Inputs, InstanceTag, Issued, Moment,
    Operation, Outcome, Policy, Quantity, Reading, Reason, Record, Request, Run, RunId, Sample, SnapshotId, Source,
    Target, Timings, TraceContext,
};

/// Three pods, and as many as a decision holds by default.
const CANDIDATES: [u32; 2] = [3, 16];

/// Records of one delivery: what a commit hands over at twenty thousand requests a second.
const BATCH: u64 = 500;

/// The file begins anew at this size, lest a bench fills the disk.
const FILE_BYTES: u64 = 64 << 20;

const START: Moment = Moment(1_795_435_995_000_000);

/// A file that is written over and over.
struct Endless {
    file: File,
    bytes: u64,
}

impl Write for Endless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes > FILE_BYTES {
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.bytes = 0;
        }
        let count = self.file.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn json_log(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("json_log");
    group.throughput(Throughput::Elements(BATCH));
    for candidates in CANDIDATES {
        let records = records(candidates);
        let mut lines = Vec::new();
        group.bench_with_input(BenchmarkId::new("render", candidates), &records, |bencher, records| {
            bencher.iter(|| {
                lines.clear();
                for record in records {
                    Document::of(record).write(&mut lines);
                }
                lines.len()
            });
        });
        eprintln!("{candidates} candidates: {} bytes a line", lines.len() as u64 / BATCH);
        let nowhere = OpenOptions::new().write(true).open("/dev/null").expect("it is everywhere");
        let file = Endless { file: tempfile::tempfile().expect("a file can be made"), bytes: 0 };
        for (name, out) in [("nowhere", Box::new(nowhere) as Box<dyn Write + Send>), ("file", Box::new(file))] {
            let mut log = JsonLog::to(out);
            group.bench_with_input(BenchmarkId::new(name, candidates), &records, |bencher, records| {
                bencher.iter(|| log.deliver(records).expect("the disk has room"));
            });
        }
    }
    group.finish();
}

fn otlp(criterion: &mut Criterion) {
    let text = "[otlp]\ncandidates = \"all\"\nbatch_bytes = \"64MiB\"\n";
    let sources = Sources::of_text("the bench", text, Machine { hostname: "bench".into(), cores: 1 });
    let settings = Config::load(&sources, Targets::Optional).expect("the bench's configuration is valid").otlp;
    for signal in [Signal::Traces, Signal::Logs] {
        let mut group = criterion.benchmark_group(signal.exit());
        group.throughput(Throughput::Elements(BATCH));
        for candidates in CANDIDATES {
            let (records, mut encoder) = (records(candidates), Encoder::new(signal, &settings));
            let bytes = encoder.encode(&records).message().len() as u64 / BATCH;
            eprintln!("{candidates} candidates: {bytes} bytes a snapshot");
            group.bench_with_input(BenchmarkId::new("encode", candidates), &records, |bencher, records| {
                bencher.iter(|| {
                    let request = encoder.encode(records);
                    encoder.reuse(request);
                });
            });
        }
        group.finish();
    }
}

/// The finaliser of splitmix64: numbers that look random and can be made again.
fn spread(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// One delivery. Its decisions share the samples of one view, as they do within a tick.
fn records(candidates: u32) -> Vec<Arc<Record>> {
    let samples: Vec<_> = (0..candidates).map(sample).collect();
    let run = Arc::new(Run {
        id: RunId(7),
        instance: "gw-1".into(),
        tag: InstanceTag(7),
        version: "0.1.0".into(),
        config: "c0ffee12".into(),
        config_text: "".into(),
        started: START,
    });
    (0..BATCH).map(|index| Arc::new(record(index, &samples, &run))).collect()
}

fn record(index: u64, samples: &[Arc<Sample>], run: &Arc<Run>) -> Record {
    let draw = spread(index);
    let issued_at = Moment(START.0 + 50 * index);
    let id = SnapshotId::new(issued_at.unix_ms(), run.tag, draw);
    let request = Request {
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        operation: Operation::Chat,
        model: Some("llama-3.1-8b".into()),
        stream: Some(true),
        body_bytes: 400 + draw % 4_000,
        body_unread: false,
        max_tokens: Some(256),
        client_request_id: None,
        tenant: None,
        user_agent: Some("OpenAI/Python 1.52.0".into()),
        labels: Vec::new(),
    };
    let decision = decision(issued_at, samples, draw);
    let outcome = outcome(id, Arc::clone(decision.target()), draw);
    let (run, trace) = (Arc::clone(run), TraceContext::root(id));
    Record::closed(Issued { id, issued_at, run, trace, request, decision: Some(decision) }, outcome)
}

fn decision(issued_at: Moment, samples: &[Arc<Sample>], draw: u64) -> Decision {
    let mut samples = samples.to_vec();
    let first = draw as usize % samples.len();
    samples.rotate_left(first);
    let eligible = samples.len() as u32;
    let candidate = |(index, sample): (usize, Arc<Sample>)| Candidate {
        place: Some(sample.target.slot),
        sample: sample.into(),
        in_flight: (draw % 40) as u32 + index as u32,
        requests_per_second: (30_000 + draw % 900) as f64 / 10.0,
        tokens_per_second: (1_480_000 + draw % 9_000) as f64 / 10.0,
        score: Some((draw % 40) as f64 + 5.0 * index as f64),
        score_parts: [4.0 * index as f64, (draw % 40) as f64, index as f64],
    };
    Decision {
        policy: Policy::LeastQueue,
        reason: Reason::LowestScore,
        forced: false,
        fallback: None,
        decided_offset_ns: 20_000 + draw % 40_000,
        choose_ns: 1_000 + draw % 900,
        decided: Moment(issued_at.0 + 30),
        view_published: Moment(issued_at.0 - draw % 100_000),
        eligible,
        excluded: Excluded::default(),
        candidates: samples.into_iter().enumerate().map(candidate).collect(),
        inputs: Inputs { draw, ..Inputs::default() },
    }
}

fn sample(slot: u32) -> Arc<Sample> {
    let draw = spread(u64::from(slot));
    let published = Moment(START.0 - 100_000);
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
    let target = Target::new(slot, &format!("vllm-{slot}"), &format!("10.0.3.{slot}:8000"));
    let target = Arc::new(Target { gpus: Some(1), ..target });
    let sample = Sample::new(target, 1, published, Health::Healthy, readings, 10_000);
    Arc::new(sample.with_in_flight_at_scrape(Some((draw % 9) as u32)))
}

fn outcome(id: SnapshotId, target: Arc<Target>, draw: u64) -> Outcome {
    let (first_byte, tokens) = (3_000 + draw % 9_000, 20 + draw % 400);
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
        trace_exported: Some(true),
    }
}

criterion_group!(benches, json_log, otlp);
criterion_main!(benches);

//! What an exit costs for one snapshot, by the number of candidates. `cargo bench --bench exits`.
//!
//! `json_log/render` makes the lines in memory; `json_log/nowhere` has the exit write them where the kernel throws them away;
//! `json_log/file` to a file, whose pages the kernel has to find and fill. `otlp_traces` and `otlp_logs` encode export
//! requests. One element is one snapshot.

mod records;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, Write};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use records::{START, spread};
use snapgate::config::{Config, Machine, Sources, Targets};
use snapgate::sink::Sink as _;
use snapgate::sink::json_log::JsonLog;
use snapgate::sink::otlp::{Encoder, Signal};
use snapgate::snapshot::{
    Document, Health, InstanceTag, Issued, Moment, Outcome, Policy, Record, Run, Sample, SnapshotId, Target,
    TraceContext,
};

/// Three pods, and as many as a decision holds by default.
const CANDIDATES: [u32; 2] = [3, 16];

/// Records of one delivery: what a commit hands over at twenty thousand requests a second.
const BATCH: u64 = 500;

/// The file begins anew at this size, lest a bench fills the disk.
const FILE_BYTES: u64 = 64 << 20;

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
        let records = delivery(candidates);
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
                bencher.iter(|| {
                    let mut left = &records[..];
                    while !left.is_empty() {
                        left = &left[log.deliver(left).expect("the disk has room").records..];
                    }
                });
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
            let (records, mut encoder) = (delivery(candidates), Encoder::new(signal, &settings));
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

/// One delivery. Its decisions share the samples of one view, as they do within a tick.
fn delivery(candidates: u32) -> Vec<Arc<Record>> {
    let (samples, run) = ((0..candidates).map(sample).collect::<Vec<_>>(), records::run(InstanceTag(7)));
    (0..BATCH).map(|index| Arc::new(record(index, &samples, &run))).collect()
}

fn record(index: u64, samples: &[Arc<Sample>], run: &Arc<Run>) -> Record {
    let draw = spread(index);
    let issued_at = Moment(START.0 + 50 * index);
    let id = SnapshotId::new(issued_at.unix_ms(), run.tag, draw);
    let busy = (draw % 40) as f64;
    let parts = |rank: usize| [4.0 * rank as f64, busy, rank as f64];
    let decision = records::decision(Policy::LeastQueue, issued_at, samples.to_vec(), draw, parts);
    let outcome = records::outcome(id, Arc::clone(decision.target()), draw);
    let outcome = Outcome { trace_exported: Some(true), ..outcome };
    let (run, trace, request) = (Arc::clone(run), TraceContext::root(id), records::request(draw));
    Record::closed(Issued { id, issued_at, run, trace, request, decision: Some(decision) }, outcome)
}

fn sample(slot: u32) -> Arc<Sample> {
    let draw = spread(u64::from(slot));
    let published = Moment(START.0 - 100_000);
    let target = Target::new(slot, &format!("vllm-{slot}"), &format!("10.0.3.{slot}:8000"));
    let target = Arc::new(Target { gpus: Some(1), ..target });
    let sample = Sample::new(target, 1, published, Health::Healthy, records::readings(published, draw), 10_000);
    Arc::new(sample.with_in_flight_at_scrape(Some((draw % 9) as u32)))
}

criterion_group!(benches, json_log, otlp);
criterion_main!(benches);

//! What a finished request costs after the hand-off, exit by exit. `cargo bench --bench metrics`.

mod records;

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use records::{START, spread};
use snapgate::snapshot::{
    Ending, Health, InstanceTag, Issued, Outcome, Policy, Record, Request, Run, Sample, SnapshotId, Target,
    TraceContext,
};
use snapgate::telemetry::Metrics;

/// Records of one round: as many as the worker commits at once under full load, so that they are not all in the cache.
const RECORDS: u64 = 2_000;

/// Pods, models and how many requests a second there are.
const TARGETS: u32 = 16;
const MODELS: [&str; 3] = ["llama-3.1-8b", "qwen2.5-72b-instruct", "mistral-large"];
const PER_SECOND: u64 = 10_000;

fn metrics(criterion: &mut Criterion) {
    let metrics = Metrics::new();
    let targets = targets();
    metrics.set_targets(targets.iter().map(|target| &*target.name), &[]);
    let records = chats(&targets);
    let mut observer = metrics.observer();
    let mut group = criterion.benchmark_group("metrics");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("finished", |bencher| {
        bencher.iter(|| records.iter().for_each(|record| observer.finished(record)));
    });
    // Besides, the worker says how late each commit was.
    group.bench_function("finished and committed", |bencher| {
        bencher.iter(|| {
            for record in &records {
                observer.finished(record);
                metrics.committed(record, Duration::from_millis(12));
            }
        });
    });
    // Once a scrape, not once a record: what a page of 48 combinations of model and target takes.
    group.throughput(Throughput::Elements(1));
    group.bench_function("page", |bencher| bencher.iter(|| metrics.page()));
    group.finish();
}

fn targets() -> Vec<Arc<Target>> {
    let target = |slot| Target::new(slot, &format!("vllm-{slot}"), "10.0.3.1:8000");
    (0..TARGETS).map(|slot| Arc::new(target(slot))).collect()
}

/// Streamed chats, one in fifty of which the client left.
fn chats(targets: &[Arc<Target>]) -> Vec<Arc<Record>> {
    let run = records::run(InstanceTag(7));
    let samples: Vec<_> = targets.iter().map(|target| Arc::new(sample(target))).collect();
    let record = |number| Arc::new(record(number, &run, &samples[number as usize % samples.len()]));
    (0..RECORDS).map(record).collect()
}

fn sample(target: &Arc<Target>) -> Sample {
    let readings = records::readings(START, spread(target.slot.into()));
    Sample::new(Arc::clone(target), 1, START, Health::Healthy, readings, 10_000)
}

fn record(number: u64, run: &Arc<Run>, sample: &Arc<Sample>) -> Record {
    let draw = spread(number);
    let issued_at = START.plus(Duration::from_micros(number * 1_000_000 / PER_SECOND));
    let id = SnapshotId::new(issued_at.unix_ms(), run.tag, draw);
    let request = Request { model: Some(MODELS[number as usize % MODELS.len()].into()), ..records::request(draw) };
    let parts = |_| [2.0, 0.0, 0.0];
    let decision = records::decision(Policy::LeastQueue, issued_at, vec![Arc::clone(sample)], draw, parts);
    let ending = if number.is_multiple_of(50) { Ending::ClientDisconnected } else { Ending::Completed };
    let outcome = Outcome { ending, ..records::outcome(id, Arc::clone(&sample.target), draw) };
    let (run, trace) = (Arc::clone(run), TraceContext::root(id));
    Record::closed(Issued { id, issued_at, run, trace, request, decision: Some(decision) }, outcome)
}

criterion_group!(exits, metrics);
criterion_main!(exits);

//! What a finished request costs after the hand-off, exit by exit. `cargo bench --bench metrics`.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use snapgate::snapshot::outcome::Answer;
use snapgate::snapshot::{
    Attempt, Candidate, Decision, Ending, Excluded, Freshness, Health, Inputs, InstanceTag, Issued, Moment, Operation,
    Outcome, Policy, Quantity, Reading, Reason, Record, Request, Run, RunId, Sample, SnapshotId, Source, Target,
    Timings, TraceContext,
};
use snapgate::telemetry::Metrics;

/// Records of one round: as many as the worker commits at once under full load, so that they are not all in the cache.
const RECORDS: u64 = 2_000;

/// Pods, models and how many requests a second there are.
const TARGETS: u32 = 16;
const MODELS: [&str; 3] = ["llama-3.1-8b", "qwen2.5-72b-instruct", "mistral-large"];
const PER_SECOND: u64 = 10_000;

const START: Moment = Moment(1_795_435_995_000_000);

fn metrics(criterion: &mut Criterion) {
    let metrics = Metrics::new();
    let targets = targets();
    metrics.set_targets(targets.iter().map(|target| &*target.name), &[]);
    let records = records(&targets);
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
fn records(targets: &[Arc<Target>]) -> Vec<Arc<Record>> {
    let run = Arc::new(Run {
        id: RunId(1),
        instance: "bench".into(),
        tag: InstanceTag(7),
        version: "0.1.0".into(),
        config: "c0ffee12".into(),
        config_text: "".into(),
        started: START,
    });
    let samples: Vec<_> = targets.iter().map(|target| Arc::new(sample(target))).collect();
    let record = |number| Arc::new(record(number, &run, &samples[number as usize % samples.len()]));
    (0..RECORDS).map(record).collect()
}

fn sample(target: &Arc<Target>) -> Sample {
    let reading = |value| Reading {
        value: Some(value),
        observed: START,
        source: Some(Source::Scrape),
        freshness: Freshness::Fresh,
    };
    let readings = [2.0, 9.0, 0.4, 0.7, 0.9, 0.8, 12.0, 900.0].map(reading);
    assert_eq!(readings.len(), Quantity::COUNT);
    Sample::new(Arc::clone(target), 1, START, Health::Healthy, readings, 10_000)
}

fn record(number: u64, run: &Arc<Run>, sample: &Arc<Sample>) -> Record {
    let draw = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let issued_at = START.plus(Duration::from_micros(number * 1_000_000 / PER_SECOND));
    let id = SnapshotId::new(issued_at.unix_ms(), run.tag, draw << 32 | number);
    let request = Request {
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        operation: Operation::Chat,
        model: Some(MODELS[number as usize % MODELS.len()].into()),
        stream: Some(true),
        ..Request::default()
    };
    let decision = decision(issued_at, sample);
    let trace = TraceContext::root(id);
    let issued = Issued { id, issued_at, run: Arc::clone(run), trace, request, decision: Some(decision) };
    Record::closed(issued, outcome(number, draw, &sample.target))
}

fn decision(issued_at: Moment, sample: &Arc<Sample>) -> Decision {
    let candidate = Candidate {
        sample: Arc::clone(sample).into(),
        place: Some(0),
        in_flight: 3,
        requests_per_second: 9.0,
        tokens_per_second: 900.0,
        score: Some(2.0),
        score_parts: [2.0, 0.0, 0.0],
    };
    Decision {
        policy: Policy::LeastQueue,
        reason: Reason::LowestScore,
        forced: false,
        fallback: None,
        decided_offset_ns: 41_200,
        choose_ns: 1_900,
        decided: issued_at,
        view_published: issued_at,
        eligible: TARGETS,
        excluded: Excluded::default(),
        candidates: [candidate].into(),
        inputs: Inputs::default(),
    }
}

fn outcome(number: u64, draw: u64, target: &Arc<Target>) -> Outcome {
    let (first, tokens) = (20_000 + draw % 400_000, 20 + draw % 400);
    let attempt = Attempt {
        target: Arc::clone(target),
        started_offset_us: 90,
        connect_us: Some(0),
        first_byte_offset_us: Some(first / 2),
        status: Some(200),
        error: None,
    };
    let answer = Answer {
        prompt_tokens: Some(50 + draw % 2_000),
        completion_tokens: Some(tokens),
        cached_tokens: Some(draw % 50),
        ..Answer::default()
    };
    let timings =
        Timings { first_content_offset_us: Some(first), end_offset_us: first + 12_000 * tokens, ..Timings::default() };
    Outcome {
        ending: if number.is_multiple_of(50) { Ending::ClientDisconnected } else { Ending::Completed },
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

criterion_group!(exits, metrics);
criterion_main!(exits);

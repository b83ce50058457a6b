//! What the gateway adds to a request between accept and hand-off, without any socket: mint, capture, choose, ledger,
//! finish, offer. `cargo bench --bench critical_path`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use snapgate::clock::Clock;
use snapgate::config::{Config, Machine, Sources, Targets};
use snapgate::fleet::Fleet;
use snapgate::gateway::recorder::Recorder;
use snapgate::gateway::{Gateway, Parts};
use snapgate::ledger::Ledger;
use snapgate::pipeline::{self, Pipeline};
use snapgate::snapshot::{Ending, InstanceTag, Operation, Request, Run, RunId, TraceContext};
use snapgate::telemetry::Metrics;

/// Fleets from one pod to more than anybody has.
const TARGETS: [usize; 4] = [1, 16, 1_000, 10_000];

/// A gateway without sockets: real fleet, ledger, hand-off and worker; no store.
struct Bench {
    gateway: Arc<Gateway>,
    pipeline: Pipeline,
    ledger: Arc<Ledger>,
}

impl Bench {
    fn new(policy: &str, targets: usize) -> Self {
        let mut text = format!("policy = {policy:?}\nstore.enabled = false\npipeline.commit_interval = \"5ms\"\n");
        for number in 0..targets {
            let (a, b) = (number / 250, number % 250 + 1);
            text += &format!("[[targets]]\nurl = \"http://127.0.{a}.{b}:9\"\n");
        }
        let sources = Sources::of_text("the bench", &text, Machine { hostname: "bench".into(), cores: 1 });
        let config = Config::load(&sources, Targets::Required).expect("the bench's configuration is valid");
        let (clock, metrics, ledger) = (Clock::start(), Metrics::new(), Arc::<Ledger>::default());
        let parts = pipeline::Parts {
            ledger: Arc::clone(&ledger),
            store: None,
            sinks: Vec::new(),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
            problem: Arc::default(),
        };
        let (intake, pipeline) = pipeline::start(&config.pipeline, parts).expect("a thread can be started");
        let parts = Parts {
            run: Arc::new(run(&clock)),
            tenant_secret: [7; 32],
            fleet: Fleet::new(config.fleet, Arc::clone(&clock), Arc::clone(&metrics)),
            ledger: Arc::clone(&ledger),
            intake,
            metrics,
            clock,
        };
        Self { gateway: Gateway::new(config.gateway, parts), pipeline, ledger }
    }

    /// One request from its first header to the hand-off. Returns what must not be timed: the facts' own allocation.
    fn request(&self, facts: Request) {
        let mut recorder = Recorder::named(&self.gateway, Instant::now(), facts, TraceContext::root);
        let decided = recorder.decide();
        assert!(decided.is_some(), "every target is eligible");
        recorder.finish(Ending::Completed, Some(200), None);
    }
}

fn run(clock: &Clock) -> Run {
    Run {
        id: RunId(1),
        instance: "bench".into(),
        tag: InstanceTag(1),
        version: "0".into(),
        config: "00000000".into(),
        started: clock.now(),
    }
}

fn facts() -> Request {
    Request {
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        operation: Operation::Chat,
        model: Some("llama-3.1-8b".into()),
        stream: Some(true),
        body_bytes: 812,
        max_tokens: Some(256),
        ..Request::default()
    }
}

fn critical_path(criterion: &mut Criterion) {
    for policy in ["round_robin", "least_request"] {
        let mut group = criterion.benchmark_group(format!("critical_path/{policy}"));
        for targets in TARGETS {
            let bench = Bench::new(policy, targets);
            group.bench_with_input(BenchmarkId::from_parameter(targets), &bench, |bencher, bench| {
                bencher.iter_batched(facts, |facts| bench.request(facts), criterion::BatchSize::SmallInput);
            });
            let Bench { gateway, pipeline, ledger } = bench;
            drop(gateway);
            pipeline.join(Instant::now() + Duration::from_secs(1));
            assert!(ledger.is_empty(), "the worker has settled everything");
        }
        group.finish();
    }
}

criterion_group!(benches, critical_path);
criterion_main!(benches);

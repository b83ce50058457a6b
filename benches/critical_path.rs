//! What the gateway adds to a request between accept and hand-off, without any socket: mint, capture, choose, ledger,
//! finish, offer. `cargo bench --bench critical_path`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue};
use snapgate::clock::Clock;
use snapgate::config::{Config, Machine, Sources, Targets};
use snapgate::fleet::Fleet;
use snapgate::gateway::recorder::Recorder;
use snapgate::gateway::{Gateway, Parts, Prompt};
use snapgate::ledger::Ledger;
use snapgate::pipeline::{self, Pipeline};
use snapgate::snapshot::{Ending, InstanceTag, Operation, Policy, Quantity, Request, Run, RunId};
use snapgate::telemetry::Metrics;
use snapgate::tenant::Tenants;

/// The program's own: what the data path allocates is freed by the worker.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Fleets from one pod to more than anybody has.
const TARGETS: [usize; 4] = [1, 16, 1_000, 10_000];

/// The beginning of a chat, a little longer than what `prefix_affinity` goes by.
const PROMPT: &str = concat!(
    r#"[{"role":"system","content":"You are the assistant of a small online shop for bicycles. Answer politely and "#,
    "briefly. If a customer asks for an order, ask for its number first. Never promise a delivery date that the ",
    "warehouse has not confirmed. Prices are in euros and include tax. When a part does not fit a frame, say so plainly ",
    "and name one that does. You help whoever asks, in whatever language they ask in, and if they ask for something that ",
    r#"the shop does not have, name a shop that does."},{"role":"user","content":"Which of these fits a frame from 2019, "#,
    r#"and is the order on its way? Please compare the two and say which one is lighter."}]"#
);

/// A gateway without sockets: real fleet, ledger, hand-off and worker; no store.
struct Bench {
    gateway: Arc<Gateway>,
    pipeline: Pipeline,
    ledger: Arc<Ledger>,
    /// With a session.
    headers: HeaderMap,
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
            flood: Arc::default(),
        };
        let (intake, pipeline) = pipeline::start(&config.pipeline, parts).expect("a thread can be started");
        let fleet = Fleet::new(config.fleet, Arc::clone(&clock), Arc::clone(&metrics));
        make_known(&fleet, &clock);
        let parts = Parts {
            run: Arc::new(run(&clock)),
            tenants: Arc::new(Tenants::by_key([7; 32])),
            fleet,
            ledger: Arc::clone(&ledger),
            intake,
            metrics,
            clock,
            acceptor: None,
            connector: None,
            authorization: None,
        };
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static("x-session-id"),
            HeaderValue::from_static("019ab3c2d1e0a7f14c1f7a0f3e5b9d26"),
        )]);
        Self { gateway: Gateway::new(config.gateway, parts), pipeline, ledger, headers }
    }

    /// That the policy itself is measured, and not what stands in for it.
    fn check(&self) {
        let mut recorder = Recorder::begin(&self.gateway, Instant::now());
        recorder.facts(facts());
        let prompt = Prompt { system: None, turns: Some(PROMPT) };
        let steer = recorder.steer(&self.headers, Some("llama-3.1-8b"), prompt);
        let record = recorder.decide(&steer).expect("every target is eligible");
        let decision = record.issued.decision.as_ref().expect("it is decided");
        assert_eq!((decision.fallback, decision.excluded.no_fresh_state), (None, 0));
        recorder.finish(Ending::Completed, Some(200), None);
    }

    /// One request from its first header to the hand-off. Returns what must not be timed: the facts' own allocation.
    fn request(&self, facts: Request) {
        let mut recorder = Recorder::begin(&self.gateway, Instant::now());
        recorder.facts(facts);
        let prompt = Prompt { system: None, turns: Some(PROMPT) };
        let steer = recorder.steer(&self.headers, Some("llama-3.1-8b"), prompt);
        let decided = recorder.decide(&steer);
        assert!(decided.is_ok(), "every target is eligible");
        recorder.finish(Ending::Completed, Some(200), None);
    }
}

/// Publishes a fresh state of every target, no two neighbours' alike. Nothing is scraped here: it comes as load reports do,
/// and stays fresh in the view, which is not published again.
fn make_known(fleet: &Fleet, clock: &Clock) {
    for (number, member) in fleet.view().members.iter().enumerate() {
        let mut values = [Some((number % 11) as f64 / 11.0); Quantity::COUNT];
        values[Quantity::Waiting as usize] = Some((number % 5) as f64);
        values[Quantity::Running as usize] = Some((number % 7) as f64);
        member.live.reported(values, clock.now());
    }
    fleet.publish();
}

fn run(clock: &Clock) -> Run {
    Run {
        id: RunId(1),
        instance: "bench".into(),
        tag: InstanceTag(1),
        version: "0".into(),
        config: "00000000".into(),
        config_text: "".into(),
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
    for policy in Policy::NAMES {
        let mut group = criterion.benchmark_group(format!("critical_path/{policy}"));
        for targets in TARGETS {
            let bench = Bench::new(policy, targets);
            bench.check();
            group.bench_with_input(BenchmarkId::from_parameter(targets), &bench, |bencher, bench| {
                bencher.iter_batched(facts, |facts| bench.request(facts), criterion::BatchSize::SmallInput);
            });
            let Bench { gateway, pipeline, ledger, .. } = bench;
            drop(gateway);
            pipeline.join(Instant::now() + Duration::from_secs(1));
            assert!(ledger.is_empty(), "the worker has settled everything");
        }
        group.finish();
    }
}

criterion_group!(benches, critical_path);
criterion_main!(benches);

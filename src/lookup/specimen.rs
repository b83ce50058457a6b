//! Typical requests, for tests of what reads and writes them: what a gateway in front of three pods records on an ordinary day.

use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::outcome::Answer;
use crate::snapshot::{
    Attempt, BackendReport, Candidate, Decision, Ending, Excluded, FleetView, Freshness, GpuExporter, GpuHealth,
    Health, Inputs, InstanceTag, Issued, Live, LoadReport, Member, Moment, Operation, Outcome, Policy, Reading, Reason,
    Record, ReportFormat, ReportPhase, Request, Retry, Run, RunId, Sample, SnapshotId, Source, SpanId, Target, Timings,
    TraceContext, TraceId,
};

/// 2026-11-23T12:13:15.123456Z.
pub(crate) const ACCEPTED: Moment = Moment(1_795_435_995_123_456);

/// The tag of the gateway in the pictures.
pub(crate) const TAG: InstanceTag = InstanceTag(0xa7f1);

pub(crate) fn run(tag: InstanceTag, started: Moment) -> Arc<Run> {
    Arc::new(Run {
        id: RunId(0x5eed),
        instance: "gw-1".into(),
        tag,
        version: "0.1.0".into(),
        config: "c0ffee12".into(),
        config_text: "".into(),
        started,
    })
}

pub(crate) fn id(at: Moment, tag: InstanceTag, random: u64) -> SnapshotId {
    SnapshotId::new(at.unix_ms(), tag, random)
}

pub(crate) fn request() -> Request {
    Request {
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        operation: Operation::Chat,
        model: Some("llama-3.1-8b".into()),
        stream: Some(true),
        body_bytes: 812,
        body_unread: false,
        max_tokens: Some(256),
        client_request_id: None,
        tenant: None,
        user_agent: Some("OpenAI/Python".into()),
        labels: Vec::new(),
    }
}

/// A request accepted at `at`, with nothing decided yet.
pub(crate) fn issued(at: Moment, tag: InstanceTag, random: u64) -> Issued {
    let id = id(at, tag, random);
    Issued {
        id,
        issued_at: at,
        run: run(tag, Moment(at.0 - 60_000_000)),
        trace: TraceContext::root(id),
        request: request(),
        decision: None,
    }
}

fn target(slot: u32) -> Arc<Target> {
    let target = Target::new(slot, &format!("vllm-{slot}"), &format!("10.0.3.{slot}:8000"));
    Arc::new(Target { gpus: Some(1), ..target })
}

/// What the last scrape of a target said, `age_ms` before the view was published.
#[derive(Clone, Copy)]
struct Seen {
    waiting: f64,
    running: f64,
    kv: f64,
    hit: Option<f64>,
    age_ms: u64,
    freshness: Freshness,
}

impl Seen {
    fn sample(self, slot: u32, published: Moment) -> Arc<Sample> {
        let observed = Moment(published.0 - self.age_ms * 1000);
        let read =
            |value| Reading { value: Some(value), observed, source: Some(Source::Scrape), freshness: self.freshness };
        let readings = [
            read(self.waiting),
            read(self.running),
            read(self.kv),
            self.hit.map_or(Reading::MISSING, read),
            Reading::UNSUPPORTED,
            Reading::UNSUPPORTED,
            read(9.0),
            read(1471.5),
        ];
        Arc::new(Sample::new(target(slot), 17, published, Health::Healthy, readings, 10_000))
    }
}

const CALM: Seen =
    Seen { waiting: 0.0, running: 3.0, kv: 0.21, hit: Some(0.6), age_ms: 20, freshness: Freshness::Fresh };

fn candidate(slot: u32, seen: Seen, in_flight: u32) -> Candidate {
    Candidate {
        sample: seen.sample(slot, Moment(ACCEPTED.0 - 21_000)),
        place: Some(slot),
        in_flight,
        requests_per_second: f64::from(in_flight) * 2.3,
        tokens_per_second: f64::from(in_flight) * 370.0,
        score: Some(f64::from(in_flight)),
        score_parts: [f64::from(in_flight), 0.0, 0.0],
    }
}

fn decision(candidates: Vec<Candidate>) -> Decision {
    Decision {
        policy: Policy::LeastRequest,
        reason: Reason::LowestScore,
        forced: false,
        fallback: None,
        decided_offset_ns: 41_200,
        choose_ns: 1_900,
        decided: Moment(ACCEPTED.0 + 41),
        view_published: Moment(ACCEPTED.0 - 21_000),
        eligible: candidates.len() as u32,
        excluded: Excluded::default(),
        candidates: candidates.into_iter().collect(),
        inputs: Inputs { draw: 0x91b2, ..Inputs::default() },
    }
}

fn three() -> Decision {
    let busier = Seen { waiting: 1.0, running: 6.0, kv: 0.43, hit: None, ..CALM };
    decision(vec![candidate(2, CALM, 4), candidate(0, busier, 6), candidate(1, busier, 9)])
}

fn attempt(slot: u32, started_offset_us: u64, first_byte_offset_us: u64) -> Attempt {
    Attempt {
        target: target(slot),
        started_offset_us,
        connect_us: Some(0),
        first_byte_offset_us: Some(first_byte_offset_us),
        status: Some(200),
        error: None,
        retry: None,
    }
}

/// A good end after 2.4 s.
pub(crate) fn outcome() -> Outcome {
    Outcome {
        ending: Ending::Completed,
        status: Some(200),
        error: None,
        attempts: vec![attempt(2, 90, 8_210)],
        response_bytes: 20_480,
        events: 181,
        answer: Answer {
            finish_reason: Some("stop".into()),
            response_id: Some("chatcmpl-019ab3c2d1e0a7f11122334455667788".into()),
            response_model: Some("llama-3.1-8b".into()),
            prompt_tokens: Some(212),
            completion_tokens: Some(180),
            cached_tokens: Some(128),
            tokens_estimated: false,
            load_report: None,
        },
        timings: Timings {
            first_byte_offset_us: Some(8_210),
            first_event_offset_us: Some(9_020),
            first_content_offset_us: Some(92_001),
            end_offset_us: 2_400_112,
            inter_token_p50_us: Some(11_800),
            inter_token_p99_us: Some(30_100),
            inter_token_max_us: Some(41_000),
            engine_queue_us: None,
        },
        trace_exported: None,
    }
}

fn decided(random: u64, decision: Decision) -> Issued {
    Issued { decision: Some(decision), ..issued(ACCEPTED, TAG, random) }
}

/// A stream that went well.
pub(crate) fn completed() -> Record {
    let mut issued = decided(1, three());
    issued.trace.trace_id = TraceId::new(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c).expect("not zero");
    issued.trace.parent_span_id = SpanId::new(0xb7ad_6b71_6920_3331);
    issued.request.client_request_id = Some("req-17".into());
    issued.request.labels = vec![("x-run-id".into(), "run-17".into())];
    let report = LoadReport {
        named_metrics: vec![("kv_cache_usage_perc".into(), 0.23), ("num_requests_waiting".into(), 1.0)],
        other_metrics: vec![("cpu_utilization".into(), 0.7)],
    };
    let report = BackendReport {
        format: ReportFormat::Text,
        phase: ReportPhase::ResponseHead,
        received_offset_us: 8_212,
        report,
    };
    let mut outcome = outcome();
    outcome.answer.load_report = Some(Box::new(report));
    Record::closed(issued, outcome)
}

/// The first choice could not be connected to.
fn failover() -> Record {
    let mut outcome = outcome();
    let refused = Attempt {
        connect_us: None,
        first_byte_offset_us: None,
        status: None,
        error: Some("connection refused".into()),
        ..attempt(2, 90, 0)
    };
    let retry = Retry {
        reason: Reason::LowestScore,
        fallback: None,
        view_age_ms: 22,
        eligible: 3,
        excluded: Excluded { unhealthy: 1, ..Excluded::default() },
        considered: 2,
        score: Some(6.0),
        draw: 0x77aa,
    };
    let again = Attempt { connect_us: Some(350), retry: Some(Box::new(retry)), ..attempt(0, 510, 9_050) };
    outcome.attempts = vec![refused, again];
    outcome.timings.first_byte_offset_us = Some(9_050);
    let mut decision = three();
    decision.excluded.unhealthy = 1;
    Record::closed(decided(2, decision), outcome)
}

/// The client left in the middle of a stream from a pod with a long queue and a late first token.
fn client_left() -> Record {
    let queued =
        Seen { waiting: 12.0, running: 32.0, kv: 0.97, hit: Some(0.02), age_ms: 4_100, freshness: Freshness::Stale };
    let calm = Seen { waiting: 2.0, ..CALM };
    let outcome = Outcome {
        ending: Ending::ClientDisconnected,
        events: 63,
        response_bytes: 7_104,
        answer: Answer { completion_tokens: Some(62), tokens_estimated: true, ..Answer::default() },
        timings: Timings {
            first_content_offset_us: Some(5_120_000),
            end_offset_us: 7_830_000,
            inter_token_max_us: Some(1_900_000),
            ..outcome().timings
        },
        ..outcome()
    };
    Record::closed(decided(3, decision(vec![candidate(2, queued, 4), candidate(0, calm, 6)])), outcome)
}

/// Refused before anything was decided.
fn rejected() -> Record {
    let mut issued = issued(ACCEPTED, TAG, 4);
    issued.request = Request {
        method: "GET".into(),
        path: "/metrics".into(),
        operation: Operation::Other,
        model: None,
        stream: None,
        ..issued.request
    };
    let outcome = Outcome {
        ending: Ending::Rejected,
        status: Some(404),
        error: Some("the path is not allowed: see routes.allow".into()),
        attempts: Vec::new(),
        response_bytes: 163,
        events: 0,
        answer: Answer::default(),
        timings: Timings { end_offset_us: 35, ..Timings::default() },
        trace_exported: None,
    };
    Record::closed(issued, outcome)
}

/// The head has come, and some of the stream.
pub(crate) fn in_flight() -> Record {
    let record = Record::open(decided(5, three()));
    record.progress.head(200, 8_210);
    record.progress.body(4_096, 37);
    record
}

/// The gateway's start: nothing is known of the only target, and it hangs up at once.
fn unknown_target() -> Record {
    let sample = Sample::new(target(0), 1, ACCEPTED, Health::Unknown, [Reading::MISSING; 8], 10_000);
    let only = Candidate { sample: Arc::new(sample), ..candidate(0, CALM, 0) };
    let decision = Decision { policy: Policy::RoundRobin, reason: Reason::OnlyCandidate, ..decision(vec![only]) };
    let hung_up = Attempt {
        connect_us: Some(410),
        first_byte_offset_us: None,
        status: None,
        error: Some("connection closed before the head".into()),
        ..attempt(0, 90, 0)
    };
    let outcome = Outcome {
        ending: Ending::UpstreamReset,
        status: Some(502),
        error: Some("connection closed before the head".into()),
        attempts: vec![hung_up],
        response_bytes: 210,
        events: 0,
        answer: Answer::default(),
        timings: Timings { end_offset_us: 1_750, ..Timings::default() },
        trace_exported: None,
    };
    Record::closed(decided(6, decision), outcome)
}

/// All of them, by the name of the picture that shows how they should look.
pub(crate) fn gallery() -> Vec<(&'static str, Record)> {
    vec![
        ("completed_stream", completed()),
        ("failover", failover()),
        ("client_left", client_left()),
        ("rejected", rejected()),
        ("in_flight", in_flight()),
        ("unknown_target", unknown_target()),
    ]
}

/// One exporter that works and one that does not, and a target in trouble.
pub(crate) fn gpus() -> GpuHealth {
    let exporter = |node: &str| GpuExporter {
        node: node.into(),
        url: format!("http://{node}:9400/metrics").into(),
        read: Some(ACCEPTED),
        gpus: 8,
        ..GpuExporter::default()
    };
    let down = GpuExporter { error: Some("cannot connect".into()), failures: 3, ..exporter("node-2") };
    let problems = vec![(1, "no exporter has told of its GPUs yet".into())];
    GpuHealth { exporters: vec![exporter("node-1"), down], problems }
}

/// A view of three targets, one of them down.
pub(crate) fn view(published: Moment) -> FleetView {
    let member = |slot, health| {
        let sample = CALM.sample(slot, published);
        let sample = Sample::new(target(slot), 17, published, health, sample.readings, 10_000);
        let live = Arc::new(Live::default());
        live.begin();
        live.set_rates(9.5, 1480.0);
        live.watch(|watched| {
            watched.scrape_duration = Some(Duration::from_micros(412_500));
            watched.scrape_interval = Some(Duration::from_millis(20_625));
            watched.fresh_within = Some(Duration::from_secs(15));
            if health == Health::Unhealthy {
                watched.probe_error = Some("cannot connect".into());
                watched.scrape_error = Some("no complete answer within 2s".into());
                watched.scrape_failures = 3;
            }
        });
        Member { sample: Arc::new(sample), live }
    };
    let members = [member(0, Health::Healthy), member(1, Health::Unhealthy), member(2, Health::Unknown)];
    FleetView::of_any_model(published, members)
}

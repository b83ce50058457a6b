//! Records as streamed chats leave them, for the benches of what comes after the hand-off. The same numbers make the same ones.

use std::sync::Arc;

use snapgate::snapshot::decision::SCORE_PARTS_MAX;
use snapgate::snapshot::outcome::Answer;
use snapgate::snapshot::sample::mix;
use snapgate::snapshot::{
    Attempt, Candidate, Decision, Ending, Excluded, Freshness, Inputs, InstanceTag, Moment, Operation, Outcome, Policy,
    Quantity, Reading, Reason, Request, Run, RunId, Sample, SnapshotId, Source, Target, Timings,
};

/// When the first of them was accepted.
pub(crate) const START: Moment = Moment(1_795_435_995_000_000);

/// Numbers that look random and can be made again.
pub(crate) fn spread(index: u64) -> u64 {
    mix(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The process that wrote them.
pub(crate) fn run(tag: InstanceTag) -> Arc<Run> {
    Arc::new(Run {
        id: RunId(7),
        instance: "bench".into(),
        tag,
        version: "0.1.0".into(),
        config: "c0ffee12".into(),
        config_text: "".into(),
        started: START,
    })
}

/// What a client of the OpenAI SDK asks for.
pub(crate) fn request(draw: u64) -> Request {
    Request {
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        operation: Operation::Chat,
        model: Some("llama-3.1-8b".into()),
        stream: Some(true),
        body_bytes: 400 + draw % 4_000,
        max_tokens: Some(256),
        user_agent: Some("OpenAI/Python 1.52.0".into()),
        ..Request::default()
    }
}

/// What a vLLM says of itself; it does not tell of its GPUs.
pub(crate) fn readings(published: Moment, draw: u64) -> [Reading; Quantity::COUNT] {
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
    readings
}

/// A choice among all of these, one after the other the first. `parts` are those of the score, by rank.
pub(crate) fn decision(
    policy: Policy,
    issued_at: Moment,
    mut samples: Vec<Arc<Sample>>,
    draw: u64,
    parts: impl Fn(usize) -> [f64; SCORE_PARTS_MAX],
) -> Decision {
    let first = draw as usize % samples.len();
    samples.rotate_left(first);
    let eligible = samples.len() as u32;
    let candidate = |(rank, sample): (usize, Arc<Sample>)| Candidate {
        place: Some(sample.target.slot),
        sample,
        in_flight: (draw % 40) as u32 + rank as u32,
        requests_per_second: (30_000 + draw % 900) as f64 / 10.0,
        tokens_per_second: (1_480_000 + draw % 9_000) as f64 / 10.0,
        score: Some(parts(rank).iter().sum()),
        score_parts: parts(rank),
    };
    Decision {
        policy,
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

/// A whole answer of 20 tokens and more.
pub(crate) fn outcome(id: SnapshotId, target: Arc<Target>, draw: u64) -> Outcome {
    let (first_byte, tokens) = (3_000 + draw % 9_000, 20 + draw % 400);
    let attempt = Attempt {
        target,
        started_offset_us: 60 + draw % 60,
        connect_us: Some(0),
        first_byte_offset_us: Some(first_byte),
        status: Some(200),
        error: None,
        retry: None,
    };
    let answer = Answer {
        finish_reason: Some("stop".into()),
        response_id: Some(format!("chatcmpl-{id}").into()),
        response_model: Some("llama-3.1-8b".into()),
        prompt_tokens: Some(50 + draw % 2_000),
        completion_tokens: Some(tokens),
        cached_tokens: Some(draw % 50),
        tokens_estimated: false,
        load_report: None,
    };
    let timings = Timings {
        first_byte_offset_us: Some(first_byte),
        first_event_offset_us: Some(first_byte + 200),
        first_content_offset_us: Some(first_byte + 40_000),
        end_offset_us: first_byte + 12_000 * tokens,
        inter_token_p50_us: Some(11_000 + draw % 500),
        inter_token_p99_us: Some(30_000 + draw % 5_000),
        inter_token_max_us: Some(41_000 + draw % 50_000),
        engine_queue_us: None,
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

//! Records of every shape, for tests: unicode, no decision, many candidates, several attempts, odd numbers.

use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::codes::Coded;
use crate::snapshot::outcome::Answer;
use crate::snapshot::{
    Attempt, BackendReport, Candidate, Decision, Ending, Excluded, Fallback, Freshness, Health, Inputs, InstanceTag,
    Issued, LoadReport, Moment, Operation, Outcome, Place, Policy, Quantity, Reading, Reason, Record, RemoteSpan,
    ReportFormat, ReportPhase, Request, Retry, Run, RunId, Sample, SnapshotId, SpanId, Target, Tenant, Timings,
    TraceContext, TraceId,
};

/// When the tests play: 2026-11-23T12:13:15Z.
pub(super) const NOW: Moment = Moment(1_795_435_995_000_000);

pub(super) const TAG: InstanceTag = InstanceTag(0xa7f1);

/// A run that began at [`NOW`].
pub(super) fn run(id: u64) -> Arc<Run> {
    Arc::new(Run {
        id: RunId(id),
        instance: "gw-1".into(),
        tag: TAG,
        version: "0.1.0".into(),
        config: "c0ffee12".into(),
        config_text: "".into(),
        started: NOW,
    })
}

fn coded<T: Coded + std::fmt::Debug>() -> impl Strategy<Value = T> {
    select(T::ALL)
}

fn text() -> impl Strategy<Value = Box<str>> {
    prop_oneof!["[a-z/0-9-]{0,20}", "\\PC{0,40}", Just("nul \0 and 'quote' and \"两\"".to_owned())].prop_map(Into::into)
}

/// Numbers as they come, and the ones at the edges.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..100_000, any::<u64>(), Just(u64::MAX), Just(1 << 63)]
}

/// Everything but NaN, which is not equal to itself; `readings.rs` has tests of its own for that.
fn float() -> impl Strategy<Value = f64> {
    let any_bits = any::<u64>().prop_map(f64::from_bits).prop_filter("no NaN", |value| !value.is_nan());
    prop_oneof![(0u32..1000).prop_map(f64::from), 0.0f64..1.0, any_bits, Just(-0.0), Just(f64::INFINITY)]
}

fn moment() -> impl Strategy<Value = Moment> {
    prop_oneof![
        (0u64..60_000_000).prop_map(|before| NOW.minus(Duration::from_micros(before))),
        Just(Moment(0)),
        any::<u64>().prop_map(Moment)
    ]
}

fn reading() -> impl Strategy<Value = Reading> {
    let (source, freshness) = (of(coded()), coded::<Freshness>());
    (of(float()), moment(), source, freshness).prop_map(|(value, observed, source, freshness)| Reading {
        value,
        observed,
        source,
        freshness,
    })
}

fn place() -> impl Strategy<Value = Arc<Place>> {
    let labels = vec((text(), text()), 0..3);
    (text(), text(), text(), of(text()), labels).prop_map(|(namespace, pod, uid, node, labels)| {
        Arc::new(Place { namespace, pod, uid, node, labels: labels.into_iter().collect() })
    })
}

/// A fleet, and several samples of each of its targets; each (target, number) is there once.
pub(super) fn samples() -> impl Strategy<Value = Vec<Arc<Sample>>> {
    let target = (text(), text(), of(any::<u32>()), of(place()));
    let sample = (moment(), coded::<Health>(), vec(reading(), Quantity::COUNT), any::<u32>(), of(any::<u32>()));
    vec((target, vec(sample, 1..4)), 1..5).prop_map(|fleet| {
        let mut samples = Vec::new();
        for (slot, ((name, address, gpus, place), states)) in fleet.into_iter().enumerate() {
            let target = Arc::new(Target { gpus, place, ..Target::new(slot as u32, &name, &address) });
            for (n, (published, health, readings, window_ms, in_flight)) in states.into_iter().enumerate() {
                let readings = readings.try_into().expect("as many as there are quantities");
                let target = Arc::clone(&target);
                let sample = Sample::new(target, n as u64 + 1, published, health, readings, window_ms);
                let gpu_uuids = gpus.filter(|gpus| gpus % 2 == 1).map(|gpus| [format!("GPU-{gpus}").into()].into());
                samples.push(Arc::new(sample.with_in_flight_at_scrape(in_flight).with_gpu_uuids(gpu_uuids)));
            }
        }
        samples
    })
}

fn request() -> impl Strategy<Value = Request> {
    let method = prop_oneof![Just(Box::from("POST")), text()];
    let path = prop_oneof![Just(Box::from("/v1/chat/completions")), Just(Box::from("/v1/completions")), text()];
    let names = (method, path, coded::<Operation>(), of(text()), of(any::<bool>()));
    let rest = (number(), of(number()), of(text()), of(any::<[u8; 32]>()), of(text()), vec((text(), text()), 0..3));
    (names, rest).prop_map(|((method, path, operation, model, stream), rest)| {
        let (body_bytes, max_tokens, client_request_id, tenant, user_agent, labels) = rest;
        let tenant = tenant.map(Tenant);
        Request {
            method,
            path,
            operation,
            model,
            stream,
            body_bytes,
            body_unread: body_bytes % 2 == 1,
            max_tokens,
            client_request_id,
            tenant,
            user_agent,
            labels,
        }
    })
}

fn decision(samples: Vec<Arc<Sample>>) -> impl Strategy<Value = Decision> {
    let only = float().prop_map(|score| (Some(score), [score, 0.0, 0.0]));
    let parts = (float(), [float(), float(), float()]).prop_map(|(score, parts)| (Some(score), parts));
    let score = prop_oneof![only, parts, Just((None, [0.0; 3]))];
    let candidate = (select(samples), of(any::<u32>()), any::<u32>(), float(), float(), score);
    let candidate = candidate.prop_map(
        |(sample, place, in_flight, requests_per_second, tokens_per_second, (score, score_parts))| Candidate {
            sample,
            place,
            in_flight,
            requests_per_second,
            tokens_per_second,
            score,
            score_parts,
        },
    );
    let inputs = (of(any::<u64>()), of(any::<u64>()), of(number()), any::<u64>())
        .prop_map(|(prefix_hash, session_hash, ticket, draw)| Inputs { prefix_hash, session_hash, ticket, draw });
    let excluded = excluded();
    let reason = (coded::<Reason>(), of(coded::<Fallback>()));
    let rule = (coded::<Policy>(), reason, any::<bool>(), number(), number());
    let times = (moment(), moment(), any::<u32>());
    (rule, times, excluded, vec(candidate, 1..=16), inputs).prop_map(|(rule, times, excluded, candidates, inputs)| {
        let (policy, (reason, fallback), forced, decided_offset_ns, choose_ns) = rule;
        let (decided, view_published, eligible) = times;
        let candidates = candidates.into_iter().collect();
        Decision {
            policy,
            reason,
            forced,
            fallback,
            decided_offset_ns,
            choose_ns,
            decided,
            view_published,
            eligible,
            excluded,
            candidates,
            inputs,
        }
    })
}

fn excluded() -> impl Strategy<Value = Excluded> {
    any::<[u32; 4]>().prop_map(|[unhealthy, ejected, model, no_fresh_state]| Excluded {
        unhealthy,
        ejected,
        model,
        no_fresh_state,
    })
}

fn retry() -> impl Strategy<Value = Retry> {
    let why = (coded::<Reason>(), of(coded::<Fallback>()), excluded());
    (why, number(), any::<[u32; 2]>(), of(float()), any::<u64>()).prop_map(
        |((reason, fallback, excluded), view_age_ms, [eligible, considered], score, draw)| Retry {
            reason,
            fallback,
            view_age_ms,
            eligible,
            excluded,
            considered,
            score,
            draw,
        },
    )
}

fn load_report() -> impl Strategy<Value = BackendReport> {
    let metrics = || vec(("[a-z_.]{1,20}".prop_map(Box::<str>::from), 0.0..1e9), 0..5);
    let moment = (coded::<ReportFormat>(), coded::<ReportPhase>(), number());
    (moment, metrics(), metrics()).prop_map(|((format, phase, received_offset_us), named_metrics, other_metrics)| {
        BackendReport { format, phase, received_offset_us, report: LoadReport { named_metrics, other_metrics } }
    })
}

fn outcome(samples: Vec<Arc<Sample>>) -> impl Strategy<Value = Outcome> {
    let heard = (of(number()), of(number()), of(any::<u16>()), of(text()));
    let attempt =
        (select(samples), number(), heard, of(retry())).prop_map(|(sample, started_offset_us, heard, retry)| {
            let (connect_us, first_byte_offset_us, status, error) = heard;
            Attempt {
                target: Arc::clone(&sample.target),
                started_offset_us,
                connect_us,
                first_byte_offset_us,
                status,
                error,
                retry: retry.map(Box::new),
            }
        });
    let answer = (
        of(text()),
        of(text()),
        of(text()),
        of(number()),
        of(number()),
        of(number()),
        any::<bool>(),
        of(load_report()),
    )
        .prop_map(
            |(
                finish_reason,
                response_id,
                response_model,
                prompt_tokens,
                completion_tokens,
                cached_tokens,
                tokens_estimated,
                load_report,
            )| {
                Answer {
                    finish_reason,
                    response_id,
                    response_model,
                    prompt_tokens,
                    completion_tokens,
                    cached_tokens,
                    tokens_estimated,
                    load_report: load_report.map(Box::new),
                }
            },
        );
    let timings = (vec(of(number()), 7), number()).prop_map(|(offsets, end_offset_us)| Timings {
        first_byte_offset_us: offsets[0],
        first_event_offset_us: offsets[1],
        first_content_offset_us: offsets[2],
        end_offset_us,
        inter_token_p50_us: offsets[3],
        inter_token_p99_us: offsets[4],
        inter_token_max_us: offsets[5],
        engine_queue_us: offsets[6],
    });
    let ending =
        (coded::<Ending>(), of(any::<u16>()), of(text()), vec(attempt, 0..4), number(), number(), any::<bool>());
    (ending, answer, timings, any::<Option<bool>>()).prop_map(|(ending, answer, timings, trace_exported)| {
        let (ending, status, error, mut attempts, response_bytes, events, delivered) = ending;
        // As it nearly always is: the last attempt's head is the one that was sent.
        if delivered && let Some(last) = attempts.last_mut() {
            (last.status, last.first_byte_offset_us) = (status, timings.first_byte_offset_us);
        }
        Outcome { ending, status, error, attempts, response_bytes, events, answer, timings, trace_exported }
    })
}

/// A span of a client's.
fn remote() -> impl Strategy<Value = RemoteSpan> {
    (1u128.., 1u64.., any::<bool>(), any::<bool>()).prop_map(|(trace, span, sampled, random)| {
        let (trace_id, span_id) = (TraceId::new(trace).expect("not zero"), SpanId::new(span).expect("not zero"));
        RemoteSpan { trace_id, span_id, sampled, random }
    })
}

/// A record of any shape, with an ID that this instance may have issued in the last minute.
pub(super) fn record(samples: Vec<Arc<Sample>>, run: Arc<Run>) -> impl Strategy<Value = Record> {
    let id =
        (0u64..60_000, any::<u64>()).prop_map(|(before, random)| SnapshotId::new(NOW.unix_ms() - before, TAG, random));
    let trace = (of(1u128..), of(1u64..), any::<bool>(), any::<bool>(), of(remote()));
    let decided = of(decision(samples.clone()));
    let ended = prop_oneof![9 => outcome(samples).prop_map(Some), 1 => Just(None)];
    (id, moment(), trace, request(), decided, ended).prop_map(
        move |(id, issued_at, (trace_id, parent, sampled, random, linked), request, decision, mut outcome)| {
            let trace_id = TraceId::new(trace_id.unwrap_or(id.as_u128())).expect("neither is zero");
            let parent_span_id = parent.and_then(SpanId::new);
            // vLLM names its answer after the request.
            if let Some(answer) = outcome.as_mut().map(|outcome| &mut outcome.answer)
                && sampled
            {
                let prefix = if random { "chatcmpl-" } else { "cmpl-" };
                answer.response_id = Some(format!("{prefix}{id}").into());
                answer.response_model.clone_from(&request.model);
            }
            let trace = TraceContext { trace_id, parent_span_id, sampled, random, linked };
            let issued = Issued { id, issued_at, run: Arc::clone(&run), trace, request, decision };
            match outcome {
                Some(outcome) => Record::closed(issued, outcome),
                None => Record::open(issued),
            }
        },
    )
}

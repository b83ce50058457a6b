//! A request as spans: one of kind SERVER for the request, one of kind CLIENT for each attempt at a target.
//!
//! Both follow the conventions for HTTP, the attempts those for GenAI, too. What the gateway saw and decided stands on the
//! request's span under our own names; candidates are events of it, so that each is searchable.

use std::sync::Arc;
use std::time::Duration;

use super::names::conventions::*;
use super::names::{QUANTITIES, events, own};
use super::proto::{Attributes, bytes, fixed32, fixed64, message, number};
use super::request::Facts;
use crate::snapshot::document::PerGpu;
use crate::snapshot::{
    Attempt, BackendReport, Candidate, Decision, Ending, Freshness, Issued, Moment, Operation, Outcome, Place,
    Quantity, Record, Retry, Sample, Source, SpanId,
};

/// Fields of `Span`.
const TRACE_ID: u32 = 1;
const SPAN_ID: u32 = 2;
const PARENT_SPAN_ID: u32 = 4;
const NAME: u32 = 5;
const KIND: u32 = 6;
const START_TIME: u32 = 7;
const END_TIME: u32 = 8;
const ATTRIBUTES: u8 = 9;
const EVENTS: u32 = 11;
const LINKS: u32 = 13;
const STATUS: u32 = 15;
const FLAGS: u32 = 16;

/// Fields of `Event`.
const EVENT_TIME: u32 = 1;
const EVENT_NAME: u32 = 2;
const EVENT_ATTRIBUTES: u8 = 3;

/// Values of `SpanKind`.
const SERVER: u64 = 2;
const CLIENT: u64 = 3;

/// Whether a span's parent, or a link, is of another process: known, and so.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// The value of `StatusCode` for an error. The other one that is ever right for us is to say nothing.
const ERROR: u64 = 2;

/// What an attempt died of that was tried again elsewhere; the words are in the span's status.
const ATTEMPT_FAILED: &str = "attempt_failed";

/// States of targets that are kept as bytes, by the target's slot: most candidates of neighbouring requests share them.
const KEPT_STATES: usize = 256;

/// Writes the spans of one request after the other.
#[derive(Debug)]
pub(super) struct Spans {
    facts: Arc<Facts>,
    states: Vec<Option<(Arc<Sample>, Vec<u8>)>>,
}

impl Spans {
    pub(super) fn new(facts: Arc<Facts>) -> Self {
        Self { facts, states: vec![None; KEPT_STATES] }
    }

    /// Appends the spans of a finished request as fields `field` of the message that surrounds them.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, field: u32, record: &Record) {
        let Some(outcome) = record.outcome() else { return };
        let issued = &record.issued;
        message(out, field, |out| self.server(out, issued, outcome));
        for (place, attempt) in outcome.attempts.iter().enumerate() {
            message(out, field, |out| self.client(out, issued, outcome, place, attempt));
        }
    }

    fn server(&mut self, out: &mut Vec<u8>, issued: &Issued, outcome: &Outcome) {
        let (trace, request) = (&issued.trace, &issued.request);
        bytes(out, TRACE_ID, &trace.trace_id.as_u128().to_be_bytes());
        bytes(out, SPAN_ID, &SpanId::of_server(issued.id).as_u64().to_be_bytes());
        if let Some(parent) = trace.parent_span_id {
            bytes(out, PARENT_SPAN_ID, &parent.as_u64().to_be_bytes());
        }
        let remote = if trace.parent_span_id.is_some() { IS_REMOTE } else { 0 };
        fixed32(out, FLAGS, u32::from(trace.flags()) | HAS_IS_REMOTE | remote);
        let (method, route) = (method(&request.method), route(issued));
        message(out, NAME, |out| {
            out.extend_from_slice(if method == OTHER { b"HTTP" } else { method.as_bytes() });
            if let Some(route) = route {
                out.push(b' ');
                out.extend_from_slice(route.as_bytes());
            }
        });
        number(out, KIND, SERVER);
        fixed64(out, START_TIME, nanos(issued.issued_at));
        fixed64(out, END_TIME, after(issued, outcome.timings.end_offset_us));
        self.server_facts(&mut Attributes::new(out, ATTRIBUTES), issued, outcome);
        if let Some(decision) = &issued.decision {
            decided(&mut Attributes::new(out, ATTRIBUTES), decision);
            chosen_state(&mut Attributes::new(out, ATTRIBUTES), decision);
        }
        self.events(out, issued, outcome);
        if let Some(linked) = trace.linked {
            message(out, LINKS, |out| {
                bytes(out, TRACE_ID, &linked.trace_id.as_u128().to_be_bytes());
                bytes(out, SPAN_ID, &linked.span_id.as_u64().to_be_bytes());
                // Of `Link`.
                fixed32(out, 6, u32::from(linked.flags()) | HAS_IS_REMOTE | IS_REMOTE);
            });
        }
        if outcome.is_failure() {
            failed(out, error_text(outcome));
        }
    }

    fn server_facts(&self, to: &mut Attributes<'_>, issued: &Issued, outcome: &Outcome) {
        let (request, timings) = (&issued.request, &outcome.timings);
        to.text(own::SNAPSHOT_ID, issued.id.to_hex().as_str());
        to.text(own::CONFIG, &*issued.run.config);
        let known = method(&request.method);
        to.text(HTTP_REQUEST_METHOD, known);
        to.text(HTTP_REQUEST_METHOD_ORIGINAL, (known == OTHER).then_some(&*request.method));
        to.text(URL_SCHEME, self.facts.scheme);
        to.text(URL_PATH, &*request.path);
        to.text(HTTP_ROUTE, route(issued));
        to.int(HTTP_RESPONSE_STATUS_CODE, outcome.status.map(u64::from));
        to.int(HTTP_REQUEST_BODY_SIZE, request.body_bytes);
        to.int(HTTP_RESPONSE_BODY_SIZE, outcome.response_bytes);
        to.text(USER_AGENT_ORIGINAL, request.user_agent.as_deref());
        for (name, value) in &request.labels {
            to.only(&format!("http.request.header.{name}"), value);
        }
        if request.operation != Operation::Other {
            to.text(GEN_AI_OPERATION_NAME, request.operation.name());
        }
        to.text(GEN_AI_REQUEST_MODEL, request.model.as_deref());
        to.text(own::CLIENT_REQUEST_ID, request.client_request_id.as_deref());
        if let Some(tenant) = request.tenant {
            to.text(own::TENANT, &*tenant.to_string());
        }
        to.text(own::ENDING, outcome.ending.name());
        to.text(own::FAULT, outcome.fault().map(|fault| fault.name()));
        to.text(own::ERROR, outcome.error.as_deref());
        to.text(own::OUTCOME_TARGET, outcome.target().map(|target| &*target.name));
        to.int(own::ATTEMPT_COUNT, outcome.attempts.len() as u64);
        to.int(own::EVENTS, Some(outcome.events).filter(|events| *events > 0));
        to.bool(own::TOKENS_ESTIMATED, Some(true).filter(|_| outcome.answer.tokens_estimated));
        to.int(own::FIRST_BYTE_OFFSET_US, timings.first_byte_offset_us);
        to.int(own::FIRST_CONTENT_OFFSET_US, timings.first_content_offset_us);
        to.int(own::INTER_TOKEN_P50_US, timings.inter_token_p50_us);
        to.int(own::INTER_TOKEN_P99_US, timings.inter_token_p99_us);
        to.int(own::INTER_TOKEN_MAX_US, timings.inter_token_max_us);
        to.int(own::ENGINE_QUEUE_US, timings.engine_queue_us);
        if outcome.is_failure() {
            ended_by(to, outcome.ending, outcome.status);
        }
    }

    fn events(&mut self, out: &mut Vec<u8>, issued: &Issued, outcome: &Outcome) {
        if let Some(decision) = &issued.decision {
            let at = nanos(issued.issued_at) + decision.decided_offset_ns;
            event(out, at, events::DECIDED, |_| ());
            for (index, candidate) in decision.candidates.iter().enumerate().take(self.facts.candidates) {
                let state = self.state(candidate.sample);
                event(out, at, events::CANDIDATE, |to| {
                    considered(to, decision, index, candidate);
                    to.copied(state);
                });
            }
        }
        let timings = &outcome.timings;
        let moments = [
            (events::FIRST_BYTE, timings.first_byte_offset_us),
            (events::FIRST_CONTENT, timings.first_content_offset_us),
            (events::END, Some(timings.end_offset_us)),
        ];
        for (name, offset) in moments {
            if let Some(offset) = offset {
                event(out, after(issued, offset), name, |_| ());
            }
        }
    }

    /// A candidate's state, with ages as of its publication, as attributes of an event; made once for each sample.
    fn state(&mut self, sample: &Arc<Sample>) -> &[u8] {
        let place = sample.target.slot as usize % KEPT_STATES;
        let kept = self.states[place].take().filter(|(kept, _)| Arc::ptr_eq(kept, sample));
        let kept = kept.unwrap_or_else(|| {
            let mut state = Vec::new();
            candidate_state(&mut Attributes::new(&mut state, EVENT_ATTRIBUTES), sample);
            (Arc::clone(sample), state)
        });
        &self.states[place].insert(kept).1
    }

    fn client(&self, out: &mut Vec<u8>, issued: &Issued, outcome: &Outcome, place: usize, attempt: &Attempt) {
        let request = &issued.request;
        bytes(out, TRACE_ID, &issued.trace.trace_id.as_u128().to_be_bytes());
        bytes(out, SPAN_ID, &SpanId::of_attempt(issued.id, place).as_u64().to_be_bytes());
        bytes(out, PARENT_SPAN_ID, &SpanId::of_server(issued.id).as_u64().to_be_bytes());
        fixed32(out, FLAGS, u32::from(issued.trace.flags()) | HAS_IS_REMOTE);
        message(out, NAME, |out| match (&request.model, request.operation) {
            (_, Operation::Other) => out.extend_from_slice(method(&request.method).as_bytes()),
            (model, operation) => {
                out.extend_from_slice(operation.name().as_bytes());
                if let Some(model) = model {
                    out.push(b' ');
                    out.extend_from_slice(model.as_bytes());
                }
            }
        });
        number(out, KIND, CLIENT);
        let next = outcome.attempts.get(place + 1);
        let end_offset_us = next.map_or(outcome.timings.end_offset_us, |next| next.started_offset_us);
        fixed64(out, START_TIME, after(issued, attempt.started_offset_us));
        fixed64(out, END_TIME, after(issued, end_offset_us.max(attempt.started_offset_us)));
        let mut to = Attributes::new(out, ATTRIBUTES);
        asked(&mut to, issued, place, attempt, &self.facts);
        if next.is_none() {
            answered(&mut to, outcome, attempt, request.stream == Some(true));
        }
        match failure(outcome, attempt, next.is_none()) {
            Failure::None => {}
            Failure::Status(status) => {
                to.text(ERROR_TYPE, itoa(status, &mut [0; 5]));
                failed(out, None);
            }
            Failure::Named(name) => {
                to.text(ERROR_TYPE, name);
                failed(out, attempt.error.as_deref().or(outcome.error.as_deref()));
            }
        }
    }
}

/// How an attempt failed.
enum Failure {
    None,
    /// The target answered with it.
    Status(u16),
    /// In one word.
    Named(&'static str),
}

fn failure(outcome: &Outcome, attempt: &Attempt, is_last: bool) -> Failure {
    match (attempt.status, outcome.ending) {
        (Some(status @ 400..), _) => Failure::Status(status),
        // It was tried again: what it died of is not the request's ending.
        (None, _) if !is_last => Failure::Named(ATTEMPT_FAILED),
        _ if !is_last => Failure::None,
        (_, Ending::Completed | Ending::ClientDisconnected) => Failure::None,
        (_, ending) => Failure::Named(ending.name()),
    }
}

/// What an attempt asked of its target.
fn asked(to: &mut Attributes<'_>, issued: &Issued, place: usize, attempt: &Attempt, facts: &Facts) {
    let (request, target) = (&issued.request, &attempt.target);
    let (host, port) = target.authority().rsplit_once(':').unwrap_or((target.authority(), ""));
    to.text(own::SNAPSHOT_ID, issued.id.to_hex().as_str());
    to.text(HTTP_REQUEST_METHOD, method(&request.method));
    to.text(SERVER_ADDRESS, host.trim_start_matches('[').trim_end_matches(']'));
    to.int(SERVER_PORT, port.parse::<u16>().ok().map(u64::from));
    to.text(URL_FULL, &*[&*target.url(), &*request.path].concat());
    to.int(HTTP_REQUEST_RESEND_COUNT, Some(place as u64).filter(|place| *place > 0));
    to.int(HTTP_RESPONSE_STATUS_CODE, attempt.status.map(u64::from));
    to.text(own::ATTEMPT_TARGET, &*target.name);
    if let Some(place) = &target.place {
        runs_at(to, place);
    }
    to.int(own::ATTEMPT_CONNECT_US, attempt.connect_us);
    to.int(own::ATTEMPT_FIRST_BYTE_OFFSET_US, attempt.first_byte_offset_us);
    if let Some(retry) = &attempt.retry {
        chosen_anew(to, retry);
    }
    if request.operation != Operation::Other {
        to.text(GEN_AI_OPERATION_NAME, request.operation.name());
        to.text(GEN_AI_PROVIDER_NAME, &*facts.provider);
        to.text(GEN_AI_REQUEST_MODEL, request.model.as_deref());
        to.bool(GEN_AI_REQUEST_STREAM, request.stream.filter(|stream| *stream));
        to.int(GEN_AI_REQUEST_MAX_TOKENS, request.max_tokens);
    }
}

/// The pod that the target is; what nobody said is left out.
fn runs_at(to: &mut Attributes<'_>, place: &Place) {
    let Place { namespace, pod, uid, node, labels: _ } = place;
    for (name, value) in [(K8S_NAMESPACE_NAME, namespace), (K8S_POD_NAME, pod), (K8S_POD_UID, uid)] {
        to.text(name, Some(&**value).filter(|value| !value.is_empty()));
    }
    to.text(K8S_NODE_NAME, node.as_deref());
}

/// Why it was this target, after others: of the first attempt the request's span says that.
fn chosen_anew(to: &mut Attributes<'_>, retry: &Retry) {
    let excluded = retry.excluded;
    to.text(own::ATTEMPT_REASON, retry.reason.name());
    to.text(own::ATTEMPT_FALLBACK, retry.fallback.map(|fallback| fallback.name()));
    to.int(own::ATTEMPT_VIEW_AGE_MS, retry.view_age_ms);
    to.int(own::ATTEMPT_ELIGIBLE, u64::from(retry.eligible));
    to.int(own::ATTEMPT_EXCLUDED_UNHEALTHY, u64::from(excluded.unhealthy));
    to.int(own::ATTEMPT_EXCLUDED_EJECTED, u64::from(excluded.ejected));
    to.int(own::ATTEMPT_EXCLUDED_MODEL, u64::from(excluded.model));
    to.int(own::ATTEMPT_EXCLUDED_NO_FRESH_STATE, u64::from(excluded.no_fresh_state));
    to.int(own::ATTEMPT_CONSIDERED, u64::from(retry.considered));
    to.double(own::ATTEMPT_SCORE, retry.score);
}

/// What the target answered: of the attempt whose answer went to the client.
fn answered(to: &mut Attributes<'_>, outcome: &Outcome, attempt: &Attempt, stream: bool) {
    let answer = &outcome.answer;
    to.text(GEN_AI_RESPONSE_ID, answer.response_id.as_deref());
    to.text(GEN_AI_RESPONSE_MODEL, answer.response_model.as_deref());
    if let Some(reason) = &answer.finish_reason {
        to.only(GEN_AI_RESPONSE_FINISH_REASONS, reason);
    }
    let first = outcome.timings.first_event_offset_us.filter(|_| stream);
    let first = first.map(|first| first.saturating_sub(attempt.started_offset_us));
    to.double(GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first.map(|first| Duration::from_micros(first).as_secs_f64()));
    to.int(GEN_AI_USAGE_INPUT_TOKENS, answer.prompt_tokens);
    to.int(GEN_AI_USAGE_OUTPUT_TOKENS, answer.completion_tokens);
    to.int(GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, answer.cached_tokens);
    if let Some(report) = &answer.load_report {
        reported(to, report);
    }
}

/// What it said of its load.
fn reported(to: &mut Attributes<'_>, report: &BackendReport) {
    to.text(own::REPORT_SOURCE, Source::Orca.name());
    to.text(own::REPORT_FORMAT, report.format.name());
    to.text(own::REPORT_PHASE, report.phase.name());
    to.int(own::REPORT_RECEIVED_OFFSET_US, report.received_offset_us);
    let (named, other) = (&report.report.named_metrics, &report.report.other_metrics);
    for (prefix, metrics) in [(own::REPORT_NAMED_METRICS, named), (own::REPORT_OTHER_METRICS, other)] {
        for (name, value) in metrics {
            to.double(&[prefix, name].concat(), *value);
        }
    }
}

fn decided(to: &mut Attributes<'_>, decision: &Decision) {
    let excluded = decision.excluded;
    to.text(own::POLICY, decision.policy.name());
    to.text(own::REASON, decision.reason.name());
    to.text(own::TARGET, &*decision.target().name);
    to.bool(own::FORCED, decision.forced);
    to.text(own::FALLBACK, decision.fallback.map(|fallback| fallback.name()));
    to.int(own::DECIDED_OFFSET_NS, decision.decided_offset_ns);
    to.int(own::CHOOSE_NS, decision.choose_ns);
    to.int(own::VIEW_AGE_MS, decision.decided.ms_since(decision.view_published));
    to.int(own::ELIGIBLE, u64::from(decision.eligible));
    to.int(own::EXCLUDED_UNHEALTHY, u64::from(excluded.unhealthy));
    to.int(own::EXCLUDED_EJECTED, u64::from(excluded.ejected));
    to.int(own::EXCLUDED_MODEL, u64::from(excluded.model));
    to.int(own::EXCLUDED_NO_FRESH_STATE, u64::from(excluded.no_fresh_state));
    for (name, hash) in
        [(own::PREFIX_HASH, decision.inputs.prefix_hash), (own::SESSION_HASH, decision.inputs.session_hash)]
    {
        if let Some(hash) = hash {
            to.text(name, &*format!("{hash:016x}"));
        }
    }
}

/// The chosen target as it was at the decision. What no source can give says so by its freshness, and has no value.
fn chosen_state(to: &mut Attributes<'_>, decision: &Decision) {
    let chosen = decision.chosen();
    let sample = chosen.sample;
    for (names, reading) in QUANTITIES.iter().zip(&sample.readings) {
        let [value, age, source, freshness] = names.state;
        to.double(value, reading.value);
        to.int(age, reading.age_ms(decision.decided));
        to.text(source, reading.source.map(|source| source.name()));
        to.text(freshness, reading.freshness.name());
    }
    to.int(own::STATE_IN_FLIGHT, u64::from(chosen.in_flight));
    to.double(own::STATE_REQUESTS_PER_SECOND, chosen.requests_per_second);
    to.double(own::STATE_TOKENS_PER_SECOND, chosen.tokens_per_second);
    let engine = [Quantity::EngineRequestsPerSecond, Quantity::EngineTokensPerSecond];
    let engine = engine.map(|quantity| sample.reading(quantity).value);
    let gateway = [chosen.requests_per_second, chosen.tokens_per_second].map(Some);
    let per_gpu = PerGpu::of(sample.gpus(), engine, gateway);
    to.double(own::STATE_ENGINE_REQUESTS_PER_GPU, per_gpu.engine_requests_per_second_per_gpu);
    to.double(own::STATE_ENGINE_TOKENS_PER_GPU, per_gpu.engine_tokens_per_second_per_gpu);
    to.double(own::STATE_GATEWAY_REQUESTS_PER_GPU, per_gpu.gateway_requests_per_second_per_gpu);
    to.double(own::STATE_GATEWAY_TOKENS_PER_GPU, per_gpu.gateway_tokens_per_second_per_gpu);
    to.int(own::STATE_GPUS, sample.gpus().map(u64::from));
    if let Some(uuids) = &sample.gpu_uuids {
        to.texts(own::STATE_GPU_UUIDS, uuids);
    }
    to.int(own::STATE_WINDOW_MS, u64::from(sample.window_ms));
}

/// What is a candidate's own at this decision.
fn considered(to: &mut Attributes<'_>, decision: &Decision, index: usize, candidate: Candidate<&Arc<Sample>>) {
    let unscored = candidate.score.is_none() && !decision.forced;
    to.int(own::CANDIDATE_RANK, index as u64 + 1);
    to.double(own::CANDIDATE_SCORE, candidate.score);
    to.text(own::CANDIDATE_EXCLUDED, unscored.then_some("no_fresh_state"));
    to.int(own::CANDIDATE_IN_FLIGHT, u64::from(candidate.in_flight));
    to.double(own::CANDIDATE_REQUESTS_PER_SECOND, candidate.requests_per_second);
    to.double(own::CANDIDATE_TOKENS_PER_SECOND, candidate.tokens_per_second);
    to.int(own::CANDIDATE_SAMPLE_AGE_MS, decision.decided.ms_since(candidate.sample.published));
}

/// What candidates of many decisions share: values, with ages as of the sample's publication. A value is fresh unless it
/// says otherwise, so that a candidate stays small.
fn candidate_state(to: &mut Attributes<'_>, sample: &Sample) {
    to.text(own::CANDIDATE_TARGET, &*sample.target.name);
    for (names, reading) in QUANTITIES.iter().zip(&sample.readings) {
        let [value, age, source, freshness] = names.candidate;
        to.double(value, reading.value);
        to.int(age, reading.age_ms(sample.published));
        to.text(source, reading.source.map(|source| source.name()));
        let notable = matches!(reading.freshness, Freshness::Stale | Freshness::Missing);
        to.text(freshness, notable.then_some(reading.freshness.name()));
    }
}

fn event(out: &mut Vec<u8>, at: u64, name: &str, attributes: impl FnOnce(&mut Attributes<'_>)) {
    message(out, EVENTS, |out| {
        fixed64(out, EVENT_TIME, at);
        bytes(out, EVENT_NAME, name.as_bytes());
        attributes(&mut Attributes::new(out, EVENT_ATTRIBUTES));
    });
}

fn failed(out: &mut Vec<u8>, text: Option<&str>) {
    message(out, STATUS, |out| {
        // Of `Status`.
        if let Some(text) = text {
            bytes(out, 2, text.as_bytes());
        }
        number(out, 3, ERROR);
    });
}

/// The words for an error that the status does not say already.
fn error_text(outcome: &Outcome) -> Option<&str> {
    outcome.error.as_deref().filter(|_| outcome.ending != Ending::Completed)
}

/// `error.type` of a request: the status of an answer that was delivered, else how it ended.
fn ended_by(to: &mut Attributes<'_>, ending: Ending, status: Option<u16>) {
    match (ending, status) {
        (Ending::Completed, Some(status)) => to.text(ERROR_TYPE, itoa(status, &mut [0; 5])),
        (ending, _) => to.text(ERROR_TYPE, ending.name()),
    }
}

/// By the conventions a method that is not known to all must not make more names.
fn method(method: &str) -> &'static str {
    const KNOWN: [&str; 10] = ["POST", "GET", "HEAD", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or(OTHER)
}

/// The path, if it is one of the few that every engine has: another may hold anything.
fn route(issued: &Issued) -> Option<&str> {
    Some(&*issued.request.path).filter(|_| issued.request.operation != Operation::Other)
}

fn nanos(moment: Moment) -> u64 {
    moment.0 * 1_000
}

fn after(issued: &Issued, offset_us: u64) -> u64 {
    nanos(issued.issued_at) + offset_us * 1_000
}

/// Decimal digits on the stack.
fn itoa(mut number: u16, digits: &mut [u8; 5]) -> &str {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[start..]).expect("digits are ASCII")
}

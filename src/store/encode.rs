//! A record becomes a row. The way back is in `decode.rs`; together they lose nothing, down to the last bit.

use std::sync::Arc;

use prost::Message as _;
use rusqlite::{Connection, Statement};

use super::codes::{Coded as _, usual_path};
use super::readings::write_json;
use super::rest::{self, AttemptRow, Label, LinkedRow, MetricRow, ReportRow, Rest, RetryRow};
use super::row::Binder;
use super::shared::Shared;
use crate::snapshot::decision::SCORE_PARTS_MAX;
use crate::snapshot::load_report::ReportMetric;
use crate::snapshot::outcome::Answer;
use crate::snapshot::{
    Attempt, BackendReport, Candidate, Candidates, Decision, Fallback, Issued, Outcome, Quantity, Record, RemoteSpan,
    Retry, Sample,
};

/// The columns of a record, in the order in which [`Encoder::insert`] binds them and `decode.rs` reads them.
pub(super) const COLUMNS: &str = "seq, id, run, issued_at_unix_us, trace_id, client_request_id, tenant, operation, path, model, stream, \
     body_bytes, max_tokens, policy, reason, fallback, target, decided_offset_ns, choose_ns, waiting, waiting_age_ms, running, \
     running_age_ms, kv_cache_usage, kv_cache_usage_age_ms, prefix_cache_hit_ratio, prefix_cache_hit_ratio_age_ms, \
     gpu_utilization, gpu_utilization_age_ms, gpu_memory_utilization, gpu_memory_utilization_age_ms, \
     engine_requests_per_second, engine_requests_per_second_age_ms, engine_tokens_per_second, \
     engine_tokens_per_second_age_ms, candidates, ending, status, fault, outcome_target, attempts, response_bytes, \
     events, finish_reason, prompt_tokens, completion_tokens, cached_tokens, first_byte_offset_us, \
     first_event_offset_us, first_content_offset_us, end_offset_us, rest";

/// The columns of the chosen target's state: a value and an age for each quantity.
pub(super) const STATE_COLUMNS: usize = 2 * Quantity::COUNT;

/// From `policy` to `candidates`: empty for a request that ended before a choice.
pub(super) const DECISION_COLUMNS: usize = 6 + STATE_COLUMNS + 1;

/// From `ending` to `end_offset_us`: empty for a request that has not ended.
const OUTCOME_COLUMNS: usize = 15;

/// How many columns there are: what stands before the decision, the decision, the outcome and `rest`.
pub(super) const COLUMNS_COUNT: usize = 13 + DECISION_COLUMNS + OUTCOME_COLUMNS + 1;

/// The statement that [`Encoder::insert`] runs. A record that is there already stays as it is, so that a batch whose
/// commit succeeded just before a worker died may be committed again.
pub(super) fn insert_sql() -> String {
    let marks = vec!["?"; COLUMNS_COUNT].join(", ");
    format!("INSERT INTO records ({COLUMNS}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING")
}

/// Buffers that are used again for each record.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    json: Vec<u8>,
    rest: Vec<u8>,
}

impl Encoder {
    /// Inserts one record, and before it the targets and samples it refers to. `false` if it was there already.
    pub(super) fn insert(
        &mut self,
        statement: &mut Statement<'_>,
        connection: &Connection,
        shared: &mut Shared,
        seq: u64,
        record: &Record,
    ) -> rusqlite::Result<bool> {
        let issued = &record.issued;
        let mut rest = Rest::default();
        let mut binder = Binder::new(statement);
        binder.int(seq)?;
        binder.value(issued.id.to_bytes())?;
        binder.value(shared.run(connection, &issued.run)?)?;
        bind_request(&mut binder, issued, &mut rest)?;
        match &issued.decision {
            Some(decision) => {
                self.json.clear();
                write_candidates(&mut self.json, &decision.candidates, connection, shared, &mut rest)?;
                let json = std::str::from_utf8(&self.json).expect("JSON is UTF-8");
                let target = match decision.candidates.first() {
                    Some(chosen) => Some(shared.target(connection, &chosen.sample.target)?),
                    None => None,
                };
                bind_decision(&mut binder, issued, decision, target, json, &mut rest)?;
            }
            None => binder.nulls(DECISION_COLUMNS)?,
        }
        match record.outcome() {
            Some(outcome) => {
                for attempt in &outcome.attempts {
                    let target = shared.target(connection, &attempt.target)?;
                    rest.attempts.push(attempt_row(attempt, target, outcome));
                }
                bind_outcome(&mut binder, issued, outcome, &mut rest)?;
            }
            None => binder.nulls(OUTCOME_COLUMNS)?,
        }
        self.rest.clear();
        rest.encode(&mut self.rest).expect("memory does not refuse a write");
        binder.value(&self.rest[..])?;
        Ok(binder.run()? == 1)
    }
}

fn bind_request(binder: &mut Binder<'_, '_>, issued: &Issued, rest: &mut Rest) -> rusqlite::Result<()> {
    let (request, trace) = (&issued.request, &issued.trace);
    let own_trace = trace.trace_id.as_u128() == issued.id.as_u128();
    binder.int(issued.issued_at.0)?;
    binder.value(if own_trace { None } else { Some(trace.trace_id.as_u128().to_be_bytes()) })?;
    binder.value(request.client_request_id.as_deref())?;
    binder.value(request.tenant.map(|tenant| tenant.0))?;
    binder.code(request.operation)?;
    binder.value(Some(&*request.path).filter(|path| usual_path(request.operation) != Some(path)))?;
    binder.value(request.model.as_deref())?;
    binder.value(request.stream)?;
    binder.int(request.body_bytes)?;
    binder.int_or_null(request.max_tokens)?;

    set(rest, rest::TRACE_SAMPLED, trace.sampled);
    set(rest, rest::TRACE_RANDOM, trace.random);
    set(rest, rest::BODY_UNREAD, request.body_unread);
    rest.parent_span_id = trace.parent_span_id.map(|span| span.as_u64());
    rest.linked = trace.linked.map(linked_row);
    rest.method = Some(&*request.method).filter(|method| *method != rest::COMMON_METHOD).map(str::to_owned);
    rest.user_agent = request.user_agent.as_deref().map(str::to_owned);
    let label = |(name, value): &(Box<str>, Box<str>)| Label { name: (**name).to_owned(), value: (**value).to_owned() };
    rest.labels = request.labels.iter().map(label).collect();
    Ok(())
}

fn linked_row(linked: RemoteSpan) -> LinkedRow {
    let trace_id = linked.trace_id.as_u128();
    LinkedRow {
        trace_id_high: (trace_id >> 64) as u64,
        trace_id_low: trace_id as u64,
        span_id: linked.span_id.as_u64(),
        sampled: linked.sampled,
        random: linked.random,
    }
}

fn bind_decision(
    binder: &mut Binder<'_, '_>,
    issued: &Issued,
    decision: &Decision,
    target: Option<i64>,
    candidates: &str,
    rest: &mut Rest,
) -> rusqlite::Result<()> {
    binder.code(decision.policy)?;
    binder.code(decision.reason)?;
    binder.code_or_null(decision.fallback)?;
    binder.value(target)?;
    binder.int(decision.decided_offset_ns)?;
    binder.int(decision.choose_ns)?;
    match decision.candidates.first() {
        Some(chosen) => {
            for reading in &chosen.sample.readings {
                binder.value(reading.value)?;
                binder.int_or_null(reading.age_ms(decision.decided))?;
            }
        }
        None => binder.nulls(STATE_COLUMNS)?,
    }
    binder.value(candidates)?;

    set(rest, rest::FORCED, decision.forced);
    rest.decided_us = decision.decided.0.wrapping_sub(issued.issued_at.0).cast_signed();
    rest.view_published_us = decision.view_published.0.wrapping_sub(issued.issued_at.0).cast_signed();
    rest.eligible = decision.eligible;
    rest.excluded_unhealthy = decision.excluded.unhealthy;
    rest.excluded_ejected = decision.excluded.ejected;
    rest.excluded_model = decision.excluded.model;
    rest.excluded_no_fresh_state = decision.excluded.no_fresh_state;
    rest.prefix_hash = decision.inputs.prefix_hash;
    rest.session_hash = decision.inputs.session_hash;
    rest.ticket = decision.inputs.ticket;
    rest.draw = decision.inputs.draw;
    Ok(())
}

/// `[[sample, in_flight, requests_per_second, tokens_per_second, score, place, parts], …]`, best first. `parts` is left out
/// where the score has only one, and is empty where there is no score.
fn write_candidates(
    json: &mut Vec<u8>,
    candidates: &Candidates,
    connection: &Connection,
    shared: &mut Shared,
    rest: &mut Rest,
) -> rusqlite::Result<()> {
    json.push(b'[');
    for (index, candidate) in candidates.iter().enumerate() {
        let sample = shared.sample(connection, candidate.sample)?;
        json.extend(if index == 0 { &b"["[..] } else { b",[" });
        serde_json::to_writer(&mut *json, &sample).expect("memory does not refuse a write");
        json.push(b',');
        serde_json::to_writer(&mut *json, &candidate.in_flight).expect("memory does not refuse a write");
        for number in [candidate.requests_per_second, candidate.tokens_per_second] {
            json.push(b',');
            write_json(json, number, &mut rest.beyond_json);
        }
        json.push(b',');
        match candidate.score {
            Some(score) => write_json(json, score, &mut rest.beyond_json),
            None => json.extend(b"null"),
        }
        json.push(b',');
        serde_json::to_writer(&mut *json, &candidate.place).expect("memory does not refuse a write");
        write_parts(json, candidate, rest);
        json.push(b']');
    }
    json.push(b']');
    Ok(())
}

fn write_parts(json: &mut Vec<u8>, candidate: Candidate<&Arc<Sample>>, rest: &mut Rest) {
    match candidate.score {
        None => json.extend(b",[]"),
        Some(score) if only_part(score).map(f64::to_bits) == candidate.score_parts.map(f64::to_bits) => {}
        Some(_) => {
            for (index, part) in candidate.score_parts.into_iter().enumerate() {
                json.extend(if index == 0 { &b",["[..] } else { b"," });
                write_json(json, part, &mut rest.beyond_json);
            }
            json.push(b']');
        }
    }
}

/// The parts of a score that has only one.
pub(super) const fn only_part(score: f64) -> [f64; SCORE_PARTS_MAX] {
    let mut parts = [0.0; SCORE_PARTS_MAX];
    parts[0] = score;
    parts
}

fn bind_outcome(
    binder: &mut Binder<'_, '_>,
    issued: &Issued,
    outcome: &Outcome,
    rest: &mut Rest,
) -> rusqlite::Result<()> {
    let (answer, timings) = (&outcome.answer, &outcome.timings);
    binder.code(outcome.ending)?;
    binder.value(outcome.status)?;
    binder.code_or_null(outcome.fault())?;
    binder.int_or_null(rest.attempts.last().map(|attempt| attempt.target))?;
    binder.int(outcome.attempts.len() as u64)?;
    binder.int(outcome.response_bytes)?;
    binder.int(outcome.events)?;
    binder.value(answer.finish_reason.as_deref())?;
    binder.int_or_null(answer.prompt_tokens)?;
    binder.int_or_null(answer.completion_tokens)?;
    binder.int_or_null(answer.cached_tokens)?;
    binder.int_or_null(timings.first_byte_offset_us)?;
    binder.int_or_null(timings.first_event_offset_us)?;
    binder.int_or_null(timings.first_content_offset_us)?;
    binder.int(timings.end_offset_us)?;

    set(rest, rest::TOKENS_ESTIMATED, answer.tokens_estimated);
    set(rest, rest::TRACES_ARE_EXPORTED, outcome.trace_exported.is_some());
    set(rest, rest::TRACE_EXPORTED, outcome.trace_exported == Some(true));
    rest.error = outcome.error.as_deref().map(str::to_owned);
    keep_names(answer, issued, rest);
    rest.inter_token_p50_us = timings.inter_token_p50_us;
    rest.inter_token_p99_us = timings.inter_token_p99_us;
    rest.inter_token_max_us = timings.inter_token_max_us;
    rest.engine_queue_us = timings.engine_queue_us;
    rest.load_report = answer.load_report.as_deref().map(|report| Box::new(report_row(report)));
    Ok(())
}

/// The answer's own ID and model, which mostly repeat the request's: vLLM names its answer `chatcmpl-<snapshot ID>`.
fn keep_names(answer: &Answer, issued: &Issued, rest: &mut Rest) {
    if let Some(response_id) = answer.response_id.as_deref() {
        let own = response_id.strip_suffix(issued.id.to_hex().as_str());
        set(rest, rest::RESPONSE_ID_ENDS_IN_ID, own.is_some());
        rest.response_id = match own {
            Some(rest::COMMON_PREFIX) => None,
            prefix => Some(prefix.unwrap_or(response_id).to_owned()),
        };
    }
    let same = answer.response_model.is_some() && answer.response_model == issued.request.model;
    set(rest, rest::RESPONSE_MODEL_IS_MODEL, same);
    rest.response_model = answer.response_model.as_deref().filter(|_| !same).map(str::to_owned);
}

fn attempt_row(attempt: &Attempt, target: i64, outcome: &Outcome) -> AttemptRow {
    let head = (attempt.status, attempt.first_byte_offset_us);
    let head_was_sent = head == (outcome.status, outcome.timings.first_byte_offset_us);
    AttemptRow {
        target: target.cast_unsigned(),
        started_offset_us: attempt.started_offset_us,
        connect_us: attempt.connect_us,
        first_byte_offset_us: attempt.first_byte_offset_us.filter(|_| !head_was_sent),
        status: attempt.status.filter(|_| !head_was_sent).map(u32::from),
        error: attempt.error.as_deref().map(str::to_owned),
        head_was_sent,
        retry: attempt.retry.as_deref().map(|retry| Box::new(retry_row(retry))),
    }
}

fn retry_row(retry: &Retry) -> RetryRow {
    RetryRow {
        reason: retry.reason.code(),
        fallback: retry.fallback.map(Fallback::code),
        view_age_ms: retry.view_age_ms,
        eligible: retry.eligible,
        excluded_unhealthy: retry.excluded.unhealthy,
        excluded_ejected: retry.excluded.ejected,
        excluded_model: retry.excluded.model,
        excluded_no_fresh_state: retry.excluded.no_fresh_state,
        considered: retry.considered,
        score: retry.score,
        draw: retry.draw,
    }
}

fn report_row(report: &BackendReport) -> ReportRow {
    let rows = |metrics: &[ReportMetric]| {
        metrics.iter().map(|(name, value)| MetricRow { name: (**name).to_owned(), value: *value }).collect()
    };
    ReportRow {
        format: report.format.code(),
        phase: report.phase.code(),
        received_offset_us: report.received_offset_us,
        named_metrics: rows(&report.report.named_metrics),
        other_metrics: rows(&report.report.other_metrics),
    }
}

fn set(rest: &mut Rest, flag: u32, on: bool) {
    if on {
        rest.flags |= flag;
    }
}

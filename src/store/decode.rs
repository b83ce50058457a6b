//! A row becomes the record it was. What records share is shared again: a connection remembers the runs, targets and
//! samples it has read.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use rusqlite::{Connection, Row};
use serde::Deserialize;

use super::codes::{Coded as _, usual_path};
use super::encode::{COLUMNS_COUNT, DECISION_COLUMNS, STATE_COLUMNS, only_part};
use super::readings::restore_exact;
use super::rest::{self, AttemptRow, LinkedRow, MetricRow, ReportRow, Rest, RetryRow};
use super::row::{Columns, RowError, nat};
use crate::snapshot::outcome::Answer;
use crate::snapshot::{
    Attempt, BackendReport, Candidate, Candidates, Decision, Excluded, Fallback, GpuUuids, Inputs, InstanceTag, Issued,
    LoadReport, Moment, Operation, Outcome, Place, Quantity, Reading, Reason, Record, RemoteSpan, ReportFormat,
    ReportPhase, Request, Retry, Run, RunId, Sample, SnapshotId, SpanId, Target, Tenant, Timings, TraceContext,
    TraceId,
};

/// Samples remembered by one connection, each about half a kilobyte.
const SAMPLES_MAX: usize = 4_096;

/// Targets remembered by one connection.
const TARGETS_MAX: usize = 16_384;

/// Runs remembered by one connection.
const RUNS_MAX: usize = 256;

/// What one connection has read that records share.
#[derive(Debug, Default)]
pub(super) struct Known {
    runs: HashMap<i64, Arc<Run>>,
    targets: HashMap<i64, Arc<Described>>,
    samples: HashMap<i64, Arc<Sample>>,
}

/// A target, and the GPUs that it had then.
#[derive(Debug)]
struct Described {
    target: Arc<Target>,
    gpu_uuids: Option<GpuUuids>,
}

/// One candidate in the JSON of a record: sample, in flight, rates, score, place, parts of the score; see
/// `encode::write_candidates`. `None` is a number that JSON has no word for. Version 1 of the file ends with the score.
#[derive(Deserialize)]
struct CandidateRow(
    i64,
    u32,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    #[serde(default)] Option<u32>,
    #[serde(default)] Option<Vec<Option<f64>>>,
);

/// Reads a row of `COLUMNS`; answers its sequence number, too.
pub(super) fn record(row: &Row<'_>, connection: &Connection, known: &mut Known) -> Result<(u64, Record), RowError> {
    let rest = row.get_ref(COLUMNS_COUNT - 1)?.as_blob().map_err(|_| RowError::corrupt("rest is no blob"))?;
    let rest = Rest::decode(rest).map_err(|error| RowError::corrupt(format!("rest: {error}")))?;
    let mut columns = Columns::new(row);
    let seq = columns.int()?;
    let id = SnapshotId::from_bytes(columns.value()?);
    let run = known.run(connection, columns.value()?)?;
    let issued_at = Moment(columns.int()?);
    let trace = trace(&mut columns, id, &rest)?;
    let request = request(&mut columns, &rest)?;
    let decision = decision(&mut columns, issued_at, &rest, connection, known)?;
    let issued = Issued { id, issued_at, run, trace, request, decision };
    let outcome = outcome(&mut columns, &issued, &rest, connection, known)?;
    let record = match outcome {
        Some(outcome) => Record::closed(issued, outcome),
        None => Record::open(issued),
    };
    Ok((seq, record))
}

fn trace(columns: &mut Columns<'_, '_>, id: SnapshotId, rest: &Rest) -> Result<TraceContext, RowError> {
    let brought: Option<[u8; 16]> = columns.value()?;
    let trace_id = brought.map_or(id.as_u128(), u128::from_be_bytes);
    Ok(TraceContext {
        trace_id: TraceId::new(trace_id).ok_or_else(|| RowError::corrupt("trace_id is zero"))?,
        parent_span_id: rest.parent_span_id.and_then(SpanId::new),
        sampled: rest.flags & rest::TRACE_SAMPLED != 0,
        random: rest.flags & rest::TRACE_RANDOM != 0,
        linked: rest.linked.as_ref().map(linked).transpose()?,
    })
}

fn linked(row: &LinkedRow) -> Result<RemoteSpan, RowError> {
    let zero = || RowError::corrupt("a linked span has no ID");
    Ok(RemoteSpan {
        trace_id: TraceId::new(u128::from(row.trace_id_high) << 64 | u128::from(row.trace_id_low)).ok_or_else(zero)?,
        span_id: SpanId::new(row.span_id).ok_or_else(zero)?,
        sampled: row.sampled,
        random: row.random,
    })
}

fn request(columns: &mut Columns<'_, '_>, rest: &Rest) -> Result<Request, RowError> {
    let client_request_id = columns.text_or_null()?;
    let tenant = columns.value::<Option<[u8; 32]>>()?.map(Tenant);
    let operation = columns.code()?;
    let label = |label: &rest::Label| (label.name.as_str().into(), label.value.as_str().into());
    Ok(Request {
        method: rest.method.as_deref().unwrap_or(rest::COMMON_METHOD).into(),
        path: path(columns, operation)?,
        operation,
        model: columns.text_or_null()?,
        stream: columns.value()?,
        body_bytes: columns.int()?,
        body_unread: rest.flags & rest::BODY_UNREAD != 0,
        max_tokens: columns.int_or_null()?,
        client_request_id,
        tenant,
        user_agent: boxed(&rest.user_agent),
        labels: rest.labels.iter().map(label).collect(),
    })
}

fn path(columns: &mut Columns<'_, '_>, operation: Operation) -> Result<Box<str>, RowError> {
    let usual = || usual_path(operation).map(Box::from);
    columns.text_or_null()?.or_else(usual).ok_or_else(|| RowError::corrupt("path is empty"))
}

fn decision(
    columns: &mut Columns<'_, '_>,
    issued_at: Moment,
    rest: &Rest,
    connection: &Connection,
    known: &mut Known,
) -> Result<Option<Decision>, RowError> {
    let Some(policy) = columns.code_or_null()? else {
        columns.skip(DECISION_COLUMNS - 1);
        return Ok(None);
    };
    let reason = columns.code()?;
    let fallback = match columns.code_or_null()? {
        None => former_fallback(rest)?,
        fallback => fallback,
    };
    // The target is the first candidate's.
    columns.skip(1);
    let (decided_offset_ns, choose_ns) = (columns.int()?, columns.int()?);
    // The state is the first candidate's, too, and whole there.
    columns.skip(STATE_COLUMNS);
    let candidates = candidates(&columns.value::<String>()?, rest, connection, known)?;
    Ok(Some(Decision {
        policy,
        reason,
        forced: rest.flags & rest::FORCED != 0,
        fallback,
        decided_offset_ns,
        choose_ns,
        decided: Moment(issued_at.0.wrapping_add_signed(rest.decided_us)),
        view_published: Moment(issued_at.0.wrapping_add_signed(rest.view_published_us)),
        eligible: rest.eligible,
        excluded: Excluded {
            unhealthy: rest.excluded_unhealthy,
            ejected: rest.excluded_ejected,
            model: rest.excluded_model,
            no_fresh_state: rest.excluded_no_fresh_state,
        },
        candidates,
        inputs: Inputs {
            prefix_hash: rest.prefix_hash,
            session_hash: rest.session_hash,
            ticket: rest.ticket,
            draw: rest.draw,
        },
    }))
}

/// What versions 2 and 3 have in place of the column.
fn former_fallback(rest: &Rest) -> Result<Option<Fallback>, RowError> {
    let known = |code| Fallback::from_code(code).ok_or_else(|| RowError::corrupt(format!("unknown fallback {code}")));
    rest.fallback.map(known).transpose()
}

fn candidates(json: &str, rest: &Rest, connection: &Connection, known: &mut Known) -> Result<Candidates, RowError> {
    let rows: Vec<CandidateRow> =
        serde_json::from_str(json).map_err(|error| RowError::corrupt(format!("candidates: {error}")))?;
    if rows.is_empty() {
        return Err(RowError::corrupt("candidates: none"));
    }
    let mut beyond = rest.beyond_json.iter();
    let mut number = |written: Option<f64>| {
        let bits = || beyond.next().map(|bits| f64::from_bits(*bits));
        written.or_else(bits).ok_or_else(|| RowError::corrupt("candidates: a null has no bits in rest"))
    };
    let mut candidates = Vec::with_capacity(rows.len());
    for CandidateRow(sample, in_flight, requests_per_second, tokens_per_second, score, place, parts) in rows {
        let (requests_per_second, tokens_per_second) = (number(requests_per_second)?, number(tokens_per_second)?);
        let scored = parts.as_ref().is_none_or(|parts| !parts.is_empty());
        let score = if scored { Some(number(score)?) } else { None };
        let mut score_parts = score.map(only_part).unwrap_or_default();
        for (part, written) in score_parts.iter_mut().zip(parts.into_iter().flatten()) {
            *part = number(written)?;
        }
        let sample = known.sample(connection, sample)?;
        candidates.push(Candidate {
            sample,
            place,
            in_flight,
            requests_per_second,
            tokens_per_second,
            score,
            score_parts,
        });
    }
    Ok(candidates.into_iter().collect())
}

fn outcome(
    columns: &mut Columns<'_, '_>,
    issued: &Issued,
    rest: &Rest,
    connection: &Connection,
    known: &mut Known,
) -> Result<Option<Outcome>, RowError> {
    let Some(ending) = columns.code_or_null()? else { return Ok(None) };
    let status: Option<u16> = columns.value()?;
    // Fault, target and the number of attempts follow from what is read elsewhere.
    columns.skip(3);
    let (response_bytes, events) = (columns.int()?, columns.int()?);
    let answer = Answer {
        finish_reason: columns.text_or_null()?,
        response_id: response_id(issued.id, rest),
        response_model: if rest.flags & rest::RESPONSE_MODEL_IS_MODEL != 0 {
            issued.request.model.clone()
        } else {
            boxed(&rest.response_model)
        },
        prompt_tokens: columns.int_or_null()?,
        completion_tokens: columns.int_or_null()?,
        cached_tokens: columns.int_or_null()?,
        tokens_estimated: rest.flags & rest::TOKENS_ESTIMATED != 0,
        load_report: rest.load_report.as_deref().map(load_report).transpose()?,
    };
    let timings = Timings {
        first_byte_offset_us: columns.int_or_null()?,
        first_event_offset_us: columns.int_or_null()?,
        first_content_offset_us: columns.int_or_null()?,
        end_offset_us: columns.int()?,
        inter_token_p50_us: rest.inter_token_p50_us,
        inter_token_p99_us: rest.inter_token_p99_us,
        inter_token_max_us: rest.inter_token_max_us,
        engine_queue_us: rest.engine_queue_us,
    };
    let mut attempts = Vec::with_capacity(rest.attempts.len());
    for row in &rest.attempts {
        let target = known.target(connection, row.target.cast_signed())?;
        attempts.push(attempt(row, target, status, timings.first_byte_offset_us)?);
    }
    let error = boxed(&rest.error);
    let flag = |flag| rest.flags & flag != 0;
    let trace_exported = flag(rest::TRACES_ARE_EXPORTED).then(|| flag(rest::TRACE_EXPORTED));
    Ok(Some(Outcome { ending, status, error, attempts, response_bytes, events, answer, timings, trace_exported }))
}

fn load_report(row: &ReportRow) -> Result<Box<BackendReport>, RowError> {
    let metrics = |rows: &[MetricRow]| rows.iter().map(|row| (row.name.as_str().into(), row.value)).collect();
    let unknown = |code| move || RowError::corrupt(format!("a load report has the unknown code {code}"));
    Ok(Box::new(BackendReport {
        format: ReportFormat::from_code(row.format).ok_or_else(unknown(row.format))?,
        phase: ReportPhase::from_code(row.phase).ok_or_else(unknown(row.phase))?,
        received_offset_us: row.received_offset_us,
        report: LoadReport { named_metrics: metrics(&row.named_metrics), other_metrics: metrics(&row.other_metrics) },
    }))
}

fn attempt(
    row: &AttemptRow,
    target: Arc<Target>,
    sent_status: Option<u16>,
    sent_offset_us: Option<u64>,
) -> Result<Attempt, RowError> {
    let own_status = row.status.map(u16::try_from).transpose();
    let own_status = own_status.map_err(|_| RowError::corrupt("an attempt's status is no status"))?;
    let own = (own_status, row.first_byte_offset_us);
    let (status, first_byte_offset_us) = if row.head_was_sent { (sent_status, sent_offset_us) } else { own };
    Ok(Attempt {
        target,
        started_offset_us: row.started_offset_us,
        connect_us: row.connect_us,
        first_byte_offset_us,
        status,
        error: boxed(&row.error),
        retry: row.retry.as_deref().map(retry).transpose()?.map(Box::new),
    })
}

fn retry(row: &RetryRow) -> Result<Retry, RowError> {
    let unknown = |code| move || RowError::corrupt(format!("a retry has the unknown code {code}"));
    let fallback = |code| Fallback::from_code(code).ok_or_else(unknown(code));
    Ok(Retry {
        reason: Reason::from_code(row.reason).ok_or_else(unknown(row.reason))?,
        fallback: row.fallback.map(fallback).transpose()?,
        view_age_ms: row.view_age_ms,
        eligible: row.eligible,
        excluded: Excluded {
            unhealthy: row.excluded_unhealthy,
            ejected: row.excluded_ejected,
            model: row.excluded_model,
            no_fresh_state: row.excluded_no_fresh_state,
        },
        considered: row.considered,
        score: row.score,
        draw: row.draw,
    })
}

fn response_id(id: SnapshotId, rest: &Rest) -> Option<Box<str>> {
    let kept = rest.response_id.as_deref();
    if rest.flags & rest::RESPONSE_ID_ENDS_IN_ID == 0 {
        return kept.map(Box::from);
    }
    Some(format!("{}{id}", kept.unwrap_or(rest::COMMON_PREFIX)).into())
}

fn boxed(text: &Option<String>) -> Option<Box<str>> {
    text.as_deref().map(Box::from)
}

impl Known {
    fn run(&mut self, connection: &Connection, row: i64) -> Result<Arc<Run>, RowError> {
        if let Some(run) = self.runs.get(&row) {
            return Ok(Arc::clone(run));
        }
        let mut statement = connection.prepare_cached(
            "SELECT run_id, instance, instance_tag, version, config, started_unix_us FROM runs WHERE run = ?1",
        )?;
        let run = statement.query_row([row], |row| {
            Ok(Run {
                id: RunId(nat(row.get(0)?)),
                instance: row.get(1)?,
                tag: InstanceTag(row.get(2)?),
                version: row.get(3)?,
                config: row.get(4)?,
                config_text: "".into(),
                started: Moment(nat(row.get(5)?)),
            })
        });
        remember(&mut self.runs, RUNS_MAX, row, found(run, "run", row)?)
    }

    pub(super) fn target(&mut self, connection: &Connection, row: i64) -> Result<Arc<Target>, RowError> {
        Ok(Arc::clone(&self.described(connection, row)?.target))
    }

    fn described(&mut self, connection: &Connection, row: i64) -> Result<Arc<Described>, RowError> {
        if let Some(described) = self.targets.get(&row) {
            return Ok(Arc::clone(described));
        }
        let mut statement = connection
            .prepare_cached("SELECT slot, name, address, gpus, gpu_uuids, place FROM targets WHERE target = ?1")?;
        let read = statement.query_row([row], |row| {
            let (name, address) = (row.get::<_, String>(1)?, row.get::<_, String>(2)?);
            let target = Target { gpus: row.get(3)?, ..Target::new(row.get(0)?, &name, &address) };
            Ok((target, row.get::<_, Option<String>>(4)?, row.get::<_, Option<String>>(5)?))
        });
        let (target, uuids, place) = found(read, "target", row)?;
        let gpu_uuids = uuids.map(|uuids| serde_json::from_str(&uuids)).transpose();
        let gpu_uuids = gpu_uuids.map_err(|error| RowError::corrupt(format!("gpu_uuids of target {row}: {error}")))?;
        let place = place.map(|place| serde_json::from_str::<Place>(&place)).transpose();
        let place = place.map_err(|error| RowError::corrupt(format!("the place of target {row}: {error}")))?;
        let target = Arc::new(Target { place: place.map(Arc::new), ..target });
        remember(&mut self.targets, TARGETS_MAX, row, Described { target, gpu_uuids })
    }

    fn sample(&mut self, connection: &Connection, number: i64) -> Result<Arc<Sample>, RowError> {
        if let Some(sample) = self.samples.get(&number) {
            return Ok(Arc::clone(sample));
        }
        let mut statement = connection.prepare_cached("SELECT * FROM samples WHERE sample = ?1")?;
        let mut rows = statement.query([number])?;
        let row = rows.next()?.ok_or_else(|| RowError::corrupt(format!("sample {number} is not there")))?;
        let sample = self.read_sample(connection, row)?;
        remember(&mut self.samples, SAMPLES_MAX, number, sample)
    }

    fn read_sample(&mut self, connection: &Connection, row: &Row<'_>) -> Result<Sample, RowError> {
        let mut columns = Columns::new(row);
        columns.skip(1);
        let described = self.described(connection, columns.value()?)?;
        let (n, published) = (columns.int()?, Moment(columns.int()?));
        let (health, window_ms) = (columns.code()?, columns.value()?);
        let mut readings = [Reading::MISSING; Quantity::COUNT];
        for reading in &mut readings {
            reading.value = columns.value()?;
            let age_us = columns.int_or_null()?;
            reading.observed = age_us.map_or(Moment(0), |age_us| Moment(published.0.wrapping_sub(age_us)));
            reading.source = columns.code_or_null()?;
            reading.freshness = columns.code()?;
        }
        if let Some(bytes) = columns.value::<Option<Vec<u8>>>()?
            && !restore_exact(&mut readings, &bytes)
        {
            return Err(RowError::corrupt("a sample's exact numbers are cut off"));
        }
        let in_flight_at_scrape = columns.value()?;
        let sample = Sample::new(Arc::clone(&described.target), n, published, health, readings, window_ms);
        let gpu_uuids = described.gpu_uuids.clone();
        Ok(sample.with_in_flight_at_scrape(in_flight_at_scrape).with_gpu_uuids(gpu_uuids))
    }
}

/// Keeps a value for the next record that shares it. A full memory is emptied: refilling costs a read for each.
fn remember<T>(known: &mut HashMap<i64, Arc<T>>, max: usize, row: i64, value: T) -> Result<Arc<T>, RowError> {
    if known.len() >= max {
        known.clear();
    }
    let value = Arc::new(value);
    known.insert(row, Arc::clone(&value));
    Ok(value)
}

/// A row that a record refers to and that is not there is a fault of the file, not of the call.
fn found<T>(answer: rusqlite::Result<T>, what: &str, row: i64) -> Result<T, RowError> {
    match answer {
        Err(rusqlite::Error::QueryReturnedNoRows) => Err(RowError::corrupt(format!("{what} {row} is not there"))),
        answer => Ok(answer?),
    }
}

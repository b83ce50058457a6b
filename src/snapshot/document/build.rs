//! How a record becomes the parts of its document: borrowed where it can be, and no text on the heap.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::parts::{
    AttemptPart, BackendReportPart, CandidatePart, ChoicePart, DecisionPart, ExcludedPart, GatewayPart, InputsPart,
    KubernetesPart, OutcomePart, RequestPart, TimingsPart, TracePart,
};
use super::score_parts::ScoreParts;
use super::state::ChosenState;
use super::text::Text;
use crate::snapshot::candidates::Candidate;
use crate::snapshot::decision::{Decision, Excluded};
use crate::snapshot::load_report::ReportMetric;
use crate::snapshot::outcome::{Attempt, Outcome, Retry};
use crate::snapshot::place::Place;
use crate::snapshot::record::{Issued, Record, Run};
use crate::snapshot::sample::{Sample, Source};
use crate::snapshot::trace::SpanId;

impl<'a> GatewayPart<'a> {
    pub(super) fn of(run: &'a Run) -> Self {
        Self {
            instance: (&*run.instance).into(),
            instance_tag: Text::hex(run.tag.0.into(), 4),
            version: (&*run.version).into(),
            config: (&*run.config).into(),
        }
    }
}

impl<'a> TracePart<'a> {
    pub(super) fn of(issued: &Issued, outcome: Option<&Outcome>) -> Self {
        let trace = &issued.trace;
        let span = |span: SpanId| Text::hex(span.as_u64().into(), 16);
        Self {
            trace_id: Text::hex(trace.trace_id.as_u128(), 32),
            span_id: span(SpanId::of_server(issued.id)),
            parent_span_id: trace.parent_span_id.map(span),
            sampled: trace.sampled,
            exported: outcome.and_then(|outcome| outcome.trace_exported),
            linked_trace_id: trace.linked.map(|linked| Text::hex(linked.trace_id.as_u128(), 32)),
            linked_span_id: trace.linked.map(|linked| span(linked.span_id)),
        }
    }
}

impl<'a> RequestPart<'a> {
    pub(super) fn of(issued: &'a Issued) -> Self {
        let request = &issued.request;
        Self {
            method: (&*request.method).into(),
            path: (&*request.path).into(),
            operation: request.operation.name().into(),
            model: text(&request.model),
            stream: request.stream,
            body_bytes: request.body_bytes,
            body_unread: request.body_unread,
            max_tokens: request.max_tokens,
            client_request_id: text(&request.client_request_id),
            tenant: request.tenant.map(Text::short),
            user_agent: text(&request.user_agent),
            labels: request.labels.iter().map(|(name, value)| ((&**name).into(), (&**value).into())).collect(),
        }
    }
}

impl<'a> DecisionPart<'a> {
    pub(super) fn none() -> Self {
        Self {
            policy: None,
            reason: None,
            target: None,
            kubernetes: KubernetesPart::default(),
            forced: None,
            fallback: None,
            decided_offset_ns: None,
            state: ChosenState::default(),
            score_order: None,
            view_age_ms: None,
            eligible: None,
            excluded: ExcludedPart::default(),
            candidates: Vec::new(),
            inputs: InputsPart { prefix_hash: None, session_hash: None, ticket: None, draw: None },
        }
    }

    /// With at most so many candidates, the best ones; `None` is all.
    pub(super) fn of(decision: &'a Decision, candidates_max: Option<NonZeroUsize>) -> Self {
        Self {
            policy: Some(decision.policy),
            reason: Some(decision.reason),
            target: Some((&*decision.target().name).into()),
            kubernetes: KubernetesPart::of(decision.target().place.as_deref()),
            forced: Some(decision.forced),
            fallback: decision.fallback,
            decided_offset_ns: Some(decision.decided_offset_ns),
            state: ChosenState::of(decision),
            score_order: Some("lowest_first".into()),
            view_age_ms: Some(decision.decided.ms_since(decision.view_published)),
            eligible: Some(decision.eligible),
            excluded: ExcludedPart::of(decision.excluded),
            candidates: decision
                .candidates
                .iter()
                .take(candidates_max.map_or(usize::MAX, NonZeroUsize::get))
                .enumerate()
                .map(|(index, candidate)| CandidatePart::of(decision, index, candidate))
                .collect(),
            inputs: InputsPart {
                prefix_hash: hash(decision.inputs.prefix_hash),
                session_hash: hash(decision.inputs.session_hash),
                ticket: decision.inputs.ticket,
                draw: hash(Some(decision.inputs.draw)),
            },
        }
    }
}

impl ExcludedPart {
    fn of(Excluded { unhealthy, ejected, model, no_fresh_state }: Excluded) -> Self {
        Self {
            unhealthy: Some(unhealthy),
            ejected: Some(ejected),
            model: Some(model),
            no_fresh_state: Some(no_fresh_state),
        }
    }
}

impl<'a> KubernetesPart<'a> {
    /// What is known of where a target runs.
    pub fn of(place: Option<&'a Place>) -> Self {
        let Some(Place { namespace, pod, uid, node, labels }) = place else { return Self::default() };
        let said = |text: &'a str| Some(text).filter(|text| !text.is_empty()).map(Into::into);
        Self {
            namespace: said(namespace),
            pod: said(pod),
            uid: said(uid),
            node: node.as_deref().map(Into::into),
            labels: Some(labels.iter().map(|(name, value)| ((&**name).into(), (&**value).into())).collect()),
        }
    }
}

impl<'a> CandidatePart<'a> {
    fn of(decision: &Decision, index: usize, candidate: Candidate<&'a Arc<Sample>>) -> Self {
        Self {
            target: (&*candidate.sample.target.name).into(),
            rank: index as u32 + 1,
            chosen: index == 0,
            place: candidate.place,
            score: candidate.score,
            score_parts: match candidate.score {
                Some(_) => ScoreParts::of(decision.scored_by().score_parts(), candidate.score_parts),
                None => ScoreParts::default(),
            },
            excluded: (candidate.score.is_none() && !decision.forced).then(|| "no_fresh_state".into()),
            gateway_in_flight: candidate.in_flight,
            gateway_requests_per_second: candidate.requests_per_second,
            gateway_tokens_per_second: candidate.tokens_per_second,
            sample_age_ms: decision.decided.ms_since(candidate.sample.published),
            state: Cow::Borrowed(candidate.sample.json().raw()),
        }
    }
}

impl<'a> AttemptPart<'a> {
    /// In their order; the first goes where the decision said.
    pub(super) fn all_of(outcome: &'a Outcome, decision: Option<&Decision>) -> Vec<Self> {
        let choice = |place: usize, attempt: &Attempt| match (&attempt.retry, decision) {
            (Some(retry), _) => ChoicePart::anew(retry),
            (None, Some(decision)) if place == 0 => ChoicePart::first(decision),
            (None, _) => ChoicePart::default(),
        };
        let attempts = outcome.attempts.iter().enumerate();
        attempts
            .map(|(place, attempt)| Self {
                target: (&*attempt.target.name).into(),
                address: Some((&*attempt.target.address).into()),
                started_offset_us: attempt.started_offset_us,
                connect_us: attempt.connect_us,
                first_byte_offset_us: attempt.first_byte_offset_us,
                status: attempt.status,
                error: text(&attempt.error),
                choice: choice(place, attempt),
            })
            .collect()
    }
}

impl ChoicePart<'_> {
    fn first(decision: &Decision) -> Self {
        Self {
            reason: Some(decision.reason),
            fallback: decision.fallback,
            view_age_ms: Some(decision.decided.ms_since(decision.view_published)),
            eligible: Some(decision.eligible),
            excluded: ExcludedPart::of(decision.excluded),
            considered: Some(decision.candidates.len() as u32),
            score: decision.chosen().score,
            draw: hash(Some(decision.inputs.draw)),
        }
    }

    fn anew(retry: &Retry) -> Self {
        Self {
            reason: Some(retry.reason),
            fallback: retry.fallback,
            view_age_ms: Some(retry.view_age_ms),
            eligible: Some(retry.eligible),
            excluded: ExcludedPart::of(retry.excluded),
            considered: Some(retry.considered),
            score: retry.score,
            draw: hash(Some(retry.draw)),
        }
    }
}

impl<'a> OutcomePart<'a> {
    pub(super) fn of(outcome: &'a Outcome) -> Self {
        let answer = &outcome.answer;
        Self {
            target: outcome.target().map(|target| (&*target.name).into()),
            attempt_count: Some(outcome.attempts.len() as u64),
            status: outcome.status,
            ending: Some(outcome.ending),
            fault: outcome.fault(),
            error: text(&outcome.error),
            finish_reason: text(&answer.finish_reason),
            response_id: text(&answer.response_id),
            response_model: text(&answer.response_model),
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.completion_tokens,
            cached_tokens: answer.cached_tokens,
            tokens_estimated: Some(answer.tokens_estimated),
            response_bytes: outcome.response_bytes,
            events: outcome.events,
        }
    }

    pub(super) fn in_flight(record: &Record) -> Self {
        let (response_bytes, events) = record.progress.seen_body();
        Self {
            target: None,
            attempt_count: None,
            status: record.progress.seen_head().map(|(status, _)| status),
            ending: None,
            fault: None,
            error: None,
            finish_reason: None,
            response_id: None,
            response_model: None,
            prompt_tokens: None,
            completion_tokens: None,
            cached_tokens: None,
            tokens_estimated: None,
            response_bytes,
            events,
        }
    }
}

impl<'a> BackendReportPart<'a> {
    pub(super) fn of(outcome: &'a Outcome) -> Self {
        let Some(report) = &outcome.answer.load_report else { return Self::default() };
        let map = |metrics: &'a [ReportMetric]| {
            Some(metrics.iter().map(|(name, value)| (Text::from(&**name), *value)).collect())
        };
        Self {
            source: Some(Source::Orca.name().into()),
            format: Some(report.format.name().into()),
            phase: Some(report.phase.name().into()),
            received_offset_us: Some(report.received_offset_us),
            named_metrics: map(&report.report.named_metrics),
            other_metrics: map(&report.report.other_metrics),
        }
    }
}

impl TimingsPart {
    pub(super) fn of(record: &Record, outcome: Option<&Outcome>) -> Self {
        let choose_ns = record.issued.decision.as_ref().map(|decision| decision.choose_ns);
        let Some(outcome) = outcome else {
            let first_byte_offset_us = record.progress.seen_head().map(|(_, offset)| offset);
            return Self { choose_ns, first_byte_offset_us, ..Self::default() };
        };
        let timings = outcome.timings;
        Self {
            choose_ns,
            first_byte_offset_us: timings.first_byte_offset_us,
            first_event_offset_us: timings.first_event_offset_us,
            first_content_offset_us: timings.first_content_offset_us,
            end_offset_us: Some(timings.end_offset_us),
            inter_token_p50_us: timings.inter_token_p50_us,
            inter_token_p99_us: timings.inter_token_p99_us,
            inter_token_max_us: timings.inter_token_max_us,
            engine_queue_us: timings.engine_queue_us,
        }
    }
}

fn hash<'a>(hash: Option<u64>) -> Option<Text<'a>> {
    hash.map(|hash| Text::hex(hash.into(), 16))
}

fn text<'a>(text: &'a Option<Box<str>>) -> Option<Text<'a>> {
    text.as_deref().map(Text::from)
}

//! The parts of a document, as they are read. Their keys are in the order in which they are written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::score_parts::ScoreParts;
use super::state::ChosenState;
use super::text::Text;
use crate::snapshot::decision::{Fallback, Policy, Reason};
use crate::snapshot::outcome::{Ending, Fault};

/// Which process wrote it.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct GatewayPart<'a> {
    #[serde(borrow)]
    pub instance: Text<'a>,
    pub instance_tag: Text<'a>,
    pub version: Text<'a>,
    pub config: Text<'a>,
}

/// Where it stands in a trace.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct TracePart<'a> {
    #[serde(borrow)]
    pub trace_id: Text<'a>,
    pub span_id: Text<'a>,
    pub parent_span_id: Option<Text<'a>>,
    pub sampled: bool,
    pub exported: Option<bool>,
    pub linked_trace_id: Option<Text<'a>>,
    pub linked_span_id: Option<Text<'a>>,
}

/// What was asked.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct RequestPart<'a> {
    #[serde(borrow)]
    pub method: Text<'a>,
    pub path: Text<'a>,
    pub operation: Text<'a>,
    pub model: Option<Text<'a>>,
    pub stream: Option<bool>,
    pub body_bytes: u64,
    pub body_unread: bool,
    pub max_tokens: Option<u64>,
    pub client_request_id: Option<Text<'a>>,
    pub tenant: Option<Text<'a>>,
    pub user_agent: Option<Text<'a>>,
    pub labels: BTreeMap<Text<'a>, Text<'a>>,
}

/// What was chosen and why.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct DecisionPart<'a> {
    pub policy: Option<Policy>,
    pub reason: Option<Reason>,
    #[serde(borrow)]
    pub target: Option<Text<'a>>,
    #[serde(default)]
    pub kubernetes: KubernetesPart<'a>,
    pub forced: Option<bool>,
    pub fallback: Option<Fallback>,
    pub decided_offset_ns: Option<u64>,
    pub state: ChosenState<'a>,
    pub score_order: Option<Text<'a>>,
    pub view_age_ms: Option<u64>,
    pub eligible: Option<u32>,
    pub excluded: ExcludedPart,
    pub candidates: Vec<CandidatePart<'a>>,
    pub inputs: InputsPart<'a>,
}

/// The pod that a target is; all `None` if nobody said which.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct KubernetesPart<'a> {
    #[serde(borrow)]
    pub namespace: Option<Text<'a>>,
    pub pod: Option<Text<'a>>,
    pub uid: Option<Text<'a>>,
    pub node: Option<Text<'a>>,
    pub labels: Option<BTreeMap<Text<'a>, Text<'a>>>,
}

/// How many targets were no candidates.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct ExcludedPart {
    pub unhealthy: Option<u32>,
    pub ejected: Option<u32>,
    pub model: Option<u32>,
    pub no_fresh_state: Option<u32>,
}

/// One target that was looked at.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct CandidatePart<'a> {
    #[serde(borrow)]
    pub target: Text<'a>,
    pub rank: u32,
    pub chosen: bool,
    pub place: Option<u32>,
    pub score: Option<f64>,
    pub score_parts: ScoreParts<'a>,
    pub excluded: Option<Text<'a>>,
    pub gateway_in_flight: u32,
    pub gateway_requests_per_second: f64,
    pub gateway_tokens_per_second: f64,
    /// From the sample's publication, where its own ages are counted, to the decision.
    pub sample_age_ms: u64,
    /// A [`State`](super::State), copied as the sample keeps it.
    pub state: Cow<'a, RawValue>,
}

/// What else a choice depended on.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct InputsPart<'a> {
    #[serde(borrow)]
    pub prefix_hash: Option<Text<'a>>,
    pub session_hash: Option<Text<'a>>,
    pub ticket: Option<u64>,
    pub draw: Option<Text<'a>>,
}

/// One try at one target.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct AttemptPart<'a> {
    #[serde(borrow)]
    pub target: Text<'a>,
    pub address: Option<Text<'a>>,
    pub started_offset_us: u64,
    pub connect_us: Option<u64>,
    pub first_byte_offset_us: Option<u64>,
    pub status: Option<u16>,
    pub error: Option<Text<'a>>,
    #[serde(default)]
    pub choice: ChoicePart<'a>,
}

/// Why it was this target: for the first attempt as the decision says, for others of the choice that was made anew.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct ChoicePart<'a> {
    pub reason: Option<Reason>,
    pub fallback: Option<Fallback>,
    pub view_age_ms: Option<u64>,
    pub eligible: Option<u32>,
    pub excluded: ExcludedPart,
    pub considered: Option<u32>,
    pub score: Option<f64>,
    #[serde(borrow)]
    pub draw: Option<Text<'a>>,
}

/// How it ended.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct OutcomePart<'a> {
    #[serde(borrow)]
    pub target: Option<Text<'a>>,
    pub attempt_count: Option<u64>,
    pub status: Option<u16>,
    pub ending: Option<Ending>,
    pub fault: Option<Fault>,
    pub error: Option<Text<'a>>,
    pub finish_reason: Option<Text<'a>>,
    pub response_id: Option<Text<'a>>,
    pub response_model: Option<Text<'a>>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub tokens_estimated: Option<bool>,
    pub response_bytes: u64,
    pub events: u64,
}

/// When what happened.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct TimingsPart {
    pub choose_ns: Option<u64>,
    pub first_byte_offset_us: Option<u64>,
    pub first_event_offset_us: Option<u64>,
    pub first_content_offset_us: Option<u64>,
    pub end_offset_us: Option<u64>,
    pub inter_token_p50_us: Option<u64>,
    pub inter_token_p99_us: Option<u64>,
    pub inter_token_max_us: Option<u64>,
    pub engine_queue_us: Option<u64>,
}

/// What the target reported of itself with its answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "see Document")]
pub struct BackendReportPart<'a> {
    #[serde(borrow)]
    pub source: Option<Text<'a>>,
    pub format: Option<Text<'a>>,
    pub phase: Option<Text<'a>>,
    pub received_offset_us: Option<u64>,
    pub named_metrics: Option<BTreeMap<Text<'a>, f64>>,
    pub other_metrics: Option<BTreeMap<Text<'a>, f64>>,
}

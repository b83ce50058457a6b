//! The binary column of a record: everything that nobody filters by, in protobuf's encoding, where a field that is not
//! there costs nothing and a field that a later version adds does not stop this one from reading.

use prost::Message;

/// Field numbers are for ever: a field that is given up leaves its number unused. Those below 16 cost a byte less, so they
/// are for what most records have.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Rest {
    /// Yes-or-no facts, see the constants below.
    #[prost(uint32, tag = "1")]
    pub(super) flags: u32,
    /// Absent for [`COMMON_METHOD`].
    #[prost(string, optional, tag = "16")]
    pub(super) method: Option<String>,
    #[prost(fixed64, optional, tag = "14")]
    pub(super) parent_span_id: Option<u64>,
    /// Of a client whose trace was not gone on with.
    #[prost(message, optional, tag = "26")]
    pub(super) linked: Option<LinkedRow>,
    #[prost(string, optional, tag = "2")]
    pub(super) user_agent: Option<String>,
    #[prost(message, repeated, tag = "17")]
    pub(super) labels: Vec<Label>,

    /// Microseconds from the moment of issue, as are those of `view_published`.
    #[prost(sint64, tag = "3")]
    pub(super) decided_us: i64,
    #[prost(sint64, tag = "4")]
    pub(super) view_published_us: i64,
    #[prost(uint32, tag = "5")]
    pub(super) eligible: u32,
    #[prost(uint32, tag = "18")]
    pub(super) excluded_unhealthy: u32,
    #[prost(uint32, tag = "25")]
    pub(super) excluded_ejected: u32,
    #[prost(uint32, tag = "19")]
    pub(super) excluded_model: u32,
    #[prost(uint32, tag = "20")]
    pub(super) excluded_no_fresh_state: u32,
    #[prost(fixed64, optional, tag = "21")]
    pub(super) prefix_hash: Option<u64>,
    #[prost(fixed64, optional, tag = "22")]
    pub(super) session_hash: Option<u64>,
    #[prost(uint64, optional, tag = "15")]
    pub(super) ticket: Option<u64>,
    #[prost(fixed64, tag = "6")]
    pub(super) draw: u64,
    /// The code of the reason why `least_request` stood in for the policy, in files of versions 2 and 3. Later ones have a
    /// column for it.
    #[prost(int64, optional, tag = "24")]
    pub(super) fallback: Option<i64>,
    /// The bits of the candidates' numbers that JSON has no word for, in order of their `null`s.
    #[prost(fixed64, repeated, tag = "23")]
    pub(super) beyond_json: Vec<u64>,

    #[prost(string, optional, tag = "13")]
    pub(super) error: Option<String>,
    #[prost(message, repeated, tag = "7")]
    pub(super) attempts: Vec<AttemptRow>,
    /// Without the snapshot ID at its end, if [`RESPONSE_ID_ENDS_IN_ID`]; absent also if it then is [`COMMON_PREFIX`].
    #[prost(string, optional, tag = "11")]
    pub(super) response_id: Option<String>,
    /// Absent also if [`RESPONSE_MODEL_IS_MODEL`].
    #[prost(string, optional, tag = "12")]
    pub(super) response_model: Option<String>,
    #[prost(uint64, optional, tag = "8")]
    pub(super) inter_token_p50_us: Option<u64>,
    #[prost(uint64, optional, tag = "9")]
    pub(super) inter_token_p99_us: Option<u64>,
    #[prost(uint64, optional, tag = "10")]
    pub(super) inter_token_max_us: Option<u64>,
    #[prost(message, optional, boxed, tag = "27")]
    pub(super) load_report: Option<Box<ReportRow>>,
    #[prost(uint64, optional, tag = "28")]
    pub(super) engine_queue_us: Option<u64>,
}

/// A span of somebody else's.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LinkedRow {
    #[prost(fixed64, tag = "1")]
    pub(super) trace_id_high: u64,
    #[prost(fixed64, tag = "2")]
    pub(super) trace_id_low: u64,
    #[prost(fixed64, tag = "3")]
    pub(super) span_id: u64,
    #[prost(bool, tag = "4")]
    pub(super) sampled: bool,
    #[prost(bool, tag = "5")]
    pub(super) random: bool,
}

/// One label of a request.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Label {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

/// One attempt at a target.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AttemptRow {
    /// Row of `targets`.
    #[prost(uint64, tag = "1")]
    pub(super) target: u64,
    #[prost(uint64, tag = "2")]
    pub(super) started_offset_us: u64,
    #[prost(uint64, optional, tag = "3")]
    pub(super) connect_us: Option<u64>,
    /// Absent, as is the status, if [`AttemptRow::head_was_sent`].
    #[prost(uint64, optional, tag = "4")]
    pub(super) first_byte_offset_us: Option<u64>,
    #[prost(uint32, optional, tag = "5")]
    pub(super) status: Option<u32>,
    #[prost(string, optional, tag = "6")]
    pub(super) error: Option<String>,
    /// The attempt's first byte and status are the outcome's, which has columns.
    #[prost(bool, tag = "7")]
    pub(super) head_was_sent: bool,
    /// Of an attempt after the first; records of earlier versions have none.
    #[prost(message, optional, boxed, tag = "8")]
    pub(super) retry: Option<Box<RetryRow>>,
}

/// Why a target was tried after others.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RetryRow {
    /// The code of a `Reason`.
    #[prost(int64, tag = "1")]
    pub(super) reason: i64,
    /// The code of a `Fallback`.
    #[prost(int64, optional, tag = "2")]
    pub(super) fallback: Option<i64>,
    #[prost(uint64, tag = "3")]
    pub(super) view_age_ms: u64,
    #[prost(uint32, tag = "4")]
    pub(super) eligible: u32,
    #[prost(uint32, tag = "5")]
    pub(super) excluded_unhealthy: u32,
    #[prost(uint32, tag = "6")]
    pub(super) excluded_ejected: u32,
    #[prost(uint32, tag = "7")]
    pub(super) excluded_model: u32,
    #[prost(uint32, tag = "8")]
    pub(super) excluded_no_fresh_state: u32,
    #[prost(uint32, tag = "9")]
    pub(super) considered: u32,
    #[prost(double, optional, tag = "10")]
    pub(super) score: Option<f64>,
    #[prost(fixed64, tag = "11")]
    pub(super) draw: u64,
}

/// What a target said of its load.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ReportRow {
    /// The code of a `ReportFormat`, and of a `ReportPhase`.
    #[prost(int64, tag = "1")]
    pub(super) format: i64,
    #[prost(int64, tag = "2")]
    pub(super) phase: i64,
    #[prost(uint64, tag = "3")]
    pub(super) received_offset_us: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) named_metrics: Vec<MetricRow>,
    #[prost(message, repeated, tag = "5")]
    pub(super) other_metrics: Vec<MetricRow>,
}

/// One metric of it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricRow {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(double, tag = "2")]
    pub(super) value: f64,
}

/// The method of nearly every request.
pub(super) const COMMON_METHOD: &str = "POST";

/// What vLLM puts before the ID of a chat's answer.
pub(super) const COMMON_PREFIX: &str = "chatcmpl-";

pub(super) const TRACE_SAMPLED: u32 = 1;
pub(super) const TRACE_RANDOM: u32 = 1 << 1;
pub(super) const FORCED: u32 = 1 << 2;
pub(super) const TOKENS_ESTIMATED: u32 = 1 << 3;
pub(super) const RESPONSE_ID_ENDS_IN_ID: u32 = 1 << 4;
pub(super) const RESPONSE_MODEL_IS_MODEL: u32 = 1 << 5;
pub(super) const BODY_UNREAD: u32 = 1 << 6;
/// Spans are exported; of this request, if [`TRACE_EXPORTED`].
pub(super) const TRACES_ARE_EXPORTED: u32 = 1 << 7;
pub(super) const TRACE_EXPORTED: u32 = 1 << 8;

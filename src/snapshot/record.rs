//! One request from issue to finish: what the ledger holds, the hand-off carries and the store keeps.

use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::decision::Decision;
use super::id::{InstanceTag, RunId, SnapshotId};
use super::moment::Moment;
use super::outcome::{Attempt, Outcome, Retry};
use super::trace::TraceContext;

/// One life of one gateway process; every record points to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Drawn at start.
    pub id: RunId,
    /// The instance's name, by configuration or the host's.
    pub instance: Box<str>,
    /// The instance's tag, from the data directory.
    pub tag: InstanceTag,
    /// The gateway's version.
    pub version: Box<str>,
    /// Hash of the configuration in force, eight hex digits. After a reload records refer to another `Run`, of the same ID.
    pub config: Box<str>,
    /// What `config` is the hash of, for the store to keep; empty in a run that was read from there.
    pub config_text: Arc<str>,
    /// When the process began.
    pub started: Moment,
}

/// What kind of work a path asks for, in the words of OpenTelemetry's GenAI conventions where they have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `/v1/chat/completions`, `/v1/messages`, `/v1/responses`.
    Chat,
    /// `/v1/completions`.
    TextCompletion,
    /// `/v1/embeddings` and its kin.
    Embeddings,
    /// Everything else.
    #[default]
    Other,
}

impl Operation {
    const ALL: [Self; 4] = [Self::Chat, Self::TextCompletion, Self::Embeddings, Self::Other];

    /// By the path alone.
    pub fn of_path(path: &str) -> Self {
        match path {
            "/v1/chat/completions" | "/v1/messages" | "/v1/responses" => Self::Chat,
            "/v1/completions" => Self::TextCompletion,
            "/v1/embeddings" => Self::Embeddings,
            _ => Self::Other,
        }
    }

    /// Its name in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Other => "other",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }
}

/// Whose credential a request bore: a keyed hash, so that the credential itself is never kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant(pub [u8; 32]);

/// Eight digits, for people; ownership compares all of it.
impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "t_{:08x}", u32::from_be_bytes([a, b, c, d]))
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The facts of a request that are recorded. Never its prompt, and never a header that was not asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// `POST`, …
    pub method: Box<str>,
    /// Without the query, which may carry a secret.
    pub path: Box<str>,
    /// By the path.
    pub operation: Operation,
    /// From the body.
    pub model: Option<Box<str>>,
    /// From the body; `None` when it could not be read.
    pub stream: Option<bool>,
    /// Length of the body.
    pub body_bytes: u64,
    /// There was a body that was passed on unread: content-encoded, or no JSON object.
    pub body_unread: bool,
    /// From the body.
    pub max_tokens: Option<u64>,
    /// The client's `x-request-id`.
    pub client_request_id: Option<Box<str>>,
    /// By the credential.
    pub tenant: Option<Tenant>,
    /// The client's `user-agent`, cut short.
    pub user_agent: Option<Box<str>>,
    /// Copies of the request headers that the configuration names.
    pub labels: Vec<(Box<str>, Box<str>)>,
}

/// What is known when a request is sent on its way; immutable from then on.
#[derive(Clone, Debug, PartialEq)]
pub struct Issued {
    /// Its name.
    pub id: SnapshotId,
    /// When it was accepted.
    pub issued_at: Moment,
    /// Which process accepted it.
    pub run: Arc<Run>,
    /// Its place in a trace.
    pub trace: TraceContext,
    /// What was asked.
    pub request: Request,
    /// What was chosen; `None` if the request ended before a choice.
    pub decision: Option<Decision>,
}

/// How far a request in flight has come: written by the data path, read by lookups, each number for itself; only who sees the
/// status sees the offset that belongs to it.
#[derive(Debug, Default)]
pub struct Progress {
    status: AtomicU16,
    first_byte_offset_us: AtomicU64,
    response_bytes: AtomicU64,
    events: AtomicU64,
}

impl Progress {
    /// The head of the answer came.
    pub fn head(&self, status: u16, first_byte_offset_us: u64) {
        self.first_byte_offset_us.store(first_byte_offset_us, Relaxed);
        self.status.store(status, Release);
    }

    /// Totals so far.
    pub fn body(&self, response_bytes: u64, events: u64) {
        self.response_bytes.store(response_bytes, Relaxed);
        self.events.store(events, Relaxed);
    }

    /// Status and offset of the head, if it came.
    pub fn seen_head(&self) -> Option<(u16, u64)> {
        match self.status.load(Acquire) {
            0 => None,
            status => Some((status, self.first_byte_offset_us.load(Relaxed))),
        }
    }

    /// Bytes and events so far.
    pub fn seen_body(&self) -> (u64, u64) {
        (self.response_bytes.load(Relaxed), self.events.load(Relaxed))
    }
}

/// One request: issued, on its way, and at last finished. One allocation serves ledger, hand-off and exits.
#[derive(Debug)]
pub struct Record {
    /// Known at the decision.
    pub issued: Issued,
    /// While it is on its way.
    pub progress: Progress,
    outcome: OnceLock<Outcome>,
}

impl Record {
    /// A request that is on its way.
    pub fn open(issued: Issued) -> Self {
        Self { issued, progress: Progress::default(), outcome: OnceLock::new() }
    }

    /// A request that has ended.
    pub fn closed(issued: Issued, outcome: Outcome) -> Self {
        Self { issued, progress: Progress::default(), outcome: OnceLock::from(outcome) }
    }

    /// Its name.
    pub fn id(&self) -> SnapshotId {
        self.issued.id
    }

    /// Writes the one finish. `false` if it had one already, which then stands.
    pub fn finish(&self, outcome: Outcome) -> bool {
        self.outcome.set(outcome).is_ok()
    }

    /// How it ended; `None` while it is in flight.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// When it ended; `None` while it is in flight.
    pub fn ended(&self) -> Option<Moment> {
        let end_offset_us = self.outcome()?.timings.end_offset_us;
        Some(self.issued.issued_at.plus(Duration::from_micros(end_offset_us)))
    }

    /// An estimate of its memory in bytes, for the hand-off's bound: the parts that vary, on top of a fixed share.
    pub fn weight(&self) -> usize {
        let request = &self.issued.request;
        let labels: usize = request.labels.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        let candidates = self.issued.decision.as_ref().map_or(0, |decision| decision.candidates.bytes());
        let retried = |attempt: &Attempt| attempt.retry.as_ref().map_or(0, |_| size_of::<Retry>());
        let attempt = |attempt: &Attempt| size_of::<Attempt>() + retried(attempt);
        let attempts: usize = self.outcome().map_or(0, |outcome| outcome.attempts.iter().map(attempt).sum());
        let report = self.outcome().and_then(|outcome| outcome.answer.load_report.as_ref());
        let model = request.model.as_ref().map_or(0, |model| model.len());
        size_of::<Self>()
            + request.path.len()
            + model
            + labels
            + candidates
            + attempts
            + report.map_or(0, |report| report.weight())
            + RECORD_TEXT_BYTES
    }
}

/// What the short texts of a record (IDs, user agent, finish reason) come to, for [`Record::weight`].
const RECORD_TEXT_BYTES: usize = 256;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::snapshot::outcome::{Answer, Ending, Timings};
    use crate::snapshot::{Candidate, Excluded, Health, Inputs, Policy, Quantity, Reading, Reason, Sample, Target};

    /// A finished request, told from others by `number`: for tests that need some record.
    pub(crate) fn finished(number: u64) -> Record {
        let outcome = Outcome {
            ending: Ending::Rejected,
            status: Some(404),
            error: Some("unknown path".into()),
            attempts: Vec::new(),
            response_bytes: number,
            events: 0,
            answer: Answer::default(),
            timings: Timings { end_offset_us: number, ..Timings::default() },
            trace_exported: None,
        };
        Record::closed(issued(number), outcome)
    }

    /// The same, but a target was chosen for it.
    pub(crate) fn decided(number: u64) -> Record {
        let issued = issued(number);
        let moment = issued.issued_at;
        let target = Arc::new(Target::new(0, "vllm-0", "10.0.3.1:8000"));
        let readings = [Reading::MISSING; Quantity::COUNT];
        let candidate = Candidate {
            sample: Arc::new(Sample::new(target, 1, moment, Health::Healthy, readings, 10_000)),
            place: Some(0),
            in_flight: 0,
            requests_per_second: 0.0,
            tokens_per_second: 0.0,
            score: Some(0.0),
            score_parts: [0.0; 3],
        };
        let decision = Decision {
            policy: Policy::LeastRequest,
            reason: Reason::OnlyCandidate,
            forced: false,
            fallback: None,
            decided_offset_ns: 41_200,
            choose_ns: 1_900,
            decided: moment,
            view_published: moment,
            eligible: 1,
            excluded: Excluded::default(),
            candidates: [candidate].into_iter().collect(),
            inputs: Inputs::default(),
        };
        let outcome = finished(number).outcome().cloned().unwrap();
        let outcome = Outcome { ending: Ending::Completed, status: Some(200), error: None, ..outcome };
        Record::closed(Issued { decision: Some(decision), ..issued }, outcome)
    }

    fn issued(number: u64) -> Issued {
        let issued_at = Moment(1_795_435_995_000_000 + number * 1_000);
        let id = SnapshotId::new(issued_at.unix_ms(), InstanceTag(7), number);
        let run = Run {
            id: RunId(1),
            instance: "gw-1".into(),
            tag: InstanceTag(7),
            version: "0.1.0".into(),
            config: "c0ffee12".into(),
            config_text: "".into(),
            started: Moment(1_795_435_990_000_000),
        };
        let request = Request { method: "POST".into(), path: "/v1/none".into(), ..Request::default() };
        Issued { id, issued_at, run: Arc::new(run), trace: TraceContext::root(id), request, decision: None }
    }

    #[test]
    fn there_is_one_finish() {
        let record = finished(1);
        let first = record.outcome().cloned();
        assert!(!record.finish(Outcome { ending: Ending::Internal, ..first.clone().unwrap() }));
        assert_eq!(record.outcome().cloned(), first);
    }
}

//! How a request ended, whose fault it was, and what was measured on the way.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::decision::{Excluded, Fallback, Reason};
use super::load_report::BackendReport;
use super::sample::Target;

/// What ended a request. Every request has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The target's answer was passed on whole, whatever its status.
    Completed,
    /// The client went away first.
    ClientDisconnected,
    /// The target's connection broke, or no target could be connected to.
    UpstreamReset,
    /// The target did not answer, or fell silent, for longer than the configuration allows.
    UpstreamTimeout,
    /// No target was eligible.
    NoTarget,
    /// The request itself was refused: unknown path, body too large or too slow.
    Rejected,
    /// The gateway was at its limit of requests in flight.
    Overloaded,
    /// The gateway was stopped before the answer was complete.
    Shutdown,
    /// A fault of the gateway's own.
    Internal,
}

/// Who caused a bad end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Whoever sent the request.
    Client,
    /// The pod.
    Target,
    /// snapgate, or the lack of any pod to go to.
    Gateway,
}

impl Ending {
    /// All there are: the rows of the one table that maps ending to fault and status.
    pub const ALL: [Self; 9] = [
        Self::Completed,
        Self::ClientDisconnected,
        Self::UpstreamReset,
        Self::UpstreamTimeout,
        Self::NoTarget,
        Self::Rejected,
        Self::Overloaded,
        Self::Shutdown,
        Self::Internal,
    ];

    /// Its name in the document, in metrics and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientDisconnected => "client_disconnected",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::NoTarget => "no_target",
            Self::Rejected => "rejected",
            Self::Overloaded => "overloaded",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ending| ending.name() == name)
    }

    /// Whose fault it was. A completed answer is judged by the status the target gave it.
    pub const fn fault(self, status: Option<u16>) -> Option<Fault> {
        match self {
            Self::Completed => match status {
                Some(400..=499) => Some(Fault::Client),
                Some(500..=599) => Some(Fault::Target),
                _ => None,
            },
            Self::ClientDisconnected | Self::Rejected => Some(Fault::Client),
            Self::UpstreamReset | Self::UpstreamTimeout => Some(Fault::Target),
            Self::NoTarget | Self::Overloaded | Self::Shutdown | Self::Internal => Some(Fault::Gateway),
        }
    }

    /// The status of a local answer that reports this ending; a `Rejected` request's refusal names its own 4xx.
    ///
    /// 499 stands in the record of a client that left before the head. Nobody is there to read it, except one that closed
    /// only its sending side, in the middle of its body.
    pub const fn status(self) -> u16 {
        match self {
            Self::Completed => 200,
            Self::ClientDisconnected => 499,
            Self::Rejected => 400,
            Self::UpstreamReset => 502,
            Self::UpstreamTimeout => 504,
            Self::NoTarget | Self::Overloaded | Self::Shutdown => 503,
            Self::Internal => 500,
        }
    }
}

impl Fault {
    /// Its name in the document and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Target => "target",
            Self::Gateway => "gateway",
        }
    }
}

/// One try to get an answer from one target.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Whom.
    pub target: Arc<Target>,
    /// Microseconds from accept.
    pub started_offset_us: u64,
    /// How long connecting took, in microseconds; 0 when a pooled connection served.
    pub connect_us: Option<u64>,
    /// Microseconds from accept to the head of the target's answer.
    pub first_byte_offset_us: Option<u64>,
    /// The status the target gave.
    pub status: Option<u16>,
    /// What went wrong, for operators.
    pub error: Option<Box<str>>,
    /// Why it was this target, after others had failed; `None` for the first attempt, of which the decision tells, and in
    /// records of versions that did not record it.
    pub retry: Option<Box<Retry>>,
}

/// The choice of another target after an attempt had failed, by the policy and the hashes of the request's decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Why it won among those that had not been tried.
    pub reason: Reason,
    /// Why `least_request` stood in for the policy; `None` if it did not.
    pub fallback: Option<Fallback>,
    /// How old the view was that it was made from, in milliseconds.
    pub view_age_ms: u64,
    /// How many targets could have been chosen, with those that had been tried.
    pub eligible: u32,
    /// How many could not, and why.
    pub excluded: Excluded,
    /// How many were looked at; none of them had been tried.
    pub considered: u32,
    /// What the policy made of the chosen one; `None` if it could not be scored.
    pub score: Option<f64>,
    /// Random bits: they draw candidates from a large fleet, break ties, and are the turn of a round robin.
    pub draw: u64,
}

/// Moments of a request, as offsets from accept. `None` means that it did not come to that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Head of the answer.
    pub first_byte_offset_us: Option<u64>,
    /// First SSE event with data.
    pub first_event_offset_us: Option<u64>,
    /// First event with text, reasoning or a tool call; for an answer in one piece, its first body byte.
    pub first_content_offset_us: Option<u64>,
    /// The end, whatever it was.
    pub end_offset_us: u64,
    /// Median time between content events.
    pub inter_token_p50_us: Option<u64>,
    /// 99th percentile of it.
    pub inter_token_p99_us: Option<u64>,
    /// The longest.
    pub inter_token_max_us: Option<u64>,
    /// How long the request waited in the engine's queue, if the engine said.
    pub engine_queue_us: Option<u64>,
}

/// What the target said of its own work, as far as the gateway could read it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// `stop`, `length`, …: the last one that was given.
    pub finish_reason: Option<Box<str>>,
    /// The answer's own `id`.
    pub response_id: Option<Box<str>>,
    /// The answer's `model`.
    pub response_model: Option<Box<str>>,
    /// Tokens of the prompt, from `usage`.
    pub prompt_tokens: Option<u64>,
    /// Tokens generated, from `usage`, else the number of content events.
    pub completion_tokens: Option<u64>,
    /// Prompt tokens found in the prefix cache, from `usage`.
    pub cached_tokens: Option<u64>,
    /// `completion_tokens` was counted here, because the target gave no usage.
    pub tokens_estimated: bool,
    /// Its load, if it reported that.
    pub load_report: Option<Box<BackendReport>>,
}

/// The finish of a request: written once, never edited.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What ended it.
    pub ending: Ending,
    /// The status the client was sent, or would have been.
    pub status: Option<u16>,
    /// What went wrong, in words for operators.
    pub error: Option<Box<str>>,
    /// Every try, in order; the last one's answer was delivered.
    pub attempts: Vec<Attempt>,
    /// Body bytes passed to the client.
    pub response_bytes: u64,
    /// SSE events with data passed to the client, `[DONE]` not counted.
    pub events: u64,
    /// What the target said.
    pub answer: Answer,
    /// When what happened.
    pub timings: Timings,
    /// Whether its spans are for export: it was sampled, or a rule keeps it. `None` if none are exported.
    pub trace_exported: Option<bool>,
}

impl Outcome {
    /// Whether it ended badly by a fault of the target or of the gateway.
    pub fn is_failure(&self) -> bool {
        matches!(self.fault(), Some(Fault::Target | Fault::Gateway))
    }

    /// Whose fault a bad end was.
    pub fn fault(&self) -> Option<Fault> {
        self.ending.fault(self.status)
    }

    /// The target whose answer was delivered, or that was tried last.
    pub fn target(&self) -> Option<&Arc<Target>> {
        self.attempts.last().map(|attempt| &attempt.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_come_back() {
        for ending in Ending::ALL {
            assert_eq!(Ending::from_name(ending.name()), Some(ending));
        }
    }

    #[test]
    fn an_answer_is_blamed_by_its_status() {
        assert_eq!(Ending::Completed.fault(Some(200)), None);
        assert_eq!(Ending::Completed.fault(Some(404)), Some(Fault::Client));
        assert_eq!(Ending::Completed.fault(Some(500)), Some(Fault::Target));
        assert_eq!(
            Ending::UpstreamReset.fault(Some(200)),
            Some(Fault::Target),
            "a stream that broke after a good head"
        );
    }
}

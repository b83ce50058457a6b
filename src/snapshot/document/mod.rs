//! The one JSON form of a snapshot, for lookup, log, export and whatever comes later. Its JSON Schema is in `otel/`.
//!
//! Every key is always there; `null` means unknown. Units are the last word of a name, ratios are 0..1, times are UTC,
//! every moment is an offset from accept. It is built from a [`Record`] alone, so that a snapshot reads the same whether
//! it comes from the ledger, the store or the log.

mod build;
mod json;
mod parts;
mod score_parts;
mod state;
mod text;
mod write;

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize, Serializer};

use self::json::{Json, raw};
use super::record::Record;

pub use parts::{
    AttemptPart, BackendReportPart, CandidatePart, ChoicePart, DecisionPart, ExcludedPart, GatewayPart, InputsPart,
    KubernetesPart, OutcomePart, RequestPart, TimingsPart, TracePart,
};
pub use score_parts::ScoreParts;
pub use state::{ChosenState, PerGpu, State, StateJson, StateReading};
pub use text::Text;

/// The version of the form. A change that a reader could notice, other than a new key, gives it a new number.
pub const SCHEMA: &str = "snapgate.snapshot/1";

/// Whether a request is still on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has not ended: outcome and timings are what is known so far.
    InFlight,
    /// It has ended: nothing will change.
    Complete,
}

impl Phase {
    /// Its name in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Complete => "complete",
        }
    }
}

/// The whole document.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the keys are documented in otel/snapshot.schema.json, for users and for tests")]
pub struct Document<'a> {
    #[serde(borrow)]
    pub schema: Text<'a>,
    pub id: Text<'a>,
    pub phase: Phase,
    pub issued_at: Text<'a>,
    pub issued_at_unix_us: u64,
    pub gateway: GatewayPart<'a>,
    pub trace: TracePart<'a>,
    pub request: RequestPart<'a>,
    pub decision: DecisionPart<'a>,
    pub attempts: Vec<AttemptPart<'a>>,
    pub outcome: OutcomePart<'a>,
    pub timings: TimingsPart,
    pub backend_report: BackendReportPart<'a>,
}

impl<'a> Document<'a> {
    /// The document of a record as it stands now.
    pub fn of(record: &'a Record) -> Self {
        Self::with_candidates(record, None)
    }

    /// The same with at most `max` candidates, the best ones, of which the first is the chosen one. `decision.eligible` and
    /// `decision.excluded` say as before how many targets there were. `None` is all.
    pub fn with_candidates(record: &'a Record, max: Option<NonZeroUsize>) -> Self {
        let issued = &record.issued;
        // Read once: the request may end while the document is put together.
        let outcome = record.outcome();
        Self {
            schema: SCHEMA.into(),
            id: Text::hex(issued.id.as_u128(), 32),
            phase: if outcome.is_some() { Phase::Complete } else { Phase::InFlight },
            issued_at: Text::time(issued.issued_at),
            issued_at_unix_us: issued.issued_at.0,
            gateway: GatewayPart::of(&issued.run),
            trace: TracePart::of(issued, outcome),
            request: RequestPart::of(issued),
            decision: issued
                .decision
                .as_ref()
                .map_or_else(DecisionPart::none, |decision| DecisionPart::of(decision, max)),
            attempts: outcome.map_or_else(Vec::new, |outcome| AttemptPart::all_of(outcome, issued.decision.as_ref())),
            outcome: outcome.map_or_else(|| OutcomePart::in_flight(record), OutcomePart::of),
            timings: TimingsPart::of(record, outcome),
            backend_report: outcome.map_or_else(BackendReportPart::default, BackendReportPart::of),
        }
    }

    /// Appends the document as one line of JSON, without the line's end.
    pub fn write(&self, line: &mut Vec<u8>) {
        self.json(line);
    }
}

/// For answers that contain documents. They are JSON: no other format can take it.
impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        raw(|out| self.json(out)).serialize(serializer)
    }
}

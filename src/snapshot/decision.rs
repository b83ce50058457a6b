//! What was chosen, from what, by which rule: enough to make the same choice again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::moment::Moment;
use super::sample::{Sample, Target};

/// The rule that scores the candidates; the lowest score wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Each eligible target in turn.
    RoundRobin,
    /// The target with the fewest requests of this gateway in flight.
    LeastRequest,
}

impl Policy {
    /// All there are, for messages and help.
    pub const ALL: [Self; 2] = [Self::RoundRobin, Self::LeastRequest];

    /// Its name in configuration and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastRequest => "least_request",
        }
    }

    /// What the score is made of, by name.
    pub const fn score_part(self) -> &'static str {
        match self {
            Self::RoundRobin => "turn",
            Self::LeastRequest => "in_flight",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// Why the chosen target won.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No other target was eligible.
    OnlyCandidate,
    /// It was its turn.
    NextInTurn,
    /// No other candidate's score was as low.
    LowestScore,
    /// Several had the lowest score; the recorded draw decided.
    TieBrokenByDraw,
}

impl Reason {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::OnlyCandidate, Self::NextInTurn, Self::LowestScore, Self::TieBrokenByDraw];

    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OnlyCandidate => "only_candidate",
            Self::NextInTurn => "next_in_turn",
            Self::LowestScore => "lowest_score",
            Self::TieBrokenByDraw => "tie_broken_by_draw",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// How many targets were no candidates, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// The active probe says they are down.
    pub unhealthy: u32,
    /// They do not serve the model.
    pub model: u32,
    /// The policy needs a fresh value that they do not have.
    pub no_fresh_state: u32,
}

/// One target that was scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its state as published.
    pub sample: Arc<Sample>,
    /// Requests of this gateway at the target, at the decision.
    pub in_flight: u32,
    /// Requests per second this gateway sent it over the window.
    pub requests_per_second: f64,
    /// Tokens per second this gateway saw from it over the window.
    pub tokens_per_second: f64,
    /// By the policy; the lowest wins.
    pub score: f64,
}

/// What a choice depended on besides the candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Keyed hash of the prompt's leading part, if the policy uses one.
    pub prefix_hash: Option<u64>,
    /// Keyed hash of the session, if the policy uses one.
    pub session_hash: Option<u64>,
    /// The turn, for round robin.
    pub ticket: Option<u64>,
    /// Random bits: they draw candidates from a large fleet and break ties.
    pub draw: u64,
}

/// One choice of one target.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The rule.
    pub policy: Policy,
    /// Why the first candidate won.
    pub reason: Reason,
    /// The client named the target.
    pub forced: bool,
    /// Nanoseconds from accept to the decision.
    pub decided_offset_ns: u64,
    /// How long choosing took, in nanoseconds.
    pub choose_ns: u64,
    /// When it was made.
    pub decided: Moment,
    /// When the view it was made from was published.
    pub view_published: Moment,
    /// How many targets could have been chosen.
    pub eligible: u32,
    /// How many could not, and why.
    pub excluded: Excluded,
    /// Those that were scored, best first: the first is the chosen one, and failover goes down the list.
    pub candidates: Box<[Candidate]>,
    /// What else the choice depended on.
    pub inputs: Inputs,
}

impl Decision {
    /// The winner.
    pub fn chosen(&self) -> &Candidate {
        &self.candidates[0]
    }

    /// The winner's target.
    pub fn target(&self) -> &Arc<Target> {
        &self.chosen().sample.target
    }
}

//! What was chosen, from what, by which rule: enough to make the same choice again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::candidates::{Candidate, Candidates};
use super::moment::Moment;
use super::sample::{Quantity, Sample, Target};

/// The most parts a score has.
pub const SCORE_PARTS_MAX: usize = 3;

/// The rule that scores the candidates; the lowest score wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Each eligible target in turn.
    RoundRobin,
    /// The target with the fewest requests of this gateway in flight.
    LeastRequest,
    /// Any target, each as likely as any other.
    Random,
    /// The target with the shortest queue in its engine.
    LeastQueue,
    /// The target with the most room in its KV cache.
    LeastKvCache,
    /// Of two drawn targets the one with fewer requests of this gateway in flight.
    PowerOfTwo,
    /// The target that prompts with the same beginning go to, unless it has far more to do than others.
    PrefixAffinity,
    /// The target that the session's other requests go to.
    SessionAffinity,
}

impl Policy {
    /// All there are, for messages and help.
    pub const ALL: [Self; 8] = [
        Self::RoundRobin,
        Self::LeastRequest,
        Self::Random,
        Self::LeastQueue,
        Self::LeastKvCache,
        Self::PowerOfTwo,
        Self::PrefixAffinity,
        Self::SessionAffinity,
    ];

    /// All their names, in the order of [`Policy::ALL`].
    pub const NAMES: [&'static str; Self::ALL.len()] = {
        let mut names = [""; Self::ALL.len()];
        let mut place = 0;
        while place < names.len() {
            names[place] = Self::ALL[place].name();
            place += 1;
        }
        names
    };

    /// Its name in configuration and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastRequest => "least_request",
            Self::Random => "random",
            Self::LeastQueue => "least_queue",
            Self::LeastKvCache => "least_kv_cache",
            Self::PowerOfTwo => "power_of_two",
            Self::PrefixAffinity => "prefix_affinity",
            Self::SessionAffinity => "session_affinity",
        }
    }

    /// What the score is the sum of, by name; at most [`SCORE_PARTS_MAX`].
    pub const fn score_parts(self) -> &'static [&'static str] {
        match self {
            Self::RoundRobin => &["turn"],
            Self::LeastRequest | Self::PowerOfTwo => &["in_flight"],
            Self::Random => &["lot"],
            Self::LeastQueue => &["waiting", "running", "in_flight_change"],
            Self::LeastKvCache => &["kv_cache_usage", "waiting", "in_flight_change"],
            Self::PrefixAffinity => &["distance", "overload"],
            Self::SessionAffinity => &["distance"],
        }
    }

    /// What has to be known and fresh of a target, or it is excluded.
    pub const fn needs(self) -> &'static [Quantity] {
        match self {
            Self::LeastQueue => &[Quantity::Waiting, Quantity::Running],
            Self::LeastKvCache => &[Quantity::KvCacheUsage, Quantity::Waiting, Quantity::Running],
            _ => &[],
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
    /// Its lot was the lowest.
    Drawn,
    /// It is the one that the prompt's beginning or the session belongs to.
    Affinity,
    /// The one that the prompt's beginning belongs to has too much in flight; this is the next one that has not.
    AffinityOverflow,
    /// The request named it.
    Forced,
}

impl Reason {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::OnlyCandidate,
        Self::NextInTurn,
        Self::LowestScore,
        Self::TieBrokenByDraw,
        Self::Drawn,
        Self::Affinity,
        Self::AffinityOverflow,
        Self::Forced,
    ];

    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OnlyCandidate => "only_candidate",
            Self::NextInTurn => "next_in_turn",
            Self::LowestScore => "lowest_score",
            Self::TieBrokenByDraw => "tie_broken_by_draw",
            Self::Drawn => "drawn",
            Self::Affinity => "affinity",
            Self::AffinityOverflow => "affinity_overflow",
            Self::Forced => "forced",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// Why `least_request` had to stand in for the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// No candidate had the fresh state that the policy needs.
    NoFreshState,
    /// The request has no prompt that could be read.
    NoPrompt,
    /// The request names no session.
    NoSession,
}

impl Fallback {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::NoFreshState, Self::NoPrompt, Self::NoSession];

    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoFreshState => "no_fresh_state",
            Self::NoPrompt => "no_prompt",
            Self::NoSession => "no_session",
        }
    }
}

/// How many targets could not be chosen, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// The active probe says they are down.
    pub unhealthy: u32,
    /// They have failed request after request, and are passed over for a while.
    pub ejected: u32,
    /// They do not serve the model.
    pub model: u32,
    /// The policy needs a fresh value that they do not have; of those that were looked at.
    pub no_fresh_state: u32,
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
    /// Why `least_request` stood in for the policy; `None` if it did not.
    pub fallback: Option<Fallback>,
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
    /// Those that were looked at, best first, and last those that could not be scored. The first is the chosen one.
    pub candidates: Candidates,
    /// What else the choice depended on.
    pub inputs: Inputs,
}

impl Decision {
    /// The winner.
    pub fn chosen(&self) -> Candidate<&Arc<Sample>> {
        self.candidates.first().expect("no decision is made or read without a candidate")
    }

    /// The policy whose scores the candidates have.
    pub fn scored_by(&self) -> Policy {
        if self.fallback.is_some() { Policy::LeastRequest } else { self.policy }
    }

    /// The winner's target.
    pub fn target(&self) -> &Arc<Target> {
        &self.chosen().sample.target
    }
}

//! Scores and ranks what was looked at: a pure function of what a record holds, so that a replay gives the same answer.
//!
//! Whatever is changed here makes replays of older records disagree: it then belongs into the changelog.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::WIDTH_MAX;
use crate::snapshot::decision::SCORE_PARTS_MAX;
use crate::snapshot::sample::mix;
use crate::snapshot::{Candidate, Fallback, Inputs, Policy, Quantity, Reason, Sample};

/// A waiting request counts as so many running ones: that it waits says that the engine is full, whatever its size.
const WAITING_WEIGHT: f64 = 4.0;

/// What a request is taken to need of the KV cache at least, as a share: short ones round to nothing.
const KV_SHARE_MIN: f64 = 0.005;

/// With `prefix_affinity` a target may have so many times the mean in flight before others help out …
const AFFINITY_LOAD_MAX: f64 = 1.25;

/// … but always so many requests: an engine runs a few side by side without any of them waiting.
const AFFINITY_IN_FLIGHT_MIN: f64 = 4.0;

/// One target that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Its state.
    pub sample: &'a Sample,
    /// Its place among the eligible.
    pub place: u32,
    /// Requests of this gateway at it.
    pub in_flight: u32,
    /// Its [`Target::identity`](crate::snapshot::Target::identity).
    pub identity: u64,
}

impl<'a> Look<'a> {
    /// As a record has it; `None` if the record is too old to know the place.
    pub fn of(candidate: Candidate<&'a Arc<Sample>>) -> Option<Self> {
        let Candidate { sample, place, in_flight, .. } = candidate;
        Some(Self { sample, place: place?, in_flight, identity: sample.target.identity() })
    }
}

/// One target's rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Which of the looks.
    pub look: usize,
    /// The sum of the parts; `None` if the target lacks a fresh value.
    pub score: Option<f64>,
    /// What the score is made of.
    pub score_parts: [f64; SCORE_PARTS_MAX],
}

/// The looks from best to worst, and why the first is the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// Best first, last those that could not be scored. As many as there are looks.
    pub ranked: Vec<Ranked>,
    /// Why the first won.
    pub reason: Reason,
    /// Why `least_request` stood in.
    pub fallback: Option<Fallback>,
    /// How many could not be scored.
    pub no_fresh_state: u32,
}

/// What decides who comes first: in its upper half the score, in its lower half, between equal scores, the draw.
type Key = u128;

/// Ranks; `None` if there is nothing to rank. `eligible` is how many targets could have been looked at, `looks` which were:
/// [`WIDTH_MAX`] at most.
pub fn rank(policy: Policy, eligible: u32, inputs: &Inputs, looks: &[Look<'_>]) -> Option<Ranking> {
    let mut fallback = match policy {
        Policy::PrefixAffinity if inputs.prefix_hash.is_none() => Some(Fallback::NoPrompt),
        Policy::SessionAffinity if inputs.session_hash.is_none() => Some(Fallback::NoSession),
        _ => None,
    };
    let turn = inputs.ticket.unwrap_or(0) % u64::from(eligible.max(1));
    let kv_share = if policy == Policy::LeastKvCache { usual_kv_share(looks) } else { 0.0 };
    let rule = Rule { policy, eligible: eligible.into(), turn, inputs, room: room(looks), kv_share };
    let in_its_place = Rule { policy: Policy::LeastRequest, ..rule };
    let mut ranked = if fallback.is_none() { rule.apply(looks) } else { in_its_place.apply(looks) };
    if !ranked.is_empty() && ranked.iter().all(|ranked| ranked.score.is_none()) {
        fallback = Some(Fallback::NoFreshState);
        ranked = in_its_place.apply(looks);
    }
    let no_fresh_state = ranked.iter().filter(|ranked| ranked.score.is_none()).count() as u32;
    let scored_by = if fallback.is_some() { Policy::LeastRequest } else { policy };
    let reason = reason(scored_by, &ranked)?;
    Some(Ranking { ranked, reason, fallback, no_fresh_state })
}

fn reason(policy: Policy, ranked: &[Ranked]) -> Option<Reason> {
    let (first, second) = (ranked.first()?, ranked.get(1).filter(|second| second.score.is_some()));
    let Some(second) = second else { return Some(Reason::OnlyCandidate) };
    Some(match policy {
        Policy::RoundRobin => Reason::NextInTurn,
        Policy::Random => Reason::Drawn,
        Policy::PrefixAffinity | Policy::SessionAffinity => {
            let [own, ..] = first.score_parts;
            let nearest = ranked.iter().all(|other| own <= other.score_parts[0]);
            if nearest { Reason::Affinity } else { Reason::AffinityOverflow }
        }
        _ if first.score == second.score => Reason::TieBrokenByDraw,
        _ => Reason::LowestScore,
    })
}

/// How much one target may have in flight before its prefixes go elsewhere. At least one target is always below it.
fn room(looks: &[Look<'_>]) -> f64 {
    let in_flight: f64 = looks.iter().map(|look| f64::from(look.in_flight)).sum();
    (AFFINITY_LOAD_MAX * (in_flight + 1.0) / looks.len() as f64).ceil().max(AFFINITY_IN_FLIGHT_MIN)
}

/// Everything a score depends on besides the target.
#[derive(Clone, Copy)]
struct Rule<'a> {
    policy: Policy,
    eligible: u64,
    /// Whose turn it is, as a place.
    turn: u64,
    inputs: &'a Inputs,
    room: f64,
    /// What a request needs of the KV cache where nothing runs that would show it.
    kv_share: f64,
}

impl Rule<'_> {
    /// Best first.
    fn apply(&self, looks: &[Look<'_>]) -> Vec<Ranked> {
        let (mut parts, mut keys) = (ArrayVec::<_, WIDTH_MAX>::new(), ArrayVec::<Key, WIDTH_MAX>::new());
        for look in looks {
            let scored = self.score(look);
            let score = scored.map_or(f64::INFINITY, |parts| parts.iter().sum());
            keys.push(u128::from(in_order(score)) << 64 | u128::from(mix(self.inputs.draw ^ look.identity)));
            parts.push(scored);
        }
        let ranked = |look: usize| {
            let score_parts: Option<[f64; SCORE_PARTS_MAX]> = parts[look];
            Ranked {
                look,
                score: score_parts.map(|parts| parts.iter().sum()),
                score_parts: score_parts.unwrap_or_default(),
            }
        };
        ascending(&keys).into_iter().map(|look| ranked(look.into())).collect()
    }

    fn score(&self, look: &Look<'_>) -> Option<[f64; SCORE_PARTS_MAX]> {
        let in_flight = f64::from(look.in_flight);
        let inputs = self.inputs;
        Some(match self.policy {
            Policy::RoundRobin => {
                let place = u64::from(look.place);
                let before = if place < self.turn { self.eligible } else { 0 };
                [(place + before - self.turn) as f64, 0.0, 0.0]
            }
            Policy::LeastRequest | Policy::PowerOfTwo => [in_flight, 0.0, 0.0],
            Policy::Random => [share(mix(inputs.draw ^ look.identity)), 0.0, 0.0],
            Policy::LeastQueue => queue(look)?,
            Policy::LeastKvCache => kv_cache(look, self.kv_share)?,
            Policy::PrefixAffinity => {
                let overload = if in_flight < self.room { 0.0 } else { 1.0 };
                [distance(inputs.prefix_hash?, look), overload, 0.0]
            }
            Policy::SessionAffinity => [distance(inputs.session_hash?, look), 0.0, 0.0],
        })
    }
}

/// What the engine had to do when it was asked, and what this gateway has sent it and seen end since. Without the last
/// every request until the next scrape would go to the same target.
fn queue(look: &Look<'_>) -> Option<[f64; SCORE_PARTS_MAX]> {
    let (waiting, running) = (fresh(look, Quantity::Waiting)?, fresh(look, Quantity::Running)?);
    Some([waiting * WAITING_WEIGHT, running, change(look)?])
}

/// The cache in use, and what those will take of it that wait for it or came since, each as much as one that runs.
fn kv_cache(look: &Look<'_>, usual_share: f64) -> Option<[f64; SCORE_PARTS_MAX]> {
    let (usage, waiting) = (fresh(look, Quantity::KvCacheUsage)?, fresh(look, Quantity::Waiting)?);
    // An engine that runs nothing tells nothing of it. Were it taken for next to nothing, one that has just come would get
    // everything until its next scrape.
    let share = kv_share(look).unwrap_or_else(|| usual_share.max(usage)).max(KV_SHARE_MIN);
    Some([usage, waiting * share, change(look)? * share])
}

/// What one running request has of the KV cache; `None` if nothing runs, or nothing fresh is known.
fn kv_share(look: &Look<'_>) -> Option<f64> {
    let (usage, running) = (fresh(look, Quantity::KvCacheUsage)?, fresh(look, Quantity::Running)?);
    (running >= 1.0).then(|| usage / running)
}

/// The median of what running requests have of it, so that neither one long prompt nor the order of the looks has a say.
fn usual_kv_share(looks: &[Look<'_>]) -> f64 {
    let mut shares: ArrayVec<f64, WIDTH_MAX> = looks.iter().filter_map(kv_share).collect();
    shares.sort_unstable_by(f64::total_cmp);
    shares.get(shares.len() / 2).copied().unwrap_or_default()
}

fn fresh(look: &Look<'_>, quantity: Quantity) -> Option<f64> {
    look.sample.reading(quantity).fresh().filter(|value| value.is_finite())
}

/// How many more requests of this gateway are at the target than when its page was asked for.
fn change(look: &Look<'_>) -> Option<f64> {
    Some(f64::from(look.in_flight) - f64::from(look.sample.in_flight_at_scrape?))
}

/// How far a target is from a hash, 0..1, in an order that each hash has for itself (rendezvous hashing): what the nearest
/// one leaves behind when it goes is spread over all others.
fn distance(hash: u64, look: &Look<'_>) -> f64 {
    share(mix(hash ^ look.identity))
}

/// 64 even bits as a number from 0 up to 1.
fn share(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A number whose order is that of the floats ([`f64::total_cmp`]).
fn in_order(score: f64) -> u64 {
    let bits = score.to_bits();
    if score.is_sign_negative() { !bits } else { bits | 1 << 63 }
}

/// The numbers of the keys from the lowest key to the highest, equal ones as they stand. A place is counted: for so few keys
/// that is several times as fast as a sort, whose every step is a guess about random bits.
fn ascending(keys: &[Key]) -> ArrayVec<u8, WIDTH_MAX> {
    let mut lower = [0u8; WIDTH_MAX];
    for (index, key) in keys.iter().enumerate() {
        for (other, before) in keys[..index].iter().enumerate() {
            let is_before = u8::from(before <= key);
            lower[index] += is_before;
            lower[other] += 1 - is_before;
        }
    }
    let mut order = [0u8; WIDTH_MAX];
    for (index, place) in (0u8..).zip(&lower[..keys.len()]) {
        order[usize::from(*place)] = index;
    }
    order.into_iter().take(keys.len()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counting_sorts(keys in prop::collection::vec(prop_oneof![0u128..5, any::<u128>()], 0..=WIDTH_MAX)) {
            let mut sorted: Vec<u8> = (0..keys.len() as u8).collect();
            sorted.sort_by_key(|index| keys[usize::from(*index)]);
            prop_assert_eq!(&*ascending(&keys), &*sorted);
        }

        #[test]
        fn scores_keep_their_order_as_numbers(a: f64, b: f64) {
            prop_assert_eq!(in_order(a).cmp(&in_order(b)), a.total_cmp(&b));
        }
    }
}

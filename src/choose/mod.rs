//! The choice: which targets are looked at, and which of them is the best one. No IO, no clock, no random source: all that
//! it depends on is in the record of the decision.
//!
//! Its cost does not grow with the fleet: at most `width` targets are looked at, whatever the number that is eligible.
//!
//! [`places`] → [`rank()`]: the data path does both ([`target`]); a replay does the second again, over what was looked at, and
//! holds the first against it.

mod rank;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrayvec::ArrayVec;
pub use rank::{Look, Ranked, Ranking, rank};

use crate::snapshot::decision::SCORE_PARTS_MAX;
use crate::snapshot::sample::mix;
use crate::snapshot::{
    Attempt, Candidate, Candidates, Excluded, Fallback, FleetView, Inputs, Live, Member, Policy, Pool, Reason,
};

/// The largest `width` that may be configured.
pub const WIDTH_MAX: usize = 64;

/// So many neighbours are drawn together at most: they are kept together, too, so a record keeps few blocks of them.
const RUN: usize = crate::snapshot::members::BLOCK;

/// Places among the eligible.
pub type Places = ArrayVec<u32, WIDTH_MAX>;

/// The candidates, best first, and why the first one won.
#[derive(Debug)]
pub struct Choice {
    /// Never empty.
    pub candidates: Candidates,
    /// How many could not be chosen, and why.
    pub excluded: Excluded,
    /// Why the first won.
    pub reason: Reason,
    /// Why `least_request` stood in for the policy.
    pub fallback: Option<Fallback>,
    /// The winner's counters.
    pub live: Arc<Live>,
}

/// Chooses among the pool's eligible targets that have not been `tried`, of which it looks at `width` at most; `None` if
/// there are none. What has been tried is passed over among so many more places, so that it takes nobody's.
pub fn target(
    view: &FleetView,
    pool: &Pool,
    policy: Policy,
    width: usize,
    inputs: &Inputs,
    tried: &[Attempt],
) -> Option<Choice> {
    let member_at = |place: u32| pool.eligible[place as usize] as usize;
    let (eligible, width) = (pool.eligible.len(), looks_max(policy, width));
    let count = eligible.min(WIDTH_MAX).min(width + tried.len());
    let look = |place: u32| {
        let index = member_at(place);
        let Member { sample, live } = &view.members[index];
        Look { sample, place, in_flight: live.in_flight(), identity: view.pools.identities[index] }
    };
    let is_untried = |look: &Look<'_>| tried.iter().all(|attempt| attempt.target.slot != look.sample.target.slot);
    let mut looks = ArrayVec::<Look<'_>, WIDTH_MAX>::new();
    match places(policy, eligible, count, inputs) {
        Ok(places) => looks.extend(places.into_iter().map(look).filter(is_untried).take(width)),
        Err(hash) => looks.extend(pool.walk(hash).take(count).map(look).filter(is_untried).take(width)),
    }
    let Ranking { ranked, reason, fallback, no_fresh_state } = rank(policy, eligible as u32, inputs, &looks)?;
    let candidate = |ranked: &Ranked| {
        let Look { place, in_flight, .. } = looks[ranked.look];
        let sample = member_at(place);
        let (requests_per_second, tokens_per_second) = view.members[sample].live.rates();
        Candidate {
            sample,
            place: Some(place),
            in_flight,
            requests_per_second,
            tokens_per_second,
            score: ranked.score,
            score_parts: ranked.score_parts,
        }
    };
    let live = Arc::clone(&view.members[member_at(looks[ranked[0].look].place)].live);
    let excluded = Excluded { no_fresh_state, ..pool.excluded };
    let candidates = Candidates::seen(&view.members, ranked.iter().map(candidate));
    Some(Choice { candidates, excluded, reason, fallback, live })
}

/// Forces a member of the view, whatever its health and its models.
pub fn forced(view: &FleetView, pool: &Pool, member: usize) -> Choice {
    let live = &view.members[member].live;
    let (requests_per_second, tokens_per_second) = live.rates();
    let candidate = Candidate {
        sample: member,
        place: None,
        in_flight: live.in_flight(),
        requests_per_second,
        tokens_per_second,
        score: None,
        score_parts: [0.0; SCORE_PARTS_MAX],
    };
    Choice {
        candidates: Candidates::seen(&view.members, std::iter::once(candidate)),
        excluded: pool.excluded,
        reason: Reason::Forced,
        fallback: None,
        live: Arc::clone(live),
    }
}

/// How many targets a policy looks at, at most.
pub fn looks_max(policy: Policy, width: usize) -> usize {
    if policy == Policy::PowerOfTwo { width.min(2) } else { width.min(WIDTH_MAX) }
}

/// Which `count` places among the eligible are looked at. `Err` has the hash from which to walk: where that leads in a large
/// fleet is known only there, so that the same hash meets the same targets.
pub fn places(policy: Policy, eligible: usize, count: usize, inputs: &Inputs) -> Result<Places, u64> {
    let near = match policy {
        Policy::PrefixAffinity => inputs.prefix_hash,
        Policy::SessionAffinity => inputs.session_hash,
        _ => None,
    };
    match (policy, near) {
        (_, Some(hash)) if count < eligible => Err(mix(hash)),
        (Policy::RoundRobin, _) => {
            let turn = (inputs.ticket.unwrap_or(0) % eligible.max(1) as u64) as usize;
            Ok((turn..turn + count).map(|place| around(place, eligible)).collect())
        }
        _ => Ok(drawn(inputs.draw, eligible, count)),
    }
}

/// `count` different numbers below `eligible`: all of them if there are no more, else as the draw has it, each as likely as
/// any other. They come in runs of up to eight neighbours, two runs at least. The same draw gives the same ones in a
/// replay, for ever.
pub fn drawn(draw: u64, eligible: usize, count: usize) -> Places {
    if count >= eligible {
        return (0..eligible as u32).collect();
    }
    let fits = |run: &usize| count.div_ceil(*run) * run <= eligible;
    let run = (1..=RUN.min(count.div_ceil(2))).rev().find(fits).unwrap_or(1);
    let runs = count.div_ceil(run);
    let mut numbers = (0..).map(|number: u64| mix(draw.wrapping_add(number)));
    let mut random = |bound: usize| below(numbers.next().unwrap_or_default(), bound) as usize;
    // On a circle, so that no place is at an end; on it, the runs are points among what they leave.
    let (turn, points) = (random(eligible), eligible - runs * (run - 1));
    let mut starts = ArrayVec::<usize, WIDTH_MAX>::new();
    while starts.len() < runs {
        // Drawn again until it is a new one: some hundred draws at the worst, when all but one are taken.
        let point = random(points);
        if !starts.contains(&point) {
            starts.push(point);
        }
    }
    starts.sort_unstable();
    let run_at = |(before, point): (usize, usize)| {
        let start = turn + point + before * (run - 1);
        (start..start + run).map(|place| around(place, eligible))
    };
    starts.into_iter().enumerate().flat_map(run_at).take(count).collect()
}

/// A place on a circle, at most one round further on.
fn around(place: usize, eligible: usize) -> u32 {
    (if place < eligible { place } else { place - eligible }) as u32
}

/// A number below `bound`, evenly from 64 random bits, without division.
fn below(random: u64, bound: usize) -> u32 {
    ((u128::from(random) * bound as u128) >> 64) as u32
}

//! The choice: a pure function of the view, the live counters, the request's facts and a recorded draw.
//!
//! Its cost does not grow with the fleet: at most `width` targets are looked at, whatever the number that is eligible.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::snapshot::{Candidate, FleetView, Live, Member, Policy, Reason};

/// The largest `width` that may be configured: a power of two, so that a place fits into a tie's last bits.
pub const WIDTH_MAX: usize = 64;

/// What a choice depends on besides the fleet. All of it is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The rule.
    pub policy: Policy,
    /// How many targets are scored at most.
    pub width: usize,
    /// Whose turn it is, for round robin.
    pub ticket: u64,
    /// Random bits: they draw the candidates of a large fleet and break ties.
    pub draw: u64,
}

/// The candidates, best first, and why the first one won.
#[derive(Debug)]
pub struct Choice {
    /// Never empty.
    pub candidates: Box<[Candidate]>,
    /// Why the first won.
    pub reason: Reason,
    /// The winner's counters.
    pub live: Arc<Live>,
}

/// One candidate while it is being ranked.
#[derive(Clone, Copy)]
struct Scored {
    score: f64,
    /// Its place when scores are equal; distinct among candidates, so that the order is total.
    tie: u32,
    member: u32,
    in_flight: u32,
}

impl Scored {
    const NONE: Self = Self { score: 0.0, tie: 0, member: 0, in_flight: 0 };

    fn order(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(self.tie.cmp(&other.tie))
    }
}

/// Chooses among the eligible targets; `None` if there are none.
pub fn target(view: &FleetView, facts: &Facts) -> Option<Choice> {
    let mut scored = [Scored::NONE; WIDTH_MAX];
    let count = view.eligible.len().min(facts.width).min(WIDTH_MAX);
    let scored = &mut scored[..count];
    match facts.policy {
        Policy::RoundRobin => in_turn(view, facts.ticket, scored),
        Policy::LeastRequest => least_request(view, facts.draw, scored),
    }
    scored.sort_unstable_by(Scored::order);
    let reason = match (facts.policy, &*scored) {
        (_, []) => return None,
        (_, [_]) => Reason::OnlyCandidate,
        (Policy::RoundRobin, _) => Reason::NextInTurn,
        (Policy::LeastRequest, [first, second, ..]) if first.score == second.score => Reason::TieBrokenByDraw,
        (Policy::LeastRequest, _) => Reason::LowestScore,
    };
    let live = Arc::clone(&view.members[scored[0].member as usize].live);
    Some(Choice { candidates: scored.iter().map(|scored| candidate(view, scored)).collect(), reason, live })
}

/// The eligible targets from the ticket's place on; the score is how far from their turn they are.
fn in_turn(view: &FleetView, ticket: u64, scored: &mut [Scored]) {
    for (turn, slot) in scored.iter_mut().enumerate() {
        let place = ticket.wrapping_add(turn as u64) % view.eligible.len() as u64;
        let member = view.eligible[place as usize];
        let in_flight = view.members[member as usize].live.in_flight();
        *slot = Scored { score: turn as f64, tie: turn as u32, member, in_flight };
    }
}

/// All eligible targets, or as many of them at random as fit; the score is the requests in flight.
fn least_request(view: &FleetView, draw: u64, scored: &mut [Scored]) {
    let (count, eligible) = (scored.len(), view.eligible.len());
    let mut random = draw;
    for index in 0..count {
        let member = if eligible == count {
            view.eligible[index]
        } else {
            // Drawn again until it is a new one: some hundred draws at the worst, when all but one are taken.
            loop {
                let member = view.eligible[below(next(&mut random), eligible)];
                if scored[..index].iter().all(|earlier| earlier.member != member) {
                    break member;
                }
            }
        };
        let in_flight = view.members[member as usize].live.in_flight();
        // Random, so that each of those with the lowest score is as likely as any other; distinct by its last six bits.
        let tie = (next(&mut random) as u32 & !(WIDTH_MAX as u32 - 1)) | index as u32;
        scored[index] = Scored { score: f64::from(in_flight), tie, member, in_flight };
    }
}

fn candidate(view: &FleetView, scored: &Scored) -> Candidate {
    let Member { sample, live } = &view.members[scored.member as usize];
    let (requests_per_second, tokens_per_second) = live.rates();
    Candidate {
        sample: sample.clone(),
        in_flight: scored.in_flight,
        requests_per_second,
        tokens_per_second,
        score: scored.score,
    }
}

/// The generator splitmix64: the same draw gives the same candidates in a replay, for ever.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A number below `bound`, evenly from 64 random bits, without division.
fn below(random: u64, bound: usize) -> usize {
    ((u128::from(random) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::{Excluded, Health, Moment, Quantity, Reading, Sample, Target};

    fn fleet(in_flight: &[u32]) -> FleetView {
        let member = |(slot, &in_flight): (usize, &u32)| {
            let target = Target { slot: slot as u32, name: format!("t{slot}").into(), address: "".into(), gpus: None };
            let readings = [Reading::MISSING; Quantity::COUNT];
            let live = Live::default();
            (0..in_flight).for_each(|_| live.begin());
            let sample = Sample::new(Arc::new(target), 1, Moment(1), Health::Healthy, readings, 0);
            Member { sample: Arc::new(sample), live: Arc::new(live) }
        };
        FleetView {
            published: Moment(1),
            members: in_flight.iter().enumerate().map(member).collect(),
            eligible: (0..in_flight.len() as u32).collect(),
            excluded: Excluded::default(),
        }
    }

    fn names(choice: &Choice) -> Vec<&str> {
        choice.candidates.iter().map(|candidate| &*candidate.sample.target.name).collect()
    }

    fn facts(policy: Policy, ticket: u64, draw: u64) -> Facts {
        Facts { policy, width: 16, ticket, draw }
    }

    #[test]
    fn nobody_is_chosen_from_nobody() {
        for policy in Policy::ALL {
            assert!(target(&fleet(&[]), &facts(policy, 0, 0)).is_none());
        }
    }

    #[test]
    fn the_only_one_is_chosen_and_the_reason_says_so() {
        for policy in Policy::ALL {
            let choice = target(&fleet(&[9]), &facts(policy, 5, 5)).unwrap();
            assert_eq!((choice.reason, names(&choice)), (Reason::OnlyCandidate, vec!["t0"]));
        }
    }

    #[test]
    fn round_robin_goes_round_and_failover_goes_on_from_there() {
        let view = fleet(&[5, 0, 0]);
        for (ticket, expected) in [(0, ["t0", "t1", "t2"]), (1, ["t1", "t2", "t0"]), (5, ["t2", "t0", "t1"])] {
            let choice = target(&view, &facts(Policy::RoundRobin, ticket, 0)).unwrap();
            assert_eq!((choice.reason, names(&choice)), (Reason::NextInTurn, expected.to_vec()));
        }
    }

    #[test]
    fn least_request_takes_the_idlest() {
        let choice = target(&fleet(&[3, 1, 2]), &facts(Policy::LeastRequest, 0, 1)).unwrap();
        assert_eq!((choice.reason, names(&choice)), (Reason::LowestScore, vec!["t1", "t2", "t0"]));
        assert_eq!(choice.candidates[0].score, 1.0);
    }

    #[test]
    fn ties_are_spread_by_the_draw() {
        let view = fleet(&[1; 4]);
        let mut wins = [0; 4];
        let mut random = 42;
        for _ in 0..4_000 {
            let choice = target(&view, &facts(Policy::LeastRequest, 0, next(&mut random))).unwrap();
            assert_eq!(choice.reason, Reason::TieBrokenByDraw);
            wins[choice.candidates[0].sample.target.slot as usize] += 1;
        }
        assert!(wins.iter().all(|wins| (900..1_100).contains(wins)), "{wins:?}");
    }

    #[test]
    fn ties_are_spread_also_if_others_stand_between() {
        let view = fleet(&[0, 0, 1, 1, 0]);
        let mut wins = [0; 5];
        let mut random = 42;
        for _ in 0..6_000 {
            let choice = target(&view, &facts(Policy::LeastRequest, 0, next(&mut random))).unwrap();
            wins[choice.candidates[0].sample.target.slot as usize] += 1;
        }
        let [a, b, 0, 0, c] = wins else { panic!("a busier target won: {wins:?}") };
        assert!([a, b, c].iter().all(|wins| (1_800..2_200).contains(wins)), "{wins:?}");
    }

    #[test]
    fn targets_that_are_not_eligible_are_never_candidates() {
        let view = FleetView { eligible: [1, 3].into(), ..fleet(&[0; 5]) };
        for policy in Policy::ALL {
            let choice = target(&view, &facts(policy, 7, 7)).unwrap();
            assert_eq!(names(&choice).into_iter().collect::<HashSet<_>>(), HashSet::from(["t1", "t3"]));
        }
    }

    proptest! {
        #[test]
        fn a_choice_is_bounded_distinct_sorted_and_repeatable(
            in_flight in prop::collection::vec(0u32..5, 1..200), width in 1usize..=WIDTH_MAX, ticket: u64, draw: u64,
        ) {
            let view = fleet(&in_flight);
            for policy in Policy::ALL {
                let facts = Facts { policy, width, ticket, draw };
                let choice = target(&view, &facts).unwrap();
                let distinct: HashSet<_> = names(&choice).into_iter().collect();
                prop_assert_eq!(choice.candidates.len(), in_flight.len().min(width));
                prop_assert_eq!(distinct.len(), choice.candidates.len());
                prop_assert!(choice.candidates.is_sorted_by(|a, b| a.score <= b.score));
                let again = target(&view, &facts).unwrap();
                prop_assert_eq!(names(&choice), names(&again));
            }
        }

        #[test]
        fn a_large_fleet_is_drawn_from_evenly(draws in prop::collection::vec(any::<u64>(), 4_000..4_001)) {
            let view = fleet(&[0; 100]);
            let mut seen = [0u32; 100];
            for draw in draws {
                for candidate in &target(&view, &facts(Policy::LeastRequest, 0, draw)).unwrap().candidates {
                    seen[candidate.sample.target.slot as usize] += 1;
                }
            }
            // 640 expected; six standard deviations either way.
            prop_assert!(seen.iter().all(|seen| (500..780).contains(seen)), "{:?}", seen);
        }
    }
}

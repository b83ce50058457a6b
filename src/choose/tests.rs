//! The choice against fleets that are made up: what each policy takes, what it falls back to, and that nothing but what is
//! recorded has a say.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::snapshot::sample::mix;
use crate::snapshot::{Attempt, Freshness, Health, Moment, Quantity, Reading, Sample, Source, Target};

/// One target of a made-up fleet.
#[derive(Clone, Copy, Debug)]
struct Pod {
    in_flight: u32,
    /// Waiting, running, KV-cache use, and the gateway's requests in flight at the scrape; `None` if nothing is known.
    scraped: Option<(f64, f64, f64, u32)>,
    freshness: Freshness,
    health: Health,
}

const IDLE: Pod = Pod { in_flight: 0, scraped: None, freshness: Freshness::Fresh, health: Health::Healthy };

fn busy(in_flight: u32) -> Pod {
    Pod { in_flight, ..IDLE }
}

/// As many in flight now as at the scrape.
fn scraped(waiting: f64, running: f64, kv: f64) -> Pod {
    Pod { in_flight: 5, scraped: Some((waiting, running, kv, 5)), ..IDLE }
}

fn member(slot: usize, pod: Pod) -> Member {
    let target = Target::new(slot as u32, &format!("t{slot}"), "");
    let mut readings = [Reading::MISSING; Quantity::COUNT];
    if let Some((waiting, running, kv, _)) = pod.scraped {
        for (quantity, value) in
            [(Quantity::Waiting, waiting), (Quantity::Running, running), (Quantity::KvCacheUsage, kv)]
        {
            readings[quantity as usize] = Reading {
                value: Some(value),
                observed: Moment(1),
                source: Some(Source::Scrape),
                freshness: pod.freshness,
            };
        }
    }
    let live = Live::default();
    (0..pod.in_flight).for_each(|_| live.begin());
    let sample = Sample::new(Arc::new(target), 1, Moment(1), pod.health, readings, 0);
    let sample = sample.with_in_flight_at_scrape(pod.scraped.map(|(.., in_flight)| in_flight));
    Member { sample: Arc::new(sample), live: Arc::new(live) }
}

fn fleet(pods: &[Pod]) -> FleetView {
    FleetView::of_any_model(Moment(1), pods.iter().enumerate().map(|(slot, pod)| member(slot, *pod)))
}

fn inputs(ticket: u64, draw: u64) -> Inputs {
    Inputs { ticket: Some(ticket), draw, prefix_hash: Some(mix(draw ^ 1)), session_hash: Some(mix(draw ^ 2)) }
}

fn choose(view: &FleetView, policy: Policy, inputs: &Inputs) -> Option<Choice> {
    target(view, view.pools.all(), policy, 16, inputs, &[])
}

#[track_caller]
fn chosen(view: &FleetView, policy: Policy, inputs: &Inputs) -> Choice {
    choose(view, policy, inputs).expect("somebody is eligible")
}

fn names(choice: &Choice) -> Vec<&str> {
    choice.candidates.iter().map(|candidate| &*candidate.sample.target.name).collect()
}

fn winner(choice: &Choice) -> u32 {
    choice.candidates.get(0).unwrap().sample.target.slot
}

fn scores(choice: &Choice) -> Vec<Option<f64>> {
    choice.candidates.iter().map(|candidate| candidate.score).collect()
}

#[test]
fn nobody_is_chosen_from_nobody() {
    let down = Pod { health: Health::Unhealthy, ..IDLE };
    for policy in Policy::ALL {
        assert!(choose(&fleet(&[]), policy, &inputs(0, 0)).is_none());
        assert!(choose(&fleet(&[down, down]), policy, &inputs(3, 7)).is_none());
    }
}

#[test]
fn the_only_one_is_chosen_and_the_reason_says_so() {
    for policy in Policy::ALL {
        let choice = chosen(&fleet(&[busy(9)]), policy, &inputs(5, 5));
        assert_eq!((choice.reason, names(&choice)), (Reason::OnlyCandidate, vec!["t0"]));
    }
}

#[test]
fn targets_that_are_not_eligible_are_never_candidates() {
    let down = Pod { health: Health::Unhealthy, ..IDLE };
    let view = fleet(&[down, IDLE, down, IDLE, down]);
    for policy in Policy::ALL {
        let choice = chosen(&view, policy, &inputs(7, 7));
        assert_eq!(names(&choice).into_iter().collect::<HashSet<_>>(), HashSet::from(["t1", "t3"]));
        assert_eq!(choice.excluded.unhealthy, 3);
    }
}

#[test]
fn round_robin_goes_round_and_failover_goes_on_from_there() {
    let view = fleet(&[busy(5), IDLE, IDLE]);
    for (ticket, expected) in [(0, ["t0", "t1", "t2"]), (1, ["t1", "t2", "t0"]), (5, ["t2", "t0", "t1"])] {
        let choice = chosen(&view, Policy::RoundRobin, &inputs(ticket, 0));
        assert_eq!((choice.reason, names(&choice)), (Reason::NextInTurn, expected.to_vec()));
        assert_eq!(scores(&choice), [Some(0.0), Some(1.0), Some(2.0)]);
    }
}

#[test]
fn least_request_takes_the_idlest() {
    let choice = chosen(&fleet(&[busy(3), busy(1), busy(2)]), Policy::LeastRequest, &inputs(0, 1));
    assert_eq!((choice.reason, names(&choice)), (Reason::LowestScore, vec!["t1", "t2", "t0"]));
    assert_eq!(choice.candidates.get(0).unwrap().score_parts, [1.0, 0.0, 0.0]);
}

#[test]
fn least_queue_prefers_an_engine_with_room_to_a_small_one_with_a_queue() {
    let view = fleet(&[scraped(2.0, 4.0, 0.5), scraped(0.0, 10.0, 0.5), scraped(0.0, 9.0, 0.9)]);
    let choice = chosen(&view, Policy::LeastQueue, &inputs(0, 1));
    assert_eq!((choice.reason, names(&choice)), (Reason::LowestScore, vec!["t2", "t1", "t0"]));
    assert_eq!(choice.candidates.get(2).unwrap().score_parts, [8.0, 4.0, 0.0]);
    assert_eq!(scores(&choice), [Some(9.0), Some(10.0), Some(12.0)]);
}

#[test]
fn least_kv_cache_takes_the_emptiest_and_counts_those_that_wait_for_it() {
    let view = fleet(&[scraped(0.0, 8.0, 0.4), scraped(0.0, 8.0, 0.3), scraped(9.0, 10.0, 0.2)]);
    let choice = chosen(&view, Policy::LeastKvCache, &inputs(0, 1));
    assert_eq!((choice.reason, names(&choice)), (Reason::LowestScore, vec!["t1", "t2", "t0"]));
    assert_eq!(scores(&choice)[1], Some(0.2 + 9.0 * 0.02));
}

/// Between two scrapes the engine's own numbers stand still: what was sent since has to count.
#[test]
fn nobody_herds_between_two_scrapes() {
    for policy in [Policy::LeastQueue, Policy::LeastKvCache] {
        let view = fleet(&[scraped(0.0, 2.0, 0.2), scraped(0.0, 2.0, 0.2), scraped(0.0, 2.0, 0.2)]);
        let mut sent = HashMap::<u32, u32>::new();
        for draw in 0..90 {
            let choice = chosen(&view, policy, &inputs(0, mix(draw)));
            choice.live.begin();
            *sent.entry(winner(&choice)).or_default() += 1;
        }
        assert_eq!(sent, HashMap::from([(0, 30), (1, 30), (2, 30)]), "{policy:?}");
    }
}

/// Between two scrapes one that has just come knows of nothing that runs there: it still gets no more than the others have.
#[test]
fn nobody_herds_at_a_newcomer() {
    let old = Pod { in_flight: 8, scraped: Some((0.0, 8.0, 0.4, 8)), ..IDLE };
    let new = Pod { in_flight: 0, scraped: Some((0.0, 0.0, 0.0, 0)), ..IDLE };
    for policy in [Policy::LeastRequest, Policy::PowerOfTwo, Policy::LeastQueue, Policy::LeastKvCache] {
        let view = fleet(&[old, old, new, old]);
        let in_flight = |slot: usize| view.members[slot].live.in_flight();
        for draw in 0..40 {
            chosen(&view, policy, &inputs(0, mix(draw))).live.begin();
            let most = [0, 1, 3].map(in_flight).into_iter().max();
            // Of equals one is drawn, and then has one more.
            assert!(Some(in_flight(2)) <= most.map(|most| most + 1), "{policy:?}: {} and {most:?}", in_flight(2));
        }
        assert!(in_flight(2) >= 8, "{policy:?}: and it gets its part, {} of 40", in_flight(2));
    }
    let choice = chosen(&fleet(&[new, new]), Policy::LeastKvCache, &inputs(0, 1));
    assert_eq!(scores(&choice), [Some(0.0), Some(0.0)], "where nothing runs at all nothing is needed yet");
}

#[test]
fn what_has_no_fresh_state_is_excluded_comes_last_and_is_counted() {
    let stale = Pod { freshness: Freshness::Stale, ..scraped(0.0, 0.0, 0.0) };
    let unseen = Pod { scraped: None, ..IDLE };
    let view = fleet(&[stale, scraped(7.0, 16.0, 0.9), unseen, scraped(8.0, 16.0, 0.9)]);
    for policy in [Policy::LeastQueue, Policy::LeastKvCache] {
        let choice = chosen(&view, policy, &inputs(0, 1));
        assert_eq!((choice.fallback, choice.excluded.no_fresh_state, choice.candidates.len()), (None, 2, 4));
        assert_eq!((winner(&choice), choice.reason), (1, Reason::LowestScore));
        assert!(matches!(scores(&choice)[..], [Some(_), Some(_), None, None]), "{choice:?}");
    }
}

#[test]
fn a_policy_without_what_it_needs_falls_back_and_says_why() {
    let stale = Pod { freshness: Freshness::Stale, ..scraped(0.0, 0.0, 0.0) };
    let view = fleet(&[Pod { in_flight: 3, ..stale }, Pod { in_flight: 2, ..stale }, busy(4)]);
    let nothing = Inputs::default();
    for (policy, inputs, why) in [
        (Policy::LeastQueue, inputs(0, 1), Fallback::NoFreshState),
        (Policy::LeastKvCache, inputs(0, 1), Fallback::NoFreshState),
        (Policy::PrefixAffinity, nothing, Fallback::NoPrompt),
        (Policy::SessionAffinity, nothing, Fallback::NoSession),
    ] {
        let choice = chosen(&view, policy, &inputs);
        assert_eq!((choice.fallback, choice.reason), (Some(why), Reason::LowestScore));
        assert_eq!((names(&choice), choice.excluded.no_fresh_state), (vec!["t1", "t0", "t2"], 0));
        assert_eq!(choice.candidates.get(0).unwrap().score_parts, [2.0, 0.0, 0.0]);
    }
}

#[test]
fn power_of_two_takes_the_idler_of_two() {
    let view = fleet(&[busy(3), busy(1), busy(2), busy(0)]);
    let mut pairs = HashSet::new();
    for draw in 0..500 {
        let choice = chosen(&view, Policy::PowerOfTwo, &inputs(0, mix(draw)));
        let [first, second] = [0, 1].map(|rank| choice.candidates.get(rank).unwrap());
        assert!(first.in_flight < second.in_flight);
        pairs.insert((winner(&choice), second.sample.target.slot));
    }
    assert_eq!(pairs.len(), 6, "every pair is drawn, and always has the same winner: {pairs:?}");
}

#[test]
fn ties_and_lots_fall_evenly_also_if_others_stand_between() {
    let view = fleet(&[IDLE, IDLE, busy(1), busy(1), IDLE]);
    let mut wins = HashMap::<(&str, u32), u32>::new();
    for draw in (0..6_000).map(mix) {
        for (policy, reason) in [(Policy::LeastRequest, Reason::TieBrokenByDraw), (Policy::Random, Reason::Drawn)] {
            let choice = chosen(&view, policy, &inputs(0, draw));
            assert_eq!(choice.reason, reason);
            *wins.entry((policy.name(), winner(&choice))).or_default() += 1;
        }
    }
    let of = |policy: Policy, slot| wins.get(&(policy.name(), slot)).copied().unwrap_or_default();
    for slot in [0, 1, 4] {
        assert!((1_800..2_200).contains(&of(Policy::LeastRequest, slot)), "{wins:?}");
    }
    assert_eq!((of(Policy::LeastRequest, 2), of(Policy::LeastRequest, 3)), (0, 0));
    assert!((0..5).all(|slot| (1_050..1_350).contains(&of(Policy::Random, slot))), "{wins:?}");
}

/// Where each of many prefixes or sessions goes.
fn homes(view: &FleetView, policy: Policy) -> Vec<u32> {
    let hash = |key| Inputs { prefix_hash: Some(mix(key)), session_hash: Some(mix(key)), ..inputs(0, mix(key ^ 77)) };
    (0..4_000).map(|key| winner(&chosen(view, policy, &hash(key)))).collect()
}

/// In a fleet of which all are looked at, and in one of which a part is.
#[test]
fn an_affinity_is_even_and_keeps_what_it_can_when_a_target_goes() {
    for policy in [Policy::PrefixAffinity, Policy::SessionAffinity] {
        for (targets, most_moved) in [(8, 1.0), (80, 1.7)] {
            let mut pods = vec![IDLE; targets];
            let before = homes(&fleet(&pods), policy);
            let mut counts = vec![0; targets];
            before.iter().for_each(|slot| counts[*slot as usize] += 1);
            let mean = before.len() / targets;
            assert!(counts.iter().all(|count| (mean / 4..mean * 3).contains(count)), "{counts:?}");

            pods[3].health = Health::Unhealthy;
            let after = homes(&fleet(&pods), policy);
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            assert!(moved >= counts[3] && moved as f64 <= most_moved * (counts[3] + mean) as f64, "{moved} {counts:?}");
        }
    }
}

#[test]
fn a_prefix_that_is_asked_for_too_often_overflows_to_others_and_a_session_does_not() {
    let view = fleet(&[IDLE; 4]);
    let one = inputs(0, 9);
    let mut sent = HashMap::<u32, u32>::new();
    let mut reasons = HashSet::new();
    for draw in 0..100 {
        let choice = chosen(&view, Policy::PrefixAffinity, &Inputs { draw: mix(draw), ..one });
        choice.live.begin();
        reasons.insert(choice.reason.name());
        *sent.entry(winner(&choice)).or_default() += 1;
    }
    assert!(sent.values().all(|count| *count <= 32), "1.25 times the mean of 25, rounded up: {sent:?}");
    assert_eq!(reasons, HashSet::from(["affinity", "affinity_overflow"]));

    let home = winner(&chosen(&view, Policy::SessionAffinity, &one));
    for draw in 0..100 {
        let choice = chosen(&view, Policy::SessionAffinity, &Inputs { draw: mix(draw), ..one });
        choice.live.begin();
        assert_eq!((winner(&choice), choice.reason), (home, Reason::Affinity));
    }
}

/// A try at the choice's first target.
fn attempt(choice: &Choice) -> Attempt {
    Attempt {
        target: Arc::clone(&choice.candidates.first().unwrap().sample.target),
        started_offset_us: 0,
        connect_us: None,
        first_byte_offset_us: None,
        status: None,
        error: None,
        retry: None,
    }
}

#[test]
fn a_request_that_fails_everywhere_meets_every_target_once_however_few_are_looked_at() {
    for targets in [3, 80] {
        let view = fleet(&vec![IDLE; targets]);
        for (policy, width) in
            Policy::ALL.into_iter().flat_map(|policy| [(policy, 1), (policy, 16), (policy, WIDTH_MAX)])
        {
            // As many as `upstream.retries` may allow, and the first.
            let (mut tried, tries) = (Vec::<Attempt>::new(), targets.min(11));
            for draw in 0..tries as u64 {
                let inputs = Inputs { draw: mix(draw), ticket: Some(mix(draw)), ..inputs(0, 7) };
                let choice = target(&view, view.pools.all(), policy, width, &inputs, &tried).unwrap();
                assert!(choice.candidates.len() <= looks_max(policy, width), "{policy:?} {width}");
                tried.push(attempt(&choice));
            }
            let met: HashSet<_> = tried.iter().map(|attempt| attempt.target.slot).collect();
            assert_eq!(met.len(), tries, "{policy:?} {width}");
            if targets == tries {
                assert!(target(&view, view.pools.all(), policy, width, &inputs(1, 1), &tried).is_none());
            }
        }
    }
}

#[test]
fn a_forced_target_is_taken_as_it_is() {
    let view = fleet(&[IDLE, Pod { health: Health::Unhealthy, ..busy(3) }]);
    let choice = forced(&view, view.pools.all(), 1);
    assert_eq!(
        (names(&choice), choice.reason, choice.candidates.get(0).unwrap().score),
        (vec!["t1"], Reason::Forced, None)
    );
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let scraped = prop::option::of((0..4u32, 0..20u32, 0..100u32, 0..5u32));
    let freshness = prop_oneof![3 => Just(Freshness::Fresh), 1 => Just(Freshness::Stale)];
    (0u32..5, scraped, freshness).prop_map(|(in_flight, scraped, freshness)| Pod {
        in_flight,
        scraped: scraped
            .map(|(waiting, running, kv, then)| (waiting.into(), running.into(), f64::from(kv) / 100.0, then)),
        freshness,
        ..IDLE
    })
}

proptest! {
    #[test]
    fn a_choice_is_bounded_distinct_sorted_and_repeatable_from_its_record(
        pods in prop::collection::vec(any_pod(), 1..200), width in 1usize..=WIDTH_MAX, ticket: u64, draw: u64,
    ) {
        let view = fleet(&pods);
        for policy in Policy::ALL {
            let inputs = inputs(ticket, draw);
            let choice = target(&view, view.pools.all(), policy, width, &inputs, &[]).unwrap();
            let distinct: HashSet<_> = names(&choice).into_iter().collect();
            prop_assert_eq!(choice.candidates.len(), pods.len().min(looks_max(policy, width)));
            prop_assert_eq!(distinct.len(), choice.candidates.len());
            let scored = scores(&choice).into_iter().map(|score| score.unwrap_or(f64::INFINITY));
            prop_assert!(scored.is_sorted());
            for candidate in choice.candidates.iter() {
                let sum = candidate.score_parts.iter().sum::<f64>();
                prop_assert!(candidate.score.is_none_or(|score| score == sum));
            }

            // As a replay does it: what was looked at in any other order.
            let mut looks: Vec<_> = choice.candidates.iter().map(|candidate| Look::of(candidate).unwrap()).collect();
            looks.rotate_left(pods.len() % choice.candidates.len());
            let again = rank(policy, pods.len() as u32, &inputs, &looks).unwrap();
            let place = |ranked: &Ranked| Some(looks[ranked.look].place);
            prop_assert!(again.ranked.iter().map(place).eq(choice.candidates.iter().map(|candidate| candidate.place)));
            prop_assert!(again.ranked.iter().map(|ranked| ranked.score).eq(scores(&choice)));
            prop_assert_eq!((again.reason, again.fallback), (choice.reason, choice.fallback));
            prop_assert_eq!(again.no_fresh_state, choice.excluded.no_fresh_state);
        }
    }

    #[test]
    fn a_large_fleet_is_drawn_from_evenly(draws in prop::collection::vec(any::<u64>(), 4_000..4_001)) {
        let mut seen = [0u32; 100];
        for draw in draws {
            for place in drawn(draw, 100, 16) {
                seen[place as usize] += 1;
            }
        }
        // 640 expected; six standard deviations either way.
        prop_assert!(seen.iter().all(|seen| (500..780).contains(seen)), "{:?}", seen);
    }
}

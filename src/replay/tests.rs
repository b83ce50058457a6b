//! What a replay says of decisions that are made up; whole traffic is replayed in the integration tests.

use std::sync::Arc;

use super::*;
use crate::snapshot::{Candidate, Excluded, Freshness, Health, Quantity, Reading, Reason, Sample, Source, Target};

/// A target with so many waiting, and as many in flight as at the scrape.
fn candidate(name: &str, place: u32, waiting: f64, in_flight: u32) -> Candidate {
    let target = Target::new(place, name, "");
    let mut readings = [Reading::MISSING; Quantity::COUNT];
    for (quantity, value) in [(Quantity::Waiting, waiting), (Quantity::Running, 1.0)] {
        let (source, freshness) = (Some(Source::Scrape), Freshness::Fresh);
        readings[quantity as usize] = Reading { value: Some(value), observed: Moment(1), source, freshness };
    }
    let sample = Sample::new(Arc::new(target), 1, Moment(1), Health::Healthy, readings, 0);
    Candidate {
        sample: Arc::new(sample.with_in_flight_at_scrape(Some(in_flight))),
        place: Some(place),
        in_flight,
        requests_per_second: 0.0,
        tokens_per_second: 0.0,
        score: Some(f64::from(in_flight)),
        score_parts: [f64::from(in_flight), 0.0, 0.0],
    }
}

/// The idler of two, by requests in flight; the other one has the shorter queue.
fn decision() -> Decision {
    Decision {
        policy: Policy::LeastRequest,
        reason: Reason::LowestScore,
        forced: false,
        fallback: None,
        decided_offset_ns: 0,
        choose_ns: 0,
        decided: Moment(2),
        view_published: Moment(1),
        eligible: 2,
        excluded: Excluded::default(),
        candidates: [candidate("b", 1, 9.0, 2), candidate("a", 0, 0.0, 5)].into_iter().collect(),
        inputs: Inputs { draw: 7, ..Inputs::default() },
    }
}

fn by(policy: Policy, decision: &Decision) -> Result<Compared, Unanswerable> {
    again(policy, decision, || 0)
}

#[test]
fn the_same_policy_gives_the_same_and_another_may_not() {
    let same = Compared { chosen: 0, explained: true, checkable: true, whole: true };
    assert_eq!(by(Policy::LeastRequest, &decision()), Ok(same));
    assert_eq!(by(Policy::PowerOfTwo, &decision()), Ok(same));
    assert_eq!(by(Policy::LeastQueue, &decision()), Ok(Compared { chosen: 1, ..same }));
    assert_eq!(by(Policy::RoundRobin, &decision()), Ok(Compared { chosen: 1, ..same }), "it is the first one's turn");
    assert_eq!(again(Policy::RoundRobin, &decision(), || 5), Ok(same));
    let large = Decision { eligible: 20, ..decision() };
    assert_eq!(by(Policy::LeastQueue, &large), Ok(Compared { chosen: 1, whole: false, ..same }));
}

#[test]
fn a_record_that_was_tampered_with_is_unexplained() {
    let unexplained = |change: &dyn Fn(&mut Decision)| {
        let mut decision = decision();
        change(&mut decision);
        assert!(!by(decision.policy, &decision).unwrap().explained, "{decision:?}");
    };
    unexplained(&|decision| decision.candidates.edit(|candidates| candidates.swap(0, 1)));
    unexplained(&|decision| decision.candidates.edit(|candidates| candidates[1].in_flight = 1));
    unexplained(&|decision| decision.candidates.edit(|candidates| candidates[0].score = Some(1.0)));
    unexplained(&|decision| decision.candidates.edit(|candidates| candidates[0].place = Some(0)));
    unexplained(&|decision| decision.reason = Reason::TieBrokenByDraw);
    unexplained(&|decision| decision.excluded.no_fresh_state = 1);
    unexplained(&|decision| decision.policy = Policy::LeastQueue);
    unexplained(&|decision| decision.eligible = 20);
}

/// By affinity, of as many eligible targets: as it would have been chosen.
fn by_affinity(eligible: u32) -> Decision {
    let inputs = Inputs { session_hash: Some(11), ..decision().inputs };
    let unranked = Decision { policy: Policy::SessionAffinity, eligible, inputs, ..decision() };
    let looks: Vec<_> = unranked.candidates.iter().map(|candidate| Look::of(candidate).unwrap()).collect();
    let ranking = choose::rank(unranked.policy, eligible, &inputs, &looks).unwrap();
    let mut ranked = unranked.clone();
    ranked.reason = ranking.reason;
    ranked.candidates.edit(|candidates| {
        let all = candidates.clone();
        *candidates = ranking.ranked.iter().map(|it| all[it.look].clone()).collect();
        for (candidate, ranked) in candidates.iter_mut().zip(&ranking.ranked) {
            (candidate.score, candidate.score_parts) = (ranked.score, ranked.score_parts);
        }
    });
    ranked
}

#[test]
fn a_walk_through_a_part_of_a_fleet_is_not_counted_as_checked() {
    let checked = Compared { chosen: 0, explained: true, checkable: true, whole: true };
    assert_eq!(by(Policy::SessionAffinity, &by_affinity(2)), Ok(checked), "both were looked at");
    let part = by_affinity(20);
    assert_eq!(by(Policy::SessionAffinity, &part), Ok(Compared { checkable: false, ..checked }));
    // What can be seen to be wrong is not excused by that.
    let wrong = |change: &dyn Fn(&mut Vec<Candidate>)| {
        let mut wrong = part.clone();
        wrong.candidates.edit(change);
        by(wrong.policy, &wrong).unwrap().explained
    };
    assert!(!wrong(&|candidates| candidates[0].place = candidates[1].place), "one target twice");
    assert!(!wrong(&|candidates| candidates[0].place = Some(20)), "there is no such place");
    assert!(!wrong(&|candidates| candidates.swap(0, 1)));

    let mut report = Report::new(None);
    for decision in [&part, &by_affinity(2)] {
        report.decision(decision.policy, Moment(1_795_435_995_000_000));
        report.compared(SnapshotId::from_u128(0xabc), decision, &by(decision.policy, decision).unwrap());
    }
    let report = report.finished();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["same"], &json["unexplained"], &json["not_wholly_checkable"]), (&2.into(), &0.into(), &1.into()));
    assert!(report.text().contains("\n1 not wholly checkable: "), "{}", report.text());
}

#[test]
fn what_cannot_be_said_is_not_said() {
    let forced = Decision { forced: true, ..decision() };
    assert_eq!(by(Policy::Random, &forced), Err(Unanswerable::Forced));
    let mut old = decision();
    old.candidates.edit(|candidates| candidates[1].place = None);
    assert_eq!(by(Policy::LeastRequest, &old), Err(Unanswerable::TooOld));
    assert_eq!(by(Policy::PrefixAffinity, &decision()), Err(Unanswerable::NoPrefixHash));
    assert_eq!(by(Policy::SessionAffinity, &decision()), Err(Unanswerable::NoSessionHash));
    let own = Decision { policy: Policy::SessionAffinity, ..decision() };
    let own = Decision { fallback: Some(crate::snapshot::Fallback::NoSession), ..own };
    assert_eq!(
        by(Policy::SessionAffinity, &own),
        Ok(Compared { chosen: 0, explained: true, checkable: true, whole: true })
    );
}

#[test]
fn a_report_says_what_differs_and_by_how_much() {
    let mut report = Report::new(Some(Policy::LeastQueue));
    let id = SnapshotId::from_u128(0xabc);
    for _again in 0..3 {
        let decision = decision();
        report.decision(decision.policy, Moment(1_795_435_995_000_000));
        report.compared(id, &decision, &by(Policy::LeastQueue, &decision).unwrap());
    }
    report.not_replayed("forced");
    let report = report.finished();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["different"], &json["same"], &json["policy"]), (&3.into(), &0.into(), &"least_queue".into()));
    assert_eq!(json["difference"]["waiting"], serde_json::json!({"mean": -9.0, "known": 3}));
    assert_eq!(json["difference"]["kv_cache_usage"], serde_json::json!({"mean": null, "known": 0}));
    assert_eq!(json["targets"]["a"], serde_json::json!({"recorded": 0, "replayed": 3}));
    let text = report.text();
    for part in ["3 of 3 (100.0 %) would have gone elsewhere", "not replayed: forced 1", "waiting 9 -> 0", "-9.000"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}

#[test]
fn a_tie_is_counted_and_is_none_of_the_largest_differences() {
    let mut report = Report::new(Some(Policy::Random));
    let alike = [candidate("b", 1, 3.0, 2), candidate("a", 0, 3.0, 2)].into_iter().collect();
    let alike = Decision { candidates: alike, ..decision() };
    report.decision(alike.policy, Moment(1_795_435_995_000_000));
    report.compared(
        SnapshotId::from_u128(0xabc),
        &alike,
        &Compared { chosen: 1, explained: true, checkable: true, whole: true },
    );
    let report = report.finished();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["different_but_alike"], &json["examples"]), (&1.into(), &serde_json::json!([])));
    let text = report.text();
    assert!(text.contains("1 of these between targets") && !text.contains("the largest differences"), "{text}");
}

#[test]
fn a_report_leads_with_why_nothing_could_be_replayed() {
    let mut report = Report::new(Some(Policy::SessionAffinity));
    report.decision(Policy::LeastRequest, Moment(1_795_435_995_000_000));
    report.not_replayed(Unanswerable::NoSessionHash.name());
    let text = report.finished().text();
    assert!(text.starts_with("nothing could be replayed: recorded without a session hash"), "{text}");
}

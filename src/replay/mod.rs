//! Makes recorded decisions again, by their own policy or by another one: from the record alone.
//!
//! By its own policy a decision has to come out as it did, down to the scores of those that lost; one that does not is
//! `unexplained`. Whom a policy with affinity looks at in a fleet of more than `choice.width` depends on the names of all
//! of it, which no record has: such decisions are ranked again, and counted as not wholly checkable. By another policy the
//! same targets are scored again, as they were known at that moment: it says what that policy would have chosen then, not
//! what the fleet would have become of it.

mod report;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use report::Report;

use crate::choose::{self, Look, Ranking};
use crate::snapshot::{Decision, Inputs, InstanceTag, Moment, Policy, Record, SnapshotId};
use crate::store::{ReadError, Reader};
use report::Compared;

/// Records read at once.
const PAGE: usize = 1_000;

/// What is to be made again.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// By which policy; `None`: each decision by its own.
    pub policy: Option<Policy>,
    /// Only requests that were issued then or later.
    pub since: Option<Moment>,
    /// Only requests that were issued before.
    pub until: Option<Moment>,
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Records read.
    pub read: u64,
    /// Records to read, about.
    pub all: u64,
}

/// Why a decision cannot be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unanswerable {
    /// The request named the target.
    Forced,
    /// It was recorded by a version that did not yet record places.
    TooOld,
    /// The policy goes by the prompt's beginning, of which only its own decisions have a hash.
    NoPrefixHash,
    /// Likewise the session.
    NoSessionHash,
}

impl Unanswerable {
    const fn name(self) -> &'static str {
        match self {
            Self::Forced => "forced",
            Self::TooOld => "too_old",
            Self::NoPrefixHash => "no_prefix_hash",
            Self::NoSessionHash => "no_session_hash",
        }
    }
}

/// Makes the decisions in the store again, in the order in which they were made. `progress` is called once a page. Reads what
/// was asked for and nothing else, and of a gateway that runs what it had stored at the beginning, and perhaps some more.
///
/// # Errors
/// The store could not be read.
pub fn run(reader: &Reader, question: &Question, mut progress: impl FnMut(Progress)) -> Result<Report, ReadError> {
    // An ID says the millisecond of its issue, and what is beyond the exact time is left out by `Replay::record`.
    let first_of = |moment: Moment| SnapshotId::new(moment.unix_ms(), InstanceTag(0), 0).as_u128();
    let mut last = SnapshotId::from_u128(question.since.map_or(0, |since| first_of(since).saturating_sub(1)));
    let end = question.until.map(|until| first_of(Moment(until.0.saturating_add(1_000))));
    let Some(newest) = reader.newest_issued(SnapshotId::from_u128(end.unwrap_or(u128::MAX)))? else {
        return Ok(Report::new(question.policy).finished());
    };
    let all = reader.about_issued(last, newest)?;
    let mut replay = Replay { question: *question, report: Report::new(question.policy), turns: HashMap::new() };
    let mut read = 0;
    loop {
        let page = reader.issued(last, newest, PAGE)?;
        let Some(record) = page.last() else { break };
        last = record.id();
        page.iter().for_each(|record| replay.record(record));
        read += page.len() as u64;
        progress(Progress { read, all: all.max(read) });
    }
    Ok(replay.report.finished())
}

struct Replay {
    question: Question,
    report: Report,
    /// For a round robin that was not: whose turn it is, by model.
    turns: HashMap<Option<Box<str>>, u64>,
}

impl Replay {
    fn record(&mut self, record: &Record) {
        let issued = &record.issued;
        let Question { policy, since, until } = self.question;
        if since.is_some_and(|since| issued.issued_at < since) || until.is_some_and(|until| issued.issued_at >= until) {
            return;
        }
        let Some(decision) = &issued.decision else { return };
        self.report.decision(decision.policy, issued.issued_at);
        let policy = policy.unwrap_or(decision.policy);
        let turns = &mut self.turns;
        let turn = || {
            let turn = turns.entry(issued.request.model.clone()).or_default();
            *turn += 1;
            *turn - 1
        };
        match again(policy, decision, turn) {
            Ok(compared) => self.report.compared(issued.id, decision, &compared),
            Err(why) => self.report.not_replayed(why.name()),
        }
    }
}

/// Makes one decision again. `turn` is asked for if the record has none and the policy needs one.
fn again(policy: Policy, decision: &Decision, turn: impl FnOnce() -> u64) -> Result<Compared, Unanswerable> {
    if decision.forced {
        return Err(Unanswerable::Forced);
    }
    let looks: Option<Vec<Look<'_>>> = decision.candidates.iter().map(Look::of).collect();
    // No choice that this version knows of had more.
    let looks = looks.filter(|looks| (1..=choose::WIDTH_MAX).contains(&looks.len())).ok_or(Unanswerable::TooOld)?;
    let whole = looks.len() == decision.eligible as usize;
    if policy == decision.policy {
        let ranking = choose::rank(policy, decision.eligible, &decision.inputs, &looks).ok_or(Unanswerable::TooOld)?;
        let looked_at = looked_at(decision);
        let explained = explains(&ranking, decision) && looked_at != LookedAt::Others;
        let checkable = looked_at != LookedAt::Unknown;
        return Ok(Compared { chosen: ranking.ranked[0].look, explained, checkable, whole: true });
    }
    let inputs = inputs(policy, decision, turn)?;
    let (picked, looks) = pick(policy, whole, &inputs, looks);
    let ranking = choose::rank(policy, decision.eligible, &inputs, &looks).ok_or(Unanswerable::TooOld)?;
    Ok(Compared { chosen: picked[ranking.ranked[0].look], explained: true, checkable: true, whole })
}

/// Whether everything about a decision is as the ranking has it.
fn explains(ranking: &Ranking, decision: &Decision) -> bool {
    let mut ranked = ranking.ranked.iter().enumerate().zip(decision.candidates.iter());
    let as_it_was = ranked.all(|((place, ranked), candidate)| {
        ranked.look == place && ranked.score == candidate.score && ranked.score_parts == candidate.score_parts
    });
    let Ranking { reason, fallback, no_fresh_state, .. } = *ranking;
    let why = (reason, fallback, no_fresh_state);
    as_it_was && why == (decision.reason, decision.fallback, decision.excluded.no_fresh_state)
}

/// What a record says of whom a policy was to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookedAt {
    /// It was to look at the candidates.
    These,
    /// It was to look at others.
    Others,
    /// The walk from the hash passes targets that the record does not have: there may have been others on its way.
    Unknown,
}

/// Whether the candidates stand where the ticket, the draw or the walk from the hash leads.
fn looked_at(decision: &Decision) -> LookedAt {
    let (eligible, count) = (decision.eligible as usize, decision.candidates.len());
    let mut places: choose::Places = decision.candidates.iter().filter_map(|candidate| candidate.place).collect();
    places.sort_unstable();
    match choose::places(decision.policy, eligible, count, &decision.inputs) {
        Ok(mut expected) => {
            expected.sort_unstable();
            if expected == places { LookedAt::These } else { LookedAt::Others }
        }
        Err(_) => {
            let are_different = places.windows(2).all(|pair| pair[0] != pair[1]);
            let are_there = places.iter().all(|place| (*place as usize) < eligible);
            if are_different && are_there { LookedAt::Unknown } else { LookedAt::Others }
        }
    }
}

/// What another policy would have gone by.
fn inputs(policy: Policy, decision: &Decision, turn: impl FnOnce() -> u64) -> Result<Inputs, Unanswerable> {
    let mut inputs = decision.inputs;
    match policy {
        Policy::RoundRobin => inputs.ticket = Some(inputs.ticket.unwrap_or_else(turn)),
        Policy::PrefixAffinity if inputs.prefix_hash.is_none() => return Err(Unanswerable::NoPrefixHash),
        Policy::SessionAffinity if inputs.session_hash.is_none() => return Err(Unanswerable::NoSessionHash),
        _ => {}
    }
    Ok(inputs)
}

/// Those of the recorded targets that the policy would have looked at, with their places in the record.
fn pick<'a>(policy: Policy, whole: bool, inputs: &Inputs, looks: Vec<Look<'a>>) -> (Vec<usize>, Vec<Look<'a>>) {
    let count = looks.len().min(choose::looks_max(policy, choose::WIDTH_MAX));
    if count == looks.len() {
        return ((0..count).collect(), looks);
    }
    // Of a whole fleet those that it would have drawn; of a part of one, as many of that part.
    let drawn = choose::drawn(inputs.draw, looks.len(), count);
    let wanted = |(index, look): &(usize, Look<'_>)| drawn.contains(&if whole { look.place } else { *index as u32 });
    looks.into_iter().enumerate().filter(wanted).unzip()
}

//! One sentence: how it ended, whose fault that was, which target it was and why, and what was unusual about its state.

use super::candidates::{Trust, scored, state_of};
use super::{Sight, words};
use crate::snapshot::document::{ChoicePart, DecisionPart, Phase};
use crate::snapshot::{Document, Ending, Fallback, Fault, Freshness, Policy, Quantity, Reason};

/// A queue is called long if so many more requests wait in it than in the shortest one among the candidates …
const QUEUE_EXCESS_MIN: f64 = 4.0;

/// … and at least so many times as many.
const QUEUE_RATIO_MIN: f64 = 2.0;

/// From here on the KV cache is called nearly full: engines begin to preempt.
const KV_CACHE_FULL: f64 = 0.9;

/// From here on the first content is called late, in microseconds: a reader has begun to wonder.
const FIRST_CONTENT_LATE_US: u64 = 2_000_000;

/// From here on a pause between tokens is called long, in microseconds.
const PAUSE_LONG_US: u64 = 1_000_000;

/// From here on the view itself is called old, in milliseconds: it is published ten times a second.
const VIEW_OLD_MS: u64 = 1_000;

/// The sentence, with its full stop.
pub(super) fn of(document: &Document<'_>, sight: Sight) -> String {
    let whose = match failover(document) {
        Some(chosen) => format!("{}'s", words::clean(chosen)),
        None => "its".to_owned(),
    };
    let mut clauses = vec![ending(document)];
    clauses.extend(choice(document, sight));
    clauses.extend(trust(&document.decision, &whose));
    clauses.extend(unusual(document, &whose));
    format!("{}.", clauses.join("; "))
}

/// How it ended, or how far it has come.
fn ending(document: &Document<'_>) -> String {
    let outcome = &document.outcome;
    let Some(ending) = outcome.ending.filter(|_| document.phase == Phase::Complete) else { return in_flight(document) };
    let after = document.timings.end_offset_us.map_or_else(|| "an unknown time".to_owned(), words::micros);
    let target = outcome.target.as_deref().map(words::clean);
    let at = target.as_deref().unwrap_or("the target");
    let head_came = document.timings.first_byte_offset_us.is_some();
    let said = match ending {
        Ending::Completed => {
            let verb = if outcome.fault.is_some() { "failed" } else { "completed" };
            format!("{verb} in {after} on {at}")
        }
        Ending::ClientDisconnected if head_came => format!("the client left after {after}, while {at} was answering"),
        Ending::ClientDisconnected if target.is_none() => {
            format!("the client left after {after}, before any target was tried")
        }
        Ending::ClientDisconnected => format!("the client left after {after}, before {at} had answered"),
        Ending::UpstreamReset if head_came => {
            format!("broken off after {after}: {at} ended the connection within its answer")
        }
        Ending::UpstreamReset => format!("failed after {after}: {at} could not be reached or hung up"),
        Ending::UpstreamTimeout if head_came => format!("broken off after {after}: {at} fell silent within its answer"),
        Ending::UpstreamTimeout => format!("failed after {after}: {at} did not answer in time"),
        Ending::NoTarget => format!("failed after {after}: no target could be chosen"),
        Ending::Rejected => format!("rejected after {after}"),
        Ending::Overloaded => format!("turned away after {after}: the gateway was at its limit of requests in flight"),
        Ending::Shutdown => format!("cut off after {after}: the gateway was stopped"),
        Ending::Internal => format!("failed after {after}: the gateway broke"),
    };
    let mut details = if head_came { received(document) } else { outcome.status.iter().map(u16::to_string).collect() };
    details.extend(outcome.error.as_deref().map(words::clean));
    let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
    format!("{said}{details}{}", fault(outcome.fault))
}

fn fault(fault: Option<Fault>) -> &'static str {
    match fault {
        None => "",
        Some(Fault::Client) => ", the client's fault",
        Some(Fault::Target) => ", the target's fault",
        Some(Fault::Gateway) => ", the gateway's fault",
    }
}

fn in_flight(document: &Document<'_>) -> String {
    let target = document.decision.target.as_deref().map(words::clean);
    match (target, document.timings.first_byte_offset_us) {
        (None, _) => "in flight, and no target is chosen yet".to_owned(),
        (Some(target), None) => format!("in flight to {target}, which has not answered yet"),
        (Some(target), Some(_)) => format!("in flight from {target} ({} so far)", received(document).join(", ")),
    }
}

/// What the client got: status, tokens or at least bytes, finish reason.
fn received(document: &Document<'_>) -> Vec<String> {
    let outcome = &document.outcome;
    let mut parts = Vec::new();
    parts.extend(outcome.status.map(|status| status.to_string()));
    parts.push(match outcome.completion_tokens {
        Some(tokens) if outcome.tokens_estimated == Some(true) => format!("about {}", words::counted(tokens, "token")),
        Some(tokens) => words::counted(tokens, "token"),
        None if outcome.events > 0 => words::counted(outcome.events, "event"),
        None => words::bytes(outcome.response_bytes),
    });
    // `stop` is how an answer should end; anything else is worth a word.
    let finish = outcome.finish_reason.as_deref().filter(|finish| *finish != "stop");
    parts.extend(finish.map(|finish| format!("finish reason {}", words::clean(finish))));
    parts
}

/// The target that was chosen, if it is another one that answered in the end.
fn failover<'a>(document: &'a Document<'_>) -> Option<&'a str> {
    let answered = document.outcome.target.as_deref()?;
    document.decision.target.as_deref().filter(|chosen| *chosen != answered)
}

/// Why the target was chosen, and that another one answered if so.
fn choice(document: &Document<'_>, sight: Sight) -> Option<String> {
    let decision = &document.decision;
    decision.target.as_deref()?;
    let scores = words::counted(scored(decision) as u64, "score");
    let why = match (decision.forced, decision.reason) {
        (Some(true), _) => "forced by the request".to_owned(),
        (_, None) => "chosen".to_owned(),
        (_, Some(reason)) => {
            let seen = decision.candidates.len().to_string();
            let why = reason_words(reason, (sight == Sight::Whole).then_some((&*seen, &*scores)));
            match decision.fallback {
                None => format!("chosen by {}: {why}", policy_words(decision)),
                Some(fallback) => format!("chosen by {}: {why}", fallback_words(decision, fallback)),
            }
        }
    };
    let Some(chosen) = failover(document) else { return Some(why) };
    let error = document.attempts.iter().find_map(|attempt| attempt.error.as_deref()).unwrap_or("no answer");
    let retried = document.attempts.last().and_then(|last| {
        let why = anew(decision, &last.choice)?;
        Some(format!("; retried on {}: {why}", words::clean(&last.target)))
    });
    let retried = retried.unwrap_or_default();
    Some(format!("a failover from {} ({}), which was {why}{retried}", words::clean(chosen), words::clean(error)))
}

/// Why a retry went where it went; `None` if that was not recorded.
pub(super) fn anew(decision: &DecisionPart<'_>, choice: &ChoicePart<'_>) -> Option<String> {
    let why = match (choice.reason?, choice.considered?) {
        (_, 1) => "the only untried target".to_owned(),
        (reason, considered) => {
            let untried = format!("{considered} untried");
            reason_words(reason, Some((&untried, &untried)))
        }
    };
    Some(match choice.fallback {
        None => why,
        Some(fallback) => format!("{why}, by {}", fallback_words(decision, fallback)),
    })
}

/// Why a target won: of so many that were looked at, and so many that have a score, if that is to be told.
fn reason_words(reason: Reason, among: Option<(&str, &str)>) -> String {
    match (reason, among) {
        (Reason::OnlyCandidate, _) => "the only candidate".to_owned(),
        (Reason::NextInTurn, None) => "next in turn".to_owned(),
        (Reason::NextInTurn, Some((seen, _))) => format!("next in turn of {seen}"),
        (Reason::LowestScore, None) => "the lowest score".to_owned(),
        (Reason::LowestScore, Some((_, scored))) => format!("lowest of {scored}"),
        (Reason::TieBrokenByDraw, None) => "drawn among the lowest scores".to_owned(),
        (Reason::TieBrokenByDraw, Some((_, scored))) => format!("drawn among the lowest of {scored}"),
        (Reason::Drawn, None) => "drawn".to_owned(),
        (Reason::Drawn, Some((seen, _))) => format!("drawn from {seen}"),
        (Reason::Affinity, _) => "the one it belongs to".to_owned(),
        (Reason::AffinityOverflow, _) => "the next one, as the one it belongs to has too much in flight".to_owned(),
        (Reason::Forced, _) => "forced by the request".to_owned(),
    }
}

fn policy_words(decision: &DecisionPart<'_>) -> &'static str {
    decision.policy.map_or("an unknown policy", Policy::name)
}

/// What chose in place of the policy, and why that could not.
fn fallback_words(decision: &DecisionPart<'_>, fallback: Fallback) -> String {
    let why = match fallback {
        Fallback::NoFreshState => "had no fresh state",
        Fallback::NoPrompt => "found no prompt",
        Fallback::NoSession => "found no session",
    };
    format!("least_request, because {} {why}", policy_words(decision))
}

/// How far the chosen target's state could be trusted.
fn trust(decision: &DecisionPart<'_>, whose: &str) -> Option<String> {
    decision.target.as_deref()?;
    let trust = Trust::of(&decision.state.state, 0);
    let age = trust.age_ms.map_or_else(|| "age unknown".to_owned(), |age| format!("{} old", words::millis(age)));
    Some(match trust.freshness? {
        Freshness::Fresh => format!("{whose} state was fresh ({age})"),
        Freshness::Stale => format!("{whose} state was stale ({age})"),
        Freshness::Missing if trust.age_ms.is_some() => format!("{whose} state was known in part only ({age})"),
        Freshness::Missing => format!("nothing was known of {whose} state"),
        Freshness::Unsupported => format!("no source gives {whose} state"),
    })
}

/// What a person would point at.
fn unusual(document: &Document<'_>, whose: &str) -> Vec<String> {
    let decision = &document.decision;
    let timings = &document.timings;
    let mut points = Vec::new();
    points.extend(long_queue(decision, whose));
    if let Some(usage) = decision.state.state.reading(Quantity::KvCacheUsage).value
        && usage >= KV_CACHE_FULL
    {
        points.push(format!("{whose} KV cache was {} % full", words::percent(usage)));
    }
    if let Some(count @ 1..) = decision.excluded.unhealthy {
        points.push(format!("{} unhealthy", words::counted_verb(u64::from(count), "target", "were", "was")));
    }
    if let Some(age @ VIEW_OLD_MS..) = decision.view_age_ms {
        points.push(format!("the gateway's view was {} old", words::millis(age)));
    }
    if let Some(first @ FIRST_CONTENT_LATE_US..) = timings.first_content_offset_us {
        points.push(format!("the first content came late, after {}", words::micros(first)));
    }
    if let Some(pause @ PAUSE_LONG_US..) = timings.inter_token_max_us {
        points.push(format!("tokens paused for {}", words::micros(pause)));
    }
    points
}

/// That more requests waited at the chosen target than at another candidate.
fn long_queue(decision: &DecisionPart<'_>, whose: &str) -> Option<String> {
    let own = decision.state.state.reading(Quantity::Waiting).value?;
    let others = decision.candidates.iter().filter(|candidate| !candidate.chosen);
    let waiting = others.filter_map(|other| {
        let value = state_of(other).reading(Quantity::Waiting).value?;
        Some((value, &other.target))
    });
    let (least, where_least) = waiting.min_by(|a, b| a.0.total_cmp(&b.0))?;
    (own - least >= QUEUE_EXCESS_MIN && own >= least * QUEUE_RATIO_MIN).then(|| {
        let (own, least, other) = (words::number(own), words::number(least), words::clean(where_least));
        format!("{whose} queue was long: {own} waiting, against {least} at {other}")
    })
}

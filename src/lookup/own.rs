//! What a caller sees who is no operator: the requests that bore the key it presents, by their IDs, and nothing that
//! tells about the fleet behind or about anybody else.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Lookup;
use super::key::Key;
use super::resolve::{Found, LookupError, TURN_WAIT_MAX, in_turn};
use crate::snapshot::document::{BackendReportPart, ChoicePart, ExcludedPart, KubernetesPart, Text};
use crate::snapshot::{Document, Ending, Record, Tenant};
use crate::store::Resolution;
use crate::tenant::is_same;

/// "There is no such request" goes out at a multiple of this after the question, so that the time it took to find that out,
/// which depends on what there is, cannot be seen. A read of the store takes a few hundredths of it.
const BEAT: Duration = Duration::from_millis(50);

/// The caller's record with this ID. Whatever else there is, or was, answers none, at the next beat.
pub(super) async fn find(lookup: &Lookup, tenant: Tenant, key: &Key) -> Result<Option<Found>, LookupError> {
    let asked = Instant::now();
    let found = search(lookup, tenant, key).await;
    if !matches!(found, Ok(Some(_))) {
        let beats = asked.elapsed().as_micros() / BEAT.as_micros() + 1;
        sleep_until(asked + BEAT * u32::try_from(beats).unwrap_or(u32::MAX)).await;
    }
    found
}

/// What somebody else's record in memory answers is what an unknown ID does: the store is asked in both cases, so both
/// wait for the same turn and fail in the same way.
async fn search(lookup: &Lookup, tenant: Tenant, key: &Key) -> Result<Option<Found>, LookupError> {
    let Some(id) = key.id() else { return Ok(None) };
    if let Some(record) = lookup.state.ledger.get(id).filter(|record| is_of(record, tenant)) {
        return Ok(Some(Found { record, stored: false }));
    }
    let now = lookup.state.clock.now();
    let resolution =
        in_turn(lookup, TURN_WAIT_MAX, move |reader| reader.map(|reader| reader.resolve(id, now)).transpose()).await?;
    match resolution {
        Some(Resolution::Found(record)) if is_of(&record, tenant) => Ok(Some(Found { record, stored: true })),
        _ => Ok(None),
    }
}

fn is_of(record: &Record, tenant: Tenant) -> bool {
    record.issued.request.tenant.is_some_and(|owner| is_same(owner, tenant))
}

/// Stands for the name of every target but the one whose answer the caller got. No target can have it for a name.
const OTHER_TARGET: &str = "(not shown)";

/// Stands for why a try failed: who wrote that text may have named an address, a host or a pod in it.
const FOR_OPERATORS: &str = "the reason is shown to operators";

/// Takes out of a document what is for operators: addresses, the candidates that lost, what a target reported of its load, how
/// many there are and could be tried again, and where and by which names targets run. The caller knows one target, whose name
/// came with its answer in `target-pod`; what else was tried is not named.
pub(super) fn redact(document: &mut Document<'_>) {
    let Document { decision, attempts, outcome, backend_report, .. } = document;
    *backend_report = BackendReportPart::default();
    let answered = attempts.last().filter(|last| last.status.is_some()).map(|last| last.target.to_string());
    let hide = |name: &mut Text<'_>| {
        if answered.as_deref() != Some(&**name) {
            *name = OTHER_TARGET.into();
        }
    };
    decision.target.iter_mut().for_each(hide);
    decision.kubernetes = KubernetesPart::default();
    decision.state.hide_gpu_uuids();
    decision.candidates.retain(|candidate| candidate.chosen);
    for candidate in &mut decision.candidates {
        hide(&mut candidate.target);
        candidate.hide_gpu_uuids();
    }
    let tells_of_the_fleet = !attempts.is_empty() || outcome.ending == Some(Ending::NoTarget);
    for attempt in attempts {
        hide(&mut attempt.target);
        attempt.address = None;
        attempt.error.iter_mut().for_each(|error| *error = FOR_OPERATORS.into());
        let ChoicePart { eligible, excluded, considered, score, .. } = &mut attempt.choice;
        (*eligible, *considered, *score) = (None, None, None);
        *excluded = ExcludedPart::default();
    }
    outcome.target.iter_mut().for_each(hide);
    // What is wrong with the request itself is the caller's to read.
    if tells_of_the_fleet {
        outcome.error.iter_mut().for_each(|error| *error = FOR_OPERATORS.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{render, specimen};
    use super::*;
    use crate::snapshot::{Attempt, Decision, Ending, Issued, Outcome, Place, Sample, Target};

    /// What a caller gets of a record, as JSON and as text.
    fn seen(record: &Record) -> [String; 2] {
        let mut document = Document::of(record);
        redact(&mut document);
        let mut json = Vec::new();
        document.write(&mut json);
        let json = String::from_utf8(json).unwrap();
        let read: Document<'_> = serde_json::from_str(&json).unwrap();
        [render::render(&read, render::WIDTH_MAX), json]
    }

    #[test]
    fn a_callers_view_has_no_address_and_no_losing_candidate() {
        for (name, record) in specimen::gallery() {
            let mut document = Document::of(&record);
            let chosen = document.decision.candidates.len().min(1);
            if let Some(attempt) = document.attempts.first_mut() {
                attempt.error = Some(format!("no route to {}", attempt.address.as_deref().unwrap()).into());
                document.outcome.error.clone_from(&attempt.error);
            }
            redact(&mut document);
            assert_eq!(document.decision.candidates.len(), chosen, "{name}");
            let mut json = Vec::new();
            document.write(&mut json);
            let json = String::from_utf8(json).unwrap();
            assert!(!json.contains("10.0.3."), "{name}: {json}");
        }
    }

    #[test]
    fn the_only_pod_that_a_caller_reads_of_is_the_one_that_answered() {
        for (name, record) in specimen::gallery() {
            let outcome = record.outcome();
            let answered = outcome.and_then(|outcome| outcome.attempts.last()).filter(|last| last.status.is_some());
            let answered = answered.map(|attempt| &*attempt.target.name);
            for text in seen(&record) {
                for pod in ["vllm-0", "vllm-1", "vllm-2"] {
                    assert_eq!(text.contains(pod), answered == Some(pod), "{name}, {pod}: {text}");
                }
                assert!(!text.contains(" untried"), "{name}: {text}");
            }
            let document: serde_json::Value = serde_json::from_str(&seen(&record)[1]).unwrap();
            let report = document["backend_report"].as_object().unwrap();
            assert!(
                report.values().all(|value| value.is_null() || *value == serde_json::json!({})),
                "{name}: {report:?}"
            );
            for attempt in document["attempts"].as_array().unwrap() {
                let choice = &attempt["choice"];
                assert!(choice["eligible"].is_null() && choice["excluded"]["unhealthy"].is_null(), "{name}: {choice}");
            }
        }
    }

    /// A pod of which discovery and an exporter have told all, reached in TLS.
    fn pod(target: &Target, name: &str) -> Arc<Target> {
        let labels = [("app".into(), format!("app-of-{name}").into())].into();
        let place = Place {
            namespace: "the-namespace".into(),
            pod: format!("pod-of-{name}").into(),
            uid: format!("uid-of-{name}").into(),
            node: Some(format!("node-of-{name}").into()),
            labels,
        };
        let address = format!("https://{name}.example:8443").into();
        Arc::new(Target { name: name.into(), address, place: Some(Arc::new(place)), ..target.clone() })
    }

    #[test]
    fn where_a_pod_runs_and_why_another_one_failed_is_for_operators() {
        let of = specimen::completed();
        let mut decision: Decision = of.issued.decision.clone().unwrap();
        let first = pod(&decision.chosen().sample.target, "falcon");
        decision.candidates.edit(|candidates| {
            candidates.truncate(1);
            let Sample { n, published, health, readings, window_ms, .. } = *candidates[0].sample;
            let sample = Sample::new(Arc::clone(&first), n, published, health, readings, window_ms);
            candidates[0].sample = Arc::new(sample.with_gpu_uuids(Some(["GPU-of-falcon".into()].into())));
        });
        let outcome = of.outcome().unwrap().clone();
        let answered = outcome.attempts[0].clone();
        let second = pod(&answered.target, "heron");
        let failed = Attempt {
            target: first,
            status: None,
            first_byte_offset_us: None,
            error: Some("connect: invalid peer certificate: certificate not valid for name \"falcon.example\"".into()),
            ..answered.clone()
        };
        let outcome = |attempts: Vec<Attempt>, error: Option<Box<str>>| Outcome { attempts, error, ..outcome.clone() };
        let issued = || Issued { decision: Some(decision.clone()), ..of.issued.clone() };

        let again = Attempt { target: second, ..answered };
        let failover = Record::closed(issued(), outcome(vec![failed.clone(), again], None));
        let error = failed.error.clone();
        let nobody = Outcome { ending: Ending::UpstreamReset, status: Some(502), ..outcome(vec![failed], error) };
        let nobody = Record::closed(issued(), nobody);
        let open = Record::open(issued());
        for (record, known) in [(&failover, Some("heron")), (&nobody, None), (&open, None)] {
            for text in seen(record) {
                assert!(known.is_none_or(|known| text.contains(known)), "{text}");
                // Of the one that answered there is its name, and nothing that has it in it.
                let rest = known.map_or_else(|| text.clone(), |known| text.replace(known, ""));
                for told in ["falcon", "heron", "example", "8443", "-of-", "the-namespace", "GPU-", "not valid"] {
                    assert!(!rest.contains(told), "{told}: {text}");
                }
                assert!(text.contains("(not shown)"), "that something is left out is said: {text}");
            }
        }
        let [text, json] = seen(&failover);
        assert!(text.contains("on heron") && text.contains("a failover from (not shown)"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["outcome"]["target"], &json["attempts"][1]["error"]), (&"heron".into(), &().into()));
        assert_eq!(json["decision"]["state"]["waiting"], 0.0, "how it was chosen is told");
        assert_eq!(json["decision"]["candidates"][0]["state"]["waiting"], 0.0);
    }

    #[test]
    fn what_was_wrong_with_the_request_itself_is_told() {
        let rejected = specimen::gallery().into_iter().find(|(name, _)| *name == "rejected").unwrap().1;
        let [text, json] = seen(&rejected);
        assert!(text.contains("see routes.allow") && json.contains("see routes.allow"), "{text}{json}");
    }

    #[test]
    fn how_many_targets_there_are_is_not_told_when_none_could_be_chosen() {
        let rejected = specimen::gallery().into_iter().find(|(name, _)| *name == "rejected").unwrap().1;
        let error = Some("every target is unhealthy: 37 of 37".into());
        let outcome = Outcome { ending: Ending::NoTarget, error, ..rejected.outcome().unwrap().clone() };
        let nobody = Record::closed(rejected.issued.clone(), outcome);
        for text in seen(&nobody) {
            assert!(text.contains(FOR_OPERATORS) && !text.contains("37"), "{text}");
        }
    }
}

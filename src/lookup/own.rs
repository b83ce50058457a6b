//! What a caller sees who is no operator: the requests that bore the key it presents, by their IDs, and nothing that
//! tells about the fleet behind or about anybody else.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Lookup;
use super::key::Key;
use super::resolve::{Found, LookupError, TURN_WAIT_MAX, in_turn};
use crate::snapshot::{Document, Record, Tenant};
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

/// Takes out of a document what is for operators: addresses, and the candidates that lost.
pub(super) fn redact(document: &mut Document<'_>) {
    document.decision.candidates.retain(|candidate| candidate.chosen);
    let addresses: Vec<String> =
        document.attempts.iter_mut().filter_map(|attempt| Some(attempt.address.take()?.to_string())).collect();
    let tells = |text: &str| addresses.iter().any(|address| text.contains(host(address)));
    for attempt in &mut document.attempts {
        attempt.error.take_if(|error| tells(error));
    }
    document.outcome.error.take_if(|error| tells(error));
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::super::specimen;
    use super::*;

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
}

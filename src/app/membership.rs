//! Who belongs to the fleet and who says so, for the read side.

use std::sync::Arc;

use crate::discovery::{Discovery, Status};
use crate::fleet::{Fleet, Leaving};
use crate::lookup::{LeavingPart, Membership, MembershipSource, SourcePart};

/// Of the targets that a source has and the fleet has not so many are named.
const LEFT_OUT_SHOWN: usize = 16;

/// Tells it anew each time.
pub(super) fn of(fleet: &Arc<Fleet>, discovery: &Arc<Discovery>) -> MembershipSource {
    let (fleet, discovery) = (Arc::clone(fleet), Arc::clone(discovery));
    Arc::new(move || Membership {
        leaving: fleet.leaving().into_iter().map(leaving).collect(),
        sources: discovery.status().into_iter().map(source).collect(),
    })
}

/// What is wrong with sources, a sentence each: their last targets still serve.
pub(super) fn warnings(discovery: &Discovery) -> Vec<String> {
    let mut warnings = Vec::new();
    for Status { name, problem, left_out, targets, .. } in discovery.status() {
        warnings.extend(problem.map(|problem| format!("discovery {name}: {problem}; its last {targets} targets stay")));
        if let Some(first) = left_out.first() {
            let count = left_out.len();
            warnings.push(format!("discovery {name}: {count} of its targets are left out, the first: {first}"));
        }
    }
    warnings
}

fn leaving(Leaving { name, address, in_flight, since }: Leaving) -> LeavingPart {
    LeavingPart { name, address, gateway_in_flight: in_flight, left_ms: since.as_millis() as u64 }
}

fn source(Status { name, kind, targets, age, problem, left_out: mut first_left_out }: Status) -> SourcePart {
    let (age_ms, left_out) = (age.map(|age| age.as_millis() as u64), first_left_out.len());
    first_left_out.truncate(LEFT_OUT_SHOWN);
    SourcePart { name, kind, targets, age_ms, problem, left_out, first_left_out }
}

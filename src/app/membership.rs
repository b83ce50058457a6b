//! Who belongs to the fleet and who says so, for the read side.

use std::sync::Arc;

use crate::discovery::{Discovery, Status};
use crate::fleet::{Fleet, Leaving};
use crate::lookup::{LeavingPart, Membership, MembershipSource, SourcePart};
use crate::snapshot::FleetView;

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

/// Why nobody can serve, if that is so.
pub(super) fn nobody_serves(view: &FleetView, discovery: &Discovery) -> Option<String> {
    if !view.pools.all().eligible.is_empty() {
        return None;
    }
    let is_awaited = discovery.status().iter().any(|source| source.age.is_none());
    Some(match view.members.len() {
        0 if is_awaited => "there are no targets yet".to_owned(),
        0 => "there are no targets".to_owned(),
        count => format!("none of {count} targets is able to serve"),
    })
}

/// What is wrong with sources, a sentence each: their last targets still serve. Everybody may read it, so it has neither names of
/// targets nor what stands in files; `/v1/fleet` has.
pub(super) fn warnings(discovery: &Discovery) -> Vec<String> {
    let mut warnings = Vec::new();
    for Status { name, trouble, left_out, targets, age, .. } in discovery.status() {
        let stay = match (age, targets) {
            (None, 0) => "it has no targets yet".to_owned(),
            (_, 1) => "its last target stays".to_owned(),
            _ => format!("its last {targets} targets stay"),
        };
        warnings.extend(trouble.map(|trouble| format!("discovery {name}: it {trouble}; {stay}")));
        if !left_out.is_empty() {
            let count = left_out.len();
            let why = "others have their names or addresses";
            warnings.push(format!("discovery {name}: {count} of its {targets} targets are left out: {why}"));
        }
    }
    warnings
}

/// That pages are read so seldom that what they say goes stale in between, if that is so.
pub(super) fn seldom(fleet: &Fleet, targets: usize) -> Option<String> {
    let count = fleet.seldom();
    let (verb, whose) = if count == 1 { ("is", "its") } else { ("are", "their") };
    (count > 0).then(|| {
        format!(
            "{count} of {targets} targets {verb} asked for {whose} metrics too seldom for them to stay fresh: see \
             fleet.fresh_within_max, fleet.target_share and fleet.cpu_share"
        )
    })
}

fn leaving(Leaving { name, address, in_flight, since }: Leaving) -> LeavingPart {
    LeavingPart { name, address, gateway_in_flight: in_flight, left_ms: since.as_millis() as u64 }
}

fn source(Status { name, kind, targets, age, problem, left_out: mut first_left_out, .. }: Status) -> SourcePart {
    let (age_ms, left_out) = (age.map(|age| age.as_millis() as u64), first_left_out.len());
    first_left_out.truncate(LEFT_OUT_SHOWN);
    SourcePart { name, kind, targets, age_ms, problem, left_out, first_left_out }
}

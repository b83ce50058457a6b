//! Who is in the fleet: slots in ascending order, and the publisher that keeps a sample of each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ejection::Rule;
use super::publish::{FreshWithin, Publisher};
use super::slot::Slot;
use super::{Settings, TargetSettings};
use crate::snapshot::{Attached, FleetView, Moment};

/// Targets that left and have nothing to end are remembered for their names' sake, so many at most: no more have series.
const IDLE_DRAINS_MAX: usize = 1_000;

/// The targets of now.
#[derive(Debug)]
pub(super) struct Roster {
    slots: Vec<Arc<Slot>>,
    /// Never given out before in this run: records, leases and the store know a target by its slot.
    next_slot: u32,
    publisher: Publisher,
    /// What every view of these targets brings with it.
    pub(super) with: Attached,
    /// When costs were last carried on.
    pub(super) settled: Instant,
    /// Those that left not so long ago, oldest first.
    drains: Vec<Drain>,
    drain_time: Duration,
}

/// A target that has left the view: requests may be at it, or have ended so lately that nobody has counted them yet.
#[derive(Debug)]
struct Drain {
    slot: Arc<Slot>,
    since: Instant,
}

/// A target that gets no more requests and is not done with those it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// As it was called.
    pub name: String,
    /// Where it was.
    pub address: String,
    /// Requests of this gateway at it.
    pub in_flight: u32,
    /// How long ago it left.
    pub since: Duration,
}

/// What became of the targets, by name. One whose address is another one is both removed and added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// New ones.
    pub added: Vec<String>,
    /// Those that get no more requests.
    pub removed: Vec<String>,
    /// How many stay.
    pub kept: usize,
}

impl Drain {
    fn has_requests(&self) -> bool {
        self.slot.live.in_flight() > 0
    }
}

impl Roster {
    pub(super) fn new(settings: &Settings, start: Instant, now: Moment) -> Self {
        let slots: Vec<_> =
            (0..).zip(&settings.targets).map(|(slot, target)| Arc::new(Slot::new(slot, target))).collect();
        let eject = Rule { after: settings.eject_after, time: settings.eject_time };
        let fresh_within = FreshWithin { usual: settings.fresh_within, gpus: settings.gpu_fresh_within };
        let publisher = Publisher::new(&slots, fresh_within, settings.window, eject, start, now);
        Self {
            next_slot: slots.len() as u32,
            slots,
            publisher,
            with: None,
            settled: start,
            drains: Vec::new(),
            drain_time: settings.drain_time,
        }
    }

    pub(super) fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    pub(super) fn view(&mut self, instant: Instant, now: Moment) -> FleetView {
        FleetView { with: self.with.clone(), ..self.publisher.view(&self.slots, instant, now) }
    }

    /// The names of all targets, those that leave included.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let leaving = self.drains.iter().map(|drain| &drain.slot);
        self.slots.iter().chain(leaving).map(|slot| &*slot.target.name)
    }

    pub(super) fn leaving(&self) -> Vec<Leaving> {
        let leaving = |Drain { slot, since }: &Drain| Leaving {
            name: slot.target.name.to_string(),
            address: slot.target.address.to_string(),
            in_flight: slot.live.in_flight(),
            since: since.elapsed(),
        };
        self.drains.iter().filter(|drain| drain.has_requests()).map(leaving).collect()
    }

    /// How many have left and have requests to end.
    pub(super) fn leaving_count(&self) -> usize {
        self.drains.iter().filter(|drain| drain.has_requests()).count()
    }

    /// Forgets those that have left for good: their time is over, or there are too many with nothing to end. Says whether there
    /// were any. What is still under way goes on to its end, and is recorded with the target's name.
    ///
    /// Nobody is forgotten only for having nothing to end: the last requests are counted when they are stored, which is later.
    pub(super) fn see_off(&mut self) -> bool {
        let before = self.drains.len();
        let mut too_many = (before - self.leaving_count()).saturating_sub(IDLE_DRAINS_MAX);
        self.drains.retain(|drain| {
            if too_many > 0 && !drain.has_requests() {
                too_many -= 1;
                return false;
            }
            drain.since.elapsed() < self.drain_time
        });
        self.drains.len() < before
    }

    /// See [`Fleet::set_targets`](super::Fleet::set_targets).
    pub(super) fn replace(&mut self, targets: &[TargetSettings], now: Moment) -> Change {
        let mut change = Change::default();
        let identity = |slot: &Slot| (slot.target.name.clone(), slot.target.address.clone());
        let mut before: HashMap<_, _> =
            self.slots.iter().enumerate().map(|(place, slot)| (identity(slot), place)).collect();
        let mut next: Vec<(Arc<Slot>, Option<usize>)> = Vec::with_capacity(targets.len());
        for target in targets {
            let place = before.remove(&(target.name.as_str().into(), target.address.as_str().into()));
            let slot = match place.map(|place| &self.slots[place]) {
                Some(slot) if slot.is_described(target) => Arc::clone(slot),
                Some(slot) => Arc::new(slot.described(target)),
                None => {
                    change.added.push(target.name.clone());
                    self.next_slot += 1;
                    Arc::new(Slot::newcomer(self.next_slot - 1, target))
                }
            };
            next.push((slot, place));
        }
        let since = Instant::now();
        for ((name, _), place) in before {
            change.removed.push(name.into());
            self.drains.push(Drain { slot: Arc::clone(&self.slots[place]), since });
        }
        change.removed.sort_unstable();
        change.kept = next.len() - change.added.len();
        next.sort_unstable_by_key(|(slot, _)| slot.target.slot);
        let places: Vec<_>;
        (self.slots, places) = next.into_iter().unzip();
        self.publisher.rearrange(&self.slots, &places, now);
        change
    }
}

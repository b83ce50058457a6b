//! Who is in a view, in blocks of neighbours that outlive it where a decision was made from them.

use std::ops::Index;
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::sample::Sample;
use super::view::Live;

/// Members in a block: small enough that keeping one for a sample of it keeps little else.
pub const BLOCK: usize = 8;

/// Neighbours. Shared by all views in which none of them has changed.
pub type Block = ArrayVec<Member, BLOCK>;

/// One target in a view.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its published state.
    pub sample: Arc<Sample>,
    /// Its counters, shared by all views.
    pub live: Arc<Live>,
}

/// The targets of a view, in blocks, which [`Candidates`](super::Candidates) keep.
#[derive(Debug, Default)]
pub struct Members {
    /// All of them full but the last.
    blocks: Box<[Arc<Block>]>,
}

impl Members {
    /// Of blocks that are full, but for the last.
    pub fn of_blocks(blocks: Vec<Arc<Block>>) -> Self {
        debug_assert!(blocks.iter().rev().skip(1).all(|block| block.is_full()), "only the last block may have room");
        Self { blocks: blocks.into() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.blocks.last().map_or(0, |last| (self.blocks.len() - 1) * BLOCK + last.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.blocks.iter().flat_map(|block| block.iter())
    }

    /// The target in a slot.
    pub(super) fn of_slot(&self, slot: u32) -> Option<&Member> {
        let slot_of = |member: &Member| member.sample.target.slot;
        let number = self.blocks.partition_point(|block| block.last().is_some_and(|last| slot_of(last) < slot));
        self.blocks.get(number)?.iter().find(|member| slot_of(member) == slot)
    }

    /// The blocks, for the next view to share.
    pub fn blocks(&self) -> &[Arc<Block>] {
        &self.blocks
    }
}

impl Index<usize> for Members {
    type Output = Member;

    fn index(&self, index: usize) -> &Member {
        &self.blocks[index / BLOCK][index % BLOCK]
    }
}

impl FromIterator<Member> for Members {
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        let mut members = members.into_iter().peekable();
        let mut blocks = Vec::new();
        while members.peek().is_some() {
            blocks.push(Arc::new(members.by_ref().take(BLOCK).collect()));
        }
        Self::of_blocks(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{FleetView, Health, Moment, Quantity, Reading, Target};

    /// Targets in every third slot.
    fn view(count: u32) -> FleetView {
        let member = |place: u32| {
            let target = Target::new(place * 3, &format!("t{place}"), "");
            let readings = [Reading::MISSING; Quantity::COUNT];
            let sample = Sample::new(Arc::new(target), 1, Moment(1), Health::Healthy, readings, 0);
            Member { sample: Arc::new(sample), live: Arc::default() }
        };
        FleetView::of_any_model(Moment(1), (0..count).map(member))
    }

    #[test]
    fn blocks_are_not_seen_from_outside() {
        for count in [0, 1, 7, 8, 9, 16, 30] {
            let FleetView { members, .. } = view(count);
            assert_eq!((members.len(), members.is_empty()), (count as usize, count == 0));
            let slots: Vec<_> = members.iter().map(|member| member.sample.target.slot).collect();
            assert_eq!(slots, (0..count).map(|place| place * 3).collect::<Vec<_>>());
            assert!((0..members.len()).all(|index| members[index].sample.target.slot as usize == index * 3));
        }
    }

    #[test]
    fn a_target_is_found_by_its_slot_alone() {
        for count in [0, 1, 8, 30] {
            let view = view(count);
            for slot in 0..count * 3 + 4 {
                let found = view.member(slot).map(|member| member.sample.target.slot);
                assert_eq!(found, Some(slot).filter(|slot| slot % 3 == 0 && *slot < count * 3), "{count} targets");
            }
        }
    }
}

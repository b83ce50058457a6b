//! The targets that a decision looked at, and what it keeps of the view in which it saw them.

use std::sync::Arc;

use smallvec::SmallVec;

use super::decision::SCORE_PARTS_MAX;
use super::members::{BLOCK, Block, Members};
use super::sample::Sample;

/// Blocks that need no allocation of their own: two runs of eight neighbours lie in four.
const KEPT_INLINE: usize = 4;

/// One target that was looked at. `S` is what says its state as published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<S = Arc<Sample>> {
    /// Its state as published.
    pub sample: S,
    /// Its place among the eligible, from 0; `None` in records of a store's first version, and if it was forced.
    pub place: Option<u32>,
    /// Requests of this gateway at the target, at the decision.
    pub in_flight: u32,
    /// Requests per second this gateway sent it over the window.
    pub requests_per_second: f64,
    /// Tokens per second this gateway saw from it over the window.
    pub tokens_per_second: f64,
    /// The sum of its parts; the lowest wins. `None` if it was not scored: it lacks a fresh value, or was forced.
    pub score: Option<f64>,
    /// What the score is made of, in the order of [`Policy::score_parts`](super::Policy::score_parts); 0 beyond.
    pub score_parts: [f64; SCORE_PARTS_MAX],
}

impl<S> Candidate<S> {
    /// The same, with its state found elsewhere.
    fn with<T>(self, sample: T) -> Candidate<T> {
        let Self { sample: _, place, in_flight, requests_per_second, tokens_per_second, score, score_parts } = self;
        Candidate { sample, place, in_flight, requests_per_second, tokens_per_second, score, score_parts }
    }
}

/// Candidates in their order. Each block in which some were seen is kept once: a count for every sample, which data path and
/// worker would tear from each other, would cost more than all else there is to a choice.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    list: Box<[Candidate<At>]>,
    kept: SmallVec<[Kept; KEPT_INLINE]>,
}

/// Where a sample is.
#[derive(Clone, Copy, Debug)]
struct At {
    kept: u32,
    /// Within the block.
    member: u8,
}

#[derive(Clone, Debug)]
enum Kept {
    /// Seen in a view.
    Block(Arc<Block>),
    /// Read from a store.
    Alone(Arc<Sample>),
}

impl Candidates {
    /// Of members of a view, by their places in it.
    pub fn seen(members: &Members, seen: impl Iterator<Item = Candidate<usize>>) -> Self {
        let (mut kept, mut numbers) = (SmallVec::new(), SmallVec::<[usize; KEPT_INLINE]>::new());
        let list = seen.map(|candidate| {
            let (number, member) = (candidate.sample / BLOCK, (candidate.sample % BLOCK) as u8);
            let place = numbers.iter().position(|known| *known == number).unwrap_or_else(|| {
                numbers.push(number);
                kept.push(Kept::Block(Arc::clone(&members.blocks()[number])));
                numbers.len() - 1
            });
            candidate.with(At { kept: place as u32, member })
        });
        Self { list: list.collect(), kept }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The winner.
    pub fn first(&self) -> Option<Candidate<&Arc<Sample>>> {
        self.get(0)
    }

    /// The one of a rank, from 0.
    pub fn get(&self, rank: usize) -> Option<Candidate<&Arc<Sample>>> {
        self.list.get(rank).map(|candidate| self.resolve(candidate))
    }

    /// Best first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Candidate<&Arc<Sample>>> {
        self.list.iter().map(|candidate| self.resolve(candidate))
    }

    /// An estimate of the memory they keep, in bytes. A block counts as if a view had it, too: whoever keeps many decisions
    /// keeps the same few blocks many times.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.list) + size_of_val(&*self.kept)
    }

    fn resolve(&self, candidate: &Candidate<At>) -> Candidate<&Arc<Sample>> {
        let At { kept, member } = candidate.sample;
        candidate.with(match &self.kept[kept as usize] {
            Kept::Block(block) => &block[usize::from(member)].sample,
            Kept::Alone(sample) => sample,
        })
    }
}

/// Of samples that are kept one by one.
impl FromIterator<Candidate> for Candidates {
    fn from_iter<I: IntoIterator<Item = Candidate>>(candidates: I) -> Self {
        let mut kept = SmallVec::new();
        let list = candidates.into_iter().map(|candidate| {
            let at = At { kept: kept.len() as u32, member: 0 };
            kept.push(Kept::Alone(Arc::clone(&candidate.sample)));
            candidate.with(at)
        });
        Self { list: list.collect(), kept }
    }
}

/// By what they say, wherever it is kept.
impl PartialEq for Candidates {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

#[cfg(test)]
impl Candidates {
    /// Makes others of them.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut Vec<Candidate>)) {
        let mut list: Vec<_> = self.iter().map(|candidate| candidate.with(Arc::clone(candidate.sample))).collect();
        change(&mut list);
        *self = list.into_iter().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{FleetView, Health, Member, Moment, Quantity, Reading, Target};

    fn of(sample: usize) -> Candidate<usize> {
        let (in_flight, score_parts) = (sample as u32, [0.0; SCORE_PARTS_MAX]);
        let (requests_per_second, tokens_per_second) = (0.0, 0.0);
        Candidate { sample, place: None, in_flight, requests_per_second, tokens_per_second, score: None, score_parts }
    }

    #[test]
    fn each_has_its_own_state_though_blocks_are_kept_once() {
        let member = |slot: u32| {
            let target = Target::new(slot, &format!("t{slot}"), "");
            let sample =
                Sample::new(Arc::new(target), 1, Moment(1), Health::Healthy, [Reading::MISSING; Quantity::COUNT], 0);
            Member { sample: Arc::new(sample), live: Arc::default() }
        };
        let view = FleetView::of_any_model(Moment(1), (0..50).map(member));
        for order in [vec![], vec![49], vec![9, 0, 8, 1, 7], (0..50).rev().collect()] {
            let mut candidates = Candidates::seen(&view.members, order.iter().copied().map(of));
            let blocks: std::collections::HashSet<_> = order.iter().map(|index| index / BLOCK).collect();
            assert_eq!((candidates.len(), candidates.kept.len()), (order.len(), blocks.len()));
            for (candidate, index) in candidates.iter().zip(&order) {
                assert!(Arc::ptr_eq(candidate.sample, &view.members[*index].sample));
                assert_eq!(candidate.in_flight as usize, *index);
            }
            let seen = candidates.clone();
            candidates.edit(|_| ());
            assert_eq!(candidates, seen, "the same without a view");
        }
    }
}

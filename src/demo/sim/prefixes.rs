//! The prefix cache: which prompt blocks the engine has computed lately.

use std::collections::{HashMap, VecDeque};

/// Block hashes, least recently used first out. Bounded by the number of blocks it is made for.
#[derive(Debug)]
pub(super) struct Prefixes {
    capacity: usize,
    /// When each block was last used.
    last_use: HashMap<u64, u64>,
    /// Every use in order; only a block's last one counts.
    uses: VecDeque<(u64, u64)>,
    now: u64,
}

impl Prefixes {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, last_use: HashMap::new(), uses: VecDeque::new(), now: 0 }
    }

    /// Uses a prompt's blocks, in order. Answers how many from the start on were known.
    pub(super) fn touch(&mut self, blocks: &[u64]) -> usize {
        let known = blocks.iter().take_while(|block| self.last_use.contains_key(block)).count();
        // The last block first, so that of one prompt the end is forgotten before the beginning it depends on.
        for &block in blocks.iter().rev() {
            self.now += 1;
            self.last_use.insert(block, self.now);
            self.uses.push_back((block, self.now));
        }
        while self.last_use.len() > self.capacity {
            let Some((block, at)) = self.uses.pop_front() else { break };
            if self.last_use.get(&block) == Some(&at) {
                self.last_use.remove(&block);
            }
        }
        self.forget_old_uses();
        known
    }

    /// Keeps the list of uses at most twice as long as the cache is large, at a constant cost per use.
    fn forget_old_uses(&mut self) {
        if self.uses.len() > 2 * self.capacity.max(self.last_use.len()) {
            let last_use = &self.last_use;
            self.uses.retain(|(block, at)| last_use.get(block) == Some(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_known_up_to_its_first_unknown_block() {
        let mut prefixes = Prefixes::new(10);
        assert_eq!(prefixes.touch(&[1, 2, 3]), 0);
        assert_eq!(prefixes.touch(&[1, 2, 4, 3]), 2);
        assert_eq!(prefixes.touch(&[2]), 1);
    }

    #[test]
    fn what_was_not_used_for_long_is_forgotten_end_first() {
        let mut prefixes = Prefixes::new(4);
        prefixes.touch(&[1, 2]);
        prefixes.touch(&[7, 8]);
        prefixes.touch(&[1]);
        prefixes.touch(&[9]);
        assert!(!prefixes.last_use.contains_key(&2), "{:?}", prefixes.last_use);
        assert_eq!(prefixes.touch(&[7, 8]), 2);
    }

    #[test]
    fn memory_is_bounded_by_the_cache_and_not_by_the_uses() {
        let mut prefixes = Prefixes::new(8);
        for round in 0..1_000 {
            prefixes.touch(&[1, 2, 3, round % 20 + 10]);
            assert!(prefixes.last_use.len() <= 8 && prefixes.uses.len() <= 16, "{prefixes:?}");
        }
        assert_eq!(prefixes.touch(&[1, 2, 3]), 3);
    }
}

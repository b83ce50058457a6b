//! Random draws that a seed repeats on every machine and with every version of every crate: SplitMix64.

use std::hash::{Hash, Hasher};

/// A sequence of draws. Each request has its own, so that concurrent requests do not change one another's.
#[derive(Clone, Debug)]
pub(super) struct Draws {
    state: u64,
}

impl Draws {
    /// The sequence of request number `sequence` under `seed`.
    pub(super) fn of(seed: u64, sequence: u64) -> Self {
        let mut draws = Self { state: seed };
        Self { state: draws.next() ^ sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.state)
    }

    /// Evenly spread over 0 ≤ x < 1.
    pub(super) fn unit(&mut self) -> f64 {
        // 53 bits are what a double can hold.
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly spread over 1 ± `jitter`.
    pub(super) fn around_one(&mut self, jitter: f64) -> f64 {
        if jitter == 0.0 { 1.0 } else { 1.0 + jitter * (2.0 * self.unit() - 1.0) }
    }
}

/// A hash that is the same in every run, for prompt blocks and for what is derived from a name.
pub(super) fn hash_of(value: &(impl Hash + ?Sized)) -> u64 {
    let mut fold = Fold(0xCBF2_9CE4_8422_2325);
    value.hash(&mut fold);
    fold.finish()
}

/// Eight bytes at a time; collisions only matter as a prefix hit that should not have been.
struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            self.0 = mixed(self.0 ^ u64::from_le_bytes(padded));
        }
    }

    fn finish(&self) -> u64 {
        mixed(self.0)
    }
}

/// The finaliser of SplitMix64.
const fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_draws_and_requests_differ() {
        let draws = |seed, sequence| {
            let mut draws = Draws::of(seed, sequence);
            [draws.next(), draws.next()]
        };
        assert_eq!(draws(7, 1), draws(7, 1));
        assert_ne!(draws(7, 1), draws(7, 2));
        assert_ne!(draws(7, 1), draws(8, 1));
    }

    #[test]
    fn jitter_stays_in_its_band_and_uses_it() {
        let mut draws = Draws::of(1, 1);
        let factors: Vec<f64> = (0..1_000).map(|_| draws.around_one(0.2)).collect();
        assert!(factors.iter().all(|factor| (0.8..1.2).contains(factor)), "{factors:?}");
        assert!(factors.iter().any(|factor| *factor < 0.85) && factors.iter().any(|factor| *factor > 1.15));
        assert_eq!(draws.around_one(0.0), 1.0);
    }
}

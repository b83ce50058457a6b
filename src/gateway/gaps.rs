//! Times between tokens without keeping them: a log-linear histogram of fixed size and an exact maximum.
//!
//! A stream can have a hundred thousand tokens and there are thousands of streams, so samples are not kept. Each octave
//! is split into 16 buckets of equal width and a percentile is the middle of its bucket: at most 1/32 (3.2 %) off, and
//! exact below 32 µs, where buckets are 1 µs wide.

/// Buckets per octave, as a power of two.
const SPLIT_BITS: u32 = 4;
const SPLIT: usize = 1 << SPLIT_BITS;

/// Longer gaps (2^30 µs, 17.9 minutes) are counted as this long; timeouts end a stream sooner. The maximum stays exact.
const GAP_US_MAX: u64 = (1 << 30) - 1;

/// 16 for the values below 16, then 16 for each octave up to 2^30: 1.7 KiB a stream.
const BUCKETS: usize = bucket_of(GAP_US_MAX) + 1;

/// The times between one stream's content events, all in microseconds.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    last_us: Option<u64>,
    /// Comes with the second event: most answers in one piece and most errors never need it.
    counts: Option<Box<[u32]>>,
    samples: u64,
    max_us: u64,
}

/// What is kept of a stream's gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) max_us: u64,
}

impl Gaps {
    /// A content event came at this offset. Two in one frame are 0 µs apart, because that is what the client saw.
    pub(super) fn arrived(&mut self, at_us: u64) {
        if let Some(last_us) = self.last_us {
            self.record(at_us.saturating_sub(last_us));
        }
        self.last_us = Some(at_us);
    }

    fn record(&mut self, gap_us: u64) {
        let counts = self.counts.get_or_insert_with(|| vec![0; BUCKETS].into_boxed_slice());
        let count = &mut counts[bucket_of(gap_us.min(GAP_US_MAX))];
        *count = count.saturating_add(1);
        self.samples += 1;
        self.max_us = self.max_us.max(gap_us);
    }

    /// `None` before the second event.
    pub(super) fn summary(&self) -> Option<Summary> {
        let counts = self.counts.as_deref()?;
        Some(Summary { p50_us: self.percentile(counts, 50), p99_us: self.percentile(counts, 99), max_us: self.max_us })
    }

    /// The smallest gap that at least `percent` of all gaps do not exceed (nearest rank), as exactly as a bucket tells.
    fn percentile(&self, counts: &[u32], percent: u64) -> u64 {
        let rank = (self.samples * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, &count) in counts.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return middle_of(bucket).min(self.max_us);
            }
        }
        self.max_us
    }
}

/// Values below 16 have a bucket each; above, the highest bit chooses the octave and the next four the bucket in it.
const fn bucket_of(gap_us: u64) -> usize {
    if gap_us < SPLIT as u64 {
        return gap_us as usize;
    }
    let shift = gap_us.ilog2() - SPLIT_BITS;
    // The leading one is still there after the shift, and makes up for the octave that the values below 16 take.
    shift as usize * SPLIT + (gap_us >> shift) as usize
}

const fn middle_of(bucket: usize) -> u64 {
    if bucket < SPLIT {
        return bucket as u64;
    }
    let shift = (bucket / SPLIT - 1) as u32;
    let lowest = ((bucket % SPLIT + SPLIT) as u64) << shift;
    lowest + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(gaps_us: &[u64]) -> Gaps {
        let mut gaps = Gaps::default();
        let mut at_us = 7;
        gaps.arrived(at_us);
        for gap_us in gaps_us {
            at_us += gap_us;
            gaps.arrived(at_us);
        }
        gaps
    }

    #[test]
    fn buckets_follow_each_other_without_a_hole() {
        assert_eq!(BUCKETS, 432);
        assert_eq!((bucket_of(0), bucket_of(15), bucket_of(16), bucket_of(31), bucket_of(32)), (0, 15, 16, 31, 32));
        assert_eq!((bucket_of(33), bucket_of(34), bucket_of(GAP_US_MAX)), (32, 33, BUCKETS - 1));
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(middle_of(bucket)), bucket, "the middle of a bucket lies in it");
        }
    }

    #[test]
    fn one_event_has_no_gap_and_costs_no_memory() {
        let gaps = of(&[]);
        assert_eq!(gaps.summary(), None);
        assert!(gaps.counts.is_none());
    }

    #[test]
    fn events_of_one_frame_are_zero_apart() {
        assert_eq!(of(&[0, 0, 900]).summary(), Some(Summary { p50_us: 0, p99_us: 900, max_us: 900 }));
    }

    #[test]
    fn a_gap_beyond_the_scale_keeps_its_exact_maximum() {
        let summary = of(&[u64::MAX / 2]).summary().unwrap();
        assert_eq!(summary.max_us, u64::MAX / 2);
        assert!(summary.p50_us > GAP_US_MAX / 32 * 30, "{summary:?}");
    }

    #[test]
    fn a_clock_that_goes_back_counts_as_no_time() {
        let mut gaps = Gaps::default();
        gaps.arrived(10);
        gaps.arrived(4);
        assert_eq!(gaps.summary(), Some(Summary { p50_us: 0, p99_us: 0, max_us: 0 }));
    }

    fn exact(sorted: &[u64], percent: usize) -> u64 {
        sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
    }

    proptest! {
        #[test]
        fn percentiles_are_within_a_thirty_second(
            mut gaps_us in prop::collection::vec(prop_oneof![0..64u64, 0..100_000u64, 0..600_000_000u64], 1..400),
        ) {
            let summary = of(&gaps_us).summary().unwrap();
            gaps_us.sort_unstable();
            for (percent, found) in [(50, summary.p50_us), (99, summary.p99_us)] {
                let exact = exact(&gaps_us, percent);
                let error = found.abs_diff(exact) as f64;
                prop_assert!(error <= exact as f64 * 0.032, "p{percent}: {found}, exactly {exact}");
            }
            prop_assert_eq!(summary.max_us, *gaps_us.last().unwrap());
        }
    }
}

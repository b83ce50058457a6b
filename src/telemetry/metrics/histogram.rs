//! A histogram that costs an observation a few nanoseconds and remembers an example for each of its buckets.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::number::locked;
use crate::snapshot::{Moment, Record, SnapshotId, TraceId};
use crate::telemetry::names::{Definition, Kind};

/// A bucket's example is replaced when it is so old: more often than anybody asks for the page is work for nothing.
const EXEMPLAR_AGE_MIN: Duration = Duration::from_secs(1);

/// The request that an observation is of. Copied as it is, and put into words only for the page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exemplar {
    pub(super) snapshot_id: SnapshotId,
    pub(super) trace_id: TraceId,
    /// When it was observed: the request's end.
    pub(super) at: Moment,
}

impl Exemplar {
    /// Of a finished request.
    pub(super) fn of(record: &Record) -> Self {
        let issued = &record.issued;
        let at = record.ended().unwrap_or(issued.issued_at);
        Self { snapshot_id: issued.id, trace_id: issued.trace.trace_id, at }
    }
}

/// Counts by bucket, and the sum.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds; the last is for what is beyond all of them.
    buckets: Box<[Bucket]>,
    /// The bits of a float.
    sum: AtomicU64,
}

#[derive(Debug, Default)]
struct Bucket {
    count: AtomicU64,
    /// Unix microseconds of the example, so that most observations need not look at it.
    example_at: AtomicU64,
    /// The observed value, and of what.
    example: Mutex<Option<(f64, Exemplar)>>,
}

/// What the page says of one bucket: its upper bound, how many observations are within it, and one of those that are not
/// within the bucket before.
pub(super) type Cumulated = (f64, u64, Option<(f64, Exemplar)>);

impl Histogram {
    /// With the buckets of its definition.
    pub(super) fn new(definition: &Definition) -> Self {
        let Kind::Histogram(bounds) = definition.kind else { unreachable!("{} is no histogram", definition.name) };
        let buckets = (0..=bounds.len()).map(|_| Bucket::default()).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0f64.to_bits()) }
    }

    pub(super) fn observe(&self, value: f64, exemplar: Option<&Exemplar>) {
        let bucket = &self.buckets[self.bounds.partition_point(|bound| *bound < value)];
        bucket.count.fetch_add(1, Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // It cannot be refused: the closure always has an answer.
        self.sum.fetch_update(Relaxed, Relaxed, add).ok();
        if let Some(exemplar) = exemplar {
            let since = exemplar.at.since(Moment(bucket.example_at.load(Relaxed)));
            // Somebody who reads it, or writes another one, is not waited for.
            if since >= EXEMPLAR_AGE_MIN
                && let Ok(mut example) = bucket.example.try_lock()
            {
                *example = Some((value, *exemplar));
                bucket.example_at.store(exemplar.at.0, Relaxed);
            }
        }
    }

    /// The sum, and every bucket with all that is below it; the last one's bound is infinite. Read while others observe, the
    /// buckets agree with each other; the sum may be ahead of or behind them by what was just observed.
    pub(super) fn read(&self) -> (f64, Vec<Cumulated>) {
        let mut total = 0;
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets = bounds.zip(&self.buckets).map(|(bound, bucket)| {
            total += bucket.count.load(Relaxed);
            (bound, total, *locked(&bucket.example))
        });
        let buckets = buckets.collect();
        (f64::from_bits(self.sum.load(Relaxed)), buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::record::tests::finished;
    use crate::telemetry::names::CHOSEN_WAITING;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_what_is_beyond_is_counted() {
        let histogram = Histogram::new(&CHOSEN_WAITING);
        for value in [0.0, 1.0, 1.5, 2.0, 256.0, 257.0] {
            histogram.observe(value, None);
        }
        let (sum, buckets) = histogram.read();
        let counts: Vec<_> = buckets.iter().map(|(bound, count, _)| (*bound, *count)).collect();
        assert_eq!(sum, 517.5);
        assert_eq!(counts[..4], [(0.0, 1), (1.0, 2), (2.0, 4), (4.0, 4)]);
        assert_eq!(counts[counts.len() - 2..], [(256.0, 5), (f64::INFINITY, 6)]);
    }

    #[test]
    fn a_buckets_example_is_its_latest_but_not_of_the_same_second() {
        let histogram = Histogram::new(&CHOSEN_WAITING);
        let example = |histogram: &Histogram| histogram.read().1[1].2.map(|(value, exemplar)| (value, exemplar.at.0));
        let first = Exemplar::of(&finished(1));
        for (after_ms, value, expected) in [(0, 0.5, (0.5, 0)), (999, 0.6, (0.5, 0)), (1000, 0.7, (0.7, 1000))] {
            let at = first.at.plus(Duration::from_millis(after_ms));
            histogram.observe(value, Some(&Exemplar { at, ..first }));
            let expected = (expected.0, first.at.plus(Duration::from_millis(expected.1)).0);
            assert_eq!(example(&histogram), Some(expected), "after {after_ms} ms");
        }
        assert!(histogram.read().1[2].2.is_none(), "no other bucket has one");
    }
}

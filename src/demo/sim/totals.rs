//! What an engine has counted since its start, as vLLM counts it.

use std::time::Duration;

/// Upper bounds in seconds of vLLM's histogram of the time to the first token.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// Upper bounds in seconds of vLLM's histogram of the time between tokens.
const INTER_TOKEN_SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

/// Upper bounds in seconds of vLLM's histograms of a request's phases.
const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// Why the engine is done with a request: vLLM's values, in vLLM's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinishReason {
    /// The model said so.
    Stop,
    /// The request's limit on tokens.
    Length,
    /// The client left.
    Abort,
    /// The engine failed.
    Error,
    /// The engine saw the answer go round in circles. A simulated engine never does, but the page has the line.
    Repetition,
}

impl FinishReason {
    pub(super) const ALL: [Self; 5] = [Self::Stop, Self::Length, Self::Abort, Self::Error, Self::Repetition];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
            Self::Repetition => "repetition",
        }
    }

    pub(super) const fn is_success(self) -> bool {
        matches!(self, Self::Stop | Self::Length)
    }
}

/// All counters and histograms of one engine.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    /// Prompt tokens looked up in the prefix cache.
    pub(super) prefix_queries: u64,
    /// Prompt tokens found there.
    pub(super) prefix_hits: u64,
    pub(super) prompt_tokens: u64,
    pub(super) generation_tokens: u64,
    ended: [u64; FinishReason::ALL.len()],
    pub(super) first_token: Histogram,
    pub(super) inter_token: Histogram,
    /// From arrival to the last token.
    pub(super) whole: Histogram,
    /// From arrival to the slot.
    pub(super) queue: Histogram,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            prefix_queries: 0,
            prefix_hits: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            ended: Default::default(),
            first_token: Histogram::new(FIRST_TOKEN_SECONDS),
            inter_token: Histogram::new(INTER_TOKEN_SECONDS),
            whole: Histogram::new(REQUEST_SECONDS),
            queue: Histogram::new(REQUEST_SECONDS),
        }
    }
}

impl Totals {
    pub(super) fn ended(&mut self, reason: FinishReason) {
        self.ended[reason as usize] += 1;
    }

    pub(super) fn ended_by(&self, reason: FinishReason) -> u64 {
        self.ended[reason as usize]
    }
}

/// Durations by upper bound.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds: the last is for what is above them all.
    counts: Vec<u64>,
    sum_seconds: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum_seconds: 0.0 }
    }

    pub(super) fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.counts[self.bounds.partition_point(|bound| *bound < seconds)] += 1;
        self.sum_seconds += seconds;
    }

    /// Each bound, the last being infinity, with how many were at most that.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(&self.counts).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((bound, *sum))
        })
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        for ms in [500, 750, 1_000, 2_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        assert_eq!(histogram.cumulative().collect::<Vec<_>>(), [(0.5, 1), (1.0, 3), (f64::INFINITY, 4)]);
        assert_eq!((histogram.count(), histogram.sum_seconds()), (4, 4.25));
    }

    #[test]
    fn reasons_are_counted_in_the_order_of_their_list() {
        for (index, reason) in FinishReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}

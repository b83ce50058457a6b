//! Rates from counters: growth that survives restarts, over a window that slides.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many points of a window are kept. A window is therefore up to this part of itself too long, and a rate is always
/// divided by its real length.
const POINTS: u32 = 20;

/// The least length a rate of the gateway's own is divided by: right after the start, one request would else make
/// hundreds per second.
const SPAN_MIN: Duration = Duration::from_secs(1);

/// How much of a counter's growth has been seen: a total that never falls, whatever its series do.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// The series of the last page by name, sorted.
    series: Vec<(u64, f64)>,
    total: f64,
}

/// Series that are remembered at most though they are not on the last page: their labels have changed, mostly.
const REMEMBERED_MAX: usize = 64;

/// By how much a series grew from one page to the next; one that fell has started again from 0.
fn grown(last: f64, value: f64) -> f64 {
    if value >= last { value - last } else { value }
}

impl Growth {
    /// The total after one more page, given as series by name.
    ///
    /// A series that fell has started again from 0. One that was not on the last page starts here: what it counted
    /// before is nobody knows how old.
    pub(super) fn after(&mut self, page: &[(u64, f64)]) -> f64 {
        let mut page = page.to_vec();
        page.sort_unstable_by_key(|(name, _)| *name);
        for (name, value) in &page {
            if let Ok(place) = self.series.binary_search_by_key(name, |(name, _)| *name) {
                self.total += grown(self.series[place].1, *value);
            }
        }
        self.series = page;
        self.total
    }

    /// The same for a counter whose series are first sent when they have counted something: one that was on no page yet was 0.
    /// One that is not on this page, because it was cut short, is remembered for the next.
    pub(super) fn after_from_zero(&mut self, page: &[(u64, f64)]) -> f64 {
        for (name, value) in page {
            match self.series.binary_search_by_key(name, |(name, _)| *name) {
                Ok(place) => {
                    self.total += grown(self.series[place].1, *value);
                    self.series[place].1 = *value;
                }
                Err(place) => {
                    self.total += value;
                    self.series.insert(place, (*name, *value));
                }
            }
        }
        if self.series.len() > page.len() + REMEMBERED_MAX {
            self.series.retain(|(name, _)| page.iter().any(|(other, _)| other == name));
        }
        self.total
    }

    /// Whether a series on a page is less than it was: it has started again.
    pub(super) fn falls(&self, page: &[(u64, f64)]) -> bool {
        let last = |name: &u64| self.series.binary_search_by_key(name, |(name, _)| *name).ok();
        page.iter().any(|(name, value)| last(name).is_some_and(|place| *value < self.series[place].1))
    }

    /// Whether any series is known.
    pub(super) fn has_series(&self) -> bool {
        !self.series.is_empty()
    }

    /// No series is known any more; what they have counted stays.
    pub(super) fn forget(&mut self) {
        self.series.clear();
    }
}

/// Totals over the last `length`, thinned to [`POINTS`] points.
#[derive(Debug)]
pub(super) struct Window<const N: usize> {
    length: Duration,
    points: VecDeque<(Instant, [f64; N])>,
}

/// How totals grew, and over which time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span<const N: usize> {
    pub(super) length: Duration,
    pub(super) growth: [f64; N],
}

impl<const N: usize> Window<N> {
    pub(super) const fn new(length: Duration) -> Self {
        Self { length, points: VecDeque::new() }
    }

    /// The growth up to these totals, which must not fall; `None` for the first.
    ///
    /// Until the window is full the span is the time since the first point. After a pause of more than twice the window
    /// everything starts again, because a rate over such a span is not what the window's length promises.
    pub(super) fn after(&mut self, at: Instant, totals: [f64; N]) -> Option<Span<N>> {
        let age = |point: &(Instant, [f64; N])| at.saturating_duration_since(point.0);
        while self.points.get(1).is_some_and(|second| age(second) >= self.length) {
            self.points.pop_front();
        }
        if self.points.front().is_some_and(|first| age(first) > self.length * 2) {
            self.points.pop_front();
        }
        let span = self
            .points
            .front()
            .filter(|first| !age(first).is_zero())
            .map(|first| Span { length: age(first), growth: std::array::from_fn(|n| totals[n] - first.1[n]) });
        if self.points.back().is_none_or(|last| age(last) >= self.length / POINTS) {
            self.points.push_back((at, totals));
        }
        span
    }
}

impl<const N: usize> Span<N> {
    pub(super) fn per_second(&self) -> [f64; N] {
        self.growth.map(|growth| growth / self.length.as_secs_f64())
    }
}

/// The window of the gateway's own counts, for all targets at once: ten thousand are read ten times a second, so their
/// totals stand side by side.
#[derive(Debug)]
pub(super) struct FleetWindow {
    length: Duration,
    points: VecDeque<(Instant, Vec<(u64, u64)>)>,
}

/// One tick of a [`FleetWindow`].
#[derive(Debug)]
pub(super) struct FleetSpan<'w> {
    /// By how many seconds a growth is divided.
    seconds: f64,
    /// The totals at its start, by target.
    start: &'w [(u64, u64)],
}

impl FleetWindow {
    /// All counters begin at 0, at `start`.
    pub(super) fn new(length: Duration, start: Instant, targets: usize) -> Self {
        Self { length, points: VecDeque::from([(start, vec![(0, 0); targets])]) }
    }

    /// The targets are others now: each is the one that stood at a place before, or new.
    pub(super) fn rearrange(&mut self, places: &[Option<usize>]) {
        for (_, totals) in &mut self.points {
            *totals = places.iter().map(|place| place.map_or((0, 0), |place| totals[place])).collect();
        }
    }

    /// Notes the totals of all targets if it is time for another point, then answers the span that ends now. Until the
    /// window is full, that is the time since the start, but at least [`SPAN_MIN`].
    pub(super) fn tick(&mut self, now: Instant, totals: impl Iterator<Item = (u64, u64)>) -> FleetSpan<'_> {
        let age = |point: Instant| now.saturating_duration_since(point);
        let mut spare = None;
        while self.points.get(1).is_some_and(|second| age(second.0) >= self.length) {
            spare = self.points.pop_front();
        }
        if self.points.back().is_none_or(|last| age(last.0) >= self.length / POINTS) {
            let mut point = spare.map_or_else(Vec::new, |(_, totals)| totals);
            point.clear();
            point.extend(totals);
            self.points.push_back((now, point));
        }
        let (start, totals) = self.points.front().expect("there is one from the start, and the last is never removed");
        FleetSpan { seconds: age(*start).max(SPAN_MIN).as_secs_f64(), start: totals }
    }
}

impl FleetSpan<'_> {
    /// Requests and tokens per second of one target.
    pub(super) fn per_second(&self, target: usize, (requests, tokens): (u64, u64)) -> (f64, f64) {
        let rate = |now: u64, start: u64| now.saturating_sub(start) as f64 / self.seconds;
        (rate(requests, self.start[target].0), rate(tokens, self.start[target].1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LENGTH: Duration = Duration::from_secs(10);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn growth_survives_restarts_and_ignores_what_was_before() {
        let mut growth = Growth::default();
        let pages: [(&[(u64, f64)], f64); 7] = [
            (&[(1, 100.0), (2, 1000.0)], 0.0),
            (&[(2, 1001.0), (1, 110.0)], 11.0),
            // The second starts again.
            (&[(1, 110.0), (2, 4.0)], 15.0),
            // A third comes: its past is unknown.
            (&[(1, 111.0), (2, 4.0), (3, 500.0)], 16.0),
            (&[(3, 502.0)], 18.0),
            // The others are back.
            (&[(1, 900.0), (2, 900.0), (3, 502.0)], 18.0),
            (&[], 18.0),
        ];
        for (page, total) in pages {
            assert_eq!(growth.after(page), total, "{page:?}");
        }
    }

    #[test]
    fn a_window_slides_and_divides_by_its_real_length() {
        let (mut window, start) = (Window::new(LENGTH), Instant::now());
        assert_eq!(window.after(start, [5.0]), None, "one point is no span");
        // Ten per second.
        for half_second in 1..100 {
            let at = seconds(f64::from(half_second) * 0.5);
            let span = window.after(start + at, [5.0 + at.as_secs_f64() * 10.0]).unwrap();
            assert_eq!(span.length, at.min(LENGTH), "at {at:?}");
            assert!((span.per_second()[0] - 10.0).abs() < 1e-9, "{span:?}");
        }
    }

    #[test]
    fn a_long_pause_starts_again_and_a_short_one_does_not() {
        for (pause, expected) in [(19.0, Some(1.0)), (21.0, None)] {
            let (mut window, start) = (Window::new(LENGTH), Instant::now());
            window.after(start, [0.0]);
            let span = window.after(start + seconds(pause), [pause]);
            assert_eq!(span.map(|span| span.per_second()[0]), expected, "{pause} s");
        }
    }

    #[test]
    fn the_fleets_window_starts_with_a_second() {
        let start = Instant::now();
        let mut window = FleetWindow::new(LENGTH, start, 2);
        let mut rates = |at: f64, totals: [(u64, u64); 2]| {
            let span = window.tick(start + seconds(at), totals.into_iter());
            [span.per_second(0, totals[0]), span.per_second(1, totals[1])]
        };
        assert_eq!(rates(0.1, [(5, 50), (0, 0)]), [(5.0, 50.0), (0.0, 0.0)], "not fifty per second");
        assert_eq!(rates(2.0, [(5, 50), (4, 0)]), [(2.5, 25.0), (2.0, 0.0)]);
        assert_eq!(rates(10.0, [(5, 50), (4, 0)]), [(0.5, 5.0), (0.4, 0.0)]);
        assert_eq!(rates(12.5, [(15, 50), (4, 0)]), [(1.0 / 1.05, 0.0), (0.0, 0.0)], "from the point at 2 s on");
    }

    proptest! {
        /// Whatever the pauses: bounded memory, a span that is never much longer than promised, and the right growth.
        #[test]
        fn a_window_is_bounded_and_right(pauses in prop::collection::vec(1u64..8_000, 1..300)) {
            let (mut window, start, mut at) = (Window::new(LENGTH), Instant::now(), Duration::ZERO);
            for pause in pauses {
                at += Duration::from_millis(pause);
                if let Some(span) = window.after(start + at, [at.as_millis() as f64]) {
                    prop_assert!(span.length <= LENGTH * 2);
                    prop_assert!((span.per_second()[0] - 1000.0).abs() < 1e-6);
                }
                prop_assert!(window.points.len() <= POINTS as usize + 2);
            }
        }
    }
}

//! How much of a processor watching the fleet may take, and how seldom each target must then be asked.
//!
//! What an exchange costs is measured, not guessed: every poll of its future and of its connection is timed. That is
//! wall-clock time between two awaits, so on a busy machine it says too much, and targets are asked less often: the error
//! is on the side of the requests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::Settings;

/// What a scrape is taken to cost until some are measured: the time to fetch and read 50 KB.
const SCRAPE_COST_FIRST: Duration = Duration::from_micros(250);

/// What a probe is taken to cost until some are measured.
const PROBE_COST_FIRST: Duration = Duration::from_micros(80);

/// Weight of the last second in a cost that is carried on.
const COST_WEIGHT: f64 = 0.25;

/// The part of what is left that probes may use. Beyond it they are stretched, too.
const PROBE_PART: f64 = 0.5;

/// The part of the share that exchanges have even if publishing views uses it all up.
const EXCHANGES_PART_MIN: f64 = 0.2;

/// The longest any setting can stretch an interval, so that a share of nearly 0 means "hardly ever" and does not overflow.
pub(super) const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// What one kind of work costs each time.
#[derive(Debug)]
pub(super) struct Meter {
    spent_ns: AtomicU64,
    times: AtomicU64,
    cost_ns: AtomicU64,
}

impl Meter {
    fn new(first: Duration) -> Arc<Self> {
        let cost_ns = AtomicU64::new(first.as_nanos() as u64);
        Arc::new(Self { spent_ns: AtomicU64::new(0), times: AtomicU64::new(0), cost_ns })
    }

    /// Runs one piece of work to its end.
    pub(super) async fn once<F: Future>(self: &Arc<Self>, work: F) -> F::Output {
        let output = self.timed(Box::pin(work)).await;
        self.times.fetch_add(1, Relaxed);
        output
    }

    /// Runs what works for all pieces together, such as a connection.
    pub(super) fn timed<F: Future + Unpin>(self: &Arc<Self>, work: F) -> Timed<F> {
        Timed { work, meter: Arc::clone(self) }
    }

    /// Runs one piece of work that does not wait.
    pub(super) fn once_now<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let output = work();
        self.spend(start.elapsed());
        self.times.fetch_add(1, Relaxed);
        output
    }

    fn spend(&self, time: Duration) {
        self.spent_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Carries the cost on with what was measured since the last call, if anything was.
    fn settle(&self) {
        let times = self.times.swap(0, Relaxed);
        if times == 0 {
            return;
        }
        let measured = self.spent_ns.swap(0, Relaxed) as f64 / times as f64;
        let cost = self.cost_ns.load(Relaxed) as f64;
        self.cost_ns.store((cost + (measured - cost) * COST_WEIGHT) as u64, Relaxed);
    }

    pub(super) fn cost_seconds(&self) -> f64 {
        self.cost_ns.load(Relaxed) as f64 / 1e9
    }
}

/// A future whose polls are timed.
#[derive(Debug)]
pub(super) struct Timed<F> {
    work: F,
    meter: Arc<Meter>,
}

impl<F: Future + Unpin> Future for Timed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let start = Instant::now();
        let poll = Pin::new(&mut self.work).poll(context);
        self.meter.spend(start.elapsed());
        poll
    }
}

/// The budget of one fleet.
#[derive(Debug)]
pub(super) struct Budget {
    targets: AtomicUsize,
    /// Their pages cost what a target's does, and are read no more often.
    gpu_exporters: usize,
    cpu_share: f64,
    publish_interval: Duration,
    probe_interval: Duration,
    pub(super) scrapes: Arc<Meter>,
    pub(super) probes: Arc<Meter>,
    pub(super) publishing: Arc<Meter>,
}

impl Budget {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            targets: AtomicUsize::new(settings.targets.len()),
            gpu_exporters: settings.gpu_exporters.len(),
            cpu_share: settings.poll_cpu_share,
            publish_interval: settings.publish_interval,
            probe_interval: settings.probe_interval,
            scrapes: Meter::new(SCRAPE_COST_FIRST),
            probes: Meter::new(PROBE_COST_FIRST),
            publishing: Meter::new(Duration::ZERO),
        }
    }

    /// From now on there are so many targets.
    pub(super) fn set_targets(&self, targets: usize) {
        self.targets.store(targets, Relaxed);
    }

    fn targets(&self) -> f64 {
        self.targets.load(Relaxed) as f64
    }

    /// Carries all costs on. To be called once a second.
    pub(super) fn settle(&self) {
        for meter in [&self.scrapes, &self.probes, &self.publishing] {
            meter.settle();
        }
    }

    /// The least time from one probe of a target to the next.
    pub(super) fn probe_interval_min(&self) -> Duration {
        stretched(self.targets() * self.probes.cost_seconds(), self.left() * PROBE_PART)
    }

    /// The least time from one scrape of a target, or of a GPU exporter, to the next.
    pub(super) fn scrape_interval_min(&self) -> Duration {
        let probe_interval = self.probe_interval.max(self.probe_interval_min());
        let probing = self.targets() * self.probes.cost_seconds() / probe_interval.as_secs_f64();
        let pages = self.targets() + self.gpu_exporters as f64;
        stretched(pages * self.scrapes.cost_seconds(), self.left() - probing)
    }

    /// The share that publishing leaves to exchanges.
    fn left(&self) -> f64 {
        let publishing = self.publishing.cost_seconds() / self.publish_interval.as_secs_f64();
        (self.cpu_share - publishing).max(self.cpu_share * EXCHANGES_PART_MIN)
    }
}

/// How long to take for `seconds` of work so that it is only `share` of the time; at most [`INTERVAL_MAX`].
pub(super) fn stretched(seconds: f64, share: f64) -> Duration {
    Duration::try_from_secs_f64(seconds / share).map_or(INTERVAL_MAX, |time| time.min(INTERVAL_MAX))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Waker;

    use super::super::{ExporterSettings, TargetSettings};
    use super::*;

    fn budget(targets: usize) -> Budget {
        let target = |n| TargetSettings::new(&format!("t{n}"), "127.0.0.1:1");
        Budget::new(&Settings::new((0..targets).map(target).collect()))
    }

    /// The share of a processor that asking this often takes.
    fn use_of(budget: &Budget, settings: &Settings) -> f64 {
        let each = |meter: &Meter, interval: Duration| budget.targets() * meter.cost_seconds() / interval.as_secs_f64();
        each(&budget.scrapes, settings.poll_interval.max(budget.scrape_interval_min()))
            + each(&budget.probes, settings.probe_interval.max(budget.probe_interval_min()))
    }

    #[test]
    fn a_small_fleet_is_not_stretched_and_a_large_one_stays_within_the_share() {
        let settings = Settings::new(Vec::new());
        assert!(budget(3).scrape_interval_min() < settings.poll_interval);
        assert!(budget(3).probe_interval_min() < settings.probe_interval);
        for targets in [1, 100, 1_000, 10_000, 100_000] {
            let used = use_of(&budget(targets), &settings);
            assert!(used <= settings.poll_cpu_share * 1.000_001, "{targets} targets take {used}");
        }
        let used = use_of(&budget(10_000), &settings);
        assert!(used > settings.poll_cpu_share * 0.99, "{used} could be more");
    }

    #[test]
    fn exporters_of_gpus_are_paid_from_the_same_share() {
        let target = |n| TargetSettings::new(&format!("t{n}"), "127.0.0.1:1");
        let exporter = |n| ExporterSettings { node: format!("n{n}"), url: "http://127.0.0.1:1/".into() };
        let gpu_exporters = (0..1_000).map(exporter).collect();
        let settings = Settings { gpu_exporters, ..Settings::new((0..10_000).map(target).collect()) };
        let (with, without) = (Budget::new(&settings), budget(10_000));
        let off = with.scrape_interval_min().abs_diff(without.scrape_interval_min().mul_f64(1.1));
        assert!(off < Duration::from_micros(1), "{off:?}");
        assert_eq!(with.probe_interval_min(), without.probe_interval_min());
    }

    #[test]
    fn publishing_is_paid_from_the_same_share() {
        let budget = budget(10_000);
        let before = budget.scrape_interval_min();
        budget.publishing.cost_ns.store(5_000_000, Relaxed);
        assert!(budget.scrape_interval_min() > before.mul_f64(1.9), "half the share is left");
        budget.publishing.cost_ns.store(500_000_000, Relaxed);
        assert!(budget.scrape_interval_min() < INTERVAL_MAX, "something is always left");
    }

    #[test]
    fn no_share_means_hardly_ever() {
        for (seconds, share) in [(1.0, 0.0), (1.0, -1.0), (f64::MAX, 1e-300), (0.0, 0.0)] {
            assert_eq!(stretched(seconds, share), INTERVAL_MAX, "{seconds} / {share}");
        }
        assert_eq!(stretched(0.1, 0.02), Duration::from_secs(5));
    }

    #[test]
    fn costs_follow_what_is_measured() {
        let meter = Meter::new(Duration::from_micros(100));
        meter.settle();
        assert_eq!(meter.cost_seconds(), 100e-6, "nothing was measured");
        for _second in 0..40 {
            meter.spend(Duration::from_micros(1_000));
            meter.times.fetch_add(2, Relaxed);
            meter.settle();
        }
        assert!((meter.cost_seconds() - 500e-6).abs() < 1e-6, "{}", meter.cost_seconds());
    }

    #[test]
    fn the_time_between_awaits_is_counted_and_waiting_is_not() {
        let (meter, busy) = (Meter::new(Duration::ZERO), Duration::from_millis(2));
        let spin = || {
            let start = Instant::now();
            while start.elapsed() < busy {}
        };
        let mut polls = 0;
        let mut work = pin!(meter.once(poll_fn(|_| {
            spin();
            polls += 1;
            if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
        })));
        // Polled by hand, so that what a poll takes at most is known, however busy the machine.
        let mut at_most = Duration::ZERO;
        loop {
            let start = Instant::now();
            let poll = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            at_most += start.elapsed();
            if poll.is_ready() {
                break;
            }
            spin();
        }
        let spent = Duration::from_nanos(meter.spent_ns.load(Relaxed));
        assert!((busy * 3..=at_most).contains(&spent), "{spent:?} of {at_most:?}");
        assert_eq!(meter.times.load(Relaxed), 1);
    }
}

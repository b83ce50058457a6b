//! What is counted of each target, and what the page says of its state. A target that is gone leaves the page with all of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::histogram::Histogram;
use super::number::{Counter, locked};
use super::page::Page;
use super::{OTHER, Scrape};
use crate::snapshot::{Freshness, Health, Member, Quantity};
use crate::telemetry::names::{self, Definition};

/// Targets with series of their own; others are counted as [`OTHER`]. Each has about forty.
const TARGETS_MAX: usize = 1_000;

/// What is counted of one target.
#[derive(Debug, Default)]
pub(super) struct OfTarget {
    decisions: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    scrapes: Counter,
    scrape_failures: Mutex<BTreeMap<&'static str, u64>>,
    pace: Mutex<Option<Pace>>,
}

/// How long the last scrape took, and how long after its start the next one starts.
#[derive(Clone, Copy, Debug)]
struct Pace {
    duration: Duration,
    interval: Duration,
}

/// By name.
#[derive(Debug)]
pub(super) struct Targets {
    all: Mutex<BTreeMap<Box<str>, Arc<OfTarget>>>,
    other: Arc<OfTarget>,
    scrape_seconds: Histogram,
}

impl OfTarget {
    pub(super) fn decided(&self) {
        self.decisions.fetch_add(1, Relaxed);
    }

    pub(super) fn attempted(&self, answered: bool) {
        if answered { &self.answered } else { &self.failed }.fetch_add(1, Relaxed);
    }
}

impl Targets {
    pub(super) fn new() -> Self {
        let scrape_seconds = Histogram::new(&names::SCRAPE_DURATION);
        Self { all: Mutex::default(), other: Arc::default(), scrape_seconds }
    }

    /// These are all there are from now on; whose scrapes may fail for these reasons.
    pub(super) fn set<'a>(&self, names: impl Iterator<Item = &'a str>, reasons: &[&'static str]) {
        let mut all = locked(&self.all);
        let mut before = std::mem::take(&mut *all);
        for name in names {
            if all.len() == TARGETS_MAX {
                break;
            }
            // One that has left may be there again while what it had ends.
            if all.contains_key(name) {
                continue;
            }
            let kept = before.remove(name);
            let new = || {
                let failures = reasons.iter().map(|reason| (*reason, 0)).collect();
                Arc::new(OfTarget { scrape_failures: Mutex::new(failures), ..OfTarget::default() })
            };
            all.insert(name.into(), kept.unwrap_or_else(new));
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        locked(&self.all).contains_key(name)
    }

    /// Where a target is counted, and its label.
    pub(super) fn of(&self, name: &str) -> (Arc<OfTarget>, Arc<str>) {
        match locked(&self.all).get(name) {
            Some(target) => (Arc::clone(target), name.into()),
            None => (Arc::clone(&self.other), OTHER.into()),
        }
    }

    pub(super) fn scraped(&self, name: &str, seconds: f64) {
        self.of(name).0.scrapes.inc();
        self.scrape_took(seconds);
    }

    pub(super) fn scrape_took(&self, seconds: f64) {
        self.scrape_seconds.observe(seconds, None);
    }

    /// Of one that is gone, or one too many, nothing is said.
    pub(super) fn scrape_failed(&self, name: &str, reason: &'static str) {
        *locked(&self.of(name).0.scrape_failures).entry(reason).or_default() += 1;
    }

    /// The same holds here.
    pub(super) fn scrape_paced(&self, name: &str, duration: Duration, interval: Duration) {
        *locked(&self.of(name).0.pace) = Some(Pace { duration, interval });
    }

    fn list(&self) -> Vec<(Box<str>, Arc<OfTarget>)> {
        let mut list: Vec<_> =
            locked(&self.all).iter().map(|(name, target)| (name.clone(), Arc::clone(target))).collect();
        list.push((OTHER.into(), Arc::clone(&self.other)));
        list
    }

    pub(super) fn write_decisions(&self, page: &mut Page) {
        let list = self.list();
        let counts = list.iter().map(|(name, target)| ([&**name], target.decisions.load(Relaxed))).collect::<Vec<_>>();
        page.rows(&names::TARGET_DECISIONS, &counts);
    }

    pub(super) fn write_attempts(&self, page: &mut Page) {
        let list = self.list();
        let mut counts = Vec::new();
        for (name, target) in &list {
            for (result, count) in [("answered", &target.answered), ("failed", &target.failed)] {
                counts.push(([&**name, result], count.load(Relaxed)));
            }
        }
        page.rows(&names::ATTEMPTS, &counts);
    }

    pub(super) fn write_scrapes(&self, page: &mut Page) {
        let mut list = self.list();
        list.pop();
        let scrapes: Vec<_> = list.iter().map(|(name, target)| ([&**name], target.scrapes.get())).collect();
        page.rows(&names::SCRAPES, &scrapes);
        let mut failures = Vec::new();
        for (name, target) in &list {
            let by_reason = locked(&target.scrape_failures);
            failures.extend(by_reason.iter().map(|(reason, count)| ([&**name, *reason], *count)));
        }
        page.rows(&names::SCRAPE_FAILURES, &failures);
        page.histograms(&names::SCRAPE_DURATION, [(&[][..], &self.scrape_seconds)]);
        let paces: Vec<_> =
            list.iter().filter_map(|(name, target)| Some(([&**name], (*locked(&target.pace))?))).collect();
        let mut seconds = |definition, of: fn(&Pace) -> Duration| {
            page.family(definition, paces.iter().map(|(labels, pace)| (&labels[..], of(pace).as_secs_f64())));
        };
        seconds(&names::TARGET_SCRAPE_DURATION, |pace| pace.duration);
        seconds(&names::TARGET_SCRAPE_INTERVAL, |pace| pace.interval);
    }

    /// The state of each target, as choices see it now.
    pub(super) fn write_state(&self, page: &mut Page, scrape: &Scrape<'_>) {
        let view = scrape.view;
        let members: Vec<_> = view.members.iter().take(TARGETS_MAX).collect();
        page.single(&names::TARGETS, view.members.len());
        page.single(&names::VIEW_AGE, scrape.now.since(view.published).as_secs_f64());
        let eligible = (0..).zip(&members).map(|(place, member)| {
            let (place, name): (u32, _) = (place, &*member.sample.target.name);
            ([name], u8::from(view.pools.all().eligible.binary_search(&place).is_ok()))
        });
        page.rows(&names::TARGET_ELIGIBLE, &eligible.collect::<Vec<_>>());
        gauges(page, &names::TARGET_HEALTHY, &members, |member| match member.sample.health {
            Health::Unknown => None,
            Health::Healthy => Some(1.0),
            Health::Unhealthy => Some(0.0),
        });
        gauges(page, &names::TARGET_EJECTIONS, &members, |member| Some(f64::from(member.live.ejections())));
        gauges(page, &names::TARGET_IN_FLIGHT, &members, |member| Some(f64::from(member.live.in_flight())));
        gauges(page, &names::TARGET_GATEWAY_REQUESTS, &members, |member| Some(member.live.rates().0));
        gauges(page, &names::TARGET_GATEWAY_TOKENS, &members, |member| Some(member.live.rates().1));
        for quantity in Quantity::ALL {
            gauges(page, definition(quantity), &members, |member| member.sample.reading(quantity).value);
            if quantity == Quantity::GpuMemoryUtilization {
                gauges(page, &names::TARGET_GPUS, &members, |member| member.sample.gpus().map(f64::from));
            }
        }
        write_ages(page, &members, scrape);
        // Before the first page nothing is missing.
        let watched = |member: &Member| Some(member.live.watched()).filter(|watched| watched.engine.is_some());
        gauges(page, &names::TARGET_SERIES_MISSING, &members, |member| {
            Some(watched(member)?.series_missing.len() as f64)
        });
        gauges(page, &names::TARGET_GARBAGE_LINES, &members, |member| Some(f64::from(watched(member)?.garbage_lines)));
    }
}

/// One gauge, or a counter that the fleet keeps, of every target that has it.
fn gauges(page: &mut Page, definition: &Definition, members: &[&Member], value: impl Fn(&Member) -> Option<f64>) {
    let rows = members.iter().filter_map(|member| Some(([&*member.sample.target.name], value(member)?)));
    page.rows(definition, &rows.collect::<Vec<_>>());
}

fn write_ages(page: &mut Page, members: &[&Member], scrape: &Scrape<'_>) {
    let (mut ages, mut fresh) = (Vec::new(), Vec::new());
    for Member { sample, .. } in members {
        for quantity in Quantity::ALL {
            let (labels, reading) = ([&*sample.target.name, quantity.name()], sample.reading(quantity));
            if reading.value.is_some() {
                ages.push((labels, scrape.now.since(reading.observed).as_secs_f64()));
            }
            if reading.freshness != Freshness::Unsupported {
                fresh.push((labels, u8::from(reading.fresh().is_some())));
            }
        }
    }
    page.rows(&names::TARGET_AGE, &ages);
    page.rows(&names::TARGET_FRESH, &fresh);
}

const fn definition(quantity: Quantity) -> &'static Definition {
    match quantity {
        Quantity::Waiting => &names::TARGET_WAITING,
        Quantity::Running => &names::TARGET_RUNNING,
        Quantity::KvCacheUsage => &names::TARGET_KV_CACHE,
        Quantity::PrefixCacheHitRatio => &names::TARGET_HIT_RATIO,
        Quantity::GpuUtilization => &names::TARGET_GPU,
        Quantity::GpuMemoryUtilization => &names::TARGET_GPU_MEMORY,
        Quantity::EngineRequestsPerSecond => &names::TARGET_ENGINE_REQUESTS,
        Quantity::EngineTokensPerSecond => &names::TARGET_ENGINE_TOKENS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_there_twice_is_counted_once_and_goes_on() {
        let targets = Targets::new();
        targets.set(["a", "b"].into_iter(), &[]);
        targets.of("a").0.decided();
        targets.set(["b", "a", "a"].into_iter(), &[]);
        targets.of("a").0.decided();
        assert_eq!(targets.of("a").0.decisions.load(Relaxed), 2);
        let many: Vec<_> = (0..=TARGETS_MAX).map(|n| n.to_string()).collect();
        targets.set(["0"].into_iter().chain(many.iter().map(String::as_str)), &[]);
        assert!(targets.has(&(TARGETS_MAX - 1).to_string()) && !targets.has(&TARGETS_MAX.to_string()));
    }
}

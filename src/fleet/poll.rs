//! Reads one target's metrics page again and again: never often enough to be a burden, and bounded in time and bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;

use super::budget::stretched;
use super::engine::{Observation, Pages};
use super::fetch::with_causes;
use super::scrape::{self, Foreign, ScrapeError};
use super::slot::Slot;
use super::{Settings, Watch};

/// How long a target is left alone at most after failures that cost it nothing, such as a refused connection. Failures
/// that took time count like answers: see [`next_interval`].
const FAILED_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// How far an interval may be from what it should be, so that targets that started together drift apart.
const JITTER: f64 = 0.1;

/// An interval is at most so many times the one before: one slow answer is soon forgotten, a page that stays slow is not.
const GROWTH_MAX: u32 = 2;

/// For how many of its own intervals what a page said is fresh: until the next one is there, and if that fails until the one
/// after it.
const FRESH_INTERVALS: f64 = 2.5;

const NO_ENGINE_SERIES: &str = "no_engine_series";

/// Why scrapes fail, as they are counted.
pub(super) const REASONS: [&str; 7] = ScrapeError::reasons(NO_ENGINE_SERIES);

/// Scrapes for ever. The owner of the task ends it.
pub(super) async fn run(watch: Arc<Watch>, slot: Arc<Slot>, uri: Uri) {
    let possible = watch.engines.possible(slot.engine.as_deref().unwrap_or(&watch.settings.engine));
    slot.expects(possible.expected());
    let mut pages = Pages::new(possible, watch.settings.window);
    let mut interval = watch.settings.poll_interval;
    // The first round is spread as the budget wants it: a small fleet is known at once, a large one is not asked at once.
    tokio::time::sleep(watch.budget.scrape_interval_min().mul_f64(rand::random())).await;
    loop {
        let start = tokio::time::Instant::now();
        let result = watch.budget.scrapes.once(scrape(&watch, &slot, &uri, &mut pages)).await;
        let duration = start.elapsed();
        settle(&watch, &slot, result, duration);
        let (settings, least) = (&watch.settings, watch.budget.scrape_interval_min());
        let failures = slot.scrape_failures();
        interval = next_interval(settings, settings.poll_interval, failures, duration, least, interval);
        slot.paced(duration, interval, (failures == 0).then(|| fresh_within(settings, interval)));
        watch.metrics.scrape_paced(&slot.target.name, duration, interval);
        tokio::time::sleep_until(start + interval).await;
    }
}

/// Asks once; answers how many scrapes before had failed in a row. The values count from the moment of asking: an age
/// may be too high by the time the answer took, never too low.
async fn scrape(watch: &Watch, slot: &Slot, uri: &Uri, pages: &mut Pages) -> Result<u32, ScrapeError> {
    let (at, in_flight) = (Instant::now(), slot.live.in_flight());
    let parse = |text: &[u8]| {
        pages.read(text, at).ok_or_else(|| Foreign {
            reason: NO_ENGINE_SERIES,
            text: format!(
                "that {} has: check what runs there, and name it in fleet.engine or as the target's engine",
                pages.engines()
            ),
        })
    };
    let page = scrape::read(&watch.scraper, &watch.settings, uri, parse).await?;
    tell_of(slot, &page);
    Ok(slot.scraped(watch.clock.at(at), in_flight, &page))
}

/// Says in the log whose page it is, and what was expected on it in vain, whenever that changes.
fn tell_of(slot: &Slot, page: &Observation) {
    let (name, watched) = (&*slot.target.name, slot.live.watched());
    let known = watched.engine.as_ref() == Some(&page.engine);
    if !known || watched.series_missing != page.absent {
        let (engine, missing) = (&*page.engine, page.absent.join(", "));
        tracing::info!(pod = name, engine, missing, "metrics page read");
    }
}

/// Counts the scrape, and says so in the log when a target's page goes away or comes back.
fn settle(watch: &Watch, slot: &Slot, result: Result<u32, ScrapeError>, duration: Duration) {
    let name = &*slot.target.name;
    match result {
        Ok(failures) => {
            watch.metrics.scraped(name, duration.as_secs_f64());
            if failures > 0 {
                tracing::info!(pod = name, failures, "metrics page can be read again");
            }
        }
        Err(error) => {
            let text = with_causes(&error);
            watch.metrics.scrape_failed(name, error.reason());
            if slot.scrape_failed(&text) == 1 {
                tracing::warn!(pod = name, reason = error.reason(), error = text, "metrics page cannot be read");
            }
        }
    }
}

/// Up to which age what a page said is fresh, if the next one is asked for after this interval.
///
/// It is the configured age, and more where the page is read less often than that: a value that is as new as can be had is
/// better than none, and would else come and go between two pages. It ends at [`Settings::fresh_within_max`], and only an
/// answer makes it longer, never a failure.
pub(super) fn fresh_within(settings: &Settings, interval: Duration) -> Duration {
    let until_the_next = interval.mul_f64(FRESH_INTERVALS).min(settings.fresh_within_max);
    settings.fresh_within.max(until_the_next)
}

/// How long after the start of a scrape the next one starts, if it is to be done `every` so long and the interval before was
/// `last`.
///
/// It is that interval, more or less, but long enough that answering takes the target no more than its share
/// of the time, and all targets take us no more than ours (`budget`). Each slow answer doubles it at most, up to the target's
/// share; so does each failure, up to [`FAILED_INTERVAL_MAX`] or, if the failure took its time, up to the target's share again:
/// one hiccup is soon forgotten, a target that hangs is left alone.
pub(super) fn next_interval(
    settings: &Settings,
    every: Duration,
    failures: u32,
    duration: Duration,
    budget: Duration,
    last: Duration,
) -> Duration {
    let by_target = stretched(duration.as_secs_f64(), settings.poll_target_share);
    let configured = every.mul_f64(rand::random_range(1.0 - JITTER..1.0 + JITTER));
    let least = if failures == 0 {
        by_target.min(last.max(every).saturating_mul(GROWTH_MAX))
    } else {
        let doubled = every.saturating_mul(2u32.saturating_pow(failures));
        doubled.min(by_target.max(FAILED_INTERVAL_MAX))
    };
    configured.max(least.max(budget).mul_f64(rand::random_range(1.0..1.0 + JITTER)))
}

#[cfg(test)]
mod tests {
    use super::super::budget::INTERVAL_MAX;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Checks that the interval is the expected one, give or take the jitter.
    fn check(failures: u32, duration: Duration, budget: Duration, expected: Duration, may_be_less: bool) {
        let settings = Settings::new(Vec::new());
        for _draw in 0..100 {
            let interval = next_interval(&settings, settings.poll_interval, failures, duration, budget, INTERVAL_MAX);
            let least = if may_be_less { expected.mul_f64(1.0 - JITTER) } else { expected };
            let most = expected.mul_f64(1.0 + JITTER);
            assert!(
                (least..=most).contains(&interval),
                "{interval:?} is not about {expected:?} ({failures} failures, {duration:?}, {budget:?})"
            );
        }
    }

    #[test]
    fn a_quick_page_is_read_at_the_configured_interval() {
        check(0, MS, Duration::ZERO, 500 * MS, true);
    }

    #[test]
    fn a_slow_page_takes_at_most_its_share_of_the_targets_time() {
        check(0, 40 * MS, Duration::ZERO, 2_000 * MS, false);
        check(0, 1_000 * MS, Duration::ZERO, 50_000 * MS, false);
    }

    #[test]
    fn one_slow_answer_is_soon_forgotten_and_a_page_that_stays_slow_is_not() {
        let settings = Settings::new(Vec::new());
        let next = |duration, last| {
            next_interval(&settings, settings.poll_interval, 0, duration, Duration::ZERO, last).as_secs_f64()
        };
        let mut interval = settings.poll_interval;
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 50.0, 50.0] {
            let seconds = next(1_000 * MS, interval);
            // Each may be a tenth more than twice the one before, which the next one is made of.
            assert!((expected..expected * 2.0).contains(&seconds), "{seconds} is not about {expected}");
            interval = Duration::from_secs_f64(expected);
        }
        assert!(next(MS, interval) <= 0.55, "a quick one is read at the configured interval again");
    }

    #[test]
    fn a_page_that_is_read_seldom_is_fresh_until_the_next_is_there_and_no_longer_than_anybody_wants() {
        let settings = Settings::new(Vec::new());
        for (interval, fresh) in [(500, 2_000), (800, 2_000), (2_000, 5_000), (6_000, 15_000), (50_000, 15_000)] {
            assert_eq!(fresh_within(&settings, interval * MS), fresh * MS, "{interval} ms");
        }
        let patient = Settings { fresh_within: 60_000 * MS, ..settings };
        assert_eq!(fresh_within(&patient, 500 * MS), 60_000 * MS, "the bound shortens nothing that was asked for");
    }

    #[test]
    fn a_large_fleet_is_read_as_the_budget_says() {
        check(0, MS, 7_000 * MS, 7_000 * MS, false);
        check(1, MS, 7_000 * MS, 7_000 * MS, false);
    }

    #[test]
    fn failures_double_the_interval_up_to_a_bound() {
        check(1, MS, Duration::ZERO, 1_000 * MS, false);
        check(2, MS, Duration::ZERO, 2_000 * MS, false);
        for failures in [4, 5, 40, u32::MAX] {
            check(failures, MS, Duration::ZERO, FAILED_INTERVAL_MAX, false);
        }
    }

    #[test]
    fn one_timeout_is_soon_forgotten_but_hanging_costs_no_more_than_the_share() {
        check(1, 2_000 * MS, Duration::ZERO, 1_000 * MS, false);
        check(30, 2_000 * MS, Duration::ZERO, 100_000 * MS, false);
    }
}

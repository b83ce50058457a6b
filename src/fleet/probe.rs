//! Asks one target again and again whether it is alive, and decides whether it may be chosen.

use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, Uri};

use super::fetch::{FetchError, with_causes};
use super::slot::Slot;
use super::{Settings, Watch};
use crate::snapshot::Health;

/// What is read of a probe's answer, so that its connection can be kept. Only the status counts.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How far an interval may be from the configured one, so that targets that started together drift apart.
const JITTER: f64 = 0.1;

/// A target's health: it changes only when enough probes in a row agree.
#[derive(Debug)]
struct Verdict {
    health: Health,
    failures: u32,
    successes: u32,
    unhealthy_after: u32,
    healthy_after: u32,
}

impl Verdict {
    /// That of a target of which this is known already.
    fn new(settings: &Settings, health: Health) -> Self {
        let (unhealthy_after, healthy_after) = (settings.unhealthy_after, settings.healthy_after);
        Self { health, failures: 0, successes: 0, unhealthy_after, healthy_after }
    }

    /// The health after one more probe.
    fn after(&mut self, alive: bool) -> Health {
        if alive {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.healthy_after {
                self.health = Health::Healthy;
            }
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.unhealthy_after {
                self.health = Health::Unhealthy;
            }
        }
        self.health
    }
}

/// Probes for ever. The owner of the task ends it.
pub(super) async fn run(watch: Arc<Watch>, slot: Arc<Slot>, uri: Uri) {
    let settings = &watch.settings;
    // The target may have been watched before, as somebody else described it.
    let mut verdict = Verdict::new(settings, slot.known().health);
    tokio::time::sleep(watch.budget.probe_interval_min().mul_f64(rand::random())).await;
    loop {
        let start = tokio::time::Instant::now();
        let result = watch.budget.probes.once(watch.prober.get(&uri, settings.probe_timeout, BODY_BYTES_MAX)).await;
        let error = problem(result.map(|answer| answer.status));
        let before = verdict.health;
        let health = verdict.after(error.is_none());
        slot.probed(health, error.as_deref());
        if health != before {
            announce(&slot.target.name, before, health, error.as_deref());
        }
        tokio::time::sleep_until(start + next_interval(settings, watch.budget.probe_interval_min())).await;
    }
}

/// What is wrong with the answer, if anything: 2xx is alive.
fn problem(result: Result<StatusCode, FetchError>) -> Option<String> {
    match result {
        Ok(status) if status.is_success() => None,
        Ok(status) => Some(format!("status {status} instead of 2xx")),
        Err(error) => Some(with_causes(&error)),
    }
}

fn announce(name: &str, before: Health, health: Health, error: Option<&str>) {
    match health {
        Health::Unhealthy => tracing::warn!(pod = name, error, "pod is unhealthy and gets no more requests"),
        _ if before == Health::Unknown => tracing::info!(pod = name, "pod is healthy"),
        _ => tracing::info!(pod = name, "pod is healthy again and gets requests"),
    }
}

fn next_interval(settings: &Settings, budget: Duration) -> Duration {
    settings.probe_interval.max(budget).mul_f64(rand::random_range(1.0 - JITTER..1.0 + JITTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::{Healthy, Unhealthy, Unknown};

    /// The health after each probe, `+` for one that succeeded.
    fn check(unhealthy_after: u32, healthy_after: u32, probes: &str, expected: &[Health]) {
        let settings = Settings { unhealthy_after, healthy_after, ..Settings::new(Vec::new()) };
        let mut verdict = Verdict::new(&settings, Unknown);
        let actual: Vec<_> = probes.chars().map(|probe| verdict.after(probe == '+')).collect();
        assert_eq!(actual, expected, "{probes} with {unhealthy_after} and {healthy_after}");
    }

    #[test]
    fn health_changes_when_enough_probes_in_a_row_agree() {
        check(3, 1, "+", &[Healthy]);
        check(3, 1, "---", &[Unknown, Unknown, Unhealthy]);
        check(3, 1, "+---+", &[Healthy, Healthy, Healthy, Unhealthy, Healthy]);
        check(3, 1, "+--+--", &[Healthy; 6]);
        check(1, 2, "-+-++", &[Unhealthy, Unhealthy, Unhealthy, Unhealthy, Healthy]);
        check(2, 2, "+-+-++", &[Unknown, Unknown, Unknown, Unknown, Unknown, Healthy]);
    }

    #[test]
    fn the_status_is_the_verdict() {
        for (status, alive) in [(200, true), (204, true), (307, false), (404, false), (503, false)] {
            assert_eq!(problem(Ok(StatusCode::from_u16(status).unwrap())).is_none(), alive, "{status}");
        }
        let timeout = FetchError::Timeout(Duration::from_secs(1));
        assert_eq!(problem(Err(timeout)).as_deref(), Some("no complete answer within 1s"));
    }
}

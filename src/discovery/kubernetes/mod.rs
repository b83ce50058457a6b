//! Targets by the EndpointSlices of a Kubernetes service: listed once, then watched.
//!
//! A watch goes on where the last one ended, over connections that break and servers that are away; only when the server has
//! forgotten that place (410) is everything listed again. Meanwhile the last view stays in force.

mod api;
mod slices;

use std::sync::Arc;
use std::time::Duration;

use kube::core::WatchEvent;
use tokio::time::Instant;

use api::{Api, ApiError, Watching};
use slices::{PortWanted, Slices};

use super::settings::{Defaults, KubernetesSettings};
use super::{Report, Trouble};
use crate::telemetry::Metrics;

/// How long events are gathered after the first: while an endpoint moves from one slice to another it is in neither.
const GATHER: Duration = Duration::from_millis(100);

/// How long it is waited after a failure: at first about so long, then twice as long each time, up to the other.
const FAILED_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A watch that went on for so long after the head of its answer was a good one, as is one that has brought anything.
const LASTED: Duration = Duration::from_secs(2);

/// How far a pause may be from that, so that replicas do not come back to a server all at once.
const JITTER: f64 = 0.5;

/// Why a watch is over.
#[derive(Debug)]
enum Ended {
    /// As agreed: the next one goes on where it was.
    Watched,
    /// The server does not remember where it was.
    Forgotten,
}

/// Where the source stands.
struct Followed {
    api: Api,
    port: PortWanted,
    defaults: Defaults,
    report: Report,
    slices: Slices,
    /// Up to which change it is known; `None` if everything has to be listed.
    version: Option<String>,
    /// When the server began to answer the present watch.
    answered: Option<Instant>,
    /// The present watch has brought something.
    brought: bool,
}

/// Follows the service for ever. The owner of the task ends it.
pub(super) async fn run(settings: KubernetesSettings, defaults: Defaults, report: Report, metrics: Arc<Metrics>) {
    let port = PortWanted { number: defaults.port, name: settings.port_name.clone() };
    let mut failures = 0;
    let mut followed = loop {
        match Api::open(&settings) {
            Ok(api) => {
                break Followed {
                    api,
                    port,
                    defaults,
                    report,
                    slices: Slices::default(),
                    version: None,
                    answered: None,
                    brought: false,
                };
            }
            Err(error) => report.failed(error.trouble(), error.to_string()),
        }
        pause(&mut failures).await;
    };
    loop {
        followed.api.look(&metrics);
        let ended = followed.step().await;
        let has_failed = ended.is_err();
        match ended {
            Ok(Ended::Watched) => {}
            Ok(Ended::Forgotten) => followed.version = None,
            Err(error) => followed.report.failed(error.trouble(), error.to_string()),
        }
        let lasted = followed.answered.take().is_some_and(|answered| answered.elapsed() >= LASTED);
        let was_good = std::mem::take(&mut followed.brought) || lasted;
        if was_good {
            failures = 0;
        }
        // A server that ends every watch at once is left alone, too.
        if !was_good || has_failed {
            pause(&mut failures).await;
        }
    }
}

async fn pause(failures: &mut u32) {
    let (first, most) = FAILED_PAUSES;
    let pause = first.saturating_mul(1 << (*failures).min(16)).min(most);
    *failures += 1;
    tokio::time::sleep(pause.mul_f64(rand::random_range(1.0 - JITTER..1.0 + JITTER))).await;
}

impl Followed {
    /// Lists if that is needed, and watches until the watch ends.
    async fn step(&mut self) -> Result<Ended, ApiError> {
        let version = match &self.version {
            Some(version) => version.clone(),
            None => {
                let (slices, version) = match self.api.list().await {
                    // The list was too long under way for its next page.
                    Err(ApiError::Gone) => return Ok(Ended::Forgotten),
                    listed => listed?,
                };
                self.slices = slices;
                self.report();
                self.version.insert(version).clone()
            }
        };
        let mut watching = match self.api.watch(&version).await {
            Err(ApiError::Gone) => return Ok(Ended::Forgotten),
            watching => watching?,
        };
        self.answered = Some(Instant::now());
        // It answers: what is known is known again.
        self.report();
        self.follow(&mut watching).await
    }

    async fn follow(&mut self, watching: &mut Watching) -> Result<Ended, ApiError> {
        let mut gathered_at: Option<Instant> = None;
        loop {
            let event = match gathered_at {
                None => watching.next().await,
                Some(at) => match tokio::time::timeout_at(at, watching.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        gathered_at = None;
                        self.report();
                        continue;
                    }
                },
            };
            let changed = match event {
                Ok(Some(event)) => self.take(event),
                ended => {
                    if gathered_at.is_some() {
                        self.report();
                    }
                    return ended.map(|_| Ended::Watched);
                }
            };
            match changed {
                Err(ApiError::Gone) => return Ok(Ended::Forgotten),
                Ok(true) => gathered_at = gathered_at.or_else(|| Some(Instant::now() + GATHER)),
                changed => drop(changed?),
            }
        }
    }

    /// Says whether anything is other than before.
    fn take(&mut self, event: WatchEvent<slices::EndpointSlice>) -> Result<bool, ApiError> {
        let (version, changed) = match event {
            WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                let version = slice.metadata.resource_version.clone();
                self.slices.put(slice);
                (version, true)
            }
            WatchEvent::Deleted(slice) => {
                self.slices.remove(&slice);
                (slice.metadata.resource_version, true)
            }
            WatchEvent::Bookmark(bookmark) => (Some(bookmark.metadata.resource_version), false),
            WatchEvent::Error(status) => return Err(ApiError::of_status(&status)),
        };
        self.brought = true;
        self.version = version.or(self.version.take());
        Ok(changed)
    }

    fn report(&self) {
        match self.slices.targets(&self.port, &self.defaults) {
            Ok(targets) => self.report.found(targets),
            Err(problem) => self.report.failed(Trouble::Unusable, format!("{}: {problem}", self.api.what())),
        }
    }
}

//! The GPUs of the targets, as NVIDIA's DCGM exporters tell of them: one exporter a node, read once whoever uses its GPUs.
//!
//! ```text
//! exporter ◀─ poll ─ page ─ join ─┬▶ slot: utilization, memory, UUIDs, each with the page's age
//!                    (GPUs)       └▶ … of every target that has some of the node's GPUs
//! ```
//!
//! - `page` reads what a page says of each GPU (`labels`: which one, and whose); `join` picks a target's, by the pod that
//!   the exporter names or by the node and the places that the configuration does, and makes two quantities of them.
//! - `heard` is a target's memory of who has told of it: two exporters that both do are believed neither.
//! - A page that does not come, or not whole, changes nothing but what is known of its exporter: values age, and go stale.

mod heard;
mod join;
mod labels;
mod page;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Uri;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinSet};

use super::budget::Meter;
use super::fetch::{Fetcher, with_causes};
use super::poll::next_interval;
use super::scrape::{self, Foreign, ScrapeError};
use super::slot::Slot;
use super::{PANIC_PAUSE, Settings, Watch};
use crate::snapshot::{GpuExporter, GpuHealth, Moment};
pub(super) use heard::Heard;
pub(super) use join::Found;
pub use join::{GpuId, GpusOf, PodGpus};
pub use page::{Gpu, GpuPage};

/// A pod that is on no page for so long is not only new: an exporter measures every 30 s unless it is told otherwise.
const MISSED_AFTER: Duration = Duration::from_secs(60);

/// Of what has the name of a pod that is missed so much is named.
const NAMESAKES_MAX: usize = 4;

const NO_GPU_SERIES: &str = "no_gpu_series";

/// Why readings of exporters fail, as they are counted.
pub(super) const REASONS: [&str; 7] = ScrapeError::reasons(NO_GPU_SERIES);

/// One DCGM exporter as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExporterSettings {
    /// The node whose GPUs it tells of; unique.
    pub node: String,
    /// Its page: `http://host:port/path`, or `https://…`.
    pub url: String,
}

/// All exporters of a fleet, and which targets each may speak of.
#[derive(Debug)]
pub(super) struct Exporters {
    all: ArcSwap<Vec<Arc<Exporter>>>,
    /// Has [`run`] look whom it has to read.
    changed: Notify,
    joins: ArcSwap<Joins>,
    fetcher: Fetcher,
}

#[derive(Debug)]
struct Exporter {
    node: Arc<str>,
    /// `None` if what is configured is no URL.
    uri: Option<Uri>,
    health: Mutex<GpuExporter>,
    /// The last good one.
    page: Mutex<Option<GpuPage>>,
}

/// Targets by what they are joined by.
#[derive(Debug, Default)]
struct Joins {
    by_pod: HashMap<Box<str>, Vec<Arc<Slot>>>,
    by_node: HashMap<Box<str>, Vec<Arc<Slot>>>,
    /// All of them, by their numbers, which stay when a target is described otherwise.
    by_slot: HashMap<u32, Arc<Slot>>,
}

impl Joins {
    fn of(slots: &[Arc<Slot>]) -> Self {
        let mut joins = Self::default();
        for slot in slots {
            let (table, key) = match &slot.gpus_of {
                None => continue,
                Some(GpusOf::Pod(pod)) => (&mut joins.by_pod, &pod.pod),
                Some(GpusOf::Node { node, .. }) => (&mut joins.by_node, node),
            };
            table.entry(key.as_str().into()).or_default().push(Arc::clone(slot));
            joins.by_slot.insert(slot.target.slot, Arc::clone(slot));
        }
        joins
    }
}

impl Exporters {
    pub(super) fn new(settings: &Settings, slots: &[Arc<Slot>], meter: Arc<Meter>) -> Self {
        // What targets get in `authorization` is none of the exporters' business. A client certificate, which gives nothing
        // away, is presented to them, too.
        let open = Settings { authorization: None, targets: Vec::new(), ..settings.clone() };
        Self {
            all: ArcSwap::from_pointee(settings.gpu_exporters.iter().map(Exporter::new).collect()),
            changed: Notify::new(),
            joins: ArcSwap::from_pointee(Joins::of(slots)),
            fetcher: Fetcher::new(&open, settings.poll_timeout, meter),
        }
    }

    /// These are the targets from now on.
    pub(super) fn set_targets(&self, slots: &[Arc<Slot>]) {
        self.joins.store(Arc::new(Joins::of(slots)));
    }

    /// These are the exporters from now on. What is known of one that stays is kept; what one that leaves has told ages.
    pub(super) fn set(&self, exporters: &[ExporterSettings]) {
        let before = self.all.load();
        let kept_or_new = |exporter: &ExporterSettings| {
            let kept = before.iter().find(|other| other.is(exporter));
            kept.map_or_else(|| Exporter::new(exporter), Arc::clone)
        };
        self.all.store(Arc::new(exporters.iter().map(kept_or_new).collect()));
        self.changed.notify_one();
    }

    /// The exporter of a node tells of no GPU any more.
    fn forget(&self, node: &Arc<str>) {
        self.joins.load().by_slot.values().for_each(|slot| slot.gpus_not_told(node));
    }

    /// How it stands with the exporters, and with the GPUs of these targets.
    pub(super) fn health(&self, slots: &[Arc<Slot>]) -> GpuHealth {
        let problems = slots.iter().filter_map(|slot| Some((slot.target.slot, slot.gpu_problem()?))).collect();
        GpuHealth { exporters: self.all.load().iter().map(|exporter| exporter.health().clone()).collect(), problems }
    }

    /// Says of each target whose pod no exporter tells of what they tell of instead, once all have been read.
    pub(super) fn explain(&self, slots: &[Arc<Slot>], now: Instant) {
        for slot in slots {
            let Some(GpusOf::Pod(pod)) = &slot.gpus_of else { continue };
            if now.saturating_duration_since(slot.gpus_wanted_since) < MISSED_AFTER || slot.gpus_are_explained() {
                continue;
            }
            if let Some(problem) = self.missed(pod) {
                slot.gpus_missed(problem);
            }
        }
    }

    /// That no page tells of a pod, and of whom of its name they tell. `None` before all that may tell of it have been read.
    fn missed(&self, pod: &PodGpus) -> Option<Box<str>> {
        let all = self.all.load();
        let may_tell = |exporter: &&Arc<Exporter>| pod.node.as_deref().is_none_or(|node| node == &*exporter.node);
        if all.iter().filter(may_tell).any(|exporter| exporter.page().is_none()) {
            return None;
        }
        let (mut names_any, mut namesakes) = (false, BTreeSet::new());
        for exporter in all.iter().filter(may_tell) {
            let page = exporter.page();
            let gpus = page.iter().flat_map(|page| &page.gpus);
            for holder in gpus.filter_map(|gpu| gpu.identity.holder.as_ref()) {
                names_any = true;
                if *holder.pod == *pod.pod {
                    namesakes.insert(format!("{} (container {})", holder.namespace, holder.container));
                }
            }
        }
        let namesakes: Vec<_> = namesakes.into_iter().take(NAMESAKES_MAX).collect();
        let instead = match (names_any, &*namesakes) {
            (false, _) => ": they name no pods at all, set DCGM_EXPORTER_KUBERNETES=true there".to_owned(),
            (true, []) => String::new(),
            (true, namesakes) => format!(", but of one of this name in {}", namesakes.join(" and ")),
        };
        Some(format!("no exporter tells of GPUs of {pod}{instead}").into())
    }

    /// Says what a page tells to each target that it tells something of, and to those that it told of before and does not
    /// any more. Answers those that it tells of now.
    fn tell(&self, node: &Arc<str>, page: &GpuPage, at: Moment, fresh_within: Duration, before: &[u32]) -> Vec<u32> {
        let (joins, mut told) = (self.joins.load(), Vec::new());
        for slot in joins.by_node.get(&**node).into_iter().flatten() {
            if let Some(GpusOf::Node { node: name, ids }) = &slot.gpus_of {
                slot.gpus_told(node, at, fresh_within, Found::of_node(name, ids, &page.gpus));
                told.push(slot.target.slot);
            }
        }
        let mut by_pod: HashMap<&str, Vec<&Gpu>> = HashMap::new();
        for gpu in &page.gpus {
            if let Some(holder) = &gpu.identity.holder {
                by_pod.entry(&holder.pod).or_default().push(gpu);
            }
        }
        for (pod, gpus) in by_pod {
            for slot in joins.by_pod.get(pod).into_iter().flatten() {
                let Some(GpusOf::Pod(pod)) = &slot.gpus_of else { continue };
                if pod.node.as_deref().is_some_and(|pinned| pinned != &**node) {
                    continue;
                }
                if let Some(found) = Found::of_pod(pod, &gpus) {
                    slot.gpus_told(node, at, fresh_within, found);
                    told.push(slot.target.slot);
                }
            }
        }
        for slot in before.iter().filter(|slot| !told.contains(slot)).filter_map(|slot| joins.by_slot.get(slot)) {
            slot.gpus_not_told(node);
        }
        told
    }
}

impl Exporter {
    fn new(ExporterSettings { node, url }: &ExporterSettings) -> Arc<Self> {
        let uri = url.parse().ok();
        let error = uri.is_none().then(|| "it is no URL".into());
        let health =
            GpuExporter { node: node.as_str().into(), url: url.as_str().into(), error, ..GpuExporter::default() };
        Arc::new(Self { node: node.as_str().into(), uri, health: Mutex::new(health), page: Mutex::default() })
    }

    fn is(&self, ExporterSettings { node, url }: &ExporterSettings) -> bool {
        *self.node == **node && *self.health().url == **url
    }

    /// A writer that panicked has left whole values behind: every write is complete in itself.
    fn health(&self) -> MutexGuard<'_, GpuExporter> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self) -> MutexGuard<'_, Option<GpuPage>> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads all exporters' pages for ever, whoever they are at the time. One whose task panicked is begun again. The tasks end when
/// this is dropped.
pub(super) async fn run(watch: Arc<Watch>) -> Infallible {
    let (mut tasks, mut readers) = (JoinSet::new(), HashMap::<Id, (Arc<Exporter>, AbortHandle)>::new());
    let mut panicked: Option<Arc<Exporter>> = None;
    loop {
        let all = watch.gpus.all.load_full();
        let is_there = |exporter: &Arc<Exporter>| all.iter().any(|other| Arc::ptr_eq(other, exporter));
        for (_, task) in readers.values().filter(|(exporter, _)| !is_there(exporter)) {
            task.abort();
        }
        for exporter in all.iter() {
            // Another one of the node comes when the one before has said its last word.
            if readers.values().any(|(other, _)| other.node == exporter.node) {
                continue;
            }
            let again = panicked.take_if(|other| Arc::ptr_eq(other, exporter)).is_some();
            let (watch, read) = (Arc::clone(&watch), Arc::clone(exporter));
            let task = tasks.spawn(async move {
                tokio::time::sleep(if again { PANIC_PAUSE } else { Duration::ZERO }).await;
                poll(&watch, &read).await;
            });
            readers.insert(task.id(), (Arc::clone(exporter), task));
        }
        tokio::select! {
            () = watch.gpus.changed.notified() => {}
            Some(ended) = tasks.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                let Some((exporter, _)) = readers.remove(&id) else { continue };
                if is_there(&exporter) {
                    let node = &*exporter.node;
                    tracing::error!(node, "the task that reads the GPU exporter panicked; starting it again");
                    panicked = Some(exporter);
                } else {
                    watch.gpus.forget(&exporter.node);
                }
            }
        }
    }
}

/// Reads one exporter's page for ever, as seldom as the targets' budget wants it.
async fn poll(watch: &Watch, exporter: &Exporter) {
    let Some(uri) = &exporter.uri else { return std::future::pending().await };
    let (settings, budget, mut told) = (&watch.settings, &watch.budget, Vec::new());
    let mut interval = settings.gpu_poll_interval;
    tokio::time::sleep(budget.scrape_interval_min().mul_f64(rand::random())).await;
    loop {
        let start = tokio::time::Instant::now();
        let at = watch.clock.now();
        let result = budget.scrapes.once(read(watch, exporter, uri, at, &mut told)).await;
        let duration = start.elapsed();
        let failures = settle(watch, exporter, at, result, duration);
        let every = settings.gpu_poll_interval;
        interval = next_interval(settings, every, failures, duration, budget.scrape_interval_min(), interval);
        tokio::time::sleep_until(start + interval).await;
    }
}

/// Asks once. What the page says counts from the moment of asking: an age may be too high by the time the answer took,
/// never too low. It is as old besides as the exporter's own interval lets it be, of which a page says nothing.
async fn read(
    watch: &Watch,
    exporter: &Exporter,
    uri: &Uri,
    at: Moment,
    told: &mut Vec<u32>,
) -> Result<GpuPage, ScrapeError> {
    let foreign = || Foreign { reason: NO_GPU_SERIES, text: "of DCGM's, check what runs there".to_owned() };
    let parse = |text: &[u8]| GpuPage::read(text).ok_or_else(foreign);
    let page = scrape::read(&watch.gpus.fetcher, &watch.settings, uri, parse).await?;
    *told = watch.gpus.tell(&exporter.node, &page, at, watch.settings.gpu_fresh_within, told);
    Ok(page)
}

/// Notes how reading went, counts it, and says so in the log when a page goes away or comes back. Answers how many have
/// failed in a row.
fn settle(
    watch: &Watch,
    exporter: &Exporter,
    at: Moment,
    result: Result<GpuPage, ScrapeError>,
    duration: Duration,
) -> u32 {
    let node = &*exporter.node;
    let mut health = exporter.health();
    match result {
        Ok(page) => {
            let failures = std::mem::take(&mut health.failures);
            health.read = Some(at);
            health.gpus = u32::try_from(page.gpus.len()).unwrap_or(u32::MAX);
            health.garbage_lines = page.garbage;
            health.error = None;
            *exporter.page() = Some(page);
            drop(health);
            watch.metrics.gpu_exporter_read(node, duration.as_secs_f64());
            if failures > 0 {
                tracing::info!(node, failures, "GPU exporter can be read again");
            }
            0
        }
        Err(error) => {
            let text = with_causes(&error);
            health.failures = health.failures.saturating_add(1);
            health.error = Some(text.as_str().into());
            let failures = health.failures;
            drop(health);
            watch.metrics.gpu_exporter_failed(node, error.reason());
            if failures == 1 {
                tracing::warn!(node, reason = error.reason(), error = text, "GPU exporter cannot be read");
            }
            failures
        }
    }
}

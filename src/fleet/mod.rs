//! Keeps the latest [`FleetView`]: what the gateway knows of every target, always one pointer away.
//!
//! ```text
//! target ◀─ probe ─┐                                            ┌▶ choose (one pointer)
//! target ◀─ poll ──┴─▶ slot ── every publish_interval ─▶ view ──┤
//! Live (atomics) ──────────────────── rates ──────▶ Live        └▶ GET /v1/fleet
//! ```
//!
//! - `poll` reads a target's metrics page (`scrape`: `fetch`, `prometheus`), `engine` makes quantities of it, `rates`
//!   gives it windows; `probe` decides on health. Both write into the target's `slot`, as often as the `budget`
//!   allows.
//! - Load reports that come with answers are in `Live` until the next tick, and then in the slot like a page's values.
//! - `gpu` reads what DCGM exporters say of the nodes' GPUs, once for all targets of a node.
//! - `ejection` passes over targets whose requests fail, whatever their probes say.
//! - `publish` makes a new sample of a slot that changed, shares all others, and swaps the view.
//! - Targets come and go while it runs: `roster` says who is there, [`Fleet::set_targets`] changes it.

mod budget;
mod ejection;
mod engine;
mod fetch;
mod gpu;
mod metrics_at;
mod poll;
mod probe;
mod prometheus;
mod publish;
mod rates;
mod roster;
mod scrape;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use http::Uri;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::clock::Clock;
use crate::snapshot::{Attached, FleetView, GpuHealth, Health, Place, ReportFormat};
use crate::telemetry::Metrics;
use crate::tls::{Connector, Credential};
use budget::Budget;
pub use engine::{
    AUTO, Combine, EngineSettings, Engines, Input, Observation, Pages, Possible, QueueTime, Row, TimeUnit, shipped,
};
use fetch::Fetcher;
use gpu::Exporters;
pub use gpu::{ExporterSettings, GpuId, GpusOf, PodGpus};
// For attacks from outside.
#[doc(hidden)]
pub use gpu::{Gpu, GpuPage};
pub use metrics_at::MetricsAt;
use roster::Roster;
pub use roster::{Change, Leaving};
use slot::Slot;

/// How often costs are carried on: see [`Budget::settle`].
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a target is left alone when the task that watches it panicked.
const PANIC_PAUSE: Duration = Duration::from_secs(5);

/// Which targets there are, and how they are watched. No duration is zero and every share is above 0.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Those at the start.
    pub targets: Vec<TargetSettings>,
    /// From the start of one scrape of a target to the next, give or take a tenth, unless it is stretched.
    pub poll_interval: Duration,
    /// A scrape that takes longer has failed.
    pub poll_timeout: Duration,
    /// A metrics page that is longer is not read.
    pub poll_bytes_max: usize,
    /// The part of its time that a target may spend answering scrapes, 0..1: a slow page is asked for less often.
    pub poll_target_share: f64,
    /// The part of one processor that scraping, probing and publishing may take here: a large fleet is asked less often.
    pub poll_cpu_share: f64,
    /// A value that was observed longer ago is stale, unless its page is read less often: see `poll::fresh_within`.
    pub fresh_within: Duration,
    /// What a page said is stale beyond this age, however seldom it is read.
    pub fresh_within_max: Duration,
    /// Over which time rates and ratios are taken.
    pub window: Duration,
    /// From one view to the next.
    pub publish_interval: Duration,
    /// What is asked to see whether a target is alive; any 2xx will do.
    pub probe_path: String,
    /// From the start of one probe of a target to the next, give or take a tenth, unless the fleet is large.
    pub probe_interval: Duration,
    /// A probe that takes longer has failed.
    pub probe_timeout: Duration,
    /// How many probes in a row must fail before a target gets no more requests.
    pub unhealthy_after: u32,
    /// How many probes in a row must succeed before it gets requests again.
    pub healthy_after: u32,
    /// Where the metrics page is, unless a target has it elsewhere.
    pub metrics_path: String,
    /// Whose metrics targets serve: the name of an engine, or [`AUTO`].
    pub engine: String,
    /// Engines of one's own.
    pub engines: Vec<EngineSettings>,
    /// After so many failed requests in a row a target is passed over for a while; never with 0.
    pub eject_after: u32,
    /// For how long at first; twice as long each time it comes back only to fail.
    pub eject_time: Duration,
    /// How long what ends at a target that left is still counted under its name. As long it is listed while it has requests.
    pub drain_time: Duration,
    /// For targets that are spoken to in TLS; without it they cannot be reached.
    pub connector: Option<Arc<Connector>>,
    /// What scrapes and probes present.
    pub authorization: Option<Arc<Credential>>,
    /// What tells of the GPUs of the nodes.
    pub gpu_exporters: Vec<ExporterSettings>,
    /// From the start of one scrape of an exporter to the next, as `poll_interval`.
    pub gpu_poll_interval: Duration,
    /// A value of an exporter that was observed longer ago is stale.
    pub gpu_fresh_within: Duration,
}

/// One target as configured or discovered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetSettings {
    /// Unique in the fleet.
    pub name: String,
    /// `host:port`, and before it `https://` if it is spoken to in TLS.
    pub address: String,
    /// How many GPUs it has, if anybody said.
    pub gpus: Option<u32>,
    /// Which they are; `None` if no exporter is asked about them.
    pub gpus_of: Option<GpusOf>,
    /// The models it serves; none named means any.
    pub models: Vec<String>,
    /// Whose metrics it serves, in place of [`Settings::engine`].
    pub engine: Option<String>,
    /// Where its metrics are, as far as that is elsewhere.
    pub metrics_at: MetricsAt,
    /// The pod that it is, if discovery said.
    pub place: Option<Arc<Place>>,
    /// In which format it is asked for load reports, none being one, too; `None` if as all others are.
    pub ask_for_load_report: Option<Option<ReportFormat>>,
}

impl TargetSettings {
    /// One of which nothing else is known: it serves any model.
    pub fn new(name: &str, address: &str) -> Self {
        Self { name: name.into(), address: address.into(), ..Self::default() }
    }
}

impl Settings {
    /// These targets, and the default for everything else.
    pub fn new(targets: Vec<TargetSettings>) -> Self {
        Self {
            targets,
            poll_interval: Duration::from_millis(500),
            poll_timeout: Duration::from_secs(2),
            poll_bytes_max: 4 * 1024 * 1024,
            poll_target_share: 0.02,
            poll_cpu_share: 0.1,
            fresh_within: Duration::from_secs(2),
            fresh_within_max: Duration::from_secs(15),
            window: Duration::from_secs(10),
            publish_interval: Duration::from_millis(100),
            probe_path: "/health".into(),
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(1),
            unhealthy_after: 3,
            healthy_after: 1,
            metrics_path: "/metrics".into(),
            engine: AUTO.into(),
            engines: Vec::new(),
            eject_after: 5,
            eject_time: Duration::from_secs(10),
            drain_time: Duration::from_secs(60),
            connector: None,
            authorization: None,
            gpu_exporters: Vec::new(),
            gpu_poll_interval: Duration::from_secs(1),
            gpu_fresh_within: Duration::from_secs(5),
        }
    }
}

/// The fleet: targets, what is known of them, and the view that is made of it.
#[derive(Debug)]
pub struct Fleet {
    watch: Arc<Watch>,
    /// Locked by the tick, for the time of the tick, and for a change.
    roster: Mutex<Roster>,
    /// Has [`Fleet::run`] look whom it has to watch.
    changed: Notify,
    view: ArcSwap<FleetView>,
}

/// The task that watches one target.
type Watcher = (Arc<Slot>, AbortHandle);

/// What every task that watches a target needs.
#[derive(Debug)]
struct Watch {
    settings: Settings,
    engines: Engines,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    budget: Budget,
    scraper: Fetcher,
    prober: Fetcher,
    gpus: Exporters,
}

impl Fleet {
    /// Publishes the first view at once: nothing is known, and every target may be chosen. Nothing is asked before
    /// [`Fleet::run`].
    pub fn new(settings: Settings, clock: Arc<Clock>, metrics: Arc<Metrics>) -> Arc<Self> {
        let (start, now) = (Instant::now(), clock.now());
        metrics.set_targets(settings.targets.iter().map(|target| &*target.name), &poll::REASONS);
        metrics.set_gpu_exporters(settings.gpu_exporters.iter().map(|exporter| &*exporter.node), &gpu::REASONS);
        let mut roster = Roster::new(&settings, start, now);
        let view = roster.view(start, now);
        let budget = Budget::new(&settings);
        let watch = Watch {
            scraper: Fetcher::new(&settings, settings.poll_timeout, Arc::clone(&budget.scrapes)),
            prober: Fetcher::new(&settings, settings.probe_timeout, Arc::clone(&budget.probes)),
            engines: Engines::new(&settings.engines),
            gpus: Exporters::new(&settings, roster.slots(), Arc::clone(&budget.scrapes)),
            settings,
            clock,
            metrics,
            budget,
        };
        Arc::new(Self {
            watch: Arc::new(watch),
            roster: Mutex::new(roster),
            changed: Notify::new(),
            view: ArcSwap::from_pointee(view),
        })
    }

    /// The latest view. It does not change in the caller's hands.
    pub fn view(&self) -> Guard<Arc<FleetView>> {
        self.view.load()
    }

    /// How many targets have their pages read so seldom that what they say goes stale in between.
    pub fn seldom(&self) -> usize {
        self.roster().slots().iter().filter(|slot| slot.live.watched().is_seldom()).count()
    }

    /// How it stands with the exporters of GPUs, and with the GPUs of each target.
    pub fn gpus(&self) -> GpuHealth {
        self.watch.gpus.health(self.roster().slots())
    }

    /// Replaces the targets, whose names must be unique. When it returns, nothing is chosen any more that is not among them;
    /// requests under way at others go on to their ends, and are counted under the target's name for its drain time. One whose
    /// name and address stay keeps its slot, its counters and what is known of it; a new one has a slot that nobody had, and is
    /// asked first when the budget has room for it.
    ///
    /// From then on every view brings `with`: whoever chooses from it has the targets and what belongs to them in one load.
    pub fn set_targets(&self, targets: &[TargetSettings], with: Attached) -> Change {
        let mut roster = self.roster();
        roster.with = with;
        self.replace(&mut roster, targets)
    }

    /// The same, and what the views bring stays what it is.
    pub fn replace_targets(&self, targets: &[TargetSettings]) -> Change {
        self.replace(&mut self.roster(), targets)
    }

    fn replace(&self, roster: &mut Roster, targets: &[TargetSettings]) -> Change {
        let change = roster.replace(targets, self.watch.clock.now());
        self.watch.budget.set_targets(targets.len());
        self.watch.gpus.set_targets(roster.slots());
        self.publish_from(roster);
        self.name_targets(roster);
        self.changed.notify_one();
        change
    }

    /// Replaces the exporters of GPUs, whose nodes must be unique. One that stays is read on, one that leaves tells nothing more.
    pub fn set_gpu_exporters(&self, exporters: &[ExporterSettings]) {
        self.watch.gpus.set(exporters);
        self.watch.metrics.set_gpu_exporters(exporters.iter().map(|exporter| &*exporter.node), &gpu::REASONS);
    }

    /// Those that have left and still have requests to end.
    pub fn leaving(&self) -> Vec<Leaving> {
        self.roster().leaving()
    }

    /// Says whose series there are: those that left have theirs for their drain time.
    fn name_targets(&self, roster: &Roster) {
        self.watch.metrics.set_targets(roster.names(), &poll::REASONS);
    }

    /// From now on every view brings this.
    pub fn attach(&self, with: Attached) {
        let mut roster = self.roster();
        roster.with = with;
        self.publish_from(&mut roster);
    }

    /// Probes, polls and publishes until `stop`. Every task it starts ends with it; the connections they leave behind
    /// close when the fleet is dropped, or a few seconds later by themselves. To be called once.
    pub async fn run(self: Arc<Self>, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut tasks = JoinSet::new();
        let mut watchers = HashMap::new();
        self.follow(&mut tasks, &mut watchers);
        let mut gpus = pin!(gpu::run(Arc::clone(&self.watch)));
        let mut ticks = tokio::time::interval(self.watch.settings.publish_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = ticks.tick() => self.tick(),
                never = &mut gpus => match never {},
                () = self.changed.notified() => self.follow(&mut tasks, &mut watchers),
                Some(ended) = tasks.join_next_with_id() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    if let Some((slot, _)) = watchers.remove(&id) {
                        self.ended(&mut tasks, &mut watchers, &slot);
                    }
                }
            }
        }
        tasks.shutdown().await;
    }

    /// A panic is a bug in one view's way, not a reason to end the polls and probes, too: the next tick tries again.
    fn tick(&self) {
        if catch_unwind(AssertUnwindSafe(|| self.publish())).is_err() {
            tracing::error!(
                "publishing the view of the fleet panicked: until it succeeds, choices go by the last view"
            );
        }
    }

    /// Publishes the view of now. [`Fleet::run`] does it every `publish_interval`.
    pub fn publish(&self) {
        self.publish_from(&mut self.roster());
    }

    /// Has the next view make new samples of the targets at these places, as after scrapes: for measuring without a network.
    #[doc(hidden)]
    pub fn touch(&self, places: impl Iterator<Item = usize>) {
        let roster = self.roster();
        places.for_each(|place| roster.slots()[place].touch());
    }

    fn publish_from(&self, roster: &mut Roster) {
        let budget = &self.watch.budget;
        budget.publishing.once_now(|| {
            let instant = Instant::now();
            let view = roster.view(instant, self.watch.clock.at(instant));
            self.view.store(Arc::new(view));
        });
        if roster.see_off() {
            self.name_targets(roster);
        }
        self.watch.metrics.targets_leaving.set(roster.leaving_count() as i64);
        if roster.settled.elapsed() >= SETTLE_INTERVAL {
            roster.settled = Instant::now();
            budget.settle();
            self.watch.gpus.explain(roster.slots(), roster.settled);
            let troubled = roster.slots().iter().filter(|slot| slot.gpu_problem().is_some()).count();
            self.watch.metrics.gpu_problems.set(troubled as i64);
        }
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        // A tick that panicked left samples that are each whole; the next tick goes on from them.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everybody watched who is there, and nobody else.
    fn follow(&self, tasks: &mut JoinSet<()>, watchers: &mut HashMap<Id, Watcher>) {
        let mut unwatched: HashMap<_, _> =
            self.roster().slots().iter().map(|slot| (Arc::as_ptr(slot), Arc::clone(slot))).collect();
        for (slot, task) in watchers.values() {
            if unwatched.remove(&Arc::as_ptr(slot)).is_none() {
                task.abort();
            }
        }
        for slot in unwatched.values() {
            self.start(tasks, watchers, slot, Duration::ZERO);
        }
    }

    /// The task that watched a target has ended, because the target is gone or because of a bug.
    fn ended(&self, tasks: &mut JoinSet<()>, watchers: &mut HashMap<Id, Watcher>, slot: &Arc<Slot>) {
        let name = &*slot.target.name;
        let roster = self.roster();
        let there = roster.slots().iter().any(|other| Arc::ptr_eq(other, slot));
        drop(roster);
        if there {
            tracing::error!(pod = name, "the task that watches the pod panicked; starting it again");
            self.start(tasks, watchers, slot, PANIC_PAUSE);
        }
    }

    /// Starts the task that watches one target, after a pause.
    fn start(&self, tasks: &mut JoinSet<()>, watchers: &mut HashMap<Id, Watcher>, slot: &Arc<Slot>, pause: Duration) {
        let (watch, watched) = (Arc::clone(&self.watch), Arc::clone(slot));
        let task = tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            watch.target(watched).await;
        });
        watchers.insert(task.id(), (Arc::clone(slot), task));
    }
}

impl Watch {
    /// Polls and probes one target for ever, side by side: a page that hangs does not delay a probe.
    async fn target(self: Arc<Self>, slot: Arc<Slot>) {
        let metrics = slot.metrics_at.url(&slot.target, &self.settings.metrics_path).parse::<Uri>();
        match (metrics, format!("{}{}", slot.target.url(), self.settings.probe_path).parse::<Uri>()) {
            (Ok(metrics), Ok(health)) => {
                let poll = poll::run(Arc::clone(&self), Arc::clone(&slot), metrics);
                tokio::join!(poll, probe::run(self, slot, health));
            }
            (Err(error), _) | (_, Err(error)) => {
                let text = format!("address or path is no part of a URL: {error}");
                tracing::error!(pod = &*slot.target.name, error = text, "pod cannot be watched and gets no requests");
                slot.scrape_failed(&text);
                slot.probed(Health::Unhealthy, Some(&text));
                std::future::pending().await
            }
        }
    }
}

//! Who the targets are, from those who know: files, DNS, Kubernetes.
//!
//! ```text
//! source ── its last good view ─┐
//! source ── its last good view ─┼─ joined: the configured first, then source by source ──▶ the fleet
//! configured targets ───────────┘
//! ```
//!
//! - A source (`file`, `dns`, `kubernetes`) is a task that reports what it finds. Only a whole and good answer makes a view; whatever
//!   else it meets is a problem, which is visible, and leaves its last view in force.
//! - `joined` makes one fleet of all views: a name or an address belongs to who had it first in the order of the
//!   configuration; the others are left out, and visible.
//! - What is wrong stands in words in the log and in `/v1/fleet`; of which kind it is, everybody may know (`Trouble`).
//! - Changes are gathered for a moment, so that a rollout of a thousand pods is a few new fleets and not a thousand.
//!
//! It knows the fleet only as a list of settings: how it is put into effect is its owner's.

mod address;
mod dns;
mod file;
mod joined;
mod kubernetes;
mod listing;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinSet};

pub use address::{check_name, check_name_within, default_name, is_name_char, parse_url};
// For attacks from outside.
#[doc(hidden)]
pub use listing::{Format, read as read_list};
pub use settings::{Defaults, DnsSettings, FileSettings, Kind, KubernetesSettings, Records, Settings};

use crate::fleet::{Change, TargetSettings};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::DiscoverySource;

/// The most targets of one source. An answer with more is refused: something else is wrong.
pub const SOURCE_TARGETS_MAX: usize = 10_000;

/// The least time from one new fleet to the next: what comes meanwhile is put into effect together.
const APPLY_PAUSE: Duration = Duration::from_millis(50);

/// How long a source is left alone when its task panicked, and the fleet when changing it did.
const PANIC_PAUSE: Duration = Duration::from_secs(5);

/// Names that stand in a line of the log at most.
const NAMES_IN_LOG: usize = 10;

/// Puts a list of targets into effect.
pub type Apply = Box<dyn Fn(&[TargetSettings]) -> Change + Send + Sync>;

/// The sources, what each last found, and the fleet that is made of it.
pub struct Discovery {
    board: Mutex<Board>,
    apply: Apply,
    metrics: Arc<Metrics>,
    /// A view is new.
    found: Notify,
    /// The sources are others.
    reloaded: Notify,
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("board", &self.board).finish_non_exhaustive()
    }
}

/// All that is known.
#[derive(Debug)]
struct Board {
    configured: Vec<TargetSettings>,
    sources: Vec<Source>,
    /// Never given out before: a report of a source that was replaced is told from its successor's.
    next_id: u64,
}

/// One source.
#[derive(Debug)]
struct Source {
    id: u64,
    settings: Settings,
    view: Vec<TargetSettings>,
    /// When the view was found; `None` before the first one.
    found: Option<Instant>,
    problem: Option<(Trouble, String)>,
    /// Of the view's targets those whose names or addresses others have, with the reason.
    left_out: Vec<String>,
    answers: u64,
    failures: u64,
}

/// Of which kind a problem is: for those who may not know names, addresses and what stands in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It was asked for the first time, and has not answered.
    Waiting,
    /// It is not there, cannot be read or does not answer.
    Away,
    /// It does not let us in.
    Refused,
    /// What it says is no list of targets, or one that cannot be believed.
    Unusable,
    /// A bug of snapgate.
    Bug,
}

/// What a source does that is in this trouble.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "has not answered yet",
            Self::Away => "cannot be reached or read",
            Self::Refused => "refuses to answer",
            Self::Unusable => "gives no answer that can be used",
            Self::Bug => "is not asked because of a bug of snapgate",
        })
    }
}

/// A source as it stands, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// As configured.
    pub name: String,
    /// `file`, `dns` or `kubernetes`.
    pub kind: &'static str,
    /// Targets in its last good view.
    pub targets: usize,
    /// How long ago its view was found or confirmed; `None` if it has none yet.
    pub age: Option<Duration>,
    /// Why the view may be out of date, in words; `None` if it is not.
    pub problem: Option<String>,
    /// The same, for everybody.
    pub trouble: Option<Trouble>,
    /// Those of its targets that are not in the fleet, each with the reason.
    pub left_out: Vec<String>,
}

/// Where a source's task reports.
#[derive(Clone)]
struct Report {
    discovery: Arc<Discovery>,
    id: u64,
}

impl Discovery {
    /// Asks nobody before [`Discovery::run`].
    pub fn new(
        configured: Vec<TargetSettings>,
        sources: &[Settings],
        metrics: Arc<Metrics>,
        apply: impl Fn(&[TargetSettings]) -> Change + Send + Sync + 'static,
    ) -> Arc<Self> {
        let mut board = Board { configured, sources: Vec::new(), next_id: 0 };
        board.set_sources(sources);
        metrics.set_discovery(board.numbers());
        let (found, reloaded) = (Notify::new(), Notify::new());
        Arc::new(Self { board: Mutex::new(board), apply: Box::new(apply), metrics, found, reloaded })
    }

    /// Asks the sources and puts into effect what they find, until `stop`. To be called once.
    pub async fn run(self: Arc<Self>, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let (mut tasks, mut running) = (JoinSet::new(), HashMap::new());
        self.follow(&mut tasks, &mut running);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = self.reloaded.notified() => self.follow(&mut tasks, &mut running),
                () = self.found.notified() => {
                    let pause = self.try_to_apply();
                    tokio::select! {
                        () = &mut stop => break,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                Some(ended) = tasks.join_next_with_id() => {
                    let task = ended.map_or_else(|error| error.id(), |(task, ())| task);
                    if let Some((source, _)) = running.remove(&task) {
                        self.ended(&mut tasks, &mut running, source);
                    }
                }
            }
        }
        tasks.shutdown().await;
    }

    /// From now on these are the configured targets and the sources. A source that is asked the same goes on, whatever it is
    /// called now; one of the same name that is asked otherwise keeps its view until it has another. `apply` gets the targets of
    /// all.
    pub fn reload(
        &self,
        configured: Vec<TargetSettings>,
        sources: &[Settings],
        apply: impl FnOnce(&[TargetSettings]) -> Change,
    ) -> Change {
        let mut board = self.board();
        board.configured = configured;
        board.set_sources(sources);
        let change = apply(&board.join());
        self.metrics.set_discovery(board.numbers());
        self.reloaded.notify_one();
        change
    }

    /// Every source, in the order of the configuration.
    pub fn status(&self) -> Vec<Status> {
        self.board().sources.iter().map(Source::status).collect()
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Every change is whole before anything can panic.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every source asked, and no other. Of those that go, the last word has been heard.
    fn follow(self: &Arc<Self>, tasks: &mut JoinSet<()>, running: &mut HashMap<Id, (u64, AbortHandle)>) {
        let ids: Vec<_> = self.board().sources.iter().map(|source| source.id).collect();
        for (id, task) in running.values() {
            if !ids.contains(id) {
                task.abort();
            }
        }
        for id in ids {
            if !running.values().any(|(other, _)| *other == id) {
                self.start(tasks, running, id, Duration::ZERO);
            }
        }
    }

    fn start(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        running: &mut HashMap<Id, (u64, AbortHandle)>,
        id: u64,
        pause: Duration,
    ) {
        let settings = self.board().sources.iter().find(|source| source.id == id).map(|source| source.settings.clone());
        let Some(Settings { kind, defaults, .. }) = settings else { return };
        let (report, metrics) = (Report { discovery: Arc::clone(self), id }, Arc::clone(&self.metrics));
        let task = tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            match kind {
                Kind::File(settings) => file::run(settings, defaults, report).await,
                Kind::Dns(settings) => dns::run(settings, defaults, report).await,
                Kind::Kubernetes(settings) => kubernetes::run(settings, defaults, report, metrics).await,
            }
        });
        running.insert(task.id(), (id, task));
    }

    /// A source's task has ended, because the source is gone or because of a bug.
    fn ended(self: &Arc<Self>, tasks: &mut JoinSet<()>, running: &mut HashMap<Id, (u64, AbortHandle)>, id: u64) {
        if self.board().sources.iter().any(|source| source.id == id) {
            let report = Report { discovery: Arc::clone(self), id };
            let text = "its task panicked, which is a bug of snapgate; it is started again";
            report.failed(Trouble::Bug, text.to_owned());
            self.start(tasks, running, id, PANIC_PAUSE);
        }
    }

    /// A panic is a bug in one change's way, not a reason to hear of no other. Says when to look again.
    fn try_to_apply(&self) -> Duration {
        if catch_unwind(AssertUnwindSafe(|| self.put_into_effect())).is_ok() {
            return APPLY_PAUSE;
        }
        tracing::error!("putting the targets into effect panicked: until it succeeds, the last ones stay");
        self.found.notify_one();
        PANIC_PAUSE
    }

    fn put_into_effect(&self) {
        let mut board = self.board();
        let Change { added, removed, kept } = (self.apply)(&board.join());
        self.metrics.set_discovery(board.numbers());
        drop(board);
        if !added.is_empty() || !removed.is_empty() {
            let (added, removed) = (shown(&added), shown(&removed));
            tracing::info!(added, removed, kept, "the targets have changed");
        }
    }
}

/// The first names, and how many more there are.
fn shown(names: &[String]) -> String {
    let mut text = names[..names.len().min(NAMES_IN_LOG)].join(", ");
    if names.len() > NAMES_IN_LOG {
        text += &format!(" and {} more", names.len() - NAMES_IN_LOG);
    }
    text
}

impl Board {
    /// A source goes by what it is asked: one without a name of its own is called by its place, which changes with what stands
    /// before it. By its name goes only who is asked what nobody was asked before.
    fn set_sources(&mut self, sources: &[Settings]) {
        const RULES: [fn(&Settings, &Settings) -> bool; 3] =
            [|one, other| one == other, Settings::asks_the_same, |one, other| one.name == other.name];
        let mut before = std::mem::take(&mut self.sources);
        let mut kept: Vec<Option<Source>> = sources.iter().map(|_| None).collect();
        for is_it in RULES {
            for (settings, kept) in sources.iter().zip(&mut kept).filter(|(_, kept)| kept.is_none()) {
                let place = before.iter().position(|source| is_it(&source.settings, settings));
                *kept = place.map(|place| before.remove(place));
            }
        }
        for (settings, kept) in sources.iter().cloned().zip(kept) {
            let source = match kept {
                Some(source) if source.settings.asks_the_same(&settings) => Source { settings, ..source },
                other => {
                    self.next_id += 1;
                    let (view, found) = other.map_or_else(Default::default, |source| (source.view, source.found));
                    let id = self.next_id;
                    Source { id, settings, view, found, problem: None, left_out: Vec::new(), answers: 0, failures: 0 }
                }
            };
            self.sources.push(source);
        }
    }

    /// The targets of all, and who is left out.
    fn join(&mut self) -> Vec<TargetSettings> {
        let views = self.sources.iter().map(|source| (&*source.settings.name, &*source.view));
        let (targets, left_out) = joined::join(&self.configured, views);
        for (source, left_out) in self.sources.iter_mut().zip(left_out) {
            if !left_out.is_empty() && left_out != source.left_out {
                let (name, count) = (&*source.settings.name, left_out.len());
                tracing::warn!(source = name, count, first = left_out[0], "targets are left out");
            }
            source.left_out = left_out;
        }
        targets
    }

    fn numbers(&self) -> Vec<DiscoverySource> {
        let of = |source: &Source| DiscoverySource {
            name: source.settings.name.clone(),
            targets: source.view.len(),
            left_out: source.left_out.len(),
            failing: source.problem.is_some() || source.found.is_none(),
            answers: source.answers,
            failures: source.failures,
        };
        self.sources.iter().map(of).collect()
    }
}

impl Source {
    fn status(&self) -> Status {
        let waiting = || self.found.is_none().then(|| (Trouble::Waiting, format!("it {}", Trouble::Waiting)));
        let (trouble, problem) = self.problem.clone().or_else(waiting).unzip();
        Status {
            name: self.settings.name.clone(),
            kind: self.settings.kind.name(),
            targets: self.view.len(),
            age: self.found.map(|found| found.elapsed()),
            problem,
            trouble,
            left_out: self.left_out.clone(),
        }
    }
}

impl Report {
    /// These are the source's targets now: all of them.
    fn found(&self, mut targets: Vec<TargetSettings>) {
        if targets.len() > SOURCE_TARGETS_MAX {
            let text = format!("{} targets are more than {SOURCE_TARGETS_MAX}", targets.len());
            return self.failed(Trouble::Unusable, text);
        }
        // In an order of their own: a name goes to the same one of two each time.
        targets.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        self.with(|source| {
            source.answers += 1;
            source.found = Some(Instant::now());
            if let Some((_, problem)) = source.problem.take() {
                let (name, targets) = (&*source.settings.name, targets.len());
                tracing::info!(source = name, targets, problem, "discovery works again");
            }
            source.view = targets;
        });
        self.discovery.found.notify_one();
    }

    /// The last answer holds on; nobody knows for how long. If it was none, what was found before only ages.
    fn holds(&self) {
        self.with(|source| {
            if source.problem.is_none() {
                source.found = source.found.and(Some(Instant::now()));
            }
        });
    }

    /// Something is wrong: what was found before stays in force.
    fn failed(&self, trouble: Trouble, problem: String) {
        self.with(|source| {
            source.failures += 1;
            if source.problem.as_ref().is_none_or(|(_, known)| *known != problem) {
                let (name, targets) = (&*source.settings.name, source.view.len());
                tracing::warn!(source = name, targets, problem, "discovery fails; its last targets stay");
            }
            source.problem = Some((trouble, problem));
        });
    }

    /// Changes the source, if it is still one.
    fn with(&self, change: impl FnOnce(&mut Source)) {
        let mut board = self.discovery.board();
        if let Some(source) = board.sources.iter_mut().find(|source| source.id == self.id) {
            change(source);
            self.discovery.metrics.set_discovery(board.numbers());
        }
    }
}

//! What the gateway counts of itself, and the page that says it.
//!
//! `requests` counts each finished request, off the data path; `targets` what concerns one target, and its state at the
//! moment of asking; `books` what became of every snapshot at every exit; `process` is the system's word. What is counted are
//! a `number` or a `histogram`, and `page` writes them down. The names of it all are in [`names`].
//!
//! The page is our own rather than a crate's: Prometheus's own text format and OpenMetrics are written from the same numbers,
//! exemplars are copied and not allocated, an exit's books are read as one, and series can leave.

mod books;
mod discovery;
mod gpus;
mod histogram;
mod load_reports;
mod number;
mod page;
mod process;
mod requests;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use books::{ExitBooks, Sums};
pub use discovery::DiscoverySource;
use gpus::GpuExporters;
use histogram::Histogram;
pub use load_reports::{LoadReports, Untold};
use number::{ByWords, locked};
pub use number::{Counter, Gauge};
pub use page::Format;
use page::Page;
pub use requests::Observer;
use requests::Requests;
use targets::Targets;

use super::names::{self, Definition};
use super::reached::Reached;
use crate::snapshot::{FleetView, Moment, Record, Run};
use histogram::Exemplar;

/// The value of a label that has as many values as it may.
const OTHER: &str = "_other";

/// Why the admin listener refuses.
const LOOKUP_REFUSALS: [&str; 9] = [
    "no_tokens_configured",
    "foreign_host",
    "no_token",
    "wrong_token",
    "scope",
    "rate",
    "body_size",
    "body",
    "connections",
];

/// Why a handshake fails.
const HANDSHAKE_FAILURES: [&str; 8] =
    ["timeout", "closed", "not_tls", "no_certificate", "bad_certificate", "refused", "incompatible", "protocol"];

/// What may come of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadResult {
    /// Something is other than before.
    Applied,
    /// Nothing is, at least nothing that does not wait for a restart.
    Unchanged,
    /// Something was wrong: nothing was touched.
    Refused,
}

impl ReloadResult {
    const ALL: [Self; 3] = [Self::Applied, Self::Unchanged, Self::Refused];

    const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

/// What the page says that is not counted but looked at when somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct Scrape<'a> {
    /// For ages.
    pub now: Moment,
    /// The state of the targets.
    pub view: &'a FleetView,
    /// What `/readyz` says.
    pub ready: bool,
    /// Records in the ledger.
    pub ledger_records: usize,
}

/// How full a queue is, and how full it can be. Asked for each page; `None` once the queue is gone.
type QueueSource = Box<dyn Fn() -> Option<QueueFill> + Send + Sync>;

/// How full a queue is, and how full it can be.
#[derive(Clone, Copy, Debug)]
pub struct QueueFill {
    /// Records in it.
    pub records: usize,
    /// And at most.
    pub records_max: usize,
    /// Their estimated memory.
    pub bytes: usize,
    /// And at most.
    pub bytes_max: usize,
}

/// Who this is, for the page.
#[derive(Debug, Default)]
struct Identity {
    version: Box<str>,
    instance: Box<str>,
    tag: String,
    started: Moment,
    config: String,
    /// What the targets are, in the words of the GenAI conventions.
    provider: Box<str>,
}

/// All metrics of one gateway. Passed to whoever counts something; there are no globals.
pub struct Metrics {
    /// Requests whose head could not be parsed: they are the only ones without a snapshot.
    pub unparsed: Counter,
    /// Client connections open now. The gateway goes by it when it takes another one (`limits.connections`).
    pub connections: Gauge,
    /// Client connections closed at once, because the limit was reached.
    pub connections_refused: Counter,
    /// Which limits clients were refused for, lately.
    pub reached: Reached,
    /// Requests between accept and finish. The gateway goes by it when it lets another one in (`limits.in_flight`).
    pub in_flight: Gauge,
    /// Tries after a request's first.
    pub retries: Counter,
    /// Tries that the budget did not allow.
    pub retries_denied: Counter,
    /// Load reports, of targets and for clients.
    pub load_reports: LoadReports,
    scan_errors: Counter,
    requests: Arc<Requests>,
    targets: Arc<Targets>,
    gpu_exporters: GpuExporters,
    /// Targets whose GPUs are not known as they should be.
    pub gpu_problems: Gauge,
    /// For those who count a request only now and then.
    observer: Mutex<Observer>,
    exits: Mutex<Vec<(ExitBooks, Option<usize>)>>,
    intake: Mutex<Option<QueueSource>>,
    commit_delay: Histogram,
    commit_duration: Histogram,
    /// The store's file.
    pub store_bytes: Gauge,
    /// The store's write-ahead log.
    pub wal_bytes: Gauge,
    /// 1 while the store is in trouble: `/readyz` says which.
    pub store_in_trouble: Gauge,
    /// The reserve on the store's disk.
    pub ballast_bytes: Gauge,
    /// Records that retention has deleted.
    pub expired: Counter,
    /// Records deleted on request.
    pub erased: Counter,
    lookups_refused: ByWords<1>,
    /// Files of admin tokens that hold no usable token now; the tokens stay what they were.
    pub token_files_failing: Gauge,
    reloads: ByWords<1>,
    reload_succeeded: Gauge,
    /// Keys of the configuration that were changed and wait for a restart.
    pub config_waiting: Gauge,
    handshake_failures: ByWords<2>,
    rotations: ByWords<2>,
    /// Targets that have left the fleet and have requests to end.
    pub targets_leaving: Gauge,
    discovery: Mutex<Vec<DiscoverySource>>,
    identity: Mutex<Identity>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("exits", &self.exits).finish_non_exhaustive()
    }
}

impl Metrics {
    /// All at zero, failures too, so that the first one is seen as an increase.
    pub fn new() -> Arc<Self> {
        let (requests, targets) = (Arc::new(Requests::new()), Arc::new(Targets::new()));
        let rotating =
            ["tls", "admin_tls", "upstream", "fleet", "otlp"].map(|section| [[section, "done"], [section, "refused"]]);
        let metrics = Self {
            unparsed: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            reached: Reached::default(),
            in_flight: Gauge::default(),
            retries: Counter::default(),
            retries_denied: Counter::default(),
            load_reports: LoadReports::default(),
            scan_errors: Counter::default(),
            observer: Mutex::new(Observer::new(Arc::clone(&requests), Arc::clone(&targets))),
            requests,
            targets,
            gpu_exporters: GpuExporters::default(),
            gpu_problems: Gauge::default(),
            exits: Mutex::default(),
            intake: Mutex::default(),
            commit_delay: Histogram::new(&names::COMMIT_DELAY),
            commit_duration: Histogram::new(&names::COMMIT_DURATION),
            store_bytes: Gauge::default(),
            wal_bytes: Gauge::default(),
            store_in_trouble: Gauge::default(),
            ballast_bytes: Gauge::default(),
            expired: Counter::default(),
            erased: Counter::default(),
            lookups_refused: ByWords::of(LOOKUP_REFUSALS.map(|reason| [reason])),
            token_files_failing: Gauge::default(),
            reloads: ByWords::of(ReloadResult::ALL.map(|result| [result.name()])),
            reload_succeeded: Gauge::default(),
            config_waiting: Gauge::default(),
            handshake_failures: ByWords::of(
                ["tls", "admin_tls"].into_iter().flat_map(|section| HANDSHAKE_FAILURES.map(|reason| [section, reason])),
            ),
            rotations: ByWords::of(rotating.into_iter().flatten()),
            targets_leaving: Gauge::default(),
            discovery: Mutex::default(),
            identity: Mutex::default(),
        };
        metrics.reload_succeeded.set(1);
        Arc::new(metrics)
    }

    /// How the sources of discovery stand: all there are.
    pub fn set_discovery(&self, sources: Vec<DiscoverySource>) {
        *locked(&self.discovery) = sources;
    }

    /// Who this process is, and what its targets are called in the GenAI conventions. To be called once, before anybody asks.
    pub fn identify(&self, run: &Run, provider: &str) {
        let (version, instance) = (run.version.clone(), run.instance.clone());
        let (tag, started, config) = (format!("{:04x}", run.tag.0), run.started, run.config.to_string());
        *locked(&self.identity) = Identity { version, instance, tag, started, config, provider: provider.into() };
    }

    /// For a thread that counts finished requests all the time.
    pub fn observer(&self) -> Observer {
        Observer::new(Arc::clone(&self.requests), Arc::clone(&self.targets))
    }

    /// A request has ended that the pipeline did not take. Rare: it takes a lock for about a microsecond.
    pub fn finished(&self, record: &Record) {
        locked(&self.observer).finished(record);
    }

    /// A record was committed, so long after its request's end.
    pub fn committed(&self, record: &Record, after: Duration) {
        self.commit_delay.observe(after.as_secs_f64(), Some(&Exemplar::of(record)));
    }

    /// A transaction of the store has taken so long.
    pub fn transaction(&self, seconds: f64) {
        self.commit_duration.observe(seconds, None);
    }

    /// An answer's usage or events could not be read.
    pub fn scan_failed(&self) {
        self.scan_errors.inc();
    }

    /// The books of one exit: the same ones, however often they are asked for.
    pub fn exit(&self, exit: &'static str) -> ExitBooks {
        let mut exits = locked(&self.exits);
        if let Some((books, _)) = exits.iter().find(|(books, _)| books.name() == exit) {
            return books.clone();
        }
        let books = ExitBooks::new(exit);
        exits.push((books.clone(), None));
        books
    }

    /// An exit has a queue of its own, for so many records.
    pub fn exit_queue(&self, exit: &'static str, records_max: usize) {
        for (_, max) in locked(&self.exits).iter_mut().filter(|(books, _)| books.name() == exit) {
            *max = Some(records_max);
        }
    }

    /// Where to ask how full the queue to the store is.
    pub fn watch_intake(&self, source: impl Fn() -> Option<QueueFill> + Send + Sync + 'static) {
        *locked(&self.intake) = Some(Box::new(source));
    }

    /// A request to the admin listener was refused.
    pub fn lookup_refused(&self, reason: &'static str) {
        self.lookups_refused.inc([reason]);
    }

    /// From now on this configuration is in effect.
    pub fn config_in_effect(&self, hash: &str) {
        hash.clone_into(&mut locked(&self.identity).config);
    }

    /// The configuration was read again.
    pub fn reloaded(&self, result: ReloadResult) {
        self.reloads.inc([result.name()]);
        self.reload_succeeded.set(i64::from(result != ReloadResult::Refused));
    }

    /// A client had no TLS handshake. `section` is the configuration's, which is the listener.
    pub fn handshake_failed(&self, section: &'static str, reason: &'static str) {
        self.handshake_failures.inc([section, reason]);
    }

    /// Files that a section of the configuration names have changed: their content is in use, or was refused.
    pub fn rotated(&self, section: &'static str, result: &'static str) {
        self.rotations.inc([section, result]);
    }

    /// These are all the targets from now on; whose scrapes may fail for these reasons. What was counted of one that is gone
    /// leaves the page.
    pub fn set_targets<'a>(&self, names: impl Iterator<Item = &'a str>, scrape_failures: &[&'static str]) {
        self.targets.set(names, scrape_failures);
        self.requests.targets_changed(&self.targets);
    }

    /// A metric page was read.
    pub fn scraped(&self, target: &str, seconds: f64) {
        self.targets.scraped(target, seconds);
    }

    /// A metric page could not be read.
    pub fn scrape_failed(&self, target: &str, reason: &'static str) {
        self.targets.scrape_failed(target, reason);
    }

    /// A try to read a metric page took so long, and so long after its start the next one starts.
    pub fn scrape_paced(&self, target: &str, duration: Duration, interval: Duration) {
        self.targets.scrape_paced(target, duration, interval);
    }

    /// These are all the exporters of GPUs, by node; whose pages may fail for these reasons.
    pub fn set_gpu_exporters<'a>(&self, nodes: impl Iterator<Item = &'a str>, failures: &[&'static str]) {
        self.gpu_exporters.set(nodes, failures);
    }

    /// The page of a node's exporter was read.
    pub fn gpu_exporter_read(&self, node: &str, seconds: f64) {
        self.gpu_exporters.read(node);
        self.targets.scrape_took(seconds);
    }

    /// It could not be read.
    pub fn gpu_exporter_failed(&self, node: &str, reason: &'static str) {
        self.gpu_exporters.failed(node, reason);
    }

    /// What is counted, as OpenMetrics.
    pub fn page(&self) -> String {
        self.render(Format::OpenMetrics, None)
    }

    /// The whole page. Without a scrape, what has to be looked at is left out.
    pub fn render(&self, format: Format, scrape: Option<Scrape<'_>>) -> String {
        let mut page = Page::new(format);
        self.requests.write_http(&mut page);
        page.single(&names::IN_FLIGHT, self.in_flight.get());
        page.single(&names::UNPARSED, self.unparsed.get());
        page.single(&names::CONNECTIONS, self.connections.get());
        page.single(&names::CONNECTIONS_REFUSED, self.connections_refused.get());
        page.single(&names::SCAN_ERRORS, self.scan_errors.get());
        let provider = locked(&self.identity).provider.clone();
        self.requests.write_series(&mut page, &provider);
        self.requests.write_decisions(&mut page);
        self.targets.write_decisions(&mut page);
        self.requests.write_choices(&mut page);
        page.single(&names::RETRIES, self.retries.get());
        page.single(&names::RETRIES_DENIED, self.retries_denied.get());
        self.targets.write_attempts(&mut page);
        if let Some(scrape) = &scrape {
            self.targets.write_state(&mut page, scrape);
        }
        page.single(&names::LEAVING, self.targets_leaving.get());
        discovery::write(&mut page, &locked(&self.discovery));
        self.targets.write_scrapes(&mut page);
        self.load_reports.write(&mut page);
        self.gpu_exporters.write(&mut page);
        page.single(&names::GPU_PROBLEMS, self.gpu_problems.get());
        self.write_exits(&mut page, scrape.as_ref());
        self.write_store(&mut page, scrape.as_ref());
        self.write_gateway(&mut page, scrape.as_ref());
        page.finish()
    }

    fn write_exits(&self, page: &mut Page, scrape: Option<&Scrape<'_>>) {
        let exits = locked(&self.exits).clone();
        // Each exit's books are read as one, before any of them is written down.
        let read: Vec<_> = exits.iter().map(|(books, _)| ([books.name()], books.read())).collect();
        let mut numbers = |definition: &Definition, of: fn(&books::Counts) -> u64| {
            page.family(definition, read.iter().map(|(labels, counts)| (&labels[..], of(counts))));
        };
        numbers(&names::OFFERED, |counts| counts.offered);
        numbers(&names::RECOVERED, |counts| counts.recovered);
        numbers(&names::DELIVERED, |counts| counts.delivered);
        numbers(&names::REJECTED, |counts| counts.rejected);
        let by_reason = |of: fn(&books::Counts) -> &BTreeMap<&'static str, u64>| {
            let mut rows = Vec::new();
            for ([exit], counts) in &read {
                rows.extend(of(counts).iter().map(|(reason, count)| ([*exit, *reason], *count)));
            }
            rows
        };
        let dropped = by_reason(|counts| &counts.dropped);
        page.rows(&names::DROPPED, &dropped);
        page.family(&names::SKIPPED, read.iter().map(|(labels, counts)| (&labels[..], counts.skipped)));
        page.family(&names::PENDING, read.iter().map(|(labels, counts)| (&labels[..], counts.pending)));
        if let Some(Scrape { now, .. }) = scrape {
            let lags = exits.iter().zip(&read).map(|((books, _), (labels, _))| (&labels[..], books.lag(*now)));
            page.family(&names::EXIT_LAG, lags);
        }
        let errors = by_reason(|counts| &counts.errors);
        page.rows(&names::EXIT_ERRORS, &errors);
        self.write_queues(page, &exits);
    }

    fn write_queues(&self, page: &mut Page, exits: &[(ExitBooks, Option<usize>)]) {
        let intake = locked(&self.intake).as_ref().and_then(|source| source());
        let mut records = Vec::new();
        if let Some(fill) = intake {
            records.push((["intake"], fill.records, fill.records_max));
        }
        let of = |(books, max): &(ExitBooks, Option<usize>)| max.map(|max| ([books.name()], books.queued(), max));
        records.extend(exits.iter().filter_map(of));
        page.family(&names::QUEUE_RECORDS, records.iter().map(|(labels, records, _)| (&labels[..], *records)));
        page.family(&names::QUEUE_RECORDS_MAX, records.iter().map(|(labels, _, max)| (&labels[..], *max)));
        let only = &["intake"][..];
        page.family(&names::QUEUE_BYTES, intake.map(|fill| (only, fill.bytes)));
        page.family(&names::QUEUE_BYTES_MAX, intake.map(|fill| (only, fill.bytes_max)));
    }

    fn write_store(&self, page: &mut Page, scrape: Option<&Scrape<'_>>) {
        if let Some(scrape) = scrape {
            page.single(&names::LEDGER, scrape.ledger_records);
        }
        page.histograms(&names::COMMIT_DELAY, [(&[][..], &self.commit_delay)]);
        page.histograms(&names::COMMIT_DURATION, [(&[][..], &self.commit_duration)]);
        page.single(&names::STORE_BYTES, self.store_bytes.get());
        page.single(&names::STORE_WAL_BYTES, self.wal_bytes.get());
        page.single(&names::STORE_BALLAST_BYTES, self.ballast_bytes.get());
        page.single(&names::STORE_IN_TROUBLE, self.store_in_trouble.get());
        page.single(&names::EXPIRED, self.expired.get());
        page.single(&names::ERASED, self.erased.get());
    }

    fn write_gateway(&self, page: &mut Page, scrape: Option<&Scrape<'_>>) {
        if let Some(scrape) = scrape {
            page.single(&names::READY, u8::from(scrape.ready));
        }
        let Identity { version, instance, tag, started, config, .. } = &*locked(&self.identity);
        page.family(&names::BUILD_INFO, [(&[&**version][..], 1)]);
        page.family(&names::INSTANCE_INFO, [(&[&**instance, tag][..], 1)]);
        page.family(&names::CONFIG_INFO, [(&[&**config][..], 1)]);
        page.single(&names::CONFIG_WAITING, self.config_waiting.get());
        words(page, &names::RELOADS, &self.reloads);
        page.single(&names::RELOAD_SUCCEEDED, self.reload_succeeded.get());
        words(page, &names::LOOKUPS_REFUSED, &self.lookups_refused);
        page.single(&names::TOKEN_FILES_FAILING, self.token_files_failing.get());
        words(page, &names::HANDSHAKE_FAILURES, &self.handshake_failures);
        words(page, &names::ROTATIONS, &self.rotations);
        page.single(&names::LOG_LINES_DROPPED, super::log::lines_dropped().get());
        process::write(page, *started);
    }
}

fn words<const LABELS: usize>(page: &mut Page, definition: &Definition, counters: &ByWords<LABELS>) {
    page.rows(definition, &counters.list());
}

//! Every metric of the gateway. Each one's name stands here and nowhere else.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::snapshot::{Ending, Outcome};

/// Upper bounds in seconds for what takes from a tenth of a millisecond to seconds inside the gateway.
const INTERNAL_SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 1.0, 5.0];

/// Upper bounds in seconds for whole requests: from an error at once to an answer that takes ten minutes.
const REQUEST_SECONDS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0];

/// How a request ended, as labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndingLabels {
    ending: &'static str,
    fault: &'static str,
}

/// One exit of the pipeline: `store`, `json_log`, …
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ExitLabels {
    exit: &'static str,
}

/// Why an exit did not get a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabels {
    exit: &'static str,
    reason: &'static str,
}

/// One target. Bounded by the size of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TargetLabels {
    target: String,
}

/// Why a scrape gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ScrapeLabels {
    target: String,
    reason: &'static str,
}

/// Why a request to the admin listener was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    reason: &'static str,
}

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
    const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

/// What came of a reload, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReloadLabels {
    result: &'static str,
}

/// The configuration in effect. One at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConfigLabels {
    hash: String,
}

/// Why a client had no TLS handshake, and at which listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HandshakeLabels {
    section: &'static str,
    reason: &'static str,
}

/// Which changed files were looked at, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RotationLabels {
    section: &'static str,
    result: &'static str,
}

/// All metrics of one gateway. Passed to whoever counts something; there are no globals.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests whose head could not be parsed: they are the only ones without a snapshot.
    pub unparsed: Counter,
    /// Client connections open now.
    pub connections: Gauge,
    /// Client connections closed at once, because the limit was reached.
    pub connections_refused: Counter,
    /// Requests between accept and finish.
    pub in_flight: Gauge,
    /// Tries after a request's first.
    pub retries: Counter,
    /// Tries that the budget did not allow.
    pub retries_denied: Counter,
    requests: Family<EndingLabels, Counter>,
    request_seconds: Histogram,
    first_content_seconds: Histogram,
    scanner_errors: Counter,
    offered: Family<ExitLabels, Counter>,
    recovered: Family<ExitLabels, Counter>,
    delivered: Family<ExitLabels, Counter>,
    rejected: Family<ExitLabels, Counter>,
    skipped: Family<ExitLabels, Counter>,
    dropped: Family<DropLabels, Counter>,
    /// By exit alone, for the closing line. Not on the page, where it would be said twice.
    dropped_sums: Family<ExitLabels, Counter>,
    pending: Family<ExitLabels, Gauge>,
    exit_errors: Family<DropLabels, Counter>,
    /// From a request's finish to its commit.
    pub commit_delay_seconds: Histogram,
    /// How long one transaction of the store takes.
    pub commit_seconds: Histogram,
    /// The store's file.
    pub store_bytes: Gauge,
    /// The store's write-ahead log.
    pub wal_bytes: Gauge,
    /// 1 while the store is in trouble: `/readyz` says which.
    pub store_in_trouble: Gauge,
    /// Records that retention has deleted.
    pub expired: Counter,
    lookups_refused: Family<RefusalLabels, Counter>,
    /// Files of admin tokens that hold no usable token now; the tokens stay what they were.
    pub token_files_failing: Gauge,
    /// Records deleted on request.
    pub erased: Counter,
    scrapes: Family<TargetLabels, Counter>,
    scrape_failures: Family<ScrapeLabels, Counter>,
    scrape_seconds: Histogram,
    reloads: Family<ReloadLabels, Counter>,
    reload_succeeded: Gauge,
    config: Family<ConfigLabels, Gauge>,
    /// Keys of the configuration that were changed and wait for a restart.
    pub config_waiting: Gauge,
    handshake_failures: Family<HandshakeLabels, Counter>,
    rotations: Family<RotationLabels, Counter>,
}

impl Metrics {
    /// All at zero.
    #[expect(clippy::too_many_lines, reason = "the list of all metrics is one list")]
    pub fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("snapgate"),
            unparsed: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            in_flight: Gauge::default(),
            retries: Counter::default(),
            retries_denied: Counter::default(),
            requests: Family::default(),
            request_seconds: Histogram::new(REQUEST_SECONDS),
            first_content_seconds: Histogram::new(REQUEST_SECONDS),
            scanner_errors: Counter::default(),
            offered: Family::default(),
            recovered: Family::default(),
            delivered: Family::default(),
            rejected: Family::default(),
            skipped: Family::default(),
            dropped: Family::default(),
            dropped_sums: Family::default(),
            pending: Family::default(),
            exit_errors: Family::default(),
            commit_delay_seconds: Histogram::new(INTERNAL_SECONDS),
            commit_seconds: Histogram::new(INTERNAL_SECONDS),
            store_bytes: Gauge::default(),
            wal_bytes: Gauge::default(),
            store_in_trouble: Gauge::default(),
            expired: Counter::default(),
            lookups_refused: Family::default(),
            token_files_failing: Gauge::default(),
            erased: Counter::default(),
            scrapes: Family::default(),
            scrape_failures: Family::default(),
            scrape_seconds: Histogram::new(INTERNAL_SECONDS),
            reloads: Family::default(),
            reload_succeeded: Gauge::default(),
            config: Family::default(),
            config_waiting: Gauge::default(),
            handshake_failures: Family::default(),
            rotations: Family::default(),
        };
        metrics.reload_succeeded.set(1);
        let registry = &mut metrics.registry;
        registry.register(
            "unparsed_requests",
            "Requests whose head could not be parsed, hence without a snapshot",
            metrics.unparsed.clone(),
        );
        registry.register("connections", "Client connections open", metrics.connections.clone());
        registry.register(
            "connections_refused",
            "Client connections closed at accept, at the limit",
            metrics.connections_refused.clone(),
        );
        registry.register("requests_in_flight", "Requests between accept and finish", metrics.in_flight.clone());
        registry.register("retries", "Tries at another target after a request's first", metrics.retries.clone());
        registry.register(
            "retries_denied",
            "Tries that upstream.retry_share did not allow",
            metrics.retries_denied.clone(),
        );
        registry.register("requests", "Finished requests by ending and fault", metrics.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "From accept to the end, whatever it was",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register_with_unit(
            "time_to_first_content",
            "From accept to the first text, reasoning or tool call",
            Unit::Seconds,
            metrics.first_content_seconds.clone(),
        );
        registry.register(
            "response_scan_errors",
            "Answers in which usage or events could not be read",
            metrics.scanner_errors.clone(),
        );
        registry.register("snapshots_offered", "Finished snapshots meant for an exit", metrics.offered.clone());
        registry.register(
            "snapshots_recovered",
            "Snapshots of an earlier run that an exit still owed",
            metrics.recovered.clone(),
        );
        registry.register("snapshots_delivered", "Snapshots an exit has taken", metrics.delivered.clone());
        registry.register("snapshots_rejected", "Snapshots an exit refused for good", metrics.rejected.clone());
        registry.register("snapshots_skipped", "Snapshots an exit was not meant to get", metrics.skipped.clone());
        registry.register("snapshots_dropped", "Snapshots lost to an exit, by reason", metrics.dropped.clone());
        registry.register("snapshots_pending", "Snapshots an exit has still to take", metrics.pending.clone());
        registry.register(
            "exit_errors",
            "Failed tries to hand snapshots to an exit, by reason",
            metrics.exit_errors.clone(),
        );
        registry.register_with_unit(
            "commit_delay",
            "From a request's finish to its commit in the store",
            Unit::Seconds,
            metrics.commit_delay_seconds.clone(),
        );
        registry.register_with_unit(
            "commit_duration",
            "One transaction of the store",
            Unit::Seconds,
            metrics.commit_seconds.clone(),
        );
        registry.register_with_unit("store", "Size of the store's file", Unit::Bytes, metrics.store_bytes.clone());
        registry.register_with_unit(
            "store_wal",
            "Size of the store's write-ahead log",
            Unit::Bytes,
            metrics.wal_bytes.clone(),
        );
        let trouble = metrics.store_in_trouble.clone();
        registry.register("store_in_trouble", "Whether the store cannot do its work; /readyz says why", trouble);
        registry.register("snapshots_expired", "Snapshots deleted by retention", metrics.expired.clone());
        registry.register("snapshots_erased", "Snapshots deleted on request", metrics.erased.clone());
        registry.register(
            "lookups_refused",
            "Requests to the admin listener refused, by reason",
            metrics.lookups_refused.clone(),
        );
        registry.register(
            "token_files_failing",
            "Files of admin tokens that hold no usable token; the tokens stay what they were",
            metrics.token_files_failing.clone(),
        );
        registry.register("scrapes", "Metric pages read", metrics.scrapes.clone());
        registry.register(
            "scrape_failures",
            "Metric pages that could not be read, by reason",
            metrics.scrape_failures.clone(),
        );
        registry.register_with_unit(
            "scrape_duration",
            "Time to read one metric page",
            Unit::Seconds,
            metrics.scrape_seconds.clone(),
        );
        registry.register("reloads", "Reloads of the configuration, by what came of them", metrics.reloads.clone());
        registry.register(
            "reload_last_succeeded",
            "1 unless the last reload was refused",
            metrics.reload_succeeded.clone(),
        );
        registry.register("config", "1 with the hash of the configuration in effect", metrics.config.clone());
        registry.register(
            "config_keys_waiting",
            "Keys that a reload found changed and that wait for a restart",
            metrics.config_waiting.clone(),
        );
        registry.register(
            "tls_handshake_failures",
            "Clients without a TLS handshake, by the section of the configuration that is the listener's",
            metrics.handshake_failures.clone(),
        );
        registry.register(
            "rotations",
            "Changes of the files that a section of the configuration names: done, or refused as unusable",
            metrics.rotations.clone(),
        );
        registry.register(
            "log_lines_dropped",
            "Lines of the gateway's own log that nobody read in time: requests never wait for it",
            super::log::lines_dropped(),
        );
        Arc::new(metrics)
    }

    /// The page, in the OpenMetrics text format.
    pub fn page(&self) -> String {
        let mut page = String::new();
        encode(&mut page, &self.registry).expect("writing to a string does not fail");
        page
    }

    /// A request has ended. Called by the pipeline, off the data path.
    pub fn finished(&self, outcome: &Outcome) {
        let fault = outcome.fault().map_or("none", |fault| fault.name());
        self.requests.get_or_create(&EndingLabels { ending: outcome.ending.name(), fault }).inc();
        self.request_seconds.observe(outcome.timings.end_offset_us as f64 / 1e6);
        if let (Ending::Completed, Some(first)) = (outcome.ending, outcome.timings.first_content_offset_us) {
            self.first_content_seconds.observe(first as f64 / 1e6);
        }
    }

    /// An answer's usage or events could not be read.
    pub fn scan_failed(&self) {
        self.scanner_errors.inc();
    }

    /// The books of one exit.
    pub fn exit(&self, exit: &'static str) -> ExitBooks {
        let labels = ExitLabels { exit };
        ExitBooks {
            exit,
            offered: self.offered.get_or_create(&labels).clone(),
            recovered: self.recovered.get_or_create(&labels).clone(),
            delivered: self.delivered.get_or_create(&labels).clone(),
            rejected: self.rejected.get_or_create(&labels).clone(),
            skipped: self.skipped.get_or_create(&labels).clone(),
            pending: self.pending.get_or_create(&labels).clone(),
            dropped: self.dropped.clone(),
            dropped_sum: self.dropped_sums.get_or_create(&labels).clone(),
            errors: self.exit_errors.clone(),
        }
    }

    /// A request to the admin listener was refused.
    pub fn lookup_refused(&self, reason: &'static str) {
        self.lookups_refused.get_or_create(&RefusalLabels { reason }).inc();
    }

    /// From now on this configuration is in effect.
    pub fn config_in_effect(&self, hash: &str) {
        self.config.clear();
        self.config.get_or_create(&ConfigLabels { hash: hash.to_owned() }).set(1);
    }

    /// The configuration was read again.
    pub fn reloaded(&self, result: ReloadResult) {
        self.reloads.get_or_create(&ReloadLabels { result: result.name() }).inc();
        self.reload_succeeded.set(i64::from(result != ReloadResult::Refused));
    }

    /// A client had no TLS handshake. `section` is the configuration's, which is the listener.
    pub fn handshake_failed(&self, section: &'static str, reason: &'static str) {
        self.handshake_failures.get_or_create(&HandshakeLabels { section, reason }).inc();
    }

    /// Files that a section of the configuration names have changed: their content is in use, or was refused.
    pub fn rotated(&self, section: &'static str, result: &'static str) {
        self.rotations.get_or_create(&RotationLabels { section, result }).inc();
    }

    /// A metric page was read.
    pub fn scraped(&self, target: &str, seconds: f64) {
        self.scrapes.get_or_create(&TargetLabels { target: target.to_owned() }).inc();
        self.scrape_seconds.observe(seconds);
    }

    /// A metric page could not be read.
    pub fn scrape_failed(&self, target: &str, reason: &'static str) {
        self.scrape_failures.get_or_create(&ScrapeLabels { target: target.to_owned(), reason }).inc();
    }

    /// A target is gone: what was counted of it would stay on the page for ever.
    pub fn forget_target(&self, target: &str, reasons: &[&'static str]) {
        self.scrapes.remove(&TargetLabels { target: target.to_owned() });
        for &reason in reasons {
            self.scrape_failures.remove(&ScrapeLabels { target: target.to_owned(), reason });
        }
    }
}

/// The books of one exit: offered + recovered = delivered + rejected + dropped + skipped + pending.
#[derive(Clone, Debug)]
pub struct ExitBooks {
    exit: &'static str,
    /// Finished in this run and meant for the exit.
    pub offered: Counter,
    /// Finished in an earlier run and still owed.
    pub recovered: Counter,
    /// Taken by the exit.
    pub delivered: Counter,
    /// Refused by the exit for good.
    pub rejected: Counter,
    /// Not meant for the exit, by its settings.
    pub skipped: Counter,
    /// Still to be taken.
    pub pending: Gauge,
    dropped: Family<DropLabels, Counter>,
    dropped_sum: Counter,
    errors: Family<DropLabels, Counter>,
}

impl ExitBooks {
    /// Records the exit will never get.
    pub fn dropped(&self, reason: &'static str, count: u64) {
        self.dropped_sum.inc_by(count);
        self.dropped.get_or_create(&DropLabels { exit: self.exit, reason }).inc_by(count);
    }

    /// How many of these there were, whatever the reason.
    pub fn dropped_sum(&self) -> u64 {
        self.dropped_sum.get()
    }

    /// A try that failed; what it meant for the records is counted elsewhere.
    pub fn error(&self, reason: &'static str) {
        self.errors.get_or_create(&DropLabels { exit: self.exit, reason }).inc();
    }
}

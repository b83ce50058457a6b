//! `/v1/fleet`: the view that the next decision would be made from, with ages as of now.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::render::{self, candidates, table, words};
use crate::snapshot::document::{KubernetesPart, PerGpu, State};
use crate::snapshot::{Excluded, FleetView, GpuExporter, GpuHealth, Health, Member, Moment, Quantity, Watched};

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct FleetPage<'a> {
    published: String,
    view_age_ms: u64,
    eligible: usize,
    excluded: Excluded,
    targets: Vec<TargetPart<'a>>,
    gpu_exporters: Vec<ExporterPart<'a>>,
    leaving: Vec<LeavingPart>,
    discovery: Vec<SourcePart>,
}

/// One exporter of GPUs.
#[derive(Debug, Serialize)]
struct ExporterPart<'a> {
    node: &'a str,
    url: &'a str,
    /// `None` before its first good page.
    age_ms: Option<u64>,
    gpus: u32,
    garbage_lines: u32,
    error: Option<&'a str>,
    failures: u32,
}

/// Who belongs to the fleet, and who says so.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    /// Targets that have left.
    pub leaving: Vec<LeavingPart>,
    /// Sources of discovery, in the order of the configuration.
    pub sources: Vec<SourcePart>,
}

/// Tells who belongs to the fleet now.
pub type MembershipSource = Arc<dyn Fn() -> Membership + Send + Sync>;

/// A target that has left the fleet and has requests to end.
#[derive(Clone, Debug, Serialize)]
pub struct LeavingPart {
    /// As it was called.
    pub name: String,
    /// Where it was.
    pub address: String,
    /// Requests of this gateway at it.
    pub gateway_in_flight: u32,
    /// How long ago it left.
    pub left_ms: u64,
}

/// A source of discovery.
#[derive(Clone, Debug, Serialize)]
pub struct SourcePart {
    /// As configured.
    pub name: String,
    /// `file`, `dns` or `kubernetes`.
    pub kind: &'static str,
    /// In its last good view.
    pub targets: usize,
    /// Of the view; `None` before the first.
    pub age_ms: Option<u64>,
    /// Why the view may be out of date.
    pub problem: Option<String>,
    /// How many of them are not in the fleet.
    pub left_out: usize,
    /// The first of those, each with the reason.
    pub first_left_out: Vec<String>,
}

/// One target.
#[derive(Debug, Serialize)]
struct TargetPart<'a> {
    name: &'a str,
    address: &'a str,
    health: Health,
    eligible: bool,
    gpus: Option<u32>,
    /// What is in the way of knowing its GPUs.
    gpu_problem: Option<&'a str>,
    kubernetes: KubernetesPart<'a>,
    gateway_in_flight: u32,
    gateway_requests_per_second: f64,
    gateway_tokens_per_second: f64,
    #[serde(flatten)]
    per_gpu: PerGpu,
    /// Counts the target's published states within the run.
    sample: u64,
    published: String,
    /// Whose metrics it serves, as far as a page has shown.
    engine: Option<Arc<str>>,
    /// What its engine's table expected on the last page in vain.
    series_missing: Vec<String>,
    /// Lines of the last page that could not be read or believed.
    garbage_lines: u32,
    /// Scrapes that have failed since the last good one, and why the last did.
    scrape_failures: u32,
    scrape_error: Option<Box<str>>,
    /// How long the last scrape took, and how long after its start the next one starts.
    scrape_duration_us: Option<u64>,
    scrape_interval_ms: Option<u64>,
    /// Up to which age what its page says is fresh.
    fresh_within_ms: Option<u64>,
    /// Why the last probe failed.
    probe_error: Option<Box<str>>,
    /// Its page is read too seldom for what it says to stay fresh: `scrape_interval_ms` is more than `fresh_within_ms`.
    #[serde(skip)]
    is_seldom: bool,
    state: State,
}

impl<'a> FleetPage<'a> {
    /// The page of a view.
    pub(super) fn of(
        view: &'a FleetView,
        gpus: &'a GpuHealth,
        Membership { leaving, sources }: Membership,
        now: Moment,
    ) -> Self {
        let mut eligible = vec![false; view.members.len()];
        for &member in &view.pools.all().eligible {
            eligible[member as usize] = true;
        }
        let targets = view.members.iter().zip(eligible).map(|(member, eligible)| {
            let gpu_problem = gpus.problem(member.sample.target.slot);
            TargetPart { gpu_problem, ..TargetPart::of(member, eligible, now) }
        });
        Self {
            published: view.published.to_string(),
            view_age_ms: now.ms_since(view.published),
            eligible: view.pools.all().eligible.len(),
            excluded: view.pools.all().excluded,
            targets: targets.collect(),
            gpu_exporters: gpus.exporters.iter().map(|exporter| ExporterPart::of(exporter, now)).collect(),
            leaving,
            discovery: sources,
        }
    }

    /// The page for a terminal.
    pub(super) fn render(&self, width: usize) -> String {
        let width = render::bounded(width);
        let sentence = format!(
            "{} of {} may be chosen; the view is {} old.",
            self.eligible,
            words::counted(self.targets.len() as u64, "target"),
            words::millis(self.view_age_ms)
        );
        let rows: Vec<_> = self.targets.iter().map(TargetPart::row).collect();
        let table = candidates::lay_out_without_gpus(&COLUMNS, 3, &rows, width);
        let mut text = format!("{}\n{table}", words::wrapped(&sentence, width));
        // What engines and GPUs did has a table of its own: with it, one of a hundred columns would have no room for all.
        let work: Vec<_> = self.targets.iter().map(TargetPart::work).collect();
        if work.iter().any(|row| row[1..].iter().any(|cell| cell != candidates::UNKNOWN)) {
            text.push_str(&format!("\n{}", table::lay_out(&WORK_COLUMNS, &work, width)));
            text.push_str(&words::hanging("", WORK_LEGEND, 2, width));
        }
        let stale = candidates::legend_of_stale(3, &rows).or(candidates::legend_of_stale(1, &work));
        text.push_str(&stale.map_or_else(String::new, |legend| words::hanging("", legend, 2, width)));
        let exporters = self.gpu_exporters.iter();
        let exporters =
            exporters.filter_map(|exporter| Some(("GPU exporter of", exporter.node, words::clean(exporter.error?))));
        let troubles = self.targets.iter().flat_map(TargetPart::troubles).chain(exporters);
        for (place, (what, whose, trouble)) in troubles.take(TROUBLES_MAX).enumerate() {
            text.push_str(if place == 0 { "\n" } else { "" });
            let line = format!("{what} {}: {}", words::clean(whose), trouble);
            text.push_str(&words::hanging("", &line, 2, width));
        }
        for note in self.notes() {
            text += "\n";
            text += &words::wrapped(&note, width);
        }
        text
    }

    /// What there is to say of who comes and goes, a sentence each.
    fn notes(&self) -> Vec<String> {
        let leaving = |LeavingPart { name, gateway_in_flight, left_ms, .. }: &LeavingPart| {
            let (name, requests) = (words::clean(name), words::counted(u64::from(*gateway_in_flight), "request"));
            format!("{name} left {} ago and has {requests} to end.", words::millis(*left_ms))
        };
        let source = |SourcePart { name, kind, targets, age_ms, problem, left_out, first_left_out }: &SourcePart| {
            let (name, found) = (words::clean(name), words::counted(*targets as u64, "target"));
            let age = age_ms.map_or_else(String::new, |age| format!(", {} old", words::millis(age)));
            let problem = problem.as_ref().map_or_else(String::new, |text| format!("; {}", words::clean(text)));
            let first = first_left_out.first().map_or_else(String::new, |text| words::clean(text));
            let left_out =
                if *left_out > 0 { format!("; {left_out} left out, such as {first}") } else { String::new() };
            format!("{name} ({kind}): {found}{age}{problem}{left_out}.")
        };
        self.leaving.iter().map(leaving).chain(self.discovery.iter().map(source)).collect()
    }
}

/// Troubles with watching targets and GPUs that the page for a terminal shows; the JSON has all.
const TROUBLES_MAX: usize = 20;

impl<'a> ExporterPart<'a> {
    fn of(exporter: &'a GpuExporter, now: Moment) -> Self {
        Self {
            node: &exporter.node,
            url: &exporter.url,
            age_ms: exporter.read.map(|read| now.ms_since(read)),
            gpus: exporter.gpus,
            garbage_lines: exporter.garbage_lines,
            error: exporter.error.as_deref(),
            failures: exporter.failures,
        }
    }
}

/// The columns of the page for a terminal: a target's own, then those it shares with a snapshot's candidates.
const COLUMNS: [table::Column; 14] = {
    let [in_flight, rps, tps, waiting, running, kv, hit, gpu, memory, age, freshness] = candidates::STATE_COLUMNS;
    [
        table::Column::name("target"),
        table::Column::text("health", 0),
        table::Column::text("address", 9),
        in_flight,
        rps,
        tps,
        waiting,
        running,
        kv,
        hit,
        gpu,
        memory,
        age,
        freshness,
    ]
};

/// The columns of the table of what engines and GPUs did.
const WORK_COLUMNS: [table::Column; 10] = [
    table::Column::name("target"),
    table::Column::number("rps", 0),
    table::Column::number("tps", 0),
    table::Column::number("gpus", 3),
    table::Column::number("rps/gpu", 0),
    table::Column::number("tps/gpu", 0),
    table::Column::number("our rps/gpu", 1),
    table::Column::number("our tps/gpu", 2),
    table::Column::number("gpu %", 0),
    table::Column::number("gpu mem %", 0),
];

/// What its columns mean.
const WORK_LEGEND: &str =
    "requests and tokens per second as the engines count them, and for each GPU; our: as this gateway does";

impl<'a> TargetPart<'a> {
    fn of(member: &'a Member, eligible: bool, now: Moment) -> Self {
        let sample = &member.sample;
        let watched = Watched::clone(&member.live.watched());
        let is_seldom = watched.is_seldom();
        let millis = |time: Option<Duration>| Some(time?.as_millis() as u64);
        let (gateway_requests_per_second, gateway_tokens_per_second) = member.live.rates();
        let state = State::at(sample, now);
        Self {
            name: &sample.target.name,
            address: &sample.target.address,
            health: sample.health,
            eligible,
            gpus: sample.gpus(),
            gpu_problem: None,
            kubernetes: KubernetesPart::of(sample.target.place.as_deref()),
            gateway_in_flight: member.live.in_flight(),
            gateway_requests_per_second,
            gateway_tokens_per_second,
            per_gpu: state.per_gpu([Some(gateway_requests_per_second), Some(gateway_tokens_per_second)]),
            sample: sample.n,
            published: sample.published.to_string(),
            engine: watched.engine,
            series_missing: watched.series_missing,
            garbage_lines: watched.garbage_lines,
            scrape_failures: watched.scrape_failures,
            scrape_error: watched.scrape_error,
            scrape_duration_us: watched.scrape_duration.map(|time| time.as_micros() as u64),
            scrape_interval_ms: millis(watched.scrape_interval),
            fresh_within_ms: millis(watched.fresh_within),
            probe_error: watched.probe_error,
            is_seldom,
            state,
        }
    }

    /// What is in the way of knowing it: of what, whose, and what, ready to be shown.
    fn troubles(&self) -> impl Iterator<Item = (&'static str, &str, String)> {
        let of = |what, trouble: Option<String>| Some((what, self.name, trouble?));
        let said = |text: &Option<Box<str>>| text.as_deref().map(words::clean);
        let seldom = self.scrape_interval_ms.zip(self.fresh_within_ms).filter(|_| self.is_seldom);
        let seldom = seldom.map(|(interval, fresh)| {
            format!("read every {}, and fresh for {}", words::millis(interval), words::millis(fresh))
        });
        let troubles = [
            of("probe of", said(&self.probe_error)),
            of("metrics of", said(&self.scrape_error).or(seldom)),
            of("GPUs of", self.gpu_problem.map(words::clean)),
        ];
        troubles.into_iter().flatten()
    }

    /// Its row of [`WORK_COLUMNS`].
    fn work(&self) -> Vec<String> {
        let rate = |rate: Option<f64>| rate.map_or_else(|| candidates::UNKNOWN.to_owned(), words::number);
        let value = |quantity, show| candidates::cell(&self.state, quantity, show);
        vec![
            words::clean(self.name),
            value(Quantity::EngineRequestsPerSecond, words::number),
            value(Quantity::EngineTokensPerSecond, words::number),
            rate(self.gpus.map(f64::from)),
            rate(self.per_gpu.engine_requests_per_second_per_gpu),
            rate(self.per_gpu.engine_tokens_per_second_per_gpu),
            rate(self.per_gpu.gateway_requests_per_second_per_gpu),
            rate(self.per_gpu.gateway_tokens_per_second_per_gpu),
            value(Quantity::GpuUtilization, words::percent),
            value(Quantity::GpuMemoryUtilization, words::percent),
        ]
    }

    fn row(&self) -> Vec<String> {
        let health = match self.health {
            Health::Unknown => "unknown",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        };
        let mut row = vec![words::clean(self.name), health.to_owned(), words::clean(self.address)];
        row.extend(candidates::state_cells(
            u64::from(self.gateway_in_flight),
            self.gateway_requests_per_second,
            self.gateway_tokens_per_second,
            &self.state,
            candidates::Trust::of(&self.state, 0),
        ));
        row
    }
}

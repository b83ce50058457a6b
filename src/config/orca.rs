//! The keys about load reports, and what they mean together.

use super::build::Values;
use super::keys::{KIB, Key, bytes};
use super::layers::Effective;
use super::mistake::Mistakes;
use super::texts::network;
use super::value::Kind;
use crate::gateway::{LoadReports, ToClients};
use crate::orca::{METRICS, Rules};
use crate::snapshot::ReportFormat;

/// Networks in `load_reports.trusted` at most: they are compared one by one.
const NETWORKS_MAX: usize = 64;

/// The section.
pub(super) const SECTION: &str = "load_reports";

/// What the section is about, for the example file.
pub(super) const DOC: &str =
    "Load reports in the format ORCA, which Envoy and gRPC balance by: those of targets, and those for clients.";

/// The words for a format, and for none.
const FORMATS: &[&str] = &["none", "text", "json", "bin"];

/// The keys, in the order of the example file.
#[rustfmt::skip] // a table: one key, one place
pub(super) const KEYS: [Key; 7] = [
    Key { path: "load_reports.read", kind: Kind::Choice(&["lenient", "strict", "off"]), default: "lenient",
        doc: "How the reports of targets are read. `lenient` keeps every entry that can be understood; `strict` refuses a \
              report for one bad entry, as Envoy does. What is read freshens the target's state between polls and stands in \
              the record; what is not is counted, and the answer passes all the same." },
    Key { path: "load_reports.ask", kind: Kind::Choice(FORMATS), default: "none",
        doc: "In which format targets are asked for a report with every request; a target may say otherwise. vLLM knows text \
              and json, answers in one piece only, and pays for each with a look at all of its metrics." },
    Key { path: "load_reports.to_clients", kind: Kind::Choice(&["strip", "on_request", "always", "pass"]), default: "strip",
        doc: "What clients get: nothing; on request (endpoint-load-metrics-format: json) or always the state of the target \
              as the choice saw it; or the target's own report as it came. It tells clients how loaded the fleet is." },
    Key { path: "load_reports.trusted", kind: Kind::List { max: NETWORKS_MAX, check: network }, default: "",
        doc: "From where it may be requested: addresses and networks, such as [\"10.0.0.0/8\"]. The request of anybody else \
              is ignored. It counts for connections that are opened from then on." },
    Key { path: "load_reports.format", kind: Kind::Choice(&["text", "json", "bin"]), default: "json",
        doc: "The format for clients that did not ask for one." },
    Key { path: "load_reports.bytes", kind: bytes(64, KIB), default: "512B",
        doc: "The longest report for a client. What has no room is left out, the least important first: some servers refuse \
              an answer whose head is too large." },
    Key { path: "load_reports.metrics", kind: Kind::List { max: METRICS.len(), check: metric },
        default: "kv_cache_usage_perc,num_requests_waiting,num_requests_running,gpu_utilization,prefix_cache_hit_rate,\
                  tokens_per_second,gpu_memory_utilization,snapshot_age_ms",
        doc: "What clients are told, as far as it is known and fresh. rps_fractional and application_utilization are to be \
              added where a balancer weighs by them: it then takes the target's load for that of the whole gateway." },
];

fn metric(text: &str) -> Result<String, String> {
    if METRICS.iter().any(|metric| metric.name == text) {
        return Ok(text.to_owned());
    }
    let known: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
    Err(format!("\"{text}\" is not one of {}", known.join(", ")))
}

/// Notes what does not fit together.
pub(super) fn check(effective: &Effective, mistakes: &mut Mistakes) {
    let values = Values::of(effective);
    let to_clients = values.text("load_reports.to_clients");
    let wrong = match to_clients {
        "on_request" if values.list("load_reports.trusted").is_empty() && !mistakes.about("load_reports.trusted") => {
            Some("nobody may ask: name who may in load_reports.trusted, such as [\"10.0.0.0/8\"]")
        }
        "on_request" | "always" if values.list("load_reports.metrics").is_empty() => {
            Some("there is nothing to tell: name metrics in load_reports.metrics")
        }
        _ => None,
    };
    if let Some(text) = wrong {
        mistakes.add(effective.get("load_reports.to_clients").1.clone(), Some("load_reports.to_clients"), text);
    }
}

/// The settings. Only called when nothing is wrong.
pub(super) fn settings(values: &Values<'_>) -> LoadReports {
    let format = |path| ReportFormat::from_name(values.text(path).as_bytes());
    let network = |network: &String| network.parse().expect("the table's check has parsed it");
    let told = values.list("load_reports.metrics");
    LoadReports {
        rules: match values.text("load_reports.read") {
            "off" => None,
            "strict" => Some(Rules::Strict),
            _ => Some(Rules::Lenient),
        },
        ask: format("load_reports.ask"),
        to_clients: match values.text("load_reports.to_clients") {
            "on_request" => ToClients::OnRequest,
            "always" => ToClients::Always,
            "pass" => ToClients::Pass,
            _ => ToClients::Strip,
        },
        trusted: values.list("load_reports.trusted").iter().map(network).collect(),
        format: format("load_reports.format").unwrap_or(ReportFormat::Json),
        bytes_max: values.size("load_reports.bytes"),
        told: METRICS.map(|metric| told.iter().any(|name| name == metric.name)),
    }
}

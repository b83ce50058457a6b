//! Holds the published lists of metrics to the one in the code. `SNAPGATE_REGENERATE=1 cargo test --lib registry` writes them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::names::{ALL, Definition, Kind};

/// `otel/metrics.csv`, for programs.
fn csv() -> String {
    let mut text = "name,type,unit,labels,stability,buckets,description\n".to_owned();
    for Definition { name, kind, unit, labels, stability, help } in ALL {
        let (labels, buckets) = (labels.join(" "), bounds(*kind, " "));
        let (kind, stability) = (kind.name(), stability.name());
        writeln!(text, "{name},{kind},{unit},{labels},{stability},{buckets},\"{help}.\"").unwrap();
    }
    text
}

fn bounds(kind: Kind, separator: &str) -> String {
    let Kind::Histogram(bounds) = kind else { return String::new() };
    bounds.iter().map(|bound| format!("{bound:?}")).collect::<Vec<_>>().join(separator)
}

/// What each label means and how many values it can have.
const LABELS: &[(&str, &str)] = &[
    ("ending", "What ended the request: `ending` of the snapshot document."),
    (
        "error_type",
        "Empty unless the target or the gateway is to blame: then the status of an answer that was delivered, else the ending. `_other` is a status for which there is no room: of 20 errors of an operation, model and target, or 200 combinations of method, status and error.",
    ),
    ("exit", "`store`, `json_log` or another exit that is configured."),
    ("fault", "`client`, `target`, `gateway` or `none`."),
    ("format", "`text`, `json` or `bin`."),
    ("gen_ai_operation_name", "`chat`, `text_completion`, `embeddings` or `other`, by the path."),
    ("gen_ai_provider_name", "What the targets are: `otlp.provider`, as on spans. Empty for the operation `other`."),
    ("gen_ai_request_model", "As `model`."),
    ("hash", "Eight hex digits, as `gateway.config` in the snapshot document."),
    ("http_request_method", "As it came if all know it, else `_OTHER`."),
    (
        "http_response_status_code",
        "What the client was sent; empty if nothing was, or if there are more than 200 combinations of method, status and error.",
    ),
    ("label", "`error_type`, `http_response_status_code`, `model` or `target`."),
    (
        "model",
        "As the request names it, empty if it names none. A model has a name of its own once a request for it has ended well, up to 100 of them; others are `_other`, as are model and target once there are 2000 combinations of operation, model and target.",
    ),
    ("name", "The instance's, as configured."),
    ("node", "As the configuration names it beside the GPU exporter's address."),
    ("policy", "The configured policy."),
    ("quantity", "One of the eight of `decision.state` in the snapshot document."),
    (
        "queue",
        "`intake`, before the store (both of its queues: an eighth is for requests that no target was chosen for), or the name of an exit.",
    ),
    (
        "reason",
        "From a closed set for each metric, all of them at 0 from the start where they are failures. Of dropped snapshots `refused_flood` is no failure: more requests were refused than are recorded, see `pipeline.refused_per_second`; they count in `snapgate_requests_total` and the durations as all others.",
    ),
    ("result", "From a closed set for each metric."),
    ("section", "Of the configuration."),
    ("source", "The name of a source of discovery, as configured."),
    ("tag", "Four hex digits."),
    (
        "target",
        "The target's name, up to 1000 of them; what is counted of others, and of requests that end more than `fleet.drain_time` after their target has left the fleet, is `_other`. The series of a target are there until then.",
    ),
    ("version", "Of the gateway."),
];

/// `docs/metrics.md`, for people.
fn page() -> String {
    let mut text = "# Metrics\n\nWhat `GET /metrics` of the admin listener says. It needs no token. Asked for OpenMetrics, as Prometheus does, it \
                    adds exemplars with\n`snapshot_id` and `trace_id` to the histograms of requests; `snapgate lookup` resolves the one, your tracing backend the other. To \
                    keep\nthem, Prometheus needs `--enable-feature=exemplar-storage`.\n\nFor every exit, on every page:\n\n```\n\
                    snapgate_snapshots_offered_total + snapgate_snapshots_recovered_total\n  = snapgate_snapshots_delivered_total \
                    + snapgate_snapshots_rejected_total + sum by (exit) (snapgate_snapshots_dropped_total)\n    + snapgate_snapshots_skipped_total + \
                    snapgate_snapshots_pending\n```\n\nWhat is not known has no series: missing is never 0. Names marked `development` follow OpenTelemetry conventions that are not\nfinished.\n\n\
                    `gen_ai_server_*` are the conventions' names for what a model server measures. Here they are what the gateway \
                    measured\nof its targets, from accept to what it passed on: the choice, the way to the target and tries at others are in \
                    them, and so\nis a client that reads slowly. The conventions have no names for a gateway. Those of clients \
                    (`gen_ai.client.*`) are left to\nthe programs that ask, whose requests would be counted twice. An engine that says \
                    `gen_ai_server_*` of itself has another\n`job`: sum up one of the two.\n\n\
                    This page and `otel/metrics.csv` are generated from `src/telemetry/names.rs` with\n`SNAPGATE_REGENERATE=1 cargo test --lib registry`; a test fails when they are not of today.\n\n\
                    | metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n"
        .to_owned();
    for Definition { name, kind, unit, labels, stability, help } in ALL {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = if stability.name() == "stable" {
            kind.name().to_owned()
        } else {
            format!("{} ({})", kind.name(), stability.name())
        };
        writeln!(text, "| `{name}` | {kind} | `{unit}` | {} | {help}. |", labels.join(", ")).unwrap();
    }
    text.push_str("\n## Labels\n\n| label | values |\n|---|---|\n");
    for (label, meaning) in LABELS {
        writeln!(text, "| `{label}` | {meaning} |").unwrap();
    }
    text.push_str("\n## Upper bounds of buckets\n\n| histogram | bounds |\n|---|---|\n");
    for Definition { name, kind, .. } in ALL.iter().filter(|definition| matches!(definition.kind, Kind::Histogram(_))) {
        writeln!(text, "| `{name}` | {} |", bounds(*kind, ", ")).unwrap();
    }
    text
}

#[test]
fn the_published_registry_is_of_today() {
    for (file, text) in [("otel/metrics.csv", csv()), ("docs/metrics.md", page())] {
        hold_to(file, &text);
    }
}

/// A published file has to be this text, or becomes it if that is asked for.
#[track_caller]
pub(crate) fn hold_to(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("SNAPGATE_REGENERATE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(published == text, "{file} is stale: SNAPGATE_REGENERATE=1 cargo test --lib registry");
}

#[test]
fn the_registry_names_are_as_prometheus_wants_them() {
    let mut names = BTreeSet::new();
    let mut labels = BTreeSet::new();
    for definition in ALL {
        let Definition { name, kind, unit, help, .. } = definition;
        assert!(names.insert(*name), "{name} is there twice");
        assert_eq!(
            name.ends_with("_total"),
            *kind == Kind::Counter,
            "{name}: a counter, and only a counter, ends in _total"
        );
        let word = [("s", "seconds"), ("By", "bytes")].into_iter().find(|(short, _)| short == unit);
        assert!(word.is_none_or(|(_, word)| name.contains(&format!("_{word}"))), "{name} does not say its unit");
        assert!(!help.ends_with('.') && !help.contains(['"', '\n', '|']), "{name}: {help}");
        if let Kind::Histogram(bounds) = kind {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{name}");
        }
        labels.extend(definition.labels);
    }
    let described: BTreeSet<_> = LABELS.iter().map(|(label, _)| label).collect();
    assert_eq!(labels, described, "every label is explained, and no other");
}

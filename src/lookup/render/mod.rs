//! A snapshot for people: one sentence of verdict, the timeline as a picture, the candidates as a table, the names.
//!
//! It is made from a [`Document`] alone, so that it reads the same whether the document came over HTTP, out of the
//! store or from a log. Everything a client or a target could have written is cleaned, so that no text of theirs can
//! move the cursor of an operator's terminal; nothing but ASCII and box-drawing characters comes out, and no line is
//! wider than asked for.

use crate::snapshot::document::{BackendReportPart, ChosenState, DecisionPart, KubernetesPart, State};
use crate::snapshot::{Document, Freshness, Quantity};

use super::around::Around;
use super::links::Offered;
use super::problem::Problem;

pub(super) mod candidates;
mod line;
pub(super) mod table;
mod timeline;
mod verdict;
pub(super) mod words;

/// The width of what the lookup API answers, and the widest there is.
pub const WIDTH_MAX: usize = 100;

/// The narrowest: with less, no picture could be drawn. A smaller width is taken as this one.
pub const WIDTH_MIN: usize = 60;

/// The width that is kept to.
pub(super) fn bounded(width: usize) -> usize {
    width.clamp(WIDTH_MIN, WIDTH_MAX)
}

/// What of a decision a document has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All candidates.
    Whole,
    /// The chosen one alone: the others are for operators, and are not there to be counted.
    Own,
}

/// One snapshot, in at most `width` columns (within [`WIDTH_MIN`] and [`WIDTH_MAX`]).
pub fn render(document: &Document<'_>, width: usize) -> String {
    render_seen(document, Sight::Whole, width)
}

/// The same of a document from which something may have been taken out.
pub fn render_seen(document: &Document<'_>, sight: Sight, width: usize) -> String {
    let width = bounded(width);
    let sections = [
        words::wrapped(&verdict::of(document, sight), width),
        timeline::picture(document, width),
        candidates::of(&document.decision, sight, width),
        names(document, width),
    ];
    let shown: Vec<_> = sections.into_iter().filter(|section| !section.is_empty()).collect();
    shown.join("\n")
}

/// What an answer offers beside its snapshot: what happened around it, and where to look next.
pub fn extras(offered: &Offered, around: Option<&Around>, width: usize) -> String {
    let width = bounded(width);
    let mut text = around.map_or_else(String::new, |around| format!("\n{}", around.render(width)));
    for (place, (name, link)) in offered.iter().enumerate() {
        text.push_str(if place == 0 { "\n" } else { "" });
        text.push_str(&pair(name, link, width));
    }
    text
}

/// Several snapshots that one key answers, newest first.
pub fn render_matches(documents: &[Document<'_>], complete: bool, width: usize) -> String {
    let width = bounded(width);
    let more = if complete { "" } else { "; there are more, and these are the newest" };
    let sentence =
        format!("{} this key{more}.", words::counted_verb(documents.len() as u64, "request", "bear", "bears"));
    let mut text = words::wrapped(&sentence, width);
    for document in documents {
        text.push_str(&format!("\n{}\n", words::line(&format!("== {}", words::clean(&document.id)), width)));
        text.push_str(&render(document, width));
    }
    text
}

/// One snapshot in one line, without its end; it may be long.
pub fn line(document: &Document<'_>) -> String {
    line::of(document)
}

/// A problem, in at most `width` columns.
pub fn problem(problem: &Problem, width: usize) -> String {
    let width = bounded(width);
    let title = words::clean(&problem.title);
    let mut text = words::wrapped(&format!("{title}: {}.", words::clean(&problem.detail)), width);
    let id = problem.id.iter().map(|id| ("id".to_owned(), id.clone()));
    let reason = problem.reason.iter().map(|reason| ("reason".to_owned(), reason.clone().into_owned()));
    let more = problem.more.iter().map(|(name, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (name.clone(), value)
    });
    let state = [("state".to_owned(), problem.state.clone().into_owned())];
    text.push('\n');
    let pairs: Vec<_> = state.into_iter().chain(id).chain(reason).chain(more).collect();
    let longest = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let column = (longest + BESIDE_NAME).clamp(NAMES_WIDTH, COLUMN_MAX);
    for (name, value) in pairs {
        text.push_str(&pair_at(&name, &value, column, width));
    }
    text
}

/// The names by which the request is known here and elsewhere.
fn names(document: &Document<'_>, width: usize) -> String {
    let request = &document.request;
    let trace = &document.trace;
    let whose = if trace.parent_span_id.is_some() { "the client's" } else { "begun here" };
    let gateway = &document.gateway;
    let mut asked = format!("{} {}", request.method, request.path);
    for part in
        request.model.iter().map(AsRef::as_ref).chain(request.stream.filter(|stream| *stream).map(|_| "streamed"))
    {
        asked.push_str(", ");
        asked.push_str(part);
    }
    if request.body_unread {
        asked.push_str("; its body was passed on unread: content-encoded, or no JSON object");
    }
    let mut text = pair("snapshot", &document.id, width);
    let issued = format!(
        "{} by {} ({}), snapgate {}",
        document.issued_at, gateway.instance, gateway.instance_tag, gateway.version
    );
    text.push_str(&pair("issued", &issued, width));
    text.push_str(&pair("request", &asked, width));
    text.push_str(&pair("trace", &format!("{} ({whose})", trace.trace_id), width));
    let optional = [
        ("client id", &request.client_request_id),
        ("response id", &document.outcome.response_id),
        ("tenant", &request.tenant),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            text.push_str(&pair(name, value, width));
        }
    }
    if let Some(pod) = pod(&document.decision) {
        text.push_str(&pair("pod", &pod, width));
    }
    if let Some(engine) = engine(&document.decision.state, width) {
        text.push_str(&pair("engine", &engine, width));
    }
    if let Some(gpus) = gpus(&document.decision.state.state, width) {
        text.push_str(&pair("gpus", &gpus, width));
    }
    if let Some(report) = reported(&document.backend_report, width) {
        text.push_str(&pair("load report", &report, width));
    }
    for (name, value) in request.labels.iter().take(LABELS_MAX) {
        text.push_str(&pair("label", &format!("{name}: {value}"), width));
    }
    text
}

/// The pod that the chosen target is; `None` if nobody said.
fn pod(decision: &DecisionPart<'_>) -> Option<String> {
    let KubernetesPart { namespace, pod, uid, node, labels: _ } = &decision.kubernetes;
    let mut text = [namespace, pod].into_iter().flatten().map(AsRef::as_ref).collect::<Vec<&str>>().join("/");
    for (what, value) in [("node", node), ("uid", uid)] {
        let Some(value) = value else { continue };
        text.push_str(if text.is_empty() { "" } else { ", " });
        text.push_str(&format!("{what} {value}"));
    }
    (!text.is_empty()).then_some(text)
}

/// What the chosen target's engine did, by whose word and how old that is, and what each GPU did; `None` if nobody said.
fn engine(chosen: &ChosenState<'_>, width: usize) -> Option<String> {
    let state = &chosen.state;
    let units = ["requests/s", "tokens/s"];
    let quantities = [Quantity::EngineRequestsPerSecond, Quantity::EngineTokensPerSecond];
    let said = quantities.into_iter().zip(units).filter_map(|(quantity, unit)| {
        let reading = state.reading(quantity);
        let (value, source, age) = (reading.value?, reading.source?, reading.age_ms?);
        let age = words::line(&words::millis(age), width);
        let stale = if reading.freshness == Some(Freshness::Stale) { ", stale" } else { "" };
        Some((format!("{} {unit}", words::number(value)), format!("({}, {age} old{stale})", source.name())))
    });
    let said: Vec<_> = said.collect();
    let mut text = match &said[..] {
        [] => return None,
        [(requests, of_requests), (tokens, of_tokens)] if of_requests == of_tokens => {
            format!("{requests}, {tokens} {of_tokens}")
        }
        said => said.iter().map(|(rate, of_rate)| format!("{rate} {of_rate}")).collect::<Vec<_>>().join(", "),
    };
    let per_gpu = state.per_gpu([chosen.gateway_requests_per_second, chosen.gateway_tokens_per_second]);
    let engines = [per_gpu.engine_requests_per_second_per_gpu, per_gpu.engine_tokens_per_second_per_gpu];
    let gateways = [per_gpu.gateway_requests_per_second_per_gpu, per_gpu.gateway_tokens_per_second_per_gpu];
    for (whose, rates) in [("", engines), ("this gateway's ", gateways)] {
        let rates =
            rates.into_iter().zip(units).filter_map(|(rate, unit)| Some(format!("{} {unit}", words::number(rate?))));
        let rates = rates.collect::<Vec<_>>().join(", ");
        if !rates.is_empty() {
            text.push_str(&format!("; {whose}per GPU {rates}"));
        }
    }
    Some(text)
}

/// The chosen target's GPUs, how busy and how full they were, and whose word that is; `None` if nobody said.
fn gpus(state: &State, width: usize) -> Option<String> {
    let uuids = state.gpu_uuids.as_ref()?;
    let mut text = uuids.iter().take(GPUS_MAX).map(|uuid| &**uuid).collect::<Vec<_>>().join(", ");
    if uuids.len() > GPUS_MAX {
        text.push_str(&format!(" and {} more", uuids.len() - GPUS_MAX));
    }
    for (quantity, what) in [(Quantity::GpuUtilization, "busy"), (Quantity::GpuMemoryUtilization, "of memory in use")] {
        let reading = state.reading(quantity);
        let (Some(value), Some(source), Some(age)) = (reading.value, reading.source, reading.age_ms) else { continue };
        // Beside names that break anywhere a number need not be held to its unit.
        let (source, age) = (source.name(), words::line(&words::millis(age), width));
        text.push_str(&format!("; {} % {what} ({source}, {age} old)", words::percent(value)));
    }
    Some(text)
}

/// GPUs that are shown by name: a node has no more, but a document may come from anywhere.
const GPUS_MAX: usize = 16;

/// What the target said of its load, and when.
fn reported(report: &BackendReportPart<'_>, width: usize) -> Option<String> {
    let (source, phase, at) = (report.source.as_ref()?, report.phase.as_ref()?, report.received_offset_us?);
    let metrics = report.named_metrics.iter().chain(&report.other_metrics).flatten().take(REPORTED_MAX);
    let metrics: Vec<_> = metrics.map(|(name, value)| format!("{name} {value}")).collect();
    let place = if &**phase == "response_end" { "end" } else { "head" };
    let after = words::line(&words::micros(at), width);
    Some(format!("{} ({source}, with the answer's {place} after {after})", metrics.join(", ")))
}

/// Metrics of a report that are shown.
const REPORTED_MAX: usize = 16;

/// Labels that are shown; the gateway records no more, but a document may come from anywhere.
const LABELS_MAX: usize = 16;

/// Columns before a value.
const NAMES_WIDTH: usize = 17;

/// Blanks before and after the longest name.
const BESIDE_NAME: usize = 4;

/// Columns before a value at most: the names of a problem come from whoever answers.
const COLUMN_MAX: usize = 32;

/// A name and its value, whole: a value that is cut off could not be looked up.
fn pair(name: &str, value: &str, width: usize) -> String {
    pair_at(name, value, NAMES_WIDTH, width)
}

/// The same, with the value in this column.
fn pair_at(name: &str, value: &str, column: usize, width: usize) -> String {
    let name = words::line(&words::clean(name), column - 3);
    words::hanging(&format!("  {name}"), &words::clean(value), column, width)
}

#[cfg(test)]
mod tests {
    use super::super::specimen;
    use super::*;
    use crate::snapshot::{Ending, Place};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Compares a rendering with the file that shows how it should look. `UPDATE_GOLDEN=1` writes the files anew.
    fn assert_looks(name: &str, text: &str) {
        let path = format!("{}/src/lookup/render/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, golden, "{name} looks otherwise:\n{text}");
    }

    #[test]
    fn typical_snapshots_look_as_they_should() {
        for (name, record) in specimen::gallery() {
            assert_looks(name, &render(&Document::of(&record), 100));
        }
    }

    #[test]
    fn each_has_a_line() {
        let lines =
            specimen::gallery().iter().map(|(_, record)| line(&Document::of(record)) + "\n").collect::<String>();
        assert_looks("lines", &lines);
    }

    #[test]
    fn a_narrow_terminal_gets_the_same_in_fewer_columns() {
        let record = specimen::completed();
        assert_looks("completed_stream_narrow", &render(&Document::of(&record), 60));
    }

    #[test]
    fn a_document_read_from_json_renders_as_the_record_does() {
        for (name, record) in specimen::gallery() {
            let mut json = Vec::new();
            Document::of(&record).write(&mut json);
            let read: Document<'_> = serde_json::from_slice(&json).unwrap();
            assert_eq!(render(&read, 100), render(&Document::of(&record), 100), "{name}");
        }
    }

    #[test]
    fn the_chosen_ones_age_is_the_same_in_the_verdict_and_in_the_table() {
        let mut json = Vec::new();
        Document::of(&specimen::completed()).write(&mut json);
        let mut root: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(root["decision"]["candidates"][0]["chosen"], true);
        for name in ["waiting_age_ms", "running_age_ms", "kv_cache_usage_age_ms"] {
            // As 200.6 and 49.7 ms are written.
            root["decision"]["state"][name] = json!(250);
            root["decision"]["candidates"][0]["state"][name] = json!(200);
        }
        root["decision"]["candidates"][0]["sample_age_ms"] = json!(49);
        let json = root.to_string();
        let text = render(&serde_json::from_str(&json).unwrap(), 100);
        assert!(text.contains("(250 ms old)") && text.contains("250 ms  fresh") && !text.contains("249 ms"), "{text}");
    }

    #[test]
    fn a_wait_that_the_engine_states_is_told() {
        let record = specimen::completed();
        let mut document = Document::of(&record);
        document.timings.engine_queue_us = Some(1_500);
        let text = render(&document, 100);
        assert!(text.contains("\n  in the engine's queue: 1.50 ms, as it says itself\n"), "{text}");
    }

    #[test]
    fn a_caller_is_not_told_counts_of_what_was_taken_out() {
        let record = specimen::completed();
        let mut document = Document::of(&record);
        document.decision.candidates.retain(|candidate| candidate.chosen);
        let text = render_seen(&document, Sight::Own, 100);
        assert!(text.contains("\ncandidates: the chosen one; others are for operators\n"), "{text}");
        assert!(!text.contains(" scored") && !text.contains("1 score"), "{text}");
    }

    #[test]
    fn an_error_that_came_whole_is_called_failed_in_a_line_as_in_the_verdict() {
        let record = specimen::completed();
        let mut document = Document::of(&record);
        (document.outcome.status, document.outcome.fault) = (Some(503), Some(crate::snapshot::Fault::Target));
        let line = line(&document);
        assert!(line.contains("  503  failed  ") && !line.contains("first content"), "{line}");
        assert!(render(&document, 100).starts_with("failed in "));
    }

    #[test]
    fn a_body_that_was_not_read_is_said_to_be_so() {
        let record = specimen::completed();
        let mut document = Document::of(&record);
        let line = "\n  request        POST /v1/chat/completions, llama-3.1-8b, streamed\n";
        assert!(render(&document, 100).contains(line));
        (document.request.body_unread, document.request.model, document.request.stream) = (true, None, None);
        let text = render(&document, 100);
        let line = "\n  request        POST /v1/chat/completions; its body was passed on unread: content-encoded, or no\n                 JSON object\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn stale_values_are_marked_and_explained() {
        let mut json = Vec::new();
        Document::of(&specimen::completed()).write(&mut json);
        let mut root: Value = serde_json::from_slice(&json).unwrap();
        let text = render(&Document::of(&specimen::completed()), 100);
        assert!(!text.contains('?'), "{text}");
        root["decision"]["candidates"][0]["state"]["running"] = json!(7);
        root["decision"]["candidates"][0]["state"]["running_freshness"] = json!("stale");
        let json = root.to_string();
        let text = render(&serde_json::from_str(&json).unwrap(), 100);
        assert!(text.contains(" 7? ") && text.contains("\n  ? stale: "), "{text}");
    }

    #[test]
    fn text_of_strangers_cannot_reach_the_terminal() {
        let record = specimen::completed();
        let mut document = Document::of(&record);
        document.request.client_request_id = Some("a\u{1b}[2J\u{202e}b\r\nc".into());
        document.request.model = Some("模型".into());
        let text = render(&document, 100);
        assert!(text.contains("a\\u{1b}[2J\\u{202e}b\\r\\nc"), "{text}");
        assert!(text.contains("\\u{6a21}\\u{578b}"), "{text}");
    }

    #[test]
    fn the_pod_that_the_target_is_has_a_line_as_far_as_it_is_known() {
        let place = Place {
            namespace: "llm".into(),
            pod: "vllm-2".into(),
            uid: "5b1f".into(),
            node: Some("gpu-a".into()),
            ..Place::default()
        };
        let record = specimen::completed();
        let mut document = Document::of(&record);
        assert!(!render(&document, 100).contains("\n  pod "), "nobody said which");
        document.decision.kubernetes = KubernetesPart::of(Some(&place));
        let text = render(&document, 100);
        assert!(text.contains("\n  pod            llm/vllm-2, node gpu-a, uid 5b1f\n"), "{text}");
        document.decision.kubernetes = KubernetesPart { pod: Some("p\u{1b}".into()), ..KubernetesPart::default() };
        let text = render(&document, 100);
        assert!(text.contains("\n  pod            p\\u{1b}\n"), "{text}");
    }

    #[test]
    fn what_the_engine_says_of_its_rates_has_a_line_as_far_as_it_is_known() {
        let engine = |change: &dyn Fn(&mut Value)| {
            let mut json = Vec::new();
            Document::of(&specimen::completed()).write(&mut json);
            let mut root: Value = serde_json::from_slice(&json).unwrap();
            change(&mut root["decision"]["state"]);
            let json = root.to_string();
            let text = render(&serde_json::from_str(&json).unwrap(), 100);
            let (_, line) = text.split_once("\n  engine         ")?;
            let lines: Vec<_> = line
                .split_inclusive('\n')
                .enumerate()
                .take_while(|(n, line)| *n == 0 || line.starts_with("    "))
                .collect();
            Some(lines.iter().map(|(_, line)| line.trim()).collect::<Vec<_>>().join(" "))
        };
        let tokens = "1472 tokens/s (scrape, 41 ms old)";
        let ours = "this gateway's per GPU 4.60 requests/s, 740 tokens/s";
        for (change, expected) in [
            (
                &(|state: &mut Value| state["gpus"] = json!(2)) as &dyn Fn(&mut Value),
                Some(format!("9 requests/s, {tokens}; per GPU 4.50 requests/s, 736 tokens/s; {ours}")),
            ),
            (&|state| state["gpus"] = json!(null), Some(format!("9 requests/s, {tokens}"))),
            (
                &|state| {
                    state["engine_requests_per_second_freshness"] = json!("stale");
                    state["engine_requests_per_second_age_ms"] = json!(9_000);
                    state["gpus"] = json!(null);
                },
                Some(format!("9 requests/s (scrape, 9.00 s old, stale), {tokens}")),
            ),
            (
                &|state| {
                    state["engine_requests_per_second"] = json!(null);
                    state["gpus"] = json!(2);
                },
                Some(format!("{tokens}; per GPU 736 tokens/s; {ours}")),
            ),
            (
                &|state| {
                    state["engine_requests_per_second"] = json!(null);
                    state["engine_tokens_per_second"] = json!(null);
                },
                None,
            ),
        ] {
            assert_eq!(engine(change), expected);
        }
    }

    /// Whether a terminal shows it as one column and does nothing else.
    fn is_drawn(c: char) -> bool {
        c == ' ' || c.is_ascii_graphic() || ('\u{2500}'..='\u{257f}').contains(&c)
    }

    /// Numbers that may be unknown.
    const NUMBERS: [&str; 16] = [
        "/timings/first_byte_offset_us",
        "/timings/first_content_offset_us",
        "/timings/end_offset_us",
        "/timings/inter_token_p50_us",
        "/timings/inter_token_p99_us",
        "/timings/inter_token_max_us",
        "/decision/decided_offset_ns",
        "/decision/view_age_ms",
        "/decision/state/waiting",
        "/decision/state/waiting_age_ms",
        "/decision/state/kv_cache_usage",
        "/decision/candidates/0/state/running",
        "/outcome/completion_tokens",
        "/attempts/0/connect_us",
        "/attempts/0/first_byte_offset_us",
        "/decision/candidates/1/state/waiting_age_ms",
    ];

    /// Numbers that are always known.
    const COUNTS: [&str; 5] = [
        "/attempts/0/started_offset_us",
        "/decision/candidates/0/score",
        "/decision/candidates/0/sample_age_ms",
        "/decision/candidates/0/gateway_tokens_per_second",
        "/outcome/events",
    ];

    /// Texts that clients, targets or operators write.
    const TEXTS: [&str; 12] = [
        "/id",
        "/request/path",
        "/request/model",
        "/request/client_request_id",
        "/request/labels/x-run-id",
        "/decision/target",
        "/decision/candidates/0/target",
        "/attempts/0/target",
        "/attempts/0/error",
        "/outcome/target",
        "/outcome/error",
        "/outcome/finish_reason",
    ];

    /// A document of the gallery with keys changed to what no gateway would write, and its lists grown.
    fn anything() -> impl Strategy<Value = String> {
        let number = || prop_oneof![any::<u64>(), 0u64..5_000_000];
        let numbers = (prop::sample::select(&NUMBERS[..]), prop::option::of(number()).prop_map(|n| json!(n)));
        let counts = (prop::sample::select(&COUNTS[..]), number().prop_map(|n| json!(n)));
        let texts = (prop::sample::select(&TEXTS[..]), any::<String>().prop_map(|text| json!(text)));
        let endings = Ending::ALL.map(|ending| json!(ending)).into_iter().chain([json!(null)]).collect::<Vec<_>>();
        let ending = (Just("/outcome/ending"), prop::sample::select(endings));
        let changes = prop::collection::vec(prop_oneof![numbers, counts, texts, ending], 0..20);
        (0..specimen::gallery().len(), changes, 0usize..20, 0usize..100).prop_map(changed)
    }

    fn changed((which, changes, attempts, candidates): (usize, Vec<(&str, Value)>, usize, usize)) -> String {
        let mut json = Vec::new();
        Document::of(&specimen::gallery()[which].1).write(&mut json);
        let mut root: Value = serde_json::from_slice(&json).unwrap();
        for (place, value) in changes {
            if let Some(key) = root.pointer_mut(place) {
                *key = value;
            }
        }
        for (list, length) in [("/attempts", attempts), ("/decision/candidates", candidates)] {
            let list = root.pointer_mut(list).and_then(Value::as_array_mut).unwrap();
            if let Some(first) = list.first().cloned() {
                list.resize(list.len() + length, first);
            }
        }
        root.to_string()
    }

    proptest! {
        #[test]
        fn any_document_fits_its_width(json in anything(), width in 0usize..300) {
            let document: Document<'_> = serde_json::from_str(&json).unwrap();
            let text = render(&document, width);
            prop_assert!(line(&document).chars().all(is_drawn), "{}", line(&document));
            let matches = render_matches(&[document], false, width);
            for line in text.lines().chain(matches.lines()) {
                prop_assert!(line.chars().count() <= bounded(width), "{} columns: {line}", line.chars().count());
                prop_assert!(!line.ends_with(' '), "{line:?}");
                prop_assert!(line.chars().all(is_drawn), "{line:?}");
            }
        }
    }
}

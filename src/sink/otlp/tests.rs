//! What is encoded, read back with the types of `opentelemetry-proto`, and held against the registry and the conventions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;

use super::*;
use crate::config::{Config, Machine, Sources, Targets};
use crate::lookup::specimen;
use crate::snapshot::{
    Document, Ending, Freshness, Moment, Operation, Outcome, Place, Reading, RemoteSpan, RunId, Sample, Source, SpanId,
    Target, Tenant, TraceId,
};

fn settings() -> Settings {
    Settings {
        traces: None,
        logs: None,
        batch_bytes: 3 << 20,
        in_flight: 1,
        candidates: 2,
        service_name: "edge".into(),
        resource: vec![("deployment.environment.name".into(), "test".into()), ("service.version".into(), "9".into())],
        provider: "vllm".into(),
        https: false,
    }
}

/// The record with another outcome; exported, unless that says otherwise.
fn ended(record: &Record, change: impl FnOnce(&mut Outcome)) -> Arc<Record> {
    let mut outcome = record.outcome().expect("it has ended").clone();
    outcome.trace_exported = Some(true);
    change(&mut outcome);
    Arc::new(Record::closed(record.issued.clone(), outcome))
}

fn exported(record: &Record) -> Arc<Record> {
    ended(record, |_| ())
}

fn named(name: &str) -> Record {
    specimen::gallery().into_iter().find(|(known, _)| *known == name).expect("the gallery has it").1
}

fn encode(records: &[Arc<Record>]) -> ExportTraceServiceRequest {
    let request = Encoder::new(Signal::Traces, &settings()).encode(records);
    assert_eq!(request.records, records.len());
    let framed = request.framed();
    let length = u32::from_be_bytes(framed[1..5].try_into().unwrap()) as usize;
    assert_eq!((framed[0], length, &framed[5..]), (0, request.message().len(), &request.message()[..]));
    ExportTraceServiceRequest::decode(request.message()).expect("it is a message of its owners'")
}

fn spans(records: &[Arc<Record>]) -> Vec<Span> {
    let request = encode(records);
    request.resource_spans.into_iter().flat_map(|it| it.scope_spans).flat_map(|it| it.spans).collect()
}

fn spans_of(record: &Arc<Record>) -> Vec<Span> {
    spans(std::slice::from_ref(record))
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found: Vec<_> = attributes.iter().filter(|it| it.key == key).collect();
    assert!(found.len() <= 1, "{key} is there twice");
    found.first()?.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        Value::BoolValue(yes) => Some(yes.to_string()),
        Value::ArrayValue(list) => Some(format!("{:?}", list.values.iter().map(kind_and_text).collect::<Vec<_>>())),
        other => panic!("{key} is {other:?}"),
    }
}

fn kind_and_text(value: &AnyValue) -> &str {
    match &value.value {
        Some(Value::StringValue(text)) => text,
        other => panic!("{other:?} in a list"),
    }
}

/// Records that have everything that can be had.
fn everything() -> Vec<Arc<Record>> {
    let mut records: Vec<_> =
        specimen::gallery().iter().filter(|(name, _)| *name != "in_flight").map(|(_, it)| exported(it)).collect();
    let completed = specimen::completed();
    let mut issued = completed.issued.clone();
    issued.request.tenant = Some(Tenant([0x8f; 32]));
    issued.request.method = "BREW".into();
    let (trace_id, span_id) = (TraceId::new(5).unwrap(), SpanId::new(6).unwrap());
    issued.trace.linked = Some(RemoteSpan { trace_id, span_id, sampled: true, random: false });
    let decision = issued.decision.as_mut().unwrap();
    decision.fallback = Some(crate::snapshot::Fallback::NoPrompt);
    (decision.inputs.prefix_hash, decision.inputs.session_hash) = (Some(1), Some(2));
    decision.candidates.edit(|candidates| {
        candidates[1].score = None;
        candidates[0].sample = all_stale(&candidates[0].sample);
    });
    let mut outcome = completed.outcome().unwrap().clone();
    outcome.trace_exported = Some(true);
    let failover = named("failover").outcome().unwrap().clone();
    let [first, again] = &failover.attempts[..] else { panic!("two attempts") };
    let mut again = again.clone();
    again.retry.as_mut().unwrap().fallback = Some(crate::snapshot::Fallback::NoPrompt);
    again.target = Arc::new(Target { place: Some(Arc::new(pod())), ..Target::clone(&again.target) });
    outcome.attempts = vec![first.clone(), again];
    outcome.timings.engine_queue_us = Some(37_000);
    records.push(Arc::new(Record::closed(issued, outcome)));
    records
}

fn pod() -> Place {
    Place {
        namespace: "llm".into(),
        pod: "vllm-0".into(),
        uid: "5b1f".into(),
        node: Some("gpu-a".into()),
        ..Place::default()
    }
}

/// Every quantity with a value, none of them fresh.
fn all_stale(sample: &Sample) -> Arc<Sample> {
    let reading = Reading {
        value: Some(0.5),
        observed: Moment(sample.published.0 - 7_000_000),
        source: Some(Source::Dcgm),
        freshness: Freshness::Stale,
    };
    let Sample { target, n, published, health, window_ms, .. } = sample;
    let stale = Sample::new(Arc::clone(target), n + 1, *published, *health, [reading; 8], *window_ms);
    Arc::new(stale.with_gpu_uuids(Some(["GPU-a".into(), "GPU-b".into()].into())))
}

#[test]
fn a_request_is_one_server_span_and_a_client_span_for_each_attempt() {
    let record = exported(&named("failover"));
    let issued = &record.issued;
    let [server, first, second] = &spans_of(&record)[..] else { panic!("three spans") };
    let trace = issued.trace.trace_id.as_u128().to_be_bytes();
    let ids = [SpanId::of_server(issued.id), SpanId::of_attempt(issued.id, 0), SpanId::of_attempt(issued.id, 1)];
    for (span, id) in [server, first, second].into_iter().zip(ids) {
        assert_eq!((&span.trace_id[..], &span.span_id[..]), (&trace[..], &id.as_u64().to_be_bytes()[..]));
        assert_eq!(text(&span.attributes, "snapgate.snapshot.id"), Some(issued.id.to_string()));
    }
    assert_eq!((server.kind(), first.kind(), second.kind()), (SpanKind::Server, SpanKind::Client, SpanKind::Client));
    assert!(server.parent_span_id.is_empty());
    assert!([first, second].iter().all(|span| span.parent_span_id == server.span_id));
    assert_eq!((&*server.name, &*first.name), ("POST /v1/chat/completions", "chat llama-3.1-8b"));
    // The first failed, and ended when the second began; that was no error of the request.
    assert_eq!(first.end_time_unix_nano, second.start_time_unix_nano);
    assert_eq!(
        first.status.as_ref().map(|it| (it.code(), &*it.message)),
        Some((StatusCode::Error, "connection refused"))
    );
    assert_eq!(text(&first.attributes, "error.type").as_deref(), Some("attempt_failed"));
    assert_eq!((&server.status, &second.status), (&None, &None));
    assert_eq!(text(&second.attributes, "http.request.resend_count").as_deref(), Some("1"));
    let why = ["reason", "considered", "eligible", "excluded.unhealthy", "score", "view_age_ms"];
    let why_of = |span: &Span| why.map(|key| text(&span.attributes, &format!("snapgate.attempt.{key}")));
    assert_eq!(why_of(second), ["lowest_score", "2", "3", "1", "6", "22"].map(|it| Some(it.to_owned())));
    assert_eq!(why_of(first), [const { None }; 6], "the server span says why the first was chosen");
    assert_eq!(text(&first.attributes, "gen_ai.response.id"), None, "its answer was not the one");
    assert_eq!(text(&second.attributes, "gen_ai.response.finish_reasons").as_deref(), Some(r#"["stop"]"#));
    assert_eq!(text(&second.attributes, "gen_ai.response.time_to_first_chunk").as_deref(), Some("0.00851"));
    assert_eq!(text(&second.attributes, "server.address").as_deref(), Some("10.0.3.0"));
    assert_eq!(text(&second.attributes, "url.full").as_deref(), Some("http://10.0.3.0:8000/v1/chat/completions"));
}

/// By these a trace is joined with what else a cluster's backends know of the pod.
#[test]
fn an_attempts_span_says_which_pod_its_target_is_as_far_as_it_is_known() {
    let names = ["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name"];
    let said = |place: Option<Place>| {
        let record = ended(&named("failover"), |outcome| {
            let attempt = &mut outcome.attempts[1];
            attempt.target = Arc::new(Target { place: place.map(Arc::new), ..Target::clone(&attempt.target) });
        });
        let [server, first, second] = &spans_of(&record)[..] else { panic!("three spans") };
        let of = |span: &Span| names.map(|name| text(&span.attributes, name));
        assert_eq!((of(server), of(first)), ([const { None }; 4], [const { None }; 4]), "another target's");
        of(second)
    };
    assert_eq!(said(Some(pod())), ["llm", "vllm-0", "5b1f", "gpu-a"].map(|it| Some(it.to_owned())));
    let in_part = Place { uid: "".into(), node: None, ..pod() };
    assert_eq!(said(Some(in_part)), [Some("llm".into()), Some("vllm-0".into()), None, None]);
    assert_eq!(said(None), [const { None }; 4]);
}

#[test]
fn times_are_those_of_the_record() {
    let record = exported(&specimen::completed());
    let spans = spans_of(&record);
    let accepted = record.issued.issued_at.0 * 1_000;
    assert_eq!(spans[0].start_time_unix_nano, accepted);
    assert_eq!(spans[0].end_time_unix_nano, accepted + 2_400_112_000);
    assert_eq!(spans[1].start_time_unix_nano, accepted + 90_000);
    assert_eq!(spans[1].end_time_unix_nano, accepted + 2_400_112_000);
    let events: Vec<_> = spans[0].events.iter().map(|it| (&*it.name, it.time_unix_nano - accepted)).collect();
    let expected = [
        ("snapgate.decided", 41_200),
        ("snapgate.candidate", 41_200),
        ("snapgate.candidate", 41_200),
        ("snapgate.first_byte", 8_210_000),
        ("snapgate.first_content", 92_001_000),
        ("snapgate.end", 2_400_112_000),
    ];
    assert_eq!(events, expected, "two candidates of three, as the setting says");
}

#[test]
fn the_parent_the_link_and_the_flags_are_those_of_the_trace() {
    let child = spans_of(&exported(&specimen::completed()));
    assert_eq!(child[0].parent_span_id, 0xb7ad_6b71_6920_3331u64.to_be_bytes());
    // Sampled and random; known to be remote, and so: its parent is the client's.
    assert_eq!((child[0].flags, child[1].flags), (0x303, 0x103));
    let rich = everything().pop().unwrap();
    let server = &spans_of(&rich)[0];
    let [link] = &server.links[..] else { panic!("one link") };
    assert_eq!((&link.trace_id[..], &link.span_id[..]), (&5u128.to_be_bytes()[..], &6u64.to_be_bytes()[..]));
    assert_eq!(link.flags, 0x301);
    assert_eq!(spans_of(&exported(&named("failover")))[0].flags, 0x103);
}

/// What a request ended with, and what its spans have to say: the conventions' tables.
#[test]
fn status_and_error_type_are_by_the_conventions() {
    type Said = Option<&'static str>;
    let cases: [(Ending, u16, Said, Said); 12] = [
        // (ending, status) → error.type of the request, of the attempt
        (Ending::Completed, 200, None, None),
        (Ending::Completed, 404, None, Some("404")),
        (Ending::Completed, 429, None, Some("429")),
        (Ending::Completed, 500, Some("500"), Some("500")),
        (Ending::Completed, 503, Some("503"), Some("503")),
        (Ending::ClientDisconnected, 200, None, None),
        (Ending::UpstreamReset, 200, Some("upstream_reset"), Some("upstream_reset")),
        (Ending::UpstreamTimeout, 504, Some("upstream_timeout"), Some("504")),
        (Ending::Shutdown, 200, Some("shutdown"), Some("shutdown")),
        (Ending::Internal, 200, Some("internal"), Some("internal")),
        (Ending::Rejected, 404, None, Some("404")),
        (Ending::NoTarget, 503, Some("no_target"), Some("503")),
    ];
    for (ending, status, of_request, of_attempt) in cases {
        let record = ended(&specimen::completed(), |outcome| {
            (outcome.ending, outcome.status) = (ending, Some(status));
            outcome.attempts[0].status = Some(status);
        });
        let spans = spans_of(&record);
        for (span, expected) in spans.iter().zip([of_request, of_attempt]) {
            let code = span.status.as_ref().map(|status| status.code());
            let error = expected.map(|_| StatusCode::Error);
            assert_eq!(
                (text(&span.attributes, "error.type").as_deref(), code),
                (expected, error),
                "{ending:?} {status} {}",
                span.name
            );
        }
        assert_eq!(text(&spans[0].attributes, "http.response.status_code"), Some(status.to_string()));
    }
}

#[test]
fn what_anybody_can_make_up_is_in_no_name() {
    let rich = everything().pop().unwrap();
    assert_eq!(spans_of(&rich)[0].name, "HTTP /v1/chat/completions");
    assert_eq!(text(&spans_of(&rich)[0].attributes, "http.request.method").as_deref(), Some("_OTHER"));
    assert_eq!(text(&spans_of(&rich)[0].attributes, "http.request.method_original").as_deref(), Some("BREW"));
    let rejected = &spans_of(&exported(&named("rejected")))[0];
    assert_eq!((&*rejected.name, text(&rejected.attributes, "http.route")), ("GET", None));
    assert_eq!(text(&rejected.attributes, "url.path").as_deref(), Some("/metrics"));
}

/// Our own attributes are the document's values under the document's names.
#[test]
fn own_attributes_say_what_the_document_says() {
    let mut compared = 0;
    for record in everything() {
        let mut json = Vec::new();
        Document::of(&record).write(&mut json);
        let document: serde_json::Value = serde_json::from_slice(&json).unwrap();
        for attribute in &spans_of(&record)[0].attributes {
            let Some(path) = attribute.key.strip_prefix("snapgate.").filter(|path| *path != "snapshot.id") else {
                continue;
            };
            let path = format!("/{}", path.replace('.', "/"));
            let said = document.pointer(&path).unwrap_or_else(|| panic!("the document has no {path}"));
            let said = match said {
                serde_json::Value::String(said) => said.clone(),
                serde_json::Value::Array(said) => {
                    format!("{:?}", said.iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>())
                }
                said => said.as_f64().map_or_else(|| said.to_string(), |it| it.to_string()),
            };
            assert_eq!(text(std::slice::from_ref(attribute), &attribute.key), Some(said), "{path}");
            compared += 1;
        }
        let missing = document["decision"]["state"].as_object().unwrap().iter();
        for (key, value) in missing.filter(|(key, _)| *key != "gateway_in_flight_at_scrape") {
            let name = format!("snapgate.decision.state.{key}");
            assert_eq!(value.is_null(), text(&spans_of(&record)[0].attributes, &name).is_none(), "{name}");
        }
    }
    assert!(compared > 200, "{compared}");
}

#[test]
fn a_candidate_is_an_event_with_its_state() {
    let record = exported(&specimen::completed());
    // Twice, so that the second one's are copied.
    let spans = spans(&[Arc::clone(&record), record]);
    for server in [&spans[0], &spans[2]] {
        let candidates: Vec<_> = server.events.iter().filter(|it| it.name == "snapgate.candidate").collect();
        let said = |place: usize, key: &str| text(&candidates[place].attributes, &format!("snapgate.candidate.{key}"));
        assert_eq!((said(0, "target").as_deref(), said(0, "rank").as_deref()), (Some("vllm-2"), Some("1")));
        assert_eq!((said(1, "target").as_deref(), said(1, "waiting").as_deref()), (Some("vllm-0"), Some("1")));
        assert_eq!((said(0, "waiting_age_ms").as_deref(), said(0, "waiting_freshness")), (Some("20"), None));
        assert_eq!((said(0, "waiting_source").as_deref(), said(0, "gpu_utilization_source")), (Some("scrape"), None));
        let missing = (said(1, "prefix_cache_hit_ratio"), said(1, "prefix_cache_hit_ratio_freshness"));
        assert_eq!(missing, (None, Some("missing".into())), "missing is never 0");
    }
}

#[test]
fn the_resource_is_who_we_are_and_what_was_configured() {
    let request = encode(&[exported(&specimen::completed())]);
    let [only] = &request.resource_spans[..] else { panic!("one resource") };
    let attributes = &only.resource.as_ref().unwrap().attributes;
    let said: BTreeMap<_, _> = attributes.iter().map(|it| (&*it.key, text(attributes, &it.key).unwrap())).collect();
    let expected = [
        ("deployment.environment.name", "test"),
        ("service.instance.id", "gw-1"),
        ("service.name", "edge"),
        ("service.version", "9"),
        ("snapgate.gateway.instance_tag", "a7f1"),
    ];
    assert_eq!(said, expected.map(|(key, value)| (key, value.to_owned())).into());
    let scope = only.scope_spans[0].scope.as_ref().unwrap();
    assert_eq!((&*scope.name, &*scope.version), ("snapgate", "0.1.0"));
}

#[test]
fn a_request_ends_where_it_is_full_and_where_another_run_begins() {
    let record = exported(&specimen::completed());
    let mut other = record.issued.clone();
    other.run = Arc::new(crate::snapshot::Run { id: RunId(9), ..(*other.run).clone() });
    let other = Arc::new(Record::closed(other, record.outcome().unwrap().clone()));
    let one = encode(std::slice::from_ref(&record)).encoded_len();
    let records: Vec<_> = std::iter::repeat_n(record, 10).chain([other]).collect();
    let mut encoder = Encoder::new(Signal::Traces, &Settings { batch_bytes: one * 4, ..settings() });
    let (mut rest, mut counts) = (&records[..], Vec::new());
    while !rest.is_empty() {
        let request = encoder.encode(rest);
        assert!(request.message().len() <= one * 4);
        let read = ExportTraceServiceRequest::decode(request.message()).unwrap();
        assert_eq!(read.resource_spans.len(), 1);
        counts.push((request.records, request.items));
        rest = &rest[request.records..];
        encoder.reuse(request);
    }
    assert_eq!(counts, [(4, 8), (4, 8), (2, 4), (1, 2)]);
    let mut small = Encoder::new(Signal::Traces, &Settings { batch_bytes: 1, ..settings() });
    assert_eq!(small.encode(&records).records, 1, "what does not fit at all goes alone, and the receiver says no");
}

#[test]
fn only_what_is_for_export_is_sent() {
    let record = specimen::completed();
    let kinds = [Some(true), Some(false), None];
    let records: Vec<_> = kinds.map(|exported| ended(&record, |outcome| outcome.trace_exported = exported)).into();
    let request = Encoder::new(Signal::Traces, &settings()).encode(&records);
    assert_eq!((request.records, request.skipped, request.items), (3, 2, 2));
    let request = Encoder::new(Signal::Logs, &settings()).encode(&records);
    assert_eq!((request.records, request.skipped, request.items), (3, 0, 3), "log records are not sampled");
}

#[test]
fn a_log_record_holds_the_document() {
    let record = exported(&named("unknown_target"));
    let message = Encoder::new(Signal::Logs, &settings()).encode(std::slice::from_ref(&record)).message();
    let request = ExportLogsServiceRequest::decode(message).unwrap();
    let [line] = &request.resource_logs[0].scope_logs[0].log_records[..] else { panic!("one") };
    let mut json = Vec::new();
    Document::of(&record).write(&mut json);
    let body = Some(AnyValue { value: Some(Value::StringValue(String::from_utf8(json).unwrap())) });
    assert_eq!((&line.body, &*line.severity_text, line.severity_number), (&body, "ERROR", 17));
    assert_eq!(text(&line.attributes, "snapshot_id"), Some(record.id().to_string()));
    assert_eq!(line.trace_id, record.issued.trace.trace_id.as_u128().to_be_bytes());
    assert_eq!(line.span_id, SpanId::of_server(record.id()).as_u64().to_be_bytes());
    assert_eq!(line.time_unix_nano, (record.issued.issued_at.0 + 1_750) * 1_000);
}

/// `otel/attributes.csv` has every attribute that is sent, and no other.
#[test]
fn the_registry_is_what_is_sent() {
    let kind = |value: &Option<AnyValue>| match value.as_ref().and_then(|it| it.value.as_ref()) {
        Some(Value::StringValue(_)) => "string",
        Some(Value::IntValue(_)) => "int",
        Some(Value::DoubleValue(_)) => "double",
        Some(Value::BoolValue(_)) => "boolean",
        Some(Value::ArrayValue(_)) => "string[]",
        other => panic!("{other:?}"),
    };
    let mut sent = BTreeSet::new();
    let mut add = |place: &str, attributes: &[KeyValue]| {
        for attribute in attributes {
            let label = attribute.key.starts_with("http.request.header.");
            let metrics = ["named_metrics", "other_metrics"].map(|list| format!("snapgate.backend_report.{list}."));
            let metrics = metrics.iter().find(|prefix| attribute.key.starts_with(*prefix));
            let metrics = metrics.map(|prefix| format!("{prefix}<key>"));
            let key = if label { "http.request.header.<key>" } else { metrics.as_deref().unwrap_or(&attribute.key) };
            sent.insert(format!("{key},{place},{}", kind(&attribute.value)));
        }
    };
    let records = everything();
    let without = Settings { resource: Vec::new(), ..settings() };
    let traces = Encoder::new(Signal::Traces, &without).encode(&records).message();
    for of_resource in ExportTraceServiceRequest::decode(traces).unwrap().resource_spans {
        add("resource", &of_resource.resource.unwrap().attributes);
        for span in of_resource.scope_spans.into_iter().flat_map(|it| it.spans) {
            add(if span.kind() == SpanKind::Server { "server span" } else { "client span" }, &span.attributes);
            span.events.iter().for_each(|event| add(&format!("event {}", event.name), &event.attributes));
        }
    }
    let logs = Encoder::new(Signal::Logs, &without).encode(&records).message();
    for of_scope in
        ExportLogsServiceRequest::decode(logs).unwrap().resource_logs.into_iter().flat_map(|it| it.scope_logs)
    {
        of_scope.log_records.iter().for_each(|record| add("log record", &record.attributes));
    }
    let registry = include_str!("../../../otel/attributes.csv");
    let listed: BTreeSet<_> =
        registry.lines().skip(1).map(|line| line.splitn(4, ',').take(3).collect::<Vec<_>>().join(",")).collect();
    let (missing, unknown): (Vec<_>, Vec<_>) = (sent.difference(&listed).collect(), listed.difference(&sent).collect());
    assert!(missing.is_empty() && unknown.is_empty(), "not listed: {missing:#?}\nnever sent: {unknown:#?}");
}

#[test]
fn an_operation_that_is_not_known_makes_no_claim_about_genai() {
    let mut issued = specimen::completed().issued.clone();
    (issued.request.operation, issued.request.path) = (Operation::Other, "/v1/rerank".into());
    let outcome = ended(&specimen::completed(), |_| ()).outcome().unwrap().clone();
    let spans = spans_of(&Arc::new(Record::closed(issued, outcome)));
    assert_eq!((&*spans[0].name, &*spans[1].name), ("POST", "POST"));
    assert_eq!(text(&spans[1].attributes, "gen_ai.operation.name"), None);
}

/// The log's only line while one record is offered to a receiver there.
fn complaint(endpoint: &str, protocol: &str) -> serde_json::Value {
    let text = format!("[otlp]\nendpoint = \"{endpoint}\"\nprotocol = \"{protocol}\"");
    let sources = Sources::of_text("the test", &text, Machine { hostname: "test".into(), cores: 1 });
    let settings = Config::load(&sources, Targets::Optional).unwrap().otlp;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut exits = Otlp::exits(&settings, &[], &Clock::start(), runtime.handle());
    let kept = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&kept);
    let line = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || Kept(Arc::clone(&writer)));
    tracing::subscriber::with_default(line.finish(), || {
        let taken = exits[0].deliver(&[exported(&named("completed_stream"))]).unwrap();
        assert_eq!(taken.records, 0, "nobody took it");
    });
    let written = kept.lock().unwrap();
    serde_json::from_slice(&written).unwrap_or_else(|_| panic!("not one line: {}", String::from_utf8_lossy(&written)))
}

/// What is written is kept.
struct Kept(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_receiver_that_takes_nothing_is_named_with_the_reason_and_what_to_look_at() {
    use std::io::{Read as _, Write as _};
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let line = complaint(&format!("http://{nobody}"), "http/protobuf");
    assert_eq!(line["receiver"], format!("http://{nobody}/v1/traces"), "{line}");
    assert_eq!((&line["reason"], &line["exit"]), (&"connect".into(), &"otlp_traces".into()), "{line}");
    assert!(line["advice"].as_str().unwrap().contains("otlp.endpoint"), "{line}");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let speak_http1 = move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").unwrap();
    };
    let receiver = std::thread::Builder::new().name("receiver".into()).spawn(speak_http1).unwrap();
    let line = complaint(&format!("http://{address}"), "grpc");
    receiver.join().unwrap();
    assert!(line["receiver"].as_str().unwrap().starts_with(&format!("http://{address}/")), "{line}");
    assert_eq!(line["reason"], "broken", "{line}");
    assert!(line["advice"].as_str().unwrap().contains("otlp.protocol"), "{line}");
}

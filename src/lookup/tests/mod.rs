//! The interface as a client meets it: real sockets, a real ledger, a real store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::client::{Admin, Fetched, fetch};
use super::resolve::MATCHES_MAX;
use super::*;
use crate::ledger::DropReason;
use crate::snapshot::{Document, InstanceTag, Moment, SnapshotId, TraceId};
use crate::store::{DropCount, Settings as StoreSettings};
use crate::tls::ClientSettings;

mod access;
mod bulk;
mod gateway;
mod list;
mod openapi;
mod schema;
// The one place where documents are checked, for the integration tests and for these.
#[path = "../../../tests/schema.rs"]
mod published;

use gateway::{Gateway, Plan};

const SOON: Duration = Duration::from_secs(1);
const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;

#[tokio::test]
async fn an_id_is_answered_from_wherever_the_record_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), Plan::default()).await;
    let (open, ended, stored) =
        (gateway.record(SOON, 1, false), gateway.record(SOON, 2, true), gateway.record(SOON, 3, true));
    gateway.ledger.insert(Arc::clone(&open));
    gateway.ledger.insert(Arc::clone(&ended));
    gateway.store(&[Arc::clone(&stored)], &[]);
    for (record, phase, kept) in [(open, "in_flight", false), (ended, "complete", false), (stored, "complete", true)] {
        let reply = gateway.look(record.id()).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
        assert_eq!((&reply.json()["phase"], &reply.json()["stored"]), (&json!(phase), &json!(kept)));
        let mut own = Vec::new();
        Document::of(&record).write(&mut own);
        let own = String::from_utf8(own).unwrap();
        let links = r#"{"trace":null,"logs":null,"dashboard":null}"#;
        let beside = format!(r#","stored":{kept},"links":{links}}}"#);
        assert_eq!(reply.body, own.strip_suffix('}').unwrap().to_owned() + &beside, "byte for byte");
        for form in [
            record.id().to_string().to_uppercase(),
            format!("chatcmpl-{}", record.id()),
            format!("cmpl-{}-0", record.id()),
            record.id().to_string().trim_start_matches('0').to_owned(),
        ] {
            assert_eq!(gateway.look(&form).await.body, reply.body, "{form}");
        }
    }
}

#[tokio::test]
async fn every_absence_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    {
        // An earlier process that was killed: nothing of it is closed.
        let mut killed = Gateway::start(dir.path(), Plan { started_ago: hour, ..Plan::default() }).await;
        let alive = killed.clock.now().minus(hour / 2);
        killed.writer.heartbeat(alive).unwrap();
    }
    let store = StoreSettings { retention_age: hour * 2, ..StoreSettings::default() };
    let plan = Plan { started_ago: Duration::from_secs(600), store, ..Plan::default() };
    let mut gateway = Gateway::start(dir.path(), plan).await;
    let at = |ago| gateway.clock.now().minus(ago);
    let (expired, dropped) = (gateway.record(hour * 3, 1, true), gateway.record(SOON, 2, true));
    let counted = specimen::id(at(Duration::from_secs(120)), gateway.tag, 3);
    let uncounted = specimen::id(at(Duration::from_secs(180)), gateway.tag, 8);
    let lost = specimen::id(at(hour * 3 / 4), gateway.tag, 4);
    let unknown = specimen::id(at(Duration::from_secs(300)), gateway.tag, 5);
    let elsewhere = specimen::id(at(SOON), InstanceTag(gateway.tag.0 ^ 1), 6);
    let future = specimen::id(gateway.clock.now().plus(hour), gateway.tag, 7);
    let drop_count = DropCount { second: counted.unix_ms() / 1000, reason: DropReason::StoreFailed, count: 12 };
    gateway.store(&[Arc::clone(&expired)], &[drop_count]);
    gateway.writer.maintain(gateway.clock.now(), false, SOON);
    gateway.ledger.insert(Arc::clone(&dropped));
    gateway.ledger.drop_record(dropped.id(), DropReason::QueueFull);
    // As after a commit that failed: the store's disk is full, and the ring has forgotten the ID.
    let drop_count = DropCount { second: uncounted.unix_ms() / 1000, reason: DropReason::StoreFailed, count: 70_000 };
    gateway.ledger.return_drop_counts(vec![drop_count]);

    for (id, status, state, reason) in [
        (expired.id(), 410, "expired", json!("retention")),
        (dropped.id(), 410, "dropped", json!("queue_full")),
        (counted, 410, "dropped", json!("store_failed")),
        (uncounted, 410, "dropped", json!("store_failed")),
        (lost, 410, "lost", json!("unclean_end")),
        (unknown, 404, "unknown", json!(null)),
        (future, 404, "unknown", json!(null)),
        (SnapshotId::from_u128(TRACE), 404, "unknown", json!(null)),
        (elsewhere, 404, "issued_elsewhere", json!(null)),
    ] {
        let reply = gateway.look(id).await;
        assert_eq!(reply.problem(), (status, state.to_owned()), "{reply:?}");
        assert_eq!((&reply.json()["id"], &reply.json()["reason"]), (&json!(id.to_string()), &reason));
    }
    assert_eq!(gateway.look(counted).await.json()["count"], 12);
    assert_eq!(gateway.look(elsewhere).await.json()["our_instance_tag"], gateway.tag.to_string());
    assert!(gateway.look(lost).await.json()["last_heartbeat"].is_string());
    let text = gateway.ask("GET", &format!("/v1/snapshots/{lost}"), &[("accept", "text/plain")]).await;
    assert_eq!((text.status, text.header("content-type")), (410, Some("text/plain; charset=utf-8")));
    assert!(text.body.starts_with("Lost with its process: "), "{}", text.body);
}

#[tokio::test]
async fn an_id_that_was_issued_here_is_not_taken_over_by_who_sends_it_as_his_own() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let store = StoreSettings { retention_age: hour, ..StoreSettings::default() };
    let plan = Plan { started_ago: Duration::from_secs(600), store, ..Plan::default() };
    let mut gateway = Gateway::start(dir.path(), plan).await;
    let (expired, dropped) = (gateway.record(hour * 2, 1, true), gateway.record(SOON, 2, true));
    // In another second than the one that was dropped.
    let (erased, unknown) = (gateway.record(SOON, 3, true).id(), gateway.record(SOON * 9, 4, true).id());
    let elsewhere = specimen::id(gateway.clock.now(), InstanceTag(gateway.tag.0 ^ 1), 5);
    gateway.store(&[Arc::clone(&expired)], &[]);
    gateway.writer.maintain(gateway.clock.now(), false, SOON);
    gateway.writer.entomb(&[erased]).unwrap();
    gateway.ledger.insert(Arc::clone(&dropped));
    gateway.ledger.drop_record(dropped.id(), DropReason::QueueFull);

    let all = [expired.id(), dropped.id(), erased, unknown, elsewhere];
    let mut strangers = Vec::new();
    for (number, id) in (100..).zip(all) {
        strangers.push(gateway.marked(SOON, number, true, None, Some(&id.to_string())));
        strangers.push(gateway.marked(SOON, number + 50, true, TraceId::new(id.as_u128()), None));
    }
    gateway.store(&strangers, &[]);
    for (id, want) in all.into_iter().zip(["expired", "dropped", "deleted", "", ""]) {
        for key in [id.to_string(), id.to_string().to_uppercase()] {
            let reply = gateway.look(&key).await;
            let state = if reply.status == 200 { String::new() } else { reply.problem().1 };
            assert_eq!(state, want, "{key}: {reply:?}");
        }
        let reply = gateway.look(format!("chatcmpl-{id}")).await;
        assert_eq!(reply.status, if want.is_empty() { 200 } else { 410 }, "{reply:?}");
        let list = gateway.get(&format!("/v1/snapshots?client_request_id={id}")).await.json();
        assert_eq!(list["snapshots"].as_array().map(Vec::len), Some(1), "who asks for it finds the stranger's: {list}");
    }
}

#[tokio::test]
async fn a_trace_and_a_clients_own_id_answer_lists() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), Plan::default()).await;
    let uuid = "c81d4e2e-bcf2-11e6-869b-7df92533d2db";
    let trace = TraceId::new(TRACE);
    let oldest = gateway.marked(SOON * 3, 1, true, trace, Some("retry/7"));
    let both = gateway.marked(SOON * 2, 2, true, trace, Some(uuid));
    let newest = gateway.marked(SOON, 3, false, trace, Some("retry/7"));
    gateway.store(&[Arc::clone(&oldest), Arc::clone(&both)], &[]);
    gateway.ledger.insert(Arc::clone(&both));
    gateway.ledger.insert(Arc::clone(&newest));
    for (key, want) in [
        ("0af7651916cd43dd8448eb211c80319c", vec![(&newest, false), (&both, true), (&oldest, true)]),
        ("AF7651916CD43DD8448EB211C80319C", vec![(&newest, false), (&both, true), (&oldest, true)]),
        ("retry%2F7", vec![(&newest, false), (&oldest, true)]),
        ("chatcmpl-retry%2F7", vec![(&newest, false), (&oldest, true)]),
        (uuid, vec![(&both, true)]),
    ] {
        let reply = gateway.look(key).await;
        assert_eq!((reply.status, &reply.json()["complete"]), (200, &json!(true)), "{key}: {reply:?}");
        let got: Vec<_> = reply.json()["matches"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["id"].clone(), one["stored"].clone()))
            .collect();
        let want: Vec<_> =
            want.into_iter().map(|(record, stored)| (json!(record.id().to_string()), json!(stored))).collect();
        assert_eq!(got, want, "{key}");
    }
    let text = gateway.ask("GET", "/v1/snapshots/retry%2F7", &[("accept", "text/plain")]).await;
    assert!(text.body.starts_with("2 requests bear this key.\n\n== "), "{}", text.body);
    let (status, state) = gateway.look("never-sent").await.problem();
    assert_eq!(
        (status, state.as_str(), &gateway.look("never-sent").await.json()["id"]),
        (404, "unknown", &json!(null))
    );

    for random in 0..=MATCHES_MAX as u64 {
        gateway.ledger.insert(gateway.marked(SOON, 100 + random, true, None, Some("busy")));
    }
    let list = gateway.look("busy").await.json();
    assert_eq!((list["matches"].as_array().unwrap().len(), &list["complete"]), (MATCHES_MAX, &json!(false)));
}

#[tokio::test]
async fn a_wait_ends_with_the_request_or_with_patience() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), Plan::default()).await;
    let record = gateway.record(SOON, 1, false);
    gateway.ledger.insert(Arc::clone(&record));
    let path = format!("/v1/snapshots/{}", record.id());

    let patience_ended = gateway.get(&format!("{path}?wait=30ms")).await.json();
    assert_eq!(patience_ended["phase"], "in_flight");
    let asked = format!("{path}?wait=30s");
    let (reply, ()) = tokio::join!(gateway.get(&asked), async {
        let waiting = async {
            while gateway.waits.available_permits() == WAITS_MAX {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON * 10, waiting).await.expect("the lookup begins to wait");
        assert_eq!(gateway.get(&path).await.json()["phase"], "in_flight");
        assert!(record.finish(specimen::outcome()));
    });
    assert_eq!((&reply.json()["phase"], &reply.json()["stored"]), (&json!("complete"), &json!(false)));
    gateway.store(&[Arc::clone(&record)], &[]);
    gateway.ledger.settle(record.id());
    let reply = gateway.get(&asked).await;
    assert_eq!(reply.json()["stored"], true, "what has ended is not waited for");
    assert_eq!(gateway.look("nobody?wait=30s").await.status, 404, "nor what is not there");

    for query in ["wait=5", "wait=31s", "wait=-1s", "wait=", "wait=soon", "wiat=5s", "wait=1s&wait=2s", "wait=%ff"] {
        let reply = gateway.get(&format!("{path}?{query}")).await;
        assert_eq!(reply.problem(), (400, "malformed".to_owned()), "{query}: {reply:?}");
        assert_eq!(reply.json()["reason"], "query");
    }
}

#[tokio::test]
async fn what_cannot_be_a_key_is_malformed() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    for key in ["%20", "two%20words", "na%C3%AFve", "%FF", "%00", &"x".repeat(129)] {
        let reply = gateway.look(key).await;
        assert_eq!(reply.problem(), (400, "malformed".to_owned()), "{key}");
        assert_eq!(reply.json()["reason"], "key", "{key}");
    }
}

#[tokio::test]
async fn a_lookup_beyond_the_bounds_is_told_to_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan { reads: 0, waits: 0, ..Plan::default() }).await;
    let record = gateway.record(SOON, 1, false);
    gateway.ledger.insert(Arc::clone(&record));
    assert_eq!(gateway.look(record.id()).await.status, 200, "what is in memory needs no turn");
    for path in [format!("{}?wait=1s", record.id()), "somebody".to_owned()] {
        let reply = gateway.look(&path).await;
        assert_eq!(reply.problem(), (503, "busy".to_owned()), "{path}");
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
}

#[tokio::test]
async fn lookups_are_guarded_and_the_rest_is_open() {
    let token = || vec![Token::new("ops", "s3cret")];
    let bearer = ("authorization", "Bearer s3cret");
    for (tokens, loopback, header, status, reason) in [
        (vec![], true, None, 200, None),
        (vec![], true, Some(("host", "localhost:8081")), 200, None),
        (vec![], true, Some(("host", "evil.example")), 403, Some("foreign_host")),
        (vec![], false, None, 403, Some("no_tokens_configured")),
        (token(), false, None, 401, Some("no_token")),
        (token(), true, None, 401, Some("no_token")),
        (token(), false, Some(("authorization", "Bearer wrong")), 401, Some("wrong_token")),
        (token(), false, Some(bearer), 200, None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(
            dir.path(),
            Plan {
                settings: Settings { tokens, loopback, own_records: false, ..Settings::default() },
                ..Plan::default()
            },
        )
        .await;
        let record = gateway.record(SOON, 1, true);
        gateway.ledger.insert(Arc::clone(&record));
        let headers: Vec<_> = header.into_iter().collect();
        for path in [format!("/v1/snapshots/{}", record.id()), "/v1/fleet".to_owned()] {
            let reply = gateway.ask("GET", &path, &headers).await;
            assert_eq!(reply.status, status, "{path} {loopback} {header:?}");
            if let Some(reason) = reason {
                reply.problem();
                assert_eq!(reply.json()["reason"], reason);
                assert_eq!(reply.header("www-authenticate").is_some(), status == 401);
            }
        }
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(gateway.ask("GET", path, &headers).await.status, 200, "{path}");
        }
    }
}

#[tokio::test]
async fn every_answer_is_sealed_and_every_other_question_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    let record = gateway.record(SOON, 1, true);
    gateway.ledger.insert(Arc::clone(&record));
    let path = format!("/v1/snapshots/{}", record.id());
    for (method, path, status) in [
        ("GET", path.as_str(), 200),
        ("HEAD", &path, 200),
        ("HEAD", "/v1/fleet", 200),
        ("POST", &path, 405),
        ("POST", "/v1/snapshots", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/", 404),
        ("GET", "/v1/snapshots/", 404),
        ("GET", "/v1/snapshots/a/b", 404),
    ] {
        let reply = gateway.ask(method, path, &[]).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert_eq!(
            (reply.header("cache-control"), reply.header("x-content-type-options")),
            (Some("no-store"), Some("nosniff"))
        );
        if status == 405 {
            assert_eq!(reply.problem().1, "method_not_allowed");
            assert!(reply.header("allow").unwrap().starts_with("GET,HEAD"), "{reply:?}");
        } else if status == 404 {
            assert_eq!(reply.problem().1, "no_such_path");
        }
        if method == "HEAD" {
            assert_eq!(reply.body, "");
            let length = gateway.get(path).await.body.len();
            assert_eq!(reply.header("content-length").unwrap().parse::<usize>().unwrap().abs_diff(length), 0);
        }
    }
}

#[tokio::test]
async fn health_readiness_and_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    assert_eq!(gateway.get("/healthz").await.body, "ok\n");
    assert_eq!(gateway.get("/readyz").await.json(), json!({"ready": true}));
    let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    for (accept, kind) in [("*/*", "text/plain; version=0.0.4; charset=utf-8"), (open, open)] {
        let metrics = gateway.ask("GET", "/metrics", &[("accept", accept)]).await;
        assert_eq!(metrics.header("content-type"), Some(kind));
        assert!(
            metrics.body.contains("snapgate_requests_in_flight 0\n") && metrics.body.contains("snapgate_ready 1\n")
        );
        assert_eq!(metrics.body.ends_with("# EOF\n"), kind == open);
    }

    let texts = |text: &str| Vec::from_iter(Some(text.to_owned()).filter(|text| !text.is_empty()));
    for (reason, warning, status, page) in [
        ("stopping", "", 503, json!({"ready": false, "reasons": ["stopping"]})),
        ("", "the disk is full", 200, json!({"ready": true, "warnings": ["the disk is full"]})),
        ("stopping", "full", 503, json!({"ready": false, "reasons": ["stopping"], "warnings": ["full"]})),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let readiness = Readiness { reasons: texts(reason), warnings: texts(warning) };
        let gateway = Gateway::start(dir.path(), Plan { readiness, ..Plan::default() }).await;
        let reply = gateway.get("/readyz").await;
        assert_eq!((reply.status, reply.json()), (status, page));
        assert_eq!(gateway.get("/healthz").await.status, 200);
    }
}

#[tokio::test]
async fn the_fleet_is_shown_as_it_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    let fleet = gateway.get("/v1/fleet").await.json();
    assert_eq!((&fleet["eligible"], &fleet["excluded"]["unhealthy"]), (&json!(2), &json!(1)));
    assert!(fleet["view_age_ms"].is_u64() && fleet["published"].is_string());
    let target = &fleet["targets"][1];
    for (key, want) in [
        ("name", json!("vllm-1")),
        ("address", json!("10.0.3.1:8000")),
        ("health", json!("unhealthy")),
        ("eligible", json!(false)),
        ("gpus", json!(1)),
        ("gpu_problem", json!("no exporter has told of its GPUs yet")),
        ("gateway_in_flight", json!(1)),
        ("gateway_requests_per_second", json!(9.5)),
        ("gateway_tokens_per_second", json!(1480.0)),
        ("engine_tokens_per_second_per_gpu", json!(1471.5)),
        ("gateway_requests_per_second_per_gpu", json!(9.5)),
        ("sample", json!(17)),
        ("scrape_error", json!("no complete answer within 2s")),
        ("scrape_duration_us", json!(412_500)),
        ("scrape_interval_ms", json!(20_625)),
        ("fresh_within_ms", json!(15_000)),
        ("probe_error", json!("cannot connect")),
    ] {
        assert_eq!(target[key], want, "{key}");
    }
    let [up, down] = [&fleet["gpu_exporters"][0], &fleet["gpu_exporters"][1]];
    assert_eq!((&up["node"], &up["gpus"], &up["error"]), (&json!("node-1"), &json!(8), &json!(null)));
    assert_eq!((&down["error"], &down["failures"]), (&json!("cannot connect"), &json!(3)));
    let state = &target["state"];
    assert_eq!(
        (&state["running"], &state["running_freshness"], &state["gpu_utilization"]),
        (&json!(3), &json!("fresh"), &json!(null))
    );
    // The sample was 20 ms old when the view was published, and the view ages.
    assert!(state["running_age_ms"].as_u64().unwrap() >= 20 + fleet["view_age_ms"].as_u64().unwrap());
    let text = gateway.ask("GET", "/v1/fleet", &[("accept", "text/plain")]).await.body;
    assert!(text.starts_with("2 of 3 targets may be chosen; the view is "), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 100) && text.contains("vllm-1 unhealthy 10.0.3.1:8000"),
        "{text}"
    );
    let work = "
  target  rps   tps  gpus  rps/gpu  tps/gpu  our rps/gpu  our tps/gpu  gpu %  gpu mem %
  vllm-0    9  1472     1        9     1472         9.50         1480      -          -
";
    assert!(text.contains(work), "{text}");
    let troubles = "  metrics of vllm-0: read every 20.6 s, and fresh for 15.0 s\n  probe of vllm-1: cannot connect\n  metrics of \
                    vllm-1: no complete answer within 2s\n  GPUs of vllm-1: no exporter has told of its GPUs yet\n  metrics of vllm-2: read \
                    every 20.6 s, and fresh for 15.0 s\n  GPU exporter of node-2: cannot connect\n";
    assert!(text.ends_with(troubles), "{text}");
}

#[tokio::test]
async fn the_fleet_has_no_parameters() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    assert_eq!(gateway.get("/v1/fleet?").await.status, 200);
    for query in ["format=csv", "a", "&"] {
        let reply = gateway.get(&format!("/v1/fleet?{query}")).await;
        let problem = reply.json();
        assert_eq!((reply.status, &problem["reason"]), (400, &json!("query")), "{query}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("no parameters"), "{problem}");
    }
}

#[tokio::test]
async fn the_command_lines_client_reads_every_answer() {
    let dir = tempfile::tempdir().unwrap();
    let links = Links { trace: Some("http://tempo/{trace_id}".parse().unwrap()), ..Links::default() };
    let settings = Settings { tokens: vec![Token::new("ops", "s3cret")], links, ..Settings::default() };
    let gateway = Gateway::start(dir.path(), Plan { settings, ..Plan::default() }).await;
    let record = gateway.marked(SOON, 1, true, None, Some("mine / 1"));
    let odd = gateway.marked(SOON, 2, true, None, Some("mine/1?"));
    gateway.ledger.insert(Arc::clone(&record));
    gateway.ledger.insert(Arc::clone(&odd));
    let by = |token: &str| {
        let token = Some(token).filter(|token| !token.is_empty());
        Admin::new(&format!("http://{}", gateway.address), token, &ClientSettings::default()).unwrap()
    };
    let admin = by("s3cret");

    let Fetched::One(one) = fetch(&admin, &record.id().to_string(), None).await.unwrap() else { panic!("not one") };
    assert_eq!(render::render(&one.document(), 100), render::render(&Document::of(&record), 100));
    assert!(one.json().contains(r#","stored":false,"links":{"trace":"http://tempo/"#), "{}", one.json());
    assert!(one.links.trace.as_deref().is_some_and(|link| link.starts_with("http://tempo/")), "{:?}", one.links);
    let Fetched::Several { documents, complete } = fetch(&admin, "mine/1?", None).await.unwrap() else {
        panic!("no list")
    };
    assert_eq!((documents.len(), &*documents[0].document().id, complete), (1, odd.id().to_string().as_str(), true));
    let cases = [("nobody", "s3cret", "unknown"), ("a b", "s3cret", "malformed"), ("x", "", "unauthorized")];
    for (key, token, want) in cases {
        let Fetched::Problem(problem) = fetch(&by(token), key, None).await.unwrap() else { panic!("no problem") };
        assert_eq!(problem.state, want);
        let of_flags = problem.advice().ends_with(": set SNAPGATE_TOKEN or --token");
        assert_eq!(of_flags, want == "unauthorized", "{}", problem.advice());
    }
    let text =
        render::problem(&Problem::absent(&resolve::Absence::Unknown, &Key::parse("x").unwrap(), gateway.tag), 60);
    assert!(text.starts_with("No such request: ") && text.lines().all(|line| line.len() <= 60), "{text}");
    let horizon = Moment(1_795_435_995_000_000);
    let expired = Problem::absent(
        &resolve::Absence::Expired { horizon },
        &Key::parse(&record.id().to_string()).unwrap(),
        gateway.tag,
    );
    assert!(render::problem(&expired, 100).contains("  horizon        2026-11-23T12:13:15.000000Z\n"));
    let elsewhere = Problem::absent(
        &resolve::Absence::IssuedElsewhere,
        &Key::parse(&format!("{TRACE:032x}")).unwrap(),
        gateway.tag,
    );
    let tag = gateway.tag;
    assert!(render::problem(&elsewhere, 100).contains(&format!("\n  our_instance_tag  {tag}\n")), "whole names");
}

//! Many keys in one request, and shapes.

use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::super::shape::{Shape, columns};
use super::*;

/// The keys of lines in their order, with their states.
fn states(lines: &[Value]) -> Vec<(&str, &str)> {
    lines.iter().map(|line| (line["key"].as_str().unwrap(), line["state"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn every_key_has_its_own_answer_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let store = StoreSettings { retention_age: hour * 2, ..StoreSettings::default() };
    let mut gateway = Gateway::start(dir.path(), Plan { store, ..Plan::default() }).await;
    let trace = TraceId::new(TRACE);
    let (open, stored) = (gateway.record(SOON, 1, false), gateway.record(SOON, 2, true));
    let (expired, dropped) = (gateway.record(hour * 3, 3, true), gateway.record(SOON, 4, true));
    let (first, second) =
        (gateway.marked(SOON * 2, 5, true, trace, None), gateway.marked(SOON, 6, false, trace, Some("mine")));
    let elsewhere = specimen::id(gateway.clock.now(), InstanceTag(gateway.tag.0 ^ 1), 7);
    gateway.store(&[Arc::clone(&expired), Arc::clone(&stored), Arc::clone(&first)], &[]);
    gateway.writer.maintain(gateway.clock.now(), false, SOON);
    gateway.ledger.insert(Arc::clone(&open));
    gateway.ledger.insert(Arc::clone(&second));
    gateway.ledger.drop_record(dropped.id(), DropReason::QueueFull);

    let id = |record: &crate::snapshot::Record| record.id().to_string();
    let expected = [
        (id(&open), "found", json!(null), vec![(id(&open), false)]),
        (id(&stored).to_uppercase(), "found", json!(null), vec![(id(&stored), true)]),
        (id(&expired), "expired", json!("retention"), vec![]),
        (id(&dropped), "dropped", json!("queue_full"), vec![]),
        (format!("{TRACE:032x}"), "found", json!(null), vec![(id(&second), false), (id(&first), true)]),
        ("mine".to_owned(), "found", json!(null), vec![(id(&second), false)]),
        (elsewhere.to_string(), "issued_elsewhere", json!(null), vec![]),
        ("nobody".to_owned(), "unknown", json!(null), vec![]),
        ("two words".to_owned(), "malformed", json!("key"), vec![]),
        (format!("chatcmpl-{}", id(&stored)), "found", json!(null), vec![(id(&stored), true)]),
    ];
    let keys: Vec<_> = expected.iter().map(|(key, ..)| key.clone()).collect();
    let json_lines: String = keys.iter().map(|key| format!("{}\r\n\n", json!(key))).collect();
    for body in [json!(keys).to_string(), json_lines, keys.join("\n")] {
        let reply = gateway.resolve("", &body).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/x-ndjson")));
        let lines = reply.lines();
        assert_eq!(lines.len(), expected.len());
        for (line, (key, state, reason, found)) in lines.iter().zip(&expected) {
            assert_eq!((&line["key"], &line["state"], &line["reason"]), (&json!(key), &json!(state), reason));
            let matches = line["matches"].as_array().unwrap().iter();
            let got: Vec<_> =
                matches.map(|one| (one["id"].as_str().unwrap().to_owned(), one["stored"] == true)).collect();
            assert_eq!((&got, &line["complete"]), (found, &json!(true)), "{key}");
            assert_eq!(line["problem"]["state"].as_str().unwrap_or("found"), *state, "{key}");
        }
    }
    let array = gateway.resolve("?format=json", json!(keys).to_string()).await;
    assert_eq!(array.json().as_array().unwrap(), &gateway.resolve("", keys.join("\n")).await.lines());
    let odd = gateway.resolve("", r#"[null, 17, ["a"], {"id": "b"}, "nobody"]"#).await.lines();
    let malformed = |key: Value| (key, "malformed");
    let got: Vec<_> = odd.iter().map(|line| (line["key"].clone(), line["state"].as_str().unwrap())).collect();
    assert_eq!(got[..2], [malformed(json!(null)), malformed(json!(17))]);
    assert_eq!(got[3..], [malformed(json!({"id": "b"})), (json!("nobody"), "unknown")]);
}

#[tokio::test]
async fn what_is_wrong_with_a_question_is_said_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    for (path, want) in [
        ("/v1/snapshots?shape=table", "shape=\"table\" is no shape: there are document, flat and candidates"),
        ("/v1/snapshots/k?shape=table", "shape=\"table\" is no shape: there are document, flat and candidates"),
        ("/v1/snapshots/k?format=xml", "format=\"xml\" is no format: there are json, ndjson and csv"),
        ("/v1/snapshots?order=oldest", "order=\"oldest\" is no order: there are newest and stored"),
        ("/v1/snapshots/k?wiat=5s", "unknown parameter `wiat`; there are `wait`, `shape`, `format`, `around`"),
        ("/v1/snapshots/k?wait=5s&wait=6s", "duplicate parameter `wait`"),
        ("/v1/snapshots/k?around=30", "around=\"30\" has no unit: write 30s, at most 600s"),
    ] {
        let reply = gateway.get(path).await;
        assert_eq!((reply.status, &reply.json()["detail"]), (400, &json!(want)), "{path}");
        assert!(reply.body.ends_with("}\n"), "a terminal's next line begins anew: {:?}", reply.body);
    }
    let reply = gateway.get("/v1/snapshots/resolve").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert!(reply.json()["detail"].as_str().unwrap().contains("POST the keys here"), "{reply:?}");
}

#[tokio::test]
async fn rows_read_as_tables_and_no_key_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), Plan::default()).await;
    let plain = gateway.record(SOON, 1, true);
    let mut issued = specimen::completed().issued;
    (issued.id, issued.issued_at) = (specimen::id(gateway.clock.now(), gateway.tag, 9), gateway.clock.now());
    issued.request.user_agent = Some("a \"quoted\", agent\nof two lines".into());
    let decided = Arc::new(crate::snapshot::Record::closed(issued, specimen::outcome()));
    gateway.store(&[Arc::clone(&plain), Arc::clone(&decided)], &[]);
    let keys = format!("{}\nnobody\n{}", plain.id(), decided.id());

    let rows = gateway.resolve("?shape=flat", &keys).await.lines();
    assert_eq!(
        states(&rows),
        [(&*plain.id().to_string(), "found"), ("nobody", "unknown"), (&*decided.id().to_string(), "found"),]
    );
    let names: Vec<_> = columns(Shape::Flat).iter().map(|column| column.name.as_str()).collect();
    for row in &rows {
        assert_eq!(row.as_object().unwrap().len(), 3 + names.len(), "every row has every column");
    }
    assert_eq!(rows[1]["id"], json!(null));
    let row = &rows[2];
    let document = gateway.look(decided.id()).await.json();
    for (column, pointer) in [
        ("id", "/id"),
        ("issued_at_unix_us", "/issued_at_unix_us"),
        ("trace_trace_id", "/trace/trace_id"),
        ("decision_state_waiting", "/decision/state/waiting"),
        ("decision_excluded_unhealthy", "/decision/excluded/unhealthy"),
        ("outcome_completion_tokens", "/outcome/completion_tokens"),
        ("timings_end_offset_us", "/timings/end_offset_us"),
        ("stored", "/stored"),
    ] {
        assert_eq!(&row[column], document.pointer(pointer).unwrap(), "{column}");
        assert_ne!(row[column], json!(null), "{column}");
    }
    assert_eq!(row["request_labels"], json!(r#"{"x-run-id":"run-17"}"#));

    let csv = gateway.resolve("?shape=flat&format=csv", &keys).await;
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    let head: Vec<_> = csv.body.lines().next().unwrap().split(',').collect();
    assert_eq!(head, [&["key", "state", "reason"], &names[..]].concat());
    assert!(csv.body.contains(&format!("nobody,unknown,{}\n", ",".repeat(names.len()))), "{}", csv.body);
    assert!(csv.body.contains("\"a \"\"quoted\"\", agent\nof two lines\""), "{}", csv.body);
    assert!(csv.body.contains("\"{\"\"x-run-id\"\":\"\"run-17\"\"}\""), "{}", csv.body);
    assert_eq!(gateway.resolve("?format=csv", &keys).await.body, csv.body, "a table is flat unless it is another");

    let rows = gateway.resolve("?shape=candidates", &keys).await.lines();
    let got: Vec<_> = rows.iter().map(|row| (row["id"].clone(), row["rank"].clone(), row["chosen"].clone())).collect();
    let candidates = document["decision"]["candidates"].as_array().unwrap();
    let expected =
        candidates.iter().map(|it| (json!(decided.id().to_string()), it["rank"].clone(), it["chosen"].clone()));
    assert_eq!(
        got[..2],
        [(json!(plain.id().to_string()), json!(null), json!(null)), (json!(null), json!(null), json!(null))]
    );
    assert_eq!(got[2..], expected.collect::<Vec<_>>());
    assert_eq!(rows[2]["state_running"], candidates[0]["state"]["running"]);
    let one = gateway.look(format!("{}?shape=candidates", decided.id())).await.json();
    assert_eq!(one.as_array().unwrap().len(), candidates.len(), "a single lookup has shapes, too");
    let one = gateway.ask("GET", &format!("/v1/snapshots/{}", decided.id()), &[("accept", "text/csv")]).await;
    assert!(one.body.starts_with(&names.join(",")), "{}", one.body);
}

#[tokio::test]
async fn thousands_of_keys_stream_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), Plan::default()).await;
    let records: Vec<_> = (0..200).map(|random| gateway.marked(SOON, random, true, None, Some("often"))).collect();
    gateway.store(&records, &[]);
    let mut keys: Vec<_> = records.iter().map(|record| record.id().to_string()).collect();
    // Each of these answers a hundred.
    keys.splice(50..50, std::iter::repeat_n("often".to_owned(), 20));
    keys.extend((keys.len()..10_000).map(|number| format!("nobody-{number}")));
    let reply = gateway.resolve("", json!(keys).to_string()).await;
    let lines = reply.lines();
    let got: Vec<_> = states(&lines).into_iter().map(|(key, _)| key).collect();
    assert_eq!(got, keys);
    for line in &lines {
        let (count, complete) = match line["key"].as_str().unwrap() {
            "often" => (MATCHES_MAX, false),
            key if key.starts_with("nobody") => (0, true),
            _ => (1, true),
        };
        assert_eq!((line["matches"].as_array().unwrap().len(), &line["complete"]), (count, &json!(complete)));
    }
    assert_eq!(gateway.bulks.available_permits(), BULKS_MAX);
}

#[tokio::test]
async fn a_bulk_waits_for_all_its_requests_and_no_longer_than_asked() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    let records: Vec<_> = (0..3).map(|random| gateway.record(SOON, random, false)).collect();
    records.iter().for_each(|record| gateway.ledger.insert(Arc::clone(record)));
    let keys: String = records.iter().map(|record| format!("{}\n", record.id())).collect();
    let phases = |reply: &gateway::Reply| -> Vec<Value> {
        reply.lines().iter().map(|line| line["matches"][0]["phase"].clone()).collect()
    };
    assert!(records[0].finish(specimen::outcome()));
    assert_eq!(phases(&gateway.resolve("?wait=30ms", &keys).await), ["complete", "in_flight", "in_flight"]);
    let (reply, ()) = tokio::join!(gateway.resolve("?wait=30s", &keys), async {
        while gateway.waits.available_permits() == WAITS_MAX {
            tokio::task::yield_now().await;
        }
        assert!(records[1].finish(specimen::outcome()));
        assert!(records[2].finish(specimen::outcome()));
    });
    assert_eq!(phases(&reply), ["complete"; 3]);
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    let open = gateway.record(SOON, 1, false);
    gateway.ledger.insert(Arc::clone(&open));
    // The answer waits after its first turn, so that it cannot be over before the client leaves.
    let keys: Vec<_> = (0..100).map(|number| format!("nobody-{number}")).chain([open.id().to_string()]).collect();
    let mut socket = gateway.begin_resolve("?wait=30s", keys.join("\n").as_bytes()).await;
    socket.read_exact(&mut [0; 12]).await.unwrap();
    assert_eq!(gateway.bulks.available_permits(), BULKS_MAX - 1);
    drop(socket);
    let stopped = async {
        while gateway.bulks.available_permits() < BULKS_MAX || gateway.waits.available_permits() < WAITS_MAX {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON * 10, stopped).await.expect("the work stops");
}

#[tokio::test]
async fn what_cannot_be_asked_in_bulk_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    let keys = |count: usize| "x\n".repeat(count);
    for (query, body, status, reason) in [
        ("", String::new(), 400, "body"),
        ("", " \n".to_owned(), 400, "body"),
        ("", "[\"a\"".to_owned(), 400, "body"),
        ("", keys(10_001), 413, "limit"),
        ("", json!(vec!["x"; 10_001]).to_string(), 413, "limit"),
        ("", "x".repeat(3 << 20), 413, "body_size"),
        ("?wait=31s", "x".to_owned(), 400, "query"),
        ("?shape=round", "x".to_owned(), 400, "query"),
        ("?shape=document&format=csv", "x".to_owned(), 400, "query"),
        ("?around=30s", "x".to_owned(), 400, "query"),
        ("?limit=5", "x".to_owned(), 400, "query"),
    ] {
        let reply = gateway.resolve(query, &body).await;
        assert_eq!((reply.problem().0, &reply.json()["reason"]), (status, &json!(reason)), "{query}");
    }
    assert_eq!(gateway.resolve("", "[]").await.body, "");
    assert_eq!(gateway.resolve("?format=json", "[]").await.body, "[]");
    let permits = gateway.bulks.acquire_many(BULKS_MAX as u32).await.unwrap();
    assert_eq!(gateway.resolve("", "x").await.problem(), (503, "busy".to_owned()));
    drop(permits);
    assert_eq!(gateway.resolve("", keys(10_000)).await.lines().len(), 10_000);
}

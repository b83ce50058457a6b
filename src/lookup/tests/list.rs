//! Lists with filters and cursors.

use serde_json::Value;

use super::*;

/// The random parts of the IDs on a page, which tell the records apart.
fn numbers(page: &Value) -> Vec<u64> {
    let id = |one: &Value| one["id"].as_str().unwrap().parse::<SnapshotId>().unwrap();
    page["snapshots"].as_array().unwrap().iter().map(|one| id(one).random()).collect()
}

#[tokio::test]
async fn a_list_has_what_is_stored_and_what_is_not_yet_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), Plan::default()).await;
    let ago = |number: u64| SOON * u32::try_from(100 - number).unwrap();
    let records: Vec<_> = (0..30).map(|number| gateway.record(ago(number), number, number != 29)).collect();
    gateway.store(&records[..20], &[]);
    // Ten are on their way to the store, and two of those have just arrived.
    records[18..].iter().for_each(|record| gateway.ledger.insert(Arc::clone(record)));
    let all: Vec<u64> = (0..30).rev().collect();
    let page = gateway.get("/v1/snapshots").await.json();
    assert_eq!((numbers(&page), &page["complete"], &page["next"]), (all.clone(), &json!(true), &json!(null)));
    assert_eq!((&page["snapshots"][0]["phase"], &page["snapshots"][0]["stored"]), (&json!("in_flight"), &json!(false)));
    assert_eq!(page["snapshots"][10]["stored"], true, "in both places is stored");

    for limit in [1, 4, 30] {
        let (mut path, mut found) = (format!("/v1/snapshots?limit={limit}"), Vec::new());
        loop {
            let reply = gateway.get(&path).await;
            let page = reply.json();
            found.extend(numbers(&page));
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/v1/snapshots?limit={limit}&page={next}");
            assert_eq!(reply.header("link"), Some(format!("<{path}>; rel=\"next\"").as_str()));
        }
        assert_eq!(found, all, "{limit} a page");
    }

    // What moves or comes in between two pages changes neither.
    let first = gateway.get("/v1/snapshots?limit=8").await.json();
    gateway.store(&records[20..28], &[]);
    records[18..28].iter().for_each(|record| gateway.ledger.settle(record.id()));
    gateway.ledger.insert(gateway.record(Duration::ZERO, 77, true));
    let next = first["next"].as_str().unwrap();
    let second = gateway.get(&format!("/v1/snapshots?limit=100&page={next}")).await.json();
    assert_eq!([numbers(&first), numbers(&second)].concat(), all);
}

#[tokio::test]
async fn filters_narrow_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), Plan::default()).await;
    let minute = SOON * 60;
    let old = gateway.record(minute * 60, 1, true);
    let marked = gateway.marked(minute, 2, true, TraceId::new(TRACE), Some("mine / 1"));
    let open = gateway.record(SOON, 3, false);
    let mut issued = specimen::issued(gateway.clock.now().minus(minute * 2), gateway.tag, 4);
    issued.request.labels = vec![("x-run-id".into(), "run-17".into())];
    issued.request.model = Some("other".into());
    issued.request.tenant = Some(crate::snapshot::Tenant([0x8f; 32]));
    let outcome = crate::snapshot::Outcome {
        ending: crate::snapshot::Ending::UpstreamReset,
        status: Some(502),
        ..specimen::outcome()
    };
    let failed = Arc::new(crate::snapshot::Record::closed(issued, outcome));
    gateway.store(&[old, marked, failed], &[]);
    gateway.ledger.insert(open);
    let moment = gateway.clock.now().minus(minute * 3 / 2);
    for (query, want) in [
        ("", vec![3, 2, 4, 1]),
        ("since=30m", vec![3, 2, 4]),
        ("until=30m", vec![1]),
        (&format!("since={moment}"), vec![3, 2]),
        (&format!("until={}", moment.unix_ms()), vec![4, 1]),
        ("model=other", vec![4]),
        ("target=vllm-2&limit=1", vec![2]),
        ("target=vllm-9", vec![]),
        ("status=5xx", vec![4]),
        ("status=200,502", vec![2, 4, 1]),
        ("ending=upstream_reset,no_target", vec![4]),
        ("phase=in_flight", vec![3]),
        ("phase=complete", vec![2, 4, 1]),
        ("tenant=t_8f8f8f8f", vec![4]),
        ("tenant=8F8F8F8F", vec![4]),
        ("label.x-run-id=run-17", vec![4]),
        ("label.X-Run-Id=run-17&model=other", vec![4]),
        ("label.x-run-id=run-1", vec![]),
        ("min_duration=2s", vec![2, 4, 1]),
        ("min_duration=1m", vec![]),
        ("trace_id=AF7651916CD43DD8448EB211C80319C", vec![2]),
        ("client_request_id=mine%20/%201", vec![2]),
        ("client_request_id=mine%20/%201&status=500", vec![]),
    ] {
        let page = gateway.get(&format!("/v1/snapshots?{query}")).await;
        assert_eq!(page.status, 200, "{query}: {}", page.body);
        assert_eq!(numbers(&page.json()), want, "{query}");
    }
    let csv = gateway.get("/v1/snapshots?shape=flat&format=csv&status=5xx").await;
    assert_eq!((csv.body.lines().count(), csv.header("snapgate-complete")), (2, Some("true")));
    let lines = gateway.ask("GET", "/v1/snapshots?shape=flat", &[("accept", "application/x-ndjson")]).await;
    assert_eq!(lines.lines().len(), 4);
}

#[tokio::test]
async fn every_mistake_in_a_list_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    for random in 0..3 {
        gateway.ledger.insert(gateway.record(SOON, random, true));
    }
    let next =
        gateway.get("/v1/snapshots?limit=1&model=llama-3.1-8b").await.json()["next"].as_str().unwrap().to_owned();
    for (query, words) in [
        ("since=yesterday", "no time"),
        ("until=-5m", "no time"),
        ("since=5m&until=10m", "exchange them"),
        ("status=6", "no status"),
        ("status=5xx,", "no status"),
        ("status=6xx", "no status"),
        ("status=600", "no status"),
        ("tenant=foo", "no tenant"),
        ("tenant=t_zz", "no tenant"),
        ("ending=well", "upstream_reset"),
        ("phase=done", "in_flight"),
        ("min_duration=5", "no duration"),
        ("trace_id=xyz", "no trace ID"),
        ("limit=0", "from 1 to 1000"),
        ("limit=1001", "from 1 to 1000"),
        ("limit=ten", "from 1 to 1000"),
        ("page=1", "page is none of this list"),
        (&format!("page={next}"), "page is none of this list"),
        (&format!("model=llama-3.1-8b&order=stored&page={next}"), "page is none of this list"),
        ("order=oldest", "stored"),
        ("wait=1s", "order=stored"),
        ("order=stored&wait=31s", "30s"),
        ("shape=document&format=csv", "no columns"),
        ("modle=x", "there are since, until"),
        ("label.=x", "label.NAME"),
        ("model=a&model=b", "duplicate"),
        ("label.a=1&label.A=2", "duplicate"),
    ] {
        let reply = gateway.get(&format!("/v1/snapshots?{query}")).await;
        assert_eq!(reply.problem(), (400, "malformed".to_owned()), "{query}");
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(words), "{query}: {detail}");
    }
    let more = gateway.get(&format!("/v1/snapshots?limit=9&model=llama-3.1-8b&page={next}")).await.json();
    assert_eq!(numbers(&more).len(), 2, "another limit is the same list");
}

#[tokio::test]
async fn what_is_stored_is_followed_by_waiting_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), Plan::default()).await;
    let (old, new) = (gateway.record(SOON, 1, true), gateway.record(SOON * 60, 2, true));
    gateway.store(&[old], &[]);
    let begin = gateway.get("/v1/snapshots?order=stored").await.json();
    assert_eq!(numbers(&begin), Vec::<u64>::new(), "it begins now");
    let path = |page: &Value| format!("/v1/snapshots?order=stored&page={}", page["next"].as_str().unwrap());
    let nothing = gateway.get(&format!("{}&wait=20ms", path(&begin))).await.json();
    assert_eq!(numbers(&nothing), Vec::<u64>::new());
    let (address, asked) = (gateway.address, format!("{}&wait=30s", path(&nothing)));
    let waits = Arc::clone(&gateway.waits);
    let (page, ()) = tokio::join!(gateway::Reply::of(address, &asked), async {
        while waits.available_permits() == WAITS_MAX {
            tokio::task::yield_now().await;
        }
        gateway.store(&[new], &[]);
    });
    let page = page.json();
    assert_eq!(numbers(&page), [2]);
    assert_eq!(numbers(&gateway.get(&path(&page)).await.json()), Vec::<u64>::new(), "each once");
}

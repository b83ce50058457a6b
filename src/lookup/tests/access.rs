//! Who gets what: own records, rotated tokens, limits, deletions, and clients that dawdle or crowd.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::gateway::{Gateway, Plan, Reply};
use super::*;
use crate::snapshot::{Ending, Outcome, Record, Tenant};
use crate::store::{Erased, NotErased, Subject};

const KEY: (&str, &str) = ("authorization", "Bearer sk-mine");

fn with_token() -> Plan {
    let tokens = vec![Token::new("ops", "s3cret").allowed(Scope::ALL.to_vec()), Token::new("viewer", "readonly")];
    Plan { settings: Settings { tokens, own_requests_per_second: 1000, ..Settings::default() }, ..Plan::default() }
}

async fn look(gateway: &Gateway, record: &Record, header: (&str, &str)) -> Reply {
    gateway.ask("GET", &format!("/v1/snapshots/{}", record.id()), &[header]).await
}

#[tokio::test]
async fn a_caller_sees_its_own_record_and_nothing_of_the_fleet() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), with_token()).await;
    let (fresh, stored) = (gateway.of_key(1, "sk-mine"), gateway.of_key(2, "sk-mine"));
    gateway.ledger.insert(Arc::clone(&fresh));
    gateway.store(&[Arc::clone(&stored)], &[]);
    for (record, kept) in [(&fresh, false), (&stored, true)] {
        for header in [KEY, ("x-api-key", "sk-mine"), ("api-key", "sk-mine")] {
            let reply = look(&gateway, record, header).await;
            assert_eq!((reply.status, &reply.json()["stored"]), (200, &json!(kept)), "{header:?}: {reply:?}");
            assert!(!reply.body.contains("10.0.3."), "no address: {}", reply.body);
            let candidates = reply.json()["decision"]["candidates"].as_array().unwrap().clone();
            assert!(candidates.iter().all(|candidate| candidate["chosen"] == true), "{candidates:?}");
            assert_eq!(reply.json()["redacted"], true);
            assert_eq!(reply.json()["attempts"][0]["address"], json!(null));
        }
        let all = look(&gateway, record, ("authorization", "Bearer s3cret")).await;
        assert!(all.body.contains("10.0.3."), "an operator sees all: {}", all.body);
        let text =
            gateway.ask("GET", &format!("/v1/snapshots/{}", record.id()), &[KEY, ("accept", "text/plain")]).await;
        assert!(text.status == 200 && !text.body.contains("10.0.3."), "{}", text.body);
    }
    for (method, path, status) in [
        ("GET", "/v1/fleet".to_owned(), 401),
        ("GET", "/v1/snapshots".to_owned(), 401),
        ("POST", "/v1/snapshots/resolve".to_owned(), 401),
        ("GET", format!("/v1/snapshots/{}?around=30s", fresh.id()), 403),
        ("GET", format!("/v1/snapshots/{}?shape=candidates", fresh.id()), 403),
        ("GET", format!("/v1/snapshots/{}?format=ndjson", fresh.id()), 403),
    ] {
        assert_eq!(gateway.ask(method, &path, &[KEY]).await.status, status, "{path}");
    }
    let off = Settings { own_records: false, ..(**gateway.settings.load()).clone() };
    gateway.settings.store(Arc::new(off));
    assert_eq!(look(&gateway, &fresh, KEY).await.problem(), (401, "unauthorized".to_owned()));
}

#[tokio::test]
async fn anothers_record_cannot_be_told_from_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(dir.path(), with_token()).await;
    let (fresh, stored) = (gateway.of_key(1, "sk-other"), gateway.of_key(2, "sk-other"));
    let nobodys = gateway.record(SOON, 3, true);
    // Ends like the caller's own in all digits that are shown, and in all bits but one.
    let mut close = gateway.tenant("sk-mine");
    close.0[31] ^= 1;
    let namesake = gateway.of_tenant(4, close);
    gateway.ledger.insert(Arc::clone(&fresh));
    gateway.store(&[Arc::clone(&stored), Arc::clone(&nobodys), Arc::clone(&namesake)], &[]);
    let unknown = gateway.record(SOON, 5, true);
    let dropped = gateway.record(SOON, 6, true);
    gateway.ledger.drop_record(dropped.id(), DropReason::QueueFull);
    for record in [&fresh, &stored, &nobodys, &namesake, &unknown, &dropped] {
        let asked = Instant::now();
        let reply = look(&gateway, record, KEY).await;
        let took = asked.elapsed();
        assert_eq!(reply.problem(), (404, "unknown".to_owned()), "{reply:?}");
        let id = record.id().to_string();
        let want = look(&gateway, &unknown, KEY).await.body.replace(&unknown.id().to_string(), &id);
        assert_eq!(reply.body, want, "not a byte tells them apart");
        assert!(took >= Duration::from_millis(50), "an answer before the beat would tell the time it took: {took:?}");
    }
    // A trace or a client's own ID is not searched: it could be anybody's.
    for key in ["0af7651916cd43dd8448eb211c80319c", "retry-7"] {
        let reply = gateway.ask("GET", &format!("/v1/snapshots/{key}"), &[KEY]).await;
        assert_eq!(reply.problem(), (404, "unknown".to_owned()));
    }
}

#[tokio::test]
async fn guesses_are_limited_by_address_and_never_lock_an_operator_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = with_token();
    plan.settings.failures_per_minute = 3;
    let gateway = Gateway::start(dir.path(), plan).await;
    let record = gateway.of_key(1, "sk-mine");
    gateway.ledger.insert(Arc::clone(&record));
    for _ in 0..3 {
        assert_eq!(gateway.ask("GET", "/v1/fleet", &[("authorization", "Bearer guess")]).await.status, 401);
    }
    let limited = gateway.ask("GET", "/v1/fleet", &[("authorization", "Bearer guess")]).await;
    assert_eq!(limited.problem(), (429, "rate_limited".to_owned()));
    assert!(limited.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(look(&gateway, &record, KEY).await.status, 429, "a key may be a guess, too");
    assert_eq!(look(&gateway, &record, ("authorization", "Bearer s3cret")).await.status, 200);
    assert!(gateway.metrics.page().contains("snapgate_lookups_refused_total{reason=\"rate\"} 2"));
}

#[tokio::test]
async fn each_token_and_each_tenant_has_its_own_rate() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = with_token();
    (plan.settings.requests_per_second, plan.settings.own_requests_per_second) = (2, 1);
    let gateway = Gateway::start(dir.path(), plan).await;
    let (mine, other) = (gateway.of_key(1, "sk-mine"), gateway.of_key(2, "sk-other"));
    gateway.ledger.insert(Arc::clone(&mine));
    gateway.ledger.insert(Arc::clone(&other));
    // More at once than a second has permits for; how many of them get through depends on the machine's pace.
    let mut statuses = Vec::new();
    for _ in 0..40 {
        statuses.push(look(&gateway, &mine, KEY).await.status);
    }
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert_eq!(look(&gateway, &other, ("x-api-key", "sk-other")).await.status, 200, "another tenant is not held up");
    let mut statuses = Vec::new();
    for _ in 0..40 {
        statuses.push(gateway.ask("GET", "/v1/fleet", &[("authorization", "Bearer s3cret")]).await.status);
    }
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert_eq!(gateway.ask("GET", "/v1/fleet", &[("authorization", "Bearer readonly")]).await.status, 200);
}

#[tokio::test]
async fn a_token_is_replaced_while_the_listener_serves() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "the-first-token-0\n").unwrap();
    let token = Token::new("ops", "the-first-token-0").from_file(file.clone());
    let settings = Settings { tokens: vec![token], failures_per_minute: 1_000_000, ..Settings::default() };
    let gateway = Gateway::start(&dir.path().join("data"), Plan { settings, ..Plan::default() }).await;
    let rotating = rotate_tokens(Arc::clone(&gateway.settings), Arc::clone(&gateway.metrics));
    let asking = async {
        let status = async |token: &str| {
            gateway.ask("GET", "/v1/fleet", &[("authorization", &format!("Bearer {token}"))]).await.status
        };
        let until = async |token: &str, want| {
            let deadline = Instant::now() + SOON * 20;
            while status(token).await != want {
                assert!(Instant::now() < deadline, "{token} never answers {want}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert_eq!((status("the-first-token-0").await, status("the-second-token").await), (200, 401));
        std::fs::write(&file, "the-second-token\n").unwrap();
        until("the-second-token", 200).await;
        assert_eq!(status("the-first-token-0").await, 401);
        std::fs::write(&file, "short").unwrap();
        let deadline = Instant::now() + SOON * 20;
        while gateway.metrics.token_files_failing.get() == 0 {
            assert!(Instant::now() < deadline, "nobody says that the file is wrong");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((status("the-second-token").await, status("short").await), (200, 401), "the old one stays");
    };
    tokio::select! {
        never = rotating => match never {},
        () = asking => {}
    }
}

/// Answers every deletion in the same way, and notes what was asked.
fn scripted(answer: Result<(u64, u64), ()>) -> (EraseSource, Arc<Mutex<Vec<Erasure>>>) {
    let asked = Arc::<Mutex<Vec<Erasure>>>::default();
    let notes = Arc::clone(&asked);
    let source: EraseSource = Arc::new(move |erasure| {
        notes.lock().unwrap().push(erasure);
        let (sender, receiver) = oneshot::channel();
        if let Ok((records, on_their_way)) = answer {
            sender.send(Ok(Erased { records, on_their_way })).unwrap();
        }
        Some(receiver)
    });
    (source, asked)
}

#[tokio::test]
async fn deleting_takes_a_token_that_may_and_names_who_did_it() {
    let dir = tempfile::tempdir().unwrap();
    let (erase, asked) = scripted(Ok((1, 2)));
    let mut gateway = Gateway::start(dir.path(), Plan { erase: Some(erase), ..with_token() }).await;
    let record = gateway.of_key(1, "sk-mine");
    gateway.store(&[Arc::clone(&record)], &[]);
    let by_id = format!("/v1/snapshots/{}", record.id());
    let tenant = gateway.tenant("sk-mine");
    let by_tenant = format!("/v1/snapshots?tenant={tenant}");
    for path in [&by_id, &by_tenant] {
        for (header, status) in [
            (("accept", "*/*"), 401),
            (("authorization", "Bearer wrong"), 401),
            (("authorization", "Bearer readonly"), 403),
            (("authorization", "Bearer s3cret"), 200),
        ] {
            let reply = gateway.ask("DELETE", path, &[header]).await;
            let own = header.1 == "Bearer wrong" && path == &by_id;
            assert_eq!(reply.status, if own { 403 } else { status }, "{path} {header:?}: {reply:?}");
            if status == 200 {
                let page = reply.json();
                assert_eq!((&page["deleted"], &page["kept_out"], &page["by"]), (&json!(1), &json!(2), &json!("ops")));
                assert!(page["not_reached"].as_str().unwrap().contains("JSON log"), "{page}");
            }
        }
    }
    let subjects: Vec<_> = asked.lock().unwrap().iter().map(|erasure| (erasure.subject, erasure.by.clone())).collect();
    assert_eq!(subjects, [(Subject::Id(record.id()), "ops".into()), (Subject::Tenant(tenant), "ops".into())]);
}

#[tokio::test]
async fn without_tokens_nobody_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let (erase, asked) = scripted(Ok((1, 0)));
    let gateway = Gateway::start(dir.path(), Plan { erase: Some(erase), ..Plan::default() }).await;
    let record = gateway.record(SOON, 1, true);
    for path in [format!("/v1/snapshots/{}", record.id()), "/v1/snapshots?tenant=t_00000000".to_owned()] {
        let reply = gateway.ask("DELETE", &path, &[]).await;
        assert_eq!(reply.problem(), (403, "forbidden".to_owned()));
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with("no [[lookup.tokens]] has scope delete: "), "{detail}");
    }
    assert_eq!(asked.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_deletion_that_is_not_clear_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (erase, asked) = scripted(Ok((0, 0)));
    let mut gateway = Gateway::start(dir.path(), Plan { erase: Some(erase), ..with_token() }).await;
    let (one, mut other) = (Tenant([0xab; 32]), Tenant([0xab; 32]));
    other.0[31] = 0;
    let (a, b) = (gateway.of_tenant(1, one), gateway.of_tenant(2, other));
    gateway.store(&[a], &[]);
    gateway.ledger.insert(b);
    let ops = ("authorization", "Bearer s3cret");
    let both = gateway.ask("DELETE", "/v1/snapshots?tenant=t_abababab", &[ops]).await;
    assert_eq!(both.problem(), (409, "ambiguous".to_owned()));
    assert_eq!(both.json()["tenants"].as_array().unwrap().len(), 2);
    for (query, status) in [
        ("", 400),
        ("?tenant=", 400),
        ("?tenant=acme", 400),
        ("?tenant=t_abababab&x=1", 400),
        ("?tenant=t_%C3%BC%C3%BC%C3%BC%C3%BC", 400),
        ("?tenant=t_00000000", 404),
    ] {
        assert_eq!(gateway.ask("DELETE", &format!("/v1/snapshots{query}"), &[ops]).await.status, status, "{query}");
    }
    assert_eq!(gateway.ask("DELETE", "/v1/snapshots/not-an-id", &[ops]).await.status, 400);
    assert_eq!(asked.lock().unwrap().len(), 0);
    let whole = format!("/v1/snapshots?tenant=t_{}", "ab".repeat(32));
    assert_eq!(gateway.ask("DELETE", &whole, &[ops]).await.status, 404, "nothing was deleted");
    assert_eq!(asked.lock().unwrap()[0].subject, Subject::Tenant(one));
}

#[tokio::test]
async fn a_deletion_that_fails_says_so() {
    let full: EraseSource = Arc::new(|_| {
        let (sender, receiver) = oneshot::channel();
        sender.send(Err(NotErased::TooManyBarred)).unwrap();
        Some(receiver)
    });
    for (erase, status, state) in [(scripted(Err(())).0, 500, "failed"), (full, 503, "busy")] {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(dir.path(), Plan { erase: Some(erase), ..with_token() }).await;
        let record = gateway.record(SOON, 1, true);
        let ops = ("authorization", "Bearer s3cret");
        let path = format!("/v1/snapshots/{}", record.id());
        assert_eq!(gateway.ask("DELETE", &path, &[ops]).await.problem(), (status, state.to_owned()));
    }
}

#[tokio::test]
async fn what_else_went_wrong_then_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let links = Links { logs: Some("http://logs/{target}".parse().unwrap()), ..Links::default() };
    let settings = Settings { loopback: true, links, ..Settings::default() };
    let mut gateway = Gateway::start(dir.path(), Plan { settings, ..Plan::default() }).await;
    let ended = |random, ago, ending| {
        let issued = specimen::issued(gateway.clock.now().minus(ago), gateway.tag, random);
        Arc::new(Record::closed(issued, Outcome { ending, ..specimen::outcome() }))
    };
    let asked = ended(1, SOON * 60, Ending::Completed);
    let near = ended(2, SOON * 61, Ending::UpstreamReset);
    let records = vec![
        Arc::clone(&asked),
        Arc::clone(&near),
        ended(3, SOON * 50, Ending::UpstreamTimeout),
        ended(4, SOON * 55, Ending::UpstreamReset),
        ended(5, SOON * 59, Ending::Completed),
        ended(6, SOON * 300, Ending::Internal),
    ];
    gateway.store(&records, &[]);
    let path = format!("/v1/snapshots/{}?around=30s", asked.id());
    let reply = gateway.get(&path).await.json();
    let around = &reply["around"];
    assert_eq!((&around["requests"], &around["complete"]), (&json!(4), &json!(true)), "{around}");
    let wrong = json!([{"ending": "upstream_reset", "status": 200, "count": 2},
        {"ending": "upstream_timeout", "status": 200, "count": 1}]);
    assert_eq!(around["wrong"], wrong);
    let nearest = around["nearest"].as_array().unwrap();
    assert_eq!((nearest.len(), &nearest[0]["id"]), (3, &json!(near.id().to_string())));
    assert_eq!((&nearest[0]["status"], &nearest[0]["ending"]), (&json!(200), &json!("upstream_reset")));
    assert_eq!(reply["links"]["logs"], format!("http://logs/{}", around["target"].as_str().unwrap()));
    let text = gateway.ask("GET", &path, &[("accept", "text/plain")]).await.body;
    assert!(text.contains("2 x upstream_reset") && text.contains("http://logs/"), "{text}");
    for query in ["around=0s", "around=1h", "around=x", "around=", "around=1s&around=2s"] {
        let reply = gateway.get(&format!("/v1/snapshots/{}?{query}", asked.id())).await;
        assert_eq!(reply.problem(), (400, "malformed".to_owned()), "{query}");
    }
}

/// A client at an address of this machine, which has many.
async fn client_at(gateway: &Gateway, number: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, number], 0))).unwrap();
    socket.connect(gateway.address).await.unwrap()
}

/// Asks; `false` if the connection was closed instead.
async fn is_answered(socket: &mut TcpStream) -> bool {
    let asked = socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    asked.is_ok() && socket.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0)
}

/// The first of the connections from there that is answered.
async fn until_answered(gateway: &Gateway, number: u8) -> TcpStream {
    let deadline = Instant::now() + SOON * 10;
    loop {
        let mut socket = client_at(gateway, number).await;
        if is_answered(&mut socket).await {
            return socket;
        }
        assert!(Instant::now() < deadline, "there is never any room");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_address_gets_a_quarter_of_the_connections() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { loopback: true, connections_max: 8, ..Settings::default() };
    let gateway = Gateway::start(dir.path(), Plan { settings, ..Plan::default() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut socket = client_at(&gateway, 1).await;
        // It is being answered for as long as its body is awaited.
        let begun = b"GET /v1/fleet HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
        socket.write_all(begun).await.unwrap();
        assert_ne!(socket.read(&mut [0; 64]).await.unwrap(), 0, "it is told to go on");
        held.push(socket);
    }
    assert!(!is_answered(&mut client_at(&gateway, 1).await).await, "a third is closed at once");
    assert!(gateway.metrics.page().contains("snapgate_lookups_refused_total{reason=\"connections\"} 1"));
    assert!(is_answered(&mut client_at(&gateway, 2).await).await, "others have their own");
    drop(held);
    until_answered(&gateway, 1).await;
}

#[tokio::test]
async fn connections_that_are_left_idle_make_room_the_longest_idle_one_first() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { loopback: true, connections_max: 8, ..Settings::default() };
    let gateway = Gateway::start(dir.path(), Plan { settings, ..Plan::default() }).await;
    // Four clients take all there is, two each.
    let mut held = Vec::new();
    for number in [1, 1, 2, 2, 3, 3, 4, 4] {
        let mut socket = client_at(&gateway, number).await;
        assert!(is_answered(&mut socket).await);
        held.push(socket);
    }
    assert!(is_answered(&mut held[0]).await, "asked again, it is not the longest idle one");
    let _fifth = until_answered(&gateway, 5).await;
    assert!(!is_answered(&mut held[1]).await, "which has made room");
    // Whoever has a quarter makes room for itself.
    let _third = until_answered(&gateway, 4).await;
    assert!(!is_answered(&mut held[6]).await);
    for number in [0, 2, 3, 4, 5, 7] {
        assert!(is_answered(&mut held[number]).await, "{number} is served as before");
    }
}

/// Asks for many keys, one of which is still in flight, and waits for its end; comes back with the answer's head.
async fn begin_waiting(gateway: &Gateway, number: u8, body: &str) -> TcpStream {
    let mut socket = client_at(gateway, number).await;
    let head =
        format!("POST /v1/snapshots/resolve?wait=30s HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}", body.len());
    socket.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
    let mut begun = [0; 12];
    socket.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    socket
}

#[tokio::test]
async fn an_answer_that_is_silent_while_it_waits_makes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { loopback: true, connections_max: 8, ..Settings::default() };
    let gateway = Gateway::start(dir.path(), Plan { settings, ..Plan::default() }).await;
    let record = gateway.record(SOON, 1, false);
    gateway.ledger.insert(Arc::clone(&record));
    let mut waiting = begin_waiting(&gateway, 1, &record.id().to_string()).await;
    // The other one that this address may have goes as soon as it is idle, for by then the answer has been silent for longer.
    let mut idle = client_at(&gateway, 1).await;
    assert!(is_answered(&mut idle).await);
    let _next = until_answered(&gateway, 1).await;
    assert!(!is_answered(&mut idle).await);
    assert!(record.finish(specimen::outcome()));
    let mut rest = Vec::new();
    while !rest.ends_with(b"\r\n0\r\n\r\n") {
        assert_ne!(waiting.read_buf(&mut rest).await.unwrap(), 0, "it is answered to its end");
    }
    assert!(String::from_utf8_lossy(&rest).contains("\"state\":\"found\""));
    // Once its body has ended it is idle like any other.
    let _another = until_answered(&gateway, 1).await;
    let _one_more = until_answered(&gateway, 1).await;
    assert!(!is_answered(&mut waiting).await);
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_take_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { loopback: true, connections_max: 4, ..Settings::default() };
    let gateway = Gateway::start(dir.path(), Plan { settings, ..Plan::default() }).await;
    let record = gateway.record(SOON, 1, true);
    gateway.ledger.insert(Arc::clone(&record));
    // Documents of some ten megabytes: more than the system holds for a client that reads nothing.
    let keys = format!("{}\n", record.id()).repeat(10_000);
    let mut stalled = begin_waiting(&gateway, 1, &keys).await;
    let _next = until_answered(&gateway, 1).await;
    let mut rest = Vec::new();
    // The connection's end may come as an error, or after what was on its way.
    stalled.read_to_end(&mut rest).await.ok();
    assert!(!rest.ends_with(b"\r\n0\r\n\r\n"), "it was broken off");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_ends_its_head_or_its_body_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    for (begun, want) in [
        ("GET /healthz HTTP/1.1\r\nhost: local", ""),
        ("GET /v1/fleet HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 9\r\n\r\n", "HTTP/1.1 400"),
    ] {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The clock jumps to the next timer when nothing else is to be done: the listener's.
        socket.read_to_end(&mut answer).await.ok();
        assert!(String::from_utf8_lossy(&answer).starts_with(want), "{begun}");
    }
}

#[tokio::test]
async fn oversized_heads_and_bodies_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n\r\n", "x".repeat(20_000));
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The rest of the head is not read: the answer may be lost with the connection.
    socket.read_to_end(&mut answer).await.ok();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    let length = (auth::BODY_BYTES_MAX + 1).to_string();
    let reply = gateway.ask("GET", "/v1/fleet", &[("content-length", &length), ("expect", "100-continue")]).await;
    assert_eq!(reply.problem(), (413, "too_large".to_owned()));
}

#[tokio::test]
async fn nothing_a_client_sends_comes_back_as_a_header_or_a_line_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path(), Plan::default()).await;
    for key in ["%0d%0ax-evil:%201", "a%0d%0a%0d%0aHTTP/1.1%20200%20OK", "%1b%5b2J", "..%2f..%2fetc%2fpasswd", "%2e%2e"]
    {
        let reply = gateway.look(key).await;
        assert!([400, 404].contains(&reply.status), "{key}: {reply:?}");
        assert_eq!(reply.header("x-evil"), None, "{key}");
        assert!(!reply.body.trim_end().contains(['\r', '\n', '\u{1b}']), "{key}: {:?}", reply.body);
    }
    for path in ["/v1/snapshots/../fleet", "//v1/fleet", "/v1/snapshots/%2e%2e/fleet", "/V1/fleet"] {
        assert_eq!(gateway.get(path).await.status, 404, "{path}");
    }
}

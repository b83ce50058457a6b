//! What a review by an attacker found, each as a test.

use std::sync::mpsc;

use super::assert_ended;
use super::endings_abroad::assert_local;
use crate::gateway::client::status_of;
use crate::gateway::{Client, Gateway, PATIENCE, Request, Setup, Then, Upstream, until};

/// A target that answers with these bytes.
fn target(bytes: &'static str) -> Upstream {
    Upstream::start(move |exchange| {
        exchange.send(bytes);
        Then::Next
    })
}

#[test]
fn an_answer_with_trailers_is_complete() {
    let upstream =
        target("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n");
    let gateway = Setup::before(&[upstream.address]).set("threads", 1).set("timeouts.pool_idle", "1h").start();
    for _ in 0..2 {
        let answer = gateway.ask(&Request::chat());
        assert_eq!(answer.text(), "hello");
        assert_ended(&gateway.ended(&answer.id()), "completed", None, 200);
    }
    let connections: Vec<_> = upstream.received().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 0], "the connection serves again");
}

#[test]
fn a_length_beside_chunks_is_not_passed_on() {
    let upstream =
        target("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let gateway = Setup::before(&[upstream.address]).start();
    let answer = gateway.ask(&Request::chat());
    assert_eq!((answer.text(), answer.header("content-length")), ("hello", None));
    assert_ended(&gateway.ended(&answer.id()), "completed", None, 200);
}

#[test]
fn a_target_that_switches_protocols_unasked_is_at_fault() {
    let upstream = target("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n");
    let gateway = Setup::before(&[upstream.address]).start();
    let answer = gateway.ask(&Request::chat().with("connection", "upgrade").with("upgrade", "websocket"));
    assert_ended(&gateway.ended(&answer.id()), "upstream_reset", Some("target"), 502);
}

#[test]
fn nobody_is_given_a_tunnel() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    client.send_bytes(b"CONNECT /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n");
    let head = client.head();
    let id = head.header("x-snapshot-id").expect("every answer has one").to_owned();
    assert_ended(&gateway.ended(&id), "rejected", Some("client"), 405);
    assert!(upstream.received().is_empty());
}

#[test]
fn a_method_of_any_length_is_recorded_in_bounded_space() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    client.send_bytes(format!("{} /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", "A".repeat(20_000)).as_bytes());
    let id = client.head().header("x-snapshot-id").expect("every answer has one").to_owned();
    let found = gateway.ended(&id);
    assert_eq!(found.text_at("/request/method"), Some(&*"A".repeat(32)));
}

#[test]
fn a_head_larger_than_it_may_be_is_refused_unread() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let unparsed = |gateway: &Gateway| {
        let metrics = Client::to(gateway.admin).ask(&Request::get("/metrics"));
        let count = |line: &str| line.strip_prefix("snapgate_unparsed_requests_total ")?.parse::<u64>().ok();
        metrics.text().lines().find_map(count).expect("it is counted")
    };
    let head = |bytes: usize| format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n", "a".repeat(bytes));
    let gateway = Setup::before(&[upstream.address]).set("limits.header_bytes", "8KiB").start();
    let mut client = Client::to(gateway.data);
    client.send_bytes(head(6_000).as_bytes());
    assert_eq!(status_of(&client.head()), 200, "it is not larger");
    assert_eq!((unparsed(&gateway), upstream.received().len()), (0, 1));
    let mut wire = Client::to(gateway.data).into_wire();
    wire.send(head(20_000).as_bytes());
    // The rest of the head is not read: the answer may be lost with the connection.
    if let Ok(refused) = wire.head() {
        assert_eq!(status_of(&refused), 431);
    }
    until("it is counted", || (unparsed(&gateway) == 1).then_some(()));
    assert_eq!(upstream.received().len(), 1, "nothing of it is passed on");

    // It was not too large for anybody: the bound is the setting's.
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    client.send_bytes(head(20_000).as_bytes());
    assert_eq!((status_of(&client.head()), upstream.received().len()), (200, 2));
}

#[test]
fn a_head_that_comes_at_once_may_not_be_larger_either() {
    let long = format!("x-long: {}\r\n", "a".repeat(90_000));
    let upstream = Upstream::start(move |exchange| {
        let is_long = exchange.request.head.header("x-wants-long").is_some();
        exchange.answer("200 OK", if is_long { &long } else { "" }, "{}");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let answer = gateway.ask(&Request::get("/v1/models").with("x-long", "a".repeat(90_000)));
    assert_local(&answer, 431);
    assert_ended(&gateway.ended(&answer.id()), "rejected", Some("client"), 431);
    assert!(upstream.received().is_empty());
    let answer = gateway.ask(&Request::get("/v1/models").with("x-wants-long", "1"));
    assert_local(&answer, 502);
    assert_ended(&gateway.ended(&answer.id()), "upstream_reset", Some("target"), 502);
    assert_eq!(gateway.ask(&Request::get("/v1/models").with("x-long", "a".repeat(60_000))).status, 200);
}

#[test]
fn a_pool_that_keeps_nothing_works() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let gateway = Setup::before(&[upstream.address]).set("upstream.pool_idle_per_target", 0).start();
    for _ in 0..3 {
        assert_eq!(gateway.ask(&Request::chat()).text(), "{}");
    }
}

/// Requests that the gateway refuses before it chooses; more than are recorded at once.
const FLOOD: usize = 4_000;

#[test]
fn a_flood_of_refused_requests_displaces_no_others_and_says_so() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let gateway = Setup::before(&[upstream.address]).set("pipeline.refused_per_second", 0).start();
    let served = gateway.ask(&Request::chat()).id();
    let mut client = Client::to(gateway.data);
    let flood: Vec<_> = (0..FLOOD)
        .map(|_| {
            let answer = client.ask(&Request::get("/no/such/path"));
            assert_eq!(answer.status, 404, "a refusal is answered as before");
            answer.id()
        })
        .collect();
    let last = &flood[FLOOD - 1];
    let lost =
        until("the last one of the flood is settled", || Some(gateway.lookup(last)).filter(|lost| lost.status == 410));
    // Not before: each that was served pays for one of the flood, which could be the last one.
    let after = gateway.ask(&Request::chat()).id();
    for id in [&served, &after, &flood[0]] {
        gateway.stored(id);
    }
    assert_eq!((lost.text_at("/state"), lost.text_at("/reason")), (Some("dropped"), Some("refused_flood")));
    let ready =
        until("/readyz warns", || Some(gateway.admin("/readyz")).filter(|ready| ready.text.contains("warnings")));
    let warning = ready.text_at("/warnings/0").expect("it says why");
    assert!(ready.status == 200 && warning.contains("pipeline.refused_per_second"), "{warning}");
    let metrics = Client::to(gateway.admin).ask(&Request::get("/metrics"));
    let refused = "snapgate_requests_total{ending=\"rejected\",fault=\"client\"} ";
    let counted = metrics.text().lines().find_map(|line| line.strip_prefix(refused)).expect("it is counted");
    assert_eq!(counted, FLOOD.to_string(), "recorded or not");
}

#[test]
fn informational_answers_are_passed_over_but_not_without_end() {
    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n";
    let (tell, left) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        if exchange.request.head.path() == "/v1/models" {
            exchange.send(HINT.repeat(50));
            exchange.answer("200 OK", "", "after all");
            return Then::Next;
        }
        let many = HINT.repeat(1_000);
        // More than anybody would read in the time that the test has.
        let is_left = (0..100_000).any(|_| !exchange.wire().send(many.as_bytes()));
        tell.send(is_left).expect("the test listens");
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).start();
    for _ in 0..2 {
        assert_eq!(gateway.ask(&Request::get("/v1/models")).text(), "after all");
    }
    let answer = gateway.ask(&Request::chat());
    assert_local(&answer, 502);
    let found = gateway.ended(&answer.id());
    assert_ended(&found, "upstream_reset", Some("target"), 502);
    let error = found.text_at("/outcome/error").expect("it says why");
    assert!(error.contains("informational answers (1xx) come without end"), "{error}");
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn a_request_with_two_credentials_in_one_header_is_refused() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let gateway = Setup::before(&[upstream.address]).start();
    for name in ["authorization", "x-api-key", "api-key"] {
        let answer = gateway.ask(&Request::chat().with(name, "Bearer mine").with(name, "Bearer another's"));
        assert_local(&answer, 400);
        assert!(answer.text().contains("two values of a header that holds its credential"), "{}", answer.text());
        assert_ended(&gateway.ended(&answer.id()), "rejected", Some("client"), 400);
    }
    assert!(upstream.received().is_empty());
    assert_eq!(
        gateway.ask(&Request::chat().with("authorization", "Bearer mine").with("x-api-key", "mine")).status,
        200
    );
}

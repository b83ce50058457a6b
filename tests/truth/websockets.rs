//! WebSockets: what passes, what is recorded of it, however it ends, and what is never taken for one.

use std::sync::mpsc;

use super::assert_ended;
use crate::gateway::client::{id_of, status_of};
use crate::gateway::tls::{self, Authority, LOCALHOST};
use crate::gateway::wire::{Filled, Head, Wire};
use crate::gateway::{Client, Exchange, Found, Gateway, PATIENCE, Request, Setup, Then, Upstream, Word, until};

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A message of five bytes, as a target sends it and as a client does.
const HELLO: &[u8] = b"\x81\x05hello";
const MASKED_HELLO: &[u8] = b"\x81\x85\x01\x02\x03\x04igohn";

/// A goodbye, likewise.
const GOODBYE: &[u8] = b"\x88\x00";
const MASKED_GOODBYE: &[u8] = b"\x88\x80\x01\x02\x03\x04";

fn websocket() -> Request {
    Request::get("/v1/realtime?model=llama-3.1-8b")
        .with("connection", "keep-alive, Upgrade")
        .with("upgrade", "websocket")
        .with("sec-websocket-version", 13)
        .with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
}

/// A target that agrees, and then does this.
fn target(then: impl Fn(&mut Wire) + Send + Sync + 'static) -> Upstream {
    scripted(move |exchange| {
        exchange.send(AGREED);
        then(exchange.wire());
        Then::Close
    })
}

fn scripted(script: impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static) -> Upstream {
    Upstream::start(script)
}

/// A client with an open WebSocket, and the head that opened it.
#[track_caller]
fn open(gateway: &Gateway) -> (Wire, Head) {
    let mut client = Client::to(gateway.data);
    client.send(&websocket());
    let head = client.head();
    assert_eq!(status_of(&head), 101, "{head:?}");
    (client.into_wire(), head)
}

/// What comes until the connection ends.
fn rest(wire: &mut Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(piece) = wire.some(usize::MAX) {
        bytes.extend(piece);
    }
    bytes
}

#[track_caller]
fn assert_error(found: &Found, error: Option<&str>) {
    let seen = found.text_at("/outcome/error");
    assert!(seen == error || seen.zip(error).is_some_and(|(seen, error)| seen.contains(error)), "{seen:?} {error:?}");
}

#[test]
fn bytes_pass_both_ways_untouched_from_the_first_on() {
    let upstream = scripted(|exchange| {
        // Its first message comes with its agreement.
        exchange.send([AGREED.as_bytes(), HELLO].concat());
        let wire = exchange.wire();
        for _ in 0..3 {
            let echoed = wire.exactly(MASKED_HELLO.len()).expect("the client speaks");
            assert!(wire.send(&echoed));
        }
        assert_eq!(wire.exactly(MASKED_GOODBYE.len()).as_deref(), Ok(MASKED_GOODBYE));
        assert!(wire.send(GOODBYE));
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    client.send(&websocket());
    // Before it knows that it may.
    client.send_bytes(MASKED_HELLO);
    let head = client.head();
    assert_eq!(status_of(&head), 101);
    for (name, value) in [
        ("upgrade", Some("websocket")),
        ("connection", Some("upgrade")),
        ("sec-websocket-accept", Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")),
        ("target-pod", Some("t0")),
        ("content-length", None),
        ("transfer-encoding", None),
    ] {
        assert_eq!(head.header(name), value, "{name}");
    }
    let (id, mut wire) = (id_of(&head), client.into_wire());
    assert_eq!(wire.exactly(HELLO.len()).as_deref(), Ok(HELLO));
    assert_eq!(wire.exactly(MASKED_HELLO.len()).as_deref(), Ok(MASKED_HELLO));
    let open = gateway.lookup(&id);
    assert_eq!((open.text_at("/phase"), open.at("/outcome/status")), (Some("in_flight"), &101.into()));
    assert!(wire.send(&[MASKED_HELLO, MASKED_HELLO].concat()));
    assert_eq!(wire.exactly(2 * MASKED_HELLO.len()).map(|bytes| bytes.len()), Ok(2 * MASKED_HELLO.len()));
    assert!(wire.send(MASKED_GOODBYE));
    assert_eq!(rest(&mut wire), GOODBYE);
    drop(wire);

    let seen = upstream.only().head;
    for (name, value) in [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("x-request-id", &*id),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    let found = gateway.ended(&id);
    assert_ended(&found, "completed", None, 101);
    let bytes = HELLO.len() + 3 * MASKED_HELLO.len() + GOODBYE.len();
    assert_eq!((found.at("/outcome/response_bytes"), found.at("/outcome/events")), (&bytes.into(), &4.into()));
    assert_eq!(found.text_at("/request/model"), Some("llama-3.1-8b"));
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn over_tls_on_both_sides_it_is_the_same() {
    let authority = Authority::named("ours");
    let dir = tempfile::tempdir().expect("a directory can be made");
    let (cert, key) = authority.certify().write(dir.path());
    let ca = dir.path().join("ca");
    std::fs::write(&ca, authority.pem()).expect("a file can be written");
    let config = authority.server(None);
    let upstream = Upstream::over(
        move |socket| tls::serve(socket, &config),
        |exchange| {
            if exchange.request.head.header("upgrade").is_none() {
                exchange.answer("200 OK", "", "");
                return Then::Next;
            }
            exchange.send([AGREED.as_bytes(), HELLO].concat());
            let wire = exchange.wire();
            assert_eq!(wire.exactly(MASKED_GOODBYE.len()).as_deref(), Ok(MASKED_GOODBYE));
            assert!(wire.send(GOODBYE));
            Then::Close
        },
    );
    let gateway = Setup::before(&[])
        .set("targets", format!("t=https://{LOCALHOST}:{}", upstream.address.port()))
        .set("upstream.ca", ca.display())
        .set("tls.cert", cert.display())
        .set("tls.key", key.display())
        .start();
    let mut client = tls::client(gateway.data, &authority.client(None));
    client.send(&websocket());
    let head = client.head();
    assert_eq!(status_of(&head), 101, "{head:?}");
    let (id, mut wire) = (id_of(&head), client.into_wire());
    assert_eq!(wire.exactly(HELLO.len()).as_deref(), Ok(HELLO));
    assert!(wire.send(MASKED_GOODBYE));
    assert_eq!(rest(&mut wire), GOODBYE);
    let found = gateway.ended(&id);
    assert_ended(&found, "completed", None, 101);
    let bytes = HELLO.len() + GOODBYE.len();
    assert_eq!(
        (found.at("/outcome/response_bytes"), found.at("/outcome/events")),
        (&bytes.into(), &1.into()),
        "a goodbye is no message"
    );
}

#[test]
fn the_end_of_one_side_leaves_the_other_its_word() {
    let upstream = target(|wire| match wire.exactly(MASKED_GOODBYE.len()) {
        // The client has ended its side.
        Ok(goodbye) if goodbye == MASKED_GOODBYE => {
            assert_eq!(wire.fill(), Filled::Closed);
            assert!(wire.send(&[HELLO, GOODBYE].concat()));
        }
        // The target ends its side first.
        _ => {
            assert!(wire.send(&[HELLO, GOODBYE].concat()));
            wire.end();
            assert_eq!(rest(wire), MASKED_GOODBYE);
        }
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let (mut wire, head) = open(&gateway);
    assert!(wire.send(MASKED_GOODBYE));
    wire.end();
    assert_eq!(rest(&mut wire), [HELLO, GOODBYE].concat());
    assert_ended(&gateway.ended(&id_of(&head)), "completed", None, 101);

    let (mut wire, head) = open(&gateway);
    assert!(wire.send(b"\x8a\x80\x01\x02\x03\x04"), "a pong");
    assert_eq!(rest(&mut wire), [HELLO, GOODBYE].concat());
    assert!(wire.send(MASKED_GOODBYE));
    wire.end();
    assert_ended(&gateway.ended(&id_of(&head)), "completed", None, 101);
}

#[test]
fn whoever_leaves_without_a_goodbye_is_named() {
    let (tell, left) = mpsc::channel();
    let upstream = scripted(move |exchange| {
        exchange.send(AGREED);
        let word = exchange.wire().exactly(MASKED_HELLO.len());
        match exchange.request.head.header("x-test") {
            Some("reset") => Then::Reset,
            Some("end") => Then::Close,
            _ => {
                drop(word);
                tell.send(exchange.is_left()).expect("the test listens");
                Then::Close
            }
        }
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let opened = |test: &str| {
        let mut client = Client::to(gateway.data);
        client.send(&websocket().with("x-test", test));
        let id = id_of(&client.head());
        let mut wire = client.into_wire();
        assert!(wire.send(MASKED_HELLO));
        (wire, id)
    };
    for (test, error) in [("reset", "the target's side of the WebSocket broke"), ("end", "the target left")] {
        let (mut wire, id) = opened(test);
        assert_eq!(rest(&mut wire), b"");
        drop(wire);
        let found = gateway.ended(&id);
        assert_ended(&found, "upstream_reset", Some("target"), 101);
        assert_error(&found, Some(error));
    }
    let (wire, id) = opened("client");
    wire.reset();
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true), "the target is let go with it");
    assert_error(&gateway.ended(&id), Some("the client's side of the WebSocket broke"));
    let (wire, id) = opened("client");
    drop(wire);
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true));
    let found = gateway.ended(&id);
    assert_ended(&found, "client_disconnected", Some("client"), 101);
    assert_error(&found, Some("the client left the WebSocket without closing it"));
}

#[test]
fn a_websocket_in_which_nothing_moves_is_ended_and_whose_turn_it_was_is_at_fault() {
    // What each side says comes with the request or with the agreement to it: else it could come too late.
    let targets = [0, 1].map(|_| {
        scripted(|exchange| {
            let asked = exchange.request.head.header("x-test").map(str::to_owned);
            let with_it = if asked.as_deref() == Some("the target speaks first") { HELLO } else { b"" };
            exchange.send([AGREED.as_bytes(), with_it].concat());
            let wire = exchange.wire();
            if asked.as_deref() == Some("the target answers") && wire.exactly(MASKED_HELLO.len()).is_ok() {
                wire.send(HELLO);
            }
            rest(wire);
            Then::Close
        })
    });
    // One of these would take a target out of the choice if it counted.
    let setup = Setup::before(&targets.each_ref().map(|target| target.address)).set("timeouts.websocket_idle", "50ms");
    let gateway = setup.set("fleet.eject_after", 1).set("fleet.publish_interval", "10ms").start();
    let ended = |test: &str, message: &[u8]| {
        let mut client = Client::to(gateway.data);
        client.send_together(&websocket().with("x-test", test), message);
        let head = client.head();
        assert_eq!(status_of(&head), 101, "{head:?}");
        rest(&mut client.into_wire());
        let found = gateway.ended(&id_of(&head));
        assert_error(&found, Some("silent for 50 ms (timeouts.websocket_idle)"));
        assert_eq!(found.at("/decision/eligible"), 2, "nobody is talked out of its requests");
        found
    };
    let (targets_turn, clients_turn) = (("upstream_timeout", Some("target")), ("client_disconnected", Some("client")));
    for (test, message, (ending, fault)) in [
        ("nobody answers", MASKED_HELLO, targets_turn),
        ("the target speaks first", b"", clients_turn),
        ("the target speaks first", MASKED_HELLO, targets_turn),
    ] {
        assert_ended(&ended(test, message), ending, fault, 101);
    }
    // An answer to what was said can come too late, which is as the first case. The record says whether it has.
    until("the target answers in time", || {
        let found = ended("the target answers", MASKED_HELLO);
        let has_answered = found.at("/outcome/events") == 1;
        let (ending, fault) = if has_answered { clients_turn } else { targets_turn };
        assert_ended(&found, ending, fault, 101);
        has_answered.then_some(())
    });
}

#[test]
fn a_client_that_takes_nothing_slows_the_target_down_and_is_let_go() {
    const BYTES_MAX: usize = 64 << 20;
    let (tell, sent) = mpsc::channel();
    let upstream = target(move |wire| {
        let mut bytes = 0;
        // Far less than the bound fits into the buffers of all sockets on the way; the gateway has none of its own.
        while bytes <= BYTES_MAX && wire.send(&[0; 64 << 10]) {
            bytes += 64 << 10;
        }
        tell.send(bytes).expect("the test listens");
    });
    let gateway = Setup::before(&[upstream.address]).set("timeouts.client_stall", "100ms").start();
    let (_wire, head) = open(&gateway);
    let found = gateway.ended(&id_of(&head));
    assert_ended(&found, "client_disconnected", Some("client"), 101);
    assert_error(&found, Some("the client took nothing for 100 ms (timeouts.client_stall)"));
    let sent = sent.recv_timeout(PATIENCE).expect("the target is let go");
    assert!(sent < BYTES_MAX, "{sent}");
}

#[test]
fn a_target_that_takes_nothing_for_a_while_loses_nothing() {
    const BYTES: usize = 32 << 20;
    let word = Word::new();
    let go = word.clone();
    let upstream = target(move |wire| {
        word.wait();
        let got = wire.exactly(BYTES).expect("all of it comes");
        assert!(got.chunks(251).all(|chunk| chunk.iter().zip(0..).all(|(byte, place)| *byte == place)));
        assert!(wire.send(GOODBYE));
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let (mut wire, head) = open(&gateway);
    let bytes: Vec<u8> = (0..251).cycle().take(BYTES).collect();
    // The first half is more than fits on the way, so it is still being sent when the target begins to read.
    std::thread::scope(|scope| {
        scope.spawn(|| go.give());
        assert!(wire.send(&bytes));
    });
    assert_eq!(rest(&mut wire), GOODBYE);
    drop(wire);
    assert_ended(&gateway.ended(&id_of(&head)), "completed", None, 101);
}

#[test]
fn an_open_websocket_is_a_request_in_flight_until_the_gateway_stops() {
    let upstream = target(|wire| drop(rest(wire)));
    let setup = Setup::before(&[upstream.address]).set("limits.in_flight", 1);
    let gateway = setup.set("timeouts.shutdown_grace", "50ms").start();
    let (mut wire, head) = open(&gateway);
    assert_eq!(gateway.ask(&Request::chat()).status, 503);
    let stopped = gateway.stop();
    assert_eq!(rest(&mut wire), b"");
    let gateway = Setup::in_dir(stopped.dir, &[upstream.address]).start();
    let line = gateway.logged(&id_of(&head));
    assert!(line[0].contains(r#""ending":"shutdown","fault":"gateway""#), "{line:?}");
}

#[test]
fn a_target_that_fails_before_it_agrees_is_replaced() {
    let failing = Upstream::start(|_| Then::Close);
    let agreeing = target(|wire| assert!(wire.send(GOODBYE)));
    let setup = Setup::before(&[failing.address, agreeing.address]).set("policy", "round_robin");
    let gateway = setup.start();
    let attempts: Vec<_> = (0..2)
        .map(|_| {
            let (mut wire, head) = open(&gateway);
            assert_eq!((rest(&mut wire), head.header("target-pod")), (GOODBYE.to_vec(), Some("t1")));
            drop(wire);
            let found = gateway.ended(&id_of(&head));
            assert_ended(&found, "completed", None, 101);
            found.list("/attempts").len()
        })
        .collect();
    assert_eq!(attempts.iter().sum::<usize>(), 3, "one of them went to the failing one first");
}

#[test]
fn a_switch_that_was_not_asked_for_is_no_tunnel() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket, h2c\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let upstream = scripted(move |exchange| {
            exchange.send(answer);
            exchange.is_left();
            Then::Close
        });
        let gateway = Setup::before(&[upstream.address]).start();
        let refused = gateway.ask(&websocket());
        assert_ended(&gateway.ended(&refused.id()), "upstream_reset", Some("target"), 502);
    }
    let upstream = target(|wire| drop(rest(wire)));
    let gateway = Setup::before(&[upstream.address]).start();
    for request in [
        Request::get("/v1/models"),
        Request::get("/v1/models").with("upgrade", "websocket"),
        Request::chat().with("connection", "upgrade").with("upgrade", "websocket"),
    ] {
        let refused = gateway.ask(&request);
        assert_ended(&gateway.ended(&refused.id()), "upstream_reset", Some("target"), 502);
    }
}

#[test]
fn what_follows_an_upgrade_that_was_refused_is_a_request() {
    let upstream = scripted(|exchange| {
        exchange.answer("426 Upgrade Required", "upgrade: websocket\r\nconnection: upgrade\r\n", "no");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    // At once, as who hopes for a tunnel to the target would.
    client.send(&websocket());
    client.send(&Request::get("/metrics"));
    let answers = [0, 1].map(|_| {
        let head = client.head();
        client.rest_of(head)
    });
    let wanted = |name| answers[0].header(name).map(str::to_owned);
    assert_eq!((wanted("upgrade"), wanted("connection")), (Some("websocket".into()), Some("upgrade".into())));
    let seen = answers.map(|answer| (answer.status, answer.text().contains("routes.allow")));
    assert_eq!(seen, [(426, false), (404, true)]);
    assert_eq!(upstream.only().head.path(), "/v1/realtime?model=llama-3.1-8b");

    let mut client = Client::to(gateway.data);
    client.send(&websocket().with("content-length", 3));
    client.send_bytes(b"GET");
    assert_eq!(status_of(&client.head()), 400, "a body that another might take for the tunnel's first bytes");
}

#[test]
fn no_other_upgrade_is_passed_on() {
    let upstream = scripted(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).start();
    for upgrade in ["h2c", "websocket, h2c", "TLS/1.0"] {
        let request = Request::get("/v1/models").with("connection", "upgrade, http2-settings").with("upgrade", upgrade);
        assert_eq!(gateway.ask(&request.with("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA")).status, 200);
    }
    let old = "GET /v1/models HTTP/1.0\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut client = Client::to(gateway.data);
    client.send_bytes(old.as_bytes());
    until("all have come", || (upstream.received().len() == 4).then_some(()));
    for request in upstream.received() {
        let passed: Vec<_> = ["upgrade", "connection", "http2-settings"].map(|name| request.head.header(name)).to_vec();
        assert_eq!(passed, [None; 3], "{:?}", request.head);
    }
}

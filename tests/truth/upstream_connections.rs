//! Connections to the targets: used again, replaced when they were closed, and given up for another target's.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use serde_json::{Value, json};
use snapgate::demo::sim::SimSettings;

use super::assert_ended;
use crate::gateway::{Client, End, Found, Gateway, PATIENCE, Request, Setup, Sims, Then, Upstream, until};

/// Every counter of requests in flight is back at zero.
#[track_caller]
fn assert_idle(gateway: &Gateway) {
    let idle = |gateway: &Gateway| {
        let fleet = gateway.admin("/v1/fleet");
        let busy = fleet.list("/targets").iter().any(|target| target["gateway_in_flight"] != 0);
        let metrics = gateway.admin("/metrics").text;
        (!busy && metrics.lines().any(|line| line == "snapgate_requests_in_flight 0")).then_some(())
    };
    until("nothing is in flight", || idle(gateway));
}

#[test]
fn requests_one_after_another_share_a_connection_to_the_target() {
    let upstream = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    // One thread, for each has connections of its own.
    let gateway = Setup::before(&[upstream.address]).set("threads", 1).set("timeouts.pool_idle", "1h").start();
    let ids: Vec<_> = (0..5).map(|_| gateway.ask(&Request::chat()).id()).collect();
    let connections: Vec<_> = upstream.received().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0; 5], "although each client's connection was its own");
    for (number, id) in ids.iter().enumerate() {
        let connect_us = gateway.ended(id).at("/attempts/0/connect_us").as_u64().expect("there was a connection");
        assert_eq!(connect_us == 0, number > 0, "the first had to connect: {connect_us}");
    }
    assert_idle(&gateway);
}

#[test]
fn an_answer_that_was_not_read_whole_gives_its_connection_to_nobody() {
    let (tell, left) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        if exchange.request.head.header("x-first").is_none() {
            exchange.answer("200 OK", "", "{}");
            return Then::Next;
        }
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
        tell.send(exchange.is_left()).expect("the test listens");
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).set("threads", 1).start();
    let mut client = Client::to(gateway.data);
    client.send(&Request::chat().with("x-first", 1));
    client.head();
    drop(client);
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true));
    assert_eq!(gateway.ask(&Request::chat()).text(), "{}");
    assert_eq!(upstream.received()[1].connection, 1);
    assert_idle(&gateway);
}

#[test]
fn a_connection_that_nobody_needs_is_closed_without_a_request_to_notice_it() {
    let (tell, left) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        exchange.answer("200 OK", "", "{}");
        tell.send(exchange.is_left()).expect("the test listens");
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).set("timeouts.pool_idle", "10ms").start();
    assert_eq!(gateway.ask(&Request::chat()).text(), "{}");
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn a_pooled_connection_that_the_target_closed_costs_no_request() {
    let (tell, closed) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        exchange.answer("200 OK", "", "{}");
        exchange.hang_up();
        tell.send(()).expect("the test listens");
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).set("threads", 1).start();
    let mut client = Client::to(gateway.data);
    for number in 0..20 {
        let answer = client.ask(&Request::chat());
        assert_eq!((answer.status, answer.text()), (200, "{}"), "request {number}");
        assert_ended(&gateway.ended(&answer.id()), "completed", None, 200);
        closed.recv_timeout(PATIENCE).expect("the target hangs up");
    }
    assert_eq!(upstream.received().len(), 20, "none was sent twice");
    assert_idle(&gateway);
}

#[test]
fn a_target_that_cannot_be_connected_to_is_passed_over_and_the_record_says_so() {
    let dead = Sims::refusing(1);
    let alive = Sims::one();
    let targets = [dead.addresses()[0], alive.addresses()[0]];
    let gateway = Setup::before(&targets).set("policy", "round_robin").start();
    let mut ended = Vec::new();
    let mut passed_over = 0;
    for _ in 0..4 {
        let answer = gateway.ask(&Request::stream(3));
        assert_eq!((answer.status, answer.end, answer.header("target-pod")), (200, End::Clean, Some("t1")));
        let found = gateway.ended(&answer.id());
        assert_ended(&found, "completed", None, 200);
        assert_eq!(found.text_at("/outcome/target"), Some("t1"), "whose answer it was");
        let chosen = found.text_at("/decision/target").expect("a target was chosen");
        let attempts = found.list("/attempts");
        let tried: Vec<_> = attempts.iter().map(|attempt| attempt["target"].as_str()).collect();
        if chosen == "t0" {
            passed_over += 1;
            assert_eq!(tried, [Some("t0"), Some("t1")]);
            assert!(attempts[0]["error"].as_str().is_some_and(|error| error.starts_with("connect: ")), "{attempts:?}");
            assert_eq!((&attempts[0]["status"], &attempts[1]["status"]), (&Value::Null, &200.into()));
        } else {
            assert_eq!(tried, [Some("t1")]);
        }
        assert_eq!(attempts[attempts.len() - 1]["error"], Value::Null);
        assert_eq!(found.at("/outcome/attempt_count"), attempts.len());
        ended.push(found);
    }
    assert_eq!(passed_over, 2, "in turn, the dead one is chosen every other time");
    assert_idle(&gateway);
    gateway.stop().has_exactly(&ended);
}

#[test]
fn nothing_stays_in_flight_whatever_went_wrong() {
    let sims = Sims::one();
    let dead = Sims::refusing(1);
    let targets = [sims.addresses()[0], dead.addresses()[0]];
    let setup = || Setup::before(&targets).set("limits.body_bytes", "1KiB");
    let ask = |gateway: &Gateway, fault: &str| {
        let answer = gateway.ask(&Request::stream(2).with("x-sim-fault", fault));
        gateway.ended(&answer.id());
        answer.status
    };
    let gateway = setup().start();
    assert_eq!(ask(&gateway, "none"), 200);
    for fault in ["reset", "reset-after=1", "garbage-after=1", "error=503"] {
        ask(&gateway, fault);
    }
    assert_eq!(gateway.ask(&Request::get("/no/such/path")).status, 404);
    assert_eq!(gateway.ask(&Request::post("/v1/completions", vec![b' '; 2048])).status, 413);
    assert_idle(&gateway);

    let gateway = setup().set("timeouts.response_head", "50ms").start();
    assert_eq!(ask(&gateway, "hang"), 504);
    assert_idle(&gateway);
}

/// Connections that a target accepts and closes, counted.
fn hanging_up() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let connections = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&connections);
    let hang_up = move || {
        for stream in listener.incoming() {
            // Before whoever is hung up on knows of it.
            counted.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    };
    // It ends with the process of the tests.
    std::thread::Builder::new().name("hanging-up".into()).spawn(hang_up).expect("a thread can be started");
    (address, connections)
}

#[test]
fn a_target_that_hangs_up_on_everybody_is_asked_once_by_each_request() {
    const REQUESTS: usize = 20;
    let (address, connections) = hanging_up();
    // Nobody comes in between but for one probe and one poll, which are waited for.
    let setup = Setup::before(&[address]).set("fleet.probe_interval", "1h").set("fleet.poll_interval", "30m");
    let gateway = setup.set("fleet.fresh_within", "1h").set("fleet.window", "1h").start();
    until("it was probed and polled", || (connections.load(Ordering::SeqCst) == 2).then_some(()));
    for _ in 0..REQUESTS {
        let answer = gateway.ask(&Request::chat());
        assert_eq!(answer.status, 502, "{}", answer.text());
        let found = gateway.ended(&answer.id());
        assert_ended(&found, "upstream_reset", Some("target"), 502);
        assert_eq!(found.list("/attempts").len(), 1);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2 + REQUESTS);
    let denied = "snapgate_retries_denied_total 0";
    let metrics = gateway.admin("/metrics").text;
    assert!(metrics.lines().any(|line| line == denied), "nothing is spent where there is nowhere to go: {metrics}");
    assert_idle(&gateway);
}

#[test]
fn a_request_that_one_target_broke_is_answered_by_another_as_far_as_the_budget_goes() {
    const REQUESTS: usize = 40;
    let sims = Sims::one();
    let (hangs_up, _) = hanging_up();
    let setup = Setup::before(&[hangs_up, sims.addresses()[0]]).set("policy", "round_robin").set("threads", 1);
    let setup = setup.set("fleet.probe_interval", "10s").set("fleet.eject_after", 0).set("upstream.retry_share", "0.1");
    let gateway = setup.start();
    let (mut saved, mut lost) = (0, 0);
    for _ in 0..REQUESTS {
        let answer = gateway.ask(&Request::chat());
        let found = gateway.ended(&answer.id());
        let tried: Vec<_> = found.list("/attempts").iter().map(|tried| tried["target"].clone()).collect();
        match (answer.status, &tried[..]) {
            (200, [only]) => assert_eq!(only, "t1"),
            (200, [first, second]) => {
                assert_eq!((first, second, found.text_at("/outcome/target")), (&"t0".into(), &"t1".into(), Some("t1")));
                saved += 1;
            }
            (502, [only]) => {
                assert_eq!(only, "t0");
                lost += 1;
            }
            other => panic!("{other:?}: {}", found.text),
        }
    }
    assert_eq!((saved, lost), (13, 7), "ten to begin with, then one for ten requests");
    let metrics = gateway.admin("/metrics").text;
    for line in ["snapgate_retries_total 13", "snapgate_retries_denied_total 7"] {
        assert!(metrics.lines().any(|it| it == line), "{line}: {metrics}");
    }
    assert_idle(&gateway);
}

/// A retry is a choice of its own: why it fell as it did is in its attempt, and comes back from the store.
#[test]
fn a_retry_says_why_it_went_where_it_went() {
    let sims = Sims::start(vec![SimSettings::instant(); 2]);
    let (hangs_up, _) = hanging_up();
    let targets = [hangs_up, sims.addresses()[0], sims.addresses()[1]];
    for (policy, fallback) in [("round_robin", Value::Null), ("session_affinity", json!("no_session"))] {
        let setup = Setup::before(&targets).set("policy", policy).set("fleet.probe_interval", "10s");
        let gateway = setup.set("fleet.eject_after", 0).start();
        let (id, found) = until("a request is tried again", || {
            let id = gateway.ask(&Request::chat()).id();
            Some((id.clone(), gateway.ended(&id))).filter(|(_, found)| found.list("/attempts").len() == 2)
        });
        let [first, second] = ["/attempts/0/choice", "/attempts/1/choice"].map(|choice| found.at(choice));
        assert_eq!((&first["reason"], &first["considered"]), (found.at("/decision/reason"), &json!(3)));
        assert_eq!(&first["draw"], found.at("/decision/inputs/draw"));
        let excluded = json!({"unhealthy": 0, "ejected": 0, "model": 0, "no_fresh_state": 0});
        assert_eq!(
            (&second["eligible"], &second["considered"], &second["excluded"]),
            (&json!(3), &json!(2), &excluded)
        );
        let reasons = match policy {
            "round_robin" => &["next_in_turn"][..],
            _ => &["tie_broken_by_draw", "lowest_score"],
        };
        assert!(reasons.iter().any(|reason| second["reason"] == *reason), "{second}");
        assert_eq!(second["fallback"], fallback);
        assert!(second["score"].is_number() && second["view_age_ms"].is_u64(), "{second}");
        assert!(second["draw"].as_str().is_some_and(|draw| draw.len() == 16 && first["draw"] != draw), "{second}");
        let stored = gateway.stored(&id);
        assert_eq!(stored.at("/attempts"), found.at("/attempts"));
        let asked = Request::get(format!("/v1/snapshots/{id}")).with("accept", "text/plain");
        let text = Client::to(gateway.admin).ask(&asked);
        // Lines may break anywhere.
        let text = text.text().split_whitespace().collect::<Vec<_>>().join(" ");
        let said = format!("retried on {}: ", stored.text_at("/outcome/target").expect("it was answered"));
        assert!(text.contains(&said) && text.contains("of 2 untried"), "{text}");
    }
}

/// Of two requests in turn, the one that was to go to `t0`.
#[track_caller]
fn first_to_t0(gateway: &Gateway, request: &Request) -> Found {
    let ended = [(); 2].map(|()| gateway.ended(&gateway.ask(request).id()));
    ended.into_iter().find(|found| found.text_at("/decision/target") == Some("t0")).expect("each target has its turn")
}

/// What it came to, and who was tried.
fn outcome(found: &Found) -> (u64, Vec<&str>) {
    let tried = found.list("/attempts").iter().map(|attempt| attempt["target"].as_str().expect("it has a name"));
    (found.at("/outcome/status").as_u64().expect("it has ended"), tried.collect())
}

#[test]
fn a_target_that_does_not_answer_in_time_is_left_for_another_only_where_that_is_set() {
    let hangs = Upstream::start(|exchange| {
        exchange.is_left();
        Then::Close
    });
    let serves = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    for (is_set, expected) in [(false, (504, vec!["t0"])), (true, (200, vec!["t0", "t1"]))] {
        const TOO_LATE: &str = "no answer within 500 ms";
        let setup = Setup::before(&[hangs.address, serves.address]).set("policy", "round_robin").set("threads", 1);
        let setup = setup.set("timeouts.response_head", "500ms").set("upstream.retry_timeouts", is_set);
        let gateway = setup.set("fleet.eject_after", 0).start();
        // The other one has no more time, and may be late if the machine is busy: that is not what this is about.
        let found = until("the other one is in time", || {
            let found = first_to_t0(&gateway, &Request::chat());
            let is_late = |attempt: &Value| attempt["target"] == "t1" && attempt["error"] == TOO_LATE;
            (!found.list("/attempts").iter().any(is_late)).then_some(found)
        });
        assert_eq!(outcome(&found), expected, "{}", found.text);
        assert_eq!(found.text_at("/attempts/0/error"), Some(TOO_LATE));
        assert_idle(&gateway);
    }
}

#[test]
fn a_body_that_is_larger_than_is_kept_is_not_sent_again() {
    let resets = Upstream::start(|_| Then::Reset);
    let serves = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let setup = Setup::before(&[resets.address, serves.address]).set("policy", "round_robin").set("threads", 1);
    let gateway = setup.set("fleet.eject_after", 0).start();
    for (kib, expected) in [(256, (200, vec!["t0", "t1"])), (300, (502, vec!["t0"]))] {
        let (body, before) = (vec![b' '; kib * 1024], serves.received().len());
        let found = first_to_t0(&gateway, &Request::post("/v1/completions", body.clone()));
        assert_eq!(outcome(&found), expected, "{kib} KiB: {}", found.text);
        let received = serves.received();
        assert!(received.iter().skip(before).all(|request| request.body == body), "{kib} KiB: what comes is whole");
        // The other one of the two went there at once.
        assert_eq!(received.len() - before, expected.1.len(), "{kib} KiB");
    }
    assert_idle(&gateway);
}

#[test]
fn a_target_that_fails_request_after_request_is_passed_over() {
    let sims = Sims::one();
    let (hangs_up, _) = hanging_up();
    let setup = Setup::before(&[hangs_up, sims.addresses()[0]]).set("policy", "round_robin");
    let setup = setup.set("fleet.probe_interval", "10s").set("fleet.eject_after", 3).set("upstream.retries", 0);
    let gateway = setup.start();
    let passed_over = until("the failing target is passed over", || {
        let answer = gateway.ask(&Request::chat());
        Some(gateway.ended(&answer.id())).filter(|found| found.at("/decision/excluded/ejected") == 1)
    });
    assert_eq!(
        (passed_over.at("/decision/eligible").as_u64(), passed_over.text_at("/decision/target")),
        (Some(1), Some("t1"))
    );
    assert_ended(&passed_over, "completed", None, 200);
    assert_idle(&gateway);
}

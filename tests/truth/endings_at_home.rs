//! Every ending that is the gateway's own doing: what it refuses, what it has no target or no room for, and what its own
//! end cuts short.

use super::assert_ended;
use super::endings_abroad::assert_local;
use crate::gateway::client::id_of;
use crate::gateway::{Answer, Client, End, Gateway, Request, Setup, Sims, Then, Upstream, Word, until};

/// A request of a body of so many bytes.
fn of_bytes(count: usize) -> Request {
    Request::post("/v1/chat/completions", vec![b' '; count])
}

#[test]
fn a_request_without_any_healthy_target_has_no_target() {
    let sims = Sims::refusing(2);
    let setup = Setup::before(sims.addresses()).set("fleet.unhealthy_after", 1).set("fleet.probe_interval", "10ms");
    let gateway = setup.start();
    until("every target is unhealthy", || Some(gateway.admin("/readyz")).filter(|ready| ready.status == 503));
    let answer = gateway.ask(&Request::chat());
    assert_local(&answer, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    let found = gateway.ended(&answer.id());
    assert_ended(&found, "no_target", Some("gateway"), 503);
    assert_eq!((found.text_at("/decision/target"), found.list("/attempts").len()), (None, 0));
    assert_eq!(found.text_at("/request/model"), Some("llama-3.1-8b"), "it was read all the same");
    assert_eq!(found.text_at("/outcome/error"), Some("every target is unhealthy: 2 of 2"));
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn a_gateway_with_some_unhealthy_targets_is_ready_and_names_them() {
    let (good, bad) = (Sims::one(), Sims::refusing(1));
    let addresses = [good.addresses()[0], bad.addresses()[0]];
    let setup = Setup::before(&addresses).set("fleet.unhealthy_after", 1).set("fleet.probe_interval", "10ms");
    let gateway = setup.start();
    // A probe of the good one may be late once: then it is named, too, and not for long.
    let said = r#"{"ready":true,"warnings":["1 of 2 targets is unhealthy: t1"]}"#;
    until("it warns", || {
        let ready = gateway.admin("/readyz");
        (ready.status == 200 && ready.text == said).then_some(())
    });
}

#[test]
fn a_request_that_is_refused_for_what_it_is_says_why() {
    let upstream = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "reached");
        Then::Next
    });
    let setup = || Setup::before(&[upstream.address]).set("limits.body_bytes", "1KiB");
    let gateway = setup().start();
    // A body that comes at once may be late for so short a time, too.
    let impatient = setup().set("timeouts.request_body", "50ms").start();
    let chunked = |chunks: &str| {
        let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        format!("{head}{chunks}").into_bytes()
    };
    let growing = chunked(&format!("400\r\n{}\r\n1\r\n.\r\n0\r\n\r\n", ".".repeat(1024)));
    let half = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf".to_vec();
    let ask = |request: &Request| gateway.ask(request);
    let ask_bytes = |gateway: &Gateway, bytes: &[u8]| {
        let mut client = Client::to(gateway.data);
        client.send_bytes(bytes);
        let head = client.head();
        client.rest_of(head)
    };
    let rejected = |gateway: &Gateway, answer: &Answer, status: u16, why: &str| {
        assert_local(answer, status);
        assert!(answer.text().contains(why), "{}", answer.text());
        let found = gateway.ended(&answer.id());
        assert_ended(&found, "rejected", Some("client"), status);
        found
    };
    let ended = [
        (ask(&Request::get("/metrics")), 404, "routes.allow"),
        (ask(&Request::get("/v1/models/")), 404, "routes.allow"),
        (ask(&of_bytes(1025)), 413, "larger than 1024 bytes"),
        (ask_bytes(&gateway, &growing), 413, "larger than 1024 bytes"),
        (ask_bytes(&gateway, &chunked("no number\r\n")), 400, "not framed"),
    ]
    .map(|(answer, status, why)| rejected(&gateway, &answer, status, why));
    let late = rejected(&impatient, &ask_bytes(&impatient, &half), 408, "not complete within 0.05 s");
    impatient.stop().has_exactly(&[late]);
    assert_eq!(upstream.received().len(), 0, "nothing of it reached the target");
    assert_eq!(ask(&of_bytes(1024)).text(), "reached", "the limit itself is allowed");
    let stopped = gateway.stop();
    let log = stopped.log();
    assert_eq!(log.len(), ended.len() + 1);
    for found in ended {
        let id = found.text_at("/id").expect("a snapshot has an ID");
        assert_eq!(log[id], [found.document()]);
    }
}

#[test]
fn one_request_more_than_may_be_in_flight_is_overloaded() {
    let word = Word::new();
    let finish = word.clone();
    let upstream = Upstream::start(move |exchange| {
        word.wait();
        exchange.answer("200 OK", "", "late");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).set("limits.in_flight", 1).start();
    let mut first = Client::to(gateway.data);
    first.send(&Request::chat());
    until("the first is at the target", || upstream.received().pop());
    let second = gateway.ask(&Request::chat());
    assert_local(&second, 503);
    assert_eq!(second.header("retry-after"), Some("1"));
    finish.give();
    let head = first.head();
    let first = first.rest_of(head);
    assert_eq!((first.status, first.text()), (200, "late"));
    let (first, second) = (gateway.ended(&first.id()), gateway.ended(&second.id()));
    assert_ended(&first, "completed", None, 200);
    assert_ended(&second, "overloaded", Some("gateway"), 503);
    gateway.stop().has_exactly(&[first, second]);
}

#[test]
fn a_stream_that_outlasts_the_gateway_was_ended_by_its_shutdown() {
    let upstream = Upstream::start(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun");
        exchange.is_left();
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).set("timeouts.shutdown_grace", "50ms").start();
    let mut client = Client::to(gateway.data);
    client.send(&Request::stream(9));
    let head = client.head();
    let id = id_of(&head);
    assert_eq!(client.piece(), Ok(b"begun".to_vec()));
    let stopped = gateway.stop();
    assert_eq!(client.piece(), Err(End::BrokenOff), "it is cut short, and the client can see it");

    let gateway = Setup::in_dir(stopped.dir, &[upstream.address]).start();
    let found = gateway.stored(&id);
    assert_ended(&found, "shutdown", Some("gateway"), 200);
    assert_eq!(found.at("/outcome/response_bytes"), 5);
    assert_eq!([found.document()], *gateway.logged(&id));
}

//! Every ending that a client or a target brings about: one record, the right name, the right blame.

use std::sync::mpsc;

use snapgate::demo::sim::{FAULT_HEADER, SimSettings};

use super::assert_ended;
use crate::gateway::client::id_of;
use crate::gateway::{Answer, Client, End, Gateway, PATIENCE, Request, Setup, Sims, Then, Upstream, until};

/// A head of a stream and its first event.
const FIRST_EVENT: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                           12\r\ndata: {\"id\":\"a\"}\n\n\r\n";

/// The answer is the gateway's own: OpenAI's form, and the ID in its message and in its head.
#[track_caller]
pub(super) fn assert_local(answer: &Answer, status: u16) {
    let id = answer.id();
    assert_eq!((answer.status, answer.end), (status, End::Clean), "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-request-id"), Some(&*id));
    assert_eq!(answer.header("target-pod"), None, "no target has answered");
    let error: serde_json::Value = serde_json::from_slice(&answer.body).expect("an error is JSON");
    let message = error["error"]["message"].as_str().expect("an error has a message");
    assert!(message.ends_with(&format!(" (snapshot {id})")), "{message}");
    let kind = if (400..500).contains(&status) { "invalid_request_error" } else { "server_error" };
    assert_eq!((&error["error"]["type"], &error["error"]["code"]), (&kind.into(), &status.into()));
    assert_eq!(error["error"]["param"], serde_json::Value::Null);
}

/// Asks with a fault, and answers the answer.
fn with_fault(gateway: &Gateway, fault: &str) -> Answer {
    gateway.ask(&Request::stream(8).with(FAULT_HEADER, fault))
}

#[test]
fn an_answer_that_came_whole_is_completed_and_blamed_by_its_status() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let unknown_model = Request::post("/v1/completions", r#"{"model":"nobody's","prompt":"hello"}"#);
    let ended = [
        (Request::stream(3), 200, None),
        (Request::chat(), 200, None),
        (Request::get("/v1/models"), 200, None),
        (unknown_model, 404, Some("client")),
        (Request::chat().with(FAULT_HEADER, "error=500"), 500, Some("target")),
    ]
    .map(|(request, status, fault)| {
        let answer = gateway.ask(&request);
        assert_eq!((answer.status, answer.end), (status, End::Clean), "{}", answer.text());
        let found = gateway.ended(&answer.id());
        assert_ended(&found, "completed", fault, status);
        assert_eq!(found.at("/outcome/response_bytes"), answer.body.len());
        found
    });
    gateway.stop().has_exactly(&ended);
}

#[test]
fn a_client_that_leaves_before_the_head_takes_the_targets_connection_with_it() {
    let (told, asked) = mpsc::channel();
    let (tell, left) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        told.send(exchange.request.head.header("x-request-id").map(str::to_owned)).expect("the test listens");
        tell.send(exchange.is_left()).expect("the test listens");
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    client.send(&Request::stream(3));
    let id = asked.recv_timeout(PATIENCE).expect("the request arrives").expect("it has the snapshot ID");
    assert_eq!(gateway.lookup(&id).text_at("/phase"), Some("in_flight"));
    drop(client);
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true), "the target's connection is closed");
    let found = gateway.ended(&id);
    assert_ended(&found, "client_disconnected", Some("client"), 499);
    assert_eq!(found.at("/outcome/response_bytes"), 0);
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn a_client_that_leaves_in_mid_stream_takes_the_targets_connection_with_it() {
    let (tell, left) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        exchange.send(FIRST_EVENT);
        tell.send(exchange.is_left()).expect("the test listens");
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    client.send(&Request::stream(3));
    let id = id_of(&client.head());
    let first = client.piece().expect("the first event comes at once");
    drop(client);
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true), "the target's connection is closed");
    let found = gateway.ended(&id);
    assert_ended(&found, "client_disconnected", Some("client"), 200);
    assert_eq!(found.at("/outcome/response_bytes"), first.len());
    assert_eq!(found.at("/outcome/events"), 1);
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn a_client_that_leaves_while_it_sends_has_left() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let mut client = Client::to(gateway.data);
    client.send_bytes(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-request-id: half-sent\r\ncontent-length: 100\r\n\r\n{",
    );
    drop(client);
    let listed = until("the request has ended", || Some(gateway.lookup("half-sent")).filter(|it| it.status == 200));
    let found = gateway.ended(listed.text_at("/matches/0/id").expect("a match has an ID"));
    assert_ended(&found, "client_disconnected", Some("client"), 499);
    assert_eq!(found.list("/attempts").len(), 0, "no target was asked");
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn a_target_that_breaks_the_connection_before_its_head_is_reset() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let answer = with_fault(&gateway, "reset");
    assert_local(&answer, 502);
    let found = gateway.ended(&answer.id());
    assert_ended(&found, "upstream_reset", Some("target"), 502);
    assert_eq!(found.list("/attempts").len(), 1, "a request that was sent is never sent again");
    assert!(found.text_at("/attempts/0/error").is_some(), "{}", found.text);
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn a_target_that_breaks_the_connection_in_mid_stream_is_reset() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let answer = with_fault(&gateway, "reset-after=3");
    assert_eq!((answer.status, answer.end, answer.events().len()), (200, End::BrokenOff, 3));
    let found = gateway.ended(&answer.id());
    assert_ended(&found, "upstream_reset", Some("target"), 200);
    assert_eq!(found.at("/outcome/events"), 3);
    assert_eq!(found.at("/outcome/response_bytes"), answer.body.len());
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn targets_that_all_refuse_to_be_connected_to_are_each_an_attempt() {
    let sims = Sims::refusing(2);
    let gateway = Setup::before(sims.addresses()).start();
    let answer = gateway.ask(&Request::chat());
    assert_local(&answer, 502);
    let found = gateway.ended(&answer.id());
    assert_ended(&found, "upstream_reset", Some("target"), 502);
    assert_eq!(found.at("/outcome/attempt_count"), 2);
    for attempt in found.list("/attempts") {
        let error = attempt["error"].as_str().expect("an attempt that failed says why");
        assert!(error.starts_with("connect: "), "{error}");
    }
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn a_target_that_does_not_answer_in_time_has_timed_out() {
    let sims = Sims::start([SimSettings::instant()]);
    let gateway = Setup::before(sims.addresses()).set("timeouts.response_head", "50ms").start();
    let answer = with_fault(&gateway, "hang");
    assert_local(&answer, 504);
    let found = gateway.ended(&answer.id());
    assert_ended(&found, "upstream_timeout", Some("target"), 504);
    assert_eq!(found.text_at("/attempts/0/error"), Some("no answer within 50 ms"));
    gateway.stop().has_exactly(&[found]);
}

#[test]
fn a_target_that_falls_silent_has_timed_out() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).set("timeouts.response_idle", "50ms").start();
    let answer = with_fault(&gateway, "hang-after=2");
    assert_eq!((answer.status, answer.end, answer.events().len()), (200, End::BrokenOff, 2));
    let found = gateway.ended(&answer.id());
    assert_ended(&found, "upstream_timeout", Some("target"), 200);
    assert_eq!(found.text_at("/outcome/error"), Some("the target sent nothing for 50 ms"));
    assert_eq!(found.at("/outcome/response_bytes"), answer.body.len());
    gateway.stop().has_exactly(&[found]);
}

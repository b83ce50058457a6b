//! From the choice to the head of an answer: connect, send, wait; and, within a budget, try again elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, EXPECT, HOST};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, request};
use http_body_util::Full;
use hyper::body::Incoming;

use super::identify::{TARGET_POD, TRACEPARENT, X_REQUEST_ID, X_SNAPSHOT_ID, pass_on_tracestate};
use super::load_reports;
use super::pool::Lease;
use super::recorder::Recorder;
use super::respond::{Refusal, strip_hop_by_hop};
use super::steer::Steer;
use super::stream::with_causes;
use super::upgrade;
use super::{Settings, Thread, UpstreamRequestId};
use crate::snapshot::{Ending, Record, SpanId, Target};

/// A larger body is let go as soon as it is written, so that it takes no room while its answer is awaited: after that it
/// cannot be sent again.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// What a client is told when no connection served.
const UNCONNECTED: &str = "no target could be connected to: try again, and tell the operator if it stays so";

/// The head of a target's answer, and the connection that its body comes on.
type Answered = (Response<Incoming>, Lease);

/// Why an attempt failed.
struct Failure {
    refusal: Refusal,
    /// Not a byte of it was written: another connection may have it.
    unsent: Option<Box<Request<Full<Bytes>>>>,
    /// The target may still be at work.
    timed_out: bool,
}

/// Gets the head of an answer from the chosen target, or, as far as settings and budget allow, from one chosen anew
/// whenever a target fails before its answer begins. `again` says how to choose; without it there is one try.
pub(super) async fn send(
    thread: &Thread,
    recorder: &mut Recorder,
    record: &Record,
    again: Option<Steer<'static>>,
    mut head: request::Parts,
    body: Bytes,
) -> Result<Answered, Refusal> {
    let Settings { request_id, retries_max, retry_share, retry_timeouts, .. } = recorder.current().settings;
    let decision = record.issued.decision.as_ref().expect("a request is forwarded after its decision");
    thread.retries.earn(retry_share);
    outgoing(&mut head, recorder, request_id);
    let clients = head.headers.get(AUTHORIZATION).cloned();
    let (mut target, mut retry) = (Arc::clone(decision.target()), None);
    let is_small = body.len() <= KEPT_BYTES_MAX;
    let mut request = Request::from_parts(head, Full::new(body));
    for number in 0.. {
        recorder.attempt(&target, retry.take());
        address(request.headers_mut(), recorder, number, &target);
        authorize(request.headers_mut(), thread, recorder, &target, clients.as_ref());
        let again = again.filter(|_| number < retries_max);
        let kept = (is_small && again.is_some()).then(|| request.clone());
        let Failure { refusal, timed_out, unsent } = match exchange(thread, recorder, &target, request).await {
            Ok(answered) => return Ok(answered),
            Err(failure) => failure,
        };
        let (id, error) = (recorder.id(), refusal.detail.as_deref());
        tracing::debug!(snapshot_id = %id, pod = &*target.name, number, error, "attempt failed");
        if let Some(attempt) = recorder.last_attempt() {
            attempt.error.clone_from(&refusal.detail);
        }
        let Some(steer) = again.filter(|_| !timed_out || retry_timeouts) else { return Err(refusal) };
        match kept.or_else(|| unsent.map(|unsent| *unsent)) {
            Some(whole) => request = whole,
            None => return Err(refusal),
        }
        let Some(elsewhere) = recorder.elsewhere(&steer) else { return Err(refusal) };
        if !thread.retries.spend() {
            thread.gateway.metrics.retries_denied.inc();
            return Err(refusal);
        }
        let (next, why) = recorder.go(elsewhere);
        (target, retry) = (next, Some(why));
        thread.gateway.metrics.retries.inc();
    }
    unreachable!("the last try returns")
}

/// One attempt: on a pooled connection, and if that turns out to be closed, on a new one.
async fn exchange(
    thread: &Thread,
    recorder: &mut Recorder,
    target: &Target,
    mut request: Request<Full<Bytes>>,
) -> Result<Answered, Failure> {
    let limit = recorder.current().settings.head_timeout;
    if let Some(lease) = thread.pool.take(target.slot) {
        set_connect_us(recorder, 0);
        match ask(lease, request, limit).await {
            Err(Failure { unsent: Some(unsent), .. }) => request = *unsent,
            answered => return answered,
        }
    }
    match connect(thread, recorder, target).await {
        Ok(lease) => ask(lease, request, limit).await,
        Err(refusal) => Err(Failure { refusal, unsent: Some(Box::new(request)), timed_out: false }),
    }
}

async fn connect(thread: &Thread, recorder: &mut Recorder, target: &Target) -> Result<Lease, Refusal> {
    let began = Instant::now();
    let limit = recorder.current().settings.connect_timeout;
    let connected = thread.pool.connect(target, limit).await;
    set_connect_us(recorder, began.elapsed().as_micros() as u64);
    connected.map_err(|error| Refusal::failed(Ending::UpstreamReset, UNCONNECTED, Some(error.to_string().into())))
}

fn set_connect_us(recorder: &mut Recorder, connect_us: u64) {
    if let Some(attempt) = recorder.last_attempt() {
        attempt.connect_us = Some(connect_us);
    }
}

/// Sends the request and waits for the head of the answer.
async fn ask(mut lease: Lease, request: Request<Full<Bytes>>, limit: Duration) -> Result<Answered, Failure> {
    let Ok(sent) = tokio::time::timeout(limit, lease.send(request)).await else {
        let detail = format!("no answer within {} ms", limit.as_millis());
        let message = "the target did not begin to answer in time";
        let refusal = Refusal::failed(Ending::UpstreamTimeout, message, Some(detail.into()));
        return Err(Failure { refusal, unsent: None, timed_out: true });
    };
    sent.map(|response| (response, lease)).map_err(|mut error| {
        let unsent = error.take_message().map(Box::new);
        let broken = "the target broke the connection before it answered";
        let message = if unsent.is_some() { UNCONNECTED } else { broken };
        let refusal = Refusal::failed(Ending::UpstreamReset, message, Some(with_causes(error.error()).into()));
        Failure { refusal, unsent, timed_out: false }
    })
}

/// Turns the client's head into the gateway's, but for what differs by attempt.
fn outgoing(head: &mut request::Parts, recorder: &Recorder, request_id: UpstreamRequestId) {
    let switches = upgrade::is_asked(head);
    let headers = &mut head.headers;
    strip_hop_by_hop(headers);
    if switches {
        upgrade::ask(headers);
    }
    pass_on_tracestate(headers, &recorder.trace());
    for name in [EXPECT, CONTENT_LENGTH, X_SNAPSHOT_ID, TARGET_POD, load_reports::FORMAT] {
        headers.remove(name);
    }
    match request_id {
        UpstreamRequestId::Snapshot => {
            let id = HeaderValue::from_str(recorder.id().to_hex().as_str()).expect("hex digits are a header value");
            headers.insert(X_REQUEST_ID, id);
        }
        UpstreamRequestId::Client => {}
        UpstreamRequestId::Off => {
            headers.remove(X_REQUEST_ID);
        }
    }
    head.version = http::Version::HTTP_11;
    head.extensions.clear();
    // The origin's form: the target is the connection's other end, whatever host the client named.
    if let Some(path) = head.uri.path_and_query().cloned() {
        head.uri = Uri::from(path);
    }
}

/// What a target gets as `authorization`: its own, else that for all targets, else what the client sent. Nobody gets what is
/// another target's, whatever the try before put there. The settings are those that the target came with.
fn authorize(
    headers: &mut HeaderMap,
    thread: &Thread,
    recorder: &Recorder,
    target: &Target,
    clients: Option<&HeaderValue>,
) {
    let own = recorder.current().settings.authorization_of.get(&*target.name);
    let credential = own.or(thread.gateway.authorization.as_ref());
    match (credential, clients) {
        (Some(credential), _) => drop(headers.insert(AUTHORIZATION, credential.value())),
        (None, Some(clients)) => drop(headers.insert(AUTHORIZATION, clients.clone())),
        (None, None) => drop(headers.remove(AUTHORIZATION)),
    }
}

/// What differs by attempt: whom it is for, which span it is, and whether it asks for a load report.
fn address(headers: &mut HeaderMap, recorder: &Recorder, number: usize, target: &Arc<Target>) {
    if let Ok(host) = HeaderValue::from_str(target.authority()) {
        headers.insert(HOST, host);
    }
    let span = SpanId::of_attempt(recorder.id(), number);
    let traceparent = recorder.trace().traceparent(span);
    headers.insert(TRACEPARENT, HeaderValue::from_str(&traceparent).expect("hex digits are a header value"));
    match recorder.current().settings.load_reports.asked_of(target) {
        Some(format) => drop(headers.insert(load_reports::FORMAT, load_reports::format_value(format))),
        // Only an attempt at another target can have set it.
        None if number > 0 => drop(headers.remove(load_reports::FORMAT)),
        None => {}
    }
}

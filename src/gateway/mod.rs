//! The data path. Nothing on it blocks, locks for long, allocates without need or waits for the pipeline.
//!
//! ```text
//! serve ─▶ identify ─▶ receive ─▶ choose ─▶ forward ─▶ stream ─▶ finish
//!              └────────────── recorder: one guard, one record ─────┘──try_send──▶ pipeline
//! ```
//!
//! `Thread::handle` shows the life of a request from top to bottom.

mod answer_so_far;
mod connection;
mod crowd;
mod flushes;
mod forward;
mod frames;
mod framing;
mod gaps;
pub mod identify;
mod linger;
mod load_reports;
mod phase;
mod pool;
mod preamble;
mod receive;
pub mod recorder;
mod request_peek;
mod respond;
mod retries;
mod routes;
pub mod scan;
mod serve;
mod silence;
mod steer;
mod stream;
mod streams;
#[cfg(test)]
mod tests;
mod tunnel;
mod upgrade;

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, request};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
pub use load_reports::{LoadReports, ToClients};
pub use request_peek::Prompt;
pub use routes::Routes;
pub use serve::{Hurry, Server, start};
pub use steer::{ChoiceSettings, Steer, Undecided};

use crate::clock::Clock;
use crate::fleet::{Change, Fleet, TargetSettings};
use crate::ledger::Ledger;
use crate::pipeline::Intake;
use crate::snapshot::{Ending, ReportFormat, ReportPhase, Run, Sampling, SnapshotId};
use crate::telemetry::log::tell_of_bug;
use crate::telemetry::{Limit, Metrics};
use crate::tenant::Tenants;
use crate::tls::{Acceptor, Connector, Credential, Credentials, Stream};
use flushes::Flushes;
use framing::HeadMax;
use identify::{Mint, Wanted};
use pool::{Lease, Pool};
use receive::Buffers;
use recorder::Recorder;
use respond::{Body, Refusal};
use retries::RetryBudget;
use steer::Steering;
use stream::RecordedBody;
use tunnel::Tunnel;
use upgrade::Switch;

/// What the engine is told as `x-request-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamRequestId {
    /// The snapshot ID: vLLM then names its answer after it, and logs it.
    Snapshot,
    /// Whatever the client sent.
    Client,
    /// Nothing.
    Off,
}

/// The data path's settings. Each bound is explained in the example configuration. [`Gateway::reload`] changes them, except
/// those that say otherwise.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How targets are chosen.
    pub choice: ChoiceSettings,
    /// Paths that are forwarded.
    pub routes: Routes,
    /// Data threads; each has its own connections. As they were at the start.
    pub threads: usize,
    /// Requests between accept and finish.
    pub in_flight_max: usize,
    /// Client connections.
    pub connections_max: usize,
    /// Those of one address; 0 for any.
    pub connections_per_address_max: usize,
    /// One request's body.
    pub body_bytes_max: usize,
    /// All requests' bodies together.
    pub buffered_bytes_max: usize,
    /// A request's head; at least 8 KiB. As it was at the start.
    pub head_bytes_max: usize,
    /// Header lines in a request's head. As it was at the start.
    pub headers_max: usize,
    /// For a client's request head, counted from the last answer on a kept connection. For connections opened from then on.
    pub request_head_timeout: Duration,
    /// For a client's body.
    pub request_body_timeout: Duration,
    /// For one connect.
    pub connect_timeout: Duration,
    /// For the head of a target's answer.
    pub head_timeout: Duration,
    /// For the next piece of a target's answer.
    pub silence_max: Duration,
    /// For a WebSocket in which nothing moves either way.
    pub websocket_idle: Duration,
    /// For a client to take more of what is sent to it. For connections opened from then on.
    pub client_stall: Duration,
    /// How long an upstream connection is kept idle; less than the engine keeps it, or it breaks in use.
    /// As it was at the start.
    pub pool_idle_timeout: Duration,
    /// Idle upstream connections kept per target and data thread. As it was at the start.
    pub pool_idle_per_target: usize,
    /// How often a request may be tried again, at other targets.
    pub retries_max: usize,
    /// Which share of the requests may, 0..1.
    pub retry_share: f64,
    /// Whether a target that did not answer in time is reason enough.
    pub retry_timeouts: bool,
    /// What single targets get as `authorization`, in place of what all others get; by their names.
    pub authorization_of: Credentials,
    /// Whose scripts may read the gateway's own answers: origins, or `*`.
    pub cors_origins: Vec<HeaderValue>,
    /// What the engine is told as `x-request-id`.
    pub request_id: UpstreamRequestId,
    /// Request headers that become labels.
    pub label_headers: Vec<HeaderName>,
    /// Which traces are gone on with, sampled and exported.
    pub sampling: Sampling,
    /// What is done with load reports.
    pub load_reports: LoadReports,
}

/// What the data path needs from the rest of the program.
#[derive(Debug)]
pub struct Parts {
    /// The time.
    pub clock: Arc<Clock>,
    /// This process.
    pub run: Arc<Run>,
    /// Tells tenants from each other; hashes of prompts and sessions are keyed by the same secret.
    pub tenants: Arc<Tenants>,
    /// What is known of the targets.
    pub fleet: Arc<Fleet>,
    /// Where an ID resolves until it is stored.
    pub ledger: Arc<Ledger>,
    /// Where finished records go.
    pub intake: Intake,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// Makes TLS of the clients' connections; `None` leaves them in plain text.
    pub acceptor: Option<Arc<Acceptor>>,
    /// Makes TLS of connections to targets; `None` if none is spoken to in TLS.
    pub connector: Option<Arc<Connector>>,
    /// What targets get as `authorization` in place of the client's; `None` leaves them that.
    pub authorization: Option<Arc<Credential>>,
}

/// What all data threads share.
#[derive(Debug)]
pub struct Gateway {
    current: ArcSwap<Current>,
    tenants: Arc<Tenants>,
    clock: Arc<Clock>,
    mint: Mint,
    fleet: Arc<Fleet>,
    ledger: Arc<Ledger>,
    intake: Intake,
    metrics: Arc<Metrics>,
    acceptor: Option<Arc<Acceptor>>,
    connector: Option<Arc<Connector>>,
    authorization: Option<Arc<Credential>>,
    retiring: AtomicBool,
    cut_short: AtomicBool,
    #[cfg(test)]
    trap: tests::Armed,
}

/// What a reload replaces. A request takes it when it is accepted, and again with the view from which its target is chosen,
/// so that its choice, its target and its record are of one configuration.
#[derive(Debug)]
struct Current {
    settings: Settings,
    /// Names the configuration.
    run: Arc<Run>,
    wanted: Wanted,
    steering: Steering,
    buffers: Buffers,
}

impl Current {
    fn new(settings: Settings, run: Arc<Run>, tenants: &Arc<Tenants>, buffers: &Buffers) -> Self {
        Self {
            run,
            wanted: Wanted { labels: settings.label_headers.clone(), tenants: Arc::clone(tenants) },
            steering: Steering::new(settings.choice.clone(), tenants.key()),
            buffers: buffers.bounded(settings.buffered_bytes_max, settings.body_bytes_max),
            settings,
        }
    }
}

impl Gateway {
    /// Builds; starts nothing.
    pub fn new(settings: Settings, parts: Parts) -> Arc<Self> {
        let Parts { clock, run, tenants, fleet, ledger, intake, metrics, acceptor, connector, authorization } = parts;
        let (mint, buffers) = (Mint::new(Arc::clone(&clock), run.tag), Buffers::new(&metrics));
        let current = Arc::new(Current::new(settings, run, &tenants, &buffers));
        fleet.attach(Some(Arc::clone(&current) as _));
        Arc::new(Self {
            mint,
            current: ArcSwap::from(current),
            tenants,
            retiring: AtomicBool::new(false),
            cut_short: AtomicBool::new(false),
            #[cfg(test)]
            trap: tests::Armed::default(),
            clock,
            fleet,
            ledger,
            intake,
            metrics,
            acceptor,
            connector,
            authorization,
        })
    }

    /// Requests that are decided from now on have these settings and targets, and belong to `run`, which names their
    /// configuration. There is no moment at which one meets the settings of one configuration and the targets of another.
    pub fn reload(&self, settings: Settings, run: Arc<Run>, targets: &[TargetSettings]) -> Change {
        let current = Arc::new(Current::new(settings, run, &self.tenants, &self.current.load().buffers));
        let change = self.fleet.set_targets(targets, Some(Arc::clone(&current) as _));
        self.current.store(current);
        change
    }

    /// From here on every answer is the last one of its connection.
    fn retire(&self) {
        self.retiring.store(true, Relaxed);
    }

    /// From here on a request that is dropped was ended by the shutdown.
    fn cut_short(&self) {
        self.cut_short.store(true, Relaxed);
    }

    fn is_cut_short(&self) -> bool {
        self.cut_short.load(Relaxed)
    }
}

/// One data thread's part: what is shared, and its own connections. Its requests share it by a count of its own, so that
/// threads do not contend for one.
#[derive(Debug)]
struct Thread {
    gateway: Arc<Gateway>,
    pool: Arc<Pool>,
    retries: RetryBudget,
}

impl Thread {
    /// The life of a request.
    async fn handle(self: Arc<Self>, request: Request<Incoming>, flushes: Flushes) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        if head.version == Version::HTTP_2 {
            framing::join_cookies(&mut head.headers);
        }
        let version = head.version;
        let mut reading = Reading { unread: Some(body), had_trailers: false };
        let client_request_id = identify::client_request_id(&head.headers).map(str::to_owned);
        let client_request_id = client_request_id.as_deref();
        let mut recorder = Recorder::begin(&self.gateway, Instant::now());
        let id = recorder.id();
        let origin = respond::allowed_origin(&recorder.current().settings.cors_origins, &head.headers);
        let wish = recorder.current().settings.load_reports.wish(&head, &self.gateway.metrics);
        let answered = caught(self.answer(&mut recorder, head, &mut reading)).await;
        let mut response = match answered.unwrap_or_else(|| Err(panicked(id))) {
            Ok(answer) => passed_on(answer, recorder, client_request_id, wish, &flushes),
            Err(refusal) => {
                let mut response = respond::refused(id, client_request_id, &refusal);
                if let Some(origin) = origin {
                    respond::allow(&mut response, origin);
                }
                // After a request that is not understood, nothing on its connection is.
                if refusal.malformed || reading.unread.is_some_and(|body| !body.is_end_stream()) {
                    respond::close(&mut response, version);
                    flushes.linger();
                }
                recorder.finish(refusal.ending, Some(refusal.status.as_u16()), refusal.detail);
                flushes.answered();
                response
            }
        };
        if (reading.had_trailers || self.gateway.retiring.load(Relaxed))
            && response.status() != StatusCode::SWITCHING_PROTOCOLS
        {
            respond::close(&mut response, version);
        }
        response
    }

    /// The stages, until the head of an answer or a refusal. A body that was read whole is taken out of `reading`.
    async fn answer(
        &self,
        recorder: &mut Recorder,
        head: request::Parts,
        reading: &mut Reading,
    ) -> Result<Answer, Refusal> {
        recorder.identify(&head);
        let current = recorder.current();
        let Settings { body_bytes_max, request_body_timeout, .. } = current.settings;
        let head_max = HeadMax::of(&current.settings);
        self.admit(&current.settings, &head)?;
        #[cfg(test)]
        self.gateway.spring(tests::Trap::Receive);
        let mut body = Bytes::new();
        if let Some(incoming) = &mut reading.unread {
            let received = receive::body(incoming, body_bytes_max, request_body_timeout, &current.buffers).await?;
            *reading = Reading { unread: None, had_trailers: received.had_trailers };
            body = received.bytes;
        }
        framing::body(&head.method, &body)?;
        let asks_upgrade = upgrade::is_asked(&head);
        let mut peek = request_peek::of(&head.headers, &body);
        if asks_upgrade {
            peek.model = head.uri.query().and_then(request_peek::model_in_query);
        }
        let steer = recorder.steer(&head.headers, peek.model.as_deref(), peek.prompt);
        recorder.body_read(body.len(), peek);
        let record = recorder.decide(&steer).map_err(|undecided| undecided.refusal(recorder.model()))?;
        #[cfg(test)]
        self.gateway.spring(tests::Trap::Forward);
        let (mut response, lease) = forward::send(self, recorder, &record, steer.again(), head, body).await?;
        let switch = upgrade::of_answer(asks_upgrade, response.status(), response.headers());
        if switch == Switch::Wrong {
            let detail = "101 to a request that asked for no such upgrade".into();
            let message = "the target switched protocols without being asked";
            return Err(Refusal::failed(Ending::UpstreamReset, message, Some(detail)));
        }
        framing::answer(response.headers_mut(), head_max)?;
        let passing = match switch {
            Switch::Agreed => Passing::Tunnel(lease.into_stream().ok_or_else(lost_in_switch)?),
            _ => Passing::Body(lease),
        };
        let target = recorder.last_attempt().map(|attempt| attempt.target.name.clone()).unwrap_or_default();
        Ok(Answer { response, passing, target })
    }

    /// Whether the request may go any further.
    fn admit(&self, settings: &Settings, head: &request::Parts) -> Result<(), Refusal> {
        // This request is counted already. The gauge that is shown is the one that decides.
        if self.gateway.metrics.in_flight.get() > settings.in_flight_max as i64 {
            self.gateway.metrics.reached.note(Limit::InFlight);
            let message = "the gateway is at its limit of requests in flight: try again soon";
            return Err(Refusal::failed(Ending::Overloaded, message, Some("limits.in_flight is reached".into())));
        }
        if matches!(head.method, Method::CONNECT | Method::TRACE) {
            let message = "CONNECT and TRACE are not served here: this is no tunnel, and no echo of credentials";
            return Err(Refusal::rejected(StatusCode::METHOD_NOT_ALLOWED, message));
        }
        framing::request(head, HeadMax::of(settings))?;
        settings.routes.admit(head.uri.path()).map_err(|wrong| {
            let message = "this path is not served here: it is not in routes.allow";
            wrong.unwrap_or_else(|| Refusal::rejected(StatusCode::NOT_FOUND, message))
        })
    }
}

/// How far a request's body was read.
struct Reading {
    /// Until it was read whole.
    unread: Option<Incoming>,
    /// Then nothing more is read on a connection in HTTP/1.1. hyper looks for the empty line that ends trailers with CR and LF,
    /// others take a bare LF for it: what they read as the next request was swallowed, and its answer would be another's.
    had_trailers: bool,
}

/// A target's answer up to its head.
struct Answer {
    response: Response<Incoming>,
    passing: Passing,
    target: Box<str>,
}

/// What comes after the head.
enum Passing {
    /// The answer's body, on this connection.
    Body(Lease),
    /// No more HTTP: the bare connection, and what has come on it.
    Tunnel((Stream, Bytes)),
}

/// A target's answer as the client gets it. The record is finished by what passes after the head.
fn passed_on(
    answer: Answer,
    mut recorder: Recorder,
    client_request_id: Option<&str>,
    wish: Option<ReportFormat>,
    flushes: &Flushes,
) -> Response<Body> {
    let (mut head, body) = answer.response.into_parts();
    recorder.head(head.status, &head.headers);
    let required = upgrade::required(&head);
    if let Some(taken) = respond::head(&mut head, recorder.id(), client_request_id, &answer.target) {
        load_reports::received(&mut recorder, &taken, ReportPhase::ResponseHead, &mut head.headers);
    }
    if let Some(wish) = wish {
        load_reports::tell(&recorder, wish, &mut head.headers);
    }
    upgrade::require(&mut head, required);
    match answer.passing {
        Passing::Body(lease) => {
            let silence_max = recorder.current().settings.silence_max;
            let body = RecordedBody::new(body, recorder, lease, silence_max, flushes.clone());
            Response::from_parts(head, Body::Upstream(Box::new(body)))
        }
        Passing::Tunnel((stream, early)) => {
            upgrade::agree(&mut head);
            flushes.switch(Tunnel::new(stream, early, recorder));
            Response::from_parts(head, Body::Local(Full::default()))
        }
    }
}

fn lost_in_switch() -> Refusal {
    let message = "the target broke the connection when it was to switch protocols";
    Refusal::failed(Ending::UpstreamReset, message, Some("the connection ended with the head of a 101".into()))
}

/// Runs the stages. A bug in one of them costs one request its answer, which says so, and nothing else.
async fn caught<T>(stages: impl Future<Output = T>) -> Option<T> {
    let mut stages = pin!(stages);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| stages.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// Why a request has ended that met a bug.
const PANICKED: &str = "the gateway panicked: its log says where";

fn panicked(id: SnapshotId) -> Refusal {
    tell_of_bug!(id, "a bug in the gateway ended a request");
    let message = "the gateway failed, which is a bug: please report it";
    Refusal::failed(Ending::Internal, message, Some(PANICKED.into()))
}

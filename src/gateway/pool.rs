//! Connections to the targets: one pool per data thread, so that nobody waits for another thread's lock.
//!
//! A request holds a [`Lease`] and drives its connection itself: there is no task between the target and the client, so
//! no wake-up from one to the other, and what has come together from the target goes out together. Given back after a
//! whole answer, the connection serves again; dropped at any other moment, it is closed at once, which is how a client's
//! leaving reaches the engine.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::UPGRADE;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Settings;
use super::preamble::{Preamble, Preceded};
use crate::snapshot::Target;
use crate::tls::{Connector, Stream};

/// Idle connections that one sweep looks at, so that it never holds up requests for long.
const SWEPT_MAX: usize = 512;

/// The idle connections of one data thread.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Shelf>,
    idle_timeout: Duration,
    idle_per_target: usize,
    /// Of an answer, as of a request.
    head_bytes_max: usize,
    headers_max: usize,
    /// For targets that are spoken to in TLS.
    connector: Option<Arc<Connector>>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// By the target's slot; the last in use is at the back.
    slots: BTreeMap<u32, VecDeque<Idle>>,
    /// The slot at which the next sweep begins.
    unswept: u32,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

/// An open connection. Nothing moves on it but while it is driven.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    driven: Option<http1::Connection<TokioIo<Preceded>, Full<Bytes>>>,
    /// What may come before the head of an answer.
    preamble: Preamble,
    /// It has left HTTP, if its target has agreed to what it was asked: it is no longer driven.
    switches: Switches,
}

/// Whether a connection may leave HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switches {
    No,
    /// That was asked of its target.
    Asked,
    /// HTTP has ended on it.
    Ended,
}

impl Connection {
    /// Moves what can be moved, and has the task woken when there is more to move.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if self.switches != Switches::Ended
            && let Some(driven) = &mut self.driven
            && let Poll::Ready(ended) = Pin::new(driven).poll(cx)
        {
            if let Err(error) = &ended {
                tracing::debug!(%error, "upstream connection ended");
            }
            match (self.switches, ended) {
                (Switches::Asked, Ok(())) => self.switches = Switches::Ended,
                _ => self.driven = None,
            }
        }
    }

    /// Whether it can take a request: open as far as is known by now, and done with what it had.
    fn is_idle(&mut self) -> bool {
        // Whoever was asked to leave HTTP and did not is as good as any other.
        if self.switches == Switches::Asked {
            self.switches = Switches::No;
        }
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }
}

/// A connection in use by one request.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    slot: u32,
    connection: Box<Connection>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// Refused, unreachable, or the name does not resolve.
    Io(io::Error),
    /// Not within the configured time.
    Timeout(Duration),
    /// The transport came up and the protocol did not.
    Handshake(hyper::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "connect: {error}"),
            Self::Timeout(limit) => write!(f, "connect: no answer within {} ms", limit.as_millis()),
            Self::Handshake(error) => write!(f, "connect: {error}"),
        }
    }
}

impl Pool {
    pub(super) fn new(settings: &Settings, connector: Option<Arc<Connector>>) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::default(),
            idle_timeout: settings.pool_idle_timeout,
            idle_per_target: settings.pool_idle_per_target,
            head_bytes_max: settings.head_bytes_max,
            headers_max: settings.headers_max,
            connector,
        })
    }

    /// The most recently used idle connection to a target, if one is still good.
    pub(super) fn take(self: &Arc<Self>, slot: u32) -> Option<Lease> {
        let mut idle = self.locked();
        let connections = idle.slots.get_mut(&slot)?;
        while let Some(Idle { mut connection, since }) = connections.pop_back() {
            if since.elapsed() < self.idle_timeout && connection.is_idle() {
                return Some(Lease { pool: Arc::clone(self), slot, connection });
            }
        }
        None
    }

    /// A new connection to a target.
    pub(super) async fn connect(self: &Arc<Self>, target: &Target, limit: Duration) -> Result<Lease, ConnectError> {
        let stream = match tokio::time::timeout(limit, self.dial(target)).await {
            Ok(connected) => connected.map_err(ConnectError::Io)?,
            Err(_) => return Err(ConnectError::Timeout(limit)),
        };
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.head_bytes_max).max_headers(self.headers_max);
        let preamble = Preamble::before_heads_of(self.head_bytes_max);
        let io = TokioIo::new(preamble.on(stream));
        let (sender, driven) = builder.handshake(io).await.map_err(ConnectError::Handshake)?;
        let connection = Box::new(Connection { sender, driven: Some(driven), preamble, switches: Switches::No });
        Ok(Lease { pool: Arc::clone(self), slot: target.slot, connection })
    }

    async fn dial(&self, target: &Target) -> io::Result<Stream> {
        let stream = TcpStream::connect(target.authority()).await?;
        // Small writes must not wait for each other's acknowledgement.
        stream.set_nodelay(true)?;
        if !target.is_tls() {
            return Ok(Stream::Plain(stream));
        }
        let connector = self.connector.as_ref().ok_or_else(|| io::Error::other("https is not set up here"))?;
        let host = target.authority().rsplit_once(':').map_or(target.authority(), |(host, _)| host);
        // In a box, because its state is large and other connections need none.
        Box::pin(connector.connect(host, stream)).await
    }

    /// Closes what has been idle for too long, was closed at the other end or leads to what is no target any more, slot by
    /// slot, a part of them at a time.
    pub(super) fn sweep(&self, is_target: impl Fn(u32) -> bool) {
        let mut idle = self.locked();
        let Shelf { slots, unswept } = &mut *idle;
        let mut looked_at = 0;
        let mut next = 0;
        for (&slot, connections) in slots.range_mut(*unswept..) {
            if looked_at >= SWEPT_MAX {
                next = slot;
                break;
            }
            looked_at += connections.len();
            let stays = is_target(slot);
            connections.retain_mut(|Idle { connection, since }| {
                stays && since.elapsed() < self.idle_timeout && connection.is_idle()
            });
        }
        *unswept = next;
        slots.retain(|_, connections| !connections.is_empty());
    }

    fn locked(&self) -> MutexGuard<'_, Shelf> {
        // A panic between two operations on a deque leaves a whole deque.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Sends the request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        if request.headers().contains_key(UPGRADE) {
            self.connection.switches = Switches::Asked;
        }
        let mut sent = pin!(self.connection.sender.try_send_request(request));
        others_first().await;
        self.connection.preamble.begin();
        let answered = poll_fn(|cx| {
            self.connection.drive(cx);
            // Only driving brings it on, so nobody has to be woken for it.
            sent.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await;
        self.connection.preamble.end();
        answered
    }

    /// The next piece of the answer's body: what has come already, or what driving the connection brings.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let mut unwoken = Context::from_waker(Waker::noop());
        let frame = Pin::new(&mut *body).poll_frame(&mut unwoken);
        if frame.is_ready() {
            return frame;
        }
        self.connection.drive(cx);
        Pin::new(body).poll_frame(&mut unwoken)
    }

    /// The bare connection after its target has agreed to leave HTTP, and what has come on it since; `None` if it is gone.
    pub(super) fn into_stream(self) -> Option<(Stream, Bytes)> {
        let Connection { driven, switches, .. } = *self.connection;
        let parts = driven.filter(|_| switches == Switches::Ended)?.into_parts();
        Some((parts.io.into_inner().into_stream(), parts.read_buf))
    }

    /// The answer was read whole: another request may have the connection.
    pub(super) fn give_back(self) {
        let Self { pool, slot, mut connection } = self;
        if pool.idle_per_target == 0 || !connection.is_idle() {
            return;
        }
        let mut idle = pool.locked();
        let connections = idle.slots.entry(slot).or_default();
        if connections.len() >= pool.idle_per_target {
            connections.pop_front();
        }
        connections.push_back(Idle { connection, since: Instant::now() });
    }
}

/// Lets the other tasks that are ready go first. All requests that have come are then read before the first is written,
/// and the writes come together, which wakes the other ends less often: where they share a machine, a quarter less CPU per
/// request at the pods and a tenth less here and at the clients, for one more poll.
async fn others_first() {
    let mut gone = false;
    poll_fn(|cx| {
        if gone {
            return Poll::Ready(());
        }
        gone = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

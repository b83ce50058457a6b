//! Connections to the targets: one pool per data thread, so that nobody waits for another thread's lock.
//!
//! A request holds a [`Lease`]. Given back after a whole answer, its connection serves again; dropped at any other
//! moment, it is closed at once, which is how a client's leaving reaches the engine.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::Settings;

/// The idle connections of one data thread.
#[derive(Debug)]
pub(super) struct Pool {
    /// By the target's slot.
    idle: Mutex<Vec<VecDeque<Idle>>>,
    idle_timeout: Duration,
    idle_per_target: usize,
    /// Of an answer, as of a request.
    head_bytes_max: usize,
    headers_max: usize,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// An open connection and the task that drives it.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: Driver,
}

/// Ends the task, and so the connection, when dropped.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection in use by one request.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    slot: u32,
    connection: Connection,
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
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::default(),
            idle_timeout: settings.pool_idle_timeout,
            idle_per_target: settings.pool_idle_per_target,
            head_bytes_max: settings.head_bytes_max,
            headers_max: settings.headers_max,
        })
    }

    /// The most recently used idle connection to a target, if one is still good.
    pub(super) fn take(self: &Arc<Self>, slot: u32) -> Option<Lease> {
        let mut idle = self.locked();
        let connections = idle.get_mut(slot as usize)?;
        while let Some(Idle { connection, since }) = connections.pop_back() {
            if connection.sender.is_ready() && since.elapsed() < self.idle_timeout {
                return Some(Lease { pool: Arc::clone(self), slot, connection });
            }
        }
        None
    }

    /// A new connection to a target.
    pub(super) async fn connect(
        self: &Arc<Self>,
        slot: u32,
        address: &str,
        limit: Duration,
    ) -> Result<Lease, ConnectError> {
        let stream = match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(ConnectError::Io)?,
            Err(_) => return Err(ConnectError::Timeout(limit)),
        };
        // Small writes must not wait for each other's acknowledgement.
        stream.set_nodelay(true).map_err(ConnectError::Io)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.head_bytes_max).max_headers(self.headers_max);
        let (sender, driven) = builder.handshake(TokioIo::new(stream)).await.map_err(ConnectError::Handshake)?;
        #[expect(clippy::disallowed_methods, reason = "owned by the Driver, which ends it")]
        let driver = tokio::spawn(async move {
            if let Err(error) = driven.await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        let connection = Connection { sender, _driver: Driver(driver) };
        Ok(Lease { pool: Arc::clone(self), slot, connection })
    }

    fn locked(&self) -> MutexGuard<'_, Vec<VecDeque<Idle>>> {
        // A panic between two operations on a deque leaves a whole deque.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    pub(super) fn sender(&mut self) -> &mut SendRequest<Full<Bytes>> {
        &mut self.connection.sender
    }

    /// The answer was read whole: another request may have the connection.
    pub(super) fn give_back(self) {
        let Self { pool, slot, connection } = self;
        if connection.sender.is_closed() || pool.idle_per_target == 0 {
            return;
        }
        let mut idle = pool.locked();
        let slot = slot as usize;
        if idle.len() <= slot {
            idle.resize_with(slot + 1, VecDeque::new);
        }
        let connections = &mut idle[slot];
        while connections.front().is_some_and(|oldest| oldest.since.elapsed() >= pool.idle_timeout)
            || connections.len() >= pool.idle_per_target
        {
            connections.pop_front();
        }
        connections.push_back(Idle { connection, since: Instant::now() });
    }
}

//! A simulated vLLM pod: the same endpoints, bodies, headers and metrics, over a queue that behaves like one.
//!
//! For `snapgate sim`, the demo, the tests and the benchmarks: what a gateway sees of it is what it would see of a
//! vLLM 0.32, but how fast it is, how full it gets and how it fails is set by knobs ([`SimSettings`]) and, for single
//! requests, by headers ([`TOKENS_HEADER`], [`FAULT_HEADER`]).
//!
//! A request passes `pod` → `ask` (what it wants) → `engine` (its place) → `generation` (its tokens in time) →
//! `answer` and `body` (their texts on the wire).

mod answer;
mod ask;
mod body;
mod dcgm;
mod engine;
mod faults;
mod generation;
mod load_report;
mod page;
mod pod;
mod prefixes;
mod settings;
mod sglang_page;
#[cfg(test)]
mod tests;
mod totals;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

pub use faults::{FAULT_HEADER, Fault, FaultError, TOKENS_HEADER};
pub use settings::{LoadReports, Misbehaviour, SimEngine, SimSettings};

use pod::Pod;
use wire::{ResetSwitch, Wire};

/// Connections held at once; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 20_000;

/// How long accepting pauses when it fails, which it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A simulated pod with its address, not yet serving.
#[derive(Debug)]
pub struct Sim {
    address: SocketAddr,
    door: Door,
    pod: Arc<Pod>,
}

/// What clients find at the address.
#[derive(Debug)]
enum Door {
    Open(TcpListener),
    /// Bound, so that nobody else gets the port, but not listening: connections are refused.
    Closed(#[expect(dead_code, reason = "it is kept for its port")] TcpSocket),
}

impl Door {
    async fn at(listen: SocketAddr, refuse: bool) -> io::Result<(SocketAddr, Self)> {
        if !refuse {
            let listener = TcpListener::bind(listen).await?;
            return Ok((listener.local_addr()?, Self::Open(listener)));
        }
        let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(listen)?;
        Ok((socket.local_addr()?, Self::Closed(socket)))
    }
}

fn explained(what: String, error: io::Error, advice: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}: {advice}"))
}

impl Sim {
    /// Takes the address; port 0 takes a free one. Reads the page that it is to serve, if one was recorded.
    ///
    /// # Errors
    /// Either fails. The error says which, and what to do.
    pub async fn bind(listen: SocketAddr, settings: SimSettings) -> io::Result<Self> {
        let read = |file: &PathBuf| {
            let unread =
                |error| explained(format!("the page {} cannot be read", file.display()), error, "name another file");
            std::fs::read(file).map(Bytes::from).map_err(unread)
        };
        let page = settings.page.as_ref().map(read).transpose()?;
        let taken = Door::at(listen, settings.misbehaviour.refuse).await;
        let (address, door) =
            taken.map_err(|error| explained(format!("cannot listen on {listen}"), error, "choose another address"))?;
        Ok(Self { address, door, pod: Arc::new(Pod::new(settings, page)) })
    }

    /// The address that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The knobs it was made with.
    pub fn settings(&self) -> &SimSettings {
        self.pod.settings()
    }

    /// Serves until `stop` is ready; then every connection is closed, whatever it was doing.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let Door::Open(listener) = &self.door else { return stop.await };
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, Arc::clone(&self.pod)));
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn serve(stream: TcpStream, pod: Arc<Pod>) {
    // Without it small writes wait for acknowledgements; if it fails, they are only later.
    stream.set_nodelay(true).ok();
    let switch = ResetSwitch::default();
    let wire = Wire::new(stream, switch.clone());
    let mut builder = http1::Builder::new();
    // The time to read a head includes the time to begin one, hence it closes idle connections.
    builder.timer(TokioTimer::new()).header_read_timeout(pod.settings().keep_alive);
    let service = service_fn(|request| pod.serve(request, switch.clone()));
    // However it ends, it is the client's doing or a fault that was asked for.
    builder.serve_connection(wire, service).await.ok();
}

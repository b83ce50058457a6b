//! Sockets in, responses out: one accepting thread that deals connections to data threads, each with its own runtime.
//!
//! A connection stays on the thread it was dealt to, and so does everything its requests touch: no task moves, no lock is
//! waited for, and no wake-up crosses a processor.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::crowd::{Crowd, Place};
use super::phase::{self, Phase, Phases};
use super::pool::Pool;
use super::retries::RetryBudget;
use super::{Gateway, Settings, Thread, connection};
use crate::fleet::{Change, TargetSettings};
use crate::snapshot::Run;
use crate::telemetry::Limit;
use crate::tenant::Peer;

/// Connections that may wait for a data thread to take them up.
const DEALT_MAX: usize = 1_024;

/// How long accepting rests when the process is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often a part of the idle upstream connections is looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The running data path.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    gateway: Arc<Gateway>,
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
}

/// Ends a stop before its time.
#[derive(Clone, Debug)]
pub struct Hurry(watch::Sender<Phase>);

impl Hurry {
    /// Cuts short whatever is still open.
    pub fn now(&self) {
        self.0.send_replace(Phase::Stopping(Instant::now()));
    }
}

/// One data thread as the acceptor sees it.
struct Dealt {
    sender: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
}

/// A connection, and its place among those of its address, if these are counted.
type Accepted = (TcpStream, Option<Place>);

/// Starts to accept on `listener`.
pub fn start(gateway: Arc<Gateway>, listener: TcpListener) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let (phase, phases) = watch::channel(Phase::Serving);
    let (mut threads, mut dealt) = (Vec::new(), Vec::new());
    let count = gateway.current.load().settings.threads.max(1);
    for number in 0..count {
        let (sender, receiver) = mpsc::channel(DEALT_MAX);
        let open = Arc::new(AtomicUsize::new(0));
        dealt.push(Dealt { sender, open: Arc::clone(&open) });
        let data = Data { gateway: Arc::clone(&gateway), receiver, open, phases: phases.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let name = format!("snapgate-data-{number}");
        threads.push(std::thread::Builder::new().name(name).spawn(move || runtime.block_on(data.run()))?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let accepting = accept(Arc::clone(&gateway), listener, dealt, phases);
    let acceptor = std::thread::Builder::new().name("snapgate-accept".into());
    threads.push(acceptor.spawn(move || runtime.block_on(accepting))?);
    Ok(Server { address, gateway, phase, threads })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// See [`Gateway::reload`].
    pub fn reload(&self, settings: Settings, run: Arc<Run>, targets: &[TargetSettings]) -> Change {
        self.gateway.reload(settings, run, targets)
    }

    /// For somebody who cannot wait for [`Server::stop`].
    pub fn hurry(&self) -> Hurry {
        Hurry(self.phase.clone())
    }

    /// Goes on serving whoever comes, and asks clients to come on other connections: each answer in HTTP/1.1 says that its
    /// connection ends with it, connections in HTTP/2 are told to open no more streams.
    pub fn retire(&self) {
        self.gateway.retire();
        self.phase.send_if_modified(|phase| {
            let moves = *phase < Phase::Retiring;
            if moves {
                *phase = Phase::Retiring;
            }
            moves
        });
    }

    /// Stops accepting, lets open requests end until `deadline`, then cuts them short. Blocks until all is quiet.
    pub fn stop(self, deadline: Instant) {
        self.gateway.retire();
        self.phase.send_if_modified(|phase| {
            // It may have been hurried before.
            let moves = !matches!(phase, Phase::Stopping(until) if *until <= deadline);
            if moves {
                *phase = Phase::Stopping(deadline);
            }
            moves
        });
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a data thread panicked");
            }
        }
        drop(self.gateway);
    }
}

/// Deals each connection to the data thread with the fewest.
async fn accept(gateway: Arc<Gateway>, listener: TcpListener, dealt: Vec<Dealt>, phases: Phases) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the listening socket cannot be used"),
    };
    let (mut stopping, mut crowd) = (pin!(phase::stopping(phases)), Crowd::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopping => return,
        };
        match accepted.and_then(|(stream, address)| Ok((stream.into_std()?, Peer(address.ip())))) {
            Ok((stream, peer)) => deal(&gateway, &dealt, &mut crowd, stream, peer),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn deal(gateway: &Gateway, dealt: &[Dealt], crowd: &mut Crowd, stream: TcpStream, peer: Peer) {
    let (connections_max, per_address_max) = {
        let settings = &gateway.current.load().settings;
        (settings.connections_max, settings.connections_per_address_max)
    };
    let refuse = || gateway.metrics.connections_refused.inc();
    // The gauge that is shown is the one that decides.
    if gateway.metrics.connections.get() >= connections_max as i64 {
        gateway.metrics.reached.note(Limit::Connections);
        refuse();
        return;
    }
    let place = if per_address_max > 0 { crowd.enter(peer, per_address_max) } else { None };
    if per_address_max > 0 && place.is_none() {
        tracing::debug!(address = %peer.0, "an address has all the connections that it may have");
        refuse();
        return;
    }
    if let Some(idlest) = dealt.iter().min_by_key(|thread| thread.open.load(Relaxed)) {
        idlest.open.fetch_add(1, Relaxed);
        gateway.metrics.connections.inc();
        if idlest.sender.try_send((stream, place)).is_err() {
            idlest.open.fetch_sub(1, Relaxed);
            gateway.metrics.connections.dec();
            refuse();
        }
    }
}

/// One data thread.
struct Data {
    gateway: Arc<Gateway>,
    receiver: mpsc::Receiver<Accepted>,
    open: Arc<AtomicUsize>,
    phases: Phases,
}

/// Counts a connection out, however it ends.
struct Open {
    gateway: Arc<Gateway>,
    open: Arc<AtomicUsize>,
    _place: Option<Place>,
    /// The drain waits until all of these are gone.
    _held: watch::Receiver<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
        self.gateway.metrics.connections.dec();
    }
}

impl Data {
    async fn run(mut self) {
        let (pool, retries) = {
            let current = self.gateway.current.load();
            (
                Pool::new(&current.settings, self.gateway.connector.clone()),
                RetryBudget::new(current.settings.retry_share),
            )
        };
        let thread = Arc::new(Thread { gateway: Arc::clone(&self.gateway), pool, retries });
        let (connections, held) = watch::channel(());
        let mut stopping = pin!(phase::stopping(self.phases.clone()));
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            let accepted = tokio::select! {
                accepted = self.receiver.recv() => accepted,
                () = &mut stopping => None,
                _ = sweep.tick() => {
                    let view = self.gateway.fleet.view();
                    thread.pool.sweep(|slot| view.member(slot).is_some());
                    continue;
                }
            };
            let Some(accepted) = accepted else { break };
            self.serve(&thread, accepted, held.clone());
        }
        // Accepted before the stop: these are served like those that are open. From here on the acceptor can deal no more,
        // so that none is left behind when this looks for the last time.
        self.receiver.close();
        while let Some(accepted) = self.receiver.recv().await {
            self.serve(&thread, accepted, held.clone());
        }
        drop(held);
        self.drain(connections).await;
    }

    fn serve(&self, thread: &Arc<Thread>, (stream, place): Accepted, held: watch::Receiver<()>) {
        let (gateway, open) = (Arc::clone(&self.gateway), Arc::clone(&self.open));
        let open = Open { gateway, open, _place: place, _held: held };
        let stream = match stream.set_nodelay(true).and_then(|()| tokio::net::TcpStream::from_std(stream)) {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, "a connection ended at once"),
        };
        let served = connection::serve(Arc::clone(thread), stream, self.phases.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the data thread's runtime, and drained by its shutdown"
        )]
        tokio::spawn(async move {
            served.await;
            drop(open);
        });
    }

    /// Waits for the open requests; what is left at the deadline ends with the runtime, which drops its tasks.
    async fn drain(mut self, connections: watch::Sender<()>) {
        let mut quiet = pin!(connections.closed());
        loop {
            let Phase::Stopping(deadline) = *self.phases.borrow_and_update() else { return self.gateway.cut_short() };
            tokio::select! {
                () = &mut quiet => return,
                () = tokio::time::sleep_until(deadline.into()) => return self.gateway.cut_short(),
                Ok(()) = self.phases.changed() => {}
            }
        }
    }
}

//! The targets: simulated pods, and a scripted one that sends exactly what a test says.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use snapgate::demo::sim::{Misbehaviour, Sim, SimSettings};
use tokio::runtime::Runtime;

use super::wire::{Filled, Head, Wire};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Simulated pods; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Sims {
    addresses: Vec<SocketAddr>,
    /// Runs them; a test has no runtime of its own.
    _runtime: Runtime,
}

impl Sims {
    pub(crate) fn start(settings: impl IntoIterator<Item = SimSettings>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let start = |settings| {
            let sim = runtime.block_on(Sim::bind(ANY_PORT, settings)).expect("a port is free");
            let address = sim.address();
            runtime.spawn(sim.run(std::future::pending()));
            address
        };
        Self { addresses: settings.into_iter().map(start).collect(), _runtime: runtime }
    }

    /// One pod that takes no time.
    pub(crate) fn one() -> Self {
        Self::start([SimSettings::instant()])
    }

    /// Pods that refuse every connection. Their ports are held, so that nobody else can answer there.
    pub(crate) fn refusing(count: usize) -> Self {
        let misbehaviour = Misbehaviour { refuse: true, ..Misbehaviour::default() };
        Self::start(std::iter::repeat_n(SimSettings { misbehaviour, ..SimSettings::instant() }, count))
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// What becomes of a connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It waits for the next request.
    Next,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Which connection it came on, counted from 0. Those that carry health probes alone do not count.
    pub(crate) connection: usize,
}

/// One request and the wire to answer it on.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    pub(crate) request: Received,
    wire: &'a mut Wire,
}

impl Exchange<'_> {
    /// Sends bytes as they are. The gateway may have left by then: that is for the test to notice, at the other end.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes.as_ref());
    }

    /// Sends an answer in one piece.
    pub(crate) fn answer(&mut self, status: &str, headers: &str, body: &str) {
        self.send(format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()));
    }

    /// What a connection becomes that leaves HTTP.
    pub(crate) fn wire(&mut self) -> &mut Wire {
        self.wire
    }

    /// Closes the connection now, and not only after the script.
    pub(crate) fn hang_up(&mut self) {
        self.wire.hang_up();
    }

    /// Waits until the gateway has closed the connection; `false` if it never does.
    pub(crate) fn is_left(&mut self) -> bool {
        loop {
            match self.wire.fill() {
                Filled::More => {}
                end => return end != Filled::Silent,
            }
        }
    }
}

/// A scripted pod. It answers health probes by itself, has no metrics, and does with every other request what its script
/// says; each connection has a thread.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Upstream {
    pub(crate) fn start(script: impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static) -> Self {
        Self::over(Wire::of, script)
    }

    /// One that is spoken to in another way than plainly.
    pub(crate) fn over(
        wire: impl Fn(TcpStream) -> Wire + Send + Sync + 'static,
        script: impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static,
    ) -> Self {
        Self::on(TcpListener::bind(ANY_PORT).expect("a port is free"), wire, script)
    }

    /// One whose port somebody has taken.
    pub(crate) fn on(
        listener: TcpListener,
        wire: impl Fn(TcpStream) -> Wire + Send + Sync + 'static,
        script: impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static,
    ) -> Self {
        let wire = Arc::new(wire);
        let address = listener.local_addr().expect("a bound socket has an address");
        let (received, stop) = (Arc::<Mutex<Vec<Received>>>::default(), Arc::<AtomicBool>::default());
        let pod = Pod { script: Box::new(script), received: Arc::clone(&received), connections: AtomicUsize::new(0) };
        let stopped = Arc::clone(&stop);
        let accepting = std::thread::Builder::new().name("upstream".into()).spawn(move || {
            let pod = Arc::new(pod);
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (pod, wire) = (Arc::clone(&pod), Arc::clone(&wire));
                let serving = std::thread::Builder::new().name("upstream-connection".into());
                serving.spawn(move || pod.serve(wire(stream))).expect("a thread can be started");
            }
        });
        Self { address, received, stop, accepting: Some(accepting.expect("a thread can be started")) }
    }

    /// What has come so far, probes left out.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The only request so far.
    #[track_caller]
    pub(crate) fn only(&self) -> Received {
        let mut received = self.received();
        assert_eq!(received.len(), 1, "one request was expected: {received:?}");
        received.remove(0)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread. If nobody listens any more, it has ended.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            // It only accepts: a panic there has shown itself in the test.
            accepting.join().ok();
        }
    }
}

struct Pod {
    script: Box<dyn Fn(&mut Exchange<'_>) -> Then + Send + Sync>,
    received: Arc<Mutex<Vec<Received>>>,
    connections: AtomicUsize,
}

impl Pod {
    fn serve(&self, mut wire: Wire) {
        let mut connection = None;
        while let Ok(head) = wire.head() {
            match head.path() {
                "/health" => drop(wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")),
                "/metrics" => drop(wire.send(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")),
                _ => {
                    let length = head.header("content-length").map_or(0, |length| length.parse().expect("a number"));
                    let Ok(body) = wire.exactly(length) else { return };
                    let connection =
                        *connection.get_or_insert_with(|| self.connections.fetch_add(1, Ordering::Relaxed));
                    let request = Received { head, body, connection };
                    self.received.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                    match (self.script)(&mut Exchange { request, wire: &mut wire }) {
                        Then::Next => {}
                        Then::Close => return,
                        Then::Reset => return wire.reset(),
                    }
                }
            }
        }
    }
}

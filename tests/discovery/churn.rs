//! Ten times a second a pod goes and another one comes: nothing is lost, and nobody meets a pod that has ended.

use std::collections::BTreeSet;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Runtime};

use super::{completion, fleet};
use crate::gateway::wire::Wire;
use crate::gateway::{Client, End, Exchange, Gateway, PATIENCE, Request, Then, Upstream, until};

/// Pods of a churn, and how many of them are there at a time. One that goes is back after as many changes as there are others.
const PODS: usize = 64;
const THERE: usize = 8;

/// How often at least somebody goes and somebody comes, and when: by the clock, whether or not the gateway has followed.
const CHANGES: usize = 60;
const PACE: Duration = Duration::from_millis(100);

/// From when it is gone a pod still answers for so long, and then ends with all of its connections. Far longer than a source
/// takes to say so, pauses after a watch that broke included, and than a stream: on a machine that has time to spare nothing
/// has to be waited for besides. Where it has none, a pod stays until the gateway has heard and what was begun before has ended.
const DRAIN: Duration = Duration::from_secs(4);

/// So many pods have to end meanwhile, or the test is none.
const ENDED_MIN: usize = 16;

/// Clients that send one request after the other meanwhile, and those that read one stream after the other.
const CLIENTS: usize = 4;
const READERS: usize = 2;

/// A stream takes longer than a pod stays: it ends at one that is gone.
const TOKENS: u32 = 10;
const TOKEN_TIME: Duration = Duration::from_millis(100);

/// Connections that may wait for a pod to accept them.
const BACKLOG: u32 = 128;

/// A pod that can end, and begin again at its address.
pub(super) struct Pod {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Instant>>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    /// What serves; `None` when it has ended.
    serving: Mutex<Option<Upstream>>,
    /// Its port, when it has ended: bound, so that nobody else gets it, and not listening, so that connections are refused.
    port: Mutex<Option<TcpSocket>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pod {
    /// Those of a churn.
    pub(super) fn all() -> Vec<Self> {
        (0..PODS).map(|_| Self::start()).collect()
    }

    fn start() -> Self {
        let (asked, connections) = (Arc::default(), Arc::default());
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let serving = Mutex::new(Some(serve(listener, &asked, &connections)));
        Self { address, asked, connections, serving, port: Mutex::default() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// As a process that exits: nothing listens any more, and what was connected is cut off.
    fn end(&self) {
        drop(locked(&self.serving).take());
        let socket = TcpSocket::new_v4().expect("there is a socket");
        socket.set_reuseaddr(true).expect("a TCP option can be set");
        // Free for no longer than it takes to come here.
        socket.bind(self.address).expect("the port is still there");
        *locked(&self.port) = Some(socket);
        for connection in locked(&self.connections).drain(..) {
            // It may be closed already.
            connection.shutdown(Shutdown::Both).ok();
        }
    }

    /// Serves again, if it had ended.
    fn begin(&self, runtime: &Runtime) {
        let Some(socket) = locked(&self.port).take() else { return };
        let _entered = runtime.enter();
        let listener = socket.listen(BACKLOG).and_then(tokio::net::TcpListener::into_std).expect("the port is its own");
        listener.set_nonblocking(false).expect("a socket can block");
        *locked(&self.serving) = Some(serve(listener, &self.asked, &self.connections));
    }

    fn was_asked(&self, from: Instant, to: Instant) -> bool {
        locked(&self.asked).iter().any(|at| (from..to).contains(at))
    }
}

fn serve(
    listener: TcpListener,
    asked: &Arc<Mutex<Vec<Instant>>>,
    connections: &Arc<Mutex<Vec<TcpStream>>>,
) -> Upstream {
    let (asked, connections) = (Arc::clone(asked), Arc::clone(connections));
    let wire = move |stream: TcpStream| {
        locked(&connections).push(stream.try_clone().expect("a socket can have two handles"));
        Wire::of(stream)
    };
    Upstream::on(listener, wire, move |exchange| {
        locked(&asked).push(Instant::now());
        answer(exchange);
        Then::Next
    })
}

fn answer(exchange: &mut Exchange<'_>) {
    if !String::from_utf8_lossy(&exchange.request.body).contains("\"stream\":true") {
        return exchange.answer("200 OK", "content-type: application/json\r\n", "{}");
    }
    let event = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8);
    exchange.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    for _token in 0..TOKENS {
        thread::sleep(TOKEN_TIME);
        exchange.send(event("{}"));
    }
    exchange.send(event("[DONE]") + "0\r\n\r\n");
}

/// Sends one request after the other until it is told to stop, and counts those that a pod has answered.
fn send(gateway: &Gateway, done: &AtomicBool, answered: &AtomicUsize) {
    while !done.load(SeqCst) {
        let answer = gateway.ask(&completion());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answered.fetch_add(1, SeqCst);
    }
}

/// Reads one stream after the other, each to its end.
fn read(gateway: &Gateway, done: &AtomicBool, answered: &AtomicUsize) {
    while !done.load(SeqCst) {
        let answer = Client::to(gateway.data).ask(&Request::stream(TOKENS));
        let tokens = answer.events().len() as u32;
        assert_eq!((answer.status, answer.end, tokens), (200, End::Clean, TOKENS), "{}", answer.text());
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
        answered.fetch_add(1, SeqCst);
    }
}

/// A pod that is gone and has not ended.
struct Draining {
    pod: usize,
    since: Instant,
    /// How many requests each client had answered when the gateway had heard of it.
    heard: Option<Vec<usize>>,
}

impl Draining {
    /// Whether its time is over, and nothing that was chosen for it can still be on its way.
    fn is_over(&mut self, known: &BTreeSet<String>, address: SocketAddr, answered: &[AtomicUsize]) -> bool {
        let counts = || answered.iter().map(|count| count.load(SeqCst));
        if self.heard.is_none() && !known.contains(&address.to_string()) {
            self.heard = Some(counts().collect());
        }
        let has_ended = |heard: &Vec<usize>| counts().zip(heard).all(|(now, then)| now > *then);
        self.since.elapsed() >= DRAIN && self.heard.as_ref().is_some_and(has_ended)
    }
}

/// Changes the pods as `publish` tells the source, and sends requests meanwhile. None of them is lost, though pods end with
/// all they have when their drain time is over, and none is sent to one that has ended.
pub(super) fn churn(pods: &[Pod], gateway: Gateway, mut publish: impl FnMut(&[&Pod])) {
    let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime can be built");
    let there = |round: usize| (round..round + THERE).map(|pod| &pods[pod % PODS]).collect::<Vec<_>>();
    let shows = |round: usize| {
        let expected: BTreeSet<_> = there(round).iter().map(|pod| pod.address.to_string()).collect();
        until("the fleet is as published", || (fleet(&gateway, "address") == expected).then_some(()));
    };
    publish(&there(0));
    shows(0);
    let done = AtomicBool::new(false);
    let answered: Vec<_> = (0..CLIENTS + READERS).map(|_| AtomicUsize::new(0)).collect();
    let mut came = [Instant::now(); PODS];
    let (mut stays, mut draining, mut ended) = (Vec::new(), Vec::<Draining>::new(), 0);
    thread::scope(|scope| {
        let clients: Vec<_> = answered[..CLIENTS].iter().collect();
        clients.into_iter().for_each(|count| drop(scope.spawn(|| send(&gateway, &done, count))));
        let readers: Vec<_> = answered[CLIENTS..].iter().collect();
        readers.into_iter().for_each(|count| drop(scope.spawn(|| read(&gateway, &done, count))));
        let began = Instant::now();
        let mut round = 0;
        while round < CHANGES || ended < ENDED_MIN {
            assert!(began.elapsed() < PATIENCE, "{ended} pods have ended, which are too few");
            round += 1;
            let due = began + PACE * u32::try_from(round).expect("it is small");
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let known = fleet(&gateway, "address");
            draining.retain_mut(|gone| {
                let is_over = gone.is_over(&known, pods[gone.pod].address, &answered);
                if is_over {
                    pods[gone.pod].end();
                    ended += 1;
                }
                !is_over
            });
            let (goes, comes) = ((round - 1) % PODS, (round + THERE - 1) % PODS);
            // It may not have ended since it was there last.
            draining.retain(|gone| gone.pod != comes);
            pods[comes].begin(&runtime);
            publish(&there(round));
            let now = Instant::now();
            came[comes] = now;
            stays.push((goes, came[goes], now + DRAIN));
            draining.push(Draining { pod: goes, since: now, heard: None });
        }
        shows(round);
        done.store(true, SeqCst);
    });
    let met = stays.iter().filter(|(pod, from, to)| pods[*pod].was_asked(*from, *to)).count();
    assert!(met > THERE, "of {} pods {met} got a request in their time, so hardly one that came", stays.len());
    let metrics = gateway.admin("/metrics").text;
    assert!(metrics.contains("\nsnapgate_retries_total 0\n"), "a request met a pod that had ended");
    let balance = gateway.stop().balance;
    let count = |clients: &[AtomicUsize]| clients.iter().map(|count| count.load(SeqCst)).sum::<usize>();
    let (sent, streams) = (count(&answered[..CLIENTS]), count(&answered[CLIENTS..]));
    let all = (sent + streams) as u64;
    assert_eq!((balance.offered, balance.stored), (all, all), "one record for each request");
    let asked: usize = pods.iter().map(|pod| locked(&pod.asked).len()).sum();
    assert_eq!(asked, sent + streams, "each request went to one pod");
    assert!(sent > CLIENTS && streams >= READERS, "{sent} requests and {streams} streams");
}

//! An API server of Kubernetes, as far as EndpointSlices go: lists in pages, watches with bookmarks, a memory that ends.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

const PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices";

/// What every question has to ask for.
const SELECTOR: &str = "labelSelector=kubernetes.io%2Fservice-name%3Dvllm";

/// How long a watch waits for news before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// What the server is, and what it remembers.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    version: u64,
    slices: BTreeMap<String, Value>,
    /// Version, kind and slice.
    events: Vec<(u64, &'static str, Value)>,
    /// What was before this is forgotten.
    remembered_from: u64,
    /// That something is forgotten is said by an event in a watch, and not by its status.
    pub(crate) says_gone_in_event: bool,
    /// Slices on a page.
    pub(crate) page: usize,
    /// Connections are closed without an answer.
    pub(crate) is_away: bool,
    /// The status that every question is refused with.
    pub(crate) refuses: Option<u16>,
    /// What has to be presented; anything if empty.
    pub(crate) token: String,
    /// Watches of earlier epochs are cut off.
    epoch: u64,
    /// Lists that were begun.
    pub(crate) lists: usize,
    /// From which version each watch was asked for.
    pub(crate) watches: Vec<u64>,
}

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    cluster: Mutex<Cluster>,
    news: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        shared.cluster().page = 100;
        let serving = Arc::clone(&shared);
        let accept = move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Relaxed) {
                    return;
                }
                let shared = Arc::clone(&serving);
                // It ends with its connection, however that ends.
                let serve = move || drop(shared.serve(stream));
                Builder::new().name("api-connection".into()).spawn(serve).expect("a thread can be started");
            }
        };
        let accepting = Builder::new().name("api".into()).spawn(accept).expect("a thread can be started");
        Self { address, shared, accepting: Some(accepting) }
    }

    /// Changes what the server is.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.shared.cluster());
    }

    pub(crate) fn get<T>(&self, read: impl FnOnce(&Cluster) -> T) -> T {
        read(&self.shared.cluster())
    }

    /// A slice of the service with these endpoints, all at one port.
    pub(crate) fn put(&self, name: &str, port: u16, endpoints: Value) {
        let mut cluster = self.shared.cluster();
        cluster.version += 1;
        let version = cluster.version;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            "metadata": {"name": name, "namespace": "llm", "uid": name, "resourceVersion": version.to_string(),
                         "labels": {"kubernetes.io/service-name": "vllm", "app.kubernetes.io/name": "vllm"}},
        });
        let kind = if cluster.slices.insert(name.to_owned(), slice.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        cluster.events.push((version, kind, slice));
        self.shared.news.notify_all();
    }

    pub(crate) fn remove(&self, name: &str) {
        let mut cluster = self.shared.cluster();
        cluster.version += 1;
        let mut slice = cluster.slices.remove(name).expect("it is there");
        slice["metadata"]["resourceVersion"] = json!(cluster.version.to_string());
        let event = (cluster.version, "DELETED", slice);
        cluster.events.push(event);
        self.shared.news.notify_all();
    }

    /// Something else in the cluster changes, and watches are told how far they are.
    pub(crate) fn bookmark(&self) -> u64 {
        let mut cluster = self.shared.cluster();
        cluster.version += 1;
        let mark = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                          "metadata": {"resourceVersion": cluster.version.to_string(), "creationTimestamp": null}});
        let event = (cluster.version, "BOOKMARK", mark);
        cluster.events.push(event);
        self.shared.news.notify_all();
        cluster.version
    }

    /// Cuts all watches off, in the middle of whatever they were about to say.
    pub(crate) fn cut_off(&self) {
        self.shared.cluster().epoch += 1;
        self.shared.news.notify_all();
    }

    /// Forgets how it came to what it has, and cuts all watches off.
    pub(crate) fn forget(&self) {
        let mut cluster = self.shared.cluster();
        cluster.version += 1;
        cluster.remembered_from = cluster.version;
        cluster.events.clear();
        drop(cluster);
        self.cut_off();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.cut_off();
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        loop {
            let (mut head, mut line) = (String::new(), String::new());
            while line != "\r\n" {
                line.clear();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                head += &line;
            }
            if self.cluster().is_away {
                return Ok(());
            }
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let presented = head.to_ascii_lowercase();
            let (token, refuses) = self.get(|cluster| (cluster.token.to_ascii_lowercase(), cluster.refuses));
            if let Some(code) = refuses {
                refuse(&mut stream, code)?;
            } else if !token.is_empty() && !presented.contains(&format!("authorization: bearer {token}\r\n")) {
                refuse(&mut stream, 401)?;
            } else if !target.starts_with(PATH) || !target.contains(SELECTOR) {
                refuse(&mut stream, 404)?;
            } else if target.contains("watch=true") {
                self.watch(&mut stream, number_in(&target, "resourceVersion="))?;
            } else {
                self.list(&mut stream, number_in(&target, "continue="))?;
            }
        }
    }

    fn get<T>(&self, read: impl FnOnce(&Cluster) -> T) -> T {
        read(&self.cluster())
    }

    fn list(&self, stream: &mut TcpStream, from: u64) -> io::Result<()> {
        let mut cluster = self.cluster();
        cluster.lists += usize::from(from == 0);
        let from = from as usize;
        let items: Vec<_> = cluster.slices.values().skip(from).take(cluster.page).cloned().collect();
        let next = from + items.len();
        let next = if next < cluster.slices.len() { next.to_string() } else { String::new() };
        let list = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": items,
                          "metadata": {"resourceVersion": cluster.version.to_string(), "continue": next}});
        drop(cluster);
        answer(stream, 200, &list)
    }

    fn watch(&self, stream: &mut TcpStream, from: u64) -> io::Result<()> {
        let mut cluster = self.cluster();
        cluster.watches.push(from);
        let (epoch, mut told) = (cluster.epoch, from);
        let gone = from < cluster.remembered_from;
        if gone && !cluster.says_gone_in_event {
            drop(cluster);
            return refuse(stream, 410);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
        if gone {
            drop(cluster);
            return say(stream, "ERROR", &status(410)).and_then(|()| stream.write_all(b"0\r\n\r\n"));
        }
        loop {
            if cluster.epoch != epoch || self.stop.load(Relaxed) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let news: Vec<_> = cluster.events.iter().filter(|(version, ..)| *version > told).cloned().collect();
            drop(cluster);
            for (version, kind, slice) in news {
                say(stream, kind, &slice)?;
                told = version;
            }
            cluster = self.cluster();
            if cluster.events.last().is_none_or(|(version, ..)| *version <= told) && cluster.epoch == epoch {
                cluster = self.news.wait_timeout(cluster, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

fn number_in(target: &str, name: &str) -> u64 {
    let digits = target.split_once(name).map_or("", |(_, rest)| rest.split('&').next().unwrap_or_default());
    digits.parse().unwrap_or_default()
}

/// An event on a line, in two chunks: a line's end is not a chunk's.
fn say(stream: &mut TcpStream, kind: &str, object: &Value) -> io::Result<()> {
    let line = format!("{}\n", json!({"type": kind, "object": object}));
    let (one, other) = line.split_at(line.len() / 2);
    stream.write_all(format!("{:x}\r\n{one}\r\n{:x}\r\n{other}\r\n", one.len(), other.len()).as_bytes())
}

fn status(code: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": "as the test wants it",
           "metadata": {}})
}

fn refuse(stream: &mut TcpStream, code: u16) -> io::Result<()> {
    answer(stream, code, &status(code))
}

fn answer(stream: &mut TcpStream, code: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes())
}

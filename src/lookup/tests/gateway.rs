//! A gateway's read side on a port of its own, and what a client sees of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::*;
use super::published::checked;
use super::specimen;
use crate::snapshot::Tenant;
use crate::snapshot::{InstanceTag, Record, TraceId};
use crate::store::{DataDir, DropCount, Settings as StoreSettings, Store, Writer};

/// A gateway's read side on a port of its own, with everything it reads from in the test's hands.
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    pub(super) ledger: Arc<Ledger>,
    pub(super) clock: Arc<Clock>,
    pub(super) tag: InstanceTag,
    pub(super) writer: Writer,
    pub(super) waits: Arc<Semaphore>,
    pub(super) bulks: Arc<Semaphore>,
    pub(super) settings: Arc<ArcSwap<Settings>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tenants: Arc<Tenants>,
    _serving: JoinSet<()>,
}

pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) readiness: Readiness,
    pub(super) reads: usize,
    pub(super) waits: usize,
    pub(super) store: StoreSettings,
    pub(super) started_ago: Duration,
    pub(super) erase: Option<EraseSource>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            settings: Settings { loopback: true, ..Settings::default() },
            readiness: Readiness::default(),
            reads: READS_MAX,
            waits: WAITS_MAX,
            store: StoreSettings::default(),
            started_ago: Duration::from_secs(10_000),
            erase: None,
        }
    }
}

impl Gateway {
    pub(super) async fn start(dir: &Path, plan: Plan) -> Self {
        let clock = Clock::start();
        let dir = DataDir::open(dir).unwrap();
        let tag = dir.tag();
        let run = specimen::run(tag, clock.now().minus(plan.started_ago));
        let (writer, reader) = Store::open(&dir, &plan.store, Arc::clone(&run), run.started).unwrap();
        let ledger = Arc::new(Ledger::default());
        let view = Arc::new(specimen::view(clock.now()));
        let settings = Arc::new(ArcSwap::from_pointee(plan.settings));
        let (metrics, tenants) = (Metrics::new(), Arc::new(Tenants::by_key([7; 32])));
        let state = LookupState {
            run,
            ledger: Arc::clone(&ledger),
            reader: Some(reader.patient()),
            metrics: Arc::clone(&metrics),
            clock: Arc::clone(&clock),
            fleet: Arc::new(move || Arc::clone(&view)),
            gpus: Arc::new(specimen::gpus),
            membership: Arc::new(Default::default),
            readiness: Arc::new(move || plan.readiness.clone()),
            tenants: Arc::clone(&tenants),
            erase: plan.erase,
            settings: Arc::clone(&settings),
        };
        let (reads, waits) = (Arc::new(Semaphore::new(plan.reads)), Arc::new(Semaphore::new(plan.waits)));
        let bulks = Arc::new(Semaphore::new(BULKS_MAX));
        let (waits_of, bulks_of) = (Arc::clone(&waits), Arc::clone(&bulks));
        let lookup = Lookup { state, reads, waits: waits_of, bulks: bulks_of, limits: Limits::default() };
        let router = router_of(Arc::new(lookup));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        let settings_of = Arc::clone(&settings);
        serving.spawn(serve((listener, None), router, settings_of, Arc::clone(&metrics), std::future::pending()));
        Self { address, ledger, clock, tag, writer, waits, bulks, settings, metrics, tenants, _serving: serving }
    }

    /// A request issued `ago`, ended or not, held by nobody yet.
    pub(super) fn record(&self, ago: Duration, random: u64, ended: bool) -> Arc<Record> {
        self.marked(ago, random, ended, None, None)
    }

    pub(super) fn marked(
        &self,
        ago: Duration,
        random: u64,
        ended: bool,
        trace: Option<TraceId>,
        alias: Option<&str>,
    ) -> Arc<Record> {
        let mut issued = specimen::issued(self.clock.now().minus(ago), self.tag, random);
        issued.trace.trace_id = trace.unwrap_or(issued.trace.trace_id);
        issued.request.client_request_id = alias.map(Into::into);
        Arc::new(if ended { Record::closed(issued, specimen::outcome()) } else { Record::open(issued) })
    }

    /// A request that has ended and bore this API key.
    pub(super) fn of_key(&self, random: u64, key: &str) -> Arc<Record> {
        self.of_tenant(random, self.tenant(key))
    }

    pub(super) fn of_tenant(&self, random: u64, tenant: Tenant) -> Arc<Record> {
        let issued_at = self.clock.now().minus(Duration::from_secs(1));
        let mut issued = specimen::issued(issued_at, self.tag, random);
        issued.request.tenant = Some(tenant);
        Arc::new(Record::closed(issued, specimen::outcome()))
    }

    pub(super) fn tenant(&self, key: &str) -> Tenant {
        let mut headers = http::HeaderMap::new();
        headers.insert("x-api-key", key.parse().unwrap());
        self.tenants.of(&headers, None).unwrap()
    }

    pub(super) fn store(&mut self, records: &[Arc<Record>], drops: &[DropCount]) {
        let first = self.writer.next_seq();
        self.writer.commit(first, records, &[], drops, self.clock.now()).unwrap();
    }

    pub(super) async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[]).await
    }

    pub(super) async fn look(&self, key: impl ToString) -> Reply {
        self.get(&format!("/v1/snapshots/{}", key.to_string())).await
    }

    /// A lookup of many keys. In HTTP/1.0, so that the answer comes as it is and ends with the connection.
    pub(super) async fn resolve(&self, query: &str, body: impl AsRef<[u8]>) -> Reply {
        let mut socket = self.begin_resolve(query, body.as_ref()).await;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        Reply::read(&String::from_utf8(answer).unwrap())
    }

    pub(super) async fn begin_resolve(&self, query: &str, body: &[u8]) -> TcpStream {
        let head = format!("POST /v1/snapshots/resolve{query} HTTP/1.0\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        // A body that is too large is not read to its end.
        socket.write_all(body).await.ok();
        socket
    }

    pub(super) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let host = self.address.to_string();
        let named = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = if named { String::new() } else { format!("host: {host}\r\n") };
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{host}{headers}\r\n");
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        Reply::read(&String::from_utf8(answer).unwrap())
    }
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    headers: HashMap<String, String>,
    pub(super) body: String,
}

impl Reply {
    /// What an address answers to a path.
    pub(super) async fn of(address: SocketAddr, path: &str) -> Self {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nconnection: close\r\nhost: {address}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        Self::read(&String::from_utf8(answer).unwrap())
    }

    pub(super) fn read(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status, headers, body: body.to_owned() }
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        checked(serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}")))
    }

    /// The values of a body with one a line.
    #[track_caller]
    pub(super) fn lines(&self) -> Vec<Value> {
        let line = |line| checked(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
        self.body.lines().map(line).collect()
    }

    /// Status and state of a problem, having checked that it is one.
    #[track_caller]
    pub(super) fn problem(&self) -> (u16, String) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status);
        assert_eq!(json["type"], format!("urn:snapgate:problem:{}", json["state"].as_str().unwrap()));
        for member in ["title", "detail", "id", "reason"] {
            assert!(json.get(member).is_some(), "{member} is missing: {json}");
        }
        (self.status, json["state"].as_str().unwrap().to_owned())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

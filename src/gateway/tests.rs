//! Bugs on purpose: a panic in any stage costs one request its answer, and its record says so.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;
use crate::config::{Config, Machine, Sources, Targets};
use crate::pipeline::Pipeline;
use crate::sink::{self, Sink};
use crate::snapshot::{InstanceTag, Record, RunId};

/// Where a panic can be wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trap {
    Identify,
    Receive,
    Choose,
    Forward,
    Head,
    Frame,
    Scan,
    ScanEnd,
    Finish,
    Tunnel,
}

impl Trap {
    const ALL: [Self; 10] = [
        Self::Identify,
        Self::Receive,
        Self::Choose,
        Self::Forward,
        Self::Head,
        Self::Frame,
        Self::Scan,
        Self::ScanEnd,
        Self::Finish,
        Self::Tunnel,
    ];
}

/// The trap that is set, if any. It springs once.
#[derive(Debug, Default)]
pub(super) struct Armed(Mutex<Option<Trap>>);

impl Gateway {
    /// Panics if this is what the test wants.
    pub(super) fn spring(&self, trap: Trap) {
        let sprung = self.trap.0.lock().unwrap().take_if(|armed| *armed == trap).is_some();
        assert!(!sprung, "as this test wants it: {trap:?}");
    }
}

/// What a request holds that nobody may read anywhere.
const SECRETS: [&str; 3] = ["the-secret-prompt", "the-secret-query", "the-secret-key"];

/// Hands on every record it gets.
#[derive(Debug)]
struct Recorded(Sender<Arc<Record>>);

impl Sink for Recorded {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn reasons(&self) -> &'static [&'static str] {
        &[]
    }

    fn deliver(&mut self, records: &[Arc<Record>]) -> Result<sink::Taken, sink::Refusal> {
        records.iter().for_each(|record| self.0.send(Arc::clone(record)).unwrap());
        Ok(sink::Taken::all(records.len()))
    }
}

/// A data path before one pod, and what comes out at its end.
struct DataPath {
    gateway: Arc<Gateway>,
    server: Server,
    pipeline: Pipeline,
    records: Receiver<Arc<Record>>,
}

impl DataPath {
    fn start(target: SocketAddr) -> Self {
        let text = format!("threads = 1\npipeline.commit_interval = \"5ms\"\n[[targets]]\nurl = \"http://{target}\"\n");
        let sources = Sources::of_text("the test", &text, Machine { hostname: "test".into(), cores: 1 });
        let config = Config::load(&sources, Targets::Required).unwrap();
        let (clock, metrics, ledger) = (Clock::start(), Metrics::new(), Arc::<Ledger>::default());
        let (sender, records) = channel();
        let parts = crate::pipeline::Parts {
            ledger: Arc::clone(&ledger),
            store: None,
            sinks: vec![Box::new(Recorded(sender))],
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
            problem: Arc::default(),
            flood: Arc::default(),
        };
        let (intake, pipeline) = crate::pipeline::start(&config.pipeline, parts).unwrap();
        let run = Run {
            id: RunId(1),
            instance: "test".into(),
            tag: InstanceTag(1),
            version: "0".into(),
            config: "00000000".into(),
            config_text: "".into(),
            started: clock.now(),
        };
        let fleet = Fleet::new(config.fleet, Arc::clone(&clock), Arc::clone(&metrics));
        let tenants = Arc::new(Tenants::by_key([7; 32]));
        let run = Arc::new(run);
        let parts = Parts {
            run,
            tenants,
            fleet,
            ledger,
            intake,
            metrics,
            clock,
            acceptor: None,
            connector: None,
            authorization: None,
        };
        let gateway = Gateway::new(config.gateway, parts);
        let server = start(Arc::clone(&gateway), TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        Self { gateway, server, pipeline, records }
    }

    /// Sets the trap for whoever comes to it first.
    fn set(&self, trap: Trap) {
        *self.gateway.trap.0.lock().unwrap() = Some(trap);
    }

    fn is_sprung(&self) -> bool {
        self.gateway.trap.0.lock().unwrap().is_none()
    }

    /// The next record that has ended.
    fn record(&self) -> Arc<Record> {
        self.records.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    /// What a client reads until its connection ends, and the one record of it.
    fn ask(&self) -> (String, Arc<Record>) {
        let body = body();
        let head = "authorization: Bearer the-secret-key\r\nconnection: close";
        self.send(&format!("POST {PATH} HTTP/1.1\r\nhost: a\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    }

    fn send(&self, request: &str) -> (String, Arc<Record>) {
        let mut client = TcpStream::connect(self.server.address()).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        (String::from_utf8_lossy(&answer).into_owned(), self.record())
    }

    /// Stops, and finds that each of so many requests had one record and that nothing is left of any.
    fn stop(self, requests: u64) {
        let Self { gateway, server, pipeline, records } = self;
        assert_eq!(gateway.metrics.in_flight.get(), 0);
        let at_the_target: u32 = gateway.fleet.view().members.iter().map(|member| member.live.in_flight()).sum();
        assert_eq!(at_the_target, 0);
        let ledger = Arc::clone(&gateway.ledger);
        drop(gateway);
        server.stop(Instant::now());
        assert_eq!(pipeline.join(Instant::now() + Duration::from_secs(30)).offered, requests);
        assert!(records.try_recv().is_err(), "each request has one record");
        assert!(ledger.is_empty(), "all were settled");
    }
}

/// Where every request goes that is not said to go elsewhere.
const PATH: &str = "/v1/completions?key=the-secret-query";

/// Where it becomes a WebSocket.
const WEBSOCKET: &str = "GET /v1/realtime?key=the-secret-query HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\nauthorization: Bearer the-secret-key\r\n\r\n";

fn body() -> String {
    format!(r#"{{"prompt":"{}"}}"#, SECRETS[0])
}

/// Answers every request with a short stream. A chat's is in two pieces, the second of which waits for a word. Who asks for a
/// WebSocket gets one, and a message.
fn pod() -> (SocketAddr, Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (go_on, word) = channel();
    let word = Arc::new(Mutex::new(word));
    let serve = move || {
        for stream in listener.incoming() {
            let (stream, word) = (stream.unwrap(), Arc::clone(&word));
            // It ends with its connection, and both with the process of the tests.
            let answer = move || drop(answer(stream, &word));
            thread::Builder::new().name("pod-connection".into()).spawn(answer).unwrap();
        }
    };
    thread::Builder::new().name("pod".into()).spawn(serve).unwrap();
    (address, go_on)
}

/// An error is a gateway that has hung up, which is the point of some of the tests.
fn answer(mut stream: TcpStream, word: &Mutex<Receiver<()>>) -> std::io::Result<()> {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let mut request = Vec::new();
    let is_whole = |request: &[u8]| {
        let text = String::from_utf8_lossy(request);
        text.split_once("\r\n\r\n").is_some_and(|(head, body)| head.starts_with("GET ") || body.ends_with('}'))
    };
    while !is_whole(&request) {
        let mut piece = [0; 4_096];
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&piece[..count]),
        }
    }
    if request.starts_with(b"GET /v1/realtime") {
        stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x05hello",
        )?;
        stream.read_to_end(&mut request)?;
        return Ok(());
    }
    stream.write_all(HEAD)?;
    if request.starts_with(b"POST /v1/chat/completions") {
        stream.write_all(b"data: first\n\n")?;
        // Without a word within that time the test has failed elsewhere.
        word.lock().unwrap().recv_timeout(Duration::from_secs(30)).ok();
    }
    stream.write_all(b"data: {}\n\n")
}

#[test]
fn a_panic_in_any_stage_fails_one_request_with_a_true_record() {
    let path = DataPath::start(pod().0);
    for trap in Trap::ALL {
        path.set(trap);
        let (answer, record) = if trap == Trap::Tunnel { path.send(WEBSOCKET) } else { path.ask() };
        assert!(path.is_sprung(), "{trap:?}");
        let outcome = record.outcome().unwrap();
        let (ending, status) = (outcome.ending, outcome.status.unwrap());
        let id = record.id().to_hex();
        match trap {
            // Before the answer's head there is somebody to tell.
            Trap::Identify | Trap::Receive | Trap::Choose | Trap::Forward => {
                assert_eq!((ending, status), (Ending::Internal, 500), "{trap:?}");
                assert!(answer.starts_with("HTTP/1.1 500 "), "{trap:?}: {answer}");
                assert!(answer.contains(&format!("x-snapshot-id: {id}", id = id.as_str())), "{trap:?}: {answer}");
                assert!(answer.contains(&format!("(snapshot {})", id.as_str())), "{trap:?}: {answer}");
            }
            // The answer breaks off.
            Trap::Head | Trap::Frame => {
                assert_eq!(ending, Ending::Internal, "{trap:?}");
                assert!(!answer.contains("data: {}"), "{trap:?}: {answer}");
            }
            Trap::Tunnel => {
                assert_eq!((ending, status), (Ending::Internal, 101), "{trap:?}");
                assert!(answer.starts_with("HTTP/1.1 101 "), "{trap:?}: {answer}");
            }
            // Reading and counting are for the record only: the stream goes on.
            Trap::Scan | Trap::ScanEnd | Trap::Finish => {
                let events = u64::from(trap == Trap::Finish);
                assert_eq!((ending, status, outcome.events), (Ending::Completed, 200, events), "{trap:?}");
                assert!(answer.contains("data: {}"), "{trap:?}: {answer}");
            }
        }
        let told = outcome.error.as_deref() == Some(PANICKED);
        assert_eq!(told, ending == Ending::Internal, "{trap:?}: {:?}", outcome.error);
        let (answer, record) = path.ask();
        assert!(answer.contains("data: {}"), "after {trap:?} the next is served: {answer}");
        assert_eq!(record.outcome().unwrap().ending, Ending::Completed, "after {trap:?}");
    }
    path.stop(2 * Trap::ALL.len() as u64);
}

/// The log is the process's, and so is the hook that panics go through: both are set in a process of its own.
#[test]
fn a_bug_is_said_with_the_id_of_the_request_that_it_befell() {
    let name = "gateway::tests::bugs_in_a_process_of_its_own";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args([name, "--exact", "--ignored", "--nocapture"]).output().unwrap();
    let [said, log] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let lines: Vec<serde_json::Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for trap in Trap::ALL {
        let mark = format!("sprung {trap:?} ");
        let id = said.lines().find_map(|line| line.strip_prefix(&mark)).unwrap_or_else(|| panic!("{said}{log}"));
        let of_it: Vec<_> = lines.iter().filter(|line| line["snapshot_id"] == id && line["level"] == "ERROR").collect();
        let [line] = &of_it[..] else { panic!("{trap:?}: {of_it:?}") };
        assert_eq!(line["panic"], format!("as this test wants it: {trap:?}"), "{line}");
        assert!(line["location"].as_str().is_some_and(|place| place.contains("src/gateway/tests.rs:")), "{line}");
    }
}

#[test]
#[ignore = "sets the log and the panic hook of its process: the test above runs it in one of its own"]
fn bugs_in_a_process_of_its_own() {
    use crate::telemetry::log::{LogFilter, LogFormat, LogSettings, log_panics, start_log};
    let settings = LogSettings { format: LogFormat::Json, filter: LogFilter::parse("info").unwrap() };
    let log = start_log(&settings).unwrap();
    log_panics(&log);
    let path = DataPath::start(pod().0);
    // What the harness says of the test has no end yet.
    writeln!(std::io::stdout()).unwrap();
    for trap in Trap::ALL {
        path.set(trap);
        let (_, record) = if trap == Trap::Tunnel { path.send(WEBSOCKET) } else { path.ask() };
        writeln!(std::io::stdout(), "sprung {trap:?} {}", record.id()).unwrap();
    }
    path.stop(Trap::ALL.len() as u64);
}

#[test]
fn a_panic_in_the_finish_of_a_refused_request_leaves_its_record() {
    let path = DataPath::start(pod().0);
    path.set(Trap::Finish);
    let (answer, record) = path.send("GET /no/such/path HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(path.is_sprung() && answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert_eq!(record.outcome().map(|outcome| (outcome.ending, outcome.status)), Some((Ending::Rejected, Some(404))));
    path.stop(1);
}

/// Sends a request and reads its answer until its end, or until it breaks off.
async fn ask_http2(sender: &http2::SendRequest<Full<Bytes>>, path: &str) -> (Option<StatusCode>, Option<Incoming>) {
    let request = Request::post(format!("http://gateway{path}")).body(Full::new(body().into())).unwrap();
    match sender.clone().send_request(request).await {
        Ok(response) => (Some(response.status()), Some(response.into_body())),
        Err(_) => (None, None),
    }
}

/// The rest of a body; `None` if it breaks off.
async fn rest(body: Option<Incoming>) -> Option<String> {
    let bytes = body?.collect().await.ok()?.to_bytes();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Requests share a connection, and only the one that met the bug fails.
#[tokio::test]
async fn a_panic_in_any_stage_of_a_stream_of_http2_leaves_the_others_alone() {
    let (address, go_on) = pod();
    let path = DataPath::start(address);
    let socket = tokio::net::TcpStream::connect(path.server.address()).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    let mut driving = tokio::task::JoinSet::new();
    driving.spawn(connection);
    // No connection in HTTP/2 becomes a tunnel.
    let traps: Vec<_> = Trap::ALL.into_iter().filter(|trap| *trap != Trap::Tunnel).collect();
    for trap in &traps {
        let (_, sibling) = ask_http2(&sender, "/v1/chat/completions").await;
        let mut sibling = sibling.expect("it is answered");
        let first = sibling.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(&first[..], b"data: first\n\n");
        path.set(*trap);
        let (status, body) = ask_http2(&sender, PATH).await;
        let body = rest(body).await;
        assert!(path.is_sprung(), "{trap:?}");
        let record = path.record();
        let outcome = record.outcome().unwrap();
        let (ending, seen) = match trap {
            Trap::Identify | Trap::Receive | Trap::Choose | Trap::Forward => (Ending::Internal, Some(500)),
            Trap::Head => (Ending::Internal, None),
            Trap::Frame => (Ending::Internal, Some(200)),
            Trap::Scan | Trap::ScanEnd | Trap::Finish | Trap::Tunnel => (Ending::Completed, Some(200)),
        };
        assert_eq!((outcome.ending, status.map(|status| status.as_u16())), (ending, seen), "{trap:?}");
        let is_whole = !matches!(trap, Trap::Head | Trap::Frame);
        assert_eq!(body.is_some(), is_whole, "{trap:?}: {body:?}");
        go_on.send(()).unwrap();
        assert_eq!(rest(Some(sibling)).await.as_deref(), Some("data: {}\n\n"), "{trap:?}");
        assert_eq!(path.record().outcome().unwrap().ending, Ending::Completed, "beside {trap:?}");
    }
    drop((sender, driving));
    path.stop(2 * traps.len() as u64);
}

/// Runs the test above in a process of its own, as nobody else could read all that it prints.
#[test]
fn what_a_crash_prints_has_nothing_of_the_request() {
    let test = "gateway::tests::a_panic_in_any_stage_fails_one_request_with_a_true_record";
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let run = command.args(["--exact", test, "--nocapture"]).env("RUST_BACKTRACE", "full").output().unwrap();
    let printed = [run.stdout, run.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(run.status.success(), "{printed}");
    for trap in Trap::ALL {
        assert!(printed.contains(&format!("as this test wants it: {trap:?}")), "{trap:?}: {printed}");
    }
    for secret in SECRETS {
        assert!(!printed.contains(secret), "{secret}: {printed}");
    }
}

//! Bugs on purpose: a panic in any stage costs one request its answer, and its record says so.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

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
}

impl Trap {
    const ALL: [Self; 8] = [
        Self::Identify,
        Self::Receive,
        Self::Choose,
        Self::Forward,
        Self::Head,
        Self::Frame,
        Self::Scan,
        Self::ScanEnd,
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

    /// What a client reads until its connection ends, and the one record of it.
    fn ask(&self) -> (String, Arc<Record>) {
        let mut client = TcpStream::connect(self.server.address()).unwrap();
        let body = format!(r#"{{"prompt":"{}"}}"#, SECRETS[0]);
        let request = format!(
            "POST /v1/completions?key={} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            SECRETS[1],
            SECRETS[2],
            body.len()
        );
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        (answer, self.records.recv_timeout(Duration::from_secs(30)).unwrap())
    }
}

/// Answers every request with a short stream.
fn pod() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4_096];
            if stream.read(&mut head).is_ok_and(|read| read > 0) {
                let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n";
                // A gateway that has hung up is the point of some of the tests.
                stream.write_all(answer.as_bytes()).ok();
            }
        }
    };
    // It ends with the process of the tests.
    thread::Builder::new().name("pod".into()).spawn(serve).unwrap();
    address
}

#[test]
fn a_panic_in_any_stage_fails_one_request_with_a_true_record() {
    let path = DataPath::start(pod());
    for trap in Trap::ALL {
        *path.gateway.trap.0.lock().unwrap() = Some(trap);
        let (answer, record) = path.ask();
        assert_eq!(*path.gateway.trap.0.lock().unwrap(), None, "{trap:?} was sprung");
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
            // Reading is for the record only: the stream goes on.
            Trap::Scan | Trap::ScanEnd => {
                assert_eq!((ending, status, outcome.events), (Ending::Completed, 200, 0), "{trap:?}");
                assert!(answer.contains("data: {}"), "{trap:?}: {answer}");
            }
        }
        let (answer, record) = path.ask();
        assert!(answer.contains("data: {}"), "after {trap:?} the next is served: {answer}");
        assert_eq!(record.outcome().unwrap().ending, Ending::Completed, "after {trap:?}");
    }
    let DataPath { gateway, server, pipeline, records } = path;
    assert_eq!(gateway.metrics.in_flight.get(), 0);
    let ledger = Arc::clone(&gateway.ledger);
    drop(gateway);
    server.stop(Instant::now());
    assert_eq!(pipeline.join(Instant::now() + Duration::from_secs(30)).offered, 2 * Trap::ALL.len() as u64);
    assert!(records.try_recv().is_err(), "each request has one record");
    assert!(ledger.is_empty(), "all were settled");
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

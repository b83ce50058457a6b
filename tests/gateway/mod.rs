//! The language of the tests: a whole gateway in this process, on free ports and in a directory of its own, and what can
//! be asked of it. Tests are plain threads; the gateway and the simulated pods bring their own runtimes.

pub(crate) mod client;
pub(crate) mod parsers;
pub(crate) mod tls;
pub(crate) mod upstream;
pub(crate) mod wire;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use snapgate::app::App;
use snapgate::config::{Config, Flag, Machine, Sources, Targets};
use snapgate::pipeline::Balance;
use tempfile::TempDir;

use crate::schema::checked;
pub(crate) use crate::wait::{PATIENCE, Word, in_time, until};
pub(crate) use client::{Answer, Client, End, Request};
pub(crate) use upstream::{Exchange, Sims, Then, Upstream};

/// What every test's gateway is set to, before the test's own settings.
const DEFAULTS: [(&str, &str); 8] = [
    ("listen", "127.0.0.1:0"),
    ("admin", "127.0.0.1:0"),
    ("instance", "test"),
    ("threads", "2"),
    // Disks of test machines have better things to do.
    ("store.ballast_bytes", "0"),
    // A dead target stays a candidate, so that connecting to it is what fails.
    ("fleet.unhealthy_after", "1000"),
    // Bounds for busy machines: a stop ends when nothing is under way, a connect with its handshake.
    ("timeouts.shutdown_grace", "30s"),
    ("timeouts.connect", "30s"),
];

/// A gateway that is about to be started.
#[derive(Debug)]
pub(crate) struct Setup {
    settings: Vec<(&'static str, String)>,
    dir: TempDir,
}

impl Setup {
    /// Before targets that are called `t0`, `t1`, …
    pub(crate) fn before(targets: &[SocketAddr]) -> Self {
        Self::in_dir(tempfile::tempdir().expect("a directory can be made"), targets)
    }

    /// The same, in the directory of a gateway that was stopped.
    pub(crate) fn in_dir(dir: TempDir, targets: &[SocketAddr]) -> Self {
        let mut settings: Vec<_> = DEFAULTS.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        settings.push(("data_dir", dir.path().join("data").display().to_string()));
        settings.push(("json_log", log_file(dir.path()).display().to_string()));
        let targets = targets.iter().enumerate().map(|(number, address)| format!("t{number}=http://{address}"));
        settings.push(("targets", targets.collect::<Vec<_>>().join(",")));
        Self { settings, dir }
    }

    /// Sets a key as its environment variable would.
    pub(crate) fn set(mut self, key: &'static str, value: impl ToString) -> Self {
        self.settings.push((key, value.to_string()));
        self
    }

    #[track_caller]
    pub(crate) fn start(self) -> Gateway {
        let config = self.config();
        let app = App::start(config).unwrap_or_else(|error| panic!("the gateway does not start: {error}"));
        Gateway { data: app.data, admin: app.admin, app: Some(app), dir: Some(self.dir) }
    }

    /// What it would be started with.
    #[track_caller]
    pub(crate) fn config(&self) -> Config {
        let flag = |(key, value): &(&'static str, String)| Flag { name: "the test", key, values: vec![value.clone()] };
        let sources = Sources {
            file: None,
            environment: BTreeMap::new(),
            flags: self.settings.iter().map(flag).collect(),
            machine: Machine { hostname: "test".into(), cores: 2 },
        };
        Config::load(&sources, Targets::Required).unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }
}

/// A running gateway. It is stopped when it is dropped.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Where clients connect.
    pub(crate) data: SocketAddr,
    /// Where lookups are answered.
    pub(crate) admin: SocketAddr,
    app: Option<App>,
    dir: Option<TempDir>,
}

impl Gateway {
    /// One request on a connection of its own.
    #[track_caller]
    pub(crate) fn ask(&self, request: &Request) -> Answer {
        Client::to(self.data).ask(request)
    }

    /// One request to the admin listener.
    #[track_caller]
    pub(crate) fn admin(&self, path: &str) -> Found {
        Found::by(&mut Client::to(self.admin), path)
    }

    /// What is known of a key now.
    #[track_caller]
    pub(crate) fn lookup(&self, key: &str) -> Found {
        self.admin(&format!("/v1/snapshots/{key}"))
    }

    /// The snapshot of a request that has ended, or is about to.
    #[track_caller]
    pub(crate) fn ended(&self, id: &str) -> Found {
        let found = self.admin(&format!("/v1/snapshots/{id}?wait=30s"));
        assert_eq!((found.status, found.at("/phase").as_str()), (200, Some("complete")), "{}", found.text);
        found
    }

    /// The snapshot from the store, once it is there.
    #[track_caller]
    pub(crate) fn stored(&self, id: &str) -> Found {
        until("the snapshot is stored", || Some(self.lookup(id)).filter(Found::stored))
    }

    /// The lines of its JSON log about a snapshot, once there are any: what ended shortly before a stop may be written
    /// only after the next start.
    #[track_caller]
    pub(crate) fn logged(&self, id: &str) -> Vec<String> {
        let dir = self.dir.as_ref().expect("it runs").path();
        until("the snapshot is in the JSON log", || {
            let text = log_text(dir);
            // What is not ended yet is being written.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            by_id(whole).remove(id)
        })
    }

    /// Is not ready any more, as at the beginning of a stop.
    pub(crate) fn retire(&self) {
        self.app.as_ref().expect("it runs").retire();
    }

    /// Stops as SIGTERM does.
    pub(crate) fn stop(mut self) -> Stopped {
        let balance = self.app.take().expect("it is stopped once").stop();
        Stopped { dir: self.dir.take().expect("it is stopped once"), balance }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(app) = self.app.take() {
            app.stop();
        }
    }
}

/// What a gateway leaves behind.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) dir: TempDir,
    pub(crate) balance: Balance,
}

impl Stopped {
    /// The lines of the JSON log by snapshot ID.
    #[track_caller]
    pub(crate) fn log(&self) -> HashMap<String, Vec<String>> {
        by_id(&log_text(self.dir.path()))
    }

    /// Each of these requests has one record and no other has: in the books, and in the JSON log, where it is the same.
    #[track_caller]
    pub(crate) fn has_exactly(&self, ended: &[Found]) {
        let (Balance { offered, stored, .. }, expected) = (&self.balance, ended.len() as u64);
        assert_eq!((*offered, *stored), (expected, expected), "offered and stored");
        let log = self.log();
        for found in ended {
            let id = found.at("/id").as_str().expect("a snapshot has an ID");
            assert_eq!(log.get(id).map(Vec::as_slice), Some(&[found.document().to_owned()][..]));
        }
        assert_eq!(log.len(), ended.len(), "snapshots in the JSON log");
    }
}

/// An answer of the admin listener.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) status: u16,
    pub(crate) text: String,
    json: Value,
}

impl Found {
    #[track_caller]
    pub(crate) fn by(client: &mut Client, path: &str) -> Self {
        let answer = client.ask(&Request::get(path));
        assert_eq!(answer.end, End::Clean);
        let json = checked(serde_json::from_slice(&answer.body).unwrap_or(Value::Null));
        Self { status: answer.status, text: answer.text().to_owned(), json }
    }

    /// Whether a snapshot is committed.
    pub(crate) fn stored(&self) -> bool {
        self.json["stored"] == Value::Bool(true)
    }

    /// The snapshot as it is stored and logged: the lookup adds its keys at the end.
    #[track_caller]
    pub(crate) fn document(&self) -> String {
        let beside = format!(r#","stored":{},"links":"#, self.stored());
        let place = self.text.rfind(&beside).unwrap_or_else(|| panic!("no `stored` ends {}", self.text));
        format!("{}}}", &self.text[..place])
    }

    /// The value at a JSON pointer, which has to be there.
    #[track_caller]
    pub(crate) fn at(&self, pointer: &str) -> &Value {
        self.json.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {}", self.text))
    }

    /// The text at a JSON pointer; `None` if it is null.
    #[track_caller]
    pub(crate) fn text_at(&self, pointer: &str) -> Option<&str> {
        self.at(pointer).as_str()
    }

    /// The elements of a list.
    #[track_caller]
    pub(crate) fn list(&self, pointer: &str) -> &[Value] {
        self.at(pointer).as_array().unwrap_or_else(|| panic!("{pointer} is no list in {}", self.text))
    }
}

fn log_text(dir: &Path) -> String {
    std::fs::read_to_string(log_file(dir)).expect("there is a JSON log")
}

/// The lines of a JSON log by snapshot ID.
#[track_caller]
fn by_id(text: &str) -> HashMap<String, Vec<String>> {
    let mut lines: HashMap<_, Vec<_>> = HashMap::new();
    for line in text.lines() {
        let document = checked(serde_json::from_str(line).expect("every line is JSON"));
        let id = document["id"].as_str().expect("every line has an ID").to_owned();
        lines.entry(id).or_default().push(line.to_owned());
    }
    lines
}

fn log_file(dir: &Path) -> std::path::PathBuf {
    dir.join("snapshots.jsonl")
}

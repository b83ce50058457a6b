//! The store's disk is full: requests, their latency and the JSON log go on, lookups and `/readyz` say what is wrong, and
//! once there is space records are stored again, without a restart.
//!
//! The disk is a tmpfs of 24 MiB in a mount namespace of the gateway's own, which the test reaches through `/proc` and which
//! goes with the process. It needs root or user namespaces; without either the test is skipped, and says so.
//!
//! Whether a gateway starts on such a disk is tried on one that outlives gateways: a process without any other purpose holds
//! its namespace, and gateways are started in there.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{self, Answer, Client, Engine, Gateway, ask_once, completion};
use crate::schema::checked;
use crate::wait::until;

/// Mounts the disk at `$1` and becomes what follows.
const ON_SMALL_DISK: &str = r#"mount -t tmpfs -o size=24m snapgate-test "$1" && shift && exec "$@""#;

/// Requests of a phase: enough for a median, few enough for a debug build.
const REQUESTS: usize = 200;

/// How much slower the median request may be while the disk is full, than at a gateway beside it that has room.
const SLOWER_MAX: (u32, Duration) = (3, Duration::from_millis(5));

/// The smallest store there can be, so that its disk can be small.
const CONFIG: &str = r#"
[store]
retention_bytes = "16MiB"
ballast_bytes = "1MiB"
wal_checkpoint_bytes = "1MiB"
"#;

/// The flags of `unshare` that give this user a mount namespace.
pub(crate) fn namespace() -> Option<&'static [&'static str]> {
    let flags: [&[&str]; 2] = [&["--mount"], &["--mount", "--user", "--map-root-user"]];
    let mounts = |flags: &&[&str]| {
        let mut command = Command::new("unshare");
        command.args(*flags).args(["sh", "-c", ON_SMALL_DISK, "sh", "/mnt", "true"]);
        command.output().is_ok_and(|output| output.status.success())
    };
    flags.into_iter().find(mounts)
}

/// Takes all the space there is on a disk. What a gateway frees meanwhile is taken, too.
fn fill(disk: &Path) {
    let filler = OpenOptions::new().create(true).append(true).open(disk.join("filler"));
    let mut filler = filler.expect("a name needs no space");
    let block = [0; 4096];
    loop {
        match filler.write_all(&block) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return,
            Err(error) => panic!("the disk cannot be filled: {error}"),
        }
    }
}

/// A gateway whose store is on the small disk and whose JSON log is on the usual one.
struct Scene {
    gateway: Gateway,
    client: Client,
    /// The small disk, seen from here.
    disk: PathBuf,
    log: PathBuf,
    /// Every ID that was issued.
    issued: Vec<String>,
}

impl Scene {
    fn start(dir: &Path, namespace: &[&str], engine: &Engine) -> Self {
        let (data_dir, log, config) = (dir.join("data"), dir.join("log.jsonl"), dir.join("snapgate.toml"));
        fs::create_dir(&data_dir).expect("the temporary directory can be written");
        fs::write(&config, CONFIG).expect("likewise");
        let mut command = Command::new("unshare");
        command.args(namespace).args(["sh", "-c", ON_SMALL_DISK, "sh"]).arg(&data_dir);
        process::serve(&mut command, engine.address, &data_dir, &log);
        command.arg("--config").arg(&config);
        let gateway = Gateway::start(command);
        gateway.until_ready();
        let root = PathBuf::from(format!("/proc/{}/root", gateway.pid()));
        let disk = root.join(data_dir.strip_prefix("/").expect("a temporary directory has an absolute path"));
        assert!(disk.join("snapshots.db").exists(), "the small disk holds the store");
        let client = Client::connect(gateway.data).expect("the data listener accepts");
        Self { gateway, client, disk, log, issued: Vec::new() }
    }

    /// One request, which must succeed. Answers its ID.
    fn request(&mut self) -> String {
        let answer = self.client.ask(&completion(false), |_| {}).expect("a request is answered");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let id = answer.id.expect("every answer has an ID");
        self.issued.push(id.clone());
        id
    }

    /// Many requests, one after the other. Answers their IDs.
    fn requests(&mut self) -> Vec<String> {
        (0..REQUESTS).map(|_| self.request()).collect()
    }

    /// Likewise, in turn with as many at somebody else. Answers also the median duration of a request here and there.
    fn requests_beside(&mut self, other: &mut Client) -> (Vec<String>, [Duration; 2]) {
        let (mut ids, mut here, mut there) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..REQUESTS {
            let began = Instant::now();
            ids.push(self.request());
            here.push(began.elapsed());
            let began = Instant::now();
            assert_eq!(other.ask(&completion(false), |_| {}).expect("a request is answered").status, 200);
            there.push(began.elapsed());
        }
        let median = |mut took: Vec<Duration>| {
            took.sort_unstable();
            took[REQUESTS / 2]
        };
        (ids, [median(here), median(there)])
    }

    fn lookup(&self, id: &str) -> Answer {
        ask_once(self.gateway.admin, &format!("/v1/snapshots/{id}"))
    }

    /// What became of a request once it is decided: whether it was stored.
    fn stored(&self, id: &str) -> bool {
        until("the request is stored or dropped", || {
            let answer = self.lookup(id);
            let page = answer.json();
            match answer.status {
                200 if page["stored"] == true => Some(true),
                200 => None,
                410 => {
                    assert_eq!(
                        (&page["state"], &page["reason"]),
                        (&"dropped".into(), &"store_failed".into()),
                        "{page}"
                    );
                    let detail = page["detail"].as_str().unwrap_or_default();
                    assert!(detail.contains("make space on the disk"), "{detail}");
                    Some(false)
                }
                status => panic!("{id}: {status}: {page}"),
            }
        })
    }

    fn fill_disk(&self) {
        fill(&self.disk);
    }

    /// The IDs in the JSON log, each once, as its exit promises while nothing fails there.
    fn logged(&self) -> HashSet<String> {
        let text = fs::read_to_string(&self.log).expect("the JSON log is there");
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let ids: Vec<_> = whole
            .lines()
            .map(|line| checked(serde_json::from_str::<Value>(line).expect("every line is JSON")))
            .map(|document| document["id"].as_str().expect("a document has an ID").to_owned())
            .collect();
        let once: HashSet<_> = ids.iter().cloned().collect();
        assert_eq!(once.len(), ids.len(), "no line comes twice");
        once
    }

    fn until_logged(&self, ids: &[String]) {
        until("the JSON log has them all", || {
            let logged = self.logged();
            ids.iter().all(|id| logged.contains(id)).then_some(())
        });
    }
}

/// A gateway whose files are where there is room.
fn serve_with_room(dir: &Path, engine: &Engine) -> Gateway {
    fs::create_dir(dir).expect("the temporary directory can be written");
    let mut command = Command::new("env");
    process::serve(&mut command, engine.address, &dir.join("data"), &dir.join("log.jsonl"));
    let gateway = Gateway::start(command);
    gateway.until_ready();
    gateway
}

#[test]
fn a_full_disk_costs_records_of_the_store_and_nothing_else() {
    let Some(namespace) = namespace() else {
        eprintln!("SKIPPED: no small disk can be mounted here: run as root, or allow user namespaces");
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let engine = Engine::start();
    let mut scene = Scene::start(dir.path(), namespace, &engine);
    let ids = scene.requests();
    assert!(ids.iter().all(|id| scene.stored(id)), "with space, everything is stored");

    // Full: the first commits may still find room in the log, the later ones do not.
    scene.fill_disk();
    let mut dropped = Vec::new();
    until("a record cannot be stored", || {
        let id = scene.request();
        if scene.stored(&id) {
            scene.fill_disk();
            return None;
        }
        dropped.push(id);
        Some(())
    });
    scene.fill_disk();
    let beside = serve_with_room(&dir.path().join("beside"), &engine);
    let mut other = Client::connect(beside.data).expect("the data listener accepts");
    let (ids, [full, usual]) = scene.requests_beside(&mut other);
    let (times, more) = SLOWER_MAX;
    assert!(full <= usual * times + more, "a request takes {usual:?}, and {full:?} with a full disk");
    scene.until_logged(&ids);
    dropped.extend(ids.into_iter().filter(|id| !scene.stored(id)));
    assert!(dropped.len() > REQUESTS / 2, "only {} records could not be stored", dropped.len());
    let warned = |ready: &Answer| ready.json()["warnings"][0].as_str().map(str::to_owned);
    let warning = until("/readyz warns", || warned(&scene.gateway.ready()));
    assert!(warning.contains("the store's disk is full: make space"), "{warning}");
    assert_eq!(scene.gateway.ready().status, 200, "requests can be served, so a load balancer keeps sending them");
    assert_eq!(scene.gateway.metrics().get("snapgate_store_in_trouble"), 1.0);

    // Space again: stored again, by the same process.
    fs::remove_file(scene.disk.join("filler")).expect("the filler is there");
    until("a record is stored again", || {
        let id = scene.request();
        if scene.stored(&id) {
            return Some(());
        }
        dropped.push(id);
        None
    });
    until("/readyz warns no more", || warned(&scene.gateway.ready()).is_none().then_some(()));
    assert_eq!(scene.gateway.metrics().get("snapgate_store_in_trouble"), 0.0);
    let ids = scene.requests();
    assert!(ids.iter().all(|id| scene.stored(id)), "once there is space, everything is stored");
    assert!(dropped.iter().all(|id| !scene.stored(id)), "what was dropped says so for good");
    scene.until_logged(&scene.issued);
    the_books_balance(&scene, dropped.len());
    the_store_is_whole(scene, dir.path(), dropped.len());
}

fn the_books_balance(scene: &Scene, dropped: usize) {
    let issued = scene.issued.len() as f64;
    let page = until("all exits are at rest", || {
        let page = scene.gateway.metrics();
        let at_rest = ["store", "json_log"].iter().all(|exit| page.books(exit) == (issued, issued));
        at_rest.then_some(page)
    });
    assert_eq!(page.get("snapgate_snapshots_delivered_total{exit=\"json_log\"}"), issued);
    assert_eq!(page.get("snapgate_snapshots_dropped_total{exit=\"store\",reason=\"store_failed\"}"), dropped as f64);
    assert_eq!(page.get("snapgate_snapshots_pending{exit=\"json_log\"}"), 0.0);
    assert!(page.get("snapgate_exit_errors_total{exit=\"store\",reason=\"disk_full\"}") > 0.0);
}

/// Ends the gateway and looks into what it leaves.
fn the_store_is_whole(mut scene: Scene, dir: &Path, dropped: usize) {
    // The disk goes with the process, but for who still holds it.
    let disk = File::open(&scene.disk).expect("the small disk can be opened");
    assert!(scene.gateway.stop().success(), "a stop is clean after all that");
    let left = dir.join("left.db");
    let from = format!("/proc/self/fd/{}/snapshots.db", disk.as_raw_fd());
    fs::copy(from, &left).expect("the store can be copied");
    let store = rusqlite::Connection::open(left).expect("the store can be opened");
    let verdict: String = store.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("it can be read");
    assert_eq!(verdict, "ok");
    let counted: i64 = store.query_row("SELECT sum(count) FROM drops", [], |row| row.get(0)).expect("it can be read");
    assert_eq!(counted, dropped as i64, "what was dropped is remembered beyond the process");
}

/// A small disk that gateways come and go on. It ends when this is dropped.
struct Disk {
    /// Where it is for who is in its namespace.
    path: PathBuf,
    /// Where it is for the test.
    seen: PathBuf,
    holder: Child,
    config: PathBuf,
    engine: Engine,
}

impl Disk {
    fn mount(dir: &Path, namespace: &[&str]) -> Self {
        let (path, config) = (dir.join("disk"), dir.join("snapgate.toml"));
        fs::create_dir(&path).expect("the temporary directory can be written");
        fs::write(&config, CONFIG).expect("likewise");
        let mut command = Command::new("unshare");
        command.args(namespace).args(["sh", "-c", ON_SMALL_DISK, "sh"]).arg(&path);
        // Says that it is there, and stays until nobody holds its other end.
        command.args(["sh", "-c", "echo && exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("a namespace could be had before");
        let mut said = BufReader::new(holder.stdout.take().expect("it is piped"));
        said.read_line(&mut String::new()).expect("it says that the disk is there");
        let root = PathBuf::from(format!("/proc/{}/root", holder.id()));
        let seen = root.join(path.strip_prefix("/").expect("a temporary directory has an absolute path"));
        Self { path, seen, holder, config, engine: Engine::start() }
    }

    /// A gateway with everything it writes on this disk.
    fn serve(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        process::serve(&mut command, self.engine.address, &self.path.join("data"), &self.path.join("log"));
        command.arg("--config").arg(&self.config);
        command
    }

    /// What a gateway says that does not start.
    fn refusal(&self) -> String {
        let output = self.serve().output().expect("the gateway can be run");
        assert_eq!(output.status.code(), Some(1), "it does not start: {output:?}");
        String::from_utf8(output.stderr).expect("it says so in words")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.seen.join("log")).expect("there is a JSON log")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

#[test]
fn a_gateway_that_was_killed_on_a_full_disk_spoils_no_line_once_there_is_space() {
    let Some(namespace) = namespace() else {
        eprintln!("SKIPPED: no small disk can be mounted here: run as root, or allow user namespaces");
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::mount(dir.path(), namespace);
    let mut gateway = Gateway::start(disk.serve());
    gateway.until_ready();
    let ask = |gateway: &Gateway| {
        let mut client = Client::connect(gateway.data).expect("the data listener accepts");
        let answer = client.ask(&completion(false), |_| {}).expect("a request is answered");
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    until("a line of the JSON log is torn, and the store has given up", || {
        fill(&disk.seen);
        // Room for a line and a half, or for a page of the store.
        let filler = OpenOptions::new().write(true).open(disk.seen.join("filler")).expect("the filler is there");
        let filled = filler.metadata().expect("it can be asked").len();
        filler.set_len(filled.saturating_sub(4096)).expect("it can be cut off");
        ask(&gateway);
        let (log, metrics) = (disk.log(), gateway.metrics());
        (!log.is_empty() && !log.ends_with('\n') && metrics.get("snapgate_store_in_trouble") == 1.0).then_some(())
    });
    gateway.kill();
    let torn = disk.log();
    // Whether a start needs room depends on what the store's log gave back until the kill; so much is enough, and the test below
    // is about less.
    fill(&disk.seen);
    let filler = OpenOptions::new().write(true).open(disk.seen.join("filler")).expect("the filler is there");
    let filled = filler.metadata().expect("it can be asked").len();
    filler.set_len(filled - (1 << 20)).expect("it can be cut off");
    // What is open takes its space though it is removed.
    drop(filler);

    let mut gateway = Gateway::start(disk.serve());
    gateway.until_ready();
    // One request would not do: where the store is refused first, it gives its reserve back, and the line finds room there.
    until("that lines cannot be written is counted", || {
        fill(&disk.seen);
        ask(&gateway);
        (gateway.metrics().get(r#"snapgate_exit_errors_total{exit="json_log",reason="disk_full"}"#) > 0.0).then_some(())
    });
    fs::remove_file(disk.seen.join("filler")).expect("the filler is there");
    until("what waited is written", || {
        (gateway.metrics().get(r#"snapgate_snapshots_pending{exit="json_log"}"#) == 0.0).then_some(())
    });
    assert!(gateway.stop().success());
    let log = disk.log();
    let after = log.strip_prefix(&torn).and_then(|after| after.strip_prefix('\n')).expect("the torn line is ended");
    assert!(after.ends_with('\n') && after.len() > 1, "something came after it");
    for line in after.lines().chain(torn.lines().rev().skip(1)) {
        checked(serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    }
}

#[test]
fn a_start_that_needs_more_space_than_there_is_says_what_to_do() {
    let Some(namespace) = namespace() else {
        eprintln!("SKIPPED: no small disk can be mounted here: run as root, or allow user namespaces");
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::mount(dir.path(), namespace);
    // The first start of all: the disk has room for names only.
    fill(&disk.seen);
    let said = disk.refusal();
    assert!(said.contains("make space on its disk, or choose another --data-dir"), "{said}");
    fs::remove_file(disk.seen.join("filler")).expect("the filler is there");
    let mut gateway = Gateway::start(disk.serve());
    gateway.until_ready();
    assert!(gateway.stop().success());

    // Later the reserve makes room, once.
    fill(&disk.seen);
    let mut gateway = Gateway::start(disk.serve());
    gateway.until_ready();
    assert!(gateway.stop().success());
    fs::write(disk.seen.join("data/ballast"), "").expect("it can be emptied");
    fill(&disk.seen);
    let said = disk.refusal();
    assert!(said.contains("there is no space for the store") && said.contains("1 MiB is enough to start"), "{said}");
}

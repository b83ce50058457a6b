//! `kill -9` at full load, at random moments: what had ended is there, what had not is lost, and nothing is unknown.
//!
//! The load is a closed loop of plain sockets on the machine's own cores, so it runs at the most that this build reaches here,
//! with the store and the JSON log on. In the suite that is a debug build and two rounds. For the release build:
//!
//! ```text
//! SNAPGATE_BIN=target/release/snapgate SNAPGATE_CRASH_ROUNDS=20 cargo test --test main crash -- --nocapture
//! ```
//!
//! `SNAPGATE_CRASH_SECONDS=60` lets the load run for up to a minute, which is what the commit delay at full load is read from.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{self, Client, Engine, Gateway, completion};

/// What had ended so long before the kill must be stored: the promise is of a release build on its own. A debug build in the
/// midst of the suite may not get a core for however long, and is held to what it has told only.
fn stored_after() -> Option<Duration> {
    let release = std::env::var_os("SNAPGATE_BIN").is_some() || !cfg!(debug_assertions);
    release.then_some(Duration::from_millis(100))
}

/// Connections of the load: more in flight do not make two cores faster.
const CONNECTIONS: usize = 16;

/// Connections that ask what became of the requests.
const ASKERS: usize = 4;

/// Between these seconds of load the moment of the kill is drawn; the latter can be set.
const LOAD_SECONDS: (f64, f64) = (1.5, 3.5);

/// A request whose ID the client has read.
struct Issued {
    id: String,
    /// When the client had read the end of the answer.
    ended: Option<Instant>,
}

/// What became of the requests of one round, by what the client knew of them.
#[derive(Debug, Default)]
struct Tally {
    /// Ended in good time, and all complete.
    safe: usize,
    /// Ended just before the kill, or not at all, or who knows: complete.
    late_complete: usize,
    /// Likewise: lost.
    late_lost: usize,
}

fn number_from<T: FromStr>(variable: &str, default: T) -> T {
    let parse = |text: String| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number"));
    std::env::var(variable).map_or(default, parse)
}

fn serve(dir: &Path, engine: SocketAddr) -> Gateway {
    let mut command = Command::new("env");
    process::serve(&mut command, engine, &dir.join("data"), &dir.join("logs/log.jsonl"));
    // Several files a second, so that a kill may come in the middle of a change.
    command.envs([("SNAPGATE_JSON_LOG_MAX_BYTES", "1MiB"), ("SNAPGATE_JSON_LOG_KEEP", "0")]);
    let gateway = Gateway::start(command);
    gateway.until_ready();
    gateway
}

/// Requests one after the other until the gateway is gone: every third a stream.
fn hammer(data: SocketAddr, killed: &AtomicBool, broken: &SyncSender<String>) -> Vec<Issued> {
    let requests = [completion(false), completion(false), completion(true)];
    let mut issued = Vec::new();
    let mut run = || -> std::io::Result<()> {
        let mut client = Client::connect(data)?;
        for request in requests.iter().cycle() {
            let answer = client.ask(request, |head| {
                let id = head.id.clone().unwrap_or_else(|| format!("status {} without an ID", head.status));
                issued.push(Issued { id, ended: None });
            })?;
            let last = issued.last_mut().expect("the head was read before the end");
            last.ended = Some(Instant::now());
            if answer.status != 200 {
                return Err(std::io::Error::other(format!("status {}: {}", answer.status, answer.text())));
            }
        }
        Ok(())
    };
    if let Err(error) = run()
        && !killed.load(SeqCst)
    {
        // Said already by another connection, if it does not fit.
        broken.try_send(error.to_string()).ok();
    }
    issued
}

/// What was known of a round at the moment of the kill.
struct Killed {
    at: Instant,
    issued: Vec<Issued>,
    /// How many records the gateway said that it has stored.
    told: usize,
    /// A line to be printed.
    figures: String,
}

/// Load until a random moment, then the kill.
fn load_and_kill(gateway: &mut Gateway) -> Killed {
    let killed = AtomicBool::new(false);
    let data = gateway.data;
    let (broken, failure) = mpsc::sync_channel(1);
    let load = Duration::from_secs_f64(rand::random_range(
        LOAD_SECONDS.0..number_from("SNAPGATE_CRASH_SECONDS", LOAD_SECONDS.1),
    ));
    std::thread::scope(|scope| {
        let began = Instant::now();
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let (killed, broken) = (&killed, broken.clone());
                scope.spawn(move || hammer(data, killed, &broken))
            })
            .collect();
        let failed = failure.recv_timeout(load);
        let metrics = gateway.metrics();
        killed.store(true, SeqCst);
        let killed_at = Instant::now();
        gateway.kill();
        assert_eq!(failed, Err(RecvTimeoutError::Timeout), "a request failed before the kill");
        let issued: Vec<_> =
            clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect();
        let ended = issued.iter().filter(|one| one.ended.is_some()).count();
        let delay = |share| metrics.quantile("snapgate_commit_delay_seconds", share) * 1e3;
        let figures = format!(
            "{:.2} s at {:.0} requests/s, commit delay p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms",
            load.as_secs_f64(),
            ended as f64 / (killed_at - began).as_secs_f64(),
            delay(0.5),
            delay(0.99),
            delay(0.999),
        );
        let told = metrics.get("snapgate_snapshots_delivered_total{exit=\"store\"}") as usize;
        Killed { at: killed_at, issued, told, figures }
    })
}

/// Asks the restarted gateway for every ID.
fn take_stock(admin: SocketAddr, issued: &[Issued], killed_at: Instant) -> Tally {
    let share = issued.len().div_ceil(ASKERS).max(1);
    std::thread::scope(|scope| {
        let askers: Vec<_> = issued
            .chunks(share)
            .map(|share| {
                scope.spawn(move || {
                    let mut client = Client::connect(admin).expect("the admin listener accepts");
                    let mut tally = Tally::default();
                    for one in share {
                        tally.enter(&mut client, one, killed_at);
                    }
                    tally
                })
            })
            .collect();
        let tallies = askers.into_iter().map(|asker| asker.join().expect("every ID is accounted for"));
        tallies.fold(Tally::default(), |sum, one| Tally {
            safe: sum.safe + one.safe,
            late_complete: sum.late_complete + one.late_complete,
            late_lost: sum.late_lost + one.late_lost,
        })
    })
}

impl Tally {
    fn enter(&mut self, client: &mut Client, one: &Issued, killed_at: Instant) {
        let answer = client.get(&format!("/v1/snapshots/{}", one.id)).expect("a lookup is answered");
        let document: Value = answer.json();
        let complete = answer.status == 200 && document["phase"] == "complete" && document["stored"] == true;
        let lost = answer.status == 410 && document["state"] == "lost";
        let before = one.ended.map(|ended| killed_at.saturating_duration_since(ended));
        let in_time = before.zip(stored_after()).is_some_and(|(before, stored_after)| before >= stored_after);
        let count = match (in_time, complete, lost) {
            (true, true, _) => &mut self.safe,
            (false, true, _) => &mut self.late_complete,
            (false, _, true) => &mut self.late_lost,
            _ => panic!("{} ended {before:?} before the kill: {}, {document}", one.id, answer.status),
        };
        *count += 1;
        if complete {
            assert_eq!(document["outcome"]["status"], 200, "{document}");
        }
    }
}

/// Every ID in whole lines of the JSON log's files, and how many lines were torn by the kill.
fn logged(logs: &Path) -> (HashSet<String>, usize) {
    let (mut ids, mut torn) = (HashSet::new(), 0);
    for entry in fs::read_dir(logs).expect("the JSON log is there") {
        let text = fs::read(entry.expect("a directory can be read").path()).expect("likewise");
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Value>(line) {
                Ok(document) => drop(ids.insert(document["id"].as_str().unwrap_or_default().to_owned())),
                Err(_) => torn += 1,
            }
        }
    }
    (ids, torn)
}

fn integrity(data_dir: &Path) -> String {
    let store = rusqlite::Connection::open(data_dir.join("snapshots.db")).expect("the store can be opened");
    store.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("the store can be read")
}

#[test]
fn what_had_ended_survives_kill_9_at_full_load_and_the_rest_is_said_to_be_lost() {
    let rounds: u32 = number_from("SNAPGATE_CRASH_ROUNDS", 2);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let engine = Engine::start();
    for round in 1..=rounds {
        let mut gateway = serve(dir.path(), engine.address);
        let Killed { at: killed_at, issued, told, figures } = load_and_kill(&mut gateway);
        drop(gateway);

        let mut gateway = serve(dir.path(), engine.address);
        let tally = take_stock(gateway.admin, &issued, killed_at);
        let complete = tally.safe + tally.late_complete;
        assert!(told > CONNECTIONS, "the load was too short to say anything: {figures}");
        // The last answer on each connection may not have reached its client.
        assert!(
            complete + CONNECTIONS >= told,
            "{told} were stored before the kill, and {complete} are there: {tally:?}"
        );
        let page = gateway.metrics();
        let (offered, done) = page.books("json_log");
        assert_eq!(offered, done, "the books of the exit balance after a kill");
        assert!(gateway.stop().success(), "a stop is clean after a kill before");
        assert_eq!(integrity(&dir.path().join("data")), "ok");

        // The exit was owed what the kill kept from it, and only the kill has torn a line.
        let (ids, torn) = logged(&dir.path().join("logs"));
        assert!(torn <= 1, "{torn} lines of the JSON log are torn");
        let there = issued.iter().filter(|one| ids.contains(&one.id)).count();
        assert!(there >= complete, "{complete} are complete, but the JSON log has only {there} of them");
        fs::remove_dir_all(dir.path().join("logs")).expect("the JSON log is there");
        eprintln!("round {round}: {figures}; {} IDs: {tally:?}", issued.len());
    }
}

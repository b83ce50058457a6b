//! A changed configuration while requests go on: what is taken up, what is refused, and that nothing is lost over it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use serde_json::{Value, json};
use snapgate::snapshot::{Ending, Record};
use snapgate::store::Reader;
use tempfile::TempDir;

use crate::gateway::upstream::Received;
use crate::gateway::{Then, Upstream};
use crate::process::{Answer, Client, Engine, Gateway, ask_once, binary, completion};
use crate::wait::{PATIENCE, Word, until};

/// How often the configuration changes under load.
const RELOADS: usize = 50;

/// Connections that send one request after the other meanwhile.
const CLIENTS: usize = 4;

/// How often a token is replaced under load.
const ROTATIONS: usize = 12;

/// More than there will be.
const RECORDS_MAX: usize = 10_000_000;

/// A gateway with a file, and the pods that the file may name.
struct Place {
    dir: TempDir,
    engines: Vec<Engine>,
}

impl Place {
    fn new(engines: usize) -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            engines: (0..engines).map(|_| Engine::start()).collect(),
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("snapgate.toml")
    }

    /// Writes the file as an editor does: whole, or not at all.
    fn write(&self, settings: &str, pods: impl Iterator<Item = usize>) {
        let target =
            |pod: usize| format!("[[targets]]\nname = \"pod-{pod}\"\nurl = \"http://{}\"\n", self.engines[pod].address);
        let text = format!("{settings}\n{}", pods.map(target).collect::<String>());
        let next = self.dir.path().join("next");
        fs::write(&next, text).expect("the file can be written");
        fs::rename(next, self.file()).expect("the file can be moved");
    }

    fn start(&self) -> Gateway {
        let mut command = Command::new(binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"]).arg(self.file());
        command.arg("--data-dir").arg(self.dir.path().join("data"));
        let gateway = Gateway::start(command);
        gateway.until_ready();
        gateway
    }

    fn records(&self) -> Vec<Arc<Record>> {
        let reader = Reader::open(&self.dir.path().join("data")).expect("the store is there");
        let records = reader.after(0, u64::MAX, RECORDS_MAX).expect("the store can be read");
        records.into_iter().map(|(_, record)| record).collect()
    }
}

fn reloads(gateway: &Gateway, result: &str) -> f64 {
    gateway.metrics().get(&format!("snapgate_reloads_total{{result=\"{result}\"}}"))
}

fn until_reloaded(gateway: &Gateway, result: &str, times: usize) {
    until(&format!("{times} reloads are {result}"), || (reloads(gateway, result) == times as f64).then_some(()));
}

/// The hash of the configuration in effect.
fn config(gateway: &Gateway) -> String {
    let page = ask_once(gateway.admin, "/metrics").text();
    let line = page.lines().find_map(|line| line.strip_prefix("snapgate_config_info{hash=\"")).expect("there is one");
    line.split('"').next().expect("a value has an end").to_owned()
}

fn targets(gateway: &Gateway) -> Vec<String> {
    let fleet = ask_once(gateway.admin, "/v1/fleet").json();
    let listed = fleet["targets"].as_array().expect("a list");
    listed.iter().map(|target| target["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn fifty_reloads_under_load_lose_no_request_and_no_record() {
    let place = Place::new(5);
    place.write("", 0..5);
    let mut gateway = place.start();
    let done = AtomicBool::new(false);
    let send = || {
        let mut client = Client::connect(gateway.data).expect("the gateway listens");
        let mut ids = Vec::new();
        while !done.load(Relaxed) {
            let answer = client.ask(&completion(ids.len() % 2 == 0), |_| {}).expect("no request is lost");
            assert_eq!(answer.status, 200, "{}", answer.text());
            ids.push(answer.id.expect("every answer has an ID"));
        }
        ids
    };
    // Two pods are away at a time, each for two rounds.
    let mut away = Vec::new();
    let ids: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(send)).collect();
        for round in 0..RELOADS {
            let gone = [round % 5, (round + 4) % 5];
            place.write(&format!("limits.in_flight = {}", 1_000 + gone[0]), (0..5).filter(|pod| !gone.contains(pod)));
            gateway.hang_up();
            until_reloaded(&gateway, "applied", round + 1);
            away.push((config(&gateway), gone.map(|pod| format!("pod-{pod}"))));
            assert!(!targets(&gateway).iter().any(|pod| away[round].1.contains(pod)));
        }
        done.store(true, Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("no request is lost")).collect()
    });
    assert!(gateway.stop().success());
    let words = gateway.last_words();
    let line: Value = serde_json::from_str(words.lines().last().expect("a closing line").trim()).expect("JSON");
    let all = ids.len();
    assert_eq!(line, json!({"event": "stopped", "offered": all, "stored": all, "dropped": 0, "exits": {}}));

    let records = place.records();
    let stored: BTreeSet<String> = records.iter().map(|record| record.id().to_string()).collect();
    assert!(records.len() == all && ids.iter().all(|id| stored.contains(id)), "one record for each request");
    let reader = Reader::open(&place.dir.path().join("data")).expect("the store is there");
    for record in &records {
        let outcome = record.outcome().expect("it has ended");
        assert_eq!((outcome.ending, outcome.status), (Ending::Completed, Some(200)));
        let made_with = &*record.issued.run.config;
        assert!(reader.config_text(made_with).expect("readable").is_some(), "{made_with} can be read");
        let target = &*outcome.attempts.last().expect("it was answered").target.name;
        let is_of_another =
            away.iter().any(|(config, gone)| config == made_with && gone.iter().any(|pod| pod == target));
        assert!(!is_of_another, "{} went to {target}, which its configuration does not have", record.id());
    }
    let made_with: BTreeSet<_> = records.iter().map(|record| &*record.issued.run.config).collect();
    assert!(made_with.len() > 2, "records name the configuration they were made with: {made_with:?}");
}

#[test]
fn a_request_that_was_still_coming_is_decided_by_one_configuration_the_new_one() {
    let place = Place::new(2);
    place.write("policy = \"random\"", 0..1);
    let gateway = place.start();
    let before = config(&gateway);
    let request = completion(false);
    let (begun, rest) = request.split_at(request.len() - 5);
    let mut client = Client::connect(gateway.data).expect("the gateway listens");
    client.begin(begun).expect("the gateway takes what is sent");
    until("it is accepted", || (gateway.metrics().get("snapgate_requests_in_flight") == 1.0).then_some(()));
    place.write("policy = \"round_robin\"", 1..2);
    gateway.hang_up();
    until_reloaded(&gateway, "applied", 1);
    let answer = client.ask(rest, |_| {}).expect("no request is lost");
    let id = answer.id.expect("every answer has an ID");
    let found = ask_once(gateway.admin, &format!("/v1/snapshots/{id}?wait=5s")).json();
    let seen = [&found["gateway"]["config"], &found["decision"]["policy"], &found["decision"]["target"]];
    assert_eq!(seen, [&json!(config(&gateway)), &json!("round_robin"), &json!("pod-1")], "{found}");
    assert_ne!(config(&gateway), before);
}

/// The credential has left the configuration together with its target, and still is nobody else's.
#[test]
fn a_target_that_a_reload_brings_between_two_tries_does_not_get_the_key_of_the_target_before() {
    let ((tell, asked), (go_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
    let may_go_on = Mutex::new(may_go_on);
    let fails = Upstream::start(move |_| {
        tell.send(()).expect("the test listens");
        may_go_on.lock().expect("no script panics").recv_timeout(PATIENCE).expect("the test goes on");
        Then::Close
    });
    let serves = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let place = Place::new(0);
    let target =
        |name: &str, pod: &Upstream| format!("[[targets]]\nname = \"{name}\"\nurl = \"http://{}\"\n", pod.address);
    place.write(&format!("{}authorization = \"Bearer the-key-of-a\"\n", target("a", &fails)), 0..0);
    let gateway = place.start();
    let ask = |key: &str| {
        let request = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\n{key}\r\n");
        Client::connect(gateway.data).and_then(|mut client| client.ask(request.as_bytes(), |_| {}))
    };
    for (round, key) in ["authorization: Bearer the-clients-key\r\n", ""].into_iter().enumerate() {
        let answer = thread::scope(|scope| {
            let asking = scope.spawn(|| ask(key));
            asked.recv_timeout(PATIENCE).expect("the first target is asked");
            place.write(&target("b", &serves), 0..0);
            gateway.hang_up();
            until_reloaded(&gateway, "applied", 2 * round + 1);
            go_on.send(()).expect("the script listens");
            asking.join().expect("it is answered").expect("it is answered")
        });
        assert_eq!(answer.status, 200, "{}", answer.text());
        place.write(&format!("{}authorization = \"Bearer the-key-of-a\"\n", target("a", &fails)), 0..0);
        gateway.hang_up();
        until_reloaded(&gateway, "applied", 2 * round + 2);
    }
    let keys = |pod: &Upstream| {
        let received = pod.received();
        let key = |request: &Received| request.head.header("authorization").map(str::to_owned);
        received.iter().map(key).collect::<Vec<_>>()
    };
    assert_eq!(keys(&fails), [Some("Bearer the-key-of-a".to_owned()), Some("Bearer the-key-of-a".to_owned())]);
    assert_eq!(keys(&serves), [Some("Bearer the-clients-key".to_owned()), None]);
}

#[test]
fn a_wrong_file_changes_nothing_and_what_waits_for_a_restart_is_named() {
    let place = Place::new(2);
    place.write("", 0..1);
    let gateway = place.start();
    let before = config(&gateway);
    let log = |what: &str| until(what, || gateway.last_words().contains(what).then_some(()));

    place.write("limits.in_flight = 0\nlimits.inflight = 5\nthreads = 2\npolicy = \"best\"", 0..2);
    gateway.hang_up();
    until_reloaded(&gateway, "refused", 1);
    for mistake in ["0 is less than 1", "unknown key `limits.inflight`", "\\\"best\\\" is not one of", "\"mistakes\":3"]
    {
        log(mistake);
    }
    assert_eq!((config(&gateway), targets(&gateway)), (before.clone(), vec!["pod-0".to_owned()]));
    assert_eq!(gateway.metrics().get("snapgate_reload_last_succeeded"), 0.0);

    place.write("threads = 3\nstore.retention_age = \"1d\"", 0..2);
    gateway.hang_up();
    until_reloaded(&gateway, "applied", 1);
    log("\"keys\":\"threads, store.retention_age\"");
    assert_eq!(targets(&gateway), ["pod-0", "pod-1"], "what needs no restart is taken up");
    assert_ne!(config(&gateway), before);
    let metrics = gateway.metrics();
    assert_eq!(
        (metrics.get("snapgate_reload_last_succeeded"), metrics.get("snapgate_config_keys_waiting")),
        (1.0, 2.0)
    );

    gateway.hang_up();
    until_reloaded(&gateway, "unchanged", 1);
}

#[test]
fn tokens_and_limits_are_those_of_the_configuration_in_effect() {
    const TOKENS: [(&str, &str); 3] =
        [("stays", "the-token-that-stays"), ("goes", "the-token-that-goes"), ("comes", "the-token-that-comes")];
    let ((tell, asked), go_on) = (mpsc::channel(), Word::new());
    let held = go_on.clone();
    let pod = Upstream::start(move |exchange| {
        tell.send(()).expect("the test listens");
        held.wait();
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let place = Place::new(0);
    let write = |in_flight: usize, tokens: [usize; 2]| {
        let token = |(name, token)| format!("[[lookup.tokens]]\nname = \"{name}\"\ntoken = \"{token}\"\n");
        let tokens: String = tokens.map(|token_of| token(TOKENS[token_of])).concat();
        let target = format!("[[targets]]\nname = \"pod\"\nurl = \"http://{}\"\n", pod.address);
        place.write(&format!("limits.in_flight = {in_flight}\n{tokens}{target}"), 0..0);
    };
    write(2, [0, 1]);
    let gateway = place.start();
    let mut admin = Client::connect(gateway.admin).expect("the gateway listens");
    let mut opened = || TOKENS.map(|(_, token)| looked_up(&mut admin, "/v1/fleet", token));
    let ask = || Client::connect(gateway.data).and_then(|mut client| client.ask(&completion(false), |_| {}));
    let status = |answer: std::io::Result<Answer>| answer.expect("no request is lost").status;
    assert_eq!(opened(), [200, 200, 401]);
    thread::scope(|scope| {
        let first = scope.spawn(ask);
        asked.recv_timeout(PATIENCE).expect("the target is asked");
        let second = scope.spawn(ask);
        asked.recv_timeout(PATIENCE).expect("two may be in flight");
        go_on.give();
        go_on.give();
        assert_eq!([first, second].map(|asking| status(asking.join().expect("it is answered"))), [200, 200]);

        write(1, [0, 2]);
        gateway.hang_up();
        until_reloaded(&gateway, "applied", 1);
        assert_eq!(opened(), [200, 401, 200]);
        let first = scope.spawn(ask);
        asked.recv_timeout(PATIENCE).expect("one may be in flight");
        assert_eq!(status(ask()), 503);
        go_on.give();
        assert_eq!(status(first.join().expect("it is answered")), 200);
    });
    assert!(asked.try_recv().is_err(), "nobody was asked for the one too many");
}

#[test]
fn a_watched_file_is_taken_up_by_itself() {
    let place = Place::new(2);
    place.write("reload.watch = true", 0..1);
    let gateway = place.start();
    place.write("reload.watch = true", 1..2);
    until_reloaded(&gateway, "applied", 1);
    assert_eq!(targets(&gateway), ["pod-1"]);
    let answer = Client::connect(gateway.data).and_then(|mut client| client.ask(&completion(false), |_| {}));
    assert_eq!(answer.expect("it serves").status, 200);
}

/// Ends what runs until then, also when a test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The status of a lookup by a bearer of a token.
fn looked_up(client: &mut Client, path: &str, token: &str) -> u16 {
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\r\n");
    client.ask(request.as_bytes(), |_| {}).expect("the admin listener goes on").status
}

#[test]
fn tokens_are_replaced_under_load_and_no_request_lookup_or_record_is_lost() {
    let place = Place::new(1);
    let path = |name: &str| place.dir.path().join(name);
    let put = |name: &str, token: &str| {
        fs::write(path("next"), token).expect("a file can be written");
        fs::rename(path("next"), path(name)).expect("a file can be moved");
    };
    let replaced = |round: usize| format!("the-token-of-round-{round:06}");
    put("fixed", "a-token-that-stays-as-it-is");
    put("rotated", &replaced(0));
    let token = |name: &str| format!("[[lookup.tokens]]\nname = \"{name}\"\ntoken_file = {:?}\n", path(name));
    let settings = format!(
        "lookup.requests_per_second = 1000000\nlookup.failures_per_minute = 1000000\n{}{}",
        token("fixed"),
        token("rotated")
    );
    place.write(&settings, 0..1);
    let mut gateway = place.start();
    let done = AtomicBool::new(false);
    // Each sends a request, and looks it up by a token that nobody touches.
    let send = || {
        let mut client = Client::connect(gateway.data).expect("the gateway listens");
        let mut admin = Client::connect(gateway.admin).expect("the gateway listens");
        let mut ids = Vec::new();
        while !done.load(Relaxed) {
            let answer = client.ask(&completion(ids.len() % 2 == 0), |_| {}).expect("no request is lost");
            assert_eq!(answer.status, 200, "{}", answer.text());
            let id = answer.id.expect("every answer has an ID");
            assert_eq!(
                looked_up(&mut admin, &format!("/v1/snapshots/{id}"), "a-token-that-stays-as-it-is"),
                200,
                "no lookup is lost"
            );
            ids.push(id);
        }
        ids
    };
    let ids: Vec<String> = thread::scope(|scope| {
        let _ended = Done(&done);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(send)).collect();
        let mut admin = Client::connect(gateway.admin).expect("the gateway listens");
        for round in 1..=ROTATIONS {
            assert_eq!(
                looked_up(&mut admin, "/v1/fleet", &replaced(round - 1)),
                200,
                "the old one is good until it is replaced"
            );
            put("rotated", &replaced(round));
            // The two change places at one moment: never are both good, and never neither.
            until("the new token is taken", || {
                (looked_up(&mut admin, "/v1/fleet", &replaced(round)) == 200).then_some(())
            });
            assert_eq!(
                looked_up(&mut admin, "/v1/fleet", &replaced(round - 1)),
                401,
                "the old one is refused from then on"
            );
        }
        done.store(true, Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("nothing is lost")).collect()
    });
    assert_eq!(gateway.metrics().get("snapgate_token_files_failing"), 0.0);
    assert!(gateway.stop().success());
    let records = place.records();
    let stored: BTreeSet<String> = records.iter().map(|record| record.id().to_string()).collect();
    assert!(records.len() == ids.len() && ids.iter().all(|id| stored.contains(id)), "one record for each request");
}

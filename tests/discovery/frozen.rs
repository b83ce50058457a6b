//! A pod that stands still: nothing of it is believed for longer than it is fresh, and decisions say so.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::gateway::{Client, Found, Gateway, Request, Setup, until};
use crate::process::binary;

/// How long pods stand still.
const STILL_MS: u64 = 5_000;

/// A simulated pod in a process of its own.
struct Pod {
    process: Child,
    address: String,
}

impl Pod {
    fn start() -> Self {
        let mut command = Command::new(binary());
        command.args(["sim", "--listen", "127.0.0.1:0", "--ttft", "1ms", "--token-time", "1ms"]);
        let mut process = command.stderr(Stdio::piped()).spawn().expect("the simulated pod starts");
        let mut line = String::new();
        let stderr = process.stderr.take().expect("stderr is piped");
        BufReader::new(stderr).read_line(&mut line).expect("it says where it listens");
        let event: Value = serde_json::from_str(&line).expect("in JSON");
        Self { process, address: event["listen"].as_str().expect("an address").to_owned() }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.process.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{name} could not be sent");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The state of a target as the next decision would see it.
fn state(gateway: &Gateway, target: usize) -> Value {
    gateway.admin("/v1/fleet").list("/targets")[target]["state"].clone()
}

fn until_fresh(gateway: &Gateway, target: usize) {
    until("its values are fresh", || (state(gateway, target)["waiting_freshness"] == "fresh").then_some(()));
}

/// The record of a request for which the queues decided. Should the only page that comes be late, they did not, and the
/// pod that was chosen instead may never answer: then nobody waits for it.
fn decided_by_queue(gateway: &Gateway) -> Found {
    let mut asked = 0;
    until("a page is fresh at a decision", || {
        until_fresh(gateway, 1);
        asked += 1;
        let key = format!("in-turn-{asked}");
        let mut client = Client::to(gateway.data);
        client.send(&Request::chat().with("x-request-id", &key));
        let found = until("it is decided", || {
            Some(gateway.lookup(&key))
                .filter(|found| found.status == 200 && found.at("/matches/0/decision").is_object())
        });
        let is_by_queue = found.at("/matches/0/decision/fallback").is_null();
        if is_by_queue {
            let head = client.head();
            client.rest_of(head);
        }
        drop(client);
        let ended = gateway.ended(found.text_at("/matches/0/id").expect("it has an ID"));
        is_by_queue.then_some(ended)
    })
}

#[test]
fn a_frozen_pod_goes_stale_with_true_ages_and_decisions_say_what_they_did_without() {
    let pods = [Pod::start(), Pod::start()];
    let addresses = pods.each_ref().map(|pod| pod.address.parse().expect("an address"));
    let gateway = Setup::before(&addresses).set("policy", "least_queue").set("fleet.poll_timeout", "500ms").start();
    (0..2).for_each(|target| until_fresh(&gateway, target));

    let (before, known) = (Instant::now(), state(&gateway, 0));
    pods[0].signal("-STOP");
    let stopped = Instant::now();
    let still = until("it has stood still for so long", || {
        let (asked, state) = (Instant::now(), state(&gateway, 0));
        let age = state["waiting_age_ms"].as_u64().expect("there is a value");
        let (least, most) = (asked - stopped, known["waiting_age_ms"].as_u64().expect("a value"));
        // A page that was on its way when the pod stopped may have come; the age counts from when it was asked for.
        assert!(age as u128 <= before.elapsed().as_millis() + u128::from(most) + 1, "{age} ms, older than it can be");
        (age >= STILL_MS && least.as_millis() >= u128::from(STILL_MS)).then_some(state)
    });
    for quantity in ["waiting", "running", "kv_cache_usage"] {
        assert_eq!(still[format!("{quantity}_freshness")], "stale", "{quantity}");
        assert_eq!(still[quantity], known[quantity], "a stale value is the last one, and not 0");
    }
    // One does not age with the other, which is there: it is chosen by its queue, and the record says why the frozen one was
    // not.
    let found = decided_by_queue(&gateway);
    assert_eq!((found.at("/outcome/status"), found.text_at("/decision/target")), (&json!(200), Some("t1")));
    assert_eq!(found.at("/decision/excluded/no_fresh_state"), 1);
    let last = &found.list("/decision/candidates")[1];
    assert_eq!((&last["target"], &last["excluded"]), (&json!("t0"), &json!("no_fresh_state")));
    assert_eq!((&last["score"], &last["state"]["waiting_freshness"]), (&Value::Null, &json!("stale")));
    let age =
        last["state"]["waiting_age_ms"].as_u64().expect("a value") + last["sample_age_ms"].as_u64().expect("an age");
    assert!(age >= STILL_MS, "{age} ms at the decision");

    // Nobody is fresh: something else has to stand in, and that is in the record before the request has ended.
    pods[1].signal("-STOP");
    until("nothing is fresh", || (state(&gateway, 1)["waiting_freshness"] == "stale").then_some(()));
    thread::scope(|scope| {
        let asked = scope.spawn(|| gateway.ask(&Request::chat().with("x-request-id", "while-all-stand-still")));
        let found = until("it is decided", || {
            let found = gateway.lookup("while-all-stand-still");
            (found.status == 200 && found.text.contains("\"fallback\":\"no_fresh_state\"")).then_some(found)
        });
        assert_eq!(found.at("/matches/0/phase"), "in_flight");
        assert_eq!(found.at("/matches/0/decision/policy"), "least_queue");
        // Of two that have nothing in flight least_request takes the one that is drawn.
        assert_eq!(found.at("/matches/0/decision/reason"), "tie_broken_by_draw");
        pods.iter().for_each(|pod| pod.signal("-CONT"));
        assert_eq!(asked.join().expect("it is answered").status, 200);
    });
    (0..2).for_each(|target| until_fresh(&gateway, target));
}

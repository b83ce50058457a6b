//! Which target a request gets, by every policy and for every model, and that its record says all that this depended on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use snapgate::demo::sim::SimSettings;
use snapgate::replay::{self, Question};
use snapgate::snapshot::{Policy, Reason, Record, Run};
use snapgate::store::{self, DataDir, Reader, Store};

use crate::gateway::{Answer, Client, End, Found, Gateway, Request, Setup, Sims, Stopped, until};
use crate::process::binary;

/// Requests sent at one time, and how many of them one after the other.
const CLIENTS: u64 = 6;
const REQUESTS: u64 = 20;

/// Four pods on which requests take a few milliseconds, so that they meet.
fn pods() -> Sims {
    let pod = SimSettings {
        ttft: Duration::from_millis(2),
        token_time: Duration::from_millis(1),
        capacity: 2,
        ..SimSettings::default()
    };
    Sims::start(vec![pod; 4])
}

/// A request that shares its prompt's beginning and its session with some others; every fifth has neither.
fn varied(number: u64) -> Request {
    if number % 5 == 4 {
        return Request::get("/v1/models");
    }
    let text = format!("conversation {} {}, question {number}", number % 7, "and so on ".repeat(60));
    let body = json!({"model": "llama-3.1-8b", "messages": [{"role": "user", "content": text}]});
    Request::post("/v1/chat/completions", body.to_string())
        .with("x-sim-tokens", 1 + number % 9)
        .with("x-session-id", number % 7)
}

/// Recorded traffic by one policy, which has seen every pod before the first request.
fn recorded(policy: Policy, width: usize) -> Stopped {
    let pods = pods();
    let gateway = Setup::before(pods.addresses())
        .set("policy", policy.name())
        .set("choice.width", width)
        .set("fleet.poll_interval", "20ms")
        .set("fleet.publish_interval", "10ms")
        .start();
    until("every pod is known", || {
        let fleet = gateway.admin("/v1/fleet");
        let fresh = |target: &Value| target["state"]["waiting_freshness"] == "fresh";
        fleet.list("/targets").iter().all(fresh).then_some(())
    });
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let gateway = &gateway;
            scope.spawn(move || {
                for number in 0..REQUESTS {
                    let answer = gateway.ask(&varied(client * REQUESTS + number));
                    assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
                }
            });
        }
    });
    gateway.stop()
}

fn replayed(stopped: &Stopped, policy: Option<Policy>) -> Value {
    let reader = Reader::open(&stopped.dir.path().join("data")).expect("there is a store");
    let mut progress = Vec::new();
    let question = Question { policy, since: None, until: None };
    let report = replay::run(&reader, &question, |now| progress.push(now.read)).expect("it can be read");
    assert_eq!(progress, [CLIENTS * REQUESTS]);
    assert!(report.explains_all(), "{}", report.text());
    serde_json::to_value(&report).expect("a report is JSON")
}

/// That a record holds all that its choice depended on.
#[test]
fn every_policys_choices_are_made_again_from_their_records() {
    for policy in Policy::ALL {
        for width in [16, 2] {
            let stopped = recorded(policy, width);
            let all = CLIENTS * REQUESTS;
            for by in [None, Some(policy)] {
                let report = replayed(&stopped, by);
                let counts = ["decisions", "same", "different", "unexplained", "among_a_part"].map(|key| &report[key]);
                assert_eq!(counts, [&json!(all), &json!(all), &json!(0), &json!(0), &json!(0)], "{report}");
                assert_eq!(report["recorded"], json!({policy.name(): all}));
                // Of four pods two were looked at, but for the fifth of the requests that have neither prompt nor session.
                let by_affinity = matches!(policy, Policy::PrefixAffinity | Policy::SessionAffinity);
                let unchecked = if by_affinity && width == 2 { all - all / 5 } else { 0 };
                assert_eq!(report["not_wholly_checkable"], unchecked, "{report}");
            }
            for other in Policy::ALL.into_iter().filter(|other| *other != policy) {
                let report = replayed(&stopped, Some(other));
                let not_replayed = report["not_replayed"].as_object().expect("an object").values();
                let not_replayed: u64 = not_replayed.filter_map(Value::as_u64).sum();
                let [same, different] = ["same", "different"].map(|key| report[key].as_u64().expect("a count"));
                assert_eq!(same + different + not_replayed, all, "{report}");
                let needs_a_hash = matches!(other, Policy::PrefixAffinity | Policy::SessionAffinity);
                assert_eq!(not_replayed > 0, needs_a_hash, "{report}");
                let in_part = report["among_a_part"].as_u64().expect("a count");
                assert_eq!(
                    in_part > 0,
                    same + different > 0 && (width == 2 || policy == Policy::PowerOfTwo),
                    "{report}"
                );
            }
        }
    }
}

/// `snapgate replay` on a data directory.
fn replay_program(data: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("replay").arg("--data-dir").arg(data).args(more).stdin(Stdio::null());
    command.output().expect("the program starts")
}

/// A text whose numbers, IDs and times are as good as any other.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for word in line.split_whitespace() {
        let word = word.trim_matches(['(', ')', ',', ':']);
        let is_id = word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_number = word.trim_start_matches(['+', '-']).parse::<f64>().is_ok();
        let is_time = word.len() == 27 && word.ends_with('Z');
        shape += if is_id || is_number || is_time || word == "-" { "#" } else { word };
        shape.push(' ');
    }
    shape
}

#[test]
fn the_program_replays_a_directory_as_the_readme_shows_it() {
    let stopped = recorded(Policy::RoundRobin, 16);
    let data = stopped.dir.path().join("data");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it writes text");
    let own = replay_program(&data, &[]);
    assert_eq!((own.status.code(), text(&own.stderr).as_str()), (Some(0), ""), "{own:?}");
    let all = CLIENTS * REQUESTS;
    let said = text(&own.stdout);
    assert!(said.starts_with(&format!("each decision's own policy over {all} decisions from 20")), "{said}");
    assert!(said.contains(&format!(": 0 of {all} (0.0 %) would have gone elsewhere\n")), "{said}");

    let other = ["--policy", "least_queue", "--since", "1h"];
    let json = replay_program(&data, &[&other[..], &["--json"]].concat());
    let json: Value = serde_json::from_slice(&json.stdout).expect("it is JSON and nothing more");
    assert_eq!(json, replayed(&stopped, Some(Policy::LeastQueue)), "it is the library's report");
    let shown = replay_program(&data, &other);
    assert_eq!(shown.status.code(), Some(0), "another policy's choices explain nothing: {shown:?}");
    // Every kind of line that the README shows is there, and all that is there is shown.
    let readme = include_str!("../README.md");
    let (_, block) = readme.split_once("```\nleast_queue over ").expect("the README shows a replay");
    let (block, _) = block.split_once("```").expect("it ends");
    let lines = |text: &str| -> BTreeSet<String> {
        let named = |line: &str| line.replace("vllm-", "t");
        let any_target =
            |line: String| ["t0", "t1", "t2", "t3"].iter().fold(line, |line, name| line.replace(name, "pod"));
        // Whether there were ties is the traffic's business.
        let lines = text.lines().filter(|line| !line.ends_with("had just as much to do"));
        lines.map(|line| any_target(shape(&named(line)))).collect()
    };
    assert_eq!(lines(&text(&shown.stdout)), lines(&format!("least_queue over {block}")), "{}", text(&shown.stdout));

    let wrong = replay_program(&data, &["--since", "yesterday"]);
    let told = text(&wrong.stderr);
    assert!(wrong.status.code() == Some(64) && told.contains("--since: no time: give "), "{wrong:?}");
    assert!(wrong.stdout.is_empty(), "{wrong:?}");
    let nothing = replay_program(&data.join("nothing"), &[]);
    assert!(nothing.status.code() == Some(1) && !nothing.stderr.is_empty(), "{nothing:?}");
}

#[test]
fn a_replay_that_cannot_explain_a_choice_says_which_and_fails() {
    let stopped = recorded(Policy::LeastRequest, 16);
    let reader = Reader::open(&stopped.dir.path().join("data")).expect("there is a store");
    let (_, record) = reader.after(0, u64::MAX, 1).expect("it can be read").remove(0);
    // As a gateway with a bug would have recorded it: chosen by what the record does not hold.
    let mut issued = record.issued.clone();
    issued.decision.as_mut().expect("it was decided").reason = Reason::AffinityOverflow;
    let dir = stopped.dir.path().join("forged");
    let data = DataDir::open(&dir).expect("a directory can be made");
    issued.run = Arc::new(Run { tag: data.tag(), ..(*issued.run).clone() });
    let (run, now) = (Arc::clone(&issued.run), issued.issued_at);
    let forged = Record::closed(issued, record.outcome().expect("it has ended").clone());
    let (mut writer, _) = Store::open(&data, &store::Settings::default(), run, now).expect("a store can be made");
    writer.commit(writer.next_seq(), &[Arc::new(forged)], &[], &[], now).expect("it can be stored");
    writer.close(now);
    let replayed = replay_program(&dir, &[]);
    let said = String::from_utf8(replayed.stdout.clone()).expect("it writes text");
    assert_eq!(replayed.status.code(), Some(1), "{replayed:?}");
    let line = format!("1 UNEXPLAINED: their own policy does not give what was recorded, such as {}\n", record.id());
    assert!(said.contains(&line), "{said}");
    let json: Value = serde_json::from_slice(&replay_program(&dir, &["--json"]).stdout).expect("it is JSON");
    assert_eq!(json["unexplained_examples"], json!([record.id().to_string()]));
}

#[test]
fn a_replay_asks_only_for_the_time_it_is_told() {
    let stopped = recorded(Policy::RoundRobin, 16);
    let reader = Reader::open(&stopped.dir.path().join("data")).expect("there is a store");
    let records = reader.after(0, u64::MAX, usize::MAX).expect("it can be read");
    let mut issued: Vec<_> = records.iter().map(|(_, record)| record.issued.issued_at).collect();
    issued.sort_unstable();
    let at = issued[issued.len() / 2];
    // Decisions made again, and records read for that.
    let replayed = |since, until| {
        let mut read = 0;
        let progress = |now: replay::Progress| {
            assert!(now.read <= now.all, "{now:?}");
            read = now.read;
        };
        let report = replay::run(&reader, &Question { policy: None, since, until }, progress).expect("it can be read");
        (serde_json::to_value(&report).expect("a report is JSON")["decisions"].as_u64().expect("a count"), read)
    };
    let ((before, read_before), (after, read_after)) = (replayed(None, Some(at)), replayed(Some(at), None));
    assert_eq!(before + after, CLIENTS * REQUESTS);
    // What was issued in the same millisecond is read twice, and nothing else.
    let twice = issued.iter().filter(|other| other.unix_ms() == at.unix_ms()).count() as u64;
    assert_eq!(read_before + read_after, CLIENTS * REQUESTS + twice);
    let hour = Duration::from_secs(3600);
    assert_eq!((replayed(Some(at.plus(hour)), None), replayed(None, Some(at.minus(hour)))), ((0, 0), (0, 0)));
    assert_eq!(replayed(Some(at.minus(hour)), Some(at.plus(hour))), (CLIENTS * REQUESTS, CLIENTS * REQUESTS));
}

/// Two pods with a model each.
fn two_models(sims: &Sims) -> Setup {
    let [a, b] = sims.addresses() else { panic!("two pods") };
    let target = |name: &str, address: &SocketAddr, models: &str| {
        format!(r#"{{ name = "{name}", url = "http://{address}", models = [{models}] }}"#)
    };
    let targets = format!("[{}, {}]", target("t0", a, r#""a", "both""#), target("t1", b, r#""b", "both""#));
    Setup::before(sims.addresses()).set("targets", targets)
}

fn asks_for(model: &str) -> Request {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    Request::post("/v1/chat/completions", body.to_string())
}

/// Pods with models of these names.
fn serving(models: [&str; 2]) -> Sims {
    Sims::start(models.map(|model| SimSettings { model: model.to_owned(), ..SimSettings::instant() }))
}

fn ended(gateway: &Gateway, answer: &Answer) -> Found {
    gateway.ended(&answer.id())
}

#[test]
fn a_model_goes_to_a_target_that_serves_it_by_its_own_policy() {
    let sims = serving(["a", "b"]);
    let gateway = two_models(&sims).set("policy", "random").set("models", "a=least_queue,both=round_robin").start();
    for (model, policy, target) in [("a", "least_queue", "t0"), ("b", "random", "t1")] {
        for _again in 0..5 {
            let answer = gateway.ask(&asks_for(model));
            assert_eq!((answer.status, answer.header("target-pod")), (200, Some(target)), "{}", answer.text());
            let found = ended(&gateway, &answer);
            assert_eq!(found.text_at("/decision/policy"), Some(policy));
            assert_eq!((found.at("/decision/eligible"), found.at("/decision/excluded/model")), (&json!(1), &json!(1)));
        }
    }
    // Its turns are its own, whatever other models do in between.
    let mut turns = Vec::new();
    for _again in 0..2 {
        turns.push(gateway.ask(&asks_for("both")).header("target-pod").map(str::to_owned));
        gateway.ask(&asks_for("a"));
    }
    assert_eq!(turns.iter().flatten().collect::<Vec<_>>(), ["t0", "t1"]);
    let unnamed = gateway.ask(&Request::get("/v1/models"));
    assert_eq!(ended(&gateway, &unnamed).at("/decision/eligible"), &json!(2));
}

#[test]
fn a_model_that_nobody_serves_is_not_found() {
    let sims = serving(["a", "b"]);
    let gateway = two_models(&sims).start();
    let answer = gateway.ask(&asks_for("c"));
    let error: Value = serde_json::from_str(answer.text()).expect("the answer is JSON");
    assert_eq!(answer.status, 404);
    let message = format!("the model `c` does not exist: no target serves it (snapshot {})", answer.id());
    let expected =
        json!({"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"});
    assert_eq!(error["error"], expected);
    let found = ended(&gateway, &answer);
    assert_eq!((found.text_at("/outcome/ending"), found.text_at("/outcome/fault")), (Some("rejected"), Some("client")));
    assert_eq!(found.text_at("/decision/policy"), None, "nothing was decided");
}

#[test]
fn a_request_may_name_its_target_only_where_that_is_allowed_and_only_one_of_the_fleet() {
    let sims = serving(["a", "a"]);
    let forced = |gateway: &Gateway, name: &str| gateway.ask(&asks_for("a").with("target-pod", name));
    let gateway = Setup::before(sims.addresses()).set("choice.allow_forced", true).start();
    for name in ["t1", "t0", "t1"] {
        let answer = forced(&gateway, name);
        assert_eq!((answer.status, answer.header("target-pod")), (200, Some(name)));
        let found = ended(&gateway, &answer);
        let seen = (found.at("/decision/forced"), found.text_at("/decision/reason"));
        assert_eq!(seen, (&json!(true), Some("forced")));
        assert_eq!(found.at("/decision/candidates/0/score"), &Value::Null);
        assert_eq!((found.list("/decision/candidates").len(), found.at("/decision/eligible")), (1, &json!(2)));
    }
    for name in ["t2", "127.0.0.1:80", "http://127.0.0.1", ""] {
        let answer = forced(&gateway, name);
        let error: Value = serde_json::from_str(answer.text()).expect("the answer is JSON");
        let seen = (answer.status, &error["error"]["code"], &error["error"]["param"]);
        assert_eq!(seen, (400, &json!("target_not_found"), &json!("target-pod")), "{name}");
        assert_eq!(ended(&gateway, &answer).text_at("/outcome/ending"), Some("rejected"));
    }
    // It was understood: the next request on its connection is served.
    let mut client = Client::to(gateway.data);
    let statuses = ["t9", "t0"].map(|name| client.ask(&asks_for("a").with("target-pod", name)).status);
    assert_eq!(statuses, [400, 200]);
    let free = gateway.ask(&asks_for("a"));
    assert_eq!(ended(&gateway, &free).at("/decision/forced"), &json!(false));
    drop(gateway);

    let gateway = Setup::before(sims.addresses()).set("policy", "round_robin").start();
    let answers: Vec<_> = (0..2).map(|_| forced(&gateway, "t1")).collect();
    let targets: Vec<_> = answers.iter().filter_map(|answer| answer.header("target-pod")).collect();
    assert_eq!(targets, ["t0", "t1"], "the header is ignored");
    assert_eq!(ended(&gateway, &answers[1]).at("/decision/forced"), &json!(false));
}

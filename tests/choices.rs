//! Which target a request gets.

use std::net::SocketAddr;

use serde_json::{Value, json};
use snapgate::demo::sim::SimSettings;

use crate::gateway::{Answer, Found, Gateway, Request, Setup, Sims};

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
    let free = gateway.ask(&asks_for("a"));
    assert_eq!(ended(&gateway, &free).at("/decision/forced"), &json!(false));
    drop(gateway);

    let gateway = Setup::before(sims.addresses()).set("policy", "round_robin").start();
    let answers: Vec<_> = (0..2).map(|_| forced(&gateway, "t1")).collect();
    let targets: Vec<_> = answers.iter().filter_map(|answer| answer.header("target-pod")).collect();
    assert_eq!(targets, ["t0", "t1"], "the header is ignored");
    assert_eq!(ended(&gateway, &answers[1]).at("/decision/forced"), &json!(false));
}

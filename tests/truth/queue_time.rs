//! How long a request waited in its engine's queue: in the record when the engine says it, and never when another one does.

use serde_json::{Value, json};
use snapgate::demo::sim::SimSettings;

use crate::gateway::{Gateway, Request, Setup, Sims, Then, Upstream, until};

/// Where the pod's metrics are: its script does not see `/metrics`.
const PAGE: &str = "/engine";

/// What vLLM adds to its answers if it is asked to.
const METRICS: &str = r#"{"metrics":{"time_to_first_token_ms":9.5,"queue_time_ms":1.25}}"#;

/// A pod with this metrics page, whose answers have this header and body.
fn pod(page: &'static str, header: &'static str, body: &'static str) -> Upstream {
    Upstream::start(move |exchange| {
        match exchange.request.head.path() {
            PAGE => exchange.answer("200 OK", "content-type: text/plain\r\n", page),
            _ => exchange.answer("200 OK", &format!("content-type: application/json\r\n{header}\r\n"), body),
        }
        Then::Next
    })
}

/// A gateway that knows which engine the pod's page is of.
fn knowing(setup: Setup, engine: &str) -> Gateway {
    let gateway = setup.set("fleet.metrics_path", PAGE).set("fleet.poll_interval", "20ms").start();
    until("the pod's page is read", || {
        (gateway.admin("/v1/fleet").text_at("/targets/0/engine") == Some(engine)).then_some(())
    });
    gateway
}

#[track_caller]
fn waited(gateway: &Gateway) -> Value {
    let id = gateway.ask(&Request::chat()).id();
    let found = gateway.ended(&id);
    assert_eq!(gateway.stored(&id).at("/timings"), found.at("/timings"));
    found.at("/timings/engine_queue_us").clone()
}

#[test]
fn tgi_says_how_long_a_request_waited() {
    let pod = pod("tgi_queue_size 3\ntgi_batch_current_size 2\n", "x-queue-time: 37", METRICS);
    let gateway = knowing(Setup::before(&[pod.address]).set("fleet.engine", "tgi"), "tgi");
    assert_eq!(waited(&gateway), json!(37_000));
}

#[test]
fn an_engine_of_ones_own_says_it_in_its_own_header_and_unit() {
    let pod = pod("our_queue 1\n", "x-our-wait: 0.25", "{}");
    let engines = r#"[{ name = "ours", waiting = "our_queue", queue_time = { header = "x-our-wait", unit = "s" } }]"#;
    let setup = Setup::before(&[pod.address]).set("engines", engines).set("fleet.engine", "ours");
    assert_eq!(waited(&knowing(setup, "ours")), json!(250_000));
}

#[test]
fn another_engines_header_of_that_name_says_nothing() {
    let pod = pod("vllm:num_requests_waiting 0\n", "x-queue-time: 37", "{}");
    assert_eq!(waited(&knowing(Setup::before(&[pod.address]), "vllm")), Value::Null);
}

#[test]
fn vllm_says_it_in_the_body() {
    let pod = pod("vllm:num_requests_waiting 0\n", "x-queue-time: 37", METRICS);
    assert_eq!(waited(&knowing(Setup::before(&[pod.address]), "vllm")), json!(1_250));
}

#[test]
fn the_wait_that_vllm_states_is_recorded_with_streams_too() {
    let sims = Sims::start([SimSettings { per_request_metrics: true, ..SimSettings::instant() }]);
    let gateway = Setup::before(sims.addresses()).start();
    let usage = r#","stream":true,"stream_options":{"include_usage":true}"#;
    for (more, stated) in [("", true), (usage, true), (r#","stream":true"#, false)] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"Hi"}}]{more}}}"#);
        let answer = gateway.ask(&Request::post("/v1/chat/completions", body));
        let whole = Some(answer.text()).filter(|_| more.is_empty());
        let mut said = answer.events().into_iter().chain(whole).filter_map(|text| {
            serde_json::from_str::<Value>(text).expect("JSON").pointer("/metrics/queue_time_ms")?.as_f64()
        });
        let said = said.next_back().map(|ms| (ms * 1e3).round() as u64);
        assert_eq!(said.is_some(), stated, "vLLM says it with the usage");
        assert_eq!(*gateway.ended(&answer.id()).at("/timings/engine_queue_us"), json!(said), "{more}");
    }
}

//! What the engine says of its own work is in the record, in whichever form it says it.

use serde_json::Value;
use snapgate::demo::sim::SimSettings;

use crate::gateway::{Answer, Found, Request, Setup, Sims};

/// Tokens of every answer here.
const TOKENS: u64 = 9;

/// A body for the chat or the completions API, with a prompt of a few blocks and whatever else.
fn ask(path: &'static str, more: &str) -> Request {
    let text = "Why did my request go where it went, and who else was asked? ".repeat(8);
    let prompt = match path {
        "/v1/completions" => format!(r#""prompt":"{text}""#),
        _ => format!(r#""messages":[{{"role":"user","content":"{text}"}}]"#),
    };
    Request::post(path, format!(r#"{{"model":"llama-3.1-8b",{prompt}{more}}}"#)).with("x-sim-tokens", TOKENS)
}

/// The last usage that an answer states, in one piece or in its events.
fn stated(answer: &Answer) -> Option<Value> {
    let whole = std::iter::once(answer.text()).filter(|_| answer.header("content-type") == Some("application/json"));
    let parsed =
        answer.events().into_iter().chain(whole).map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
    parsed.map(|event| event["usage"].clone()).rfind(|usage| !usage.is_null())
}

fn recorded(found: &Found, name: &str) -> Value {
    found.at(&format!("/outcome/{name}")).clone()
}

#[test]
fn usage_is_recorded_as_the_engine_stated_it() {
    let sims = Sims::start([SimSettings { prompt_tokens_details: true, ..SimSettings::instant() }]);
    let gateway = Setup::before(sims.addresses()).start();
    let (chat, completions) = ("/v1/chat/completions", "/v1/completions");
    let streamed = r#","stream":true,"stream_options":{"include_usage":true}"#;
    let continuous = r#","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}"#;
    for (path, more) in [
        (chat, ""),
        (chat, streamed),
        (chat, continuous),
        (completions, ""),
        (completions, streamed),
        (completions, continuous),
    ] {
        let answer = gateway.ask(&ask(path, more));
        let usage = stated(&answer).unwrap_or_else(|| panic!("{path}{more} states its usage: {}", answer.text()));
        let found = gateway.ended(&answer.id());
        assert_eq!(recorded(&found, "prompt_tokens"), usage["prompt_tokens"], "{path}{more}");
        assert_eq!(recorded(&found, "completion_tokens"), usage["completion_tokens"], "{path}{more}");
        assert_eq!(recorded(&found, "completion_tokens"), TOKENS, "{path}{more}");
        let cached = &usage["prompt_tokens_details"]["cached_tokens"];
        assert_eq!(recorded(&found, "cached_tokens"), *cached, "{path}{more}");
        assert_eq!(recorded(&found, "tokens_estimated"), false, "{path}{more}");
        assert_eq!(recorded(&found, "finish_reason"), "stop", "{path}{more}");
        assert_eq!(recorded(&found, "response_model"), "llama-3.1-8b", "{path}{more}");
    }
    let again = gateway.ask(&ask(chat, ""));
    let cached = recorded(&gateway.ended(&again.id()), "cached_tokens");
    assert!(cached.as_u64().is_some_and(|cached| cached >= 16), "the prompt was asked before: {cached}");
}

#[test]
fn tokens_are_counted_where_the_engine_states_none_and_the_record_says_so() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let answer = gateway.ask(&ask(path, r#","stream":true"#));
        assert_eq!(stated(&answer), None);
        let found = gateway.ended(&answer.id());
        assert_eq!(recorded(&found, "prompt_tokens"), Value::Null, "unknown is not 0");
        assert_eq!(recorded(&found, "cached_tokens"), Value::Null);
        assert_eq!(
            (recorded(&found, "completion_tokens"), recorded(&found, "tokens_estimated")),
            (TOKENS.into(), true.into())
        );
    }
}

#[test]
fn an_answer_that_was_cut_at_its_limit_says_length() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    for more in [r#","max_tokens":2"#, r#","max_tokens":2,"stream":true"#] {
        let found = gateway.ended(&gateway.ask(&ask("/v1/chat/completions", more)).id());
        assert_eq!(recorded(&found, "finish_reason"), "length");
        assert_eq!(recorded(&found, "completion_tokens"), 2);
        assert_eq!(found.at("/request/max_tokens"), 2);
    }
}

#[test]
fn garbage_in_a_stream_neither_stops_it_nor_its_record() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let request = ask("/v1/chat/completions", r#","stream":true,"stream_options":{"include_usage":true}"#);
    let answer = gateway.ask(&request.with("x-sim-fault", "garbage-after=2"));
    assert!(std::str::from_utf8(&answer.body).is_err(), "the garbage came through");
    let found = gateway.ended(&answer.id());
    super::assert_ended(&found, "completed", None, 200);
    assert_eq!(recorded(&found, "completion_tokens"), TOKENS);
    assert_eq!(found.at("/outcome/response_bytes"), answer.body.len());
}

#[test]
fn moments_of_a_stream_come_in_their_order() {
    let slow = SimSettings {
        ttft: std::time::Duration::from_millis(20),
        token_time: std::time::Duration::from_millis(5),
        ..SimSettings::instant()
    };
    let sims = Sims::start([slow]);
    let gateway = Setup::before(sims.addresses()).start();
    let found = gateway.ended(&gateway.ask(&Request::stream(5)).id());
    let names = ["first_byte_offset_us", "first_event_offset_us", "first_content_offset_us", "end_offset_us"];
    let moments = names.map(|name| found.at(&format!("/timings/{name}")).as_u64().expect("it came to that"));
    assert!(moments.is_sorted(), "{names:?}: {moments:?}");
    assert!(moments[2] >= 20_000, "the first token took its time: {moments:?}");
    let between = ["p50", "p99", "max"].map(|name| found.at(&format!("/timings/inter_token_{name}_us")).as_u64());
    assert!(between.is_sorted() && between[0].is_some(), "{between:?}");
    // The pieces may come together where others use the machine, but not before they are sent: four more tokens.
    assert!(moments[3] >= 40_000, "every token took its time: {moments:?}");
}

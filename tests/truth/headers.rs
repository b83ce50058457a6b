//! What goes to the target, what comes back, and what must never be written down.

use snapgate::snapshot::{SnapshotId, SpanId};

use crate::gateway::wire::Head;
use crate::gateway::{Gateway, Request, Setup, Then, Upstream};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A target that answers everything in one piece, with headers of its own.
fn target(headers: &'static str) -> Upstream {
    Upstream::start(move |exchange| {
        exchange.answer("200 OK", headers, "{}");
        Then::Next
    })
}

/// What the target got of a request, and the ID that the client got.
fn forwarded(request: &Request) -> (Head, String) {
    let upstream = target("");
    let gateway = Setup::before(&[upstream.address]).start();
    let id = gateway.ask(request).id();
    (upstream.only().head, id)
}

#[test]
fn the_target_is_told_the_snapshot_id_and_the_client_its_own() {
    let upstream = target("x-request-id: the-engines\r\nx-snapshot-id: forged\r\n");
    let gateway = Setup::before(&[upstream.address]).start();
    let answer = gateway.ask(&Request::chat().with("x-request-id", "mine-1").with("x-snapshot-id", "forged"));
    let id = answer.id();
    id.parse::<SnapshotId>().expect("the ID was minted here");
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    assert_eq!(answer.header("target-pod"), Some("t0"));
    let seen = upstream.only().head;
    assert_eq!((seen.header("x-request-id"), seen.header("x-snapshot-id")), (Some(&*id), None));
    assert_eq!(gateway.ended(&id).text_at("/request/client_request_id"), Some("mine-1"));
    assert_eq!(gateway.lookup("mine-1").text_at("/matches/0/id"), Some(&*id));
}

#[test]
fn a_client_without_a_usable_request_id_is_given_the_snapshot_id() {
    let upstream = target("");
    let gateway = Setup::before(&[upstream.address]).start();
    let too_long = "x".repeat(129);
    for request in [
        Request::chat(),
        Request::chat().with("x-request-id", "two words"),
        Request::chat().with("x-request-id", too_long),
    ] {
        let answer = gateway.ask(&request);
        assert_eq!(answer.header("x-request-id"), Some(&*answer.id()));
        assert_eq!(gateway.ended(&answer.id()).text_at("/request/client_request_id"), None);
    }
}

#[test]
fn an_engine_that_names_its_answer_by_our_id_makes_that_name_a_key() {
    let sims = crate::gateway::Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    for request in [Request::chat(), Request::stream(2)] {
        let answer = gateway.ask(&request);
        let (id, name) = (answer.id(), format!("chatcmpl-{}", answer.id()));
        assert!(answer.text().contains(&format!(r#""id":"{name}""#)), "{}", answer.text());
        let found = gateway.lookup(&name);
        assert_eq!((found.text_at("/id"), found.text_at("/outcome/response_id")), (Some(&*id), Some(&*name)));
    }
}

#[test]
fn what_the_engine_is_told_can_be_set() {
    let upstream = target("");
    for (setting, expected) in [("client", Some("mine")), ("off", None)] {
        let gateway = Setup::before(&[upstream.address]).set("upstream.request_id", setting).start();
        let answer = gateway.ask(&Request::chat().with("x-request-id", "mine"));
        assert_eq!(answer.header("x-request-id"), Some("mine"), "{setting}");
        let seen = upstream.received().pop().expect("the request came").head;
        assert_eq!(seen.header("x-request-id"), expected, "{setting}");
    }
}

#[test]
fn what_is_meant_for_one_hop_stays_there_and_the_rest_passes() {
    let upstream = target(
        "connection: x-theirs\r\nkeep-alive: timeout=5\r\nx-theirs: 1\r\nproxy-authenticate: Basic\r\n\
         upgrade: websocket\r\ntrailer: x-more\r\nx-kept: yes\r\nserver: uvicorn\r\ntarget-pod: forged\r\n\
         endpoint-load-metrics: TEXT a=1\r\nendpoint-load-metrics-bin: AA==\r\nendpoint-load-metrics-json: {}\r\n\
         x-endpoint-load-metrics: a\r\nx-endpoint-load-metrics-bin: a\r\n",
    );
    let gateway = Setup::before(&[upstream.address]).start();
    let request = Request::chat()
        .with("connection", "x-mine, keep-alive")
        .with("x-mine", 1)
        .with("te", "trailers")
        .with("proxy-authorization", "Basic c2VjcmV0")
        .with("upgrade", "websocket")
        .with("endpoint-load-metrics-format", "TEXT")
        .with("target-pod", "another")
        .with("authorization", "Bearer of-the-engine")
        .with("x-kept", "yes");
    let answer = gateway.ask(&request);
    let seen = upstream.only().head;
    for gone in ["connection", "x-mine", "te", "proxy-authorization", "upgrade", "endpoint-load-metrics-format"] {
        assert_eq!(seen.header(gone), None, "{gone} goes no further");
    }
    assert_eq!(seen.header("target-pod"), None);
    assert_eq!(seen.header("x-kept"), Some("yes"));
    assert_eq!(seen.header("authorization"), Some("Bearer of-the-engine"));
    assert_eq!(seen.header("host"), Some(&*upstream.address.to_string()));
    assert_eq!(seen.first_line, "POST /v1/chat/completions HTTP/1.1");

    for gone in ["connection", "keep-alive", "x-theirs", "proxy-authenticate", "upgrade", "trailer"] {
        assert_eq!(answer.header(gone), None, "{gone} goes no further");
    }
    let load = |name: &str| name.contains("endpoint-load-metrics");
    assert!(!answer.head.headers.iter().any(|(name, _)| load(name)), "{:?}", answer.head);
    assert_eq!((answer.header("x-kept"), answer.header("server")), (Some("yes"), Some("uvicorn")));
    assert_eq!(answer.header("target-pod"), Some("t0"), "the gateway says who answered");
}

#[test]
fn a_request_without_a_trace_begins_one_that_is_named_after_its_snapshot() {
    for request in [Request::chat(), Request::chat().with("traceparent", "00-nonsense").with("tracestate", "a=1")] {
        let (seen, id) = forwarded(&request);
        let span = SpanId::of_attempt(id.parse().expect("an ID"), 0);
        assert_eq!(seen.header("traceparent"), Some(&*format!("00-{id}-{span}-03")), "sampled, and random");
        assert_eq!(seen.header("tracestate"), None, "it belongs to no trace");
    }
}

#[test]
fn a_request_within_a_trace_goes_on_in_it_with_its_flag() {
    let upstream = target("");
    let gateway = Setup::before(&[upstream.address]).start();
    for (flags, sampled) in [("01", true), ("00", false)] {
        let parent = format!("00-{TRACE}-{PARENT}-{flags}");
        let id = gateway.ask(&Request::chat().with("traceparent", parent).with("tracestate", "vendor=1")).id();
        let seen = upstream.received().pop().expect("the request came").head;
        let span = SpanId::of_attempt(id.parse().expect("an ID"), 0);
        assert_eq!(seen.header("traceparent"), Some(&*format!("00-{TRACE}-{span}-{flags}")));
        assert_eq!(seen.header("tracestate"), Some("vendor=1"));
        let found = gateway.ended(&id);
        assert_eq!(found.text_at("/trace/trace_id"), Some(TRACE));
        assert_eq!(found.text_at("/trace/parent_span_id"), Some(PARENT));
        assert_eq!(found.at("/trace/sampled"), sampled);
    }
    let found = gateway.lookup(TRACE);
    assert_eq!(found.list("/matches").len(), 2, "both are found by their trace");
}

/// Everything that is below a directory, as bytes.
fn bytes_below(dir: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).expect("the directory can be read");
    let read = |path: std::path::PathBuf| match path.is_dir() {
        true => bytes_below(&path),
        false => vec![(path.display().to_string(), std::fs::read(&path).expect("the file can be read"))],
    };
    entries.flat_map(|entry| read(entry.expect("the directory can be read").path())).collect()
}

#[test]
fn labels_and_a_tenant_are_recorded_and_no_secret_is() {
    const PROMPT: &str = "the-prompt-nobody-may-read";
    const COMPLETION: &str = "the-completion-nobody-may-read";
    const KEY: &str = "sk-the-key-nobody-may-read";
    let upstream = Upstream::start(|exchange| {
        let body = format!(r#"{{"id":"a","choices":[{{"message":{{"content":"{COMPLETION}"}}}}]}}"#);
        exchange.answer("200 OK", "content-type: application/json\r\n", &body);
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).set("record.headers", "x-run-id,x-team").start();
    let ask = |header: &str, value: String| {
        let body = format!(r#"{{"model":"m","max_tokens":7,"messages":[{{"role":"user","content":"{PROMPT}"}}]}}"#);
        let path = format!("/v1/chat/completions?key={KEY}");
        let request = Request::post(path, body).with(header, value).with("cookie", KEY).with("user-agent", "a-client");
        gateway.ask(&request.with("x-run-id", "run-17").with("x-other", "not asked for"))
    };
    let answer = ask("authorization", format!("Bearer {KEY}"));
    assert!(answer.text().contains(COMPLETION), "the client has it");
    let found = gateway.stored(&answer.id());
    assert_eq!(found.at("/request/labels"), &serde_json::json!({"x-run-id": "run-17"}));
    assert_eq!(found.text_at("/request/path"), Some("/v1/chat/completions"));
    assert_eq!(found.text_at("/request/user_agent"), Some("a-client"));
    assert_eq!((found.at("/request/max_tokens"), found.text_at("/request/model")), (&7.into(), Some("m")));
    let tenant = |gateway: &Gateway, id: &str| gateway.ended(id).text_at("/request/tenant").map(str::to_owned);
    let first = tenant(&gateway, &answer.id());
    assert!(first.as_ref().is_some_and(|tenant| tenant.starts_with("t_")), "{first:?}");
    let again = ask("authorization", format!("Bearer {KEY}")).id();
    let other = ask("x-api-key", format!("{KEY}-2")).id();
    assert_eq!(tenant(&gateway, &again), first, "the same credential is the same tenant");
    assert_ne!(tenant(&gateway, &other), first);
    assert_eq!(tenant(&gateway, &gateway.ask(&Request::chat()).id()), None);

    let stopped = gateway.stop();
    let files = bytes_below(stopped.dir.path());
    let has = |bytes: &[u8], secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
    assert!(files.iter().any(|(_, bytes)| has(bytes, "run-17")), "what is recorded is found");
    for (file, bytes) in &files {
        for secret in [PROMPT, COMPLETION, KEY, "nobody-may-read"] {
            assert!(!has(bytes, secret), "{file} has {secret}");
        }
    }
}

//! A simulated pod over real sockets, held against what a real vLLM sent.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{LoadReports, Misbehaviour, Sim, SimSettings};
use crate::orca::{self, Rules};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// How long a test waits for what must come, and how long for what must not.
const PATIENCE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(150);

/// A pod that serves until it is dropped, and a client.
struct Served {
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    _task: JoinSet<()>,
}

async fn served(settings: SimSettings) -> Served {
    let sim = Sim::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), settings).await.unwrap();
    let address = sim.address();
    let mut task = JoinSet::new();
    task.spawn(sim.run(std::future::pending()));
    Served { address, client: Client::builder(TokioExecutor::new()).build_http(), _task: task }
}

fn instant() -> SimSettings {
    SimSettings { model: "tiny".to_owned(), seed: Some(1), ..SimSettings::instant() }
}

fn question() -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4})
}

fn streamed() -> Value {
    let mut body = question();
    body["stream"] = true.into();
    body
}

impl Served {
    async fn try_post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl ToString,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        let mut request = Request::post(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        timeout(PATIENCE, self.client.request(request.body(body.to_string().into()).unwrap())).await.unwrap()
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl ToString) -> (HeaderMap, StatusCode, String) {
        let (head, body) = self.try_post(path, headers, body).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.headers, head.status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let uri = format!("http://{}{path}", self.address).parse().unwrap();
        let response = timeout(PATIENCE, self.client.get(uri)).await.unwrap().unwrap();
        let status = response.status();
        (status, String::from_utf8(response.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    /// The value of the one line of `/metrics` that begins so.
    async fn metric(&self, series: &str) -> f64 {
        let page = self.get("/metrics").await.1;
        let line = page.lines().find(|line| line.starts_with(&format!("vllm:{series}"))).expect(series);
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    async fn until(&self, series: &str, wanted: f64) {
        let start = Instant::now();
        while self.metric(series).await != wanted {
            assert!(start.elapsed() < PATIENCE, "{series} is {} and not {wanted}", self.metric(series).await);
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Everything the pod sends on a fresh connection until it ends, and how it ends.
    async fn raw(&self, headers: &str, body: &Value) -> (Vec<u8>, std::io::Result<()>) {
        let body = body.to_string();
        let request = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut received)).await.unwrap();
        (received, end.map(|_| ()))
    }
}

/// Header lines, sorted, without what differs from run to run.
fn plain_headers<'a>(lines: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut lines: Vec<String> = lines
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| if name == "content-length" { name.to_owned() } else { format!("{name}: {value}") })
        .collect();
    lines.sort();
    lines
}

fn usage(body: &str) -> (u64, u64) {
    let body: Value = serde_json::from_str(body).unwrap();
    (body["usage"]["prompt_tokens"].as_u64().unwrap(), body["usage"]["completion_tokens"].as_u64().unwrap())
}

#[tokio::test]
async fn headers_are_those_of_a_real_vllm() {
    let pod = served(instant()).await;
    let stream = include_str!("../../../tests/fixtures/vllm-0.32.0/chat-stream.headers");
    let whole = include_str!("../../../tests/fixtures/vllm-0.32.0/chat.headers");
    let report = [("endpoint-load-metrics-format", "TEXT")];
    for (real, body) in [(stream, streamed()), (whole, question())] {
        let (headers, status, _) = pod.post(CHAT, &report, body).await;
        assert_eq!(status, 200);
        assert!(headers["date"].to_str().unwrap().ends_with(" GMT"));
        let ours = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let real = real.lines().filter_map(|line| line.split_once(": "));
        assert_eq!(plain_headers(ours), plain_headers(real));
    }
}

#[tokio::test]
async fn every_event_is_a_chunk_of_its_own() {
    let pod = served(instant()).await;
    let (received, end) = pod.raw("", &streamed()).await;
    end.unwrap();
    let received = String::from_utf8(received).unwrap();
    let mut rest = received.split_once("\r\n\r\n").unwrap().1;
    let mut events = Vec::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let (chunk, after) = more.split_at(usize::from_str_radix(size, 16).unwrap());
        events.push(chunk);
        rest = after.strip_prefix("\r\n").unwrap();
    }
    assert_eq!(events.pop(), Some(""), "the empty chunk ends the body");
    assert_eq!(events.len(), 6, "who speaks, four tokens and the end: {events:?}");
    assert!(events.iter().all(|event| event.starts_with("data: ") && event.ends_with("\n\n")), "{events:?}");
    assert_eq!(events[5], "data: [DONE]\n\n");
}

#[tokio::test]
async fn the_answers_id_is_made_from_the_requests() {
    let pod = served(instant()).await;
    let prompt = json!({"prompt": "hello"});
    for (path, body, header, id) in [
        (CHAT, question(), Some("019ab3"), "chatcmpl-019ab3"),
        (CHAT, streamed(), Some("019ab3"), "chatcmpl-019ab3"),
        (COMPLETIONS, prompt, Some("a \"b\""), "cmpl-a \"b\""),
        (CHAT, question(), None, "chatcmpl-"),
    ] {
        let headers: Vec<_> = header.iter().map(|id| ("x-request-id", *id)).collect();
        let (_, _, text) = pod.post(path, &headers, body).await;
        let first = text.lines().next().unwrap();
        let answer: Value = serde_json::from_str(first.strip_prefix("data: ").unwrap_or(first)).unwrap();
        let drawn = answer["id"].as_str().unwrap().strip_prefix(id).expect(id);
        let drawn_length = if header.is_some() { 0 } else { 16 };
        assert!(drawn.len() == drawn_length && drawn.chars().all(|digit| digit.is_ascii_hexdigit()), "{answer}");
    }
}

#[tokio::test]
async fn an_answers_length_is_set_by_header_pod_and_limit() {
    let limits = [None, Some(3), Some(30)];
    for (own, asked, limit, tokens, reason) in [
        (None, None, limits[0], 16, "length"),
        (None, None, limits[1], 3, "length"),
        (Some(10), None, limits[0], 10, "stop"),
        (Some(10), None, limits[1], 3, "length"),
        (Some(10), None, limits[2], 10, "stop"),
        (Some(10), Some("20"), limits[2], 20, "stop"),
        (None, Some("40"), limits[2], 30, "length"),
    ] {
        let pod = served(SimSettings { tokens: own, ..instant() }).await;
        let mut body = question();
        body["max_tokens"] = limit.into();
        let headers: Vec<_> = asked.iter().map(|asked| ("x-sim-tokens", *asked)).collect();
        let (_, _, answer) = pod.post(CHAT, &headers, body).await;
        let said: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((usage(&answer).1, said["choices"][0]["finish_reason"].as_str()), (tokens, Some(reason)));
        let words = said["choices"][0]["message"]["content"].as_str().unwrap().split(' ').count();
        assert_eq!(words as u64, tokens);
    }
}

#[tokio::test]
async fn beyond_capacity_a_request_waits_until_a_client_leaves() {
    let slow = SimSettings { capacity: 1, kv_blocks: 100, token_time: Duration::from_secs(60), ..instant() };
    let pod = served(slow).await;
    let mut first = pod.try_post(CHAT, &[], streamed()).await.unwrap();
    timeout(PATIENCE, first.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(pod.metric("num_requests_running{").await, 1.0);
    assert_eq!(pod.metric("kv_cache_usage_perc{").await, 0.01, "ten prompt tokens and one of the answer");
    // A stream's head does not wait for a slot, its events do.
    let mut second = pod.try_post(CHAT, &[], streamed()).await.unwrap();
    assert_eq!(pod.metric("num_requests_waiting{").await, 1.0);
    let capacity = r#"num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"}"#;
    assert_eq!(pod.metric(capacity).await, 1.0);
    assert!(timeout(SILENCE, second.frame()).await.is_err());
    drop(first);
    let event = timeout(PATIENCE, second.frame()).await.unwrap().unwrap().unwrap().into_data().unwrap();
    assert!(event.starts_with(b"data: "));
    assert_eq!(pod.metric("num_requests_waiting{").await, 0.0);
    assert_eq!(pod.metric(r#"request_success_total{engine="0",finished_reason="abort""#).await, 1.0);
    drop(second);
    pod.until("num_requests_running{", 0.0).await;
    pod.until("kv_cache_usage_perc{", 0.0).await;
    assert_eq!(pod.metric(r#"request_success_total{engine="0",finished_reason="abort""#).await, 2.0);
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_in_one_piece_frees_its_slot() {
    let pod = served(SimSettings { ttft: Duration::from_secs(60), ..instant() }).await;
    let mut task = JoinSet::new();
    let address = pod.address;
    task.spawn(async move {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let request = Request::post(format!("http://{address}{CHAT}")).body(question().to_string().into()).unwrap();
        client.request(request).await.map(|response| response.status())
    });
    pod.until("num_requests_running{", 1.0).await;
    task.abort_all();
    pod.until("num_requests_running{", 0.0).await;
    pod.until(r#"request_success_total{engine="0",finished_reason="abort""#, 1.0).await;
}

#[tokio::test]
async fn counters_and_histograms_move_with_what_was_served() {
    let pod = served(SimSettings { prompt_tokens_details: true, ..instant() }).await;
    let mut long = question();
    long["messages"][0]["content"] = "word ".repeat(100).into();
    let (_, _, first) = pod.post(CHAT, &[], &long).await;
    let (_, _, second) = pod.post(CHAT, &[], &long).await;
    let cached = |answer: &str| -> u64 {
        let answer: Value = serde_json::from_str(answer).unwrap();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let prompt_tokens = usage(&first).0;
    assert_eq!((cached(&first), cached(&second)), (0, prompt_tokens / 16 * 16));
    for (series, value) in [
        ("prefix_cache_queries_total{", 2 * prompt_tokens),
        ("prefix_cache_hits_total{", cached(&second)),
        ("prompt_tokens_total{", 2 * prompt_tokens),
        ("generation_tokens_total{", 8),
        (r#"request_success_total{engine="0",finished_reason="length""#, 2),
        ("time_to_first_token_seconds_count{", 2),
        ("inter_token_latency_seconds_count{", 6),
        ("e2e_request_latency_seconds_count{", 2),
        ("request_queue_time_seconds_count{", 2),
        ("num_requests_running{", 0),
    ] {
        assert_eq!(pod.metric(series).await, value as f64, "{series}");
    }
}

#[tokio::test]
async fn a_stream_is_reset_hangs_or_carries_garbage_after_so_many_events() {
    let pod = served(instant()).await;
    let events = |received: &[u8]| String::from_utf8_lossy(received).matches("data: ").count();
    for after in [0, 1, 3, 6] {
        let (received, end) = pod.raw(&format!("x-sim-fault: reset-after={after}\r\n"), &streamed()).await;
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "after {after}");
        assert_eq!(events(&received), after);

        let (received, end) = pod.raw(&format!("x-sim-fault: garbage-after={after}\r\n"), &streamed()).await;
        end.unwrap();
        assert_eq!(events(&received), 7, "the stream goes on");
        assert!(std::str::from_utf8(&received).is_err());

        let fault = format!("hang-after={after}");
        let mut hung = pod.try_post(CHAT, &[("x-sim-fault", &fault)], streamed()).await.unwrap();
        let mut received = Vec::new();
        while events(&received) < after {
            let frame = timeout(PATIENCE, hung.frame()).await.unwrap().unwrap().unwrap();
            received.extend_from_slice(frame.data_ref().unwrap());
        }
        assert!(timeout(SILENCE, hung.frame()).await.is_err(), "nothing more comes, not even the end");
        assert_eq!(events(&received), after);
    }
}

#[tokio::test]
async fn an_answer_in_one_piece_breaks_halfway() {
    let pod = served(instant()).await;
    let whole = pod.post(CHAT, &[], question()).await.2;
    let body_of = |received: &[u8]| {
        let end = memchr::memmem::find(received, b"\r\n\r\n").unwrap();
        assert!(String::from_utf8_lossy(received).contains(&format!("content-length: {}\r\n", whole.len())));
        received[end + 4..].to_vec()
    };
    let (received, end) = pod.raw("x-sim-fault: reset-after=1\r\n", &question()).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(body_of(&received).len(), whole.len() / 2);
    let (received, end) = pod.raw("x-sim-fault: garbage-after=1\r\n", &question()).await;
    end.unwrap();
    assert_eq!(body_of(&received).len(), whole.len());
    assert!(std::str::from_utf8(&received).is_err());
}

#[tokio::test]
async fn before_the_head_a_request_hangs_or_is_reset() {
    let pod = served(instant()).await;
    let (received, end) = pod.raw("x-sim-fault: reset\r\n", &question()).await;
    assert_eq!((received.len(), end.unwrap_err().kind()), (0, ErrorKind::ConnectionReset));

    let mut hung = JoinSet::new();
    hung.spawn(
        pod.client.request(
            Request::post(format!("http://{}{CHAT}", pod.address))
                .header("x-sim-fault", "hang")
                .body(question().to_string().into())
                .unwrap(),
        ),
    );
    pod.until("num_requests_running{", 1.0).await;
    assert!(timeout(SILENCE, hung.join_next()).await.is_err());
    hung.shutdown().await;
    pod.until(r#"request_success_total{engine="0",finished_reason="abort""#, 1.0).await;
}

#[tokio::test(start_paused = true)]
async fn before_the_head_a_request_is_slow() {
    let (pod, start) = (served(instant()).await, tokio::time::Instant::now());
    assert_eq!(pod.post(CHAT, &[("x-sim-fault", "slow-head=5s")], question()).await.1, 200);
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn errors_are_answered_in_vllms_form() {
    let pod = served(instant()).await;
    let mut unknown = question();
    unknown["model"] = "nope".into();
    let mut too_long = question();
    too_long["max_tokens"] = (1u64 << 40).into();
    for (path, headers, body, status, kind) in [
        (CHAT, &[("x-sim-fault", "error=503")][..], question(), 503, "Service Unavailable"),
        (CHAT, &[("x-sim-fault", "no such")], question(), 400, "Bad Request"),
        (CHAT, &[("x-sim-tokens", "0")], question(), 400, "Bad Request"),
        (CHAT, &[], unknown, 404, "NotFoundError"),
        (CHAT, &[], json!({"prompt": "x"}), 400, "Bad Request"),
        (CHAT, &[], too_long, 400, "BadRequestError"),
        ("/v1/nothing", &[], question(), 404, "Not Found"),
        ("/metrics", &[], question(), 405, "Method Not Allowed"),
    ] {
        let (headers, answered, text) = pod.post(path, headers, body).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((answered.as_u16(), answer["error"]["type"].as_str()), (status, Some(kind)), "{text}");
        assert_eq!(answer["error"]["code"], status);
        assert_eq!(headers["content-type"], "application/json");
    }
    assert_eq!(pod.metric(r#"request_success_total{engine="0",finished_reason="error""#).await, 1.0);
    assert_eq!(pod.metric("num_requests_running{").await, 0.0);
}

#[tokio::test]
async fn a_whole_pod_misbehaves_when_it_is_set_to() {
    let with = |misbehaviour| SimSettings { misbehaviour, ..instant() };
    let gone = served(with(Misbehaviour { refuse: true, ..Misbehaviour::default() })).await;
    let refused = TcpStream::connect(gone.address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    let pod = served(with(Misbehaviour { reset_before_head: true, ..Misbehaviour::default() })).await;
    assert!(pod.raw("", &question()).await.1.is_err());
    assert_eq!(pod.get("/health").await.0, 200, "only generation misbehaves");
    assert_eq!(pod.post(CHAT, &[("x-sim-fault", "none")], question()).await.1, 200);
}

#[tokio::test]
async fn a_load_report_comes_as_vllm_sends_it() {
    let pod = served(instant()).await;
    let (text, json) = (
        "TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0",
        r#"JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}}"#,
    );
    let mut unknown = question();
    unknown["model"] = "nope".into();
    for (format, body, report) in [
        ("TEXT", question(), Some(text)),
        ("text", question(), Some(text)),
        ("json", question(), Some(json)),
        ("BIN", question(), None),
        ("TEXT", streamed(), None),
        ("TEXT", unknown, None),
    ] {
        let (headers, _, _) = pod.post(CHAT, &[("endpoint-load-metrics-format", format)], body).await;
        let sent = headers.get("endpoint-load-metrics").map(|value| value.to_str().unwrap());
        assert_eq!(sent, report, "{format}");
    }
    assert!(!pod.post(CHAT, &[], question()).await.0.contains_key("endpoint-load-metrics"), "only when asked for");
}

#[tokio::test]
async fn a_pod_reports_its_load_in_every_format_if_it_is_set_so() {
    let pod = served(SimSettings { load_reports: LoadReports::Full, ..instant() }).await;
    for format in ["text", "JSON", "bin"] {
        for body in [question(), streamed()] {
            let (headers, ..) = pod.post(CHAT, &[("endpoint-load-metrics-format", format)], body).await;
            let read = orca::read(&headers, Rules::Strict).unwrap().expect("there is a report");
            assert_eq!(read.format.name(), format.to_ascii_lowercase());
            let names: Vec<_> = read.report.named_metrics.iter().map(|(name, _)| &**name).collect();
            assert_eq!(names, ["kv_cache_usage_perc", "num_requests_running", "num_requests_waiting"]);
        }
    }
}

#[tokio::test]
async fn a_pod_reports_nonsense_if_it_is_set_so() {
    let pod = served(SimSettings { load_reports: LoadReports::Malformed, ..instant() }).await;
    let mut flaws = Vec::new();
    for _request in 0..8 {
        let (headers, status, _) = pod.post(CHAT, &[("endpoint-load-metrics-format", "text")], question()).await;
        assert_eq!(status, 200);
        flaws.push(orca::read(&headers, Rules::Lenient).expect_err("nobody can use it").name());
    }
    flaws.sort_unstable();
    flaws.dedup();
    assert!(flaws.len() >= 6, "they are wrong in different ways: {flaws:?}");
}

#[tokio::test]
async fn health_and_models_are_served() {
    let pod = served(instant()).await;
    assert_eq!(pod.get("/health").await, (StatusCode::OK, String::new()));
    let (status, models) = pod.get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((status.as_u16(), &models["data"][0]["id"]), (200, &"tiny".into()), "{models}");
    let ill = served(SimSettings { unhealthy: true, ..instant() }).await;
    assert_eq!(ill.get("/health").await.0, 503);
}

#[tokio::test]
async fn a_seed_repeats_answers_ids_and_errors() {
    async fn transcript(seed: u64) -> Vec<(u16, String)> {
        let settings = SimSettings { seed: Some(seed), error_rate: 0.3, jitter: 0.5, tokens: Some(20), ..instant() };
        let pod = served(settings).await;
        let mut transcript = Vec::new();
        for number in 0..30 {
            let body = json!({"prompt": format!("number {}", number % 10)});
            let (_, status, text) = pod.post(COMPLETIONS, &[], body).await;
            let mut answer: Value = serde_json::from_str(&text).unwrap();
            answer["created"] = Value::Null;
            transcript.push((status.as_u16(), answer.to_string()));
        }
        transcript
    }
    let first = transcript(5).await;
    assert_eq!(first, transcript(5).await);
    assert_ne!(first, transcript(6).await);
    let failed = first.iter().filter(|(status, _)| *status == 500).count();
    assert!((3..=16).contains(&failed), "{failed} of 30 at 30 %");
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_the_pod_is_set_so() {
    let pod = served(SimSettings { keep_alive: Some(Duration::from_millis(50)), ..instant() }).await;
    let mut stream = TcpStream::connect(pod.address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: sim\r\n\r\n").await.unwrap();
    let mut received = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut received)).await.expect("it is closed").unwrap();
    assert!(received.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn stopping_closes_every_connection() {
    let sim = Sim::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), instant()).await.unwrap();
    let address = sim.address();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: sim\r\n\r\n").await.unwrap();
        stream.read_u8().await.unwrap();
        stop.send(()).unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is closed").unwrap();
    };
    tokio::join!(sim.run(async { stopped.await.unwrap() }), client);
}

#[tokio::test]
async fn who_cannot_start_says_which_of_both_is_wrong() {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let lacking = SimSettings { page: Some("/does/not/exist".into()), ..instant() };
    let wrong = Sim::bind(free, lacking).await.unwrap_err();
    let text = "the page /does/not/exist cannot be read: No such file or directory (os error 2): name another file";
    assert_eq!((wrong.kind(), wrong.to_string().as_str()), (ErrorKind::NotFound, text));

    let first = Sim::bind(free, instant()).await.unwrap();
    let wrong = Sim::bind(first.address(), instant()).await.unwrap_err().to_string();
    assert!(wrong.starts_with(&format!("cannot listen on {}: ", first.address())), "{wrong}");
    assert!(wrong.ends_with(": choose another address"), "{wrong}");
}

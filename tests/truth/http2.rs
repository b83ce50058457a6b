//! HTTP/2 by prior knowledge: the same requests, records and refusals, many at once on one connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;

use super::assert_ended;
use super::framing::Tap;
use crate::gateway::{Gateway, PATIENCE, Setup, Sims, Then, Upstream, Word, in_time, until};

/// A client with one connection.
struct Client {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

/// The whole of an answer; `end` is the error that its body ended with.
#[derive(Debug)]
struct Answer {
    head: http::response::Parts,
    body: Vec<u8>,
    trailers: Option<http::HeaderMap>,
    end: Option<hyper::Error>,
}

impl Answer {
    #[track_caller]
    fn id(&self) -> String {
        self.head.headers["x-snapshot-id"].to_str().expect("an ID is text").to_owned()
    }
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> http::Request<Full<Bytes>> {
    let uri = format!("http://gateway{path}");
    http::Request::builder().method(method).uri(uri).body(Full::new(body.into())).expect("a request")
}

async fn whole(sender: SendRequest<Full<Bytes>>, request: http::Request<Full<Bytes>>) -> Answer {
    answered(sender, request).await.expect("there is an answer")
}

/// An answer, if there is the head of one.
async fn answered(mut sender: SendRequest<Full<Bytes>>, request: http::Request<Full<Bytes>>) -> hyper::Result<Answer> {
    let (head, mut incoming) = sender.send_request(request).await?.into_parts();
    let mut answer = Answer { head, body: Vec::new(), trailers: None, end: None };
    while let Some(frame) = incoming.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) => answer.body.extend_from_slice(&data),
            Ok(Err(frame)) => answer.trailers = frame.into_trailers().ok(),
            Err(error) => {
                answer.end = Some(error);
                break;
            }
        }
    }
    Ok(answer)
}

impl Client {
    fn to(address: SocketAddr) -> Self {
        Self::with_window(address, 1 << 20)
    }

    /// One that takes only so many bytes of an answer unread.
    fn with_window(address: SocketAddr, window_bytes: u32) -> Self {
        Self::connected(address, window_bytes).expect("the gateway speaks HTTP/2")
    }

    /// The same, unless the gateway has left before the preface was sent.
    fn connected(address: SocketAddr, window_bytes: u32) -> hyper::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let sender = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.expect("the gateway accepts connections");
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(window_bytes);
            let connection = builder.handshake(TokioIo::new(stream)).await;
            let (sender, connection) = connection?;
            // Its end shows itself at the sender.
            runtime.spawn(async move { connection.await.ok() });
            Ok::<_, hyper::Error>(sender)
        })?;
        Ok(Self { runtime, sender })
    }

    #[track_caller]
    fn ask(&self, request: http::Request<Full<Bytes>>) -> Answer {
        self.runtime.block_on(whole(self.sender.clone(), request))
    }
}

#[test]
fn many_requests_share_a_connection_and_each_has_its_record() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let client = Client::to(gateway.data);
    let body = r#"{"model":"llama-3.1-8b","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
    let asked: Vec<_> = (0..50)
        .map(|_| client.runtime.spawn(whole(client.sender.clone(), request("POST", "/v1/chat/completions", body))))
        .collect();
    let mut ended = Vec::new();
    for answer in asked {
        let answer = client.runtime.block_on(answer).expect("no panic");
        assert_eq!((answer.head.status.as_u16(), answer.end.is_none()), (200, true), "{answer:?}");
        assert!(answer.body.ends_with(b"data: [DONE]\n\n"));
        let found = gateway.ended(&answer.id());
        assert_ended(&found, "completed", None, 200);
        assert_eq!(found.at("/outcome/response_bytes"), answer.body.len());
        ended.push(found);
    }
    assert_eq!(
        gateway.admin("/metrics").text.lines().find(|line| line.starts_with("snapgate_connections ")),
        Some("snapgate_connections 1")
    );
    drop(client);
    gateway.stop().has_exactly(&ended);
}

#[test]
fn what_is_forwarded_is_plain_http_1_1() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).start();
    let client = Client::to(gateway.data);
    let mut request = request("POST", "/v1/completions?a=1", "hello");
    for (name, value) in [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"), ("host", "gateway")] {
        request.headers_mut().append(name, http::HeaderValue::from_static(value));
    }
    assert_eq!(client.ask(request).body, b"{}");
    let requests = tap.requests("HTTP/2");
    let [seen] = requests.as_slice() else { panic!("one request was expected: {requests:?}") };
    assert_eq!(seen.first, ["POST", "/v1/completions?a=1", "HTTP/1.1"]);
    assert_eq!(seen.values("cookie"), [b"a=1; b=2"]);
    assert_eq!(seen.values("host"), [tap.address.to_string().as_bytes()]);
    assert_eq!((seen.values("te").len(), &*seen.body), (0, b"hello".as_slice()));
}

#[test]
fn a_head_larger_than_it_may_be_is_refused_in_http2() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).set("limits.header_bytes", "8KiB").start();
    let client = Client::to(gateway.data);
    let with = |bytes: usize| {
        let mut request = request("GET", "/v1/models", "");
        request.headers_mut().insert("x-long", "a".repeat(bytes).parse().expect("it is a value"));
        client.ask(request).head.status.as_u16()
    };
    assert_eq!([with(6_000), with(10_000), with(6_000)], [200, 431, 200]);
}

#[test]
fn refusals_and_answers_without_a_body_are_the_same() {
    let upstream = Upstream::start(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).set("limits.body_bytes", "1KiB").start();
    let client = Client::to(gateway.data);
    for (request, status) in [
        (request("POST", "/v1/completions", vec![b' '; 2 << 20]), 413),
        (request("GET", "/metrics", ""), 404),
        (request("GET", "/v1/models", "a body"), 400),
        (request("TRACE", "/v1/models", ""), 405),
    ] {
        let answer = client.ask(request);
        assert_eq!((answer.head.status.as_u16(), answer.end.is_none()), (status, true), "{answer:?}");
        assert_eq!(answer.head.headers.get("connection"), None);
        assert_ended(&gateway.ended(&answer.id()), "rejected", Some("client"), status);
    }
    assert!(upstream.received().is_empty());
    let answer = client.ask(request("HEAD", "/v1/models", ""));
    assert_eq!((answer.body.len(), answer.head.headers["content-length"].as_bytes()), (0, b"1234".as_slice()));
    assert_ended(&gateway.ended(&answer.id()), "completed", None, 200);
}

#[test]
fn trailers_pass() {
    let upstream = Upstream::start(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 17\r\nendpoint-load-metrics: a\r\n\r\n");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let answer = Client::to(gateway.data).ask(request("GET", "/v1/models", ""));
    let trailers = answer.trailers.as_ref().expect("there are trailers");
    assert_eq!((&trailers["x-sum"], trailers.len()), (&http::HeaderValue::from_static("17"), 1));
    assert_ended(&gateway.ended(&answer.id()), "completed", None, 200);
}

#[test]
fn an_answer_that_breaks_off_reaches_the_client_up_to_there_and_is_seen_to_be_broken() {
    const BYTES: usize = 3 << 20;
    let upstream = Upstream::start(|exchange| {
        exchange.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 2 * BYTES));
        exchange.send(vec![b'x'; BYTES]);
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let client = Client::to(gateway.data);
    for _ in 0..5 {
        let answer = client.ask(request("GET", "/v1/models", ""));
        assert_eq!((answer.body.len(), answer.end.is_some()), (BYTES, true), "{:?}", answer.end);
        assert_ended(&gateway.ended(&answer.id()), "upstream_reset", Some("target"), 200);
    }
}

#[test]
fn a_client_that_drops_one_request_takes_only_its_target_connection_with_it() {
    let (tell, left) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        if exchange.request.head.header("x-stays").is_none() {
            exchange.answer("200 OK", "", "{}");
            return Then::Next;
        }
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
        tell.send(exchange.is_left()).expect("the test listens");
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let client = Client::to(gateway.data);
    let mut stays = request("GET", "/v1/models", "");
    stays.headers_mut().insert("x-stays", http::HeaderValue::from_static("1"));
    let id = client.runtime.block_on(async {
        let answer = client.sender.clone().send_request(stays).await.expect("there is an answer");
        answer.headers()["x-snapshot-id"].to_str().expect("an ID is text").to_owned()
    });
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true));
    assert_ended(&gateway.ended(&id), "client_disconnected", Some("client"), 200);
    assert_eq!(client.ask(request("GET", "/v1/models", "")).body, b"{}", "the connection serves on");
}

#[test]
fn a_shutdown_lets_open_streams_end() {
    let word = Word::new();
    let finish = word.clone();
    let upstream = Upstream::start(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf ");
        word.wait();
        exchange.send("done");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let (data, client) = (gateway.data, Client::to(gateway.data));
    let open = client.runtime.spawn(whole(client.sender.clone(), request("GET", "/v1/models", "")));
    until("it is at the target", || upstream.received().pop());
    let stopping = std::thread::Builder::new().name("stop".into()).spawn(move || gateway.stop()).expect("a thread");
    until("nobody accepts any more", || TcpStream::connect(data).is_err().then_some(()));
    finish.give();
    let answer = client.runtime.block_on(open).expect("no panic");
    assert_eq!((&*answer.body, answer.end.is_none()), (b"half done".as_slice(), true));
    let stopped = stopping.join().expect("it stops before its grace is over");
    assert_eq!(stopped.log().len(), 1);
}

#[test]
fn one_stream_that_is_not_read_is_given_up_and_the_others_go_on() {
    let upstream = Upstream::start(|exchange| {
        let large = exchange.request.head.header("x-large").is_some();
        exchange.answer("200 OK", "", &"x".repeat(if large { 8 << 20 } else { 8 << 10 }));
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).set("timeouts.client_stall", "100ms").start();
    let client = Client::with_window(gateway.data, 64 << 10);
    let mut large = request("GET", "/v1/models", "");
    large.headers_mut().insert("x-large", http::HeaderValue::from_static("1"));
    let mut unread = client.runtime.block_on(client.sender.clone().send_request(large)).expect("there is an answer");
    let id = unread.headers()["x-snapshot-id"].to_str().expect("an ID is text").to_owned();
    let found = until("it is given up", || {
        assert_eq!(client.ask(request("GET", "/v1/models", "")).body.len(), 8 << 10, "the others are served");
        Some(gateway.lookup(&id)).filter(|found| found.text_at("/phase") == Some("complete"))
    });
    assert_ended(&found, "client_disconnected", Some("client"), 200);
    let error = "the client took nothing for 100 ms (timeouts.client_stall)";
    assert_eq!(found.text_at("/outcome/error"), Some(error));
    let end = client.runtime.block_on(async {
        loop {
            match unread.body_mut().frame().await {
                Some(Ok(_)) => {}
                end => break end,
            }
        }
    });
    assert!(matches!(end, Some(Err(_))), "it is seen to be broken off: {end:?}");
    assert_eq!(client.ask(request("GET", "/v1/models", "")).head.status.as_u16(), 200);
}

#[test]
fn a_connection_on_which_nothing_is_asked_is_let_go_and_a_busy_one_is_not() {
    const LIMIT: Duration = Duration::from_millis(100);
    let word = Word::new();
    let finish = word.clone();
    let upstream = Upstream::start(move |exchange| {
        word.wait();
        exchange.answer("200 OK", "", "late");
        Then::Next
    });
    let setup = Setup::before(&[upstream.address]);
    let gateway = setup.set("timeouts.request_header", format!("{}ms", LIMIT.as_millis())).start();
    // Until its request is at the target, a client is idle: whoever was let go before that comes again.
    let (client, busy) = until("a request is at the target", || {
        let client = Client::connected(gateway.data, 1 << 20).ok()?;
        let busy = client.runtime.spawn(answered(client.sender.clone(), request("GET", "/v1/models", "")));
        let is_there = || !upstream.received().is_empty();
        until("it is there, or was let go", || (busy.is_finished() || is_there()).then_some(()));
        is_there().then_some((client, busy))
    });
    let mut idle = in_time(LIMIT, || opened(&gateway, PREFACE));
    assert!(matches!(verdict(&mut idle), Some((GOAWAY, _))), "it is told");
    while verdict(&mut idle).is_some() {}
    // One that never completes its preface.
    let mut mute = in_time(LIMIT, || opened(&gateway, &PREFACE[..3]));
    while read(&mut mute, &mut [0]).is_some() {}
    finish.give();
    let answer = client.runtime.block_on(busy).expect("no panic").expect("there is an answer");
    assert_eq!((&*answer.body, answer.end.is_none()), (b"late".as_slice(), true));
    until("it is let go, too", || client.sender.is_closed().then_some(()));
}

#[test]
fn a_gateway_that_retires_asks_its_clients_to_go_and_serves_whoever_comes() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let client = Client::to(gateway.data);
    let ask = |client: &Client| client.ask(request("GET", "/v1/models", "")).head.status.as_u16();
    assert_eq!(ask(&client), 200);
    gateway.retire();
    until("the client was told", || client.sender.is_closed().then_some(()));
    for _ in 0..3 {
        let client = Client::to(gateway.data);
        assert_eq!(ask(&client), 200, "whoever comes can ask");
        until("and is told then", || client.sender.is_closed().then_some(()));
    }
}

// === raw frames ===

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame");
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Headers as literals that nobody has to look up (RFC 7541 section 6.2.2).
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat();
    headers.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// How a client begins, with settings that change nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A connection that begins like this.
fn opened(gateway: &Gateway, bytes: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(gateway.data).expect("the gateway accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a TCP option can be set");
    stream.write_all(bytes).map(|()| stream)
}

fn connected(gateway: &Gateway) -> TcpStream {
    opened(gateway, PREFACE).expect("the gateway takes what is sent")
}

/// Fills the buffer; `None` if the connection ended before.
fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> Option<()> {
    stream.read_exact(buffer).inspect_err(|error| assert_ne!(error.kind(), ErrorKind::WouldBlock, "silence")).ok()
}

/// The first frame that says what became of a request, by its kind and its payload; none if the connection ended.
fn verdict(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    loop {
        let mut head = [0; 9];
        read(stream, &mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        read(stream, &mut payload)?;
        if matches!(head[3], HEADERS | RST_STREAM | GOAWAY) {
            return Some((head[3], payload));
        }
    }
}

/// The static table's entry for `:status: 200`.
const STATUS_200: u8 = 0x88;

const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/v1/completions")];

// Both tables are after PortSwigger's "HTTP/2: The Sequel is Always Worse" (2021) and its http-request-smuggler (Apache-2.0),
// the HTTP Garden's findings (GPL-3.0), and RFC 9113 sections 8.1.1, 8.2 and 8.3.

/// Name, and what stands beside the request's own headers.
const ADDED: &[(&str, &[(&str, &str)])] = &[
    ("a length that is too long", &[("content-length", "10")]),
    ("a length that is too short", &[("content-length", "3")]),
    ("a length that is none", &[("content-length", "x")]),
    ("a transfer coding", &[("transfer-encoding", "chunked")]),
    ("a connection header", &[("connection", "close")]),
    ("an upgrade", &[("upgrade", "websocket")]),
    ("a te that is not for trailers", &[("te", "chunked")]),
    ("a line end in a value", &[("x-a", "1\r\ntransfer-encoding: chunked")]),
    ("a line feed in a value", &[("x-a", "1\nx-b: 2")]),
    ("a zero byte in a value", &[("x-a", "1\0")]),
    ("a line end in a name", &[("x-a: 1\r\ntransfer-encoding", "chunked")]),
    ("a colon in a name", &[("x-a: 1", "2")]),
    ("a name in upper case", &[("X-A", "1")]),
    ("an empty name", &[("", "1")]),
    ("a pseudo-header that is none", &[(":x-a", "1")]),
    ("a pseudo-header behind a header", &[("x-a", "1"), (":path", "/metrics")]),
    ("a second path", &[(":path", "/metrics")]),
    ("a second method", &[(":method", "GET")]),
    ("a status", &[(":status", "200")]),
    ("another host", &[("host", "b")]),
    ("two hosts", &[("host", "a"), ("host", "a")]),
    ("an empty host", &[("host", "")]),
    ("a length of nothing before a body", &[("content-length", "0")]),
    ("a list of lengths", &[("content-length", "5, 5")]),
    ("a length with a space behind it", &[("content-length", "5 ")]),
    ("a transfer coding under another name", &[("transfer_encoding", "chunked")]),
    ("a space in a name", &[("transfer-encoding chunked ", "x")]),
    ("a pseudo-header that would be a coding", &[(":transfer-encoding", "chunked")]),
    ("a keep-alive header", &[("keep-alive", "1")]),
    ("a proxy's connection header", &[("proxy-connection", "close")]),
    ("a space before a value", &[("x-a", " 1")]),
    ("a space behind a value", &[("authorization", "Bearer a ")]),
    ("tabs around a value", &[("x-a", "\t1\t")]),
];

/// What stands instead of one of the request's own pseudo-headers.
const REPLACED: &[(&str, &str)] = &[
    (":path", "/v1/models HTTP/1.1\r\nhost: b\r\n\r\nGET /metrics"),
    (":path", "/v1/models x"),
    (":path", "/v1/../metrics"),
    (":path", "*"),
    (":path", ""),
    (":path", "metrics"),
    (":method", "GET /metrics HTTP/1.1\r\n\r\nPOST"),
    (":method", "post"),
    (":method", "TRACE"),
    (":method", "CONNECT"),
    (":method", "PRI"),
    (":method", ""),
    (":authority", "u@a"),
    (":authority", "a b"),
    (":authority", "a,b"),
    (":authority", "a:8x"),
    (":authority", "[::g]"),
    (":authority", "a%2eb"),
    (":authority", "a\r\nx: y"),
    (":scheme", "ftp"),
    (":scheme", "http://b/metrics?"),
];

#[test]
fn nothing_that_http_1_1_would_read_differently_gets_through_a_downgrade() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).set("routes.allow", "*").start();
    let replaced = REPLACED.iter().map(|(name, value)| {
        let headers = POST.map(|(other, own)| if other == *name { (other, *value) } else { (other, own) });
        (format!("{name}: {value}"), headers.to_vec())
    });
    let added = ADDED.iter().map(|(name, headers)| ((*name).to_owned(), [&POST[..], headers].concat()));
    for (name, headers) in added.chain(replaced) {
        let mut stream = connected(&gateway);
        let bytes = [frame(HEADERS, END_HEADERS, 1, &block(&headers)), frame(DATA, END_STREAM, 1, b"hello")].concat();
        // The connection may have been closed over the first frame.
        stream.write_all(&bytes).ok();
        if let Some((HEADERS, payload)) = verdict(&mut stream) {
            assert_ne!(payload.first(), Some(&STATUS_200), "{name} got through");
        }
        let requests = tap.requests(&name);
        assert!(requests.is_empty(), "{name}: {requests:?}");
    }
    let mut stream = connected(&gateway);
    let bytes = [frame(HEADERS, END_HEADERS, 1, &block(&POST)), frame(DATA, END_STREAM, 1, b"hello")].concat();
    stream.write_all(&bytes).expect("the gateway takes what is sent");
    assert!(matches!(verdict(&mut stream), Some((HEADERS, payload)) if payload[0] == STATUS_200));
    assert_eq!(tap.requests("a request like any other").len(), 1);
}

#[test]
fn a_flood_of_resets_ends_its_connection_and_harms_nobody() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let other = Client::to(gateway.data);
    let mut stream = connected(&gateway);
    // Errors mean that the connection was closed, which is what is wanted.
    for id in (0..20_000u32).map(|number| 2 * number + 1) {
        let bytes =
            [frame(HEADERS, END_HEADERS, id, &block(&POST)), frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat();
        if stream.write_all(&bytes).is_err() {
            break;
        }
    }
    // Until it is closed or reset; with luck there is a GOAWAY before.
    while verdict(&mut stream).is_some() {}
    assert_eq!(other.ask(request("GET", "/v1/models", "")).head.status.as_u16(), 200);
}

//! What nobody may read: not in the gateway's own log, however much it says, and not in its files.

use std::fs;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::process::{Client, Engine, Gateway, binary};

const PROMPT: &str = "a-prompt-that-nobody-may-read";
const KEY: &str = "sk-a-key-that-nobody-may-read";
const QUERY: &str = "a-query-that-nobody-may-read";
const COOKIE: &str = "a-cookie-that-nobody-may-read";
const ENGINE_KEY: &str = "a-key-of-the-engine-that-nobody-may-read";
const TOKEN: &str = "a-token-that-nobody-may-read";

/// What the engine answers; it is a completion.
const COMPLETION: &str = "\"text\":\" 4\"";

fn body() -> String {
    format!(r#"{{"model":"tiny","prompt":"{PROMPT}","max_tokens":4}}"#)
}

fn over_http1(gateway: &Gateway) {
    let body = body();
    let request = format!(
        "POST /v1/completions?key={QUERY} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncookie: a={COOKIE}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = Client::connect(gateway.data).and_then(|mut client| client.ask(request.as_bytes(), |_| {}));
    assert_eq!(answer.expect("there is an answer").status, 200);
}

fn over_http2(gateway: &Gateway) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let status = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.data).await.expect("the gateway listens");
        let connected = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.expect("it speaks HTTP/2");
        let request = http::Request::post(format!("http://gateway/v1/completions?key={QUERY}"))
            .header("x-api-key", KEY)
            .header("cookie", format!("a={COOKIE}"))
            .body(Full::new(Bytes::from(body())))
            .expect("it is a request");
        let answered = async {
            let answer = sender.send_request(request).await.expect("there is an answer");
            let status = answer.status();
            answer.into_body().collect().await.expect("it is whole");
            status
        };
        tokio::select! {
            status = answered => status,
            ended = connection => panic!("the connection has ended: {ended:?}"),
        }
    });
    assert_eq!(status, 200);
}

fn lookup(gateway: &Gateway) {
    for (token, status) in [(TOKEN, 200), (KEY, 401)] {
        let request = format!("GET /v1/snapshots HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\r\n");
        let answer = Client::connect(gateway.admin).and_then(|mut client| client.ask(request.as_bytes(), |_| {}));
        assert_eq!(answer.expect("there is an answer").status, status);
    }
}

/// Everything in the files below a directory.
fn contents(dir: &Path) -> Vec<u8> {
    let entries = fs::read_dir(dir).expect("it can be read").map(|entry| entry.expect("it can be read").path());
    let read = |path: std::path::PathBuf| {
        if path.is_dir() { contents(&path) } else { fs::read(&path).expect("it can be read") }
    };
    entries.flat_map(read).collect()
}

#[test]
fn nothing_secret_is_in_a_log_that_says_all_or_in_a_file() {
    let engine = Engine::start();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let mut command = Command::new(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
    command.args(["--target", &format!("http://{}", engine.address), "--json-log"]).arg(dir.path().join("log.jsonl"));
    command
        .env("SNAPGATE_LOG_LEVEL", "trace,hyper=trace,hyper_util=trace,h2=trace,rustls=trace")
        .env("SNAPGATE_LOOKUP_TOKENS", format!("ops={TOKEN}"));
    command.env("SNAPGATE_UPSTREAM_AUTHORIZATION", ENGINE_KEY);
    let mut gateway = Gateway::start(command);
    gateway.until_ready();
    over_http1(&gateway);
    over_http2(&gateway);
    lookup(&gateway);
    assert!(gateway.stop().success());
    let (log, files) = (gateway.whole_log(), contents(dir.path()));
    assert!(log.contains("\"level\":\"TRACE\""), "it says all: {log}");
    let files = String::from_utf8_lossy(&files);
    assert!(files.contains("/v1/completions"), "there are records");
    for secret in [PROMPT, KEY, QUERY, COOKIE, ENGINE_KEY, TOKEN, COMPLETION] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
        assert!(!files.contains(secret), "{secret} is in a file");
    }
}

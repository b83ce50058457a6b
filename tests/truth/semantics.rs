//! HTTP as it is spoken: answers without a body, trailers, chunks both ways, and who may read which header.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::assert_ended;
use crate::gateway::{Client, Gateway, PATIENCE, Request, Setup, Then, Upstream};

/// A target that answers everything with these bytes.
fn target(bytes: &'static str) -> Upstream {
    Upstream::start(move |exchange| {
        exchange.send(bytes);
        Then::Next
    })
}

/// Everything that comes back for a request on a connection of its own, byte for byte.
fn raw(gateway: &Gateway, request: &str) -> String {
    let mut stream = TcpStream::connect(gateway.data).expect("the gateway accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a TCP option can be set");
    stream.write_all(request.as_bytes()).expect("the gateway takes what is sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the gateway closes when it was asked to");
    text
}

fn id_in(text: &str) -> &str {
    let at = text.find("x-snapshot-id: ").expect("every answer has a snapshot ID") + "x-snapshot-id: ".len();
    &text[at..at + 32]
}

#[test]
fn an_answer_that_has_no_body_by_its_kind_has_none() {
    for (method, answer, status, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n", 200, Some("1234")),
        ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200, None),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n", 304, None),
    ] {
        let upstream = target(answer);
        let gateway = Setup::before(&[upstream.address]).set("threads", 1).set("timeouts.pool_idle", "1h").start();
        for _ in 0..2 {
            let text = raw(&gateway, &format!("{method} /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"));
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
            assert!(text.ends_with("\r\n\r\n") && text.matches("\r\n\r\n").count() == 1, "no body: {text}");
            let found = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            assert_eq!(found, length, "{text}");
            assert_ended(&gateway.ended(id_in(&text)), "completed", None, status);
        }
        let connections: Vec<_> = upstream.received().iter().map(|request| request.connection).collect();
        assert_eq!(connections, [0, 0], "the connection to the target serves again");
    }
}

#[test]
fn trailers_that_were_announced_pass_and_load_reports_do_not() {
    let upstream = target(
        "HTTP/1.1 200 OK\r\ntrailer: x-sum, endpoint-load-metrics, content-length\r\ntransfer-encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\nx-sum: 17\r\nendpoint-load-metrics: TEXT a=1\r\ncontent-length: 9\r\nx-more: 1\r\n\r\n",
    );
    let gateway = Setup::before(&[upstream.address]).start();
    let text = raw(&gateway, "GET /v1/models HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: close, te\r\n\r\n");
    assert!(text.ends_with("\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 17\r\n\r\n"), "{text}");
    assert_ended(&gateway.ended(id_in(&text)), "completed", None, 200);
}

#[test]
fn a_request_in_chunks_reaches_the_target_whole_and_without_its_trailers() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    client.send_bytes(
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
          3\r\nhel\r\n2\r\nlo\r\n0\r\nx-sum: 17\r\nauthorization: forged\r\n\r\n",
    );
    client.head();
    let seen = upstream.only();
    assert_eq!((&*seen.body, seen.head.header("content-length")), (b"hello".as_slice(), Some("5")));
    for gone in ["transfer-encoding", "trailer", "x-sum", "authorization"] {
        assert_eq!(seen.head.header(gone), None, "{gone}");
    }
}

#[test]
fn a_script_of_another_origin_may_read_the_id_if_it_may_read_the_answer() {
    for (theirs, ours) in [
        ("", None),
        ("access-control-allow-origin: *\r\n", Some("x-snapshot-id, x-request-id, target-pod")),
        (
            "access-control-allow-origin: *\r\naccess-control-expose-headers: x-a\r\naccess-control-expose-headers: x-b\r\n",
            Some("x-a, x-b, x-snapshot-id, x-request-id, target-pod"),
        ),
    ] {
        let upstream = Upstream::start(move |exchange| {
            exchange.answer("200 OK", theirs, "{}");
            Then::Next
        });
        let gateway = Setup::before(&[upstream.address]).start();
        assert_eq!(gateway.ask(&Request::chat()).header("access-control-expose-headers"), ours);
    }
}

#[test]
fn a_script_may_read_a_refusal_where_that_is_configured() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let allowed = |origins: &str, origin: &str| {
        let gateway = Setup::before(&[upstream.address]).set("routes.cors_origins", origins).start();
        let refused = gateway.ask(&Request::get("/metrics").with("origin", origin));
        assert_eq!(refused.status, 404);
        let seen = ["access-control-allow-origin", "access-control-expose-headers", "vary"];
        seen.map(|name| refused.header(name).map(str::to_owned))
    };
    let exposed = Some("x-snapshot-id, x-request-id, target-pod".to_owned());
    let (chat, both) = ("https://chat.example", "https://chat.example,http://localhost:3000");
    assert_eq!(allowed("", chat), [None, None, None]);
    assert_eq!(allowed(both, "https://evil.example"), [None, None, None]);
    assert_eq!(allowed(both, chat), [Some(chat.into()), exposed.clone(), Some("origin".into())]);
    assert_eq!(allowed("*", chat), [Some("*".into()), exposed, Some("origin".into())]);
}

#[test]
fn nothing_of_a_request_can_split_an_answer() {
    let upstream = target("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let gateway = Setup::before(&[upstream.address]).start();
    for header in
        ["x-request-id: a\tb", "x-request-id: a%0d%0aset-cookie: b", "traceparent: 00-%0d%0a", "x-request-id: \u{e9}"]
    {
        let request = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{header}\r\n\r\n");
        let text = raw(&gateway, &request);
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("set-cookie")), "{text}");
        let names = text.lines().skip(1).take_while(|line| !line.is_empty()).filter_map(|line| line.split(':').next());
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "content-length", "date", "target-pod", "x-request-id", "x-snapshot-id"]);
    }
}

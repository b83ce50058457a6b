//! Bodies of requests: how much is held and for how long, what is refused unread, and that a refusal reaches its client.

use super::assert_ended;
use super::endings_abroad::assert_local;
use crate::gateway::client::id_of;
use crate::gateway::{Answer, Client, Request, Setup, Then, Upstream, Word, until};

/// A target that says what it got.
fn echo() -> Upstream {
    Upstream::start(|exchange| {
        let body = format!("{} bytes", exchange.request.body.len());
        exchange.answer("200 OK", "", &body);
        Then::Next
    })
}

fn of_bytes(count: usize) -> Request {
    Request::post("/v1/chat/completions", vec![b' '; count])
}

#[track_caller]
fn answer(client: &mut Client) -> Answer {
    let head = client.head();
    client.rest_of(head)
}

#[test]
fn a_body_that_was_sent_on_takes_no_room_while_its_answer_is_awaited() {
    let word = Word::new();
    let finish = word.clone();
    let upstream = Upstream::start(move |exchange| {
        word.wait();
        exchange.answer("200 OK", "", "late");
        Then::Next
    });
    let setup = Setup::before(&[upstream.address]).set("limits.buffered_bytes", "1MiB");
    // One thread: it has let go of a body when it reads the next one.
    let gateway = setup.set("limits.body_bytes", "1MiB").set("threads", 1).start();
    let mut clients: Vec<_> = (0..3).map(|_| Client::to(gateway.data)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&of_bytes(600_000));
        until("it is at the target", || upstream.received().get(number).cloned());
    }
    clients.iter().for_each(|_| finish.give());
    for client in &mut clients {
        assert_eq!(answer(client).text(), "late");
    }
}

#[test]
fn a_refusal_reaches_a_client_that_reads_only_when_it_has_sent_all() {
    let upstream = echo();
    let gateway = Setup::before(&[upstream.address]).set("limits.body_bytes", "1KiB").start();
    // More than the buffers of both sockets take: without a reader, the client would never come to read.
    let body = vec![b' '; 16 << 20];
    let chunked = |body: &[u8]| {
        let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        [format!("{head}{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
    };
    for announced in [true, false] {
        let mut client = Client::to(gateway.data);
        if announced {
            client.send(&Request::post("/v1/completions", body.clone()));
        } else {
            client.send_bytes(&chunked(&body));
        }
        let answer = answer(&mut client);
        assert_local(&answer, 413);
        assert_eq!(answer.header("connection"), Some("close"), "the rest is no request");
        assert_ended(&gateway.ended(&answer.id()), "rejected", Some("client"), 413);
    }
    let mut client = Client::to(gateway.data);
    client.send(&Request::post("/metrics", body));
    assert_local(&answer(&mut client), 404);
    assert!(upstream.received().is_empty());
}

#[test]
fn a_client_that_waits_for_the_word_to_go_on_gets_it_only_if_it_will_be_read() {
    let upstream = echo();
    let gateway = Setup::before(&[upstream.address]).set("limits.body_bytes", "1KiB").start();
    let head = |path: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n")
    };
    let mut client = Client::to(gateway.data);
    client.send_bytes(head("/v1/completions", 5).as_bytes());
    assert_eq!(client.head().first_line, "HTTP/1.1 100 Continue");
    client.send_bytes(b"hello");
    assert_eq!(answer(&mut client).text(), "5 bytes");
    assert_eq!(upstream.only().head.header("expect"), None, "it was answered here");

    for (path, length, status) in [("/v1/completions", 1025, 413), ("/metrics", 5, 404)] {
        let mut client = Client::to(gateway.data);
        client.send_bytes(head(path, length).as_bytes());
        let answer = answer(&mut client);
        assert_local(&answer, status);
        assert_eq!(answer.header("connection"), Some("close"));
    }
}

#[test]
fn a_body_there_is_no_room_for_is_refused_unread() {
    let upstream = echo();
    let setup = Setup::before(&[upstream.address]).set("limits.buffered_bytes", "1MiB");
    let gateway = setup.set("limits.body_bytes", "1MiB").start();
    let mut first = Client::to(gateway.data);
    first.send_bytes(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 600001\r\n\r\n");
    first.send_bytes(&vec![b' '; 600_000]);
    let ask = || {
        let mut second = Client::to(gateway.data);
        let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 600000\r\n\r\n";
        second.send_bytes(head.as_bytes());
        let head = second.head();
        (head.first_line.contains(" 503 ")).then(|| second.rest_of(head))
    };
    let second = until("the first is held", ask);
    assert_local(&second, 503);
    assert_ended(&gateway.ended(&second.id()), "overloaded", Some("gateway"), 503);
    first.send_bytes(b" ");
    assert_eq!(answer(&mut first).text(), "600001 bytes");
    assert_eq!(gateway.ask(&of_bytes(600_000)).text(), "600000 bytes", "there is room again");
}

#[test]
fn clients_that_send_large_bodies_slowly_leave_room_for_small_ones() {
    const ALL_BUT_ONE: usize = (1 << 20) - 1;
    let upstream = echo();
    let setup = Setup::before(&[upstream.address]).set("limits.buffered_bytes", "2MiB");
    let gateway = setup.set("limits.body_bytes", "1MiB").start();
    assert!(!gateway.admin("/readyz").text.contains("warnings"));
    let mut slow = Client::to(gateway.data);
    slow.send_bytes(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 1048576\r\n\r\n");
    slow.send_bytes(&vec![b' '; ALL_BUT_ONE]);
    // Another one like it would take all there is.
    let second = until("the first is held", || {
        let mut second = Client::to(gateway.data);
        let head =
            "POST /v1/completions HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1048576\r\n\r\n";
        second.send_bytes(head.as_bytes());
        let head = second.head();
        (head.first_line.contains(" 503 ")).then(|| second.rest_of(head))
    });
    assert_local(&second, 503);
    for small in [1, 100, 64 * 1024] {
        assert_eq!(gateway.ask(&of_bytes(small)).text(), format!("{small} bytes"));
    }
    // Nobody is sent away from this gateway: the others have the same clients.
    let ready = gateway.admin("/readyz");
    let warning = ready.at("/warnings/0").as_str().expect("a sentence");
    assert!(ready.status == 200 && warning.contains("limits.buffered_bytes"), "{}", ready.text);
    slow.send_bytes(b" ");
    assert_eq!(answer(&mut slow).text(), "1048576 bytes", "who was slow is served, too");
    assert_eq!(gateway.ask(&of_bytes(1 << 20)).text(), "1048576 bytes", "there is room again");
}

#[test]
fn what_cannot_be_read_is_passed_on_and_the_record_says_so() {
    const READABLE: &str = r#"{"model":"llama-3.1-8b","stream":false}"#;
    let upstream = echo();
    let gateway = Setup::before(&[upstream.address]).start();
    let post = |body: &str| Request::post("/v1/completions", body);
    for (request, unread) in [
        (post(READABLE), false),
        (post(READABLE).with("content-encoding", "identity"), false),
        (post(READABLE).with("content-encoding", "gzip"), true),
        (post("\x1f\u{8}\0not really gzip").with("content-encoding", "gzip"), true),
        (post("--x\r\ncontent-disposition: form-data\r\n\r\n--x--"), true),
        (post(""), false),
        (Request::get("/v1/models"), false),
    ] {
        let answer = gateway.ask(&request);
        let found = gateway.ended(&answer.id());
        assert_eq!(found.at("/request/body_unread"), unread, "{request:?}");
        let bytes = found.at("/request/body_bytes").as_u64().expect("a length");
        assert_eq!(answer.text(), format!("{bytes} bytes"));
        assert_eq!(found.text_at("/request/model").is_some(), bytes > 0 && !unread);
        assert_eq!(gateway.stored(&answer.id()).at("/request/body_unread"), unread, "stored as it was");
    }
    let mut client = Client::to(gateway.data);
    client.send(&post("no JSON").with("content-encoding", "br"));
    let id = id_of(&client.head());
    let seen = upstream.received().pop().expect("it came");
    assert_eq!((seen.head.header("content-encoding"), &*seen.body), (Some("br"), b"no JSON".as_slice()));
    assert_ended(&gateway.ended(&id), "completed", None, 200);
}

//! Whatever a target sends, in whatever pieces, and wherever it breaks off: the client gets exactly that.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use super::assert_ended;
use crate::gateway::client::id_of;
use crate::gateway::{Client, End, Exchange, Gateway, PATIENCE, Request, Setup, Then, Upstream};

/// Streams that are tried: each is a request through a real gateway.
const CASES: u32 = 64;

/// How a target says where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    Close,
}

/// One answer.
#[derive(Clone, Debug)]
struct Script {
    content_type: &'static str,
    body: Vec<u8>,
    framing: Framing,
    /// Where chunks end.
    chunks: Vec<Index>,
    /// Where writes end.
    writes: Vec<Index>,
    /// Where it breaks off, if it does.
    breaks: Option<Index>,
    /// How it ends, if it breaks off or is framed by its end.
    end: Then,
}

/// The bytes of an answer after its head, and what of them is body.
struct Sent {
    bytes: Vec<u8>,
    body: Vec<Range<usize>>,
}

impl Script {
    fn head(&self) -> String {
        let framing = match self.framing {
            Framing::Length => format!("content-length: {}\r\n", self.body.len()),
            Framing::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
            Framing::Close => String::new(),
        };
        format!("HTTP/1.1 200 OK\r\ncontent-type: {}\r\n{framing}\r\n", self.content_type)
    }

    fn whole(&self) -> Sent {
        if self.framing != Framing::Chunked {
            return Sent { bytes: self.body.clone(), body: std::iter::once(0..self.body.len()).collect() };
        }
        let mut sent = Sent { bytes: Vec::new(), body: Vec::new() };
        for chunk in pieces(&self.body, &self.chunks) {
            sent.bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
            sent.body.push(sent.bytes.len()..sent.bytes.len() + chunk.len());
            sent.bytes.extend(chunk);
            sent.bytes.extend(b"\r\n");
        }
        sent.bytes.extend(b"0\r\n\r\n");
        sent
    }

    /// What is sent of it, what the client must get, and how that must end.
    fn expected(&self) -> (Vec<u8>, Vec<u8>, End) {
        let Sent { mut bytes, body } = self.whole();
        let whole = bytes.len();
        bytes.truncate(self.breaks.filter(|_| whole > 0).map_or(whole, |at| at.index(whole)));
        let got = body.into_iter().flat_map(|range| &bytes[range.start.min(bytes.len())..range.end.min(bytes.len())]);
        let got = got.copied().collect();
        let is_whole = match self.framing {
            Framing::Length | Framing::Chunked => bytes.len() == whole,
            Framing::Close => self.end == Then::Close,
        };
        (bytes, got, if is_whole { End::Clean } else { End::BrokenOff })
    }

    fn perform(&self, exchange: &mut Exchange<'_>) -> Then {
        exchange.send(self.head());
        let (bytes, _, end) = self.expected();
        for piece in pieces(&bytes, &self.writes) {
            exchange.send(piece);
            std::thread::yield_now();
        }
        if self.framing != Framing::Close && end == End::Clean { Then::Next } else { self.end }
    }
}

/// Bytes cut at arbitrary places, into pieces that are not empty.
fn pieces<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
    at.sort_unstable();
    at.dedup();
    at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
}

/// Streams as engines send them, streams as they should not, and bytes that are no stream at all.
fn bodies() -> impl Strategy<Value = (&'static str, Vec<u8>)> {
    let data = prop_oneof![
        Just(r#"{"choices":[{"index":0,"delta":{"content":"naïve"},"finish_reason":null}]}"#.to_owned()),
        Just(r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#.to_owned()),
        Just("[DONE]".to_owned()),
        "\\PC{0,80}",
    ];
    let line = (prop_oneof![Just("data: "), Just("data:"), Just(": "), Just("event: "), Just("")], data)
        .prop_map(|(field, data)| format!("{field}{data}"));
    let end = prop_oneof![Just("\n"), Just("\n\n"), Just("\r\n\r\n"), Just("\r")];
    let events = prop::collection::vec((line, end), 0..40)
        .prop_map(|lines| lines.into_iter().map(|(line, end)| line + end).collect::<String>().into_bytes());
    let json = prop::collection::vec("\\PC{0,40}", 0..20).prop_map(|texts| {
        serde_json::json!({"choices": texts, "usage": {"prompt_tokens": 3}}).to_string().into_bytes()
    });
    prop_oneof![
        3 => events.prop_map(|body| ("text/event-stream; charset=utf-8", body)),
        1 => json.prop_map(|body| ("application/json", body)),
        1 => prop::collection::vec(any::<u8>(), 0..100_000).prop_map(|body| ("application/octet-stream", body)),
        1 => prop::collection::vec(any::<u8>(), 0..2_000).prop_map(|body| ("text/event-stream", body)),
    ]
}

fn scripts() -> impl Strategy<Value = Script> {
    let framing = prop_oneof![Just(Framing::Length), Just(Framing::Chunked), Just(Framing::Close)];
    let cuts = || prop::collection::vec(any::<Index>(), 0..30);
    let end = prop_oneof![Just(Then::Close), Just(Then::Reset)];
    let parts = (bodies(), framing, cuts(), cuts(), prop::option::of(any::<Index>()), end);
    parts.prop_map(|((content_type, body), framing, chunks, writes, breaks, end)| Script {
        content_type,
        body,
        framing,
        chunks,
        writes,
        breaks,
        end,
    })
}

#[test]
fn the_client_gets_exactly_the_bytes_that_the_target_sent() {
    let next = Arc::new(Mutex::new(None::<Script>));
    let (reset, reset_now) = mpsc::channel();
    let (script, reset_now) = (Arc::clone(&next), Mutex::new(reset_now));
    let upstream = Upstream::start(move |exchange| {
        let script = script.lock().expect("nobody panicked").take().expect("a script was set for every request");
        let then = script.perform(exchange);
        if then == Then::Reset {
            // An error means that the test has failed already.
            drop(reset_now.lock().map(|reset_now| reset_now.recv_timeout(PATIENCE)));
        }
        then
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&scripts(), |script| {
        *next.lock().expect("nobody panicked") = Some(script.clone());
        passes_as_it_came(&gateway, &script, &reset)
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

fn passes_as_it_came(gateway: &Gateway, script: &Script, reset: &mpsc::Sender<()>) -> Result<(), TestCaseError> {
    let (_, expected, end) = script.expected();
    let mut client = Client::to(gateway.data);
    client.send(&Request::stream(1));
    let head = client.head();
    let mut body = Vec::new();
    // A reset destroys what is still on its way to the gateway, so it comes when all has arrived. A close comes at once.
    if end == End::BrokenOff && script.end == Then::Reset {
        while body.len() < expected.len() {
            body.extend(client.piece().map_err(|end| TestCaseError::fail(format!("{end:?} after {}", body.len())))?);
        }
        reset.send(()).expect("the target waits");
    }
    let answer = client.rest_of(head);
    body.extend_from_slice(&answer.body);
    prop_assert_eq!(answer.status, 200);
    prop_assert_eq!(answer.header("content-type"), Some(script.content_type));
    prop_assert!(body == expected, "{} bytes came of {}", body.len(), expected.len());
    prop_assert_eq!(answer.end, end);
    let found = gateway.ended(&answer.id());
    match end {
        End::Clean => assert_ended(&found, "completed", None, 200),
        End::BrokenOff => assert_ended(&found, "upstream_reset", Some("target"), 200),
    }
    prop_assert_eq!(found.at("/outcome/response_bytes").as_u64(), Some(expected.len() as u64));
    Ok(())
}

#[test]
fn the_target_gets_exactly_the_bytes_that_the_client_sent() {
    let upstream = Upstream::start(|exchange| {
        exchange.answer("200 OK", "", "{}");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).start();
    // Larger than one read, not text, and in chunks, whose sizes are the gateway's own affair.
    let body: Vec<u8> = (0..200_000u32).map(|number| (number * 31 % 251) as u8).collect();
    let mut client = Client::to(gateway.data);
    client.send_bytes(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    for piece in body.chunks(7_777) {
        client.send_bytes(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    client.send_bytes(b"0\r\n\r\n");
    let head = client.head();
    let answer = client.rest_of(head);
    let received = upstream.only();
    assert!(received.body == body, "{} bytes came of {}", received.body.len(), body.len());
    assert_eq!(received.head.header("transfer-encoding"), None, "it is known whole");
    assert_eq!(gateway.ended(&answer.id()).at("/request/body_bytes"), body.len());
}

#[test]
fn a_slow_client_gets_all_of_a_stream_that_broke_off_long_ago() {
    const SENT: usize = 8 << 20;
    let upstream = Upstream::start(|exchange| {
        exchange.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", SENT + 1));
        exchange.send(vec![b'x'; SENT]);
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).start();
    let mut client = Client::to(gateway.data);
    client.send(&Request::stream(1));
    let head = client.head();
    let mut got = 0;
    let end = loop {
        // Slower than the target, so that every buffer on the way is full when it breaks off.
        std::thread::yield_now();
        match client.piece() {
            Ok(piece) => got += piece.len(),
            Err(end) => break end,
        }
    };
    assert_eq!((got, end), (SENT, End::BrokenOff));
    let found = gateway.ended(&id_of(&head));
    assert_ended(&found, "upstream_reset", Some("target"), 200);
    assert_eq!(found.at("/outcome/response_bytes"), SENT);
}

/// The head and the break can come within one turn of the gateway's loop. Then hyper would drop the head, and with it the
/// ID, if the gateway told it of the break at once.
#[test]
fn an_answer_that_breaks_off_in_one_piece_with_its_head_still_has_it() {
    const TAILS: [(&str, &str); 5] =
        [("", ""), ("0\r\n", ""), ("5\r\n", ""), ("5\r\nbytes\r\n", "bytes"), ("5\r\nbytes\r\n5\r\nby", "bytesby")];
    const ROUNDS: usize = 20;
    let count = AtomicUsize::new(0);
    let upstream = Upstream::start(move |exchange| {
        let (tail, _) = TAILS[count.fetch_add(1, Ordering::Relaxed) % TAILS.len()];
        exchange.send(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{tail}"));
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).start();
    for (tail, expected) in TAILS.iter().cycle().take(ROUNDS * TAILS.len()) {
        let answer = gateway.ask(&Request::stream(1));
        assert_eq!((answer.status, answer.text(), answer.end), (200, *expected, End::BrokenOff), "after {tail:?}");
        let found = gateway.ended(&answer.id());
        assert_ended(&found, "upstream_reset", Some("target"), 200);
        assert_eq!(found.at("/outcome/response_bytes"), expected.len());
    }
}

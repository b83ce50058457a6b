//! Nothing is passed on that two parsers could read differently, in either direction.
//!
//! The request cases are the mutations of defparam's smuggler (`configs/default.py` and `configs/exhaustive.py` of
//! github.com/defparam/smuggler, MIT), of the transfer coding and of the length, and a table of our own after RFC 9112
//! (sections 2.2, 3.2, 5, 6 and 7) and RFC 9110 (7.2 and 7.6.1), with the techniques of PortSwigger's http-request-smuggler
//! (`DesyncBox.java`, `EarlyBodyPair`, `ChunkSizeScan.java`; Apache-2.0) and the bugs that the HTTP Garden has found
//! (`TROPHIES.md` of github.com/narfindustries/http-garden, GPL-3.0), all written anew. Whatever reaches the target is read by
//! two parsers, see `parsers.rs`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::assert_ended;
use crate::gateway::parsers::{Message, Side, agreed, strict};
use crate::gateway::{Gateway, PATIENCE, Request, Setup, Then, Upstream};

/// What came on one connection.
type Kept = Arc<Mutex<Vec<u8>>>;

/// A target that keeps every byte it gets, by connection, and answers whatever a strict parser takes for a request.
pub(super) struct Tap {
    pub(super) address: SocketAddr,
    connections: Arc<Mutex<Vec<Kept>>>,
}

impl Tap {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let connections = Arc::<Mutex<Vec<Kept>>>::default();
        let kept = Arc::clone(&connections);
        // Both kinds of thread end with the test's process: they own nothing that has to be given back.
        let accepting = std::thread::Builder::new().name("tap".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let bytes = Kept::default();
                kept.lock().expect("no panic").push(Arc::clone(&bytes));
                let serving = std::thread::Builder::new().name("tap-connection".into());
                serving.spawn(move || tap(stream, &bytes)).expect("a thread can be started");
            }
        });
        drop(accepting.expect("a thread can be started"));
        Self { address, connections }
    }

    /// Everything that came since the last call, health probes left out. Both parsers have to agree on all of it.
    #[track_caller]
    pub(super) fn requests(&self, case: &str) -> Vec<Message> {
        let connections: Vec<_> = self.connections.lock().expect("no panic").clone();
        let read = |bytes: &Kept| {
            let bytes = std::mem::take(&mut *bytes.lock().expect("no panic"));
            agreed(&bytes, Side::Requests)
                .unwrap_or_else(|why| panic!("{case}: {why}\n{}", String::from_utf8_lossy(&bytes)))
        };
        let messages = connections.iter().flat_map(read);
        messages.filter(|message| message.first[1] != "/health" && message.first[1] != "/metrics").collect()
    }
}

fn tap(mut stream: TcpStream, kept: &Mutex<Vec<u8>>) {
    let (mut buffer, mut unanswered) = ([0; 16 * 1024], Vec::new());
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        kept.lock().expect("no panic").extend_from_slice(&buffer[..count]);
        unanswered.extend_from_slice(&buffer[..count]);
        while let Ok(Some((_, length))) = strict(&unanswered, Side::Requests) {
            unanswered.drain(..length);
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").is_err() {
                return;
            }
        }
    }
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Sends bytes, reads until there is a whole answer or an end, and says its status; 0 if there was none.
fn status_of(gateway: &Gateway, bytes: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(gateway.data).expect("the gateway accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a TCP option can be set");
    // It may have been refused before it was sent whole.
    stream.write_all(bytes).ok();
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
        if answer.starts_with(CONTINUE) {
            answer.drain(..CONTINUE.len());
        }
        if let Ok(Some((message, _))) = strict(&answer, Side::Answers) {
            return message.first[1].parse().expect("a status");
        }
    }
    let head = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || bytes.starts_with(b"HEAD "), "half an answer: {head}");
    head.split(' ').nth(1).map_or(0, |status| status.parse().expect("a status"))
}

/// What follows the head of every mutation: chunks for one reader, a body of known length for another, and a request in it.
const SMUGGLED: &str = "5\r\nhello\r\n0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: a\r\nx-smuggled: 1\r\n\r\n";

/// The header lines of smuggler's mutations, by their names there.
fn mutations() -> Vec<(String, Vec<u8>)> {
    let mut mutations: Vec<(String, Vec<u8>)> = [
        ("nameprefix1", " Transfer-Encoding: chunked"),
        ("tabprefix1", "Transfer-Encoding:\tchunked"),
        ("tabprefix2", "Transfer-Encoding\t:\tchunked"),
        ("space1", "Transfer-Encoding : chunked"),
        ("spacejoin1", "Transfer Encoding: chunked"),
        ("underjoin1", "Transfer_Encoding: chunked"),
        ("smashed", "Transfer Encoding:chunked"),
        ("valueprefix1", "Transfer-Encoding:  chunked"),
        ("commaCow", "Transfer-Encoding: chunked, cow"),
        ("cowComma", "Transfer-Encoding: cow, chunked"),
        ("contentEnc", "Content-Encoding: chunked"),
        ("linewrapped1", "Transfer-Encoding:\n chunked"),
        ("quoted", "Transfer-Encoding: \"chunked\""),
        ("aposed", "Transfer-Encoding: 'chunked'"),
        ("lazygrep", "Transfer-Encoding: chunk"),
        ("sarcasm", "TrAnSFer-EnCODinG: cHuNkeD"),
        ("yelling", "TRANSFER-ENCODING: CHUNKED"),
        ("revdualchunk", "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked"),
        ("0dspam", "Transfer\r-Encoding: chunked"),
        ("nested", "Transfer-Encoding: cow chunked bar"),
        ("x-rout", "X:X\rTransfer-Encoding: chunked"),
        ("x-nout", "X:X\nTransfer-Encoding: chunked"),
    ]
    .map(|(name, line)| (name.to_owned(), line.as_bytes().to_vec()))
    .into();
    mutations.push(("accentTE".into(), b"Transf\x82r-Encoding: chunked".to_vec()));
    mutations.push(("accentCH".into(), b"Transfer-Encoding: ch\x96nked".to_vec()));
    mutations.extend(with_each_byte("Transfer-Encoding", "chunked"));
    mutations
}

/// The places in and around a header line where smuggler puts each byte that could be taken for a space.
fn with_each_byte(name: &str, value: &str) -> Vec<(String, Vec<u8>)> {
    let line = format!("{name}: {value}");
    let places: [(&str, String, String); 10] = [
        ("midspace", format!("{name}:"), value.into()),
        ("postspace", name.into(), format!(": {value}")),
        ("prespace", String::new(), line.clone()),
        ("endspace", line.clone(), String::new()),
        ("xprespace", "X: X".into(), line.clone()),
        ("endspacex", line.clone(), "X: X".into()),
        ("rxprespace", "X: X\r".into(), line.clone()),
        ("xnprespace", "X: X".into(), format!("\n{line}")),
        ("endspacerx", format!("{line}\r"), "X: X".into()),
        ("endspacexn", line, "\nX: X".into()),
    ];
    let bytes = (0..=0x20).chain(0x7f..=0xff);
    bytes
        .flat_map(|byte: u8| {
            places.iter().map(move |(place, before, after)| {
                (format!("{place}-{byte:02x}"), [before.as_bytes(), &[byte], after.as_bytes()].concat())
            })
        })
        .collect()
}

/// What became of the mutations of a list.
#[derive(Default)]
struct Tally {
    passed: usize,
    refused: usize,
}

impl Tally {
    /// Sends one, which is passed on as one request or refused. Answers the request.
    #[track_caller]
    fn ask(&mut self, tap: &Tap, gateway: &Gateway, name: &str, bytes: &[u8]) -> Option<Message> {
        let status = status_of(gateway, bytes);
        let requests = tap.requests(name);
        match status {
            200 => self.passed += 1,
            400 => self.refused += 1,
            other => panic!("{name}: {other}"),
        }
        assert_eq!(requests.len(), usize::from(status == 200), "{name}: {requests:?}");
        requests.into_iter().next()
    }

    #[track_caller]
    fn assert_bites(&self) {
        let Self { passed, refused } = self;
        assert!(*passed > 0 && refused > passed, "{passed} passed, {refused} refused: the list still bites");
    }
}

#[test]
fn no_mutation_of_the_transfer_coding_reaches_the_target_in_two_readings() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).start();
    let length = SMUGGLED.len();
    let mut tally = Tally::default();
    for (name, line) in mutations() {
        let head = b"POST /v1/completions HTTP/1.1\r\n".as_slice();
        let rest = format!("\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{SMUGGLED}");
        if let Some(request) = tally.ask(&tap, &gateway, &name, &[head, &line, rest.as_bytes()].concat()) {
            assert!(request.values("x-smuggled").is_empty(), "{name}: what was smuggled has become a request");
            assert!(request.body == b"hello" || request.body == SMUGGLED.as_bytes(), "{name}: {request:?}");
        }
    }
    tally.assert_bites();
}

#[test]
fn no_mutation_of_the_length_reaches_the_target_in_two_readings() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).start();
    // The beginning of a request that never ends: whoever does not take it for the body waits for the rest.
    let body = "GET /v1/models HTTP/1.1\r\nx-smuggled: ";
    let length = body.len().to_string();
    let mut mutations = with_each_byte("Content-Length", &length);
    for byte in (0..=0x20).chain(0x7f..=0xff) {
        let line = [b"Content-Length: ", &length.as_bytes()[..1], &[byte], &length.as_bytes()[1..]].concat();
        mutations.push((format!("within-{byte:02x}"), line));
    }
    let mut tally = Tally::default();
    for (name, line) in mutations {
        let bytes = [HOST.as_bytes(), &line, b"\r\n\r\n", body.as_bytes()].concat();
        let Some(request) = tally.ask(&tap, &gateway, &name, &bytes) else { continue };
        match strict(&bytes, Side::Requests) {
            Ok(read) => assert_eq!(Some(&request.body), read.map(|(message, _)| message.body).as_ref(), "{name}"),
            // A bare LF ends a line, or the head (RFC 9112 section 2.2): nothing else is read more kindly than strictly.
            Err(why) => assert!(line.contains(&b'\n'), "{name}: {why}"),
        }
    }
    tally.assert_bites();
}

/// What is expected of a case: a status, and whether the target hears of it.
const REFUSED: (u16, bool) = (400, false);
const PASSED: (u16, bool) = (200, true);

const HOST: &str = "POST /v1/completions HTTP/1.1\r\nhost: a\r\n";

/// Name, request (`POST /v1/completions` and a host stand before it if it begins with no method), what is expected.
#[rustfmt::skip] // a table: one case, one place
const CASES: &[(&str, &str, (u16, bool))] = &[
    // Length against coding: RFC 9112 section 6.
    ("coding before length", "transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n", PASSED),
    ("coding after length", "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", PASSED),
    ("two lengths", "content-length: 5\r\ncontent-length: 6\r\n\r\nhello!", REFUSED),
    ("two equal lengths", "content-length: 5\r\ncontent-length: 5\r\n\r\nhello", PASSED),
    ("a list of lengths", "content-length: 5, 5\r\n\r\nhello", REFUSED),
    ("a list of two lengths", "content-length: 5, 6\r\n\r\nhello!", REFUSED),
    ("a length with a sign", "content-length: +5\r\n\r\nhello", REFUSED),
    ("a negative length", "content-length: -5\r\n\r\nhello", REFUSED),
    ("a length in hex", "content-length: 0x5\r\n\r\nhello", REFUSED),
    ("a length with a space in it", "content-length: 5 5\r\n\r\nhello", REFUSED),
    ("an empty length", "content-length:\r\n\r\nhello", REFUSED),
    ("a length of 2^64", "content-length: 18446744073709551616\r\n\r\n", REFUSED),
    ("a length under another name", "content_length: 50\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a length with zeros before it", "content-length: 00000000005\r\n\r\nhello", PASSED),
    ("two equal lengths that look different", "content-length: 05\r\ncontent-length: 5\r\n\r\nhello", PASSED),
    ("a length with an exponent", "content-length: 5e0\r\n\r\nhello", REFUSED),
    ("a length with a fraction", "content-length: 5.0\r\n\r\nhello", REFUSED),
    ("a length with an underscore", "content-length: 0_5\r\n\r\nhello", REFUSED),
    ("a length with a letter behind it", "content-length: 5Z\r\n\r\nhello", REFUSED),
    ("a length behind an empty one", "content-length:\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a length before an empty one", "content-length: 5\r\ncontent-length:\r\n\r\nhello", REFUSED),
    ("a length in a folded line", "content-length:\r\n 5\r\n\r\nhello", REFUSED),
    ("a length without a colon", "content-length 5\r\n\r\nhello", REFUSED),
    ("a length behind a name with a space", "x-invalid y:\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("compressed and chunked", "transfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("chunked twice", "transfer-encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("chunked in two lines", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", REFUSED),
    ("chunked, then nothing", "transfer-encoding: chunked,\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("chunked with a parameter", "transfer-encoding: chunked;q=1\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("xchunked", "transfer-encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("identity", "transfer-encoding: identity\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("an empty coding", "transfer-encoding:\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("nothing, then chunked", "transfer-encoding: ,chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("identity, then chunked", "transfer-encoding: identity, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("chunked, then identity", "transfer-encoding: chunked, identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("identity in a second line", "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n", REFUSED),
    ("identity in a first line", "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", REFUSED),
    ("a coding as an encoded word", "transfer-encoding: =?utf-8?B?Y2h1bmtlZA==?=\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a coding folded twice", "transfer-encoding:\r\n \r\n chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a coding whose name is folded", "transfer-\r\nencoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a coding whose name has a word behind it", "transfer-encoding x: chunked\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a coding with a backslash", "transfer\\encoding: chunked\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a coding with a soft hyphen", "transfer\u{ad}encoding: chunked\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a coding that a connection header names", "connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", PASSED),
    ("a coding in HTTP/1.0", "POST /v1/completions HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", REFUSED),
    // Chunks: RFC 9112 section 7.1.
    ("a chunk extension", "transfer-encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\n\r\n", PASSED),
    ("a chunk extension with LF", "transfer-encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk's size of 2^64", "transfer-encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk's size with 0x", "transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk's size with a sign", "transfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("no chunk's size", "transfer-encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk that is too long", "transfer-encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("chunks with LF alone", "transfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n", REFUSED),
    ("a chunk's size with an underscore", "transfer-encoding: chunked\r\n\r\n0_5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk's size with words behind it", "transfer-encoding: chunked\r\n\r\n5bytes\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk's size with spaces before it", "transfer-encoding: chunked\r\n\r\n  5\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk's size in many digits", "transfer-encoding: chunked\r\n\r\n000000000000000000005\r\nhello\r\n0\r\n\r\n", PASSED),
    ("a negative last chunk", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n-0\r\n\r\n", REFUSED),
    ("a chunk extension with CR", "transfer-encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk extension behind two CR", "transfer-encoding: chunked\r\n\r\n5\r\r;a\r\nhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk extension of zero bytes", "transfer-encoding: chunked\r\n\r\n5;\0\0\r\nhello\r\n0\r\n\r\n", PASSED),
    ("a chunk's size that ends in CR", "transfer-encoding: chunked\r\n\r\n5\rhello\r\n0\r\n\r\n", REFUSED),
    ("a chunk that ends in LF", "transfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", REFUSED),
    ("a chunk that ends in CR", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r0\r\n\r\n", REFUSED),
    ("a chunk that ends in two other bytes", "transfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n", REFUSED),
    ("a chunk that does not end", "transfer-encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", REFUSED),
    ("an empty line between chunks", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n\r\n0\r\n\r\n", REFUSED),
    ("trailers", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\ncontent-length: 50\r\nhost: b\r\n\r\n", PASSED),
    ("a trailer in a folded line", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-a: 1\r\n folded\r\n\r\n", REFUSED),
    ("a request for a trailer", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nGET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n", REFUSED),
    // Lines: RFC 9112 sections 2.2 and 5.
    ("a folded line", "x-a: 1\r\n folded\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a line that is no header", "nonsense\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a space before the colon", "content-length : 5\r\n\r\nhello", REFUSED),
    ("no name", ": 5\r\n\r\n", REFUSED),
    ("lines with LF alone", "x-a: 1\ncontent-length: 5\n\nhello", PASSED),
    ("a head that LF LF ends", "x-a: 1\n\ncontent-length: 5\r\n\r\nhello", PASSED),
    ("a head that CR LF CR ends", "x-a: 1\r\n\rcontent-length: 5\r\n\r\nhello", REFUSED),
    ("a head that a space ends", "x-a: 1\r\n \r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a head that a name without a colon ends", "x-a\r\n\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a head that a zero byte ends", "x-a: 1\r\0\n\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a tab before the first name", "POST /v1/completions HTTP/1.1\r\n\tcontent-length: 5\r\nhost: a\r\n\r\nhello", REFUSED),
    ("a colon alone", ":\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a CR in a value", "x-a: 1\rx-b: 2\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a zero byte in a value", "x-a: 1\0\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a control character in a value", "x-a: \x01\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a zero byte in a name", "x-\0a: 1\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("empty lines before it", "\r\n\r\nPOST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", PASSED),
    // The request line and the host: RFC 9112 section 3, RFC 9110 section 7.2.
    ("no host", "POST /v1/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("no host in HTTP/1.0", "POST /v1/completions HTTP/1.0\r\ncontent-length: 0\r\n\r\n", PASSED),
    ("two hosts", "host: b\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("two equal hosts", "host: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a list of hosts", "POST /v1/completions HTTP/1.1\r\nhost: a, b\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a host with a port that is none", "POST /v1/completions HTTP/1.1\r\nhost: a:8x\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a host with two ports", "POST /v1/completions HTTP/1.1\r\nhost: a:80:81\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a host with an escape", "POST /v1/completions HTTP/1.1\r\nhost: a%2eb\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a host with a zero byte", "POST /v1/completions HTTP/1.1\r\nhost: a\0.b\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a host with a letter beyond ASCII", "POST /v1/completions HTTP/1.1\r\nhost: \u{e9}\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an address for a host", "POST /v1/completions HTTP/1.1\r\nhost: [::1]:80\r\ncontent-length: 0\r\n\r\n", PASSED),
    ("an address that is none", "POST /v1/completions HTTP/1.1\r\nhost: [::g]:80\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an address that does not end", "POST /v1/completions HTTP/1.1\r\nhost: [::1\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an address with a letter behind it", "POST /v1/completions HTTP/1.1\r\nhost: [::1]\u{e9}\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an empty host", "POST /v1/completions HTTP/1.1\r\nhost:\r\ncontent-length: 0\r\n\r\n", PASSED),
    ("a host with a user", "POST /v1/completions HTTP/1.1\r\nhost: u@a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a host with a path", "POST /v1/completions HTTP/1.1\r\nhost: a/b\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an absolute target", "POST http://a/v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", PASSED),
    ("an absolute target elsewhere", "POST http://b/v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an absolute target with a user", "POST http://u@a/v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an absolute target with a list", "POST http://a,b/v1/completions HTTP/1.0\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an absolute target with a port that is none", "POST http://a:8x/v1/completions HTTP/1.0\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("another scheme", "POST ftp://a/v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a fragment", "POST /v1/completions#/../metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", PASSED),
    ("a target that is no path", "POST v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an authority as the target", "POST a:80 HTTP/1.1\r\nhost: a:80\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a star as the target", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", REFUSED),
    ("a space in the target", "POST /v1/completions x HTTP/1.1\r\nhost: a\r\n\r\n", REFUSED),
    ("letters beyond ASCII", "POST /v1/completions?\u{e9} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a method in lower case", "post /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a head in lower case", "head /v1/models HTTP/1.1\r\nhost: a\r\n\r\n", REFUSED),
    ("a tunnel", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", (405, false)),
    ("an echo", "TRACE /v1/models HTTP/1.1\r\nhost: a\r\n\r\n", (405, false)),
    ("a GET with a body", "GET /v1/models HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("a HEAD with a body", "HEAD /v1/models HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", REFUSED),
    ("another version", "POST /v1/completions HTTP/1.2\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a version of three digits", "POST /v1/completions HTTP/1.10\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a version with a zero before it", "POST /v1/completions HTTP/01.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a version in lower case", "POST /v1/completions http/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a version behind LF", "POST /v1/completions\nHTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("two spaces", "POST  /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a space behind the version", "POST /v1/completions HTTP/1.1 \r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("tabs for spaces", "POST\t/v1/completions\tHTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a method that is no token", "POST=\":<>\" /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("HTTP/0.9", "POST /v1/completions\r\nhost: a\r\n\r\n", REFUSED),
    // Paths, where all are forwarded.
    ("dot segments", "POST /v1/../metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("encoded dot segments", "POST /v1/%2e%2E/metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a backslash", "POST /v1\\..\\metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an encoded zero byte", "POST /v1/models%00 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an encoded line end", "POST /v1/models%0d%0ahost:b HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("a path that looks like a host", "POST //b/metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", REFUSED),
    ("an encoded slash", "POST /v1/models/org%2Fname HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", PASSED),
    // What one hop says to the next: RFC 9110 section 7.6.1.
    ("a connection header that names the length", "connection: content-length\r\ncontent-length: 5\r\n\r\nhello", PASSED),
    ("a connection header that names the host", "connection: host, x-request-id\r\ncontent-length: 5\r\n\r\nhello", PASSED),
    // Expectations are for this hop, and met here: RFC 9110 section 10.1.1.
    ("an expectation", "expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello", PASSED),
    ("an expectation in capitals", "expect: 100-CONTINUE\r\ncontent-length: 5\r\n\r\nhello", PASSED),
    ("an expectation that is none", "expect: x 100-continue\r\ncontent-length: 5\r\n\r\nhello", PASSED),
    ("a list of expectations", "expect: 100-continue, x=y\r\ncontent-length: 5\r\n\r\nhello", PASSED),
    ("an expectation in a folded line", "expect:\r\n 100-continue\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
];

#[test]
fn what_could_be_read_in_two_ways_is_refused_or_framed_anew() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).set("routes.allow", "*").start();
    for (name, bytes, expected) in CASES {
        let whole = bytes.trim_start().starts_with(|first: char| first.is_ascii_uppercase())
            || bytes.starts_with("post ")
            || bytes.starts_with("head ");
        let bytes = if whole { (*bytes).to_owned() } else { format!("{HOST}{bytes}") };
        let status = status_of(&gateway, bytes.as_bytes());
        let requests = tap.requests(name);
        assert_eq!((status, !requests.is_empty()), *expected, "{name}: {requests:?}");
        assert!(requests.len() <= 1, "{name} has become several: {requests:?}");
        for request in requests {
            assert_eq!(request.values("host"), [tap.address.to_string().as_bytes()], "{name}");
            assert!(matches!(&*request.body, b"hello" | b""), "{name}: {request:?}");
            assert!(!request.first[1].contains("metrics"), "{name}: {request:?}");
            assert!(request.values("expect").is_empty(), "{name}: {request:?}");
        }
    }
}

#[test]
fn a_request_with_trailers_is_the_last_one_on_its_connection() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).start();
    let next = "GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n";
    // After the bare LF one reader is at the next request, and another one still in the trailers.
    for (path, trailers, status) in [
        ("/v1/completions", "x-a: 1\r\n\r\n", 200),
        ("/v1/completions", "\n", 200),
        ("/v1/completions", "x-a: 1\n\n", 200),
        ("/v1/nothing", "\n", 404),
    ] {
        let mut stream = TcpStream::connect(gateway.data).expect("the gateway accepts connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a TCP option can be set");
        let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        let body = format!("5\r\nhello\r\n0\r\n{trailers}");
        stream.write_all([&*request, &*body, next, next].concat().as_bytes()).expect("it is sent");
        let mut bytes = Vec::new();
        // What it did not read may have reset the connection.
        stream.read_to_end(&mut bytes).ok();
        let answers = agreed(&bytes, Side::Answers).unwrap_or_else(|why| panic!("{trailers:?}: {why}"));
        let [answer] = answers.as_slice() else { panic!("{trailers:?}: {answers:?}") };
        assert_eq!((&*answer.first[1], answer.values("connection")), (&*status.to_string(), vec![b"close".as_slice()]));
        assert_eq!(tap.requests(trailers).len(), usize::from(status == 200), "{trailers:?}");
    }
}

#[test]
fn a_path_that_is_not_allowed_letter_by_letter_is_not_allowed() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).start();
    for path in [
        "/v1/models/../../metrics",
        "/v1/models/..%2f..%2fmetrics",
        "/v1/models/",
        "//v1/models",
        "/V1/models",
        "/v1/models;x",
        "/v1/models%00",
        "/v1/models%20",
        "/v1/./models",
        "/v1/%6dodels",
        "/metrics",
    ] {
        let status = status_of(&gateway, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes());
        assert_eq!(status, 404, "{path}");
    }
    assert!(tap.requests("paths").is_empty());
}

#[test]
fn what_lies_below_an_allowed_path_leads_nowhere_else() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).set("routes.allow", "/v1/models/*").start();
    let status = |path: &str| status_of(&gateway, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes());
    for (path, expected) in [
        ("/v1/models", 404),
        ("/v1/models/", 404),
        ("/v1/models//m", 404),
        ("/v1/modelsx", 404),
        ("/v1/%6dodels/m", 404),
        ("/metrics", 404),
        ("/v1/models/../load_lora_adapter", 400),
        ("/v1/models/..%2f..%2fmetrics", 400),
        ("/v1/models/%2e%2e/load_lora_adapter", 400),
        ("/v1/models/..;x/load_lora_adapter", 400),
        ("/v1/models/m%00", 400),
    ] {
        assert_eq!(status(path), expected, "{path}");
    }
    assert!(tap.requests("paths").is_empty());
    for path in ["/v1/models/m", "/v1/models/m/files/f"] {
        assert_eq!(status(path), 200, "{path}");
        let requests = tap.requests(path);
        assert_eq!(requests.iter().map(|request| &*request.first[1]).collect::<Vec<_>>(), [path]);
    }
}

#[test]
fn a_request_never_grows_beyond_the_header_lines_that_are_allowed() {
    let tap = Tap::start();
    let gateway = Setup::before(&[tap.address]).set("limits.headers", 16).start();
    let ask = |lines: usize| {
        let lines: String = (1..lines).map(|number| format!("x-{number}: 1\r\n")).collect();
        status_of(&gateway, format!("GET /v1/models HTTP/1.1\r\nhost: a\r\n{lines}\r\n").as_bytes())
    };
    assert_eq!((ask(13), ask(14), ask(16), ask(17)), (200, 431, 431, 431));
    assert!(tap.requests("header lines").iter().all(|request| request.headers.len() <= 16));
}

/// Name, what the pod sends, and the status and body the client gets.
#[rustfmt::skip] // a table: one case, one place
const ANSWERS: &[(&str, &str, u16, &str)] = &[
    ("a length", "200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello"),
    ("a length beside chunks", "200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, "hello"),
    ("two lengths", "200 OK\r\ncontent-length: 5\r\ncontent-length: 3\r\n\r\nhello", 502, ""),
    ("two equal lengths", "200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", 200, "hello"),
    ("a list of lengths", "200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", 502, ""),
    ("a length that is no number", "200 OK\r\ncontent-length: x\r\n\r\nhello", 502, ""),
    ("a length with a sign", "200 OK\r\ncontent-length: +5\r\n\r\nhello", 502, ""),
    ("compressed and chunked", "200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 502, ""),
    ("a coding nobody knows", "200 OK\r\ntransfer-encoding: xchunked\r\n\r\nhello", 502, ""),
    ("chunked twice", "200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 502, ""),
    ("a folded line", "200 OK\r\nx-a: 1\r\n folded\r\ncontent-length: 5\r\n\r\nhello", 502, ""),
    ("a space before the colon", "200 OK\r\ncontent-length : 5\r\n\r\nhello", 502, ""),
    ("a zero byte in a value", "200 OK\r\nx-a: \0\r\ncontent-length: 5\r\n\r\nhello", 502, ""),
    ("a CR in a value", "200 OK\r\nx-a: 1\rset-cookie: a\r\ncontent-length: 5\r\n\r\nhello", 502, ""),
    ("lines with LF alone", "200 OK\nx-a: 1\ncontent-length: 5\n\nhello", 200, "hello"),
    ("words that are no reason", "200 <script>\r\ncontent-length: 5\r\n\r\nhello", 200, "hello"),
    ("no content, and a length", "204 No Content\r\ncontent-length: 5\r\n\r\nhello", 204, ""),
    ("not modified, and a length", "304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, ""),
    ("hints first", "103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello"),
    ("a 100 that nobody waits for", "100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello"),
    ("no content, in chunks", "204 No Content\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 204, ""),
    ("an empty length", "200 OK\r\ncontent-length:\r\n\r\nhello", 502, ""),
    ("a length with a letter behind it", "200 OK\r\ncontent-length: 5Z\r\n\r\nhello", 502, ""),
    ("an answer behind the answer", "200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong", 200, "hello"),
    ("until the end", "200 OK\r\n\r\nhello", 200, "hello"),
    ("a chunk's size that is none", "200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 200, "broken off"),
    ("a chunk that ends in LF", "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", 200, "broken off"),
    ("a chunk extension with LF", "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n", 200, "broken off"),
];

#[test]
fn no_answer_reaches_the_client_in_two_readings() {
    for (name, answer, status, body) in ANSWERS {
        let upstream = Upstream::start(move |exchange| {
            exchange.send(format!("HTTP/1.1 {answer}"));
            Then::Close
        });
        let gateway = Setup::before(&[upstream.address]).start();
        let mut stream = TcpStream::connect(gateway.data).expect("the gateway accepts connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a TCP option can be set");
        stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").expect("it is sent");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        if *body == "broken off" {
            assert_eq!(strict(&bytes, Side::Answers), Ok(None), "{name}: it is seen to be incomplete");
            continue;
        }
        let messages = agreed(&bytes, Side::Answers)
            .unwrap_or_else(|why| panic!("{name}: {why}\n{}", String::from_utf8_lossy(&bytes)));
        let [message] = messages.as_slice() else { panic!("{name} has become several: {messages:?}") };
        assert_eq!(message.first[1], status.to_string(), "{name}: {message:?}");
        match status {
            502 => assert!(String::from_utf8_lossy(&message.body).contains("(snapshot "), "{name}"),
            _ => assert_eq!(String::from_utf8_lossy(&message.body), *body, "{name}"),
        }
    }
}

#[test]
fn an_answer_with_too_many_header_lines_is_the_targets_fault() {
    let lines: String = (0..15).map(|number| format!("x-{number}: 1\r\n")).collect();
    let upstream = Upstream::start(move |exchange| {
        exchange.answer("200 OK", &lines, "{}");
        Then::Next
    });
    let gateway = Setup::before(&[upstream.address]).set("limits.headers", 16).start();
    let answer = gateway.ask(&Request::get("/v1/models"));
    assert_ended(&gateway.ended(&answer.id()), "upstream_reset", Some("target"), 502);
}

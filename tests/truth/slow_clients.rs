//! Clients that are slow, on purpose or not: each costs its own connection, for a bounded time, and nobody else anything.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use super::assert_ended;
use crate::gateway::client::id_of;
use crate::gateway::wire::Wire;
use crate::gateway::{Client, End, Gateway, PATIENCE, Request, Setup, Sims, Then, Upstream, in_time, until};

/// Slow clients at once.
const CROWD: usize = 1_000;

/// The value of a metric without labels.
#[track_caller]
fn metric(gateway: &Gateway, name: &str) -> u64 {
    let page = gateway.admin("/metrics").text;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is no metric: {page}"))
}

fn sends(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    sent(address, bytes).expect("the gateway takes what is sent")
}

fn sent(address: SocketAddr, bytes: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).expect("the gateway accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a TCP option can be set");
    stream.write_all(bytes).map(|()| stream)
}

/// What comes until the connection is closed or reset.
fn rest_of(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    stream.read_to_end(&mut bytes).ok();
    bytes
}

#[test]
fn a_client_that_stops_reading_is_let_go_and_the_record_says_why() {
    let (tell, left) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        // More than the buffers of all sockets between them hold.
        exchange.answer("200 OK", "", &"x".repeat(64 << 20));
        tell.send(exchange.is_left()).expect("the test listens");
        Then::Close
    });
    let gateway = Setup::before(&[upstream.address]).set("timeouts.client_stall", "100ms").start();
    let mut client = Client::to(gateway.data);
    client.send(&Request::chat());
    let id = id_of(&client.head());
    let found = gateway.ended(&id);
    assert_ended(&found, "client_disconnected", Some("client"), 200);
    let error = found.text_at("/outcome/error").expect("it says why");
    assert_eq!(error, "the client took nothing for 100 ms (timeouts.client_stall)");
    assert_eq!(left.recv_timeout(PATIENCE), Ok(true), "the target is let go with it");
    let end = std::iter::from_fn(|| Some(client.piece())).find_map(Result::err);
    assert_eq!(end, Some(End::BrokenOff));
}

#[test]
fn a_head_that_is_cut_short_or_too_slow_is_counted_and_an_idle_client_is_not() {
    const LIMIT: Duration = Duration::from_millis(500);
    let sims = Sims::one();
    let unparsed = |gateway: &Gateway| metric(gateway, "snapgate_unparsed_requests_total");
    let gateway =
        Setup::before(sims.addresses()).set("timeouts.request_header", format!("{}ms", LIMIT.as_millis())).start();
    let idle = sends(gateway.data, b"");
    let whole = || in_time(LIMIT, || sent(gateway.data, b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"));
    let (kept, mut left) = (whole(), Client::over(gateway.data, Wire::of(whole())));
    let head = left.head();
    assert_eq!(left.rest_of(head).status, 200);
    drop(left);
    assert_eq!(rest_of(idle), b"", "an idle client is let go");
    assert!(rest_of(kept).starts_with(b"HTTP/1.1 200 "), "and so is one that idles after its answer");
    assert_eq!(unparsed(&gateway), 0);
    let mut halves = 0;
    rest_of(in_time(LIMIT, || {
        halves += 1;
        sent(gateway.data, b"GET /v1/models HTTP/1.1\r\nhost: a\r\n")
    }));
    // Of those that were too late some may be counted, too.
    until("the slow head is counted", || (1..=halves).contains(&unparsed(&gateway)).then_some(()));

    let gateway = Setup::before(sims.addresses()).start();
    drop(sends(gateway.data, b"GET /v1/mod"));
    until("the cut head is counted", || (unparsed(&gateway) == 1).then_some(()));
    assert!(rest_of(sends(gateway.data, b"nonsense\r\n\r\n")).starts_with(b"HTTP/1.1 400 "));
    until("the malformed head is counted", || (unparsed(&gateway) == 2).then_some(()));
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_request_has_a_record_and_is_not_unparsed() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    drop(sends(gateway.data, b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf"));
    let count = || {
        let page = gateway.admin("/metrics").text;
        page.contains(r#"snapgate_requests_total{ending="client_disconnected",fault="client"} 1"#).then_some(())
    };
    until("it is recorded", count);
    assert_eq!(metric(&gateway, "snapgate_unparsed_requests_total"), 0);
}

/// Whether a connection is served, and not closed at once.
fn is_served(gateway: &Gateway) -> bool {
    let stream = TcpStream::connect(gateway.data).expect("the system accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a TCP option can be set");
    let sent = (&stream).write_all(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    sent.is_ok() && rest_of(stream).starts_with(b"HTTP/1.1 200 ")
}

#[test]
fn one_address_has_no_more_connections_than_it_may() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).set("limits.connections_per_address", 2).start();
    let held: Vec<_> = (0..2).map(|_| sends(gateway.data, b"")).collect();
    assert!(!is_served(&gateway), "a third is closed at accept");
    let another = TcpStream::connect((gateway.data.ip(), gateway.data.port())).expect("likewise");
    assert_eq!(rest_of(another), b"");
    assert_eq!(metric(&gateway, "snapgate_connections_refused_total"), 2);
    drop(held);
    until("the places are given back", || is_served(&gateway).then_some(()));
}

#[test]
fn clients_that_find_no_connection_left_are_warned_of() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).set("limits.connections", 2).start();
    let held: Vec<_> = (0..2).map(|_| sends(gateway.data, b"")).collect();
    assert!(!is_served(&gateway));
    let ready = gateway.admin("/readyz");
    let warning = ready.at("/warnings/0").as_str().expect("a sentence");
    assert!(ready.status == 200 && warning.contains("limits.connections are open"), "{}", ready.text);
    drop(held);
    until("there is room again", || is_served(&gateway).then_some(()));
}

#[test]
fn a_thousand_clients_that_never_finish_their_heads_keep_nobody_from_being_served() {
    const LIMIT: Duration = Duration::from_secs(3);
    let sims = Sims::one();
    let gateway =
        Setup::before(sims.addresses()).set("timeouts.request_header", format!("{}s", LIMIT.as_secs())).start();
    let mut begun = 0;
    let mut begin = || {
        in_time(LIMIT, || {
            begun += 1;
            sent(gateway.data, b"POST /v1/chat/completions HTTP/1.1\r\nx-slow: ")
        })
    };
    let crowd: Vec<_> = (0..CROWD).map(|_| begin()).collect();
    for _ in 0..20 {
        let asked = in_time(LIMIT, || sent(gateway.data, &Request::stream(3).bytes(gateway.data)));
        let mut client = Client::over(gateway.data, Wire::of(asked));
        let head = client.head();
        let answer = client.rest_of(head);
        assert_eq!((answer.status, answer.end), (200, End::Clean));
    }
    crowd.into_iter().for_each(|stream| drop(rest_of(stream)));
    until("all are let go", || (metric(&gateway, "snapgate_connections") == 0).then_some(()));
    // Of those that were too late some may be counted, too.
    assert!((CROWD as u64..=begun).contains(&metric(&gateway, "snapgate_unparsed_requests_total")));
}

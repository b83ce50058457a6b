//! Clients on kept connections when the gateway stops: they are asked to go before, and what they have asked is answered.

use crate::gateway::wire::{Filled, Wire};
use crate::gateway::{Answer, Client, End, Gateway, Request, Setup, Sims, Stopped, until};

/// Connections that are kept when the gateway stops.
const KEPT: usize = 16;

/// How often they are: each time another part of what was sent has been read already.
const ROUNDS: usize = 10;

/// Clients that have had an answer each.
#[track_caller]
fn kept(gateway: &Gateway) -> Vec<Client> {
    let mut clients: Vec<_> = (0..KEPT).map(|_| Client::to(gateway.data)).collect();
    for client in &mut clients {
        let answer = client.ask(&Request::chat());
        assert_eq!((answer.status, answer.header("connection")), (200, None));
    }
    clients
}

fn stopping(gateway: Gateway) -> std::thread::JoinHandle<Stopped> {
    let data = gateway.data;
    let stopping = std::thread::Builder::new().name("stop".into()).spawn(move || gateway.stop()).expect("a thread");
    until("nobody accepts any more", || std::net::TcpStream::connect(data).is_err().then_some(()));
    stopping
}

fn answer(client: &mut Client) -> Answer {
    let head = client.head();
    client.rest_of(head)
}

/// That an answer is whole, says that it is the last one, and is.
#[track_caller]
fn assert_last(answer: &Answer, mut wire: Wire) {
    let seen = (answer.status, answer.end, answer.header("connection"));
    assert_eq!((seen, wire.fill()), ((200, End::Clean, Some("close")), Filled::Closed));
}

#[test]
fn each_answer_of_a_gateway_that_retires_is_the_last_one_on_its_connection() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let clients = kept(&gateway);
    gateway.retire();
    for mut client in clients.into_iter().chain([Client::to(gateway.data)]) {
        let answer = client.ask(&Request::stream(3));
        assert_last(&answer, client.into_wire());
    }
    let mut client = Client::to(gateway.data);
    let refused = client.ask(&Request::get("/metrics"));
    assert_eq!((refused.status, refused.header("connection")), (404, Some("close")));
    assert_eq!(gateway.stop().balance.offered, 2 * KEPT as u64 + 2);
}

#[test]
fn what_was_asked_on_a_kept_connection_before_the_stop_is_answered() {
    let sims = Sims::one();
    for _ in 0..ROUNDS {
        let gateway = Setup::before(sims.addresses()).start();
        let mut clients = kept(&gateway);
        clients.iter_mut().for_each(|client| client.send(&Request::chat()));
        let stopping = stopping(gateway);
        for mut client in clients {
            let answer = answer(&mut client);
            assert_eq!((answer.status, answer.end), (200, End::Clean));
            assert_eq!(client.into_wire().fill(), Filled::Closed);
        }
        assert_eq!(stopping.join().expect("it stops").balance.offered, 2 * KEPT as u64);
    }
}

#[test]
fn a_request_of_which_the_beginning_has_come_before_the_stop_is_answered_and_an_idle_client_is_let_go() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let mut clients = kept(&gateway);
    let idle = clients.split_off(KEPT / 2);
    clients.iter_mut().for_each(|client| client.send_bytes(b"GET /v1/models HTT"));
    // Whoever has not read it by then has read it when it looks whether it may end.
    let stopping = stopping(gateway);
    for client in idle {
        assert_eq!(client.into_wire().fill(), Filled::Closed);
    }
    for mut client in clients {
        client.send_bytes(b"P/1.1\r\nhost: a\r\n\r\n");
        let answer = answer(&mut client);
        assert_last(&answer, client.into_wire());
    }
    stopping.join().expect("it stops, and long before its grace is over");
}

//! Targets that come and go: what sources of discovery say is what requests meet, and what they cannot say changes nothing.

mod api_server;
mod clusters;
mod files;
mod frozen;
mod gpus;
mod names;
mod reloads;
mod zone;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::gateway::{Exchange, Found, Gateway, Request, Then, Upstream, until};

/// Pods of a churn, and how many of them are there at a time.
const PODS: usize = 24;
const THERE: usize = 8;

/// How often somebody goes and somebody comes, and how long each takes at least: ten changes in a second.
const CHANGES: usize = 60;
const PACE: Duration = Duration::from_millis(100);

/// Far longer than a request takes from its decision to its target.
const DRAIN: Duration = Duration::from_secs(1);

/// Clients that send one request after the other meanwhile.
const CLIENTS: usize = 4;

/// A pod that knows when it was asked.
struct Pod {
    upstream: Upstream,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Pod {
    fn start() -> Self {
        let asked = Arc::<Mutex<Vec<Instant>>>::default();
        let seen = Arc::clone(&asked);
        let upstream = Upstream::start(move |exchange: &mut Exchange<'_>| {
            if exchange.request.head.first_line.starts_with("POST") {
                seen.lock().expect("nobody panics with it in hand").push(Instant::now());
            }
            exchange.answer("200 OK", "content-type: application/json\r\n", "{}");
            Then::Next
        });
        Self { upstream, asked }
    }

    /// When it was asked, probes not counted.
    fn asked(&self) -> Vec<Instant> {
        self.asked.lock().expect("nobody panics with it in hand").clone()
    }

    fn address(&self) -> SocketAddr {
        self.upstream.address
    }
}

/// Sends requests until it is told to stop; every one is answered by a pod. Answers how many there were.
fn send(gateway: &Gateway, done: &AtomicBool) -> usize {
    let mut sent = 0;
    while !done.load(Relaxed) {
        let answer = gateway.ask(&completion());
        assert_eq!(answer.status, 200, "{}", answer.text());
        sent += 1;
    }
    sent
}

fn completion() -> Request {
    Request::post("/v1/completions", r#"{"model":"m","prompt":"x"}"#)
}

/// The names of the fleet's targets, or their addresses.
fn fleet(gateway: &Gateway, field: &str) -> BTreeSet<String> {
    let page = gateway.admin("/v1/fleet");
    page.list("/targets").iter().map(|target| target[field].as_str().expect("a text").to_owned()).collect()
}

fn until_fleet(gateway: &Gateway, field: &str, expected: &[&str]) {
    let expected: BTreeSet<_> = expected.iter().map(|name| (*name).to_owned()).collect();
    until(&format!("the fleet is {expected:?}"), || (fleet(gateway, field) == expected).then_some(()));
}

/// What is wrong with the only source, once something is.
fn until_problem(gateway: &Gateway, part: &str) -> Found {
    until(&format!("the problem is {part}"), || {
        let page = gateway.admin("/v1/fleet");
        let problem = page.text_at("/discovery/0/problem").is_some_and(|problem| problem.contains(part));
        problem.then_some(page)
    })
}

fn until_no_problem(gateway: &Gateway) {
    until("nothing is wrong", || gateway.admin("/v1/fleet").at("/discovery/0/problem").is_null().then_some(()));
}

/// Ten times a second a pod goes and another one comes, as `publish` tells the source. No request is lost, and none meets a
/// pod that has been gone for longer than its drain time.
fn churn(pods: &[Pod], gateway: Gateway, mut publish: impl FnMut(&[&Pod])) {
    let done = AtomicBool::new(false);
    let there = |round: usize| (round..round + THERE).map(|pod| &pods[pod % PODS]).collect::<Vec<_>>();
    // From when to when each pod was away.
    let mut away: Vec<(usize, Instant, Instant)> = Vec::new();
    let mut gone_since = [None; PODS];
    publish(&there(0));
    let shows = |round: usize| {
        let expected: BTreeSet<_> = there(round).iter().map(|pod| pod.address().to_string()).collect();
        until("the fleet is as published", || (fleet(&gateway, "address") == expected).then_some(()));
    };
    shows(0);
    let sent: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| send(&gateway, &done))).collect();
        for round in 1..=CHANGES {
            let began = Instant::now();
            let comes = (round + THERE - 1) % PODS;
            if let Some(since) = gone_since[comes].take() {
                away.push((comes, since, Instant::now()));
            }
            publish(&there(round));
            shows(round);
            gone_since[(round - 1) % PODS] = Some(Instant::now());
            thread::sleep(PACE.saturating_sub(began.elapsed()));
        }
        done.store(true, Relaxed);
        clients.into_iter().map(|client| client.join().expect("no request is lost")).sum()
    });
    let until_now = gone_since.iter().enumerate().filter_map(|(pod, since)| Some((pod, (*since)?, Instant::now())));
    away.extend(until_now);
    let balance = gateway.stop().balance;
    assert_eq!((balance.offered, balance.stored), (sent as u64, sent as u64), "one record for each request");
    let asked: usize = pods.iter().map(|pod| pod.asked().len()).sum();
    assert!(asked >= sent && sent > CHANGES, "{sent} requests, of which pods saw {asked}");
    assert!(away.len() > CHANGES / 2);
    for (pod, since, back) in away {
        let late = pods[pod].asked().iter().filter(|at| **at > since + DRAIN && **at < back).count();
        assert_eq!(late, 0, "requests to a pod that was gone for more than {DRAIN:?}");
    }
}

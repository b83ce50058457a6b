//! Targets that come and go: what sources of discovery say is what requests meet, and what they cannot say changes nothing.

mod api_server;
mod churn;
mod clusters;
mod files;
mod frozen;
mod gpus;
mod names;
mod newcomers;
mod reloads;
mod zone;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::json;

use crate::gateway::{Exchange, Found, Gateway, Request, Then, Upstream, until};

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

/// The fleet is these, and each has answered a probe: until one has, nothing speaks against the others.
fn until_healthy(gateway: &Gateway, expected: &[&str]) {
    let expected: Vec<_> = expected.iter().map(|name| json!([name, "healthy"])).collect();
    until(&format!("the fleet is {expected:?}"), || {
        let page = gateway.admin("/v1/fleet");
        let targets = page.list("/targets").iter().map(|target| json!([target["name"], target["health"]]));
        (targets.collect::<Vec<_>>() == expected).then_some(())
    });
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

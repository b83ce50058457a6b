//! Targets from DNS.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use serde_json::json;

use super::churn::{self, churn};
use super::zone::{A, AAAA, Mode, SRV, Server};
use super::{Pod, completion, until_fleet, until_no_problem, until_problem};
use crate::gateway::{Gateway, Setup, until};

const HOST: &str = "vllm.test.";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A gateway that asks this server.
fn start(server: &Server, fields: &str) -> Gateway {
    let source = format!(
        r#"[{{ kind = "dns", host = "{HOST}", servers = ["{}"], interval = "10ms", {fields} }}]"#,
        server.address
    );
    Setup::before(&[]).set("discovery", source).start()
}

fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 9, 9, last))
}

#[test]
fn sixty_changes_of_a_zone_lose_no_request_and_send_none_to_who_is_gone() {
    let pods = churn::Pod::all();
    let server = Server::start(0);
    server.set_addresses("pods.test.", &[LOOPBACK]);
    let gateway = start(&server, r#"record = "srv""#);
    churn(&pods, gateway, |there| {
        let services: Vec<_> = there.iter().map(|pod| (0, pod.address().port(), "pods.test.")).collect();
        server.set_services(HOST, &services);
    });
}

#[test]
fn addresses_have_the_port_that_is_set_and_names_of_their_own() {
    let pod = Pod::start();
    let port = pod.address().port();
    let server = Server::start(0);
    server.set_addresses(HOST, &[LOOPBACK]);
    let gateway = start(&server, &format!(r#"port = {port}, models = ["m"], gpus = 4"#));
    until_fleet(&gateway, "name", &[&format!("127.0.0.1-{port}")]);
    assert_eq!(gateway.admin("/v1/fleet").at("/targets/0/gpus"), 4);
    assert_eq!(gateway.ask(&completion()).status, 200);
    server.set_addresses(HOST, &[LOOPBACK, "::1".parse().unwrap()]);
    until_fleet(&gateway, "address", &[&format!("127.0.0.1:{port}"), &format!("[::1]:{port}")]);
}

#[test]
fn what_a_server_cannot_say_leaves_the_last_targets() {
    let server = Server::start(0);
    server.set_addresses(HOST, &[address(1), address(2)]);
    let gateway = start(&server, "port = 8000");
    let both = ["127.9.9.1-8000", "127.9.9.2-8000"];
    until_fleet(&gateway, "name", &both);
    for (mode, part) in [
        (Mode::Fails, "could not be had"),
        (Mode::NoSuchName, "has no A records"),
        (Mode::FailsFor(AAAA), "the AAAA records of vllm.test. could not be had"),
        (Mode::TruncatesEverything, "truncated"),
        (Mode::Silent, "timed out"),
        (Mode::FailsFor(A), "the A records of vllm.test. could not be had"),
    ] {
        server.set_mode(mode);
        let page = until_problem(&gateway, part);
        assert_eq!(page.list("/targets").len(), 2, "{mode:?}");
    }
    server.set_mode(Mode::Answers);
    until_no_problem(&gateway);
    server.set_addresses(HOST, &[]);
    until_problem(&gateway, "has no A records");
    until_fleet(&gateway, "name", &both);
    let ready = gateway.admin("/readyz");
    assert!(ready.text_at("/warnings/0").is_some_and(|text| text.starts_with("discovery dns-1: ")), "{}", ready.text);
    server.set_addresses(HOST, &[address(2)]);
    until_fleet(&gateway, "name", &both[1..]);
}

#[test]
fn an_answer_that_is_too_long_for_a_datagram_is_asked_for_again() {
    let server = Server::start(0);
    server.set_mode(Mode::Truncates);
    server.set_addresses(HOST, &[1, 2, 3].map(address));
    let gateway = start(&server, "port = 8000");
    until_fleet(&gateway, "name", &["127.9.9.1-8000", "127.9.9.2-8000", "127.9.9.3-8000"]);
}

#[test]
fn an_answer_holds_for_its_time_to_live() {
    let server = Server::start(1);
    server.set_addresses(HOST, &[address(1)]);
    let begun = Instant::now();
    let gateway = start(&server, r#"port = 8000, record = "a""#);
    // Questions prove nothing: one to which no answer comes in time is asked again.
    let answers = until("it has had three answers", || {
        let page = gateway.admin("/metrics").text;
        let name = r#"snapgate_discovery_answers_total{source="dns-1",result="taken"} "#;
        let count = page.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
        count.filter(|answers: &u64| *answers > 2)
    });
    let (took, least) = (begun.elapsed(), Duration::from_secs(answers - 1));
    assert!(took >= least, "{answers} answers that hold for a second each came within {took:?}");
}

#[test]
fn services_of_the_first_priority_are_targets_if_all_of_their_addresses_are_known() {
    let server = Server::start(0);
    server.set_services(HOST, &[(1, 8001, "a.test."), (1, 8002, "b.test."), (2, 8003, "c.test.")]);
    server.set_addresses("a.test.", &[address(1)]);
    let gateway = start(&server, r#"record = "srv""#);
    let page = until_problem(&gateway, "b.test. has no A records");
    assert_eq!((page.list("/targets").len(), page.at("/discovery/0/age_ms")), (0, &json!(null)));
    server.set_addresses("b.test.", &[address(2)]);
    until_fleet(&gateway, "name", &["127.9.9.1-8001", "127.9.9.2-8002"]);
    server.set_services(HOST, &[(0, 0, ".")]);
    until_problem(&gateway, "has no SRV records");
    until_fleet(&gateway, "name", &["127.9.9.1-8001", "127.9.9.2-8002"]);
    assert!(!server.was_asked("c.test.", A) && server.was_asked(HOST, SRV));
}

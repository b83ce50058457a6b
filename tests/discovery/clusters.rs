//! Targets from Kubernetes.

use std::fs;

use serde_json::{Value, json};

use super::api_server::ApiServer;
use super::churn::{self, churn};
use super::{completion, until_fleet, until_no_problem, until_problem};
use crate::gateway::{Gateway, Setup, until};

/// A gateway that follows this cluster.
fn start(server: &ApiServer, fields: &str) -> Gateway {
    let source = format!(
        r#"[{{ kind = "kubernetes", service = "vllm", namespace = "llm", api = "http://{}"{fields} }}]"#,
        server.address
    );
    Setup::before(&[]).set("discovery", source).start()
}

fn endpoint(pod: &str, ready: bool) -> Value {
    json!({"addresses": ["127.0.0.1"], "conditions": {"ready": ready}, "nodeName": "node-1",
           "targetRef": {"kind": "Pod", "name": pod, "namespace": "llm", "uid": format!("uid-{pod}")}})
}

fn put(server: &ApiServer, pods: &[&str]) {
    server.put("vllm-x", 8000, pods.iter().map(|pod| endpoint(pod, true)).collect());
}

#[test]
fn sixty_changes_in_a_cluster_lose_no_request_and_send_none_to_who_is_gone() {
    let pods = churn::Pod::all();
    let server = ApiServer::start();
    let gateway = start(&server, "");
    let (mut there, mut round) = (Vec::<u16>::new(), 0);
    // Pods share an address here, so each has a slice of its own for its port.
    churn(&pods, gateway, |wanted| {
        let wanted: Vec<u16> = wanted.iter().map(|pod| pod.address().port()).collect();
        let slice = |port: &u16| format!("slice-{port}");
        for port in wanted.iter().filter(|port| !there.contains(port)) {
            server.put(&slice(port), *port, json!([endpoint(&format!("pod-{port}"), true)]));
        }
        for port in there.iter().filter(|port| !wanted.contains(port)) {
            server.remove(&slice(port));
        }
        there = wanted;
        round += 1;
        match round % 12 {
            3 => server.cut_off(),
            6 => drop(server.bookmark()),
            9 => server.forget(),
            _ => {}
        }
    });
    assert!(server.get(|cluster| cluster.lists) > 2, "some of it was forgotten");
}

#[test]
fn a_pod_is_known_by_name_and_place() {
    let server = ApiServer::start();
    server.put("vllm-x", 8000, json!([endpoint("vllm-0", true), endpoint("vllm-1", false)]));
    let gateway = start(&server, ", models = [\"m\"], gpus = 4");
    until_fleet(&gateway, "name", &["vllm-0"]);
    let page = gateway.admin("/v1/fleet");
    assert_eq!((page.at("/targets/0/address"), page.at("/targets/0/gpus")), (&json!("127.0.0.1:8000"), &json!(4)));
    let place = json!({"namespace": "llm", "pod": "vllm-0", "uid": "uid-vllm-0", "node": "node-1",
                       "labels": {"app_kubernetes_io_name": "vllm"}});
    assert_eq!(page.at("/targets/0/kubernetes"), &place);
    // Ready, and then not any more: nothing is a list, too, if the cluster says so.
    put(&server, &["vllm-0", "vllm-1"]);
    until_fleet(&gateway, "name", &["vllm-0"]);
    server.put("vllm-x", 8000, json!([endpoint("vllm-0", false)]));
    until_fleet(&gateway, "name", &[]);
    until_no_problem(&gateway);
}

#[test]
fn an_outage_leaves_the_last_view_and_the_watch_goes_on_where_it_was() {
    let server = ApiServer::start();
    put(&server, &["a"]);
    let gateway = start(&server, "");
    until_fleet(&gateway, "name", &["a"]);
    until("it watches", || server.get(|cluster| cluster.watches.len() == 1).then_some(()));
    server.set(|cluster| cluster.is_away = true);
    server.cut_off();
    let page = until_problem(&gateway, "the API server is away");
    assert_eq!(page.list("/targets").len(), 1);
    assert!(gateway.admin("/readyz").text_at("/warnings/0").is_some_and(|text| text.contains("kubernetes-1")));
    // Meanwhile things happen.
    server.put("vllm-y", 8001, json!([endpoint("b", true)]));
    server.remove("vllm-x");
    server.set(|cluster| cluster.is_away = false);
    until_fleet(&gateway, "name", &["b"]);
    until_no_problem(&gateway);
    assert_eq!(server.get(|cluster| cluster.lists), 1, "nothing is listed again");
}

#[test]
fn what_the_server_has_forgotten_is_listed_again() {
    for says_gone_in_event in [false, true] {
        let server = ApiServer::start();
        server.set(|cluster| cluster.says_gone_in_event = says_gone_in_event);
        put(&server, &["a"]);
        let gateway = start(&server, "");
        until_fleet(&gateway, "name", &["a"]);
        until("it watches", || server.get(|cluster| cluster.watches.len() == 1).then_some(()));
        server.set(|cluster| cluster.is_away = true);
        server.cut_off();
        until_problem(&gateway, "away");
        server.put("vllm-y", 8001, json!([endpoint("b", true)]));
        server.remove("vllm-x");
        server.forget();
        server.set(|cluster| cluster.is_away = false);
        until_fleet(&gateway, "name", &["b"]);
        until_no_problem(&gateway);
        assert_eq!(server.get(|cluster| cluster.lists), 2);
    }
}

#[test]
fn a_watch_goes_on_from_the_last_bookmark_and_a_list_may_have_pages() {
    let server = ApiServer::start();
    server.set(|cluster| cluster.page = 1);
    for (port, pod) in [(8000, "a"), (8001, "b"), (8002, "c")] {
        server.put(pod, port, json!([endpoint(pod, true)]));
    }
    let gateway = start(&server, "");
    until_fleet(&gateway, "name", &["a", "b", "c"]);
    until("it watches", || server.get(|cluster| cluster.watches == [3]).then_some(()));
    let marked = server.bookmark();
    // The event after it shows that it has arrived.
    server.put("d", 8003, json!([endpoint("d", true)]));
    until_fleet(&gateway, "name", &["a", "b", "c", "d"]);
    let marked_again = server.bookmark();
    assert!(marked < marked_again);
    // Seen or not, the bookmark is on its way before the end of the watch.
    until("it watches on", || {
        server.cut_off();
        server.get(|cluster| cluster.watches.last() == Some(&marked_again)).then_some(())
    });
    assert_eq!(server.get(|cluster| cluster.lists), 1);
}

#[test]
fn who_is_not_let_in_says_why_and_a_new_token_opens() {
    let server = ApiServer::start();
    put(&server, &["a"]);
    server.set(|cluster| cluster.refuses = Some(403));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    fs::write(&file, "old-token").expect("the file can be written");
    let gateway = start(&server, &format!(r#", token_file = "{}""#, file.display()));
    until_problem(&gateway, "forbids it (403 as the test wants it): allow to list and watch endpointslices");
    server.set(|cluster| (cluster.refuses, cluster.token) = (None, "new-token".to_owned()));
    until_problem(&gateway, "does not know us (401");
    assert_eq!(gateway.ask(&completion()).status, 503);
    fs::write(&file, "new-token").expect("the file can be written");
    until_fleet(&gateway, "name", &["a"]);
    until_no_problem(&gateway);
}

#[test]
fn a_server_that_cannot_be_reached_is_told_with_the_cause() {
    let nobody = crate::gateway::Sims::refusing(1);
    let source = format!(
        r#"[{{ kind = "kubernetes", service = "vllm", namespace = "llm", api = "http://{}" }}]"#,
        nobody.addresses()[0]
    );
    let gateway = Setup::before(&[]).set("discovery", source).start();
    until_problem(&gateway, "Connection refused");
    let warning = "discovery kubernetes-1: it cannot be reached or read; it has no targets yet";
    assert_eq!(gateway.admin("/readyz").text_at("/warnings/0"), Some(warning));
}

#[test]
fn a_service_that_is_not_there_is_a_problem_and_empties_nothing() {
    let server = ApiServer::start();
    let gateway = start(&server, "");
    until_problem(&gateway, "is there such a service?");
    put(&server, &["a"]);
    until_fleet(&gateway, "name", &["a"]);
    server.remove("vllm-x");
    let page = until_problem(&gateway, "is there such a service?");
    assert_eq!(page.list("/targets").len(), 1);
}

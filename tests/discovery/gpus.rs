//! The GPUs of discovered pods: who finds a pod says which one it is, and the node's exporter what its GPUs do.

use std::fs;

use serde_json::{Value, json};

use super::api_server::ApiServer;
use super::{Pod, completion};
use crate::gateway::{Exchange, Found, Gateway, Setup, Then, Upstream, until};

/// A DCGM exporter whose node has two pods of one name, each with a GPU.
fn exporter() -> Upstream {
    let gpu = |index: u32, namespace: &str, busy: u32, used: u32| {
        let labels = format!(
            "{{gpu=\"{index}\",UUID=\"GPU-{namespace}\",pod=\"vllm-0\",namespace=\"{namespace}\",container=\"c\"}}"
        );
        format!(
            "DCGM_FI_DEV_GPU_UTIL{labels} {busy}\nDCGM_FI_DEV_FB_USED{labels} {used}\nDCGM_FI_DEV_FB_FREE{labels} {}\n",
            100 - used
        )
    };
    let page = gpu(0, "llm", 75, 60) + &gpu(1, "test", 10, 20);
    Upstream::start(move |exchange: &mut Exchange<'_>| {
        exchange.answer("200 OK", "content-type: text/plain\r\n", &page);
        Then::Next
    })
}

/// A gateway that finds its targets so, and reads the exporter.
fn start(source: String, exporter: &Upstream) -> Gateway {
    // Pods of these tests have no page at /metrics.
    let exporters = format!(r#"[{{ node = "node-1", url = "http://{}/dcgm" }}]"#, exporter.address);
    Setup::before(&[]).set("discovery", source).set("gpu_exporters", exporters).start()
}

/// The record of a request that was decided when something was known of the GPUs.
fn decided(gateway: &Gateway) -> Found {
    until("the GPUs are known", || {
        let page = gateway.admin("/v1/fleet");
        let is_known = |target: &Value| target["state"]["gpu_utilization_source"] == "dcgm";
        page.list("/targets").first().is_some_and(is_known).then_some(())
    });
    let answer = gateway.ask(&completion());
    assert_eq!(answer.status, 200, "{}", answer.text());
    gateway.ended(&answer.id())
}

#[test]
fn a_pod_of_a_cluster_has_the_gpus_that_the_exporter_says_it_has_and_not_its_namesakes() {
    let (pod, server, exporter) = (Pod::start(), ApiServer::start(), exporter());
    let endpoint = json!({"addresses": ["127.0.0.1"], "conditions": {"ready": true}, "nodeName": "node-1",
                          "targetRef": {"kind": "Pod", "name": "vllm-0", "namespace": "llm", "uid": "u-0"}});
    server.put("vllm-x", pod.address().port(), json!([endpoint]));
    let source = format!(
        r#"[{{ kind = "kubernetes", service = "vllm", namespace = "llm", api = "http://{}" }}]"#,
        server.address
    );
    let gateway = start(source, &exporter);
    let found = decided(&gateway);
    let state = found.at("/decision/state");
    assert_eq!((&state["gpu_utilization"], &state["gpu_memory_utilization"]), (&json!(0.75), &json!(0.6)));
    for quantity in ["gpu_utilization", "gpu_memory_utilization"] {
        assert_eq!(state[format!("{quantity}_source")], "dcgm", "{quantity}");
        assert_eq!(state[format!("{quantity}_freshness")], "fresh", "{quantity}");
    }
    assert_eq!((&state["gpus"], &state["gpu_uuids"]), (&json!(1), &json!(["GPU-llm"])));
    assert_eq!(found.text_at("/decision/kubernetes/pod"), Some("vllm-0"));
    assert!(gateway.admin("/v1/fleet").at("/targets/0/gpu_problem").is_null());
}

#[test]
fn a_pod_that_a_file_names_has_its_gpus_likewise() {
    let (pod, exporter, dir) = (Pod::start(), exporter(), tempfile::tempdir().expect("a directory"));
    let file = dir.path().join("targets.json");
    let list = json!([{"targets": [pod.address().to_string()], "labels": {"pod": "vllm-0", "namespace": "test"}}]);
    fs::write(&file, list.to_string()).expect("the file can be written");
    let gateway = start(format!(r#"[{{ kind = "file", path = "{}" }}]"#, file.display()), &exporter);
    let found = decided(&gateway);
    let state = found.at("/decision/state");
    assert_eq!((&state["gpu_utilization"], &state["gpu_memory_utilization"]), (&json!(0.1), &json!(0.2)));
    assert_eq!(state["gpu_uuids"], json!(["GPU-test"]));
}

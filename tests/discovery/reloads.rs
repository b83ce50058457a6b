//! Sources that change with the configuration.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::process::{Engine, Gateway, ask_once, binary, eventually};

fn fleet(gateway: &Gateway) -> Value {
    ask_once(gateway.admin, "/v1/fleet").json()
}

fn until_targets(gateway: &Gateway, expected: &[&str]) -> Value {
    eventually(&format!("the targets are {expected:?}"), || {
        let page = fleet(gateway);
        let names: Vec<_> = page["targets"].as_array().expect("a list").iter().map(|target| &target["name"]).collect();
        (names == expected.iter().collect::<Vec<_>>()).then_some(page)
    })
}

#[test]
fn a_source_that_is_asked_otherwise_keeps_its_targets_until_it_has_others() {
    let engines = [Engine::start(), Engine::start(), Engine::start()];
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let list = |name: &str, engine: &Engine| {
        let text = json!([{"name": name, "url": format!("http://{}", engine.address)}]).to_string();
        fs::write(at(name), text).expect("the file can be written");
    };
    let configure = |text: &str| fs::write(at("snapgate.toml"), text).expect("the file can be written");
    let source = |name: &str| {
        let path = at(name);
        format!("[[discovery]]\nkind = \"file\"\ninterval = \"10ms\"\npath = \"{}\"\n", path.display())
    };
    list("a", &engines[0]);
    configure(&source("a"));
    let mut command = Command::new(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"]).arg(at("snapgate.toml"));
    command.arg("--data-dir").arg(at("data"));
    let mut gateway = Gateway::start(command);
    gateway.until_ready();
    until_targets(&gateway, &["a"]);

    configure(&source("b"));
    gateway.hang_up();
    eventually("b is not there", || {
        let page = fleet(&gateway);
        let problem = page["discovery"][0]["problem"].as_str().unwrap_or_default().to_owned();
        (problem.contains("b cannot be read")).then_some(())
    });
    until_targets(&gateway, &["a"]);
    list("b", &engines[1]);
    until_targets(&gateway, &["b"]);

    configure(&format!("[[targets]]\nname = \"c\"\nurl = \"http://{}\"\n", engines[2].address));
    gateway.hang_up();
    let page = until_targets(&gateway, &["c"]);
    assert_eq!(page["discovery"], json!([]), "nobody is asked any more");
    assert!(gateway.stop().success());
}

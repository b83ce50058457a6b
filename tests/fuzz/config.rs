//! Configuration files.

use snapgate::config::{Config, Machine, Sources, Targets};

use crate::attack::Parser;

pub(crate) const PARSER: Parser = Parser {
    name: "config",
    fixtures: &[],
    words: &[
        "[[targets]]\n",
        "[[models]]\n",
        "[[lookup.tokens]]\n",
        "[fleet]\n",
        "[limits]\n",
        "[otlp]\n",
        "[trace]\n",
        "[store]\n",
        "[links]\n",
        "[tenant]\n",
        "[[discovery]]\n",
        "kind = \"file\"\npath = \"t.json\"\n",
        "kind = \"dns\"\nhost = \"h.svc.\"\n",
        "kind = \"kubernetes\"\nservice = \"s\"\n",
        "record = \"srv\"\n",
        "servers = [\"10.0.0.1\"]\n",
        "port = 8000\n",
        "scheme = \"https\"\n",
        "engine = \"tgi\"\n",
        "metrics = \":8002/metrics\"\n",
        "ask_for_load_report = \"json\"\n",
        "[[gpu_exporters]]\n",
        "node = \"n\"\n",
        "gpus = { node = \"n\", ids = [0, \"GPU-0\"] }\n",
        "gpus = { pod = \"p\", namespace = \"l\", count = 2 }\n",
        "[load_reports]\n",
        "to_clients = \"on_request\"\n",
        "trusted = [\"10.0.0.0/8\"]\n",
        "metrics = [\"rps_fractional\"]\n",
        "[[engines]]\n",
        "waiting = \"a_b\"\n",
        "tokens = { names = [\"a\"], scale = 0.5 }\n",
        "name = \"a\"\n",
        "url = \"http://127.0.0.1:1\"\n",
        "models = [\"m\"]\n",
        "gpus = 1\n",
        "policy = \"least_queue\"\n",
        "poll_interval = \"",
        "ms\"",
        "KiB\"",
        " = ",
        " = \"\"\n",
        " = [\"",
        "\"\"\"",
        "'''",
        "0x",
        "1_000",
        "{ ",
        " }",
        "# ",
        "\\u0000",
        "é",
        "{trace_id}",
        "https://[::1]:9",
        "10.0.0.0/8",
    ],
    bytes_max: 16 << 10,
    read,
};

/// What is accepted can be shown as TOML; what is not is explained, each mistake in words.
fn read(bytes: &[u8]) -> String {
    let Ok(text) = str::from_utf8(bytes) else { return String::new() };
    let machine = Machine { hostname: "host".into(), cores: 2 };
    match Config::load(&Sources::of_text("snapgate.toml", text, machine), Targets::Required) {
        Ok(config) => {
            let text = config.text();
            text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}: {text}"));
            "valid".to_owned()
        }
        Err(mistakes) => {
            let text = mistakes.to_string();
            assert!(!text.trim().is_empty());
            // What was written is not part of the kind, only which mistakes there are.
            let mut kinds: Vec<_> = text.lines().map(template).collect();
            kinds.sort_unstable();
            kinds.dedup();
            kinds.concat()
        }
    }
}

/// A message without what it quotes, names or counts.
fn template(message: &str) -> String {
    let unquoted = message.split(['"', '`']).step_by(2);
    unquoted.flat_map(str::chars).filter(|c| c.is_ascii_lowercase() || *c == ' ').collect()
}

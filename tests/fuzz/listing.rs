//! Lists of targets, as files have them.

use snapgate::discovery::{Defaults, Format, check_name, read_list};

use crate::attack::Parser;

pub(crate) const PARSER: Parser = Parser {
    name: "listing",
    fixtures: &[],
    words: &[
        "[[targets]]\n",
        "targets = [",
        "url = \"http://h:1\"\n",
        "name = \"a\"\n",
        "\"http://h:1\"",
        "\"https://[::1]:443\"",
        "{\"url\": \"http://h:2\"",
        "\"name\": \"b\"",
        "\"gpus\": 2",
        "\"models\": [\"m\"]",
        "\"engine\": \"vllm\"",
        "\"metrics\": \":8002/m\"",
        "\"ask_for_load_report\": \"json\"",
        "{\"targets\": [\"h:3\"]",
        "\"labels\": {",
        "\"pod\": \"p\"",
        "\"namespace\": \"n\"",
        "\"__scheme__\": \"https\"",
        "\"__metrics_path__\": \"/m\"",
        "null",
        "4294967296",
        "\\u0000",
        "]",
        "}",
        ", ",
    ],
    bytes_max: 8 << 10,
    read,
};

/// What is taken has names and addresses that can be used; what is not is explained.
fn read(bytes: &[u8]) -> String {
    let Ok(text) = str::from_utf8(bytes) else { return String::new() };
    let defaults = Defaults { port: Some(8000), engines: vec!["vllm".to_owned()], ..Defaults::default() };
    let kinds = [Format::Json, Format::Toml].map(|format| match read_list(text, format, &defaults) {
        Ok(targets) => {
            for target in &targets {
                assert!(check_name(&target.name).is_ok(), "{target:?}");
                let (host, port) = target.address.rsplit_once(':').expect("an address has a port");
                assert!(!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0), "{target:?}");
            }
            let places = targets.iter().filter(|target| target.place.is_some()).count();
            format!("{} {}", targets.len().min(4), places.min(2))
        }
        Err(text) => {
            assert!(!text.trim().is_empty());
            // What was written is not part of the kind, only which mistakes there are.
            let unquoted = text.split(['"', '`']).step_by(2);
            unquoted.flat_map(str::chars).filter(|c| c.is_ascii_lowercase() || *c == ' ').collect()
        }
    });
    kinds.join("|")
}

//! The example file, made from the table: every key, explained, at its default.

use super::keys::{KEYS, Key, SECTIONS};
use super::value::Kind;

/// Where comments are broken.
const WIDTH: usize = 100;

const HEAD: &str = "\
# snapgate: every key, explained, at its default; a file needs only what it changes.
#
# Each key can also be set by the environment variable named with it, and some by a flag of `snapgate serve`. Flags win
# over the environment, the environment over this file. Durations have a unit (us, ms, s, m, h, d: \"500ms\", \"1h30m\"),
# sizes may (KiB, MiB, GiB, TiB: \"16MiB\"). `snapgate check FILE` says what is wrong with a file, and what is in effect.
#
# A reload (SIGHUP, or `reload.watch`) changes the keys that say so; the others wait for a restart, and a warning names
# them. A file that is wrong changes nothing.
#
# Text follows `# `; what follows `#` at once can be uncommented.
";

const TARGETS: &str = "\
[[targets]]
name = \"vllm-0\"
url = \"http://127.0.0.1:8000\"
#gpus = 1
#models = [\"llama-3.1-8b\"]
#engine = \"triton\"
#metrics = \":8002/metrics\"
#authorization = \"this-pods-own-key\"
#ask_for_load_report = \"json\"

#[[targets]]
#url = \"http://127.0.0.1:8001\"
#gpus = { node = \"node-1\", ids = [0, 1] }
";

const DISCOVERY: &str = "\
#[[discovery]]
#kind = \"file\"
#path = \"/etc/snapgate/targets.json\"

#[[discovery]]
#kind = \"dns\"
#host = \"vllm.llm.svc.cluster.local.\"
#port = 8000
#models = [\"llama-3.1-8b\"]

#[[discovery]]
#kind = \"kubernetes\"
#service = \"vllm\"
#engine = \"vllm\"
#ask_for_load_report = \"json\"
";

const MODELS: &str = "\
#[[models]]
#name = \"llama-3.1-8b\"
#policy = \"least_queue\"
";

const ENGINES: &str = "\
#[[engines]]
#name = \"our-engine\"
#waiting = \"our_queue_length\"
#running = \"our_requests{state=\\\"running\\\"}\"
#kv_cache_usage = { names = [\"our_kv_percent\"], combine = \"max\", scale = 0.01 }
#tokens = \"our_tokens_total\"
#queue_time = { header = \"x-our-queue-time\", unit = \"ms\" }
";

const GPU_EXPORTERS: &str = "\
#[[gpu_exporters]]
#node = \"node-1\"
#url = \"http://127.0.0.1:9400/metrics\"
";

const TOKENS: &str = "\
#[[lookup.tokens]]
#name = \"operators\"
#token_env = \"OPERATORS_TOKEN\"
";

/// The text of `deploy/snapgate.example.toml`; a test holds the two equal.
pub fn example() -> String {
    let mut text = HEAD.to_owned();
    for key in in_section("") {
        text += &described(key);
    }
    for (section, doc) in SECTIONS {
        text += &format!("\n{}[{section}]\n", comment(doc));
        for key in in_section(section) {
            text += &described(key);
        }
    }
    text
}

fn in_section(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.split().0 == section)
}

/// A key with its comment, after an empty line.
fn described(key: &Key) -> String {
    let mut facts = Vec::new();
    facts.extend(key.kind.bounds().map(|bounds| format!("Takes {bounds}.")));
    facts.push(format!("Variable {}.", key.variable()));
    facts.extend(key.flag().map(|flag| format!("Flag {flag}.")));
    facts.extend(key.is_live().then(|| "A reload changes it.".to_owned()));
    let text = comment(key.doc) + &comment(&facts.join(" "));
    let setting = match key.kind {
        Kind::Targets => TARGETS.to_owned(),
        Kind::Discovery => DISCOVERY.to_owned(),
        Kind::Models => MODELS.to_owned(),
        Kind::Tokens => TOKENS.to_owned(),
        Kind::Engines => ENGINES.to_owned(),
        Kind::GpuExporters => GPU_EXPORTERS.to_owned(),
        Kind::List { .. } => format!("{} = {}\n", key.split().1, folded(key)),
        kind => format!("{} = {}\n", key.split().1, kind.parse(key.default).expect("a test reads every default")),
    };
    format!("\n{text}{setting}")
}

/// A list of texts, one a line if there is more than one.
fn folded(key: &Key) -> String {
    let items: Vec<_> =
        key.default.split(',').filter(|item| !item.is_empty()).map(|item| format!("    \"{item}\",\n")).collect();
    if items.is_empty() { "[]".to_owned() } else { format!("[\n{}]", items.concat()) }
}

fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = "#".to_owned();
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            lines += &line;
            lines.push('\n');
            line = "#".to_owned();
        }
        line.push(' ');
        line += word;
    }
    lines + &line + "\n"
}

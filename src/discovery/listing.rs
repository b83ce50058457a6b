//! What stands in a file: a list of targets in TOML or JSON, or in JSON the lists of Prometheus's `file_sd`.
//!
//! A list is taken whole or not at all: one that is wrong somewhere was written by somebody who meant something else.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::uri::Authority;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::address::{at, check_name, default_name, parse_url};
use super::settings::Defaults;
use crate::fleet::{MetricsAt, TargetSettings};
use crate::snapshot::place::LABELS_MAX;
use crate::snapshot::{Place, ReportFormat};

/// How many mistakes of one file are named.
const MISTAKES_MAX: usize = 5;

/// The longest label and the longest value of one: Kubernetes has 317 and 63 bytes at most, and 253 for names of what it runs.
const LABEL_BYTES_MAX: usize = 512;

/// In what a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `[[targets]]`.
    Toml,
    /// A list, or an object that has it as `targets`.
    Json,
}

/// A TOML file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    targets: Vec<Value>,
}

/// An element of a list, if it is more than a URL.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    url: String,
    name: Option<String>,
    gpus: Option<u32>,
    #[serde(default)]
    models: Vec<String>,
    engine: Option<String>,
    metrics: Option<String>,
    ask_for_load_report: Option<String>,
}

/// An element of Prometheus's lists.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    targets: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// The targets of a file's text; or what is wrong with it.
pub fn read(text: &str, format: Format, defaults: &Defaults) -> Result<Vec<TargetSettings>, String> {
    let list = match format {
        Format::Toml => in_toml(text)?,
        Format::Json => in_json(text)?,
    };
    let mut targets = Targets { defaults, number: 0, found: Vec::new(), mistakes: Vec::new() };
    for value in list {
        targets.number += 1;
        targets.value(value, format);
    }
    targets.whole()
}

/// Its elements. A mistake is told without the line it is on, which may hold anything.
fn in_toml(text: &str) -> Result<Vec<Value>, String> {
    let document: Result<Document, _> = toml::from_str(text);
    let mistake = |error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        format!("is not the TOML that it should be, at line {line}: {}", error.message())
    };
    document.map(|document| document.targets).map_err(mistake)
}

fn in_json(text: &str) -> Result<Vec<Value>, String> {
    let said = "is no list of targets in JSON";
    match serde_json::from_str::<Value>(text).map_err(|error| format!("{said}: {error}"))? {
        Value::Array(list) => Ok(list),
        Value::Object(mut fields) => match fields.remove("targets") {
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(format!("{said}: `targets` is {}", kind(&other))),
            None => Err(format!("{said}: it has no `targets`")),
        },
        other => Err(format!("{said}: it is {}", kind(&other))),
    }
}

/// What a value is, in words.
const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

fn parsed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn described(value: Value) -> Result<Described, String> {
    match value {
        Value::String(url) => Ok(Described { url, ..Described::default() }),
        Value::Object(_) => parsed(value),
        other => Err(format!("it is {}", kind(&other))),
    }
}

struct Targets<'a> {
    defaults: &'a Defaults,
    /// Which element of the list is read, from 1.
    number: usize,
    found: Vec<TargetSettings>,
    mistakes: Vec<String>,
}

impl Targets<'_> {
    fn value(&mut self, value: Value, format: Format) {
        let is_group = format == Format::Json && value.get("targets").is_some();
        let read = if is_group {
            parsed(value).map(|group| self.group(group))
        } else {
            described(value).map(|entry| self.entry(entry))
        };
        if let Err(error) = read {
            let number = self.number;
            self.mistakes.push(match format {
                Format::Toml => format!("entry {number} is no target: {error}; write url = \"http://HOST:PORT\", name = …"),
                Format::Json => format!(
                    "entry {number} is no target: {error}; write {{\"url\": \"http://HOST:PORT\", \"name\": …}} or, as for \
                     Prometheus, {{\"targets\": [\"HOST:PORT\"], \"labels\": {{…}}}}"
                ),
            });
        }
    }

    fn entry(&mut self, entry: Described) {
        let Described { url, name, gpus, models, engine, metrics, ask_for_load_report } = entry;
        let address = parse_url(&url);
        let target = address.and_then(|address| {
            let gpus_of = self.defaults.gpus_of(None, name.as_deref());
            let name = name.map_or_else(|| default_name(&address), |name| check_name(&name))?;
            let usual = self.defaults.target(&name, &address);
            let engine = engine.map(|engine| self.engine(engine)).transpose()?.or(usual.engine);
            let metrics_at = metrics.map(|text| MetricsAt::parse(&text)).transpose()?.unwrap_or_default();
            let asked = ask_for_load_report.map(|text| ReportFormat::asked(&text)).transpose()?;
            Ok(TargetSettings {
                gpus: gpus.or(usual.gpus),
                gpus_of,
                models: if models.is_empty() { usual.models } else { models },
                engine,
                metrics_at: metrics_at.or(&usual.metrics_at),
                ask_for_load_report: asked.or(usual.ask_for_load_report),
                ..usual
            })
        });
        self.add(target);
    }

    fn engine(&self, engine: String) -> Result<String, String> {
        let known = &self.defaults.engines;
        if known.contains(&engine) {
            return Ok(engine);
        }
        Err(format!("there is no engine {engine:?}: use one of {}", known.join(", ")))
    }

    /// What Prometheus scrapes is what is forwarded to. A pod's labels say which it is, if it is one.
    fn group(&mut self, group: Group) {
        let Group { targets, labels } = group;
        let place = match place(&labels) {
            Ok(place) => place,
            Err(mistake) => return self.add(Err(mistake)),
        };
        let tls = labels.get("__scheme__").map_or(self.defaults.tls, |scheme| scheme == "https");
        // As Prometheus takes it: an empty label is none, and a path begins with a slash, written or not.
        let path = labels.get("__metrics_path__").filter(|path| !path.is_empty());
        let path = path.map(|path| format!("/{}", path.strip_prefix('/').unwrap_or(path)));
        let metrics_at = match path.map(|path| MetricsAt::parse(&path)).transpose() {
            Ok(at) => at.unwrap_or_default().or(&self.defaults.metrics_at),
            Err(mistake) => return self.add(Err(format!("the label __metrics_path__: {mistake}"))),
        };
        let only = targets.len() == 1;
        for address in targets {
            let target = located(&address, self.defaults.port, tls).and_then(|address| {
                let place = place.clone().filter(|_| only);
                let pod = place.as_ref().map(|place| check_name(&place.pod)).transpose()?;
                let name = pod.map_or_else(|| default_name(&address), Ok)?;
                let gpus_of = self.defaults.gpus_of(place.as_deref(), None);
                let metrics_at = metrics_at.clone();
                Ok(TargetSettings { gpus_of, metrics_at, place, ..self.defaults.target(&name, &address) })
            });
            self.add(target);
        }
    }

    fn add(&mut self, target: Result<TargetSettings, String>) {
        match target {
            Ok(target) => self.found.push(target),
            Err(mistake) => self.mistakes.push(format!("entry {}: {mistake}", self.number)),
        }
    }

    fn whole(mut self) -> Result<Vec<TargetSettings>, String> {
        if self.mistakes.is_empty() {
            return Ok(self.found);
        }
        let more = self.mistakes.len().saturating_sub(MISTAKES_MAX);
        self.mistakes.truncate(MISTAKES_MAX);
        let named = self.mistakes.join("; ");
        Err(if more > 0 { format!("{named}; and {more} more") } else { named })
    }
}

/// `HOST:PORT`, or `HOST` where the port is known otherwise.
fn located(address: &str, port: Option<u16>, tls: bool) -> Result<String, String> {
    let is_host = address.parse::<Authority>().is_ok_and(|authority| authority.host() == address);
    match port.filter(|_| is_host) {
        Some(port) => at(format_args!("{address}:{port}"), tls),
        None => at(address, tls),
    }
}

/// The pod that labels speak of, if they name one. What says who it is has to fit; of the others those are left out that do not.
fn place(labels: &BTreeMap<String, String>) -> Result<Option<Arc<Place>>, String> {
    const OWN: [&str; 4] = ["namespace", "pod", "uid", "node"];
    let Some(pod) = labels.get("pod") else { return Ok(None) };
    let fits = |(name, value): &(&String, &String)| name.len().max(value.len()) <= LABEL_BYTES_MAX;
    let (own, others): (Vec<_>, Vec<_>) = labels.iter().partition(|(name, _)| OWN.contains(&name.as_str()));
    if let Some((name, _)) = own.into_iter().find(|label| !fits(label)) {
        return Err(format!("the label {name} is longer than {LABEL_BYTES_MAX} bytes"));
    }
    let label = |name: &str| labels.get(name).map(|value| value.as_str().into());
    let others = others.into_iter().filter(|label| !label.0.starts_with("__") && fits(label));
    Ok(Some(Arc::new(Place {
        namespace: label("namespace").unwrap_or_default(),
        pod: pod.as_str().into(),
        uid: label("uid").unwrap_or_default(),
        node: label("node"),
        labels: others.take(LABELS_MAX).map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
    })))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Result<Vec<TargetSettings>, String> {
        read(text, Format::Json, &Defaults::default())
    }

    fn shown(targets: Vec<TargetSettings>) -> Vec<String> {
        targets.into_iter().map(|target| format!("{}={}", target.name, target.address)).collect()
    }

    #[test]
    fn a_list_in_json_or_toml() {
        let text = r#"["http://h:1", {"name": "b", "url": "https://H:2", "gpus": 2, "models": ["m"]}]"#;
        let targets = json(text).unwrap();
        assert_eq!((targets[1].gpus, &*targets[1].models), (Some(2), &["m".to_owned()][..]));
        assert_eq!(shown(targets), ["h-1=h:1", "b=https://h:2"]);
        let targets = json(&format!(r#"{{"targets": {text}}}"#)).unwrap();
        assert_eq!(shown(targets), ["h-1=h:1", "b=https://h:2"]);
        let toml = "[[targets]]\nurl = \"http://h:1\"\n[[targets]]\nname = \"b\"\nurl = \"https://h:2\"";
        let targets = read(toml, Format::Toml, &Defaults::default()).unwrap();
        assert_eq!(shown(targets), ["h-1=h:1", "b=https://h:2"]);
    }

    #[test]
    fn what_is_not_said_of_a_target_is_said_of_all() {
        let defaults =
            Defaults { models: vec!["m".into()], gpus: Some(8), tls: true, port: Some(8000), ..Defaults::default() };
        let text = r#"["http://h:1", {"url": "http://h:2", "gpus": 1, "models": ["n"]}, {"targets": ["h", "h:3"]}]"#;
        let targets = read(text, Format::Json, &defaults).unwrap();
        let gpus: Vec<_> = targets.iter().map(|target| target.gpus.unwrap()).collect();
        assert_eq!((gpus, targets[0].models[0].as_str(), targets[1].models[0].as_str()), (vec![8, 1, 8, 8], "m", "n"));
        assert_eq!(shown(targets), ["h-1=h:1", "h-2=h:2", "h-8000=https://h:8000", "h-3=https://h:3"]);
    }

    #[test]
    fn whose_metrics_it_serves_and_how_it_is_asked_is_said_of_one_or_of_all() {
        let defaults = Defaults {
            engine: Some("tgi".into()),
            ask_for_load_report: Some(Some(ReportFormat::Json)),
            engines: vec!["tgi".into(), "vllm".into()],
            metrics_at: MetricsAt::parse(":8002").unwrap(),
            ..Defaults::default()
        };
        let read = |text| read(text, Format::Json, &defaults);
        let text = r#"[{"url": "http://h:1", "engine": "vllm", "ask_for_load_report": "none", "metrics": "/m"}, "http://h:2",
                       {"targets": ["h:3"], "labels": {"__metrics_path__": "n"}},
                       {"targets": ["h:4"], "labels": {"__metrics_path__": ""}}]"#;
        let targets = read(text).unwrap();
        let said: Vec<_> = targets.iter().map(|it| (it.engine.as_deref().unwrap(), it.ask_for_load_report)).collect();
        let usual = ("tgi", Some(Some(ReportFormat::Json)));
        assert_eq!(said, [("vllm", Some(None)), usual, usual, usual]);
        let at: Vec<_> = targets.iter().map(|it| it.metrics_at.to_string()).collect();
        assert_eq!(at, ["/m", ":8002", "/n", ":8002"]);
        let text = read(
            r#"[{"url": "http://h:1", "metrics": "h:1"}, {"targets": ["h:3"], "labels": {"__metrics_path__": "m?x"}}]"#,
        );
        let text = text.unwrap_err();
        assert!(text.contains("entry 1: \"h:1\" is not where metrics are"), "{text}");
        assert!(text.contains("entry 2: the label __metrics_path__: \"/m?x\" is not where"), "{text}");
        let text = r#"[{"url": "http://h:1", "engine": "vlm"}, {"url": "http://h:2", "ask_for_load_report": "xml"}]"#;
        let text = read(text).unwrap_err();
        assert!(text.contains("entry 1: there is no engine \"vlm\": use one of tgi, vllm"), "{text}");
        assert!(text.contains("entry 2: `ask_for_load_report` has to be one of none, text, json, bin"), "{text}");
    }

    #[test]
    fn what_prometheus_reads_is_read_here() {
        let text = r#"[{"targets": ["10.0.3.2:8000"], "labels": {"namespace": "llm", "pod": "vllm-0", "node": "n1",
                       "app": "vllm", "__meta_x": "y", "__scheme__": "https"}}, {"targets": ["a:1", "b:1"]}]"#;
        let targets = json(text).unwrap();
        let place = targets[0].place.as_deref().unwrap();
        assert_eq!((&*place.namespace, &*place.pod, place.node.as_deref()), ("llm", "vllm-0", Some("n1")));
        assert_eq!(place.labels, [("app".into(), "vllm".into())].into());
        assert_eq!(shown(targets), ["vllm-0=https://10.0.3.2:8000", "a-1=a:1", "b-1=b:1"]);
    }

    #[test]
    fn nothing_is_a_list_only_if_it_says_so() {
        assert_eq!(json("[]"), Ok(Vec::new()));
        assert_eq!(read("targets = []", Format::Toml, &Defaults::default()), Ok(Vec::new()));
        for text in ["", " ", "{}", "null", r#"["http://h:1""#, r#"{"targets": ["#] {
            assert!(json(text).unwrap_err().contains("no list of targets"), "{text}");
        }
        for text in ["", "# nothing", "target = []", "[[targets]]\nurl = "] {
            assert!(read(text, Format::Toml, &Defaults::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn one_wrong_entry_is_a_wrong_file_and_all_are_named() {
        let text =
            r#"["http://h:1", "h:2", {"url": "http://h"}, {"url": "http://h:3", "nmae": "x"}, {"targets": ["h"]}, 7]"#;
        let text = json(text).unwrap_err();
        for part in [
            "entry 2: \"h:2\" is not a URL",
            "entry 3: \"http://h\" has no port",
            "entry 4 is no target: unknown field `nmae`",
            "entry 5: \"http://h\" has no port",
            "entry 6 is no target: it is a number",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let group = r#"[{"targets": ["h:1", "h:2"]}, {"name": "x"}]"#;
        assert!(json(group).unwrap_err().contains("entry 2 is no target: missing field `url`"), "entries are counted");
        let many = format!("[{}]", ["\"x\""; 9].join(","));
        assert!(json(&many).unwrap_err().ends_with("; and 4 more"));
    }

    #[test]
    fn a_mistake_in_toml_is_told_by_its_line_and_not_by_what_stands_there() {
        let wrong = |text| read(text, Format::Toml, &Defaults::default()).unwrap_err();
        let text = wrong("[[targets]]\nurl = \"http://h:1\"\n\n[[targets]\nsecret = \"s3cr3t\"");
        assert!(text.contains("at line 4: ") && !text.contains("targets]"), "{text}");
        let text = wrong("[[targets]]\nurl = \"http://h:1\"\n[other]\nsecret = \"s3cr3t\"");
        assert!(text.contains("at line 3: unknown field `other`") && !text.contains("s3cr3t"), "{text}");
        let text = wrong("[[targets]]\nname = \"x\"");
        assert!(text.starts_with("entry 1 is no target: missing field `url`"), "{text}");
        assert!(wrong("targets = [{targets = [\"h:1\"]}]").contains("unknown field `targets`"));
    }

    #[test]
    fn labels_are_no_longer_than_anybody_needs() {
        let of = |name: &str, bytes: usize| {
            let value = "x".repeat(bytes);
            json(&format!(r#"[{{"targets": ["h:1"], "labels": {{"pod": "p", "app": "a", "{name}": "{value}"}}}}]"#))
        };
        let labels = |targets: Vec<TargetSettings>| targets[0].place.as_ref().unwrap().labels.len();
        assert_eq!(of("note", LABEL_BYTES_MAX).map(labels), Ok(2));
        assert_eq!(of("note", LABEL_BYTES_MAX + 1).map(labels), Ok(1), "it is left out");
        assert!(of("node", LABEL_BYTES_MAX + 1).unwrap_err().contains("the label node is longer than 512 bytes"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\[\\]{}\",:a-z0-9 ]{0,40}") {
            let _either = (json(&text), read(&text, Format::Toml, &Defaults::default()));
        }
    }
}

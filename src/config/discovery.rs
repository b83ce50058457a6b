//! The list of tables `[[discovery]]`: sources of targets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::build::Values;
use super::engines;
use super::layers::Effective;
use super::mistake::{Origin, Place};
use super::tables::{Entry, Fields, Tables};
use super::units::{parse_duration, show_duration};
use super::value::{Value, quoted, quoted_list};
use crate::discovery::{
    Defaults, DnsSettings, FileSettings, Kind, KubernetesSettings, Records, Settings, check_name, parse_url,
};
use crate::snapshot::ReportFormat;

/// How often a file is looked at, and the least time between two questions, if nothing is said.
const INTERVAL: Duration = Duration::from_secs(1);

/// What an interval may be.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));

/// The longest name in DNS.
const HOST_CHARS_MAX: usize = 253;

/// The port of a DNS server that names none.
const DNS_PORT: u16 = 53;

/// Where a pod finds the API server of its cluster, whom to believe for it and what to present.
const CLUSTER_API: &str = "https://kubernetes.default.svc:443";
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const CLUSTER_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// What the slices of a service are labelled with.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Sources at most: each is a task, and has a row in every answer about the fleet.
const SOURCES_MAX: usize = 32;

/// Fields of every source.
const OF_ALL: [&str; 9] =
    ["kind", "name", "models", "gpus", "scheme", "port", "engine", "metrics", "ask_for_load_report"];

/// Kinds with the fields of their own.
const OF_KIND: [(&str, &[&str]); 3] = [
    ("file", &["path", "interval"]),
    ("dns", &["host", "record", "servers", "interval"]),
    ("kubernetes", &["service", "selector", "namespace", "port_name", "api", "ca", "token_file"]),
];

/// The sources, as they were written.
pub(super) fn sources(effective: &Effective) -> &[Settings] {
    let (Value::Discovery(sources), _) = effective.get("discovery") else { unreachable!("sources are sources") };
    sources
}

/// The sources. About the GPUs of their targets somebody is asked if there is anybody, and what they say of engines has to be
/// the name of one.
pub(super) fn settings(values: &Values<'_>, effective: &Effective) -> Vec<Settings> {
    let gpus_are_told = !values.gpu_exporters().is_empty();
    let engines: Vec<_> = engines::names(values.engines()).map(str::to_owned).collect();
    let source = |source: &Settings| {
        let defaults = Defaults { gpus_are_told, engines: engines.clone(), ..source.defaults.clone() };
        Settings { defaults, ..source.clone() }
    };
    sources(effective).iter().map(source).collect()
}

impl Tables<'_> {
    pub(super) fn discovery_from_toml(&mut self, value: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Vec<Settings> {
        let known: Vec<&'static str> =
            OF_ALL.into_iter().chain(OF_KIND.iter().flat_map(|(_, fields)| fields.iter().copied())).collect();
        let entries = self.entries(value, place, &known);
        let mut sources: Vec<Settings> = Vec::new();
        for (number, entry) in (1..).zip(entries) {
            let (fields, origin) = match entry {
                Entry::Fields(fields, origin) => (fields, origin),
                Entry::Short(_, origin) => {
                    self.wrong(&origin, "a source is a table: write [[discovery]] and `kind = …` below it");
                    continue;
                }
            };
            let Some(source) = self.source(&fields, &origin, number) else { continue };
            if sources.iter().any(|other| other.name == source.name) {
                self.wrong(&origin, format!("the name {} is already taken: names of sources are unique", source.name));
            } else if sources.len() == SOURCES_MAX {
                self.wrong(&origin, format!("there are more than {SOURCES_MAX} sources"));
            } else {
                sources.push(source);
            }
        }
        sources
    }

    /// One source. Everything is read before anything is missed, so that all of its mistakes are found.
    fn source(&mut self, fields: &Fields<'_>, origin: &Origin, number: usize) -> Option<Settings> {
        let written = self.text(fields, "kind");
        let own = OF_KIND.iter().find(|(name, _)| written.as_ref().is_some_and(|(kind, _)| kind == name));
        let Some((kind, own)) = own else {
            let names = OF_KIND.map(|(name, _)| format!("\"{name}\"")).join(", ");
            match written {
                Some((kind, origin)) => self.wrong(&origin, format!("{kind:?} is no kind: it is one of {names}")),
                None => self.wrong(origin, format!("a source needs a `kind`, one of {names}")),
            }
            return None;
        };
        for (name, (_, origin)) in fields.iter().filter(|(name, _)| !OF_ALL.contains(name) && !own.contains(name)) {
            self.wrong(origin, format!("`{name}` means nothing to a source of the kind \"{kind}\""));
        }
        let name = match self.text(fields, "name") {
            Some((name, origin)) => check_name(&name).map_err(|text| self.wrong(&origin, text)).ok(),
            None => Some(format!("{kind}-{number}")),
        };
        let defaults = self.defaults(fields);
        let interval = self.interval(fields);
        let kind = match *kind {
            "file" => self.file_source(fields, origin, interval).map(Kind::File),
            "dns" => self.dns_source(fields, origin, interval).map(Kind::Dns),
            _ => self.kubernetes_source(fields, origin).map(Kind::Kubernetes),
        };
        Some(Settings { name: name?, kind: kind?, defaults })
    }

    fn file_source(&mut self, fields: &Fields<'_>, origin: &Origin, interval: Duration) -> Option<FileSettings> {
        let (path, origin) = self.needed(fields, "path", "such as \"/etc/snapgate/targets.json\"", origin)?;
        if [".yml", ".yaml"].iter().any(|end| path.ends_with(end)) {
            self.wrong(&origin, format!("{path} is YAML, which is not read: write the same list as JSON or TOML"));
            return None;
        }
        if path.is_empty() || path.contains('\0') {
            self.wrong(&origin, "a path cannot be empty or hold a zero byte");
            return None;
        }
        Some(FileSettings { path: path.into(), interval })
    }

    fn dns_source(&mut self, fields: &Fields<'_>, origin: &Origin, interval: Duration) -> Option<DnsSettings> {
        let host = self.needed(fields, "host", "the name with the targets' addresses", origin);
        let host = host.and_then(|(host, origin)| check_host(&host).map_err(|text| self.wrong(&origin, text)).ok());
        let records = match self.text(fields, "record") {
            None => Some(Records::Address),
            Some((text, origin)) => {
                let records = Records::ALL.into_iter().find(|records| records.name() == text);
                if records.is_none() {
                    let names = Records::ALL.map(|records| format!("\"{}\"", records.name())).join(", ");
                    self.wrong(&origin, format!("`record` is one of {names}"));
                }
                records
            }
        };
        if !fields.contains_key("port") && records.is_some_and(|records| records != Records::Srv) {
            self.wrong(origin, "addresses have no ports: set `port`, or `record = \"srv\"` for records that have");
        }
        let servers = self.servers(fields);
        Some(DnsSettings { host: host?, records: records?, servers, interval })
    }

    fn kubernetes_source(&mut self, fields: &Fields<'_>, origin: &Origin) -> Option<KubernetesSettings> {
        let mut words = |name: &str| self.text(fields, name).map(|(text, _)| text);
        let (service, selector) = (words("service"), words("selector"));
        let (port_name, ca, token_file) = (words("port_name"), words("ca"), words("token_file"));
        let selector = match (service, selector) {
            (Some(service), None) => Some(format!("{SERVICE_LABEL}={service}")),
            (None, Some(selector)) => Some(selector),
            _ => {
                let text =
                    "the source needs either `service`, the name of one, or `selector`, labels of EndpointSlices";
                self.wrong(origin, text);
                None
            }
        };
        let namespace = self.text(fields, "namespace");
        let namespace =
            namespace.map(|(name, origin)| check_host(&name).map_err(|text| self.wrong(&origin, text)).ok());
        let api = self.text(fields, "api").map(|(url, origin)| {
            let is_url = parse_url(&url).map_err(|text| self.wrong(&origin, text)).is_ok();
            is_url.then_some(url)
        });
        let in_cluster = api.is_none();
        let file =
            |named: Option<String>, usual: &str| named.or_else(|| in_cluster.then(|| usual.to_owned())).map(Into::into);
        Some(KubernetesSettings {
            api: api.unwrap_or_else(|| Some(CLUSTER_API.to_owned()))?,
            ca: file(ca, CLUSTER_CA),
            token_file: file(token_file, CLUSTER_TOKEN),
            namespace: match namespace {
                None => None,
                Some(namespace) => Some(namespace?),
            },
            selector: selector?,
            port_name,
        })
    }

    fn servers(&mut self, fields: &Fields<'_>) -> Vec<SocketAddr> {
        let Some((value, origin)) = fields.get("servers") else { return Vec::new() };
        let server = |item: &str| {
            let alone = item.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
            item.parse::<SocketAddr>().or(alone).ok()
        };
        let items = value.as_array().map(|items| items.iter().map(|item| item.get_ref().as_str().and_then(server)));
        let servers = items.and_then(Iterator::collect::<Option<Vec<_>>>).filter(|servers| !servers.is_empty());
        if servers.is_none() {
            self.wrong(origin, "`servers` has to be a list of addresses, such as [\"10.96.0.10\", \"127.0.0.1:5353\"]");
        }
        servers.unwrap_or_default()
    }

    /// A text field that has to be there.
    fn needed(&mut self, fields: &Fields<'_>, name: &str, what: &str, origin: &Origin) -> Option<(String, Origin)> {
        if !fields.contains_key(name) {
            self.wrong(origin, format!("the source needs a `{name}`, {what}"));
        }
        self.text(fields, name)
    }

    fn defaults(&mut self, fields: &Fields<'_>) -> Defaults {
        let models = fields.get("models").map_or_else(Vec::new, |(value, origin)| self.served(value, origin));
        let port = fields.get("port").and_then(|(value, origin)| {
            let port = value.as_integer().and_then(|port| port.as_str().parse().ok()).filter(|port| *port > 0);
            if port.is_none() {
                self.wrong(origin, "`port` has to be a whole number from 1 to 65535");
            }
            port
        });
        let tls = self.text(fields, "scheme").is_some_and(|(scheme, origin)| {
            if !["http", "https"].contains(&&*scheme) {
                self.wrong(&origin, "`scheme` is \"http\" or \"https\"");
            }
            scheme == "https"
        });
        let gpus = fields.get("gpus").and_then(|(value, origin)| self.gpu_count(value, origin, "gpus"));
        let engine = self.text(fields, "engine").map(|(engine, _)| engine);
        let (metrics_at, ask_for_load_report) = (self.metrics_at(fields), self.asked(fields));
        // Those that follow from other keys are added when all are known.
        let engines = Vec::new();
        Defaults { models, gpus, tls, port, engine, metrics_at, ask_for_load_report, engines, gpus_are_told: false }
    }

    fn interval(&mut self, fields: &Fields<'_>) -> Duration {
        let Some((text, origin)) = self.text(fields, "interval") else { return INTERVAL };
        let (least, most) = INTERVALS;
        match parse_duration(&text) {
            Ok(interval) if (least..=most).contains(&interval) => return interval,
            Ok(_) => {
                let bounds = format!("{} to {}", show_duration(least), show_duration(most));
                self.wrong(&origin, format!("`interval` takes {bounds}"));
            }
            Err(text) => self.wrong(&origin, text),
        }
        INTERVAL
    }
}

/// A name as in DNS, with or without a dot at its end.
fn check_host(host: &str) -> Result<String, String> {
    let labels = || host.strip_suffix('.').unwrap_or(host).split('.');
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    if host.len() <= HOST_CHARS_MAX && labels().all(is_label) && host.parse::<IpAddr>().is_err() {
        return Ok(host.to_ascii_lowercase());
    }
    Err(format!("\"{host}\" is not a name in DNS, such as \"vllm.llm.svc.cluster.local.\""))
}

fn show_texts(f: &mut fmt::Formatter<'_>, fields: &[(&str, &str)]) -> fmt::Result {
    for (name, text) in fields {
        write!(f, ", {name} = ")?;
        quoted(f, text)?;
    }
    Ok(())
}

/// As a TOML table, with what is not said left out.
pub(super) fn show(f: &mut fmt::Formatter<'_>, source: &Settings) -> fmt::Result {
    let Settings { name, kind, defaults } = source;
    write!(f, "{{ kind = \"{}\", name = ", kind.name())?;
    quoted(f, name)?;
    match kind {
        Kind::File(FileSettings { path, interval }) => {
            show_texts(f, &[("path", &path.display().to_string()), ("interval", &show_duration(*interval))])?;
        }
        Kind::Dns(DnsSettings { host, records, servers, interval }) => {
            show_texts(f, &[("host", host), ("record", records.name()), ("interval", &show_duration(*interval))])?;
            if !servers.is_empty() {
                f.write_str(", servers = ")?;
                quoted_list(f, &servers.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            }
        }
        Kind::Kubernetes(KubernetesSettings { api, ca, token_file, namespace, selector, port_name }) => {
            show_texts(f, &[("selector", selector), ("api", api)])?;
            let file = |file: &Option<std::path::PathBuf>| file.as_ref().map(|file| file.display().to_string());
            let others = [
                ("ca", file(ca)),
                ("token_file", file(token_file)),
                ("namespace", namespace.clone()),
                ("port_name", port_name.clone()),
            ];
            for (name, text) in others {
                text.map_or(Ok(()), |text| show_texts(f, &[(name, &text)]))?;
            }
        }
    }
    let Defaults { models, gpus, tls, port, engine, metrics_at, ask_for_load_report, .. } = defaults;
    port.map_or(Ok(()), |port| write!(f, ", port = {port}"))?;
    if *tls {
        f.write_str(", scheme = \"https\"")?;
    }
    gpus.map_or(Ok(()), |gpus| write!(f, ", gpus = {gpus}"))?;
    if !models.is_empty() {
        f.write_str(", models = ")?;
        quoted_list(f, models)?;
    }
    if let Some(engine) = engine {
        show_texts(f, &[("engine", engine)])?;
    }
    if !metrics_at.is_usual() {
        show_texts(f, &[("metrics", &metrics_at.to_string())])?;
    }
    if let Some(format) = ask_for_load_report {
        show_texts(f, &[("ask_for_load_report", format.map_or("none", ReportFormat::name))])?;
    }
    f.write_str(" }")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Config, Machine, Sources, Targets};
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let machine = Machine { hostname: "test".into(), cores: 2 };
        let sources = Sources { environment: BTreeMap::new(), ..Sources::of_text("f", text, machine) };
        Config::load(&sources, Targets::Required).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn sources_stand_for_targets_and_are_shown_as_they_are_read() {
        let text = "[[discovery]]\nkind = \"file\"\npath = \"t.json\"\nmodels = [\"m\"]\ngpus = 2\n\
                    engine = \"tgi\"\nask_for_load_report = \"none\"\nmetrics = \":8002\"\n\
                    [[discovery]]\nkind = \"dns\"\nname = \"pods\"\nhost = \"Vllm.llm.svc\"\nport = 8000\nscheme = \"https\"\n\
                    servers = [\"10.0.0.1\", \"127.0.0.1:5353\"]\ninterval = \"5s\"\n\
                    [[discovery]]\nkind = \"kubernetes\"\nservice = \"vllm\"\nport_name = \"http\"\n\
                    [[discovery]]\nkind = \"kubernetes\"\nname = \"abroad\"\nselector = \"a=b\"\nnamespace = \"llm\"\n\
                    api = \"https://10.0.0.9:6443\"\nca = \"ca.pem\"\n";
        let config = load(text).unwrap();
        let names: Vec<_> = config.discovery.iter().map(|source| &*source.name).collect();
        assert_eq!(names, ["file-1", "pods", "kubernetes-3", "abroad"]);
        let said = |source: usize| {
            let Defaults { engine, ask_for_load_report, .. } = &config.discovery[source].defaults;
            (engine.as_deref(), *ask_for_load_report)
        };
        assert_eq!((said(0), said(1)), ((Some("tgi"), Some(None)), (None, None)));
        assert_eq!(config.discovery[0].defaults.metrics_at.to_string(), ":8002");
        assert!(config.discovery[1].defaults.engines.iter().any(|engine| engine == "tgi"));
        let Kind::Kubernetes(own) = &config.discovery[2].kind else { panic!("{:?}", config.discovery[2]) };
        assert_eq!((&*own.selector, &*own.api), ("kubernetes.io/service-name=vllm", CLUSTER_API));
        assert_eq!((own.token_file.clone(), own.namespace.clone()), (Some(CLUSTER_TOKEN.into()), None));
        let Kind::Kubernetes(abroad) = &config.discovery[3].kind else { panic!("{:?}", config.discovery[3]) };
        assert_eq!((abroad.token_file.clone(), abroad.ca.clone()), (None, Some("ca.pem".into())));
        let Kind::Dns(dns) = &config.discovery[1].kind else { panic!("{:?}", config.discovery[1]) };
        assert_eq!((&*dns.host, dns.records, dns.interval), ("vllm.llm.svc", Records::Address, Duration::from_secs(5)));
        assert_eq!(dns.servers, ["10.0.0.1:53".parse().unwrap(), "127.0.0.1:5353".parse().unwrap()]);
        let shown = config.shown().iter().find(|shown| shown.key == "discovery").unwrap();
        let again = load(&format!("discovery = {}", shown.value)).unwrap();
        assert_eq!(again.discovery, config.discovery);
        assert!(shown.live);
    }

    #[test]
    fn every_mistake_of_every_source_is_found() {
        let text = "[[discovery]]\nkind = \"ftp\"\n[[discovery]]\nkind = \"file\"\nhost = \"h\"\ninterval = \"1ms\"\n\
                    ask_for_load_report = \"xml\"\nengine = 1\nmetrics = \"8002\"\n\
                    [[discovery]]\nkind = \"dns\"\nhost = \"a..b\"\nrecord = \"mx\"\nservers = [\"x\"]\nport = 0\n\
                    [[discovery]]\nkind = \"dns\"\nhost = \"h\"\nscheme = \"ftp\"\nname = \"a b\"\n\
                    [[discovery]]\nkind = \"file\"\npath = \"a.yaml\"\nfiles = 1\n\
                    [[discovery]]\nkind = \"kubernetes\"\nname = \"k\"\napi = \"h\"\nnamespace = \"a b\"\ninterval = \"1s\"\n";
        let wrong = load(text).unwrap_err();
        for part in [
            "f:2: discovery: \"ftp\" is no kind: it is one of \"file\", \"dns\", \"kubernetes\"",
            "the source needs either `service`",
            "\"h\" is not a URL",
            "\"a b\" is not a name in DNS",
            "`interval` means nothing to a source of the kind \"kubernetes\"",
            "`host` means nothing to a source of the kind \"file\"",
            "`interval` takes 10ms to 1h",
            "the source needs a `path`",
            "`ask_for_load_report` has to be one of none, text, json, bin",
            "`engine` has to be a text",
            "\"8002\" is not where metrics are",
            "\"a..b\" is not a name in DNS",
            "`record` is one of \"address\", \"a\", \"aaaa\", \"srv\"",
            "`servers` has to be a list of addresses",
            "`port` has to be a whole number",
            "addresses have no ports",
            "`scheme` is \"http\" or \"https\"",
            "\"a b\" is not a name",
            "a.yaml is YAML",
            "unknown field `files`",
        ] {
            assert!(wrong.contains(part), "{part} in\n{wrong}");
        }
        let twice = "[[discovery]]\nkind = \"file\"\npath = \"a\"\nname = \"x\"\n[[discovery]]\nkind = \"file\"\npath = \"b\"\nname = \"x\"";
        let none = "f:1: discovery: a source needs a `kind`, one of \"file\", \"dns\", \"kubernetes\"";
        assert!(load("[[discovery]]\npath = \"t.json\"").unwrap_err().contains(none));
        assert!(load(twice).unwrap_err().contains("the name x is already taken"));
        for field in ["authorization", "authorization_file"] {
            let own = format!("[[discovery]]\nkind = \"file\"\npath = \"a\"\n{field} = \"b\"");
            let wrong = load(&own).unwrap_err();
            let want = format!(
                "f:4: discovery: unknown field `{field}`: a source has none of its own: all its targets get \
                                upstream.{field}"
            );
            assert!(wrong.contains(&want), "{wrong}");
        }
    }
}

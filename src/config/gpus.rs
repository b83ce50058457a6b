//! Where GPUs are told of, and which are a target's: `[[gpu_exporters]]`, and the field `gpus` of a target.

use std::collections::BTreeMap;
use std::fmt;

use http::Uri;
use toml::Spanned;
use toml::de::DeValue;

use super::layers::Effective;
use super::mistake::{Mistakes, Origin, Place, did_you_mean};
use super::tables::{Entry, Fields, Tables, short};
use super::texts::check_name_within;
use super::value::{Value, quoted};
use crate::fleet::{ExporterSettings, GpuId, GpusOf, PodGpus};

/// GPUs of one target: far more than any pod has.
const GPUS_MAX: u32 = 1024;

/// GPUs of a node that can be named for one target: sixteen, each divided into seven.
const IDS_MAX: usize = 112;

/// The longest name of a node, a pod, a namespace or a container: as long as Kubernetes lets them be.
const NAME_CHARS_MAX: usize = 253;

/// Where an exporter's page is unless its URL says so.
const PAGE: &str = "/metrics";

/// What is written in place of a table that cannot be read.
const FORM: &str = "a whole number, or a table such as { node = \"node-1\", ids = [0, 1] } or { pod = \"vllm-0\" }";

/// One entry of `[[gpu_exporters]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exporter {
    pub(super) node: String,
    pub(super) url: String,
}

impl Exporter {
    pub(super) fn settings(&self) -> ExporterSettings {
        ExporterSettings { node: self.node.clone(), url: self.url.clone() }
    }
}

impl fmt::Display for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ node = ")?;
        quoted(f, &self.node)?;
        f.write_str(", url = ")?;
        quoted(f, &self.url)?;
        f.write_str(" }")
    }
}

/// What is written of a target's GPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Gpus {
    /// How many there are.
    count: Option<u32>,
    which: Option<Which>,
}

#[derive(Clone, Debug, PartialEq)]
enum Which {
    /// Those of a pod; without a name of the one that is called as the target is.
    Pod { pod: Option<String>, namespace: Option<String>, container: Option<String>, node: Option<String> },
    /// These of a node, or all.
    Node { node: String, ids: Vec<GpuId> },
}

impl Gpus {
    /// Whether nothing is written.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// How many there are, if that is written.
    pub(super) fn count(&self) -> Option<u32> {
        match &self.which {
            Some(Which::Node { ids, .. }) if !ids.is_empty() => u32::try_from(ids.len()).ok(),
            _ => self.count,
        }
    }

    /// Whom to ask about them, if there is anybody: else the pod that is called as the target is.
    pub(super) fn of(&self, target: &str) -> GpusOf {
        match self.which.clone() {
            Some(Which::Node { node, ids }) => GpusOf::Node { node, ids },
            Some(Which::Pod { pod, namespace, container, node }) => {
                GpusOf::Pod(PodGpus { pod: pod.unwrap_or_else(|| target.to_owned()), namespace, container, node })
            }
            None => GpusOf::Pod(PodGpus { pod: target.to_owned(), ..PodGpus::default() }),
        }
    }

    fn node(&self) -> Option<&str> {
        match self.which.as_ref()? {
            Which::Pod { node, .. } => node.as_deref(),
            Which::Node { node, .. } => Some(node),
        }
    }
}

/// As it can be written again.
impl fmt::Display for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, which } = self;
        let (names, ids) = match which {
            None => return count.map_or(Ok(()), |count| write!(f, "{count}")),
            Some(Which::Pod { pod, namespace, container, node }) => ([pod, namespace, container, node], &[][..]),
            Some(Which::Node { node, ids }) => ([&None, &None, &None, &Some(node.clone())], &ids[..]),
        };
        let mut separator = "{ ";
        if let Some(count) = count {
            write!(f, "{separator}count = {count}")?;
            separator = ", ";
        }
        for (key, name) in ["pod", "namespace", "container", "node"].into_iter().zip(names) {
            if let Some(name) = name {
                write!(f, "{separator}{key} = ")?;
                quoted(f, name)?;
                separator = ", ";
            }
        }
        for (place, id) in ids.iter().enumerate() {
            f.write_str(if place == 0 { ", ids = [" } else { ", " })?;
            match id {
                GpuId::Index(index) => write!(f, "{index}")?,
                named => quoted(f, &named.to_string())?,
            }
        }
        f.write_str(if ids.is_empty() { " }" } else { "] }" })
    }
}

impl Tables<'_> {
    pub(super) fn exporters_from_toml(&mut self, value: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Vec<Exporter> {
        let entries = self.entries(value, place, &["node", "url"]);
        self.exporters(entries)
    }

    pub(super) fn exporters_from_texts<'t>(
        &mut self,
        texts: impl Iterator<Item = &'t str>,
        origin: &Origin,
    ) -> Vec<Exporter> {
        self.exporters(short(texts, origin))
    }

    fn exporters(&mut self, entries: Vec<Entry<'_>>) -> Vec<Exporter> {
        let mut exporters = Vec::new();
        // By node and by URL: a list would be searched as often as it is long.
        let (mut nodes, mut urls) = (BTreeMap::new(), BTreeMap::new());
        for entry in entries {
            let (node, url, origin) = match entry {
                Entry::Short(text, origin) => {
                    // An equals sign inside a URL would stand after its scheme.
                    let (node, url) = match text.split_once('=') {
                        Some((node, url)) if !node.contains("://") => (Some(node.to_owned()), url.to_owned()),
                        _ => (None, text),
                    };
                    (node, url, origin)
                }
                Entry::Fields(fields, origin) => {
                    let (node, url) = (self.text(&fields, "node"), self.text(&fields, "url"));
                    if !fields.contains_key("url") {
                        self.wrong(&origin, "a GPU exporter needs a `url`, such as \"http://10.0.3.1:9400/metrics\"");
                    }
                    let Some((url, _)) = url else { continue };
                    (node.map(|(node, _)| node), url, origin)
                }
            };
            let url = parse_url(&url).map_err(|text| self.wrong(&origin, text)).ok();
            let node = node.or_else(|| url.as_ref().map(|(_, host)| host.clone()));
            let node = node.and_then(|node| check_name(&node).map_err(|text| self.wrong(&origin, text)).ok());
            let (Some(node), Some((url, _))) = (node, url) else { continue };
            if let Some(other) = nodes.get(&node) {
                self.wrong(&origin, format!("the node {node} has an exporter already ({other})"));
            } else if let Some(other) = urls.get(&url) {
                self.wrong(&origin, format!("{url} is already the exporter of {other}"));
            } else {
                nodes.insert(node.clone(), origin);
                urls.insert(url.clone(), node.clone());
                exporters.push(Exporter { node, url });
            }
        }
        exporters
    }

    /// The field `gpus` of a target.
    pub(super) fn gpus(&mut self, value: &DeValue<'_>, origin: &Origin) -> Gpus {
        match value {
            DeValue::Integer(_) => Gpus { count: self.gpu_count(value, origin, "gpus"), which: None },
            DeValue::Table(table) => {
                let known = ["count", "node", "ids", "pod", "namespace", "container"];
                let fields = self.fields(table, &Place::Value(origin), &known);
                self.gpus_of_table(&fields, origin)
            }
            _ => {
                self.wrong(origin, format!("`gpus` has to be {FORM}"));
                Gpus::default()
            }
        }
    }

    pub(super) fn gpu_count(&mut self, value: &DeValue<'_>, origin: &Origin, field: &str) -> Option<u32> {
        let count = value.as_integer().and_then(|count| count.as_str().parse().ok());
        let count = count.filter(|count| (1..=GPUS_MAX).contains(count));
        if count.is_none() {
            self.wrong(origin, format!("`{field}` has to be a whole number from 1 to {GPUS_MAX}"));
        }
        count
    }

    fn gpus_of_table(&mut self, fields: &Fields<'_>, origin: &Origin) -> Gpus {
        let count = fields.get("count").and_then(|(value, origin)| self.gpu_count(value, origin, "count"));
        let [pod, namespace, container, node] = ["pod", "namespace", "container", "node"].map(|field| {
            let (name, origin) = self.text(fields, field)?;
            check_name(&name).map_err(|text| self.wrong(&origin, text)).ok()
        });
        let ids = fields.get("ids").map(|(value, origin)| self.gpu_ids(value, origin));
        let names_a_pod = ["pod", "namespace", "container"].iter().any(|field| fields.contains_key(field));
        if ids.is_some() && names_a_pod {
            self.wrong(origin, "the exporter says which GPUs a pod has: leave out `ids`, or the pod");
        } else if ids.is_some() && !fields.contains_key("node") {
            self.wrong(origin, "`ids` are GPUs of a node: name the `node`");
        } else if ids.is_some() && fields.contains_key("count") {
            self.wrong(origin, "`ids` say how many GPUs there are: leave out `count`");
        }
        let which = match node {
            node if names_a_pod => Some(Which::Pod { pod, namespace, container, node }),
            Some(node) => Some(Which::Node { node, ids: ids.unwrap_or_default() }),
            None => None,
        };
        Gpus { count, which }
    }

    fn gpu_ids(&mut self, value: &DeValue<'_>, origin: &Origin) -> Vec<GpuId> {
        let items = value.as_array().map(|items| items.iter().map(|item| gpu_id(item.get_ref())));
        let Some(ids) = items.and_then(Iterator::collect::<Option<Vec<GpuId>>>) else {
            let text = "`ids` has to be a list of GPUs: places on the node such as 0, instances of a divided one such as \
                        \"0:9\", or UUIDs such as \"GPU-…\"";
            self.wrong(origin, text);
            return Vec::new();
        };
        if !(1..=IDS_MAX).contains(&ids.len()) {
            self.wrong(origin, format!("`ids` has to name 1 to {IDS_MAX} GPUs; leave it out for all of the node"));
        }
        if let Some(id) = ids.iter().enumerate().find_map(|(place, id)| ids[..place].contains(id).then_some(id)) {
            self.wrong(origin, format!("the GPU {id} is there twice"));
        }
        ids
    }
}

fn gpu_id(value: &DeValue<'_>) -> Option<GpuId> {
    match value {
        DeValue::Integer(index) => index.as_str().parse().ok().map(GpuId::Index),
        DeValue::String(text) if text.starts_with("GPU-") && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Some(GpuId::Uuid(text.to_string()))
        }
        DeValue::String(text) => {
            let (index, instance) = text.split_once(':')?;
            Some(GpuId::Instance(index.parse().ok()?, instance.parse().ok()?))
        }
        _ => None,
    }
}

/// Whoever names a node needs its exporter.
pub(super) fn check(effective: &Effective, mistakes: &mut Mistakes) {
    let ((Value::Targets(targets), origin), (Value::GpuExporters(exporters), _)) =
        (effective.get("targets"), effective.get("gpu_exporters"))
    else {
        unreachable!("both are lists of tables")
    };
    // What an exporter is not, because it is wrong, is not missing as well.
    if mistakes.about("gpu_exporters") {
        return;
    }
    for target in targets.iter().filter(|target| target.gpus.which.is_some()) {
        let node = target.gpus.node();
        let text = if exporters.is_empty() {
            "`gpus` says whom to ask, and there is nobody: add [[gpu_exporters]]".to_owned()
        } else if let Some(node) = node.filter(|node| !exporters.iter().any(|exporter| exporter.node == **node)) {
            let proposal = did_you_mean(node, exporters.iter().map(|exporter| exporter.node.as_str()));
            format!("no entry of [[gpu_exporters]] is of the node {node}{proposal}")
        } else {
            continue;
        };
        mistakes.add(origin.clone(), Some("targets"), format!("{}: {text}", target.name));
    }
}

/// Names in Kubernetes, and whatever nodes are called elsewhere.
fn check_name(name: &str) -> Result<String, String> {
    check_name_within(NAME_CHARS_MAX, name)
}

/// The URL of a page in its one form, and its host.
fn parse_url(text: &str) -> Result<(String, String), String> {
    let form = "write http://HOST:PORT/PATH or https://HOST:PORT/PATH";
    let uri: Uri = text.parse().map_err(|_| format!("\"{text}\" is not a URL: {form}"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(format!("\"{text}\" is not a URL: {form}, such as http://10.0.3.1:9400/metrics"));
    };
    if !matches!(scheme, "http" | "https") {
        return Err(format!("\"{text}\": {scheme} is not a protocol for exporters: {form}"));
    }
    if authority.as_str().contains('@') {
        return Err(format!("an exporter's URL cannot hold a user name or password: {form}"));
    }
    let host = authority.host().to_ascii_lowercase();
    let port = authority.port_u16().filter(|port| *port > 0 && !host.is_empty());
    let port = port.ok_or_else(|| format!("\"{text}\" has no host or no port: {form}"))?;
    let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
        "/" => PAGE,
        path => path,
    };
    Ok((format!("{scheme}://{host}:{port}{path}"), host.trim_matches(['[', ']']).replace(':', "-")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_has_a_path_and_names_the_node_if_nobody_else_does() {
        for (text, url, node) in [
            ("http://10.0.3.1:9400", "http://10.0.3.1:9400/metrics", "10.0.3.1"),
            ("https://Node-1:9400/", "https://node-1:9400/metrics", "node-1"),
            ("http://[fe80::1]:9400/dcgm/metrics?x=1", "http://[fe80::1]:9400/dcgm/metrics?x=1", "fe80--1"),
        ] {
            assert_eq!(parse_url(text), Ok((url.to_owned(), node.to_owned())), "{text}");
            assert!(check_name(node).is_ok());
        }
        for (text, part) in [
            ("", "is not a URL"),
            ("node-1:9400", "is not a URL"),
            ("/metrics", "is not a URL"),
            ("ftp://node-1:1/", "ftp is not a protocol"),
            ("http://me:secret@node-1:1/", "user name or password"),
            ("http://node-1/metrics", "no port"),
            ("http://node-1:0/metrics", "no port"),
        ] {
            let error = parse_url(text).unwrap_err();
            assert!(error.contains(part) && !error.contains("secret"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_url_panics_and_an_accepted_one_is_the_same_again(text in "(https?://)?[a-z\\[\\]:0-9./@?=%#]{0,24}") {
            if let Ok((url, _)) = parse_url(&text) {
                prop_assert_eq!(parse_url(&url).map(|(url, _)| url), Ok(url));
            }
        }
    }
}

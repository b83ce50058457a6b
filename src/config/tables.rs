//! The lists of tables, such as targets and models: each entry is read by itself, so that each may be wrong by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::gpus::Gpus;
use super::mistake::{Mistakes, Origin, Place, did_you_mean};
use super::texts::{check_model, check_name};
use super::value::{quoted, quoted_list};
use crate::discovery::{default_name, parse_url};
use crate::fleet::MetricsAt;
use crate::snapshot::{Policy, ReportFormat, TLS_SCHEME};
use crate::tls::{self, CredentialSettings};

/// Models of one target: for each of all of them every view has a list of its targets.
const MODELS_MAX: usize = 256;

/// What an entry of `[[targets]]` may have.
const TARGET_FIELDS: [&str; 9] = [
    "name",
    "url",
    "gpus",
    "models",
    "engine",
    "metrics",
    "authorization",
    "authorization_file",
    "ask_for_load_report",
];

/// One entry of `[[targets]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) name: String,
    /// `host:port`, and before it `https://` if it is spoken to in TLS.
    pub(super) address: String,
    /// How many GPUs it has, and which.
    pub(super) gpus: Gpus,
    /// None means any.
    pub(super) models: Vec<String>,
    /// Whose metrics it serves, in place of `fleet.engine`.
    pub(super) engine: Option<String>,
    /// Where its metrics are, as far as that is elsewhere.
    pub(super) metrics_at: MetricsAt,
    /// What its requests present in place of what all others do.
    pub(super) authorization: Option<CredentialSettings>,
    /// In which format it is asked for its load, if not as all others are.
    pub(super) ask_for_load_report: Option<Option<ReportFormat>>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ name = ")?;
        quoted(f, &self.name)?;
        f.write_str(", url = ")?;
        let scheme = if self.address.starts_with(TLS_SCHEME) { "" } else { "http://" };
        quoted(f, &format!("{scheme}{}", self.address))?;
        if !self.gpus.is_default() {
            write!(f, ", gpus = {}", self.gpus)?;
        }
        if !self.models.is_empty() {
            f.write_str(", models = ")?;
            quoted_list(f, &self.models)?;
        }
        if let Some(engine) = &self.engine {
            f.write_str(", engine = ")?;
            quoted(f, engine)?;
        }
        if !self.metrics_at.is_usual() {
            f.write_str(", metrics = ")?;
            quoted(f, &self.metrics_at.to_string())?;
        }
        match &self.authorization {
            None => {}
            Some(CredentialSettings::Text(_)) => f.write_str(", authorization = \"<set>\"")?,
            Some(CredentialSettings::File(file)) => {
                f.write_str(", authorization_file = ")?;
                quoted(f, &file.display().to_string())?;
            }
        }
        if let Some(format) = self.ask_for_load_report {
            write!(f, ", ask_for_load_report = \"{}\"", format.map_or("none", ReportFormat::name))?;
        }
        f.write_str(" }")
    }
}

/// One entry of `[[models]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) policy: Policy,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ name = ")?;
        quoted(f, &self.name)?;
        write!(f, ", policy = \"{}\" }}", self.policy.name())
    }
}

/// Reads entries for one key and notes what is wrong with them.
pub(super) struct Tables<'a> {
    pub(super) key: &'static str,
    pub(super) mistakes: &'a mut Mistakes,
    pub(super) environment: &'a BTreeMap<String, OsString>,
    /// Variables that a `token_env` names: they are not unknown.
    pub(super) referenced: &'a mut BTreeSet<String>,
}

/// An entry's fields by their names, each with where it stands.
pub(super) type Fields<'t> = BTreeMap<&'t str, (&'t DeValue<'t>, Origin)>;

/// An entry as written: `[NAME=]TEXT`, or a table's fields.
pub(super) enum Entry<'t> {
    Short(String, Origin),
    Fields(Fields<'t>, Origin),
}

/// Entries that are texts, all of one origin.
pub(super) fn short<'t>(texts: impl Iterator<Item = &'t str>, origin: &Origin) -> Vec<Entry<'static>> {
    texts.map(|text| Entry::Short(text.to_owned(), origin.clone())).collect()
}

impl Tables<'_> {
    pub(super) fn targets_from_toml(&mut self, value: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Vec<Target> {
        let entries = self.entries(value, place, &TARGET_FIELDS);
        self.targets(entries)
    }

    pub(super) fn targets_from_texts<'t>(
        &mut self,
        texts: impl Iterator<Item = &'t str>,
        origin: &Origin,
    ) -> Vec<Target> {
        self.targets(short(texts, origin))
    }

    pub(super) fn models_from_toml(&mut self, value: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Vec<Model> {
        let entries = self.entries(value, place, &["name", "policy"]);
        self.models(entries)
    }

    pub(super) fn models_from_texts<'t>(
        &mut self,
        texts: impl Iterator<Item = &'t str>,
        origin: &Origin,
    ) -> Vec<Model> {
        self.models(short(texts, origin))
    }

    pub(super) fn wrong(&mut self, origin: &Origin, text: impl Into<String>) {
        self.mistakes.add(origin.clone(), Some(self.key), text);
    }

    pub(super) fn entries<'t>(
        &mut self,
        value: &'t Spanned<DeValue<'t>>,
        place: &Place<'_>,
        known: &[&'static str],
    ) -> Vec<Entry<'t>> {
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong(&place.at(value.span()), format!("expected a list of tables: write [[{}]]", self.key));
            return Vec::new();
        };
        let mut entries = Vec::new();
        for item in items.iter() {
            let origin = place.at(item.span());
            match item.get_ref() {
                DeValue::String(text) => entries.push(Entry::Short(text.to_string(), origin)),
                DeValue::Table(table) => entries.push(Entry::Fields(self.fields(table, place, known), origin)),
                other => self.wrong(&origin, format!("expected a table, found {}", other.type_str())),
            }
        }
        entries
    }

    pub(super) fn fields<'t>(
        &mut self,
        table: &'t DeTable<'t>,
        place: &Place<'_>,
        known: &[&'static str],
    ) -> Fields<'t> {
        let mut fields = BTreeMap::new();
        for (name, value) in table {
            let origin = place.at(name.span());
            let name = name.get_ref().as_ref();
            if known.contains(&name) {
                fields.insert(name, (value.get_ref(), origin));
            } else {
                let proposal = match (self.key, name) {
                    ("discovery", "authorization" | "authorization_file") => {
                        format!(": a source has none of its own: all its targets get upstream.{name}")
                    }
                    _ => did_you_mean(name, known.iter().copied()),
                };
                self.wrong(&origin, format!("unknown field `{name}`{proposal}"));
            }
        }
        fields
    }

    /// A text field; what is there and is no text is noted.
    pub(super) fn text(&mut self, fields: &Fields<'_>, name: &str) -> Option<(String, Origin)> {
        let (value, origin) = fields.get(name)?;
        match value {
            DeValue::String(text) => Some((text.to_string(), origin.clone())),
            other => {
                self.wrong(origin, format!("`{name}` has to be a text in quotes, not {}", other.type_str()));
                None
            }
        }
    }

    /// The `name` of an entry that cannot be without one; `without` says why.
    pub(super) fn needed_name(&mut self, fields: &Fields<'_>, origin: &Origin, without: &str) -> Option<String> {
        if !fields.contains_key("name") {
            self.wrong(origin, without);
        }
        let (name, origin) = self.text(fields, "name")?;
        check_name(&name).map_err(|text| self.wrong(&origin, text)).ok()
    }

    fn targets(&mut self, entries: Vec<Entry<'_>>) -> Vec<Target> {
        let mut targets: Vec<Target> = Vec::new();
        let mut origins: Vec<Origin> = Vec::new();
        // By address and by name: a list would be searched as often as it is long.
        let (mut addresses, mut names) = (HashMap::<String, usize>::new(), HashMap::<String, usize>::new());
        for entry in entries {
            let (target, origin) = match entry {
                Entry::Short(text, origin) => (self.short_target(&text, &origin), origin),
                Entry::Fields(fields, origin) => (self.target(&fields, &origin), origin),
            };
            let Some(target) = target else { continue };
            if let Some(&other) = addresses.get(&target.address) {
                self.wrong(
                    &origin,
                    format!(
                        "{} is already the address of {} ({})",
                        target.address, targets[other].name, origins[other]
                    ),
                );
            } else if let Some(&other) = names.get(&target.name) {
                self.wrong(
                    &origin,
                    format!("the name {} is already taken ({}): names are unique", target.name, origins[other]),
                );
            } else {
                addresses.insert(target.address.clone(), targets.len());
                names.insert(target.name.clone(), targets.len());
                targets.push(target);
                origins.push(origin);
            }
        }
        targets
    }

    fn short_target(&mut self, text: &str, origin: &Origin) -> Option<Target> {
        // An equals sign inside a URL would stand after its scheme.
        let (name, url) = match text.split_once('=') {
            Some((name, url)) if !name.contains("://") => (Some(name), url),
            _ => (None, text),
        };
        self.named_target(name, url, (origin, origin))
    }

    fn target(&mut self, fields: &Fields<'_>, origin: &Origin) -> Option<Target> {
        let name = self.text(fields, "name");
        let gpus = fields.get("gpus").map_or_else(Gpus::default, |(value, origin)| self.gpus(value, origin));
        if !fields.contains_key("url") {
            self.wrong(origin, "a target needs a `url`, such as \"http://10.0.3.2:8000\"");
        }
        let models = fields.get("models").map_or_else(Vec::new, |(value, origin)| self.served(value, origin));
        let (authorization, ask_for_load_report) = (self.authorization(fields), self.asked(fields));
        let engine = self.text(fields, "engine").map(|(engine, _)| engine);
        let metrics_at = self.metrics_at(fields);
        let (url, url_origin) = self.text(fields, "url")?;
        let name_origin = name.as_ref().map_or(origin, |(_, origin)| origin);
        let target =
            self.named_target(name.as_ref().map(|(name, _)| name.as_str()), &url, (name_origin, &url_origin))?;
        Some(Target { gpus, models, engine, metrics_at, authorization, ask_for_load_report, ..target })
    }

    /// Where targets have their metrics, as far as that is said.
    pub(super) fn metrics_at(&mut self, fields: &Fields<'_>) -> MetricsAt {
        let Some((text, origin)) = self.text(fields, "metrics") else { return MetricsAt::default() };
        MetricsAt::parse(&text).unwrap_or_else(|text| {
            self.wrong(&origin, text);
            MetricsAt::default()
        })
    }

    /// In which format targets are asked for load reports, if that is said.
    pub(super) fn asked(&mut self, fields: &Fields<'_>) -> Option<Option<ReportFormat>> {
        let (text, origin) = self.text(fields, "ask_for_load_report")?;
        ReportFormat::asked(&text).map_err(|text| self.wrong(&origin, text)).ok()
    }

    /// What a target gets in the header authorization. No message shows it.
    fn authorization(&mut self, fields: &Fields<'_>) -> Option<CredentialSettings> {
        let (text, file) = (self.text(fields, "authorization"), self.text(fields, "authorization_file"));
        let (settings, origin) = match (text, file) {
            (Some(_), Some((_, origin))) => {
                self.wrong(&origin, "`authorization` and `authorization_file` are both set: leave one out");
                return None;
            }
            (Some((text, origin)), None) => {
                let Some(value) = tls::authorization(text.as_bytes()) else {
                    let text = "`authorization` is empty or has characters other than visible ASCII and spaces: it could \
                                not be sent in a header";
                    self.wrong(&origin, text);
                    return None;
                };
                (CredentialSettings::Text(value), origin)
            }
            (None, file) => {
                let (file, origin) = file?;
                (CredentialSettings::File(file.into()), origin)
            }
        };
        tls::check_credential(&settings).map_err(|error| self.wrong(&origin, error.to_string())).ok()?;
        Some(settings)
    }

    /// The models of a target.
    pub(super) fn served(&mut self, value: &DeValue<'_>, origin: &Origin) -> Vec<String> {
        let items = value.as_array().map(|items| items.iter().map(|item| item.get_ref().as_str()));
        let Some(models) = items.and_then(Iterator::collect::<Option<Vec<&str>>>) else {
            self.wrong(origin, "`models` has to be a list of texts, such as [\"llama-3.1-8b\"]");
            return Vec::new();
        };
        if !(1..=MODELS_MAX).contains(&models.len()) {
            self.wrong(origin, format!("`models` has to name 1 to {MODELS_MAX} models; leave it out for any"));
        }
        let checked =
            models.into_iter().filter_map(|model| check_model(model).map_err(|text| self.wrong(origin, text)).ok());
        checked.collect()
    }

    fn models(&mut self, entries: Vec<Entry<'_>>) -> Vec<Model> {
        let mut models: Vec<Model> = Vec::new();
        for entry in entries {
            let (name, policy, origin) = match entry {
                Entry::Short(text, origin) => {
                    // A model's name may have an equals sign, a policy's has none.
                    let (name, policy) = text.rsplit_once('=').unwrap_or((&text, ""));
                    (name.to_owned(), policy.to_owned(), origin)
                }
                Entry::Fields(fields, origin) => {
                    let mut field = |name| self.text(&fields, name).map(|(text, _)| text).unwrap_or_default();
                    (field("name"), field("policy"), origin)
                }
            };
            let name = check_model(&name).map_err(|text| self.wrong(&origin, text)).ok();
            let known = Policy::from_name(&policy);
            if known.is_none() {
                let names = Policy::NAMES.join(", ");
                self.wrong(&origin, format!("a model needs a `policy`, one of {names}; \"{policy}\" is none"));
            }
            let (Some(name), Some(policy)) = (name, known) else { continue };
            if models.iter().any(|other| other.name == name) {
                self.wrong(&origin, format!("the model {name} is there twice"));
            } else {
                models.push(Model { name, policy });
            }
        }
        models
    }

    fn named_target(&mut self, name: Option<&str>, url: &str, origins: (&Origin, &Origin)) -> Option<Target> {
        let address = parse_url(url).map_err(|text| self.wrong(origins.1, text)).ok();
        let name = match (name, &address) {
            (Some(name), _) => check_name(name).map_err(|text| self.wrong(origins.0, text)).ok(),
            (None, Some(address)) => default_name(address).map_err(|text| self.wrong(origins.1, text)).ok(),
            (None, None) => None,
        };
        Some(Target {
            name: name?,
            address: address?,
            gpus: Gpus::default(),
            models: Vec::new(),
            engine: None,
            metrics_at: MetricsAt::default(),
            authorization: None,
            ask_for_load_report: None,
        })
    }
}

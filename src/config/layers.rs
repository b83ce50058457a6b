//! Reads the layers one over the other: defaults, file, environment, flags. Each value is checked by itself, and what
//! is wrong is noted and passed over, so that one run finds all mistakes.

use std::collections::BTreeSet;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{KEYS, Key, SECTIONS, find};
use super::mistake::{Mistake, Mistakes, Origin, Place, did_you_mean};
use super::tables::Tables;
use super::value::{Kind, Value};
use super::{FILE_VARIABLE, Sources, TOKEN_VARIABLE, otlp};

/// What every variable of ours begins with.
const PREFIX: &str = "SNAPGATE_";

/// Every key's value and where it came from, in the order of [`KEYS`].
#[derive(Clone)]
pub(super) struct Effective {
    values: Vec<(Value, Origin)>,
    /// What OpenTelemetry's own variables say that is not understood here: whole clusters are given them, so one of them
    /// keeps nobody from starting.
    ignored: Vec<Mistake>,
}

/// Without the values: a [`Config`](super::Config) that is printed has them already.
impl fmt::Debug for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Effective").finish_non_exhaustive()
    }
}

impl Effective {
    /// One key. Asking for a key that is not in the table is a mistake in this program, which any test finds.
    pub(super) fn get(&self, path: &str) -> (&Value, &Origin) {
        let place = KEYS.iter().position(|key| key.path == path).expect("the table has every key that is asked for");
        let (value, origin) = &self.values[place];
        (value, origin)
    }

    /// The same, but with `before`'s value of each key that no reload changes; answers which of them differ.
    pub(super) fn after(mut self, before: &Self) -> (Self, Vec<&'static str>) {
        let mut waiting = Vec::new();
        for (key, (value, before)) in KEYS.iter().zip(self.values.iter_mut().zip(&before.values)) {
            if !key.is_live() && value.0 != before.0 {
                waiting.push(key.path);
                value.clone_from(before);
            }
        }
        (self, waiting)
    }

    /// The keys whose values differ.
    pub(super) fn changes(&self, before: &Self) -> Vec<&'static str> {
        let pairs = KEYS.iter().zip(self.values.iter().zip(&before.values));
        pairs.filter(|(_, (value, before))| value.0 != before.0).map(|(key, _)| key.path).collect()
    }

    /// What was not understood and is passed over, of keys that nobody else has set.
    pub(super) fn ignored(&self) -> &[Mistake] {
        &self.ignored
    }

    /// All keys with their values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static Key, &Value, &Origin)> {
        KEYS.iter().zip(&self.values).map(|(key, (value, origin))| (key, value, origin))
    }
}

/// Reads all layers of the sources.
pub(super) fn read(sources: &Sources) -> (Effective, Mistakes) {
    let defaults = KEYS.iter().map(|key| (default(key), Origin::Default)).collect();
    let mut layers = Layers {
        sources,
        effective: Effective { values: defaults, ignored: Vec::new() },
        mistakes: Mistakes::default(),
        referenced: BTreeSet::new(),
        broken: Vec::new(),
    };
    layers.standard();
    match &sources.file {
        Some((name, Ok(text))) => layers.file(name, text),
        Some((name, Err(error))) => layers.mistakes.add(Origin::File(name.as_str().into(), 0), None, error.as_str()),
        None => {}
    }
    layers.environment();
    layers.flags();
    layers.unknown_variables();
    layers.forget_what_was_said_otherwise();
    (layers.effective, layers.mistakes)
}

/// A key's default.
fn default(key: &Key) -> Value {
    match key.kind {
        Kind::Targets => Value::Targets(Vec::new()),
        Kind::Discovery => Value::Discovery(Vec::new()),
        Kind::Models => Value::Models(Vec::new()),
        Kind::Tokens => Value::Tokens(Vec::new()),
        Kind::Engines => Value::Engines(Vec::new()),
        Kind::GpuExporters => Value::GpuExporters(Vec::new()),
        kind => kind.parse(key.default).expect("a test reads every default"),
    }
}

struct Layers<'a> {
    sources: &'a Sources,
    effective: Effective,
    mistakes: Mistakes,
    /// Variables that a `token_env` names.
    referenced: BTreeSet<String>,
    /// Lines of the file that are no TOML: what the parser guessed of them is not worth a second mistake.
    broken: Vec<Origin>,
}

impl Layers<'_> {
    fn file(&mut self, name: &str, text: &str) {
        let place = Place::file(name, text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let origin = place.at(error.span().unwrap_or_default());
            let said = error.message().trim_end();
            // A key that is there twice is not named, but it stands where the error does.
            let twice = error.span().filter(|_| said == "duplicate key").and_then(|key| text.get(key));
            let said = twice.map_or_else(|| said.to_owned(), |key| format!("{said} `{key}`: keep one of them"));
            self.mistakes.add(origin.clone(), None, said);
            self.broken.push(origin);
        }
        self.section(table.get_ref(), "", &place);
    }

    /// The keys of one table of the file; `path` is empty, or ends in a dot.
    fn section(&mut self, table: &DeTable<'_>, path: &str, place: &Place<'_>) {
        for (name, value) in table {
            let full = format!("{path}{}", name.get_ref());
            let origin = place.at(name.span());
            if self.broken.contains(&origin) {
                continue;
            }
            let is_section = SECTIONS.iter().any(|(section, _)| *section == full);
            match value.get_ref() {
                DeValue::Table(inner) if is_section => self.section(inner, &format!("{full}."), place),
                _ if find(&full).is_some() => self.read_toml(find(&full).expect("just found"), value, place, origin),
                _ if is_section => {
                    self.mistakes.add(
                        origin,
                        None,
                        format!("`{full}` is a section: write [{full}] on a line of its own"),
                    );
                }
                // A broken file may have lost the line that begins a section: unknown keys would be noise.
                _ if !self.broken.is_empty() => {}
                DeValue::Table(_) => {
                    let proposal = did_you_mean(&full, SECTIONS.iter().map(|(section, _)| *section));
                    self.mistakes.add(origin, None, format!("unknown section [{full}]{proposal}"));
                }
                _ => {
                    let proposal = did_you_mean(&full, KEYS.iter().map(|key| key.path));
                    self.mistakes.add(origin, None, format!("unknown key `{full}`{proposal}"));
                }
            }
        }
    }

    /// OpenTelemetry's own variables. An empty one counts as not set.
    fn standard(&mut self) {
        let said = |name: &str| self.sources.environment.get(name).and_then(|value| value.to_str()).map(str::trim);
        if said(otlp::DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return;
        }
        let with_argument = otlp::sampler_takes_argument(said("OTEL_TRACES_SAMPLER"));
        for (variable, key, translate) in otlp::STANDARD {
            let Some(text) = said(variable).filter(|text| !text.is_empty()) else { continue };
            if variable == "OTEL_TRACES_SAMPLER_ARG" && !with_argument {
                continue;
            }
            let key = find(key).expect("a test holds that the table has these keys");
            let origin = Origin::Environment(variable.to_owned());
            match translate(text) {
                Ok(Some(text)) => self.read_texts(key, std::iter::once(&*text), origin),
                Ok(None) => {}
                Err(text) => self.wrong(key, origin, text),
            }
        }
    }

    fn environment(&mut self) {
        for key in KEYS {
            let variable = key.variable();
            let Some(value) = self.sources.environment.get(&variable) else { continue };
            let origin = Origin::Environment(variable);
            match value.to_str() {
                Some(text) => self.read_texts(key, std::iter::once(text), origin),
                None => self.mistakes.add(origin, Some(key.path), "is not UTF-8"),
            }
        }
    }

    fn flags(&mut self) {
        for flag in &self.sources.flags {
            let key = find(flag.key).expect("flags are made for keys of the table");
            self.read_texts(key, flag.values.iter().map(String::as_str), Origin::Flag(flag.name.to_owned()));
        }
    }

    /// A variable with our prefix that is nobody's is a misspelt key, unless it is known to be somebody else's.
    fn unknown_variables(&mut self) {
        let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
        for (name, value) in &self.sources.environment {
            let ours = name.starts_with(PREFIX);
            let taken = [FILE_VARIABLE, TOKEN_VARIABLE].contains(&name.as_str()) || known.contains(name);
            if !ours || taken || self.referenced.contains(name) || is_service_link(name, value.to_str()) {
                continue;
            }
            let proposal = did_you_mean(name, known.iter().map(String::as_str));
            self.mistakes.add(Origin::Environment(name.clone()), None, format!("no key has this variable{proposal}"));
        }
    }

    fn read_toml(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>, place: &Place<'_>, origin: Origin) {
        let read = match (key.kind, value.get_ref()) {
            (Kind::Targets, _) => Ok(Value::Targets(self.tables(key).targets_from_toml(value, place))),
            (Kind::Discovery, _) => Ok(Value::Discovery(self.tables(key).discovery_from_toml(value, place))),
            (Kind::Models, _) => Ok(Value::Models(self.tables(key).models_from_toml(value, place))),
            (Kind::Tokens, _) => Ok(Value::Tokens(self.tables(key).tokens_from_toml(value, place))),
            (Kind::Engines, _) => Ok(Value::Engines(self.tables(key).engines_from_toml(value, place))),
            (Kind::GpuExporters, _) => Ok(Value::GpuExporters(self.tables(key).exporters_from_toml(value, place))),
            (Kind::List { .. }, DeValue::Array(items)) => {
                let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
                texts.map_or_else(
                    || Err(key.kind.expected(value.get_ref())),
                    |texts| key.kind.parse_list(texts.into_iter()),
                )
            }
            (Kind::List { .. }, other) => Err(key.kind.expected(other)),
            (kind, value) => kind.scalar(value).and_then(|text| kind.parse(&text)),
        };
        self.set(key, read, origin);
    }

    /// From a variable, or from the values of a flag; only targets may have several.
    fn read_texts<'t>(&mut self, key: &'static Key, texts: impl Iterator<Item = &'t str> + Clone, origin: Origin) {
        let first = texts.clone().next().unwrap_or_default();
        let is_list = matches!(
            key.kind,
            Kind::List { .. }
                | Kind::Targets
                | Kind::Discovery
                | Kind::Models
                | Kind::Tokens
                | Kind::Engines
                | Kind::GpuExporters
        );
        if is_list && first.trim_start().starts_with('[') {
            match DeValue::parse(first) {
                Ok(value) => self.read_toml(key, &value, &Place::Value(&origin), origin.clone()),
                // The error's message alone: its full form would print the value, which may hold a token.
                Err(error) => self.wrong(key, origin, format!("not a list in TOML: {}", error.message())),
            }
            return;
        }
        let items = texts.flat_map(|text| text.split(',')).map(str::trim).filter(|item| !item.is_empty());
        let read = match key.kind {
            Kind::Targets => Ok(Value::Targets(self.tables(key).targets_from_texts(items, &origin))),
            Kind::Discovery if first.trim().is_empty() => Ok(Value::Discovery(Vec::new())),
            Kind::Discovery => {
                Err("write a list in TOML, such as [{ kind = \"file\", path = \"targets.json\" }]".to_owned())
            }
            Kind::Models => Ok(Value::Models(self.tables(key).models_from_texts(items, &origin))),
            Kind::Tokens => Ok(Value::Tokens(self.tables(key).tokens_from_texts(items, &origin))),
            Kind::Engines if first.trim().is_empty() => Ok(Value::Engines(Vec::new())),
            Kind::Engines => {
                Err("engines are written as a list in TOML: [{ name = \"…\", waiting = \"…\" }]".to_owned())
            }
            Kind::GpuExporters => Ok(Value::GpuExporters(self.tables(key).exporters_from_texts(items, &origin))),
            kind => kind.parse(first),
        };
        self.set(key, read, origin);
    }

    fn set(&mut self, key: &'static Key, read: Result<Value, String>, origin: Origin) {
        let place = KEYS.iter().position(|other| other.path == key.path).expect("a key of the table");
        match read {
            Ok(value) => self.effective.values[place] = (value, origin),
            Err(text) => self.wrong(key, origin, text),
        }
    }

    fn wrong(&mut self, key: &'static Key, origin: Origin, text: String) {
        if is_standard(&origin) {
            self.effective.ignored.push(Mistake { origin, key: Some(key.path), text });
        } else {
            self.mistakes.add(origin, Some(key.path), text);
        }
    }

    /// Whoever has said it to snapgate by name needs no warning.
    fn forget_what_was_said_otherwise(&mut self) {
        let mut ignored = std::mem::take(&mut self.effective.ignored);
        ignored.retain(|ignored| {
            let (_, origin) = self.effective.get(ignored.key.expect("they are of keys"));
            *origin == Origin::Default || is_standard(origin)
        });
        self.effective.ignored = ignored;
    }

    fn tables(&mut self, key: &'static Key) -> Tables<'_> {
        Tables {
            key: key.path,
            mistakes: &mut self.mistakes,
            environment: &self.sources.environment,
            referenced: &mut self.referenced,
        }
    }
}

/// Whether a value stands in one of OpenTelemetry's variables.
fn is_standard(origin: &Origin) -> bool {
    matches!(origin, Origin::Environment(name) if otlp::STANDARD.iter().any(|(variable, ..)| variable == name))
}

/// Kubernetes tells every pod of a namespace about its services through variables. For a service called `snapgate` or
/// `snapgate-…` they begin like ours: `SNAPGATE_SERVICE_HOST`, `SNAPGATE_PORT`, `SNAPGATE_PORT_8080_TCP_ADDR`.
fn is_service_link(name: &str, value: Option<&str>) -> bool {
    let a_port_of = |protocol| name.contains(&format!("_{protocol}")) && name.contains("_PORT_");
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && value.is_some_and(|value| value.contains("://"))
        || ["TCP", "UDP", "SCTP"].into_iter().any(a_port_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_passes_its_own_checks() {
        for key in KEYS {
            let shown = default(key).to_string();
            assert!(format!("x = {shown}").parse::<toml::Table>().is_ok(), "{}: {shown}", key.path);
        }
    }

    #[test]
    fn no_two_keys_share_a_variable_and_none_looks_like_a_service_link() {
        let variables: BTreeSet<String> = KEYS.iter().map(Key::variable).collect();
        assert_eq!(variables.len(), KEYS.len());
        for variable in &variables {
            assert!(!is_service_link(variable, Some("tcp://10.0.0.1:80")), "{variable}");
            assert!(![FILE_VARIABLE, TOKEN_VARIABLE].contains(&variable.as_str()));
        }
    }

    #[test]
    fn service_links_are_recognised() {
        let links = [
            ("SNAPGATE_SERVICE_HOST", "10.0.0.1"),
            ("SNAPGATE_ADMIN_SERVICE_PORT", "80"),
            ("SNAPGATE_SERVICE_PORT_HTTP", "80"),
            ("SNAPGATE_PORT", "tcp://10.0.0.1:80"),
            ("SNAPGATE_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("SNAPGATE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ];
        for (name, value) in links {
            assert!(is_service_link(name, Some(value)), "{name}");
        }
        assert!(!is_service_link("SNAPGATE_PORT", Some("8080")), "somebody who means `listen` must be told");
    }
}

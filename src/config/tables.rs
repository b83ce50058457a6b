//! The lists of tables, targets, models and tokens: each entry is read by itself, so that each may be wrong by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistakes, Origin, Place, did_you_mean};
use super::secret::Secret;
use super::value::{quoted, quoted_list};
use crate::discovery::{check_name, default_name, parse_url};
use crate::lookup::{Scope, token};
use crate::snapshot::{Policy, TLS_SCHEME};
use crate::tls::{self, CredentialSettings};

/// GPUs of one target: far more than any pod has.
const GPUS_MAX: u32 = 1024;

/// Models of one target: for each of all of them every view has a list of its targets.
const MODELS_MAX: usize = 256;

/// The longest name of a model, in bytes: from a request no longer one is read.
const MODEL_BYTES_MAX: usize = 256;

/// One entry of `[[targets]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) name: String,
    /// `host:port`, and before it `https://` if it is spoken to in TLS.
    pub(super) address: String,
    pub(super) gpus: Option<u32>,
    /// None means any.
    pub(super) models: Vec<String>,
    /// What its requests present in place of what all others do.
    pub(super) authorization: Option<CredentialSettings>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ name = ")?;
        quoted(f, &self.name)?;
        f.write_str(", url = ")?;
        let scheme = if self.address.starts_with(TLS_SCHEME) { "" } else { "http://" };
        quoted(f, &format!("{scheme}{}", self.address))?;
        self.gpus.map_or(Ok(()), |gpus| write!(f, ", gpus = {gpus}"))?;
        if !self.models.is_empty() {
            f.write_str(", models = ")?;
            quoted_list(f, &self.models)?;
        }
        match &self.authorization {
            None => {}
            Some(CredentialSettings::Text(_)) => f.write_str(", authorization = \"<set>\"")?,
            Some(CredentialSettings::File(file)) => {
                f.write_str(", authorization_file = ")?;
                quoted(f, &file.display().to_string())?;
            }
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

/// One entry of `[[lookup.tokens]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) name: String,
    pub(super) secret: Secret,
    pub(super) scopes: Vec<Scope>,
    /// Where it is read from again.
    pub(super) file: Option<PathBuf>,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ name = ")?;
        quoted(f, &self.name)?;
        write!(f, ", token = \"{:?}\"", self.secret)?;
        if self.scopes != [Scope::Read] {
            let scopes: Vec<_> = self.scopes.iter().map(|scope| format!("\"{}\"", scope.name())).collect();
            write!(f, ", scope = [{}]", scopes.join(", "))?;
        }
        f.write_str(" }")
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

/// An entry as written: `[NAME=]TEXT`, or a table's fields.
pub(super) enum Entry<'t> {
    Short(String, Origin),
    Fields(BTreeMap<&'t str, (&'t DeValue<'t>, Origin)>, Origin),
}

impl Tables<'_> {
    pub(super) fn targets_from_toml(&mut self, value: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Vec<Target> {
        let entries =
            self.entries(value, place, &["name", "url", "gpus", "models", "authorization", "authorization_file"]);
        self.targets(entries)
    }

    pub(super) fn targets_from_texts<'t>(
        &mut self,
        texts: impl Iterator<Item = &'t str>,
        origin: &Origin,
    ) -> Vec<Target> {
        self.targets(texts.map(|text| Entry::Short(text.to_owned(), origin.clone())).collect())
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
        self.models(texts.map(|text| Entry::Short(text.to_owned(), origin.clone())).collect())
    }

    pub(super) fn tokens_from_toml(&mut self, value: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Vec<Token> {
        let entries = self.entries(value, place, &["name", "token", "token_file", "token_env", "scope"]);
        self.tokens(entries)
    }

    pub(super) fn tokens_from_texts<'t>(
        &mut self,
        texts: impl Iterator<Item = &'t str>,
        origin: &Origin,
    ) -> Vec<Token> {
        self.tokens(texts.map(|text| Entry::Short(text.to_owned(), origin.clone())).collect())
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

    fn fields<'t>(
        &mut self,
        table: &'t DeTable<'t>,
        place: &Place<'_>,
        known: &[&'static str],
    ) -> BTreeMap<&'t str, (&'t DeValue<'t>, Origin)> {
        let mut fields = BTreeMap::new();
        for (name, value) in table {
            let origin = place.at(name.span());
            let name = name.get_ref().as_ref();
            if known.contains(&name) {
                fields.insert(name, (value.get_ref(), origin));
            } else {
                let proposal = did_you_mean(name, known.iter().copied());
                self.wrong(&origin, format!("unknown field `{name}`{proposal}"));
            }
        }
        fields
    }

    /// A text field; what is there and is no text is noted.
    pub(super) fn text(
        &mut self,
        fields: &BTreeMap<&str, (&DeValue<'_>, Origin)>,
        name: &str,
    ) -> Option<(String, Origin)> {
        let (value, origin) = fields.get(name)?;
        match value {
            DeValue::String(text) => Some((text.to_string(), origin.clone())),
            other => {
                self.wrong(origin, format!("`{name}` has to be a text in quotes, not {}", other.type_str()));
                None
            }
        }
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

    fn target(&mut self, fields: &BTreeMap<&str, (&DeValue<'_>, Origin)>, origin: &Origin) -> Option<Target> {
        let name = self.text(fields, "name");
        let gpus = self.gpus(fields);
        if !fields.contains_key("url") {
            self.wrong(origin, "a target needs a `url`, such as \"http://10.0.3.2:8000\"");
        }
        let models = fields.get("models").map_or_else(Vec::new, |(value, origin)| self.served(value, origin));
        let authorization = self.authorization(fields);
        let (url, url_origin) = self.text(fields, "url")?;
        let name_origin = name.as_ref().map_or(origin, |(_, origin)| origin);
        let target =
            self.named_target(name.as_ref().map(|(name, _)| name.as_str()), &url, (name_origin, &url_origin))?;
        Some(Target { gpus, models, authorization, ..target })
    }

    pub(super) fn gpus(&mut self, fields: &BTreeMap<&str, (&DeValue<'_>, Origin)>) -> Option<u32> {
        let (value, origin) = fields.get("gpus")?;
        let gpus = value.as_integer().and_then(|gpus| gpus.as_str().parse().ok());
        let gpus = gpus.filter(|gpus| (1..=GPUS_MAX).contains(gpus));
        if gpus.is_none() {
            self.wrong(origin, format!("`gpus` has to be a whole number from 1 to {GPUS_MAX}"));
        }
        gpus
    }

    /// What a target gets in the header authorization. No message shows it.
    fn authorization(&mut self, fields: &BTreeMap<&str, (&DeValue<'_>, Origin)>) -> Option<CredentialSettings> {
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
        Some(Target { name: name?, address: address?, gpus: None, models: Vec::new(), authorization: None })
    }

    fn tokens(&mut self, entries: Vec<Entry<'_>>) -> Vec<Token> {
        let mut tokens: Vec<Token> = Vec::new();
        for entry in entries {
            let (token, origin) = match entry {
                Entry::Short(text, origin) => (self.short_token(&text, &origin), origin),
                Entry::Fields(fields, origin) => (self.token(&fields, &origin), origin),
            };
            let Some(token) = token else { continue };
            if tokens.iter().any(|other| other.name == token.name) {
                self.wrong(&origin, format!("the name {} is already taken: names are unique", token.name));
            } else if let Some(other) = tokens.iter().find(|other| other.secret == token.secret) {
                self.wrong(
                    &origin,
                    format!("{} has the same secret as {}: nobody could tell who asked", token.name, other.name),
                );
            } else {
                tokens.push(token);
            }
        }
        tokens
    }

    fn short_token(&mut self, text: &str, origin: &Origin) -> Option<Token> {
        let Some((name, secret)) = text.split_once('=') else {
            self.wrong(origin, "a token is written NAME=TOKEN");
            return None;
        };
        let name = check_name(name).map_err(|text| self.wrong(origin, text)).ok();
        let secret = check_secret(secret, "the token").map_err(|text| self.wrong(origin, text)).ok();
        Some(Token { name: name?, secret: secret?, scopes: vec![Scope::Read], file: None })
    }

    fn token(&mut self, fields: &BTreeMap<&str, (&DeValue<'_>, Origin)>, origin: &Origin) -> Option<Token> {
        if !fields.contains_key("name") {
            self.wrong(origin, "a token needs a `name`: it says in the log who asked");
        }
        let name = self
            .text(fields, "name")
            .and_then(|(name, origin)| check_name(&name).map_err(|text| self.wrong(&origin, text)).ok());
        let forms: Vec<_> =
            ["token", "token_file", "token_env"].into_iter().filter(|form| fields.contains_key(form)).collect();
        let [form] = forms[..] else {
            self.wrong(origin, "a token needs exactly one of `token`, `token_file` and `token_env`");
            return None;
        };
        let (text, origin) = self.text(fields, form)?;
        let secret = match form {
            "token" => check_secret(&text, "the token"),
            "token_file" => read_secret(&text),
            _ => {
                self.referenced.insert(text.clone());
                let secret = self.environment.get(&text).and_then(|secret| secret.to_str());
                secret
                    .ok_or_else(|| format!("the environment variable {text} is not set, or is not UTF-8"))
                    .and_then(|secret| check_secret(secret, &format!("the token in {text}")))
            }
        };
        let file = (form == "token_file").then(|| PathBuf::from(&text));
        let secret = secret.map_err(|text| self.wrong(&origin, text)).ok();
        let scopes = self.scopes(fields);
        Some(Token { name: name?, secret: secret?, scopes: scopes?, file })
    }

    /// What a token allows: to read, if nothing is said.
    fn scopes(&mut self, fields: &BTreeMap<&str, (&DeValue<'_>, Origin)>) -> Option<Vec<Scope>> {
        let Some((value, origin)) = fields.get("scope") else { return Some(vec![Scope::Read]) };
        let names = value.as_array().map(|items| items.iter().map(|item| item.get_ref().as_str()));
        let scopes: Option<Vec<_>> = names.and_then(|names| names.map(|name| Scope::from_name(name?)).collect());
        let scopes = scopes.filter(|scopes| !scopes.is_empty());
        if scopes.is_none() {
            let known: Vec<_> = Scope::ALL.iter().map(|scope| format!("\"{}\"", scope.name())).collect();
            self.wrong(origin, format!("`scope` has to be a list of {}", known.join(" and ")));
        }
        scopes
    }
}

/// A model as requests name it.
fn check_model(name: &str) -> Result<String, String> {
    if (1..=MODEL_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(format!("\"{}\" is not a model's name: use 1 to {MODEL_BYTES_MAX} bytes of text", name.escape_default()))
}

/// The message never shows the secret.
pub(super) fn check_secret(secret: &str, what: &str) -> Result<Secret, String> {
    token::check_secret(secret).map_err(|error| format!("{what} {error}"))?;
    Ok(Secret::new(secret.to_owned()))
}

/// The secret in a file.
pub(super) fn read_secret(file: &str) -> Result<Secret, String> {
    token::read_secret(Path::new(file)).map(Secret::new).map_err(|error| format!("the file {file} {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_in_a_message() {
        for secret in ["hunter2", "hunter2 with spaces in it", "hunter2-\u{e9}-0123456789"] {
            let text = check_secret(secret, "the token").unwrap_err();
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert_eq!(format!("{:?}", check_secret("0123456789abcdef", "it").unwrap()), "<set>");
    }
}

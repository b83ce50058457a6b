//! `[[lookup.tokens]]`: who may ask for snapshots, and for more than that.

use std::fmt;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::mistake::{Origin, Place};
use super::secret::{Secret, check_secret, read_secret};
use super::tables::{Entry, Fields, Tables, short};
use super::texts::check_name;
use super::value::quoted;
use crate::lookup::Scope;

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

impl Tables<'_> {
    pub(super) fn tokens_from_toml(&mut self, value: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Vec<Token> {
        let entries = self.entries(value, place, &["name", "token", "token_file", "token_env", "scope"]);
        self.tokens(entries)
    }

    pub(super) fn tokens_from_texts<'t>(
        &mut self,
        texts: impl Iterator<Item = &'t str>,
        origin: &Origin,
    ) -> Vec<Token> {
        self.tokens(short(texts, origin))
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

    fn token(&mut self, fields: &Fields<'_>, origin: &Origin) -> Option<Token> {
        let name = self.needed_name(fields, origin, "a token needs a `name`: it says in the log who asked");
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
    fn scopes(&mut self, fields: &Fields<'_>) -> Option<Vec<Scope>> {
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

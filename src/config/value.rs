//! What a key may hold: how it is read from text and from TOML, checked, and shown again.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use toml::de::DeValue;

use super::discovery::show;
use super::engines::Engine;
use super::gpus::Exporter;
use super::otlp;
use super::secret::{Secret, check_secret, read_secret};
use super::tables::{Model, Target};
use super::tokens::Token;
use super::units::{parse_bytes, parse_duration, show_bytes, show_duration};
use crate::discovery;
use crate::tls::authorization;

/// Says what is wrong with a text, or gives it in its normal form.
pub(super) type Check = fn(&str) -> Result<String, String>;

/// The kinds of value, with the bounds each key sets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// `500ms`, `1h30m`.
    Duration { min: Duration, max: Duration },
    /// `16MiB`, or bytes.
    Bytes { min: u64, max: u64 },
    /// A whole number.
    Count { min: u64, max: u64 },
    /// A ratio above 0 and up to 1.
    Share,
    /// A ratio from 0 to 1.
    Ratio,
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `IP:PORT`, with the address that stands for it when only `:PORT` is written.
    Address { host: IpAddr },
    /// A text that passes the check.
    Text(Check),
    /// A word or a whole number that passes the check.
    WordOrCount(Check),
    /// At most so many texts, each of which passes the check, none twice.
    List { max: usize, check: Check },
    /// A secret itself, or the name of a file that holds it; none if empty.
    Secret { file: bool },
    /// The value of the header `authorization`, a secret; none if empty.
    Authorization,
    /// `NAME=VALUE,NAME=VALUE`, which are secrets, or the name of a file that holds them; none if empty.
    Headers { file: bool },
    /// `[[targets]]`.
    Targets,
    /// `[[discovery]]`.
    Discovery,
    /// `[[models]]`.
    Models,
    /// `[[lookup.tokens]]`.
    Tokens,
    /// `[[engines]]`.
    Engines,
    /// `[[gpu_exporters]]`.
    GpuExporters,
}

/// A value that has passed its key's checks.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Duration(Duration),
    Bytes(u64),
    Count(u64),
    Share(f64),
    Switch(bool),
    Address(SocketAddr),
    Text(String),
    List(Vec<String>),
    Secret(Option<Secret>),
    Authorization(Option<HeaderValue>),
    Headers(HeaderMap),
    Targets(Vec<Target>),
    Discovery(Vec<discovery::Settings>),
    Models(Vec<Model>),
    Tokens(Vec<Token>),
    Engines(Vec<Engine>),
    GpuExporters(Vec<Exporter>),
}

impl Kind {
    /// From an environment variable, a flag, or a TOML scalar that [`Kind::scalar`] let through.
    ///
    /// Lists of tables are read in `tables.rs`, because each of their entries may be wrong by itself.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Duration { .. } => Value::Duration(parse_duration(text)?),
            Self::Bytes { .. } => Value::Bytes(parse_bytes(text)?),
            Self::Count { min, max } => {
                Value::Count(text.parse().map_err(|_| format!("\"{text}\" is not a whole number from {min} to {max}"))?)
            }
            Self::Share => Value::Share(parse_share(text)?),
            Self::Ratio => Value::Share(parse_ratio(text)?),
            Self::Switch => Value::Switch(text.parse().map_err(|_| format!("\"{text}\" is neither true nor false"))?),
            Self::Choice(words) if words.contains(&text) => Value::Text(text.to_owned()),
            Self::Choice(words) => return Err(format!("\"{text}\" is not one of {}", words.join(", "))),
            Self::Address { host } => Value::Address(parse_address(text, host)?),
            Self::Text(check) | Self::WordOrCount(check) => Value::Text(check(text)?),
            Self::Secret { .. } if text.is_empty() => Value::Secret(None),
            Self::Secret { file: true } => Value::Secret(Some(read_secret(text)?)),
            Self::Secret { file: false } => Value::Secret(Some(check_secret(text, "the secret")?)),
            Self::Authorization if text.is_empty() => Value::Authorization(None),
            // Without the text: it is a secret.
            Self::Authorization => Value::Authorization(Some(authorization(text.as_bytes()).ok_or_else(|| {
                "has characters other than visible ASCII and spaces: it could not be sent in a header".to_owned()
            })?)),
            Self::Headers { .. } if text.is_empty() => Value::Headers(HeaderMap::new()),
            Self::Headers { file: true } => Value::Headers(otlp::read_headers(text)?),
            Self::Headers { file: false } => Value::Headers(otlp::headers(text)?),
            Self::List { .. } => {
                return self.parse_list(text.split(',').map(str::trim).filter(|item| !item.is_empty()));
            }
            Self::Targets | Self::Discovery | Self::Models | Self::Tokens | Self::Engines | Self::GpuExporters => {
                unreachable!("tables.rs reads lists of tables")
            }
        };
        self.within_bounds(&value)?;
        Ok(value)
    }

    /// From the items of a list.
    pub(super) fn parse_list<'a>(self, items: impl Iterator<Item = &'a str>) -> Result<Value, String> {
        let Self::List { max, check } = self else { unreachable!("only lists have items") };
        let mut list: Vec<String> = Vec::new();
        for item in items {
            let item = check(item)?;
            if list.contains(&item) {
                return Err(format!("\"{item}\" is there twice"));
            }
            list.push(item);
        }
        if list.len() > max {
            return Err(format!("{} entries are more than {max}", list.len()));
        }
        Ok(Value::List(list))
    }

    /// The text of a TOML scalar, if it has the right type: a number with a unit is a string, a count is not.
    pub(super) fn scalar(self, value: &DeValue<'_>) -> Result<String, String> {
        match (self, value) {
            (
                Self::Count { .. } | Self::Bytes { .. } | Self::Share | Self::Ratio | Self::WordOrCount(_),
                DeValue::Integer(number),
            ) => Ok(match number.radix() {
                10 => number.as_str().to_owned(),
                radix => {
                    i128::from_str_radix(number.as_str(), radix).map_or_else(|_| number.to_string(), |n| n.to_string())
                }
            }),
            (Self::Share | Self::Ratio, DeValue::Float(number)) => Ok(number.as_str().to_owned()),
            (Self::Switch, DeValue::Boolean(on)) => Ok(on.to_string()),
            (Self::Count { .. } | Self::Share | Self::Ratio | Self::Switch, _) => Err(self.expected(value)),
            (_, DeValue::String(text)) => Ok(text.to_string()),
            (Self::Duration { .. }, DeValue::Integer(number)) => {
                Err(format!("{number} has no unit: write \"{number}ms\" or \"{number}s\""))
            }
            _ => Err(self.expected(value)),
        }
    }

    /// The message for a TOML value of the wrong type.
    pub(super) fn expected(self, found: &DeValue<'_>) -> String {
        format!("expected {}, found {} {}", self.form(), article(found.type_str()), found.type_str())
    }

    /// How such a value is written in the file, for messages.
    const fn form(self) -> &'static str {
        match self {
            Self::Duration { .. } => "a duration in quotes, such as \"500ms\"",
            Self::Bytes { .. } => "a size, such as \"16MiB\"",
            Self::Count { .. } => "a whole number without quotes",
            Self::WordOrCount(_) => "a whole number, or a word in quotes",
            Self::Share => "a number above 0 and up to 1, without quotes",
            Self::Ratio => "a number from 0 to 1, without quotes",
            Self::Switch => "true or false without quotes",
            Self::Choice(_) | Self::Text(_) | Self::Secret { .. } | Self::Authorization | Self::Headers { .. } => {
                "a text in quotes"
            }
            Self::Address { .. } => "an address in quotes, such as \"127.0.0.1:8081\"",
            Self::List { .. } => "a list of texts, such as [\"a\", \"b\"]",
            Self::Targets | Self::Discovery | Self::Models | Self::Tokens | Self::Engines | Self::GpuExporters => {
                "a list of tables"
            }
        }
    }

    fn within_bounds(self, value: &Value) -> Result<(), String> {
        let bounds = match self {
            Self::Duration { min, max } => Some((Value::Duration(min), Value::Duration(max))),
            Self::Bytes { min, max } => Some((Value::Bytes(min), Value::Bytes(max))),
            Self::Count { min, max } => Some((Value::Count(min), Value::Count(max))),
            _ => None,
        };
        match bounds {
            Some((min, _)) if value.order(&min) == Ordering::Less => Err(format!("{value} is less than {min}")),
            Some((_, max)) if value.order(&max) == Ordering::Greater => Err(format!("{value} is more than {max}")),
            _ => Ok(()),
        }
    }

    /// The bounds in words, for the example file.
    pub(super) fn bounds(self) -> Option<String> {
        Some(match self {
            Self::Duration { min, max } => format!("{} to {}", show_duration(min), show_duration(max)),
            Self::Bytes { min, max } => format!("{} to {}", show_bytes(min), show_bytes(max)),
            Self::Count { min, max } => format!("{min} to {max}"),
            Self::Share => "a number above 0 and up to 1".to_owned(),
            Self::Ratio => "a number from 0 to 1".to_owned(),
            Self::Choice([words @ .., last]) => format!("{} or {last}", words.join(", ")),
            _ => return None,
        })
    }
}

impl Value {
    /// Which is more, for two quantities of the same kind.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Duration(a), Self::Duration(b)) => a.cmp(b),
            (Self::Bytes(a), Self::Bytes(b)) | (Self::Count(a), Self::Count(b)) => a.cmp(b),
            _ => unreachable!("only quantities of one kind are compared"),
        }
    }
}

/// As a TOML value. It can be read again, except that a secret is only `<set>`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duration(duration) => quoted(f, &show_duration(*duration)),
            Self::Bytes(bytes) => quoted(f, &show_bytes(*bytes)),
            Self::Count(count) => write!(f, "{count}"),
            Self::Share(share) => write!(f, "{share:?}"),
            Self::Switch(on) => write!(f, "{on}"),
            Self::Address(address) => quoted(f, &address.to_string()),
            Self::Text(text) => quoted(f, text),
            Self::Secret(secret) => quoted(f, if secret.is_some() { "<set>" } else { "" }),
            Self::List(items) => quoted_list(f, items),
            Self::Authorization(value) => quoted(f, value.as_ref().map_or("", |_| "<set>")),
            Self::Headers(headers) => quoted(f, if headers.is_empty() { "" } else { "<set>" }),
            Self::Targets(targets) => listed(f, targets, |f, target| target.fmt(f)),
            Self::Discovery(sources) => listed(f, sources, show),
            Self::Models(models) => listed(f, models, |f, model| model.fmt(f)),
            Self::Tokens(tokens) => listed(f, tokens, |f, token| token.fmt(f)),
            Self::Engines(engines) => listed(f, engines, |f, engine| engine.fmt(f)),
            Self::GpuExporters(exporters) => listed(f, exporters, |f, exporter| exporter.fmt(f)),
        }
    }
}

/// A list of TOML basic strings.
pub(super) fn quoted_list(f: &mut fmt::Formatter<'_>, items: &[String]) -> fmt::Result {
    listed(f, items, |f, item| quoted(f, item))
}

fn listed<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    each: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    f.write_str("[")?;
    for (place, item) in items.iter().enumerate() {
        f.write_str(if place == 0 { "" } else { ", " })?;
        each(f, item)?;
    }
    f.write_str("]")
}

/// A TOML basic string.
pub(super) fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str(&toml::Value::String(text.to_owned()).to_string())
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().map_err(|_| format!("\"{text}\" is not a number"))?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err(format!("{text} is not above 0 and up to 1")) }
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().map_err(|_| format!("\"{text}\" is not a number"))?;
    if (0.0..=1.0).contains(&ratio) { Ok(ratio) } else { Err(format!("{text} is not from 0 to 1")) }
}

/// `IP:PORT`, `localhost:PORT`, or `:PORT` for the given host. Port 0 lets the system choose.
pub(super) fn parse_address(text: &str, host: IpAddr) -> Result<SocketAddr, String> {
    let short = text.rsplit_once(':').and_then(|(name, port)| match name {
        "" => Some(SocketAddr::new(host, port.parse().ok()?)),
        "localhost" => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().ok()?)),
        _ => None,
    });
    short.or_else(|| text.parse().ok()).ok_or_else(|| {
        format!("\"{text}\" is not an address to listen on: write IP:PORT, such as 0.0.0.0:8080 or [::]:8080, or :PORT")
    })
}

/// A time from so many milliseconds to so many.
pub(super) const fn time(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min_ms), max: Duration::from_millis(max_ms) }
}

/// So many bytes.
pub(super) const fn bytes(min: u64, max: u64) -> Kind {
    Kind::Bytes { min, max }
}

/// A whole number.
pub(super) const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_be_short() {
        let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let cases = [
            ("0.0.0.0:8080", "0.0.0.0:8080"),
            (":0", "0.0.0.0:0"),
            ("localhost:81", "127.0.0.1:81"),
            ("[::]:80", "[::]:80"),
        ];
        for (text, address) in cases {
            assert_eq!(parse_address(text, any).unwrap().to_string(), address);
        }
        for text in ["", "8080", "example.com:80", "0.0.0.0", ":99999", "::1:80:"] {
            assert!(parse_address(text, any).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_are_kept_and_named() {
        let second = Kind::Duration { min: Duration::from_millis(10), max: Duration::from_secs(1) };
        assert_eq!(second.parse("10ms"), Ok(Value::Duration(Duration::from_millis(10))));
        assert_eq!(second.parse("9ms"), Err("\"9ms\" is less than \"10ms\"".to_owned()));
        assert_eq!(second.parse("2s"), Err("\"2s\" is more than \"1s\"".to_owned()));
        assert_eq!(second.bounds().as_deref(), Some("10ms to 1s"));
        assert_eq!(Kind::Count { min: 1, max: 3 }.parse("4"), Err("4 is more than 3".to_owned()));
        for text in ["0", "-0.1", "1.1", "NaN", "inf", "2 %"] {
            assert!(Kind::Share.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_are_shown_as_toml() {
        let shown = |value: Value| value.to_string();
        assert_eq!(shown(Value::Text("a\"b\\c\n".into())).parse::<toml::Value>().unwrap().as_str(), Some("a\"b\\c\n"));
        assert_eq!(shown(Value::List(vec!["a".into(), "b".into()])), r#"["a", "b"]"#);
        assert_eq!(shown(Value::Share(0.02)), "0.02");
        assert_eq!(shown(Value::Share(1.0)), "1.0");
    }
}

//! The message as JSON, with names in either spelling of protobuf's mapping.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Rules;
use super::collect::{Collector, Group};
use crate::snapshot::load_report::Flaw;

/// Reads the object.
pub(super) fn read(json: &str, into: &mut Collector) -> Result<(), Flaw> {
    let Ok(Node::Object(fields)) = serde_json::from_str(json) else { return Err(Flaw::NotJson) };
    fields.into_iter().try_for_each(|(name, value)| read_field(&name, value, into))
}

fn read_field(name: &str, value: Node<'_>, into: &mut Collector) -> Result<(), Flaw> {
    let group = match name {
        "application_utilization" | "applicationUtilization" => return number("application_utilization", value, into),
        "cpu_utilization" | "cpuUtilization" => return number("cpu_utilization", value, into),
        "eps" => return number("eps", value, into),
        "mem_utilization" | "memUtilization" => return number("mem_utilization", value, into),
        "rps_fractional" | "rpsFractional" => return number("rps_fractional", value, into),
        "rps" => return number("rps", value, into),
        "named_metrics" | "namedMetrics" => Group::NamedMetrics,
        "utilization" => Group::Utilization,
        "request_cost" | "requestCost" => Group::RequestCost,
        _ => return into.drop_entry(Flaw::UnknownName),
    };
    match value {
        Node::Null => Ok(()),
        Node::Object(metrics) => metrics.into_iter().try_for_each(|(key, value)| match value.number(into.rules()) {
            Ok(value) => into.metric(group, &key, value),
            Err(flaw) => into.drop_entry(flaw),
        }),
        _ => into.drop_entry(Flaw::NotANumber),
    }
}

fn number(name: &'static str, value: Node<'_>, into: &mut Collector) -> Result<(), Flaw> {
    match value {
        // Protobuf's word for a field that is not set.
        Node::Null => Ok(()),
        value => match value.number(into.rules()) {
            Ok(value) => into.number(name, value),
            Err(flaw) => into.drop_entry(flaw),
        },
    }
}

/// A value, with all keys that an object has, also those that it has twice.
enum Node<'a> {
    Null,
    Number(f64),
    Text(Cow<'a, str>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
    /// A list, or yes or no.
    Other,
}

impl Node<'_> {
    fn number(&self, rules: Rules) -> Result<f64, Flaw> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) if rules == Rules::Lenient => text.trim().parse().map_err(|_| Flaw::NotANumber),
            _ => Err(Flaw::NotANumber),
        }
    }
}

impl<'de> Deserialize<'de> for Node<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node<'de>, E> {
        Ok(Node::Other)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node<'de>, E> {
        Ok(Node::Number(number as f64))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node<'de>, E> {
        Ok(Node::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node<'de>, E> {
        Ok(Node::Number(number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(text.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Node::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some((Key(key), value)) = entries.next_entry()? {
            fields.push((key, value));
        }
        Ok(Node::Object(fields))
    }
}

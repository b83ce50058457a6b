//! What a candidate's score is made of, by name.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::json::{Json, Object};
use super::text::Text;
use crate::snapshot::decision::SCORE_PARTS_MAX;

/// An object of numbers. Those of a record need no memory of their own; those of a document that was read may be any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreParts<'a> {
    names: &'static [&'static str],
    values: [f64; SCORE_PARTS_MAX],
    read: Vec<(Text<'a>, f64)>,
}

impl ScoreParts<'_> {
    /// Of a candidate's record.
    pub(super) fn of(names: &'static [&'static str], values: [f64; SCORE_PARTS_MAX]) -> Self {
        Self { names, values, read: Vec::new() }
    }

    /// The parts in the document's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        let own = self.names.iter().copied().zip(self.values);
        own.chain(self.read.iter().map(|(name, value)| (&**name, *value)))
    }
}

impl Json for ScoreParts<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        for (name, score) in self.iter() {
            object.put_any(name, &score);
        }
        object.close();
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ScoreParts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PartsVisitor)
    }
}

struct PartsVisitor;

impl<'de> Visitor<'de> for PartsVisitor {
    type Value = ScoreParts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ScoreParts<'de>, A::Error> {
        let mut parts = ScoreParts::default();
        while let Some(part) = map.next_entry()? {
            parts.read.push(part);
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_parts_is_read_and_written_as_it_was() {
        for json in ["{}", r#"{"turn":4}"#, r#"{"waiting":0.5,"in_flight":3,"a \"b\"":-1.25}"#] {
            let parts: ScoreParts<'_> = serde_json::from_str(json).unwrap();
            let mut out = Vec::new();
            parts.json(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), json);
        }
        assert!(serde_json::from_str::<ScoreParts<'_>>(r#"{"turn":null}"#).is_err());
    }
}

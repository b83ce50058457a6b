//! What a candidate's score is made of, by name.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::json::{Json, Object};
use super::text::Text;

/// An object of numbers. The policies of this version have one part each, which needs no memory of its own; a document of
/// another version may have more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreParts<'a> {
    first: Option<(Text<'a>, f64)>,
    more: Vec<(Text<'a>, f64)>,
}

impl ScoreParts<'_> {
    /// Of one part, which is the whole score.
    pub(super) fn one(name: &'static str, score: f64) -> Self {
        Self { first: Some((name.into(), score)), more: Vec::new() }
    }

    /// The parts in the document's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.first.iter().chain(&self.more).map(|(name, score)| (&**name, *score))
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
        let mut parts = ScoreParts { first: map.next_entry()?, more: Vec::new() };
        while let Some(part) = map.next_entry()? {
            parts.more.push(part);
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

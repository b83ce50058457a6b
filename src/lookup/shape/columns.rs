//! The columns of a table, and a row of them: what the published schema of the document says, with nested names joined by `_`.
//!
//! The schema is the one list of what a document holds, in its order and with words for each key; a test holds it to what
//! is written. A list of objects is no value of a row; a list of texts is one value, as JSON text, and so is an object whose
//! keys are other people's.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::LazyLock;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The schema of the document, as users get it.
pub(in crate::lookup) const SCHEMA: &str = include_str!("../../../otel/snapshot.schema.json");

/// The one key that is a column although the document does not always have it: every row does. Others that lookups add to
/// a document are left to it.
const STORED: &str = "stored";

/// A JSON text for what is not known.
pub(super) const NULL: &str = "null";

/// One row a snapshot.
pub(super) static SNAPSHOTS: LazyLock<Table> = LazyLock::new(|| Table::of(&Schema::published(), &[]));

/// One row a candidate of a decision.
pub(super) static CANDIDATES: LazyLock<Table> = LazyLock::new(|| {
    let root = Schema::published();
    let candidates = root.below("decision").and_then(|decision| decision.below("candidates"));
    let candidate = candidates.and_then(|list| list.items.as_deref()).expect("the schema says what a candidate is");
    let id = root.below("id").expect("the schema has the ID");
    Table::of(&candidate.followed(&root).with_definitions_of(&root), &[("id", id)])
});

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Column {
    /// As in the head of a CSV file and in the keys of NDJSON.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean`, or `json` for a text that is JSON itself.
    pub kind: &'static str,
    /// In a sentence.
    pub description: String,
}

/// The columns, and where their values stand in a document.
pub(super) struct Table {
    /// In the order of a row's values.
    pub(super) columns: Vec<Column>,
    keys: Vec<Node>,
}

/// A key of an object, in its order.
struct Node {
    key: String,
    below: Below,
}

enum Below {
    Value,
    Object(Vec<Node>),
}

impl Table {
    /// The columns of an object, after those of `lead`, whose values are put before the object's own.
    fn of(schema: &Schema, lead: &[(&str, &Schema)]) -> Self {
        let mut columns = lead.iter().map(|(name, schema)| schema.column((*name).to_owned())).collect();
        let keys = nodes(schema, schema, "", &mut columns);
        Self { columns, keys }
    }

    /// Adds the values of an object's columns, as JSON texts.
    pub(super) fn values<'j>(&self, json: &'j str, values: &mut Vec<&'j str>) {
        push_values(&self.keys, json, values);
    }
}

/// Adds the columns of a schema's keys, and says where their values stand.
fn nodes(schema: &Schema, root: &Schema, prefix: &str, columns: &mut Vec<Column>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let always = |key: &String| schema.required.contains(key) || key == STORED;
    for (key, property) in schema.properties.0.iter().filter(|(key, _)| always(key)) {
        let target = property.followed(root);
        let name = format!("{prefix}{key}");
        let below = if !target.properties.0.is_empty() {
            Below::Object(nodes_below(&target, root, &name, columns))
        } else if target.items.as_ref().is_some_and(|items| !items.is_of_texts()) {
            continue;
        } else {
            columns.push(Schema { description: property.description.clone(), ..target }.column(name));
            Below::Value
        };
        nodes.push(Node { key: key.clone(), below });
    }
    nodes
}

fn nodes_below(schema: &Schema, root: &Schema, name: &str, columns: &mut Vec<Column>) -> Vec<Node> {
    nodes(schema, root, &format!("{name}_"), columns)
}

fn push_values<'j>(nodes: &[Node], json: &'j str, values: &mut Vec<&'j str>) {
    let object: HashMap<&str, &RawValue> = serde_json::from_str(json).unwrap_or_default();
    for Node { key, below } in nodes {
        let value = object.get(key.as_str()).map_or(NULL, |value| value.get());
        match below {
            Below::Value => values.push(value),
            Below::Object(nodes) => push_values(nodes, value, values),
        }
    }
}

/// As much of a JSON Schema as makes columns.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Schema {
    #[serde(rename = "$ref")]
    reference: Option<String>,
    #[serde(rename = "type")]
    kind: Option<Kinds>,
    description: String,
    properties: Properties,
    required: Vec<String>,
    items: Option<Box<Schema>>,
    #[serde(rename = "$defs")]
    definitions: BTreeMap<String, Schema>,
}

/// One type, or one that may be null.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Kinds {
    One(String),
    Several(Vec<String>),
}

impl Schema {
    fn published() -> Self {
        serde_json::from_str(SCHEMA).expect("the schema is checked by the tests")
    }

    /// What is said of a key.
    fn below(&self, key: &str) -> Option<&Self> {
        self.properties.0.iter().find(|(name, _)| name == key).map(|(_, schema)| schema)
    }

    /// What it refers to, or itself.
    fn followed(&self, root: &Self) -> Self {
        let Some(reference) = &self.reference else { return self.clone() };
        let name = reference.strip_prefix("#/$defs/").expect("the schema refers to its own definitions");
        root.definitions.get(name).expect("what the schema refers to is there").clone()
    }

    fn with_definitions_of(self, root: &Self) -> Self {
        Self { definitions: root.definitions.clone(), ..self }
    }

    fn is_of_texts(&self) -> bool {
        matches!(&self.kind, Some(Kinds::One(kind)) if kind == "string")
    }

    fn column(&self, name: String) -> Column {
        let named = match &self.kind {
            Some(Kinds::One(kind)) => Some(kind.as_str()),
            Some(Kinds::Several(kinds)) => kinds.iter().map(String::as_str).find(|kind| *kind != NULL),
            None => None,
        };
        let kind = match named {
            Some("integer") => "integer",
            Some("number") => "number",
            Some("boolean") => "boolean",
            Some("object" | "array") => "json",
            // Closed sets and constants are names.
            _ => "string",
        };
        Column { name, kind, description: self.description.clone() }
    }
}

/// The keys of an object in their order, which is that of the columns.
#[derive(Clone, Default)]
struct Properties(Vec<(String, Schema)>);

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Properties;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
                std::iter::from_fn(|| map.next_entry().transpose()).collect::<Result<_, _>>().map(Properties)
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

//! The document and its published schema, `otel/snapshot.schema.json`, say the same: valid as it is, and not otherwise.

use std::fmt;

use jsonschema::Validator;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::lookup::specimen;
use crate::snapshot::document::{Phase, SCHEMA};
use crate::snapshot::{
    Document, Ending, Fallback, Fault, Freshness, Moment, Operation, Outcome, Policy, Quantity, Reason, Record, Source,
};

const PUBLISHED: &str = include_str!("../../../otel/snapshot.schema.json");

fn published() -> Value {
    serde_json::from_str(PUBLISHED).unwrap()
}

fn validator() -> Validator {
    jsonschema::validator_for(&published()).unwrap()
}

fn text_of(record: &Record) -> String {
    let mut json = Vec::new();
    Document::of(record).write(&mut json);
    String::from_utf8(json).unwrap()
}

fn document_of(record: &Record) -> Value {
    serde_json::from_str(&text_of(record)).unwrap()
}

#[track_caller]
fn assert_valid(validator: &Validator, document: &Value, what: &str) {
    let errors: Vec<String> =
        validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what}:\n{}", errors.join("\n"));
}

/// Every kind of request: the gallery, every ending with and without a head, and one that has only just come.
fn records() -> Vec<(String, Record)> {
    let at = |random| specimen::issued(specimen::ACCEPTED, specimen::TAG, random);
    let mut records: Vec<_> = specimen::gallery().into_iter().map(|(name, record)| (name.to_owned(), record)).collect();
    records.push(("nothing is known yet".to_owned(), Record::open(at(7))));
    for ending in Ending::ALL {
        for status in [None, Some(200), Some(404), Some(ending.status())] {
            let outcome = Outcome { ending, status, ..specimen::outcome() };
            records.push((format!("{ending:?} {status:?}"), Record::closed(at(8), outcome)));
        }
    }
    records
}

#[test]
fn every_document_is_valid_with_and_without_what_the_lookup_adds() {
    let validator = validator();
    for (name, record) in records() {
        let mut document = document_of(&record);
        assert_valid(&validator, &document, &name);
        for stored in [true, false] {
            document["stored"] = json!(stored);
            assert_valid(&validator, &document, &name);
        }
    }
}

/// An object's keys and values in their order, which [`Value`] does not keep.
fn entries(json: &RawValue) -> Vec<(String, Box<RawValue>)> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, Box<RawValue>)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            std::iter::from_fn(|| map.next_entry().transpose()).collect()
        }
    }

    serde_json::Deserializer::from_str(json.get()).deserialize_map(Entries).unwrap()
}

fn entry(json: &RawValue, key: &str) -> Option<Box<RawValue>> {
    entries(json).into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// The schema that a reference in `schema` points to, or itself.
fn followed(schema: Box<RawValue>, root: &RawValue) -> Box<RawValue> {
    let Some(reference) = entry(&schema, "$ref") else { return schema };
    let path: String = serde_json::from_str(reference.get()).unwrap();
    let path = path.strip_prefix("#/").unwrap().split('/');
    path.fold(root.to_owned(), |schema, key| entry(&schema, key).unwrap())
}

/// Compares the keys of a document's objects with those of their schemas, and says how many objects there were.
fn compare_keys(document: &RawValue, schema: Box<RawValue>, root: &RawValue, at: &str) -> usize {
    let schema = followed(schema, root);
    if document.get().starts_with('[') {
        let items: Vec<Box<RawValue>> = serde_json::from_str(document.get()).unwrap();
        let schema = entry(&schema, "items").unwrap();
        return items.iter().map(|item| compare_keys(item, schema.clone(), root, &format!("{at}[]"))).sum();
    }
    let Some(properties) = entry(&schema, "properties").filter(|_| document.get().starts_with('{')) else { return 0 };
    let names = |entries: &[(String, Box<RawValue>)]| entries.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let (written, mut described) = (entries(document), entries(&properties));
    let required: Vec<String> = serde_json::from_str(entry(&schema, "required").unwrap().get()).unwrap();
    assert_eq!(names(&written), required, "{at}: what is required");
    if at.is_empty() {
        let own = names(&described.split_off(written.len()));
        assert_eq!(own, ["stored", "links", "around", "redacted"], "the keys of the lookup's own");
    }
    assert_eq!(names(&written), names(&described), "{at}: what is described");
    let below = written.iter().zip(described);
    1 + below
        .map(|((name, value), (_, schema))| compare_keys(value, schema, root, &format!("{at}/{name}")))
        .sum::<usize>()
}

#[test]
fn the_schema_has_the_keys_of_the_document_in_its_order() {
    let root: Box<RawValue> = serde_json::from_str(PUBLISHED).unwrap();
    for (name, record) in records() {
        let document: Box<RawValue> = serde_json::from_str(&text_of(&record)).unwrap();
        let objects = compare_keys(&document, root.clone(), &root, "");
        let decision = record.issued.decision.as_ref();
        let candidates = decision.map_or(0, |decision| decision.candidates.len());
        let attempts = record.outcome().map_or(0, |outcome| outcome.attempts.len());
        // The document, seven parts, four below the decision's, and what the lists hold: an attempt has two below it.
        assert_eq!(objects, 1 + 7 + 4 + 2 * candidates + 3 * attempts, "{name}");
    }
}

/// Where every value of a document stands, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut below = |name: String, value| {
        let place = format!("{at}/{name}");
        found.push(place.clone());
        places(value, &place, found);
    };
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| below(name.clone(), value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| below(index.to_string(), value)),
        _ => {}
    }
}

/// Objects whose keys are other people's: nothing in them is required, and anything may come.
const OPEN: [&str; 4] = ["labels", "score_parts", "named_metrics", "other_metrics"];

#[test]
fn a_key_too_few_a_key_too_many_and_a_value_of_another_kind_are_refused() {
    let validator = validator();
    let record = specimen::completed();
    let document = document_of(&record);
    let mut all = Vec::new();
    places(&document, "", &mut all);
    assert!(all.len() > 200, "only {} values", all.len());
    let is_open = |place: &str| OPEN.iter().any(|open| place.ends_with(&format!("/{open}")));
    for place in all {
        let (parent, name) = place.rsplit_once('/').unwrap();
        let mut other_kind = document.clone();
        // No value may be a list, save those that are or could be, and these may not be text.
        let value = other_kind.pointer_mut(&place).unwrap();
        *value = if value.is_array() || name == "gpu_uuids" { json!("text") } else { json!([]) };
        assert!(!validator.is_valid(&other_kind), "{place}: a value of another kind");

        let mut fewer = document.clone();
        if let Some(object) = fewer.pointer_mut(parent).unwrap().as_object_mut()
            && !is_open(parent)
        {
            object.remove(name).unwrap();
            assert!(!validator.is_valid(&fewer), "{place}: missing");
        }

        let mut more = document.clone();
        if let Some(object) = more.pointer_mut(&place).unwrap().as_object_mut()
            && !is_open(&place)
        {
            object.insert("surprise".to_owned(), Value::Null);
            assert!(!validator.is_valid(&more), "{place}: a key too many");
        }
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let validator = validator();
    let document = document_of(&specimen::completed());
    for (place, value) in [
        ("/schema", json!("snapgate.snapshot/2")),
        ("/id", json!("019AB3C2D1E0A7F11122334455667788")),
        ("/id", json!("19ab3c2d1e0a7f11122334455667788")),
        ("/issued_at", json!("2026-11-23T12:13:15Z")),
        ("/gateway/instance_tag", json!("a7f11")),
        ("/request/operation", json!("smalltalk")),
        ("/request/tenant", json!("sk-secret")),
        ("/request/labels/x", json!(1)),
        ("/decision/policy", json!("best_guess")),
        ("/decision/policy", json!(null)),
        ("/decision/candidates", json!([])),
        ("/decision/candidates/0/rank", json!(0)),
        ("/decision/candidates/0/score_parts/in_flight", json!("4")),
        ("/decision/candidates/0/state/waiting", json!("3")),
        ("/decision/candidates/0/state/waiting_source", json!("rumour")),
        ("/decision/candidates/0/state/waiting_freshness", json!(null)),
        ("/decision/inputs/draw", json!("91b2")),
        ("/outcome/ending", json!("ended")),
        ("/outcome/ending", json!(null)),
        ("/outcome/fault", json!("nobody")),
        ("/outcome/status", json!(20)),
        ("/outcome/events", json!(null)),
        ("/timings/end_offset_us", json!(null)),
        ("/timings/end_offset_us", json!(-1)),
        ("/timings/end_offset_us", json!(1.5)),
        ("/phase", json!("in_flight")),
        ("/stored", json!("yes")),
    ] {
        let mut wrong = document.clone();
        let (parent, name) = place.rsplit_once('/').unwrap();
        let parent = wrong.pointer_mut(parent).unwrap();
        match parent.as_array_mut() {
            Some(items) => items[name.parse::<usize>().unwrap()] = value.clone(),
            None => parent[name] = value.clone(),
        }
        assert!(!validator.is_valid(&wrong), "{place}: {value}");
    }
}

/// What a closed set of the schema must hold: the names, and null where nothing may be known.
fn set(names: impl IntoIterator<Item = &'static str>, or_null: bool) -> Value {
    names.into_iter().map(Value::from).chain(or_null.then_some(Value::Null)).collect()
}

#[test]
fn its_closed_sets_are_those_of_the_code() {
    let schema = published();
    let operations = [Operation::Chat, Operation::TextCompletion, Operation::Embeddings, Operation::Other];
    let faults = [Fault::Client, Fault::Target, Fault::Gateway];
    for (place, expected) in [
        ("/properties/phase", set([Phase::InFlight, Phase::Complete].map(Phase::name), false)),
        ("/properties/request/properties/operation", set(operations.map(Operation::name), false)),
        ("/properties/decision/properties/policy", set(Policy::ALL.map(Policy::name), true)),
        ("/properties/decision/properties/reason", set(Reason::ALL.map(Reason::name), true)),
        ("/properties/decision/properties/fallback", set(Fallback::ALL.map(Fallback::name), true)),
        ("/$defs/choice/properties/reason", set(Reason::ALL.map(Reason::name), true)),
        ("/$defs/choice/properties/fallback", set(Fallback::ALL.map(Fallback::name), true)),
        ("/properties/outcome/properties/ending", set(Ending::ALL.map(Ending::name), true)),
        ("/properties/outcome/properties/fault", set(faults.map(Fault::name), true)),
        ("/$defs/source", set(Source::ALL.map(Source::name), true)),
        ("/$defs/freshness", set(Freshness::ALL.map(Freshness::name), false)),
    ] {
        assert_eq!(schema.pointer(place).unwrap()["enum"], expected, "{place}");
    }
    assert_eq!(schema["properties"]["schema"]["const"], SCHEMA);
    let state = schema["$defs"]["state"]["properties"].as_object().unwrap();
    for name in Quantity::ALL.map(Quantity::name) {
        for key in [name.to_owned(), format!("{name}_age_ms"), format!("{name}_source"), format!("{name}_freshness")] {
            assert!(state.contains_key(&key), "{key}");
        }
    }
}

#[test]
fn every_key_is_described_in_a_sentence() {
    fn check(schema: &Value, at: &str) -> usize {
        let mut count = 0;
        for (name, below) in schema.as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            for (key, property) in below.as_object().filter(|_| name == "properties").into_iter().flatten() {
                let text = property["description"].as_str().unwrap_or_else(|| panic!("{at}/{key} is not described"));
                assert!(text.ends_with('.') && text.starts_with(|c: char| !c.is_whitespace()), "{at}/{key}: {text:?}");
                count += 1;
            }
            count += check(below, &at);
        }
        count
    }

    // The conditions below `allOf` name keys that are described elsewhere.
    let mut schema = published();
    schema.as_object_mut().unwrap().remove("allOf").unwrap();
    assert!(check(&schema, "") > 150);
}

#[test]
fn what_is_written_reads_back_as_the_same_bytes() {
    for (name, record) in records() {
        let text = text_of(&record);
        let read: Document<'_> = serde_json::from_str(&text).unwrap();
        let mut again = Vec::new();
        read.write(&mut again);
        assert_eq!(String::from_utf8(again).unwrap(), text, "{name}");
        assert_eq!(serde_json::to_string(&read).unwrap(), text, "{name}: as a part of an answer");
        assert_eq!(read.issued_at_unix_us, record.issued.issued_at.0);
        assert_eq!(&*read.issued_at, Moment(read.issued_at_unix_us).to_string());
    }
}

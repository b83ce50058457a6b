//! Every document that a test meets is checked against its published schema, wherever it was read: here, and in no test.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    let published = serde_json::from_str(include_str!("../otel/snapshot.schema.json")).expect("the schema is JSON");
    jsonschema::validator_for(&published).expect("the schema is a schema")
});

/// Checks the documents in an answer or a line: the value itself, or what is somewhere in it.
#[track_caller]
pub(crate) fn checked(value: Value) -> Value {
    check(&value);
    value
}

#[track_caller]
fn check(value: &Value) {
    match value {
        // A flat row names the schema, too, but its decision has no key of its own; and the schema itself is none.
        Value::Object(object)
            if object.get("schema").is_some_and(Value::is_string) && object.contains_key("decision") =>
        {
            let errors = VALIDATOR.iter_errors(value);
            let errors: Vec<_> = errors.map(|error| format!("{}: {error}", error.instance_path())).collect();
            assert!(errors.is_empty(), "{value}\nis no valid document:\n{}", errors.join("\n"));
        }
        Value::Object(object) => object.values().for_each(check),
        Value::Array(items) => items.iter().for_each(check),
        _ => {}
    }
}

#[test]
#[should_panic(expected = "is no valid document")]
fn a_document_that_is_none_is_found_out_deep_in_an_answer() {
    checked(serde_json::json!({"snapshots": [{"schema": "snapgate.snapshot/1", "decision": {}}]}));
}

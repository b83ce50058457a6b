//! `GET /openapi.json`: this interface as programs read it.
//!
//! The document is kept in `otel/openapi.json`. What has a list of its own elsewhere is put in from there: the schema of a
//! snapshot and the columns of tables.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::routes;
use super::shape::{Column, SCHEMA, Shape, columns};

/// The document as it is kept.
const KEPT: &str = include_str!("../../otel/openapi.json");

/// Where a snapshot's schema is in the document as it is served.
const SNAPSHOT: &str = "#/components/schemas/Snapshot";

static PAGE: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

/// `GET /openapi.json`.
pub(super) async fn page() -> Response {
    routes::json(StatusCode::OK, PAGE.clone())
}

/// The whole document.
pub(super) fn document() -> Value {
    let parse = |text: &str| -> Value { serde_json::from_str(text).expect("what is kept in otel/ is JSON") };
    // References are moved in the text, wherever they stand.
    let mut document = parse(&KEPT.replace("snapshot.schema.json#", SNAPSHOT));
    let mut snapshot = parse(&SCHEMA.replace("\"#/$defs/", &format!("\"{SNAPSHOT}/$defs/")));
    if let Some(schema) = snapshot.as_object_mut() {
        // By an ID of its own it would be another document.
        schema.retain(|key, _| key != "$id" && key != "$schema");
    }
    let schemas = &mut document["components"]["schemas"];
    schemas["Snapshot"] = snapshot;
    for (name, shape) in [("SnapshotRow", Shape::Flat), ("CandidateRow", Shape::Candidates)] {
        schemas[name]["required"] = columns(shape).iter().map(|column| column.name.as_str()).collect();
        schemas[name]["properties"] = Value::Object(columns(shape).iter().map(property).collect::<Map<_, _>>());
    }
    document
}

/// A value of a row: plain, or null.
fn property(Column { name, kind, description }: &Column) -> (String, Value) {
    let kind = if *kind == "json" { "string" } else { kind };
    (name.clone(), json!({ "type": [kind, "null"], "description": description }))
}

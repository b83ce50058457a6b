//! `otel/openapi.json` says what the code does: the same paths, methods, parameters, bounds and problems.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use clap::ValueEnum as _;
use serde_json::Value;

use super::super::shape::{Format, Shape};
use super::super::{bulk, key, list, openapi};
use super::*;
use crate::snapshot::Ending;

type Names = BTreeSet<String>;

const SECRET: &str = "0123456789abcdef";

/// What follows each `mark` in a source, up to the quotation mark after the next one.
fn quoted_after(source: &str, mark: &str) -> Names {
    source.split(mark).skip(1).filter_map(|rest| rest.split('"').nth(1)).map(str::to_owned).collect()
}

fn keys(object: &Value) -> Names {
    object.as_object().unwrap().keys().cloned().collect()
}

fn texts(array: &Value) -> Names {
    array.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The parameters of an operation, references followed.
fn parameters<'a>(document: &'a Value, operation: &'a Value) -> Vec<&'a Value> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let follow = |parameter: &'a Value| match parameter["$ref"].as_str() {
        Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => parameter,
    };
    parameters.map(follow).collect()
}

async fn gateway(dir: &std::path::Path) -> Gateway {
    let tokens = vec![Token::new("all", SECRET).allowed(Scope::ALL.to_vec())];
    let settings = Settings { tokens, ..Settings::default() };
    Gateway::start(dir, Plan { settings, ..Plan::default() }).await
}

#[tokio::test]
async fn paths_methods_and_parameters_are_those_of_the_document() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path()).await;
    let authorization = format!("Bearer {SECRET}");
    let token = [("authorization", authorization.as_str())];
    let document = gateway.get("/openapi.json").await.json();
    assert_eq!(document, openapi::document(), "it is served without a token");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(keys(&document["paths"]), quoted_after(include_str!("../mod.rs"), ".route("));
    for (path, operations) in document["paths"].as_object().unwrap() {
        let reply = gateway.ask("TRACE", path, &token).await;
        let allowed = reply.header("allow").unwrap_or_default().split(',').map(|it| it.trim().to_lowercase());
        let allowed: Names = allowed.filter(|method| method != "head").collect();
        assert_eq!((reply.status, allowed), (405, keys(operations)), "{path}");
        for (method, operation) in operations.as_object().unwrap() {
            let of_query = parameters(&document, operation).into_iter().filter(|it| it["in"] == "query");
            let names: Names =
                of_query.map(|it| it["name"].as_str().unwrap().replace("labels", "label.NAME")).collect();
            if names.is_empty() {
                continue;
            }
            // Who asks for what there is not is told what there is.
            let asked = format!("{}?nothing=1", path.replace("{key}", "a"));
            let reply = gateway.ask(&method.to_uppercase(), &asked, &token).await;
            let detail = reply.json()["detail"].as_str().unwrap().to_owned();
            let (_, told) = detail.split_once("there are ").or(detail.split_once("there is ")).unwrap();
            let told = told.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.');
            let mut told: Names =
                told.filter(|word| !matches!(*word, "" | "one" | "of" | "or" | "and")).map(str::to_owned).collect();
            if path == "/v1/snapshots/resolve" {
                // It is known there to be refused with a reason.
                told.remove("around");
            }
            assert_eq!((reply.status, told), (400, names), "{method} {path}");
        }
    }
}

#[test]
fn problems_are_those_of_the_document() {
    let (code, _) = include_str!("../problem.rs").split_once("#[cfg(test)]").unwrap();
    let in_code = code.split("Self::new(").skip(1).map(|made| {
        let (_, status) = made.split_once("StatusCode::").unwrap();
        (status.split(',').next().unwrap().to_owned(), made.split('"').nth(1).unwrap().to_owned())
    });
    let document = openapi::document();
    let responses = document["components"]["responses"].as_object().unwrap().values();
    let problems = responses.filter_map(|it| it.pointer("/content/application~1problem+json/schema/properties"));
    let in_document = problems.flat_map(|it| {
        let status = StatusCode::from_u16(it["status"]["const"].as_u64().unwrap() as u16).unwrap();
        let name = status.canonical_reason().unwrap().to_uppercase().replace(' ', "_");
        texts(&it["state"]["enum"]).into_iter().map(move |state| (name.clone(), state))
    });
    assert_eq!(in_document.collect::<BTreeSet<_>>(), in_code.collect());
}

#[test]
fn values_and_bounds_are_those_of_the_document() {
    let document = openapi::document();
    let schema_of = |path: &str, method: &str, name: &str| {
        let operation = &document["paths"][path][method];
        let parameter = parameters(&document, operation).into_iter().find(|it| it["name"] == name).unwrap();
        parameter["schema"].clone()
    };
    let list = |name| schema_of("/v1/snapshots", "get", name);
    let names = |values: &[&str]| -> Names { values.iter().map(|&value| value.to_owned()).collect() };
    let shapes: Names =
        Shape::value_variants().iter().map(|it| it.to_possible_value().unwrap().get_name().to_owned()).collect();
    let formats: Names =
        Format::value_variants().iter().map(|it| it.to_possible_value().unwrap().get_name().to_owned()).collect();
    assert_eq!(texts(&list("shape")["enum"]), shapes);
    assert_eq!(texts(&document["components"]["schemas"]["Format"]["enum"]), formats);
    assert_eq!(texts(&list("ending")["items"]["enum"]), names(&Ending::ALL.map(Ending::name)));
    assert_eq!(
        (&list("limit")["maximum"], &list("limit")["default"]),
        (&json!(list::LIMIT_MAX), &json!(list::LIMIT_DEFAULT))
    );
    assert_eq!(schema_of("/v1/snapshots/{key}", "get", "key")["maxLength"], key::KEY_BYTES_MAX);
    let body = &document["paths"]["/v1/snapshots/resolve"]["post"]["requestBody"]["content"];
    assert_eq!(body["application/json"]["schema"]["maxItems"], bulk::KEYS_MAX);
    assert_eq!(document["components"]["schemas"]["Matches"]["properties"]["matches"]["maxItems"], MATCHES_MAX);
}

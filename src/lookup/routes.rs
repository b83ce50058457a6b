//! The paths of the admin interface.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::accept::Form;
use super::fleet::FleetPage;
use super::key::Key;
use super::problem::Problem;
use super::resolve::{Found, LookupError, Matches, resolve};
use super::wait::{Patience, until_complete};
use super::{Lookup, render};

/// What may follow the `?` of a lookup. An unknown parameter is refused: a typo must not become a silent default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LookupQuery {
    wait: Option<String>,
}

/// `GET /v1/snapshots/{key}`: what became of a request.
pub(super) async fn snapshot(
    State(lookup): State<Arc<Lookup>>,
    key: Result<Path<String>, PathRejection>,
    query: Result<Query<LookupQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let form = Form::wanted(&headers);
    match look_up(&lookup, key, query).await {
        Ok(matches) => show(&matches, form),
        Err(problem) => problem.answer(form),
    }
}

/// The steps of a lookup, each of which may end it. An absence is a problem here.
async fn look_up(
    lookup: &Lookup,
    key: Result<Path<String>, PathRejection>,
    query: Result<Query<LookupQuery>, QueryRejection>,
) -> Result<Matches, Problem> {
    let Path(key) = key.map_err(|rejection| Problem::malformed_path(&rejection.body_text()))?;
    let key = Key::parse(&key).map_err(Problem::malformed_key)?;
    let Query(query) = query.map_err(|rejection| Problem::malformed_query(rejection.body_text()))?;
    let patience: Patience = match &query.wait {
        None => Patience::default(),
        Some(text) => text.parse().map_err(|error| Problem::malformed_query(format!("wait={text:?} is {error}")))?,
    };
    let failed = |error| {
        match error {
            LookupError::Busy(_) => tracing::debug!(%error, "lookup refused"),
            LookupError::Store(_) | LookupError::Stopped(_) => tracing::error!(%error, "lookup failed"),
        }
        Problem::failed(&error)
    };
    let answer = resolve(lookup, key.clone()).await.map_err(failed)?;
    let mut matches = answer.map_err(|absence| Problem::absent(&absence, &key, lookup.state.run.tag))?;
    until_complete(lookup, &mut matches, patience).await.map_err(failed)?;
    Ok(matches)
}

/// A key that names one request answers its document; one that several can bear answers a list, even of one.
fn show(matches: &Matches, form: Form) -> Response {
    match (matches, form) {
        (Matches::One(found), Form::Json) => {
            let mut body = Vec::new();
            write_document(found, &mut body);
            json(StatusCode::OK, body)
        }
        (Matches::Several { found, complete }, Form::Json) => {
            let mut body = br#"{"matches":["#.to_vec();
            for (place, one) in found.iter().enumerate() {
                if place > 0 {
                    body.push(b',');
                }
                write_document(one, &mut body);
            }
            body.extend_from_slice(format!(r#"],"complete":{complete}}}"#).as_bytes());
            json(StatusCode::OK, body)
        }
        (Matches::One(found), Form::Text) => text(render::render(&found.document(), render::WIDTH_MAX)),
        (Matches::Several { found, complete }, Form::Text) => {
            let documents: Vec<_> = found.iter().map(Found::document).collect();
            text(render::render_matches(&documents, *complete, render::WIDTH_MAX))
        }
    }
}

/// A document with one more key after its own. Spliced in, so that its bytes are those of the store and the log.
fn write_document(found: &Found, body: &mut Vec<u8>) {
    found.document().write(body);
    let end = body.pop();
    debug_assert_eq!(end, Some(b'}'), "a document is a JSON object");
    body.extend_from_slice(format!(r#","stored":{}}}"#, found.stored).as_bytes());
}

/// `GET /v1/fleet`: what the gateway sees now.
pub(super) async fn fleet(State(lookup): State<Arc<Lookup>>, headers: HeaderMap) -> Response {
    let view = (lookup.state.fleet)();
    let now = lookup.state.clock.now();
    match Form::wanted(&headers) {
        Form::Json => json(StatusCode::OK, to_json(&FleetPage::of(&view, now))),
        Form::Text => text(FleetPage::of(&view, now).render(render::WIDTH_MAX)),
    }
}

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> Response {
    text("ok\n".to_owned())
}

/// The answer of `/readyz`.
#[derive(Serialize)]
struct ReadyPage {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

/// `GET /readyz`: whether the gateway should get traffic, and if not, why.
pub(super) async fn readyz(State(lookup): State<Arc<Lookup>>) -> Response {
    let reasons = (lookup.state.readiness)().reasons;
    let page = ReadyPage { ready: reasons.is_empty(), reasons };
    let status = if page.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, to_json(&page))
}

/// `GET /metrics`: the gateway's own, for Prometheus.
pub(super) async fn metrics(State(lookup): State<Arc<Lookup>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], lookup.state.metrics.page()).into_response()
}

/// Everything else.
pub(super) async fn no_such_path(uri: Uri, headers: HeaderMap) -> Response {
    Problem::no_such_path(uri.path()).answer(Form::wanted(&headers))
}

/// A path of ours, asked in another way.
pub(super) async fn method_not_allowed(method: Method, headers: HeaderMap) -> Response {
    Problem::method_not_allowed(method.as_str()).answer(Form::wanted(&headers))
}

fn to_json(page: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(page).expect("a page has only text keys, and memory does not refuse a write")
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], Bytes::from(body)).into_response()
}

fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

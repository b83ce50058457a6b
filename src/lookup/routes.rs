//! The paths of the admin interface.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::accept::Form;
use super::fleet::FleetPage;
use super::key::Key;
use super::problem::Problem;
use super::resolve::{Found, LookupError, Matches, resolve};
use super::shape::{Format, Layout, Shape, Sheet};
use super::wait::{Patience, until_complete};
use super::{Lookup, render};

/// What may follow the `?` of a lookup. An unknown parameter is refused: a typo must not become a silent default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LookupQuery {
    /// How long to wait for the request's end, such as `5s`; 30 s at most.
    pub(super) wait: Option<String>,
    /// What of the snapshot is answered; as a rule the whole document.
    pub(super) shape: Option<Shape>,
    /// How it is written; as a rule as `Accept` says.
    pub(super) format: Option<Format>,
}

impl LookupQuery {
    /// How long the client waits, and what it is answered; or what is wrong with that.
    pub(super) fn read(&self, headers: &HeaderMap, usual: Format) -> Result<(Patience, Layout), String> {
        let patience = match &self.wait {
            None => Patience::default(),
            Some(text) => text.parse().map_err(|error| format!("wait={text:?} is {error}"))?,
        };
        let layout = Layout::wanted(self.shape, self.format, headers, usual).map_err(|error| error.to_string())?;
        Ok((patience, layout))
    }
}

/// `GET /v1/snapshots/{key}`: what became of a request.
pub(super) async fn snapshot(
    State(lookup): State<Arc<Lookup>>,
    key: Result<Path<String>, PathRejection>,
    query: Result<Query<LookupQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    // A shape or a format is a program's wish, whatever its library accepts.
    let tabular = query.as_ref().is_ok_and(|query| query.shape.is_some() || query.format.is_some());
    let form = if tabular { Form::Json } else { Form::wanted(&headers) };
    match look_up(&lookup, key, query, &headers).await {
        Ok((matches, layout)) => show(&matches, form, layout),
        Err(problem) => problem.answer(form),
    }
}

/// The steps of a lookup, each of which may end it. An absence is a problem here.
async fn look_up(
    lookup: &Lookup,
    key: Result<Path<String>, PathRejection>,
    query: Result<Query<LookupQuery>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<(Matches, Layout), Problem> {
    let Path(key) = key.map_err(|rejection| Problem::malformed_path(&rejection.body_text()))?;
    let key = Key::parse(&key).map_err(Problem::malformed_key)?;
    let Query(query) = query.map_err(|rejection| Problem::malformed_query(rejection.body_text()))?;
    let (patience, layout) = query.read(headers, Format::Json).map_err(Problem::malformed_query)?;
    let answer = resolve(lookup, key.clone()).await.map_err(failed)?;
    let mut matches = answer.map_err(|absence| Problem::absent(&absence, &key, lookup.state.run.tag))?;
    let mut found: Vec<_> = matches.found_mut().iter_mut().collect();
    until_complete(lookup, &mut found, patience.deadline()).await.map_err(failed)?;
    Ok((matches, layout))
}

/// A lookup that could not be carried out: for the log, and for the client.
pub(super) fn failed(error: LookupError) -> Problem {
    match error {
        LookupError::Busy(_) => tracing::debug!(%error, "lookup refused"),
        LookupError::Store(_) | LookupError::Stopped(_) => tracing::error!(%error, "lookup failed"),
    }
    Problem::failed(&error)
}

/// A key that names one request answers its document; one that several can bear answers a list, even of one. Tables are
/// lists of rows.
fn show(matches: &Matches, form: Form, layout: Layout) -> Response {
    let found = matches.found();
    if form == Form::Text {
        return match matches {
            Matches::One(found) => text(render::render(&found.document(), render::WIDTH_MAX)),
            Matches::Several { complete, .. } => {
                let documents: Vec<_> = found.iter().map(Found::document).collect();
                text(render::render_matches(&documents, *complete, render::WIDTH_MAX))
            }
        };
    }
    let (mut sheet, mut body) = (Sheet::new(layout, &[]), Vec::new());
    let documents = layout == Layout { shape: Shape::Document, format: Format::Json };
    match matches {
        Matches::One(found) if documents => found.write(&mut body),
        _ => {
            if documents {
                body.extend_from_slice(br#"{"matches":"#);
            }
            sheet.open(&mut body);
            found.iter().for_each(|found| sheet.snapshot(&[], found, &mut body));
            sheet.close(&mut body);
            if documents {
                body.extend_from_slice(format!(r#","complete":{}}}"#, matches.complete()).as_bytes());
            }
        }
    }
    laid_out(layout, matches.complete(), body.into())
}

/// Says whether there is more than the answer has; the body of a table has no place for it.
pub(super) const COMPLETE_HEADER: HeaderName = HeaderName::from_static("snapgate-complete");

/// Lines or a table as an answer.
pub(super) fn laid_out(layout: Layout, complete: bool, body: Body) -> Response {
    let complete = HeaderValue::from_static(if complete { "true" } else { "false" });
    ([(header::CONTENT_TYPE, layout.format.media_type()), (COMPLETE_HEADER, complete)], body).into_response()
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

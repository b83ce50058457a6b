//! The paths of the admin interface.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::accept::{Form, metrics_wanted};
use super::around::{self, Around, Width};
use super::auth::Caller;
use super::fleet::FleetPage;
use super::key::Key;
use super::links::{Links, Offered};
use super::problem::Problem;
use super::render::Sight;
use super::resolve::{Found, LookupError, Matches, resolve, write_with};
use super::shape::{Format, Layout, Shape, Sheet};
use super::wait::{Patience, until_complete};
use super::{Lookup, Readiness, own, render};
use crate::snapshot::{Document, Tenant};
use crate::telemetry::metrics::Scrape;
use crate::tenant::Peer;

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
    /// How far around one request to look for what else went wrong, such as `30s`.
    pub(super) around: Option<String>,
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

    fn width(&self) -> Result<Option<Width>, String> {
        let Some(text) = &self.around else { return Ok(None) };
        text.parse().map(Some).map_err(|error| format!("around={text:?} {error}"))
    }

    /// A shape or a format is a program's wish, whatever its library accepts.
    fn is_tabular(&self) -> bool {
        self.shape.is_some() || self.format.is_some()
    }
}

/// `GET /v1/snapshots/{key}`: what became of a request.
pub(super) async fn snapshot(
    State(lookup): State<Arc<Lookup>>,
    Extension(caller): Extension<Caller>,
    peer: Option<Extension<Peer>>,
    key: Result<Path<String>, PathRejection>,
    query: Result<Query<LookupQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let tabular = query.as_ref().is_ok_and(|query| query.is_tabular());
    let form = if tabular { Form::Json } else { Form::wanted(&headers) };
    let answer = async {
        let key = key_of(key).map_err(|problem| *problem)?;
        let Query(query) = query.map_err(|rejection| Problem::unreadable_query(&rejection))?;
        match caller {
            Caller::Operator(_) => look_up(&lookup, key, &query, &headers, form).await,
            Caller::Own(tenant) => {
                look_up_own(&lookup, tenant, peer.map(|Extension(peer)| peer), key, &query, form).await
            }
        }
    };
    answer.await.unwrap_or_else(|problem| problem.answer(form))
}

/// The key in a path.
pub(super) fn key_of(key: Result<Path<String>, PathRejection>) -> Result<Key, Box<Problem>> {
    let Path(key) = key.map_err(|rejection| Problem::malformed_path(&rejection.body_text()))?;
    Ok(Key::parse(&key).map_err(Problem::malformed_key)?)
}

/// A lookup that could not be carried out: for the log, and for the client.
pub(super) fn failed(error: LookupError) -> Problem {
    match error {
        LookupError::Busy(_) => tracing::debug!(%error, "lookup refused"),
        LookupError::Store(_) | LookupError::Stopped(_) => tracing::error!(%error, "lookup failed"),
    }
    Problem::failed(&error)
}

/// The steps of an operator's lookup, each of which may end it. An absence is a problem here.
async fn look_up(
    lookup: &Lookup,
    key: Key,
    query: &LookupQuery,
    headers: &HeaderMap,
    form: Form,
) -> Result<Response, Problem> {
    let (patience, layout) = query.read(headers, Format::Json).map_err(Problem::malformed_query)?;
    let width = query.width().map_err(Problem::malformed_query)?;
    let answer = resolve(lookup, key.clone()).await.map_err(failed)?;
    let mut matches = answer.map_err(|absence| Problem::absent(&absence, &key, lookup.state.run.tag))?;
    let mut found: Vec<_> = matches.found_mut().iter_mut().collect();
    until_complete(lookup, &mut found, patience.deadline()).await.map_err(failed)?;
    let around = match (&matches, width) {
        (_, None) => None,
        (Matches::One(found), Some(width)) if form == Form::Text || layout == DOCUMENT => {
            Some(around::look(lookup, &found.record, width).await.map_err(failed)?)
        }
        _ => return Err(not_around()),
    };
    Ok(show(&matches, &lookup.state.settings.load().links, around.as_ref(), form, layout))
}

/// What is around a request has no place but beside its document.
pub(super) fn not_around() -> Problem {
    Problem::malformed_query(
        "around= goes with the document of one request: ask for one of its IDs, without a shape or a format",
    )
}

/// The steps of a caller's lookup of its own record, of which it gets the document.
async fn look_up_own(
    lookup: &Lookup,
    tenant: Tenant,
    peer: Option<Peer>,
    key: Key,
    query: &LookupQuery,
    form: Form,
) -> Result<Response, Problem> {
    if query.around.is_some() || query.is_tabular() {
        return Err(Problem::for_operators("what around=, shape= and format= ask for"));
    }
    let (patience, _) = query.read(&HeaderMap::new(), Format::Json).map_err(Problem::malformed_query)?;
    let Some(mut found) = own::find(lookup, tenant, &key).await.map_err(failed)? else {
        // The next question in vain is refused; this one is answered, and the same for all.
        lookup.limits.failed(&lookup.state.settings.load(), peer).ok();
        return Err(Problem::not_your_own(key.id()));
    };
    until_complete(lookup, &mut [&mut found], patience.deadline()).await.map_err(failed)?;
    let mut document = found.document();
    own::redact(&mut document);
    Ok(match form {
        Form::Json => {
            let mut body = Vec::new();
            let more = [("links", to_json(&Offered::default())), ("redacted", b"true".to_vec())];
            write_with(&document, found.stored, &more, &mut body);
            json(StatusCode::OK, body)
        }
        Form::Text => text(render::render_seen(&document, Sight::Own, render::WIDTH_MAX)),
    })
}

/// One JSON value of whole documents, beside which there is room for what else the answer offers.
const DOCUMENT: Layout = Layout { shape: Shape::Document, format: Format::Json };

/// A key that names one request answers its document; one that several can bear answers a list, even of one. Tables are
/// lists of rows.
fn show(matches: &Matches, links: &Links, around: Option<&Around>, form: Form, layout: Layout) -> Response {
    let found = matches.found();
    if form == Form::Text {
        return match matches {
            Matches::One(found) => {
                let document = found.document();
                let extras = render::extras(&links.of(&document), around, render::WIDTH_MAX);
                text(render::render(&document, render::WIDTH_MAX) + &extras)
            }
            Matches::Several { complete, .. } => {
                let documents: Vec<_> = found.iter().map(Found::document).collect();
                text(render::render_matches(&documents, *complete, render::WIDTH_MAX))
            }
        };
    }
    let mut body = Vec::new();
    let write = |found: &Found, body: &mut Vec<u8>| {
        let document = found.document();
        write_document(&document, found.stored, &links.of(&document), around, body);
    };
    match matches {
        _ if layout != DOCUMENT => {
            let mut sheet = Sheet::new(layout, &[]);
            sheet.open(&mut body);
            found.iter().for_each(|found| sheet.snapshot(&[], found, &mut body));
            sheet.close(&mut body);
        }
        Matches::One(found) => write(found, &mut body),
        Matches::Several { complete, .. } => {
            body.extend_from_slice(br#"{"matches":["#);
            for (place, found) in found.iter().enumerate() {
                if place > 0 {
                    body.push(b',');
                }
                write(found, &mut body);
            }
            body.extend_from_slice(format!(r#"],"complete":{complete}}}"#).as_bytes());
        }
    }
    laid_out(layout, matches.complete(), body.into())
}

/// A document, and beside it what else the answer offers.
fn write_document(
    document: &Document<'_>,
    stored: bool,
    offered: &Offered,
    around: Option<&Around>,
    body: &mut Vec<u8>,
) {
    let mut more = vec![("links", to_json(offered))];
    more.extend(around.map(|around| ("around", to_json(around))));
    write_with(document, stored, &more, body);
}

/// Says whether there is more than the answer has; the body of a table has no place for it.
pub(super) const COMPLETE_HEADER: HeaderName = HeaderName::from_static("snapgate-complete");

/// Lines or a table as an answer.
pub(super) fn laid_out(layout: Layout, complete: bool, body: Body) -> Response {
    let complete = HeaderValue::from_static(if complete { "true" } else { "false" });
    ([(header::CONTENT_TYPE, layout.format.media_type()), (COMPLETE_HEADER, complete)], body).into_response()
}

/// `GET /v1/fleet`: what the gateway sees now. It has no parameters, so that each is unknown and refused.
pub(super) async fn fleet(State(lookup): State<Arc<Lookup>>, uri: Uri, headers: HeaderMap) -> Response {
    if uri.query().is_some_and(|query| !query.is_empty()) {
        let detail = "there are no parameters here: the answer is JSON, or text for `Accept: text/plain`";
        return Problem::malformed_query(detail).answer(Form::wanted(&headers));
    }
    let (view, gpus) = ((lookup.state.fleet)(), (lookup.state.gpus)());
    let page = FleetPage::of(&view, &gpus, (lookup.state.membership)(), lookup.state.clock.now());
    match Form::wanted(&headers) {
        Form::Json => json(StatusCode::OK, to_json(&page)),
        Form::Text => text(page.render(render::WIDTH_MAX)),
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// `GET /readyz`: whether the gateway should get traffic, and if not, why. Warnings change nothing about that: replicas fill
/// their disks alike, and would all leave the load balancer with requests that each of them can serve.
pub(super) async fn readyz(State(lookup): State<Arc<Lookup>>) -> Response {
    let Readiness { reasons, warnings } = (lookup.state.readiness)();
    let page = ReadyPage { ready: reasons.is_empty(), reasons, warnings };
    let status = if page.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, to_json(&page))
}

/// `GET /metrics`: the gateway's own, for Prometheus.
pub(super) async fn metrics(State(lookup): State<Arc<Lookup>>, headers: HeaderMap) -> Response {
    let format = metrics_wanted(&headers);
    let state = &lookup.state;
    let (view, ready) = ((state.fleet)(), (state.readiness)().reasons.is_empty());
    let (now, ledger_records) = (state.clock.now(), state.ledger.len());
    let page = state.metrics.render(format, Some(Scrape { now, view: &view, ready, ledger_records }));
    ([(header::CONTENT_TYPE, format.content_type())], page).into_response()
}

/// Everything else.
pub(super) async fn no_such_path(uri: Uri, headers: HeaderMap) -> Response {
    Problem::no_such_path(uri.path()).answer(Form::wanted(&headers))
}

/// A path of ours, asked in another way.
pub(super) async fn method_not_allowed(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    Problem::method_not_allowed(method.as_str(), uri.path()).answer(Form::wanted(&headers))
}

pub(super) fn to_json(page: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(page).expect("a page has only text keys, and memory does not refuse a write")
}

pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

pub(super) fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

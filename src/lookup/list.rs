//! `GET /v1/snapshots`: lists of snapshots by what they have in common, page by page.
//!
//! A list is newest first and has what is in flight, too; or it is in the order in which snapshots were stored, which is what
//! one follows. Cursors name a place and not a count, so that what comes in between moves nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::Response;
use clap::ValueEnum;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use tokio::time::{Instant, sleep};

use super::Lookup;
use super::accept::Form;
use super::cursor::{NoPlace, Place};
use super::key::Key;
use super::moment::{duration, moment};
use super::problem::Problem;
use super::resolve::{Found, LookupError, TURN_WAIT_MAX, in_turn};
use super::routes::{failed, laid_out};
use super::shape::{Format, Layout, Shape, Sheet, word};
use super::wait::{FOLLOW_PAUSE, Patience};
use crate::ledger::Ledger;
use crate::snapshot::{Ending, Moment, Record, SnapshotId, TraceId};
use crate::store::{Filter, ReadError, Reader};

/// Snapshots on a page if nobody says.
pub(super) const LIMIT_DEFAULT: usize = 100;

/// Snapshots on a page at most.
pub(super) const LIMIT_MAX: usize = 1_000;

/// Before the name of a label.
const LABEL_PREFIX: &str = "label.";

/// What may follow the `?` of a list. An unknown parameter is refused: a typo must not become a silent default.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ListQuery {
    /// Issued then or later: RFC 3339, Unix seconds, milliseconds or microseconds, or how long ago (`15m`).
    pub since: Option<String>,
    /// Issued before; in the same forms.
    pub until: Option<String>,
    /// The model that was asked for.
    pub model: Option<String>,
    /// The target that served or was tried last; the chosen one while none was tried.
    pub target: Option<String>,
    /// Statuses or their classes, with commas: `429,5xx`.
    pub status: Option<String>,
    /// Endings, with commas: `upstream_reset,upstream_timeout`.
    pub ending: Option<String>,
    /// `in_flight` or `complete`.
    pub phase: Option<String>,
    /// As documents show it: `t_8f3a91c2`.
    pub tenant: Option<String>,
    /// Took so long or longer: `2s`.
    pub min_duration: Option<String>,
    /// The trace they belong to.
    pub trace_id: Option<String>,
    /// What the client called them.
    pub client_request_id: Option<String>,
    /// `newest` first, or in the order in which they were `stored`, from now on.
    pub order: Option<Order>,
    /// With `order=stored`: how long to wait for the next one; 30 s at most.
    pub wait: Option<String>,
    /// What of each snapshot is answered.
    pub shape: Option<Shape>,
    /// How it is written.
    pub format: Option<Format>,
    /// Snapshots on the page; 100 if nobody says, 1,000 at most.
    pub limit: Option<String>,
    /// Where it begins: the `next` of the page before.
    pub page: Option<String>,
    /// `label.NAME`: the value of a recorded header.
    #[serde(flatten)]
    pub labels: Labels,
}

/// The names above, for whoever mistypes one.
const PARAMETERS: &str = "since, until, model, target, status, ending, phase, tenant, min_duration, trace_id, \
                          client_request_id, label.NAME, order, wait, shape, format, limit and page";

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// By the time of issue, the newest first.
    #[default]
    Newest,
    /// As they were stored, soon after their end.
    Stored,
}

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer, "order")
    }
}

/// Labels by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName;

        impl<'de> Visitor<'de> for ByName {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = BTreeMap::new();
                while let Some((parameter, value)) = map.next_entry::<String, String>()? {
                    let Some(name) = parameter.strip_prefix(LABEL_PREFIX).filter(|name| !name.is_empty()) else {
                        return Err(A::Error::custom(format!(
                            "unknown parameter `{parameter}`; there are {PARAMETERS}"
                        )));
                    };
                    // Header names have no case.
                    if labels.insert(name.to_ascii_lowercase(), value).is_some() {
                        return Err(A::Error::custom(format!("duplicate parameter `{parameter}`")));
                    }
                }
                Ok(Labels(labels))
            }
        }

        deserializer.deserialize_map(ByName)
    }
}

/// A list that makes sense, and the page of it that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    filter: Filter,
    order: Order,
    limit: usize,
    patience: Patience,
    page: Option<Place>,
    /// What makes the list, so that no other's cursor is taken.
    list: String,
}

/// What is wrong with a query.
#[derive(Debug)]
pub(super) enum Mistake {
    Query(String),
    Page(NoPlace),
}

impl From<String> for Mistake {
    fn from(mistake: String) -> Self {
        Self::Query(mistake)
    }
}

impl From<Mistake> for Problem {
    fn from(mistake: Mistake) -> Self {
        match mistake {
            Mistake::Query(mistake) => Self::malformed_query(mistake),
            Mistake::Page(error) => Self::foreign_page(error.to_string()),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(mistake) => f.write_str(mistake),
            Self::Page(error) => error.fmt(f),
        }
    }
}

impl ListQuery {
    /// What is asked for, as of `now`; or what is wrong with it. `source` tells apart stores whose lists look the same.
    pub(super) fn read(&self, source: &str, now: Moment) -> Result<Listing, Mistake> {
        fn one<T, E: fmt::Display>(
            name: &str,
            text: &Option<String>,
            read: impl FnOnce(&str) -> Result<T, E>,
        ) -> Result<Option<T>, String> {
            let Some(text) = text else { return Ok(None) };
            read(text).map(Some).map_err(|error| format!("{name}={text:?} is {error}"))
        }
        let order = self.order.unwrap_or_default();
        let list = self.list(source);
        let page = self.page.as_deref().map(|page| Place::of_text(page, &list)).transpose();
        let mut filter = Filter {
            since: one("since", &self.since, |text| moment(text, now))?,
            until: one("until", &self.until, |text| moment(text, now))?,
            model: self.model.clone(),
            target: self.target.clone(),
            statuses: one("status", &self.status, |text| text.split(',').map(statuses).collect())?.unwrap_or_default(),
            endings: one("ending", &self.ending, |text| text.split(',').map(ending).collect())?.unwrap_or_default(),
            ended: one("phase", &self.phase, ended)?,
            tenant: one("tenant", &self.tenant, tenant)?,
            labels: self.labels.0.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            min_duration_us: one("min_duration", &self.min_duration, |text| {
                duration(text).map(|duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
            })?,
            trace: one("trace_id", &self.trace_id, trace)?,
            client_request_id: self.client_request_id.clone(),
        };
        let page = page.map_err(Mistake::Page)?;
        if let Some(Place::Below { since, .. }) = page {
            filter.since = Some(since);
        } else if let (Some(since), Some(until)) = (filter.since, filter.until)
            && since >= until
        {
            let mistake = format!("since is {since} and until is {until}, so nothing can lie between: exchange them");
            return Err(Mistake::Query(mistake));
        }
        let patience: Patience = one("wait", &self.wait, str::parse)?.unwrap_or_default();
        if order == Order::Newest && self.wait.is_some() {
            let mistake = "wait goes with order=stored only: a list of what is there has nothing to wait for";
            return Err(Mistake::Query(mistake.to_owned()));
        }
        let limit = one("limit", &self.limit, limit)?.unwrap_or(LIMIT_DEFAULT);
        Ok(Listing { filter, order, limit, patience, page, list })
    }

    /// What it is answered.
    pub(super) fn layout(&self, headers: &HeaderMap) -> Result<Layout, String> {
        Layout::wanted(self.shape, self.format, headers, Format::Json).map_err(|error| error.to_string())
    }

    /// Order and filters without the times, which are in the cursor.
    fn list(&self, source: &str) -> String {
        let filters = [
            &self.model,
            &self.target,
            &self.status,
            &self.ending,
            &self.phase,
            &self.tenant,
            &self.min_duration,
            &self.trace_id,
            &self.client_request_id,
        ];
        format!("{source} {:?} {filters:?} {:?}", self.order.unwrap_or_default(), self.labels.0)
    }
}

fn statuses(text: &str) -> Result<(u16, u16), &'static str> {
    let error = "no status: give one from 100 to 599 or a class such as 5xx, several with commas";
    let (digits, class) = text.strip_suffix("xx").map_or((text, false), |digit| (digit, true));
    let number = digits.parse::<u16>().map_err(|_| error)?;
    match (number, class) {
        (1..=5, true) => Ok((number * 100, number * 100 + 99)),
        (100..=599, false) => Ok((number, number)),
        _ => Err(error),
    }
}

/// As documents show it; whoever types it may leave the `t_` out.
fn tenant(text: &str) -> Result<String, &'static str> {
    let digits = text.strip_prefix("t_").unwrap_or(text);
    let is_one = digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let tenant = is_one.then(|| format!("t_{}", digits.to_ascii_lowercase()));
    tenant.ok_or("no tenant: give t_ and 8 hex digits, as documents show it")
}

fn ending(name: &str) -> Result<Ending, String> {
    Ending::from_name(name).ok_or_else(|| format!("no ending: there are {}", Ending::ALL.map(Ending::name).join(", ")))
}

fn ended(phase: &str) -> Result<bool, &'static str> {
    match phase {
        "complete" => Ok(true),
        "in_flight" => Ok(false),
        _ => Err("no phase: there are in_flight and complete"),
    }
}

fn trace(text: &str) -> Result<TraceId, &'static str> {
    let key = Key::parse(text).ok();
    key.and_then(|key| key.trace()).ok_or("no trace ID: give its 32 hex digits; leading zeros may be missing")
}

fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| format!("no limit: give a number from 1 to {LIMIT_MAX}"))
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) found: Vec<Found>,
    pub(super) next: Option<Place>,
    pub(super) complete: bool,
}

impl Listing {
    /// Where the page begins.
    fn place(&self, reader: Option<&Reader>) -> Result<Place, ReadError> {
        Ok(match (self.page, self.order) {
            (Some(page), _) => page,
            (None, Order::Newest) => {
                Place::Below { id: SnapshotId::from_u128(u128::MAX), since: self.filter.since.unwrap_or_default() }
            }
            (None, Order::Stored) => Place::After { seq: reader.map_or(Ok(0), Reader::last_seq)? },
        })
    }

    /// Reads the page that begins at a place. Blocks.
    fn read(&self, ledger: Option<&Ledger>, reader: Option<&Reader>, place: Place) -> Result<Page, ReadError> {
        match place {
            Place::Below { id, since } => self.newest(ledger, reader, id, since),
            Place::After { seq } => {
                let Some(reader) = reader else {
                    return Ok(Page { found: Vec::new(), next: Some(place), complete: true });
                };
                let page = reader.stored_after(&self.filter, seq, self.limit)?;
                let found = page.records.into_iter().map(|record| Found { record, stored: true }).collect();
                Ok(Page { found, next: page.next.map(|seq| Place::After { seq }), complete: page.complete })
            }
        }
    }

    /// The ledger first: what leaves it in between is then in the store.
    fn newest(
        &self,
        ledger: Option<&Ledger>,
        reader: Option<&Reader>,
        below: SnapshotId,
        since: Moment,
    ) -> Result<Page, ReadError> {
        let wanted = |record: &Record| record.id() < below && self.filter.accepts(record);
        let fresh = ledger.map_or_else(Vec::new, |ledger| ledger.search(self.limit + 1, wanted));
        let stored = reader.map(|reader| reader.newest(&self.filter, below, self.limit)).transpose()?;
        let (stored, mut next, mut complete) =
            stored.map_or((Vec::new(), None, true), |page| (page.records, page.next, page.complete));
        // What the store was not asked about yet belongs to a later page.
        let fresh = fresh.into_iter().filter(|record| next.is_none_or(|next| record.id() >= next));
        let fresh = fresh.map(|record| Found { record, stored: false });
        let stored = stored.into_iter().map(|record| Found { record, stored: true });
        let by_id: BTreeMap<_, _> = fresh.chain(stored).map(|found| (Reverse(found.record.id()), found)).collect();
        let more = by_id.len() > self.limit;
        let found: Vec<_> = by_id.into_values().take(self.limit).collect();
        if more {
            next = found.last().map(|found| found.record.id());
        }
        complete |= found.len() == self.limit;
        Ok(Page { found, next: next.map(|id| Place::Below { id, since }), complete })
    }
}

/// A page as it is sent.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) body: Vec<u8>,
    pub(super) found: usize,
    pub(super) next: Option<String>,
    pub(super) complete: bool,
}

impl Listing {
    /// Reads and writes the page. Blocks.
    pub(super) fn write(
        &self,
        ledger: Option<&Ledger>,
        reader: Option<&Reader>,
        layout: Layout,
    ) -> Result<Written, ReadError> {
        let Page { found, next, complete } = self.read(ledger, reader, self.place(reader)?)?;
        let next = next.map(|place| place.to_text(&self.list));
        let (mut sheet, mut body) = (Sheet::new(layout, &[]), Vec::new());
        let json = layout.format == Format::Json;
        if json {
            body.extend_from_slice(br#"{"snapshots":"#);
        }
        sheet.open(&mut body);
        found.iter().for_each(|found| sheet.snapshot(&[], found, &mut body));
        sheet.close(&mut body);
        if json {
            let next = serde_json::json!(next);
            body.extend_from_slice(format!(r#","complete":{complete},"next":{next}}}"#).as_bytes());
        }
        Ok(Written { body, found: found.len(), next, complete })
    }

    /// The same list from a later place on.
    pub(super) fn at(&self, page: &str) -> Option<Self> {
        let page = Place::of_text(page, &self.list).ok()?;
        Some(Self { page: Some(page), ..self.clone() })
    }
}

/// `GET /v1/snapshots`.
pub(super) async fn list(
    State(lookup): State<Arc<Lookup>>,
    query: Result<Query<ListQuery>, QueryRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    match answer(lookup, query, &uri, &headers).await {
        Ok(response) => response,
        Err(problem) => problem.answer(Form::wanted(&headers)),
    }
}

async fn answer(
    lookup: Arc<Lookup>,
    query: Result<Query<ListQuery>, QueryRejection>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|rejection| Problem::unreadable_query(&rejection))?;
    let source = lookup.state.run.tag.to_string();
    let listing = query.read(&source, lookup.state.clock.now())?;
    let layout = query.layout(headers).map_err(Problem::malformed_query)?;
    if listing.order == Order::Stored && lookup.state.reader.is_none() {
        return Err(Problem::malformed_query(
            "order=stored has nothing to list while the store is off: set store.enabled = true",
        ));
    }
    let written = follow(&lookup, listing, layout).await.map_err(failed)?;
    let link = written.next.as_ref().and_then(|next| link_to(uri, next));
    let mut response = laid_out(layout, written.complete, written.body.into());
    response.headers_mut().extend(link.map(|link| (header::LINK, link)));
    Ok(response)
}

/// The page; if it is empty and somebody waits, the first one that is not.
async fn follow(lookup: &Arc<Lookup>, mut listing: Listing, layout: Layout) -> Result<Written, LookupError> {
    let deadline = listing.patience.deadline();
    let mut waiting = None;
    loop {
        let (state, asked) = (Arc::clone(lookup), listing.clone());
        let read = move |reader: Option<&Reader>| asked.write(Some(&state.state.ledger), reader, layout);
        let written = in_turn(lookup, TURN_WAIT_MAX, read).await?;
        let Some(deadline) = deadline.filter(|deadline| written.found == 0 && Instant::now() < *deadline) else {
            return Ok(written);
        };
        if waiting.is_none() {
            let permit = Arc::clone(&lookup.waits).try_acquire_owned();
            waiting = Some(permit.map_err(|_| LookupError::Busy("wait for a snapshot"))?);
        }
        if let Some(next) = written.next.as_deref().and_then(|next| listing.at(next)) {
            listing = next;
        }
        if written.complete {
            sleep(FOLLOW_PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }
}

/// Where the next page is, as RFC 8288 has it.
fn link_to(uri: &Uri, next: &str) -> Option<HeaderValue> {
    let parameters = uri.query().unwrap_or_default().split('&');
    let others: String = parameters
        .filter(|parameter| !parameter.is_empty() && !parameter.starts_with("page="))
        .map(|parameter| format!("{parameter}&"))
        .collect();
    HeaderValue::from_str(&format!("<{}?{others}page={next}>; rel=\"next\"", uri.path())).ok()
}

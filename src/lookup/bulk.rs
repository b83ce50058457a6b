//! `POST /v1/snapshots/resolve`: many keys, each with an answer of its own, in their order.
//!
//! The answer is a stream that is made as the client reads it, some keys at a time: its memory does not grow with the number
//! of keys, other lookups have their turn in between, and a client that leaves stops the work.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Lookup;
use super::accept::Form;
use super::key::Key;
use super::problem::Problem;
use super::resolve::{LookupError, Matches, in_turn, search_all};
use super::routes::{LookupQuery, failed, laid_out, not_around};
use super::shape::{Format, Shape, Sheet};
use super::wait::until_complete;
use crate::store::Reader;

/// Keys in one request at most.
pub(super) const KEYS_MAX: usize = 10_000;

/// Keys that are looked up in one turn: a few milliseconds, mostly.
const KEYS_PER_TURN: usize = 64;

/// How long an answer that has begun waits for its next turn before it is broken off.
const NEXT_TURN_WAIT_MAX: Duration = Duration::from_secs(30);

/// The columns that a row has before those of its shape.
const LEAD: [&str; 3] = ["key", "state", "reason"];

/// The state of a key that has an answer; other states are those of problems.
const FOUND: &str = "found";

/// What became of one key.
type Answer = Result<Matches, Problem>;

/// One key as it was given, and as it was read.
struct Asked {
    /// As JSON.
    text: String,
    key: Result<Key, Problem>,
}

/// `POST /v1/snapshots/resolve`.
pub(super) async fn resolve_all(
    State(lookup): State<Arc<Lookup>>,
    query: Result<Query<LookupQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match begin(lookup, query, &headers, &body) {
        Ok(response) => response,
        Err(problem) => problem.answer(Form::wanted(&headers)),
    }
}

fn begin(
    lookup: Arc<Lookup>,
    query: Result<Query<LookupQuery>, QueryRejection>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Box<Problem>> {
    let Query(query) = query.map_err(|rejection| Problem::unreadable_query(&rejection))?;
    let (patience, layout) = query.read(headers, Format::Ndjson).map_err(Problem::malformed_query)?;
    if query.around.is_some() {
        return Err(not_around().into());
    }
    let permit = Arc::clone(&lookup.bulks).try_acquire_owned();
    let permit = permit.map_err(|_| failed(LookupError::Busy("of many keys")))?;
    let asked = read(body, headers)?.into();
    let deadline = patience.deadline();
    let work = Work { lookup, asked, next: 0, deadline, sheet: Sheet::new(layout, &LEAD), _permit: permit };
    let lines = stream::try_unfold(Some(work), |work| async {
        let Some(work) = work else { return Ok(None) };
        work.step().await.map(Some).inspect_err(|error| tracing::warn!(%error, "an answer to many keys was broken off"))
    });
    Ok(laid_out(layout, true, Body::from_stream(lines)))
}

/// The keys of a body: a JSON array, or one a line, as a JSON text or as it is. Blank lines do not count. A body that is
/// said to be JSON is an array; else its beginning tells, for what curl and browsers say by themselves means nothing.
fn read(body: &[u8], headers: &HeaderMap) -> Result<Vec<Asked>, Box<Problem>> {
    let malformed = |what: fmt::Arguments<'_>| {
        Box::new(Problem::malformed_body(format!("the body {what}: send a JSON array of texts, or one key a line")))
    };
    let body = std::str::from_utf8(body).map_err(|error| malformed(format_args!("is no UTF-8 text ({error})")))?;
    let body = body.trim();
    if body.is_empty() {
        return Err(malformed(format_args!("is empty")));
    }
    let in_array = body.starts_with('[') || is_json(headers);
    let elements: Vec<&str> = if in_array {
        let array: Vec<&RawValue> =
            serde_json::from_str(body).map_err(|error| malformed(format_args!("is no JSON array ({error})")))?;
        array.into_iter().map(RawValue::get).collect()
    } else {
        body.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
    };
    if elements.len() > KEYS_MAX {
        let detail = format!("there are {} keys, and {KEYS_MAX} at most: ask for fewer at a time", elements.len());
        return Err(Box::new(Problem::too_large(detail)));
    }
    Ok(elements.into_iter().map(|element| asked(element, in_array)).collect())
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// One element of a body. In an array it has to be a JSON text; on a line what begins like JSON has to be one, too.
fn asked(element: &str, in_array: bool) -> Asked {
    let json = in_array || element.starts_with(['"', '{', '[']);
    let text = if json { serde_json::from_str(element).ok() } else { Some(element.to_owned()) };
    match text {
        Some(text) => Asked {
            text: serde_json::to_string(&text).expect("memory does not refuse a write"),
            key: Key::parse(&text).map_err(Problem::malformed_key),
        },
        // An array's element is JSON of another kind, and is shown as it came; a line may be anything.
        None => Asked {
            text: if in_array { element.to_owned() } else { serde_json::json!(element).to_string() },
            key: Err(Problem::malformed_body("the key is no text: give it as \"KEY\"")),
        },
    }
}

/// The rest of an answer.
struct Work {
    lookup: Arc<Lookup>,
    asked: Arc<[Asked]>,
    next: usize,
    deadline: Option<Instant>,
    sheet: Sheet,
    _permit: OwnedSemaphorePermit,
}

impl Work {
    /// Answers some keys; what is left is `None` after the last.
    async fn step(mut self) -> Result<(Bytes, Option<Self>), LookupError> {
        let (from, to) = (self.next, self.asked.len().min(self.next + KEYS_PER_TURN));
        let (lookup, asked) = (Arc::clone(&self.lookup), Arc::clone(&self.asked));
        let answered = move |reader: Option<&Reader>| Ok(answers(&lookup, reader, &asked[from..to]));
        let mut answers = in_turn(&self.lookup, NEXT_TURN_WAIT_MAX, answered).await?;
        let mut found: Vec<_> = answers.iter_mut().flatten().flat_map(Matches::found_mut).collect();
        until_complete(&self.lookup, &mut found, self.deadline).await?;
        // Writing takes as long as reading: it is done on a thread of its own, too.
        let written = move || {
            let lines = self.write(&answers);
            let left = (self.next < self.asked.len()).then_some(self);
            (lines, left)
        };
        tokio::task::spawn_blocking(written).await.map_err(LookupError::Stopped)
    }

    fn write(&mut self, answers: &[Answer]) -> Bytes {
        let mut out = Vec::new();
        if self.next == 0 {
            self.sheet.open(&mut out);
        }
        for answer in answers {
            write_answer(&mut self.sheet, &self.asked[self.next].text, answer, &mut out);
            self.next += 1;
        }
        if self.next == self.asked.len() {
            self.sheet.close(&mut out);
        }
        out.into()
    }
}

/// Answers to the first keys; at least one, and not all of them if much is found.
fn answers(lookup: &Lookup, reader: Option<&Reader>, asked: &[Asked]) -> Vec<Answer> {
    let keys: Vec<_> = asked.iter().filter_map(|asked| asked.key.as_ref().ok()).collect();
    let mut found = search_all(Some(&lookup.state.ledger), reader, &keys, lookup.state.clock.now()).into_iter();
    let answer = |asked: &Asked| {
        let key = match &asked.key {
            Ok(key) => key,
            Err(problem) => return Some(Err(problem.clone())),
        };
        Some(match found.next()? {
            Ok(answer) => answer.map_err(|absence| Problem::absent(&absence, key, lookup.state.run.tag)),
            Err(error) => Err(failed(LookupError::Store(error))),
        })
    };
    asked.iter().map_while(answer).collect()
}

/// A line with all documents of a key, or a row for each, or one that says why there is none.
fn write_answer(sheet: &mut Sheet, key: &str, answer: &Answer, out: &mut Vec<u8>) {
    let json = |value: &Option<&str>| serde_json::json!(value).to_string();
    let (state, reason) = match answer {
        Ok(_) => (FOUND, None),
        Err(problem) => (&*problem.state, problem.reason.as_deref()),
    };
    let lead = [key, &json(&Some(state)), &json(&reason)];
    if sheet.layout().shape != Shape::Document {
        return match answer {
            Ok(matches) => matches.found().iter().for_each(|found| sheet.snapshot(&lead, found, out)),
            Err(_) => sheet.row(&lead, out),
        };
    }
    sheet.line(out, |out| {
        for (name, value) in LEAD.iter().zip(lead) {
            out.extend_from_slice(if *name == LEAD[0] { b"{\"" } else { b",\"" });
            out.extend_from_slice(format!("{name}\":{value}").as_bytes());
        }
        let (found, complete) = answer.as_ref().map_or((&[][..], true), |it| (it.found(), it.complete()));
        out.extend_from_slice(format!(",\"complete\":{complete},\"matches\":[").as_bytes());
        for (place, found) in found.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            found.write(out);
        }
        let problem = answer.as_ref().err();
        out.extend_from_slice(format!("],\"problem\":{}}}", serde_json::json!(problem)).as_bytes());
    });
}

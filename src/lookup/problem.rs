//! How to say that there is no answer: RFC 9457 problems, every one of which says what to do.
//!
//! All problems of the interface are made here, so that this file is the list of them. Their `type` is
//! `urn:snapgate:problem:` and the `state`, which is what programs branch on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;

use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::accept::Form;
use super::auth::{BODY_BYTES_MAX, Refusal};
use super::key::{Key, KeyError};
use super::render;
use super::resolve::{Absence, LookupError};
use crate::ledger::DropReason;
use crate::snapshot::{InstanceTag, Moment, SnapshotId};

/// The start of every problem's `type`.
const TYPE_PREFIX: &str = "urn:snapgate:problem:";

/// The reason of a list's cursor that is none of that list.
pub(super) const PAGE: &str = "page";

/// Where many keys are resolved at once.
const RESOLVE_PATH: &str = "/v1/snapshots/resolve";

/// The reason of whoever showed no token and needs one.
pub(super) const NO_TOKEN: &str = "no_token";

/// One problem, as it is sent and as a client reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind it is, as a name that never changes.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// The kind in a few words.
    pub title: Cow<'static, str>,
    /// The status it is answered with.
    pub status: u16,
    /// This case of it, and what to do.
    pub detail: String,
    /// What became of what was asked for: `unknown`, `expired`, …; the last part of `kind`.
    pub state: Cow<'static, str>,
    /// The snapshot ID that was asked for, if it was one.
    pub id: Option<String>,
    /// Why, by name, if there is more than one reason.
    pub reason: Option<Cow<'static, str>>,
    /// Times, counts and tags of the case.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

impl Problem {
    fn new(state: &'static str, status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{state}").into(),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            state: state.into(),
            id: None,
            reason: None,
            more: BTreeMap::new(),
        }
    }

    fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason.into());
        self
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    fn at(self, name: &str, moment: Moment) -> Self {
        self.with(name, moment.to_string())
    }

    /// There is no record for a key. `ours` is the tag of the instance whose store was asked.
    pub fn absent(absence: &Absence, key: &Key, ours: InstanceTag) -> Self {
        let problem = Self::of_absence(absence, key, ours);
        let Some(id) = key.id() else { return problem };
        // Nobody has typed the ID that zeros before these digits would make.
        if let (Absence::Unknown | Absence::NotInFiles | Absence::IssuedElsewhere, Some(digits)) =
            (absence, key.digits_of_short_id())
        {
            return Self::too_short(digits).with("key", key.text());
        }
        // Only a plausible ID tells a time; for the others it would be an invention.
        let problem = match absence {
            Absence::Unknown | Absence::NotKept | Absence::NotInFiles => problem,
            _ => problem.at("issued_at", issued(key)),
        };
        Self { id: Some(id.to_string()), ..problem }
    }

    fn of_absence(absence: &Absence, key: &Key, ours: InstanceTag) -> Self {
        let issued = issued(key);
        match *absence {
            Absence::Unknown => Self::unknown(key),
            Absence::NotKept => Self::new(
                "unknown",
                StatusCode::NOT_FOUND,
                "No such request",
                "no request in flight has this key, and finished ones are not kept, because the store is off: set \
                 store.enabled = true to look up finished requests",
            )
            .because("store_off"),
            Absence::NotInFiles => Self::new(
                "unknown",
                StatusCode::NOT_FOUND,
                "Not in the files",
                "the request is in flight, its record is not committed yet, or the ID was never issued: a gateway is \
                 running on these files, ask it (without --data-dir)",
            )
            .because("not_in_files"),
            Absence::IssuedElsewhere => {
                let tag = key.id().map_or(ours, |id| id.instance_tag());
                let detail = format!(
                    "the ID bears the instance tag {tag}, and this gateway's is {ours}: ask the gateway that has that \
                     tag. If it is a trace ID or a client's request ID, no request that is kept here bears it"
                );
                Self::new("issued_elsewhere", StatusCode::NOT_FOUND, "Issued by another instance", detail)
                    .with("instance_tag", tag.to_string())
                    .with("our_instance_tag", ours.to_string())
            }
            Absence::Expired { horizon } => {
                let detail = format!(
                    "the ID is of {issued}, and everything issued before {horizon} has been deleted: raise \
                     store.retention_age or store.retention_bytes to keep snapshots longer"
                );
                Self::new("expired", StatusCode::GONE, "Deleted by retention", detail)
                    .because("retention")
                    .at("horizon", horizon)
            }
            Absence::Erased => {
                let detail = "somebody asked for its deletion, and nothing of it is kept here but the ID: the table \
                              erasures of the store says who asked and when";
                Self::new("deleted", StatusCode::GONE, "Deleted on request", detail).because("on_request")
            }
            Absence::Dropped { reason, counted } => Self::dropped(reason, counted),
            Absence::Lost { run_started, last_heartbeat } => {
                let detail = format!(
                    "the process that issued the ID, started {run_started}, was last alive at {last_heartbeat} and \
                     ended before it could store what it knew: look for a crash, a kill or a power cut at that time"
                );
                Self::new("lost", StatusCode::GONE, "Lost with its process", detail)
                    .because("unclean_end")
                    .at("run_started", run_started)
                    .at("last_heartbeat", last_heartbeat)
            }
        }
    }

    fn too_short(digits: usize) -> Self {
        let missing = match 32 - digits {
            1 => "one is missing".to_owned(),
            some => format!("{some} are missing"),
        };
        let detail = format!("the key has {digits} hex digits, an ID has 32: {missing}; copy it whole");
        Self::new("unknown", StatusCode::NOT_FOUND, "No such request", detail)
    }

    fn unknown(key: &Key) -> Self {
        let detail = match key.id() {
            Some(_) => {
                "this gateway never issued the ID, and no request that is kept here bears it as a trace ID or a \
                 client's request ID: check that it was copied whole, and ask the gateway whose answer carried it"
            }
            None => {
                "no request that is kept here bears this client request ID: check that it was copied whole, or look up \
                 the x-snapshot-id of the answer, which is never given twice"
            }
        };
        Self::new("unknown", StatusCode::NOT_FOUND, "No such request", detail)
    }

    fn dropped(reason: DropReason, counted: Option<(Moment, u64)>) -> Self {
        let why = match reason {
            DropReason::QueueFull => {
                "the queue to the store was full: give the gateway more CPU or a faster disk, or raise \
                 pipeline.queue_records and pipeline.queue_bytes"
            }
            DropReason::StoreFailed => {
                "the store refused it: make space on the disk of the data directory, and see the gateway's log for the \
                 error"
            }
            DropReason::Shutdown => {
                "the gateway stopped before it was stored: raise timeouts.shutdown_grace so that it can finish"
            }
            DropReason::RefusedFlood => {
                "no target was chosen for it, as for so many others that only some are recorded: see who sends requests \
                 that are refused, or raise pipeline.refused_per_second"
            }
        };
        // Of a count it is not known which of the second's drops this was, if there were some for other reasons, too.
        let how = match counted {
            None => "the request ended, but its snapshot was dropped,".to_owned(),
            Some((second, count)) => format!(
                "the request ended, but its snapshot was dropped, as some of the second from {second} were, {count} of them"
            ),
        };
        let problem =
            Self::new("dropped", StatusCode::GONE, "Dropped before it was stored", format!("{how} because {why}"))
                .because(reason.name());
        match counted {
            None => problem,
            Some((second, count)) => problem.at("second", second).with("count", count),
        }
    }

    /// The key cannot be one.
    pub fn malformed_key(error: KeyError) -> Self {
        Self::new("malformed", StatusCode::BAD_REQUEST, "Not a key", error.to_string()).because("key")
    }

    /// The path is no text.
    pub(super) fn malformed_path(error: &str) -> Self {
        let detail = format!("the path cannot be read ({error}): percent-encode the key as UTF-8");
        Self::new("malformed", StatusCode::BAD_REQUEST, "Not a key", detail).because("key")
    }

    /// A parameter makes no sense.
    pub(super) fn malformed_query(detail: impl Into<String>) -> Self {
        Self::new("malformed", StatusCode::BAD_REQUEST, "Not a query", detail).because("query")
    }

    /// The parameters cannot be read: an unknown one, one that is there twice, or a word that means nothing.
    pub(super) fn unreadable_query(rejection: &QueryRejection) -> Self {
        Self::malformed_query(said_of_query(rejection))
    }

    /// A list's cursor is none of that list.
    pub(super) fn foreign_page(detail: impl Into<String>) -> Self {
        Self::malformed_query(detail).because(PAGE)
    }

    /// The body makes no sense.
    pub(super) fn malformed_body(detail: impl Into<String>) -> Self {
        Self::new("malformed", StatusCode::BAD_REQUEST, "Not a list of keys", detail).because("body")
    }

    /// The body names more keys than one request may.
    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new("too_large", StatusCode::PAYLOAD_TOO_LARGE, "Too many keys", detail).because("limit")
    }

    /// What whoever uses the command line is to do about it, who sets no headers.
    pub fn advice(&self) -> &str {
        match self.reason.as_deref() {
            Some(NO_TOKEN) => "the gateway asks for one of its [[lookup.tokens]]: set SNAPGATE_TOKEN or --token",
            _ => &self.detail,
        }
    }

    /// A lookup that was not even looked at.
    pub(super) fn refused(refusal: &Refusal) -> Self {
        let problem = match refusal {
            Refusal::NotConfigured => Self::new(
                "forbidden",
                StatusCode::FORBIDDEN,
                "Lookups are not open",
                "this listener can be reached from other machines, and no token is configured: configure at least one \
                 admin token, or bind the admin listener to 127.0.0.1; a caller's own requests can be looked up with \
                 the API key that they bore, if lookup.own_records is on",
            ),
            Refusal::ForeignHost(host) => Self::new(
                "forbidden",
                StatusCode::FORBIDDEN,
                "Lookups are not open to names",
                format!(
                    "the request was sent to {host:?}, and without tokens only requests to an IP address or localhost \
                     are answered, so that no web page can pose as this machine: use the address, or configure an \
                     admin token"
                ),
            ),
            Refusal::NoToken => Self::new(
                "unauthorized",
                StatusCode::UNAUTHORIZED,
                "A token is needed",
                "send the header Authorization: Bearer TOKEN with one of the configured admin tokens",
            ),
            Refusal::WrongToken => Self::new(
                "unauthorized",
                StatusCode::UNAUTHORIZED,
                "The token is not known",
                "the bearer token is none of the configured admin tokens: check that it was copied whole",
            ),
            Refusal::NobodyMay(scope) => Self::new(
                "forbidden",
                StatusCode::FORBIDDEN,
                "No token allows this",
                format!("no [[lookup.tokens]] has scope {}: configure one that has, and present it", scope.name()),
            ),
            Refusal::NotAllowed(scope) => Self::new(
                "forbidden",
                StatusCode::FORBIDDEN,
                "The token does not allow this",
                format!(
                    "this takes an admin token whose scope has {:?}, and the one presented, if any, has not: use \
                     another token, or widen its scope in lookup.tokens",
                    scope.name()
                ),
            ),
            Refusal::TooOften(pause) => Self::new(
                "rate_limited",
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests",
                "more was asked, or more in vain, than [lookup] of the configuration allows one caller: slow down",
            )
            .with("retry_after_ms", pause.as_millis().max(1) as u64),
            Refusal::TooLarge => Self::new(
                "too_large",
                StatusCode::PAYLOAD_TOO_LARGE,
                "The body is too large",
                format!("more than {BODY_BYTES_MAX} bytes are not read: ask in several requests"),
            ),
            Refusal::BodyBroken => Self::new(
                "malformed",
                StatusCode::BAD_REQUEST,
                "The body did not come",
                "the request's body did not come whole and in time: send it again",
            ),
        };
        problem.because(refusal.reason())
    }

    /// Nothing to delete, because nothing is kept.
    pub(super) fn nothing_kept() -> Self {
        let detail = "nothing is kept that could be deleted, because the store is off: search a JSON log by hand";
        Self::new("unknown", StatusCode::NOT_FOUND, "Nothing to delete", detail).because("store_off")
    }

    /// Nothing to delete, because there is nothing.
    pub(super) fn nothing_to_erase(subject: &str) -> Self {
        let detail =
            format!("nothing is kept here of {subject:?}: check that it was copied whole, and ask every gateway");
        Self::new("unknown", StatusCode::NOT_FOUND, "Nothing to delete", detail)
    }

    /// Eight digits that are several tenants'.
    pub(super) fn ambiguous_tenant(tenants: Vec<String>) -> Self {
        let detail = "several tenants are shown with these eight digits: give all 64 digits of the one that is meant";
        Self::new("ambiguous", StatusCode::CONFLICT, "Which tenant?", detail).with("tenants", tenants)
    }

    /// As many deletions as can wait are waiting.
    pub(super) fn erasures_wait() -> Self {
        let detail = "as many deletions wait as can: ask again when they are done";
        Self::new("busy", StatusCode::SERVICE_UNAVAILABLE, "Too many deletions", detail).because("limit")
    }

    /// As much is being kept out of the store as can be.
    pub(super) fn too_many_barred() -> Self {
        let detail = "nothing was deleted: after each of so many deletions as there can be, requests that were on their way \
                      are still being kept out of the store, those of a tenant for an hour. Ask again later";
        Self::new("busy", StatusCode::SERVICE_UNAVAILABLE, "Too many deletions", detail).because("limit")
    }

    /// A deletion that was not carried out, or not to its end.
    pub(super) fn not_erased(why: &str) -> Self {
        let detail = format!("the deletion did not come to its end ({why}): ask for it again, which does no harm");
        Self::new("failed", StatusCode::INTERNAL_SERVER_ERROR, "Not deleted", detail).because("store")
    }

    /// To a caller who may see its own records alone. The same for every ID it may not see, whatever there is.
    pub(super) fn not_your_own(id: Option<SnapshotId>) -> Self {
        let detail = "it is none of the configured tokens, and not the API key of a request that has this ID and is kept \
                      here: check that both were copied whole";
        let problem = Self::new("unknown", StatusCode::NOT_FOUND, "Not found with this token", detail);
        Self { id: id.map(|id| id.to_string()), ..problem }
    }

    /// A parameter that is not for callers of their own records.
    pub(super) fn for_operators(what: &str) -> Self {
        let detail = format!("{what} is for operators: leave it out, or present an admin token");
        Self::new("forbidden", StatusCode::FORBIDDEN, "For operators", detail).because("operators_only")
    }

    /// A lookup that could not be carried out.
    pub(super) fn failed(error: &LookupError) -> Self {
        let detail = error.to_string();
        match error {
            LookupError::Busy(_) => {
                Self::new("busy", StatusCode::SERVICE_UNAVAILABLE, "Too many lookups", detail).because("limit")
            }
            LookupError::Store(_) | LookupError::Stopped(_) => {
                Self::new("failed", StatusCode::INTERNAL_SERVER_ERROR, "The lookup failed", detail).because("store")
            }
        }
    }

    /// Nothing is at the path.
    pub(super) fn no_such_path(path: &str) -> Self {
        let detail = format!(
            "nothing is at {path:?}; there are /v1/snapshots, /v1/snapshots/KEY, /v1/snapshots/resolve, /v1/fleet, \
             /healthz, /readyz, /metrics and /openapi.json, which describes them"
        );
        Self::new("no_such_path", StatusCode::NOT_FOUND, "No such path", detail)
    }

    /// The path is not for this method.
    pub(super) fn method_not_allowed(method: &str, path: &str) -> Self {
        let detail = match path {
            RESOLVE_PATH => {
                format!("{method} means nothing here: POST the keys here, a JSON array of texts or one a line")
            }
            _ => format!("{method} means nothing here: use a method that the header allow names"),
        };
        Self::new("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", detail)
    }

    /// The problem as an answer.
    pub(super) fn answer(&self, form: Form) -> Response {
        let status = StatusCode::from_u16(self.status).expect("every problem is made with a status of the http crate");
        let (kind, body) = match form {
            // With a line's end, which a terminal wants.
            Form::Json => ("application/problem+json", [&to_json(self)[..], b"\n"].concat()),
            Form::Text => ("text/plain; charset=utf-8", render::problem(self, render::WIDTH_MAX).into_bytes()),
        };
        let mut response = (status, [(header::CONTENT_TYPE, kind)], body).into_response();
        match status {
            StatusCode::UNAUTHORIZED => {
                let challenge = HeaderValue::from_static("Bearer realm=\"snapgate\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                let pause_ms = self.more.get("retry_after_ms").and_then(Value::as_u64).unwrap_or(1);
                response.headers_mut().insert(header::RETRY_AFTER, pause_ms.div_ceil(1000).into());
            }
            _ => {}
        }
        response
    }
}

/// What is wrong with a query, in words of whoever asks: the first cause, without what its reading went through.
pub(super) fn said_of_query(rejection: &QueryRejection) -> String {
    let first: &(dyn Error + 'static) = rejection;
    let cause = std::iter::successors(Some(first), |&error| error.source()).last().unwrap_or(first).to_string();
    // What comes before it is the parameter's name, which it says itself.
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    let cause = match cause.split_once(": ") {
        Some((name, rest)) if is_name(name) => rest.to_owned(),
        _ => cause,
    };
    let words = [(" field `", " parameter `"), (", expected one of ", "; there are "), (", expected ", "; there is ")];
    words.iter().fold(cause, |text, (from, to)| text.replacen(from, to, 1))
}

fn to_json(problem: &Problem) -> Vec<u8> {
    serde_json::to_vec(problem).expect("a problem has only text keys, and memory does not refuse a write")
}

/// When an ID says that it was issued.
fn issued(key: &Key) -> Moment {
    Moment(key.id().map_or(0, |id| id.unix_ms() * 1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "019ab3c2d1e0a7f11122334455667788";

    #[test]
    fn every_absence_has_its_status_state_reason_and_times() {
        let (then, later) = (Moment(1_795_435_995_123_456), Moment(1_795_435_999_000_000));
        let dropped = |reason| Absence::Dropped { reason, counted: None };
        for (absence, status, state, reason, members) in [
            (Absence::Unknown, 404, "unknown", None, json!({})),
            (Absence::NotKept, 404, "unknown", Some("store_off"), json!({})),
            (Absence::NotInFiles, 404, "unknown", Some("not_in_files"), json!({})),
            (
                Absence::IssuedElsewhere,
                404,
                "issued_elsewhere",
                None,
                json!({
                "instance_tag": "a7f1", "our_instance_tag": "0b0b"}),
            ),
            (
                Absence::Expired { horizon: later },
                410,
                "expired",
                Some("retention"),
                json!({
                "horizon": "2026-11-23T12:13:19.000000Z"}),
            ),
            (Absence::Erased, 410, "deleted", Some("on_request"), json!({})),
            (dropped(DropReason::QueueFull), 410, "dropped", Some("queue_full"), json!({})),
            (dropped(DropReason::StoreFailed), 410, "dropped", Some("store_failed"), json!({})),
            (dropped(DropReason::Shutdown), 410, "dropped", Some("shutdown"), json!({})),
            (dropped(DropReason::RefusedFlood), 410, "dropped", Some("refused_flood"), json!({})),
            (
                Absence::Dropped { reason: DropReason::QueueFull, counted: Some((then, 12)) },
                410,
                "dropped",
                Some("queue_full"),
                json!({"second": "2026-11-23T12:13:15.123456Z", "count": 12}),
            ),
            (
                Absence::Lost { run_started: then, last_heartbeat: later },
                410,
                "lost",
                Some("unclean_end"),
                json!({
                "run_started": "2026-11-23T12:13:15.123456Z", "last_heartbeat": "2026-11-23T12:13:19.000000Z"}),
            ),
        ] {
            let problem = Problem::absent(&absence, &Key::parse(ID).unwrap(), InstanceTag(0x0b0b));
            let sent: Value = serde_json::from_slice(&to_json(&problem)).unwrap();
            assert_eq!(sent["status"], status, "{absence:?}");
            assert_eq!((&sent["state"], &sent["id"]), (&json!(state), &json!(ID)), "{absence:?}");
            assert_eq!(sent["type"], format!("urn:snapgate:problem:{state}"));
            assert_eq!(sent["reason"], json!(reason), "{absence:?}");
            assert_eq!(sent.get("issued_at").is_some(), state != "unknown", "{absence:?}");
            for (name, value) in members.as_object().unwrap() {
                assert_eq!(&sent[name], value, "{absence:?}");
            }
            let detail = sent["detail"].as_str().unwrap();
            assert!(detail.contains(": ") && !detail.ends_with('.'), "it says what to do: {detail}");
            assert_eq!(serde_json::from_value::<Problem>(sent).unwrap(), problem, "a client reads what was sent");
        }
    }

    #[test]
    fn digits_that_are_missing_are_counted_and_no_id_is_made_up() {
        for (key, said) in [(&ID[..31], "31 hex digits, an ID has 32: one is missing"), (&ID[..30], "2 are missing")] {
            for absence in [Absence::Unknown, Absence::IssuedElsewhere] {
                let problem = Problem::absent(&absence, &Key::parse(key).unwrap(), InstanceTag(1));
                assert!(problem.detail.contains(said), "{}", problem.detail);
                assert_eq!((problem.status, &*problem.state, &problem.id), (404, "unknown", &None));
                assert_eq!(problem.more["key"], key, "as it was given");
            }
        }
    }
}

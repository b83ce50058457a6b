//! The first stage: give the request its name, and read from its head what the record wants.

use std::sync::Arc;
use std::time::Instant;

use http::header::USER_AGENT;
use http::{HeaderMap, HeaderName, HeaderValue, request};

use crate::clock::Clock;
use crate::snapshot::{InstanceTag, Moment, Operation, Request, SnapshotId, TraceContext};
use crate::tenant::{Peer, Tenants};

/// A client's `x-request-id` is kept only up to here: it is searched for, logged and echoed.
const CLIENT_REQUEST_ID_BYTES_MAX: usize = 128;

/// Longer user agents and labels are cut here.
const TEXT_BYTES_MAX: usize = 128;

/// Longer methods are cut here in the record; HTTP allows any word.
const METHOD_BYTES_MAX: usize = 32;

/// Longer paths are cut here in the record; the request itself goes out with its path whole.
const PATH_BYTES_MAX: usize = 512;

pub(super) const X_SNAPSHOT_ID: HeaderName = HeaderName::from_static("x-snapshot-id");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const TARGET_POD: HeaderName = HeaderName::from_static("target-pod");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Makes IDs. No lock and no allocation: the random source is the thread's own.
#[derive(Debug)]
pub struct Mint {
    clock: Arc<Clock>,
    tag: InstanceTag,
}

impl Mint {
    /// IDs of the instance `tag`.
    pub fn new(clock: Arc<Clock>, tag: InstanceTag) -> Self {
        Self { clock, tag }
    }

    /// A new ID, for a request that was accepted at `accepted`.
    pub fn issue(&self, accepted: Instant) -> (SnapshotId, Moment) {
        let issued_at = self.clock.at(accepted);
        (SnapshotId::new(issued_at.unix_ms(), self.tag, rand::random()), issued_at)
    }
}

/// What is copied from request heads besides the fixed facts.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Headers whose values become labels.
    pub(super) labels: Vec<HeaderName>,
    /// Tells tenants from each other.
    pub(super) tenants: Arc<Tenants>,
}

impl Wanted {
    /// The facts of a request's head; those of its body are added when it has been read.
    pub(super) fn request(&self, head: &request::Parts) -> Request {
        let path = head.uri.path();
        Request {
            method: cut(head.method.as_str(), METHOD_BYTES_MAX).into(),
            path: cut(path, PATH_BYTES_MAX).into(),
            operation: Operation::of_path(path),
            model: None,
            stream: None,
            body_bytes: 0,
            body_unread: false,
            max_tokens: None,
            client_request_id: client_request_id(&head.headers).map(Into::into),
            tenant: self.tenants.of(&head.headers, head.extensions.get::<Peer>().copied()),
            user_agent: text(head.headers.get(USER_AGENT)),
            labels: self.labels(&head.headers),
        }
    }

    fn labels(&self, headers: &HeaderMap) -> Vec<(Box<str>, Box<str>)> {
        let label = |name: &HeaderName| Some((name.as_str().into(), text(headers.get(name))?));
        self.labels.iter().filter_map(label).collect()
    }
}

/// The client's own ID, if it is one that can be searched for, logged and echoed without harm.
pub(super) fn client_request_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let fits = !text.is_empty() && text.len() <= CLIENT_REQUEST_ID_BYTES_MAX;
    (fits && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
}

/// The client's trace, if it brought exactly one usable `traceparent`, else a new one named after the snapshot.
pub(super) fn trace(id: SnapshotId, headers: &HeaderMap) -> TraceContext {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(only), None) => TraceContext::parse(only.as_bytes()).unwrap_or_else(|| TraceContext::root(id)),
        _ => TraceContext::root(id),
    }
}

/// A header as text: only what is visible ASCII, cut to a length that no record suffers from.
fn text(value: Option<&HeaderValue>) -> Option<Box<str>> {
    let text = value?.to_str().ok()?;
    Some(cut(text, TEXT_BYTES_MAX).into())
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant;

    fn head(headers: &[(&'static str, &'static str)]) -> request::Parts {
        let mut builder = http::Request::post("/v1/chat/completions?key=secret");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn wanted() -> Wanted {
        Wanted { labels: vec![HeaderName::from_static("x-run-id")], tenants: Arc::new(Tenants::by_key([7; 32])) }
    }

    #[test]
    fn the_query_and_the_credential_are_not_recorded() {
        let request = wanted().request(&head(&[("authorization", "Bearer sk-secret"), ("x-run-id", "run-17")]));
        assert!(!format!("{request:?}").contains("secret"), "{request:?}");
        assert_eq!(&*request.path, "/v1/chat/completions");
        assert_eq!(request.labels, [("x-run-id".into(), "run-17".into())]);
    }

    #[test]
    fn what_a_client_may_make_long_is_cut() {
        let long = "A".repeat(60_000);
        let request =
            http::Request::builder().method(long.as_str()).uri(format!("/{long}")).header("user-agent", &long);
        let request = wanted().request(&request.body(()).unwrap().into_parts().0);
        let lengths = (request.method.len(), request.path.len(), request.user_agent.map(|text| text.len()));
        assert_eq!(lengths, (METHOD_BYTES_MAX, PATH_BYTES_MAX, Some(TEXT_BYTES_MAX)));
    }

    #[test]
    fn a_tenants_name_needs_a_connection_from_a_trusted_proxy() {
        let trusted = vec!["10.0.0.0/8".parse().unwrap()];
        let settings = tenant::Settings { header: Some(HeaderName::from_static("x-tenant")), trusted, key: None };
        let tenants = Tenants::new(&settings, tenant::Key::new([7; 32]));
        let wanted = Wanted { labels: Vec::new(), tenants: Arc::new(tenants) };
        let mut head = head(&[("x-tenant", "acme")]);
        assert_eq!(wanted.request(&head).tenant, None, "anybody can send a header");
        head.extensions.insert(Peer([10, 0, 0, 1].into()));
        assert!(wanted.request(&head).tenant.is_some());
    }

    #[test]
    fn a_request_id_that_could_do_harm_is_not_kept() {
        let id = |value| client_request_id(&head(&[("x-request-id", value)]).headers).map(str::to_owned);
        assert_eq!(id("req-1"), Some("req-1".into()));
        for bad in ["", "two words", "tab\there"] {
            assert_eq!(id(bad), None, "{bad}");
        }
        assert_eq!(id("x".repeat(128).leak()).map(|id| id.len()), Some(128));
        assert_eq!(id("x".repeat(129).leak()), None);
    }

    #[test]
    fn two_traceparents_are_none() {
        let id = SnapshotId::new(1, InstanceTag(2), 3);
        const ONE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(trace(id, &head(&[("traceparent", ONE)]).headers).parent_span_id.is_some());
        let both = trace(id, &head(&[("traceparent", ONE), ("traceparent", ONE)]).headers);
        assert_eq!(both, TraceContext::root(id));
        assert_eq!(both.trace_id.as_u128(), id.as_u128());
    }
}

//! The first stage: give the request its name, and read from its head what the record wants.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::header::USER_AGENT;
use http::{HeaderMap, HeaderName, HeaderValue, request};

use crate::clock::Clock;
use crate::snapshot::{
    InstanceTag, Moment, Operation, RemoteSpan, Request, Sampling, SnapshotId, TraceContext, tracestate,
};
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

/// Where the request stands in a trace: the client's, if it brought exactly one usable `traceparent` and is believed, else a
/// new one named after the snapshot.
pub(super) fn trace(id: SnapshotId, headers: &HeaderMap, sampling: &Sampling) -> TraceContext {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let parent = match (values.next(), values.next()) {
        (Some(only), None) => RemoteSpan::parse(only.as_bytes()),
        _ => None,
    };
    sampling.begin(id, parent)
}

/// Leaves of `tracestate` what is to be passed on. It belongs to the client's trace, so it goes with that or not at all.
pub(super) fn pass_on_tracestate(headers: &mut HeaderMap, trace: &TraceContext) {
    let values = headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes);
    let kept = match trace.parent_span_id {
        Some(_) => tracestate::pass_on(values).map(Cow::into_owned),
        None => None,
    };
    // A list is printable ASCII, or it is not passed on.
    match kept.and_then(|list| HeaderValue::try_from(list).ok()) {
        Some(list) => drop(headers.insert(TRACESTATE, list)),
        None => drop(headers.remove(TRACESTATE)),
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

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn one_traceparent_is_gone_on_with_and_two_are_none() {
        let id = SnapshotId::new(1, InstanceTag(2), 3);
        let traced = |headers: &[(&'static str, &'static str)]| trace(id, &head(headers).headers, &Sampling::ALL);
        assert!(traced(&[("traceparent", PARENT)]).parent_span_id.is_some());
        assert!(traced(&[("TraceParent", PARENT)]).parent_span_id.is_some());
        for headers in [
            &[][..],
            &[("tracestate", "a=1")],
            &[("traceparent", "")],
            &[("traceparent", PARENT), ("traceparent", PARENT)],
            &[("traceparent", PARENT), ("traceparent", "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-01")],
        ] {
            let new = traced(headers);
            assert_eq!(new, TraceContext::root(id), "{headers:?}");
            assert_eq!(new.trace_id.as_u128(), id.as_u128());
        }
    }

    #[test]
    fn tracestate_goes_with_its_trace_or_not_at_all() {
        let passed = |headers: &[(&'static str, &'static str)], trusted: bool| {
            let mut headers = head(headers).headers;
            let sampling = Sampling { trust_parent: trusted, ..Sampling::ALL };
            let trace = trace(SnapshotId::new(1, InstanceTag(2), 3), &headers, &sampling);
            pass_on_tracestate(&mut headers, &trace);
            let values: Vec<_> = headers.get_all(TRACESTATE).iter().map(|it| it.to_str().unwrap().to_owned()).collect();
            values
        };
        let (parent, state) = (("traceparent", PARENT), ("tracestate", "a=1,b=2"));
        assert_eq!(passed(&[parent, state], true), ["a=1,b=2"]);
        assert_eq!(passed(&[parent, state, ("tracestate", "c=3")], true), ["a=1,b=2,c=3"]);
        for (headers, trusted) in [
            (&[state][..], true),
            (&[parent, state], false),
            (&[parent, parent, state], true),
            (&[parent, ("tracestate", "no list")], true),
            (&[parent], true),
        ] {
            assert!(passed(headers, trusted).is_empty(), "{headers:?} {trusted}");
        }
    }
}

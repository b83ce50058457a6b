//! Every answer's head, and the whole of every answer the gateway gives itself.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, response};
use http_body::{Frame, SizeHint};
use http_body_util::Full;

use super::identify::{TARGET_POD, X_REQUEST_ID, X_SNAPSHOT_ID};
use super::load_reports;
use super::stream::{RecordedBody, StreamError};
use crate::snapshot::{Ending, SnapshotId};

/// What one hop says to the next is not for the one after.
pub(super) const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The gateway's own headers, for scripts that may read an answer.
const EXPOSED: &[u8] = b"x-snapshot-id, x-request-id, target-pod";

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Body {
    /// Made here.
    Local(Full<Bytes>),
    /// A target's, passing through.
    Upstream(Box<RecordedBody>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match self.get_mut() {
            Self::Local(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(body) => body.is_end_stream(),
            Self::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(body) => body.size_hint(),
            Self::Upstream(body) => body.size_hint(),
        }
    }
}

/// Why the gateway answers for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// For the record.
    pub(super) ending: Ending,
    /// For the client.
    pub(super) status: StatusCode,
    /// OpenAI's error type, which SDKs map to exceptions.
    pub(super) kind: &'static str,
    /// What of the request is wrong, and OpenAI's word for it; else the code is the status.
    pub(super) about: Option<(&'static str, &'static str)>,
    /// For the client: what went wrong and what to do, without addresses.
    pub(super) message: Cow<'static, str>,
    /// For operators.
    pub(super) detail: Option<Box<str>>,
    /// The request can be read in more than one way, and so could what follows it on its connection.
    pub(super) malformed: bool,
}

impl Refusal {
    /// A request that is refused for what it is.
    pub(super) fn rejected(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        let kind = "invalid_request_error";
        let detail = Some((&*message).into());
        Self { ending: Ending::Rejected, status, kind, about: None, detail, message, malformed: false }
    }

    /// A request of which nobody can say for sure what it is.
    pub(super) fn malformed(message: &'static str) -> Self {
        Self { malformed: true, ..Self::rejected(StatusCode::BAD_REQUEST, message) }
    }

    /// The same, with the part of the request that is wrong and a code that programs compare.
    pub(super) fn about(self, param: &'static str, code: &'static str) -> Self {
        Self { about: Some((param, code)), ..self }
    }

    /// A request that could not be served; the status is that of the ending.
    pub(super) fn failed(ending: Ending, message: impl Into<Cow<'static, str>>, detail: Option<Box<str>>) -> Self {
        let status = StatusCode::from_u16(ending.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { ending, status, kind: "server_error", about: None, message: message.into(), detail, malformed: false }
    }
}

/// The gateway's own answer. The snapshot ID ends its message, because exception texts are what reach a support ticket.
pub(super) fn refused(id: SnapshotId, client_request_id: Option<&str>, refusal: &Refusal) -> Response<Body> {
    let message = format!("{} (snapshot {id})", refusal.message);
    let (param, code) = match refusal.about {
        Some((param, code)) => (Some(param), code.into()),
        None => (None, serde_json::Value::from(refusal.status.as_u16())),
    };
    let error = serde_json::json!({
        "error": { "message": message, "type": refusal.kind, "param": param, "code": code }
    });
    let mut response = Response::new(Body::Local(Full::new(Bytes::from(error.to_string()))));
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    sign(headers, id, client_request_id);
    response
}

/// Says that the connection ends with this answer: what is left of the request's body is not read as a request.
/// HTTP/2 knows no such header and needs none.
pub(super) fn close(response: &mut Response<Body>, version: http::Version) {
    if version <= http::Version::HTTP_11 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Makes a target's head the gateway's: without what was meant for this hop, with the request's names. Answers the load
/// reports that were in it: a pod's load is not for clients.
///
/// No `via` is added, in either direction: the ID says more, and some servers compress nothing for a proxy.
pub(super) fn head(
    head: &mut response::Parts,
    id: SnapshotId,
    client_request_id: Option<&str>,
    target: &str,
) -> Option<HeaderMap> {
    // hyper writes the trailers that are announced, so that this is kept where there are chunks to put them behind.
    let trailer = head.headers.get(header::TRAILER).filter(|_| head.headers.contains_key(header::TRANSFER_ENCODING));
    let trailer = trailer.cloned();
    strip_hop_by_hop(&mut head.headers);
    if let Some(trailer) = trailer {
        head.headers.insert(header::TRAILER, trailer);
    }
    let reports = load_reports::take(&mut head.headers);
    expose(&mut head.headers);
    head.version = http::Version::HTTP_11;
    // The status line's own words and such are the connection's, not the answer's.
    head.extensions.clear();
    if let Ok(target) = HeaderValue::from_str(target) {
        head.headers.insert(TARGET_POD, target);
    }
    sign(&mut head.headers, id, client_request_id);
    reports
}

/// What may pass of an answer's trailers: not what belongs in a head, and not what is kept from clients there. Answers
/// the load reports that were among them.
pub(super) fn trailers(trailers: &mut HeaderMap) -> Option<HeaderMap> {
    strip_hop_by_hop(trailers);
    let reports = load_reports::take(trailers);
    for name in [header::CONTENT_LENGTH, header::HOST, X_SNAPSHOT_ID, X_REQUEST_ID, TARGET_POD] {
        trailers.remove(name);
    }
    reports
}

/// Lets scripts of other origins read the gateway's headers, if the target lets them read its answer at all.
fn expose(headers: &mut HeaderMap) {
    if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    let theirs = headers.get_all(header::ACCESS_CONTROL_EXPOSE_HEADERS).iter().map(HeaderValue::as_bytes);
    let exposed: Vec<_> = theirs.chain([EXPOSED]).collect();
    if let Ok(exposed) = HeaderValue::from_bytes(&exposed.join(&b", "[..])) {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// The origin that a request comes from, as an answer of our own names it to a browser that may show it the answer.
pub(super) fn allowed_origin(origins: &[HeaderValue], headers: &HeaderMap) -> Option<HeaderValue> {
    if origins.is_empty() {
        return None;
    }
    let origin = headers.get(header::ORIGIN)?;
    origins.iter().find(|allowed| *allowed == "*" || *allowed == origin).cloned()
}

/// Lets scripts of that origin read an answer of our own, with its headers.
pub(super) fn allow(response: &mut Response<Body>, origin: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    expose(headers);
}

/// The two headers every answer has.
fn sign(headers: &mut HeaderMap, id: SnapshotId, client_request_id: Option<&str>) {
    let id = HeaderValue::from_str(id.to_hex().as_str()).expect("hex digits are a header value");
    let own = client_request_id.and_then(|id| HeaderValue::from_str(id).ok());
    headers.insert(X_REQUEST_ID, own.unwrap_or_else(|| id.clone()));
    headers.insert(X_SNAPSHOT_ID, id);
}

/// Removes what RFC 9110 section 7.6.1 keeps to one connection, including what `connection` names.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_for_one_hop_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("x-kept", "1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
    }
}

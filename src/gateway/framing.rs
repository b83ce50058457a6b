//! What two parsers could read differently is not passed on: it is refused here, or framed anew by what goes out.
//!
//! Everything that goes out is written from what was parsed: one length, no transfer coding from the other side, plain
//! line ends, the target's own host. hyper refuses what is no HTTP at all. What is left for this room is what parses and
//! still means different things to different readers, above all a message whose coding we would strip without undoing it.

use std::net::Ipv6Addr;

use http::header::{ACCESS_CONTROL_EXPOSE_HEADERS, CONTENT_LENGTH, COOKIE, DATE, HOST, TRANSFER_ENCODING};
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, request};

use super::Settings;
use super::identify::{TARGET_POD, TRACEPARENT, X_REQUEST_ID, X_SNAPSHOT_ID};
use super::respond::Refusal;
use crate::snapshot::Ending;

/// Header lines that a request may gain on its way to the target.
const ADDED_TO_REQUESTS: [HeaderName; 4] = [HOST, CONTENT_LENGTH, TRACEPARENT, X_REQUEST_ID];

/// Header lines that an answer may gain on its way to the client.
const ADDED_TO_ANSWERS: [HeaderName; 6] =
    [X_SNAPSHOT_ID, X_REQUEST_ID, TARGET_POD, DATE, CONTENT_LENGTH, ACCESS_CONTROL_EXPOSE_HEADERS];

/// Some servers read `_` in a name as `-`: these would decide where a message ends.
const DECISIVE: [&str; 2] = ["transfer_encoding", "content_length"];

/// What a head may have at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadMax {
    bytes: usize,
    lines: usize,
}

impl HeadMax {
    /// As the settings say.
    pub(super) fn of(settings: &Settings) -> Self {
        Self { bytes: settings.head_bytes_max, lines: settings.headers_max }
    }
}

/// Whether a request's head means the same to everybody, and is not more than a target takes when we have added to it.
pub(super) fn request(head: &request::Parts, max: HeadMax) -> Result<(), Refusal> {
    let headers = &head.headers;
    // Servers that take HTTP/2 by prior knowledge, as this one does, see the beginning of that (RFC 9113 section 3.4).
    if head.method.as_str() == "PRI" {
        return Err(Refusal::malformed("the request's method is the one that HTTP/2 begins with"));
    }
    // Servers that compare methods without their case would read another one, and another end of its answer.
    if head.method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(Refusal::malformed("the request's method is not in upper case"));
    }
    if !only_chunked(headers) {
        return Err(Refusal::malformed("the request's transfer-encoding is not just `chunked`"));
    }
    if DECISIVE.iter().any(|name| headers.contains_key(*name)) {
        return Err(Refusal::malformed("the request has a header whose name some servers read as another one"));
    }
    if crate::tenant::is_ambiguous(headers) {
        return Err(Refusal::malformed("the request has two values of a header that holds its credential: send one"));
    }
    // HTTP/1.1 has no such values, its parsers trim them: a target would read another one (RFC 9113 section 8.2.1).
    if head.version == Version::HTTP_2
        && headers.values().any(|value| value.as_bytes().trim_ascii() != value.as_bytes())
    {
        return Err(Refusal::malformed("the request has a header value that begins or ends with white space"));
    }
    host(head)?;
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    if !target.starts_with('/') || !target.is_ascii() {
        return Err(Refusal::malformed("the request's target is not a path in plain ASCII"));
    }
    let too_large = |message| Refusal::rejected(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message);
    if are_too_many(headers, &ADDED_TO_REQUESTS, max.lines) {
        let most = max.lines;
        let message =
            format!("with what a gateway adds, the request has more than {most} header lines (limits.headers)");
        return Err(too_large(message));
    }
    if bytes(head.method.as_str().len() + target.len(), headers) > max.bytes {
        let message = format!("the request's head is larger than {} bytes (limits.header_bytes)", max.bytes);
        return Err(too_large(message));
    }
    Ok(())
}

/// A body where HTTP gives it no meaning: a server that does not read it reads a request there.
pub(super) fn body(method: &Method, body: &[u8]) -> Result<(), Refusal> {
    if !body.is_empty() && matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Err(Refusal::malformed("a GET, HEAD or OPTIONS request has no body here"));
    }
    Ok(())
}

/// Whether a path that is not compared whole means the same to everybody: no dot segments, also for those who take `%2F`
/// for a separator, and nothing that turns into a dot, a backslash, a percent sign or a control character when it is decoded.
pub(super) fn path(path: &str) -> Result<(), Refusal> {
    let bytes = path.as_bytes();
    let escapes_are_plain = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(at, _)| {
        let digits = bytes.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let decoded = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let decoded = decoded.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.is_some_and(|byte| !byte.is_ascii_control() && !matches!(byte, b'.' | b'\\' | b'%'))
    });
    let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    let mut segments =
        path.split('/').flat_map(|segment| segment.split("%2f")).flat_map(|segment| segment.split("%2F"));
    if path.starts_with("//") || path.contains('\\') || !escapes_are_plain || segments.any(is_dots) {
        return Err(Refusal::malformed("the request's path can be read in more than one way"));
    }
    Ok(())
}

/// A request has no more than one host, and it is the one that its target names, if that names one.
fn host(head: &request::Parts) -> Result<(), Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() || host.is_none() && head.version == Version::HTTP_11 {
        return Err(Refusal::malformed("the request has no host, or more than one"));
    }
    if host.is_some_and(|host| !is_host(host.as_bytes())) {
        return Err(Refusal::malformed("the request's host is not HOST or HOST:PORT"));
    }
    let Some(authority) = head.uri.authority() else { return Ok(()) };
    if !is_host(authority.as_str().as_bytes())
        || head.uri.scheme().is_some_and(|it| *it != Scheme::HTTP && *it != Scheme::HTTPS)
    {
        return Err(Refusal::malformed("the request's target names more than HOST or HOST:PORT, or is not for HTTP"));
    }
    if host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())) {
        return Err(Refusal::malformed("the request's target and its host header name different hosts"));
    }
    Ok(())
}

/// Whether it is `HOST` or `HOST:PORT` to everybody (RFC 9110 section 7.2): without what some decode, or read as a list. It
/// may be empty: the target gets its own in any case.
fn is_host(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let (is_good, rest) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address.parse::<Ipv6Addr>().is_ok(), rest),
        None => {
            let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            (name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)), rest)
        }
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    is_good && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

/// HTTP/2 may send each cookie by itself; HTTP/1.1 knows only one header for all (RFC 9113 section 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Whether an answer's head means the same to everybody. Of several equal lengths one is left.
pub(super) fn answer(headers: &mut HeaderMap, max: HeadMax) -> Result<(), Refusal> {
    if !only_chunked(headers) {
        return Err(broken("the answer's transfer-encoding is not just `chunked`"));
    }
    // A length beside chunks is not the body's (RFC 9112 section 6.3): two parsers could read two answers.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(first) = lengths.next() {
        if lengths.any(|other| other != first) || !first.as_bytes().iter().all(u8::is_ascii_digit) {
            return Err(broken("the answer's content-length is not one number"));
        }
        let length = first.clone();
        headers.insert(CONTENT_LENGTH, length);
    }
    if are_too_many(headers, &ADDED_TO_ANSWERS, max.lines) {
        return Err(broken("with what a gateway adds, the answer has more header lines than limits.headers"));
    }
    if bytes(0, headers) > max.bytes {
        return Err(broken("the answer's head is larger than limits.header_bytes"));
    }
    Ok(())
}

/// No transfer coding, or `chunked` and nothing else, which hyper has undone.
fn only_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// Whether there are more lines than are allowed when those are added that are not there yet.
fn are_too_many(headers: &HeaderMap, added: &[HeaderName], max: usize) -> bool {
    let missing = || added.iter().filter(|name| !headers.contains_key(*name)).count();
    headers.len() + added.len() > max && headers.len() + missing() > max
}

/// How large a head is, its first line's words counted by the caller. hyper's own bound is a loose one: a head of up to twice
/// as many bytes passes it when they come at once.
fn bytes(first: usize, headers: &HeaderMap) -> usize {
    headers.iter().fold(first, |sum, (name, value)| sum + name.as_str().len() + ": \r\n".len() + value.len())
}

fn broken(detail: &'static str) -> Refusal {
    let message = "the target's answer is not framed as HTTP wants it";
    Refusal::failed(Ending::UpstreamReset, message, Some(detail.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_means_the_same_decoded_or_not() {
        for good in ["/", "/v1/models", "/v1/models/org%2Fname", "/a/..b/.c/d...", "/a%20b;x=1"] {
            assert!(path(good).is_ok(), "{good}");
        }
        for bad in [
            "//host/metrics",
            "/v1/../metrics",
            "/v1/./models",
            "/v1/..",
            "/v1/%2e%2e/metrics",
            "/v1/%2E/x",
            "/v1/..;/x",
            "/v1/x%2f..%2fmetrics",
            "/v1/x%2F../metrics",
            "/v1/..%2Fmetrics",
            "/v1/x%2f.%2F",
            "/v1/x%2f..;a%2Fmetrics",
            "/v1\\..\\metrics",
            "/v1/%5c",
            "/v1/models%00",
            "/v1/models%0d%0a",
            "/v1/%7f",
            "/v1/%252e",
            "/v1/%",
            "/v1/%4",
            "/v1/%zz",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}

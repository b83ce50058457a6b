//! Who may leave HTTP on its connection: a client that asks for a WebSocket, with a target that agrees to exactly that.
//!
//! An upgrade is for one hop (RFC 9110 section 7.8), so none is passed on as it came: what is asked here is asked anew of the
//! target. Everything else that `upgrade` can name, h2c above all, is left out, and the request is answered as any other.

use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, request, response};

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether a request asks for a WebSocket, and for nothing else (RFC 6455 section 4.1).
pub(super) fn is_asked(head: &request::Parts) -> bool {
    // A protocol that is asked for in HTTP/1.0 has to be ignored, and HTTP/2 has no such thing.
    head.method == Method::GET && head.version == Version::HTTP_11 && names_websocket(&head.headers)
}

/// Asks for it.
pub(super) fn ask(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

/// What a target makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switch {
    /// It answers it.
    None,
    /// It switches to what was asked for.
    Agreed,
    /// It switches to something else, or unasked.
    Wrong,
}

/// What the head of an answer means, after a request that `asked` or did not.
pub(super) fn of_answer(asked: bool, status: StatusCode, headers: &HeaderMap) -> Switch {
    match status {
        StatusCode::SWITCHING_PROTOCOLS if asked && names_websocket(headers) => Switch::Agreed,
        StatusCode::SWITCHING_PROTOCOLS => Switch::Wrong,
        _ => Switch::None,
    }
}

/// Says so to the client, once the head is otherwise as it gets it. A 101 has no body, whatever its target says of one.
pub(super) fn agree(head: &mut response::Parts) {
    ask(&mut head.headers);
    head.headers.remove(CONTENT_LENGTH);
}

/// What a target wants to be asked for, if it answers that it wants that: 426 has to say so (RFC 9110 section 15.5.22).
pub(super) fn required(head: &response::Parts) -> Vec<HeaderValue> {
    match head.status {
        StatusCode::UPGRADE_REQUIRED => head.headers.get_all(UPGRADE).iter().cloned().collect(),
        _ => Vec::new(),
    }
}

/// Says so to the client, once the head is otherwise as it gets it. In HTTP/2, which has no upgrades, hyper leaves it out.
pub(super) fn require(head: &mut response::Parts, protocols: Vec<HeaderValue>) {
    if !protocols.is_empty() {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        protocols.into_iter().for_each(|protocol| {
            head.headers.append(UPGRADE, protocol);
        });
    }
}

/// One `upgrade` with one protocol, and `connection` says that it is meant.
fn names_websocket(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(UPGRADE).iter();
    let only = (upgrades.next(), upgrades.next());
    let is_websocket = matches!(only, (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let mut options = headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    is_websocket && options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: Method, version: Version, headers: &[(&str, &str)]) -> request::Parts {
        let mut builder = http::Request::builder().method(method).version(version);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_a_websocket_is_asked_for() {
        let asked = |headers: &[_]| is_asked(&head(Method::GET, Version::HTTP_11, headers));
        let websocket = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        assert!(asked(&websocket));
        for other in [
            &[("upgrade", "websocket")][..],
            &[("connection", "upgrade")],
            &[("connection", "x-upgrade"), ("upgrade", "websocket")],
            &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "h2c, websocket")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket/13")],
        ] {
            assert!(!asked(other), "{other:?}");
        }
        for (method, version) in
            [(Method::POST, Version::HTTP_11), (Method::GET, Version::HTTP_10), (Method::GET, Version::HTTP_2)]
        {
            assert!(!is_asked(&head(method.clone(), version, &websocket)), "{method} {version:?}");
        }
    }

    #[test]
    fn only_what_was_asked_for_is_agreed_to() {
        let answer = |asked, status: u16, headers: &[_]| {
            let headers = head(Method::GET, Version::HTTP_11, headers).headers;
            of_answer(asked, StatusCode::from_u16(status).unwrap(), &headers)
        };
        let websocket = [("connection", "upgrade"), ("upgrade", "websocket")];
        assert_eq!(answer(true, 101, &websocket), Switch::Agreed);
        assert_eq!(answer(false, 101, &websocket), Switch::Wrong);
        assert_eq!(answer(true, 101, &[("connection", "upgrade"), ("upgrade", "h2c")]), Switch::Wrong);
        assert_eq!(answer(true, 101, &[]), Switch::Wrong);
        assert_eq!(answer(true, 426, &websocket), Switch::None);
    }
}

//! Who may look up: bearers of a configured token, or, where none is configured, whoever is on this machine.
//!
//! A loopback listener without tokens has one attacker left: a web page in the operator's browser whose name was made
//! to point to 127.0.0.1 (DNS rebinding). Its requests carry the page's name as their host, so a name is refused. With
//! tokens that is no danger, because the page does not have one, and names are welcome, as behind a reverse proxy.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::accept::Form;
use super::problem::Problem;
use super::{Lookup, Settings};

/// A secret that opens all lookups. Only its hash is kept, and hashes are compared in constant time.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    name: String,
    digest: blake3::Hash,
}

impl Token {
    /// `name` is for logs; the secret is forgotten at once.
    pub fn new(name: impl Into<String>, secret: &str) -> Self {
        Self { name: name.into(), digest: blake3::hash(secret.as_bytes()) }
    }

    /// What operators call it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Without the hash: a short secret could be guessed from it.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a lookup was not even looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The listener is open to the network, and no token is configured.
    NotConfigured,
    /// The request was sent to a name, as a rebound web page would.
    ForeignHost(String),
    /// No bearer token came with it.
    NoToken,
    /// The bearer token is none of ours.
    WrongToken,
}

/// Passes a request on, or answers why not.
pub(super) async fn guard(State(lookup): State<Arc<Lookup>>, request: Request, next: Next) -> Response {
    match check(&lookup.state.settings, request.uri(), request.headers()) {
        Ok(token) => {
            tracing::debug!(path = request.uri().path(), token = token.map(Token::name), "lookup");
            next.run(request).await
        }
        Err(refusal) => Problem::refused(&refusal).answer(Form::wanted(request.headers())),
    }
}

/// Whether a request may look up, and by which token.
fn check<'a>(settings: &'a Settings, uri: &Uri, headers: &HeaderMap) -> Result<Option<&'a Token>, Refusal> {
    if !settings.tokens.is_empty() {
        let presented = bearer(headers).ok_or(Refusal::NoToken)?;
        return matching(&settings.tokens, presented).map(Some).ok_or(Refusal::WrongToken);
    }
    if !settings.loopback {
        return Err(Refusal::NotConfigured);
    }
    let hosts = headers.get_all(header::HOST).iter().map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    match hosts.chain(uri.authority().map(ToString::to_string)).find(|host| !is_local(host)) {
        Some(host) => Err(Refusal::ForeignHost(host)),
        None => Ok(None),
    }
}

/// The token of an `Authorization: Bearer …` header; the scheme's name is free in its case.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, secret) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| secret.trim_ascii()).filter(|secret| !secret.is_empty())
}

/// Compares hashes, each in constant time and all of them always, so that time tells nothing about any secret.
fn matching<'a>(tokens: &'a [Token], presented: &[u8]) -> Option<&'a Token> {
    let digest = blake3::hash(presented);
    tokens.iter().fold(None, |found, token| if token.digest == digest { Some(token) } else { found })
}

/// `localhost` or an address, with or without a port.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().is_ok() || bare.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn asked(host: &'static str, authorization: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static(host));
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers
    }

    fn checked(settings: &Settings, headers: &HeaderMap) -> Result<Option<String>, Refusal> {
        check(settings, &Uri::from_static("/v1/fleet"), headers).map(|token| token.map(|token| token.name().to_owned()))
    }

    #[test]
    fn without_tokens_only_this_machine_may_ask() {
        let open = Settings { tokens: Vec::new(), loopback: false };
        assert_eq!(checked(&open, &asked("10.0.0.1:8081", None)), Err(Refusal::NotConfigured));
        let local = Settings { loopback: true, ..open };
        for host in ["127.0.0.1:8081", "127.0.0.1", "[::1]:8081", "localhost", "LocalHost:8081"] {
            assert_eq!(checked(&local, &asked(host, None)), Ok(None), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8081", "127.0.0.1.nip.io", "", "a b", "[::1"] {
            assert_eq!(checked(&local, &asked(host, None)), Err(Refusal::ForeignHost(host.to_owned())), "{host}");
        }
        let uri = Uri::from_static("http://evil.example/v1/fleet");
        let refused = check(&local, &uri, &asked("127.0.0.1", None)).map(|_| ());
        assert_eq!(refused, Err(Refusal::ForeignHost("evil.example".to_owned())), "an absolute request target");
        assert_eq!(checked(&local, &HeaderMap::new()), Ok(None), "HTTP/1.0 names no host, and no browser speaks it");
    }

    #[test]
    fn with_tokens_one_of_them_opens_from_anywhere() {
        let tokens = vec![Token::new("ops", "s3cret"), Token::new("ci", "other")];
        for loopback in [false, true] {
            let settings = Settings { tokens: tokens.clone(), loopback };
            for (authorization, want) in [
                (None, Err(Refusal::NoToken)),
                (Some("Basic s3cret"), Err(Refusal::NoToken)),
                (Some("Bearer"), Err(Refusal::NoToken)),
                (Some("Bearer "), Err(Refusal::NoToken)),
                (Some("Bearer s3cre"), Err(Refusal::WrongToken)),
                (Some("Bearer s3cret1"), Err(Refusal::WrongToken)),
                (Some("Bearer s3cret"), Ok(Some("ops".to_owned()))),
                (Some("bearer  other "), Ok(Some("ci".to_owned()))),
            ] {
                assert_eq!(checked(&settings, &asked("gw.example", authorization)), want, "{authorization:?}");
            }
        }
    }

    #[test]
    fn a_token_never_shows_its_secret() {
        let shown = format!("{:?}", Token::new("ops", "s3cret"));
        assert!(shown.contains("ops") && !shown.contains("s3cret"), "{shown}");
        assert!(!shown.contains(&blake3::hash(b"s3cret").to_hex().to_string()), "{shown}");
    }
}

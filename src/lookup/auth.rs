//! Who may look up: bearers of a configured token; where none is configured, whoever is on this machine; and whoever
//! presents a request's own API key, for that request alone.
//!
//! | tokens | listener | a token's bearer | an API key | nothing |
//! |---|---|---|---|---|
//! | none | loopback | | everything | everything |
//! | none | beyond | | own records | 403 |
//! | some | either | what its scope allows | own records | 401 |
//!
//! Own records can be given out anywhere, because it takes both the key and the ID to see one. Deleting takes a token in
//! any case.
//!
//! A loopback listener without tokens has one attacker left: a web page in the operator's browser whose name was made
//! to point to 127.0.0.1 (DNS rebinding). Its requests carry the page's name as their host, so a name is refused. With
//! tokens or keys that is no danger, because the page has none, and names are welcome, as behind a reverse proxy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::accept::Form;
use super::limit::{Limiter, Rate, address_of};
use super::problem::{NO_TOKEN, Problem};
use super::token::{Scope, Token};
use super::{Lookup, Settings};
use crate::snapshot::Tenant;
use crate::tenant::{Peer, Tenants, bearer};

/// The largest body of a request: ten thousand of the longest keys, as JSON. It is only read for who may ask.
pub(super) const BODY_BYTES_MAX: usize = 2 << 20;

/// So much of a body that is too large is read all the same, so that the client has sent it and reads the answer.
const DRAINED_BYTES_MAX: usize = 16 << 20;

/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// The token does not allow it, or deleting was asked for without one.
    NotAllowed(Scope),
    /// Nor does any other.
    NobodyMay(Scope),
    /// Whoever asks has asked too often.
    TooOften(Duration),
    /// The body is larger than any that makes sense.
    TooLarge,
    /// The body did not come in time, or not whole.
    BodyBroken,
}

impl Refusal {
    /// Its name, in problems and metrics.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::NotConfigured => "no_tokens_configured",
            Self::ForeignHost(_) => "foreign_host",
            Self::NoToken => NO_TOKEN,
            Self::WrongToken => "wrong_token",
            Self::NotAllowed(_) | Self::NobodyMay(_) => "scope",
            Self::TooOften(_) => "rate",
            Self::TooLarge => "body_size",
            Self::BodyBroken => "body",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// May read everything.
    Operator(Operator),
    /// May read what is its own.
    Own(Tenant),
}

/// Who may do what its token's scope says. As an argument of a handler it is there behind [`operators`] and nowhere else;
/// that the scope fits the request's method was checked then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operator {
    /// The token; `None` for whoever is on this machine.
    token: Option<Arc<str>>,
    scopes: Vec<Scope>,
}

impl Operator {
    fn of(token: &Token) -> Self {
        Self { token: Some(token.name().into()), scopes: token.scopes().to_vec() }
    }

    fn on_this_machine() -> Self {
        Self { token: None, scopes: vec![Scope::Read] }
    }

    /// The name for the log.
    pub(super) fn name(&self) -> &str {
        self.token.as_deref().unwrap_or("this machine")
    }
}

impl Caller {
    /// What a method needs: only DELETE changes anything.
    fn may(&self, method: &Method) -> Result<(), Refusal> {
        let needed = if method == Method::DELETE { Scope::Delete } else { Scope::Read };
        let allowed = match self {
            Self::Operator(operator) => operator.scopes.contains(&needed),
            Self::Own(_) => needed == Scope::Read,
        };
        if allowed { Ok(()) } else { Err(Refusal::NotAllowed(needed)) }
    }
}

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        match parts.extensions.get() {
            Some(Caller::Operator(operator)) => Ok(operator.clone()),
            _ => Err(Problem::refused(&Refusal::NoToken).answer(Form::wanted(&parts.headers))),
        }
    }
}

/// How often each may ask.
#[derive(Debug, Default)]
pub(super) struct Limits {
    operators: Limiter<Arc<str>>,
    own: Limiter<[u8; 32]>,
    failures: Limiter<IpAddr>,
}

impl Limits {
    /// Counts a failure of this address, for its sake and for the log's.
    pub(super) fn failed(&self, settings: &Settings, peer: Option<Peer>) -> Result<(), Duration> {
        self.failures.take(address_of(peer), Rate::per_minute(settings.failures_per_minute), Instant::now())
    }

    fn admit(&self, settings: &Settings, caller: &Caller, peer: Option<Peer>) -> Result<(), Duration> {
        let now = Instant::now();
        match caller {
            // Whoever is on this machine could read the files as well.
            Caller::Operator(Operator { token: None, .. }) => Ok(()),
            Caller::Operator(Operator { token: Some(token), .. }) => {
                self.operators.take(Arc::clone(token), Rate::per_second(settings.requests_per_second), now)
            }
            Caller::Own(tenant) => {
                // Anybody can invent keys: what bounds the guesses is where they come from.
                self.failures.look(&address_of(peer), Rate::per_minute(settings.failures_per_minute), now)?;
                self.own.take(tenant.0, Rate::per_second(settings.own_requests_per_second), now)
            }
        }
    }
}

/// Lets operators pass.
pub(super) async fn operators(State(lookup): State<Arc<Lookup>>, request: Request, next: Next) -> Response {
    pass(&lookup, request, next, false).await
}

/// Lets operators pass, and whoever may have records of its own.
pub(super) async fn callers(State(lookup): State<Arc<Lookup>>, request: Request, next: Next) -> Response {
    pass(&lookup, request, next, true).await
}

/// Passes a request on, with its caller in the extensions and its body read, or answers why not.
async fn pass(lookup: &Lookup, request: Request, next: Next, own: bool) -> Response {
    let form = Form::wanted(request.headers());
    match admitted(lookup, request, own).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => {
            lookup.state.metrics.lookup_refused(refusal.reason());
            Problem::refused(&refusal).answer(form)
        }
    }
}

async fn admitted(lookup: &Lookup, mut request: Request, own: bool) -> Result<Request, Refusal> {
    let settings = lookup.state.settings.load_full();
    let peer = request.extensions().get::<Peer>().copied();
    let own = own && settings.own_records;
    let checked = check(&settings, &lookup.state.tenants, own, peer, request.uri(), request.headers());
    let caller = checked.map_err(|refusal| match lookup.limits.failed(&settings, peer) {
        Ok(()) => refusal,
        Err(pause) => Refusal::TooOften(pause),
    })?;
    lookup.limits.admit(&settings, &caller, peer).map_err(Refusal::TooOften)?;
    caller.may(request.method()).map_err(|refusal| match refusal {
        Refusal::NotAllowed(scope) if !settings.tokens.iter().any(|token| token.scopes().contains(&scope)) => {
            Refusal::NobodyMay(scope)
        }
        refusal => refusal,
    })?;
    tracing::debug!(path = request.uri().path(), ?caller, "lookup");
    let body = std::mem::take(request.body_mut());
    let waits = request.headers().contains_key(header::EXPECT);
    *request.body_mut() = read(body, waits).await?;
    request.extensions_mut().insert(caller);
    Ok(request)
}

/// The body, whole: what comes after this waits for no client. One that `waits` to be told to send is told before.
async fn read(mut body: Body, waits: bool) -> Result<Body, Refusal> {
    if waits && body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(Refusal::TooLarge);
    }
    let (mut received, mut count) = (Vec::new(), 0);
    let receiving = async {
        while let Some(frame) = body.frame().await.transpose()? {
            let Ok(data) = frame.into_data() else { continue };
            count += data.len();
            if count <= BODY_BYTES_MAX {
                received.extend_from_slice(&data);
            } else if count > DRAINED_BYTES_MAX {
                break;
            }
        }
        Ok::<_, axum::Error>(())
    };
    let done = timeout(BODY_TIMEOUT, receiving).await;
    match done {
        _ if count > BODY_BYTES_MAX => Err(Refusal::TooLarge),
        Ok(Ok(())) => Ok(received.into()),
        Ok(Err(_)) | Err(_) => Err(Refusal::BodyBroken),
    }
}

/// Who asks, if somebody who may.
fn check(
    settings: &Settings,
    tenants: &Tenants,
    own: bool,
    peer: Option<Peer>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Caller, Refusal> {
    let presented = bearer(headers);
    let matching = |presented| {
        let digest = blake3::hash(presented);
        last_that(&settings.tokens, |token| token.has(digest))
    };
    let refusal = match presented.and_then(matching) {
        Some(token) => return Ok(Caller::Operator(Operator::of(token))),
        _ if !settings.tokens.is_empty() => presented.map_or(Refusal::NoToken, |_| Refusal::WrongToken),
        _ if !settings.loopback => Refusal::NotConfigured,
        _ => match foreign_host(uri, headers) {
            None => return Ok(Caller::Operator(Operator::on_this_machine())),
            Some(host) => Refusal::ForeignHost(host),
        },
    };
    match tenants.of(headers, peer) {
        Some(tenant) if own => Ok(Caller::Own(tenant)),
        _ => Err(refusal),
    }
}

/// The token that has a presented secret. Hashes are compared, each in constant time and all of them always, so that time
/// tells nothing about any secret, nor whose it is.
fn last_that(tokens: &[Token], mut has: impl FnMut(&Token) -> bool) -> Option<&Token> {
    tokens.iter().fold(None, |found, token| if has(token) { Some(token) } else { found })
}

/// The name that a request was sent to, if it is one that a web page can have.
fn foreign_host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let hosts = headers.get_all(header::HOST).iter().map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    hosts.chain(uri.authority().map(ToString::to_string)).find(|host| !is_local(host))
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

    /// Who asks: an operator by its name, or `own`.
    fn checked(settings: &Settings, headers: &HeaderMap) -> Result<String, Refusal> {
        check_at(settings, "/v1/fleet", headers)
    }

    fn check_at(settings: &Settings, uri: &'static str, headers: &HeaderMap) -> Result<String, Refusal> {
        let tenants = Tenants::by_key([7; 32]);
        let caller = check(settings, &tenants, settings.own_records, None, &Uri::from_static(uri), headers)?;
        Ok(match caller {
            Caller::Operator(operator) => operator.name().to_owned(),
            Caller::Own(tenant) => {
                assert!(crate::tenant::is_same(tenant, tenants.of(headers, None).unwrap()));
                "own".to_owned()
            }
        })
    }

    fn here() -> Result<String, Refusal> {
        Ok("this machine".to_owned())
    }

    #[test]
    fn without_tokens_only_this_machine_may_ask() {
        let open = Settings::default();
        assert_eq!(checked(&open, &asked("10.0.0.1:8081", None)), Err(Refusal::NotConfigured));
        let local = Settings { loopback: true, ..open };
        for host in ["127.0.0.1:8081", "127.0.0.1", "[::1]:8081", "localhost", "LocalHost:8081"] {
            assert_eq!(checked(&local, &asked(host, None)), here(), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8081", "127.0.0.1.nip.io", "", "a b", "[::1"] {
            assert_eq!(checked(&local, &asked(host, None)), Err(Refusal::ForeignHost(host.to_owned())), "{host}");
        }
        let refused = check_at(&local, "http://evil.example/v1/fleet", &asked("127.0.0.1", None));
        assert_eq!(refused, Err(Refusal::ForeignHost("evil.example".to_owned())), "an absolute request target");
        assert_eq!(checked(&local, &HeaderMap::new()), here(), "HTTP/1.0 names no host, and no browser speaks it");
    }

    #[test]
    fn with_tokens_one_of_them_opens_from_anywhere() {
        let tokens = vec![Token::new("ops", "s3cret"), Token::new("ci", "other")];
        for loopback in [false, true] {
            let settings = Settings { tokens: tokens.clone(), loopback, own_records: false, ..Settings::default() };
            for (authorization, want) in [
                (None, Err(Refusal::NoToken)),
                (Some("Basic s3cret"), Err(Refusal::NoToken)),
                (Some("Bearer"), Err(Refusal::NoToken)),
                (Some("Bearer "), Err(Refusal::NoToken)),
                (Some("Bearer s3cre"), Err(Refusal::WrongToken)),
                (Some("Bearer s3cret1"), Err(Refusal::WrongToken)),
                (Some("Bearer s3cret"), Ok("ops".to_owned())),
                (Some("bearer  other "), Ok("ci".to_owned())),
            ] {
                assert_eq!(checked(&settings, &asked("gw.example", authorization)), want, "{authorization:?}");
            }
        }
    }

    #[test]
    fn every_token_is_compared_whichever_it_is() {
        let tokens = ["first", "second", "third"].map(|name| Token::new(name, name));
        for secret in ["first", "second", "third", "another"] {
            let (digest, mut compared) = (blake3::hash(secret.as_bytes()), Vec::new());
            let found = last_that(&tokens, |token| {
                compared.push(token.name().to_owned());
                token.has(digest)
            });
            assert_eq!(found.map(Token::name), Some(secret).filter(|secret| *secret != "another"));
            assert_eq!(compared, ["first", "second", "third"], "{secret}");
        }
    }

    #[test]
    fn a_key_opens_own_records_wherever_its_bearer_is_no_operator() {
        let token = || vec![Token::new("ops", "s3cret")];
        let key = Some("Bearer sk-a");
        for (tokens, loopback, own_records, host, authorization, want) in [
            (vec![], false, true, "gw", key, Ok("own".to_owned())),
            (vec![], false, true, "gw", None, Err(Refusal::NotConfigured)),
            (vec![], false, false, "gw", key, Err(Refusal::NotConfigured)),
            (vec![], true, true, "localhost", key, here()),
            (vec![], true, true, "evil.example", key, Ok("own".to_owned())),
            (token(), true, true, "localhost", key, Ok("own".to_owned())),
            (token(), false, true, "gw", Some("Bearer s3cret"), Ok("ops".to_owned())),
            (token(), false, true, "gw", None, Err(Refusal::NoToken)),
            (token(), false, false, "gw", key, Err(Refusal::WrongToken)),
        ] {
            let settings = Settings { tokens, loopback, own_records, ..Settings::default() };
            assert_eq!(checked(&settings, &asked(host, authorization)), want, "{settings:?} {host} {authorization:?}");
        }
    }

    #[test]
    fn only_a_scope_that_says_so_may_delete() {
        let token = |scopes| Caller::Operator(Operator::of(&Token::new("ops", "s3cret").allowed(scopes)));
        let (read, delete) = (Err(Refusal::NotAllowed(Scope::Read)), Err(Refusal::NotAllowed(Scope::Delete)));
        for (caller, get, erase) in [
            (token(vec![Scope::Read]), Ok(()), delete.clone()),
            (token(vec![Scope::Delete]), read, Ok(())),
            (token(vec![Scope::Read, Scope::Delete]), Ok(()), Ok(())),
            (Caller::Operator(Operator::on_this_machine()), Ok(()), delete.clone()),
            (Caller::Own(Tenant([1; 32])), Ok(()), delete),
        ] {
            assert_eq!((caller.may(&Method::GET), caller.may(&Method::POST)), (get.clone(), get), "{caller:?}");
            assert_eq!(caller.may(&Method::DELETE), erase, "{caller:?}");
        }
    }
}

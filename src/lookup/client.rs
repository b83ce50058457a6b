//! The other end of the lookup: how the command line asks a gateway.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::http::HeaderValue;
use hyper::http::uri::Authority;
use hyper::http::uri::Scheme;
use hyper::{HeaderMap, Method, Request, StatusCode, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::{CertificateError, Error as TlsError};

use super::around::Around;
use super::erase::Deleted;
use super::links::{Offered, encode};
use super::problem::Problem;
use super::render::Sight;
use crate::snapshot::{Document, SnapshotId};
use crate::tls::{ClientSettings, Connector, Dialer, LoadError};

/// How long a gateway may take to answer before it is given up.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The same when it has to delete: all of a tenant's records, in slices between commits.
const DELETE_TIMEOUT: Duration = Duration::from_secs(3600);

/// A gateway that is busy is asked again so many times, and after such a pause: a long export outlives a busy minute.
const BUSY_TRIES_MAX: u32 = 60;
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// The largest answer that is read: a hundred documents with as many candidates as there can be are a tenth of it.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a listener that speaks TLS says to plain HTTP.
const PLAIN_TEXT_ANSWER: &[u8] = b"this port speaks TLS: write https, not http\n";

/// What a gateway answered.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// The key is the ID of one request.
    One(FetchedDocument),
    /// Several requests can bear the key; these do, newest first.
    Several {
        /// At least one.
        documents: Vec<FetchedDocument>,
        /// There are no more than these.
        complete: bool,
    },
    /// There is none, and why.
    Problem(Problem),
}

/// A document as it came, known to be one.
#[derive(Clone, Debug)]
pub struct FetchedDocument {
    json: Box<RawValue>,
    /// Where to look next.
    pub links: Offered,
    /// What else went on, if that was asked for.
    pub around: Option<Around>,
    /// What of the decision it has.
    pub sight: Sight,
}

/// What stands beside a document.
#[derive(Deserialize)]
struct Beside {
    /// An older gateway offers none.
    #[serde(default)]
    links: Offered,
    around: Option<Around>,
    /// What is for operators was taken out.
    #[serde(default)]
    redacted: bool,
}

impl FetchedDocument {
    pub(super) fn read(json: Box<RawValue>) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Document<'_>>(json.get())?;
        let Beside { links, around, redacted } = serde_json::from_str(json.get())?;
        Ok(Self { json, links, around, sight: if redacted { Sight::Own } else { Sight::Whole } })
    }

    /// The document.
    pub fn document(&self) -> Document<'_> {
        serde_json::from_str(self.json.get()).expect("it was read once before")
    }

    /// The JSON as the gateway sent it.
    pub fn json(&self) -> &str {
        self.json.get()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum FetchError {
    /// The address cannot be asked.
    Address {
        /// As given.
        admin: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The token cannot be put into a header.
    Token,
    /// Nobody answered.
    Unreachable {
        /// Who was asked.
        admin: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The files for TLS cannot be used.
    Files(LoadError),
    /// The two ends could not agree on TLS.
    Tls {
        /// Who was asked.
        admin: String,
        /// Why.
        source: TlsError,
    },
    /// No answer came in time.
    TimedOut {
        /// Who was asked.
        admin: String,
        /// For so long.
        after: Duration,
    },
    /// The answer is larger than any that a gateway gives.
    TooLarge {
        /// Who was asked.
        admin: String,
    },
    /// The answer is none of a snapgate.
    NotSnapgate {
        /// Who was asked.
        admin: String,
        /// The status it gave.
        status: u16,
        /// Why the answer could not be read.
        source: serde_json::Error,
    },
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { admin, reason } => {
                write!(
                    f,
                    "cannot ask {admin:?}: {reason}; give the admin listener's address, such as http://127.0.0.1:8081"
                )
            }
            Self::Token => {
                f.write_str("the token has characters that no header can carry: check that it was copied whole")
            }
            Self::Unreachable { admin, source } => {
                write!(
                    f,
                    "no answer from {admin}: {}; is the gateway running, and is this its admin listener?",
                    root(source.as_ref())
                )
            }
            Self::Files(error) => error.fmt(f),
            Self::Tls { admin, source } => write!(f, "no connection to {admin}: {}: {}", said(source), advice(source)),
            Self::TimedOut { admin, after } => {
                write!(f, "no answer from {admin} within {} s: try again", after.as_secs())
            }
            Self::TooLarge { admin } => {
                write!(
                    f,
                    "the answer of {admin} is larger than {ANSWER_BYTES_MAX} bytes: is this a gateway's admin listener?"
                )
            }
            Self::NotSnapgate { admin, status, source } => {
                write!(
                    f,
                    "{admin} answered {status} with what is no snapshot ({source}): is this a gateway's admin listener?"
                )
            }
        }
    }
}

impl Error for FetchError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable { source, .. } => Some(source.as_ref()),
            Self::NotSnapgate { source, .. } => Some(source),
            Self::Files(source) => Some(source),
            Self::Tls { source, .. } => Some(source),
            Self::Address { .. } | Self::Token | Self::TimedOut { .. } | Self::TooLarge { .. } => None,
        }
    }
}

/// The first cause: hyper's own words are "client error (Connect)", which helps nobody.
fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    causes(error).last().unwrap_or(error)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// What of TLS went wrong, if anything did.
fn tls_error(error: &(dyn Error + 'static)) -> Option<TlsError> {
    let inner = |error: &(dyn Error + 'static)| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref().cloned();
    causes(error).find_map(inner)
}

/// What went wrong, in words.
fn said(error: &TlsError) -> String {
    match error {
        TlsError::InvalidCertificate(why) if is_authority(why) => {
            "its certificate is marked CA:TRUE, as one that issues others".to_owned()
        }
        error => error.to_string(),
    }
}

/// A certificate that may sign others is none for a server, whoever believes it. rustls has no name for that.
fn is_authority(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity"))
}

/// What to do about it.
fn advice(error: &TlsError) -> &'static str {
    match error {
        TlsError::InvalidCertificate(why) if is_authority(why) => {
            "give the gateway one that is a server's, as by openssl req -x509 -addext basicConstraints=critical,CA:FALSE \
             (deploy/README.md has the line)"
        }
        TlsError::InvalidCertificate(_) => {
            "is this the name in its certificate, and does --ca name who issued that? Without --ca it is the system's \
             authorities who have to"
        }
        TlsError::InvalidMessage(_) => "does it speak TLS? If not, write http://",
        TlsError::AlertReceived(_) => "it may want a certificate: --client-cert and --client-key",
        _ => "is this a gateway's admin listener?",
    }
}

/// The admin listener of a gateway, and how it is asked. Connections are kept from one question to the next.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client<Dialer, Empty<Bytes>>,
    /// As given, for messages.
    admin: String,
    scheme: Scheme,
    authority: Authority,
    authorization: Option<HeaderValue>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Admin {
    /// The gateway whose admin listener is at `admin` (`http://HOST:PORT` or `https://HOST:PORT`); nobody is asked yet.
    /// `tls` says whom to believe with `https`.
    ///
    /// # Errors
    /// The address or the token cannot be one, or the files for TLS cannot be used.
    pub fn new(admin: &str, token: Option<&str>, tls: &ClientSettings) -> Result<Self, FetchError> {
        let (scheme, authority) = address(admin)?;
        let secure = scheme == Scheme::HTTPS;
        if !secure && *tls != ClientSettings::default() {
            let reason = "certificates go with https, and this would be plain text";
            return Err(FetchError::Address { admin: admin.to_owned(), reason });
        }
        let connector = secure.then(|| Connector::load("admin", tls.clone())).transpose().map_err(FetchError::Files)?;
        let authorization = token.map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
        let authorization = authorization.transpose().map_err(|_| FetchError::Token)?;
        let dialer = Dialer::new(HttpConnector::new(), connector.map(Arc::new));
        let client = Client::builder(TokioExecutor::new()).build(dialer);
        Ok(Self { client, admin: admin.to_owned(), scheme, authority, authorization })
    }

    /// Asks for a path, query included, which has to be percent-encoded.
    pub(super) async fn get(&self, path: &str, accept: &'static str) -> Result<Answered, FetchError> {
        self.send(Method::GET, path, accept, FETCH_TIMEOUT).await
    }

    /// Asks for anything, and waits so long for the answer.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        patience: Duration,
    ) -> Result<Answered, FetchError> {
        let admin = || self.admin.clone();
        let address = |_| FetchError::Address { admin: admin(), reason: "it is not a host and a port" };
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(path);
        let uri = uri.build().map_err(address)?;
        let mut request = Request::builder().method(method).uri(uri).header(header::ACCEPT, accept);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).expect("all its parts were checked");
        let answer = timeout(patience, self.ask(request)).await;
        let answer =
            answer.map_err(|_| FetchError::TimedOut { admin: admin(), after: patience })?.map_err(|source| {
                if source.is::<LengthLimitError>() {
                    FetchError::TooLarge { admin: admin() }
                } else if let Some(source) = tls_error(source.as_ref()) {
                    FetchError::Tls { admin: admin(), source }
                } else {
                    FetchError::Unreachable { admin: admin(), source }
                }
            })?;
        if answer.status == StatusCode::BAD_REQUEST && answer.body == *PLAIN_TEXT_ANSWER {
            return Err(FetchError::Address { admin: admin(), reason: "it speaks TLS: write https" });
        }
        Ok(answer)
    }

    /// The same, and again as long as the gateway says that it is busy.
    pub(super) async fn patiently(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        patience: Duration,
    ) -> Result<Answered, FetchError> {
        let mut answer = self.send(method.clone(), path, accept, patience).await?;
        for _ in 0..BUSY_TRIES_MAX {
            if !matches!(answer.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
                break;
            }
            sleep(BUSY_PAUSE).await;
            answer = self.send(method.clone(), path, accept, patience).await?;
        }
        Ok(answer)
    }

    async fn ask(&self, request: Request<Empty<Bytes>>) -> Result<Answered, Box<dyn Error + Send + Sync>> {
        let (head, body) = self.client.request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok(Answered { status: head.status, headers: head.headers, body })
    }

    /// The problem that an answer is.
    pub(super) fn problem(&self, answer: &Answered) -> Result<Problem, FetchError> {
        serde_json::from_slice(&answer.body).map_err(|source| self.not_snapgate(answer.status, source))
    }

    /// An answer could not be read.
    pub(super) fn not_snapgate(&self, status: StatusCode, source: serde_json::Error) -> FetchError {
        FetchError::NotSnapgate { admin: self.admin.clone(), status: status.as_u16(), source }
    }
}

/// Asks a gateway for a key, and for what else went wrong within `around` (`30s`) of the request.
///
/// # Errors
/// Nobody answered, or with what is no answer of a gateway.
pub async fn fetch(admin: &Admin, key: &str, around: Option<&str>) -> Result<Fetched, FetchError> {
    let mut path = "/v1/snapshots/".to_owned();
    encode(key.trim(), &mut path);
    if let Some(around) = around {
        path.push_str("?around=");
        encode(around, &mut path);
    }
    let answer = admin.get(&path, "application/json, application/problem+json").await?;
    read(answer.status, &answer.body).map_err(|source| admin.not_snapgate(answer.status, source))
}

/// What is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One request's record.
    Id(SnapshotId),
    /// All of a tenant's, by `t_` and eight digits or all 64.
    Tenant(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Tenant(tenant) => write!(f, "everything of tenant {tenant}"),
        }
    }
}

/// Has a gateway delete. Comes back when that is settled, which takes as long as there is much to delete.
///
/// # Errors
/// Nobody answered, or with what is no answer of a gateway. What was asked for may be done even so.
pub async fn delete(admin: &Admin, subject: &Subject) -> Result<Result<Deleted, Problem>, FetchError> {
    let mut path = "/v1/snapshots".to_owned();
    match subject {
        Subject::Id(id) => path.push_str(&format!("/{id}")),
        Subject::Tenant(tenant) => {
            path.push_str("?tenant=");
            encode(tenant, &mut path);
        }
    }
    let answer = admin.patiently(Method::DELETE, &path, "application/json, application/problem+json", DELETE_TIMEOUT);
    let answer = answer.await?;
    if answer.status != StatusCode::OK {
        return admin.problem(&answer).map(Err);
    }
    serde_json::from_slice(&answer.body).map(Ok).map_err(|source| admin.not_snapgate(answer.status, source))
}

/// What is asked of an address; without a scheme it is `http`.
fn address(admin: &str) -> Result<(Scheme, Authority), FetchError> {
    let refuse = |reason| FetchError::Address { admin: admin.to_owned(), reason };
    let (scheme, authority) = match admin.split_once("://") {
        Some(("http", authority)) => (Scheme::HTTP, authority),
        Some(("https", authority)) => (Scheme::HTTPS, authority),
        Some(_) => return Err(refuse("the scheme is neither http nor https")),
        None => (Scheme::HTTP, admin),
    };
    let authority = authority.trim_end_matches('/');
    if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
        return Err(refuse("it is not a host and a port"));
    }
    authority.parse().map(|authority| (scheme, authority)).map_err(|_| refuse("it is not a host and a port"))
}

/// The list that a trace ID or a client's request ID answers.
#[derive(Deserialize)]
struct MatchList {
    matches: Vec<Box<RawValue>>,
    complete: bool,
}

fn read(status: StatusCode, body: &[u8]) -> Result<Fetched, serde_json::Error> {
    if !status.is_success() {
        return serde_json::from_slice(body).map(Fetched::Problem);
    }
    if let Ok(MatchList { matches, complete }) = serde_json::from_slice(body) {
        let documents = matches.into_iter().map(FetchedDocument::read).collect::<Result<_, _>>()?;
        return Ok(Fetched::Several { documents, complete });
    }
    serde_json::from_slice(body).and_then(FetchedDocument::read).map(Fetched::One)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_becomes_one_segment_of_the_path() {
        for (key, want) in [
            ("abc", "abc"),
            ("a/b?c#d %", "a%2Fb%3Fc%23d%20%25"),
            ("..", ".."),
            ("\u{fc}", "%C3%BC"),
            ("a&b=c+d", "a%26b%3Dc%2Bd"),
        ] {
            let mut encoded = String::new();
            encode(key, &mut encoded);
            assert_eq!(encoded, want);
        }
        for (admin, want) in [
            ("http://127.0.0.1:8081/", "http://127.0.0.1:8081"),
            ("gw:8081", "http://gw:8081"),
            ("[::1]:8081", "http://[::1]:8081"),
            ("http://gw", "http://gw"),
            ("https://gw:8081", "https://gw:8081"),
        ] {
            let (scheme, authority) = address(admin).unwrap();
            assert_eq!(format!("{scheme}://{authority}"), want);
        }
    }

    #[test]
    fn an_address_that_cannot_be_asked_is_refused_with_advice() {
        for admin in ["ftp://gw", "", "http://", "http://gw/v1", "http://user@gw", "a b"] {
            let error = address(admin).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:8081"), "{admin}: {error}");
        }
    }

    #[tokio::test]
    async fn who_is_not_there_and_what_cannot_be_sent_are_said_plainly() {
        // Nobody listens there, and nobody can while the port is held.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let unused = held.local_addr().unwrap();
        let plain = ClientSettings::default();
        let admin = Admin::new(&unused.to_string(), None, &plain).unwrap();
        let error = fetch(&admin, "k", None).await.unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("refused"), "the first cause is told: {error}");
        assert!(matches!(Admin::new("gw:1", Some("a\nb"), &plain), Err(FetchError::Token)));
        let ca = ClientSettings { ca: Some("ca.crt".into()), identity: None };
        assert!(matches!(Admin::new("http://gw:1", None, &ca), Err(FetchError::Address { .. })), "no token in clear");
        assert!(matches!(Admin::new("https://gw:1", None, &ca), Err(FetchError::Files(_))));
    }
}

//! The other end of the lookup: how `snapgate lookup --admin` asks a gateway.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::problem::Problem;
use crate::snapshot::Document;

/// How long a gateway may take to answer before it is given up.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer that is read: a hundred documents with as many candidates as there can be are a tenth of it.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

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
}

impl FetchedDocument {
    fn read(json: Box<RawValue>) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Document<'_>>(json.get())?;
        Ok(Self { json })
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
    /// No answer came within ten seconds.
    TimedOut {
        /// Who was asked.
        admin: String,
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
            Self::TimedOut { admin } => {
                write!(f, "no answer from {admin} within {} s: try again", FETCH_TIMEOUT.as_secs())
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
            Self::Address { .. } | Self::Token | Self::TimedOut { .. } | Self::TooLarge { .. } => None,
        }
    }
}

/// The first cause: hyper's own words are "client error (Connect)", which helps nobody.
fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error)
}

/// Asks the gateway whose admin listener is at `admin` (`http://HOST:PORT`) for a key.
pub async fn fetch(admin: &str, key: &str, token: Option<&str>) -> Result<Fetched, FetchError> {
    let uri = lookup_uri(admin, key)?;
    let mut request = Request::get(uri).header(header::ACCEPT, "application/json, application/problem+json");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| FetchError::Token)?;
    let admin = admin.to_owned();
    let Ok(answer) = timeout(FETCH_TIMEOUT, ask(request)).await else { return Err(FetchError::TimedOut { admin }) };
    let (status, body) = answer.map_err(|source| {
        if source.is::<LengthLimitError>() {
            FetchError::TooLarge { admin: admin.clone() }
        } else {
            FetchError::Unreachable { admin: admin.clone(), source }
        }
    })?;
    read(status, &body).map_err(|source| FetchError::NotSnapgate { admin, status: status.as_u16(), source })
}

async fn ask(request: Request<Empty<Bytes>>) -> Result<(StatusCode, Bytes), Box<dyn Error + Send + Sync>> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let answer = client.request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?;
    Ok((status, body.to_bytes()))
}

fn lookup_uri(admin: &str, key: &str) -> Result<Uri, FetchError> {
    let refuse = |reason| FetchError::Address { admin: admin.to_owned(), reason };
    let authority = match admin.split_once("://") {
        Some(("http", authority)) => authority,
        Some(("https", _)) => return Err(refuse("the admin listener speaks http, not https")),
        Some(_) => return Err(refuse("the scheme is not http")),
        None => admin,
    };
    let authority = authority.trim_end_matches('/');
    if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
        return Err(refuse("it is not a host and a port"));
    }
    let path = format!("/v1/snapshots/{}", percent_encoded(key));
    Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|_| refuse("it is not a host and a port"))
}

/// Everything but the unreserved characters of RFC 3986 is encoded, so that a key is one segment of the path.
fn percent_encoded(key: &str) -> String {
    let mut encoded = String::with_capacity(key.len());
    for byte in key.trim().bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
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
        for (admin, key, want) in [
            ("http://127.0.0.1:8081", "abc", "http://127.0.0.1:8081/v1/snapshots/abc"),
            ("http://127.0.0.1:8081/", " abc\n", "http://127.0.0.1:8081/v1/snapshots/abc"),
            ("gw:8081", "a/b?c#d %", "http://gw:8081/v1/snapshots/a%2Fb%3Fc%23d%20%25"),
            ("[::1]:8081", "..", "http://[::1]:8081/v1/snapshots/.."),
            ("http://gw", "ü", "http://gw/v1/snapshots/%C3%BC"),
        ] {
            assert_eq!(lookup_uri(admin, key).unwrap().to_string(), want);
        }
    }

    #[test]
    fn an_address_that_cannot_be_asked_is_refused_with_advice() {
        for admin in ["https://gw:8081", "ftp://gw", "", "http://", "http://gw/v1", "http://user@gw", "a b"] {
            let error = lookup_uri(admin, "k").unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:8081"), "{admin}: {error}");
        }
    }

    #[tokio::test]
    async fn who_is_not_there_and_what_cannot_be_sent_are_said_plainly() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = fetch(&unused.to_string(), "k", None).await.unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("refused"), "the first cause is told: {error}");
        assert!(matches!(fetch("gw:1", "k", Some("a\nb")).await, Err(FetchError::Token)));
    }
}

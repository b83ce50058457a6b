//! One GET to a target, bounded in time and bytes, over a connection that is kept.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};

use super::Settings;
use super::budget::Meter;
pub(super) use crate::telemetry::with_causes;
use crate::tls::{Credential, Dialer};

/// Connections kept open to one target. There is one exchange of a kind at a time.
const IDLE_CONNECTIONS: usize = 1;

/// How long a connection is kept unused. uvicorn, which serves most engines, closes its own after 5 s; closing first means
/// that no request runs into a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// What is asked for: OpenMetrics would say the same in other words.
const ACCEPTED: &str = "text/plain;version=0.0.4, text/plain;q=0.9, */*;q=0.1";

/// Asks one kind of question. No proxy, no redirect, no compression: targets are near, and addressed as configured.
#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    client: Client<Dialer, Empty<Bytes>>,
    authorization: Option<Arc<Credential>>,
}

/// What a target answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// It may fail after the status has come.
    pub(super) body: Result<Vec<u8>, FetchError>,
}

/// Why there is no answer, or not all of it.
#[derive(Debug)]
pub(super) enum FetchError {
    /// The whole exchange took longer than this.
    Timeout(Duration),
    /// Nobody listens there, or the name is unknown.
    Connect(legacy::Error),
    /// The connection broke, or what came is not HTTP.
    Exchange(legacy::Error),
    /// The connection broke within the body.
    Body(hyper::Error),
    /// The body has more bytes than this.
    TooLarge(usize),
}

impl Fetcher {
    /// The work of its connections counts as `meter`'s.
    pub(super) fn new(settings: &Settings, connect_timeout: Duration, meter: Arc<Meter>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(connect_timeout));
        connector.set_nodelay(true);
        let client = Client::builder(MeteredExecutor { meter })
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(Dialer::new(connector, settings.connector.clone()));
        Self { client, authorization: settings.authorization.clone() }
    }

    /// Gets `uri` and reads at most `bytes_max` of the body, all `within` a time. What is left unread closes its
    /// connection.
    pub(super) async fn get(&self, uri: &Uri, within: Duration, bytes_max: usize) -> Result<Answer, FetchError> {
        let deadline = Instant::now() + within;
        let timeout = || FetchError::Timeout(within);
        let mut request = Request::get(uri.clone())
            .header(USER_AGENT, concat!("snapgate/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, ACCEPTED)
            .body(Empty::new())
            .expect("the URI was parsed before, and the headers are constants");
        if let Some(credential) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, credential.value());
        }
        let response =
            timeout_at(deadline, self.client.request(request)).await.map_err(|_| timeout())?.map_err(|error| {
                if error.is_connect() { FetchError::Connect(error) } else { FetchError::Exchange(error) }
            })?;
        let status = response.status();
        let body = timeout_at(deadline, read(response.into_body(), bytes_max)).await;
        Ok(Answer { status, body: body.unwrap_or_else(|_| Err(timeout())) })
    }
}

/// The whole body, if it has at most `bytes_max` bytes. Refuses before reading where the head announces more.
async fn read(mut body: Incoming, bytes_max: usize) -> Result<Vec<u8>, FetchError> {
    let announced = body.size_hint().lower();
    if announced > bytes_max as u64 {
        return Err(FetchError::TooLarge(bytes_max));
    }
    let mut bytes = Vec::with_capacity(announced as usize);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(FetchError::Body)?.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            return Err(FetchError::TooLarge(bytes_max));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Runs connections as tasks of their own, timed. They end when the [`Fetcher`] goes.
#[derive(Clone, Debug)]
struct MeteredExecutor {
    meter: Arc<Meter>,
}

impl<F: Future<Output = ()> + Send + Unpin + 'static> hyper::rt::Executor<F> for MeteredExecutor {
    fn execute(&self, connection: F) {
        TokioExecutor::new().execute(self.meter.timed(connection));
    }
}

impl FetchError {
    /// For counting.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Connect(_) => "connect",
            Self::Exchange(_) | Self::Body(_) => "broken",
            Self::TooLarge(_) => "too_large",
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(limit) => write!(f, "no complete answer within {limit:?}"),
            Self::Connect(_) => f.write_str("cannot connect"),
            Self::Exchange(_) => f.write_str("no valid HTTP answer"),
            Self::Body(_) => f.write_str("the connection broke within the answer"),
            Self::TooLarge(limit) => write!(f, "the answer is longer than {limit} bytes"),
        }
    }
}

impl Error for FetchError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            // The client's own words only repeat which variant it is.
            Self::Connect(error) | Self::Exchange(error) => error.source(),
            Self::Body(error) => Some(error),
            Self::Timeout(_) | Self::TooLarge(_) => None,
        }
    }
}

//! The API server: one list, one watch, over connections and with credentials of ours.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::{Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::core::params::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, Resource, Status, WatchEvent};
use tokio::time::timeout;

use super::slices::{EndpointSlice, Slices};
use crate::discovery::Trouble;
use crate::discovery::settings::KubernetesSettings;
use crate::telemetry::{Metrics, with_causes};
use crate::tls::{ClientSettings, Connector, Credential, CredentialSettings, Dialer, Rotate as _};

/// Where the cluster says in which namespace a pod runs.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// The section of the configuration, for log and metrics.
const SECTION: &str = "discovery";

/// For a connection, and for the head of an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// For a whole page of a list.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a watch goes on before the server ends it. A server that is cut off without a word is noticed then at the latest.
const WATCH_SECONDS: u32 = 240;

/// How much longer than agreed a watch is waited for.
const WATCH_GRACE: Duration = Duration::from_secs(10);

/// How soon a connection that says nothing is asked whether there is still somebody, and how often before it is given up.
const KEEPALIVE: (Duration, u32) = (Duration::from_secs(10), 3);

/// Slices on one page of a list: each has 100 endpoints as a rule, 1,000 at most.
const PAGE_SLICES: u32 = 200;

/// The longest page, event or error that is read.
const BYTES_MAX: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum ApiError {
    /// A file that says who we are or whom we believe cannot be used.
    Setup(String),
    /// The server cannot be reached, or breaks off.
    Away(String),
    /// It refuses, with its own words.
    Refused(StatusCode, String),
    /// What it says is not what was asked for.
    Unreadable(String),
    /// It does not remember so much of the past.
    Gone,
}

impl ApiError {
    pub(super) const fn trouble(&self) -> Trouble {
        match self {
            Self::Setup(_) | Self::Away(_) => Trouble::Away,
            Self::Refused(..) => Trouble::Refused,
            Self::Unreadable(_) | Self::Gone => Trouble::Unusable,
        }
    }

    pub(super) fn of_status(status: &Status) -> Self {
        let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::of(code, status.message.clone())
    }

    fn of(code: StatusCode, message: String) -> Self {
        if code == StatusCode::GONE { Self::Gone } else { Self::Refused(code, message) }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(text) => f.write_str(text),
            Self::Away(text) => write!(f, "the API server is away: {text}"),
            Self::Refused(StatusCode::UNAUTHORIZED, text) => {
                write!(f, "the API server does not know us (401 {text}): check `token_file`")
            }
            Self::Refused(StatusCode::FORBIDDEN, text) => {
                write!(
                    f,
                    "the API server forbids it (403 {text}): allow to list and watch endpointslices, as rbac.yaml does"
                )
            }
            Self::Refused(code, text) => write!(f, "the API server refuses: {} {text}", code.as_u16()),
            Self::Unreadable(text) => write!(f, "the API server's answer cannot be read: {text}"),
            Self::Gone => f.write_str("the API server does not remember so much of the past"),
        }
    }
}

/// The EndpointSlices of one service.
pub(super) struct Api {
    client: Client<Dialer, Empty<Bytes>>,
    connector: Option<Arc<Connector>>,
    token: Option<Credential>,
    /// Scheme, host and port.
    base: String,
    request: Request,
    selector: String,
    namespace: String,
}

impl Api {
    /// Reads the files that the settings name, which are small. Asks nobody.
    pub(super) fn open(settings: &KubernetesSettings) -> Result<Self, ApiError> {
        let KubernetesSettings { api, ca, token_file, namespace, selector, .. } = settings;
        let setup = |error: crate::tls::LoadError| ApiError::Setup(error.to_string());
        let namespace = match namespace {
            Some(namespace) => namespace.clone(),
            None => own_namespace()?,
        };
        let connector = if api.starts_with("https://") {
            let settings = ClientSettings { ca: ca.clone(), identity: None };
            Some(Arc::new(Connector::load(SECTION, settings).map_err(setup)?))
        } else {
            None
        };
        let token = token_file.clone().map(|file| Credential::load(SECTION, CredentialSettings::File(file)));
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(TIMEOUT));
        http.set_nodelay(true);
        let (idle, tries) = KEEPALIVE;
        http.set_keepalive(Some(idle));
        http.set_keepalive_interval(Some(idle));
        http.set_keepalive_retries(Some(tries));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .build(Dialer::new(http, connector.clone()));
        Ok(Self {
            client,
            connector,
            token: token.transpose().map_err(setup)?,
            base: api.trim_end_matches('/').to_owned(),
            request: Request::new(EndpointSlice::url_path(&(), Some(&namespace))),
            selector: selector.clone(),
            namespace,
        })
    }

    /// Takes up a token or a certificate that was replaced.
    pub(super) fn look(&self, metrics: &Metrics) {
        if let Some(token) = &self.token {
            token.look(metrics);
        }
        if let Some(connector) = &self.connector {
            connector.look(metrics);
        }
    }

    /// What is asked for, in words.
    pub(super) fn what(&self) -> String {
        format!("EndpointSlices with {} in namespace {}", self.selector, self.namespace)
    }

    /// All slices, and the version as of which that is so.
    pub(super) async fn list(&self) -> Result<(Slices, String), ApiError> {
        let (mut slices, mut next) = (Slices::default(), None);
        loop {
            let mut params = ListParams::default().labels(&self.selector).limit(PAGE_SLICES);
            params.continue_token = next.take();
            let request = self.request.list(&params).map_err(|error| ApiError::Setup(error.to_string()))?;
            let answer = self.ask(request).await?;
            let page = timeout(PAGE_TIMEOUT, whole(answer)).await.map_err(|_| late(PAGE_TIMEOUT))??;
            let page: ObjectList<EndpointSlice> =
                serde_json::from_slice(&page).map_err(|error| ApiError::Unreadable(error.to_string()))?;
            page.items.into_iter().for_each(|slice| slices.put(slice));
            next = page.metadata.continue_.filter(|next| !next.is_empty());
            if next.is_none() {
                let none = || ApiError::Unreadable("the list has no resourceVersion".to_owned());
                return Ok((slices, page.metadata.resource_version.ok_or_else(none)?));
            }
        }
    }

    /// What changes from a version on.
    pub(super) async fn watch(&self, version: &str) -> Result<Watching, ApiError> {
        let params = WatchParams::default().labels(&self.selector).timeout(WATCH_SECONDS);
        let request = self.request.watch(&params, version).map_err(|error| ApiError::Setup(error.to_string()))?;
        let answer = self.ask(request).await?;
        Ok(Watching { body: answer.into_body(), line: BytesMut::new(), searched: 0 })
    }

    /// The answer to a request, once its head is there and is a good one.
    async fn ask(&self, request: http::Request<Vec<u8>>) -> Result<Response<Incoming>, ApiError> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri = format!("{}{path}", self.base)
            .parse()
            .map_err(|error| ApiError::Setup(format!("{} is no URL of an API server: {error}", self.base)))?;
        let mut request = http::Request::get(uri)
            .header(USER_AGENT, concat!("snapgate/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .body(Empty::new())
            .expect("the URI was parsed before, and the headers are constants");
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.value());
        }
        let answer = timeout(TIMEOUT, self.client.request(request)).await.map_err(|_| late(TIMEOUT))?;
        let answer = answer.map_err(|error| ApiError::Away(with_causes(&error)))?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            code => {
                let said = timeout(TIMEOUT, whole(answer)).await.unwrap_or_else(|_| Err(late(TIMEOUT)));
                let status = said.ok().and_then(|said| serde_json::from_slice::<Status>(&said).ok());
                Err(ApiError::of(code, status.map(|status| status.message).unwrap_or_default()))
            }
        }
    }
}

/// Events, one line each.
pub(super) struct Watching {
    body: Incoming,
    line: BytesMut,
    /// So many bytes of it have no end of a line.
    searched: usize,
}

impl Watching {
    /// The next event; `None` when the server has ended the watch, between two lines. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Option<WatchEvent<EndpointSlice>>, ApiError> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.line[self.searched..]) {
                let line = self.line.split_to(self.searched + at);
                self.line.advance(1);
                self.searched = 0;
                let event = serde_json::from_slice(&line);
                return event.map(Some).map_err(|error| ApiError::Unreadable(error.to_string()));
            }
            self.searched = self.line.len();
            if self.line.len() > BYTES_MAX {
                return Err(ApiError::Unreadable(format!("an event is longer than {BYTES_MAX} bytes")));
            }
            let limit = Duration::from_secs(WATCH_SECONDS.into()) + WATCH_GRACE;
            match timeout(limit, self.body.frame()).await.map_err(|_| late(limit))? {
                None if self.line.is_empty() => return Ok(None),
                None => return Err(ApiError::Away("it broke off within an event".to_owned())),
                Some(Err(error)) => return Err(ApiError::Away(with_causes(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.line.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, ApiError> {
    let body = Limited::new(answer.into_body(), BYTES_MAX).collect().await;
    Ok(body.map_err(|error| ApiError::Away(with_causes(&*error)))?.to_bytes())
}

fn late(limit: Duration) -> ApiError {
    ApiError::Away(format!("nothing came within {limit:?}"))
}

fn own_namespace() -> Result<String, ApiError> {
    let wrong = |error| {
        ApiError::Setup(format!("{NAMESPACE_FILE} does not say which namespace is meant ({error}): set `namespace`"))
    };
    fs::read_to_string(NAMESPACE_FILE).map(|text| text.trim().to_owned()).map_err(wrong)
}

//! Connections for hyper-util's client: in plain text or in TLS, as the URL says.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::{Connector, Stream};

/// Dials by URL.
#[derive(Clone, Debug)]
pub struct Dialer {
    http: HttpConnector,
    connector: Option<Arc<Connector>>,
}

impl Dialer {
    /// Without a connector it speaks plain text only.
    pub fn new(mut http: HttpConnector, connector: Option<Arc<Connector>>) -> Self {
        http.enforce_http(false);
        Self { http, connector }
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let tls = (url.scheme() == Some(&Scheme::HTTPS)).then(|| url.host().unwrap_or_default().to_owned());
        let (dialled, connector) = (self.http.call(url), self.connector.clone());
        Box::pin(async move {
            let stream = dialled.await?.into_inner();
            Ok(TokioIo::new(match (tls, connector) {
                (None, _) => Stream::Plain(stream),
                (Some(host), Some(connector)) => connector.connect(&host, stream).await?,
                (Some(_), None) => return Err("https is not set up here".into()),
            }))
        })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

//! One export request over gRPC or HTTP, bounded in time. Both are a POST of the same bytes, so hyper does for both.
//!
//! `opentelemetry-otlp` would do too, but it wants spans in a form of its own, copies each batch for each try, and keeps to
//! itself what a receiver has refused.

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::watch;

use super::answer::{Answer, of_grpc, of_http};
use super::request::{GRPC_PREFIX_BYTES, Request as Export, grpc_prefix};
use super::{PROTOBUF, Protocol, Receiver};
use crate::clock::Clock;
use crate::sink::Refusal;
use crate::telemetry::with_causes;
use crate::tls::{Connector, Dialer};

/// An answer is a few numbers and a sentence; what is longer is none.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// A connection that is gone without a word is noticed so long after, twice: the first ping, and its answer.
const PING: Duration = Duration::from_secs(10);

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Where one signal goes.
#[derive(Debug)]
pub(super) struct Client {
    pool: Pool<Dialer, Full<Bytes>>,
    url: Uri,
    protocol: Protocol,
    headers: HeaderMap,
    gzip: bool,
    timeout: Duration,
    clock: Arc<Clock>,
}

impl Client {
    pub(super) fn new(receiver: &Receiver, connector: Option<Arc<Connector>>, clock: Arc<Clock>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(receiver.timeout));
        let pool = Pool::builder(TokioExecutor::new())
            .http2_only(receiver.protocol == Protocol::Grpc)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PING)
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .build(Dialer::new(tcp, connector));
        let mut headers = receiver.headers.clone();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("snapgate/", env!("CARGO_PKG_VERSION"))));
        match receiver.protocol {
            Protocol::Grpc => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert(TE, HeaderValue::from_static("trailers"));
                let timeout = format!("{}m", receiver.timeout.as_millis());
                headers.insert(GRPC_TIMEOUT, HeaderValue::try_from(timeout).expect("digits are a header"));
                if receiver.gzip {
                    headers.insert(GRPC_ENCODING, HeaderValue::from_static("gzip"));
                }
            }
            Protocol::Http => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_bytes(PROTOBUF).expect("a media type is a header"));
                if receiver.gzip {
                    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
            }
        }
        let Receiver { protocol, gzip, timeout, .. } = *receiver;
        Self { pool, url: receiver.url.clone(), protocol, headers, gzip, timeout, clock }
    }

    /// Where it goes: a URL holds no credentials.
    pub(super) const fn url(&self) -> &Uri {
        &self.url
    }

    /// What goes over the wire for a request.
    pub(super) fn body(&self, request: &Export) -> Bytes {
        if !self.gzip {
            return match self.protocol {
                Protocol::Grpc => request.framed(),
                Protocol::Http => request.message(),
            };
        }
        let message = request.message();
        let prefix = if self.protocol == Protocol::Grpc { GRPC_PREFIX_BYTES } else { 0 };
        let mut gzip = GzEncoder::new(vec![0; prefix], Compression::fast());
        let written = gzip.write_all(&message).and_then(|()| gzip.finish());
        let mut body = written.expect("memory does not refuse a write");
        if prefix > 0 {
            let length = body.len() - prefix;
            body[..prefix].copy_from_slice(&grpc_prefix(true, length));
        }
        body.into()
    }

    /// Sends one request and says what became of it, within the timeout and before the stop ends.
    pub(super) async fn send(&self, body: Bytes, stop_at: watch::Receiver<Option<Instant>>) -> Answer {
        let late = |message| Answer::Refused { refusal: Refusal::Later("timeout"), message };
        tokio::select! {
            answer = tokio::time::timeout(self.timeout, self.exchange(body)) => {
                answer.unwrap_or_else(|_| late(format!("no answer within {} ms", self.timeout.as_millis())))
            }
            () = end_of(stop_at) => late("no answer before the stop's end".to_owned()),
        }
    }

    async fn exchange(&self, body: Bytes) -> Answer {
        let mut request = Request::post(self.url.clone()).body(Full::new(body)).expect("the URL was parsed before");
        request.headers_mut().extend(self.headers.clone());
        let response = match self.pool.request(request).await {
            Ok(response) => response,
            Err(error) => return broken(if error.is_connect() { "connect" } else { "broken" }, &error),
        };
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
            Ok(body) => body,
            Err(error) => return broken("broken", &*error),
        };
        match self.protocol {
            Protocol::Http => of_http(
                head.status,
                &head.headers,
                &body.to_bytes(),
                UNIX_EPOCH + Duration::from_micros(self.clock.now().0),
            ),
            Protocol::Grpc => grpc(head.status, head.headers, body),
        }
    }
}

/// Until the moment that a stop ends, which it may yet have to be told.
async fn end_of(mut stop_at: watch::Receiver<Option<Instant>>) {
    // An error says that nobody is left to tell it.
    let moment = stop_at.wait_for(Option::is_some).await.ok().and_then(|moment| *moment);
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn grpc(status: http::StatusCode, headers: HeaderMap, body: Collected<Bytes>) -> Answer {
    let ended = body.trailers().cloned().unwrap_or(headers);
    let body = body.to_bytes();
    // Nobody compresses an answer that we have not said we could read.
    let message = body.get(GRPC_PREFIX_BYTES..).filter(|_| body[0] == 0);
    of_grpc(status, &ended, message)
}

fn broken(reason: &'static str, error: &(dyn Error + 'static)) -> Answer {
    Answer::Refused { refusal: Refusal::Later(reason), message: with_causes(error) }
}

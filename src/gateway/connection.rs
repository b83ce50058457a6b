//! One client's connection: which HTTP it speaks, within which limits, until it ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::graceful::Watcher;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::flushes::Flushes;
use super::{Settings, Thread};
use crate::tenant::Peer;
use crate::tls::Stream;

/// How a client that speaks HTTP/2 without being asked begins; no HTTP/1.1 request may (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// Streams that a client has reset and the gateway has not yet seen: more, and the connection is closed as a flood.
const RESETS_MAX: usize = 32;

/// Streams that the gateway has reset for the client's errors: more, and the connection is closed as a flood.
const ERRORS_MAX: usize = 128;

/// What a client may send of one body before the gateway has read it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// The same for all bodies of one connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// What is held of one answer for a client that does not take it.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// How often a client on HTTP/2 is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// What is spoken on a connection. Under TLS the handshake says it (ALPN), else the first bytes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Serves a client until its connection ends, or until the requests that are open at a shutdown have ended.
pub(super) async fn serve(
    thread: Arc<Thread>,
    stream: TcpStream,
    watcher: Watcher,
    mut stopped: watch::Receiver<Option<Instant>>,
) {
    let (stream, protocol) = match &thread.gateway.acceptor {
        // In a box, because the state of a handshake is large, and gone when the connection is served.
        Some(acceptor) => match Box::pin(acceptor.accept(stream)).await {
            Some(stream) if stream.is_http2() => (stream, Protocol::Http2),
            Some(stream) => (stream, Protocol::Http1),
            None => return,
        },
        None => {
            let begun =
                tokio::time::timeout(thread.gateway.current.load().settings.request_head_timeout, spoken(&stream));
            let protocol = tokio::select! {
                begun = begun => match begun {
                    Ok(protocol) => protocol,
                    Err(_) => return,
                },
                // Nothing was asked yet: the connection ends as any that is idle.
                _ = stopped.changed() => Protocol::Http1,
            };
            (Stream::Plain(stream), protocol)
        }
    };
    match protocol {
        Protocol::Http1 => serve_http1(thread, stream, watcher).await,
        Protocol::Http2 => serve_http2(thread, stream, watcher).await,
    }
}

/// Looks at the first bytes without taking them: three are enough, and who sends fewer at once speaks HTTP/1.1.
async fn spoken(stream: &TcpStream) -> Protocol {
    let mut first = [0; 3];
    match stream.peek(&mut first).await {
        Ok(count) if count == first.len() && PREFACE.starts_with(&first) => Protocol::Http2,
        // An error shows itself again when it is read.
        _ => Protocol::Http1,
    }
}

/// Where the client is, if its tenant may depend on that.
fn peer(thread: &Thread, stream: &Stream) -> Option<Peer> {
    let wanted = thread.gateway.tenants.needs_peer();
    wanted.then(|| stream.peer_addr().ok()).flatten().map(|address| Peer(address.ip()))
}

async fn serve_http1(thread: Arc<Thread>, stream: Stream, watcher: Watcher) {
    let gateway = Arc::clone(&thread.gateway);
    let Settings { request_head_timeout, head_bytes_max, headers_max, client_stall, .. } =
        gateway.current.load().settings;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(request_head_timeout)
        .max_buf_size(head_bytes_max)
        .max_headers(headers_max);
    let flushes = Flushes::default();
    let peer = peer(&thread, &stream);
    let stream = flushes.of(stream, client_stall);
    let seen = flushes.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let (thread, flushes) = (Arc::clone(&thread), flushes.clone());
        flushes.asked();
        async move { Ok::<_, Infallible>(thread.handle(request, flushes).await) }
    });
    if let Err(error) = watcher.watch(builder.serve_connection(stream, service)).await {
        // A head that broke off, or was too slow; not a connection that idled or was left in mid-answer.
        let cut_short = error.is_timeout() || error.is_incomplete_message();
        if error.is_parse() || cut_short && seen.is_mid_head() {
            gateway.metrics.unparsed.inc();
        }
        tracing::debug!(%error, "a client's connection ended badly");
    }
}

async fn serve_http2(thread: Arc<Thread>, stream: Stream, watcher: Watcher) {
    let Settings { head_bytes_max, client_stall, .. } = thread.gateway.current.load().settings;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(ERRORS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL);
    let flushes = Flushes::of_streams();
    let peer = peer(&thread, &stream);
    let stream = flushes.of(stream, client_stall);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let (thread, flushes) = (Arc::clone(&thread), flushes.clone());
        async move { Ok::<_, Infallible>(thread.handle(request, flushes).await) }
    });
    if let Err(error) = watcher.watch(builder.serve_connection(stream, service)).await {
        tracing::debug!(%error, "a client's connection ended badly");
    }
}

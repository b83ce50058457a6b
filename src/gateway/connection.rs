//! One client's connection: which HTTP it speaks, within which limits, until it ends.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::Write as _;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::flushes::Flushes;
use super::phase::{self, Phases};
use super::silence::Silence;
use super::streams::Streams;
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

/// How long a client on HTTP/2 may take to leave when it has had no stream open for too long.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// What is spoken on a connection. Under TLS the handshake says it (ALPN), else the first bytes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Serves a client until its connection ends, or until the requests that are open at a shutdown have ended.
pub(super) async fn serve(thread: Arc<Thread>, stream: TcpStream, phases: Phases) {
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
                () = phase::stopping(phases.clone()) => Protocol::Http1,
            };
            (Stream::Plain(stream), protocol)
        }
    };
    match protocol {
        Protocol::Http1 => serve_http1(thread, stream, phases).await,
        Protocol::Http2 => serve_http2(thread, stream, phases).await,
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

/// Where the client is, if its tenant may depend on that, or what it may ask for.
fn peer(thread: &Thread, stream: &Stream) -> Option<Peer> {
    let gateway = &thread.gateway;
    let wanted = gateway.tenants.needs_peer() || gateway.current.load().settings.load_reports.needs_peer();
    wanted.then(|| stream.peer_addr().ok()).flatten().map(|address| Peer(address.ip()))
}

async fn serve_http1(thread: Arc<Thread>, stream: Stream, phases: Phases) {
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
    let mut connection = builder.serve_connection(stream, service);
    let mut stopping = pin!(phase::stopping(phases));
    let (mut is_stopping, mut is_told) = (false, false);
    let ended = poll_fn(|cx| {
        loop {
            let polled = Pin::new(&mut connection).poll(cx);
            if polled.is_ready() || is_told {
                return polled;
            }
            if !is_stopping {
                if stopping.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                is_stopping = true;
                seen.look();
                continue;
            }
            // A request that has come, or has begun to, is answered first; its answer says that it is the last one.
            if seen.is_mid_head() || seen.has_unread() {
                return Poll::Pending;
            }
            is_told = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
    });
    if let Err(error) = ended.await {
        // A head that broke off, or was too slow; not a connection that idled or was left in mid-answer.
        let cut_short = error.is_timeout() || error.is_incomplete_message();
        if error.is_parse() || cut_short && seen.is_mid_head() {
            gateway.metrics.unparsed.inc();
        }
        return tracing::debug!(%error, "a client's connection ended badly");
    }
    let http1::Parts { mut io, read_buf, .. } = connection.into_parts();
    if let Some(tunnel) = seen.switched() {
        // In a box, because few connections become one.
        Box::pin(tunnel.run(io, read_buf, seen)).await;
    } else if !io.is_shut() {
        // hyper leaves it open if an upgrade was ever asked for, whatever the answer was. An error is an end, too.
        poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await.ok();
    }
}

async fn serve_http2(thread: Arc<Thread>, stream: Stream, phases: Phases) {
    let Settings { request_head_timeout, head_bytes_max, client_stall, .. } = thread.gateway.current.load().settings;
    let flushes = Flushes::of_streams(client_stall);
    let streams = Streams::new(flushes.clone(), client_stall);
    let mut builder = http2::Builder::new(streams.clone());
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
    let peer = peer(&thread, &stream);
    let stream = flushes.of(stream, client_stall);
    let answering = streams.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let (thread, flushes) = (Arc::clone(&thread), flushes.clone());
        answering.answer(thread.handle(request, flushes))
    });
    let mut connection = pin!(builder.serve_connection(stream, service));
    let mut leave = pin!(async {
        tokio::select! {
            () = phase::stopping(phases.clone()) => {}
            // A client that has just come may ask once: else it would come again and again, and never be served.
            () = async { tokio::join!(phase::retiring(phases.clone()), streams.first()); } => {}
        }
    });
    let (mut idle, mut since) = (Silence::new(request_head_timeout), Instant::now());
    let (mut is_told, mut is_idle) = (false, false);
    let ended = poll_fn(|cx| {
        loop {
            let polled = connection.as_mut().poll(cx);
            if polled.is_ready() {
                return polled;
            }
            idle.broken(streams.quiet_since().max(since));
            if idle.poll_too_long(cx) {
                if is_idle {
                    // It was told, and does not go; or it has never completed its preface.
                    return Poll::Ready(Ok(()));
                }
                is_idle = true;
                (idle, since) = (Silence::new(FAREWELL_TIME), Instant::now());
            } else if is_told || leave.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            is_told = true;
            connection.as_mut().graceful_shutdown();
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a client's connection ended badly");
    }
}

//! The request's body: read whole, within its bounds, because the choice needs its model and a retry needs its bytes.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::respond::Refusal;
use super::stream::with_causes;
use crate::snapshot::Ending;
use crate::telemetry::{Limit, Metrics};

/// A body's buffer begins with what the client announced, but not with more than this on its word alone.
const TRUSTED_BYTES: usize = 64 * 1024;

/// Up to here a body is small: few requests for text have more. What is kept for small bodies, large ones cannot take.
const SMALL_BYTES: usize = 64 * 1024;

/// One of so many parts of the memory is for small bodies alone: clients that send large bodies slowly, and hold all the rest,
/// keep nobody from chatting.
const SMALL_SHARE: usize = 8;

/// Memory for request bodies, shared by all requests.
#[derive(Clone, Debug)]
pub(super) struct Buffers {
    used: Arc<Used>,
    max: usize,
    large_max: usize,
}

/// Bytes that are held now.
#[derive(Debug)]
struct Used {
    /// By all bodies.
    all: AtomicUsize,
    /// By those that are large.
    large: AtomicUsize,
    /// Where it is said that there was no room.
    metrics: Arc<Metrics>,
}

impl Buffers {
    /// None until it is bounded.
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        let (all, large) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { used: Arc::new(Used { all, large, metrics: Arc::clone(metrics) }), max: 0, large_max: 0 }
    }

    /// The same memory under another bound. One body of the largest size always fits into an empty one.
    pub(super) fn bounded(&self, max: usize, body_max: usize) -> Self {
        Self { max, large_max: (max - max / SMALL_SHARE).max(body_max), ..self.clone() }
    }

    fn share(&self) -> Share {
        Share { buffers: self.clone(), bytes: 0 }
    }

    /// Whether there is room for a body of so many bytes now.
    fn fits(&self, bytes: usize) -> bool {
        let fits = |used: &AtomicUsize, max| used.load(Relaxed).saturating_add(bytes) <= max;
        fits(&self.used.all, self.max) && (bytes <= SMALL_BYTES || fits(&self.used.large, self.large_max))
    }

    fn no_room(&self) -> Refusal {
        self.used.metrics.reached.note(Limit::BufferedBytes);
        Refusal::failed(
            Ending::Overloaded,
            "the gateway holds too many request bodies at the moment: try again soon",
            Some("limits.buffered_bytes is used up".into()),
        )
    }
}

/// One request's part of the buffers; returned when dropped.
#[derive(Debug)]
struct Share {
    buffers: Buffers,
    bytes: usize,
}

impl Share {
    /// `false` if there is no room for `bytes` more.
    fn grow(&mut self, bytes: usize) -> bool {
        let Buffers { used, max, large_max } = &self.buffers;
        let large_before = self.large();
        self.bytes += bytes;
        let fits = used.all.fetch_add(bytes, Relaxed) + bytes <= *max;
        // A body that becomes large is counted with all that it had.
        let large = self.large() - large_before;
        let large_fits = large == 0 || used.large.fetch_add(large, Relaxed) + large <= *large_max;
        fits && large_fits
    }

    /// What of it counts as that of a large body: all or nothing.
    fn large(&self) -> usize {
        if self.bytes > SMALL_BYTES { self.bytes } else { 0 }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.buffers.used.all.fetch_sub(self.bytes, Relaxed);
        self.buffers.used.large.fetch_sub(self.large(), Relaxed);
    }
}

/// A body that was read, and its part of the buffers. Both go with the last handle to the bytes, which is when they
/// have been written to the target: a long answer holds no room.
#[derive(Debug)]
struct Held {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body as it was received.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Bytes,
    /// It was followed by trailers, which are dropped.
    pub(super) had_trailers: bool,
}

/// Reads the body, or says why it is refused. What can be known before is refused unread, so that a client that waits
/// for `100 Continue` does not send it: hyper says that when the body is first asked for.
pub(super) async fn body(
    body: &mut Incoming,
    bytes_max: usize,
    time_max: Duration,
    buffers: &Buffers,
) -> Result<Received, Refusal> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > bytes_max {
        return Err(too_large(bytes_max));
    }
    if !buffers.fits(announced) {
        return Err(buffers.no_room());
    }
    match tokio::time::timeout(time_max, read(body, bytes_max, buffers.share())).await {
        Ok(read) => read,
        Err(_) => Err(Refusal::rejected(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request's body was not complete within {} s", time_max.as_secs_f64()),
        )),
    }
}

async fn read(body: &mut Incoming, bytes_max: usize, mut share: Share) -> Result<Received, Refusal> {
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    let mut had_trailers = false;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        let Ok(data) = frame.into_data() else {
            had_trailers = true;
            continue;
        };
        if first.len() + whole.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        if !share.grow(data.len()) {
            return Err(share.buffers.no_room());
        }
        // Most bodies come in one piece, which is then passed on without a copy.
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            let announced = usize::try_from(body.size_hint().lower()).unwrap_or(0);
            whole.reserve(first.len() + data.len() + announced.min(TRUSTED_BYTES));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    let mut bytes = if whole.is_empty() { first } else { whole.freeze() };
    if !bytes.is_empty() {
        bytes = Bytes::from_owner(Held { bytes, _share: share });
    }
    Ok(Received { bytes, had_trailers })
}

/// A body that ended before its end, because the client has left, or that is no body.
fn broken(error: &hyper::Error) -> Refusal {
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    if matches!(cause, Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)) {
        return Refusal::malformed("the request's body is not framed as HTTP wants it");
    }
    // Nobody will read this answer: it is for the record.
    Refusal::failed(Ending::ClientDisconnected, "the request's body broke off", Some(with_causes(error).into()))
}

fn too_large(bytes_max: usize) -> Refusal {
    Refusal::rejected(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the request's body is larger than {bytes_max} bytes (limits.body_bytes)"),
    )
}

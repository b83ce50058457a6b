//! A target's body on its way to the client: every frame passes untouched and unbuffered, and is looked at in passing.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::flushes::{Flushes, Mark};
use super::load_reports;
use super::pool::Lease;
use super::recorder::Recorder;
use super::respond;
use super::silence::Silence;
use crate::snapshot::{Ending, ReportPhase};
pub(super) use crate::telemetry::with_causes;

/// The body broke. The client sees its connection end without the body's end; the record says why.
#[derive(Debug)]
pub(super) enum StreamError {
    /// The target's connection broke.
    Reset(hyper::Error),
    /// The target fell silent.
    Silent(Duration),
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(error) => write!(f, "the target's answer broke off: {}", with_causes(error)),
            Self::Silent(limit) => write!(f, "the target sent nothing for {} ms", limit.as_millis()),
        }
    }
}

impl std::error::Error for StreamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Reset(error) => Some(error),
            Self::Silent(_) => None,
        }
    }
}

impl StreamError {
    fn ending(&self) -> Ending {
        match self {
            Self::Reset(_) => Ending::UpstreamReset,
            Self::Silent(_) => Ending::UpstreamTimeout,
        }
    }
}

/// Why a client was given up that takes nothing.
pub(super) fn stalled(limit: Duration) -> String {
    format!("the client took nothing for {} ms (timeouts.client_stall)", limit.as_millis())
}

/// The passing body. When it ends the request is finished; when it is dropped before, the recorder's drop says so.
#[derive(Debug)]
pub(super) struct RecordedBody {
    inner: Incoming,
    recorder: Recorder,
    /// What the body comes on. Given back at the end; dropped, and so closed, at any other.
    lease: Option<Lease>,
    silence: Silence,
    /// Of the client's connection.
    flushes: Flushes,
    /// The piece that was given last, where the client's connection has to know.
    last: Option<Bytes>,
    failed: Option<Failed>,
    done: bool,
}

/// An error that the client's connection is not told yet.
#[derive(Debug)]
struct Failed {
    error: StreamError,
    mark: Mark,
}

impl RecordedBody {
    pub(super) fn new(
        inner: Incoming,
        recorder: Recorder,
        lease: Lease,
        silence_max: Duration,
        flushes: Flushes,
    ) -> Self {
        let (lease, silence) = (Some(lease), Silence::new(silence_max));
        let mut body = Self { inner, recorder, lease, silence, flushes, last: None, failed: None, done: false };
        if body.inner.is_end_stream() {
            body.complete();
        }
        body
    }

    fn complete(&mut self) {
        self.done = true;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        self.recorder.finish(Ending::Completed, None, None);
    }

    fn fail(&mut self, error: StreamError, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        self.lease = None;
        self.recorder.finish(error.ending(), None, Some(error.to_string().into()));
        self.failed = Some(Failed { error, mark: self.flushes.mark(self.last.take()) });
        self.poll_failed(cx)
    }

    /// The error, as soon as all that came before it has gone out.
    fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(failed) = &mut self.failed {
            ready!(self.flushes.poll_gone(&mut failed.mark, cx));
        }
        self.done = true;
        Poll::Ready(self.failed.take().map(|failed| Err(failed.error)))
    }
}

/// The client's connection ended first. If that was for its not reading, the record says so; else the recorder's own
/// drop knows what it was.
impl Drop for RecordedBody {
    fn drop(&mut self) {
        self.flushes.answered();
        if let Some(limit) = self.flushes.stalled() {
            self.recorder.finish(Ending::ClientDisconnected, None, Some(stalled(limit).into()));
        }
    }
}

impl Body for RecordedBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        if this.failed.is_some() {
            return this.poll_failed(cx);
        }
        let Some(lease) = &mut this.lease else { return Poll::Ready(None) };
        match lease.poll_frame(&mut this.inner, cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                let now = Instant::now();
                if let Some(data) = frame.data_ref() {
                    this.recorder.frame(data, now.into_std());
                    this.last = this.flushes.by_piece().then(|| data.clone());
                } else if let Some(trailers) = frame.trailers_mut()
                    && let Some(taken) = respond::trailers(trailers)
                {
                    load_reports::received(&mut this.recorder, &taken, ReportPhase::ResponseEnd, trailers);
                }
                this.silence.broken(now);
                // The server may not ask again after the last frame, and never does after trailers.
                if this.inner.is_end_stream() || frame.is_trailers() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => this.fail(StreamError::Reset(error), cx),
            Poll::Pending if this.silence.poll_too_long(cx) => this.fail(StreamError::Silent(this.silence.max()), cx),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.failed.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

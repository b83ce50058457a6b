//! A WebSocket between a client and its target: bytes pass both ways as they come, until both sides have ended.
//!
//! Each direction waits for whoever is to take its bytes before it asks for more, so a slow end slows the other and nothing
//! piles up here. The end of one side is passed on as such: the other may still speak.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use hyper::rt::Write as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::flushes::{Flushes, Watched};
use super::frames::Frames;
use super::recorder::Recorder;
use super::silence::Silence;
use super::stream::{stalled, with_causes};
use crate::snapshot::Ending;
use crate::tls::Stream;

/// What is read at once. What of it cannot be passed on at once is kept, and nothing more is read before it is gone.
const PIECE_BYTES: usize = 16 * 1024;

/// A tunnel that is agreed on and waits for the client's connection.
#[derive(Debug)]
pub(super) struct Tunnel {
    target: Stream,
    up: Way,
    down: Way,
    /// Why the target takes nothing more, while it may still have something to say.
    refused: Option<io::Error>,
    recorder: Recorder,
    silence: Silence,
}

/// Why a tunnel ended before both sides had.
#[derive(Debug)]
enum Broken {
    /// The client's connection broke.
    Client(io::Error),
    /// The target's did.
    Target(io::Error),
    /// Nothing moved for so long.
    Silent {
        limit: Duration,
        /// The client spoke last.
        targets_turn: bool,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => write!(f, "the client's side of the WebSocket broke: {}", with_causes(error)),
            Self::Target(error) => write!(f, "the target's side of the WebSocket broke: {}", with_causes(error)),
            Self::Silent { limit, .. } => {
                write!(f, "the WebSocket was silent for {} ms (timeouts.websocket_idle)", limit.as_millis())
            }
        }
    }
}

/// Which side ended first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Target,
}

impl Tunnel {
    /// `early` is what the target has sent behind its agreement.
    pub(super) fn new(target: Stream, early: Bytes, recorder: Recorder) -> Self {
        let silence = Silence::new(recorder.current().settings.websocket_idle);
        Self { target, up: Way::default(), down: Way::of(early), refused: None, recorder, silence }
    }

    /// Lets bytes pass until the end, and records it. `early` is what the client has sent behind its request.
    pub(super) async fn run(mut self, client: Watched, early: Bytes, flushes: Flushes) {
        let mut client = TokioIo::new(client.tunnelled());
        self.up = Way::of(early);
        self.silence.broken(Instant::now());
        let mut first = None;
        let broken = poll_fn(|cx| self.poll(&mut client, &mut first, cx)).await.err();
        let (ending, error) = self.verdict(broken.as_ref(), first, flushes.stalled());
        self.recorder.finish(ending, None, error);
        if matches!(broken, Some(Broken::Target(_))) {
            let mut client = client.into_inner();
            client.leaves();
            // The target is gone, its last words are written: whether the client can be told is not for the record.
            poll_fn(|cx| Pin::new(&mut client).poll_shutdown(cx)).await.ok();
        }
    }

    /// How it ended. Once somebody has said goodbye it does not matter who hangs up first, or how.
    fn verdict(
        &self,
        broken: Option<&Broken>,
        first: Option<Side>,
        client_stalled: Option<Duration>,
    ) -> (Ending, Option<Box<str>>) {
        let (up, down) = (self.up.frames.may_end(), self.down.frames.may_end());
        let ending = match broken {
            _ if client_stalled.is_some() => Ending::ClientDisconnected,
            Some(Broken::Silent { .. }) if up && down => Ending::Completed,
            Some(Broken::Silent { targets_turn: true, .. }) => Ending::UpstreamTimeout,
            Some(Broken::Silent { .. }) => Ending::ClientDisconnected,
            _ if up || down => Ending::Completed,
            Some(Broken::Client(_)) => Ending::ClientDisconnected,
            Some(Broken::Target(_)) => Ending::UpstreamReset,
            None if first == Some(Side::Target) => Ending::UpstreamReset,
            None => Ending::ClientDisconnected,
        };
        let error = match (ending, client_stalled, broken) {
            (Ending::Completed, ..) => None,
            (_, Some(limit), _) => Some(stalled(limit)),
            (_, _, Some(broken)) => Some(broken.to_string()),
            (Ending::UpstreamReset, ..) => Some("the target left the WebSocket without closing it".to_owned()),
            _ => Some("the client left the WebSocket without closing it".to_owned()),
        };
        (ending, error.map(Into::into))
    }

    /// Ready when both sides have ended, or when one is broken.
    fn poll(
        &mut self,
        client: &mut TokioIo<Watched>,
        first: &mut Option<Side>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        let moved = (self.up.moved, self.down.moved);
        let up = self.up.poll_pass(client, &mut self.target, cx);
        let down = self.down.poll_pass(&mut self.target, client, cx);
        if first.is_none() {
            *first = match (self.up.has_ended, self.down.has_ended) {
                (_, true) => Some(Side::Target),
                (true, false) => Some(Side::Client),
                (false, false) => None,
            };
        }
        if moved != (self.up.moved, self.down.moved) {
            self.silence.broken(Instant::now());
            self.recorder.passed(self.down.read, self.down.frames.messages());
        }
        // A target that takes no more may have said why: that is passed on first.
        let up = match up {
            Poll::Ready(Err(Failed::Writing(error))) => {
                self.refused = Some(error);
                Poll::Pending
            }
            up => up,
        };
        if matches!(down, Poll::Ready(Ok(())))
            && let Some(error) = self.refused.take()
        {
            return Poll::Ready(Err(Broken::Target(error)));
        }
        match (up, down) {
            (_, Poll::Ready(Err(Failed::Reading(error)))) => Poll::Ready(Err(Broken::Target(error))),
            (_, Poll::Ready(Err(Failed::Writing(error)))) | (Poll::Ready(Err(Failed::Reading(error))), _) => {
                Poll::Ready(Err(Broken::Client(error)))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ if self.silence.poll_too_long(cx) => {
                let targets_turn = self.up.last > self.down.last;
                Poll::Ready(Err(Broken::Silent { limit: self.silence.max(), targets_turn }))
            }
            _ => Poll::Pending,
        }
    }
}

/// Why a direction does not go on.
#[derive(Debug)]
enum Failed {
    /// Where its bytes come from is broken.
    Reading(io::Error),
    /// Where they go to is.
    Writing(io::Error),
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Read and not passed on yet.
    left: Bytes,
    /// Written and not known to have gone out.
    unflushed: bool,
    /// Whoever speaks has ended.
    has_ended: bool,
    /// Whoever listens knows.
    is_shut: bool,
    /// Whoever listens is gone; said once.
    failed: bool,
    frames: Frames,
    /// Bytes read.
    read: u64,
    /// Bytes read and written, and ends.
    moved: u64,
    /// When the last byte came.
    last: Option<Instant>,
}

impl Way {
    fn of(early: Bytes) -> Self {
        let mut way = Self::default();
        way.come(&early);
        way.left = early;
        way
    }

    fn come(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.frames.pass(bytes);
            self.read += bytes.len() as u64;
            self.moved += 1;
            self.last = Some(Instant::now());
        }
    }

    /// Ready when the end has been passed on.
    fn poll_pass(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        if self.failed || self.is_shut {
            return if self.failed { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        loop {
            while !self.left.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.left));
                self.written(written)?;
            }
            if self.has_ended {
                let shut = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.is_shut = true;
                // Whoever is not there any more needs no end.
                return Poll::Ready(shut.or(Ok(())));
            }
            let mut space = [MaybeUninit::uninit(); PIECE_BYTES];
            let mut piece = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *from).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if piece.filled().is_empty() => {
                    self.has_ended = true;
                    self.moved += 1;
                }
                Poll::Ready(Ok(())) => self.came(piece.filled(), to, cx)?,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Reading(error))),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|error| self.failed(error))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Passes on what has come; only what is not taken at once is copied.
    fn came(&mut self, piece: &[u8], to: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Result<(), Failed> {
        self.come(piece);
        let taken = match Pin::new(to).poll_write(cx, piece) {
            Poll::Pending => 0,
            Poll::Ready(Ok(0)) => return Err(self.failed(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(taken)) => taken,
            Poll::Ready(Err(error)) => return Err(self.failed(error)),
        };
        self.unflushed |= taken > 0;
        self.left = Bytes::copy_from_slice(&piece[taken..]);
        Ok(())
    }

    fn written(&mut self, written: io::Result<usize>) -> Result<(), Failed> {
        match written {
            Ok(0) => Err(self.failed(io::ErrorKind::WriteZero.into())),
            Ok(taken) => {
                self.left.advance(taken);
                self.unflushed = true;
                self.moved += 1;
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&mut self, error: io::Error) -> Failed {
        self.failed = true;
        Failed::Writing(error)
    }
}

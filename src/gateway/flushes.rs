//! A client's connection, and what its requests have to know of it: when all that was written to it has gone out,
//! whether a head has begun to come, and whether the client still reads.
//!
//! hyper drops what it has not yet sent when a body fails. So a body that breaks off holds its error back until the
//! connection is flushed: the client then gets the head and every byte that came, and only then the broken end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::linger::Linger;
use super::silence::Silence;

/// How often a connection was flushed. hyper flushes only when it has nothing left to write, so one more flush means
/// that everything from before it has been given to the system.
#[derive(Clone, Debug, Default)]
pub(super) struct Flushes(Arc<Counted>);

/// Only the connection's own task touches it: the atomics are for the compiler's sake.
#[derive(Debug, Default)]
struct Counted {
    done: AtomicU64,
    awaited: AtomicBool,
    lingers: AtomicBool,
    /// A request is between its head and the end of its answer.
    answering: AtomicBool,
    /// Something has come since the last answer.
    heard: AtomicBool,
    /// In milliseconds; 0 while the client reads.
    stalled: AtomicU64,
}

impl Flushes {
    /// How many there have been.
    pub(super) fn count(&self) -> u64 {
        self.0.done.load(Relaxed)
    }

    /// Ready when there has been one since the count was `before`. To be asked within the connection's task.
    pub(super) fn poll_since(&self, before: u64) -> Poll<()> {
        if self.count() != before {
            return Poll::Ready(());
        }
        self.0.awaited.store(true, Relaxed);
        Poll::Pending
    }

    /// The connection whose flushes are counted here.
    pub(super) fn of(&self, stream: TcpStream, stall_max: Duration) -> Watched {
        let (flushes, stall) = (self.clone(), Silence::new(stall_max));
        Watched { io: TokioIo::new(stream), flushes, linger: None, stall, blocked: false }
    }

    /// A request's head was read.
    pub(super) fn asked(&self) {
        self.0.answering.store(true, Relaxed);
        self.0.heard.store(false, Relaxed);
    }

    /// Its answer is done.
    pub(super) fn answered(&self) {
        self.0.answering.store(false, Relaxed);
    }

    /// Whether a request's head has begun to come, and not more.
    pub(super) fn is_mid_head(&self) -> bool {
        self.0.heard.load(Relaxed)
    }

    /// For how long the client had taken nothing, if its connection was given up for that.
    pub(super) fn stalled(&self) -> Option<Duration> {
        Some(self.0.stalled.load(Relaxed)).filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    /// The client may still be sending a body that nobody will read: it is to get its answer all the same.
    pub(super) fn linger(&self) {
        self.0.lingers.store(true, Relaxed);
    }

    fn flushed(&self, cx: &Context<'_>) {
        self.0.done.fetch_add(1, Relaxed);
        // The body was asked before this flush, and would not be asked again by itself.
        if self.0.awaited.load(Relaxed) {
            self.0.awaited.store(false, Relaxed);
            cx.waker().wake_by_ref();
        }
    }
}

/// A connection that counts its flushes, gives up on a client that does not read, and reads to the end what a refused one
/// still sends.
#[derive(Debug)]
pub(super) struct Watched {
    io: TokioIo<TcpStream>,
    flushes: Flushes,
    /// From the moment on when the gateway's side was closed.
    linger: Option<Linger>,
    /// Since the system took no more from us.
    stall: Silence,
    blocked: bool,
}

impl Watched {
    /// What became of a write, or an error when the client has left things lying for too long.
    fn written(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.blocked = false;
            return written;
        }
        if !self.blocked {
            self.blocked = true;
            self.stall.broken(Instant::now());
        }
        if !self.stall.poll_too_long(cx) {
            return Poll::Pending;
        }
        self.flushes.0.stalled.store(self.stall.max().as_millis() as u64, Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.io).poll_read(cx, buffer);
        if read.is_ready() && !this.flushes.0.answering.load(Relaxed) {
            this.flushes.0.heard.store(true, Relaxed);
        }
        read
    }
}

impl Write for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.written(written, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        if flushed.is_ready() {
            this.flushes.flushed(cx);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let more = this.flushes.0.lingers.load(Relaxed);
        this.linger.get_or_insert_default().poll(Pin::new(&mut this.io), more, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, pieces);
        this.written(written, cx)
    }
}

//! A client's connection that tells when all that was written to it has gone out.
//!
//! hyper drops what it has not yet sent when a body fails. So a body that breaks off holds its error back until the
//! connection is flushed: the client then gets the head and every byte that came, and only then the broken end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::linger::Linger;

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
    pub(super) fn of(&self, stream: TcpStream) -> Watched {
        Watched { io: TokioIo::new(stream), flushes: self.clone(), linger: None }
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

/// A connection that counts its flushes, and reads to the end what a refused client still sends.
#[derive(Debug)]
pub(super) struct Watched {
    io: TokioIo<TcpStream>,
    flushes: Flushes,
    /// From the moment on when the gateway's side was closed.
    linger: Option<Linger>,
}

impl Watched {
    fn io(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().io)
    }
}

impl Read for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buffer)
    }
}

impl Write for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
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
        self.io().poll_write_vectored(cx, pieces)
    }
}

//! A client's connection, and what its requests have to know of it: when all that was written to it has gone out,
//! whether a head has begun to come, and whether the client still reads.
//!
//! hyper drops what it has not yet sent when a body fails. So a body that breaks off holds its error back until the
//! connection is flushed: the client then gets the head and every byte that came, and only then the broken end.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::linger::Linger;
use super::silence::Silence;
use super::tunnel::Tunnel;
use crate::tls::Stream;

/// How often a connection was flushed. hyper flushes only when it has nothing left to write, so one more flush means
/// that everything from before it has been given to the system.
#[derive(Clone, Debug, Default)]
pub(super) struct Flushes(Arc<Counted>);

/// Only the connection's own task touches it: the atomics are for the compiler's sake.
#[derive(Debug, Default)]
struct Counted {
    done: AtomicU64,
    awaited: AtomicBool,
    /// Whom the next flush wakes; empty but for bodies that broke off.
    waiting: Mutex<Vec<Waker>>,
    /// The connection speaks HTTP/2; a stream of which the client takes nothing for so long is given up.
    streams: Option<Duration>,
    /// The system takes no more from us.
    blocked: AtomicBool,
    lingers: AtomicBool,
    /// A request is between its head and the end of its answer.
    answering: AtomicBool,
    /// Something has come since the last answer.
    heard: AtomicBool,
    /// Whoever wants to close the connection has to know whether something has come.
    looks: AtomicBool,
    /// Something has come that the runtime has not noticed yet. Known only while it is looked at.
    unread: AtomicBool,
    /// In milliseconds; 0 while the client reads.
    stalled: AtomicU64,
    /// What the connection becomes when it has ended as one in HTTP.
    tunnel: Mutex<Option<Box<Tunnel>>>,
}

impl Flushes {
    /// Those of a connection with many streams, each with a task of its own.
    pub(super) fn of_streams(stall_max: Duration) -> Self {
        Self(Arc::new(Counted { streams: Some(stall_max), ..Counted::default() }))
    }

    /// Whether a body has to keep its last piece for [`Flushes::mark`].
    pub(super) fn by_piece(&self) -> bool {
        self.0.streams.is_some()
    }

    /// A mark to wait from. `last` is the piece that the body gave last, if it keeps it.
    pub(super) fn mark(&self, last: Option<Bytes>) -> Mark {
        let stall = self.0.streams.map(Silence::new);
        Mark { flushes: self.0.done.load(Relaxed), yielded: false, last, stall }
    }

    /// Ready when all that was handed to the connection before the mark has gone out, or the client takes nothing of it.
    ///
    /// On HTTP/2 a piece may lie in its stream until the client makes room, while others are written; a reset would throw it
    /// away. It is let go of when it is written, and then nobody else holds it. Without a piece there is only the head: the
    /// connection's task, which was woken before this one, has written it once it had its turn, or the socket takes no more.
    pub(super) fn poll_gone(&self, mark: &mut Mark, cx: &mut Context<'_>) -> Poll<()> {
        let counted = &self.0;
        let gone = match (&mut mark.stall, &mark.last) {
            (None, _) => counted.done.load(Relaxed) != mark.flushes,
            (Some(_), _) if !mark.yielded => {
                mark.yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            (Some(stall), Some(last)) => last.is_unique() || stall.poll_too_long(cx),
            (Some(_), None) => !counted.blocked.load(Relaxed),
        };
        if gone {
            return Poll::Ready(());
        }
        counted.awaited.store(true, Relaxed);
        counted.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(cx.waker().clone());
        Poll::Pending
    }

    /// The connection whose flushes are counted here.
    pub(super) fn of(&self, stream: Stream, stall_max: Duration) -> Watched {
        let (flushes, stall) = (self.clone(), Silence::new(stall_max));
        Watched { io: TokioIo::new(stream), flushes, linger: None, is_tunnel: false, stall }
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

    /// From here on it is known after each read whether the system has more.
    pub(super) fn look(&self) {
        self.0.looks.store(true, Relaxed);
    }

    /// Whether the system has more.
    pub(super) fn has_unread(&self) -> bool {
        self.0.unread.load(Relaxed)
    }

    /// For how long the client had taken nothing, if its connection was given up for that.
    pub(super) fn stalled(&self) -> Option<Duration> {
        Some(self.0.stalled.load(Relaxed)).filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    /// Whatever is dropped by `give_up` was given up because the client had taken nothing of it for so long.
    pub(super) fn while_stalled(&self, limit: Duration, give_up: impl FnOnce()) {
        self.0.stalled.store(limit.as_millis() as u64, Relaxed);
        give_up();
        self.0.stalled.store(0, Relaxed);
    }

    /// With the present answer the connection leaves HTTP.
    pub(super) fn switch(&self, tunnel: Tunnel) {
        *self.tunnel() = Some(Box::new(tunnel));
    }

    /// What the connection has become, if it has left HTTP.
    pub(super) fn switched(&self) -> Option<Box<Tunnel>> {
        self.tunnel().take()
    }

    fn tunnel(&self) -> MutexGuard<'_, Option<Box<Tunnel>>> {
        // It is only ever put in and taken out.
        self.0.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client may still be sending a body that nobody will read: it is to get its answer all the same.
    pub(super) fn linger(&self) {
        self.0.lingers.store(true, Relaxed);
    }

    fn flushed(&self) {
        self.0.done.fetch_add(1, Relaxed);
        // A body was asked before this flush, and would not be asked again by itself.
        if self.0.awaited.load(Relaxed) {
            self.0.awaited.store(false, Relaxed);
            let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

/// Where a body has broken off.
#[derive(Debug)]
pub(super) struct Mark {
    flushes: u64,
    yielded: bool,
    last: Option<Bytes>,
    /// On HTTP/2.
    stall: Option<Silence>,
}

/// A connection that counts its flushes, gives up on a client that does not read, and reads to the end what a refused one
/// still sends.
#[derive(Debug)]
pub(super) struct Watched {
    io: TokioIo<Stream>,
    flushes: Flushes,
    /// From the moment on when the gateway's side was closed.
    linger: Option<Linger>,
    /// What comes after our side was closed is for the target.
    is_tunnel: bool,
    /// Since the system takes no more from us.
    stall: Silence,
}

impl Watched {
    /// The connection after it has left HTTP: one side of it may end before the other.
    pub(super) fn tunnelled(self) -> Self {
        Self { is_tunnel: true, ..self }
    }

    /// The tunnel is over while its client may still be sending: it is to get what was written all the same.
    pub(super) fn leaves(&mut self) {
        self.flushes.linger();
        self.is_tunnel = false;
    }

    /// Whether the gateway's side was closed.
    pub(super) fn is_shut(&self) -> bool {
        self.linger.is_some()
    }

    /// What became of a write, or an error when the client has left things lying for too long.
    fn written(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let blocked = &self.flushes.0.blocked;
        if written.is_ready() {
            blocked.store(false, Relaxed);
            return written;
        }
        if !blocked.load(Relaxed) {
            blocked.store(true, Relaxed);
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
        if this.flushes.0.looks.load(Relaxed) {
            let unread = read.is_pending() && this.io.inner().has_unread();
            this.flushes.0.unread.store(unread, Relaxed);
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
            this.flushes.flushed();
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_tunnel {
            return Pin::new(&mut this.io).poll_shutdown(cx);
        }
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

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_pauses_again_and_again_is_served_until_one_pause_is_too_long() {
        const STALL: Duration = Duration::from_secs(10);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let flushes = Flushes::default();
        let mut watched = flushes.of(Stream::Plain(stream), STALL);
        let cx = &mut Context::from_waker(Waker::noop());
        for pause in 0..100 {
            assert!(watched.written(Poll::Pending, cx).is_pending());
            tokio::time::advance(STALL - Duration::from_millis(1)).await;
            assert!(watched.written(Poll::Pending, cx).is_pending(), "pause {pause} is just short enough");
            assert!(matches!(watched.written(Poll::Ready(Ok(1)), cx), Poll::Ready(Ok(1))));
        }
        assert_eq!(flushes.stalled(), None);
        assert!(watched.written(Poll::Pending, cx).is_pending());
        tokio::time::advance(STALL).await;
        let Poll::Ready(Err(error)) = watched.written(Poll::Pending, cx) else { panic!("it is given up") };
        assert_eq!((error.kind(), flushes.stalled()), (io::ErrorKind::TimedOut, Some(STALL)));
    }
}

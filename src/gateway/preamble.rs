//! What a target may send before the head of its answer: informational heads (1xx), and not without end. hyper reads on
//! until another head comes, so a target that never sends one would keep a processor busy until `timeouts.response_head`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls::Stream;

/// So many bytes as heads of the largest size may come up to the head of an answer. It and what is read with it are two of
/// them, which leaves room for more informational ones than any engine has reason to send.
const HEADS_MAX: usize = 4;

/// No answer is awaited, or its head has come.
const ANY: usize = usize::MAX;

/// How many bytes may still come before the head of an answer: shared by who awaits it and by the connection. Both are of
/// one task.
#[derive(Debug)]
pub(super) struct Preamble {
    bytes_max: usize,
    left: Arc<AtomicUsize>,
}

impl Preamble {
    /// For answers whose heads have at most so many bytes.
    pub(super) fn before_heads_of(head_bytes_max: usize) -> Self {
        Self { bytes_max: head_bytes_max.saturating_mul(HEADS_MAX), left: Arc::new(AtomicUsize::new(ANY)) }
    }

    /// The connection on which they are counted.
    pub(super) fn on(&self, stream: Stream) -> Preceded {
        Preceded { stream, left: Arc::clone(&self.left) }
    }

    /// An answer is awaited from here on.
    pub(super) fn begin(&self) {
        self.left.store(self.bytes_max, Relaxed);
    }

    /// Its head has come, or nobody awaits it any more.
    pub(super) fn end(&self) {
        self.left.store(ANY, Relaxed);
    }
}

/// A connection that fails when too much comes before the head of an answer.
#[derive(Debug)]
pub(super) struct Preceded {
    stream: Stream,
    left: Arc<AtomicUsize>,
}

impl Preceded {
    /// The connection as it was.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }
}

impl AsyncRead for Preceded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, left } = self.get_mut();
        let may_come = left.load(Relaxed);
        if may_come == 0 {
            return Poll::Ready(Err(io::Error::other("informational answers (1xx) come without end, and no other")));
        }
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(cx, buffer);
        if may_come != ANY {
            left.store(may_come.saturating_sub(buffer.filled().len() - before), Relaxed);
        }
        read
    }
}

impl AsyncWrite for Preceded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, pieces)
    }
}

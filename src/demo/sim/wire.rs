//! A connection that can be reset on purpose, which a mere close is not: the peer then sees an error and no end.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What a handler or a body answers to end its connection. Not a failure of the simulated pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnPurpose;

impl fmt::Display for OnPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is reset on purpose")
    }
}

impl std::error::Error for OnPurpose {}

/// Decides how a connection's [`Wire`] ends.
#[derive(Clone, Debug, Default)]
pub(super) struct ResetSwitch(Arc<AtomicBool>);

impl ResetSwitch {
    /// The connection will be reset; whoever holds it has to end it with this error.
    pub(super) fn reset(&self) -> OnPurpose {
        self.0.store(true, Ordering::Relaxed);
        OnPurpose
    }
}

/// A TCP stream that looks at its switch when it is dropped.
#[derive(Debug)]
pub(super) struct Wire {
    io: TokioIo<TcpStream>,
    switch: ResetSwitch,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, switch: ResetSwitch) -> Self {
        Self { io: TokioIo::new(stream), switch }
    }

    fn io(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().io)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.switch.0.load(Ordering::Relaxed) {
            // If it fails, the peer sees the connection close, in the middle of a message all the same.
            self.io.inner().set_zero_linger().ok();
        }
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buffer)
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
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

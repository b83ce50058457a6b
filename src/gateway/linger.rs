//! The end of a client's connection that was refused in the middle of its request.
//!
//! A socket that is closed with unread bytes in it resets the connection, and a reset throws away the answer that the
//! client has not read yet. So the gateway closes its own side first and reads on for a while, for nothing but that.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf};
use tokio::time::Sleep;

/// What is read for nothing at most. A client that sends more than this after its refusal may miss the answer.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long that may take at most.
const LINGER_TIME: Duration = Duration::from_secs(5);

/// Bytes read at once.
const SCRATCH_BYTES: usize = 16 * 1024;

/// How far it has come.
#[derive(Debug, Default)]
pub(super) struct Linger {
    bytes: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Linger {
    /// Reads on a connection whose own side is closed, until the client closes its side or a bound is met. Unless it is
    /// known that there is `more` to come, only what has come already is read.
    pub(super) fn poll<T: Read>(
        &mut self,
        mut io: Pin<&mut T>,
        more: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER_TIME)));
        while self.bytes < LINGER_BYTES_MAX && timer.as_mut().poll(cx).is_pending() {
            let mut scratch = [0; SCRATCH_BYTES];
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = io.as_mut().poll_read(cx, buffer.unfilled());
            if read.is_pending() && !more {
                break;
            }
            // An error is an end too: nobody is there to read the answer.
            if ready!(read).is_err() || buffer.filled().is_empty() {
                break;
            }
            self.bytes += buffer.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}

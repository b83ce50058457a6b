//! The streams of one HTTP/2 connection: how many are open, since when there is none, and which of them its client leaves
//! lying while it reads others.
//!
//! hyper asks a body for more only when the client has made room for some of what it got before. So a body that has given a
//! piece and is not asked again is one whose client does not read, and the task that drives its stream can tell and give up.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::flushes::Flushes;
use super::respond::Body;
use super::silence::Silence;
use super::stream::StreamError;

/// Runs the streams of a connection, each as a task of its own, on the connection's thread.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Shared>);

/// Only the connection's own thread touches it: the atomics and the lock are for the compiler's sake.
#[derive(Debug)]
struct Shared {
    open: AtomicUsize,
    /// Since when none is open.
    quiet: Mutex<Instant>,
    /// That of the stream that was asked for last, until its task takes it: hyper starts it right after it was asked for.
    next: Mutex<Option<Arc<Given>>>,
    /// There was a first one.
    asked: Notify,
    flushes: Flushes,
    stall_max: Duration,
}

/// Whether a stream's body has given a piece and was not asked for another.
#[derive(Debug, Default)]
struct Given(AtomicBool);

impl Streams {
    /// Gives up a stream of which the client takes nothing for `stall_max`.
    pub(super) fn new(flushes: Flushes, stall_max: Duration) -> Self {
        let (quiet, next) = (Mutex::new(Instant::now()), Mutex::default());
        let (open, asked) = (AtomicUsize::new(0), Notify::new());
        Self(Arc::new(Shared { open, quiet, next, asked, flushes, stall_max }))
    }

    /// Whatever `answer` says, watched on its way.
    pub(super) fn answer<A: Future<Output = Response<Body>> + Send>(
        &self,
        answer: A,
    ) -> impl Future<Output = Result<Response<Watched>, Infallible>> + Send + use<A> {
        let given = Arc::<Given>::default();
        *locked(&self.0.next) = Some(Arc::clone(&given));
        self.0.asked.notify_one();
        async move { Ok(answer.await.map(|body| Watched { body, given })) }
    }

    /// Waits until there was a first stream. To be called by one task.
    pub(super) async fn first(&self) {
        self.0.asked.notified().await;
    }

    /// Since when there is no stream; now, if there is one.
    pub(super) fn quiet_since(&self) -> Instant {
        if self.0.open.load(Relaxed) > 0 { Instant::now() } else { *locked(&self.0.quiet) }
    }
}

impl<S: Future<Output = ()> + Send + 'static> hyper::rt::Executor<S> for Streams {
    fn execute(&self, stream: S) {
        let given = locked(&self.0.next).take().unwrap_or_default();
        let open = Open::of(self);
        #[expect(clippy::disallowed_methods, reason = "a stream of a connection that the data thread's runtime owns")]
        tokio::spawn(async move {
            let mut stream = pin!(Some(stream));
            let mut stall = Silence::new(open.0.0.stall_max);
            let mut since_given = false;
            poll_fn(|cx| {
                let Some(running) = stream.as_mut().as_pin_mut() else { return Poll::Ready(()) };
                if running.poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let is_given = given.0.load(Relaxed);
                if is_given && !since_given {
                    stall.broken(Instant::now());
                }
                since_given = is_given;
                if is_given && stall.poll_too_long(cx) {
                    open.0.0.flushes.while_stalled(stall.max(), || stream.set(None));
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
        });
    }
}

/// Counts a stream out, however it ends.
struct Open(Streams);

impl Open {
    fn of(streams: &Streams) -> Self {
        streams.0.open.fetch_add(1, Relaxed);
        Self(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let shared = &self.0.0;
        if shared.open.fetch_sub(1, Relaxed) == 1 {
            *locked(&shared.quiet) = Instant::now();
        }
    }
}

/// An answer's body that notes when it is asked.
#[derive(Debug)]
pub(super) struct Watched {
    body: Body,
    given: Arc<Given>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        this.given.0.store(matches!(polled, Poll::Ready(Some(Ok(_)))), Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // It is only ever replaced.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

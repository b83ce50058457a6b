//! The admin listener's connections: how many there are, how long one may dawdle, and who is at the other end.
//!
//! A client that is slow in the TLS handshake, sends its head slowly, reads its answer slowly or does nothing is cut off; one
//! that opens too many connections gets a quarter of them at most. When there are as many as there may be, of one address or
//! in all, the one on which nothing has been asked or moved for longest makes room for the next, so that health checks and
//! operators still come through.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, Bytes};
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, Sleep, sleep};

use super::Settings;
use super::limit::address_of;
use crate::telemetry::Metrics;
use crate::tenant::Peer;
use crate::tls::{Acceptor, Stream};

/// For a request's head, counted from the last answer on a kept connection: longer than most pause between two scrapes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A request's head. A key has at most 128 characters, a token 512.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long a client may leave everything unread that the system holds for it.
const STALL_MAX: Duration = Duration::from_secs(30);

/// One address may have one of so many connections.
const SHARE_OF_ONE: usize = 4;

/// A connection that has just come, or has just been answered, has so long to ask before it may have to make room.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// How often to look for one that can make room, when none could.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long accepting rests when the process is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then lets what is under way end. Whoever calls sets the deadline for that. With an acceptor it
/// speaks TLS.
pub async fn serve(
    (listener, acceptor): (TcpListener, Option<Arc<Acceptor>>),
    router: Router,
    settings: Arc<ArcSwap<Settings>>,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) {
    let (graceful, mut stop) = (GracefulShutdown::new(), pin!(stop));
    let (mut connections, mut open) = (JoinSet::new(), Open::default());
    let (serving, stopped) = watch::channel(());
    loop {
        let max = settings.load().connections_max;
        let has_room = open.has_room(max);
        let accepted = tokio::select! {
            accepted = listener.accept(), if has_room => accepted,
            Some(ended) = connections.join_next_with_id() => {
                open.0.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
                continue;
            }
            // What cannot make room now may be able to soon.
            () = sleep(LOOK_AGAIN), if !has_room => continue,
            () = &mut stop => break,
        };
        let (stream, peer) = match accepted {
            Ok((stream, address)) => (stream, Peer(address.ip())),
            Err(error) => {
                tracing::warn!(%error, "a connection to the admin listener could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let address = address_of(Some(peer));
        if !open.make_room(address, max) {
            metrics.lookup_refused("connections");
            continue;
        }
        let (watcher, router, begun) = (graceful.watcher(), router.clone(), begun(stream, acceptor.clone(), &stopped));
        let activity = Arc::new(Activity::begin());
        let seen = Arc::clone(&activity);
        let task = connections.spawn(async move {
            let Some(stream) = begun.await else { return };
            if let Err(error) = watcher.watch(connection(stream, peer, router, seen)).await {
                tracing::debug!(%error, "a connection to the admin listener ended badly");
            }
        });
        open.0.insert(task.id(), Connection { address, activity, task });
    }
    drop((listener, serving));
    graceful.shutdown().await;
}

/// The open connections.
#[derive(Default)]
struct Open(HashMap<Id, Connection>);

struct Connection {
    address: IpAddr,
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Open {
    /// Whether one more can be taken, if another one has to go for it.
    fn has_room(&self, max: usize) -> bool {
        self.0.len() < max || self.0.values().any(|connection| connection.activity.is_idle())
    }

    /// Makes room for one more of this address, which may be at its own limit or find all others at theirs; `false` if every
    /// connection that could go for it is being answered.
    fn make_room(&mut self, address: IpAddr, max: usize) -> bool {
        let own = self.0.values().filter(|connection| connection.address == address).count();
        let its_own = own >= max.div_ceil(SHARE_OF_ONE);
        if !its_own && self.0.len() < max {
            return true;
        }
        let idle = self.0.iter().filter(|(_, connection)| connection.activity.is_idle());
        let may_go = idle.filter(|(_, connection)| !its_own || connection.address == address);
        let Some(id) = may_go.min_by_key(|(_, connection)| connection.activity.last()).map(|(id, _)| *id) else {
            return false;
        };
        if let Some(connection) = self.0.remove(&id) {
            tracing::debug!(address = %connection.address, "an idle connection to the admin listener made room");
            connection.task.abort();
        }
        true
    }
}

/// What goes on on a connection.
#[derive(Debug)]
struct Activity {
    begun: Instant,
    /// A request is being answered: from its head to the end of its answer's body, which may be silent for long.
    is_busy: AtomicBool,
    /// The client takes nothing of what is to be written.
    is_stalled: AtomicBool,
    /// When something was last asked or moved, in microseconds from the begin.
    last_us: AtomicU64,
}

impl Activity {
    fn begin() -> Self {
        let off = || AtomicBool::new(false);
        Self { begun: Instant::now(), is_busy: off(), is_stalled: off(), last_us: AtomicU64::new(0) }
    }

    fn touch(&self) {
        let after = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last_us.store(after, Relaxed);
    }

    fn last(&self) -> Instant {
        self.begun + Duration::from_micros(self.last_us.load(Relaxed))
    }

    /// Whether it can be closed without taking an answer away that is on its way, and whose client takes it.
    fn is_idle(&self) -> bool {
        let answered = self.is_busy.load(Relaxed) && !self.is_stalled.load(Relaxed);
        !answered && self.last().elapsed() >= IDLE_AFTER
    }
}

/// A request that is being answered, until it is dropped.
struct Busy(Arc<Activity>);

impl Busy {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.is_busy.store(true, Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.is_busy.store(false, Relaxed);
    }
}

/// An answer's body, which is let go of when it has ended or nobody wants it any more.
struct Answering {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connection as it will be read and written; `None` if the client failed in the handshake, or if we stop in it.
fn begun(
    stream: TcpStream,
    acceptor: Option<Arc<Acceptor>>,
    stopped: &watch::Receiver<()>,
) -> impl Future<Output = Option<Stream>> + Send + use<> {
    let mut stopped = stopped.clone();
    // Refused only for a socket that is gone already.
    stream.set_nodelay(true).ok();
    async move {
        let Some(acceptor) = acceptor else { return Some(Stream::Plain(stream)) };
        tokio::select! {
            stream = acceptor.accept(stream) => stream,
            // Nothing was asked yet.
            _ = stopped.changed() => None,
        }
    }
}

fn connection(
    stream: Stream,
    peer: Peer,
    router: Router,
    activity: Arc<Activity>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send + use<> {
    let router = TowerToHyperService::new(router);
    let seen = Arc::clone(&activity);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (answering, busy) = (router.call(request), Busy::begin(&activity));
        async move { answering.await.map(|answer| answer.map(|body| Answering { body, _busy: busy })) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    builder.serve_connection(TokioIo::new(Paced { stream, activity: seen, stalled: None }), service)
}

/// A connection that fails when its client reads nothing for [`STALL_MAX`] of what is to be written.
struct Paced<S> {
    stream: S,
    activity: Arc<Activity>,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    /// The outcome of a try to write, unless the client has had its time.
    fn paced<T>(&mut self, cx: &mut Context<'_>, tried: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.is_stalled.store(tried.is_pending(), Relaxed);
        if tried.is_ready() {
            self.activity.touch();
            self.stalled = None;
            return tried;
        }
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_MAX))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.paced(cx, tried)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.paced(cx, tried)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (mut client, stream) = duplex(16);
        let mut paced = Paced { stream, activity: Arc::new(Activity::begin()), stalled: None };
        let error = paced.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        client.read_exact(&mut [0; 16]).await.unwrap();

        let (mut client, stream) = duplex(16);
        let mut paced = Paced { stream, activity: Arc::new(Activity::begin()), stalled: None };
        let reading = async {
            for _ in 0..4 {
                sleep(STALL_MAX / 2).await;
                client.read_exact(&mut [0; 16]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(paced.write_all(&[0; 64]), reading);
        written.expect("it reads, if slowly");
    }
}

//! The bounded queue between whoever says something and standard error, which may be a pipe that nobody reads.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::metrics::Counter;

/// Lines that may wait: what a pod that starts a hundred targets says at once, many times over.
const QUEUE_LINES: usize = 4_096;

/// Their bytes together.
const QUEUE_BYTES: usize = 4 << 20;

/// How often the writer looks up when nothing is said.
const TICK: Duration = Duration::from_secs(1);

/// How long the writer leaves a standard error alone that somebody made non-blocking and that is full.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// The end where lines are put in. They are whole lines, each with its end.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    sender: Sender<Message>,
    /// In the queue.
    bytes: Arc<AtomicUsize>,
    dropped: Counter,
}

#[derive(Debug)]
enum Message {
    Line(Box<[u8]>),
    /// To be answered when everything before it is written.
    Flush(Sender<()>),
}

impl Queue {
    /// Starts the thread that writes to `out`. It ends when all clones of the queue are gone, and calls `tick` about once a
    /// second.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        dropped: Counter,
        tick: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = bounded(QUEUE_LINES);
        let queue = Self { sender, bytes: Arc::default(), dropped: dropped.clone() };
        let writer = Writer { receiver, bytes: Arc::clone(&queue.bytes), dropped, said: 0, out };
        std::thread::Builder::new().name("snapgate-log".into()).spawn(move || writer.run(tick))?;
        Ok(queue)
    }

    /// Takes a line, or drops and counts it. Never waits.
    pub(super) fn push(&self, line: &[u8]) {
        // Several threads may pass this at once and be over by a line each.
        let has_room = self.bytes.load(Relaxed) + line.len() <= QUEUE_BYTES;
        self.bytes.fetch_add(line.len(), Relaxed);
        if !has_room || self.sender.try_send(Message::Line(line.into())).is_err() {
            self.bytes.fetch_sub(line.len(), Relaxed);
            self.dropped.inc();
        }
    }

    /// Waits until what was put in before is written, but no longer than that.
    pub(super) fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let (done, written) = bounded(1);
        if self.sender.send_deadline(Message::Flush(done), deadline).is_ok() {
            // Too late: nobody reads it.
            written.recv_deadline(deadline).ok();
        }
    }
}

/// One call writes one line.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

struct Writer<W> {
    receiver: Receiver<Message>,
    bytes: Arc<AtomicUsize>,
    dropped: Counter,
    /// How many of the dropped lines the log has told of.
    said: u64,
    out: W,
}

impl<W: Write> Writer<W> {
    fn run(mut self, tick: impl Fn()) {
        let mut ticked = Instant::now();
        loop {
            match self.receiver.recv_timeout(TICK) {
                Ok(Message::Line(line)) => {
                    if self.write(&line).is_err() {
                        self.dropped.inc();
                    }
                    self.bytes.fetch_sub(line.len(), Relaxed);
                }
                // Nobody waits for it any more only if the time was up.
                Ok(Message::Flush(done)) => drop(done.try_send(())),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                tick();
                self.tell();
            }
        }
    }

    /// Says how many lines are missing, once there is room again.
    fn tell(&mut self) {
        let dropped = self.dropped.get();
        if dropped > self.said && self.receiver.len() < QUEUE_LINES / 2 {
            let lines = dropped - self.said;
            self.said = dropped;
            tracing::warn!(lines, "lines of this log were dropped: standard error was not read fast enough");
        }
    }

    fn write(&mut self, mut line: &[u8]) -> io::Result<()> {
        while !line.is_empty() {
            match self.out.write(line) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => line = &line[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

//! How tests wait: for something to be so, or for each other. Nothing sleeps for its own sake.

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// How long anything may take that should take no time: far more than a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at a condition that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Looks again and again until there is something to see.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What was done in less than half of `limit`; the other half is for what was sent to arrive. Whoever waits for it no
/// longer than that may have left if this thread was held up: then it says nothing of them, and is done anew.
#[track_caller]
pub(crate) fn in_time<T>(limit: Duration, mut attempt: impl FnMut() -> io::Result<T>) -> T {
    until("it is done in time", || {
        let begun = Instant::now();
        let done = attempt();
        (begun.elapsed() < limit / 2).then(|| done.expect("nobody has left yet"))
    })
}

/// A word that the test gives and a script waits for. Whoever waits takes one of those that were given.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    give: mpsc::Sender<()>,
    given: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Word {
    pub(crate) fn new() -> Self {
        let (give, given) = mpsc::channel();
        Self { give, given: Arc::new(Mutex::new(given)) }
    }

    pub(crate) fn give(&self) {
        self.give.send(()).expect("this word has both ends");
    }

    /// Waits for it, for as long as anything may take: if it never comes, the test fails elsewhere.
    pub(crate) fn wait(&self) {
        drop(self.given.lock().map(|given| given.recv_timeout(PATIENCE)));
    }
}

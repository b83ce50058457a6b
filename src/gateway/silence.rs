//! Notices when nothing has moved for too long.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// One timer for as long as there is something to watch, moved only when it fires, not with everything that moves.
#[derive(Debug)]
pub(super) struct Silence {
    max: Duration,
    since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    pub(super) fn new(max: Duration) -> Self {
        Self { max, since: Instant::now(), timer: None }
    }

    /// How long is too long.
    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// Something has moved.
    pub(super) fn broken(&mut self, now: Instant) {
        self.since = now;
    }

    /// Whether it has lasted too long; if not, the task is woken when it has.
    pub(super) fn poll_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.since + self.max)));
        while timer.as_mut().poll(cx).is_ready() {
            let due = self.since + self.max;
            if due <= Instant::now() {
                return true;
            }
            timer.as_mut().reset(due);
        }
        false
    }
}

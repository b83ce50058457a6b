//! One answer in time: when each of its tokens is there.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::engine::Ticket;
use super::totals::FinishReason;
use crate::demo::draws::Draws;

/// A prompt that is all cached still takes this share of the time to its first token.
const CACHED_PREFILL_SHARE: f64 = 0.1;

/// How fast a pod is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) ttft: Duration,
    pub(super) token_time: Duration,
    pub(super) jitter: f64,
}

/// What the engine knows of a request once it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Prompt tokens that need not be computed.
    pub(super) cached_tokens: u32,
    /// How long the request waited before.
    pub(super) queued: Duration,
}

impl Known {
    /// The wait as vLLM says it.
    pub(super) fn queue_time_ms(self) -> f64 {
        self.queued.as_secs_f64() * 1e3
    }
}

/// Tokens as they become due, whether or not somebody takes them: a slow client does not slow the engine.
#[derive(Debug)]
pub(super) struct Generation {
    ticket: Ticket,
    pace: Pace,
    draws: Draws,
    tokens: u32,
    finish: FinishReason,
    produced: u32,
    known: Known,
    /// When the next token is there; `None` until the request runs.
    due: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Generation {
    pub(super) fn new(ticket: Ticket, pace: Pace, draws: Draws, tokens: u32, finish: FinishReason) -> Self {
        Self { ticket, pace, draws, tokens, finish, produced: 0, known: Known::default(), due: None, sleep: None }
    }

    /// The number of the next token, from 0 on, once it is there; `None` after the last. With the last one the engine
    /// is done with the request, though the client may have much to read.
    pub(super) fn poll_token(&mut self, cx: &mut Context<'_>) -> Poll<Option<u32>> {
        if self.produced == self.tokens {
            return Poll::Ready(None);
        }
        ready!(self.ticket.poll_admitted(cx));
        let due = match self.due {
            Some(due) => due,
            None => self.first_due(),
        };
        ready!(self.poll_until(due, cx));
        self.ticket.generate();
        let token = self.produced;
        self.produced += 1;
        if self.produced == self.tokens {
            self.ticket.finish(self.finish);
        } else {
            self.due = Some(due + self.pace.token_time.mul_f64(self.draws.around_one(self.pace.jitter)));
        }
        Poll::Ready(Some(token))
    }

    /// There with the first token.
    pub(super) fn known(&self) -> Known {
        self.known
    }

    fn first_due(&mut self) -> Instant {
        self.known = Known { cached_tokens: self.ticket.cached_tokens(), queued: self.ticket.queued() };
        let cached = f64::from(self.known.cached_tokens) / f64::from(self.ticket.prompt_tokens());
        let share = (1.0 - cached).max(CACHED_PREFILL_SHARE) * self.draws.around_one(self.pace.jitter);
        let due = Instant::now() + self.pace.ttft.mul_f64(share);
        self.due = Some(due);
        due
    }

    fn poll_until(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        sleep.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::sim::engine::{Engine, Prompt};

    /// How long after the start each token came, in milliseconds.
    async fn times(engine: &std::sync::Arc<Engine>, pace: Pace, tokens: u32) -> Vec<u128> {
        let prompt = Prompt { tokens: 64, blocks: vec![1, 2, 3, 4] };
        let ticket = engine.enter(prompt, tokens).unwrap();
        let mut generation = Generation::new(ticket, pace, Draws::of(1, 1), tokens, FinishReason::Stop);
        let start = Instant::now();
        let mut times = Vec::new();
        while let Some(token) = std::future::poll_fn(|cx| generation.poll_token(cx)).await {
            assert_eq!(token as usize, times.len());
            times.push(start.elapsed().as_millis());
        }
        times
    }

    const PACE: Pace = Pace { ttft: Duration::from_millis(100), token_time: Duration::from_millis(10), jitter: 0.0 };

    #[tokio::test(start_paused = true)]
    async fn tokens_come_at_their_pace_and_a_cached_prompt_comes_sooner() {
        let engine = Engine::new(1, 100);
        assert_eq!(times(&engine, PACE, 4).await, [100, 110, 120, 130]);
        assert_eq!(times(&engine, PACE, 2).await, [25, 35], "48 of 64 prompt tokens are cached");
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_is_drawn_anew_for_each_token_and_repeats_with_the_seed() {
        let jittery = Pace { jitter: 0.5, ..PACE };
        let first = times(&Engine::new(1, 100), jittery, 20).await;
        assert_eq!(first, times(&Engine::new(1, 100), jittery, 20).await);
        assert_ne!(first, times(&Engine::new(1, 100), PACE, 20).await);
        assert!((50..=151).contains(&first[0]), "{first:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_starts_when_the_slot_is_free() {
        let engine = Engine::new(1, 100);
        let uncached = Pace { jitter: 0.0, ..PACE };
        let (first, second) = tokio::join!(times(&engine, uncached, 3), times(&engine, uncached, 1));
        assert_eq!((first, second), (vec![100, 110, 120], vec![145]));
    }
}

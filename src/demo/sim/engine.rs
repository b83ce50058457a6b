//! The queueing model: who runs, who waits, what fills the KV cache and what the prefix cache still knows.
//!
//! It differs from vLLM in one point: a request starts only when its whole answer is sure to fit, so that nothing is
//! ever preempted. KV use still grows token by token.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::prefixes::Prefixes;
use super::totals::{FinishReason, Totals};

/// Tokens per block of the KV cache.
pub(super) const BLOCK_TOKENS: u32 = 16;

/// Requests that may wait; one more is refused. Far beyond what a gateway with limits lets through.
const WAITING_MAX: usize = 10_000;

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

/// What a prompt means to the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Prompt {
    pub(super) tokens: u32,
    /// One hash per full block, each over everything up to its end.
    pub(super) blocks: Vec<u64>,
}

/// The gauges at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Load {
    pub(super) running: usize,
    pub(super) waiting: usize,
    /// 0..1
    pub(super) kv_usage: f64,
}

/// One engine. Every section under its lock is short and never waits.
#[derive(Debug)]
pub(super) struct Engine {
    capacity: usize,
    kv_blocks: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    running: usize,
    waiting: VecDeque<Waiting>,
    entered: u64,
    /// Blocks that the running requests may come to need.
    promised: u32,
    /// Blocks that they fill by now.
    filled: u32,
    prefixes: Prefixes,
    totals: Totals,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    prompt: Prompt,
    answer_tokens: u32,
    admit: oneshot::Sender<Admitted>,
}

/// A request's slot.
#[derive(Clone, Copy, Debug)]
struct Admitted {
    at: Instant,
    cached_tokens: u32,
}

impl Engine {
    pub(super) fn new(capacity: usize, kv_blocks: u32) -> Arc<Self> {
        let state = State {
            running: 0,
            waiting: VecDeque::new(),
            entered: 0,
            promised: 0,
            filled: 0,
            prefixes: Prefixes::new(kv_blocks as usize),
            totals: Totals::default(),
        };
        Arc::new(Self { capacity, kv_blocks, state: Mutex::new(state) })
    }

    /// Tokens of prompt and answer together that a request may have.
    pub(super) fn context_tokens(&self) -> u32 {
        self.kv_blocks.saturating_mul(BLOCK_TOKENS)
    }

    /// A place in the queue or, if nobody waits and there is room, a slot at once. The caller has checked that prompt
    /// and answer are within [`Engine::context_tokens`]: what can never start would block the queue.
    pub(super) fn enter(self: &Arc<Self>, prompt: Prompt, answer_tokens: u32) -> Result<Ticket, QueueFull> {
        let now = Instant::now();
        let prompt_tokens = prompt.tokens;
        let mut state = self.lock();
        state.entered += 1;
        let number = state.entered;
        let place = if state.waiting.is_empty() && self.has_room(&state, &prompt, answer_tokens) {
            Place::Running(state.start(&prompt, answer_tokens, now))
        } else if state.waiting.len() < WAITING_MAX {
            let (admit, admitted) = oneshot::channel();
            state.waiting.push_back(Waiting { number, prompt, answer_tokens, admit });
            Place::Waiting(admitted)
        } else {
            return Err(QueueFull);
        };
        drop(state);
        let engine = Arc::clone(self);
        Ok(Ticket { engine, number, place, prompt_tokens, answer_tokens, generated: 0, entered: now, last_token: now })
    }

    pub(super) fn load(&self) -> Load {
        self.load_of(&self.lock())
    }

    /// Gauges and totals of the same moment.
    pub(super) fn read(&self) -> (Load, Totals) {
        let state = self.lock();
        (self.load_of(&state), state.totals.clone())
    }

    /// A request the engine failed before it had a place.
    pub(super) fn failed(&self) {
        self.lock().totals.ended(FinishReason::Error);
    }

    fn load_of(&self, state: &State) -> Load {
        let kv_usage = f64::from(state.filled) / f64::from(self.kv_blocks);
        Load { running: state.running, waiting: state.waiting.len(), kv_usage }
    }

    fn has_room(&self, state: &State, prompt: &Prompt, answer_tokens: u32) -> bool {
        state.running < self.capacity && state.promised + blocks(prompt.tokens + answer_tokens) <= self.kv_blocks
    }

    /// Starts who waits, in order, as long as there is room for the first.
    fn promote(&self, state: &mut State) {
        let now = Instant::now();
        while let Some(first) = state.waiting.pop_front() {
            if !self.has_room(state, &first.prompt, first.answer_tokens) {
                state.waiting.push_front(first);
                break;
            }
            let admitted = state.start(&first.prompt, first.answer_tokens, now);
            // A ticket leaves the queue under the lock before its receiver goes, so somebody is listening.
            first.admit.send(admitted).expect("a waiting ticket keeps its receiver");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under the engine's lock")
    }
}

impl State {
    fn start(&mut self, prompt: &Prompt, answer_tokens: u32, now: Instant) -> Admitted {
        self.running += 1;
        self.promised += blocks(prompt.tokens + answer_tokens);
        self.filled += blocks(prompt.tokens);
        // vLLM computes the last prompt token in any case, so the last block is never a hit if it ends the prompt.
        let reusable = prompt.tokens.saturating_sub(1) / BLOCK_TOKENS;
        let hits = self.prefixes.touch(&prompt.blocks).min(reusable as usize);
        let cached_tokens = hits as u32 * BLOCK_TOKENS;
        self.totals.prefix_queries += u64::from(prompt.tokens);
        self.totals.prefix_hits += u64::from(cached_tokens);
        Admitted { at: now, cached_tokens }
    }
}

/// Blocks that hold so many tokens.
const fn blocks(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// One request's way through the engine. Dropped before it is finished, it is an abort and its slot is free.
#[derive(Debug)]
pub(super) struct Ticket {
    engine: Arc<Engine>,
    number: u64,
    place: Place,
    prompt_tokens: u32,
    answer_tokens: u32,
    generated: u32,
    entered: Instant,
    last_token: Instant,
}

#[derive(Debug)]
enum Place {
    Waiting(oneshot::Receiver<Admitted>),
    Running(Admitted),
    Left,
}

impl Ticket {
    /// Ready once the request runs.
    pub(super) fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Place::Waiting(admitted) = &mut self.place {
            let admitted = ready!(Pin::new(admitted).poll(cx)).expect("the engine keeps the sender of who waits");
            self.place = Place::Running(admitted);
        }
        Poll::Ready(())
    }

    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Prompt tokens that need not be computed; known once the request runs.
    pub(super) fn cached_tokens(&self) -> u32 {
        match self.place {
            Place::Running(admitted) => admitted.cached_tokens,
            Place::Waiting(_) | Place::Left => 0,
        }
    }

    /// How long it waited; known once the request runs.
    pub(super) fn queued(&self) -> Duration {
        match self.place {
            Place::Running(admitted) => admitted.at - self.entered,
            Place::Waiting(_) | Place::Left => Duration::ZERO,
        }
    }

    /// One more token of the answer is there.
    pub(super) fn generate(&mut self) {
        let now = Instant::now();
        let before = self.filled();
        self.generated += 1;
        let more = self.filled() - before;
        let mut state = self.engine.lock();
        state.filled += more;
        state.totals.generation_tokens += 1;
        if self.generated == 1 {
            state.totals.prompt_tokens += u64::from(self.prompt_tokens);
            state.totals.first_token.observe(now - self.entered);
        } else {
            state.totals.inter_token.observe(now - self.last_token);
        }
        drop(state);
        self.last_token = now;
    }

    /// The answer is complete.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.leave(reason);
    }

    fn filled(&self) -> u32 {
        blocks(self.prompt_tokens + self.generated)
    }

    fn leave(&mut self, reason: FinishReason) {
        let mut state = self.engine.lock();
        let place = std::mem::replace(&mut self.place, Place::Left);
        let admitted = match place {
            Place::Left => return,
            Place::Running(admitted) => Some(admitted),
            // It may have been given its slot since it was last polled.
            Place::Waiting(mut admitted) => admitted.try_recv().ok(),
        };
        state.totals.ended(reason);
        match admitted {
            Some(admitted) => {
                state.running -= 1;
                state.promised -= blocks(self.prompt_tokens + self.answer_tokens);
                state.filled -= self.filled();
                if reason.is_success() {
                    state.totals.queue.observe(admitted.at - self.entered);
                    state.totals.whole.observe(self.entered.elapsed());
                }
            }
            None => state.waiting.retain(|waiting| waiting.number != self.number),
        }
        // Also when somebody left the queue: a smaller request behind a large one may fit.
        self.engine.promote(&mut state);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave(FinishReason::Abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prompt(tokens: u32) -> Prompt {
        Prompt { tokens, blocks: (0..u64::from(tokens / BLOCK_TOKENS)).collect() }
    }

    fn admitted(ticket: &mut Ticket) -> bool {
        ticket.poll_admitted(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn beyond_capacity_requests_wait_in_order() {
        let engine = Engine::new(1, 100);
        let mut first = engine.enter(prompt(10), 10).unwrap();
        let mut second = engine.enter(prompt(10), 10).unwrap();
        let mut third = engine.enter(prompt(10), 10).unwrap();
        assert!(admitted(&mut first) && !admitted(&mut second) && !admitted(&mut third));
        assert_eq!((engine.load().running, engine.load().waiting), (1, 2));
        first.finish(FinishReason::Stop);
        assert!(admitted(&mut second) && !admitted(&mut third));
        drop(second);
        assert!(admitted(&mut third));
        third.finish(FinishReason::Length);
        let (load, totals) = engine.read();
        assert_eq!(load, Load::default());
        let ended = |reason: FinishReason| totals.ended_by(reason);
        assert_eq!(
            (ended(FinishReason::Stop), ended(FinishReason::Length), ended(FinishReason::Abort)),
            (1, 1, 1),
            "the ticket that was dropped is the abort"
        );
    }

    #[test]
    fn who_leaves_the_queue_makes_room_for_who_fits() {
        let engine = Engine::new(8, 10);
        let _running = engine.enter(prompt(16), 64).unwrap();
        let large = engine.enter(prompt(16), 128).unwrap();
        let mut small = engine.enter(prompt(16), 16).unwrap();
        assert!(!admitted(&mut small), "first come, first served");
        drop(large);
        assert!(admitted(&mut small));
    }

    #[test]
    fn a_slot_given_but_never_noticed_is_given_back() {
        let engine = Engine::new(1, 100);
        let mut first = engine.enter(prompt(16), 16).unwrap();
        let second = engine.enter(prompt(16), 16).unwrap();
        first.finish(FinishReason::Stop);
        assert_eq!(engine.load().running, 1);
        drop(second);
        assert_eq!(engine.load(), Load::default());
    }

    #[test]
    fn the_cache_fills_as_tokens_come() {
        let engine = Engine::new(4, 100);
        let mut ticket = engine.enter(prompt(17), 40).unwrap();
        assert_eq!(engine.load().kv_usage, 0.02);
        for _ in 0..15 {
            ticket.generate();
        }
        assert_eq!(engine.load().kv_usage, 0.02, "32 tokens are two blocks");
        ticket.generate();
        assert_eq!(engine.load().kv_usage, 0.03);
    }

    #[test]
    fn a_repeated_prompt_is_a_hit_but_for_its_last_token() {
        let engine = Engine::new(4, 100);
        assert_eq!(engine.enter(prompt(64), 1).unwrap().cached_tokens(), 0);
        assert_eq!(engine.enter(prompt(64), 1).unwrap().cached_tokens(), 48, "the last block is computed anew");
        assert_eq!(engine.enter(prompt(70), 1).unwrap().cached_tokens(), 64);
        let (_, totals) = engine.read();
        assert_eq!((totals.prefix_queries, totals.prefix_hits), (198, 112));
    }

    #[test]
    fn the_queue_is_bounded() {
        let engine = Engine::new(1, 100);
        let tickets: Vec<_> = (0..=WAITING_MAX).map(|_| engine.enter(prompt(1), 1).unwrap()).collect();
        assert_eq!(engine.enter(prompt(1), 1).unwrap_err(), QueueFull);
        // From the back, because the front of a long queue is slow to leave it.
        tickets.into_iter().rev().for_each(drop);
        assert_eq!(engine.load(), Load::default());
    }

    proptest! {
        #[test]
        fn whatever_happens_the_bounds_hold_and_all_is_given_back(
            steps in prop::collection::vec((0u8..4, 0usize..8, 1u32..200, 1u32..100), 1..200),
        ) {
            let engine = Engine::new(3, 20);
            let mut tickets: Vec<Ticket> = Vec::new();
            for (step, which, prompt_tokens, answer_tokens) in steps {
                let which = which % tickets.len().max(1);
                match step {
                    _ if tickets.is_empty() || step == 0 => {
                        tickets.push(engine.enter(prompt(prompt_tokens), answer_tokens).unwrap());
                    }
                    1 => drop(tickets.swap_remove(which)),
                    2 => tickets.swap_remove(which).finish(FinishReason::Stop),
                    _ => {
                        let ticket = &mut tickets[which];
                        if admitted(ticket) && ticket.generated < ticket.answer_tokens {
                            ticket.generate();
                        }
                    }
                }
                let load = engine.load();
                prop_assert!(load.running <= 3 && load.kv_usage <= 1.0, "{load:?}");
                prop_assert_eq!(load.running + load.waiting, tickets.len());
                prop_assert!(load.running > 0 || load.waiting == 0, "somebody waits for nobody");
            }
            drop(tickets);
            prop_assert_eq!(engine.load(), Load::default());
        }
    }
}

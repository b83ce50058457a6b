//! Response bodies: in one piece, in events as the tokens come, and broken in every way a test may ask for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::answer::{Answer, DONE};
use super::ask::Operation;
use super::faults::Fault;
use super::generation::Generation;
use super::wire::{OnPurpose, ResetSwitch};

/// How long a reset waits after the last bytes, so that they are on their way before the connection goes.
const RESET_AFTER: Duration = Duration::from_millis(5);

/// An event of the wrong kind: the JSON is cut, and the bytes are not UTF-8.
const GARBAGE: &[u8] = b"data: {\"id\":\"\xff\xfe\x00\x80 garbage\n\n";

/// What a response carries.
#[derive(Debug)]
pub(super) enum SimBody {
    /// All at once; `None` when it has been taken.
    Whole(Option<Bytes>),
    /// The first bytes of a body that promised `length`, and then trouble.
    Cut { first: Option<Bytes>, length: u64, trouble: Trouble },
    /// Events.
    Stream(Box<Stream>),
}

impl SimBody {
    /// The whole body, unless a fault breaks it halfway.
    pub(super) fn of_answer(whole: Bytes, fault: Option<Fault>, reset: &ResetSwitch) -> Self {
        let length = whole.len() as u64;
        let half = whole.len() / 2;
        match fault {
            Some(Fault::ResetAfter(_)) => {
                Self::Cut { first: Some(whole.slice(..half)), length, trouble: Trouble::reset(reset) }
            }
            Some(Fault::HangAfter(_)) => Self::Cut { first: Some(whole.slice(..half)), length, trouble: Trouble::Hang },
            Some(Fault::GarbageAfter(_)) => {
                let noise = GARBAGE.iter().copied().cycle().take(whole.len() - half);
                Self::Whole(Some(whole[..half].iter().copied().chain(noise).collect()))
            }
            _ => Self::Whole(Some(whole)),
        }
    }
}

impl From<Bytes> for SimBody {
    fn from(whole: Bytes) -> Self {
        Self::Whole(Some(whole).filter(|whole| !whole.is_empty()))
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = OnPurpose;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, OnPurpose>>> {
        match self.get_mut() {
            Self::Whole(whole) => Poll::Ready(whole.take().map(|whole| Ok(Frame::data(whole)))),
            Self::Cut { first, trouble, .. } => match first.take() {
                Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
                None => trouble.poll(cx).map(|error| Some(Err(error))),
            },
            Self::Stream(stream) => stream.poll_event(cx).map(|event| event.map(|event| event.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_none(),
            Self::Cut { .. } => false,
            Self::Stream(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => SizeHint::with_exact(whole.as_ref().map_or(0, |whole| whole.len() as u64)),
            Self::Cut { length, .. } => SizeHint::with_exact(*length),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// How a body ends that does not end well.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing more ever comes.
    Hang,
    /// The connection is reset, after a moment.
    Reset { switch: ResetSwitch, after: Pin<Box<Sleep>> },
}

impl Trouble {
    fn reset(switch: &ResetSwitch) -> Self {
        Self::Reset { switch: switch.clone(), after: Box::pin(sleep(RESET_AFTER)) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<OnPurpose> {
        match self {
            Self::Hang => Poll::Pending,
            Self::Reset { switch, after } => {
                ready!(after.as_mut().poll(cx));
                Poll::Ready(switch.reset())
            }
        }
    }
}

/// The event that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Role,
    Token,
    Usage,
    Done,
    End,
}

/// An answer in events, each when its token is there.
#[derive(Debug)]
pub(super) struct Stream {
    generation: Generation,
    answer: Answer,
    next: Step,
    /// A token that is there and whose event is not.
    token: Option<u32>,
    events: u32,
    fault: Option<Fault>,
    trouble: Option<Trouble>,
    reset: ResetSwitch,
}

impl Stream {
    pub(super) fn new(generation: Generation, answer: Answer, fault: Option<Fault>, reset: ResetSwitch) -> Self {
        let next = match answer.operation {
            Operation::Chat => Step::Role,
            Operation::Completion => Step::Token,
        };
        Self { generation, answer, next, token: None, events: 0, fault, trouble: None, reset }
    }

    /// Nothing is left to send and nothing left to go wrong.
    fn is_over(&self) -> bool {
        let trouble_ahead = match self.fault {
            Some(Fault::ResetAfter(events) | Fault::HangAfter(events) | Fault::GarbageAfter(events)) => {
                events == self.events
            }
            _ => false,
        };
        self.next == Step::End && !trouble_ahead && self.trouble.is_none()
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, OnPurpose>>> {
        if let Some(trouble) = &mut self.trouble {
            return trouble.poll(cx).map(|error| Some(Err(error)));
        }
        match self.fault {
            Some(Fault::ResetAfter(events)) if events == self.events => {
                return self.trouble.insert(Trouble::reset(&self.reset)).poll(cx).map(|error| Some(Err(error)));
            }
            Some(Fault::HangAfter(events)) if events == self.events => {
                self.trouble = Some(Trouble::Hang);
                return Poll::Pending;
            }
            Some(Fault::GarbageAfter(events)) if events == self.events => {
                self.fault = None;
                return Poll::Ready(Some(Ok(Bytes::from_static(GARBAGE))));
            }
            _ => {}
        }
        let event = ready!(self.poll_step(cx));
        self.events += 1;
        Poll::Ready(event.map(Ok))
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let event = match self.next {
            Step::Role => {
                // vLLM says who speaks when it has something to say.
                self.token = ready!(self.generation.poll_token(cx));
                self.next = Step::Token;
                self.answer.role_event()
            }
            Step::Token => {
                let token = match self.token.take() {
                    Some(token) => token,
                    None => ready!(self.generation.poll_token(cx)).expect("the last token ends this step"),
                };
                if token + 1 == self.answer.tokens {
                    self.next = if self.answer.include_usage { Step::Usage } else { Step::Done };
                }
                self.answer.token_event(token)
            }
            Step::Usage => {
                self.next = Step::Done;
                self.answer.usage_event(self.generation.known())
            }
            Step::Done => {
                self.next = Step::End;
                Bytes::from_static(DONE.as_bytes())
            }
            Step::End => return Poll::Ready(None),
        };
        Poll::Ready(Some(event))
    }
}

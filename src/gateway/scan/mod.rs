//! Reads usage, finish reason, ids, token times and the wait in the engine from an answer that passes by untouched.
//!
//! The scanner only looks at the frames of the body. It does no IO, has no clock and cannot fail: what it does not
//! understand it leaves out, and says so in `failed`. Its memory is bounded for each answer and for all together, whatever comes.
//!
//! `sse` finds the events, `pattern` recognises most of them without parsing, `reading` parses the others, and
//! `outline` does for answers in one piece what `sse` does for streams: it leaves out what need not be kept.

mod bounded;
mod outline;
mod pattern;
mod reading;
mod sse;

use bytes::Bytes;

use self::bounded::Bounded;
use self::outline::{Extent, Outline};
use self::pattern::{PATTERN_BYTES_MAX, Pattern};
use self::reading::{Reading, Usage};
use self::sse::{Event, EventStream};
use super::gaps::Gaps;
use crate::snapshot::outcome::Answer;

/// A longer id, model or finish reason, in bytes, is not recorded: the record must stay small whatever the target
/// sends.
const NAME_BYTES_MAX: usize = 256;

/// The scanner of one answer.
#[derive(Debug)]
pub struct Scanner {
    form: Form,
}

/// What a frame brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Events with content that it completed: tokens to count now, until usage says how many it really were.
    pub content_events: u32,
}

/// What has been understood of an answer. Offsets are from accept.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// What the target said.
    pub answer: Answer,
    /// SSE events with data, `[DONE]` not counted.
    pub events: u64,
    /// The first of them.
    pub first_event_offset_us: Option<u64>,
    /// The first event with content; for a JSON answer its first byte.
    pub first_content_offset_us: Option<u64>,
    /// The median pause between two events with content.
    pub inter_token_p50_us: Option<u64>,
    /// The pause that one in a hundred exceeds.
    pub inter_token_p99_us: Option<u64>,
    /// The longest pause.
    pub inter_token_max_us: Option<u64>,
    /// How long the engine says that the request waited in its queue.
    pub engine_queue_us: Option<u64>,
    /// Something in it could not be read. That an answer ended early is no such thing.
    pub failed: bool,
}

#[derive(Debug)]
enum Form {
    Stream(Box<StreamScanner>),
    OnePiece(OnePiece),
    /// Audio, HTML, anything compressed.
    Opaque,
    /// What is left of a scanner that panicked.
    Broken,
}

impl Scanner {
    /// Chooses by the answer's headers. `stream_requested` decides only when there is no content type.
    pub fn for_answer(content_type: Option<&[u8]>, content_encoding: Option<&[u8]>, stream_requested: bool) -> Self {
        let plain = content_encoding.is_none_or(|encoding| {
            let encoding = encoding.trim_ascii();
            encoding.is_empty() || encoding.eq_ignore_ascii_case(b"identity")
        });
        let form = match content_type.map(media_type) {
            _ if !plain => Form::Opaque,
            Some(MediaType::EventStream) => Form::stream(),
            Some(MediaType::Json) => Form::one_piece(),
            Some(MediaType::Other) => Form::Opaque,
            None if stream_requested => Form::stream(),
            None => Form::one_piece(),
        };
        Self { form }
    }

    /// In the place of a scanner that panicked: it reads nothing and says so.
    pub fn broken() -> Self {
        Self { form: Form::Broken }
    }

    /// Reads the next frame of the body, which came at this offset from accept.
    pub fn frame(&mut self, bytes: &Bytes, at_us: u64) -> Seen {
        match &mut self.form {
            Form::Stream(scanner) => scanner.frame(bytes, at_us),
            Form::OnePiece(piece) => {
                piece.frame(bytes, at_us);
                Seen::default()
            }
            Form::Opaque | Form::Broken => Seen::default(),
        }
    }

    /// SSE events with data so far, `[DONE]` not counted.
    pub fn events(&self) -> u64 {
        match &self.form {
            Form::Stream(scanner) => scanner.understood.events,
            Form::OnePiece(_) | Form::Opaque | Form::Broken => 0,
        }
    }

    /// Whatever has been understood until here, at the end of the answer or at any point before.
    pub fn finish(self) -> Scan {
        match self.form {
            Form::Stream(scanner) => scanner.understood.finish(),
            Form::OnePiece(piece) => piece.finish(),
            Form::Opaque => Scan::of(Answer::default()),
            Form::Broken => Scan { failed: true, ..Scan::of(Answer::default()) },
        }
    }
}

impl Form {
    fn stream() -> Self {
        Self::Stream(Box::default())
    }

    fn one_piece() -> Self {
        Self::OnePiece(OnePiece::default())
    }
}

/// A JSON answer. Most come whole in one frame, which is then parsed where it is; the outline is for the others.
#[derive(Debug, Default)]
struct OnePiece {
    /// The first frame, as long as there is no second one. Shared with the frame that passes, not copied.
    only: Bytes,
    outline: Outline,
    first_byte_offset_us: Option<u64>,
}

impl OnePiece {
    fn frame(&mut self, bytes: &Bytes, at_us: u64) {
        if bytes.is_empty() {
            return;
        }
        if self.first_byte_offset_us.is_none() {
            self.first_byte_offset_us = Some(at_us);
            self.only = bytes.clone();
            return;
        }
        self.outline.feed(&std::mem::take(&mut self.only));
        self.outline.feed(bytes);
    }

    fn finish(mut self) -> Scan {
        let (reading, valid) = Reading::of(&self.only);
        if valid {
            return self.scan(&reading, false);
        }
        self.outline.feed(&std::mem::take(&mut self.only));
        let (extent, json) = self.outline.finish();
        match extent {
            Extent::Whole | Extent::Cut => {
                let (reading, valid) = Reading::of(json);
                self.scan(&reading, !valid && extent == Extent::Whole)
            }
            Extent::Empty | Extent::TooLarge => self.scan(&Reading::default(), extent == Extent::TooLarge),
        }
    }

    fn scan(&self, reading: &Reading<'_>, failed: bool) -> Scan {
        let mut said = Said::default();
        said.take_over(reading);
        Scan {
            first_content_offset_us: self.first_byte_offset_us,
            engine_queue_us: said.usage.queue_us,
            failed,
            ..Scan::of(said.answer())
        }
    }
}

impl Scan {
    fn of(answer: Answer) -> Self {
        Self {
            answer,
            events: 0,
            first_event_offset_us: None,
            first_content_offset_us: None,
            inter_token_p50_us: None,
            inter_token_p99_us: None,
            inter_token_max_us: None,
            engine_queue_us: None,
            failed: false,
        }
    }
}

enum MediaType {
    EventStream,
    Json,
    Other,
}

fn media_type(content_type: &[u8]) -> MediaType {
    let end = content_type.iter().position(|&byte| byte == b';').unwrap_or(content_type.len());
    let essence = content_type[..end].trim_ascii().to_ascii_lowercase();
    match essence.as_slice() {
        b"text/event-stream" => MediaType::EventStream,
        b"application/json" => MediaType::Json,
        other if other.ends_with(b"+json") => MediaType::Json,
        _ => MediaType::Other,
    }
}

/// Names and numbers as far as they have been given.
#[derive(Debug, Default)]
struct Said {
    id: Option<Box<str>>,
    model: Option<Box<str>>,
    finish_reason: Option<Box<str>>,
    usage: Usage,
}

impl Said {
    /// The first id and model count, and the last finish reason and usage.
    fn take_over(&mut self, reading: &Reading<'_>) {
        let name = |name: &str| (name.len() <= NAME_BYTES_MAX).then(|| name.into());
        if self.id.is_none() {
            self.id = reading.id.as_deref().and_then(name);
        }
        if self.model.is_none() {
            self.model = reading.model.as_deref().and_then(name);
        }
        if let Some(finish_reason) = reading.finish_reason().and_then(name) {
            self.finish_reason = Some(finish_reason);
        }
        self.usage.update(&reading.usage);
    }

    fn answer(self) -> Answer {
        Answer {
            finish_reason: self.finish_reason,
            response_id: self.id,
            response_model: self.model,
            prompt_tokens: self.usage.prompt(),
            completion_tokens: self.usage.completion,
            cached_tokens: self.usage.cached(),
            tokens_estimated: false,
            load_report: None,
        }
    }
}

#[derive(Debug, Default)]
struct StreamScanner {
    stream: EventStream,
    understood: Understood,
}

impl StreamScanner {
    fn frame(&mut self, bytes: &[u8], at_us: u64) -> Seen {
        let before = self.understood.content_events;
        self.stream.feed(bytes, at_us, |event| self.understood.event(event));
        let content_events = self.understood.content_events - before;
        Seen { content_events: u32::try_from(content_events).unwrap_or(u32::MAX) }
    }
}

/// What the events of a stream have said so far.
#[derive(Debug, Default)]
struct Understood {
    said: Said,
    pattern: Pattern,
    /// The events of the pattern carry usage (vLLM's `continuous_usage_stats`).
    pattern_has_usage: bool,
    /// The latest of them that was recognised but not parsed, because usually a later one makes it obsolete.
    usage_event: Bounded<PATTERN_BYTES_MAX>,
    events: u64,
    content_events: u64,
    first_event_offset_us: Option<u64>,
    first_content_offset_us: Option<u64>,
    gaps: Gaps,
    failed: bool,
}

impl Understood {
    fn event(&mut self, event: Event<'_>) {
        let data = event.data.map(<[u8]>::trim_ascii);
        if data == Some(b"[DONE]") {
            return;
        }
        self.events += 1;
        self.first_event_offset_us.get_or_insert(event.arrived_us);
        let Some(data) = data else {
            self.failed = true;
            return;
        };
        let has_content = if self.pattern.fits(data) {
            if self.pattern_has_usage {
                self.usage_event.clear();
                self.failed |= !self.usage_event.append(data);
            }
            true
        } else {
            self.parse(data)
        };
        if has_content {
            self.content_events += 1;
            self.first_content_offset_us.get_or_insert(event.arrived_us);
            self.gaps.arrived(event.arrived_us);
        }
    }

    /// Says whether the event has content.
    fn parse(&mut self, data: &[u8]) -> bool {
        self.settle_usage();
        let (reading, valid) = Reading::of(data);
        self.failed |= !valid;
        self.said.take_over(&reading);
        // An event with a finish reason stands for no other, because the last one counts; of ids and models it is the
        // first. Nor does one with a wait: whether a number is one that can be true is not seen by its digits.
        if valid
            && reading.finish_reason().is_none()
            && !reading.has_wait
            && let Some(text) = reading.only_text()
        {
            self.pattern_has_usage = self.pattern.learn(data, text) && !reading.usage.is_empty();
        }
        reading.has_content()
    }

    fn settle_usage(&mut self) {
        if !self.usage_event.is_empty() {
            let (reading, valid) = Reading::of(self.usage_event.as_slice());
            self.failed |= !valid;
            self.said.usage.update(&reading.usage);
            self.usage_event.clear();
        }
    }

    fn finish(mut self) -> Scan {
        self.settle_usage();
        let engine_queue_us = self.said.usage.queue_us;
        let mut answer = self.said.answer();
        if answer.completion_tokens.is_none() && self.content_events > 0 {
            answer.completion_tokens = Some(self.content_events);
            answer.tokens_estimated = true;
        }
        let gaps = self.gaps.summary();
        Scan {
            events: self.events,
            first_event_offset_us: self.first_event_offset_us,
            first_content_offset_us: self.first_content_offset_us,
            inter_token_p50_us: gaps.map(|gaps| gaps.p50_us),
            inter_token_p99_us: gaps.map(|gaps| gaps.p99_us),
            inter_token_max_us: gaps.map(|gaps| gaps.max_us),
            engine_queue_us,
            failed: self.failed,
            ..Scan::of(answer)
        }
    }
}

#[cfg(test)]
mod tests;

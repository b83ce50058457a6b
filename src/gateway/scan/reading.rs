//! What the JSON of an answer says, in the dialects that engines speak, read from one table of keys.
//!
//! The dialects are OpenAI's chat, completions and Responses, and Anthropic's messages, each streamed and in one piece.
//! Their keys do not contradict each other, so nobody has to know which dialect it is. A value of an unexpected type is
//! as good as missing: engines disagree about details, and one odd field must not cost the others.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::pattern::DIGITS_MAX;
use crate::fleet::TimeUnit;

/// What one event, or one whole answer, says. Borrows from it.
#[derive(Debug, Default)]
pub(super) struct Reading<'de> {
    pub(super) id: Option<Cow<'de, str>>,
    pub(super) model: Option<Cow<'de, str>>,
    pub(super) usage: Usage,
    /// A number says how long the request waited in the engine's queue, be it believed or not.
    pub(super) has_wait: bool,
    finish_reason: Option<Cow<'de, str>>,
    /// Responses: `completed`, `incomplete`, `failed`, `in_progress` …
    status: Option<Cow<'de, str>>,
    /// Responses: why it is `incomplete`.
    incomplete_reason: Option<Cow<'de, str>>,
    is_response_object: bool,
    /// There is text, reasoning or a tool call.
    has_content: bool,
    /// Texts that are not empty.
    texts: u32,
    /// The last of them, if it stands in the event as it is, without escapes.
    plain_text: Option<&'de str>,
    event_type: EventType,
    /// The block or item that this event is about is a tool call.
    is_tool_block: bool,
}

/// A larger count of tokens is no count: no model reads or writes so much, and sums of such could overflow.
const TOKENS_MAX: u64 = 10_u64.pow(DIGITS_MAX as u32) - 1;

/// Token counts and the wait before them, each as far as it was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    prompt: Option<u64>,
    pub(super) completion: Option<u64>,
    pub(super) cached: Option<u64>,
    /// Anthropic: prompt tokens read from the cache, *not* among `prompt`.
    cache_read: Option<u64>,
    /// Anthropic: prompt tokens written to the cache, not among `prompt` either.
    cache_creation: Option<u64>,
    /// vLLM, which says it with the usage: the wait in its queue, in microseconds.
    pub(super) queue_us: Option<u64>,
}

/// Only what makes a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum EventType {
    #[default]
    Other,
    /// Anthropic: its count of output tokens is only a beginning.
    MessageStart,
    /// A block or an item begins.
    BlockStart,
}

impl Usage {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over what a later usage says. What it does not mention stays: Anthropic gives input and output tokens in
    /// different events.
    pub(super) fn update(&mut self, later: &Self) {
        self.prompt = later.prompt.or(self.prompt);
        self.completion = later.completion.or(self.completion);
        self.cached = later.cached.or(self.cached);
        self.cache_read = later.cache_read.or(self.cache_read);
        self.cache_creation = later.cache_creation.or(self.cache_creation);
        self.queue_us = later.queue_us.or(self.queue_us);
    }

    /// All tokens of the prompt. Anthropic counts cached ones apart, where others count them in.
    pub(super) fn prompt(&self) -> Option<u64> {
        let apart = self.cache_read.unwrap_or(0).saturating_add(self.cache_creation.unwrap_or(0));
        self.prompt.map(|prompt| prompt.saturating_add(apart))
    }

    /// Tokens of the prompt that came from the prefix cache.
    pub(super) fn cached(&self) -> Option<u64> {
        self.cached.or(self.cache_read)
    }
}

impl<'de> Reading<'de> {
    /// Reads one JSON document. The flag says whether it was valid to its end; if not, what came before the fault is
    /// there, but for the numbers, whose last digits may be missing.
    pub(super) fn of(json: &'de [u8]) -> (Self, bool) {
        let mut reading = Reading::default();
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let place = At { place: Place::Top, reading: &mut reading };
        let valid = place.deserialize(&mut deserializer).and_then(|()| deserializer.end()).is_ok();
        if !valid {
            reading.usage = Usage::default();
        }
        if reading.event_type == EventType::MessageStart {
            reading.usage.completion = None;
        }
        (reading, valid)
    }

    /// Why generation ended, if it did.
    pub(super) fn finish_reason(&self) -> Option<&str> {
        let status = self.status.as_deref().filter(|status| {
            self.is_response_object && matches!(*status, "completed" | "incomplete" | "failed" | "cancelled")
        });
        self.finish_reason.as_deref().or(self.incomplete_reason.as_deref()).or(status)
    }

    /// Whether it has text, reasoning or a tool call.
    pub(super) fn has_content(&self) -> bool {
        self.has_content || self.is_tool_block && self.event_type == EventType::BlockStart
    }

    /// The text, if it is the only one and stands in the event as it is.
    pub(super) fn only_text(&self) -> Option<&'de str> {
        self.plain_text.filter(|_| self.texts == 1)
    }
}

/// Where in an answer a value stands: what its keys mean if it is an object, what it means itself if it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Top,
    /// The response or message that an event of Responses or Anthropic is about.
    Body,
    Choice,
    Delta,
    ToolCall,
    Function,
    Audio,
    Block,
    Incomplete,
    Usage,
    UsageDetails,
    EventType,
    BlockType,
    ObjectType,
    Id,
    Model,
    FinishReason,
    IncompleteReason,
    Status,
    Text,
    PromptTokens,
    CompletionTokens,
    CachedTokens,
    CacheReadTokens,
    CacheCreationTokens,
    Metrics,
    QueueMs,
}

impl Place {
    /// The table of all dialects: what a key leads to, or `None` if its value does not matter.
    fn child(self, key: &str) -> Option<Self> {
        Some(match (self, key) {
            (Self::Top, "choices") => Self::Choice,
            (Self::Top | Self::Choice, "delta") => Self::Delta,
            (Self::Top, "response" | "message") => Self::Body,
            (Self::Top, "content_block" | "item") => Self::Block,
            (Self::Top, "type") => Self::EventType,
            (Self::Top | Self::Body, "id") => Self::Id,
            (Self::Top | Self::Body, "model") => Self::Model,
            (Self::Top | Self::Body, "object") => Self::ObjectType,
            (Self::Top | Self::Body, "usage") => Self::Usage,
            (Self::Top | Self::Body, "status") => Self::Status,
            (Self::Top | Self::Body, "incomplete_details") => Self::Incomplete,
            (Self::Incomplete, "reason") => Self::IncompleteReason,
            // Not in a choice: there vLLM says which stop string it was.
            (Self::Top | Self::Body | Self::Delta, "stop_reason") => Self::FinishReason,
            (Self::Choice, "finish_reason") => Self::FinishReason,
            (Self::Choice, "text") => Self::Text,
            (Self::Delta, "content" | "reasoning_content" | "reasoning" | "refusal") => Self::Text,
            (Self::Delta, "text" | "thinking" | "partial_json") => Self::Text,
            (Self::Delta, "audio") => Self::Audio,
            (Self::Delta, "tool_calls") => Self::ToolCall,
            (Self::Delta, "function_call") | (Self::ToolCall, "function" | "custom") => Self::Function,
            (Self::Function, "arguments" | "input") => Self::Text,
            (Self::Block, "type") => Self::BlockType,
            // Mistral: content as a list of parts.
            (Self::Text, "text") => Self::Text,
            (Self::Usage, "prompt_tokens" | "input_tokens") => Self::PromptTokens,
            (Self::Usage, "completion_tokens" | "output_tokens") => Self::CompletionTokens,
            (Self::Usage, "prompt_tokens_details" | "input_tokens_details") => Self::UsageDetails,
            (Self::UsageDetails, "cached_tokens") => Self::CachedTokens,
            (Self::Usage, "cache_read_input_tokens") => Self::CacheReadTokens,
            (Self::Usage, "cache_creation_input_tokens") => Self::CacheCreationTokens,
            // vLLM with --enable-per-request-metrics.
            (Self::Top | Self::Body, "metrics") => Self::Metrics,
            (Self::Metrics, "queue_time_ms") => Self::QueueMs,
            _ => return None,
        })
    }

    /// A list's elements stand where the list stands, at these places.
    const fn may_be_a_list(self) -> bool {
        matches!(self, Self::Choice | Self::ToolCall | Self::Text)
    }

    /// That an object is there, with anything in it, is content.
    const fn is_content(self) -> bool {
        matches!(self, Self::ToolCall | Self::Function | Self::Audio)
    }
}

/// Reads a value at its place into the reading.
struct At<'r, 'de> {
    place: Place,
    reading: &'r mut Reading<'de>,
}

impl<'de> At<'_, 'de> {
    /// `plain` is the same text if it stands in the document as it is, without escapes.
    fn text(self, text: &str, plain: Option<&'de str>) {
        // An empty string says nothing, whatever it stands for: the first chunk of many engines has `"content":""`.
        if text.is_empty() {
            return;
        }
        let name = || Some(plain.map_or_else(|| Cow::Owned(text.to_owned()), Cow::Borrowed));
        let reading = self.reading;
        match self.place {
            Place::Id => reading.id = name(),
            Place::Model => reading.model = name(),
            Place::FinishReason => reading.finish_reason = name(),
            Place::IncompleteReason => reading.incomplete_reason = name(),
            Place::Status => reading.status = name(),
            Place::ObjectType => reading.is_response_object = text == "response",
            Place::BlockType => reading.is_tool_block = text.ends_with("tool_use") || text.ends_with("_call"),
            Place::EventType => {
                reading.event_type = match text {
                    "message_start" => EventType::MessageStart,
                    "content_block_start" | "response.output_item.added" => EventType::BlockStart,
                    _ => EventType::Other,
                };
            }
            // Responses has the text in `delta` itself.
            Place::Text | Place::Delta => {
                reading.has_content = true;
                reading.texts += 1;
                reading.plain_text = plain;
            }
            _ => {}
        }
    }

    fn wait(self, number: f64) {
        if self.place == Place::QueueMs {
            self.reading.has_wait = true;
            self.reading.usage.queue_us = TimeUnit::Milliseconds.wait_us(number);
        }
    }

    fn number(self, number: u64) {
        if self.place == Place::QueueMs {
            return self.wait(number as f64);
        }
        if number > TOKENS_MAX {
            return;
        }
        let usage = &mut self.reading.usage;
        match self.place {
            Place::PromptTokens => usage.prompt = Some(number),
            Place::CompletionTokens => usage.completion = Some(number),
            Place::CachedTokens => usage.cached = Some(number),
            Place::CacheReadTokens => usage.cache_read = Some(number),
            Place::CacheCreationTokens => usage.cache_creation = Some(number),
            _ => {}
        }
    }
}

impl<'de> DeserializeSeed<'de> for At<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<(), E> {
        self.text(text, Some(text));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.text(text, None);
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.number(number);
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.wait(number as f64);
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.wait(number);
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if !self.place.may_be_a_list() {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        while list.next_element_seed(At { place: self.place, reading: self.reading })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.reading.has_content |= self.place.is_content();
        while let Some(child) = map.next_key_seed(KeyIn(self.place))? {
            match child {
                Some(place) => map.next_value_seed(At { place, reading: self.reading })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Looks a key up without keeping it.
struct KeyIn(Place);

impl<'de> DeserializeSeed<'de> for KeyIn {
    type Value = Option<Place>;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Option<Place>, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyIn {
    type Value = Option<Place>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<Place>, E> {
        Ok(self.0.child(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_have_content_and_events_that_have_none() {
        let cases: &[(&str, bool)] = &[
            (r#"{"choices":[{"delta":{"content":"a"}}]}"#, true),
            (r#"{"choices":[{"delta":{"content":"\n"}}]}"#, true),
            (r#"{"choices":[{"delta":{"content":""}}]}"#, false),
            (r#"{"choices":[{"delta":{"content":null}}]}"#, false),
            (r#"{"choices":[{"delta":{"content":[{"type":"text","text":"a"}]}}]}"#, true),
            (r#"{"choices":[{"delta":{"reasoning_content":"a"}}]}"#, true),
            (r#"{"choices":[{"delta":{"reasoning":"a"}}]}"#, true),
            (r#"{"choices":[{"delta":{"refusal":"a"}}]}"#, true),
            (r#"{"choices":[{"delta":{"audio":{"id":"a"}}}]}"#, true),
            (r#"{"choices":[{"delta":{"audio":null,"tool_calls":[]}}]}"#, false),
            (r#"{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":""}}]}}]}"#, true),
            (r#"{"choices":[{"delta":{"function_call":{"arguments":""}}}]}"#, true),
            (r#"{"choices":[{"delta":{"role":"assistant"}}]}"#, false),
            (r#"{"choices":[{"text":""},{"text":"a"}]}"#, true),
            (r#"{"choices":[{"text":""}]}"#, false),
            (r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, false),
            (r#"{"type":"response.output_text.delta","delta":"a"}"#, true),
            (r#"{"type":"response.output_text.done","text":"abc"}"#, false),
            (r#"{"type":"response.output_item.added","item":{"type":"function_call"}}"#, true),
            (r#"{"item":{"type":"function_call"},"type":"response.output_item.done"}"#, false),
            (r#"{"type":"response.output_item.added","item":{"type":"message","content":[]}}"#, false),
            (r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}"#, true),
            (r#"{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"a"}}"#, true),
            (r#"{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{"}}"#, true),
            (r#"{"type":"content_block_delta","delta":{"type":"signature_delta","signature":"a"}}"#, false),
            (r#"{"type":"content_block_start","content_block":{"type":"tool_use","input":{}}}"#, true),
            (r#"{"type":"content_block_start","content_block":{"type":"text","text":""}}"#, false),
            (r#"{"type":"ping"}"#, false),
            (r#"{"error":{"message":"a","type":"b"}}"#, false),
        ];
        for (event, has_content) in cases {
            let (reading, valid) = Reading::of(event.as_bytes());
            assert!(valid, "{event}");
            assert_eq!(reading.has_content(), *has_content, "{event}");
        }
    }

    #[test]
    fn answers_and_why_they_ended() {
        let cases: &[(&str, Option<&str>)] = &[
            (r#"{"choices":[{"finish_reason":"stop","stop_reason":"END"}]}"#, Some("stop")),
            (r#"{"choices":[{"finish_reason":null,"stop_reason":7}]}"#, None),
            (r#"{"choices":[{"finish_reason":""}]}"#, None),
            (r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#, Some("end_turn")),
            (r#"{"type":"message","stop_reason":"max_tokens"}"#, Some("max_tokens")),
            (r#"{"response":{"object":"response","status":"in_progress"}}"#, None),
            (r#"{"response":{"object":"response","status":"completed","incomplete_details":null}}"#, Some("completed")),
            (
                r#"{"object":"response","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}"#,
                Some("max_output_tokens"),
            ),
            (r#"{"status":"failed","error":"not one of ours"}"#, None),
        ];
        for (answer, finish_reason) in cases {
            assert_eq!(Reading::of(answer.as_bytes()).0.finish_reason(), *finish_reason, "{answer}");
        }
    }

    #[test]
    fn usages_and_their_tokens() {
        // Usage, then the tokens of the prompt, generated and from the cache.
        let cases: &[(&str, [Option<u64>; 3])] = &[
            (r#"{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}"#, [Some(9), Some(2), None]),
            (r#"{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8}}"#, [Some(9), None, Some(8)]),
            (r#"{"prompt_tokens":9,"prompt_tokens_details":null}"#, [Some(9), None, None]),
            (
                r#"{"input_tokens":9,"input_tokens_details":{"cached_tokens":8},"output_tokens":2}"#,
                [Some(9), Some(2), Some(8)],
            ),
            (
                r#"{"input_tokens":9,"cache_read_input_tokens":8,"cache_creation_input_tokens":7,"output_tokens":2}"#,
                [Some(24), Some(2), Some(8)],
            ),
            (r#"{"input_tokens":9,"cache_read_input_tokens":null,"output_tokens":2}"#, [Some(9), Some(2), None]),
            (r#"{"prompt_tokens":"9","completion_tokens":-1}"#, [None, None, None]),
            (r#"{"prompt_tokens":18446744073709551615,"cache_read_input_tokens":1}"#, [None, None, Some(1)]),
            (r#"{"prompt_tokens":9007199254740993,"completion_tokens":10000000000}"#, [None, None, None]),
            (
                r#"{"input_tokens":4294967296,"cache_read_input_tokens":4294967296,"cache_creation_input_tokens":4294967296}"#,
                [Some(3 << 32), None, Some(1 << 32)],
            ),
            ("null", [None, None, None]),
            ("\"usage\"", [None, None, None]),
            (r#"[{"prompt_tokens":9}]"#, [None, None, None]),
        ];
        for (usage, tokens) in cases {
            let answer = format!(r#"{{"metadata":{{"usage":{{"prompt_tokens":1}}}},"usage":{usage}}}"#);
            let (reading, valid) = Reading::of(answer.as_bytes());
            assert!(valid);
            let found = reading.usage;
            assert_eq!([found.prompt(), found.completion, found.cached()], *tokens, "{usage}");
        }
    }

    #[test]
    fn a_wait_counts_where_vllm_says_it_and_if_it_can_be_true() {
        let cases: &[(&str, Option<u64>)] = &[
            (r#"{"metrics":{"queue_time_ms":37.25}}"#, Some(37_250)),
            (r#"{"metrics":{"time_to_first_token_ms":9.5,"queue_time_ms":0.0,"mean_itl_ms":null}}"#, Some(0)),
            (r#"{"metrics":{"queue_time_ms":37}}"#, Some(37_000)),
            (r#"{"response":{"metrics":{"queue_time_ms":1e2}}}"#, Some(100_000)),
            (r#"{"metrics":{"queue_time_ms":86400000}}"#, Some(86_400_000_000)),
            (r#"{"metrics":{"queue_time_ms":86400001.0}}"#, None),
            (r#"{"metrics":{"queue_time_ms":18446744073709551615}}"#, None),
            (r#"{"metrics":{"queue_time_ms":1e300}}"#, None),
            (r#"{"metrics":{"queue_time_ms":-0.5}}"#, None),
            (r#"{"metrics":{"queue_time_ms":-3}}"#, None),
            (r#"{"metrics":{"queue_time_ms":"37"}}"#, None),
            (r#"{"metrics":{"queue_time_ms":[37]}}"#, None),
            (r#"{"metrics":{"queue_time_ms":null}}"#, None),
            (r#"{"metrics":[{"queue_time_ms":37}]}"#, None),
            (r#"{"metrics":null}"#, None),
            (r#"{"usage":{"metrics":{"queue_time_ms":37}},"queue_time_ms":37}"#, None),
            (r#"{"choices":[{"metrics":{"queue_time_ms":37}}],"metrics":37}"#, None),
        ];
        for (answer, queue_us) in cases {
            let (reading, valid) = Reading::of(answer.as_bytes());
            assert!(valid, "{answer}");
            assert_eq!(reading.usage.queue_us, *queue_us, "{answer}");
        }
    }

    #[test]
    fn a_fault_costs_the_numbers_only() {
        for broken in [
            r#"{"id":"a","metrics":{"queue_time_ms":12"#,
            r#"{"id":"a","usage":{"prompt_tokens":12"#,
            r#"{"id":"a","usage":{"prompt_tokens":12}} x"#,
        ] {
            let (reading, valid) = Reading::of(broken.as_bytes());
            assert!(!valid);
            assert_eq!(reading.id.as_deref(), Some("a"));
            assert!(reading.usage.is_empty());
        }
    }

    #[test]
    fn the_only_text_is_where_it_stands() {
        let only_text = |event: &'static str| Reading::of(event.as_bytes()).0.only_text();
        assert_eq!(only_text(r#"{"choices":[{"delta":{"content":"","reasoning":"a"}}]}"#), Some("a"));
        assert_eq!(only_text(r#"{"choices":[{"text":"a"},{"text":"b"}]}"#), None);
        assert_eq!(only_text(r#"{"choices":[{"text":"a\n"}]}"#), None, "escaped: it has no place to point at");
        assert_eq!(only_text(r#"{"choices":[{"text":"a"},{"text":"\n"}]}"#), None);
    }
}

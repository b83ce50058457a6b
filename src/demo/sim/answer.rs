//! The texts of an answer: vLLM's JSON, vLLM's events, and words for them to carry.

use std::fmt::Write;

use bytes::Bytes;

use super::ask::Operation;
use super::generation::Known;
use super::totals::FinishReason;
use crate::demo::draws::hash_of;

/// The last event of every stream.
pub(super) const DONE: &str = "data: [DONE]\n\n";

/// What an answer is made of. None needs escaping in JSON; two are longer in bytes than in letters.
const WORDS: [&str; 64] = [
    "the",
    "queue",
    "grows",
    "when",
    "pods",
    "are",
    "busy",
    "and",
    "shrinks",
    "as",
    "tokens",
    "leave",
    "each",
    "request",
    "waits",
    "its",
    "turn",
    "while",
    "a",
    "cache",
    "of",
    "earlier",
    "prompts",
    "saves",
    "work",
    "that",
    "would",
    "be",
    "done",
    "again",
    "so",
    "gateway",
    "looks",
    "at",
    "every",
    "target",
    "before",
    "it",
    "chooses",
    "one",
    "with",
    "room",
    "to",
    "spare",
    "then",
    "remembers",
    "what",
    "was",
    "seen",
    "for",
    "anyone",
    "who",
    "asks",
    "later",
    "why",
    "this",
    "answer",
    "came",
    "from",
    "there",
    "naïve",
    "café",
    "not",
    "here",
];

/// One answer, before it is sent in one piece or in events.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) operation: Operation,
    /// With its quotes, escaped.
    pub(super) id_json: String,
    /// With its quotes, escaped.
    pub(super) model_json: String,
    /// Unix seconds.
    pub(super) created: u64,
    pub(super) fingerprint: String,
    pub(super) prompt_tokens: u32,
    pub(super) tokens: u32,
    pub(super) finish: FinishReason,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
    /// Whether usage says how much of the prompt was cached.
    pub(super) prompt_tokens_details: bool,
    /// Whether it says how long the request waited.
    pub(super) per_request_metrics: bool,
    /// Draws the words.
    pub(super) text_seed: u64,
}

impl Answer {
    /// The text of one token.
    fn token(&self, index: u32) -> (&'static str, &'static str) {
        let space = if index == 0 { "" } else { " " };
        (space, WORDS[(hash_of(&(self.text_seed, index)) % WORDS.len() as u64) as usize])
    }

    fn text(&self) -> String {
        let mut text = String::with_capacity(self.tokens as usize * 6);
        for (space, word) in (0..self.tokens).map(|index| self.token(index)) {
            text.push_str(space);
            text.push_str(word);
        }
        text
    }

    /// What every event begins with.
    fn head(&self) -> String {
        let object = match self.operation {
            Operation::Chat => "chat.completion.chunk",
            Operation::Completion => "text_completion",
        };
        let mut event = String::with_capacity(512);
        let (id, created, model) = (&self.id_json, self.created, &self.model_json);
        add(
            &mut event,
            format_args!(r#"data: {{"id":{id},"object":"{object}","created":{created},"model":{model},"choices":["#),
        );
        event
    }

    /// A chat's first event: it names the speaker and has no text yet.
    pub(super) fn role_event(&self) -> Bytes {
        let mut event = self.head();
        event
            .push_str(r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]"#);
        self.add_continuous_usage(&mut event, 0);
        event.push_str(",\"prompt_token_ids\":null,\"prompt_text\":null}\n\n");
        event.into()
    }

    /// The event of one token; the last one says why it is the last.
    pub(super) fn token_event(&self, index: u32) -> Bytes {
        let mut event = self.head();
        let (space, word) = self.token(index);
        let last = index + 1 == self.tokens;
        match self.operation {
            Operation::Chat => {
                add(&mut event, format_args!(r#"{{"index":0,"delta":{{"content":"{space}{word}"}},"logprobs":null,"#));
                self.add_finish_reason(&mut event, last);
                // Chat names the stop reason only in the event that has one to name.
                event.push_str(if last {
                    r#","stop_reason":null,"token_ids":null}]"#
                } else {
                    r#","token_ids":null}]"#
                });
            }
            Operation::Completion => {
                add(&mut event, format_args!(r#"{{"index":0,"text":"{space}{word}","logprobs":null,"#));
                self.add_finish_reason(&mut event, last);
                event.push_str(r#","stop_reason":null,"prompt_token_ids":null,"token_ids":null}]"#);
            }
        }
        self.add_continuous_usage(&mut event, index + 1);
        if last && !self.include_usage {
            add(&mut event, format_args!(r#","system_fingerprint":"{}""#, self.fingerprint));
        }
        event.push_str("}\n\n");
        event.into()
    }

    /// The event after the last token's, if usage was asked for.
    pub(super) fn usage_event(&self, known: Known) -> Bytes {
        let cached_tokens = known.cached_tokens;
        let mut event = self.head();
        event.push_str(r#"],"usage":{"#);
        self.add_counts(&mut event, self.tokens);
        if self.prompt_tokens_details {
            add(&mut event, format_args!(r#","prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}"#));
        }
        add(&mut event, format_args!("}},\"system_fingerprint\":\"{}\"", self.fingerprint));
        if self.per_request_metrics {
            add(&mut event, format_args!(r#","metrics":{{"queue_time_ms":{:?}}}"#, known.queue_time_ms()));
        }
        event.push_str("}\n\n");
        event.into()
    }

    /// The whole answer in one piece.
    pub(super) fn json(&self, known: Known) -> Bytes {
        let cached_tokens = known.cached_tokens;
        let mut json = String::with_capacity(1024 + self.tokens as usize * 6);
        let (id, created, model, finish) = (&self.id_json, self.created, &self.model_json, self.finish.name());
        match self.operation {
            Operation::Chat => add(
                &mut json,
                format_args!(
                    r#"{{"id":{id},"object":"chat.completion","created":{created},"model":{model},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{}","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"{finish}","stop_reason":null,"token_ids":null,"routed_experts":null}}]"#,
                    self.text()
                ),
            ),
            Operation::Completion => add(
                &mut json,
                format_args!(
                    r#"{{"id":{id},"object":"text_completion","created":{created},"model":{model},"choices":[{{"index":0,"text":"{}","logprobs":null,"finish_reason":"{finish}","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}}]"#,
                    self.text()
                ),
            ),
        }
        add(&mut json, format_args!(r#","service_tier":null,"system_fingerprint":"{}","usage":{{"#, self.fingerprint));
        self.add_counts(&mut json, self.tokens);
        match self.prompt_tokens_details {
            true => add(
                &mut json,
                format_args!(
                    r#","prompt_tokens_details":{{"cached_tokens":{cached_tokens},"created_cache_tokens":null,"multimodal_tokens":null}}"#
                ),
            ),
            false => json.push_str(r#","prompt_tokens_details":null"#),
        }
        json.push_str(r#","completion_tokens_details":null}"#);
        if self.operation == Operation::Chat {
            json.push_str(r#","prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null"#);
        }
        json.push_str(r#","kv_transfer_params":null,"ec_transfer_params":null,"metrics":"#);
        if self.per_request_metrics {
            json.push_str(r#"{"time_to_first_token_ms":null,"generation_time_ms":null,"#);
            add(&mut json, format_args!(r#""queue_time_ms":{:?},"#, known.queue_time_ms()));
            json.push_str(r#""mean_itl_ms":null,"tokens_per_second":null,"speculative_decoding":null}"#);
        } else {
            json.push_str("null");
        }
        json.push('}');
        json.into()
    }

    fn add_finish_reason(&self, event: &mut String, last: bool) {
        match last {
            true => add(event, format_args!(r#""finish_reason":"{}""#, self.finish.name())),
            false => event.push_str(r#""finish_reason":null"#),
        }
    }

    fn add_counts(&self, text: &mut String, tokens: u32) {
        let (prompt, total) = (self.prompt_tokens, self.prompt_tokens + tokens);
        add(text, format_args!(r#""prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{tokens}"#));
    }

    fn add_continuous_usage(&self, event: &mut String, tokens: u32) {
        if self.continuous_usage {
            event.push_str(r#","usage":{"#);
            self.add_counts(event, tokens);
            event.push_str(match self.operation {
                Operation::Chat => r#","completion_tokens_details":null}"#,
                Operation::Completion => "}",
            });
        }
    }
}

fn add(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use serde_json::Value;

    const REAL_JSON: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/chat.json");
    const REAL_CHAT: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/stream.sse");
    const REAL_CHAT_CONTINUOUS: &str =
        include_str!("../../../tests/fixtures/vllm-0.32.0/chat-stream-continuous-usage.sse");
    const REAL_COMPLETION: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/completions-stream.sse");

    fn answer(operation: Operation, prompt_tokens: u32, tokens: u32) -> Answer {
        Answer {
            operation,
            id_json: "\"ID\"".to_owned(),
            model_json: "\"tiny\"".to_owned(),
            created: 1_795_435_995,
            fingerprint: "FINGERPRINT".to_owned(),
            prompt_tokens,
            tokens,
            finish: FinishReason::Length,
            include_usage: true,
            continuous_usage: false,
            prompt_tokens_details: false,
            per_request_metrics: false,
            text_seed: 1,
        }
    }

    fn events(answer: &Answer) -> String {
        let mut events = Vec::new();
        if answer.operation == Operation::Chat {
            events.push(answer.role_event());
        }
        events.extend((0..answer.tokens).map(|index| answer.token_event(index)));
        if answer.include_usage {
            events.push(answer.usage_event(Known::default()));
        }
        events.push(DONE.into());
        String::from_utf8(events.concat()).unwrap()
    }

    /// Everything that differs between two runs of the same engine becomes the same.
    fn normal(text: &str) -> String {
        let rest = |value: &mut Value| {
            for (key, plain) in [("id", "ID"), ("system_fingerprint", "FINGERPRINT")] {
                if value.get(key).is_some() {
                    value[key] = plain.into();
                }
            }
            value["created"] = 1.into();
            for choice in value["choices"].as_array_mut().unwrap() {
                for path in ["/delta/content", "/message/content", "/text"] {
                    if let Some(content) = choice.pointer_mut(path) {
                        *content = "TEXT".into();
                    }
                }
            }
        };
        let normal_line = |line: &str| match line.strip_prefix("data: ").unwrap_or(line) {
            json if json.starts_with('{') => {
                let mut value = serde_json::from_str(json).unwrap();
                rest(&mut value);
                value.to_string()
            }
            _ => line.to_owned(),
        };
        text.split('\n').map(normal_line).collect::<Vec<_>>().join("\n")
    }

    /// The keys of each line in the order they are written, which a parsed value does not keep.
    fn keys_in_order(text: &str) -> Vec<Vec<&str>> {
        let of_line = |line| -> Vec<&str> {
            let quoted: Vec<&str> = str::split(line, '"').collect();
            quoted.windows(2).filter(|pair| pair[1].starts_with(':')).map(|pair| pair[0]).collect()
        };
        text.lines().map(of_line).collect()
    }

    #[test]
    fn every_stream_is_that_of_a_real_vllm_but_for_its_words() {
        let continuous = Answer { continuous_usage: true, ..answer(Operation::Chat, 19, 40) };
        for (ours, real) in [
            (events(&answer(Operation::Chat, 21, 6)), REAL_CHAT),
            (events(&continuous), REAL_CHAT_CONTINUOUS),
            (events(&answer(Operation::Completion, 2, 12)), REAL_COMPLETION),
        ] {
            assert_eq!(keys_in_order(&ours), keys_in_order(real));
            assert_eq!(normal(&ours), normal(real));
        }
    }

    #[test]
    fn an_answer_in_one_piece_is_that_of_a_real_vllm_but_for_its_words() {
        let ours = String::from_utf8(answer(Operation::Chat, 19, 12).json(Known::default()).to_vec()).unwrap();
        assert_eq!(keys_in_order(&ours), keys_in_order(REAL_JSON));
        assert_eq!(normal(&ours), normal(REAL_JSON.trim_end()));
    }

    #[test]
    fn without_usage_the_last_event_has_the_fingerprint() {
        let plain = Answer { include_usage: false, ..answer(Operation::Chat, 5, 2) };
        let text = events(&plain);
        assert!(!text.contains("usage"), "{text}");
        let last = text.split("\n\n").nth(2).unwrap();
        assert!(last.ends_with(r#""token_ids":null}],"system_fingerprint":"FINGERPRINT"}"#), "{last}");
    }

    #[test]
    fn cached_tokens_are_told_when_the_pod_is_set_so() {
        let told = Answer { prompt_tokens_details: true, ..answer(Operation::Completion, 40, 2) };
        let known = Known { cached_tokens: 32, ..Known::default() };
        let json: Value = serde_json::from_slice(&told.json(known)).unwrap();
        assert_eq!(json["usage"]["prompt_tokens_details"]["cached_tokens"], 32);
        let event = String::from_utf8(told.usage_event(known).to_vec()).unwrap();
        let event: Value = serde_json::from_str(event.trim().strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(event["usage"]["prompt_tokens_details"]["cached_tokens"], 32);
    }

    #[test]
    fn a_wait_is_told_when_the_pod_is_set_so() {
        let known = Known { queued: Duration::from_micros(1_250), ..Known::default() };
        for per_request_metrics in [true, false] {
            let told = Answer { per_request_metrics, ..answer(Operation::Chat, 40, 2) };
            let json: Value = serde_json::from_slice(&told.json(known)).unwrap();
            let event = String::from_utf8(told.usage_event(known).to_vec()).unwrap();
            let event: Value = serde_json::from_str(event.trim().strip_prefix("data: ").unwrap()).unwrap();
            let wait = |answer: &Value| answer.pointer("/metrics/queue_time_ms").and_then(Value::as_f64);
            assert_eq!([wait(&json), wait(&event)], [per_request_metrics.then_some(1.25); 2]);
            assert_eq!(event.get("metrics").is_some(), per_request_metrics, "a stream leaves out what it does not say");
        }
    }

    #[test]
    fn a_stream_says_what_the_answer_in_one_piece_says() {
        let same = answer(Operation::Chat, 5, 30);
        let mut said = String::new();
        for line in events(&same).lines().filter_map(|line| line.strip_prefix("data: {")) {
            let event: Value = serde_json::from_str(&format!("{{{line}")).unwrap();
            said += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        }
        let json: Value = serde_json::from_slice(&same.json(Known::default())).unwrap();
        assert_eq!(json["choices"][0]["message"]["content"], said);
        assert_ne!(said, Answer { text_seed: 2, ..same }.text());
    }

    #[test]
    fn no_word_needs_escaping() {
        for word in WORDS {
            assert_eq!(serde_json::to_string(word).unwrap(), format!("\"{word}\""));
        }
    }
}

//! What a generation request asks for, and what is wrong with it, in vLLM's words.

use std::borrow::Cow;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::engine::{BLOCK_TOKENS, Prompt};
use crate::demo::draws::hash_of;

/// Bytes of text that make a token here. Real tokenizers of English come to about as many.
const TOKEN_BYTES: usize = 4;

/// The two APIs that generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Chat,
    Completion,
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) kind: Cow<'static, str>,
    pub(super) param: Option<Cow<'static, str>>,
    pub(super) message: String,
}

impl Refusal {
    /// As vLLM answers what its HTTP framework or its engine refuses: the type is the status in words.
    pub(super) fn of_status(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = status.canonical_reason().unwrap_or("Error").into();
        Self { status, kind, param: None, message: message.into() }
    }

    /// As vLLM answers a parameter it cannot serve.
    pub(super) fn of_parameter(param: &'static str, message: impl Into<String>) -> Self {
        let kind = Cow::Borrowed("BadRequestError");
        Self { status: StatusCode::BAD_REQUEST, kind, param: Some(param.into()), message: message.into() }
    }

    pub(super) fn unknown_model(asked: &str, served: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError".into(),
            param: Some("model".into()),
            message: format!("The model `{asked}` does not exist. Valid aliases: {served}."),
        }
    }

    /// As vLLM answers a body that its data model does not accept.
    fn of_body(error: &serde_json::Error) -> Self {
        let (kind, param, message, detail) = match error.classify() {
            serde_json::error::Category::Data => ("value_error", "body".to_owned(), "Value error", error.to_string()),
            _ => ("json_invalid", format!("body.{}", error.column()), "JSON decode error", error.to_string()),
        };
        let detail = detail.replace('\'', "\"");
        let message = format!(
            "1 validation error:\n  {{'type': '{kind}', 'loc': '{param}', 'msg': '{message}', 'input': '<dict of 0 \
             items>', 'ctx': {{'error': '{detail}'}}}}"
        );
        Self { status: StatusCode::BAD_REQUEST, kind: "Bad Request".into(), param: Some(param.into()), message }
    }

    fn missing(field: &'static str) -> Self {
        let param = format!("body.{field}");
        let message =
            format!("1 validation error:\n  {{'type': 'missing', 'loc': '{param}', 'msg': 'Field required'}}");
        Self { status: StatusCode::BAD_REQUEST, kind: "Bad Request".into(), param: Some(param.into()), message }
    }

    pub(super) fn json(&self) -> String {
        let error = ErrorInfo {
            message: &self.message,
            kind: &self.kind,
            param: self.param.as_deref(),
            code: self.status.as_u16(),
        };
        serde_json::to_string(&ErrorResponse { error }).expect("strings and numbers are always JSON")
    }
}

#[derive(Serialize)]
struct ErrorResponse<'a> {
    error: ErrorInfo<'a>,
}

#[derive(Serialize)]
struct ErrorInfo<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: u16,
}

/// A request that can be served, but for the model and the length, which the pod knows about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) model: Option<String>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
    pub(super) max_tokens: Option<u32>,
    pub(super) prompt: Prompt,
    /// The same for the same prompt, so that it gets the same answer.
    pub(super) text_hash: u64,
}

#[derive(Deserialize)]
struct Body<'a> {
    model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n: Option<u32>,
    #[serde(borrow)]
    messages: Option<Vec<Message<'a>>>,
    #[serde(borrow)]
    prompt: Option<CompletionPrompt<'a>>,
}

#[derive(Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Parts(#[serde(borrow)] Vec<Part<'a>>),
}

/// A part of a message. Images and sound weigh nothing here.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CompletionPrompt<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    Batches(Vec<Vec<u32>>),
}

impl Ask {
    pub(super) fn parse(operation: Operation, body: &[u8]) -> Result<Self, Refusal> {
        let body: Body<'_> = serde_json::from_slice(body).map_err(|error| Refusal::of_body(&error))?;
        if body.n.is_some_and(|n| n != 1) {
            return Err(Refusal::of_parameter("n", "a simulated engine gives one choice; n must be 1"));
        }
        let max_tokens = match operation {
            Operation::Chat => body.max_completion_tokens.or(body.max_tokens),
            Operation::Completion => body.max_tokens,
        };
        let max_tokens = match max_tokens {
            Some(tokens) if tokens < 1 => {
                let message = format!("max_tokens must be at least 1, got {tokens}.");
                return Err(Refusal::of_parameter("max_tokens", message));
            }
            tokens => tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
        };
        let (prompt, text_hash) = match operation {
            Operation::Chat => of_text(&chat_text(&body.messages.ok_or_else(|| Refusal::missing("messages"))?)),
            Operation::Completion => match body.prompt.ok_or_else(|| Refusal::missing("prompt"))? {
                CompletionPrompt::Text(text) => of_text(&text),
                CompletionPrompt::Tokens(tokens) => of_tokens(&tokens),
                CompletionPrompt::Texts(texts) => of_text(only(&texts)?),
                CompletionPrompt::Batches(batches) => of_tokens(only(&batches)?),
            },
        };
        let options = body.stream_options.unwrap_or_default();
        let include_usage = options.include_usage.unwrap_or(false);
        let continuous_usage = include_usage && options.continuous_usage_stats.unwrap_or(false);
        let stream = body.stream.unwrap_or(false);
        Ok(Self { model: body.model, stream, include_usage, continuous_usage, max_tokens, prompt, text_hash })
    }
}

fn only<T>(prompts: &[T]) -> Result<&T, Refusal> {
    match prompts {
        [prompt] => Ok(prompt),
        _ => {
            Err(Refusal::of_parameter("prompt", "a simulated engine takes one prompt at a time; send one request each"))
        }
    }
}

/// What a chat template makes of messages: who speaks, what is said, and where it ends.
fn chat_text(messages: &[Message<'_>]) -> String {
    let mut text = String::with_capacity(256);
    for message in messages {
        text.push_str("<|");
        text.push_str(&message.role);
        text.push_str("|>");
        match &message.content {
            Some(Content::Text(said)) => text.push_str(said),
            Some(Content::Parts(parts)) => {
                parts.iter().filter_map(|part| part.text.as_ref()).for_each(|said| text += said)
            }
            None => {}
        }
        text.push_str("<|end|>");
    }
    text.push_str("<|assistant|>");
    text
}

fn of_text(text: &str) -> (Prompt, u64) {
    let blocks = chained(text.as_bytes().chunks_exact(BLOCK_TOKENS as usize * TOKEN_BYTES));
    let tokens = text.len().div_ceil(TOKEN_BYTES).max(1);
    (Prompt { tokens: tokens as u32, blocks }, hash_of(text))
}

fn of_tokens(tokens: &[u32]) -> (Prompt, u64) {
    let blocks = chained(tokens.chunks_exact(BLOCK_TOKENS as usize));
    (Prompt { tokens: tokens.len().max(1) as u32, blocks }, hash_of(tokens))
}

/// Each block's hash is also over all before it: the same text elsewhere is another block.
fn chained<'a, T: std::hash::Hash + 'a>(blocks: impl Iterator<Item = &'a [T]>) -> Vec<u64> {
    let chain = |before: &mut u64, block: &[T]| {
        *before = hash_of(&(*before, block));
        Some(*before)
    };
    blocks.scan(0, chain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chat(body: &str) -> Ask {
        Ask::parse(Operation::Chat, body.as_bytes()).unwrap()
    }

    #[test]
    fn a_chat_request_is_read() {
        let ask = chat(
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},
                "max_tokens":7,"max_completion_tokens":9,"temperature":0.1,
                "messages":[{"role":"user","content":"hey \"you\""}]}"#,
        );
        assert_eq!((ask.model.as_deref(), ask.stream, ask.max_tokens), (Some("m"), true, Some(9)));
        assert!(ask.include_usage && ask.continuous_usage);
        assert_eq!(ask.prompt.tokens, "<|user|>hey \"you\"<|end|><|assistant|>".len().div_ceil(4) as u32);
    }

    #[test]
    fn usage_in_every_chunk_needs_usage() {
        let ask = chat(r#"{"messages":[],"stream_options":{"continuous_usage_stats":true}}"#);
        assert!(!ask.include_usage && !ask.continuous_usage);
    }

    #[test]
    fn a_message_in_parts_is_the_same_prompt_as_in_one_text() {
        let parts = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a b"},{"type":"image_url","image_url":{}},
            {"type":"text","text":" c"}]}]}"#;
        assert_eq!(chat(parts), chat(r#"{"messages":[{"role":"user","content":"a b c"}]}"#));
    }

    #[test]
    fn every_form_of_a_completion_prompt_is_read() {
        let completion =
            |prompt: &str| Ask::parse(Operation::Completion, format!(r#"{{"prompt":{prompt}}}"#).as_bytes());
        assert_eq!(completion(r#""one two""#).unwrap(), completion(r#"["one two"]"#).unwrap());
        assert_eq!(completion("[1,2,3]").unwrap(), completion("[[1,2,3]]").unwrap());
        assert_eq!(completion("[1,2,3]").unwrap().prompt.tokens, 3);
        assert_eq!(completion(r#"["a","b"]"#).unwrap_err().param.as_deref(), Some("prompt"));
    }

    #[test]
    fn conversations_share_the_blocks_of_what_they_share() {
        let said = |last: &str| {
            let system = "You are a patient assistant. ".repeat(20);
            chat(&format!(
                r#"{{"messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":"{last}"}}]}}"#
            ))
            .prompt
            .blocks
        };
        let (one, other) = (said("what is a queue, and why does it grow so long, please?"), said("tell me a story"));
        let shared = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        assert!(shared >= 9 && shared < one.len(), "{shared} of {}", one.len());
    }

    #[test]
    fn the_same_text_elsewhere_is_another_block() {
        let (prompt, _) = of_text(&"x".repeat(64 * 3));
        assert!(prompt.blocks.len() == 3 && prompt.blocks[0] != prompt.blocks[1], "{prompt:?}");
    }

    #[test]
    fn what_cannot_be_served_is_refused_in_vllms_words() {
        let real = include_str!("../../../tests/fixtures/vllm-0.32.0/error-400.http").rsplit_once("\r\n").unwrap().1;
        let keys = |text: &str| -> Vec<String> {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            value["error"].as_object().unwrap().keys().cloned().collect()
        };
        for (operation, body, param, part) in [
            (Operation::Chat, "{oops", "body.2", "'type': 'json_invalid', 'loc': 'body.2', 'msg': 'JSON decode error'"),
            (Operation::Chat, r#"{"messages":7}"#, "body", "invalid type"),
            (Operation::Chat, "{}", "body.messages", "Field required"),
            (Operation::Completion, "{}", "body.prompt", "Field required"),
            (Operation::Chat, r#"{"messages":[],"max_tokens":0}"#, "max_tokens", "must be at least 1, got 0"),
            (Operation::Chat, r#"{"messages":[],"n":2}"#, "n", "must be 1"),
        ] {
            let refusal = Ask::parse(operation, body.as_bytes()).unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{body}");
            assert!(refusal.message.contains(part), "{}", refusal.message);
            assert_eq!(keys(&refusal.json()), keys(real));
        }
    }

    #[test]
    fn an_unknown_model_is_refused_byte_for_byte_as_by_vllm() {
        let real = include_str!("../../../tests/fixtures/vllm-0.32.0/error-404.http").rsplit_once("\r\n").unwrap().1;
        assert_eq!(Refusal::unknown_model("nope", "tiny").json(), real.trim_end());
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200), chat: bool) {
            let operation = if chat { Operation::Chat } else { Operation::Completion };
            if let Err(refusal) = Ask::parse(operation, &body) {
                prop_assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
            }
        }

        #[test]
        fn any_text_is_its_own_length_in_tokens(text in ".{0,400}") {
            let body = serde_json::json!({"prompt": text}).to_string();
            let ask = Ask::parse(Operation::Completion, body.as_bytes()).unwrap();
            prop_assert_eq!(ask.prompt.tokens as usize, text.len().div_ceil(4).max(1));
            prop_assert_eq!(ask.prompt.blocks.len(), text.len() / 64);
        }
    }
}

//! What the gateway needs to know of a request's body: the model, whether to stream, how many tokens at most, and where
//! the prompt is.
//!
//! The body goes to the target as it came; this only looks. Everything else in it is skipped without being decoded.

use std::borrow::Cow;
use std::fmt;

use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A longer model name, in bytes, is not recorded: no target has it, and it would be stored with the record.
const MODEL_BYTES_MAX: usize = 256;

/// What a request's body says of itself. A field that is missing, `null` or of a wrong type is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peek<'b> {
    /// `model`, if it is at most 256 bytes long.
    pub(crate) model: Option<Box<str>>,
    /// `stream`.
    pub(crate) stream: Option<bool>,
    /// `max_completion_tokens`, else `max_output_tokens`, else `max_tokens`: the newer name wins, as it does in
    /// engines.
    pub(crate) max_tokens: Option<u64>,
    /// The prompt, for a hash of its beginning.
    pub(crate) prompt: Prompt<'b>,
    /// The body is one JSON object. When it is not, nothing above is set.
    pub(crate) readable: bool,
}

/// A prompt as it stands in the body: JSON, neither decoded nor copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt<'b> {
    /// `system` (Anthropic) or `instructions` (responses): what engines put in front of the turns.
    pub system: Option<&'b str>,
    /// `messages`, else `prompt`, else `input`.
    pub turns: Option<&'b str>,
}

/// Reads a request's body, unless its head says that it is encoded: it then passes unread.
pub(crate) fn of<'b>(headers: &HeaderMap, body: &'b [u8]) -> Peek<'b> {
    let encoded =
        headers.get(CONTENT_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if encoded { Peek::default() } else { peek(body) }
}

/// The model that a query names, for requests without a body: a realtime API's clients say it there.
pub(crate) fn model_in_query(query: &str) -> Option<Box<str>> {
    let mut fields = query.split('&').filter_map(|field| field.split_once('='));
    let (_, value) = fields.find(|(name, _)| *name == "model")?;
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            plain => plain,
        });
    }
    let model = String::from_utf8(decoded).ok()?;
    (model.len() <= MODEL_BYTES_MAX).then(|| model.into())
}

/// Reads the top level of a request body. Of a key that stands twice, the last one counts.
fn peek(body: &[u8]) -> Peek<'_> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let fields = json.deserialize_any(Top).and_then(|fields| json.end().map(|()| fields));
    let Ok(Some(fields)) = fields else {
        return Peek::default();
    };
    Peek {
        model: fields.model.filter(|model| model.len() <= MODEL_BYTES_MAX).map(Into::into),
        stream: fields.stream,
        max_tokens: fields.max_completion_tokens.or(fields.max_output_tokens).or(fields.max_tokens),
        prompt: Prompt { system: fields.system, turns: fields.messages.or(fields.prompt).or(fields.input) },
        readable: true,
    }
}

#[derive(Default)]
struct Fields<'de> {
    model: Option<Cow<'de, str>>,
    stream: Option<bool>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    system: Option<&'de str>,
    messages: Option<&'de str>,
    prompt: Option<&'de str>,
    input: Option<&'de str>,
}

enum Key {
    Model,
    Stream,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    System,
    Messages,
    Prompt,
    Input,
    Other,
}

/// Reads a key without keeping it.
struct KeyName;

impl<'de> DeserializeSeed<'de> for KeyName {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Key, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyName {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(match key {
            "model" => Key::Model,
            "stream" => Key::Stream,
            "max_tokens" => Key::MaxTokens,
            "max_completion_tokens" => Key::MaxCompletionTokens,
            "max_output_tokens" => Key::MaxOutputTokens,
            "system" | "instructions" => Key::System,
            "messages" => Key::Messages,
            "prompt" => Key::Prompt,
            "input" => Key::Input,
            _ => Key::Other,
        })
    }
}

/// The body itself: `None` when it is valid JSON but no object.
struct Top;

impl<'de> Visitor<'de> for Top {
    type Value = Option<Fields<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key_seed(KeyName)? {
            match key {
                Key::Model => fields.model = map.next_value_seed(Lenient)?.text(),
                Key::Stream => fields.stream = map.next_value_seed(Lenient)?.switch(),
                Key::MaxTokens => fields.max_tokens = map.next_value_seed(Lenient)?.number(),
                Key::MaxCompletionTokens => fields.max_completion_tokens = map.next_value_seed(Lenient)?.number(),
                Key::MaxOutputTokens => fields.max_output_tokens = map.next_value_seed(Lenient)?.number(),
                Key::System => fields.system = text_of(&mut map)?,
                Key::Messages => fields.messages = text_of(&mut map)?,
                Key::Prompt => fields.prompt = text_of(&mut map)?,
                Key::Input => fields.input = text_of(&mut map)?,
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Some(fields))
    }
}

/// A value as it stands; `null` is none.
fn text_of<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<&'de str>, A::Error> {
    Ok(Some(map.next_value::<&'de RawValue>()?.get()).filter(|text| *text != "null"))
}

/// A value of any type: a wrong one must cost only its own field, since the target may know better than we do.
enum Value<'de> {
    Text(Cow<'de, str>),
    Switch(bool),
    Number(u64),
    Other,
}

impl<'de> Value<'de> {
    fn text(self) -> Option<Cow<'de, str>> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn switch(self) -> Option<bool> {
        match self {
            Self::Switch(on) => Some(on),
            _ => None,
        }
    }

    fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }
}

struct Lenient;

impl<'de> DeserializeSeed<'de> for Lenient {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Value<'de>, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lenient {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, on: bool) -> Result<Value<'de>, E> {
        Ok(Value::Switch(on))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'de>, E> {
        Ok(Value::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;

    fn readable(model: Option<&str>, stream: Option<bool>, max_tokens: Option<u64>) -> Peek<'static> {
        Peek { model: model.map(Into::into), stream, max_tokens, prompt: Prompt::default(), readable: true }
    }

    /// Without the prompt, which has a test of its own.
    fn without_prompt(body: &[u8]) -> Peek<'_> {
        Peek { prompt: Prompt::default(), ..peek(body) }
    }

    #[test]
    fn a_query_names_a_model_in_its_own_coding() {
        let model = |query| model_in_query(query).map(String::from);
        assert_eq!(model("model=llama-3.1-8b"), Some("llama-3.1-8b".into()));
        assert_eq!(model("a=b&model=org%2fname+%C3%A9&model=other"), Some("org/name \u{e9}".into()));
        for none in ["", "a=b", "model", "xmodel=a", "model=%", "model=%4", "model=%zz", "model=%ff"] {
            assert_eq!(model(none), None, "{none}");
        }
        assert_eq!(model(&format!("model={}", "x".repeat(257))), None);
    }

    #[test]
    fn the_prompt_is_where_it_stands() {
        let prompt = |body: &'static str| peek(body.as_bytes()).prompt;
        for (body, system, turns) in [
            (r#"{"model":"m","messages":[{"role":"user"}]}"#, None, Some(r#"[{"role":"user"}]"#)),
            (r#"{"prompt": "a\nb", "input":"c"}"#, None, Some(r#""a\nb""#)),
            (r#"{"input":["a"],"instructions":"be brief"}"#, Some(r#""be brief""#), Some(r#"["a"]"#)),
            (r#"{"messages":[],"system":"be brief","prompt":null}"#, Some(r#""be brief""#), Some("[]")),
            (r#"{"prompt":null}"#, None, None),
        ] {
            assert_eq!(prompt(body), Prompt { system, turns }, "{body}");
        }
    }

    #[test]
    fn bodies_and_what_they_say() {
        let long = format!(r#"{{"model":"{}","stream":true}}"#, "m".repeat(MODEL_BYTES_MAX + 1));
        let longest = "m".repeat(MODEL_BYTES_MAX);
        let at_bound = format!(r#"{{"model":"{longest}"}}"#);
        let cases: &[(&str, Peek)] = &[
            (r#"{"model":"a","stream":true,"max_tokens":16}"#, readable(Some("a"), Some(true), Some(16))),
            (
                r#" { "max_completion_tokens" : 3 , "max_tokens":9, "stream" : false } "#,
                readable(None, Some(false), Some(3)),
            ),
            (r#"{"max_tokens":9,"max_output_tokens":8}"#, readable(None, None, Some(8))),
            (r#"{"max_completion_tokens":null,"max_tokens":9}"#, readable(None, None, Some(9))),
            (
                r#"{"model":"org\/m\u00e9","messages":[{"model":"not me","stream":true}]}"#,
                readable(Some("org/mé"), None, None),
            ),
            (r#"{"mod\u0065l":"a"}"#, readable(Some("a"), None, None)),
            (r#"{"model":"a","model":"b"}"#, readable(Some("b"), None, None)),
            (r#"{"model":"a","model":7}"#, readable(None, None, None)),
            (r#"{"model":["a"],"stream":"yes","max_tokens":-1}"#, readable(None, None, None)),
            (r#"{"model":{"a":1},"stream":null,"max_tokens":1.5}"#, readable(None, None, None)),
            (&long, readable(None, Some(true), None)),
            (&at_bound, readable(Some(&longest), None, None)),
            ("{}", readable(None, None, None)),
        ];
        for (body, expected) in cases {
            assert_eq!(without_prompt(body.as_bytes()), *expected, "{body}");
        }
    }

    #[test]
    fn what_is_no_json_object_says_nothing() {
        let deep = format!("{{\"model\":{}", "[".repeat(100_000));
        for body in [
            "",
            "null",
            "7",
            "\"model\"",
            "[{\"model\":\"a\"}]",
            "{\"model\":\"a\"",
            "{\"model\":\"a\"} x",
            "{'model':1}",
            &deep,
        ] {
            assert_eq!(peek(body.as_bytes()), Peek::default(), "{body:.40}");
        }
        assert_eq!(peek(b"{\"model\":\"\xff\"}"), Peek::default());
    }

    #[test]
    fn what_is_skipped_may_be_deep() {
        let body = format!(r#"{{"messages":{}{},"model":"a"}}"#, "[".repeat(5_000), "]".repeat(5_000));
        assert_eq!(without_prompt(body.as_bytes()), readable(Some("a"), None, None));
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            any::<String>().prop_map(Json::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                prop::collection::hash_map(any::<String>(), inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        /// Against the slow way: parse everything, then look.
        #[test]
        fn it_sees_what_a_full_parse_sees(
            model in any_json(),
            stream in any_json(),
            max_tokens in any_json(),
            messages in any_json(),
            pretty in any::<bool>(),
        ) {
            let body = json!({"model": model, "messages": messages, "stream": stream, "max_tokens": max_tokens});
            let bytes = if pretty { serde_json::to_vec_pretty(&body) } else { serde_json::to_vec(&body) }.unwrap();
            let expected = readable(
                body["model"].as_str().filter(|model| model.len() <= MODEL_BYTES_MAX),
                body["stream"].as_bool(),
                body["max_tokens"].as_u64(),
            );
            prop_assert_eq!(without_prompt(&bytes), expected);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let peek = peek(&body);
            prop_assert!(peek.readable || peek == Peek::default());
        }

        /// Bytes that are nearly JSON reach further into the parser.
        #[test]
        fn a_body_cut_short_says_nothing(cut in 0..60usize) {
            let body = br#"{"model":"a","messages":[{"role":"user"}],"max_tokens":12345}"#;
            prop_assert_eq!(peek(&body[..cut]), Peek::default());
        }
    }
}

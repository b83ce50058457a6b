//! The scanner on whole answers: recorded ones, scripted ones and arbitrary ones, cut anywhere.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

const CHAT: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/stream.sse");
const CONTINUOUS: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/chat-stream-continuous-usage.sse");
const COMPLETIONS: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/completions-stream.sse");
const CHAT_JSON: &[u8] = include_bytes!("../../../tests/fixtures/vllm-0.32.0/chat.json");
const ERROR_400: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/error-400.http");
const ERROR_404: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/error-404.http");

fn stream() -> Scanner {
    Scanner::for_answer(Some(b"text/event-stream; charset=utf-8"), None, true)
}

fn one_piece() -> Scanner {
    Scanner::for_answer(Some(b"application/json"), None, false)
}

/// The n-th frame comes at n ms. Also says how many content events were seen on the way.
fn scan<'a>(mut scanner: Scanner, frames: impl IntoIterator<Item = &'a [u8]>) -> (Scan, u64) {
    let mut content_events = 0;
    for (n, frame) in frames.into_iter().enumerate() {
        content_events += u64::from(scanner.frame(&Bytes::copy_from_slice(frame), n as u64 * 1000).content_events);
    }
    let events = scanner.events();
    let scan = scanner.finish();
    assert_eq!(events, scan.events);
    (scan, content_events)
}

fn answer(
    finish_reason: &str,
    id: &str,
    model: &str,
    prompt_tokens: impl Into<Option<u64>>,
    completion_tokens: u64,
    cached_tokens: Option<u64>,
) -> Answer {
    Answer {
        finish_reason: Some(finish_reason.into()),
        response_id: Some(id.into()),
        response_model: Some(model.into()),
        prompt_tokens: prompt_tokens.into(),
        completion_tokens: Some(completion_tokens),
        cached_tokens,
        tokens_estimated: false,
        load_report: None,
    }
}

/// Frames end at these fractions of the body, in 1/65536.
fn cut_at<'a>(body: &'a [u8], cuts: &[u16]) -> Vec<&'a [u8]> {
    let mut ends: Vec<_> = cuts.iter().map(|&cut| (body.len() * usize::from(cut)) >> 16).collect();
    ends.push(body.len());
    ends.sort_unstable();
    let mut start = 0;
    ends.into_iter().map(|end| &body[std::mem::replace(&mut start, end)..end]).collect()
}

const TOOL_CALL: &str = r#": keep-alive

data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}

data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t1","function":{"name":"f","arguments":""}}]},"finish_reason":null}]}

data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"usage\":"}}]},"finish_reason":null}]}

data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"12}"}}]},"finish_reason":null}]}

data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\n"}}]},"finish_reason":null}]}

data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}

data: [DONE]

"#;

/// Two choices, logprobs that differ, a finish reason in an event with text, and names of keys as text and as values.
const HOSTILE: &str = r#"data: {"id":"c2","model":"m","note":"usage","choices":[{"index":0,"text":"a","logprobs":{"usage":{"prompt_tokens":1}},"finish_reason":null}]}

data: {"id":"c2","model":"m","note":"usage","choices":[{"index":1,"text":"\"usage\":{\"prompt_tokens\":77}","logprobs":{"usage":{"prompt_tokens":1}},"finish_reason":null}]}

data: {"id":"c2","model":"m","note":"usage","choices":[{"index":0,"text":"\"finish_reason\":\"stop\"","logprobs":null,"finish_reason":null}]}

data: {"id":"c2","model":"m","note":"usage","choices":[{"index":1,"text":"c","logprobs":null,"finish_reason":"length"}],"usage":null}

data: {"id":"c2","model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}

data: [DONE]

"#;

const RESPONSES: &str = r#"event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","model":"m","status":"in_progress","usage":null}}

event: response.output_item.added
data: {"type":"response.output_item.added","sequence_number":1,"item":{"id":"msg_1","type":"message","content":[]}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":8,"item_id":"msg_1","delta":"Hi"}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":9,"item_id":"msg_1","delta":" there"}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":10,"item_id":"msg_1","delta":"!"}

event: response.output_text.done
data: {"type":"response.output_text.done","sequence_number":11,"item_id":"msg_1","text":"Hi there!"}

event: response.completed
data: {"type":"response.completed","sequence_number":12,"response":{"id":"resp_1","object":"response","model":"m","status":"completed","output":[{"type":"message","id":"msg_1","content":[{"type":"output_text","text":"Hi there!"}]}],"usage":{"input_tokens":11,"input_tokens_details":{"cached_tokens":4},"output_tokens":6,"total_tokens":17}}}

"#;

const MESSAGES: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","model":"m","content":[],"stop_reason":null,"usage":{"input_tokens":3,"cache_read_input_tokens":20,"cache_creation_input_tokens":1,"output_tokens":1}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: ping
data: {"type":"ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}

event: message_stop
data: {"type":"message_stop"}

"#;

/// A stream, what is understood of it, its events and its content events.
fn streams() -> Vec<(&'static str, Answer, u64, u64)> {
    let estimated = |answer: Answer| Answer { tokens_estimated: true, ..answer };
    vec![
        (CHAT, answer("length", "chatcmpl-886f98dd75b61282", "tiny", 21, 6, None), 8, 0),
        (CONTINUOUS, answer("length", "chatcmpl-b33dbed44cbb11f0", "tiny", 19, 40, None), 42, 6),
        (COMPLETIONS, answer("length", "cmpl-ad358909215f2499", "tiny", 2, 12, None), 13, 0),
        (TOOL_CALL, estimated(answer("tool_calls", "c1", "m", None, 4, None)), 6, 4),
        (HOSTILE, answer("length", "c2", "m", 5, 4, Some(2)), 5, 4),
        (RESPONSES, answer("completed", "resp_1", "m", 11, 6, Some(4)), 7, 3),
        (MESSAGES, answer("end_turn", "msg_1", "m", 24, 15, Some(20)), 8, 2),
    ]
}

#[test]
fn streams_are_understood_however_their_lines_end() {
    for (body, expected, events, content_events) in streams() {
        for line_end in ["\n", "\r\n", "\r"] {
            let body = body.replace('\n', line_end);
            for frame_bytes in [1, 2, 3, 5, 17, 250, 4096, body.len()] {
                let (scan, seen) = scan(stream(), body.as_bytes().chunks(frame_bytes));
                assert_eq!(scan.answer, expected, "{line_end:?}, frames of {frame_bytes}");
                assert_eq!((scan.events, seen, scan.failed), (events, content_events, false), "{body:.60}");
            }
        }
    }
}

#[test]
fn times_are_those_of_the_data_lines() {
    let (scan, _) = scan(stream(), MESSAGES.split_inclusive("\n\n").map(str::as_bytes));
    assert_eq!(scan.first_event_offset_us, Some(0));
    assert_eq!(scan.first_content_offset_us, Some(3000));
    assert_eq!(scan.inter_token_max_us, Some(1000));
    assert_eq!(scan.inter_token_p50_us, scan.inter_token_p99_us);
    assert!(scan.inter_token_p50_us.is_some_and(|us| us.abs_diff(1000) <= 32));

    let mut scanner = stream();
    assert_eq!(scanner.frame(&Bytes::from_static(MESSAGES.as_bytes()), 77).content_events, 2);
    let scan = scanner.finish();
    assert_eq!((scan.first_event_offset_us, scan.first_content_offset_us), (Some(77), Some(77)));
    assert_eq!(scan.inter_token_max_us, Some(0), "both came in one frame");
}

#[test]
fn a_stream_that_breaks_has_said_what_it_said() {
    let broken = MESSAGES.split("event: content_block_stop").next().unwrap();
    let (scan, _) = scan(stream(), [broken.as_bytes(), b"data: {\"type\":\"message_de"]);
    let expected = Answer {
        finish_reason: None,
        response_id: Some("msg_1".into()),
        response_model: Some("m".into()),
        prompt_tokens: Some(24),
        completion_tokens: Some(2),
        cached_tokens: Some(20),
        tokens_estimated: true,
        load_report: None,
    };
    assert_eq!(scan.answer, expected, "the output tokens of message_start are no count");
    assert!(!scan.failed);
}

#[test]
fn what_cannot_be_read_is_counted_and_passed_over() {
    let long = format!("data: {}\n\n", "x".repeat(sse::EVENT_BYTES_MAX));
    for bad in ["data: hello\n\n", "data: {\"id\":\n\n", "data: {\"id\":\"\u{fffd}\n\n", long.as_str()] {
        let body = format!("{bad}{HOSTILE}");
        let (scan, content_events) = scan(stream(), body.as_bytes().chunks(10_000));
        assert_eq!(scan.answer, answer("length", "c2", "m", 5, 4, Some(2)));
        assert_eq!((scan.events, content_events, scan.failed), (6, 4, true), "{bad:.40}");
    }
}

#[test]
fn the_first_id_and_the_last_finish_reason_and_usage_count() {
    let event = |id: u32, text: &str, finish_reason: &str, tokens: u32| {
        let choice = json!({"text": text, "finish_reason": finish_reason});
        format!(
            "data: {}\n\n",
            json!({"id": id.to_string(), "choices": [choice], "usage": {"completion_tokens": tokens}})
        )
    };
    let body =
        [event(1, "a", "stop", 1), event(2, "b", "stop", 3), event(3, "", "length", 4), event(4, "d", "stop", 5)];
    for events in 1..=body.len() {
        let (scan, _) = scan(stream(), body[..events].iter().map(String::as_bytes));
        assert_eq!(scan.answer.response_id.as_deref(), Some("1"));
        assert_eq!(scan.answer.finish_reason.as_deref(), Some(["stop", "stop", "length", "stop"][events - 1]));
        assert_eq!(scan.answer.completion_tokens, Some([1, 3, 4, 5][events - 1]));
    }
}

#[test]
fn a_name_beyond_the_bound_is_left_out() {
    let event = |id: &str| format!("data: {{\"id\":\"{id}\",\"choices\":[{{\"finish_reason\":\"stop\"}}]}}\n\n");
    for (bytes, kept) in [(NAME_BYTES_MAX, true), (NAME_BYTES_MAX + 1, false)] {
        let (scan, _) = scan(stream(), [event(&"i".repeat(bytes)).as_bytes()]);
        assert_eq!(scan.answer.response_id.is_some(), kept);
        assert_eq!(scan.answer.finish_reason.as_deref(), Some("stop"));
    }
}

#[test]
fn answers_in_one_piece() {
    let body = |http: &'static str| http.split_once("\r\n\r\n").or(http.split_once("\n\n")).unwrap().1.as_bytes();
    let embeddings = json!({"object": "list", "data": vec![json!({"index": 0, "embedding": vec![0.25; 2000]}); 300],
        "model": "m", "usage": {"prompt_tokens": 7, "total_tokens": 7}});
    let embeddings = serde_json::to_vec(&embeddings).unwrap();
    assert!(embeddings.len() > 2_000_000);
    let responses = br#"{"id":"resp_1","object":"response","status":"completed","model":"m","output":[{"type":"message","status":"completed"}],
        "usage":{"input_tokens":11,"input_tokens_details":{"cached_tokens":4},"output_tokens":6}}"#;
    let messages =
        br#"{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"Hi"}],
        "stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":15,"cache_read_input_tokens":20}}"#;
    let cut = &CHAT_JSON[..300];
    let of_embeddings = Answer { response_model: Some("m".into()), prompt_tokens: Some(7), ..Answer::default() };
    let of_cut = Answer {
        finish_reason: Some("length".into()),
        response_id: Some("chatcmpl-a1cd4658eee2881b".into()),
        response_model: Some("tiny".into()),
        ..Answer::default()
    };
    let cases: &[(&[u8], Answer, bool)] = &[
        (CHAT_JSON, answer("length", "chatcmpl-a1cd4658eee2881b", "tiny", 19, 12, None), false),
        (responses, answer("completed", "resp_1", "m", 11, 6, Some(4)), false),
        (messages, answer("end_turn", "msg_1", "m", 23, 15, Some(20)), false),
        (&embeddings, of_embeddings, false),
        (cut, of_cut, false),
        (body(ERROR_400), Answer::default(), false),
        (body(ERROR_404), Answer::default(), false),
        (b"<html>", Answer::default(), true),
        (b"", Answer::default(), false),
    ];
    for (body, expected, failed) in cases {
        for frame_bytes in [1, 7, 4096, usize::MAX] {
            let (scan, seen) = scan(one_piece(), [&b""[..]].into_iter().chain(body.chunks(frame_bytes)));
            let name = String::from_utf8_lossy(&body[..body.len().min(60)]);
            assert_eq!(scan.answer, *expected, "{name}");
            assert_eq!(scan.failed, *failed, "{name}");
            assert_eq!(scan.first_content_offset_us, (!body.is_empty()).then_some(1000), "its first byte");
            assert_eq!((scan.events, seen, scan.first_event_offset_us), (0, 0, None));
        }
    }
}

#[test]
fn a_wait_in_the_engine_is_read_where_vllm_says_it() {
    let metrics =
        |ms: &str| format!(r#""metrics":{{"time_to_first_token_ms":9.5,"queue_time_ms":{ms},"mean_itl_ms":null}}"#);
    let chat = std::str::from_utf8(CHAT_JSON).unwrap();
    let last = |body: &str, metrics: &str| {
        let end = body.rfind("}\n\ndata: [DONE]").expect("the fixture ends with its usage");
        format!("{},{metrics}{}", &body[..end], &body[end..])
    };
    let responses =
        RESPONSES.replace(r#""status":"completed","#, &format!(r#""status":"completed",{},"#, metrics("37.25")));
    // Were these events told apart by their digits only, the one that says nothing would hide the one before.
    let each = ["1.5", "37.25", "99999999.5"]
        .map(|ms| format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}}}}],{}}}\n\n", metrics(ms)));
    let cases: &[(&str, Scanner, String, Option<u64>)] = &[
        ("without", one_piece(), chat.to_owned(), None),
        ("whole", one_piece(), chat.replace("\"metrics\":null", &metrics("37.25")), Some(37_250)),
        ("absurd", one_piece(), chat.replace("\"metrics\":null", &metrics("86400000.5")), None),
        ("stream, without", stream(), CHAT.to_owned(), None),
        ("chat", stream(), last(CHAT, &metrics("37.25")), Some(37_250)),
        ("continuous usage", stream(), last(CONTINUOUS, &metrics("0.0")), Some(0)),
        ("completions", stream(), last(COMPLETIONS, &metrics("37.25")), Some(37_250)),
        ("responses", stream(), responses, Some(37_250)),
        ("each event", stream(), each.concat(), Some(37_250)),
        ("cut", one_piece(), chat.replace("\"metrics\":null}", r#""metrics":{"queue_time_ms":37"#), None),
    ];
    for (name, scanner, body, queue_us) in cases {
        let form = || match scanner.form {
            Form::OnePiece(_) => one_piece(),
            _ => stream(),
        };
        for frame_bytes in [1, 250, body.len()] {
            let (scan, _) = scan(form(), body.as_bytes().chunks(frame_bytes));
            assert_eq!((scan.engine_queue_us, scan.failed), (*queue_us, false), "{name}, frames of {frame_bytes}");
        }
    }
}

#[test]
fn headers_choose_the_form() {
    #[derive(Debug, PartialEq)]
    enum Chosen {
        Stream,
        OnePiece,
        Opaque,
    }
    let cases: &[(Option<&str>, Option<&str>, bool, Chosen)] = &[
        (Some("text/event-stream"), None, false, Chosen::Stream),
        (Some("Text/Event-Stream ; charset=utf-8"), None, true, Chosen::Stream),
        (Some("application/json"), None, true, Chosen::OnePiece),
        (Some("application/problem+json; charset=utf-8"), Some("identity"), true, Chosen::OnePiece),
        (Some("application/json"), Some(" Identity "), false, Chosen::OnePiece),
        (Some("application/json"), Some("gzip"), false, Chosen::Opaque),
        (Some("text/event-stream"), Some("br"), true, Chosen::Opaque),
        (Some("audio/mpeg"), None, false, Chosen::Opaque),
        (Some("application/x-ndjson"), None, true, Chosen::Opaque),
        (Some(""), None, true, Chosen::Opaque),
        (None, None, true, Chosen::Stream),
        (None, None, false, Chosen::OnePiece),
        (None, Some("zstd"), true, Chosen::Opaque),
    ];
    for (content_type, content_encoding, stream_requested, expected) in cases {
        let scanner = Scanner::for_answer(
            content_type.map(str::as_bytes),
            content_encoding.map(str::as_bytes),
            *stream_requested,
        );
        let chosen = match scanner.form {
            Form::Stream(_) => Chosen::Stream,
            Form::OnePiece { .. } => Chosen::OnePiece,
            Form::Opaque | Form::Broken => Chosen::Opaque,
        };
        assert_eq!(chosen, *expected, "{content_type:?}, {content_encoding:?}");
    }
}

#[test]
fn an_opaque_answer_is_not_looked_at() {
    let scanner = Scanner::for_answer(Some(b"application/json"), Some(b"gzip"), false);
    assert_eq!(scan(scanner, [CHAT_JSON]), (Scan::of(Answer::default()), 0));
}

/// One event, in one of the shapes that engines send, with arbitrary text and numbers in it.
fn any_event() -> impl Strategy<Value = Json> {
    let text = prop_oneof![Just(String::new()), "[a-z \"\\\\\n{}é]{0,8}", any::<String>()];
    let number = prop_oneof![0..20u64, any::<u64>()];
    (0..10u8, text, number.clone(), number).prop_map(|(shape, text, a, b)| match shape {
        0 => json!({"id": "c", "model": "m", "choices": [{"index": a, "delta": {"content": text}, "finish_reason": null}]}),
        1 => json!({"choices": [{"delta": {"content": text}, "finish_reason": null}],
                    "usage": {"prompt_tokens": a, "completion_tokens": b, "prompt_tokens_details": {"cached_tokens": 1}}}),
        2 => json!({"choices": [{"text": text, "finish_reason": "stop"}], "usage": null}),
        3 => json!({"choices": [{"index": 0, "text": text}, {"index": 1, "text": "b"}]}),
        4 => json!({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": text}}]}}]}),
        5 => json!({"type": "response.output_text.delta", "sequence_number": a, "delta": text}),
        6 => json!({"type": "message_delta", "delta": {"stop_reason": text}, "usage": {"output_tokens": b}}),
        8 => json!({"choices": [{"text": text}], "metrics": {"queue_time_ms": a as f64 / 4.0}, "usage": {"prompt_tokens": b}}),
        7 => json!({"type": "content_block_delta", "index": a, "delta": {"type": "text_delta", "text": text}}),
        _ => json!({"id": text, "usage": text, "choices": [text], "delta": [a], "model": {"usage": b}}),
    })
}

/// Runs of the same shape, because that is what patterns are for.
fn any_stream() -> impl Strategy<Value = Vec<Json>> {
    prop::collection::vec((any_event(), prop::collection::vec("[a-z\"\n]{0,3}", 0..4)), 0..12).prop_map(|events| {
        let mut stream = Vec::new();
        for (event, more) in events {
            for text in more {
                let mut another = event.clone();
                for place in ["/choices/0/delta/content", "/choices/0/text", "/delta", "/delta/text"] {
                    if let Some(Json::String(old)) = another.pointer_mut(place) {
                        *old = text.clone();
                    }
                }
                stream.push(another);
            }
            stream.push(event);
        }
        stream
    })
}

/// What the languages are made of: arbitrary bytes alone would hardly ever be an event or a document.
const SSE_AND_JSON: &[u8] = b"data: {}[]\":,\\\n\r";

fn without_times(scan: Scan) -> Scan {
    Scan {
        first_event_offset_us: scan.first_event_offset_us.map(|_| 0),
        first_content_offset_us: scan.first_content_offset_us.map(|_| 0),
        inter_token_p50_us: scan.inter_token_p50_us.map(|_| 0),
        inter_token_p99_us: scan.inter_token_p99_us.map(|_| 0),
        inter_token_max_us: scan.inter_token_max_us.map(|_| 0),
        ..scan
    }
}

proptest! {
    #[test]
    fn cuts_change_nothing_but_times(
        which in 0..streams().len(),
        line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        cuts in prop::collection::vec(any::<u16>(), 0..40),
    ) {
        let body = streams()[which].0.replace('\n', line_end);
        let whole = scan(stream(), [body.as_bytes()]);
        let in_frames = scan(stream(), cut_at(body.as_bytes(), &cuts));
        prop_assert_eq!(without_times(in_frames.0), without_times(whole.0));
        prop_assert_eq!(in_frames.1, whole.1);
    }

    /// Against the slow way: every event parsed, no patterns.
    #[test]
    fn patterns_see_what_parsing_sees(events in any_stream(), cuts in prop::collection::vec(any::<u16>(), 0..10)) {
        let mut body = String::new();
        let mut said = Said::default();
        let mut content_events = 0;
        for event in &events {
            let json = event.to_string();
            body.push_str(&format!("data: {json}\n\n"));
            let (reading, valid) = Reading::of(json.as_bytes());
            prop_assert!(valid);
            said.take_over(&reading);
            content_events += u64::from(reading.has_content());
        }
        let engine_queue_us = said.usage.queue_us;
        let mut expected = said.answer();
        if expected.completion_tokens.is_none() && content_events > 0 {
            expected.completion_tokens = Some(content_events);
            expected.tokens_estimated = true;
        }
        let (scan, seen) = scan(stream(), cut_at(body.as_bytes(), &cuts));
        prop_assert_eq!((scan.answer, scan.engine_queue_us), (expected, engine_queue_us));
        prop_assert_eq!((scan.events, seen, scan.failed), (events.len() as u64, content_events, false));
    }

    /// Against the slow way: the whole document parsed, no outline.
    #[test]
    fn an_outline_says_what_the_document_says(
        event in any_event(),
        bulk in any_event(),
        long in 0..4000usize,
        cuts in prop::collection::vec(any::<u16>(), 0..10),
        pretty in any::<bool>(),
    ) {
        let mut document = event;
        document["message"] = json!("é".repeat(long));
        document["output"] = json!([[bulk.clone()], {"usage": bulk}]);
        let bytes = if pretty { serde_json::to_vec_pretty(&document) } else { serde_json::to_vec(&document) }.unwrap();
        let (reading, valid) = Reading::of(&bytes);
        prop_assert!(valid);
        let mut said = Said::default();
        said.take_over(&reading);
        let (scan, _) = scan(one_piece(), cut_at(&bytes, &cuts));
        prop_assert_eq!(scan.engine_queue_us, said.usage.queue_us);
        prop_assert_eq!(scan.answer, said.answer());
        prop_assert!(!scan.failed);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        body in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(SSE_AND_JSON.to_vec())], 0..400),
        cuts in prop::collection::vec(any::<u16>(), 0..10),
    ) {
        for scanner in [stream, one_piece] {
            let whole = scan(scanner(), [body.as_slice()]);
            let in_frames = scan(scanner(), cut_at(&body, &cuts));
            prop_assert_eq!(without_times(in_frames.0), without_times(whole.0));
            prop_assert_eq!(in_frames.1, whole.1);
        }
    }
}

#[test]
fn memory_is_bounded_whatever_comes() {
    let frame = [b'x'; 64 * 1024];
    for opening in ["data: ", "", "data: {\"choices\":[{\"text\":\""] {
        let mut scanner = Box::<StreamScanner>::default();
        scanner.frame(&Bytes::copy_from_slice(opening.as_bytes()), 0);
        for _ in 0..100 {
            scanner.frame(&Bytes::copy_from_slice(&frame), 1);
            let (line, data) = scanner.stream.allocated();
            assert!(line <= sse::EVENT_BYTES_MAX && data <= sse::EVENT_BYTES_MAX);
        }
    }
    for opening in ["", "{\"a\":\"", "{\"a\":[[[[\""] {
        let mut outline = Outline::default();
        outline.feed(opening.as_bytes());
        for _ in 0..100 {
            outline.feed(&frame);
            assert!(outline.allocated() <= outline::OUTLINE_BYTES_MAX);
        }
    }
}

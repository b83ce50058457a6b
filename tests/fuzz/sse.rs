//! Answers as they pass by: streams of events, and JSON in one piece.

use bytes::Bytes;
use snapgate::gateway::scan::{Scan, Scanner};
use snapgate::snapshot::sample::mix;

use crate::attack::Parser;

pub(crate) const PARSER: Parser = Parser {
    name: "sse",
    fixtures: &[
        "vllm-0.32.0/stream.sse",
        "vllm-0.32.0/completions-stream.sse",
        "vllm-0.32.0/chat-stream-continuous-usage.sse",
        "vllm-0.32.0/chat.json",
    ],
    words: &[
        "data: ",
        "data:",
        "\n\n",
        "\r\n",
        "\r\r",
        "\u{feff}",
        ": comment\n",
        "event: x\n",
        "[DONE]",
        "data: [DONE]\n\n",
        "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}",
        "\"finish_reason\":\"stop\"",
        "\"finish_reason\":null",
        "\"metrics\":{\"queue_time_ms\":1.5}",
        "\"delta\":{\"content\":\"",
        "\"text\":\"",
        "\"choices\":[",
        "\"id\":\"",
        "\"model\":\"",
        "\\u0000",
        "\\ud800",
        "\\\"",
        "[[[[[[[[",
        "{\"a\":{\"a\":{\"a\":",
        "}}}",
        "null",
    ],
    bytes_max: 64 << 10,
    read,
};

/// However it is cut into frames, an answer says the same.
fn read(bytes: &[u8]) -> String {
    let kinds = [b"text/event-stream".as_slice(), b"application/json"].map(|content_type| {
        let whole = scan(content_type, [bytes].into_iter());
        let mut draw = bytes.len() as u64;
        let mut rest = bytes;
        let cut = scan(
            content_type,
            std::iter::from_fn(|| {
                draw = mix(draw + 1);
                let (frame, after) = rest.split_at((draw as usize % 97).min(rest.len()));
                rest = after;
                (!frame.is_empty() || !rest.is_empty()).then_some(frame)
            }),
        );
        assert_eq!(whole, cut);
        kind(&whole)
    });
    kinds.concat()
}

fn scan<'b>(content_type: &[u8], frames: impl Iterator<Item = &'b [u8]>) -> Scan {
    let mut scanner = Scanner::for_answer(Some(content_type), None, true);
    for frame in frames {
        scanner.frame(&Bytes::copy_from_slice(frame), 7);
    }
    let events = scanner.events();
    let scan = scanner.finish();
    assert_eq!(events, scan.events);
    scan
}

/// Which parts it has, and roughly how many of them.
fn kind(scan: &Scan) -> String {
    let answer = &scan.answer;
    let names = [&answer.finish_reason, &answer.response_id, &answer.response_model];
    let numbers = [answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens, scan.engine_queue_us];
    let lengths = names.map(|name| name.as_ref().map(|name| name.len().ilog2()));
    let sizes = numbers.map(|number| number.map(|number| number.checked_ilog2()));
    format!("{lengths:?}{sizes:?}{:?}{}{}", scan.events.checked_ilog2(), scan.failed, answer.tokens_estimated)
}

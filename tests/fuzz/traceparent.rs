//! `traceparent` in the first line, `tracestate` in the others.

use snapgate::snapshot::{RemoteSpan, SpanId, TraceContext, tracestate};

use crate::attack::Parser;

pub(crate) const PARSER: Parser = Parser {
    name: "traceparent",
    fixtures: &[],
    words: &[
        "00-",
        "01-",
        "cc-",
        "ff-",
        "-01",
        "-00",
        "-03",
        "-ff",
        "0af7651916cd43dd8448eb211c80319c",
        "00000000000000000000000000000000",
        "b7ad6b7169203331",
        "0000000000000000",
        "\n",
        ",",
        " ,\t",
        "=",
        "a=b",
        "tenant@system=value",
        "rojo=00f067aa0ba902b7",
        "@",
    ],
    bytes_max: 8 << 10,
    read,
};

/// The longest `tracestate` that is passed on.
const TRACESTATE_BYTES_MAX: usize = 1024;

/// What is read is written again as it was; what is passed on is short, made of what came, and passed on again as it is.
fn read(bytes: &[u8]) -> String {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let span = RemoteSpan::parse(lines.next().unwrap_or_default());
    if let Some(span) = span {
        let parent = SpanId::new(1).expect("1 is an ID");
        let sent = TraceContext::child_of(span).traceparent(parent);
        let again = RemoteSpan::parse(sent.as_bytes()).expect("what is sent can be read");
        assert_eq!((again.trace_id, again.span_id, again.flags()), (span.trace_id, parent, span.flags()));
    }
    let passed_on = tracestate::pass_on(lines);
    if let Some(list) = &passed_on {
        assert!(!list.is_empty() && list.len() <= TRACESTATE_BYTES_MAX, "{} bytes", list.len());
        assert_eq!(tracestate::pass_on([&**list].into_iter()).as_deref(), Some(&**list));
    }
    let members = passed_on.map(|list| (list.split(|byte| *byte == b',').count(), list.len().ilog2()));
    format!("{:?}{members:?}", span.map(|span| span.flags()))
}

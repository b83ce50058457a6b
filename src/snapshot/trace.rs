//! W3C trace context: what a request brings, and what the gateway sends on.

use std::fmt;

use super::id::SnapshotId;

/// 128 bits that name a distributed trace; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// 64 bits that name a span; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

/// Where a request stands in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The client's, if it brought a usable `traceparent` that is believed, else the snapshot ID.
    pub trace_id: TraceId,
    /// The client's span, if the trace is the client's.
    pub parent_span_id: Option<SpanId>,
    /// Whether this trace is sampled: decided here, and handed on with every forwarded request.
    pub sampled: bool,
    /// The W3C random flag: the last seven bytes of the trace ID are random.
    pub random: bool,
    /// The client's span, if its trace is not gone on with because the client is not believed.
    pub linked: Option<RemoteSpan>,
}

/// A span of somebody else's, as a `traceparent` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSpan {
    /// Its trace.
    pub trace_id: TraceId,
    /// Itself.
    pub span_id: SpanId,
    /// Its owner may have recorded it.
    pub sampled: bool,
    /// The last seven bytes of the trace ID are random.
    pub random: bool,
}

impl TraceId {
    /// `None` for zero, which the specification forbids.
    pub const fn new(value: u128) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }

    /// The whole number.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl SpanId {
    /// `None` for zero, which the specification forbids.
    pub const fn new(value: u64) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }

    /// The whole number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The span of the gateway's work on a request. Derived, not drawn: a span that is exported twice has one ID.
    pub const fn of_server(id: SnapshotId) -> Self {
        Self::derived(id, 0)
    }

    /// The span of attempt `number`, counted from 0.
    pub const fn of_attempt(id: SnapshotId, number: usize) -> Self {
        Self::derived(id, number as u64 + 1)
    }

    /// The finaliser of splitmix64: neighbouring inputs give unrelated outputs.
    const fn derived(id: SnapshotId, number: u64) -> Self {
        let mut z = id.random() ^ (id.as_u128() >> 64) as u64;
        z = z.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        Self(if z == 0 { 1 } else { z })
    }
}

impl RemoteSpan {
    /// Reads a `traceparent` header strictly by the W3C specification, level 2; `None` means: start a new trace.
    pub fn parse(header: &[u8]) -> Option<Self> {
        const LENGTH: usize = 55;
        let header = trim_blanks(header);
        if header.len() < LENGTH {
            return None;
        }
        let version = hex(&header[..2])?;
        let separated = [2, 35, 52].iter().all(|&at| header[at] == b'-');
        let length_fits = match version {
            0 => header.len() == LENGTH,
            0xff => false,
            // A later version may say more, after another hyphen.
            _ => header.len() == LENGTH || header[LENGTH] == b'-',
        };
        if !separated || !length_fits {
            return None;
        }
        let trace_id = TraceId::new(hex(&header[3..35])?)?;
        let span_id = SpanId::new(hex(&header[36..52])? as u64)?;
        let flags = hex(&header[53..55])?;
        Some(Self { trace_id, span_id, sampled: flags & SAMPLED != 0, random: flags & RANDOM != 0 })
    }

    /// The W3C flags, those that are known.
    pub const fn flags(&self) -> u8 {
        flags(self.sampled, self.random)
    }
}

/// The bits of the W3C flags that have a meaning.
const SAMPLED: u128 = 1;
const RANDOM: u128 = 1 << 1;

const fn flags(sampled: bool, random: bool) -> u8 {
    sampled as u8 | (random as u8) << 1
}

impl TraceContext {
    /// The context of a request that brought none: the snapshot ID is the trace ID.
    pub fn root(id: SnapshotId) -> Self {
        let trace_id = TraceId::new(id.as_u128()).unwrap_or(TraceId(1));
        Self { trace_id, parent_span_id: None, sampled: true, random: true, linked: None }
    }

    /// The context of a request that goes on with the client's trace.
    pub const fn child_of(parent: RemoteSpan) -> Self {
        let RemoteSpan { trace_id, span_id, sampled, random } = parent;
        Self { trace_id, parent_span_id: Some(span_id), sampled, random, linked: None }
    }

    /// The W3C flags, those that are known.
    pub const fn flags(&self) -> u8 {
        flags(self.sampled, self.random)
    }

    /// The `traceparent` to send with the span `parent` as the receiver's parent. Unknown flags are not passed on.
    pub fn traceparent(&self, parent: SpanId) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, parent, self.flags())
    }
}

fn trim_blanks(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Lower-case hex digits only, as the specification demands; at most 32 of them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::InstanceTag;
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn a_good_header_is_read_and_its_flags_are_bits() {
        let good = RemoteSpan::parse(GOOD.as_bytes()).unwrap();
        assert_eq!((good.trace_id.to_string(), good.span_id.to_string()), (TRACE.into(), SPAN.into()));
        let cases = [("00", false, false), ("01", true, false), ("02", false, true), ("03", true, true)];
        // Bits that have no meaning yet change nothing.
        let unknown = [("fc", false, false), ("fd", true, false), ("fe", false, true), ("ff", true, true)];
        for (text, sampled, random) in cases.into_iter().chain(unknown) {
            let read = RemoteSpan::parse(format!("00-{TRACE}-{SPAN}-{text}").as_bytes()).unwrap();
            assert_eq!((read.sampled, read.random), (sampled, random), "{text}");
            let sent = TraceContext::child_of(read).traceparent(SpanId::new(7).unwrap());
            let known = u8::from(sampled) | u8::from(random) << 1;
            assert_eq!(sent, format!("00-{TRACE}-0000000000000007-{known:02x}"), "unknown flags are written as zero");
        }
    }

    #[test]
    fn blanks_around_and_later_versions_are_accepted() {
        let later = GOOD.replacen("00", "cc", 1);
        let cases = [
            format!(" {GOOD}"),
            format!("\t{GOOD}"),
            format!("{GOOD} "),
            format!("{GOOD}\t"),
            format!("\t {GOOD} \t"),
            later.clone(),
            format!("{later}-"),
            format!("{later}-what-the-future-will-be-like"),
            GOOD.replacen("00", "01", 1),
            GOOD.replacen("00", "fe", 1),
        ];
        for text in cases {
            let read = RemoteSpan::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text:?}"));
            let sent = TraceContext::child_of(read).traceparent(read.span_id);
            assert_eq!(sent, GOOD, "{text:?} goes on as version 00");
        }
    }

    /// The cases of the W3C's own test suite in which it wants a new trace.
    #[test]
    fn everything_else_starts_a_new_trace() {
        let later = GOOD.replacen("00", "cc", 1);
        let cases = [
            String::new(),
            // The version.
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "0", 1),
            GOOD.replacen("00", "000", 1),
            GOOD.replacen("00", ".0", 1),
            GOOD.replacen("00", "0.", 1),
            GOOD.replacen("00", "CC", 1),
            GOOD.replacen("00", "+0", 1),
            GOOD[1..].to_owned(),
            GOOD[2..].to_owned(),
            // The trace ID.
            GOOD.replace(TRACE, &"0".repeat(32)),
            GOOD.replace(TRACE, &TRACE.to_uppercase()),
            GOOD.replace(TRACE, &TRACE[1..]),
            GOOD.replace(TRACE, &format!("{TRACE}0")),
            GOOD.replace(TRACE, &TRACE.replace("0a", ".a")),
            GOOD.replace(TRACE, &TRACE.replace("0a", "+a")),
            GOOD.replace(TRACE, &TRACE.replace("9c", "9.")),
            // The parent.
            GOOD.replace(SPAN, &"0".repeat(16)),
            GOOD.replace(SPAN, &SPAN.to_uppercase()),
            GOOD.replace(SPAN, &SPAN[1..]),
            GOOD.replace(SPAN, &format!("{SPAN}0")),
            GOOD.replace(SPAN, &SPAN.replace("b7", ".7")),
            GOOD.replace(SPAN, &SPAN.replace("31", "3 ")),
            // The flags.
            GOOD.replace("-01", "-1"),
            GOOD.replace("-01", "-001"),
            GOOD.replace("-01", "-.1"),
            GOOD.replace("-01", "-1."),
            GOOD.replace("-01", "-0X"),
            GOOD.replace("-01", "-0A"),
            // What separates them, and what follows.
            GOOD.replace('-', "_"),
            GOOD.replace('-', ""),
            GOOD.replacen('-', "--", 1),
            format!("{GOOD}-"),
            format!("{GOOD}-more"),
            format!("{GOOD}.more"),
            format!("{later}.more"),
            format!("{later}more"),
            format!("{GOOD},{GOOD}"),
            format!("\u{b}{GOOD}"),
            format!("\"{GOOD}\""),
        ];
        for text in cases {
            assert_eq!(RemoteSpan::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn span_ids_are_fixed_by_the_snapshot_and_differ() {
        let id = SnapshotId::new(1, InstanceTag(2), 3);
        assert_eq!(SpanId::of_server(id), SpanId::of_server(id));
        assert_ne!(SpanId::of_server(id), SpanId::of_attempt(id, 0));
        assert_ne!(SpanId::of_attempt(id, 0), SpanId::of_attempt(id, 1));
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read_back(trace in 1u128.., parent in 1u64.., sampled: bool, random: bool) {
            let (trace_id, span_id) = (TraceId::new(trace).unwrap(), SpanId::new(parent).unwrap());
            let remote = RemoteSpan { trace_id, span_id, sampled, random };
            let text = TraceContext::child_of(remote).traceparent(span_id);
            prop_assert_eq!(RemoteSpan::parse(text.as_bytes()), Some(remote));
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            let _ignored = RemoteSpan::parse(&bytes);
        }
    }
}

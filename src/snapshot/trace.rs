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
    /// The client's, if it brought a usable `traceparent`, else the snapshot ID.
    pub trace_id: TraceId,
    /// The client's span, if it brought one.
    pub parent_span_id: Option<SpanId>,
    /// Whether this trace is to be exported; handed on with every forwarded request.
    pub sampled: bool,
    /// The W3C random flag: the last seven bytes of the trace ID are random.
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

impl TraceContext {
    /// The context of a request that brought none: the snapshot ID is the trace ID.
    pub fn root(id: SnapshotId) -> Self {
        let trace_id = TraceId::new(id.as_u128()).unwrap_or(TraceId(1));
        Self { trace_id, parent_span_id: None, sampled: true, random: true }
    }

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
        let parent = SpanId::new(hex(&header[36..52])? as u64)?;
        let flags = hex(&header[53..55])?;
        Some(Self { trace_id, parent_span_id: Some(parent), sampled: flags & 1 != 0, random: flags & 2 != 0 })
    }

    /// The `traceparent` to send with the span `parent` as the receiver's parent. Unknown flags are not passed on.
    pub fn traceparent(&self, parent: SpanId) -> String {
        let flags = u8::from(self.sampled) | u8::from(self.random) << 1;
        format!("00-{}-{}-{flags:02x}", self.trace_id, parent)
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

    #[test]
    fn a_good_header_is_read_and_its_flags_are_bits() {
        let context = TraceContext::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(context.trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent_span_id.unwrap().to_string(), "b7ad6b7169203331");
        assert!(context.sampled && !context.random);

        let context = TraceContext::parse(GOOD.replace("-01", "-fe").as_bytes()).unwrap();
        assert!(!context.sampled && context.random);
        assert_eq!(
            context.traceparent(SpanId::new(7).unwrap()),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-02",
            "unknown flags are written as zero"
        );
    }

    #[test]
    fn blanks_around_and_later_versions_are_accepted() {
        for text in [
            format!(" \t{GOOD}\t "),
            GOOD.replacen("00", "cc", 1),
            format!("{}-what-comes", GOOD.replacen("00", "cc", 1)),
        ] {
            assert!(TraceContext::parse(text.as_bytes()).is_some(), "{text}");
        }
    }

    #[test]
    fn everything_else_starts_a_new_trace() {
        let zero_trace = GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let zero_parent = GOOD.replace("b7ad6b7169203331", &"0".repeat(16));
        let cases = [
            String::new(),
            zero_trace,
            zero_parent,
            GOOD.to_uppercase(),
            format!("{GOOD}-"),
            format!("{GOOD}-more"),
            format!("{}.more", GOOD.replacen("00", "cc", 1)),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "0", 1),
            GOOD.replacen("00", "000", 1),
            GOOD.replacen("00", ".0", 1),
            GOOD.replace("-01", "-1"),
            GOOD.replace("-01", "-0x"),
            GOOD.replace('-', "_"),
            GOOD.replace("b7ad6b71", "+7ad6b71"),
            GOOD.replace("c80319c", "c80319"),
        ];
        for text in cases {
            assert_eq!(TraceContext::parse(text.as_bytes()), None, "{text}");
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
            let context = TraceContext { trace_id: TraceId::new(trace).unwrap(), parent_span_id: SpanId::new(parent), sampled, random };
            let text = context.traceparent(SpanId::new(parent).unwrap());
            prop_assert_eq!(TraceContext::parse(text.as_bytes()), Some(context));
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            let _ignored = TraceContext::parse(&bytes);
        }
    }
}

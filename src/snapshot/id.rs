//! The snapshot ID: 48 bits of Unix milliseconds, 16 bits of instance tag, 64 random bits.

use std::fmt;
use std::str::FromStr;

/// The earliest moment any snapgate can have issued an ID: 2025-01-01T00:00:00Z in Unix milliseconds.
///
/// An ID that claims to be older was made up, so a lookup can say `unknown` without asking anybody.
pub const EPOCH_UNIX_MS: u64 = 1_735_689_600_000;

/// Identifies one request for ever. Sorts by the time of issue; always prints as 32 lower-case hex digits.
///
/// It is a valid W3C trace ID with random last seven bytes. It is not a UUIDv7, whose variant bits pin the low half to a
/// quarter of its range and so break the ratio samplers of several OpenTelemetry SDKs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(u128);

/// Sixteen random bits drawn once per data directory: they say which instance issued an ID.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InstanceTag(pub u16);

/// Drawn at every process start: a sample's number means something only within its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunId(pub u64);

impl SnapshotId {
    /// Puts an ID together. Only the low 48 bits of `unix_ms` are used (they last until the year 10889).
    pub const fn new(unix_ms: u64, tag: InstanceTag, random: u64) -> Self {
        let time = (unix_ms & 0xffff_ffff_ffff) as u128;
        Self(time << 80 | (tag.0 as u128) << 64 | random as u128)
    }

    /// When it was issued, in Unix milliseconds by the issuer's clock.
    pub const fn unix_ms(self) -> u64 {
        (self.0 >> 80) as u64
    }

    /// Which instance issued it.
    pub const fn instance_tag(self) -> InstanceTag {
        InstanceTag((self.0 >> 64) as u16)
    }

    /// The 64 random bits: evenly spread, so a shard or a hash can be taken from them as they are.
    pub const fn random(self) -> u64 {
        self.0 as u64
    }

    /// The whole number.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// From the whole number; any value is an ID of somebody.
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// Big-endian bytes: as a key they sort as the ID does.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From big-endian bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Reads an ID as people paste it: any case, hyphenated like a UUID, or with leading zeros trimmed (as Tempo's
    /// search shows it).
    pub fn parse_lenient(text: &str) -> Result<Self, ParseIdError> {
        let text = text.trim();
        let mut value: u128 = 0;
        let mut digits = 0;
        for byte in text.bytes() {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                b'A'..=b'F' => byte - b'A' + 10,
                b'-' => continue,
                _ => return Err(ParseIdError),
            };
            digits += 1;
            if digits > 32 {
                return Err(ParseIdError);
            }
            value = value << 4 | u128::from(digit);
        }
        // Fewer than 25 digits cannot be a trimmed ID: its time would lie before 1970-04.
        if digits < 25 { Err(ParseIdError) } else { Ok(Self(value)) }
    }

    /// The 32 lower-case hex digits, without allocating.
    pub fn to_hex(self) -> HexId {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.to_bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        HexId(text)
    }
}

/// An ID as text on the stack: the data path writes it into headers without a heap.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HexId([u8; 32]);

impl HexId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hex digits are ASCII")
    }
}

impl fmt::Debug for HexId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no snapshot ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseIdError;

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a snapshot ID: expected 32 hex digits, as the x-snapshot-id header gives them")
    }
}

impl std::error::Error for ParseIdError {}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_hex().as_str())
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SnapshotId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != 32 || text.bytes().any(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ParseIdError)
    }
}

impl fmt::Display for InstanceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl fmt::Debug for InstanceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn its_parts_come_back() {
        let id = SnapshotId::new(0x019a_b3c2_d1e0, InstanceTag(0xa7f1), 0x1122_3344_5566_7788);
        assert_eq!(id.to_string(), "019ab3c2d1e0a7f11122334455667788");
        assert_eq!(id.unix_ms(), 0x019a_b3c2_d1e0);
        assert_eq!(id.instance_tag(), InstanceTag(0xa7f1));
        assert_eq!(id.random(), 0x1122_3344_5566_7788);
    }

    #[test]
    fn it_is_read_as_people_paste_it() {
        let id: SnapshotId = "019ab3c2d1e0a7f11122334455667788".parse().unwrap();
        for text in [
            "019AB3C2D1E0A7F11122334455667788",
            "019ab3c2-d1e0-a7f1-1122-334455667788",
            "19ab3c2d1e0a7f11122334455667788",
            "  019ab3c2d1e0a7f11122334455667788\n",
        ] {
            assert_eq!(SnapshotId::parse_lenient(text), Ok(id), "{text}");
        }
        for text in [
            "",
            "-",
            "xyz",
            "019ab3c2d1e0a7f111223344556677880",
            "1122334455667788",
            "019ab3c2d1e0a7f1112233445566778g",
        ] {
            assert_eq!(SnapshotId::parse_lenient(text), Err(ParseIdError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_bytes_are_lossless(value: u128) {
            let id = SnapshotId::from_u128(value);
            prop_assert_eq!(id.to_string().parse::<SnapshotId>(), Ok(id));
            prop_assert_eq!(SnapshotId::from_bytes(id.to_bytes()), id);
        }

        #[test]
        fn it_sorts_by_time(a in 0u64..1 << 48, b in 0u64..1 << 48, tag: u16, x: u64, y: u64) {
            let (a_id, b_id) = (SnapshotId::new(a, InstanceTag(tag), x), SnapshotId::new(b, InstanceTag(tag), y));
            if a != b {
                prop_assert_eq!(a < b, a_id < b_id);
                prop_assert_eq!(a < b, a_id.to_string() < b_id.to_string());
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ignored = SnapshotId::parse_lenient(&text);
        }
    }
}

//! What a lookup is asked for: a snapshot ID, an answer's own ID, a trace ID or a client's request ID.
//!
//! A key does not say which of these it is, so it is read as everything it can be, and tried in that order: most client
//! request IDs are UUIDs, which look like a snapshot ID with hyphens.

use std::fmt;

use crate::snapshot::{SnapshotId, TraceId};

/// The longest key: the gateway keeps no longer client request ID.
pub const KEY_BYTES_MAX: usize = 128;

/// What engines put before the request ID to name their answers.
const RESPONSE_PREFIXES: [&str; 10] =
    ["chatcmpl-", "cmpl-", "resp_", "embd-", "pool-", "score-", "rerank-", "classify-", "transcribe-", "translate-"];

/// Digits of a snapshot ID within an answer's ID.
const ID_DIGITS: usize = 32;

/// The fewest digits of a trace ID: some tracers draw 64 bits and leave the rest zero, and some pages trim leading zeros.
/// A shorter number is more likely a client's own.
const TRACE_DIGITS_MIN: usize = 12;

/// One key, read as everything it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    text: String,
    id: Option<SnapshotId>,
    trace: Option<TraceId>,
}

impl Key {
    /// Reads a key as people paste it: blanks around it do not count.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong(text.len()));
        }
        if text.contains(' ') {
            return Err(KeyError::Space);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError::NotVisible);
        }
        let text = text.to_owned();
        if let Some(id) = without_prefix(&text).and_then(leading_id) {
            return Ok(Self { text, id: Some(id), trace: None });
        }
        let (id, trace) = (SnapshotId::parse_lenient(&text).ok(), trace_id(&text));
        Ok(Self { text, id, trace })
    }

    /// As it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The snapshot ID it may be.
    pub fn id(&self) -> Option<SnapshotId> {
        self.id
    }

    /// How many hex digits it has, if it looks like a snapshot ID that lacks some.
    pub fn digits_of_short_id(&self) -> Option<usize> {
        self.id?;
        let digits = self.text.bytes().filter(|byte| *byte != b'-').count();
        (digits < ID_DIGITS).then_some(digits)
    }

    /// The trace ID it may be: any snapshot ID can be one, but no answer's ID.
    pub fn trace(&self) -> Option<TraceId> {
        self.trace
    }

    /// The client request IDs it may be: itself, and what is left without an answer's prefix, for engines can be told
    /// to name their answers by the client's ID.
    pub fn client_request_ids(&self) -> impl Iterator<Item = &str> {
        [Some(self.text()), without_prefix(&self.text)].into_iter().flatten().filter(|text| !text.is_empty())
    }
}

/// A trace ID with its leading zeros or without, in any case.
fn trace_id(text: &str) -> Option<TraceId> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let plausible = (TRACE_DIGITS_MIN..=ID_DIGITS).contains(&digits.len());
    u128::from_str_radix(&digits, 16).ok().filter(|_| plausible && !digits.starts_with('+')).and_then(TraceId::new)
}

fn without_prefix(text: &str) -> Option<&str> {
    RESPONSE_PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix))
}

/// The ID at the start of an answer's ID. Engines append the number of the prompt or digits of their own.
fn leading_id(text: &str) -> Option<SnapshotId> {
    let (digits, rest) = text.split_at_checked(ID_DIGITS)?;
    let digits = digits.to_ascii_lowercase().parse().ok()?;
    if rest.is_empty() || rest.starts_with('-') { Some(digits) } else { None }
}

/// The text cannot be a key of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Nothing but blanks.
    Empty,
    /// So many bytes.
    TooLong(usize),
    /// It has a space within, as a header's line has.
    Space,
    /// It has other blanks within, control characters or letters beyond ASCII.
    NotVisible,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the key is empty"),
            Self::TooLong(bytes) => write!(f, "the key has {bytes} bytes, and none has more than {KEY_BYTES_MAX}"),
            Self::Space => f.write_str("the key has a space"),
            Self::NotVisible => f.write_str("the key has characters that are not visible ASCII"),
        }?;
        f.write_str(
            ": give a snapshot ID (32 hex digits), an answer's ID (chatcmpl-ID), a trace ID or a client request ID",
        )
    }
}

impl std::error::Error for KeyError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "019ab3c2d1e0a7f11122334455667788";

    #[test]
    fn a_key_is_read_as_everything_it_can_be() {
        let id: SnapshotId = ID.parse().unwrap();
        let trace = TraceId::new(id.as_u128());
        for (text, want_id, want_trace, aliases) in [
            (ID, Some(id), trace, vec![ID]),
            ("19AB3C2D1E0A7F11122334455667788", Some(id), trace, vec!["19AB3C2D1E0A7F11122334455667788"]),
            (" 019ab3c2-d1e0-a7f1-1122-334455667788\n", Some(id), trace, vec!["019ab3c2-d1e0-a7f1-1122-334455667788"]),
            (
                "chatcmpl-019ab3c2d1e0a7f11122334455667788",
                Some(id),
                None,
                vec!["chatcmpl-019ab3c2d1e0a7f11122334455667788", ID],
            ),
            (
                "cmpl-019AB3C2D1E0A7F11122334455667788-0",
                Some(id),
                None,
                vec!["cmpl-019AB3C2D1E0A7F11122334455667788-0", "019AB3C2D1E0A7F11122334455667788-0"],
            ),
            (
                "resp_019ab3c2d1e0a7f11122334455667788",
                Some(id),
                None,
                vec!["resp_019ab3c2d1e0a7f11122334455667788", ID],
            ),
            ("chatcmpl-my-own", None, None, vec!["chatcmpl-my-own", "my-own"]),
            ("chatcmpl-", None, None, vec!["chatcmpl-"]),
            (
                "chatcmpl-019ab3c2d1e0a7f111223344556677889",
                None,
                None,
                vec!["chatcmpl-019ab3c2d1e0a7f111223344556677889", "019ab3c2d1e0a7f111223344556677889"],
            ),
            ("req:17/a", None, None, vec!["req:17/a"]),
            ("B7AD6B7169203331", None, TraceId::new(0xb7ad_6b71_6920_3331), vec!["B7AD6B7169203331"]),
            ("7ad6b7169203331", None, TraceId::new(0x7ad_6b71_6920_3331), vec!["7ad6b7169203331"]),
            ("+b7ad6b716920333", None, None, vec!["+b7ad6b716920333"]),
            ("deadbeef", None, None, vec!["deadbeef"]),
            (
                "00000000000000000000000000000000",
                Some(SnapshotId::from_u128(0)),
                None,
                vec!["00000000000000000000000000000000"],
            ),
        ] {
            let key = Key::parse(text).unwrap();
            let got: Vec<_> = key.client_request_ids().collect();
            assert_eq!((key.id(), key.trace(), got), (want_id, want_trace, aliases), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_key_is_refused_with_advice() {
        for (text, want) in [
            ("", KeyError::Empty),
            (" \t", KeyError::Empty),
            ("two words", KeyError::Space),
            ("x-snapshot-id: 019ab3c2d1e0a7f11122334455667788", KeyError::Space),
            ("two\twords", KeyError::NotVisible),
            ("naïve", KeyError::NotVisible),
            ("a\u{1b}[2J", KeyError::NotVisible),
            (&"x".repeat(129), KeyError::TooLong(129)),
        ] {
            let error = Key::parse(text).unwrap_err();
            assert_eq!(error, want, "{text:?}");
            let said = error.to_string();
            assert!(said.contains("give a snapshot ID") && said.is_ascii(), "a terminal shows it as it is: {said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            if let Ok(key) = Key::parse(&text) {
                prop_assert!(key.text().len() <= KEY_BYTES_MAX);
                prop_assert!(key.client_request_ids().count() >= 1);
            }
        }

        #[test]
        fn every_id_is_found_again_in_every_form(value: u128) {
            let id = SnapshotId::from_u128(value);
            let upper = id.to_string().to_uppercase();
            for text in [id.to_string(), upper, format!("chatcmpl-{id}"), format!("cmpl-{id}-3")] {
                prop_assert_eq!(Key::parse(&text).unwrap().id(), Some(id));
            }
        }
    }
}

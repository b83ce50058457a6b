//! The cheap way to read a stream: its events repeat each other, except for the text and some numbers.
//!
//! Parsing a 250-byte event as JSON takes a third of a microsecond, and there are as many events as tokens. But once an
//! event with content has been parsed, the next one usually is the same bytes with another text in one string, and to
//! see that takes a tenth of the time. So the parsed event is kept as a pattern: what stands before the text, and what
//! stands after it. An event that fits has the same keys in the same places, hence it too has content, no finish reason
//! and nothing new; only the digits of numbers may differ.
//!
//! Looking for `"usage"` or `"finish_reason"` in the bytes instead would be about as fast, but is right only most of
//! the time: they may stand in deeper objects or be values themselves. Here whatever is not known for certain is
//! parsed.

use memchr::memchr2;

/// Longer events, in bytes, are always parsed: a pattern is kept for each stream.
pub(super) const PATTERN_BYTES_MAX: usize = 4096;

/// Longer runs of digits fit only themselves: a larger count of tokens is no count, see `TOKENS_MAX`, so that an event with it does
/// not stand for those before it.
pub(super) const DIGITS_MAX: usize = 10;

/// A parsed event, around its text.
#[derive(Debug, Default)]
pub(super) struct Pattern {
    /// Up to and including the quote that opens the text. Empty until something has been learned.
    before: Vec<u8>,
    /// From the quote that closes the text.
    after: Vec<u8>,
}

impl Pattern {
    /// Remembers `event`, whose only text is `text`, a slice of it. Says whether it could.
    pub(super) fn learn(&mut self, event: &[u8], text: &str) -> bool {
        self.before.clear();
        self.after.clear();
        let start = text.as_ptr().addr().wrapping_sub(event.as_ptr().addr());
        let end = start.wrapping_add(text.len());
        // The bytes are compared because an address alone says nothing of what `text` was borrowed from.
        if event.len() > PATTERN_BYTES_MAX || event.get(start..end) != Some(text.as_bytes()) {
            return false;
        }
        self.before.extend_from_slice(&event[..start]);
        self.after.extend_from_slice(&event[end..]);
        true
    }

    /// Whether `event` differs from the one learned at most in a text, which is not empty, and in the digits of
    /// numbers.
    pub(super) fn fits(&self, event: &[u8]) -> bool {
        if self.before.is_empty() || event.len() > PATTERN_BYTES_MAX {
            return false;
        }
        let Some(text) = strip(&self.before, event) else { return false };
        match string_end(text) {
            None | Some(0) => false,
            Some(end) => strip(&self.after, &text[end..]).is_some_and(<[u8]>::is_empty),
        }
    }
}

/// What follows `pattern` at the start of `bytes`, where a run of digits matches any other.
///
/// Digits inside strings are thereby free too. That is harmless: those are ids and names, and the first of each counts.
fn strip<'a>(pattern: &[u8], bytes: &'a [u8]) -> Option<&'a [u8]> {
    if let Some(rest) = bytes.strip_prefix(pattern) {
        return Some(rest);
    }
    let (mut pattern, mut bytes) = (pattern, bytes);
    while let [expected, pattern_rest @ ..] = pattern {
        let [found, bytes_rest @ ..] = bytes else { return None };
        if expected.is_ascii_digit() && found.is_ascii_digit() {
            let (known, number) = (digits(pattern), digits(bytes));
            if number.len() > DIGITS_MAX && number != known {
                return None;
            }
            pattern = &pattern[known.len()..];
            bytes = &bytes[number.len()..];
        } else if expected == found {
            pattern = pattern_rest;
            bytes = bytes_rest;
        } else {
            return None;
        }
    }
    Some(bytes)
}

fn digits(bytes: &[u8]) -> &[u8] {
    let count = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    &bytes[..count]
}

/// Where the quote is that closes a string: the first that is not behind a backslash.
fn string_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"id":"x1","created":17,"delta":{"content":"Hello"},"finish_reason":null,"usage":{"n":9}}"#;

    fn learned() -> Pattern {
        let mut pattern = Pattern::default();
        let start = EVENT.find("Hello").unwrap();
        assert!(pattern.learn(EVENT.as_bytes(), &EVENT[start..start + 5]));
        pattern
    }

    #[test]
    fn what_fits_and_what_does_not() {
        let pattern = learned();
        assert!(pattern.fits(EVENT.as_bytes()));
        let cases: &[(&str, &str, bool)] = &[
            ("Hello", "w", true),
            ("Hello", r#"say \"no\" \\"#, true),
            ("Hello", "é \u{1F980}", true),
            ("\"n\":9", "\"n\":10234", true),
            (":17,", ":3,", true),
            (":17,", ":1795435995,", true),
            (":17,", ":17954359950,", false),
            ("x1", "x22", true),
            ("Hello", "", false),
            ("Hello", r#"","tool_calls":[{}],"b":""#, false),
            ("Hello", r"\", false),
            ("null", "\"stop\"", false),
            ("{\"n\":9}", "null", false),
            ("\"n\":9", "\"n\":9,\"m\":9", false),
            ("\"n\":9", "\"n\":", false),
            (":17,", ":-17,", false),
            ("9}}", "9}}x", false),
            ("9}}", "9}", false),
            ("{\"id\"", "", false),
        ];
        for (old, new, fits) in cases {
            assert_eq!(pattern.fits(EVENT.replacen(old, new, 1).as_bytes()), *fits, "{old} → {new}");
        }
        for cut in 0..EVENT.len() {
            assert!(!pattern.fits(&EVENT.as_bytes()[..cut]));
        }
    }

    #[test]
    fn nothing_fits_before_something_was_learned() {
        assert!(!Pattern::default().fits(b""));
        assert!(!Pattern::default().fits(EVENT.as_bytes()));
    }

    #[test]
    fn a_text_from_elsewhere_or_a_long_event_is_not_learned() {
        let mut pattern = learned();
        assert!(!pattern.learn(EVENT.as_bytes(), "Hello"), "same text, other place");
        assert!(!pattern.fits(EVENT.as_bytes()), "what was learned before is gone");
        let long = format!("\"{}\"", "x".repeat(PATTERN_BYTES_MAX));
        assert!(!pattern.learn(long.as_bytes(), &long[1..2]));
    }
}

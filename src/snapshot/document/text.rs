//! Text in a document: borrowed from the record or from the JSON it was read from, or a few digits made on the spot.

use std::cmp::Ordering;
use std::fmt::{self, Write as _};
use std::ops::Deref;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A text. One that is made for the document, such as an ID, stands in it and not on the heap: a document has a dozen of
/// them, and one is made for every request.
#[derive(Clone)]
pub struct Text<'a>(Repr<'a>);

#[derive(Clone)]
enum Repr<'a> {
    Borrowed(&'a str),
    Short { bytes: [u8; SHORT_BYTES_MAX], length: u8 },
    Owned(Box<str>),
}

/// The digits of an ID, the longest of the short texts.
const SHORT_BYTES_MAX: usize = 32;

impl Text<'_> {
    /// The last `digits` hex digits of a number, lower case, with leading zeros; at most 32.
    pub(super) fn hex(value: u128, digits: usize) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut bytes = [0; SHORT_BYTES_MAX];
        for (place, byte) in bytes[..digits].iter_mut().rev().enumerate() {
            *byte = DIGITS[(value >> (4 * place)) as usize & 15];
        }
        Self(Repr::Short { bytes, length: digits as u8 })
    }

    /// What `shown` prints; it goes to the heap only if it is longer than an ID.
    pub(super) fn short(shown: impl fmt::Display) -> Self {
        let mut short = Short { bytes: [0; SHORT_BYTES_MAX], length: 0 };
        match write!(short, "{shown}") {
            Ok(()) => Self(Repr::Short { bytes: short.bytes, length: short.length as u8 }),
            Err(fmt::Error) => Self(Repr::Owned(shown.to_string().into())),
        }
    }
}

/// A [`Repr::Short`] that is being written. It refuses what does not fit.
struct Short {
    bytes: [u8; SHORT_BYTES_MAX],
    length: usize,
}

impl fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Repr::Borrowed(text) => text,
            Repr::Short { bytes, length } => {
                std::str::from_utf8(&bytes[..usize::from(*length)]).expect("it was written as text")
            }
            Repr::Owned(text) => text,
        }
    }
}

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        self
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Repr::Borrowed(text))
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self(Repr::Owned(text.into()))
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text<'_> {}

impl PartialOrd for Text<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(text.into())
    }

    /// A text with escapes in it is not in the JSON as it is.
    fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(text.to_owned().into())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Text<'de>, E> {
        Ok(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_longer_than_an_id_is_whole_all_the_same() {
        for length in [0, 1, 31, 32, 33, 100] {
            let long = "é".repeat(length / 2) + &"x".repeat(length % 2);
            assert_eq!(*Text::short(&long), long);
        }
    }

    #[test]
    fn a_text_is_borrowed_from_json_unless_it_has_escapes() {
        let plain: Text<'_> = serde_json::from_str("\"plain\"").unwrap();
        assert!(matches!(plain.0, Repr::Borrowed("plain")));
        let escaped: Text<'_> = serde_json::from_str(r#""a\n\u00e9""#).unwrap();
        assert_eq!(&*escaped, "a\né");
        assert!(serde_json::from_str::<Text<'_>>("7").is_err());
    }

    proptest! {
        #[test]
        fn digits_are_those_of_the_formatter(value: u128) {
            prop_assert_eq!(&*Text::hex(value, 32), format!("{value:032x}"));
            let half = value as u64;
            prop_assert_eq!(&*Text::hex(half.into(), 16), format!("{half:016x}"));
            let tag = value as u16;
            prop_assert_eq!(&*Text::hex(tag.into(), 4), format!("{tag:04x}"));
        }
    }
}

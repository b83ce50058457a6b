//! Text in a document: borrowed from the record or from the JSON it was read from, or a few digits made on the spot.

use std::cmp::Ordering;
use std::fmt::{self, Write as _};
use std::ops::Deref;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::snapshot::moment::Moment;

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

/// A moment in a document.
const TIME_FORM: &[u8] = b"0000-00-00T00:00:00.000000Z";

/// 9999-12-29, counted in days from 1970: what comes later is no moment for [`Moment`]'s own form either.
const LAST_DAY: u64 = 2_932_894;

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

    /// A moment as it prints itself, RFC 3339 in UTC with six digits after the point; but made by hand, because each document
    /// has one. The days become a date as in Howard Hinnant's `civil_from_days`.
    pub(super) fn time(moment: Moment) -> Self {
        let (seconds, micros) = (moment.0 / 1_000_000, moment.0 % 1_000_000);
        let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
        if days > LAST_DAY {
            return Self::short(moment);
        }
        // Years begin in March here, so that a leap day is the last of its year; eras of 400 years are all alike.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let mut bytes = [0; SHORT_BYTES_MAX];
        bytes[..TIME_FORM.len()].copy_from_slice(TIME_FORM);
        let mut digits = |end: usize, count: usize, mut value: u64| {
            for digit in bytes[end - count..end].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        digits(4, 4, year);
        digits(7, 2, month);
        digits(10, 2, day);
        digits(13, 2, second_of_day / 3_600);
        digits(16, 2, second_of_day / 60 % 60);
        digits(19, 2, second_of_day % 60);
        digits(26, 6, micros);
        Self(Repr::Short { bytes, length: TIME_FORM.len() as u8 })
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

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
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

    #[test]
    fn the_first_and_the_last_day_are_dates() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (253_402_127_999, "9999-12-29T23:59:59.000000Z"),
        ] {
            assert_eq!(&*Text::time(Moment(seconds * 1_000_000)), shown);
        }
        let beyond = Moment(253_402_300_800_000_000);
        assert_eq!(&*Text::time(beyond), beyond.to_string());
    }

    proptest! {
        #[test]
        fn a_moment_is_written_as_it_prints_itself(moment in 0u64..253_402_000_000_000_000) {
            prop_assert_eq!(&*Text::time(Moment(moment)), Moment(moment).to_string());
        }

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

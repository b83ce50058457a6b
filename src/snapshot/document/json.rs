//! Writes JSON into memory, key by key.
//!
//! A document is made for every request, so its price is the gateway's throughput. A third of that was serde_json's search
//! of keys and names for characters to escape; these keys and names are ours and have none. Whatever can be written in
//! more than one way, a number with a point or a text with escapes, is still written by serde_json.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::text::Text;
use crate::snapshot::decision::{Fallback, Policy, Reason};
use crate::snapshot::outcome::{Ending, Fault};
use crate::snapshot::sample::{Freshness, Source};

/// A value that can be written as JSON.
pub(super) trait Json {
    /// Appends it.
    fn json(&self, out: &mut Vec<u8>);
}

/// A key of ours with all that stands around it, as [`key!`] makes it, so that it is copied in one go.
#[derive(Clone, Copy)]
pub(super) struct Key(pub(super) &'static str);

/// The key of this name, which needs no escapes: `,"name":`.
macro_rules! key {
    ($name:literal) => {
        $crate::snapshot::document::json::Key(concat!(",\"", $name, "\":"))
    };
}
pub(super) use key;

/// Appends a key and its value to an object that is being written.
#[inline]
pub(super) fn put(out: &mut Vec<u8>, key: Key, value: &(impl Json + ?Sized)) {
    out.extend_from_slice(key.0.as_bytes());
    value.json(out);
}

/// An object that is being written. Every key begins with a comma, and in the end the first comma becomes the brace: so no
/// key has to know whether it is the first.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Object<'a> {
    /// Begins one.
    pub(super) fn open(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        Self { out, start }
    }

    /// Adds a key and its value.
    #[inline]
    pub(super) fn put(&mut self, key: Key, value: &(impl Json + ?Sized)) {
        put(self.out, key, value);
    }

    /// Adds a key that needs no escapes, and its value. Answers where in the object the value stands.
    pub(super) fn put_named(&mut self, name: &'static str, value: &(impl Json + ?Sized)) -> Range<usize> {
        debug_assert!(is_plain(name), "the key {name:?} needs escapes");
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        let from = self.len();
        value.json(self.out);
        from..self.len()
    }

    /// Adds a key that may be any text, and its value.
    pub(super) fn put_any(&mut self, key: &str, value: &(impl Json + ?Sized)) {
        self.out.push(b',');
        key.json(self.out);
        self.out.push(b':');
        value.json(self.out);
    }

    /// Adds what `write` appends: keys and values.
    pub(super) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(self.out);
    }

    /// How many bytes of it are written.
    pub(super) fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Ends it.
    pub(super) fn close(self) {
        match self.out.get_mut(self.start) {
            Some(comma) => *comma = b'{',
            None => self.out.push(b'{'),
        }
        self.out.push(b'}');
    }
}

/// What `write` appends, as a value that serde_json takes over as it is.
pub(super) fn raw(write: impl FnOnce(&mut Vec<u8>)) -> Box<RawValue> {
    let mut out = Vec::new();
    write(&mut out);
    let text = String::from_utf8(out).expect("only text was written");
    RawValue::from_string(text).expect("what was written is JSON")
}

fn by_serde(value: &(impl Serialize + ?Sized), out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("a number or a text is JSON, and memory does not refuse a write");
}

fn whole(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Whether a text is the same inside quotes. Without an early end, so that the compiler looks at many bytes at once.
fn is_plain(text: &str) -> bool {
    !text.bytes().fold(false, |found, byte| found | (byte < b' ') | (byte == b'"') | (byte == b'\\'))
}

/// Appends a text that is known to be plain.
fn quoted(text: &str, out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

impl Json for str {
    fn json(&self, out: &mut Vec<u8>) {
        if is_plain(self) { quoted(self, out) } else { by_serde(self, out) }
    }
}

impl Json for String {
    fn json(&self, out: &mut Vec<u8>) {
        self.as_str().json(out);
    }
}

impl Json for Text<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        (**self).json(out);
    }
}

impl Json for bool {
    fn json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

impl Json for u16 {
    fn json(&self, out: &mut Vec<u8>) {
        whole(*self, out);
    }
}

impl Json for u32 {
    fn json(&self, out: &mut Vec<u8>) {
        whole(*self, out);
    }
}

impl Json for u64 {
    fn json(&self, out: &mut Vec<u8>) {
        whole(*self, out);
    }
}

/// Without `.0` when it is whole: three requests wait, not 3.0. What is no number is null.
impl Json for f64 {
    fn json(&self, out: &mut Vec<u8>) {
        /// Whole numbers up to here are exact in a float.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let integer = *self as i64;
        // Minus zero is whole, too, but its sign would be lost.
        if integer as f64 == *self && self.abs() < EXACT && !(integer == 0 && self.is_sign_negative()) {
            whole(integer, out);
        } else {
            by_serde(self, out);
        }
    }
}

impl<T: Json> Json for Option<T> {
    #[inline]
    fn json(&self, out: &mut Vec<u8>) {
        match self {
            Some(value) => value.json(out),
            None => out.extend_from_slice(b"null"),
        }
    }
}

impl<T: Json> Json for [T] {
    fn json(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (index, value) in self.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            value.json(out);
        }
        out.push(b']');
    }
}

impl<T: Json + ?Sized> Json for Box<T> {
    fn json(&self, out: &mut Vec<u8>) {
        (**self).json(out);
    }
}

impl<T: Json + ?Sized> Json for Arc<T> {
    fn json(&self, out: &mut Vec<u8>) {
        (**self).json(out);
    }
}

impl<K: std::ops::Deref<Target = str>, V: Json> Json for BTreeMap<K, V> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        for (key, value) in self {
            object.put_any(key, value);
        }
        object.close();
    }
}

impl Json for RawValue {
    fn json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.get().as_bytes());
    }
}

/// Names are words of letters and underscores.
macro_rules! json_by_name {
    ($($named:ty),+) => {
        $(impl Json for $named {
            fn json(&self, out: &mut Vec<u8>) {
                quoted(self.name(), out);
            }
        })+
    };
}

json_by_name!(Policy, Reason, Fallback, Ending, Fault, Source, Freshness, super::Phase);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(value: &(impl Json + ?Sized)) -> String {
        let mut out = Vec::new();
        value.json(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn whole_numbers_have_no_point_and_no_number_is_null() {
        for (value, text) in [
            (3.0, "3"),
            (0.0, "0"),
            (-0.0, "-0.0"),
            (-7.0, "-7"),
            (0.31, "0.31"),
            (9_007_199_254_740_991.0, "9007199254740991"),
            (9_007_199_254_740_992.0, "9007199254740992.0"),
            (1e300, "1e+300"),
            (f64::NAN, "null"),
            (f64::INFINITY, "null"),
            (f64::NEG_INFINITY, "null"),
        ] {
            assert_eq!(written(&value), text, "{value:?}");
        }
    }

    #[test]
    fn an_object_has_commas_between_its_keys_also_where_values_end_in_braces() {
        let mut out = Vec::new();
        let mut object = Object::open(&mut out);
        object.put(key!("text"), "{");
        object.put(key!("map"), &BTreeMap::from([(String::from("a\"b"), 1u64), (String::from("c"), 2)]));
        object.put_named("none", &BTreeMap::<String, u64>::new());
        object.put(key!("list"), [Some(true), None].as_slice());
        object.close();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"text":"{","map":{"a\"b":1,"c":2},"none":{},"list":[true,null]}"#
        );
    }

    proptest! {
        #[test]
        fn text_is_written_as_serde_json_writes_it(text in "(\\PC|[\u{0}-\u{7f}]){0,40}") {
            prop_assert_eq!(written(&*text), serde_json::to_string(&text).unwrap());
        }

        #[test]
        fn a_number_comes_back_to_the_bit(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(serde_json::from_str::<f64>(&written(&value)).unwrap().to_bits(), bits);
        }
    }
}

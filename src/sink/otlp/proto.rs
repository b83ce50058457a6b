//! Protobuf, written by hand: the messages of OTLP go straight from a record into one buffer, and no value is copied twice.
//!
//! Only what OTLP needs. That it is right is shown by reading it with the types of `opentelemetry-proto`.

/// Wire type of a value with a length before it.
const LENGTH_DELIMITED: u8 = 2;

/// Wire types of numbers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const FIXED32: u8 = 5;

/// Bytes reserved for a length that is not known yet: enough for 16 KiB, which hardly any message reaches.
const LENGTH_BYTES: usize = 2;

/// Fields of `AnyValue`.
const STRING: u8 = 1 << 3 | LENGTH_DELIMITED;
const BOOL: u8 = 2 << 3 | VARINT;
const INT: u8 = 3 << 3 | VARINT;
const DOUBLE: u8 = 4 << 3 | FIXED64;
const ARRAY: u8 = 5 << 3 | LENGTH_DELIMITED;

/// Appends a number in as many bytes as it needs.
pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`varint`] writes.
pub(super) const fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

fn tag(out: &mut Vec<u8>, field: u32, wire: u8) {
    varint(out, u64::from(field << 3 | u32::from(wire)));
}

/// A field of bytes or text.
pub(super) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    tag(out, field, LENGTH_DELIMITED);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A field of a number or an enumeration.
pub(super) fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

/// A field of eight bytes, such as a time.
pub(super) fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A field of four bytes.
pub(super) fn fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    tag(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

/// The tag and the length of a field whose value of `length` bytes follows.
pub(super) fn head(out: &mut Vec<u8>, field: u32, length: usize) {
    tag(out, field, LENGTH_DELIMITED);
    varint(out, length as u64);
}

/// A field of a message. Its length stands before it and is known after it.
pub(super) fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, LENGTH_DELIMITED);
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    let body = start + LENGTH_BYTES;
    write(out);
    let length = out.len() - body;
    let width = varint_len(length as u64);
    if width > LENGTH_BYTES {
        // Rare: make room.
        out.resize(out.len() + width - LENGTH_BYTES, 0);
    }
    if width != LENGTH_BYTES {
        out.copy_within(body..body + length, start + width);
        out.truncate(start + width + length);
    }
    let mut rest = length;
    for byte in &mut out[start..start + width - 1] {
        *byte = rest as u8 | 0x80;
        rest >>= 7;
    }
    out[start + width - 1] = rest as u8;
}

/// Writes `KeyValue`s into one field of one message.
pub(super) struct Attributes<'o> {
    out: &'o mut Vec<u8>,
    tag: u8,
}

impl<'o> Attributes<'o> {
    /// `field` is the message's for its attributes: below 16, as in all of OTLP.
    pub(super) fn new(out: &'o mut Vec<u8>, field: u8) -> Self {
        Self { out, tag: field << 3 | LENGTH_DELIMITED }
    }

    /// A text; a missing one is left out.
    pub(super) fn text<'v>(&mut self, key: &str, value: impl Into<Option<&'v str>>) {
        if let Some(value) = value.into() {
            self.key(key, 1 + varint_len(value.len() as u64) + value.len());
            self.string(value);
        }
    }

    /// A whole number; a missing one is left out.
    pub(super) fn int(&mut self, key: &str, value: impl Into<Option<u64>>) {
        if let Some(value) = value.into() {
            self.key(key, 1 + varint_len(value));
            self.out.push(INT);
            varint(self.out, value);
        }
    }

    /// A number; a missing one is left out.
    pub(super) fn double(&mut self, key: &str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            self.key(key, 1 + 8);
            let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
            self.out.extend_from_slice(&[DOUBLE, a, b, c, d, e, f, g, h]);
        }
    }

    /// Yes or no; a missing one is left out.
    pub(super) fn bool(&mut self, key: &str, value: impl Into<Option<bool>>) {
        if let Some(value) = value.into() {
            self.key(key, 2);
            self.out.extend_from_slice(&[BOOL, u8::from(value)]);
        }
    }

    /// A list of one text: what conventions make a list and has one entry here.
    pub(super) fn only(&mut self, key: &str, value: &str) {
        self.texts(key, &[value]);
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, key: &str, values: &[impl AsRef<str>]) {
        let any = |value: &str| 1 + varint_len(value.len() as u64) + value.len();
        let entry = |any: usize| 1 + varint_len(any as u64) + any;
        let array = values.iter().map(|value| entry(any(value.as_ref()))).sum::<usize>();
        self.key(key, 1 + varint_len(array as u64) + array);
        self.out.push(ARRAY);
        varint(self.out, array as u64);
        for value in values {
            // ArrayValue.values, which are `AnyValue`s, is field 1.
            self.out.push(1 << 3 | LENGTH_DELIMITED);
            varint(self.out, any(value.as_ref()) as u64);
            self.string(value.as_ref());
        }
    }

    /// Attributes that were written elsewhere, for the same field.
    pub(super) fn copied(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn string(&mut self, value: &str) {
        self.out.push(STRING);
        varint(self.out, value.len() as u64);
        self.out.extend_from_slice(value.as_bytes());
    }

    /// All of a `KeyValue` before the content of its `AnyValue`, which has `length` bytes.
    fn key(&mut self, key: &str, length: usize) {
        const KEY: u8 = 1 << 3 | LENGTH_DELIMITED;
        const VALUE: u8 = 2 << 3 | LENGTH_DELIMITED;
        let whole = 1 + 1 + key.len() + 1 + 1 + length;
        if whole < 128 {
            // As nearly all are: each length is one byte, and few pieces are quicker than many bytes.
            self.out.extend_from_slice(&[self.tag, whole as u8, KEY, key.len() as u8]);
            self.out.extend_from_slice(key.as_bytes());
            self.out.extend_from_slice(&[VALUE, length as u8]);
            return;
        }
        let (key_length, any_length) = (varint_len(key.len() as u64), varint_len(length as u64));
        self.out.push(self.tag);
        varint(self.out, (1 + key_length + key.len() + 1 + any_length + length) as u64);
        self.out.push(KEY);
        varint(self.out, key.len() as u64);
        self.out.extend_from_slice(key.as_bytes());
        self.out.push(VALUE);
        varint(self.out, length as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use proptest::prelude::*;
    use prost::Message as _;

    #[test]
    fn a_number_takes_as_many_bytes_as_it_needs() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            assert_eq!(prost::encoding::decode_varint(&mut &out[..]), Ok(value));
        }
    }

    #[test]
    fn a_message_may_be_of_any_length() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 3_000_000] {
            let mut out = vec![7];
            message(&mut out, 1, |out| out.resize(out.len() + length, 9));
            let mut expected = vec![7];
            bytes(&mut expected, 1, &vec![9; length]);
            assert!(out == expected, "{length}");
        }
    }

    fn value(value: Value) -> Option<AnyValue> {
        Some(AnyValue { value: Some(value) })
    }

    proptest! {
        #[test]
        fn the_messages_of_their_owners_read_it(key in ".{1,200}", text in ".{0,300}", whole in 0..u64::MAX >> 1, number: f64, yes: bool) {
            let mut out = Vec::new();
            let mut attributes = Attributes::new(&mut out, 1);
            attributes.text(&key, &*text);
            attributes.int("int", whole);
            attributes.double("double", number);
            attributes.bool("bool", yes);
            attributes.only("list", &text);
            attributes.texts("texts", &[&*key, &text]);
            attributes.text("none", None);
            let read = Resource::decode(&out[..]).unwrap();
            let list = ArrayValue { values: vec![value(Value::StringValue(text.clone())).unwrap()] };
            let both = [&key, &text].map(|text| value(Value::StringValue(text.clone())).unwrap());
            let texts = ArrayValue { values: both.into() };
            let expected = [
                (&*key, Value::StringValue(text)),
                ("int", Value::IntValue(whole.cast_signed())),
                ("double", Value::DoubleValue(number)),
                ("bool", Value::BoolValue(yes)),
                ("list", Value::ArrayValue(list)),
                ("texts", Value::ArrayValue(texts)),
            ];
            let expected = expected.map(|(key, it)| KeyValue { key: key.into(), value: value(it), ..KeyValue::default() });
            prop_assert_eq!(format!("{:?}", read.attributes), format!("{expected:?}"));
            prop_assert_eq!(Resource { attributes: read.attributes, ..Resource::default() }.encode_to_vec(), out);
        }
    }
}

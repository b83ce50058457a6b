//! The labels of a sample, one by one.

use std::borrow::Cow;

use memchr::memchr;

/// The labels in the text between the braces, by name. The reader of the page has checked that the text is labels, so
/// whatever is none ends them.
pub(super) fn labels(text: &[u8]) -> impl Iterator<Item = (&[u8], Cow<'_, str>)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let equals = memchr(b'=', rest)?;
        let name = rest[..equals].trim_ascii_start().trim_ascii_end();
        let quoted = rest[equals + 1..].trim_ascii_start().strip_prefix(b"\"")?;
        let (value, after) = value(quoted)?;
        let after = after.trim_ascii_start();
        rest = after.strip_prefix(b",").unwrap_or(after);
        Some((name, value))
    })
}

/// The value up to the closing quote, and what follows that. Bytes that are no UTF-8 are replaced.
fn value(text: &[u8]) -> Option<(Cow<'_, str>, &[u8])> {
    let end = memchr::memchr2(b'"', b'\\', text)?;
    if text[end] == b'"' {
        return Some((String::from_utf8_lossy(&text[..end]), &text[end + 1..]));
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return Some((String::from_utf8_lossy(&plain).into_owned().into(), bytes.as_slice())),
            b'\\' => plain.push(match bytes.next()? {
                b'n' => b'\n',
                other => *other,
            }),
            other => plain.push(*other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &str) -> Vec<(String, String)> {
        labels(text.as_bytes())
            .map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.into_owned()))
            .collect()
    }

    #[test]
    fn each_label_has_its_name_and_its_value() {
        let cases: [(&str, &[(&str, &str)]); 5] = [
            ("", &[]),
            ("gpu=\"0\",UUID=\"GPU-1\"", &[("gpu", "0"), ("UUID", "GPU-1")]),
            (" gpu = \"0\" , pod=\"\", ", &[("gpu", "0"), ("pod", "")]),
            (r#"a="x\"y,z=\\\n",b="=\t""#, &[("a", "x\"y,z=\\\n"), ("b", "=t")]),
            ("a=\"1\",b=2", &[("a", "1")]),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> = expected.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            assert_eq!(all(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: Vec<u8>) {
            labels(&text).for_each(drop);
        }

        #[test]
        fn what_is_written_is_read(written in prop::collection::vec(("[a-zA-Z_]{1,9}", "\\PC*"), 0..8)) {
            let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let text: Vec<_> = written.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            prop_assert_eq!(all(&text.join(",")), written);
        }
    }
}

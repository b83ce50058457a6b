//! The `tracestate` header: what tracing systems tell each other about a trace. It is passed on, and nothing is added.

use std::borrow::Cow;

/// Members of a list at most, by the W3C specification: a longer one is dropped whole.
const MEMBERS_MAX: usize = 32;

/// The longest key and the longest value.
const PART_BYTES_MAX: usize = 256;

/// What is passed on at most. The specification wants at least 512; more is somebody's mistake, and every engine pays for it.
const BYTES_MAX: usize = 1024;

/// When a list has to be cut, longer members go first.
const LONG_MEMBER_BYTES: usize = 128;

/// What is to be passed on of one or more `tracestate` headers, in their order; `None` if nothing is.
///
/// A list that breaks the specification is dropped whole, one that is too long is cut as it says: long members first, then
/// from the right. Only for a request whose `traceparent` is gone on with.
pub fn pass_on<'h>(mut headers: impl Iterator<Item = &'h [u8]>) -> Option<Cow<'h, [u8]>> {
    let first = headers.next()?;
    let mut list = Cow::Borrowed(first);
    for next in headers {
        let joined = list.to_mut();
        joined.push(b',');
        joined.extend_from_slice(next);
    }
    let members: Vec<&[u8]> = list.split(|byte| *byte == b',').map(trimmed).filter(|it| !it.is_empty()).collect();
    let valid = !members.is_empty() && members.len() <= MEMBERS_MAX && members.iter().all(|it| is_member(it));
    if !valid {
        return None;
    }
    if list.len() <= BYTES_MAX {
        return Some(list);
    }
    let kept = cut(members);
    (!kept.is_empty()).then(|| Cow::Owned(kept.join(&b',')))
}

fn cut(mut members: Vec<&[u8]>) -> Vec<&[u8]> {
    let length = |members: &[&[u8]]| members.iter().map(|it| it.len() + 1).sum::<usize>().saturating_sub(1);
    while length(&members) > BYTES_MAX {
        let last_long = members.iter().rposition(|it| it.len() > LONG_MEMBER_BYTES);
        members.remove(last_long.unwrap_or(members.len() - 1));
    }
    members
}

fn trimmed(member: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = member.iter().position(|byte| !blank(byte)).unwrap_or(member.len());
    let end = member.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &member[start..end]
}

/// `key=value`.
fn is_member(member: &[u8]) -> bool {
    let Some(equals) = member.iter().position(|byte| *byte == b'=') else { return false };
    let (key, value) = (&member[..equals], &member[equals + 1..]);
    let starts = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let goes_on = |byte: &u8| starts(byte) || b"_-*/@".contains(byte);
    // Blanks around a member are not its own, so a value ends in none.
    let in_value = |byte: &u8| matches!(byte, 0x20..=0x7e) && !b",=".contains(byte);
    let sized = |part: &[u8]| (1..=PART_BYTES_MAX).contains(&part.len());
    sized(key) && sized(value) && starts(&key[0]) && key.iter().all(goes_on) && value.iter().all(in_value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passed(headers: &[&str]) -> Option<String> {
        pass_on(headers.iter().map(|header| header.as_bytes())).map(|it| String::from_utf8(it.into_owned()).unwrap())
    }

    fn members(count: usize) -> String {
        (0..count).map(|place| format!("k{place}=v")).collect::<Vec<_>>().join(",")
    }

    /// The cases of the W3C's own test suite, of a valid `traceparent` with these.
    #[test]
    fn a_list_by_the_rules_is_passed_on_as_it_is() {
        let (key, value) = ("k".repeat(256), "v".repeat(256));
        let cases = [
            "foo=1".to_owned(),
            "foo=1,bar=2".to_owned(),
            "foo=1 \t , \t bar=2".to_owned(),
            " foo=1 ".to_owned(),
            "foo=1,".to_owned(),
            ",foo=1,,bar=2".to_owned(),
            "fw529a3039@dt=FfAAAAB5n".to_owned(),
            "0tenant@1system=a".to_owned(),
            "a_-*/b=x".to_owned(),
            "foo=a b".to_owned(),
            "foo= leading".to_owned(),
            "foo=!\"#$%&'()*+-./:;<>?@[\\]^_`{|}~".to_owned(),
            "foo=1,foo=2".to_owned(),
            format!("{key}=1"),
            format!("foo={value}"),
            members(32),
        ];
        for text in cases {
            assert_eq!(passed(&[&text]).as_deref(), Some(&*text));
        }
        assert_eq!(passed(&["foo=1", "bar=2", "x=3,y=4"]).as_deref(), Some("foo=1,bar=2,x=3,y=4"), "in their order");
        assert_eq!(passed(&["foo=1", ""]).as_deref(), Some("foo=1,"));
    }

    #[test]
    fn a_list_that_breaks_them_is_dropped() {
        let cases = [
            String::new(),
            " , ,".to_owned(),
            "foo".to_owned(),
            "foo=".to_owned(),
            "=1".to_owned(),
            "foo@=1,=2".to_owned(),
            "Foo=1".to_owned(),
            "fOO=1".to_owned(),
            "foo =1".to_owned(),
            "foo.bar=1".to_owned(),
            "-foo=1".to_owned(),
            "@foo=1".to_owned(),
            "foo=bar=baz".to_owned(),
            "foo=1,bar".to_owned(),
            "foo=1;bar=2".to_owned() + "=",
            "foo=\u{e9}".to_owned(),
            "foo=a\tb".to_owned(),
            format!("{}=1", "k".repeat(257)),
            format!("foo={}", "v".repeat(257)),
            members(33),
        ];
        for text in cases {
            assert_eq!(passed(&[&text]), None, "{text:?}");
        }
        assert_eq!(passed(&[]), None);
        assert_eq!(passed(&[&members(20), &members(20)]), None, "together they are too many");
    }

    #[test]
    fn what_is_too_long_is_cut_long_members_first_and_then_from_the_right() {
        let (long, short) =
            (|key: &str| format!("{key}={}", "x".repeat(200)), |key: &str| format!("{key}={}", "x".repeat(90)));
        let list = [short("a"), long("b"), short("c"), long("d"), long("e"), long("f"), long("g")].join(",");
        assert_eq!(
            passed(&[&list]),
            Some([short("a"), long("b"), short("c"), long("d"), long("e"), long("f")].join(","))
        );
        let list = "abcdefghijklm".chars().map(|key| short(&key.to_string())).collect::<Vec<_>>();
        assert_eq!(passed(&[&list.join(",")]), Some(list[..11].join(",")));
    }

    proptest! {
        #[test]
        fn what_is_passed_on_is_within_bounds_and_passes_again(text in "[a-f0-9=, @]{0,2000}") {
            if let Some(first) = passed(&[&text]) {
                prop_assert!(first.len() <= BYTES_MAX);
                prop_assert_eq!(passed(&[&first]), Some(first));
            }
        }
    }
}

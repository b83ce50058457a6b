//! Reads the Prometheus text format (0.0.4 and OpenMetrics) and gives the wanted samples.
//!
//! A page of 60 KB has some 600 lines, of which a dozen are wanted, and is read twice a second per target. So a line
//! whose name is not wanted costs the search for the end of its name and nothing else: it is not checked any further.
//! Nothing is allocated.

use memchr::{memchr, memchr3};

/// The wanted sample of one line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line<'p, K> {
    /// What its name stands for.
    pub(super) key: K,
    /// The text between the braces, empty if there is none. It names the series within a page and from page to page,
    /// because an exporter keeps the order of its labels.
    pub(super) labels: &'p [u8],
    /// As written; it may be infinite or not a number.
    pub(super) value: f64,
}

/// Reads a page line by line. `wanted` knows a sample by its name, `take` gets each that is.
///
/// Answers how many lines were garbage: wanted, but broken, or no sample, comment or blank line at all. They are skipped.
/// A last line without an end counts as garbage too, because the page may have been cut within its number.
pub(super) fn read<'p, K>(
    page: &'p [u8],
    wanted: impl Fn(&[u8]) -> Option<K>,
    mut take: impl FnMut(Line<'p, K>),
) -> u32 {
    let mut garbage = 0;
    let mut rest = page;
    while let Some(end) = memchr(b'\n', rest) {
        let line = trim_start(&rest[..end]);
        rest = &rest[end + 1..];
        match line.first() {
            None | Some(b'#' | b'\r') => {}
            Some(first) if is_name_start(*first) => {
                let name = name_of(line);
                let Some(key) = wanted(name) else { continue };
                match sample(&line[name.len()..]) {
                    Some((labels, value)) => take(Line { key, labels, value }),
                    None => garbage += 1,
                }
            }
            Some(_) => garbage += 1,
        }
    }
    garbage + u32::from(!rest.is_empty())
}

/// Whether any line of the page is a sample. Reads every line in full: for pages on which nothing was wanted.
pub(super) fn has_samples(page: &[u8]) -> bool {
    let mut found = false;
    read(page, |name| name.iter().all(|byte| is_name(*byte)).then_some(()), |_| found = true);
    found
}

/// The line up to a brace or a blank.
fn name_of(line: &[u8]) -> &[u8] {
    &line[..memchr3(b'{', b' ', b'\t', line).unwrap_or(line.len())]
}

/// Labels and value from what follows the name: `[{labels}] value [timestamp] [# exemplar]`. The timestamp must be a
/// number but is not used, because an age here counts from when the page was asked for.
fn sample(after_name: &[u8]) -> Option<(&[u8], f64)> {
    let (labels, rest) = match trim_start(after_name) {
        [b'{', rest @ ..] => {
            let length = labels_length(rest)?;
            (&rest[..length], &rest[length + 1..])
        }
        rest => (&rest[..0], rest),
    };
    let mut words = rest.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).filter(|word| !word.is_empty());
    let value = number(words.next()?)?;
    match words.next() {
        None => {}
        Some([b'#', ..]) => return Some((labels, value)),
        Some(timestamp) => {
            number(timestamp)?;
        }
    }
    match words.next() {
        None | Some([b'#', ..]) => Some((labels, value)),
        Some(_) => None,
    }
}

/// How many bytes stand before the closing brace of `name="value",…}`; `None` if they are not labels.
fn labels_length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += blanks(&text[at..]);
        // Before the first label, or after a comma at the end, which the format allows.
        if text.get(at) == Some(&b'}') {
            return Some(at);
        }
        let name = text[at..].iter().take_while(|byte| is_name(**byte)).count();
        at += name;
        at += blanks(&text[at..]);
        if name == 0 || text.get(at) != Some(&b'=') {
            return None;
        }
        at += 1;
        at += blanks(&text[at..]);
        if text.get(at) != Some(&b'"') {
            return None;
        }
        at += 1 + quoted_length(&text[at + 1..])? + 1;
        at += blanks(&text[at..]);
        match text.get(at) {
            Some(b',') => at += 1,
            Some(b'}') => return Some(at),
            _ => return None,
        }
    }
}

/// How many bytes stand before the closing quote. A backslash takes the meaning from what follows it.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// A number as Go and Python write it, `NaN`, `+Inf` and `-Inf` among them.
fn number(word: &[u8]) -> Option<f64> {
    str::from_utf8(word).ok()?.parse().ok()
}

fn trim_start(text: &[u8]) -> &[u8] {
    &text[blanks(text)..]
}

fn blanks(text: &[u8]) -> usize {
    text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

const fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte == b':'
}

const fn is_name(byte: u8) -> bool {
    is_name_start(byte) || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is read of a page when `a`, `b_total` and `ns:c` are wanted, and how many lines were garbage.
    fn read_all(page: &str) -> (Vec<(String, String, f64)>, u32) {
        let mut samples = Vec::new();
        let wanted = |name: &[u8]| {
            let name = str::from_utf8(name).ok()?;
            ["a", "b_total", "ns:c"].contains(&name).then(|| name.to_owned())
        };
        let garbage = read(page.as_bytes(), wanted, |line| {
            samples.push((line.key, String::from_utf8(line.labels.to_vec()).unwrap(), line.value));
        });
        (samples, garbage)
    }

    #[test]
    fn every_form_of_a_sample_is_read() {
        let cases = [
            ("a 1\n", "", 1.0),
            ("a 1\r\n", "", 1.0),
            ("  a\t1.5e3 \n", "", 1500.0),
            ("a{} 2\n", "", 2.0),
            ("a{x=\"y\"} 3\n", "x=\"y\"", 3.0),
            ("a {x=\"y\",} 3\n", "x=\"y\",", 3.0),
            ("a{x=\"y\"}3\n", "x=\"y\"", 3.0),
            ("a{ x = \"y\" , z=\"\" } 3\n", " x = \"y\" , z=\"\" ", 3.0),
            ("a{x=\"}\",y=\"a\\\"} 9\\\\\"} 4\n", "x=\"}\",y=\"a\\\"} 9\\\\\"", 4.0),
            ("a{x=\"\\n # , {\"} 5 1795435755941\n", "x=\"\\n # , {\"", 5.0),
            ("a 6 1795435755.941 # {trace_id=\"t\"} 0.5 1795435755.9\n", "", 6.0),
            ("a 6 # {trace_id=\"t\"} 0.5\n", "", 6.0),
            ("a +Inf\n", "", f64::INFINITY),
            ("a -Inf\n", "", f64::NEG_INFINITY),
            ("a -0.25\n", "", -0.25),
            ("a{x=\"ünï\"} 7\n", "x=\"ünï\"", 7.0),
        ];
        for (page, labels, value) in cases {
            let expected = ("a".to_owned(), labels.to_owned(), value);
            assert_eq!(read_all(page), (vec![expected], 0), "{page}");
        }
        let (samples, _) = read_all("a NaN\n");
        assert!(samples[0].2.is_nan());
    }

    #[test]
    fn names_must_match_in_full_and_comments_are_no_samples() {
        let page = "# HELP a help\n# TYPE a gauge\n\n\r\n#a 3\naa 1\nb 2\nb_total 3\nb_totals 4\nns:c 5\nns:c_created 6\n# EOF\n";
        let expected = vec![("b_total".to_owned(), String::new(), 3.0), ("ns:c".to_owned(), String::new(), 5.0)];
        assert_eq!(read_all(page), (expected, 0));
    }

    #[test]
    fn broken_lines_are_counted_and_the_next_line_is_read() {
        let broken = [
            "a",
            "a ",
            "a x",
            "a 1 x",
            "a 1 2 3",
            "a{ 1",
            "a{x} 1",
            "a{x=y} 1",
            "a{x=\"y} 1",
            "a{x=\"y\" 1",
            "a{x=\"y\"z=\"w\"} 1",
            "a{=\"y\"} 1",
            "a{x=\"y\"}",
            "a{x=\"y\\",
            "a{x=\"y\\\"} 1",
            "{\"a\"} 1",
            "<html>",
            "7 a",
            "a 0x1",
            "a 1_000",
        ];
        for line in broken {
            let (samples, garbage) = read_all(&format!("{line}\na 9\n"));
            assert_eq!((samples.len(), garbage), (1, 1), "{line}");
            assert_eq!(samples[0].2, 9.0, "{line}");
        }
    }

    #[test]
    fn a_number_that_may_have_been_cut_is_not_believed() {
        assert_eq!(read_all("a 1\na 29"), (vec![("a".to_owned(), String::new(), 1.0)], 1));
    }

    #[test]
    fn only_a_page_of_samples_has_samples() {
        for (page, expected) in [
            ("", false),
            ("<!doctype html>\n<p>not found</p>\n", false),
            ("Not Found\n", false),
            ("{\"detail\":\"Not Found\"}\n", false),
            ("# TYPE a gauge\n", false),
            ("# TYPE other gauge\nother{x=\"y\"} 1.0\n", true),
        ] {
            assert_eq!(has_samples(page.as_bytes()), expected, "{page}");
        }
    }

    proptest! {
        #[test]
        fn no_page_panics(page: Vec<u8>) {
            has_samples(&page);
            read(&page, |_| Some(()), |line| assert!(line.labels.len() < page.len()));
        }

        /// Bytes that lead deep into the syntax.
        #[test]
        fn no_near_page_panics(page in "(a|b|[{}\",=\\\\# \t\r\n0-9.e+-])*") {
            has_samples(page.as_bytes());
            let lines = page.bytes().filter(|byte| *byte == b'\n').count() as u32 + 1;
            let mut taken = 0;
            let garbage = read(page.as_bytes(), |_| Some(()), |_| taken += 1);
            prop_assert!(garbage + taken <= lines);
        }

        #[test]
        fn what_is_written_is_read(samples in prop::collection::vec(("[a-z]{1,9}", "\\PC*", -1e300..1e300f64), 0..20)) {
            let mut page = String::new();
            let mut expected = Vec::new();
            for (label, text, value) in samples {
                let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let labels = format!("{label}=\"{escaped}\"");
                page += &format!("# HELP a {text:?}\nunwanted{{{labels}}} 1\na{{{labels}}} {value}\n");
                expected.push(("a".to_owned(), labels, value));
            }
            prop_assert_eq!(read_all(&page), (expected, 0));
        }
    }
}

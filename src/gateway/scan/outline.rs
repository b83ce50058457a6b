//! A JSON answer without its bulk, so that an answer of any size can be understood in bounded memory.
//!
//! What the record needs stands near the top of the document: the id first, usage last, finish reasons three levels
//! deep. What makes answers large is long strings (the text) and what is nested deeper (messages, embeddings, log
//! probabilities). So the bytes are copied as they pass, without either: a long string becomes `""`, and what is too
//! deep `{}` or `[]`. The rest is still valid JSON and is parsed once, at the end. Keeping the whole answer instead
//! would cost as much memory as all answers in flight together; keeping head and tail would need luck to find where
//! `usage` begins.

use memchr::memchr2;

use super::NAME_BYTES_MAX;
use super::bounded::Bounded;

/// Three levels reach `choices[].finish_reason` and `usage.prompt_tokens_details.cached_tokens`.
const DEPTH_MAX: u32 = 3;

/// The longest string that is kept, in bytes as written: a name of the greatest length with every byte as `\u00xx`.
const STRING_BYTES_MAX: usize = 6 * NAME_BYTES_MAX;

/// The longest outline. A chat answer's is about 1 KiB; that of the 2,048 embeddings which OpenAI allows is 100 KiB.
pub(super) const OUTLINE_BYTES_MAX: usize = 256 * 1024;

/// Takes a document in pieces and keeps its outline.
#[derive(Debug, Default)]
pub(super) struct Outline {
    kept: Bounded<OUTLINE_BYTES_MAX>,
    overflowed: bool,
    depth: u32,
    inside: Inside,
    /// The length of `kept` just behind the opening quote of the string being read.
    string_start: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Inside {
    /// Between strings.
    #[default]
    Structure,
    String,
    /// In a string, behind a backslash.
    Escape,
}

/// What came of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Nothing but white space.
    Empty,
    /// It ended inside an object, a list or a string.
    Cut,
    /// To the end, valid or not.
    Whole,
    /// Too much even for an outline.
    TooLarge,
}

impl Outline {
    /// Reads the next bytes of the document.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.overflowed {
            let taken = match self.inside {
                Inside::Structure => self.structure(bytes),
                Inside::String => self.string(bytes),
                Inside::Escape => {
                    self.keep_of_string(&bytes[..1]);
                    self.inside = Inside::String;
                    1
                }
            };
            bytes = &bytes[taken..];
        }
    }

    /// How far the document came, and its outline, which is shorter than the document and means the same to a reader of
    /// the top three levels.
    pub(super) fn finish(&self) -> (Extent, &[u8]) {
        let kept = self.kept.as_slice();
        let extent = if self.overflowed {
            Extent::TooLarge
        } else if self.depth > 0 || self.inside != Inside::Structure {
            Extent::Cut
        } else if kept.trim_ascii().is_empty() {
            Extent::Empty
        } else {
            Extent::Whole
        };
        (extent, kept)
    }

    /// Up to and including the next bracket or opening quote. Returns how many bytes that was.
    fn structure(&mut self, bytes: &[u8]) -> usize {
        let run = next_structural(bytes);
        let shallow = self.depth <= DEPTH_MAX;
        if shallow {
            self.keep(&bytes[..run]);
        }
        let Some(&byte) = bytes.get(run) else { return run };
        match byte {
            b'"' => {
                self.inside = Inside::String;
                if shallow {
                    self.keep(b"\"");
                }
                self.string_start = self.kept.len();
            }
            b'{' | b'[' => {
                if shallow {
                    self.keep(&[byte]);
                }
                self.depth = self.depth.saturating_add(1);
            }
            _ => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth <= DEPTH_MAX {
                    self.keep(&[byte]);
                }
            }
        }
        run + 1
    }

    /// Up to and including the next quote or backslash of a string. Returns how many bytes that was.
    fn string(&mut self, bytes: &[u8]) -> usize {
        let Some(end) = memchr2(b'"', b'\\', bytes) else {
            self.keep_of_string(bytes);
            return bytes.len();
        };
        if bytes[end] == b'\\' {
            self.keep_of_string(&bytes[..=end]);
            self.inside = Inside::Escape;
        } else {
            self.keep_of_string(&bytes[..end]);
            self.end_string();
        }
        end + 1
    }

    /// One byte more than the bound is enough to know, at the closing quote, that the string was too long.
    fn keep_of_string(&mut self, bytes: &[u8]) {
        let room = STRING_BYTES_MAX + 1 - (self.kept.len() - self.string_start);
        if self.depth <= DEPTH_MAX {
            self.keep(&bytes[..bytes.len().min(room)]);
        }
    }

    fn end_string(&mut self) {
        self.inside = Inside::Structure;
        if self.depth > DEPTH_MAX {
            return;
        }
        if self.kept.len() - self.string_start > STRING_BYTES_MAX {
            self.kept.truncate(self.string_start);
        }
        self.keep(b"\"");
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !self.kept.append(bytes) {
            self.overflowed = true;
            self.kept.clear();
            self.string_start = 0;
        }
    }

    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.kept.capacity()
    }
}

/// Where the next bracket or quote is, or the length. In blocks, because embeddings are megabytes of numbers: the test
/// of a whole block has no branches and becomes vector instructions.
fn next_structural(bytes: &[u8]) -> usize {
    // `[` and `{`, and `]` and `}`, differ in one bit only.
    let structural = |byte: u8| (byte | 0x20 == b'{') | (byte | 0x20 == b'}') | (byte == b'"');
    let mut passed = 0;
    for block in bytes.chunks(32) {
        if block.iter().fold(false, |any, &byte| any | structural(byte)) {
            return passed + block.iter().take_while(|&&byte| !structural(byte)).count();
        }
        passed += block.len();
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(document: &str, frame_bytes: usize) -> (Extent, String) {
        let mut outline = Outline::default();
        for frame in document.as_bytes().chunks(frame_bytes) {
            outline.feed(frame);
            assert!(outline.allocated() <= OUTLINE_BYTES_MAX);
        }
        let (extent, kept) = outline.finish();
        (extent, String::from_utf8_lossy(kept).into_owned())
    }

    #[test]
    fn documents_and_their_outlines() {
        let long = format!(r#"{{"a":"{}","b":"{}\\\""}}"#, "x".repeat(STRING_BYTES_MAX), "y".repeat(STRING_BYTES_MAX));
        let long_outline = format!(r#"{{"a":"{}","b":""}}"#, "x".repeat(STRING_BYTES_MAX));
        let cases: &[(&str, Extent, &str)] = &[
            (r#"{"a":[{"b":1,"c":[{"d":2}],"e":"]"}]}"#, Extent::Whole, r#"{"a":[{"b":1,"c":[],"e":"]"}]}"#),
            (r#"{"a":{"b":{"c":{"x":"}\"]","y":[]}}}} "#, Extent::Whole, r#"{"a":{"b":{"c":{}}}} "#),
            (r#"{"\"":"\\","b":"\u00e9"}"#, Extent::Whole, r#"{"\"":"\\","b":"\u00e9"}"#),
            (&long, Extent::Whole, &long_outline),
            (r#"{"a":[1,2"#, Extent::Cut, r#"{"a":[1,2"#),
            (r#"{"a":"x\"#, Extent::Cut, r#"{"a":"x\"#),
            (r#""text""#, Extent::Whole, r#""text""#),
            ("<html>", Extent::Whole, "<html>"),
            ("]]}{}", Extent::Whole, "]]}{}"),
            (" \n", Extent::Empty, " \n"),
            ("", Extent::Empty, ""),
        ];
        for (document, extent, kept) in cases {
            for frame_bytes in [1, 2, 3, 7, 40, 100_000] {
                assert_eq!(outline(document, frame_bytes), (*extent, (*kept).to_owned()), "{document:.80}");
            }
        }
    }

    #[test]
    fn a_huge_answer_has_a_small_outline() {
        let numbers = vec!["0.123456789"; 200_000].join(",");
        let document = format!(r#"{{"data":[{{"index":0,"embedding":[{numbers}]}}],"usage":{{"prompt_tokens":3}}}}"#);
        let kept = r#"{"data":[{"index":0,"embedding":[]}],"usage":{"prompt_tokens":3}}"#.to_owned();
        assert_eq!(outline(&document, 16_384), (Extent::Whole, kept));
    }

    #[test]
    fn an_outline_beyond_the_bound_is_given_up() {
        let document = format!("[{}]", vec!["1"; OUTLINE_BYTES_MAX].join(","));
        assert_eq!(outline(&document, 1000), (Extent::TooLarge, String::new()));
    }
}

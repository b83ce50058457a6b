//! What may be written to a terminal: text of strangers stands in documents and rows, and a terminal obeys some of it.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Text that moves no cursor, sets no title and turns no direction around: whatever could is written as JSON escapes it, so
/// that JSON stays JSON. Only line ends are left. For pipes and files nothing is changed: programs read what was recorded.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        if obeyed(c) {
            write!(shown, "\\u{:04x}", u32::from(c)).expect("memory does not refuse a write");
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Control characters, also those above ASCII, what separates lines, and what changes the direction of writing; none of them
/// is beyond four hex digits.
fn obeyed(c: char) -> bool {
    const DIRECTIONS: [char; 3] = ['\u{61c}', '\u{200e}', '\u{200f}'];
    let turns = DIRECTIONS.contains(&c) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c != '\n' && c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_nothing_to_obey_and_json_means_the_same() {
        let plain = "{\"model\":\"模型 ü 🦀\"}\n─ ▲\n";
        assert!(matches!(shown(plain), Cow::Borrowed(text) if text == plain));
        let text = "{\"model\":\"a\u{7f}\u{9b}2Jb\u{202e}c\u{2066}d\u{2028}e\u{feff}\"}\n";
        let safe = shown(text);
        assert_eq!(safe, "{\"model\":\"a\\u007f\\u009b2Jb\\u202ec\\u2066d\\u2028e\\ufeff\"}\n");
        let meaning = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(meaning(&safe), meaning(text));
        assert_eq!(shown("a\u{1b}]0;owned\u{7}\t\rb"), "a\\u001b]0;owned\\u0007\\u0009\\u000db");
    }
}

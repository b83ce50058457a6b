//! Words and numbers as people read them: durations, counts, and text that is safe to print.

/// Text that can be printed: what is not visible ASCII is written as Rust would escape it.
pub(in crate::lookup) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c == ' ' || c.is_ascii_graphic() {
            clean.push(c);
        } else {
            clean.extend(c.escape_default());
        }
    }
    clean
}

/// Holds a number and its unit together when a sentence is broken into lines. No clean text has one.
const GLUE: char = '\u{a0}';

/// One line of at most `width` columns; what is cut off leaves a `~`. It ends in no blank.
pub(in crate::lookup) fn line(text: &str, width: usize) -> String {
    let cut: String = if text.chars().count() > width {
        text.chars().take(width.saturating_sub(1)).chain(['~']).collect()
    } else {
        text.to_owned()
    };
    cut.trim_end().replace(GLUE, " ")
}

/// Text in lines of at most `width` columns, each but the first begun with `indent` blanks, as the first one may be.
pub(in crate::lookup) fn hanging(first: &str, text: &str, indent: usize, width: usize) -> String {
    let mut lines = String::new();
    for (place, line) in wrapped(text, width - indent).lines().enumerate() {
        let before = if place == 0 { first } else { "" };
        lines.push_str(format!("{before:<indent$}{line}").trim_end());
        lines.push('\n');
    }
    lines
}

/// Text in lines of at most `width` columns, broken between words, or within one that is wider. Ends in a line's end.
pub(in crate::lookup) fn wrapped(text: &str, width: usize) -> String {
    let mut lines = String::with_capacity(text.len() + 8);
    let mut used = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let columns = word.chars().count();
        if used > 0 && used + 1 + columns > width {
            lines.push('\n');
            used = 0;
        } else if used > 0 {
            lines.push(' ');
            used += 1;
        }
        for c in word.chars() {
            if used == width {
                lines.push('\n');
                used = 0;
            }
            lines.push(if c == GLUE { ' ' } else { c });
            used += 1;
        }
    }
    lines.push('\n');
    lines
}

/// Microseconds with three digits that matter: `41 us`, `8.21 ms`, `2.40 s`, `3 min 20 s`. To be shown by [`line()`] or
/// [`wrapped`]: number and unit are glued.
pub(in crate::lookup) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}{GLUE}us"),
        1_000..1_000_000 => format!("{}{GLUE}ms", three_digits(us as f64 / 1e3)),
        1_000_000..60_000_000 => format!("{}{GLUE}s", three_digits(us as f64 / 1e6)),
        60_000_000..3_600_000_000 => {
            let seconds = us / 1_000_000;
            format!("{}{GLUE}min{GLUE}{}{GLUE}s", seconds / 60, seconds % 60)
        }
        3_600_000_000..=359_999_999_999_999 => {
            let minutes = us / 60_000_000;
            format!("{}{GLUE}h{GLUE}{}{GLUE}min", minutes / 60, minutes % 60)
        }
        _ => "ages".to_owned(),
    }
}

/// Milliseconds, likewise, but without a fraction of one: they were counted whole.
pub(in crate::lookup) fn millis(ms: u64) -> String {
    if ms < 1_000 { format!("{ms}{GLUE}ms") } else { micros(ms.saturating_mul(1_000)) }
}

/// Bytes in powers of ten.
pub(in crate::lookup) fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count}{GLUE}B"),
        1_000..1_000_000 => format!("{}{GLUE}kB", three_digits(count as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{}{GLUE}MB", three_digits(count as f64 / 1e6)),
        _ => format!("{}{GLUE}GB", number(count as f64 / 1e9)),
    }
}

fn three_digits(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A number as short as it can be said: whole ones whole, others with three digits that matter.
pub(in crate::lookup) fn number(value: f64) -> String {
    /// From here on powers of ten are easier to read.
    const LARGE: f64 = 1e7;
    let size = value.abs();
    if value.is_nan() {
        "nan".to_owned()
    } else if size >= LARGE || (size > 0.0 && size < 0.001) {
        format!("{value:.1e}")
    } else if value.fract() == 0.0 {
        // Minus zero is zero to people.
        format!("{:.0}", value + 0.0)
    } else if size < 1.0 {
        format!("{value:.3}")
    } else {
        let sign = if value < 0.0 { "-" } else { "" };
        format!("{sign}{}", three_digits(size))
    }
}

/// A ratio as a whole number of per cents.
pub(in crate::lookup) fn percent(ratio: f64) -> String {
    number((ratio * 100.0).round())
}

/// `1 token`, `180 tokens`.
pub(in crate::lookup) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// `1 request bears`, `2 requests bear`.
pub(in crate::lookup) fn counted_verb(count: u64, noun: &str, many: &str, one: &str) -> String {
    format!("{} {}", counted(count, noun), if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_units() {
        for (us, want) in [
            (0, "0 us"),
            (999, "999 us"),
            (1_000, "1.00 ms"),
            (8_210, "8.21 ms"),
            (92_001, "92.0 ms"),
            (999_999, "1000 ms"),
            (2_400_112, "2.40 s"),
            (60_000_000, "1 min 0 s"),
            (200_000_000, "3 min 20 s"),
            (7_500_000_000, "2 h 5 min"),
            (u64::MAX, "ages"),
        ] {
            assert_eq!(line(&micros(us), 99), want);
        }
        for (value, want) in [
            (3.0, "3"),
            (-0.0, "0"),
            (0.31, "0.310"),
            (9.125, "9.12"),
            (1480.4, "1480"),
            (-12.34, "-12.3"),
            (12_345_678.0, "1.2e7"),
            (0.000_01, "1.0e-5"),
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(number(value), want);
        }
        let shown = [millis(41), millis(8_200), bytes(20_480), percent(0.417)].map(|text| line(&text, 99));
        assert_eq!(shown, ["41 ms", "8.20 s", "20.5 kB", "42"]);
        assert_eq!((counted(1, "token"), counted(0, "token")), ("1 token".into(), "0 tokens".into()));
    }

    #[test]
    fn lines_break_between_words_and_within_long_ones() {
        assert_eq!(wrapped("one two three", 7), "one two\nthree\n");
        assert_eq!(wrapped("abcdefghij k", 4), "abcd\nefgh\nij k\n");
        assert_eq!(wrapped("  ", 4), "\n");
        assert_eq!(wrapped(&format!("after {} s", millis(41)), 9), "after\n41 ms s\n", "a number keeps its unit");
        assert_eq!(hanging("  a", "one two", 4, 8), "  a one\n    two\n");
        assert_eq!(line("abcdef", 4), "abc~");
        assert_eq!(line("ab  ", 4), "ab");
    }
}

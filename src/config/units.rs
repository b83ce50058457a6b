//! Durations and sizes as people write them: `1h30m`, `500ms`, `16MiB`. What is shown can be read again.

use std::time::Duration;

/// Units of time with their length in microseconds, largest first: the order in which they may follow each other.
const TIME_UNITS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

/// Units of size with their length in bytes, largest first.
const SIZE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// One or more whole numbers, each with its unit, largest unit first: `2s`, `1h30m`. A bare number is refused.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wanted =
        || format!("\"{text}\" is not a duration: write a whole number with its unit, such as 500ms, 2s or 1h30m");
    let mut rest = text;
    let mut total_us = 0u64;
    let mut smaller_than = u64::MAX;
    loop {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, after) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| wanted())?;
        if unit.is_empty() && after.is_empty() {
            return Err(format!("\"{text}\" has no unit: write {number}ms or {number}s"));
        }
        let length = TIME_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length);
        let length = length.filter(|length| *length < smaller_than).ok_or_else(wanted)?;
        total_us = number.checked_mul(length).and_then(|part| total_us.checked_add(part)).ok_or_else(wanted)?;
        smaller_than = length;
        rest = after;
        if rest.is_empty() {
            return Ok(Duration::from_micros(total_us));
        }
    }
}

/// The shortest form that [`parse_duration`] reads back; what is below a microsecond is cut.
pub(super) fn show_duration(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let mut shown = String::new();
    for (unit, length) in TIME_UNITS {
        if left >= length {
            shown += &format!("{}{unit}", left / length);
            left %= length;
        }
    }
    if shown.is_empty() { "0s".to_owned() } else { shown }
}

/// A whole number with `B`, `KiB`, `MiB`, `GiB` or `TiB`; a bare number is bytes.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let length = if unit.is_empty() {
        Some(1)
    } else {
        SIZE_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length)
    };
    let bytes = number.parse::<u64>().ok().zip(length).and_then(|(number, length)| number.checked_mul(length));
    bytes.ok_or_else(|| {
        format!("\"{text}\" is not a size: write a whole number with B, KiB, MiB, GiB or TiB, such as 16MiB (1MiB is 1048576 bytes)")
    })
}

/// In the largest unit that leaves nothing over.
pub(super) fn show_bytes(bytes: u64) -> String {
    let (unit, length) =
        SIZE_UNITS.into_iter().find(|(_, length)| bytes != 0 && bytes.is_multiple_of(*length)).unwrap_or(("B", 1));
    format!("{}{unit}", bytes / length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_and_shown() {
        let cases = [("0s", 0), ("7us", 7), ("500ms", 500_000), ("10s", 10_000_000), ("1h30m", 5_400_000_000)];
        for (text, us) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(us)), "{text}");
            assert_eq!(show_duration(Duration::from_micros(us)), text);
        }
        assert_eq!(show_duration(Duration::from_secs(600)), "10m");
        assert_eq!(parse_duration("600s"), parse_duration("10m"));
    }

    #[test]
    fn a_duration_without_a_unit_is_told_so() {
        assert_eq!(parse_duration("500"), Err("\"500\" has no unit: write 500ms or 500s".to_owned()));
        for text in ["", "s", "1.5s", "-1s", "1 s", "1 hour", "1s1s", "1ms1s", "5min", "99999999999d", "2S", "1h30"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        let cases = [
            ("0B", 0),
            ("1000B", 1000),
            ("64KiB", 65_536),
            ("16MiB", 16 << 20),
            ("10GiB", 10 << 30),
            ("2TiB", 2 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
            assert_eq!(show_bytes(bytes), text);
        }
        assert_eq!(parse_bytes("16 MiB"), parse_bytes("16777216"));
        for text in ["", "MiB", "16MB", "16mib", "1.5GiB", "-1", "99999999TiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(us in 0..u64::MAX / 2, bytes: u64) {
            prop_assert_eq!(parse_duration(&show_duration(Duration::from_micros(us))), Ok(Duration::from_micros(us)));
            prop_assert_eq!(parse_bytes(&show_bytes(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _either = (parse_duration(&text), parse_bytes(&text));
        }
    }
}

//! Floating-point numbers to the last bit: in REAL columns, and in the JSON of candidates.
//!
//! SQLite keeps a NaN as NULL and minus zero as zero; JSON has no word for NaN or infinity. Such a number goes where its
//! bits fit, so that a record is read as it was written even when an engine reports nonsense.

use crate::snapshot::{Quantity, Reading};

/// Bytes of one entry of the column `exact`: the quantity's place, then eight bytes of bits.
const EXACT_ENTRY_BYTES: usize = 9;

/// Whether a REAL column gives back the same bits.
fn survives_sqlite(value: f64) -> bool {
    !value.is_nan() && value.to_bits() != (-0.0f64).to_bits()
}

/// The column `exact` of a sample: `None` for every sample of a sane engine.
pub(super) fn exact(readings: &[Reading; Quantity::COUNT]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for (place, reading) in readings.iter().enumerate() {
        if let Some(value) = reading.value.filter(|value| !survives_sqlite(*value)) {
            bytes.push(place as u8);
            bytes.extend(value.to_bits().to_le_bytes());
        }
    }
    if bytes.is_empty() { None } else { Some(bytes) }
}

/// Puts back what [`exact`] kept. `false` if the bytes are not its.
pub(super) fn restore_exact(readings: &mut [Reading; Quantity::COUNT], bytes: &[u8]) -> bool {
    let (entries, rest) = bytes.as_chunks::<EXACT_ENTRY_BYTES>();
    for [place, bits @ ..] in entries {
        let Some(reading) = readings.get_mut(usize::from(*place)) else { return false };
        reading.value = Some(f64::from_bits(u64::from_le_bytes(*bits)));
    }
    rest.is_empty()
}

/// Appends a number as JSON, whole ones without a point; what JSON has no word for as `null`, and its bits to `beyond`.
pub(super) fn write_json(json: &mut Vec<u8>, value: f64, beyond: &mut Vec<u64>) {
    /// Whole numbers up to here are exact in a float.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let written = if !value.is_finite() {
        beyond.push(value.to_bits());
        json.extend(b"null");
        return;
    } else if value.fract() == 0.0 && value.abs() < EXACT && value.to_bits() != (-0.0f64).to_bits() {
        serde_json::to_writer(json, &(value as i64))
    } else {
        serde_json::to_writer(json, &value)
    };
    written.expect("a number is JSON, and memory does not refuse a write");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rusqlite::Connection;

    fn any_float() -> impl Strategy<Value = f64> {
        prop_oneof![any::<u64>().prop_map(f64::from_bits), any::<i32>().prop_map(f64::from), Just(-0.0), Just(f64::NAN)]
    }

    proptest! {
        #[test]
        fn json_keeps_every_bit(value in any_float()) {
            let (mut json, mut beyond) = (Vec::new(), Vec::new());
            write_json(&mut json, value, &mut beyond);
            let read: Option<f64> = serde_json::from_slice(&json).unwrap();
            let bits = read.map_or_else(|| beyond[0], f64::to_bits);
            prop_assert_eq!(bits, value.to_bits());
            prop_assert_eq!(beyond.len(), usize::from(!value.is_finite()));
        }
    }

    #[test]
    fn sqlite_keeps_every_other_bit() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE numbers (value REAL)").unwrap();
        let mut runner = proptest::test_runner::TestRunner::default();
        runner
            .run(&any_float(), |value| {
                connection.execute("INSERT INTO numbers VALUES (?1)", [value]).unwrap();
                let read: Option<f64> = connection
                    .query_row("SELECT value FROM numbers WHERE rowid = last_insert_rowid()", [], |row| row.get(0))
                    .unwrap();
                prop_assert_eq!(read.map(f64::to_bits) == Some(value.to_bits()), survives_sqlite(value));
                Ok(())
            })
            .unwrap();
    }
}

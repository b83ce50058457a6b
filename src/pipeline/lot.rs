//! What a lane offers to its sink at a time: what is in its queue, or what the store has, up to one bound.

use std::sync::Arc;

use crate::snapshot::Record;

/// Records of a lot at most, from memory or from the store: an exit whose receiver answers slowly makes up in size what it
/// lacks in number. The batches they came in are small when requests end one by one.
pub(super) const LOT_RECORDS: usize = 16_384;

/// Their estimated memory, at most, unless a batch or a page is more by itself. It is more than OTLP has on its way at once by
/// default, so that all of its requests go side by side.
pub(super) const LOT_BYTES: usize = 32 << 20;

/// Records read from the store at a time: between two reads a stop is heard, and room is looked for.
pub(super) const PAGE_RECORDS: usize = 1_000;

/// What one transaction held, or several that follow each other.
#[derive(Debug)]
pub(super) struct Batch {
    /// The number of the first record; the others follow.
    pub(super) first_seq: u64,
    pub(super) records: Vec<Arc<Record>>,
}

impl Batch {
    pub(super) fn last_seq(&self) -> u64 {
        self.first_seq + self.records.len() as u64 - 1
    }
}

/// What a lot can still hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    records: usize,
    bytes: usize,
}

impl Room {
    pub(super) const LOT: Self = Self { records: LOT_RECORDS, bytes: LOT_BYTES };

    /// How many records the next page may have.
    pub(super) fn page(self) -> usize {
        if self.bytes == 0 { 0 } else { self.records.min(PAGE_RECORDS) }
    }

    /// What is left beside these.
    pub(super) fn beside(self, records: &[Arc<Record>]) -> Self {
        let weight: usize = records.iter().map(|record| record.weight()).sum();
        Self { records: self.records.saturating_sub(records.len()), bytes: self.bytes.saturating_sub(weight) }
    }

    /// Whether these fit, and then what is left.
    pub(super) fn with(self, records: &[Arc<Record>]) -> Option<Self> {
        let left = self.beside(records);
        (self.records >= records.len() && left.bytes > 0).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::record::tests::decided;

    #[test]
    fn a_lot_is_bounded_in_records_and_in_bytes() {
        let light: Vec<_> = (0..PAGE_RECORDS as u64).map(|number| Arc::new(decided(number))).collect();
        let mut room = Room::LOT;
        let mut held = 0;
        while room.page() > 0 {
            let page = &light[..room.page()];
            (room, held) = (room.beside(page), held + page.len());
        }
        assert_eq!(held, LOT_RECORDS, "so many small ones fit");
        assert!(room.with(&light[..1]).is_none());

        let mut heavy = decided(0);
        heavy.issued.request.path = "x".repeat(1 << 20).into();
        let heavy = vec![Arc::new(heavy)];
        let mut left = Some(Room::LOT);
        let mut held = 0;
        while let Some(more) = left.and_then(|room| room.with(&heavy)) {
            (left, held) = (Some(more), held + 1);
        }
        assert_eq!(held, (LOT_BYTES >> 20) - 1, "each is a little more than a MiB");
        assert!(left.is_some_and(|room| room.page() > 0));
        assert_eq!(left.map(|room| room.beside(&heavy).page()), Some(0));
    }
}

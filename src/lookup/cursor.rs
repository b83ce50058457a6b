//! Where the next page of a list begins, as clients carry it: opaque, and only for the list that it came from.

use std::fmt;

use crate::snapshot::{Moment, SnapshotId};

/// Bytes of the check at the end.
const CHECK_BYTES: usize = 4;

/// A place in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Newest first: below an ID, and not before a moment. `15m` ago is another moment at each page; this is the first one's.
    Below { id: SnapshotId, since: Moment },
    /// In the order of storing: after a sequence number.
    After { seq: u64 },
}

/// The text is no place in this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPlace;

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "page is none of this list: give it as the page before did, with the same filters and order, or leave it out to \
             begin anew",
        )
    }
}

impl std::error::Error for NoPlace {}

impl Place {
    /// As text. `list` is what makes the list: its order and its filters.
    pub(super) fn to_text(self, list: &str) -> String {
        let mut bytes = Vec::with_capacity(32);
        match self {
            Self::Below { id, since } => {
                bytes.push(b'b');
                bytes.extend_from_slice(&id.to_bytes());
                bytes.extend_from_slice(&since.0.to_be_bytes());
            }
            Self::After { seq } => {
                bytes.push(b'a');
                bytes.extend_from_slice(&seq.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&check(&bytes, list));
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// From text, if it is of the same list.
    pub(super) fn of_text(text: &str, list: &str) -> Result<Self, NoPlace> {
        let digits = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Vec<u8> = text.as_bytes().chunks(2).map(digits).collect::<Option<_>>().ok_or(NoPlace)?;
        let (place, end) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(NoPlace)?;
        if *end != check(place, list) {
            return Err(NoPlace);
        }
        let (kind, rest) = place.split_first().ok_or(NoPlace)?;
        match (kind, rest.split_last_chunk()) {
            (b'b', Some((id, since))) => {
                let id = SnapshotId::from_bytes(id.try_into().map_err(|_| NoPlace)?);
                Ok(Self::Below { id, since: Moment(u64::from_be_bytes(*since)) })
            }
            (b'a', Some(([], seq))) => Ok(Self::After { seq: u64::from_be_bytes(*seq) }),
            _ => Err(NoPlace),
        }
    }
}

fn check(place: &[u8], list: &str) -> [u8; CHECK_BYTES] {
    let hash = blake3::Hasher::new().update(place).update(list.as_bytes()).finalize();
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_place_comes_back_in_its_list_and_in_no_other() {
        let id = SnapshotId::from_u128(0x019a_b3c2_d1e0_a7f1_1122_3344_5566_7788);
        for place in [Place::Below { id, since: Moment(7) }, Place::After { seq: u64::MAX }] {
            let text = place.to_text("newest model=a");
            assert_eq!(Place::of_text(&text, "newest model=a"), Ok(place));
            assert_eq!(Place::of_text(&text, "newest model=b"), Err(NoPlace));
            assert_eq!(Place::of_text(&text[..text.len() - 2], "newest model=a"), Err(NoPlace));
            assert_eq!(Place::of_text(&text.replacen('6', "7", 1), "newest model=a"), Err(NoPlace));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            prop_assert_eq!(Place::of_text(&text, ""), Err(NoPlace));
        }
    }
}

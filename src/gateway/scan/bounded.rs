//! A byte buffer that cannot outgrow its bound, and does not hold on to what one large event once needed.

/// After use, a buffer of more than this is given back. Ordinary events are a few hundred bytes.
const KEPT_CAPACITY_MAX: usize = 16 * 1024;

/// At most `MAX` bytes, in length and in what is allocated.
#[derive(Debug, Default)]
pub(super) struct Bounded<const MAX: usize> {
    bytes: Vec<u8>,
}

impl<const MAX: usize> Bounded<MAX> {
    /// Appends what fits, and says whether that was all.
    pub(super) fn append(&mut self, bytes: &[u8]) -> bool {
        let fitting = bytes.len().min(MAX - self.bytes.len());
        let needed = self.bytes.len() + fitting;
        if needed > self.bytes.capacity() {
            // Doubled as a Vec does it, except that a Vec would double past the bound.
            let capacity = needed.max((self.bytes.capacity() * 2).min(MAX));
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(&bytes[..fitting]);
        fitting == bytes.len()
    }

    /// Shortens it to `length` bytes; a shorter one stays as it is.
    pub(super) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// Empties it for the next use.
    pub(super) fn clear(&mut self) {
        if self.bytes.capacity() > KEPT_CAPACITY_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_what_fits_and_says_so() {
        let mut buffer = Bounded::<5>::default();
        assert!(buffer.append(b"abc"));
        assert!(!buffer.append(b"def"));
        assert_eq!(buffer.as_slice(), b"abcde");
        assert!(buffer.append(b""));
        assert!(!buffer.append(b"f"));
        assert_eq!(buffer.capacity(), 5);
    }

    #[test]
    fn growing_byte_by_byte_never_allocates_past_the_bound() {
        let mut buffer = Bounded::<100_000>::default();
        while buffer.append(b"x") {
            assert!(buffer.capacity() <= 100_000);
        }
        assert_eq!(buffer.len(), 100_000);
        buffer.clear();
        assert!(buffer.is_empty());
        assert_eq!(buffer.capacity(), 0, "a large buffer is given back");
    }
}

//! A byte buffer that cannot outgrow its bound, and does not hold on to what one large event once needed.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What each buffer may have for itself; after use, one of more than this is given back. Ordinary events are a few hundred
/// bytes.
const OWN_BYTES: usize = 16 * 1024;

/// What all buffers together may have beyond that. Ten thousand streams whose targets send nothing but events without end
/// would else take their own bound ten thousand times.
const SHARED_BYTES: usize = 64 * 1024 * 1024;

static SHARED: Room = Room::new(SHARED_BYTES);

/// Memory that buffers share.
#[derive(Debug)]
struct Room {
    left: AtomicUsize,
}

impl Room {
    const fn new(bytes: usize) -> Self {
        Self { left: AtomicUsize::new(bytes) }
    }

    /// `false` if so much is not left.
    fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Relaxed);
    }
}

/// At most `MAX` bytes, in length and in what is allocated.
#[derive(Debug)]
pub(super) struct Bounded<const MAX: usize> {
    bytes: Vec<u8>,
    /// What it has of the room.
    shared: usize,
    room: &'static Room,
}

impl<const MAX: usize> Default for Bounded<MAX> {
    fn default() -> Self {
        Self::within(&SHARED)
    }
}

impl<const MAX: usize> Drop for Bounded<MAX> {
    fn drop(&mut self) {
        self.room.give_back(self.shared);
    }
}

impl<const MAX: usize> Bounded<MAX> {
    fn within(room: &'static Room) -> Self {
        Self { bytes: Vec::new(), shared: 0, room }
    }

    /// Appends what fits, and says whether that was all.
    pub(super) fn append(&mut self, bytes: &[u8]) -> bool {
        let wanted = self.bytes.len().saturating_add(bytes.len()).min(MAX);
        if wanted > self.bytes.capacity() {
            self.grow(wanted);
        }
        let fitting = bytes.len().min(self.bytes.capacity().min(MAX) - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..fitting]);
        fitting == bytes.len()
    }

    /// Makes room for `wanted` bytes in all, or for as many as it may have for itself.
    fn grow(&mut self, wanted: usize) {
        // Doubled as a Vec does it, except that a Vec would double past the bound.
        let mut capacity = wanted.max((self.bytes.capacity() * 2).min(MAX));
        if capacity > OWN_BYTES {
            let more = capacity - OWN_BYTES - self.shared;
            if self.room.take(more) {
                self.shared += more;
            } else {
                capacity = capacity.min(OWN_BYTES);
            }
        }
        self.bytes.reserve_exact(capacity.saturating_sub(self.bytes.len()));
    }

    /// Shortens it to `length` bytes; a shorter one stays as it is.
    pub(super) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// Empties it for the next use.
    pub(super) fn clear(&mut self) {
        if self.bytes.capacity() > OWN_BYTES {
            self.bytes = Vec::new();
            self.room.give_back(std::mem::take(&mut self.shared));
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

    #[test]
    fn what_all_have_beyond_their_own_is_bounded_and_comes_back() {
        static ROOM: Room = Room::new(3 * OWN_BYTES);
        let left = || ROOM.left.load(Relaxed);
        let mut first = Bounded::<{ 8 * OWN_BYTES }>::within(&ROOM);
        assert!(first.append(&[b'x'; 4 * OWN_BYTES]));
        assert_eq!((first.capacity(), left()), (4 * OWN_BYTES, 0));
        assert!(!first.append(b"x"), "there is no room");

        // Another one still has what is its own, so that it is known what a line is about.
        let mut second = Bounded::<{ 8 * OWN_BYTES }>::within(&ROOM);
        assert!(!second.append(&[b'y'; OWN_BYTES + 1]));
        assert_eq!((second.len(), second.capacity()), (OWN_BYTES, OWN_BYTES));

        first.clear();
        assert_eq!(left(), 3 * OWN_BYTES);
        assert!(second.append(b"y"));
        assert_eq!(left(), 2 * OWN_BYTES, "it doubles");
        drop(second);
        assert_eq!(left(), 3 * OWN_BYTES);
    }

    #[test]
    fn growing_in_pieces_takes_no_more_room_than_is_allocated() {
        static ROOM: Room = Room::new(100 * OWN_BYTES);
        let mut buffer = Bounded::<{ 10 * OWN_BYTES + 7 }>::within(&ROOM);
        while buffer.append(&[b'x'; 777]) {
            let taken = 100 * OWN_BYTES - ROOM.left.load(Relaxed);
            assert_eq!(taken, buffer.capacity().saturating_sub(OWN_BYTES));
        }
        assert_eq!(buffer.len(), 10 * OWN_BYTES + 7);
    }
}

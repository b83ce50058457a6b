//! How much the store may have of its disk: when that has little left, the oldest records go so that the newest fit into the
//! file as it is, before the disk is full and nothing can be stored at all.
//!
//! What others do with the disk is not ours to make up for: whatever is free, at most an eighth of the file is emptied ahead, and
//! nothing of a small one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// At most this part of the file is emptied ahead.
const AHEAD_SHARE: u64 = 8;

/// A store of this size is kept: it is as little as `store.retention_bytes` can be.
const KEPT_BYTES: u64 = 16 << 20;

/// The disk of one store.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    /// With less free than this the file is to grow no more: what the log may take until it begins anew.
    reserve: u64,
    free: u64,
    looked: Option<Instant>,
    kept: u64,
    /// For tests, which have only large disks.
    #[cfg(test)]
    pretended: Option<u64>,
}

impl Room {
    /// Of the disk that `dir` is on; nobody has looked yet.
    pub(super) fn new(dir: PathBuf, reserve: u64) -> Self {
        Self {
            dir,
            reserve,
            free: u64::MAX,
            looked: None,
            kept: KEPT_BYTES,
            #[cfg(test)]
            pretended: None,
        }
    }

    /// Looks how much is free, if it is time to.
    pub(super) fn look(&mut self) {
        #[cfg(test)]
        if let Some(free) = self.pretended {
            self.free = free;
            return;
        }
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        // A disk that does not say how much it has left is taken to have enough.
        self.free = rustix::fs::statvfs(&self.dir).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    }

    /// How many bytes of a file of so many may be in use, if the disk has too little left for it to grow.
    pub(super) fn limit(&self, file_bytes: u64) -> Option<u64> {
        let missing = self.reserve.checked_sub(self.free).filter(|missing| *missing > 0)?;
        Some((file_bytes - missing.min(file_bytes / AHEAD_SHARE)).max(self.kept))
    }

    /// As if so many bytes were free, and a small store none to be kept.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, free: u64) {
        (self.pretended, self.kept) = (Some(free), 0);
    }

    /// How many bytes are free, as far as is known.
    pub(super) fn free(&self) -> u64 {
        self.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_little_left_bounds_the_store() {
        let mut room = Room::new("/".into(), 32);
        for (free, file, limit) in [
            (u64::MAX, 800, None),
            (32, 800, None),
            (31, 800, Some(799)),
            (2, 800, Some(770)),
            (0, 800, Some(768)),
            (0, 80, Some(70)),
            (0, 0, Some(0)),
        ] {
            room.pretend(free);
            room.look();
            assert_eq!(room.limit(file), limit, "{free} free, a file of {file}");
        }
        room.kept = KEPT_BYTES;
        assert_eq!(room.limit(800), Some(KEPT_BYTES), "a young store loses nothing");
    }

    #[test]
    fn a_real_disk_says_how_much_it_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut room = Room::new(dir.path().to_owned(), 0);
        room.look();
        assert!((1..u64::MAX).contains(&room.free()), "{}", room.free());
        assert_eq!(room.limit(1 << 40), None);
    }
}

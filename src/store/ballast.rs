//! A reserve on the disk: a file of no use but its size, given back when the disk is full, so that the log can still be
//! taken over and retention can still delete.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::data_dir::make_file;

/// The reserve of one store.
#[derive(Debug)]
pub(super) struct Ballast {
    file: PathBuf,
    bytes: u64,
    spent: bool,
}

impl Ballast {
    /// The reserve at `file`; it is made by [`Ballast::restore`].
    pub(super) fn new(file: PathBuf, bytes: u64) -> Self {
        Self { file, bytes, spent: false }
    }

    /// Whether it was given back and is not restored yet.
    pub(super) fn is_spent(&self) -> bool {
        self.spent
    }

    /// How much it is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the space back. Does nothing if there was none to give: then the store goes on trying.
    pub(super) fn release(&mut self) {
        if fs::metadata(&self.file).is_ok_and(|file| file.len() > 0) {
            self.spent = empty(&self.file).is_ok();
        }
    }

    /// Takes the space again, if it is not taken.
    ///
    /// # Errors
    /// There is not enough space. Nothing is taken then.
    pub(super) fn restore(&mut self) -> io::Result<()> {
        if fs::metadata(&self.file).map_or(0, |file| file.len()) != self.bytes
            && let Err(error) = fill(&self.file, self.bytes)
        {
            // What was written of it is given back; if that fails as well, there is nothing left to try.
            let _partly = empty(&self.file);
            return Err(error);
        }
        self.spent = false;
        Ok(())
    }
}

fn empty(file: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.set_len(0)
}

/// Written, not only declared, and random: a sparse or compressed file reserves nothing.
fn fill(file: &Path, bytes: u64) -> io::Result<()> {
    let mut writer = make_file(file, true)?;
    let mut block = [0; 64 * 1024];
    rand::fill(&mut block[..]);
    let mut left = bytes;
    while left > 0 {
        let length = left.min(block.len() as u64);
        writer.write_all(&block[..length as usize])?;
        left -= length;
    }
    writer.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_given_back_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ballast");
        let length = || fs::metadata(&file).map_or(0, |file| file.len());
        let mut ballast = Ballast::new(file.clone(), 100_000);
        ballast.release();
        assert!(!ballast.is_spent(), "what was never taken cannot be given back");
        ballast.restore().unwrap();
        assert_eq!((length(), ballast.is_spent()), (100_000, false));
        ballast.release();
        assert_eq!((length(), ballast.is_spent()), (0, true));
        ballast.restore().unwrap();
        assert_eq!((length(), ballast.is_spent()), (100_000, false));
    }

    #[test]
    fn a_change_of_its_size_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ballast");
        for bytes in [100_000, 50_000, 0] {
            Ballast::new(file.clone(), bytes).restore().unwrap();
            assert_eq!(fs::metadata(&file).unwrap().len(), bytes);
        }
    }
}

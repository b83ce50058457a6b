//! Sees that the configuration's file is another one than it was.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::read_file;

/// A file, and how it was when it was last taken up. Looked at again and again; what is between two looks does not count.
///
/// A change counts when two looks in a row see the same: who writes in place is not caught in the middle. The contents
/// decide in the end, so a file that was only touched is no change; and links are followed, so it is one when a volume's
/// `..data` is swapped.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    taken: Look,
    last: Look,
}

/// What one look sees; `None` where nothing can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    stamp: Option<Stamp>,
    contents: Option<blake3::Hash>,
}

/// What changes with the file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Watch {
    /// From how the file is now.
    pub fn new(path: PathBuf) -> Self {
        let now = Look::at(&path, None);
        Self { path, taken: now.clone(), last: now }
    }

    /// The file is taken up now, whatever comes of it.
    pub fn taken(self) -> Self {
        Self::new(self.path)
    }

    /// Looks once; answers whether the file is to be taken up. Reads it only if it seems to be another one.
    pub fn look(&mut self) -> bool {
        let now = Look::at(&self.path, Some(&self.last));
        let settled = now == self.last;
        self.last = now;
        settled && self.last.contents != self.taken.contents
    }
}

impl Look {
    fn at(path: &Path, last: Option<&Self>) -> Self {
        let stamp = Stamp::of(path);
        match last {
            Some(last) if last.stamp == stamp => last.clone(),
            _ => Self { stamp, contents: read_file(path).ok().map(|text| blake3::hash(text.as_bytes())) },
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let data = fs::metadata(path).ok()?;
        Some(Self { device: data.dev(), inode: data.ino(), bytes: data.len(), modified: data.modified().ok() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_change_counts_when_it_has_settled_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapgate.toml");
        fs::write(&path, "a").unwrap();
        let mut watch = Watch::new(path.clone());
        assert_eq!([watch.look(), watch.look()], [false, false]);
        fs::write(&path, "ab").unwrap();
        assert_eq!([watch.look(), watch.look()], [false, true], "not before it was seen twice");
        watch = watch.taken();
        assert!(!watch.look());
        for text in ["abc", "abcd", "abcde"] {
            fs::write(&path, text).unwrap();
            assert!(!watch.look(), "somebody is writing");
        }
        assert!(watch.look());
        watch = watch.taken();

        fs::remove_file(&path).unwrap();
        fs::write(&path, "abcde").unwrap();
        assert_eq!([watch.look(), watch.look()], [false, false], "another file that says the same");
        fs::remove_file(&path).unwrap();
        assert_eq!([watch.look(), watch.look()], [false, true], "it is gone: whoever reads it will say so");
    }

    #[test]
    fn a_swapped_link_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text) in [("one", "a"), ("other", "b")] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("snapgate.toml"), text).unwrap();
        }
        symlink("one", at("..data")).unwrap();
        symlink("..data/snapgate.toml", at("snapgate.toml")).unwrap();
        let mut watch = Watch::new(at("snapgate.toml"));
        // As the kubelet does it: another link, moved over the first.
        symlink("other", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!([watch.look(), watch.look()], [false, true]);
    }
}

//! Targets from a file that is followed as it changes.
//!
//! A file that was moved into another one's place is whole, and is read at once. One that is written where it stands, or was
//! not there, is read when two looks in a row see the same, so that nobody is caught in the middle; whoever stops in the middle
//! leaves JSON that is none. What cannot be read or believed leaves the last view.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::listing::{self, Format};
use super::settings::{Defaults, FileSettings};
use super::{Report, Trouble};

/// The largest file that is read: ten thousand targets with all that can be said of them.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How long nothing may change about a file that was not there before: as long as that nobody has its targets.
const SETTLED_AFTER: Duration = Duration::from_millis(100);

/// What tells one state of a file from another: device, inode, size, and when content and inode were changed. Links are
/// followed, so it is another file when a volume's `..data` is swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    bytes: u64,
    changed: [i64; 4],
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let data = fs::metadata(path)?;
        let changed = [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()];
        Ok(Self { place: (data.dev(), data.ino()), bytes: data.len(), changed })
    }
}

/// A file, and how far it is taken up.
#[derive(Debug)]
struct Followed {
    path: PathBuf,
    taken: Option<Stamp>,
    last: Option<Stamp>,
}

/// What one look finds.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// What was taken up already.
    Same,
    /// Somebody may still be writing.
    Unsettled,
    /// Another text.
    New(String),
}

/// Follows the file for ever. The owner of the task ends it.
pub(super) async fn run(settings: FileSettings, defaults: Defaults, report: Report) {
    let FileSettings { path, interval } = settings;
    let format =
        if path.extension().is_some_and(|extension| extension == "toml") { Format::Toml } else { Format::Json };
    let shown = path.display().to_string();
    let mut followed = Followed { path, taken: None, last: None };
    loop {
        // Reading a file may wait for a disk, which nobody else here should do.
        let looked = tokio::task::spawn_blocking(move || {
            let seen = followed.look();
            (followed, seen)
        });
        let Ok((back, seen)) = looked.await else { return };
        followed = back;
        match seen {
            Ok(Seen::Same) => report.holds(),
            Ok(Seen::Unsettled) => {}
            Ok(Seen::New(text)) => match listing::read(&text, format, &defaults) {
                Ok(targets) => report.found(targets),
                Err(mistake) => report.failed(Trouble::Unusable, format!("{shown} {mistake}")),
            },
            Err(error) => report.failed(Trouble::Away, format!("{shown} cannot be read: {error}")),
        }
        let nothing_is_taken = followed.taken.is_none() && followed.last.is_some();
        tokio::time::sleep(if nothing_is_taken { interval.min(SETTLED_AFTER) } else { interval }).await;
    }
}

impl Followed {
    fn look(&mut self) -> io::Result<Seen> {
        let looked = self.look_at();
        if looked.is_err() {
            // Whatever comes back is new.
            (self.taken, self.last) = (None, None);
        }
        looked
    }

    fn look_at(&mut self) -> io::Result<Seen> {
        let now = Stamp::of(&self.path)?;
        let before = self.last.replace(now);
        if self.taken == Some(now) {
            return Ok(Seen::Same);
        }
        let was_moved_here = self.taken.is_some_and(|taken| taken.place != now.place);
        if before != Some(now) && !was_moved_here {
            return Ok(Seen::Unsettled);
        }
        if now.bytes > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = fs::read_to_string(&self.path)?;
        if Stamp::of(&self.path)? != now {
            return Ok(Seen::Unsettled);
        }
        self.taken = Some(now);
        Ok(Seen::New(text))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn new(text: &str) -> Seen {
        Seen::New(text.to_owned())
    }

    #[test]
    fn what_is_moved_into_place_is_read_at_once_and_what_is_written_there_when_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut followed = Followed { path: at("t"), taken: None, last: None };
        assert!(followed.look().is_err(), "it is not there");
        fs::write(at("t"), "a").unwrap();
        assert_eq!(followed.look().unwrap(), Seen::Unsettled, "it may have been written here");
        assert_eq!([followed.look().unwrap(), followed.look().unwrap()], [new("a"), Seen::Same]);
        fs::write(at("t"), "ab").unwrap();
        assert_eq!(followed.look().unwrap(), Seen::Unsettled);
        fs::write(at("t"), "abc").unwrap();
        assert_eq!([followed.look().unwrap(), followed.look().unwrap()], [Seen::Unsettled, new("abc")]);
        fs::write(at("next"), "d").unwrap();
        fs::rename(at("next"), at("t")).unwrap();
        assert_eq!([followed.look().unwrap(), followed.look().unwrap()], [new("d"), Seen::Same]);
        fs::remove_file(at("t")).unwrap();
        assert!(followed.look().is_err());
        fs::write(at("t"), "d").unwrap();
        assert_eq!(followed.look().unwrap(), Seen::Unsettled, "it was away: nobody knows what it is now");
        assert_eq!(followed.look().unwrap(), new("d"));
    }

    #[test]
    fn a_swapped_link_is_a_file_moved_into_place() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["one", "other"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("t"), name).unwrap();
        }
        symlink("one", at("..data")).unwrap();
        symlink("..data/t", at("t")).unwrap();
        let mut followed = Followed { path: at("t"), taken: None, last: None };
        assert_eq!([followed.look().unwrap(), followed.look().unwrap()], [Seen::Unsettled, new("one")]);
        // As the kubelet does it: another link, moved over the first.
        symlink("other", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(followed.look().unwrap(), new("other"));
    }

    #[test]
    fn too_much_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        fs::File::create(&path).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        let mut followed = Followed { path, taken: None, last: None };
        assert_eq!(followed.look().unwrap(), Seen::Unsettled);
        assert!(followed.look().unwrap_err().to_string().contains("larger than"));
    }
}

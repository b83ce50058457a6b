//! The files that were put aside: what they are called, which there are, and which have to go.
//!
//! Beside `snapshots.jsonl` they are `snapshots-20261126T193000.123456Z.jsonl`, each named by the moment up to which its
//! snapshots had ended. So they sort by time as text, and `snapshots*.jsonl` is all of them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::snapshot::Moment;

/// `20261126T193000.123456Z`: digits are 0 here.
const STAMP: &[u8] = b"00000000T000000.000000Z";

/// What the files of one log are called.
#[derive(Debug)]
pub(super) struct Names {
    dir: PathBuf,
    /// What stands before the time, and what after it.
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Names {
    /// Of the files that the log at `path` puts aside.
    pub(super) fn of(path: &Path) -> Self {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let bytes = |part: Option<&OsStr>| part.unwrap_or_default().as_bytes().to_vec();
        let before = [bytes(path.file_stem()).as_slice(), b"-"].concat();
        let after = path.extension().map_or_else(Vec::new, |extension| [b".", extension.as_bytes()].concat());
        Self { dir, before, after }
    }

    /// Those that there are, oldest first.
    pub(super) fn list(&self) -> io::Result<Vec<(Moment, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            found.extend(self.moment(&name).map(|moment| (moment, self.dir.join(name))));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// A name that nothing has, for what had ended at `moment`, or a little later if a clock has stepped back: names sort as
    /// the files came.
    pub(super) fn next(&self, moment: Moment) -> io::Result<PathBuf> {
        let newest = self.list()?.last().map_or(Moment::default(), |(newest, _)| *newest);
        let moment = moment.max(Moment(newest.0 + 1));
        let stamp: String = moment.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let name = [self.before.as_slice(), stamp.as_bytes(), &self.after].concat();
        Ok(self.dir.join(OsString::from_vec(name)))
    }

    /// Deletes the oldest beyond `keep`; all stay if that is 0. What goes is said, and so is what could not.
    pub(super) fn prune(&self, keep: usize) {
        let found = match self.list() {
            Ok(found) => found,
            Err(error) => return tracing::warn!(%error, "the files of the json log could not be counted"),
        };
        let too_many = if keep == 0 { 0 } else { found.len().saturating_sub(keep) };
        for (_, path) in &found[..too_many] {
            let (file, bytes) = (path.display(), fs::metadata(path).map_or(0, |metadata| metadata.len()));
            match fs::remove_file(path) {
                Ok(()) => tracing::info!(%file, bytes, keep, "an old file of the json log was deleted"),
                Err(error) => tracing::warn!(%file, %error, "an old file of the json log could not be deleted"),
            }
        }
    }

    /// The moment in a name; `None` if it is not one of ours.
    fn moment(&self, name: &OsStr) -> Option<Moment> {
        let stamp = name.as_bytes().strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        let fits = |(byte, form): (&u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == form };
        if stamp.len() != STAMP.len() || !stamp.iter().zip(STAMP).all(fits) {
            return None;
        }
        let stamp = std::str::from_utf8(stamp).ok()?;
        let (date, time) = (&stamp[..8], &stamp[9..]);
        let (year, month, day) = (&date[..4], &date[4..6], &date[6..]);
        let (hour, minute, rest) = (&time[..2], &time[2..4], &time[4..]);
        let moment: jiff::Timestamp = format!("{year}-{month}-{day}T{hour}:{minute}:{rest}").parse().ok()?;
        u64::try_from(moment.as_microsecond()).ok().map(Moment)
    }
}

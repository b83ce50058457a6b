//! What is made of files is made anew when they change. Readers find the present value one pointer away.

use std::convert::Infallible;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::MissedTickBehavior;

use super::LoadError;
use crate::telemetry::Metrics;

/// How often files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What tells one state of a file from another: device, inode, size, and when content and inode were changed. Links are
/// followed, so that a secret's `..data`, which Kubernetes points elsewhere, changes all of it at once.
type Print = [i128; 5];

/// One for each file; `None` for a file that is not there.
type Prints = Vec<Option<Print>>;

/// A value made of files.
pub(super) struct Kept<T> {
    /// The section of the configuration that names the files.
    section: &'static str,
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, LoadError> + Send + Sync>,
    current: ArcSwap<T>,
    /// Of the files that were last tried, for better or worse.
    seen: Mutex<Prints>,
}

impl<T> Kept<T> {
    /// Makes the first value. Blocks.
    pub(super) fn new(
        section: &'static str,
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, LoadError> + Send + Sync + 'static,
    ) -> Result<Self, LoadError> {
        // Looked at first: what changes while it is read will be read again.
        let seen = Mutex::new(prints(&files));
        let current = ArcSwap::from_pointee(make()?);
        Ok(Self { section, files, make: Box::new(make), current, seen })
    }

    /// The present value.
    pub(super) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }
}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("section", &self.section).field("files", &self.files).finish_non_exhaustive()
    }
}

/// Something that follows its files.
pub trait Rotate: fmt::Debug + Send + Sync {
    /// Looks at the files, and replaces the value if they have changed and are good. Says so in the log and in a metric
    /// either way. Blocks.
    fn look(&self, metrics: &Metrics);
}

impl<T: Send + Sync> Rotate for Kept<T> {
    fn look(&self, metrics: &Metrics) {
        let prints = prints(&self.files);
        // A panic while it was held left one list or the other, and both are whole.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == prints {
            return;
        }
        *seen = prints;
        match (self.make)() {
            Ok(value) => {
                self.current.store(Arc::new(value));
                metrics.rotated(self.section, "done");
                tracing::info!(section = self.section, files = ?self.files, "changed files are in use");
            }
            Err(error) => {
                metrics.rotated(self.section, "refused");
                let section = self.section;
                tracing::error!(section, %error, "changed files cannot be used: what was in use stays in use");
            }
        }
    }
}

/// Looks at everybody's files each second, for ever. The owner of the task ends it.
pub async fn rotate(all: Vec<Arc<dyn Rotate>>, metrics: Arc<Metrics>) -> Infallible {
    let all: Arc<[_]> = all.into();
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (all, metrics) = (Arc::clone(&all), Arc::clone(&metrics));
        // Files may be on a network, which may take its time.
        let looked = tokio::task::spawn_blocking(move || all.iter().for_each(|each| each.look(&metrics)));
        if looked.await.is_err() {
            tracing::error!("looking at the files of certificates panicked");
        }
    }
}

fn prints(files: &[PathBuf]) -> Prints {
    let print = |file: &PathBuf| {
        let at = std::fs::metadata(file).ok()?;
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let (modified, changed) = (nanos(at.mtime(), at.mtime_nsec()), nanos(at.ctime(), at.ctime_nsec()));
        Some([at.dev().into(), at.ino().into(), at.size().into(), modified, changed])
    };
    files.iter().map(print).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// The file's text, which may not be empty.
    fn text_of(file: &Path) -> Kept<String> {
        let path = file.to_owned();
        let make = move || {
            let text = fs::read_to_string(&path).map_err(|source| LoadError::Read { file: path.clone(), source })?;
            if text.is_empty() { Err(LoadError::TooLarge(path.clone())) } else { Ok(text) }
        };
        Kept::new("test", vec![file.to_owned()], make).unwrap()
    }

    fn looks(kept: &Kept<String>, metrics: &Metrics) -> (String, bool, bool) {
        kept.look(metrics);
        let page = metrics.page();
        let counted = |result: &str, count: u32| {
            page.contains(&format!("snapgate_rotations_total{{section=\"test\",result=\"{result}\"}} {count}"))
        };
        (kept.current().to_string(), counted("done", 1), counted("refused", 1))
    }

    #[test]
    fn a_changed_file_is_used_and_a_wrong_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "old").unwrap();
        let (kept, metrics) = (text_of(&file), Metrics::new());
        assert_eq!(looks(&kept, &metrics), ("old".into(), false, false), "nothing has changed");
        fs::write(&file, "new and longer").unwrap();
        assert_eq!(looks(&kept, &metrics), ("new and longer".into(), true, false));
        fs::write(&file, "").unwrap();
        assert_eq!(looks(&kept, &metrics), ("new and longer".into(), true, true));
        assert_eq!(looks(&kept, &metrics), ("new and longer".into(), true, true), "it is refused once");
        fs::remove_file(&file).unwrap();
        kept.look(&metrics);
        assert_eq!(*kept.current(), "new and longer", "a file that is gone changes nothing");
    }

    #[test]
    fn a_link_that_points_elsewhere_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["1", "2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("a"), version).unwrap();
        }
        symlink("1", dir.path().join("..data")).unwrap();
        symlink("..data/a", dir.path().join("a")).unwrap();
        let (kept, metrics) = (text_of(&dir.path().join("a")), Metrics::new());
        symlink("2", dir.path().join("..next")).unwrap();
        fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
        assert_eq!(looks(&kept, &metrics), ("2".into(), true, false));
    }
}

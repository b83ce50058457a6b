//! What is said again and again is said a few times, and then how often it was not.
//!
//! A disk that is full, a pod that is gone: the same line would come forty times a second and bury all others. Only `warn`
//! and `error` are cut short: what began or ended is worth a line each time, and who asks for `debug` wants all of it.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Write as _};
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::Context;

/// The same line, so often in one window.
const LINES_PER_WINDOW: u32 = 5;

/// From a line to when it may be said again.
const WINDOW: Duration = Duration::from_secs(10);

/// What is counted one by one at a time. Beyond, a place in the code is counted as one, whatever it speaks of.
const SUBJECTS_MAX: usize = 1_024;

/// The fields that tell what a line is about: two pods that are gone are two things to say.
const SUBJECTS: [&str; 7] = ["pod", "exit", "section", "token", "file", "subject", "mistake"];

/// A message, and what it is about, in the line that closes a window: no longer than this.
const TEXT_BYTES_MAX: usize = 256;

/// Marks the lines of this module, which are not cut short themselves.
const TARGET: &str = "snapgate::telemetry::log::repeats";

/// Whatever was said in the windows that are open.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<u64, Window>>);

#[derive(Debug)]
struct Window {
    began: Instant,
    level: Level,
    said: u32,
    suppressed: u64,
    /// The message and what it is about; kept once something is suppressed.
    text: String,
}

impl Repeats {
    /// Whether it may be said once more.
    fn admit(&self, event: &Event<'_>) -> bool {
        let metadata = event.metadata();
        let mut about = Subject { hasher: DefaultHasher::new(), text: None };
        metadata.callsite().hash(&mut about.hasher);
        let place = about.hasher.finish();
        event.record(&mut about);
        let mut key = about.hasher.finish();
        let mut windows = self.locked();
        if windows.len() >= SUBJECTS_MAX && !windows.contains_key(&key) {
            key = place;
        }
        let window = windows.entry(key).or_insert_with(|| Window {
            began: Instant::now(),
            level: *metadata.level(),
            said: 0,
            suppressed: 0,
            text: String::new(),
        });
        if window.said < LINES_PER_WINDOW {
            window.said += 1;
            return true;
        }
        if window.suppressed == 0 {
            let mut about = Subject { hasher: DefaultHasher::new(), text: Some(String::new()) };
            event.record(&mut about);
            window.text = about.text.unwrap_or_default();
        }
        window.suppressed += 1;
        false
    }

    /// Ends the windows that have been open long enough, and says what was not said in them.
    pub(super) fn close_old(&self) {
        let now = Instant::now();
        self.close(|window| now.saturating_duration_since(window.began) >= WINDOW);
    }

    /// Ends all windows.
    pub(super) fn close_all(&self) {
        self.close(|_| true);
    }

    fn close(&self, is_over: impl Fn(&Window) -> bool) {
        let over: Vec<_> = self.locked().extract_if(|_, window| is_over(window)).map(|(_, window)| window).collect();
        for Window { began, level, suppressed, text, .. } in over.into_iter().filter(|window| window.suppressed > 0) {
            let seconds = began.elapsed().as_secs_f32().round();
            if level == Level::ERROR {
                tracing::error!(target: TARGET, suppressed, seconds, text, "the same was said more often than is shown");
            } else {
                tracing::warn!(target: TARGET, suppressed, seconds, text, "the same was said more often than is shown");
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<u64, Window>> {
        // A panic between two operations on a map leaves a whole map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what an event is about; its text only on demand.
struct Subject {
    hasher: DefaultHasher,
    text: Option<String>,
}

impl Visit for Subject {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let is_message = field.name() == "message";
        if !is_message && !SUBJECTS.contains(&field.name()) {
            return;
        }
        match &mut self.text {
            Some(text) => {
                let shown = if is_message { format!("{value:?}") } else { format!(" [{}: {value:?}]", field.name()) };
                text.push_str(&shown[..shown.floor_char_boundary(TEXT_BYTES_MAX.saturating_sub(text.len()))]);
            }
            None if !is_message => {
                field.name().hash(&mut self.hasher);
                // Hashing takes whatever comes.
                write!(Hashed(&mut self.hasher), "{value:?}").ok();
            }
            None => {}
        }
    }
}

/// Formats into a hash, without a text on the way.
struct Hashed<'a>(&'a mut DefaultHasher);

impl fmt::Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// The levels that are wanted, and of these not the same again and again.
pub(super) struct Limited {
    filter: Targets,
    repeats: Arc<Repeats>,
}

impl Limited {
    pub(super) fn new(filter: Targets, repeats: Arc<Repeats>) -> Self {
        Self { filter, repeats }
    }
}

/// For all layers at once: what a filter of a single layer refuses of an event stays with the thread until its next one.
impl<S: Subscriber> Layer<S> for Limited {
    /// A level is wanted or not, once and for all: what is not costs a look at one number.
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        Layer::<S>::register_callsite(&self.filter, metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>, cx: Context<'_, S>) -> bool {
        Layer::<S>::enabled(&self.filter, metadata, cx)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Layer::<S>::max_level_hint(&self.filter)
    }

    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::WARN || metadata.target() == TARGET || self.repeats.admit(event)
    }
}

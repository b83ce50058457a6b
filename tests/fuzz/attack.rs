//! Replays, mutates, watches: what is the same for every parser.

use std::any::Any;
use std::collections::{HashSet, VecDeque};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::mutate::Mutator;

/// How long mutations go on in an ordinary run.
const SECONDS: u64 = 1;

/// An input that takes longer is a hang. Parsers take some milliseconds at most; the rest is for a machine that is busy.
const HANG: Duration = Duration::from_secs(20);

/// Inputs that mutations start from at most; beyond it the oldest of those that were found give way.
const POOL_MAX: usize = 4096;

/// Kinds of input that are told apart at most, so that a run of any length takes bounded memory.
const KINDS_MAX: usize = 1 << 20;

/// How often shrinking tries; it ends sooner when nothing can be left out.
const SHRINKS_MAX: usize = 4000;

/// One parser, and what is known of what it reads.
pub(crate) struct Parser {
    /// Its folder below `tests/corpus`.
    pub(crate) name: &'static str,
    /// Files below `tests/fixtures` that are inputs, too.
    pub(crate) fixtures: &'static [&'static str],
    /// Pieces of the format: mutations put them in.
    pub(crate) words: &'static [&'static str],
    /// Longer inputs are not tried.
    pub(crate) bytes_max: usize,
    /// Reads any bytes whatever, and panics if something does not hold that always has to. Answers what kind of input it was, in
    /// any words: the first of each kind is mutated further, which leads deep into the parser without looking inside it.
    pub(crate) read: fn(&[u8]) -> String,
}

/// Replays, then mutates for as long as the environment says.
pub(crate) fn run(parser: &'static Parser) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    let time = Duration::from_secs(number("SNAPGATE_FUZZ_SECONDS").unwrap_or(SECONDS));
    let mut attack = Attack::new(parser, Watchdog::start(parser));
    let seeds = attack.replay();
    let mut mutator = Mutator::new(number("SNAPGATE_FUZZ_SEED").unwrap_or(1), parser.words, parser.bytes_max);
    let (begun, mut tried) = (Instant::now(), 0u64);
    while begun.elapsed() < time {
        let input = mutator.next(attack.pool.make_contiguous());
        attack.attempt(&input);
        tried += 1;
    }
    eprintln!("{}: {tried} mutations of {seeds} seeds, {} kinds of input", parser.name, attack.kinds.len());
}

struct Attack {
    parser: &'static Parser,
    watchdog: Watchdog,
    pool: VecDeque<Vec<u8>>,
    kinds: HashSet<u64>,
}

impl Attack {
    fn new(parser: &'static Parser, watchdog: Watchdog) -> Self {
        Self { parser, watchdog, pool: VecDeque::new(), kinds: HashSet::new() }
    }

    /// Reads what once broke it, then the rest of the corpus. All of it is mutated later.
    fn replay(&mut self) -> usize {
        let folder = corpus(self.parser);
        let mut files = files(&folder.join("regressions"));
        files.extend(self::files(&folder));
        files.extend(self.parser.fixtures.iter().map(|name| tests().join("fixtures").join(name)));
        for file in &files {
            let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            if let Err(panic) = self.watchdog.watched(self.parser, &bytes) {
                panic!("{}: {}", file.display(), words_of(&*panic));
            }
            self.pool.push_back(bytes);
        }
        assert!(!files.is_empty(), "{} has no seed", folder.display());
        files.len()
    }

    fn attempt(&mut self, input: &[u8]) {
        match self.watchdog.watched(self.parser, input) {
            Ok(kind) => {
                if self.kinds.len() < KINDS_MAX && self.kinds.insert(fingerprint(&kind)) {
                    if self.pool.len() >= POOL_MAX {
                        self.pool.pop_front();
                    }
                    self.pool.push_back(input.to_vec());
                }
            }
            Err(panic) => {
                let input = self.shrunk(input.to_vec());
                let file = keep(self.parser, "panic", &input);
                panic!("{} panics ({}): {}", self.parser.name, file.display(), words_of(&*panic));
            }
        }
    }

    /// Leaves out of an input that panics what it panics without: halves, quarters, and so on to single bytes.
    fn shrunk(&self, mut input: Vec<u8>) -> Vec<u8> {
        let (mut length, mut tries) = (input.len() / 2, 0);
        while length > 0 {
            let mut at = 0;
            while at < input.len() && tries < SHRINKS_MAX {
                let mut shorter = input.clone();
                shorter.drain(at..(at + length).min(input.len()));
                tries += 1;
                match self.watchdog.watched(self.parser, &shorter) {
                    Err(_) => input = shorter,
                    Ok(_) => at += length,
                }
            }
            length /= 2;
        }
        input
    }
}

/// Notices when one input takes for ever, which nobody else can in the thread that reads it.
struct Watchdog {
    current: Arc<Mutex<Vec<u8>>>,
    alive: Arc<AtomicBool>,
    /// Dropped at the end, which ends the thread.
    _ended: SyncSender<()>,
}

impl Watchdog {
    fn start(parser: &'static Parser) -> Self {
        let (current, alive) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::new(AtomicBool::new(true)));
        let (sender, ended) = sync_channel(0);
        let watched = (Arc::clone(&current), Arc::clone(&alive));
        let thread = std::thread::Builder::new().name(format!("watches {}", parser.name));
        thread.spawn(move || watch(parser, &watched.0, &watched.1, &ended)).expect("a thread can be started");
        Self { current, alive, _ended: sender }
    }

    fn watched(&self, parser: &Parser, input: &[u8]) -> Result<String, Box<dyn Any + Send>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clear();
        current.extend_from_slice(input);
        drop(current);
        self.alive.store(true, Ordering::Release);
        catch_unwind(AssertUnwindSafe(|| (parser.read)(input)))
    }
}

fn watch(parser: &Parser, current: &Mutex<Vec<u8>>, alive: &AtomicBool, ended: &Receiver<()>) {
    while ended.recv_timeout(HANG) == Err(RecvTimeoutError::Timeout) {
        if !alive.swap(false, Ordering::Acquire) {
            let file = keep(parser, "hang", &current.lock().unwrap_or_else(PoisonError::into_inner));
            eprintln!("{} hangs: {}", parser.name, file.display());
            std::process::abort();
        }
    }
}

/// Stands for a kind of input in little memory.
fn fingerprint(kind: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    kind.hash(&mut hasher);
    hasher.finish()
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

/// Writes an input where the next run finds it first.
fn keep(parser: &Parser, what: &str, input: &[u8]) -> PathBuf {
    let folder = corpus(parser).join("regressions");
    let file = folder.join(format!("{what}-{}", &blake3::hash(input).to_hex()[..16]));
    let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, input));
    written.unwrap_or_else(|error| panic!("{} cannot be written ({error}): {input:?}", file.display()));
    file
}

fn tests() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

fn corpus(parser: &Parser) -> PathBuf {
    tests().join("corpus").join(parser.name)
}

/// The files of a folder, sorted by name; none if there is no such folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.expect("the corpus can be read").path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
}

//! What is wrong with a configuration, where it was written, and what was probably meant.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// How far a misspelt name may be from a known one to be taken for it, in edits per character of the known one.
const EDITS_PER_CHARACTER_MAX: f64 = 0.34;

/// Where a value was written. Later ones win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nowhere: the key's default.
    Default,
    /// In the file, with its line from 1; line 0 is the file as a whole.
    File(Arc<str>, usize),
    /// In an environment variable of this name.
    Environment(String),
    /// In a flag of this name, such as `--listen`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(name, 0) => f.write_str(name),
            Self::File(name, line) => write!(f, "{name}:{line}"),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A text that is read with TOML's parser: it knows the origin of each of its parts.
#[derive(Debug)]
pub(super) enum Place<'a> {
    /// A whole file: every part has its line. Where lines end is known beforehand: a fleet has thousands of parts.
    File { name: Arc<str>, line_ends: Vec<usize> },
    /// A value from elsewhere: every part has the origin of the whole.
    Value(&'a Origin),
}

impl Place<'_> {
    /// A whole file.
    pub(super) fn file(name: &str, text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self::File { name: name.into(), line_ends: ends.map(|(at, _)| at).collect() }
    }

    /// The origin of the bytes in this span.
    pub(super) fn at(&self, span: Range<usize>) -> Origin {
        match self {
            Self::File { name, line_ends } => {
                Origin::File(Arc::clone(name), 1 + line_ends.partition_point(|end| *end < span.start))
            }
            Self::Value(origin) => (*origin).clone(),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where it was written.
    pub origin: Origin,
    /// The key it is about, if it is about a known one.
    pub key: Option<&'static str>,
    /// What is wrong and what to do. Never holds a secret.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.key) {
            (Origin::Default, Some(key)) => write!(f, "{key}: {}", self.text),
            (Origin::Default, None) => f.write_str(&self.text),
            (origin, Some(key)) => write!(f, "{origin}: {key}: {}", self.text),
            (origin, None) => write!(f, "{origin}: {}", self.text),
        }
    }
}

/// Everything that is wrong with a configuration, in the order of the file, then environment, then flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// All of them. Never empty when [`super::Config::load`] answers with it.
    pub fn list(&self) -> &[Mistake] {
        &self.0
    }

    pub(super) fn add(&mut self, origin: Origin, key: Option<&'static str>, text: impl Into<String>) {
        self.0.push(Mistake { origin, key, text: text.into() });
    }

    pub(super) fn about(&self, key: &str) -> bool {
        self.0.iter().any(|mistake| mistake.key == Some(key))
    }

    /// The value if nothing was wrong, else everything that was.
    pub(super) fn or<T>(mut self, value: impl FnOnce() -> T) -> Result<T, Self> {
        if self.0.is_empty() {
            return Ok(value());
        }
        self.0.sort();
        self.0.dedup();
        Err(self)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "{mistake}")?;
        }
        let count = self.0.len();
        write!(f, "{count} mistake{} in the configuration: nothing was started", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for Mistakes {}

/// `: did you mean …?`, if one of the known names is close to this one; else nothing.
pub(super) fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let last = |path: &'a str| path.rsplit_once('.').map_or(path, |(_, last)| last);
    let distance = |known: &'a str| {
        // The right key in the wrong section is as good as a spelling mistake.
        let moved = if last(known) == name.rsplit_once('.').map_or(name, |(_, last)| last) { 1 } else { usize::MAX };
        strsim::damerau_levenshtein(&name.to_ascii_lowercase(), &known.to_ascii_lowercase()).min(moved)
    };
    let nearest = known.map(|known| (distance(known), known)).min();
    match nearest {
        Some((edits, known)) if edits as f64 <= known.len() as f64 * EDITS_PER_CHARACTER_MAX => {
            format!(": did you mean `{known}`?")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_proposed() {
        let known = ["limits.in_flight", "limits.headers", "fleet.poll_timeout", "listen"];
        let cases = [
            ("limits.inflight", ": did you mean `limits.in_flight`?"),
            ("limit.in_flight", ": did you mean `limits.in_flight`?"),
            ("Limits.In_Flight", ": did you mean `limits.in_flight`?"),
            ("timeouts.poll_timeout", ": did you mean `fleet.poll_timeout`?"),
            ("in_flight", ": did you mean `limits.in_flight`?"),
            ("lisetn", ": did you mean `listen`?"),
            ("colour", ""),
        ];
        for (name, proposal) in cases {
            assert_eq!(did_you_mean(name, known.into_iter()), proposal, "{name}");
        }
    }

    #[test]
    fn lines_count_from_one() {
        let place = Place::file("f", "a\nb\nc");
        let lines: Vec<_> = [0, 1, 2, 4, 99].map(|at| place.at(at..at).to_string()).into();
        assert_eq!(lines, ["f:1", "f:1", "f:2", "f:3", "f:3"]);
    }
}

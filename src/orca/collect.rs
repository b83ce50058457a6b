//! Decides entry by entry what of a report is kept. Every format ends here, so that all are checked alike.

use super::quantities::is_share;
use super::{KEY_BYTES_MAX, Read, Rules};
use crate::snapshot::load_report::{METRICS_MAX, ReportMetric};
use crate::snapshot::{LoadReport, ReportFormat};

/// What is wrong with a report, or with an entry of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Longer than [`REPORT_BYTES_MAX`](super::REPORT_BYTES_MAX): it is not looked at.
    TooLarge,
    /// More than [`METRICS_MAX`] metrics.
    TooManyMetrics,
    /// No UTF-8.
    NotText,
    /// None of the three formats.
    UnknownFormat,
    /// The header for binary reports has no value.
    Empty,
    /// No base64 of the standard alphabet.
    NotBase64,
    /// Not the message.
    NotProtobuf,
    /// Not JSON, or no object.
    NotJson,
    /// An entry without a name or without a value.
    NoValue,
    /// A value that is no number.
    NotANumber,
    /// A value that is infinite, negative or no number by its own account, or above 1 where that is all there is.
    OutOfRange,
    /// A metric that the format does not have.
    UnknownName,
    /// The key of a metric is empty, too long, or has characters that no name has.
    BadKey,
    /// The same metric again.
    Duplicate,
    /// The same header again: its first line was read.
    RepeatedHeader,
}

impl Flaw {
    /// All there are.
    pub const ALL: [Self; 15] = [
        Self::TooLarge,
        Self::TooManyMetrics,
        Self::NotText,
        Self::UnknownFormat,
        Self::Empty,
        Self::NotBase64,
        Self::NotProtobuf,
        Self::NotJson,
        Self::NoValue,
        Self::NotANumber,
        Self::OutOfRange,
        Self::UnknownName,
        Self::BadKey,
        Self::Duplicate,
        Self::RepeatedHeader,
    ];

    /// Its name in metrics and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::TooManyMetrics => "too_many_metrics",
            Self::NotText => "not_text",
            Self::UnknownFormat => "unknown_format",
            Self::Empty => "empty",
            Self::NotBase64 => "not_base64",
            Self::NotProtobuf => "not_protobuf",
            Self::NotJson => "not_json",
            Self::NoValue => "no_value",
            Self::NotANumber => "not_a_number",
            Self::OutOfRange => "out_of_range",
            Self::UnknownName => "unknown_name",
            Self::BadKey => "bad_key",
            Self::Duplicate => "duplicate",
            Self::RepeatedHeader => "repeated_header",
        }
    }

    /// Whether a report can be read in spite of it.
    pub fn is_of_an_entry(self) -> bool {
        self as usize >= Self::NoValue as usize
    }
}

/// How often each flaw was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws([u16; Flaw::ALL.len()]);

impl Flaws {
    /// One more. A report is too short to have more than a count can hold.
    pub(super) fn add(&mut self, flaw: Flaw) {
        self.0[flaw as usize] += 1;
    }

    /// Those that were met, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Flaw, u64)> {
        Flaw::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0).map(|(flaw, count)| (flaw, count.into()))
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; Flaw::ALL.len()]
    }
}

/// Fields of the message that are one number.
pub(super) const NUMBERS: [&str; 5] =
    ["application_utilization", "cpu_utilization", "eps", "mem_utilization", "rps_fractional"];

/// Fields of the message that are numbers by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    NamedMetrics,
    Utilization,
    RequestCost,
}

impl Group {
    const fn prefix(self) -> &'static str {
        match self {
            Self::NamedMetrics => "",
            Self::Utilization => "utilization.",
            Self::RequestCost => "request_cost.",
        }
    }
}

/// A report that is being read.
#[derive(Debug)]
pub(super) struct Collector {
    rules: Rules,
    report: LoadReport,
    pub(super) flaws: Flaws,
    /// That of the first entry that was dropped.
    first: Option<Flaw>,
}

impl Collector {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, report: LoadReport::default(), flaws: Flaws::default(), first: None }
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    /// An entry that cannot be kept; by strict rules that is the end.
    pub(super) fn drop_entry(&mut self, flaw: Flaw) -> Result<(), Flaw> {
        if self.rules == Rules::Strict {
            return Err(flaw);
        }
        self.first.get_or_insert(flaw);
        self.flaws.add(flaw);
        Ok(())
    }

    /// One of [`NUMBERS`], or `rps`, which is one in old messages.
    pub(super) fn number(&mut self, name: &'static str, value: f64) -> Result<(), Flaw> {
        let most = if name == "mem_utilization" { 1.0 } else { f64::MAX };
        if !(0.0..=most).contains(&value) {
            return self.drop_entry(Flaw::OutOfRange);
        }
        self.keep(Group::RequestCost, name.into(), value)
    }

    /// A metric by its key.
    pub(super) fn metric(&mut self, group: Group, key: &str, value: f64) -> Result<(), Flaw> {
        let plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) || !plain {
            return self.drop_entry(Flaw::BadKey);
        }
        // A share above 1 is a percentage, or nonsense: it is never divided by a guess.
        let share = match group {
            Group::Utilization => true,
            Group::NamedMetrics => self.rules == Rules::Lenient && is_share(key),
            Group::RequestCost => false,
        };
        let most = if share { 1.0 } else { f64::MAX };
        if !(0.0..=most).contains(&value) {
            return self.drop_entry(Flaw::OutOfRange);
        }
        self.keep(group, [group.prefix(), key].concat().into(), value)
    }

    fn keep(&mut self, group: Group, name: Box<str>, value: f64) -> Result<(), Flaw> {
        // Without the sign that a zero may have.
        let value = value + 0.0;
        let metrics = match group {
            Group::NamedMetrics => &mut self.report.named_metrics,
            Group::Utilization | Group::RequestCost => &mut self.report.other_metrics,
        };
        if let Some((_, kept)) = metrics.iter_mut().find(|(known, _)| *known == name) {
            if self.rules == Rules::Strict {
                return Err(Flaw::Duplicate);
            }
            // A vLLM of several engines reports each of them: the fullest one counts.
            *kept = kept.max(value);
            self.flaws.add(Flaw::Duplicate);
            return Ok(());
        }
        metrics.push((name, value));
        if self.report.len() > METRICS_MAX { Err(Flaw::TooManyMetrics) } else { Ok(()) }
    }

    /// The report, if anything is left of it.
    pub(super) fn finish(mut self, format: ReportFormat) -> Result<Read, Flaw> {
        if let Some(first) = self.first.filter(|_| self.report.is_empty()) {
            return Err(first);
        }
        let by_name = |(a, _): &ReportMetric, (b, _): &ReportMetric| a.cmp(b);
        self.report.named_metrics.sort_unstable_by(by_name);
        self.report.other_metrics.sort_unstable_by(by_name);
        Ok(Read { format, report: self.report, flaws: self.flaws })
    }
}

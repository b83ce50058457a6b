//! Decides entry by entry what of a report is kept. Every format ends here, so that all are checked alike.

use super::quantities::is_share;
use super::{KEY_BYTES_MAX, Read, Rules};
use crate::snapshot::load_report::{Flaw, Flaws, METRICS_MAX, ReportMetric};
use crate::snapshot::{LoadReport, ReportFormat};

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
    pub(super) fn finish(mut self, header: &'static str, format: ReportFormat) -> Result<Read, Flaw> {
        if let Some(first) = self.first.filter(|_| self.report.is_empty()) {
            return Err(first);
        }
        let by_name = |(a, _): &ReportMetric, (b, _): &ReportMetric| a.cmp(b);
        self.report.named_metrics.sort_unstable_by(by_name);
        self.report.other_metrics.sort_unstable_by(by_name);
        Ok(Read { header, format, report: self.report, flaws: self.flaws })
    }
}

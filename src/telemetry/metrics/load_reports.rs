//! What is counted of load reports, those of targets and those for clients. On the data path, so without a lock.

use super::number::Counter;
use super::page::Page;
use crate::snapshot::ReportFormat;
use crate::snapshot::load_report::{Flaw, Flaws};
use crate::telemetry::names;

/// Why a client that asked for a load report got none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untold {
    /// It is not one of those that may.
    NotAllowed,
    /// It asked for a format that there is not.
    UnknownFormat,
    /// Nothing fresh was known of the target when it was chosen, or nothing that has room.
    NothingKnown,
}

impl Untold {
    const ALL: [Self; 3] = [Self::NotAllowed, Self::UnknownFormat, Self::NothingKnown];

    const fn name(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::UnknownFormat => "unknown_format",
            Self::NothingKnown => "nothing_known",
        }
    }
}

/// Counts load reports.
#[derive(Debug, Default)]
pub struct LoadReports {
    read: [Counter; ReportFormat::ALL.len()],
    refused: [Counter; Flaw::ALL.len()],
    dropped: [Counter; Flaw::ALL.len()],
    told: [Counter; ReportFormat::ALL.len()],
    cut: Counter,
    untold: [Counter; Untold::ALL.len()],
}

impl LoadReports {
    /// A target's report was read, but for these entries.
    pub fn read(&self, format: ReportFormat, flaws: Flaws) {
        self.read[format as usize].inc();
        for (flaw, count) in flaws.iter() {
            self.dropped[flaw as usize].inc_by(count);
        }
    }

    /// A target's report was of no use.
    pub fn refused(&self, flaw: Flaw) {
        self.refused[flaw as usize].inc();
    }

    /// A client was sent a report, without so many entries that had no room.
    pub fn told(&self, format: ReportFormat, dropped: usize) {
        self.told[format as usize].inc();
        self.cut.inc_by(u64::from(dropped > 0));
    }

    /// A client was sent none.
    pub fn untold(&self, why: Untold) {
        self.untold[why as usize].inc();
    }

    pub(super) fn write(&self, page: &mut Page) {
        let formats = ReportFormat::ALL.map(|format| [format.name()]);
        let flaws = Flaw::ALL.map(|flaw| [flaw.name()]);
        let untold = Untold::ALL.map(|why| [why.name()]);
        let mut family = |definition, labels: &[[&'static str; 1]], counters: &[Counter]| {
            page.family(definition, labels.iter().zip(counters).map(|(labels, counter)| (&labels[..], counter.get())));
        };
        family(&names::LOAD_REPORTS, &formats, &self.read);
        family(&names::LOAD_REPORTS_REFUSED, &flaws, &self.refused);
        // Only these are of entries.
        let of_entries = Flaw::ALL.iter().position(|flaw| flaw.is_of_an_entry()).unwrap_or_default();
        family(&names::LOAD_REPORT_ENTRIES_DROPPED, &flaws[of_entries..], &self.dropped[of_entries..]);
        family(&names::LOAD_REPORTS_TOLD, &formats, &self.told);
        family(&names::LOAD_REPORTS_UNTOLD, &untold, &self.untold);
        page.single(&names::LOAD_REPORTS_CUT, self.cut.get());
    }
}

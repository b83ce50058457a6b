//! Numbers that stand for names in the file. They stand for ever: a new name gets a new number and a new version of the
//! schema, so that an older binary refuses the file instead of misreading it. Views show the names.

use crate::ledger::DropReason;
use crate::snapshot::{
    Ending, Fallback, Fault, Freshness, Health, Operation, Policy, Reason, ReportFormat, ReportPhase, Source,
};

/// A closed set of names that the file keeps as numbers.
pub(super) trait Coded: Copy + 'static {
    /// All there are.
    const ALL: &'static [Self];

    /// Its number in the file.
    fn code(self) -> i64;

    /// Its name in views; the document's.
    fn name(self) -> &'static str;

    /// From its number.
    fn from_code(code: i64) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.code() == code)
    }
}

/// The SQL expression that shows the names of a column of codes.
pub(super) fn name_sql<T: Coded>(column: &str) -> String {
    let mut sql = format!("CASE {column}");
    for value in T::ALL {
        sql.push_str(&format!(" WHEN {} THEN '{}'", value.code(), value.name()));
    }
    sql.push_str(" END");
    sql
}

/// The path of nearly every request for an operation: it is not stored.
pub(super) const fn usual_path(operation: Operation) -> Option<&'static str> {
    match operation {
        Operation::Chat => Some("/v1/chat/completions"),
        Operation::TextCompletion => Some("/v1/completions"),
        Operation::Embeddings => Some("/v1/embeddings"),
        Operation::Other => None,
    }
}

impl Coded for Ending {
    const ALL: &'static [Self] = &Self::ALL;

    fn code(self) -> i64 {
        match self {
            Self::Completed => 0,
            Self::ClientDisconnected => 1,
            Self::UpstreamReset => 2,
            Self::UpstreamTimeout => 3,
            Self::NoTarget => 4,
            Self::Rejected => 5,
            Self::Overloaded => 6,
            Self::Shutdown => 7,
            Self::Internal => 8,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for Fault {
    const ALL: &'static [Self] = &[Self::Client, Self::Target, Self::Gateway];

    fn code(self) -> i64 {
        match self {
            Self::Client => 0,
            Self::Target => 1,
            Self::Gateway => 2,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for Policy {
    const ALL: &'static [Self] = &Self::ALL;

    fn code(self) -> i64 {
        match self {
            Self::RoundRobin => 0,
            Self::LeastRequest => 1,
            Self::Random => 2,
            Self::LeastQueue => 3,
            Self::LeastKvCache => 4,
            Self::PowerOfTwo => 5,
            Self::PrefixAffinity => 6,
            Self::SessionAffinity => 7,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for Reason {
    const ALL: &'static [Self] = &Self::ALL;

    fn code(self) -> i64 {
        match self {
            Self::OnlyCandidate => 0,
            Self::NextInTurn => 1,
            Self::LowestScore => 2,
            Self::TieBrokenByDraw => 3,
            Self::Drawn => 4,
            Self::Affinity => 5,
            Self::AffinityOverflow => 6,
            Self::Forced => 7,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for Fallback {
    const ALL: &'static [Self] = &Self::ALL;

    fn code(self) -> i64 {
        match self {
            Self::NoFreshState => 0,
            Self::NoPrompt => 1,
            Self::NoSession => 2,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for Operation {
    const ALL: &'static [Self] = &[Self::Chat, Self::TextCompletion, Self::Embeddings, Self::Other];

    fn code(self) -> i64 {
        match self {
            Self::Chat => 0,
            Self::TextCompletion => 1,
            Self::Embeddings => 2,
            Self::Other => 3,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for Source {
    const ALL: &'static [Self] = &Self::ALL;

    fn code(self) -> i64 {
        match self {
            Self::Scrape => 0,
            Self::Orca => 1,
            Self::Dcgm => 2,
            Self::Gateway => 3,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for ReportFormat {
    const ALL: &'static [Self] = &Self::ALL;

    fn code(self) -> i64 {
        match self {
            Self::Text => 0,
            Self::Json => 1,
            Self::Bin => 2,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for ReportPhase {
    const ALL: &'static [Self] = &[Self::ResponseHead, Self::ResponseEnd];

    fn code(self) -> i64 {
        match self {
            Self::ResponseHead => 0,
            Self::ResponseEnd => 1,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for Freshness {
    const ALL: &'static [Self] = &Self::ALL;

    fn code(self) -> i64 {
        match self {
            Self::Fresh => 0,
            Self::Stale => 1,
            Self::Missing => 2,
            Self::Unsupported => 3,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl Coded for Health {
    const ALL: &'static [Self] = &[Self::Unknown, Self::Healthy, Self::Unhealthy];

    fn code(self) -> i64 {
        match self {
            Self::Unknown => 0,
            Self::Healthy => 1,
            Self::Unhealthy => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl Coded for DropReason {
    const ALL: &'static [Self] = &Self::ALL;

    fn code(self) -> i64 {
        match self {
            Self::QueueFull => 0,
            Self::StoreFailed => 1,
            Self::Shutdown => 2,
            Self::RefusedFlood => 3,
        }
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    fn check<T: Coded + PartialEq + Debug + serde::Serialize>() {
        check_codes::<T>();
        for value in T::ALL {
            assert_eq!(serde_json::to_value(value).unwrap(), value.name(), "views say what the document says");
        }
    }

    fn check_codes<T: Coded + PartialEq + Debug>() {
        for value in T::ALL {
            assert_eq!(T::from_code(value.code()), Some(*value));
        }
        assert_eq!(T::from_code(T::ALL.len() as i64), None);
    }

    #[test]
    fn codes_are_distinct_and_come_back_and_names_are_the_documents() {
        check::<Ending>();
        check::<Fault>();
        check::<Policy>();
        check::<Reason>();
        check::<Fallback>();
        check::<Source>();
        check::<Freshness>();
        check_codes::<ReportFormat>();
        check_codes::<ReportPhase>();
        check::<Health>();
        check_codes::<Operation>();
        check_codes::<DropReason>();
    }

    #[test]
    fn the_expression_shows_names() {
        let sql = format!("SELECT {}", name_sql::<Fault>("1"));
        let name: String =
            rusqlite::Connection::open_in_memory().unwrap().query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(name, "target");
    }
}

//! Which records a list is to have: one set of conditions, for records in memory and for rows of the store alike.

use prost::Message as _;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::alias::Alias;
use super::decode::Known;
use super::rest::Rest;
use super::row::{Columns, RowError};
use crate::snapshot::{Ending, Moment, Record, SnapshotId, Tenant, TraceId};

/// Conditions, all of which a record has to meet. Without any, every record does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Issued then or later.
    pub since: Option<Moment>,
    /// Issued before.
    pub until: Option<Moment>,
    /// The model that was asked for.
    pub model: Option<String>,
    /// The target whose answer was delivered or that was tried last; the chosen one if none was tried yet.
    pub target: Option<String>,
    /// One of these statuses; from the first of a pair to its second.
    pub statuses: Vec<(u16, u16)>,
    /// One of these endings.
    pub endings: Vec<Ending>,
    /// Whether it has ended.
    pub ended: Option<bool>,
    /// The tenant, as it is displayed.
    pub tenant: Option<String>,
    /// Labels with their values.
    pub labels: Vec<(String, String)>,
    /// It took so many microseconds, or longer.
    pub min_duration_us: Option<u64>,
    /// Its trace.
    pub trace: Option<TraceId>,
    /// The client's own ID for it.
    pub client_request_id: Option<String>,
}

/// What conditions are about.
struct Facts<'a> {
    issued_at: Moment,
    trace: u128,
    client_request_id: Option<&'a str>,
    tenant: Option<Tenant>,
    model: Option<&'a str>,
    target: Option<&'a str>,
    status: Option<u16>,
    ending: Option<Ending>,
    end_offset_us: Option<u64>,
}

impl Filter {
    /// Whether a record in memory meets the conditions.
    pub fn accepts(&self, record: &Record) -> bool {
        let (issued, outcome) = (&record.issued, record.outcome());
        let request = &issued.request;
        let chosen = issued.decision.as_ref().and_then(|decision| decision.candidates.first());
        let served = outcome.and_then(|outcome| outcome.target());
        let facts = Facts {
            issued_at: issued.issued_at,
            trace: issued.trace.trace_id.as_u128(),
            client_request_id: request.client_request_id.as_deref(),
            tenant: request.tenant,
            model: request.model.as_deref(),
            target: served.or(chosen.as_ref().map(|chosen| &chosen.sample.target)).map(|target| &*target.name),
            status: match outcome {
                Some(outcome) => outcome.status,
                None => record.progress.seen_head().map(|(status, _)| status),
            },
            ending: outcome.map(|outcome| outcome.ending),
            end_offset_us: outcome.map(|outcome| outcome.timings.end_offset_us),
        };
        let has = |name: &str, value: &str| request.labels.iter().any(|(n, v)| (&**n, &**v) == (name, value));
        self.accepts_facts(&facts) && self.labels.iter().all(|(name, value)| has(name, value))
    }

    /// Whether a row of [`FACTS`] meets the conditions.
    pub(super) fn accepts_row(
        &self,
        row: &Row<'_>,
        connection: &Connection,
        known: &mut Known,
    ) -> Result<bool, RowError> {
        let mut columns = Columns::new(row);
        columns.skip(1);
        let id = SnapshotId::from_bytes(columns.value()?);
        let issued_at = Moment(columns.int()?);
        let trace = columns.value::<Option<[u8; 16]>>()?.map_or(id.as_u128(), u128::from_be_bytes);
        columns.skip(2);
        let tenant = columns.value::<Option<[u8; 32]>>()?.map(Tenant);
        let (status, ending, end_offset_us) = (columns.value()?, columns.code_or_null()?, columns.int_or_null()?);
        let (chosen, served): (Option<i64>, Option<i64>) = (columns.value()?, columns.value()?);
        let target = match served.or(chosen).filter(|_| self.target.is_some()) {
            Some(row) => Some(known.target(connection, row)?),
            None => None,
        };
        let facts = Facts {
            issued_at,
            trace,
            client_request_id: text(row, CLIENT_REQUEST_ID)?,
            tenant,
            model: text(row, MODEL)?,
            target: target.as_ref().map(|target| &*target.name),
            status,
            ending,
            end_offset_us,
        };
        Ok(self.accepts_facts(&facts) && (self.labels.is_empty() || self.accepts_labels(row)?))
    }

    fn accepts_labels(&self, row: &Row<'_>) -> Result<bool, RowError> {
        let rest = row.get_ref(REST)?.as_blob().map_err(|_| RowError::corrupt("rest is no blob"))?;
        let rest = Rest::decode(rest).map_err(|error| RowError::corrupt(format!("rest: {error}")))?;
        let has = |name: &str, value: &str| rest.labels.iter().any(|it| (&*it.name, &*it.value) == (name, value));
        Ok(self.labels.iter().all(|(name, value)| has(name, value)))
    }

    fn accepts_facts(&self, facts: &Facts<'_>) -> bool {
        let same = |wanted: &Option<String>, value: Option<&str>| wanted.is_none() || wanted.as_deref() == value;
        let within = |status: u16| self.statuses.iter().any(|(from, to)| (*from..=*to).contains(&status));
        self.since.is_none_or(|since| facts.issued_at >= since)
            && self.until.is_none_or(|until| facts.issued_at < until)
            && self.ended.is_none_or(|ended| facts.ending.is_some() == ended)
            && (self.endings.is_empty() || facts.ending.is_some_and(|ending| self.endings.contains(&ending)))
            && (self.statuses.is_empty() || facts.status.is_some_and(within))
            && self.min_duration_us.is_none_or(|min| facts.end_offset_us.is_some_and(|end| end >= min))
            && self.trace.is_none_or(|trace| trace.as_u128() == facts.trace)
            && same(&self.model, facts.model)
            && same(&self.target, facts.target)
            && same(&self.client_request_id, facts.client_request_id)
            && (self.tenant.is_none() || self.tenant == facts.tenant.map(|tenant| tenant.to_string()))
    }

    /// A condition that an index can find, for the trace rather than for the client's ID, which repeats more often.
    pub(super) fn alias(&self) -> Option<Alias> {
        let client = || self.client_request_id.as_deref().map(Alias::of_client_request_id);
        self.trace.map(Alias::of_trace).or_else(client)
    }
}

/// The columns that conditions are about.
pub(super) const FACTS: &str = "seq, id, issued_at_unix_us, trace_id, client_request_id, model, tenant, status, ending, \
                                end_offset_us, target, outcome_target, rest";

/// Their places, for those that are read without being copied.
const CLIENT_REQUEST_ID: usize = 4;
const MODEL: usize = 5;
const REST: usize = 12;

fn text<'r>(row: &'r Row<'_>, place: usize) -> Result<Option<&'r str>, RowError> {
    match row.get_ref(place)? {
        ValueRef::Null => Ok(None),
        value => value.as_str().map(Some).map_err(|error| RowError::corrupt(format!("column {place}: {error}"))),
    }
}

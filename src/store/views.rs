//! The store as people read it, in stock `sqlite3` or DuckDB: names instead of numbers, IDs as 32 digits, one row a
//! request, a candidate or a sample.
//!
//! Views hold no data, so they are written anew whenever a binary wants them different.

use rusqlite::{Connection, OptionalExtension as _};

use super::codes::{Coded, name_sql, usual_path};
use crate::snapshot::{Ending, Fallback, Fault, Freshness, Health, Operation, Policy, Quantity, Reason, Source};

/// Makes the views what this binary wants them to be.
pub(super) fn refresh(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for (name, select) in
        [("snapshots", snapshots()), ("snapshot_candidates", snapshot_candidates()), ("sample_states", sample_states())]
    {
        let wanted = format!("CREATE VIEW {name} AS {select}");
        let found: Option<String> = transaction
            .query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [name], |row| row.get(0))
            .optional()?;
        if found.as_ref() != Some(&wanted) {
            transaction.execute_batch(&format!("DROP VIEW IF EXISTS {name}; {wanted}"))?;
        }
    }
    transaction.commit()
}

/// Unix microseconds as the document writes an instant.
fn instant(column: &str) -> String {
    format!("strftime('%Y-%m-%dT%H:%M:%S', {column} / 1000000, 'unixepoch') || printf('.%06dZ', {column} % 1000000)")
}

fn coded<T: Coded>(column: &str, alias: &str) -> String {
    format!("{} AS {alias}", name_sql::<T>(column))
}

/// A path as it was asked for: the usual one of an operation is not stored.
fn path() -> String {
    let mut sql = "ifnull(r.path, CASE r.operation".to_owned();
    for operation in <Operation as Coded>::ALL {
        if let Some(path) = usual_path(*operation) {
            sql.push_str(&format!(" WHEN {} THEN '{path}'", operation.code()));
        }
    }
    sql + " END)"
}

/// One row a request; the names are the document's.
fn snapshots() -> String {
    let state: Vec<String> =
        Quantity::ALL.iter().map(|quantity| format!("r.{0}, r.{0}_age_ms", quantity.name())).collect();
    [
        "SELECT r.seq, lower(hex(r.id)) AS id".to_owned(),
        format!("{} AS issued_at, r.issued_at_unix_us", instant("r.issued_at_unix_us")),
        "runs.instance, printf('%04x', runs.instance_tag) AS instance_tag, runs.version, runs.config".to_owned(),
        "lower(hex(coalesce(r.trace_id, r.id))) AS trace_id, r.client_request_id".to_owned(),
        "CASE WHEN r.tenant IS NOT NULL THEN 't_' || lower(hex(substr(r.tenant, 1, 4))) END AS tenant".to_owned(),
        coded::<Operation>("r.operation", "operation"),
        format!("{} AS path", path()),
        "r.model, r.stream, r.body_bytes, r.max_tokens".to_owned(),
        coded::<Policy>("r.policy", "policy"),
        coded::<Reason>("r.reason", "reason"),
        coded::<Fallback>("r.fallback", "fallback"),
        format!("r.reason = {} AS forced", Reason::Forced.code()),
        "chosen.name AS target, r.decided_offset_ns, r.choose_ns".to_owned(),
        state.join(", "),
        "json_extract(r.candidates, '$[0][1]') AS gateway_in_flight".to_owned(),
        "json_extract(r.candidates, '$[0][2]') AS gateway_requests_per_second".to_owned(),
        "json_extract(r.candidates, '$[0][3]') AS gateway_tokens_per_second".to_owned(),
        "json_array_length(r.candidates) AS candidates".to_owned(),
        coded::<Ending>("r.ending", "ending"),
        "r.status".to_owned(),
        coded::<Fault>("r.fault", "fault"),
        "served.name AS outcome_target, r.attempts, r.response_bytes, r.events, r.finish_reason".to_owned(),
        "r.prompt_tokens, r.completion_tokens, r.cached_tokens, r.first_byte_offset_us".to_owned(),
        "r.first_event_offset_us, r.first_content_offset_us, r.end_offset_us".to_owned(),
    ]
    .join(", ")
        + " FROM records r LEFT JOIN runs ON runs.run = r.run LEFT JOIN targets chosen ON chosen.target = r.target \
           LEFT JOIN targets served ON served.target = r.outcome_target"
}

/// One row a candidate of a request, with the state that was seen. Ages are those at the sample's publication;
/// `sample_age_ms`, from there to the decision, comes on top.
fn snapshot_candidates() -> String {
    let mut columns = vec![
        "SELECT r.seq, lower(hex(r.id)) AS id, r.issued_at_unix_us".to_owned(),
        "c.key + 1 AS rank, c.key = 0 AS chosen, t.name AS target".to_owned(),
        "json_extract(c.value, '$[4]') AS score, json_extract(c.value, '$[5]') AS place".to_owned(),
        "json_extract(c.value, '$[1]') AS gateway_in_flight".to_owned(),
        "json_extract(c.value, '$[2]') AS gateway_requests_per_second".to_owned(),
        "json_extract(c.value, '$[3]') AS gateway_tokens_per_second".to_owned(),
        "max(r.issued_at_unix_us + r.decided_offset_ns / 1000 - s.published_unix_us, 0) / 1000 AS sample_age_ms"
            .to_owned(),
    ];
    columns.extend(sample_columns());
    columns.join(", ")
        + " FROM records r JOIN json_each(r.candidates) c \
           LEFT JOIN samples s ON s.sample = json_extract(c.value, '$[0]') LEFT JOIN targets t ON t.target = s.target"
}

/// One row a stored sample.
fn sample_states() -> String {
    let mut columns = vec![
        "SELECT s.sample, t.name AS target, t.address".to_owned(),
        format!("{} AS published, s.published_unix_us", instant("s.published_unix_us")),
    ];
    columns.extend(sample_columns());
    columns.join(", ") + " FROM samples s LEFT JOIN targets t ON t.target = s.target"
}

fn sample_columns() -> Vec<String> {
    let mut columns = vec!["s.n AS sample_n".to_owned(), coded::<Health>("s.health", "health")];
    for quantity in Quantity::ALL {
        let name = quantity.name();
        columns.push(format!("s.{name}, max(s.{name}_age_us, 0) / 1000 AS {name}_age_ms"));
        columns.push(coded::<Source>(&format!("s.{name}_source"), &format!("{name}_source")));
        columns.push(coded::<Freshness>(&format!("s.{name}_freshness"), &format!("{name}_freshness")));
    }
    columns.push("ifnull(t.gpus, json_array_length(t.gpu_uuids)) AS gpus, t.gpu_uuids".to_owned());
    columns.push("t.place AS kubernetes, s.window_ms, s.gateway_in_flight_at_scrape".to_owned());
    columns
}

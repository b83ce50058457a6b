//! Shapes of an answer: whole documents, one row a snapshot, or one row a candidate; as JSON, NDJSON or CSV.
//!
//! All of them are made from the document's JSON, so that a table cannot say anything else than the document does: numbers
//! are copied digit by digit, IDs are texts of 32 digits, and what is null is null.

mod columns;

use std::borrow::Cow;
use std::fmt;

use axum::http::{HeaderMap, HeaderValue};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::value::RawValue;

use self::columns::{CANDIDATES, NULL, SNAPSHOTS, Table};
use super::accept;
use super::resolve::Found;

pub use self::columns::Column;
pub(super) use self::columns::SCHEMA;

/// What of a snapshot is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// The whole document
    #[default]
    Document,
    /// One row a snapshot: nested names are joined by `_`, lists of objects are left out
    Flat,
    /// One row a candidate of the decision, by the snapshot's `id`
    Candidates,
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON value
    Json,
    /// One JSON object a line
    Ndjson,
    /// RFC 4180 with a head; null is empty, the empty text is `""`
    Csv,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer, "shape")
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer, "format")
    }
}

/// A parameter that is one of a few words, as the command line has them too; or what words there are.
pub(super) fn word<'de, D: Deserializer<'de>, T: ValueEnum>(deserializer: D, parameter: &str) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    T::from_str(&text, false).map_err(|_| {
        let names: Vec<_> = T::value_variants().iter().filter_map(T::to_possible_value).collect();
        let names: Vec<_> = names.iter().map(PossibleValue::get_name).collect();
        let (last, others) = names.split_last().expect("there is a word to be");
        D::Error::custom(format!("{parameter}={text:?} is no {parameter}: there are {} and {last}", others.join(", ")))
    })
}

impl Format {
    /// Its media type.
    pub(super) const fn media_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
        })
    }
}

/// Shape and format together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What.
    pub shape: Shape,
    /// How.
    pub format: Format,
}

/// Documents have no columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoColumns;

impl fmt::Display for NoColumns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document has no columns for CSV: ask for the shape flat or candidates, or for the format ndjson")
    }
}

impl std::error::Error for NoColumns {}

impl Layout {
    /// A shape that was asked for, or the one that goes with the format: CSV needs columns.
    pub fn new(shape: Option<Shape>, format: Format) -> Result<Self, NoColumns> {
        match (shape, format) {
            (Some(Shape::Document), Format::Csv) => Err(NoColumns),
            (None, Format::Csv) => Ok(Self { shape: Shape::Flat, format }),
            (shape, format) => Ok(Self { shape: shape.unwrap_or_default(), format }),
        }
    }

    /// As the parameters say, else as the client's `Accept` does, else as usual.
    pub(super) fn wanted(
        shape: Option<Shape>,
        format: Option<Format>,
        headers: &HeaderMap,
        usual: Format,
    ) -> Result<Self, NoColumns> {
        Self::new(shape, format.unwrap_or_else(|| accept::format_wanted(headers, usual)))
    }
}

/// The columns of a shape in their order; none for documents.
pub fn columns(shape: Shape) -> &'static [Column] {
    table(shape).map_or(&[], |table| &table.columns)
}

/// The columns of a shape as a table of their own, in CSV: name, type and description.
pub fn columns_page(shape: Shape) -> String {
    let mut page = b"column,type,description\n".to_vec();
    for Column { name, kind, description } in columns(shape) {
        page.extend_from_slice(format!("{name},{kind},").as_bytes());
        push_csv("string", &serde_json::json!(description).to_string(), &mut page);
        page.push(b'\n');
    }
    String::from_utf8(page).expect("only text was written")
}

fn table(shape: Shape) -> Option<&'static Table> {
    match shape {
        Shape::Document => None,
        Shape::Flat => Some(&SNAPSHOTS),
        Shape::Candidates => Some(&CANDIDATES),
    }
}

/// Writes an answer line by line: documents, or rows whose first columns are the answer's own.
pub(super) struct Sheet {
    layout: Layout,
    lead: &'static [&'static str],
    /// A line was written, so that the next one of a JSON list needs a comma.
    begun: bool,
}

impl Sheet {
    /// `lead` names the columns that every row has before those of its shape.
    pub(super) fn new(layout: Layout, lead: &'static [&'static str]) -> Self {
        Self { layout, lead, begun: false }
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// What stands before the first line.
    pub(super) fn open(&self, out: &mut Vec<u8>) {
        match self.layout.format {
            Format::Json => out.push(b'['),
            Format::Ndjson => {}
            Format::Csv => {
                let head: Vec<_> = self.names().collect();
                out.extend_from_slice(head.join(",").as_bytes());
                out.push(b'\n');
            }
        }
    }

    /// What stands after the last one.
    pub(super) fn close(&self, out: &mut Vec<u8>) {
        if self.layout.format == Format::Json {
            out.push(b']');
        }
    }

    /// One line that the caller writes.
    pub(super) fn line(&mut self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if self.layout.format == Format::Json && self.begun {
            out.push(b',');
        }
        self.begun = true;
        write(out);
        if self.layout.format != Format::Json {
            out.push(b'\n');
        }
    }

    /// The document or the rows of a snapshot. `lead` are the values of the answer's own columns, as JSON texts; a snapshot
    /// without candidates has a row for their sake.
    pub(super) fn snapshot(&mut self, lead: &[&str], found: &Found, out: &mut Vec<u8>) {
        let mut json = Vec::new();
        found.write(&mut json);
        if self.layout.shape == Shape::Document {
            return self.line(out, |out| out.extend_from_slice(&json));
        }
        let json = std::str::from_utf8(&json).expect("JSON is UTF-8");
        if self.layout.shape == Shape::Flat {
            let mut values = lead.to_vec();
            SNAPSHOTS.values(json, &mut values);
            return self.row(&values, out);
        }
        let of: CandidatesOf<'_> = serde_json::from_str(json).expect("a document has an ID and candidates");
        let beginning: Vec<_> = lead.iter().copied().chain([of.id.get()]).collect();
        for candidate in &of.decision.candidates {
            let mut values = beginning.clone();
            CANDIDATES.values(candidate.get(), &mut values);
            self.row(&values, out);
        }
        if of.decision.candidates.is_empty() && !lead.is_empty() {
            self.row(&beginning, out);
        }
    }

    /// A row, of which the last values may be missing: they are null.
    pub(super) fn row(&mut self, values: &[&str], out: &mut Vec<u8>) {
        let format = self.layout.format;
        let kinds = self.lead.iter().map(|_| "string").chain(columns(self.layout.shape).iter().map(|it| it.kind));
        let cells: Vec<_> = kinds.zip(values.iter().copied().chain(std::iter::repeat(NULL))).collect();
        let names: Vec<_> = self.names().collect();
        self.line(out, |out| {
            for (place, (name, (kind, value))) in names.into_iter().zip(cells).enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                if format == Format::Csv {
                    push_csv(kind, value, out);
                } else {
                    out.extend_from_slice(if place == 0 { b"{\"" } else { b"\"" });
                    out.extend_from_slice(name.as_bytes());
                    out.extend_from_slice(b"\":");
                    push_json(kind, value, out);
                }
            }
            if format != Format::Csv {
                out.push(b'}');
            }
        });
    }

    fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.lead.iter().copied().chain(columns(self.layout.shape).iter().map(|column| column.name.as_str()))
    }
}

/// Where a document has its candidates.
#[derive(Deserialize)]
struct CandidatesOf<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    decision: Decision<'a>,
}

#[derive(Deserialize)]
struct Decision<'a> {
    #[serde(borrow)]
    candidates: Vec<&'a RawValue>,
}

/// A value as it is; a map of other people's keys as text, so that every value of a row is plain.
fn push_json(kind: &str, value: &str, out: &mut Vec<u8>) {
    if kind == "json" && value != NULL {
        serde_json::to_writer(out, value).expect("memory does not refuse a write");
    } else {
        out.extend_from_slice(value.as_bytes());
    }
}

fn push_csv(kind: &str, value: &str, out: &mut Vec<u8>) {
    let text = match value {
        NULL => return,
        _ if kind == "json" => Cow::Borrowed(value),
        value if value.starts_with('"') => {
            Cow::Owned(serde_json::from_str(value).expect("what begins as a JSON text is one"))
        }
        value => Cow::Borrowed(value),
    };
    if text.is_empty() || text.contains(['"', ',', '\n', '\r']) {
        out.push(b'"');
        out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::specimen;
    use super::*;
    use std::collections::HashSet;
    use std::sync::Arc;

    /// The published columns are those of the code. `UPDATE_GOLDEN=1` writes the files anew.
    #[test]
    fn the_columns_are_published() {
        for (shape, file) in [(Shape::Flat, "snapshot_flat.csv"), (Shape::Candidates, "snapshot_candidates.csv")] {
            let path = format!("{}/otel/{file}", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, columns_page(shape)).unwrap();
            }
            assert_eq!(columns_page(shape), std::fs::read_to_string(&path).unwrap_or_default(), "{file}");
        }
    }

    #[test]
    fn columns_have_names_of_their_own_and_kinds() {
        for shape in [Shape::Flat, Shape::Candidates] {
            let names: HashSet<_> = columns(shape).iter().map(|column| &column.name).collect();
            assert_eq!(names.len(), columns(shape).len());
            assert!(columns(shape).iter().all(|column| column.description.ends_with('.')));
        }
        let kind =
            |name: &str| columns(Shape::Flat).iter().find(|column| column.name == name).map(|column| column.kind);
        for (name, want) in [
            ("id", Some("string")),
            ("issued_at_unix_us", Some("integer")),
            ("request_stream", Some("boolean")),
            ("request_labels", Some("json")),
            ("backend_report_named_metrics", Some("json")),
            ("decision_policy", Some("string")),
            ("decision_state_kv_cache_usage", Some("number")),
            ("decision_state_waiting_age_ms", Some("integer")),
            ("timings_first_byte_offset_us", Some("integer")),
            ("stored", Some("boolean")),
            ("attempts", None),
            ("decision_candidates", None),
        ] {
            assert_eq!(kind(name), want, "{name}");
        }
    }

    /// The lines that a sheet makes of a snapshot.
    fn lines(layout: Layout, record: crate::snapshot::Record) -> String {
        let (mut sheet, mut out) = (Sheet::new(layout, &[]), Vec::new());
        sheet.open(&mut out);
        sheet.snapshot(&[], &Found { record: Arc::new(record), stored: true }, &mut out);
        sheet.close(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_value_of_a_document_is_in_its_row_digit_by_digit() {
        for (name, mut record) in specimen::gallery() {
            record.issued.request.max_tokens = Some(u64::MAX);
            let mut json = Vec::new();
            Found { record: Arc::new(copy(&record)), stored: true }.write(&mut json);
            let document: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let layout = Layout { shape: Shape::Flat, format: Format::Ndjson };
            let row: serde_json::Value = serde_json::from_str(&lines(layout, record)).unwrap();
            let mut leaves = Vec::new();
            flatten("", &document, &mut leaves);
            assert_eq!(leaves.len(), columns(Shape::Flat).len(), "{name}");
            for (column, value) in leaves {
                assert_eq!(row[&column], value, "{name}: {column}");
            }
            assert_eq!(row["request_max_tokens"].to_string(), u64::MAX.to_string());
        }
    }

    fn copy(record: &crate::snapshot::Record) -> crate::snapshot::Record {
        match record.outcome() {
            Some(outcome) => crate::snapshot::Record::closed(record.issued.clone(), outcome.clone()),
            None => {
                let copy = crate::snapshot::Record::open(record.issued.clone());
                let (bytes, events) = record.progress.seen_body();
                copy.progress.body(bytes, events);
                record.progress.seen_head().into_iter().for_each(|(status, offset)| copy.progress.head(status, offset));
                copy
            }
        }
    }

    /// By another way than the code's: the names of all values that are no lists, joined.
    fn flatten(prefix: &str, value: &serde_json::Value, leaves: &mut Vec<(String, serde_json::Value)>) {
        for (key, value) in value.as_object().unwrap() {
            let name = format!("{prefix}{key}");
            match value {
                serde_json::Value::Array(_) => {}
                serde_json::Value::Object(_) if name == "request_labels" || name.ends_with("_metrics") => {
                    leaves.push((name, value.to_string().into()));
                }
                serde_json::Value::Object(_) => flatten(&format!("{name}_"), value, leaves),
                value => leaves.push((name, value.clone())),
            }
        }
    }

    #[test]
    fn csv_quotes_what_has_to_be() {
        for (kind, value, want) in [
            ("string", "null", ""),
            ("string", "\"\"", "\"\""),
            ("string", "\"plain text\"", "plain text"),
            ("string", r#""a,b""#, r#""a,b""#),
            ("string", r#""say \"so\"""#, r#""say ""so""""#),
            ("string", r#""two\nlines""#, "\"two\nlines\""),
            ("integer", "18446744073709551615", "18446744073709551615"),
            ("number", "0.25", "0.25"),
            ("boolean", "true", "true"),
            ("json", "{}", "{}"),
            ("json", r#"{"a":"b"}"#, r#""{""a"":""b""}""#),
        ] {
            let mut out = Vec::new();
            push_csv(kind, value, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), want, "{value}");
        }
    }

    #[test]
    fn a_table_has_its_head_also_without_rows() {
        let (sheet, mut out) = (Sheet::new(Layout::new(None, Format::Csv).unwrap(), &["key"]), Vec::new());
        sheet.open(&mut out);
        sheet.close(&mut out);
        assert!(out.starts_with(b"key,schema,id,phase,") && out.ends_with(b",stored\n"));
        assert_eq!(Layout::new(Some(Shape::Document), Format::Csv), Err(NoColumns));
    }
}

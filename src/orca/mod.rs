//! ORCA load reports on the wire: what targets report with their answers, and what clients are told of a target.
//!
//! A report is one response header (or trailer) of a few numbers, in three formats. [`read`] takes what engines send:
//! by default leniently, because what engines send is not what the parser of Envoy takes; or by Envoy's rules. Either
//! way a report is bounded before it is looked at, and no value leaves here that is not finite, not negative and, where
//! it is a ratio, not above 1. [`tell()`] writes what Envoy and gRPC take.
//!
//! `text`, `json` and `proto` read one format each and hand every entry to `collect`, which alone decides what is kept.
//! `quantities` knows which metrics are the gateway's quantities; `tell` is the way out.

mod collect;
#[cfg(test)]
mod conformance;
mod json;
mod proto;
mod quantities;
mod tell;
mod text;

use http::HeaderMap;

pub use quantities::quantities;
pub use tell::{Entry, METRICS, Metric, Told, state, tell};

use crate::snapshot::load_report::{Flaw, Flaws};
use crate::snapshot::{LoadReport, ReportFormat};
use collect::Collector;

/// The longest report that is looked at, in bytes of the header's value: ten times what engines send.
pub const REPORT_BYTES_MAX: usize = 4 * 1024;

/// The longest key of a metric, in bytes: what load balancers take for a name.
pub const KEY_BYTES_MAX: usize = 64;

/// The header of a report in any format, which says which one it is.
pub const HEADER: &str = "endpoint-load-metrics";

/// The header of the message in base64.
pub const BIN_HEADER: &str = "endpoint-load-metrics-bin";

/// The request header that asks for a report, and in which format.
pub const FORMAT_HEADER: &str = "endpoint-load-metrics-format";

/// Every spelling of a report that there is or was. All are kept from clients, and all but the third are read.
pub const HEADERS: [&str; 5] =
    [BIN_HEADER, HEADER, "endpoint-load-metrics-json", "x-endpoint-load-metrics-bin", "x-endpoint-load-metrics"];

/// By whose rules a report is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// What can be understood is kept, entry by entry.
    Lenient,
    /// Envoy's: one bad entry refuses the report.
    Strict,
}

/// A report that was read, and what was wrong with it all the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// In which header it came.
    pub header: &'static str,
    /// How it was written.
    pub format: ReportFormat,
    /// What it says.
    pub report: LoadReport,
    /// Entries that were dropped or merged; none by strict rules.
    pub flaws: Flaws,
}

/// Reads the report among an answer's headers or trailers; `None` if there is none. The first header in the order of
/// precedence decides, and of several lines of it the first: what it says badly no other makes good.
pub fn read(headers: &HeaderMap, rules: Rules) -> Result<Option<Read>, Flaw> {
    for name in HEADERS {
        let is_read = match rules {
            Rules::Lenient => name != HEADERS[2],
            Rules::Strict => !name.starts_with("x-") && name != HEADERS[2],
        };
        let mut lines = headers.get_all(name).iter();
        let Some(first) = lines.next().filter(|_| is_read) else { continue };
        let mut collector = Collector::new(rules);
        if rules == Rules::Lenient && lines.next().is_some() {
            collector.flaws.add(Flaw::RepeatedHeader);
        }
        let format = read_value(first.as_bytes(), name.ends_with("-bin"), rules, &mut collector)?;
        return collector.finish(name, format).map(Some);
    }
    Ok(None)
}

fn read_value(value: &[u8], is_bin: bool, rules: Rules, into: &mut Collector) -> Result<ReportFormat, Flaw> {
    if value.len() > REPORT_BYTES_MAX {
        return Err(Flaw::TooLarge);
    }
    let value = std::str::from_utf8(value).map_err(|_| Flaw::NotText)?;
    if is_bin {
        proto::read(value, into)?;
        return Ok(ReportFormat::Bin);
    }
    let (format, content) = match rules {
        Rules::Strict => strict_format(value),
        Rules::Lenient => lenient_format(value),
    }
    .ok_or(Flaw::UnknownFormat)?;
    match format {
        ReportFormat::Text => text::read(content, into)?,
        ReportFormat::Json => json::read(content, into)?,
        ReportFormat::Bin => proto::read(content, into)?,
    }
    Ok(format)
}

/// The word in capitals and one blank.
fn strict_format(value: &str) -> Option<(ReportFormat, &str)> {
    let words = [("TEXT ", ReportFormat::Text), ("JSON ", ReportFormat::Json), ("BIN ", ReportFormat::Bin)];
    words.into_iter().find_map(|(word, format)| Some((format, value.strip_prefix(word)?)))
}

/// The word in any case, alone if nothing follows; without one, what it looks like.
fn lenient_format(value: &str) -> Option<(ReportFormat, &str)> {
    let value = value.trim();
    let (word, content) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    match ReportFormat::from_name(word.as_bytes()) {
        Some(format) => Some((format, content.trim())),
        None if value.starts_with('{') => Some((ReportFormat::Json, value)),
        None => value.contains(['=', ':']).then_some((ReportFormat::Text, value)),
    }
}

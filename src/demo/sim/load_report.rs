//! How a simulated pod reports its load: as vLLM does, in every way there is, or wrongly on purpose.

use http::{HeaderName, HeaderValue};

use super::engine::Load;
use super::page::number;
use super::settings::LoadReports;
use crate::orca::{self, Entry, HEADER, METRICS};
use crate::snapshot::ReportFormat;

/// Larger than any report is.
const BYTES_MAX: usize = 1024;

/// Reports that nobody can use, each for a reason of its own.
const MALFORMED: [&str; 8] = [
    "TEXT named_metrics.kv_cache_usage_perc=nan",
    "TEXT named_metrics.num_requests_waiting=-1",
    "TEXT named_metrics.kv_cache_usage_perc=97",
    "TEXT num_requests_waiting=3",
    "TEXT named_metrics.num_requests_waiting",
    "JSON {\"named_metrics\": {\"kv_cache_usage_perc\": 0.4",
    "BIN not-base64",
    "YAML kv_cache_usage_perc",
];

/// What a request asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// Its header.
    pub(super) format: Option<&'a HeaderValue>,
    pub(super) is_stream: bool,
    /// Counts the pod's requests.
    pub(super) number: u64,
}

/// The header that reports the load; `None` if there is none.
pub(super) fn of(how: LoadReports, asked: Asked<'_>, load: &Load) -> Option<(HeaderName, HeaderValue)> {
    let format = ReportFormat::from_name(asked.format?.as_bytes());
    let (name, value) = match how {
        LoadReports::Vllm if asked.is_stream => return None,
        LoadReports::Vllm => (HEADER, of_vllm(format?, load)?),
        LoadReports::Full => {
            let told = orca::tell(&entries(load), format?, BYTES_MAX)?;
            (told.header, told.value)
        }
        LoadReports::Malformed => (HEADER, MALFORMED[asked.number as usize % MALFORMED.len()].to_owned()),
    };
    Some((HeaderName::from_static(name), value.parse().expect("digits and names are visible ASCII")))
}

fn of_vllm(format: ReportFormat, load: &Load) -> Option<String> {
    let (waiting, kv_usage) = (number(load.waiting as f64), number(load.kv_usage));
    match format {
        ReportFormat::Text => Some(format!(
            "TEXT named_metrics.num_requests_waiting={waiting}, named_metrics.kv_cache_usage_perc={kv_usage}"
        )),
        ReportFormat::Json => Some(format!(
            r#"JSON {{"named_metrics": {{"num_requests_waiting": {waiting}, "kv_cache_usage_perc": {kv_usage}}}}}"#
        )),
        ReportFormat::Bin => None,
    }
}

fn entries(load: &Load) -> Vec<Entry> {
    let values = [
        ("kv_cache_usage_perc", load.kv_usage),
        ("num_requests_waiting", load.waiting as f64),
        ("num_requests_running", load.running as f64),
    ];
    let entry = |(name, value)| {
        let metric = METRICS.into_iter().find(|metric| metric.name == name)?;
        Some(Entry { metric, value })
    };
    values.into_iter().filter_map(entry).collect()
}

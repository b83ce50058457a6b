//! An answer's header lines, among them load reports.

use http::{HeaderMap, HeaderName, HeaderValue};
use snapgate::orca::{Entry, METRICS, Rules, quantities, read as read_report, tell};
use snapgate::snapshot::load_report::METRICS_MAX;
use snapgate::snapshot::{LoadReport, ReportFormat};

use crate::attack::Parser;

pub(crate) const PARSER: Parser = Parser {
    name: "orca",
    fixtures: &["vllm-0.32.0/chat.headers"],
    words: &[
        "endpoint-load-metrics: ",
        "endpoint-load-metrics-bin: ",
        "x-endpoint-load-metrics: ",
        "TEXT ",
        "JSON ",
        "BIN ",
        "text ",
        "named_metrics.",
        "utilization.",
        "request_cost.",
        "cpu_utilization",
        "application_utilization",
        "rps_fractional",
        "eps",
        "kv_cache_usage_perc",
        "num_requests_waiting",
        "\"named_metrics\":{",
        "\"utilization\":{",
        "namedMetrics",
        "=",
        ":",
        ", ",
        "{",
        "}",
        "[",
        "null",
        "nan",
        "inf",
        "-0",
        "1e308",
        "0.5",
        "AAAAAAAA8D8",
        "==",
        "\n",
    ],
    bytes_max: 8 << 10,
    read,
};

/// The most bytes that a client is ever told in.
const TOLD_BYTES_MAX: usize = 512;

/// What is read is sound by both rules, and what is told of it fits, and is read by the stricter ones.
fn read(bytes: &[u8]) -> String {
    let headers = headers(bytes);
    let kinds = [Rules::Strict, Rules::Lenient].map(|rules| match read_report(&headers, rules) {
        Err(flaw) => flaw.name().to_owned(),
        Ok(None) => "none".to_owned(),
        Ok(Some(read)) => {
            assert_sound(&read.report);
            for format in ReportFormat::ALL {
                tell_of(&read.report, format);
            }
            let flaws: Vec<_> = read.flaws.iter().map(|(flaw, _)| flaw.name()).collect();
            let sizes = [&read.report.named_metrics, &read.report.other_metrics].map(|list| list.len().min(4));
            format!("{} {sizes:?} {}", read.format.name(), flaws.join(" "))
        }
    });
    kinds.join(", ")
}

/// Lines that are none are left out, as hyper refuses them.
fn headers(bytes: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

fn assert_sound(report: &LoadReport) {
    assert!(report.len() <= METRICS_MAX, "{} metrics", report.len());
    for metrics in [&report.named_metrics, &report.other_metrics] {
        assert!(metrics.is_sorted_by(|(a, _), (b, _)| a < b), "a name is there twice: {metrics:?}");
        for (name, value) in metrics {
            assert!(value.is_finite() && value.is_sign_positive(), "{name} is {value}");
            assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?} is no name");
        }
    }
}

/// Has the report's own numbers told to a client.
fn tell_of(report: &LoadReport, format: ReportFormat) {
    let values = quantities(report).into_iter().flatten().chain(report.named_metrics.iter().map(|(_, value)| *value));
    let entries: Vec<_> = METRICS.into_iter().zip(values).map(|(metric, value)| Entry { metric, value }).collect();
    let Some(told) = tell(&entries, format, TOLD_BYTES_MAX) else { return };
    assert!(told.value.len() <= TOLD_BYTES_MAX, "{} bytes", told.value.len());
    let mut headers = HeaderMap::new();
    headers.insert(told.header, HeaderValue::try_from(told.value).expect("it can be sent"));
    let again = read_report(&headers, Rules::Strict).expect("what is told can be read").expect("it is there");
    assert_eq!(again.format, format);
}

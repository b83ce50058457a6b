//! What is told of a target: its state at the decision, in a report that Envoy and gRPC take, and no larger than allowed.
//!
//! Equal states make equal bytes. Whatever is not known, or known and stale, is left out and never 0.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::proto::{self, OrcaLoadReport};
use super::{BIN_HEADER, HEADER};
use crate::snapshot::{Moment, Quantity, ReportFormat, Sample};

/// A metric that can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name: in the message's own fields, or among its named metrics.
    pub name: &'static str,
    /// Whether it is one of the message's own fields, by which balancers weigh: `false` is a named metric.
    pub is_field: bool,
}

const fn named(name: &'static str) -> Metric {
    Metric { name, is_field: false }
}

/// All that can be told, the most important first: what has no room is dropped from the end.
pub const METRICS: [Metric; 10] = [
    named("kv_cache_usage_perc"),
    named("num_requests_waiting"),
    named("num_requests_running"),
    Metric { name: "application_utilization", is_field: true },
    Metric { name: "rps_fractional", is_field: true },
    named("gpu_utilization"),
    named("prefix_cache_hit_rate"),
    named("tokens_per_second"),
    named("gpu_memory_utilization"),
    named("snapshot_age_ms"),
];

/// A metric with a value. Those of a report are in the order of [`METRICS`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Which.
    pub metric: Metric,
    /// Finite and not negative, or it is not told.
    pub value: f64,
}

/// A report, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The header's name.
    pub header: &'static str,
    /// Its value: visible ASCII.
    pub value: String,
    /// Entries for which there was no room.
    pub dropped: usize,
}

/// What was known of a target at this moment, that of the choice, in the order of [`METRICS`]; of those only the `wanted`.
pub fn state(decided: Moment, sample: &Sample, wanted: impl Fn(&str) -> bool) -> Vec<Entry> {
    let fresh = |quantity| sample.reading(quantity).fresh();
    let (kv_cache, gpu) = (fresh(Quantity::KvCacheUsage), fresh(Quantity::GpuUtilization));
    let entry = |metric: Metric| {
        let value = match metric.name {
            "kv_cache_usage_perc" => kv_cache,
            "num_requests_waiting" => fresh(Quantity::Waiting),
            "num_requests_running" => fresh(Quantity::Running),
            // How full it is: the cache is what runs out first. Busy GPUs only say that there is work.
            "application_utilization" => kv_cache.or(gpu),
            // A server that serves nothing has no weight: balancers need more than 0.
            "rps_fractional" => fresh(Quantity::EngineRequestsPerSecond).filter(|rate| *rate > 0.0),
            "gpu_utilization" => gpu,
            "prefix_cache_hit_rate" => fresh(Quantity::PrefixCacheHitRatio),
            "tokens_per_second" => fresh(Quantity::EngineTokensPerSecond),
            "gpu_memory_utilization" => fresh(Quantity::GpuMemoryUtilization),
            _ => None,
        };
        Some(Entry { metric, value: value? })
    };
    let mut entries: Vec<_> = METRICS.into_iter().filter(|metric| wanted(metric.name)).filter_map(entry).collect();
    let told = sample.readings.iter().filter(|reading| reading.fresh().is_some());
    let oldest = told.filter_map(|reading| reading.age_ms(decided)).max();
    let age = METRICS[METRICS.len() - 1];
    if let Some(oldest) = oldest.filter(|_| wanted(age.name) && !entries.is_empty()) {
        entries.push(Entry { metric: age, value: oldest as f64 });
    }
    entries
}

/// Writes a report whose header's value has at most so many bytes; `None` if nothing is left to say.
pub fn tell(entries: &[Entry], format: ReportFormat, bytes_max: usize) -> Option<Told> {
    let mut kept: Vec<_> = entries.iter().filter_map(|entry| Some((entry.metric, rounded(entry.value)?))).collect();
    let told = kept.len();
    while !kept.is_empty() {
        let (header, value) = match format {
            ReportFormat::Text => (HEADER, text(&kept)),
            ReportFormat::Json => (HEADER, json(&kept)),
            ReportFormat::Bin => (BIN_HEADER, bin(&kept)),
        };
        // In the message a field that is 0 is not there: if that is all, nothing is.
        if value.is_empty() {
            return None;
        }
        if value.len() <= bytes_max {
            return Some(Told { header, value, dropped: told - kept.len() });
        }
        kept.pop();
    }
    None
}

type Kept = (Metric, f64);

/// Six digits that matter, which is more than anybody measures: as short in text as can be. `None` for what is no value.
fn rounded(value: f64) -> Option<f64> {
    /// Beyond it a number is written with more digits than mean anything.
    const MOST: f64 = 1e15;
    /// Below it a number is nothing.
    const LEAST: f64 = 1e-6;
    match value {
        value if !(0.0..=MOST).contains(&value) => None,
        value if value < LEAST => Some(0.0),
        value => format!("{value:.5e}").parse().ok(),
    }
}

/// First the fields, then the named metrics, each by name.
fn in_order(kept: &[Kept]) -> Vec<Kept> {
    let mut kept = kept.to_vec();
    kept.sort_unstable_by_key(|(metric, _)| (!metric.is_field, metric.name));
    kept
}

fn text(kept: &[Kept]) -> String {
    let mut text = "TEXT ".to_owned();
    for (place, (metric, value)) in in_order(kept).into_iter().enumerate() {
        let (comma, prefix) = (if place == 0 { "" } else { "," }, if metric.is_field { "" } else { "named_metrics." });
        write!(text, "{comma}{prefix}{}={value}", metric.name).expect("memory does not refuse a write");
    }
    text
}

fn json(kept: &[Kept]) -> String {
    let mut text = "JSON {".to_owned();
    let mut within = false;
    for (place, (metric, value)) in in_order(kept).into_iter().enumerate() {
        text.push_str(if place == 0 { "" } else { "," });
        if !metric.is_field && !within {
            within = true;
            text.push_str("\"named_metrics\":{");
        }
        write!(text, "\"{}\":{value}", metric.name).expect("memory does not refuse a write");
    }
    text.push_str(if within { "}}" } else { "}" });
    text
}

fn bin(kept: &[Kept]) -> String {
    let mut message = OrcaLoadReport::default();
    let mut named_metrics = BTreeMap::new();
    for (metric, value) in kept {
        match metric.name {
            "application_utilization" => message.application_utilization = *value,
            "rps_fractional" => message.rps_fractional = *value,
            name => drop(named_metrics.insert(name.to_owned(), *value)),
        }
    }
    message.named_metrics = named_metrics;
    proto::encode(&message)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    use std::sync::Arc;

    use super::super::{Rules, read};
    use super::*;
    use crate::snapshot::{Freshness, Health, Reading, Source, Target};

    fn entries(values: &[(&str, f64)]) -> Vec<Entry> {
        let of = |metric: Metric| {
            let (_, value) = values.iter().find(|(name, _)| *name == metric.name)?;
            Some(Entry { metric, value: *value })
        };
        METRICS.into_iter().filter_map(of).collect()
    }

    fn small() -> Vec<Entry> {
        entries(&[
            ("rps_fractional", 1.25),
            ("application_utilization", 0.88),
            ("kv_cache_usage_perc", 0.42),
            ("num_requests_waiting", 3.0),
        ])
    }

    /// What a strict reader makes of it.
    fn read_again(told: &Told) -> Vec<(String, f64)> {
        let mut headers = HeaderMap::new();
        headers.insert(told.header, HeaderValue::try_from(&told.value).unwrap());
        let report = read(&headers, Rules::Strict).unwrap().unwrap().report;
        let metrics = report.other_metrics.into_iter().chain(report.named_metrics);
        metrics.map(|(name, value)| (name.into(), value)).collect()
    }

    #[test]
    fn a_report_is_these_bytes() {
        for (format, header, value) in [
            (
                ReportFormat::Text,
                "endpoint-load-metrics",
                "TEXT application_utilization=0.88,rps_fractional=1.25,named_metrics.kv_cache_usage_perc=0.42,\
                 named_metrics.num_requests_waiting=3",
            ),
            (
                ReportFormat::Json,
                "endpoint-load-metrics",
                r#"JSON {"application_utilization":0.88,"rps_fractional":1.25,"named_metrics":{"kv_cache_usage_perc":0.42,"num_requests_waiting":3}}"#,
            ),
            (
                ReportFormat::Bin,
                "endpoint-load-metrics-bin",
                "MQAAAAAAAPQ/Qh4KE2t2X2NhY2hlX3VzYWdlX3BlcmMR4XoUrkfh2j9CHwoUbnVtX3JlcXVlc3RzX3dhaXRpbmcRAAAAAAAACEBJKVyPwvUo7D8=",
            ),
        ] {
            let expected = Told { header, value: value.to_owned(), dropped: 0 };
            assert_eq!(tell(&small(), format, 512), Some(expected));
        }
    }

    #[test]
    fn what_has_no_room_is_dropped_from_the_end_and_whole() {
        let all: Vec<_> = METRICS.into_iter().map(|metric| Entry { metric, value: 0.123_456 }).collect();
        for format in ReportFormat::ALL {
            let whole = tell(&all, format, 512).unwrap();
            assert_eq!(whole.dropped, 0, "{format:?} takes {} bytes", whole.value.len());
            let cut = tell(&all, format, 200).unwrap();
            let kept: Vec<_> = read_again(&cut).into_iter().map(|(name, _)| name).collect();
            assert_eq!(kept.len(), METRICS.len() - cut.dropped);
            let first = &METRICS[..kept.len()];
            assert!(first.iter().all(|metric| kept.iter().any(|name| name == metric.name)), "{kept:?}");
            assert_eq!(tell(&all, format, 20), None, "never an empty report");
        }
    }

    /// A target of which these values are known, each so many milliseconds old at [`DECIDED`].
    fn sample(known: &[(Quantity, f64, u64, Freshness)]) -> Sample {
        let mut readings = [Reading::MISSING; Quantity::COUNT];
        for &(quantity, value, age_ms, freshness) in known {
            let observed = Moment(DECIDED.0 - age_ms * 1_000);
            readings[quantity as usize] =
                Reading { value: Some(value), observed, source: Some(Source::Scrape), freshness };
        }
        let target = Arc::new(Target::new(0, "t0", "127.0.0.1:8000"));
        Sample::new(target, 1, Moment(DECIDED.0 - 50_000), Health::Healthy, readings, 10_000)
    }

    const DECIDED: Moment = Moment(1_795_435_995_000_000);

    /// What is told of it, all that there is being wanted.
    fn told(known: &[(Quantity, f64, u64, Freshness)]) -> Vec<(&'static str, f64)> {
        let entries = state(DECIDED, &sample(known), |_| true);
        entries.into_iter().map(|Entry { metric, value }| (metric.name, value)).collect()
    }

    #[test]
    fn what_is_stale_is_never_told_and_neither_is_its_age() {
        use Freshness::{Fresh, Stale};
        let all = |freshness| Quantity::ALL.map(|quantity| (quantity, 0.5, 9_000, freshness));
        assert_eq!(told(&all(Fresh)).len(), METRICS.len(), "each of them has a value to tell");
        assert_eq!(told(&all(Stale)), [], "and none that is stale");
        for quantity in Quantity::ALL {
            let one_stale = all(Fresh).map(|(other, value, ..)| {
                if other == quantity { (other, 0.75, 60_000, Stale) } else { (other, value, 9_000, Fresh) }
            });
            let told = told(&one_stale);
            assert!(told.iter().all(|(_, value)| *value != 0.75), "{quantity:?}: {told:?}");
            assert_eq!(told.last(), Some(&("snapshot_age_ms", 9_000.0)), "{quantity:?}: of those that are told");
        }
        // Without a fresh share of the cache the GPUs say how full it is, and without those nobody does.
        let full = |kv, gpu| told(&[(Quantity::KvCacheUsage, 0.25, 1, kv), (Quantity::GpuUtilization, 0.5, 2, gpu)]);
        let of = |told: Vec<(&'static str, f64)>| told.into_iter().find(|(name, _)| *name == "application_utilization");
        assert_eq!(of(full(Fresh, Fresh)), Some(("application_utilization", 0.25)));
        assert_eq!(of(full(Stale, Fresh)), Some(("application_utilization", 0.5)));
        assert_eq!(of(full(Stale, Stale)), None);
    }

    #[test]
    fn a_zero_that_is_known_is_told() {
        for format in ReportFormat::ALL {
            let told = tell(&entries(&[("num_requests_waiting", 0.0)]), format, 512).unwrap();
            assert_eq!(read_again(&told), [("num_requests_waiting".to_owned(), 0.0)]);
        }
    }

    #[test]
    fn a_message_of_nothing_but_a_zero_is_none() {
        let idle = entries(&[("application_utilization", 0.0)]);
        assert_eq!(tell(&idle, ReportFormat::Bin, 512), None);
        assert!(tell(&idle, ReportFormat::Text, 512).is_some());
    }

    #[test]
    fn numbers_have_six_digits_and_no_exponent() {
        for (value, shown) in [
            (0.0, Some("0")),
            (3.0, Some("3")),
            (0.123_456_789, Some("0.123457")),
            (1_234_567.0, Some("1234570")),
            (1e-300, Some("0")),
            (1e300, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
            (-1.0, None),
        ] {
            assert_eq!(rounded(value).map(|value| value.to_string()).as_deref(), shown, "{value}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_told_fits_and_is_read_again_by_strict_rules(
            values in prop::collection::vec(prop::option::of(0.0f64..1.0), METRICS.len()),
            bytes_max in 0usize..600,
        ) {
            let of = |(metric, value): (Metric, Option<f64>)| Some(Entry { metric, value: value? });
            let entries: Vec<_> = METRICS.into_iter().zip(values).filter_map(of).collect();
            for format in ReportFormat::ALL {
                let Some(told) = tell(&entries, format, bytes_max) else { continue };
                prop_assert!(told.value.len() <= bytes_max);
                let read = read_again(&told);
                let kept = &entries[..entries.len() - told.dropped];
                for Entry { metric, value } in kept {
                    let again = read.iter().find(|(name, _)| name == metric.name).map(|(_, value)| *value);
                    // In the message a field that is 0 is not there.
                    let again = again.unwrap_or(0.0);
                    prop_assert!((again - value).abs() <= value * 1e-5 + 1e-6, "{} {value} {again}", metric.name);
                }
            }
        }

        #[test]
        fn any_number_at_all_is_told_within_the_bound(values in prop::collection::vec(any::<f64>(), METRICS.len())) {
            let entries: Vec<_> = METRICS.into_iter().zip(values).map(|(metric, value)| Entry { metric, value }).collect();
            for format in ReportFormat::ALL {
                if let Some(told) = tell(&entries, format, 512) {
                    prop_assert!(told.value.len() <= 512 && told.value.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
                }
            }
        }
    }
}

//! In which form an answer goes out: JSON for programs, or the text that `snapgate lookup` prints.

use axum::http::{HeaderMap, header};

use super::shape::Format;
use crate::telemetry::metrics;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Documents and problems.
    Json,
    /// Sentences, pictures and tables.
    Text,
}

impl Form {
    /// The form the client likes better; JSON unless it asks for text.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let text = Liking::of(headers, "text", "plain");
        let json = Liking::of(headers, "application", "json").max(Liking::of(headers, "application", "problem+json"));
        if text.quality > 0 && text > json { Self::Text } else { Self::Json }
    }
}

/// The format of documents and tables that the client likes best: the usual one unless it likes another better.
pub(super) fn format_wanted(headers: &HeaderMap, usual: Format) -> Format {
    let liking = |format| {
        let names: &[_] = match format {
            Format::Json => &[("application", "json")],
            Format::Ndjson => &[("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl")],
            Format::Csv => &[("text", "csv")],
        };
        names.iter().map(|(family, subtype)| Liking::of(headers, family, subtype)).max().unwrap_or_default()
    };
    let others = [Format::Json, Format::Ndjson, Format::Csv].into_iter().filter(|format| *format != usual);
    others.chain([usual]).max_by_key(|format| liking(*format)).unwrap_or(usual)
}

/// The format of the metrics page: Prometheus's own text, which every tool reads, unless OpenMetrics is liked better.
pub(super) fn metrics_wanted(headers: &HeaderMap) -> metrics::Format {
    let text = Liking::of(headers, "text", "plain");
    let open = Liking::of(headers, "application", "openmetrics-text");
    if open > text && open.exactness > 1 { metrics::Format::OpenMetrics } else { metrics::Format::Text }
}

/// How much a client likes a media type: by its quality, then by how exactly it was named, then by the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Liking {
    /// In thousandths.
    quality: u16,
    /// 3 for the type itself, 2 for its family, 1 for anything.
    exactness: u8,
    /// Higher is earlier.
    earliness: i16,
}

impl Liking {
    /// The most exact range that fits decides the quality, as RFC 9110 has it.
    fn of(headers: &HeaderMap, family: &str, subtype: &str) -> Self {
        let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let fitting = ranges.flat_map(|value| value.split(',')).zip(0..).filter_map(|(range, place)| {
            let mut parts = range.split(';').map(str::trim);
            let (range_family, range_subtype) = parts.next()?.split_once('/')?;
            let exactness = match (range_family, range_subtype) {
                ("*", "*") => 1,
                (named, "*") if named.eq_ignore_ascii_case(family) => 2,
                (named, sub) if named.eq_ignore_ascii_case(family) && sub.eq_ignore_ascii_case(subtype) => 3,
                _ => return None,
            };
            Some(Self { quality: quality(parts), exactness, earliness: -place })
        });
        fitting.max_by_key(|liking: &Self| (liking.exactness, liking.earliness)).unwrap_or_default()
    }
}

/// The `q` parameter in thousandths; 1000 without one, 0 for one that makes no sense.
fn quality<'a>(mut parameters: impl Iterator<Item = &'a str>) -> u16 {
    let weight = parameters.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    weight.map_or(1000, |weight| match weight.trim().parse::<f32>() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => (weight * 1000.0) as u16,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_format_is_the_usual_one_unless_another_is_liked_better() {
        use Format::{Csv, Json, Ndjson};
        for (accept, usual, want) in [
            (None, Ndjson, Ndjson),
            (Some("*/*"), Csv, Csv),
            (Some("text/plain"), Json, Json),
            (Some("text/csv"), Json, Csv),
            (Some("text/csv;q=0.5, application/json"), Ndjson, Json),
            (Some("application/x-ndjson, */*;q=0.1"), Json, Ndjson),
            (Some("application/jsonl"), Json, Ndjson),
            (Some("application/*"), Json, Json),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(format_wanted(&headers, usual), want, "{accept:?}");
        }
    }

    #[test]
    fn the_metrics_page_has_exemplars_for_those_who_ask_for_them() {
        use metrics::Format::{OpenMetrics, Text};
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, want) in [
            (None, Text),
            (Some("*/*"), Text),
            (Some(prometheus), OpenMetrics),
            (Some("text/plain;version=0.0.4;q=1,*/*;q=0.1"), Text),
            (Some("application/openmetrics-text"), OpenMetrics),
            (Some("application/openmetrics-text;q=0.4, text/plain;q=0.5"), Text),
            (Some("application/openmetrics-text;q=0.5, text/plain;q=0.4"), OpenMetrics),
            (Some("application/openmetrics-text;q=0, */*"), Text),
            (Some("text/html, */*;q=0.8"), Text),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(metrics_wanted(&headers), want, "{accept:?}");
        }
    }

    #[test]
    fn text_is_for_those_who_ask_for_it() {
        for (accept, want) in [
            (None, Form::Json),
            (Some("*/*"), Form::Json),
            (Some("text/plain"), Form::Text),
            (Some("Text/Plain; charset=utf-8"), Form::Text),
            (Some("text/plain, */*"), Form::Text),
            (Some("text/*"), Form::Text),
            (Some("application/json, text/plain"), Form::Json),
            (Some("text/plain, application/json"), Form::Text),
            (Some("text/plain;q=0.5, application/json"), Form::Json),
            (Some("text/plain, application/json;q=0.9"), Form::Text),
            (Some("text/plain;q=0, */*;q=0.1"), Form::Json),
            (Some("application/problem+json"), Form::Json),
            (Some("text/html,application/xhtml+xml,*/*;q=0.8"), Form::Json),
            (Some("text/plain;q=many"), Form::Json),
            (Some(";;,,/"), Form::Json),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(Form::wanted(&headers), want, "{accept:?}");
        }
    }
}

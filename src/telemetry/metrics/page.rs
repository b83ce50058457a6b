//! The page as text, in either of the two formats that Prometheus reads.

use std::fmt::{Display, Write as _};

use super::histogram::{Exemplar, Histogram};
use crate::telemetry::names::Definition;

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's own text format, which every tool reads.
    Text,
    /// OpenMetrics, which has exemplars.
    OpenMetrics,
}

impl Format {
    /// For the answer's head.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A page in the making.
#[derive(Debug)]
pub(super) struct Page {
    format: Format,
    text: String,
}

impl Page {
    pub(super) fn new(format: Format) -> Self {
        Self { format, text: String::with_capacity(64 * 1024) }
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// A metric with all its series: the values of its labels, and its own.
    pub(super) fn family<'a, V: Display>(
        &mut self,
        definition: &Definition,
        series: impl IntoIterator<Item = (&'a [&'a str], V)>,
    ) {
        self.begin(definition);
        for (labels, value) in series {
            self.series(definition, "", labels, None);
            self.end_line(value, None);
        }
    }

    /// The same, of series that were collected.
    pub(super) fn rows<const LABELS: usize>(
        &mut self,
        definition: &Definition,
        rows: &[([&str; LABELS], impl Display)],
    ) {
        self.family(definition, rows.iter().map(|(labels, value)| (&labels[..], value)));
    }

    /// A metric without labels.
    pub(super) fn single(&mut self, definition: &Definition, value: impl Display) {
        self.family(definition, [(&[][..], value)]);
    }

    /// A histogram with all its series.
    pub(super) fn histograms<'a>(
        &mut self,
        definition: &Definition,
        series: impl IntoIterator<Item = (&'a [&'a str], &'a Histogram)>,
    ) {
        self.begin(definition);
        for (labels, histogram) in series {
            let (sum, buckets) = histogram.read();
            let count = buckets.last().map_or(0, |(_, count, _)| *count);
            for (bound, count, example) in buckets {
                self.series(definition, "_bucket", labels, Some(bound));
                self.end_line(count, example);
            }
            self.series(definition, "_sum", labels, None);
            self.end_line(sum, None);
            self.series(definition, "_count", labels, None);
            self.end_line(count, None);
        }
    }

    /// What kind of metric the lines after it are.
    fn begin(&mut self, definition: &Definition) {
        let Definition { name, kind, unit, help, .. } = definition;
        let name = match self.format {
            Format::Text => name,
            // There the name is the family's, and `_total` the end of its series.
            Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {}", kind.name()));
        let unit = [("s", "seconds"), ("By", "bytes")].into_iter().find(|(short, _)| short == unit);
        if let (Format::OpenMetrics, Some((_, word))) = (self.format, unit)
            && name.ends_with(word)
        {
            self.line(format_args!("# UNIT {name} {word}"));
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{text}").expect("memory does not refuse a write");
    }

    fn series(&mut self, definition: &Definition, suffix: &str, labels: &[&str], bound: Option<f64>) {
        debug_assert_eq!(labels.len(), definition.labels.len(), "{}", definition.name);
        self.text.push_str(definition.name);
        self.text.push_str(suffix);
        let mut separator = '{';
        for (label, value) in definition.labels.iter().zip(labels) {
            self.text.push(separator);
            self.text.push_str(label);
            self.text.push_str("=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
            separator = ',';
        }
        if let Some(bound) = bound {
            self.text.push(separator);
            separator = ',';
            match bound {
                f64::INFINITY => self.text.push_str("le=\"+Inf\""),
                // The same in both formats, or a bucket would be another series when the format changes.
                bound => write!(self.text, "le=\"{bound:?}\"").expect("memory does not refuse a write"),
            }
        }
        self.text.push_str(if separator == '{' { " " } else { "} " });
    }

    fn end_line(&mut self, value: impl Display, example: Option<(f64, Exemplar)>) {
        match example.filter(|_| self.format == Format::OpenMetrics) {
            None => self.line(format_args!("{value}")),
            // 32 + 32 digits and 19 letters: OpenMetrics allows 128.
            Some((observed, Exemplar { snapshot_id, trace_id, at })) => self.line(format_args!(
                "{value} # {{snapshot_id=\"{snapshot_id}\",trace_id=\"{trace_id}\"}} {observed} {}.{:06}",
                at.0 / 1_000_000,
                at.0 % 1_000_000
            )),
        }
    }
}

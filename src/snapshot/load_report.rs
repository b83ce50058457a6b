//! What a target said of its load with an answer: a load report, read and checked. How it is written on the wire is
//! [`crate::orca`]'s business.

/// Metrics in one report at most.
pub const METRICS_MAX: usize = 64;

/// How a report was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// `name=value, name=value`.
    Text,
    /// The JSON of the message.
    Json,
    /// The message itself, in base64.
    Bin,
}

impl ReportFormat {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Text, Self::Json, Self::Bin];

    /// Its name in the document, in configuration and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Bin => "bin",
        }
    }

    /// From its name, in any case.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name().as_bytes().eq_ignore_ascii_case(name))
    }
}

/// With which part of an answer a report came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportPhase {
    /// With its head: for a stream, before the first token.
    ResponseHead,
    /// With its trailers.
    ResponseEnd,
}

impl ReportPhase {
    /// Its name in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ResponseHead => "response_head",
            Self::ResponseEnd => "response_end",
        }
    }
}

/// A metric's name and value; the value is finite and not negative.
pub type ReportMetric = (Box<str>, f64);

/// What the report says. A name is there at most once; together there are at most [`METRICS_MAX`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// The engine's own metrics, by their names.
    pub named_metrics: Vec<ReportMetric>,
    /// All others, by what ORCA calls them: `cpu_utilization`, `utilization.gpu`, `request_cost.tokens`.
    pub other_metrics: Vec<ReportMetric>,
}

impl LoadReport {
    /// The value of a named metric.
    pub fn named(&self, name: &str) -> Option<f64> {
        find(&self.named_metrics, name)
    }

    /// The value of any other metric.
    pub fn other(&self, name: &str) -> Option<f64> {
        find(&self.other_metrics, name)
    }

    /// How many metrics it has.
    pub fn len(&self) -> usize {
        self.named_metrics.len() + self.other_metrics.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn find(metrics: &[ReportMetric], name: &str) -> Option<f64> {
    metrics.iter().find(|(known, _)| **known == *name).map(|(_, value)| *value)
}

/// A report as it stands in the record of the request with whose answer it came. It is of the target of the last attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendReport {
    /// How it was written.
    pub format: ReportFormat,
    /// With which part of the answer it came.
    pub phase: ReportPhase,
    /// Microseconds from accept to when it was read.
    pub received_offset_us: u64,
    /// What it says.
    pub report: LoadReport,
}

impl BackendReport {
    /// An estimate of its memory in bytes.
    pub fn weight(&self) -> usize {
        let metrics = self.report.named_metrics.iter().chain(&self.report.other_metrics);
        size_of::<Self>() + metrics.map(|(name, _)| name.len() + size_of::<ReportMetric>()).sum::<usize>()
    }
}

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

    /// In which format a target is to be asked, as it is written: `none` is an answer, too.
    pub fn asked(text: &str) -> Result<Option<Self>, String> {
        match Self::from_name(text.as_bytes()) {
            None if text != "none" => {
                let names = Self::ALL.map(Self::name).join(", ");
                Err(format!("`ask_for_load_report` has to be one of none, {names}"))
            }
            format => Ok(format),
        }
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

/// What is wrong with a report, or with an entry of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Longer than [`REPORT_BYTES_MAX`](crate::orca::REPORT_BYTES_MAX): it is not looked at.
    TooLarge,
    /// More than [`METRICS_MAX`] metrics.
    TooManyMetrics,
    /// No UTF-8.
    NotText,
    /// None of the three formats.
    UnknownFormat,
    /// The header for binary reports has no value.
    Empty,
    /// No base64 of the standard alphabet.
    NotBase64,
    /// Not the message.
    NotProtobuf,
    /// Not JSON, or no object.
    NotJson,
    /// An entry without a name or without a value.
    NoValue,
    /// A value that is no number.
    NotANumber,
    /// A value that is infinite, negative or no number by its own account, or above 1 where that is all there is.
    OutOfRange,
    /// A metric that the format does not have.
    UnknownName,
    /// The key of a metric is empty, too long, or has characters that no name has.
    BadKey,
    /// The same metric again.
    Duplicate,
    /// The same header again: its first line was read.
    RepeatedHeader,
}

impl Flaw {
    /// All there are.
    pub const ALL: [Self; 15] = [
        Self::TooLarge,
        Self::TooManyMetrics,
        Self::NotText,
        Self::UnknownFormat,
        Self::Empty,
        Self::NotBase64,
        Self::NotProtobuf,
        Self::NotJson,
        Self::NoValue,
        Self::NotANumber,
        Self::OutOfRange,
        Self::UnknownName,
        Self::BadKey,
        Self::Duplicate,
        Self::RepeatedHeader,
    ];

    /// Its name in metrics and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::TooManyMetrics => "too_many_metrics",
            Self::NotText => "not_text",
            Self::UnknownFormat => "unknown_format",
            Self::Empty => "empty",
            Self::NotBase64 => "not_base64",
            Self::NotProtobuf => "not_protobuf",
            Self::NotJson => "not_json",
            Self::NoValue => "no_value",
            Self::NotANumber => "not_a_number",
            Self::OutOfRange => "out_of_range",
            Self::UnknownName => "unknown_name",
            Self::BadKey => "bad_key",
            Self::Duplicate => "duplicate",
            Self::RepeatedHeader => "repeated_header",
        }
    }

    /// Whether it is of one entry, so that all others can be read in spite of it.
    pub fn is_of_an_entry(self) -> bool {
        self as usize >= Self::NoValue as usize
    }
}

/// How often each flaw was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws([u16; Flaw::ALL.len()]);

impl Flaws {
    /// One more. A report is too short to have more than a count can hold.
    pub fn add(&mut self, flaw: Flaw) {
        self.0[flaw as usize] += 1;
    }

    /// Those that were met, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Flaw, u64)> {
        Flaw::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0).map(|(flaw, count)| (flaw, count.into()))
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; Flaw::ALL.len()]
    }
}

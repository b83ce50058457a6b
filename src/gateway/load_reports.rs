//! Load reports that pass: what targets send with their answers is taken out, and clients get what they may.
//!
//! A report is read where it passes, on the data path: there it is new, it is short, and none is sent unless targets are
//! asked. Kept for the pipeline to read, it would come too late for the next choice, and hold the whole head of an answer in
//! memory for as long as the answer lasts.

use http::{HeaderMap, HeaderName, HeaderValue, request};

use super::recorder::Recorder;
use crate::orca::{self, FORMAT_HEADER, HEADERS, METRICS, Rules};
use crate::snapshot::{ReportFormat, ReportPhase, Target};
use crate::telemetry::{Metrics, Untold};
use crate::tenant::{Network, Peer};

/// Asks for a report; whether that is asked is ours to say.
pub(super) const FORMAT: HeaderName = HeaderName::from_static(FORMAT_HEADER);

/// What is done with load reports.
#[derive(Clone, Debug)]
pub struct LoadReports {
    /// How those of targets are read; `None`: not at all.
    pub rules: Option<Rules>,
    /// In which format targets are asked for them, unless one is asked otherwise; `None`: they are not.
    pub ask: Option<ReportFormat>,
    /// What clients get.
    pub to_clients: ToClients,
    /// Who may ask.
    pub trusted: Vec<Network>,
    /// In which format clients get one who did not ask for any.
    pub format: ReportFormat,
    /// The longest value of a header.
    pub bytes_max: usize,
    /// Which of [`METRICS`] clients are told.
    pub told: [bool; METRICS.len()],
}

/// What clients get of load reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToClients {
    /// Nothing.
    Strip,
    /// Those that ask and may: the state of their target as the choice saw it.
    OnRequest,
    /// All of them: likewise.
    Always,
    /// The target's own report, as it came, if it could be read.
    Pass,
}

impl LoadReports {
    /// Whether it matters where a request comes from.
    pub(super) fn needs_peer(&self) -> bool {
        self.to_clients == ToClients::OnRequest
    }

    /// In which format this target is asked for its report.
    pub(super) fn asked_of(&self, target: &Target) -> Option<ReportFormat> {
        target.ask_for_load_report.unwrap_or(self.ask)
    }

    /// In which format the client gets a report; `None` if it gets none.
    pub(super) fn wish(&self, head: &request::Parts, metrics: &Metrics) -> Option<ReportFormat> {
        let asked = match self.to_clients {
            ToClients::Strip | ToClients::Pass => return None,
            ToClients::Always => head.headers.get(FORMAT),
            ToClients::OnRequest => {
                let asked = head.headers.get(FORMAT)?;
                let peer = head.extensions.get::<Peer>();
                if !peer.is_some_and(|Peer(address)| self.trusted.iter().any(|network| network.contains(*address))) {
                    metrics.load_reports.untold(Untold::NotAllowed);
                    return None;
                }
                Some(asked)
            }
        };
        let Some(asked) = asked else { return Some(self.format) };
        let format = ReportFormat::from_name(asked.as_bytes());
        if format.is_none() {
            metrics.load_reports.untold(Untold::UnknownFormat);
        }
        format
    }
}

/// How targets are asked, in the one spelling that all engines know.
pub(super) fn format_value(format: ReportFormat) -> HeaderValue {
    HeaderValue::from_static(format.name())
}

/// Takes every load report out of an answer's head or trailers; `None` if there was none.
pub(super) fn take(headers: &mut HeaderMap) -> Option<HeaderMap> {
    let mut taken = HeaderMap::new();
    for name in HEADERS {
        let before = headers.len();
        if let Some(first) = headers.remove(name) {
            // Of several lines only the first is read; that there were more is remembered.
            for _line in headers.len()..before {
                taken.append(HeaderName::from_static(name), first.clone());
            }
        }
    }
    (!taken.is_empty()).then_some(taken)
}

/// Reads what was taken out of an answer's head or trailers. Only an operator who wants that has it put back.
pub(super) fn received(recorder: &mut Recorder, taken: &HeaderMap, phase: ReportPhase, headers: &mut HeaderMap) {
    let read = recorder.load_reported(taken, phase);
    let LoadReports { to_clients, bytes_max, .. } = recorder.current().settings.load_reports;
    if to_clients == ToClients::Pass
        && let Some(name) = read
        && let Some(value) = taken.get(name).filter(|value| value.len() <= bytes_max)
    {
        headers.insert(HeaderName::from_static(name), value.clone());
    }
}

/// Tells the client of the target whose answer it gets, as the choice saw it.
pub(super) fn tell(recorder: &Recorder, wish: ReportFormat, headers: &mut HeaderMap) {
    let metrics = recorder.metrics();
    let LoadReports { told, bytes_max, .. } = recorder.current().settings.load_reports;
    let wanted = |name: &str| METRICS.iter().zip(told).any(|(metric, told)| told && metric.name == name);
    let entries = recorder.seen().map(|(decision, sample)| orca::state(decision.decided, sample, wanted));
    let report = entries.and_then(|entries| orca::tell(&entries, wish, bytes_max));
    let Some(report) = report else { return metrics.load_reports.untold(Untold::NothingKnown) };
    if let Ok(mut value) = HeaderValue::try_from(report.value) {
        // It changes all the time: no place in a connection's table of headers is worth it.
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(report.header), value);
        metrics.load_reports.told(wish, report.dropped);
    }
}

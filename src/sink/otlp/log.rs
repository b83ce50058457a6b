//! A request as one log record, whose body is the document in JSON: what a log store keeps as the line.

use super::names::conventions::{GEN_AI_REQUEST_MODEL, HTTP_RESPONSE_STATUS_CODE};
use super::names::{events, own};
use super::proto::{Attributes, bytes, fixed32, fixed64, message, number};
use crate::snapshot::{Document, Fault, Record, SpanId};

/// Fields of `LogRecord`.
const TIME: u32 = 1;
const SEVERITY_NUMBER: u32 = 2;
const SEVERITY_TEXT: u32 = 3;
const BODY: u32 = 5;
const ATTRIBUTES: u8 = 6;
const FLAGS: u32 = 8;
const TRACE_ID: u32 = 9;
const SPAN_ID: u32 = 10;
const OBSERVED_TIME: u32 = 11;
const EVENT_NAME: u32 = 12;

/// Writes one log record after the other.
#[derive(Debug, Default)]
pub(super) struct Logs {
    line: Vec<u8>,
}

impl Logs {
    /// Appends the log record of a finished request as field `field` of the message that surrounds it.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, field: u32, record: &Record) {
        let Some(outcome) = record.outcome() else { return };
        let issued = &record.issued;
        self.line.clear();
        Document::of(record).write(&mut self.line);
        let end = (issued.issued_at.0 + outcome.timings.end_offset_us) * 1_000;
        let (severity, word) = match outcome.fault() {
            None => (9, "INFO"),
            Some(Fault::Client) => (13, "WARN"),
            Some(Fault::Target | Fault::Gateway) => (17, "ERROR"),
        };
        message(out, field, |out| {
            fixed64(out, TIME, end);
            fixed64(out, OBSERVED_TIME, end);
            number(out, SEVERITY_NUMBER, severity);
            bytes(out, SEVERITY_TEXT, word.as_bytes());
            // Of `AnyValue`: a text.
            message(out, BODY, |out| bytes(out, 1, &self.line));
            let mut to = Attributes::new(out, ATTRIBUTES);
            to.text(own::LOG_SNAPSHOT_ID, issued.id.to_hex().as_str());
            to.text(GEN_AI_REQUEST_MODEL, issued.request.model.as_deref());
            to.text(own::ENDING, outcome.ending.name());
            to.text(own::OUTCOME_TARGET, outcome.target().map(|target| &*target.name));
            to.int(HTTP_RESPONSE_STATUS_CODE, outcome.status.map(u64::from));
            fixed32(out, FLAGS, issued.trace.flags().into());
            bytes(out, TRACE_ID, &issued.trace.trace_id.as_u128().to_be_bytes());
            bytes(out, SPAN_ID, &SpanId::of_server(issued.id).as_u64().to_be_bytes());
            bytes(out, EVENT_NAME, events::SNAPSHOT.as_bytes());
        });
    }
}

//! A target's answer from its head on: what is read of it as it passes, until the record's outcome is made of that.

use super::Gateway;
use super::recorder::guarded;
use super::scan::Scanner;
#[cfg(test)]
use super::tests::Trap;
use crate::snapshot::outcome::Answer;
use crate::snapshot::{Attempt, BackendReport, Ending, Outcome, SnapshotId, Timings};
use crate::telemetry::log::tell_of_bug;

/// What is known of an answer that has not ended.
#[derive(Debug)]
pub(super) struct AnswerSoFar {
    pub(super) status: u16,
    pub(super) first_byte_us: u64,
    /// How long the engine says in that head that the request waited in its queue.
    pub(super) engine_queue_us: Option<u64>,
    pub(super) scanner: Scanner,
    pub(super) bytes: u64,
    /// Of a WebSocket, from the target.
    pub(super) messages: u64,
    /// What the target said of its load.
    pub(super) report: Option<Box<BackendReport>>,
    /// Already added to the target's counter.
    pub(super) tokens: u64,
}

impl AnswerSoFar {
    /// Its head is here, and nothing more.
    pub(super) fn new(status: u16, first_byte_us: u64, engine_queue_us: Option<u64>, scanner: Scanner) -> Self {
        Self { status, first_byte_us, engine_queue_us, scanner, bytes: 0, messages: 0, report: None, tokens: 0 }
    }

    pub(super) fn outcome(
        self,
        id: SnapshotId,
        ending: Ending,
        attempts: Vec<Attempt>,
        error: Option<Box<str>>,
        end_offset_us: u64,
        gateway: &Gateway,
    ) -> Outcome {
        let scan = guarded(|| {
            #[cfg(test)]
            gateway.spring(Trap::ScanEnd);
            self.scanner.finish()
        })
        .unwrap_or_else(|| {
            tell_of_bug!(id, "a bug: what an answer said is left out");
            Scanner::broken().finish()
        });
        if scan.failed {
            gateway.metrics.scan_failed();
        }
        Outcome {
            ending,
            status: Some(self.status),
            error,
            attempts,
            response_bytes: self.bytes,
            events: scan.events + self.messages,
            answer: Answer { load_report: self.report, ..scan.answer },
            timings: Timings {
                first_byte_offset_us: Some(self.first_byte_us),
                first_event_offset_us: scan.first_event_offset_us,
                first_content_offset_us: scan.first_content_offset_us,
                end_offset_us,
                inter_token_p50_us: scan.inter_token_p50_us,
                inter_token_p99_us: scan.inter_token_p99_us,
                inter_token_max_us: scan.inter_token_max_us,
                engine_queue_us: self.engine_queue_us.or(scan.engine_queue_us),
            },
            // Until all is known.
            trace_exported: None,
        }
    }
}

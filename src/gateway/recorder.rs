//! The one guard of a request: it owns the draft from the first header on and writes exactly one finish.
//!
//! Whatever ends the request, the recorder is either told ([`Recorder::finish`]) or dropped, and `Drop` names what it was.
//! It is synchronous throughout, because `Drop` cannot wait and neither may the data path.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::Guard;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, request};

use super::answer_so_far::AnswerSoFar;
use super::request_peek::{Peek, Prompt};
use super::scan::{Scanner, Seen};
use super::steer::{Steer, Undecided};
#[cfg(test)]
use super::tests::Trap;
use super::{Current, Gateway, PANICKED, identify};
use crate::choose::Choice;
use crate::orca::{self, Read};
use crate::snapshot::outcome::Answer;
use crate::snapshot::{
    Attempt, BackendReport, Decision, Ending, FleetView, Issued, Live, Moment, Outcome, Reason, Record, ReportPhase,
    Request, Retry, Sample, SnapshotId, Target, Timings, TraceContext,
};
use crate::telemetry::Metrics;
use crate::telemetry::log::tell_of_bug;

/// Owns a request's draft; consumes it exactly once.
#[derive(Debug)]
pub struct Recorder {
    gateway: Arc<Gateway>,
    /// The configuration: that of the accept, and from the choice on that of the view it is made from.
    current: Arc<Current>,
    /// Captured, and not chosen from yet.
    view: Option<Guard<Arc<FleetView>>>,
    draft: Option<Draft>,
}

/// Where a request may be tried again.
#[derive(Debug)]
pub(super) struct Elsewhere {
    target: Arc<Target>,
    retry: Box<Retry>,
    live: Arc<Live>,
    /// What the target came with.
    current: Arc<Current>,
}

/// What is known of a request that has not ended.
#[derive(Debug)]
struct Draft {
    id: SnapshotId,
    accepted: Instant,
    issued_at: Moment,
    trace: TraceContext,
    stage: Stage,
    attempts: Vec<Attempt>,
    answer: Option<AnswerSoFar>,
}

/// Before the decision the facts are here; after it they are in the record, which no longer changes.
#[derive(Debug)]
enum Stage {
    Undecided(Request),
    Decided { record: Arc<Record>, live: Arc<Live> },
}

impl Recorder {
    /// From here on the request has a name and will have one record, whatever happens.
    pub fn begin(gateway: &Arc<Gateway>, accepted: Instant) -> Self {
        let (id, issued_at) = gateway.mint.issue(accepted);
        let (stage, trace) = (Stage::Undecided(Request::default()), TraceContext::root(id));
        let draft = Draft { id, accepted, issued_at, trace, stage, attempts: Vec::new(), answer: None };
        gateway.metrics.in_flight.inc();
        Self { gateway: Arc::clone(gateway), current: gateway.current.load_full(), view: None, draft: Some(draft) }
    }

    /// Reads the request's head.
    pub(super) fn identify(&mut self, head: &request::Parts) {
        #[cfg(test)]
        self.gateway.spring(Trap::Identify);
        let request = self.current.wanted.request(head);
        self.facts(request);
        let trace = identify::trace(self.draft().id, &head.headers, &self.current.settings.sampling);
        self.draft_mut().trace = trace;
    }

    /// What is known of the request before its body.
    pub fn facts(&mut self, request: Request) {
        self.draft_mut().stage = Stage::Undecided(request);
    }

    /// What the request's configuration is: until the choice that of its accept, then that which its target came with.
    pub(super) fn current(&self) -> &Arc<Current> {
        &self.current
    }

    /// Captures the fleet, and with it the configuration that its targets belong to: a request whose body was still coming
    /// when both changed is chosen for as one that comes now. Answers what the choice depends on besides the fleet.
    pub fn steer<'r>(&mut self, headers: &'r HeaderMap, model: Option<&str>, prompt: Prompt<'_>) -> Steer<'r> {
        let view = self.gateway.fleet.view();
        adopt(&mut self.current, &view);
        self.view = Some(view);
        self.current.steering.of(headers, model, prompt)
    }

    /// The request's name.
    pub fn id(&self) -> SnapshotId {
        self.draft().id
    }

    /// Its place in a trace.
    pub(super) fn trace(&self) -> TraceContext {
        self.draft().trace
    }

    /// Microseconds since accept.
    pub(super) fn elapsed_us(&self) -> u64 {
        micros(self.draft().accepted)
    }

    /// The body was read; what of it could be understood goes into the record.
    pub(super) fn body_read(&mut self, bytes: usize, peek: Peek<'_>) {
        if let Stage::Undecided(request) = &mut self.draft_mut().stage {
            request.body_bytes = bytes as u64;
            request.body_unread = bytes > 0 && !peek.readable;
            request.model = peek.model;
            request.stream = peek.stream;
            request.max_tokens = peek.max_tokens;
        }
    }

    /// The model that was asked for, before the decision.
    pub(super) fn model(&self) -> Option<&str> {
        match &self.draft().stage {
            Stage::Undecided(request) => request.model.as_deref(),
            Stage::Decided { record, .. } => record.issued.request.model.as_deref(),
        }
    }

    /// Chooses from the captured fleet, and enters the decision into the ledger: from here on the ID resolves. To be called
    /// once, after [`Recorder::steer`] and before the finish.
    pub fn decide(&mut self, steer: &Steer<'_>) -> Result<Arc<Record>, Undecided> {
        let Self { gateway, current, view, draft } = self;
        let draft = draft.as_mut().expect("a request is decided before its finish");
        let Stage::Undecided(request) = &mut draft.stage else { unreachable!("a request is decided once") };
        let began = Instant::now();
        #[cfg(test)]
        gateway.spring(Trap::Choose);
        let view = view.take().expect("a request is steered before it is decided");
        let (choice, inputs, eligible) = current.steering.choose(&view, request.model.as_deref(), steer, &[])?;
        let Choice { candidates, excluded, reason, fallback, live } = choice;
        live.begin();
        let decided = Instant::now();
        let decision = Decision {
            policy: steer.policy,
            reason,
            forced: reason == Reason::Forced,
            fallback,
            decided_offset_ns: nanos(draft.accepted, decided),
            choose_ns: nanos(began, decided),
            decided: gateway.clock.at(decided),
            view_published: view.published,
            eligible,
            excluded,
            candidates,
            inputs,
        };
        let request = std::mem::take(request);
        let record = Arc::new(Record::open(draft.issued(current, request, Some(decision))));
        gateway.ledger.insert(Arc::clone(&record));
        draft.stage = Stage::Decided { record: Arc::clone(&record), live };
        Ok(record)
    }

    /// Looks for a target that the request has not met, in the view of now. Targets, width and credentials are those of the
    /// configuration that came with the view; policy and hashes stay what the first choice went by.
    pub(super) fn elsewhere(&self, steer: &Steer<'_>) -> Option<Elsewhere> {
        let Draft { stage: Stage::Decided { record, .. }, attempts, .. } = self.draft.as_ref()? else { return None };
        let view = self.gateway.fleet.view();
        let mut current = Arc::clone(&self.current);
        adopt(&mut current, &view);
        let model = record.issued.request.model.as_deref();
        let (choice, inputs, eligible) = current.steering.choose(&view, model, steer, attempts).ok()?;
        let chosen = choice.candidates.first()?;
        let retry = Retry {
            reason: choice.reason,
            fallback: choice.fallback,
            view_age_ms: self.gateway.clock.now().ms_since(view.published),
            eligible,
            excluded: choice.excluded,
            considered: choice.candidates.len() as u32,
            score: chosen.score,
            draw: inputs.draw,
        };
        let target = Arc::clone(&chosen.sample.target);
        Some(Elsewhere { target, retry: Box::new(retry), live: choice.live, current })
    }

    /// Goes there: the request is counted at that target from now on, and is of the configuration that it came with.
    pub(super) fn go(&mut self, elsewhere: Elsewhere) -> (Arc<Target>, Box<Retry>) {
        let Elsewhere { target, retry, live: moved, current } = elsewhere;
        if let Stage::Decided { live, .. } = &mut self.draft_mut().stage {
            live.failed();
            live.end();
            moved.begin();
            *live = moved;
        }
        self.current = current;
        (target, retry)
    }

    /// A try begins, after others if `retry` says why; [`Recorder::last_attempt`] takes what becomes of it.
    pub(super) fn attempt(&mut self, target: &Arc<Target>, retry: Option<Box<Retry>>) {
        let started_offset_us = self.elapsed_us();
        self.draft_mut().attempts.push(Attempt {
            target: Arc::clone(target),
            started_offset_us,
            connect_us: None,
            first_byte_offset_us: None,
            status: None,
            error: None,
            retry,
        });
    }

    /// What became of the try under way.
    pub(super) fn last_attempt(&mut self) -> Option<&mut Attempt> {
        self.draft_mut().attempts.last_mut()
    }

    /// The head of the target's answer is here.
    pub(super) fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        #[cfg(test)]
        self.gateway.spring(Trap::Head);
        let first_byte_us = self.elapsed_us();
        let Self { gateway, draft, .. } = self;
        let draft = draft.as_mut().expect("an answer begins before its request's finish");
        if let Some(attempt) = draft.attempts.last_mut() {
            attempt.first_byte_offset_us = Some(first_byte_us);
            attempt.status = Some(status.as_u16());
        }
        let (mut stream_asked, mut engine_queue_us) = (false, None);
        if let Stage::Decided { record, live } = &draft.stage {
            record.progress.head(status.as_u16(), first_byte_us);
            stream_asked = record.issued.request.stream == Some(true);
            engine_queue_us = gateway.fleet.engine_queue_us(live, headers);
        }
        let value = |name| headers.get(name).map(HeaderValue::as_bytes);
        let scanner = Scanner::for_answer(value(header::CONTENT_TYPE), value(header::CONTENT_ENCODING), stream_asked);
        draft.answer = Some(AnswerSoFar::new(status.as_u16(), first_byte_us, engine_queue_us, scanner));
    }

    /// A load report came with the answer's head or trailers. It goes into the record and, for the next view, to what is known
    /// of the target; the first that can be read counts. Answers in which header this one came, if it could be read.
    pub(super) fn load_reported(&mut self, headers: &HeaderMap, phase: ReportPhase) -> Option<&'static str> {
        let Self { gateway, current, draft, .. } = self;
        let (rules, draft) = (current.settings.load_reports.rules?, draft.as_mut()?);
        let answer = draft.answer.as_mut().filter(|answer| answer.report.is_none())?;
        let now = Instant::now();
        let id = draft.id;
        let read = guarded(|| orca::read(headers, rules)).unwrap_or_else(|| {
            tell_of_bug!(id, "a bug: a load report is not read");
            Ok(None)
        });
        let Read { header, format, report, flaws } = match read {
            Ok(Some(read)) => read,
            Ok(None) => return None,
            Err(flaw) => {
                gateway.metrics.load_reports.refused(flaw);
                let pod = draft.attempts.last().map(|attempt| &*attempt.target.name);
                tracing::debug!(snapshot_id = %id, pod, reason = flaw.name(), "a load report is of no use");
                return None;
            }
        };
        gateway.metrics.load_reports.read(format, flaws);
        if let Stage::Decided { live, .. } = &draft.stage {
            live.reported(orca::quantities(&report), gateway.clock.at(now));
        }
        let received_offset_us = nanos(draft.accepted, now) / 1_000;
        answer.report = Some(Box::new(BackendReport { format, phase, received_offset_us, report }));
        Some(header)
    }

    /// The decision, and what it saw of the target whose answer is delivered; `None` if it did not look at that one.
    pub(super) fn seen(&self) -> Option<(&Decision, &Sample)> {
        let Draft { stage: Stage::Decided { record, .. }, attempts, .. } = self.draft.as_ref()? else { return None };
        let (decision, slot) = (record.issued.decision.as_ref()?, attempts.last()?.target.slot);
        let candidate = decision.candidates.iter().find(|candidate| candidate.sample.target.slot == slot)?;
        Some((decision, candidate.sample.as_ref()))
    }

    /// Where it is counted.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.gateway.metrics
    }

    /// A piece of the answer's body passes at this moment.
    pub(super) fn frame(&mut self, data: &Bytes, now: Instant) {
        #[cfg(test)]
        self.gateway.spring(Trap::Frame);
        #[cfg(test)]
        let gateway = Arc::clone(&self.gateway);
        let draft = self.draft_mut();
        let at_us = now.saturating_duration_since(draft.accepted).as_micros() as u64;
        let Some(answer) = &mut draft.answer else { return };
        answer.bytes += data.len() as u64;
        let scanned = guarded(|| {
            #[cfg(test)]
            gateway.spring(Trap::Scan);
            answer.scanner.frame(data, at_us)
        });
        let id = draft.id;
        let seen = scanned.unwrap_or_else(|| {
            tell_of_bug!(id, "a bug: an answer is not read any further, only passed on");
            answer.scanner = Scanner::broken();
            Seen::default()
        });
        if let Stage::Decided { record, live } = &draft.stage {
            record.progress.body(answer.bytes, answer.scanner.events());
            if seen.content_events > 0 {
                answer.tokens += u64::from(seen.content_events);
                live.add_tokens(seen.content_events.into());
            }
        }
    }

    /// What the target has sent by now over a WebSocket.
    pub(super) fn passed(&mut self, bytes: u64, messages: u64) {
        #[cfg(test)]
        self.gateway.spring(Trap::Tunnel);
        let draft = self.draft_mut();
        let Some(answer) = &mut draft.answer else { return };
        (answer.bytes, answer.messages) = (bytes, messages);
        if let Stage::Decided { record, .. } = &draft.stage {
            record.progress.body(bytes, messages);
        }
    }

    /// Writes the one finish. `status` is what the client was or would have been sent, if not the target's.
    pub fn finish(&mut self, ending: Ending, status: Option<u16>, error: Option<Box<str>>) {
        let Some(draft) = self.draft.take() else { return };
        let gateway = &self.gateway;
        gateway.metrics.in_flight.dec();
        draft.finish(gateway, &self.current, ending, status, error);
    }

    fn draft(&self) -> &Draft {
        self.draft.as_ref().expect("a recorder is asked only before its finish")
    }

    fn draft_mut(&mut self) -> &mut Draft {
        self.draft.as_mut().expect("a recorder is told only before its finish")
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if self.draft.is_none() {
            return;
        }
        let (ending, error) = if std::thread::panicking() {
            tell_of_bug!(self.id(), "a bug in the gateway broke an answer off");
            (Ending::Internal, Some(PANICKED.into()))
        } else if self.gateway.is_cut_short() {
            (Ending::Shutdown, None)
        } else {
            (Ending::ClientDisconnected, None)
        };
        self.finish(ending, None, error);
    }
}

impl Draft {
    fn issued(&self, current: &Current, request: Request, decision: Option<Decision>) -> Issued {
        Issued {
            id: self.id,
            issued_at: self.issued_at,
            run: Arc::clone(&current.run),
            trace: self.trace,
            request,
            decision,
        }
    }

    fn finish(
        mut self,
        gateway: &Gateway,
        current: &Current,
        ending: Ending,
        status: Option<u16>,
        error: Option<Box<str>>,
    ) {
        let end_offset_us = micros(self.accepted);
        let attempts = std::mem::take(&mut self.attempts);
        let counted = self.answer.as_ref().map_or(0, |answer| answer.tokens);
        let mut outcome = match self.answer.take() {
            Some(answer) => answer.outcome(self.id, ending, attempts, error, end_offset_us, gateway),
            None => Outcome {
                ending,
                status: status.or(Some(ending.status())),
                error,
                attempts,
                response_bytes: 0,
                events: 0,
                answer: Answer::default(),
                timings: Timings { end_offset_us, ..Timings::default() },
                trace_exported: None,
            },
        };
        let (record, live) = match std::mem::replace(&mut self.stage, Stage::Undecided(Request::default())) {
            Stage::Decided { record, live } => (record, Some(live)),
            Stage::Undecided(request) => (Arc::new(Record::open(self.issued(current, request, None))), None),
        };
        // A bug in what a finish works out costs that, and never the record.
        let trace_exported = guarded(|| {
            #[cfg(test)]
            gateway.spring(Trap::Finish);
            self.ended(&outcome, live.as_deref(), counted);
            current.settings.sampling.exports(&record.issued, &outcome)
        });
        outcome.trace_exported = trace_exported.unwrap_or_else(|| {
            tell_of_bug!(self.id, "a bug: what follows from a request's end is left out");
            None
        });
        live.iter().for_each(|live| live.end());
        // Marked in the ledger first, sent second: a lookup never sees a request that has left both.
        record.finish(outcome);
        if live.is_none() {
            gateway.ledger.insert(Arc::clone(&record));
        }
        gateway.intake.offer(record);
    }

    /// What an end says of the target, of whose tokens so many were `counted` already; and to who reads the log.
    fn ended(&self, outcome: &Outcome, live: Option<&Live>, counted: u64) {
        let Outcome { ending, status, ref error, timings: Timings { end_offset_us, .. }, .. } = *outcome;
        let error = error.as_deref();
        tracing::debug!(snapshot_id = %self.id, ending = ending.name(), status, error, end_offset_us, "request ended");
        let Some(live) = live else { return };
        match ending {
            Ending::Completed if status.is_some_and(|status| status < 500) => live.answered(),
            // A WebSocket ends as its client makes it: nobody shall talk a target out of its requests.
            Ending::UpstreamReset | Ending::UpstreamTimeout if status == Some(101) => {}
            Ending::Completed | Ending::UpstreamReset | Ending::UpstreamTimeout => live.failed(),
            _ => {}
        }
        live.add_tokens(outcome.answer.completion_tokens.unwrap_or(0).saturating_sub(counted));
    }
}

/// Takes up the configuration that a view came with, if it is another one.
fn adopt(current: &mut Arc<Current>, view: &FleetView) {
    let Some(with) = &view.with else { return };
    if Arc::as_ptr(with).cast::<Current>() != Arc::as_ptr(current)
        && let Ok(with) = Arc::clone(with).downcast::<Current>()
    {
        *current = with;
    }
}

/// Runs what the record could do without, such as the scanner: a bug in it costs what it would have found out, never the
/// stream and never the record.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

fn nanos(since: Instant, until: Instant) -> u64 {
    until.saturating_duration_since(since).as_nanos() as u64
}

//! OpenTelemetry: finished requests as spans, and if wanted as log records, to whatever speaks OTLP.
//!
//! ```text
//! records ─▶ request.rs: as many as fit in one buffer ─▶ client.rs: gRPC or HTTP ─▶ answer.rs: taken, later or never
//!              span.rs, log.rs: how each is written
//!              names.rs: the names, proto.rs: the bytes
//! ```
//!
//! A record is encoded straight into the bytes that go out; resource and scope are encoded once. Requests that do not
//! depend on each other go out together. Whether to try again is the lane's business: a repeat is encoded anew, with the same
//! trace and span IDs.

mod answer;
mod client;
mod log;
mod names;
mod proto;
#[cfg(test)]
mod registry;
mod request;
mod span;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::{HeaderMap, Uri};
use tokio::runtime::Handle;
use tokio::sync::watch;

use answer::Answer;
use client::Client;
pub use request::{Encoder, Request};

use super::{Refusal, Sink, Taken};
use crate::clock::Clock;
use crate::snapshot::Record;
use crate::tls::{self, Connector};

/// The media type of a message.
const PROTOBUF: &[u8] = b"application/x-protobuf";

/// What an exit sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Log records.
    Logs,
}

impl Signal {
    /// The exit's name in metrics and in the store's cursors.
    pub const fn exit(self) -> &'static str {
        match self {
            Self::Traces => "otlp_traces",
            Self::Logs => "otlp_logs",
        }
    }

    /// Where it goes over HTTP, below the endpoint.
    pub const fn http_path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Logs => "/v1/logs",
        }
    }

    /// The gRPC method.
    pub const fn grpc_path(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }
}

/// How a receiver is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC, over HTTP/2.
    Grpc,
    /// A POST of protobuf, over HTTP/1.1.
    Http,
}

/// Where one signal goes, and how.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// All of it: with the signal's path.
    pub url: Uri,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Sent with each request; marked as sensitive.
    pub headers: HeaderMap,
    /// Whether requests are compressed.
    pub gzip: bool,
    /// The longest one request may take.
    pub timeout: Duration,
    /// Whom we believe and who we are, with `https`.
    pub tls: tls::ClientSettings,
}

/// What goes out.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where spans go; `None` if they do not.
    pub traces: Option<Receiver>,
    /// Where log records go; `None` if they do not.
    pub logs: Option<Receiver>,
    /// One request's size before compression.
    pub batch_bytes: usize,
    /// Requests of one signal that are on their way at once.
    pub in_flight: usize,
    /// Candidates of a decision that spans tell of, best first.
    pub candidates: usize,
    /// `service.name`.
    pub service_name: String,
    /// Further attributes of the resource.
    pub resource: Vec<(String, String)>,
    /// `gen_ai.provider.name`.
    pub provider: String,
    /// Whether clients speak TLS to the gateway.
    pub https: bool,
}

impl Settings {
    /// Whether anything goes out.
    pub const fn is_on(&self) -> bool {
        self.traces.is_some() || self.logs.is_some()
    }

    /// Each signal that goes out, and where.
    pub fn receivers(&self) -> impl Iterator<Item = (Signal, &Receiver)> {
        let both = [(Signal::Traces, &self.traces), (Signal::Logs, &self.logs)];
        both.into_iter().filter_map(|(signal, receiver)| Some((signal, receiver.as_ref()?)))
    }
}

/// The exit of one signal.
#[derive(Debug)]
pub struct Otlp {
    signal: Signal,
    client: Client,
    encoder: Encoder,
    in_flight: usize,
    /// The last request was refused: one at a time, until one is taken.
    cautious: bool,
    /// The moment of the stop's end, once it is known.
    stop_at: watch::Sender<Option<Instant>>,
    /// Where connections live; the lane's thread waits for them.
    runtime: Handle,
}

impl Otlp {
    /// The exits that the settings ask for. `connectors` are for those with `https`, in the order of [`Settings::receivers`].
    pub fn exits(
        settings: &Settings,
        connectors: &[Arc<Connector>],
        clock: &Arc<Clock>,
        runtime: &Handle,
    ) -> Vec<Self> {
        let exits = settings.receivers().enumerate().map(|(index, (signal, receiver))| Self {
            signal,
            client: Client::new(receiver, connectors.get(index).cloned(), Arc::clone(clock)),
            encoder: Encoder::new(signal, settings),
            in_flight: settings.in_flight,
            cautious: false,
            stop_at: watch::Sender::new(None),
            runtime: runtime.clone(),
        });
        exits.collect()
    }

    /// Encodes what can go out at once, and sends it; answers with what became of each request, in order.
    fn send(&mut self, mut records: &[Arc<Record>]) -> Vec<(Request, Answer)> {
        let together = if self.cautious { 1 } else { self.in_flight };
        let mut requests = Vec::new();
        while !records.is_empty() && requests.len() < together {
            let request = self.encoder.encode(records);
            records = &records[request.records..];
            requests.push(request);
        }
        let (client, stop_at) = (&self.client, &self.stop_at);
        let sent = requests.iter().map(|request| {
            let body = (request.items > 0).then(|| client.body(request));
            async move {
                match body {
                    Some(body) => client.send(body, stop_at.subscribe()).await,
                    // None of its records is for this exit.
                    None => Answer::Taken { rejected: 0, message: String::new() },
                }
            }
        });
        let answers = self.runtime.block_on(join_all(sent));
        requests.into_iter().zip(answers).collect()
    }
}

impl Sink for Otlp {
    fn name(&self) -> &'static str {
        self.signal.exit()
    }

    fn reasons(&self) -> &'static [&'static str] {
        answer::REASONS
    }

    fn stop_at(&self) -> Option<watch::Sender<Option<Instant>>> {
        Some(self.stop_at.clone())
    }

    fn deliver(&mut self, records: &[Arc<Record>]) -> Result<Taken, Refusal> {
        let exit = self.signal.exit();
        let mut taken = Taken::default();
        for (request, answer) in self.send(records) {
            let receiver = self.client.url();
            match answer {
                // What came after a refused one, if taken, is repeated: its receiver can tell by the IDs.
                _ if taken.refused.is_some() => {}
                Answer::Taken { rejected, message } => {
                    match (rejected, &*message) {
                        (0, "") => {}
                        (0, _) => {
                            tracing::warn!(exit, %receiver, said = message, "the receiver took a request and warns");
                        }
                        _ => tracing::error!(
                            exit,
                            %receiver,
                            rejected,
                            said = message,
                            "the receiver refused a part of a request for good"
                        ),
                    }
                    taken.records += request.records;
                    taken.skipped += request.skipped;
                    // Which ones is not said, so each refused span is taken for one of another request.
                    taken.rejected += rejected.min(request.records as u64 - request.skipped);
                }
                Answer::Refused { refusal, message } => {
                    let reason = refusal.reason();
                    let advice = answer::advice(reason);
                    let said = message;
                    tracing::warn!(exit, %receiver, reason, said, advice, "the receiver did not take a request");
                    taken.refused = Some((refusal, request.records));
                }
            }
            self.encoder.reuse(request);
        }
        self.cautious = taken.refused.is_some();
        Ok(taken)
    }
}

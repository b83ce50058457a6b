//! Export requests: as many records as fit are encoded one after the other into one buffer, which goes out as it is.

use std::sync::Arc;

use bytes::Bytes;

use super::log::Logs;
use super::names::conventions::{SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION};
use super::names::own::INSTANCE_TAG;
use super::proto::{self, Attributes};
use super::span::Spans;
use super::{Settings, Signal};
use crate::snapshot::{Record, Run};

/// The version of the conventions that most of the names are from.
const SCHEMA_URL: &[u8] = b"https://opentelemetry.io/schemas/1.41.0";

/// What every message is preceded by in gRPC: whether it is compressed, and its length.
pub(super) const GRPC_PREFIX_BYTES: usize = 5;

/// Room before the records for what surrounds them, besides resource and scope: the prefix, two tags and two lengths.
const LENGTHS_BYTES: usize = GRPC_PREFIX_BYTES + 2 * (1 + 5);

/// The prefix of a message of that length.
pub(super) fn grpc_prefix(compressed: bool, length: usize) -> [u8; GRPC_PREFIX_BYTES] {
    let [a, b, c, d] = u32::try_from(length).expect("a setting bounds a request to less").to_be_bytes();
    [u8::from(compressed), a, b, c, d]
}

/// What is the same for all records.
#[derive(Debug)]
pub(super) struct Facts {
    /// How clients speak to the gateway: `http` or `https`.
    pub(super) scheme: &'static str,
    /// `gen_ai.provider.name`.
    pub(super) provider: String,
    /// Candidates of a decision that are told of.
    pub(super) candidates: usize,
}

/// Encodes records of one signal.
#[derive(Debug)]
pub struct Encoder {
    signal: Signal,
    spans: Spans,
    logs: Logs,
    service_name: String,
    /// Attributes of the resource as configured.
    resource: Vec<(String, String)>,
    bytes_max: usize,
    /// Of the run whose records were encoded last: `Resource` and `InstrumentationScope`, as fields.
    run: Option<(Arc<Run>, Vec<u8>, Vec<u8>)>,
    /// Buffers of requests that are done with.
    spare: Vec<Vec<u8>>,
}

/// One export request.
#[derive(Debug)]
pub struct Request {
    /// How many records from the first on it is about.
    pub records: usize,
    /// Of these, not for this exit.
    pub skipped: u64,
    /// What the receiver counts by: spans or log records.
    pub items: u64,
    buffer: Bytes,
    /// Where in it the message begins, after its prefix.
    start: usize,
}

impl Request {
    /// The message.
    pub fn message(&self) -> Bytes {
        self.buffer.slice(self.start..)
    }

    /// The message and its prefix.
    pub(super) fn framed(&self) -> Bytes {
        self.buffer.slice(self.start - GRPC_PREFIX_BYTES..)
    }
}

impl Encoder {
    /// Nothing is encoded yet.
    pub fn new(signal: Signal, settings: &Settings) -> Self {
        let facts = Facts {
            scheme: if settings.https { "https" } else { "http" },
            provider: settings.provider.clone(),
            candidates: settings.candidates,
        };
        Self {
            signal,
            spans: Spans::new(Arc::new(facts)),
            logs: Logs::default(),
            service_name: settings.service_name.clone(),
            resource: settings.resource.clone(),
            bytes_max: settings.batch_bytes,
            run: None,
            spare: Vec::new(),
        }
    }

    /// The next request: as many of `records` as fit and are of one run, which is what a resource stands for. At least one.
    pub fn encode(&mut self, records: &[Arc<Record>]) -> Request {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        let run = Arc::clone(&records[0].issued.run);
        self.begin_run(&run);
        let (_, resource, scope) = self.run.as_ref().expect("just set");
        // What surrounds the records is put in front of them when their length is known.
        let front = LENGTHS_BYTES + resource.len() + scope.len();
        buffer.resize(front, 0);
        let (mut count, mut skipped, mut items) = (0, 0, 0);
        for record in records {
            if !same_resource(&record.issued.run, &run) {
                break;
            }
            let before = buffer.len();
            let written = self.write(&mut buffer, record);
            if buffer.len() > self.bytes_max && before > front {
                buffer.truncate(before);
                break;
            }
            count += 1;
            items += written;
            skipped += u64::from(written == 0);
        }
        let start = self.surround(&mut buffer, front);
        Request { records: count, skipped, items, buffer: buffer.into(), start }
    }

    /// Takes the buffer of a request back, unless somebody still has it.
    pub fn reuse(&mut self, request: Request) {
        self.spare.extend(request.buffer.try_into_mut().map(|mut buffer| {
            // Or what is in it would be moved to its front.
            buffer.clear();
            Vec::from(buffer)
        }));
    }

    fn write(&mut self, out: &mut Vec<u8>, record: &Record) -> u64 {
        // Of `ScopeSpans` and `ScopeLogs`: the items.
        const ITEMS: u32 = 2;
        let Some(outcome) = record.outcome() else { return 0 };
        match self.signal {
            Signal::Traces if outcome.trace_exported != Some(true) => 0,
            Signal::Traces => {
                self.spans.write(out, ITEMS, record);
                1 + outcome.attempts.len() as u64
            }
            Signal::Logs => {
                self.logs.write(out, ITEMS, record);
                1
            }
        }
    }

    /// Writes what surrounds the records before them, and answers where it begins.
    fn surround(&self, buffer: &mut [u8], front: usize) -> usize {
        let (_, resource, scope) = self.run.as_ref().expect("a request has a run");
        let records = buffer.len() - front;
        // The same numbers for both signals: what a request holds, what its resource has, what its scope has.
        let mut inner = Vec::with_capacity(front);
        inner.extend_from_slice(resource);
        proto::head(&mut inner, 2, scope.len() + records);
        inner.extend_from_slice(scope);
        let mut outer = Vec::with_capacity(front);
        proto::head(&mut outer, 1, inner.len() + records);
        outer.extend_from_slice(&inner);
        let start = front - outer.len();
        buffer[start..front].copy_from_slice(&outer);
        let prefix = grpc_prefix(false, buffer.len() - start);
        buffer[start - GRPC_PREFIX_BYTES..start].copy_from_slice(&prefix);
        start
    }

    fn begin_run(&mut self, run: &Arc<Run>) {
        if self.run.as_ref().is_some_and(|(known, ..)| same_resource(known, run)) {
            return;
        }
        let mut resource = Vec::new();
        proto::message(&mut resource, 1, |out| self.write_resource(&mut Attributes::new(out, 1), run));
        // The schema's URL is a field of what surrounds the resource.
        proto::bytes(&mut resource, 3, SCHEMA_URL);
        let mut scope = Vec::new();
        proto::message(&mut scope, 1, |out| {
            proto::bytes(out, 1, env!("CARGO_PKG_NAME").as_bytes());
            proto::bytes(out, 2, run.version.as_bytes());
        });
        self.run = Some((Arc::clone(run), resource, scope));
    }

    /// What was configured wins over what is known, except for who this is.
    fn write_resource(&self, to: &mut Attributes<'_>, run: &Run) {
        let own = [
            (SERVICE_NAME, &*self.service_name),
            (SERVICE_INSTANCE_ID, &*run.instance),
            (SERVICE_VERSION, &*run.version),
        ];
        for (name, value) in own {
            let configured = self.resource.iter().find(|(key, _)| key == name && name != SERVICE_NAME);
            to.text(name, configured.map_or(value, |(_, value)| value));
        }
        to.text(INSTANCE_TAG, &*run.tag.to_string());
        let known = [SERVICE_NAME, SERVICE_INSTANCE_ID, SERVICE_VERSION, INSTANCE_TAG];
        for (key, value) in self.resource.iter().filter(|(key, _)| !known.contains(&&**key)) {
            to.text(key, &**value);
        }
    }
}

/// Whether records of both come from the same resource: a reload makes another run of the same process.
fn same_resource(a: &Arc<Run>, b: &Arc<Run>) -> bool {
    Arc::ptr_eq(a, b) || a.id == b.id && a.instance == b.instance && a.version == b.version && a.tag == b.tag
}

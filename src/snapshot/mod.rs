//! The noun of the project: what a snapshot is. Plain data; no IO, no clock, no runtime, no other module.
//!
//! In the order in which a request meets them: [`id`], [`trace`] and [`tracestate`] name it, [`sampling`] says whether its
//! trace is for export, [`place`], [`sample`], [`members`], [`pools`] and [`view`] are what the gateway knew of the fleet,
//! [`gpus`] is how it stands with what tells of GPUs, [`candidates`] and [`decision`] are what it made of that,
//! [`load_report`] is what the target said of its load, [`outcome`] is how it ended, [`record`] holds it all together and
//! [`document`] is its one JSON form.

pub mod candidates;
pub mod decision;
pub mod document;
pub mod gpus;
pub mod id;
pub mod load_report;
pub mod members;
pub mod moment;
pub mod outcome;
pub mod place;
pub mod pools;
pub mod record;
pub mod sample;
pub mod sampling;
pub mod trace;
pub mod tracestate;
pub mod view;

pub use candidates::{Candidate, Candidates};
pub use decision::{Decision, Excluded, Fallback, Inputs, Policy, Reason};
pub use document::Document;
pub use gpus::{GpuExporter, GpuHealth};
pub use id::{InstanceTag, RunId, SnapshotId};
pub use load_report::{BackendReport, LoadReport, ReportFormat, ReportPhase};
pub use members::{Block, Member, Members};
pub use moment::Moment;
pub use outcome::{Attempt, Ending, Fault, Outcome, Retry, Timings};
pub use place::Place;
pub use pools::{Pool, Pools, Serving, Standing};
pub use record::{Issued, Operation, Progress, Record, Request, Run, Tenant};
pub use sample::{Freshness, GpuUuids, Health, Quantity, Reading, Sample, Source, TLS_SCHEME, Target};
pub use sampling::{Keep, Ratio, Sampling};
pub use trace::{RemoteSpan, SpanId, TraceContext, TraceId};
pub use view::{Attached, FleetView, Live, Reported, Watched};

//! The noun of the project: what a snapshot is. Plain data; no IO, no clock, no runtime, no other module.
//!
//! In the order in which a request meets them: [`id`], [`trace`] and [`tracestate`] name it, [`sampling`] says whether its
//! trace is for export, [`place`], [`sample`], [`members`], [`pools`] and [`view`] are what the
//! gateway knew of the fleet, [`decision`] is what it made of that, [`outcome`] is how it ended, [`record`] holds it all
//! together and [`document`] is its one JSON form.

pub mod decision;
pub mod document;
pub mod id;
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

pub use decision::{Candidate, Decision, Excluded, Fallback, Inputs, Policy, Reason};
pub use document::Document;
pub use id::{InstanceTag, RunId, SnapshotId};
pub use members::{Block, Member, Members, SampleRef};
pub use moment::Moment;
pub use outcome::{Attempt, Ending, Fault, Outcome, Timings};
pub use place::Place;
pub use pools::{Pool, Pools, Serving, Standing};
pub use record::{Issued, Operation, Progress, Record, Request, Run, Tenant};
pub use sample::{Freshness, Health, Quantity, Reading, Sample, Source, TLS_SCHEME, Target};
pub use sampling::{Keep, Ratio, Sampling};
pub use trace::{RemoteSpan, SpanId, TraceContext, TraceId};
pub use view::{Attached, FleetView, Live};

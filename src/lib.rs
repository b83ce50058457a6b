//! snapgate: a gateway in front of LLM inference pods that can always answer *why did this request go there, and what
//! did the gateway see?* Every response carries a 32-digit snapshot ID; the state at the moment of the decision, and how
//! the request ended, is recorded off the critical path and resolves from that ID at once.

// The order of the map, not of the alphabet: one block each.

pub mod snapshot;

pub mod clock;

pub mod telemetry;

pub mod fleet;

pub mod gateway;

pub mod ledger;

pub mod pipeline;

pub mod store;

pub mod sink;

pub mod lookup;

pub mod config;

//! snapgate: a gateway in front of LLM inference pods that can always answer *why did this request go there, and what
//! did the gateway see?* Every response carries a 32-digit snapshot ID; the state at the moment of the decision, and how
//! the request ended, is recorded off the critical path and resolves from that ID at once.
//!
//! # The map
//!
//! One package, one noun ([`snapshot`]), one room per stage. Data flows one way:
//!
//! ```text
//!             poll, probe                 lookup ◀──────────────┬───────────┐
//!                 │                                             │           │
//!                fleet ──view──┐                              ledger      store
//!                              ▼                                ▲ │         ▲
//! client ──▶ gateway: identify ─▶ choose ─▶ forward ─▶ finish ──┘ │         │
//!                                    │                   │        ▼         │
//!                                   pod              try_send ─▶ pipeline ──┴─▶ sink
//! ```
//!
//! In the order in which a request meets them:
//!
//! - [`snapshot`]: the noun. ID, trace, sample, view, decision, outcome, record, document. Plain data.
//! - [`clock`]: time that never jumps. [`telemetry`]: the gateway's own log, and every metric's name.
//! - [`tenant`]: whose a request is, for the data path and for lookups alike.
//! - [`tls`]: certificates and keys, followed as their files change; plain and encrypted connections.
//! - [`orca`]: load reports on the wire, those of targets and those for clients.
//! - [`discovery`]: who the targets are: followed files, DNS and Kubernetes, joined with what is configured.
//! - [`fleet`]: keeps the latest view of the targets: polls in the words of each engine, probes, load reports, GPU exporters,
//!   the gateway's own rates.
//! - [`choose`]: the choice, a pure function of what is recorded; the data path makes it, a replay makes it again.
//! - [`gateway`]: the data path; `Thread::handle` is the life of a request.
//! - [`ledger`]: what is issued and not stored yet.
//! - [`pipeline`]: the hand-off: intake, worker, lanes.
//! - [`store`]: SQLite: schema, writer, reader, retention.
//! - [`sink`]: the exits.
//! - [`lookup`]: the read side: keys, answers, renderings, who may ask.
//! - [`replay`]: makes recorded choices again.
//! - [`config`], [`cli`], [`commands`]: what was typed, what it means, what is done.
//! - [`app`]: the only place that builds, starts and stops things.
//! - [`demo`]: simulated pods, traffic and a tour.
//!
//! # Invariants
//!
//! - Nothing behind the hand-off can slow or fail a request: the data path's last act is a `try_send` that may fail.
//! - One request, one record: [`gateway::recorder::Recorder`] is the only thing that finishes one, in a call or in `Drop`.
//! - A record is in the ledger before its ID can be read, and leaves it only when it is committed or counted as dropped.
//! - A decision holds everything that it was made from, and nothing that grows with the fleet.
//! - Missing is never 0.
//!
//! Deliberately absent: globals (two gateways run in one test process), unbounded queues, a clock in [`snapshot`], any
//! dependency of the data path on [`store`], [`sink`] or [`lookup`]. `tests/tidy.rs` holds the edges between modules.

// The order of the map, not of the alphabet: one block each.

pub mod snapshot;

pub mod clock;

pub mod telemetry;

pub mod tenant;

pub mod tls;

pub mod orca;

pub mod discovery;

pub mod fleet;

pub mod choose;

pub mod gateway;

pub mod ledger;

pub mod pipeline;

pub mod store;

pub mod sink;

pub mod lookup;

pub mod replay;

pub mod config;

pub mod cli;

pub mod commands;

pub mod app;

pub mod demo;

//! The integration tests: one binary, so that the crate is linked once. Real sockets on port 0; fakes only for peers.

// The test languages: `gateway` runs one in this process, `process` runs the program itself.
mod gateway;
mod process;

// How tests wait, for something or for each other.
mod wait;

// What every document is checked against.
mod schema;

// What is recorded is what happened.
mod truth;

// Which target a request gets, and that its record says why.
mod choices;

// What the command line writes of it.
mod exports;

// Who gets in by TLS, and which certificates are used.
mod tls;

// The same where lookups are answered, and how the command line asks there.
mod admin_tls;

// Whom the gateway believes, and what it presents to targets.
mod upstream_tls;

// What survives `kill -9`.
mod crash;

// What a decision takes in the store.
mod record_size;

// What is written nowhere.
mod secrets;

// Who the targets are while files and zones change.
mod discovery;

// How it stops.
mod shutdown;

// What changes while it runs.
mod reload;

// What goes on when the store's disk is full.
mod disk_full;

// What goes on when a log is rotated, has no room or is not read.
mod logs;

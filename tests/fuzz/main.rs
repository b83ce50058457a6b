//! Parsers that read what strangers send, under attack: mutated inputs, one after the other, always the same ones.
//!
//! An ordinary run replays everything in `tests/corpus/PARSER/`, what once broke it (`regressions/`) first, and then mutates it
//! for a second. `SNAPGATE_FUZZ_SECONDS=600 cargo test --release --test fuzz` does it for ten minutes each, side by side, and
//! `SNAPGATE_FUZZ_SEED=2` with other mutations. An input that panics or hangs is shrunk and put into `regressions/`: commit it
//! with the repair.
//!
//! A further parser is one file like `sse.rs` and one test here.

mod attack;
mod config;
mod gpus;
mod listing;
mod mutate;
mod orca;
mod prometheus;
mod sse;
mod traceparent;

#[test]
fn prometheus_pages_are_read_without_a_crash_or_a_hang() {
    attack::run(&prometheus::PARSER);
}

#[test]
fn server_sent_events_are_read_without_a_crash_or_a_hang() {
    attack::run(&sse::PARSER);
}

#[test]
fn traceparent_and_tracestate_are_read_without_a_crash_or_a_hang() {
    attack::run(&traceparent::PARSER);
}

#[test]
fn load_reports_are_read_without_a_crash_or_a_hang() {
    attack::run(&orca::PARSER);
}

#[test]
fn configurations_are_read_without_a_crash_or_a_hang() {
    attack::run(&config::PARSER);
}

#[test]
fn gpu_pages_are_read_without_a_crash_or_a_hang() {
    attack::run(&gpus::PARSER);
}

#[test]
fn lists_of_targets_are_read_without_a_crash_or_a_hang() {
    attack::run(&listing::PARSER);
}

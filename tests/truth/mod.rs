//! What a snapshot says is what happened: from the moment its ID can be read, wherever it is read, however its request
//! ended, and without changing a byte of the answer.

mod access;
mod attacks;
mod bodies;
mod endings_abroad;
mod endings_at_home;
mod framing;
mod headers;
mod http2;
mod ids;
mod leaving;
mod orca;
mod queue_time;
mod semantics;
mod slow_clients;
mod stream;
mod upstream_connections;
mod usage;
mod websockets;

use snapgate::snapshot::Ending;

use crate::gateway::Found;

const AT_HOME: &str = include_str!("endings_at_home.rs");
const ABROAD: &str = include_str!("endings_abroad.rs");
const BUGS: &str = include_str!("../../src/gateway/tests.rs");

/// A test that provokes the ending: its file and its name.
fn provoked_by(ending: Ending) -> (&'static str, &'static str) {
    match ending {
        Ending::Completed => (ABROAD, "an_answer_that_came_whole_is_completed_and_blamed_by_its_status"),
        Ending::ClientDisconnected => {
            (ABROAD, "a_client_that_leaves_in_mid_stream_takes_the_targets_connection_with_it")
        }
        Ending::UpstreamReset => (ABROAD, "a_target_that_breaks_the_connection_in_mid_stream_is_reset"),
        Ending::UpstreamTimeout => (ABROAD, "a_target_that_falls_silent_has_timed_out"),
        Ending::NoTarget => (AT_HOME, "a_request_without_any_healthy_target_has_no_target"),
        Ending::Rejected => (AT_HOME, "a_request_that_is_refused_for_what_it_is_says_why"),
        Ending::Overloaded => (AT_HOME, "one_request_more_than_may_be_in_flight_is_overloaded"),
        Ending::Shutdown => (AT_HOME, "a_stream_that_outlasts_the_gateway_was_ended_by_its_shutdown"),
        Ending::Internal => (BUGS, "a_panic_in_any_stage_fails_one_request_with_a_true_record"),
    }
}

#[test]
fn every_ending_is_provoked_by_a_test() {
    for ending in Ending::ALL {
        let (file, name) = provoked_by(ending);
        let begin = file.find(&format!("#[test]\nfn {name}(")).unwrap_or_else(|| panic!("there is no test {name}"));
        let test = &file[begin..];
        let test = &test[..test.find("\n}\n").expect("it ends")];
        let named = test.contains(&format!("\"{}\"", ending.name())) || test.contains(&format!("Ending::{ending:?}"));
        assert!(named, "{name} does not end {}", ending.name());
    }
}

/// How a request is recorded to have ended.
#[track_caller]
fn assert_ended(found: &Found, ending: &str, fault: Option<&str>, status: u16) {
    let seen =
        (found.text_at("/outcome/ending"), found.text_at("/outcome/fault"), found.at("/outcome/status").as_u64());
    assert_eq!(seen, (Some(ending), fault, Some(status.into())), "{}", found.text);
}

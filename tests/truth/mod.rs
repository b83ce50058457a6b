//! What a snapshot says is what happened: from the moment its ID can be read, wherever it is read, however its request
//! ended, and without changing a byte of the answer.

mod attacks;
mod endings_abroad;
mod endings_at_home;
mod headers;
mod ids;
mod stream;
mod upstream_connections;
mod usage;

use crate::gateway::Found;

/// How a request is recorded to have ended.
#[track_caller]
fn assert_ended(found: &Found, ending: &str, fault: Option<&str>, status: u16) {
    let seen =
        (found.text_at("/outcome/ending"), found.text_at("/outcome/fault"), found.at("/outcome/status").as_u64());
    assert_eq!(seen, (Some(ending), fault, Some(status.into())), "{}", found.text);
}

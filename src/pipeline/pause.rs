//! How long a lane waits before it asks again.

use std::time::Duration;

/// Pauses between tries to deliver: the first, doubled up to the last. Each is shortened by up to half, at random, so that
/// gateways whose receiver has failed all of them do not come back all at once.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The longest that a receiver can ask to be left alone for.
pub(super) const ASKED_PAUSE_MAX: Duration = Duration::from_secs(120);

/// Half of our own pause, and of the other half a share that `draw` says; at least what the receiver asked for.
pub(super) fn pause_after(own: Duration, asked: Option<Duration>, draw: u16) -> Duration {
    let jittered = own / 2 + own / 2 * u32::from(draw) / u32::from(u16::MAX);
    jittered.max(asked.unwrap_or_default().min(ASKED_PAUSE_MAX))
}

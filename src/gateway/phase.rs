//! How far the end of the gateway has come, and how that reaches each connection.

use std::time::Instant;

use tokio::sync::watch;

/// Where in its life the data path is. It only ever moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Nobody wants it to end.
    Serving,
    /// It serves everybody still, and asks those who stay connected to go elsewhere.
    Retiring,
    /// Nothing new; what is open may go on until then.
    Stopping(Instant),
}

/// The phase, as whoever waits for one sees it.
pub(super) type Phases = watch::Receiver<Phase>;

/// Waits until the gateway retires, or goes further than that.
pub(super) async fn retiring(mut phases: Phases) {
    // A sender that is gone has no more to say: that is an end, too.
    drop(phases.wait_for(|phase| *phase >= Phase::Retiring).await);
}

/// Waits until the gateway stops.
pub(super) async fn stopping(mut phases: Phases) {
    // Likewise.
    drop(phases.wait_for(|phase| matches!(phase, Phase::Stopping(_))).await);
}

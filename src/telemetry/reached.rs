//! Limits that were reached a moment ago, for `/readyz`: whoever looks only now and then shall see that clients are refused.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// For so long a limit that was reached is warned of: most look every ten seconds, or more often.
const WARNED_FOR: Duration = Duration::from_secs(30);

/// A limit at which clients are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `limits.in_flight`.
    InFlight,
    /// `limits.buffered_bytes`.
    BufferedBytes,
    /// `limits.connections`.
    Connections,
}

impl Limit {
    const ALL: [Self; 3] = [Self::InFlight, Self::BufferedBytes, Self::Connections];

    const fn warning(self) -> &'static str {
        match self {
            Self::InFlight => "requests are refused, because limits.in_flight are under way: add gateways, or raise it",
            Self::BufferedBytes => {
                "request bodies are refused, because limits.buffered_bytes are held: look for clients that send large bodies \
                 slowly, or raise it"
            }
            Self::Connections => {
                "connections are refused, because limits.connections are open: look for clients that leave theirs idle \
                 (limits.connections_per_address), or raise it"
            }
        }
    }
}

/// When each limit was last reached.
#[derive(Debug)]
pub struct Reached {
    start: Instant,
    /// In milliseconds from the start, and one more: 0 is never.
    last: [AtomicU64; Limit::ALL.len()],
}

impl Default for Reached {
    fn default() -> Self {
        Self { start: Instant::now(), last: Default::default() }
    }
}

impl Reached {
    /// Somebody was refused because of it.
    pub fn note(&self, limit: Limit) {
        let after = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last[limit as usize].store(after + 1, Relaxed);
    }

    /// What to say at `now` of the limits that were reached lately.
    pub fn warnings(&self, now: Instant) -> impl Iterator<Item = &'static str> {
        let lately = move |limit: &Limit| match self.last[*limit as usize].load(Relaxed) {
            0 => false,
            after => now.saturating_duration_since(self.start + Duration::from_millis(after - 1)) < WARNED_FOR,
        };
        Limit::ALL.into_iter().filter(lately).map(Limit::warning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_warned_of_for_a_while_after_it_was_reached() {
        let reached = Reached::default();
        let said = |at| reached.warnings(at).collect::<Vec<_>>();
        assert_eq!(said(Instant::now()), Vec::<&str>::new());
        reached.note(Limit::Connections);
        reached.note(Limit::BufferedBytes);
        let both = [Limit::BufferedBytes.warning(), Limit::Connections.warning()];
        assert_eq!(said(Instant::now()), both);
        assert_eq!(said(Instant::now() + WARNED_FOR / 2), both);
        assert_eq!(said(Instant::now() + WARNED_FOR), Vec::<&str>::new());
    }
}

//! How many connections each address has: one client shall not take those of all others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::tenant::Peer;

/// From so many addresses on, those that have left are looked for.
const SWEEP_FROM: usize = 1_024;

/// A connection's place among those of its address; given back when it is dropped, on whatever thread.
#[derive(Debug)]
pub(super) struct Place {
    _counted: Arc<()>,
}

/// The addresses of open connections. It belongs to whoever accepts them: nothing is locked.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// As many others share the handle as the address has connections.
    addresses: HashMap<IpAddr, Arc<()>>,
    sweep_at: usize,
}

impl Crowd {
    /// A place for one more of this client's; `None` if it has `max`.
    pub(super) fn enter(&mut self, peer: Peer, max: usize) -> Option<Place> {
        if self.addresses.len() >= self.sweep_at {
            self.addresses.retain(|_, counted| Arc::strong_count(counted) > 1);
            self.sweep_at = SWEEP_FROM.max(2 * self.addresses.len());
        }
        let counted = self.addresses.entry(peer.counted()).or_default();
        (Arc::strong_count(counted) <= max).then(|| Place { _counted: Arc::clone(counted) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> Peer {
        Peer(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn each_address_has_so_many_places_and_gets_them_back() {
        let mut crowd = Crowd::default();
        let held: Vec<_> = (0..2).map(|_| crowd.enter(peer(1), 2).unwrap()).collect();
        assert!(crowd.enter(peer(1), 2).is_none());
        assert!(crowd.enter(peer(2), 2).is_some(), "others have their own");
        drop(held);
        assert!(crowd.enter(peer(1), 2).is_some());
    }

    #[test]
    fn addresses_that_have_left_are_forgotten() {
        let mut crowd = Crowd::default();
        let stays = crowd.enter(peer(0), 1).unwrap();
        for number in 1..10 * SWEEP_FROM as u32 {
            assert!(crowd.enter(peer(number), 1).is_some());
        }
        assert!(crowd.addresses.len() <= SWEEP_FROM, "{}", crowd.addresses.len());
        assert!(crowd.enter(peer(0), 1).is_none(), "who is there is not forgotten");
        drop(stays);
    }
}

//! How often somebody may ask: one bucket of permits for each who asks, in a table that cannot grow without end.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::tenant::Peer;

/// Buckets of one table. When all are in use, those that have filled up again are given away, because an unused bucket
/// and none are the same; if there are none, whoever is new has to wait.
const BUCKETS_MAX: usize = 4096;

/// So many permits each so long; as many can be saved up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) permits: u32,
    pub(super) per: Duration,
}

impl Rate {
    pub(super) const fn per_second(permits: u32) -> Self {
        Self { permits, per: Duration::from_secs(1) }
    }

    pub(super) const fn per_minute(permits: u32) -> Self {
        Self { permits, per: Duration::from_secs(60) }
    }

    /// Until there is one more.
    fn pause(self) -> Duration {
        self.per / self.permits.max(1)
    }
}

/// The table. The rate comes with each question, because the configuration may have changed it.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    permits: f64,
    seen: Instant,
}

impl Bucket {
    fn level(&self, rate: Rate, now: Instant) -> f64 {
        let filled = now.saturating_duration_since(self.seen).as_secs_f64() / rate.pause().as_secs_f64();
        (self.permits + filled).min(f64::from(rate.permits))
    }
}

impl<K> Default for Limiter<K> {
    fn default() -> Self {
        Self { buckets: Mutex::default() }
    }
}

impl<K: Eq + Hash> Limiter<K> {
    /// Takes a permit.
    ///
    /// # Errors
    /// There is none: how long until there is one.
    pub(super) fn take(&self, key: K, rate: Rate, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| bucket.level(rate, now) < f64::from(rate.permits));
            if buckets.len() >= BUCKETS_MAX {
                return Err(rate.pause());
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { permits: f64::from(rate.permits), seen: now });
        let level = bucket.level(rate, now);
        if level < 1.0 {
            return Err(rate.pause().mul_f64(1.0 - level));
        }
        *bucket = Bucket { permits: level - 1.0, seen: now };
        Ok(())
    }

    /// Whether a permit could be taken; none is.
    ///
    /// # Errors
    /// There is none: how long until there is one.
    pub(super) fn look(&self, key: &K, rate: Rate, now: Instant) -> Result<(), Duration> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        match buckets.get(key).map(|bucket| bucket.level(rate, now)) {
            Some(level) if level < 1.0 => Err(rate.pause().mul_f64(1.0 - level)),
            _ => Ok(()),
        }
    }
}

/// Who counts as one address.
pub(super) fn address_of(peer: Option<Peer>) -> IpAddr {
    peer.map_or(Ipv6Addr::UNSPECIFIED.into(), Peer::counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate::per_second(4);

    #[test]
    fn permits_are_saved_up_to_the_rate_and_come_back_with_time() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        for _ in 0..4 {
            assert_eq!(limiter.take("a", RATE, start), Ok(()));
        }
        assert_eq!(limiter.take("a", RATE, start), Err(Duration::from_millis(250)));
        assert_eq!(limiter.look(&"a", RATE, start), Err(Duration::from_millis(250)));
        assert_eq!(limiter.take("b", RATE, start), Ok(()), "everybody has a bucket");
        let later = start + Duration::from_millis(250);
        assert_eq!(limiter.look(&"a", RATE, later), Ok(()));
        assert_eq!(limiter.take("a", RATE, later), Ok(()));
        assert!(limiter.take("a", RATE, later).is_err());
        let much_later = start + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| limiter.take("a", RATE, much_later).is_ok()).count(), 4);
    }

    #[test]
    fn the_table_is_bounded_and_gives_away_what_is_full_again() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        for key in 0..BUCKETS_MAX {
            assert_eq!(limiter.take(key, RATE, start), Ok(()));
        }
        assert!(limiter.take(BUCKETS_MAX, RATE, start).is_err(), "all are in use");
        assert_eq!(limiter.take(0, RATE, start), Ok(()), "who is known is not touched");
        assert_eq!(limiter.take(BUCKETS_MAX, RATE, start + Duration::from_secs(1)), Ok(()));
        assert!(limiter.buckets.lock().unwrap().len() <= 2);
    }

    #[test]
    fn who_has_one_address_in_ipv6_has_its_neighbours() {
        let of = |address: &str| address_of(Some(Peer(address.parse().unwrap())));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}

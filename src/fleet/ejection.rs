//! Which targets get no requests for a while because the requests they got have failed one after another.
//!
//! Passive: it asks nothing, it reads what requests have met. A probe may find a target alive whose every answer is an
//! error, and finds a dead one only at its next turn. How many of a model's targets may be out at once is for the pools to say.

use std::time::{Duration, Instant};

use super::slot::Slot;

/// A target that fails again is out longer each time, up to so many times the first time.
const TIMES_MAX: u32 = 32;

/// When a target is passed over, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// After so many failures in a row; never with 0.
    pub(super) after: u32,
    /// For so long at first; twice as long each time it comes back only to fail.
    pub(super) time: Duration,
}

/// One target's record of failing.
#[derive(Debug, Default)]
pub(super) struct Ejection {
    out: Option<Out>,
    /// How often it has come back only to fail again.
    times: u32,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    until: Instant,
    /// When it will have been back for as long as it was out: then the past is forgotten.
    forgotten: Instant,
}

impl Ejection {
    /// Looks at what the target's requests have met since the last tick, and answers whether it is to be out.
    pub(super) fn tick(&mut self, slot: &Slot, rule: Rule, now: Instant) -> bool {
        match self.out {
            Some(out) if now < out.until => return true,
            Some(out) if now >= out.forgotten => *self = Self::default(),
            _ => {}
        }
        let failures = slot.live.failures();
        if rule.after == 0 || failures < rule.after {
            return false;
        }
        slot.live.forget_failures();
        slot.live.eject();
        let time = rule.time * (1 << self.times);
        self.times = (self.times + 1).min(TIMES_MAX.ilog2());
        self.out = Some(Out { until: now + time, forgotten: now + 2 * time });
        tracing::warn!(
            pod = &*slot.target.name,
            failures,
            ?time,
            "pod has failed request after request and is passed over"
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::TargetSettings;

    const FIRST: Duration = Duration::from_secs(10);

    #[test]
    fn a_target_that_fails_again_is_out_longer_until_it_has_behaved() {
        let (slot, mut ejection) = (Slot::new(0, &TargetSettings::new("t", "-")), Ejection::default());
        let rule = Rule { after: 3, time: FIRST };
        let start = Instant::now();
        let mut is_out = |failures: u32, seconds: u64| {
            (0..failures).for_each(|_| slot.live.failed());
            ejection.tick(&slot, rule, start + Duration::from_secs(seconds))
        };
        for (failures, seconds, out) in [
            (2, 0, false),
            (1, 1, true),
            // Requests that were under way fail, too.
            (2, 10, true),
            (0, 11, false),
            // Again within the ten seconds after: twice as long.
            (1, 12, true),
            (0, 31, true),
            (0, 32, false),
            // After twenty more seconds all is forgotten.
            (3, 52, true),
            (0, 61, true),
            (0, 62, false),
        ] {
            assert_eq!(is_out(failures, seconds), out, "{failures} failures at {seconds} s");
        }
        slot.live.failed();
        slot.live.failed();
        slot.live.answered();
        slot.live.failed();
        assert!(!ejection.tick(&slot, rule, start + Duration::from_secs(100)), "only failures in a row count");
    }

    #[test]
    fn nobody_is_out_when_it_is_switched_off() {
        let slot = Slot::new(0, &TargetSettings::new("t", "-"));
        (0..100).for_each(|_| slot.live.failed());
        assert!(!Ejection::default().tick(&slot, Rule { after: 0, time: FIRST }, Instant::now()));
    }
}

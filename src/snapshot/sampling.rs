//! Which traces are sampled, and which are exported: pure functions of a request and of the settings.
//!
//! Sampling is decided when a request comes, from its trace ID and its parent, so that everybody behind the gateway can go
//! by the flag. What is exported is decided when it has ended: what was sampled, and what a rule keeps. Both stand in the
//! record, so that whoever reads it, now or after a restart under other settings, finds the same.

use std::time::Duration;

use super::id::SnapshotId;
use super::outcome::Outcome;
use super::record::{Issued, Tenant};
use super::trace::{RemoteSpan, TraceContext, TraceId};

/// The bits of a trace ID that the W3C's random flag speaks of.
const RANDOM_BITS: u32 = 56;

/// What counts of the trace that a client brings, and how much is sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Whether the client's trace is gone on with; else a new one begins, with a link to it.
    pub trust_parent: bool,
    /// Whether a client's word that its trace is not sampled counts; else the ratio decides.
    pub respect_unsampled: bool,
    /// The share of traces that are sampled, of those that nobody has decided on.
    pub ratio: Ratio,
    /// What is exported besides; `None` if spans are not exported at all.
    pub keep: Option<Keep>,
}

/// A share, from 0 to 1, as a bound that the random part of a trace ID has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(u64);

/// Traces that are exported whether they were sampled or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keep {
    /// Requests that ended badly by a fault of the target or of the gateway.
    pub errors: bool,
    /// Requests that took so long or longer.
    pub slower_than: Option<Duration>,
    /// Requests that named their target.
    pub forced: bool,
    /// Requests of these tenants, by the four bytes that people see of them.
    pub tenants: Vec<[u8; 4]>,
}

impl Sampling {
    /// Everything of whoever says nothing else; nothing is exported.
    pub const ALL: Self = Self { trust_parent: true, respect_unsampled: true, ratio: Ratio::of(1.0), keep: None };

    /// The place in a trace of the request `id`, whose client brought `parent`.
    pub fn begin(&self, id: SnapshotId, parent: Option<RemoteSpan>) -> TraceContext {
        let mut context = match parent {
            Some(parent) if self.trust_parent => TraceContext::child_of(parent),
            linked => TraceContext { linked, ..TraceContext::root(id) },
        };
        let undecided = context.parent_span_id.is_none() || !context.sampled && !self.respect_unsampled;
        if undecided {
            context.sampled = self.ratio.takes(context.trace_id);
        }
        context
    }

    /// Whether the spans of a request that has ended are exported; `None` if none are.
    pub fn exports(&self, issued: &Issued, outcome: &Outcome) -> Option<bool> {
        self.keep.as_ref().map(|keep| issued.trace.sampled || keep.takes(issued, outcome))
    }
}

impl Ratio {
    /// Of a share from 0 to 1.
    pub const fn of(share: f64) -> Self {
        Self(((1.0 - share) * (1u64 << RANDOM_BITS) as f64) as u64)
    }

    /// Whether a trace is one of the share. Whoever decides by the same bits and an equal or smaller share samples it too.
    pub const fn takes(self, trace: TraceId) -> bool {
        trace.as_u128() as u64 & ((1 << RANDOM_BITS) - 1) >= self.0
    }
}

impl Keep {
    fn takes(&self, issued: &Issued, outcome: &Outcome) -> bool {
        let took = || Duration::from_micros(outcome.timings.end_offset_us);
        let of_tenant = |Tenant([a, b, c, d, ..]): Tenant| self.tenants.contains(&[a, b, c, d]);
        self.errors && outcome.is_failure()
            || self.slower_than.is_some_and(|limit| took() >= limit)
            || self.forced && issued.decision.as_ref().is_some_and(|decision| decision.forced)
            || issued.request.tenant.is_some_and(of_tenant)
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::InstanceTag;
    use super::super::outcome::Ending;
    use super::super::record::tests::finished;
    use super::super::trace::SpanId;
    use super::*;
    use proptest::prelude::*;

    fn parent(low: u128, sampled: bool) -> RemoteSpan {
        let trace_id = TraceId::new(0xabc << 100 | low).unwrap();
        RemoteSpan { trace_id, span_id: SpanId::new(7).unwrap(), sampled, random: true }
    }

    fn id(random: u64) -> SnapshotId {
        SnapshotId::new(1, InstanceTag(2), random)
    }

    #[test]
    fn the_parent_decides_and_else_the_ratio() {
        const LOW: u128 = 1;
        const HIGH: u128 = (1 << RANDOM_BITS) - 1;
        let half = |respect_unsampled| Sampling { respect_unsampled, ratio: Ratio::of(0.5), ..Sampling::ALL };
        let cases = [
            // (respects, the parent, the random part if there is none) → sampled
            (true, Some(parent(LOW, true)), 0, true),
            (true, Some(parent(HIGH, false)), 0, false),
            (false, Some(parent(LOW, true)), 0, true),
            (false, Some(parent(LOW, false)), 0, false),
            (false, Some(parent(HIGH, false)), 0, true),
            (true, None, LOW as u64, false),
            (true, None, HIGH as u64, true),
        ];
        for (respects, parent, random, sampled) in cases {
            let context = half(respects).begin(id(random), parent);
            assert_eq!(context.sampled, sampled, "{respects} {parent:?} {random:x}");
            assert_eq!(context.parent_span_id, parent.map(|parent| parent.span_id));
        }
    }

    #[test]
    fn a_client_that_is_not_believed_gets_a_trace_of_its_own_and_a_link() {
        let none = Sampling { trust_parent: false, ratio: Ratio::of(0.0), ..Sampling::ALL };
        let context = none.begin(id(5), Some(parent(9, true)));
        assert_eq!(context.trace_id.as_u128(), id(5).as_u128());
        assert_eq!((context.parent_span_id, context.sampled, context.random), (None, false, true));
        assert_eq!(context.linked, Some(parent(9, true)), "so that nobody can make us sample");
        assert_eq!(none.begin(id(5), None).linked, None);
    }

    #[test]
    fn rules_keep_what_was_not_sampled() {
        let plain = finished(50_000);
        let exports = |keep: Option<Keep>, change: fn(&mut Issued, &mut Outcome)| {
            let (mut issued, mut outcome) = (plain.issued.clone(), plain.outcome().unwrap().clone());
            issued.trace.sampled = false;
            issued.request.tenant = Some(Tenant([9; 32]));
            change(&mut issued, &mut outcome);
            Sampling { keep, ..Sampling::ALL }.exports(&issued, &outcome)
        };
        let (errors, slow) = (Keep { errors: true, ..Keep::default() }, Some(Duration::from_millis(50)));
        assert_eq!(exports(None, |issued, _| issued.trace.sampled = true), None, "nothing is exported at all");
        assert_eq!(exports(Some(Keep::default()), |issued, _| issued.trace.sampled = true), Some(true));
        assert_eq!(exports(Some(Keep::default()), |_, _| {}), Some(false));
        assert_eq!(exports(Some(errors.clone()), |_, _| {}), Some(false), "a refused request is the client's fault");
        assert_eq!(exports(Some(errors), |_, outcome| outcome.ending = Ending::UpstreamReset), Some(true));
        assert_eq!(exports(Some(Keep { slower_than: slow, ..Keep::default() }), |_, _| {}), Some(true));
        let faster = |_: &mut Issued, outcome: &mut Outcome| outcome.timings.end_offset_us = 49_999;
        assert_eq!(exports(Some(Keep { slower_than: slow, ..Keep::default() }), faster), Some(false));
        for (tenant, kept) in [([9; 4], true), ([8; 4], false)] {
            let keep = Keep { tenants: vec![tenant], ..Keep::default() };
            assert_eq!(exports(Some(keep), |_, _| {}), Some(kept));
        }
    }

    proptest! {
        #[test]
        fn a_larger_share_takes_what_a_smaller_one_does(trace in 1u128.., a in 0.0..=1.0, b in 0.0..=1.0) {
            let trace = TraceId::new(trace).unwrap();
            let (small, large) = if a < b { (a, b) } else { (b, a) };
            prop_assert!(!Ratio::of(small).takes(trace) || Ratio::of(large).takes(trace));
            prop_assert!(Ratio::of(1.0).takes(trace) && !Ratio::of(0.0).takes(trace));
        }

        #[test]
        fn a_share_is_that_of_the_ids_that_are_minted(share in 0.0..=1.0) {
            let mut random = 0x1234_5678u64;
            let taken = (0..4_000).filter(|_| {
                random = super::super::sample::mix(random);
                Ratio::of(share).takes(TraceId::new(id(random).as_u128()).unwrap())
            });
            let got = taken.count() as f64 / 4_000.0;
            prop_assert!((got - share).abs() < 0.05, "{got} of {share}");
        }
    }
}

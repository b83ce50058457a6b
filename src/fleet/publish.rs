//! Puts the view together, tick by tick, from what polls and probes have learned.
//!
//! A tick with nothing new still publishes: `published` then says that the gateway has looked and found nothing. What did
//! not change is shared: a view of unchanged samples is one pointer per block of targets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ejection::{Ejection, Rule};
use super::rates::FleetWindow;
use super::slot::{GPU_QUANTITIES, Observed, Slot, State};
use crate::snapshot::members::BLOCK;
use crate::snapshot::{
    Block, FleetView, Freshness, Health, Member, Members, Moment, Pools, Quantity, Reading, Sample, Serving, Source,
    Standing,
};

/// Up to which age a value is fresh.
#[derive(Clone, Copy, Debug)]
pub(super) struct FreshWithin {
    pub(super) usual: Duration,
    /// For what exporters of GPUs say: they are asked less often.
    pub(super) gpus: Duration,
}

impl FreshWithin {
    /// The same for a target whose page is fresh for so long.
    fn of_page(self, page: Duration) -> impl Fn(Source) -> Duration {
        move |source| match source {
            Source::Dcgm => self.gpus,
            Source::Scrape => self.usual.max(page),
            Source::Orca | Source::Gateway => self.usual,
        }
    }
}

/// The latest sample of each target, and what is needed for the next.
#[derive(Debug)]
pub(super) struct Publisher {
    fresh_within: FreshWithin,
    window_ms: u32,
    latest: Vec<Latest>,
    /// The samples of `latest`, as the last view has them.
    blocks: Vec<Arc<Block>>,
    window: FleetWindow,
    eject: Rule,
    /// Made anew when a target goes or comes back.
    pools: Arc<Pools>,
}

#[derive(Debug)]
struct Latest {
    sample: Arc<Sample>,
    /// When the first of its fresh values becomes stale; `None` if no value is fresh.
    fresh_until: Option<Moment>,
    ejection: Ejection,
    standing: Standing,
}

impl Publisher {
    /// With the first sample of every target.
    pub(super) fn new(
        slots: &[Arc<Slot>],
        fresh_within: FreshWithin,
        window: Duration,
        eject: Rule,
        start: Instant,
        now: Moment,
    ) -> Self {
        let window_ms = u32::try_from(window.as_millis()).unwrap_or(u32::MAX);
        let latest: Vec<_> =
            slots.iter().map(|slot| Latest::of(slot, 1, now, slot.known(), fresh_within, window_ms)).collect();
        let (blocks, pools) = (blocks(slots, &latest), Arc::new(pools(slots, &latest, None)));
        let window = FleetWindow::new(window, start, slots.len());
        Self { fresh_within, window_ms, latest, blocks, window, eject, pools }
    }

    /// The targets are others now: each is the one that stood at a place before, or new.
    pub(super) fn rearrange(&mut self, slots: &[Arc<Slot>], places: &[Option<usize>], now: Moment) {
        let mut before: Vec<_> = std::mem::take(&mut self.latest).into_iter().map(Some).collect();
        let latest = slots.iter().zip(places).map(|(slot, place)| {
            let kept = place.and_then(|place| before[place].take());
            kept.unwrap_or_else(|| Latest::of(slot, 1, now, slot.known(), self.fresh_within, self.window_ms))
        });
        self.latest = latest.collect();
        self.blocks = blocks(slots, &self.latest);
        self.window.rearrange(places);
        self.pools = Arc::new(pools(slots, &self.latest, Some(&self.pools)));
    }

    /// The view of now. A target gets a new sample if a page or a load report brought values, if its health changed or if a
    /// value went stale since the last view. On the way the gateway's own rates are brought up to date.
    pub(super) fn view(&mut self, slots: &[Arc<Slot>], instant: Instant, now: Moment) -> FleetView {
        let span = self.window.tick(instant, slots.iter().map(|slot| slot.live.totals()));
        let mut one_came_or_went = false;
        let blocks = self.blocks.iter_mut().zip(slots.chunks(BLOCK)).zip(self.latest.chunks_mut(BLOCK));
        for (number, ((kept, slots), latest)) in blocks.enumerate() {
            let mut one_is_new = false;
            for (index, (slot, latest)) in (number * BLOCK..).zip(slots.iter().zip(&mut *latest)) {
                one_is_new |= latest.renew(slot, now, self.fresh_within, self.window_ms);
                one_came_or_went |= latest.stand(slot, self.eject, instant);
                let (requests, tokens) = span.per_second(index, slot.live.totals());
                // Writing takes the counters' cache line from the data threads, so an idle target is not written.
                if slot.live.rates() != (requests, tokens) {
                    slot.live.set_rates(requests, tokens);
                }
            }
            if one_is_new {
                *kept = block(slots, latest);
            }
        }
        if one_came_or_went {
            self.pools = Arc::new(pools(slots, &self.latest, Some(&self.pools)));
        }
        let members = Members::of_blocks(self.blocks.clone());
        FleetView { published: now, members, pools: Arc::clone(&self.pools), with: None }
    }
}

fn blocks(slots: &[Arc<Slot>], latest: &[Latest]) -> Vec<Arc<Block>> {
    slots.chunks(BLOCK).zip(latest.chunks(BLOCK)).map(|(slots, latest)| block(slots, latest)).collect()
}

fn block(slots: &[Arc<Slot>], latest: &[Latest]) -> Arc<Block> {
    let member = |(slot, latest): (&Arc<Slot>, &Latest)| Member {
        sample: Arc::clone(&latest.sample),
        live: Arc::clone(&slot.live),
    };
    Arc::new(slots.iter().zip(latest).map(member).collect())
}

fn pools(slots: &[Arc<Slot>], latest: &[Latest], before: Option<&Pools>) -> Pools {
    let serving = slots.iter().zip(latest).map(|(slot, latest)| Serving {
        target: &slot.target,
        models: &slot.models,
        standing: latest.standing,
    });
    Pools::new(&serving.collect::<Vec<_>>(), before)
}

impl Latest {
    fn of(slot: &Slot, n: u64, now: Moment, known: State, fresh_within: FreshWithin, window_ms: u32) -> Self {
        let standing = standing(slot, known.health, false);
        let (sample, fresh_until) = Self::sample(slot, n, now, known, fresh_within, window_ms);
        Self { sample, fresh_until, ejection: Ejection::default(), standing }
    }

    /// Makes a new sample if there is something new to say.
    fn renew(&mut self, slot: &Slot, now: Moment, fresh_within: FreshWithin, window_ms: u32) -> bool {
        if let Some(reported) = slot.live.take_reported() {
            slot.reported(&reported);
        }
        let gone_stale = self.fresh_until.is_some_and(|until| now > until);
        let Some(known) = slot.take_changed().or_else(|| gone_stale.then(|| slot.known())) else { return false };
        (self.sample, self.fresh_until) = Self::sample(slot, self.sample.n + 1, now, known, fresh_within, window_ms);
        true
    }

    /// Says whether the target has come or gone, as far as choices are concerned.
    fn stand(&mut self, slot: &Slot, eject: Rule, instant: Instant) -> bool {
        let failing = self.ejection.tick(slot, eject, instant);
        let standing = standing(slot, self.sample.health, failing);
        std::mem::replace(&mut self.standing, standing) != standing
    }

    fn sample(
        slot: &Slot,
        n: u64,
        now: Moment,
        known: State,
        fresh_within: FreshWithin,
        window_ms: u32,
    ) -> (Arc<Sample>, Option<Moment>) {
        let fresh_within = fresh_within.of_page(known.fresh_within);
        let readings = Quantity::ALL.map(|quantity| {
            let place = quantity as usize;
            // Whoever's engine does not give it, an exporter may.
            let given = known.gives[place] || slot.gpus_of.is_some() && GPU_QUANTITIES.contains(&quantity);
            reading(given, known.values[place], now, &fresh_within)
        });
        let fresh = readings.iter().filter(|reading| reading.freshness == Freshness::Fresh);
        let until = |reading: &Reading| Some(reading.observed.plus(fresh_within(reading.source?)));
        let fresh_until = fresh.filter_map(until).min();
        let sample = Sample::new(Arc::clone(&slot.target), n, now, known.health, readings, window_ms);
        let sample = sample.with_in_flight_at_scrape(known.in_flight_at_scrape).with_gpu_uuids(known.gpu_uuids);
        (Arc::new(sample), fresh_until)
    }
}

fn standing(slot: &Slot, health: Health, failing: bool) -> Standing {
    match health {
        Health::Unhealthy => Standing::Down,
        Health::Unknown if slot.newcomer => Standing::Unproven,
        _ if failing => Standing::Failing,
        _ => Standing::Up,
    }
}

/// Each value by its own age: a fresh one freshens no other.
fn reading(given: bool, observed: Option<Observed>, now: Moment, fresh_within: impl Fn(Source) -> Duration) -> Reading {
    match observed {
        None if given => Reading::MISSING,
        None => Reading::UNSUPPORTED,
        Some(Observed { value, at, source }) => {
            let freshness = if now > at.plus(fresh_within(source)) { Freshness::Stale } else { Freshness::Fresh };
            Reading { value: Some(value), observed: at, source: Some(source), freshness }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TargetSettings;
    use super::super::engine::{EXPECTED, Observation};
    use super::super::gpu::Found;
    use super::*;
    use crate::snapshot::Excluded;

    const FRESH_WITHIN: FreshWithin = FreshWithin { usual: Duration::from_secs(2), gpus: Duration::from_secs(5) };
    const WINDOW: Duration = Duration::from_secs(10);
    const EJECT: Rule = Rule { after: 5, time: Duration::from_secs(10) };

    /// A fleet without network: its slots, and a clock that stands still until it is moved.
    struct Bench {
        slots: Vec<Arc<Slot>>,
        publisher: Publisher,
        start: Instant,
        now: Duration,
    }

    const EPOCH: Moment = Moment(1_795_435_995_000_000);

    impl Bench {
        fn new(targets: u32) -> Self {
            let target = |slot| TargetSettings::new(&format!("t{slot}"), "-");
            let slots: Vec<_> = (0..targets).map(|slot| Arc::new(Slot::new(slot, &target(slot)))).collect();
            let start = Instant::now();
            let publisher = Publisher::new(&slots, FRESH_WITHIN, WINDOW, EJECT, start, EPOCH);
            Self { slots, publisher, start, now: Duration::ZERO }
        }

        fn at(&self) -> Moment {
            EPOCH.plus(self.now)
        }

        /// A view `ms` milliseconds later.
        fn view_after(&mut self, ms: u64) -> FleetView {
            self.now += Duration::from_millis(ms);
            self.publisher.view(&self.slots, self.start + self.now, EPOCH.plus(self.now))
        }

        fn scraped(&self, target: usize, values: [Option<f64>; Quantity::COUNT]) {
            let page = Observation { values, garbage: 0, absent: Vec::new(), engine: "vllm".into(), gives: EXPECTED };
            let slot = &self.slots[target];
            slot.scraped(self.at(), slot.live.in_flight(), &page);
        }
    }

    fn only(quantity: Quantity, value: f64) -> [Option<f64>; Quantity::COUNT] {
        let mut values = [None; Quantity::COUNT];
        values[quantity as usize] = Some(value);
        values
    }

    #[test]
    fn at_first_everything_is_missing_and_everybody_eligible() {
        let view = Bench::new(2).view_after(0);
        assert_eq!((&*view.pools.all().eligible, view.pools.all().excluded), (&[0, 1][..], Excluded::default()));
        let sample = &view.members[1].sample;
        assert_eq!((sample.n, sample.health, sample.window_ms, sample.target.slot), (1, Health::Unknown, 10_000, 1));
        for quantity in Quantity::ALL {
            let expected = match quantity {
                Quantity::GpuUtilization | Quantity::GpuMemoryUtilization => Reading::UNSUPPORTED,
                _ => Reading::MISSING,
            };
            assert_eq!(*sample.reading(quantity), expected, "{quantity:?}");
        }
    }

    #[test]
    fn what_did_not_change_is_shared() {
        let mut bench = Bench::new(2);
        let first = bench.view_after(0);
        bench.scraped(1, only(Quantity::Waiting, 3.0));
        let second = bench.view_after(100);
        let third = bench.view_after(100);

        let same = |a: &FleetView, b: &FleetView, target: usize| {
            Arc::ptr_eq(&a.members[target].sample, &b.members[target].sample)
        };
        assert!(same(&first, &second, 0) && same(&second, &third, 0), "nothing was learned of it");
        assert!(!same(&first, &second, 1) && same(&second, &third, 1), "a page came once");
        assert_eq!(second.members[1].sample.n, 2);
        assert!(third.published > second.published, "a view without news is a view");
        for target in 0..2 {
            assert!(Arc::ptr_eq(&first.members[target].live, &third.members[target].live));
        }
    }

    #[test]
    fn the_same_value_observed_again_is_news_and_a_page_that_says_nothing_is_not() {
        let mut bench = Bench::new(1);
        bench.scraped(0, only(Quantity::Waiting, 3.0));
        let first = bench.view_after(100);
        bench.scraped(0, only(Quantity::Waiting, 3.0));
        let second = bench.view_after(100);
        bench.scraped(0, [None; Quantity::COUNT]);
        let third = bench.view_after(100);
        assert_eq!([&first, &second, &third].map(|view| view.members[0].sample.n), [2, 3, 3]);
        let reading = second.members[0].sample.reading(Quantity::Waiting);
        assert_eq!((reading.observed, reading.source), (EPOCH.plus(Duration::from_millis(100)), Some(Source::Scrape)));
    }

    #[test]
    fn each_value_ages_alone_and_goes_stale_once() {
        let mut bench = Bench::new(1);
        bench.scraped(0, only(Quantity::Waiting, 3.0));
        bench.view_after(1_500);
        bench.scraped(0, only(Quantity::Running, 5.0));
        let both = |view: &FleetView| {
            [Quantity::Waiting, Quantity::Running].map(|quantity| {
                let reading = view.members[0].sample.reading(quantity);
                (reading.value.unwrap(), reading.freshness)
            })
        };
        use Freshness::{Fresh, Stale};
        for (after_ms, n, expected) in [
            (0, 3, [(3.0, Fresh), (5.0, Fresh)]),
            (500, 3, [(3.0, Fresh), (5.0, Fresh)]),
            (1, 4, [(3.0, Stale), (5.0, Fresh)]),
            (1_499, 4, [(3.0, Stale), (5.0, Fresh)]),
            (1, 5, [(3.0, Stale), (5.0, Stale)]),
            (60_000, 5, [(3.0, Stale), (5.0, Stale)]),
        ] {
            let view = bench.view_after(after_ms);
            assert_eq!((view.members[0].sample.n, both(&view)), (n, expected), "at {:?}", bench.now);
        }
    }

    #[test]
    fn a_page_that_is_read_seldom_is_fresh_for_longer_and_nothing_else_is() {
        let mut bench = Bench::new(2);
        let interval = Duration::from_secs(4);
        for slot in 0..2 {
            bench.scraped(slot, [Some(3.0), Some(5.0), None, None, None, None, None, None]);
        }
        bench.slots[0].paced(interval / 50, interval, Some(interval.mul_f64(2.5)));
        // A failure says nothing about how long what was said before holds.
        bench.slots[1].paced(interval / 50, interval, None);
        bench.view_after(0);
        waits(&bench, 7.0);
        let all = |view: &FleetView| {
            let of = |member: usize, quantity| view.members[member].sample.reading(quantity).freshness;
            [of(0, Quantity::Waiting), of(0, Quantity::Running), of(1, Quantity::Running)]
        };
        use Freshness::{Fresh, Stale};
        for (after_ms, expected) in [
            (1_999, [Fresh, Fresh, Fresh]),
            (2, [Stale, Fresh, Stale]),
            (7_999, [Stale, Fresh, Stale]),
            (1, [Stale, Stale, Stale]),
        ] {
            let view = bench.view_after(after_ms);
            assert_eq!(all(&view), expected, "at {:?}", bench.now);
            let running = view.members[0].sample.reading(Quantity::Running);
            assert_eq!(running.observed, EPOCH, "its age is what it is");
        }
        // Read in quick succession again, it is stale as soon as any other.
        bench.scraped(0, only(Quantity::Running, 6.0));
        bench.slots[0].paced(Duration::ZERO, Duration::from_millis(500), Some(FRESH_WITHIN.usual));
        assert_eq!(all(&bench.view_after(2_000))[1], Fresh);
        assert_eq!(all(&bench.view_after(1))[1], Stale);
    }

    /// A report of the queue's length alone, as vLLM sends it.
    fn waits(bench: &Bench, value: f64) {
        bench.slots[0].live.reported(only(Quantity::Waiting, value), bench.at());
    }

    #[test]
    fn a_report_and_a_page_each_give_way_to_what_is_newer() {
        let mut bench = Bench::new(1);
        bench.scraped(0, [Some(3.0), Some(5.0), None, None, None, None, None, None]);
        bench.view_after(1_500);
        waits(&bench, 7.0);
        use Freshness::{Fresh, Stale};
        let readings = |view: &FleetView| {
            [Quantity::Waiting, Quantity::Running].map(|quantity| {
                let reading = view.members[0].sample.reading(quantity);
                (reading.value.unwrap(), reading.source.unwrap(), reading.freshness)
            })
        };
        let view = bench.view_after(100);
        assert_eq!(readings(&view), [(7.0, Source::Orca, Fresh), (5.0, Source::Scrape, Fresh)]);
        let view = bench.view_after(500);
        let old = [(7.0, Source::Orca, Fresh), (5.0, Source::Scrape, Stale)];
        assert_eq!(readings(&view), old, "what is fresh freshens nothing else");

        let page = Observation {
            values: [Some(1.0), Some(2.0), None, None, None, None, None, None],
            garbage: 0,
            absent: Vec::new(),
            engine: "vllm".into(),
            gives: [true; Quantity::COUNT],
        };
        bench.slots[0].scraped(EPOCH.plus(Duration::from_millis(1_400)), 0, &page);
        let view = bench.view_after(100);
        assert_eq!(readings(&view)[0], (7.0, Source::Orca, Fresh), "the page was asked for before the report came");
        bench.scraped(0, page.values);
        assert_eq!(readings(&bench.view_after(100))[0], (1.0, Source::Scrape, Fresh));
        bench.slots[0].live.reported(only(Quantity::Waiting, 9.0), EPOCH);
        assert_eq!(readings(&bench.view_after(100))[0], (1.0, Source::Scrape, Fresh), "an old report");
    }

    #[test]
    fn a_report_counts_no_request_twice() {
        let mut bench = Bench::new(1);
        let live = Arc::clone(&bench.slots[0].live);
        let change = |view: &FleetView| {
            let sample = &view.members[0].sample;
            let known =
                sample.reading(Quantity::Waiting).value.unwrap() + sample.reading(Quantity::Running).value.unwrap();
            known + f64::from(live.in_flight()) - f64::from(sample.in_flight_at_scrape.unwrap())
        };
        (0..4).for_each(|_| live.begin());
        bench.scraped(0, [Some(0.0), Some(4.0), None, None, None, None, None, None]);
        (0..6).for_each(|_| live.begin());
        assert_eq!(change(&bench.view_after(100)), 10.0, "four run, and six came since");
        waits(&bench, 3.0);
        assert_eq!(change(&bench.view_after(100)), 10.0, "three of the six wait");
        waits(&bench, 23.0);
        assert_eq!(
            change(&bench.view_after(100)),
            27.0,
            "twenty more are none of ours: they are ahead of ours all the same"
        );
        bench.slots[0].live.reported([Some(3.0), Some(7.0), None, None, None, None, None, None], bench.at());
        assert_eq!(change(&bench.view_after(100)), 10.0);
    }

    #[test]
    fn what_exporters_say_is_fresh_for_longer_and_freshens_nothing_else() {
        let mut bench = Bench::new(1);
        let found = |utilization| Found { utilization, uuids: Some(["GPU-0".into()].into()), ..Found::default() };
        bench.scraped(0, only(Quantity::Waiting, 3.0));
        bench.slots[0].gpus_told(&"n".into(), bench.at(), FRESH_WITHIN.gpus, found(Some(0.25)));
        let all = |view: &FleetView| {
            let of = |quantity| view.members[0].sample.reading(quantity).freshness;
            [Quantity::Waiting, Quantity::GpuUtilization, Quantity::GpuMemoryUtilization].map(of)
        };
        use Freshness::{Fresh, Stale, Unsupported};
        let view = bench.view_after(2_000);
        assert_eq!(all(&view), [Fresh, Fresh, Unsupported]);
        assert_eq!(view.members[0].sample.gpu_uuids.as_deref(), Some(&["GPU-0".into()][..]));
        assert_eq!(all(&bench.view_after(1)), [Stale, Fresh, Unsupported]);
        bench.scraped(0, only(Quantity::Waiting, 3.0));
        assert_eq!(all(&bench.view_after(3_000)), [Stale, Stale, Unsupported]);
    }

    #[test]
    fn the_unhealthy_are_excluded_and_come_back() {
        let mut bench = Bench::new(3);
        bench.slots[1].probed(Health::Unhealthy, Some("down"));
        let view = bench.view_after(100);
        let of_all = |view: &FleetView| (view.pools.all().eligible.to_vec(), view.pools.all().excluded.unhealthy);
        assert_eq!(of_all(&view), (vec![0, 2], 1));
        assert_eq!((view.members.len(), view.members[1].sample.health), (3, Health::Unhealthy));

        bench.slots[1].probed(Health::Unhealthy, Some("still down"));
        assert_eq!(bench.view_after(100).members[1].sample.n, 2, "no news");
        bench.slots[1].probed(Health::Healthy, None);
        let view = bench.view_after(100);
        assert_eq!((of_all(&view), view.members[1].sample.n), ((vec![0, 1, 2], 0), 3));
    }

    #[test]
    fn a_sample_has_what_was_in_flight_when_its_page_was_asked_for() {
        let mut bench = Bench::new(1);
        assert_eq!(bench.view_after(100).members[0].sample.in_flight_at_scrape, None, "nothing was asked for");
        bench.slots[0].live.begin();
        bench.scraped(0, only(Quantity::Waiting, 3.0));
        bench.slots[0].live.begin();
        assert_eq!(bench.view_after(100).members[0].sample.in_flight_at_scrape, Some(1));
        bench.scraped(0, [None; Quantity::COUNT]);
        bench.slots[0].probed(Health::Healthy, None);
        assert_eq!(bench.view_after(100).members[0].sample.in_flight_at_scrape, Some(1), "the page said nothing");
    }

    #[test]
    fn who_fails_request_after_request_is_passed_over_for_a_while() {
        let mut bench = Bench::new(3);
        (0..5).for_each(|_| bench.slots[1].live.failed());
        let of_all = |view: &FleetView| (view.pools.all().eligible.to_vec(), view.pools.all().excluded.ejected);
        assert_eq!(of_all(&bench.view_after(100)), (vec![0, 2], 1));
        assert_eq!(of_all(&bench.view_after(9_900)), (vec![0, 2], 1));
        assert_eq!(of_all(&bench.view_after(100)), (vec![0, 1, 2], 0));
    }

    #[test]
    fn the_gateways_rates_are_written_for_each_target() {
        let mut bench = Bench::new(2);
        for _request in 0..20 {
            bench.slots[1].live.begin();
            bench.slots[1].live.add_tokens(10);
        }
        let view = bench.view_after(4_000);
        assert_eq!(view.members[1].live.rates(), (5.0, 50.0));
        assert_eq!(view.members[0].live.rates(), (0.0, 0.0));
        for _tick in 0..150 {
            bench.view_after(100);
        }
        assert_eq!(view.members[1].live.rates(), (0.0, 0.0), "after a window without requests");
    }
}

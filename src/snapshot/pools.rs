//! Who may be chosen for which model: made when a target comes or goes, not per request.

use std::collections::HashMap;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::decision::Excluded;
use super::sample::Target;

/// The pools of one fleet.
#[derive(Debug)]
pub struct Pools {
    /// Each member's [`Target::identity`], in the members' order.
    pub identities: Box<[u64]>,
    all: Pool,
    /// For a model that no target names: those that serve any.
    unnamed: Pool,
    named: HashMap<Box<str>, Pool>,
}

/// The targets that serve one model.
#[derive(Debug, Default)]
pub struct Pool {
    /// Which of them may be chosen, as indices into the view's members, ascending.
    pub eligible: Box<[u32]>,
    /// How many of the fleet may not, and why.
    pub excluded: Excluded,
    /// How many serve the model, whether or not they may be chosen now.
    pub serving: u32,
    /// Identities of the eligible with their places in `eligible`, sorted.
    ring: Box<[(u64, u32)]>,
    /// Whose turn it is. Pools that are made anew go on with it.
    turns: Arc<AtomicU64>,
}

/// What a pool has to know of a target.
#[derive(Clone, Copy, Debug)]
pub struct Serving<'a> {
    /// The target.
    pub target: &'a Target,
    /// The models it serves; none named means any.
    pub models: &'a [Box<str>],
    /// Whether it may be chosen now.
    pub standing: Standing,
}

/// Whether a target may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Up,
    /// It has come, and nobody has seen it alive yet: it may only as long as no other target of its pool may.
    Unproven,
    /// It is passed over for its failures, unless too many of its pool are.
    Failing,
    /// It may not.
    Down,
}

impl Pools {
    /// From the view's members in their order. `before` are the pools that these replace: turns go on from theirs.
    pub fn new(members: &[Serving<'_>], before: Option<&Self>) -> Self {
        let mut unnamed = Vec::new();
        let mut named: HashMap<&str, Vec<u32>> = HashMap::new();
        for (index, member) in (0..).zip(members) {
            if member.models.is_empty() {
                unnamed.push(index);
            }
            for model in member.models {
                named.entry(model).or_default().push(index);
            }
        }
        let with_any = |(model, mut serving): (&str, Vec<u32>)| {
            serving.extend(&unnamed);
            serving.sort_unstable();
            serving.dedup();
            let before = before.and_then(|before| before.named.get(model));
            (model.into(), Pool::new(members, &serving, before))
        };
        let all: Vec<u32> = (0..members.len() as u32).collect();
        Self {
            identities: members.iter().map(|member| member.target.identity()).collect(),
            all: Pool::new(members, &all, before.map(|before| &before.all)),
            named: named.into_iter().map(with_any).collect(),
            unnamed: Pool::new(members, &unnamed, before.map(|before| &before.unnamed)),
        }
    }

    /// All targets: for a request that names no model.
    pub fn all(&self) -> &Pool {
        &self.all
    }

    /// Those for a model.
    pub fn of_model(&self, model: Option<&str>) -> &Pool {
        match model {
            None => &self.all,
            Some(model) => self.named.get(model).unwrap_or(&self.unnamed),
        }
    }
}

impl Pool {
    fn new(members: &[Serving<'_>], serving: &[u32], before: Option<&Self>) -> Self {
        let (mut eligible, mut ring) = (Vec::new(), Vec::new());
        let standing = |index: u32| members[index as usize].standing;
        let others = serving.iter().any(|index| matches!(standing(*index), Standing::Up | Standing::Failing));
        let is_out = |standing| standing == Standing::Down || standing == Standing::Unproven && others;
        let unhealthy = serving.iter().filter(|index| is_out(standing(**index))).count();
        // When most of a pool fails, the fault is rather not with its targets, and the rest could not take the load.
        let ejected_max = (serving.len() - unhealthy) / 2;
        let mut ejected = 0;
        for &index in serving {
            let standing = standing(index);
            if is_out(standing) {
                continue;
            }
            if standing == Standing::Failing && ejected < ejected_max {
                ejected += 1;
                continue;
            }
            ring.push((members[index as usize].target.identity(), eligible.len() as u32));
            eligible.push(index);
        }
        ring.sort_unstable();
        let model = members.len() - serving.len();
        Self {
            eligible: eligible.into(),
            excluded: Excluded {
                unhealthy: unhealthy as u32,
                ejected: ejected as u32,
                model: model as u32,
                no_fresh_state: 0,
            },
            serving: serving.len() as u32,
            ring: ring.into(),
            turns: before.map_or_else(Arc::default, |before| Arc::clone(&before.turns)),
        }
    }

    /// The next turn.
    pub fn next_turn(&self) -> u64 {
        self.turns.fetch_add(1, Relaxed)
    }

    /// The places in `eligible` of all targets, in the order of their identities, from the one that follows `hash` on. When
    /// a target comes or goes, every walk keeps its order otherwise.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = u32> {
        let first = self.ring.partition_point(|(identity, _)| *identity < hash);
        let places = iter::successors(Some(first), |at| Some(at + 1)).map(|at| self.ring[at % self.ring.len()].1);
        places.take(self.ring.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Served = (&'static str, &'static [&'static str], bool);

    fn pools(fleet: &[Served], before: Option<&Pools>) -> Pools {
        let target = |(slot, (name, ..)): (u32, &Served)| Target::new(slot, name, "");
        let targets: Vec<Target> = (0..).zip(fleet).map(target).collect();
        let models: Vec<Vec<Box<str>>> =
            fleet.iter().map(|(_, models, _)| models.iter().map(|model| (*model).into()).collect()).collect();
        let members = targets.iter().zip(&models).zip(fleet);
        let members = members.map(|((target, models), (.., up))| {
            let standing = if *up { Standing::Up } else { Standing::Down };
            Serving { target, models, standing }
        });
        let members: Vec<_> = members.collect();
        Pools::new(&members, before)
    }

    #[test]
    fn each_model_has_those_that_name_it_and_those_that_name_none() {
        let fleet =
            pools(&[("a", &["m"], true), ("b", &["n", "m"], false), ("c", &[], true), ("d", &["n"], true)], None);
        for (model, eligible, serving, unhealthy, other) in [
            (None, &[0, 2, 3][..], 4, 1, 0),
            (Some("m"), &[0, 2], 3, 1, 1),
            (Some("n"), &[2, 3], 3, 1, 1),
            (Some("x"), &[2], 1, 0, 3),
        ] {
            let pool = fleet.of_model(model);
            assert_eq!((&*pool.eligible, pool.serving), (eligible, serving), "{model:?}");
            assert_eq!(pool.excluded, Excluded { unhealthy, model: other, ..Excluded::default() }, "{model:?}");
        }
        let strict = pools(&[("a", &["m"], true)], None);
        assert_eq!((strict.of_model(Some("x")).serving, strict.of_model(Some("m")).serving), (0, 1));
    }

    #[test]
    fn each_models_turns_go_on_when_its_pool_is_made_anew() {
        let fleet = [("a", &["m"][..], true), ("b", &["m", "n"][..], true)];
        let before = pools(&fleet, None);
        let turns = |pools: &Pools, model| pools.of_model(Some(model)).next_turn();
        assert_eq!([turns(&before, "m"), turns(&before, "m"), turns(&before, "n")], [0, 1, 0]);
        let after = pools(&fleet, Some(&before));
        assert_eq!([turns(&after, "m"), turns(&after, "n"), turns(&after, "x")], [2, 1, 0]);
    }

    #[test]
    fn a_walk_meets_everybody_once_and_keeps_its_order_when_one_leaves() {
        let names: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
        let walked = |gone: &str, hash| -> Vec<&str> {
            let fleet: Vec<Served> = names.iter().map(|name| (*name, &[][..], *name != gone)).collect();
            let pools = pools(&fleet, None);
            let pool = pools.all();
            pool.walk(hash).map(|place| names[pool.eligible[place as usize] as usize]).collect()
        };
        for hash in [0, 1 << 63, u64::MAX] {
            let all = walked("", hash);
            assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
            let expected: Vec<&str> = all.into_iter().filter(|name| *name != "c").collect();
            assert_eq!(walked("c", hash), expected);
        }
        assert_eq!(pools(&[], None).all().walk(7).count(), 0);
    }

    #[test]
    fn never_more_than_half_of_a_model_is_passed_over_for_its_failures() {
        let targets: Vec<_> = (0..5).map(|slot| Target::new(slot, &format!("t{slot}"), "")).collect();
        let eligible = |standings: [Standing; 5]| {
            let serving = |(target, standing)| Serving { target, models: &[], standing };
            let pools = Pools::new(&targets.iter().zip(standings).map(serving).collect::<Vec<_>>(), None);
            (pools.all().eligible.to_vec(), pools.all().excluded.ejected, pools.all().excluded.unhealthy)
        };
        use Standing::{Down, Failing, Up};
        assert_eq!(eligible([Up, Failing, Up, Failing, Up]), (vec![0, 2, 4], 2, 0));
        assert_eq!(eligible([Failing; 5]), (vec![2, 3, 4], 2, 0));
        assert_eq!(eligible([Down, Failing, Down, Failing, Down]), (vec![3], 1, 3));
        assert_eq!(eligible([Down, Down, Down, Down, Failing]), (vec![4], 0, 4), "the last one stays");
    }
}

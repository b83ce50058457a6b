//! What a replay found, as JSON and as text.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::snapshot::{Candidate, Decision, Moment, Policy, Quantity, Sample, SnapshotId};

/// Decisions that are shown one by one.
const EXAMPLES_MAX: usize = 5;

/// One decision that was made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compared {
    /// Which of the candidates was chosen this time.
    pub(super) chosen: usize,
    /// By its own policy it came out just as it did; true for another one.
    pub(super) explained: bool,
    /// The record says whom the policy was to look at; true for another one.
    pub(super) checkable: bool,
    /// The record has all that the policy would have chosen from.
    pub(super) whole: bool,
}

/// What was found. Counts are decisions.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The policy that chose again; null where each decision's own did.
    policy: Option<Policy>,
    /// When the first and the last of the requests were issued.
    first_issued_at: Option<String>,
    last_issued_at: Option<String>,
    #[serde(skip)]
    issued: Option<(Moment, Moment)>,
    /// All in the time asked for.
    decisions: u64,
    /// How many each policy had made.
    recorded: BTreeMap<&'static str, u64>,
    /// Those that could not be made again, by reason.
    not_replayed: BTreeMap<&'static str, u64>,
    /// Chose the same target again.
    same: u64,
    /// Chose another one.
    different: u64,
    /// Of these: both targets had as many waiting, running and in flight, so that a draw decided.
    different_but_alike: u64,
    /// By their own policy and yet not as they were: the record does not hold what the choice depended on.
    unexplained: u64,
    /// By their own policy they came out as they were, but of more targets than were looked at: which these had to be depends
    /// on the names of all, and is not known from a record.
    not_wholly_checkable: u64,
    /// Chosen only among the targets that were looked at, which were not all.
    among_a_part: u64,
    /// Where the targets differ: the mean of what the new one had, less what the old one had.
    difference: Difference,
    /// How many decisions each target got.
    targets: BTreeMap<Box<str>, Share>,
    /// Those whose targets differ most, the largest difference first.
    examples: Vec<Example>,
    /// Some of those that are unexplained.
    unexplained_examples: Vec<String>,
}

/// The means of differences.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Difference {
    waiting: Mean,
    running: Mean,
    kv_cache_usage: Mean,
    gateway_in_flight: Mean,
}

/// A mean of what was known of both targets.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Mean {
    /// Null when nothing was known.
    mean: Option<f64>,
    known: u64,
    #[serde(skip)]
    sum: f64,
}

/// One target's decisions.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Share {
    recorded: u64,
    replayed: u64,
}

/// One decision that differs.
#[derive(Clone, Debug, Serialize)]
struct Example {
    id: String,
    recorded: Chosen,
    replayed: Chosen,
    #[serde(skip)]
    distance: f64,
}

/// A target as it was known when it was or would have been chosen.
#[derive(Clone, Debug, Serialize)]
struct Chosen {
    target: Box<str>,
    waiting: Option<f64>,
    running: Option<f64>,
    kv_cache_usage: Option<f64>,
    gateway_in_flight: u32,
}

impl Chosen {
    fn of(candidate: Candidate<&Arc<Sample>>) -> Self {
        let fresh = |quantity| candidate.sample.reading(quantity).fresh();
        Self {
            target: candidate.sample.target.name.clone(),
            waiting: fresh(Quantity::Waiting),
            running: fresh(Quantity::Running),
            kv_cache_usage: fresh(Quantity::KvCacheUsage),
            gateway_in_flight: candidate.in_flight,
        }
    }
}

impl Chosen {
    /// How many requests lie between two targets, waiting, running and in flight taken together.
    fn distance(&self, other: &Self) -> f64 {
        let apart =
            |one: Option<f64>, other: Option<f64>| one.zip(other).map_or(0.0, |(one, other)| (one - other).abs());
        apart(self.waiting, other.waiting)
            + apart(self.running, other.running)
            + f64::from(self.gateway_in_flight.abs_diff(other.gateway_in_flight))
    }
}

impl Mean {
    fn add(&mut self, old: Option<f64>, new: Option<f64>) {
        if let (Some(old), Some(new)) = (old, new) {
            self.known += 1;
            self.sum += new - old;
            self.mean = Some(self.sum / self.known as f64);
        }
    }
}

impl Report {
    pub(super) fn new(policy: Option<Policy>) -> Self {
        Self {
            policy,
            first_issued_at: None,
            last_issued_at: None,
            issued: None,
            decisions: 0,
            recorded: BTreeMap::new(),
            not_replayed: BTreeMap::new(),
            same: 0,
            different: 0,
            different_but_alike: 0,
            unexplained: 0,
            not_wholly_checkable: 0,
            among_a_part: 0,
            difference: Difference::default(),
            targets: BTreeMap::new(),
            examples: Vec::new(),
            unexplained_examples: Vec::new(),
        }
    }

    pub(super) fn decision(&mut self, policy: Policy, issued_at: Moment) {
        self.decisions += 1;
        *self.recorded.entry(policy.name()).or_default() += 1;
        let (first, last) = self.issued.unwrap_or((issued_at, issued_at));
        self.issued = Some((first.min(issued_at), last.max(issued_at)));
    }

    pub(super) fn not_replayed(&mut self, why: &'static str) {
        *self.not_replayed.entry(why).or_default() += 1;
    }

    pub(super) fn compared(&mut self, id: SnapshotId, decision: &Decision, compared: &Compared) {
        let (old, new) = (
            Chosen::of(decision.chosen()),
            Chosen::of(decision.candidates.get(compared.chosen).expect("what was chosen is one of them")),
        );
        self.targets.entry(old.target.clone()).or_default().recorded += 1;
        self.targets.entry(new.target.clone()).or_default().replayed += 1;
        self.among_a_part += u64::from(!compared.whole);
        if compared.explained {
            self.not_wholly_checkable += u64::from(!compared.checkable);
        } else {
            self.unexplained += 1;
            if self.unexplained_examples.len() < EXAMPLES_MAX {
                self.unexplained_examples.push(id.to_string());
            }
        }
        if compared.chosen == 0 {
            self.same += 1;
            return;
        }
        self.different += 1;
        let in_flight = |chosen: &Chosen| Some(f64::from(chosen.gateway_in_flight));
        self.difference.waiting.add(old.waiting, new.waiting);
        self.difference.running.add(old.running, new.running);
        self.difference.kv_cache_usage.add(old.kv_cache_usage, new.kv_cache_usage);
        self.difference.gateway_in_flight.add(in_flight(&old), in_flight(&new));
        let distance = old.distance(&new);
        self.different_but_alike += u64::from(distance == 0.0);
        if distance == 0.0 {
            return;
        }
        let place = self.examples.partition_point(|example| example.distance >= distance);
        if place < EXAMPLES_MAX {
            self.examples.truncate(EXAMPLES_MAX - 1);
            self.examples.insert(place, Example { id: id.to_string(), recorded: old, replayed: new, distance });
        }
    }

    pub(super) fn finished(mut self) -> Self {
        let shown = self.issued.map(|(first, last)| (first.to_string(), last.to_string()));
        (self.first_issued_at, self.last_issued_at) = shown.unzip();
        self
    }

    /// Whether every decision that its own policy made again came out as it was.
    pub fn explains_all(&self) -> bool {
        self.unexplained == 0
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = self.sentences();
        if self.different > 0 {
            text += &self.differences();
        }
        if !self.targets.is_empty() {
            text += &self.shares();
        }
        if !self.examples.is_empty() {
            text += "\nthe largest differences (`snapgate lookup ID` says more):\n";
            self.examples.iter().for_each(|example| text += &example.text());
        }
        text
    }

    fn sentences(&self) -> String {
        let by = self.policy.map_or("each decision's own policy", Policy::name);
        let replayed = self.same + self.different;
        let (Some(first), Some(last)) = (&self.first_issued_at, &self.last_issued_at) else {
            return "no decision was recorded in this time\n".to_owned();
        };
        let mut text = if replayed == 0 {
            let why = self.not_replayed.iter().max_by_key(|(_, count)| **count).map(|(why, _)| advice(why));
            format!("nothing could be replayed: {}\n", why.unwrap_or("see the reasons below"))
        } else {
            String::new()
        };
        text += &format!(
            "{by} over {} decisions from {first} to {last}: {} of {replayed} ({}) would have gone elsewhere\n",
            self.decisions,
            self.different,
            percent(self.different, replayed),
        );
        if self.different_but_alike > 0 {
            text += &format!("{} of these between targets that had just as much to do\n", self.different_but_alike);
        }
        text += &format!("recorded policies: {}\n", counts(&self.recorded));
        if !self.not_replayed.is_empty() {
            text += &format!("not replayed: {}\n", counts(&self.not_replayed));
        }
        if self.among_a_part > 0 {
            text += &format!("{} chosen only among the targets that were looked at, not all\n", self.among_a_part);
        }
        if self.not_wholly_checkable > 0 {
            text += &format!(
                "{} not wholly checkable: the best of those that were looked at was chosen, but of a fleet of more than \
                 choice.width no record says that the walk from the hash leads to just these\n",
                self.not_wholly_checkable
            );
        }
        if self.unexplained > 0 {
            text += &format!(
                "{} UNEXPLAINED: their own policy does not give what was recorded, such as {}\n",
                self.unexplained,
                self.unexplained_examples.join(", ")
            );
        }
        text
    }

    fn differences(&self) -> String {
        let Difference { waiting, running, kv_cache_usage, gateway_in_flight } = self.difference;
        let mut text = "\nwhere it differs, its target had on average, against the one that was chosen:\n".to_owned();
        for (name, mean) in [
            ("waiting", waiting),
            ("running", running),
            ("kv_cache_usage", kv_cache_usage),
            ("gateway_in_flight", gateway_in_flight),
        ] {
            let shown = mean.mean.map_or_else(|| "unknown".to_owned(), signed);
            text += &format!("  {name:<18} {shown:>9}  (fresh for both in {})\n", mean.known);
        }
        text
    }

    fn shares(&self) -> String {
        let replayed = self.same + self.different;
        let width = self.targets.keys().map(|name| name.len()).max().unwrap_or(0).max("target".len());
        let mut text = format!("\n{:<width$}  {:>18}  {:>18}\n", "target", "recorded", "replayed");
        for (name, share) in &self.targets {
            let cell = |count| format!("{count} {:>8}", format!("({})", percent(count, replayed)));
            text += &format!("{name:<width$}  {:>18}  {:>18}\n", cell(share.recorded), cell(share.replayed));
        }
        text
    }
}

impl Example {
    fn text(&self) -> String {
        let (old, new) = (&self.recorded, &self.replayed);
        let pair = |name, old: Option<f64>, new: Option<f64>| {
            let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{}", round(value)));
            format!("{name} {} -> {}", show(old), show(new))
        };
        format!(
            "  {}  {} -> {}: {}, {}, {}, in flight {} -> {}\n",
            self.id,
            old.target,
            new.target,
            pair("waiting", old.waiting, new.waiting),
            pair("running", old.running, new.running),
            pair("kv", old.kv_cache_usage, new.kv_cache_usage),
            old.gateway_in_flight,
            new.gateway_in_flight,
        )
    }
}

/// With its sign, to a thousandth; what is less is 0, which has none.
fn signed(value: f64) -> String {
    if round(value) == 0.0 { "0".to_owned() } else { format!("{value:+.3}") }
}

/// To a thousandth.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Why a policy cannot choose again, for whoever asked for it.
fn advice(why: &str) -> &str {
    match why {
        "no_prefix_hash" => "recorded without a prefix hash, which only prefix_affinity's own decisions have",
        "no_session_hash" => "recorded without a session hash, which only session_affinity's own decisions have",
        "forced" => "the requests named their targets",
        "too_old" => "recorded by a version that did not yet record places",
        why => why,
    }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", part as f64 / whole as f64 * 100.0) }
}

fn counts(counts: &BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_has_a_sign_unless_it_is_nothing() {
        let shown = [-1.9424, 2.0, -0.0004, -0.0, 0.0004, 0.0006].map(signed);
        assert_eq!(shown, ["-1.942", "+2.000", "0", "0", "0", "+0.001"]);
    }
}

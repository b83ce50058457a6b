//! What has been issued and is not stored yet: the reason an ID resolves from the moment a client can read it.
//!
//! A record enters at the decision (or at its finish, if none was made) and leaves when it is committed or dropped, so
//! the ledger is bounded by the requests in flight plus the hand-off's queue. A drop is remembered by its ID in a bounded
//! ring, and every drop in a count of its second, which the store keeps once it can.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::snapshot::{Record, SnapshotId};

/// Shards of the map: enough that two data threads rarely meet on one.
const SHARDS: usize = 64;

/// Drops whose IDs are remembered one by one.
pub const DROPPED_IDS_MAX: usize = 65_536;

/// Seconds whose drops are counted apart while the store cannot take the counts; what goes beyond is counted to the next.
const DROP_COUNTS_MAX: usize = 86_400;

/// Why a finished record never reached the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The hand-off's queue was full.
    QueueFull,
    /// The store refused the transaction, because its disk was full or broken.
    StoreFailed,
    /// The gateway had to stop before the worker could take it.
    Shutdown,
    /// No target was chosen for the request, and more such requests came than are recorded.
    RefusedFlood,
}

impl DropReason {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::StoreFailed, Self::Shutdown, Self::RefusedFlood];

    /// Its name in lookups, metrics and the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::StoreFailed => "store_failed",
            Self::Shutdown => "shutdown",
            Self::RefusedFlood => "refused_flood",
        }
    }

    /// Whether the ring remembers the IDs. Those of a flood would push all others out of it; the counts of their seconds say as
    /// much of them.
    const fn is_remembered(self) -> bool {
        !matches!(self, Self::RefusedFlood)
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// How many requests that were issued within one second were dropped for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropCount {
    /// Unix seconds, from the IDs.
    pub second: u64,
    /// Why.
    pub reason: DropReason,
    /// How many.
    pub count: u64,
}

/// The map of what is in flight or on its way to the store. Locks are held for a few map operations, never longer.
#[derive(Debug)]
pub struct Ledger {
    shards: Box<[Mutex<Shard>]>,
    dropped: Mutex<Dropped>,
}

type Shard = HashMap<SnapshotId, Arc<Record>, BuildHasherDefault<RandomBits>>;

#[derive(Debug, Default)]
struct Dropped {
    order: VecDeque<SnapshotId>,
    reasons: HashMap<SnapshotId, DropReason, BuildHasherDefault<RandomBits>>,
    /// Not stored yet: by second, then by reason.
    counts: BTreeMap<u64, [u64; DropReason::ALL.len()]>,
    /// With the store since the last call, which may have them by now or give them back.
    taken: Vec<DropCount>,
}

impl Dropped {
    fn remember(&mut self, id: SnapshotId, reason: DropReason) {
        if self.order.len() == DROPPED_IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.reasons.remove(&oldest);
        }
        self.order.push_back(id);
        self.reasons.insert(id, reason);
    }

    fn count(&mut self, second: u64, reason: DropReason, count: u64) {
        self.counts.entry(second).or_default()[reason as usize] += count;
        if self.counts.len() > DROP_COUNTS_MAX
            && let Some((_, oldest)) = self.counts.pop_first()
            && let Some(mut next) = self.counts.first_entry()
        {
            next.get_mut().iter_mut().zip(oldest).for_each(|(sum, count)| *sum += count);
        }
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), dropped: Mutex::default() }
    }
}

impl Ledger {
    /// From here on the ID resolves.
    pub fn insert(&self, record: Arc<Record>) {
        locked(self.shard(record.id())).insert(record.id(), record);
    }

    /// The record, if it is in flight or not stored yet.
    pub fn get(&self, id: SnapshotId) -> Option<Arc<Record>> {
        locked(self.shard(id)).get(&id).cloned()
    }

    /// The record was committed: the store answers from now on.
    pub fn settle(&self, id: SnapshotId) {
        // Bound first, dropped after the lock: freeing a record takes longer than the map operation.
        let _settled = locked(self.shard(id)).remove(&id);
    }

    /// The record will never be stored. It is remembered by its ID, and the reason with it, for as long as the ring lasts; of a
    /// flood only the count of its second is kept.
    pub fn drop_record(&self, id: SnapshotId, reason: DropReason) {
        {
            let mut dropped = locked(&self.dropped);
            if reason.is_remembered() {
                dropped.remember(id, reason);
            }
            dropped.count(id.unix_ms() / 1000, reason, 1);
        }
        self.settle(id);
    }

    /// Why the record was dropped, if the ring still knows.
    pub fn dropped(&self, id: SnapshotId) -> Option<DropReason> {
        locked(&self.dropped).reasons.get(&id).copied()
    }

    /// Of the drops of the second in which the ID was issued, those for the most frequent reason, if the store may not know
    /// of them: whoever misses a record there, and finds no drop of its ID, asks here. A flood counts only where there was
    /// nothing else: who misses a request that was served is not to be told that it was refused.
    pub fn counted(&self, id: SnapshotId) -> Option<DropCount> {
        let second = id.unix_ms() / 1000;
        let dropped = locked(&self.dropped);
        let mut counts = dropped.counts.get(&second).copied().unwrap_or_default();
        for taken in dropped.taken.iter().filter(|taken| taken.second == second) {
            counts[taken.reason as usize] += taken.count;
        }
        let rank = |&(reason, count): &(DropReason, u64)| (count > 0 && reason != DropReason::RefusedFlood, count);
        let (reason, count) = DropReason::ALL.into_iter().zip(counts).max_by_key(rank)?;
        (count > 0).then_some(DropCount { second, reason, count })
    }

    /// The drops since the last call, for the store to keep.
    pub fn take_drop_counts(&self) -> Vec<DropCount> {
        let mut dropped = locked(&self.dropped);
        let counts = std::mem::take(&mut dropped.counts);
        let by_reason = |(second, counts): (u64, [u64; DropReason::ALL.len()])| {
            let counts = DropReason::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0);
            counts.map(move |(reason, count)| DropCount { second, reason, count })
        };
        dropped.taken = counts.into_iter().flat_map(by_reason).collect();
        dropped.taken.clone()
    }

    /// The store could not keep them: they are to be taken again.
    pub fn return_drop_counts(&self, counts: Vec<DropCount>) {
        let mut dropped = locked(&self.dropped);
        dropped.taken.clear();
        for DropCount { second, reason, count } in counts {
            dropped.count(second, reason, count);
        }
    }

    /// All records that `wanted` accepts, newest first, at most `limit`: for searches by trace or by alias.
    pub fn search(&self, limit: usize, wanted: impl Fn(&Record) -> bool) -> Vec<Arc<Record>> {
        let mut found: Vec<_> = self.records().filter(|record| wanted(record)).collect();
        found.sort_unstable_by_key(|record| std::cmp::Reverse(record.id()));
        found.truncate(limit);
        found
    }

    /// Whether `wanted` accepts a record. It is asked about no more than it takes.
    pub fn any(&self, mut wanted: impl FnMut(&Record) -> bool) -> bool {
        self.records().any(|record| wanted(&record))
    }

    /// All records, shard by shard. Each shard is copied when its turn comes, so that nothing is asked under its lock.
    fn records(&self) -> impl Iterator<Item = Arc<Record>> {
        self.shards.iter().flat_map(|shard| locked(shard).values().cloned().collect::<Vec<_>>())
    }

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).len()).sum()
    }

    /// Whether everything issued has been settled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: SnapshotId) -> &Mutex<Shard> {
        // The hash takes the low bits, so the shard takes others.
        &self.shards[(id.random() >> 32) as usize % SHARDS]
    }
}

/// A panic while one of them was locked leaves whole maps: at worst a drop is remembered twice or not at all.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// IDs are made here and their low half is random: it needs no further hashing.
#[derive(Default)]
struct RandomBits(u64);

impl Hasher for RandomBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_ne_bytes(word);
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::InstanceTag;
    use crate::snapshot::record::tests::finished;

    /// The ID of a request issued in a second, told from others of it by `number`.
    fn id(second: u64, number: u64) -> SnapshotId {
        SnapshotId::new(second * 1000, InstanceTag(7), number)
    }

    fn count(second: u64, reason: DropReason, count: u64) -> DropCount {
        DropCount { second, reason, count }
    }

    #[test]
    fn a_record_is_there_until_it_is_settled() {
        let ledger = Ledger::default();
        let records: Vec<_> = (0..1000).map(|number| Arc::new(finished(number))).collect();
        for record in &records {
            ledger.insert(Arc::clone(record));
        }
        assert_eq!(ledger.len(), records.len());
        let (settled, kept) = records.split_at(400);
        for record in settled {
            ledger.settle(record.id());
        }
        assert!(settled.iter().all(|record| ledger.get(record.id()).is_none()));
        assert!(kept.iter().all(|record| Arc::ptr_eq(&ledger.get(record.id()).unwrap(), record)));
        assert_eq!(ledger.len(), kept.len());
        for record in kept {
            ledger.settle(record.id());
        }
        assert!(ledger.is_empty());
        assert_eq!(settled.iter().find_map(|record| ledger.dropped(record.id())), None, "settled is not dropped");
    }

    #[test]
    fn a_dropped_record_leaves_its_reason() {
        let ledger = Ledger::default();
        for (number, reason) in (0..).zip(DropReason::ALL) {
            let record = Arc::new(finished(number));
            ledger.insert(Arc::clone(&record));
            ledger.drop_record(record.id(), reason);
            let remembered = Some(reason).filter(|reason| *reason != DropReason::RefusedFlood);
            assert_eq!((ledger.get(record.id()).is_none(), ledger.dropped(record.id())), (true, remembered));
            assert_eq!(DropReason::from_name(reason.name()), Some(reason));
        }
        assert!(ledger.is_empty());
    }

    #[test]
    fn the_ring_forgets_the_oldest_ids_and_the_counts_forget_none() {
        let ledger = Ledger::default();
        let beyond = 10;
        for number in 0..DROPPED_IDS_MAX as u64 + beyond {
            ledger.drop_record(id(1_800_000_000, number), DropReason::QueueFull);
        }
        let known = |number| ledger.dropped(id(1_800_000_000, number)).is_some();
        assert_eq!((known(0), known(beyond - 1), known(beyond)), (false, false, true));
        assert!(known(DROPPED_IDS_MAX as u64 + beyond - 1));
        let all = count(1_800_000_000, DropReason::QueueFull, DROPPED_IDS_MAX as u64 + beyond);
        let forgotten = || ledger.counted(id(1_800_000_000, 0));
        assert_eq!(forgotten(), Some(all));
        let taken = ledger.take_drop_counts();
        assert_eq!((&*taken, forgotten()), (&[all][..], Some(all)), "while the store tries, too");
        ledger.return_drop_counts(taken);
        assert_eq!((forgotten(), ledger.counted(id(1_800_000_001, 0))), (Some(all), None));
        assert_eq!(ledger.take_drop_counts(), [all]);
        assert_eq!(ledger.take_drop_counts(), [], "they are taken once");
    }

    #[test]
    fn a_flood_pushes_no_id_out_of_the_ring() {
        let ledger = Ledger::default();
        ledger.drop_record(id(1_800_000_000, 0), DropReason::QueueFull);
        for number in 1..=DROPPED_IDS_MAX as u64 {
            ledger.drop_record(id(1_800_000_000, number), DropReason::RefusedFlood);
        }
        assert_eq!(ledger.dropped(id(1_800_000_000, 0)), Some(DropReason::QueueFull));
        let one = count(1_800_000_000, DropReason::QueueFull, 1);
        assert_eq!((ledger.dropped(id(1_800_000_000, 1)), ledger.counted(id(1_800_000_000, 1))), (None, Some(one)));
        for number in 0..10 {
            ledger.drop_record(id(1_800_000_001, number), DropReason::RefusedFlood);
        }
        let all = count(1_800_000_001, DropReason::RefusedFlood, 10);
        assert_eq!(ledger.counted(id(1_800_000_001, 1)), Some(all), "of a second with nothing else it is the flood's");
    }

    #[test]
    fn counts_that_could_not_be_stored_are_added_to_what_comes() {
        let ledger = Ledger::default();
        let drops = [(5, DropReason::QueueFull), (5, DropReason::StoreFailed), (5, DropReason::QueueFull)];
        for (number, (second, reason)) in (0..).zip(drops) {
            ledger.drop_record(id(second, number), reason);
        }
        let taken = ledger.take_drop_counts();
        assert_eq!(taken, [count(5, DropReason::QueueFull, 2), count(5, DropReason::StoreFailed, 1)]);
        ledger.drop_record(id(5, 10), DropReason::StoreFailed);
        ledger.drop_record(id(6, 11), DropReason::Shutdown);
        ledger.return_drop_counts(taken);
        let expected = [
            count(5, DropReason::QueueFull, 2),
            count(5, DropReason::StoreFailed, 2),
            count(6, DropReason::Shutdown, 1),
        ];
        assert_eq!(ledger.take_drop_counts(), expected);
    }

    #[test]
    fn counts_are_bounded_and_lose_no_drop() {
        let ledger = Ledger::default();
        let seconds = DROP_COUNTS_MAX as u64 + 25;
        ledger.return_drop_counts((0..seconds).map(|second| count(second, DropReason::StoreFailed, 2)).collect());
        let counts = ledger.take_drop_counts();
        assert_eq!(counts.len(), DROP_COUNTS_MAX);
        assert_eq!(counts.iter().map(|count| count.count).sum::<u64>(), 2 * seconds);
        assert_eq!(counts[0], count(25, DropReason::StoreFailed, 2 * 26), "the oldest second absorbs those before");
    }

    #[test]
    fn a_search_answers_the_newest_first_and_no_more_than_asked() {
        let ledger = Ledger::default();
        for number in [3, 900, 17, 450, 4, 899] {
            ledger.insert(Arc::new(finished(number)));
        }
        let numbers = |limit, wanted: fn(u64) -> bool| -> Vec<u64> {
            let number = |record: &Record| record.outcome().unwrap().response_bytes;
            ledger.search(limit, |record| wanted(number(record))).iter().map(|record| number(record)).collect()
        };
        assert_eq!(numbers(10, |_| true), [900, 899, 450, 17, 4, 3]);
        assert_eq!(numbers(2, |_| true), [900, 899]);
        assert_eq!(numbers(2, |number| number < 100), [17, 4]);
        assert!(numbers(2, |number| number > 1000).is_empty());
    }

    #[test]
    fn whether_there_is_one_is_known_with_the_first() {
        let ledger = Ledger::default();
        assert!(!ledger.any(|_| true));
        (0..1000).for_each(|number| ledger.insert(Arc::new(finished(number))));
        let mut asked = 0;
        let mut any = |wanted: &dyn Fn(&Record) -> bool| {
            asked = 0;
            let any = ledger.any(|record| {
                asked += 1;
                wanted(record)
            });
            (any, asked)
        };
        assert_eq!(any(&|_| true), (true, 1));
        assert_eq!(any(&|_| false), (false, 1000));
        assert!(any(&|record| record.id() == finished(500).id()).0);
    }
}

//! Lists: what a filter accepts, in their order, page by page, and within their bounds.

use proptest::sample::Index;

use super::super::list::{End, Scan};
use super::*;

const ANY: SnapshotId = SnapshotId::from_u128(u128::MAX);

/// Every page of a list, newest first.
fn all_newest(reader: &Reader, filter: &Filter, limit: usize) -> Vec<Arc<Record>> {
    let (mut found, mut below) = (Vec::new(), Some(ANY));
    while let Some(id) = below {
        let page = reader.newest(filter, id, limit).unwrap();
        assert!(page.records.len() <= limit && page.complete);
        assert!(page.next.is_none() || page.records.len() == limit, "a page that is not full is the last");
        found.extend(page.records);
        below = page.next;
    }
    found
}

/// Every page in the order of storing, until nothing follows.
fn all_stored(reader: &Reader, filter: &Filter) -> Vec<Arc<Record>> {
    let (mut found, mut after, end) = (Vec::new(), 0, reader.last_seq().unwrap());
    while after < end {
        let page = reader.stored_after(filter, after, 100).unwrap();
        found.extend(page.records);
        after = page.next.unwrap();
    }
    found
}

#[test]
fn pages_follow_each_other_whatever_comes_in_between() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let at = |second: u64| NOW.plus(SECOND * u32::try_from(second).unwrap());
    // Issued in one order and ended in another.
    let mut records: Vec<_> = (0..10).flat_map(|second| plains(at(second), second * 10..second * 10 + 10)).collect();
    records.sort_unstable_by_key(|record| record.id().random() % 7);
    store(&mut writer, &records, NOW);
    let mut wanted = ids(&records);
    wanted.sort_unstable_by(|a, b| b.cmp(a));
    for limit in [1, 7, 100, 1000] {
        assert_eq!(ids(&all_newest(&reader, &Filter::default(), limit)), wanted, "{limit} a page");
    }

    let first = reader.newest(&Filter::default(), ANY, 30).unwrap();
    let (newer, older) = (plains(at(11), 500..503), plains(at(1), 600..603));
    store(&mut writer, &newer, NOW);
    store(&mut writer, &older, NOW);
    let second = reader.newest(&Filter::default(), first.next.unwrap(), 1000).unwrap();
    let together = [ids(&first.records), ids(&second.records)].concat();
    assert!(wanted.iter().all(|id| together.iter().filter(|it| *it == id).count() == 1), "each is on one page");
    assert!(ids(&older).iter().all(|id| together.contains(id)), "what was issued before the second page is on it");
    assert_eq!((together.len(), second.next), (wanted.len() + older.len(), None));
}

#[test]
fn times_bound_a_list_to_the_microsecond() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let moments: Vec<_> = [0, 400, 999, 1_000, 1_500, 2_000].map(|us| Moment(NOW.0 + us)).into();
    let records: Vec<_> = (0..).zip(&moments).flat_map(|(random, at)| plains(*at, random..random + 1)).collect();
    store(&mut writer, &records, NOW);
    for from in 0..moments.len() {
        for to in from..moments.len() {
            let filter = Filter { since: Some(moments[from]), until: Some(moments[to]), ..Filter::default() };
            let mut wanted = ids(&records[from..to]);
            wanted.sort_unstable_by(|a, b| b.cmp(a));
            assert_eq!(ids(&all_newest(&reader, &filter, 2)), wanted, "{from}..{to}");
        }
    }
}

#[test]
fn what_is_stored_can_be_followed() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    assert_eq!(reader.last_seq().unwrap(), 0);
    let old = plains(NOW, 0..5);
    store(&mut writer, &old, NOW);
    let end = reader.last_seq().unwrap();
    let nothing = reader.stored_after(&Filter::default(), end, 10).unwrap();
    assert_eq!((nothing.records.len(), nothing.next), (0, Some(end)));
    // Issued before the others, ended after them.
    let late = plains(NOW.minus(SECOND), 10..15);
    store(&mut writer, &late, NOW);
    let first = reader.stored_after(&Filter::default(), end, 3).unwrap();
    let second = reader.stored_after(&Filter::default(), first.next.unwrap(), 3).unwrap();
    assert_eq!([ids(&first.records), ids(&second.records)].concat(), ids(&late));
    assert_eq!(second.next, Some(reader.last_seq().unwrap()));
    let all = reader.stored_after(&Filter::default(), 0, 100).unwrap();
    assert_eq!(ids(&all.records), [ids(&old), ids(&late)].concat());

    let expired = maintain_all(&mut writer, NOW.plus(small().retention_age * 2));
    assert_eq!((expired, reader.last_seq().unwrap()), (10, end + 5), "the end does not go back");
}

#[test]
fn a_name_is_found_by_its_index_and_where_it_is_common_without() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let at = |n: usize| NOW.plus(SECOND * u32::try_from(n).unwrap());
    let rare: Vec<_> = (0..3).map(|n| named(at(n), n as u64, Some(7), Some("rare"))).collect();
    let common: Vec<_> = (0..reader_matches()).map(|n| named(at(n), 100 + n as u64, None, Some("common"))).collect();
    store(&mut writer, &rare, NOW);
    store(&mut writer, &common, NOW);
    let newest_first = |records: &[Arc<Record>]| ids(records).into_iter().rev().collect::<Vec<_>>();
    let rarely = Filter { client_request_id: Some("rare".into()), ..Filter::default() };
    let traced = Filter { trace: TraceId::new(7), ..Filter::default() };
    for limit in [1, 2, 10] {
        assert_eq!(ids(&all_newest(&reader, &rarely, limit)), newest_first(&rare));
        assert_eq!(ids(&all_newest(&reader, &traced, limit)), newest_first(&rare));
    }
    let commonly = Filter { client_request_id: Some("common".into()), ..Filter::default() };
    assert_eq!(ids(&all_newest(&reader, &commonly, 300)), newest_first(&common));
    let root = Filter { trace: TraceId::new(common[5].id().as_u128()), ..Filter::default() };
    assert_eq!(ids(&all_newest(&reader, &root, 10)), [common[5].id()], "a trace that began here is its snapshot's ID");
    let neither = Filter { client_request_id: Some("common".into()), ..traced };
    assert!(all_newest(&reader, &neither, 10).is_empty(), "all conditions hold together");
}

fn reader_matches() -> usize {
    MATCHES_MAX + 20
}

#[test]
fn a_page_that_has_looked_at_too_much_says_where_to_go_on() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let records = plains(NOW, 0..300);
    store(&mut writer, &records, NOW);
    let none = Filter { model: Some("nobody has it".into()), ..Filter::default() };
    let mut scan = Scan::new(&none, 10, (0, ANY), PATIENCE);
    scan.rows_left = 100;
    reader.pool().read(|session| scan.slice(session, "FROM records WHERE seq > ?1 ORDER BY seq", [0])).unwrap();
    assert_eq!((scan.end, scan.last), (Some(End::Spent), (100, records[99].id())));
    let page = scan.page(Some(()));
    assert_eq!((page.records.len(), page.complete), (0, false));
}

#[test]
fn a_name_with_a_zero_byte_is_found_whole_and_no_other_is_taken_for_it() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let names = ["a", "a\0", "a\0b", "a\0c", "\0", ""];
    let records: Vec<_> = (0..).zip(names).map(|(n, name)| all_named(n, name)).collect();
    store(&mut writer, &records, NOW);
    for (name, record) in names.into_iter().zip(&records) {
        let (wanted, any) = (Some(name.to_owned()), Filter::default);
        let filters = [
            Filter { model: wanted.clone(), ..any() },
            Filter { target: wanted.clone(), ..any() },
            Filter { client_request_id: wanted, ..any() },
            Filter { labels: vec![("run".into(), name.into())], ..any() },
        ];
        for filter in filters {
            assert!(filter.accepts(record));
            assert_eq!(ids(&all_stored(&reader, &filter)), [record.id()], "{filter:?}");
            assert_eq!(ids(&all_newest(&reader, &filter, 10)), [record.id()], "{filter:?}");
        }
    }
}

/// A record whose model, target, label and client's ID are all called so.
fn all_named(n: u32, name: &str) -> Arc<Record> {
    let target = Target::new(n, name, "10.0.0.1:8000");
    let sample =
        Sample::new(Arc::new(target), 1, NOW, Health::Healthy, [Reading::UNSUPPORTED; Quantity::COUNT], 10_000);
    let mut record = plain(NOW, u64::from(n), &[Arc::new(sample)]);
    let request = &mut record.issued.request;
    request.model = Some(name.into());
    request.client_request_id = Some(name.into());
    request.labels = vec![("run".into(), name.into())];
    Arc::new(record)
}

/// A filter that some record of these meets, or nearly.
fn filter_of(records: &[Arc<Record>], picks: &[Index]) -> Filter {
    let pick = |n: usize| &records[picks[n].index(records.len())];
    let wanted = |n: usize| picks[10 + n].index(3) == 0;
    let label = pick(7).issued.request.labels.first().map(|(name, value)| (name.to_string(), value.to_string()));
    let target = pick(1).outcome().and_then(|outcome| outcome.target().map(|target| target.name.to_string()));
    Filter {
        since: wanted(0).then(|| pick(8).issued.issued_at),
        until: wanted(1).then(|| pick(9).issued.issued_at),
        model: pick(0).issued.request.model.as_deref().map(str::to_owned).filter(|_| wanted(2)),
        target: target.filter(|_| wanted(3)),
        statuses: pick(2)
            .outcome()
            .and_then(|it| it.status)
            .filter(|_| wanted(4))
            .map(|it| (it, it))
            .into_iter()
            .collect(),
        endings: pick(3).outcome().map(|it| it.ending).filter(|_| wanted(5)).into_iter().collect(),
        ended: wanted(6).then(|| pick(4).outcome().is_some()),
        tenant: pick(5).issued.request.tenant.map(|it| it.to_string()).filter(|_| wanted(7)),
        labels: label.filter(|_| wanted(8)).into_iter().collect(),
        min_duration_us: pick(6).outcome().map(|it| it.timings.end_offset_us).filter(|_| wanted(9)),
        trace: None,
        client_request_id: None,
    }
}

#[test]
fn rows_and_records_in_memory_are_judged_alike() {
    let records = arbitrary::samples().prop_flat_map(|samples| {
        let record = arbitrary::record(samples, arbitrary::run(1)).prop_map(Arc::new);
        (proptest::collection::vec(record, 1..20), proptest::collection::vec(any::<Index>(), 20))
    });
    let mut runner = TestRunner::new(Config::with_cases(64));
    let judged = |(records, picks): (Vec<Arc<Record>>, Vec<Index>)| {
        let mut place = Place::new();
        let (mut writer, reader) = place.open();
        store(&mut writer, &records, NOW);
        // The times of these are not those of their IDs, so they are followed and not listed by time.
        let filter = filter_of(&records, &picks);
        let found = all_stored(&reader, &filter);
        let mut seen = HashSet::new();
        let wanted = records.iter().filter(|record| seen.insert(record.id()) && filter.accepts(record));
        prop_assert_eq!(ids(&found), wanted.map(|record| record.id()).collect::<Vec<_>>(), "{:?}", filter);
        Ok(())
    };
    runner.run(&records, judged).unwrap();
}

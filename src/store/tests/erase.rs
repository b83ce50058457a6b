//! Deleting on request: what goes, what stays, and that nothing can be read from the file afterwards.

use super::*;
use crate::snapshot::Tenant;

const MINE: &str = "mine-is-the-request-that-nobody-shall-find";

/// A request with an owner, a trace of its own and a client's ID.
fn owned(random: u64, owner: u8, client_request_id: &str) -> Arc<Record> {
    let mut record = plain(NOW, random, &[sample(0, 1, NOW), sample(1, 1, NOW)]);
    record.issued.request.tenant = Some(Tenant([owner; 32]));
    record.issued.request.client_request_id = Some(client_request_id.into());
    record.issued.trace.trace_id = TraceId::new(u128::from(random) + 7).unwrap();
    Arc::new(record)
}

fn erase(writer: &mut Writer, subject: Subject) -> u64 {
    let mut job = writer.begin_erasure(&Erasure { subject, by: "ops".into() }, NOW).unwrap();
    loop {
        if let Some(records) = writer.erase(&mut job, Duration::from_micros(1), NOW).unwrap() {
            return records;
        }
    }
}

#[test]
fn a_tenants_records_go_with_their_other_names_and_others_stay() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let records: Vec<_> = (0..300).map(|n| owned(n, (n % 3) as u8, &format!("client-{n}"))).collect();
    writer.commit(writer.next_seq(), &records, &[], &[], NOW).unwrap();
    assert_eq!(reader.tenants_shown_as([1; 4]).unwrap(), [Tenant([1; 32])]);
    assert_eq!(erase(&mut writer, Subject::Tenant(Tenant([1; 32]))), 100);
    for (n, record) in records.iter().enumerate() {
        let gone = n % 3 == 1;
        let found = reader.resolve(record.id(), NOW).unwrap();
        assert_eq!(matches!(found, Resolution::Erased), gone, "{n}: {found:?}");
        assert_eq!(reader.by_client_request_id(&format!("client-{n}"), 9).unwrap().is_empty(), gone, "{n}");
        assert_eq!(reader.by_trace(record.issued.trace.trace_id, 9).unwrap().is_empty(), gone, "{n}");
    }
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM aliases"), 400);
    assert_eq!(reader.tenants_shown_as([1; 4]).unwrap(), []);
    assert_eq!(erase(&mut writer, Subject::Tenant(Tenant([1; 32]))), 0, "asking again does no harm");
    assert_eq!(erase(&mut writer, Subject::Id(records[0].id())), 1);
    assert!(matches!(reader.resolve(records[0].id(), NOW).unwrap(), Resolution::Erased));
    assert_eq!(reader.after(0, u64::MAX, 1000).unwrap().len(), 199);
}

#[test]
fn nothing_of_it_is_left_in_the_file() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let records: Vec<_> = (0..50).map(|n| owned(n, 1, if n == 25 { MINE } else { "another" })).collect();
    writer.commit(writer.next_seq(), &records, &[], &[], NOW).unwrap();
    let left = |place: &Place| {
        let bytes = fs::read(database_file(place.path())).unwrap();
        bytes.windows(MINE.len()).any(|window| window == MINE.as_bytes())
    };
    drop(reader);
    writer.close(NOW);
    assert!(left(&place), "it is there to begin with");
    let (mut writer, reader) = place.open();
    assert_eq!(erase(&mut writer, Subject::Id(records[25].id())), 1);
    drop(reader);
    writer.close(NOW);
    assert!(!left(&place), "its bytes were overwritten");
}

#[test]
fn what_was_kept_out_is_deleted_too_and_retention_forgets_that() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let id = id_at(NOW, 9);
    writer.entomb(&[id]).unwrap();
    writer.entomb(&[id]).unwrap();
    assert!(matches!(reader.resolve(id, NOW).unwrap(), Resolution::Erased));
    writer.commit(writer.next_seq(), &[owned(1, 1, "client")], &[], &[], NOW).unwrap();
    let later = NOW.plus(small().retention_age + SECOND);
    while writer.maintain(later, false, SECOND).expired > 0 {}
    writer.maintain(later, false, SECOND);
    assert!(matches!(reader.resolve(id, later).unwrap(), Resolution::Expired { .. }));
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM erased"), 0);
}

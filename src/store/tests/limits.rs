//! What is too old, too much or too long: retention, a full disk, a log that grows.

use super::*;

#[test]
fn a_full_disk_is_survived_and_left_behind() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let ballast = place.path().join("ballast");
    let stored = plains(NOW, 0..10);
    store(&mut writer, &stored, NOW);
    fill_up(&writer, 2);
    let refused = plains(NOW, 10..500);
    for _ in 0..2 {
        let error = writer.commit(writer.next_seq(), &refused, &[], &[], NOW).unwrap_err();
        assert!(matches!(error, CommitError::DiskFull), "{error}");
    }
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 0, "the reserve was given back");
    writer.heartbeat(NOW.plus(SECOND)).expect("a heartbeat needs no new page");
    assert!(matches!(reader.resolve(stored[3].id(), NOW).unwrap(), Resolution::Found(_)));

    // Space is looked for, found (this disk is not really full) and the reserve taken again; the file still cannot grow.
    let found = writer.maintain(NOW, false, SECOND);
    assert!(found.problem.is_some(), "there is a problem until a transaction succeeds");
    assert_eq!(fs::metadata(&ballast).unwrap().len(), small().ballast_bytes);
    writer.commit(writer.next_seq(), &refused, &[], &[], NOW).unwrap_err();
    writer.connection().pragma_update(None, "max_page_count", 1 << 30).unwrap();
    let within = std::time::Instant::now() + PATIENCE;
    while writer.maintain(NOW, false, SECOND).problem.is_some() {
        writer.heartbeat(NOW.plus(SECOND)).unwrap();
        assert!(std::time::Instant::now() < within, "space was not found again");
        std::thread::yield_now();
    }
    let first = writer.next_seq();
    let drops = [DropCount { second: NOW.0 / 1_000_000, reason: DropReason::StoreFailed, count: 3 * 490 }];
    writer.commit(first, &refused, &[], &drops, NOW).unwrap();
    let read = reader.after(first - 1, u64::MAX, 1_000).unwrap();
    assert_eq!(read.len(), refused.len(), "what failed before is read back whole: {:?}", read.len());
    assert!(read.iter().zip(&refused).all(|((_, read), written)| read.issued == written.issued));
    assert_eq!(place.sql::<String>("PRAGMA integrity_check"), "ok");
}

#[test]
fn the_ballast_outlives_the_process() {
    let mut place = Place::new();
    let ballast = place.path().join("ballast");
    for bytes in [64 << 10, 64 << 10, 32 << 10] {
        drop(place.open_at(&Settings { ballast_bytes: bytes, ..small() }, NOW));
        assert_eq!(fs::metadata(&ballast).unwrap().len(), bytes);
    }
}

#[test]
fn what_is_too_old_expires_and_the_rest_stays() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let day = SECOND * 86_400;
    let mut old = plains(NOW, 0..600);
    old.extend([named(NOW, 900, Some(77), Some("old"))]);
    store(&mut writer, &old, NOW);
    let drop_old = DropCount { second: NOW.0 / 1_000_000 - 5, reason: DropReason::QueueFull, count: 1 };
    writer.commit(writer.next_seq(), &[], &[], &[drop_old], NOW).unwrap();
    let later = NOW.plus(day * 4);
    let kept = [named(later, 1_000, Some(78), Some("new"))];
    store(&mut writer, &kept, later);

    let now = NOW.plus(day * 7 + SECOND);
    let stepped = writer.maintain(now, true, SECOND);
    assert_eq!(stepped.expired, 0, "a clock that stepped deletes nothing");
    assert_eq!(maintain_all(&mut writer, now), 601);
    for id in [old[0].id(), old[600].id(), id_at(NOW.minus(SECOND), 5)] {
        match reader.resolve(id, now).unwrap() {
            Resolution::Expired { horizon } => {
                assert!(horizon >= NOW && horizon < kept[0].issued.issued_at, "{horizon}")
            }
            answer => panic!("{id}: {answer:?}"),
        }
    }
    assert!(matches!(reader.resolve(kept[0].id(), now).unwrap(), Resolution::Found(_)));
    assert!(matches!(reader.resolve(id_at(NOW.plus(SECOND), 5), now).unwrap(), Resolution::Unknown));
    assert!(reader.by_client_request_id("old", 5).unwrap().is_empty());
    assert_eq!(ids(&reader.by_client_request_id("new", 5).unwrap()), ids(&kept));
    for (table, rows) in [("records", 1), ("aliases", 2), ("samples", 1), ("drops", 0), ("generations", 1)] {
        assert_eq!(place.sql::<i64>(&format!("SELECT count(*) FROM {table}")), rows, "{table}");
    }
    assert_eq!(place.sql::<String>("PRAGMA integrity_check"), "ok");
}

#[test]
fn too_much_is_brought_down_to_its_limit() {
    let mut place = Place::new();
    let limit = 512 << 10;
    let (mut writer, reader) = place.open_at(&Settings { retention_bytes: limit, ..small() }, NOW);
    let mut last = Vec::new();
    for batch in 0..20 {
        let now = NOW.plus(SECOND * batch * 40);
        last = plains(now, 0..300);
        store(&mut writer, &last, now);
        maintain_all(&mut writer, now);
        let used: i64 = place.sql(
            "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        );
        assert!(used <= limit as i64, "{used} bytes after batch {batch}");
    }
    let found = reader.after(0, u64::MAX, 10_000).unwrap();
    assert!(found.len() >= 300 && found.iter().all(|(seq, _)| *seq > reader.horizon_seq().unwrap()));
    assert_eq!(found.last().unwrap().1.issued, last[299].issued);
    let first = reader.resolve(id_at(NOW, 0), NOW.plus(SECOND * 900)).unwrap();
    assert!(matches!(first, Resolution::Expired { .. }), "{first:?}");
}

#[test]
fn a_writer_at_full_speed_does_not_outrun_retention() {
    let mut place = Place::new();
    let limit = 1 << 20;
    let (mut writer, _) = place.open_at(&Settings { retention_bytes: limit, ..small() }, NOW);
    let used = |writer: &Writer| retention::used_bytes(writer.connection(), 4096).unwrap();
    let (mut randoms, mut written, mut expired) = (0, 0, 0);
    for round in 0..420 {
        let records: Vec<_> = (randoms..randoms + 200)
            .map(|random| named(NOW, random, Some(u128::from(random) + 7), Some(&format!("client-{random}"))))
            .collect();
        randoms += 200;
        let before = used(&writer);
        store(&mut writer, &records, NOW);
        let commit = used(&writer) - before;
        written += commit;
        // No time at all, as on a machine that has other things to do.
        expired += writer.maintain(NOW, false, Duration::ZERO).expired;
        assert!(used(&writer) <= limit, "{} bytes after round {round}", used(&writer));
        let file = retention::file_bytes(writer.connection(), 4096).unwrap();
        assert!(file <= limit + 2 * commit, "the file has {file} bytes after round {round}");
    }
    assert!(written > 10 * limit, "{written} bytes were written");
    assert!(expired > 60_000, "{expired} of {randoms} went");
}

#[test]
fn a_disk_with_little_left_bounds_the_store_as_a_limit_does() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let commit = |writer: &mut Writer, lot: u64| {
        store(writer, &plains(NOW.plus(SECOND * lot as u32), lot * 1_000..lot * 1_000 + 1_000), NOW);
        writer.maintain(NOW, false, Duration::ZERO)
    };
    let before = (0..10).map(|lot| commit(&mut writer, lot)).last().unwrap();
    assert_eq!((before.expired, before.problem), (0, None));
    writer.pretend_free(0);
    for lot in 10..40 {
        let done = commit(&mut writer, lot);
        assert!(done.problem.is_some_and(|problem| problem.contains("the oldest records are deleted")), "lot {lot}");
        assert!(done.store_bytes <= before.store_bytes * 5 / 4, "the file has {} bytes", done.store_bytes);
    }
    let newest = reader.resolve(id_at(NOW.plus(SECOND * 39), 39_999), NOW).unwrap();
    assert!(matches!(newest, Resolution::Found(_)), "{newest:?}");
    let oldest = reader.resolve(id_at(NOW, 0), NOW).unwrap();
    assert!(matches!(oldest, Resolution::Expired { .. }), "{oldest:?}");
    writer.pretend_free(u64::MAX);
    assert_eq!(commit(&mut writer, 40).problem, None);
}

#[test]
fn a_limit_that_was_lowered_is_reached_step_by_step() {
    let mut place = Place::new();
    let (mut writer, _) = place.open();
    store(&mut writer, &plains(NOW, 0..30_000), NOW);
    drop(writer);
    let (mut writer, _) = place.open_at(&Settings { retention_bytes: 1 << 20, ..small() }, NOW);
    let used = |writer: &Writer| retention::used_bytes(writer.connection(), 4096).unwrap();
    let mut before = used(&writer);
    assert!(before > 3 << 20, "{before}");
    assert_eq!(writer.maintain(NOW, false, Duration::ZERO).expired, 0, "commits do not wait for it");
    for randoms in (30_000..).step_by(100).take(50) {
        store(&mut writer, &plains(NOW, randoms..randoms + 100), NOW);
        writer.maintain(NOW, false, Duration::ZERO);
        assert!(used(&writer) <= before, "what comes in the meantime goes out again");
        before = used(&writer);
    }
    maintain_all(&mut writer, NOW);
    assert!(used(&writer) <= 1 << 20);
}

#[test]
fn a_run_of_which_nothing_is_left_goes_with_its_targets() {
    let mut place = Place::new();
    let (mut writer, _) = place.open();
    store(&mut writer, &plains(NOW, 0..10), NOW);
    drop(writer);
    let later = NOW.plus(SECOND * 86_400 * 4);
    let (mut writer, reader) = place.open_at(&small(), later);
    store(&mut writer, &plains(later, 10..20), later);
    let now = NOW.plus(SECOND * 86_400 * 8);
    maintain_all(&mut writer, now);
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM runs"), 2, "an ID of its last three seconds may be lost");
    // The horizon passes them when something later has expired.
    let now = later.plus(SECOND * 86_400 * 8);
    store(&mut writer, &plains(now, 20..30), now);
    maintain_all(&mut writer, now);
    for (table, rows) in [("runs", 1), ("targets", 2), ("configs", 1), ("records", 10)] {
        assert_eq!(place.sql::<i64>(&format!("SELECT count(*) FROM {table}")), rows, "{table}");
    }
    assert_eq!(reader.after(0, u64::MAX, 100).unwrap().len(), 10, "what stayed is whole");
}

#[test]
fn counts_of_drops_expire_even_where_nothing_was_stored() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let second = NOW.0 / 1_000_000;
    let drops: Vec<_> = (0..1_000)
        .map(|after| DropCount { second: second + after, reason: DropReason::StoreFailed, count: 1 })
        .collect();
    writer.commit(writer.next_seq(), &[], &[], &drops, NOW).unwrap();
    let now = NOW.plus(SECOND * (86_400 * 7 + 500));
    writer.maintain(now, false, SECOND);
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM drops"), 500);
    let resolve = |after: u32| reader.resolve(id_at(NOW.plus(SECOND * after), 7), now).unwrap();
    assert!(matches!(resolve(499), Resolution::Expired { .. }), "{:?}", resolve(499));
    assert!(matches!(resolve(500), Resolution::Dropped { .. }), "{:?}", resolve(500));
}

#[test]
fn a_log_that_a_reader_holds_up_is_a_problem_until_it_ends() {
    let mut place = Place::new();
    let settings = Settings { wal_max_bytes: 1 << 20, wal_checkpoint_bytes: 128 << 10, ..small() };
    let (mut writer, _) = place.open_at(&settings, NOW);
    store(&mut writer, &plains(NOW, 0..10), NOW);
    let outside = Connection::open(database_file(place.path())).unwrap();
    outside.execute_batch("BEGIN; SELECT count(*) FROM records").unwrap();
    let mut randoms = 10;
    let mut grow = |writer: &mut Writer| {
        store(writer, &plains(NOW, randoms..randoms + 500), NOW);
        randoms += 500;
        writer.maintain(NOW, false, SECOND)
    };
    let within = std::time::Instant::now() + PATIENCE;
    let held = loop {
        let done = grow(&mut writer);
        if done.problem.as_ref().is_some_and(|problem| problem.contains("read transaction")) {
            break done;
        }
        assert!(std::time::Instant::now() < within, "{done:?}");
    };
    assert!(held.wal_bytes > 1 << 20 && held.problem.as_ref().unwrap().contains("wal_max_bytes"), "{held:?}");
    let still = grow(&mut writer);
    assert!(still.problem.is_some() && still.held_back < SECOND / 2, "nothing is gained by waiting for it: {still:?}");
    outside.execute_batch("COMMIT").unwrap();
    let within = std::time::Instant::now() + PATIENCE;
    while grow(&mut writer).problem.is_some() {
        assert!(std::time::Instant::now() < within, "the log did not begin anew");
    }
}

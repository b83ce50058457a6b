//! From one process to the next: runs, sequence numbers, versions, and who reads beside the gateway.

use std::os::unix::fs::PermissionsExt as _;

use prost::Message as _;

use super::*;

#[test]
fn what_is_stored_is_not_for_everybody_to_read() {
    let temp = tempfile::tempdir().unwrap();
    // As whoever made the directory before may have left it.
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(temp.path().join("instance"), format!("{TAG}\n")).unwrap();
    let mut place = Place { temp, dir: None, runs: 0 };
    let (mut writer, _reader) = place.open();
    store(&mut writer, &plains(NOW, 0..10), NOW);
    for name in ["snapshots.db", "snapshots.db-wal", "snapshots.db-shm", "ballast", "lock", "secret"] {
        let mode = fs::metadata(place.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{name} has mode {mode:o}");
    }
}
use crate::store::codes::Coded as _;
use crate::store::rest::Rest;
use crate::store::schema::{MIGRATIONS, migrate};

#[test]
fn a_killed_run_has_lost_what_it_did_not_store() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let beat = NOW.plus(SECOND * 10);
    writer.heartbeat(beat).unwrap();
    let in_flight = id_at(NOW.plus(SECOND * 4), 7);
    let now = NOW.plus(SECOND * 30);
    assert!(matches!(reader.resolve(in_flight, now).unwrap(), Resolution::Unknown), "the run is alive");
    let outside = Reader::open(place.path()).unwrap();
    assert!(matches!(outside.resolve(in_flight, now).unwrap(), Resolution::Unknown), "it holds the lock");
    let asks = |id| outside.may_be_running(id, now);
    assert!(asks(in_flight) && !asks(id_at(now.plus(SECOND * 90), 7)) && !reader.may_be_running(in_flight, now));
    drop(writer);
    place.dir = None;
    let soon = beat.plus(SECOND);
    assert!(matches!(outside.resolve(in_flight, soon).unwrap(), Resolution::Lost { .. }), "nobody holds it any more");
    assert!(!asks(in_flight));

    let restart = NOW.plus(SECOND * 60);
    let (_writer, reader) = place.open_at(&small(), restart);
    let cases = [
        (NOW.minus(SECOND * 2), false),
        (NOW, true),
        (beat.plus(Duration::from_millis(2_900)), true),
        (beat.plus(Duration::from_millis(3_100)), false),
        (restart, false),
    ];
    for (issued, lost) in cases {
        match reader.resolve(id_at(issued, 7), restart.plus(SECOND)).unwrap() {
            Resolution::Lost { run_started, last_heartbeat } if lost => {
                assert_eq!((run_started, last_heartbeat), (NOW, beat));
            }
            Resolution::Unknown if !lost => {}
            answer => panic!("{issued}: {answer:?}"),
        }
    }
}

#[test]
fn a_run_that_was_closed_has_lost_nothing() {
    let mut place = Place::new();
    let (writer, _) = place.open();
    writer.close(NOW.plus(SECOND * 10));
    let (_writer, reader) = place.open_at(&small(), NOW.plus(SECOND * 20));
    let answer = reader.resolve(id_at(NOW.plus(SECOND * 4), 7), NOW.plus(SECOND * 30)).unwrap();
    assert!(matches!(answer, Resolution::Unknown), "{answer:?}");
}

#[test]
fn a_batch_that_is_committed_twice_is_stored_once() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let (first, records) = (writer.next_seq(), plains(NOW, 0..5));
    writer.commit(first, &records, &[], &[], NOW).unwrap();
    writer.commit(first, &records, &[], &[], NOW).unwrap();
    writer.commit(writer.next_seq(), &records, &[], &[], NOW).unwrap();
    let found = reader.after(0, u64::MAX, 100).unwrap();
    assert_eq!(found.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (first..first + 5).collect::<Vec<_>>());
}

#[test]
fn sequence_numbers_are_never_given_out_twice() {
    let mut place = Place::new();
    let (mut writer, _) = place.open();
    let first = writer.next_seq();
    assert!(first > 0, "0 is below every record");
    store(&mut writer, &plains(NOW, 0..10), NOW);
    assert_eq!(writer.next_seq(), first + 10);

    // A batch that fails keeps its numbers, also when the process dies next.
    fill_up(&writer, 0);
    writer.commit(writer.next_seq(), &plains(NOW, 10..1_000), &[], &[], NOW).unwrap_err();
    let used = writer.next_seq();
    assert_eq!(used, first + 1_000);
    drop(writer);
    let (mut writer, reader) = place.open();
    assert!(writer.next_seq() >= used, "{} was given out before", writer.next_seq());

    // So do records that retention has deleted.
    store(&mut writer, &plains(NOW, 2_000..2_010), NOW);
    let used = writer.next_seq();
    assert_eq!(maintain_all(&mut writer, NOW.plus(SECOND * 86_400 * 8)), 20);
    assert_eq!(reader.horizon_seq().unwrap(), used - 1);
    drop(writer);
    let (writer, _) = place.open();
    let used = used.max(writer.next_seq());
    writer.close(NOW);
    let (writer, _) = place.open();
    assert_eq!(writer.next_seq(), used, "a clean end leaves no gap");
}

#[test]
fn a_newer_file_is_refused_by_both_ends() {
    let mut place = Place::new();
    drop(place.open());
    let outside = Connection::open(database_file(place.path())).unwrap();
    outside.pragma_update(None, "user_version", 99).unwrap();
    let dir = place.dir.as_ref().unwrap();
    let error = Store::open(dir, &small(), arbitrary::run(9), NOW).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }) && error.to_string().contains("99"), "{error}");
    assert!(matches!(Reader::open(place.path()).unwrap_err(), OpenError::Newer { .. }));
    outside.pragma_update(None, "user_version", 0).unwrap();
    assert!(matches!(Reader::open(place.path()).unwrap_err(), OpenError::Older { found: 0, .. }));
}

#[test]
fn reading_from_outside_makes_nothing() {
    let mut place = Place::new();
    let missing = Reader::open(place.path()).unwrap_err();
    assert!(matches!(missing, OpenError::Missing { .. }), "{missing}");
    let (mut writer, reader) = place.open();
    let records = plains(NOW, 0..10);
    store(&mut writer, &records, NOW);
    drop(reader);
    writer.close(NOW);
    let files = || {
        let mut names: Vec<_> = fs::read_dir(place.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    let outside = Reader::open(place.path()).unwrap();
    assert!(matches!(outside.resolve(records[3].id(), NOW).unwrap(), Resolution::Found(_)));
    assert_eq!(files(), before);
    assert!(!before.iter().any(|name| name.to_string_lossy().ends_with("-wal")), "{before:?}");
}

#[test]
fn records_after_a_reload_name_its_configuration_and_are_of_the_same_run() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let samples = [sample(0, 1, NOW), sample(1, 1, NOW)];
    let reloaded =
        Run { config: "beefbeef".into(), config_text: "listen = \"other\"".into(), ..(*arbitrary::run(1)).clone() };
    let made_with = |random: u64, run: Option<&Run>| {
        let mut record = plain(NOW, random, &samples);
        record.issued.run = run.map_or_else(|| Arc::clone(&record.issued.run), |run| Arc::new(run.clone()));
        Arc::new(record)
    };
    // One that was under way at the reload ends after it.
    let batch = [made_with(1, None), made_with(2, Some(&reloaded)), made_with(3, None), made_with(4, Some(&reloaded))];
    writer.commit(writer.next_seq(), &batch, &[], &[], NOW).unwrap();
    writer.commit(writer.next_seq(), &[made_with(5, Some(&reloaded))], &[], &[], NOW).unwrap();

    let found = reader.after(0, u64::MAX, 100).unwrap();
    let configs: Vec<_> = found.iter().map(|(_, record)| &*record.issued.run.config).collect();
    assert_eq!(configs, ["c0ffee12", "beefbeef", "c0ffee12", "beefbeef", "beefbeef"]);
    assert_eq!(reader.config_text("beefbeef").unwrap().as_deref(), Some("listen = \"other\""));
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM snapshots WHERE config = 'beefbeef'"), 3);
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM runs"), 2, "one for each configuration");

    // It is alive, or has died, as one.
    let beat = NOW.plus(SECOND * 10);
    writer.heartbeat(beat).unwrap();
    let in_flight = id_at(NOW.plus(SECOND * 9), 7);
    let outside = Reader::open(place.path()).unwrap();
    for reader in [&reader, &outside] {
        assert!(matches!(reader.resolve(in_flight, beat).unwrap(), Resolution::Unknown));
    }
    drop(writer);
    let (writer, reader) = place.open_at(&small(), NOW.plus(SECOND * 60));
    assert!(matches!(reader.resolve(in_flight, NOW.plus(SECOND * 61)).unwrap(), Resolution::Lost { .. }));
    let skipped = writer.next_seq() - 6;
    assert_eq!(reader.unused_seqs(5, u64::MAX >> 1).unwrap(), skipped, "counted once");
}

/// Makes the store's file one of an earlier version: the columns that it had, with what it kept in `rest`.
fn put_back(place: &Place, version: usize, fallback: Option<Fallback>) {
    let (file, newer) = (database_file(place.path()), place.path().join("newer.db"));
    fs::rename(&file, &newer).unwrap();
    let mut connection = Connection::open(&file).unwrap();
    migrate(&mut connection, &file, &MIGRATIONS[..version]).unwrap();
    let names = |sql: &str| -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    connection.execute("ATTACH ?1 AS newer", [newer.to_str().unwrap()]).unwrap();
    for table in names("SELECT name FROM sqlite_schema WHERE type = 'table'") {
        let columns = names(&format!("SELECT name FROM pragma_table_info('{table}')")).join(", ");
        let copy = format!("INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}");
        connection.execute(&copy, []).unwrap();
    }
    let rest: Vec<u8> = connection.query_row("SELECT rest FROM main.records", [], |row| row.get(0)).unwrap();
    let rest = Rest { fallback: fallback.map(Fallback::code), ..Rest::decode(&rest[..]).unwrap() };
    connection.execute("UPDATE main.records SET rest = ?1", [rest.encode_to_vec()]).unwrap();
}

#[test]
fn a_store_of_each_earlier_version_is_brought_up_to_date_and_loses_nothing() {
    for version in 1..MIGRATIONS.len() {
        // The first version knew no policy that something could stand in for.
        let fallback = Some(Fallback::NoPrompt).filter(|_| version > 1);
        let mut place = Place::new();
        let mut record = plain(NOW, 1, &[sample(4, 1, NOW)]);
        record.issued.decision.as_mut().unwrap().fallback = fallback;
        let record = Arc::new(record);
        let (mut writer, _) = place.open();
        store(&mut writer, &[Arc::clone(&record)], NOW);
        writer.close(NOW);
        put_back(&place, version, fallback);
        let refused = Reader::open(place.path()).unwrap_err();
        assert!(matches!(refused, OpenError::Older { found, .. } if found == version as u64), "{refused}");

        let (mut writer, reader) = place.open();
        assert_eq!(place.sql::<i64>("PRAGMA user_version"), MIGRATIONS.len() as i64);
        let mut again = plain(NOW.plus(SECOND), 2, &[sample(4, 2, NOW)]);
        again.issued.decision.as_mut().unwrap().fallback = Some(Fallback::NoSession);
        let again = Arc::new(again);
        store(&mut writer, &[Arc::clone(&again)], NOW);
        for stored in [record, again] {
            let Resolution::Found(found) = reader.resolve(stored.id(), NOW.plus(SECOND)).unwrap() else {
                panic!("version {version}: it is not there")
            };
            assert_eq!(document(&found), document(&stored), "version {version}");
        }
        assert_eq!(place.sql::<String>("SELECT fallback FROM snapshots WHERE seq > 1"), "no_session");
        assert_eq!(place.sql::<String>("PRAGMA integrity_check"), "ok");
    }
}

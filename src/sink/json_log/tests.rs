//! Lines that go to files which change under them, and to disks that refuse.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::snapshot::record::tests::finished;

/// Never put aside, and nothing deleted.
const NEVER: Rotation = Rotation { max_bytes: 0, max_age: Duration::ZERO, keep: 0 };

fn log_at(path: &Path, rotation: Rotation) -> JsonLog {
    let destination = Destination::File(path.to_owned());
    JsonLog::open(&Settings { destination, rotation, candidates: None }).unwrap()
}

fn record(number: u64) -> Arc<Record> {
    Arc::new(finished(number))
}

/// The numbers of the snapshots in a file; every line has to be whole.
fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{}: {text:?}", path.display());
    let documents = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    documents.map(|document| document["outcome"]["response_bytes"].as_u64().unwrap()).collect()
}

/// What is in each file of a directory, in the order of their names.
fn files(dir: &Path) -> BTreeMap<String, Vec<u64>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), numbers(&entry.path()))).collect()
}

/// Takes a few bytes at a time and fails every third call.
#[derive(Clone, Default)]
struct Awkward(Arc<Mutex<(Vec<u8>, usize)>>);

impl Write for Awkward {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (written, calls) = &mut *self.0.lock().unwrap();
        *calls += 1;
        if calls.is_multiple_of(3) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = bytes.len().min(100);
        written.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines_of(records: &[Arc<Record>]) -> String {
    let mut lines = Vec::new();
    for record in records {
        Document::of(record).write(&mut lines);
        lines.push(b'\n');
    }
    String::from_utf8(lines).unwrap()
}

/// Offers records as a lane does, until all are taken. Answers how often some were refused.
fn deliver_all(log: &mut JsonLog, mut records: &[Arc<Record>]) -> usize {
    let mut refusals = 0;
    while !records.is_empty() {
        let taken = match log.deliver(records) {
            Ok(taken) => taken,
            Err(refusal) => Taken { refused: Some((refusal, records.len())), ..Taken::default() },
        };
        assert!(taken.makes_sense_of(records.len()), "{taken:?} of {}", records.len());
        if let Some((refusal, _)) = taken.refused {
            assert_eq!(refusal, Refusal::Later("disk_full"));
            refusals += 1;
        }
        records = &records[taken.records..];
    }
    refusals
}

#[test]
fn a_disk_that_fills_up_tears_no_line() {
    let out = Awkward::default();
    let mut log = JsonLog::to(Box::new(out.clone()));
    let records: Vec<_> = (1..=3).map(record).collect();
    assert!(deliver_all(&mut log, &records) > 3, "the writer was meant to be awkward");
    assert_eq!(String::from_utf8(out.0.lock().unwrap().0.clone()).unwrap(), lines_of(&records));
}

#[test]
fn another_batch_than_the_one_that_failed_tears_no_line_either() {
    let out = Awkward::default();
    let mut log = JsonLog::to(Box::new(out.clone()));
    let (first, second) = ([record(1), record(2)], [record(2), record(3)]);
    assert_eq!(log.deliver(&first), Err(Refusal::Later("disk_full")));
    deliver_all(&mut log, &second);
    let expected = lines_of(&first) + &lines_of(&second);
    assert_eq!(String::from_utf8(out.0.lock().unwrap().0.clone()).unwrap(), expected);
}

/// Has room for so many bytes more. With a buffer, what it takes arrives when it is flushed.
#[derive(Clone, Default)]
struct Small(Arc<Mutex<SmallState>>);

#[derive(Default)]
struct SmallState {
    written: Vec<u8>,
    room: usize,
    buffer: Option<Vec<u8>>,
}

impl Small {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().written.clone()).unwrap()
    }

    fn give(&self, bytes: usize) {
        self.0.lock().unwrap().room = bytes;
    }
}

impl Write for Small {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let SmallState { written, room, buffer } = &mut *self.0.lock().unwrap();
        if let Some(buffer) = buffer {
            buffer.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let count = bytes.len().min(*room);
        written.extend_from_slice(&bytes[..count]);
        *room -= count;
        if count == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(count) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let SmallState { written, room, buffer } = &mut *self.0.lock().unwrap();
        let Some(buffer) = buffer else { return Ok(()) };
        if buffer.len() > *room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *room -= buffer.len();
        written.append(buffer);
        Ok(())
    }
}

#[test]
fn a_line_that_is_whole_is_taken_though_there_is_no_room_for_the_next() {
    let out = Small::default();
    let mut log = JsonLog::to(Box::new(out.clone()));
    let records: Vec<_> = (1..=4).map(record).collect();
    let full = Refusal::Later("disk_full");
    out.give(lines_of(&records[..2]).len() + 10);
    let taken = log.deliver(&records).unwrap();
    assert_eq!(taken, Taken { refused: Some((full, 2)), ..Taken::all(2) });
    assert_eq!(log.deliver(&records[2..]), Err(full));
    // Up to the very end of the third.
    out.give(lines_of(&records[2..3]).len() - 10);
    let taken = log.deliver(&records[2..]).unwrap();
    assert_eq!(taken, Taken { refused: Some((full, 1)), ..Taken::all(1) });
    out.give(usize::MAX);
    assert_eq!(log.deliver(&records[3..]), Ok(Taken::all(1)));
    assert_eq!(out.text(), lines_of(&records));
}

#[test]
fn what_lies_in_a_buffer_is_not_taken() {
    let out = Small::default();
    out.0.lock().unwrap().buffer = Some(Vec::new());
    let mut log = JsonLog::to(Box::new(out.clone()));
    let records: Vec<_> = (1..=2).map(record).collect();
    assert_eq!(log.deliver(&records), Err(Refusal::Later("disk_full")));
    out.give(usize::MAX);
    assert_eq!(log.deliver(&records), Ok(Taken::all(2)));
    assert_eq!(out.text(), lines_of(&records));
}

#[test]
fn a_piece_is_taken_though_there_is_no_file_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (inner, before) = (dir.path().join("inner"), dir.path().join("before"));
    let path = inner.join("log");
    let mut log = log_at(&path, NEVER);
    let line = lines_of(&[record(1)]).len();
    let records: Vec<_> = (1..=(PIECE_BYTES / line) as u64 * 3).map(record).collect();
    let first = log.deliver(&records).unwrap();
    assert!((1..records.len()).contains(&first.records) && first.refused.is_none(), "{first:?}");
    fs::rename(&inner, &before).unwrap();
    fs::write(&inner, "").unwrap();
    assert_eq!(log.deliver(&records[first.records..]), Err(Refusal::Later("open")));
    // The next run begins where this one was done.
    fs::remove_file(&inner).unwrap();
    let mut log = log_at(&path, NEVER);
    deliver_all(&mut log, &records[first.records..]);
    let all: Vec<_> = [numbers(&before.join("log")), numbers(&path)].concat();
    assert_eq!(all, (1..=records.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_line_that_a_kill_has_torn_spoils_no_other() {
    let dir = tempfile::tempdir().unwrap();
    for (before, after) in [("", ""), ("{}\n", "{}\n"), ("{}\n{\"id", "{}\n{\"id\n")] {
        let path = dir.path().join("log");
        fs::write(&path, before).unwrap();
        log_at(&path, NEVER).deliver(&[record(1)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let line = text.strip_prefix(after).unwrap_or_else(|| panic!("{text}"));
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{text}");
    }
}

#[test]
fn a_torn_line_is_ended_when_something_is_written_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let (path, text) = (dir.path().join("log"), || fs::read_to_string(dir.path().join("log")).unwrap());
    fs::write(&path, "{\"id").unwrap();
    let mut log = log_at(&path, Rotation { max_bytes: 5, ..NEVER });
    assert_eq!(text(), "{\"id", "opening writes nothing");
    log.deliver(&[record(1)]).unwrap();
    assert_eq!(numbers(&path), [1], "a file that is put aside ends with a line, too");
    let aside = files_text(dir.path(), |name| name != "log");
    assert_eq!(aside, ["{\"id\n"]);

    fs::write(&path, "{\"id").unwrap();
    let mut log = log_at(&path, NEVER);
    fs::File::create(&path).unwrap();
    log.deliver(&[record(2)]).unwrap();
    assert_eq!(numbers(&path), [2], "what was cut off meanwhile is torn no more");
}

/// What is in the files of a directory whose names are wanted.
fn files_text(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let wanted = entries.filter(|entry| wanted(entry.file_name().to_str().unwrap()));
    wanted.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect()
}

#[test]
fn a_path_that_cannot_be_written_says_so() {
    let destination = Destination::File("/proc/none/log".into());
    let error = JsonLog::open(&Settings { destination, rotation: NEVER, candidates: None }).unwrap_err();
    assert!(error.to_string().starts_with("json log /proc/none/log: "), "{error}");
}

#[test]
fn a_file_that_would_be_too_large_is_put_aside_by_name_of_its_end_and_the_oldest_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshots.jsonl");
    let two_lines = lines_of(&[record(1), record(2)]).len() as u64;
    let mut log = log_at(&path, Rotation { max_bytes: two_lines + 100, keep: 2, ..NEVER });
    for number in 1..=9 {
        log.deliver(&[record(number)]).unwrap();
    }
    // Each is named by the end of the snapshot that came next; the one with 1 and 2 is deleted.
    let expected = [
        ("snapshots-20261123T121315.005005Z.jsonl", vec![3, 4]),
        ("snapshots-20261123T121315.007007Z.jsonl", vec![5, 6]),
        ("snapshots-20261123T121315.009009Z.jsonl", vec![7, 8]),
        ("snapshots.jsonl", vec![9]),
    ];
    let expected: BTreeMap<_, _> = expected.into_iter().map(|(name, numbers)| (name.to_owned(), numbers)).collect();
    assert_eq!(files(dir.path()), expected.into_iter().skip(1).collect());
}

#[test]
fn a_file_is_put_aside_by_age_also_over_a_restart_and_names_that_are_not_ours_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let foreign = ["log-20261123T121315.005005Z.gz", "log-2026", "log-20261399T121315.005005Z", "log.1"];
    foreign.iter().for_each(|name| fs::write(dir.path().join(name), "").unwrap());
    let rotation = Rotation { max_age: Duration::from_millis(3), keep: 1, ..NEVER };
    // A millisecond and a microsecond apart.
    for number in 1..=5 {
        log_at(&path, rotation).deliver(&[record(number)]).unwrap();
    }
    let mut found = files(dir.path());
    foreign.iter().for_each(|name| assert_eq!(found.remove(*name), Some(vec![]), "{name}"));
    let expected = [("log", vec![4, 5]), ("log-20261123T121315.004004Z", vec![1, 2, 3])];
    assert_eq!(found, expected.into_iter().map(|(name, numbers)| (name.to_owned(), numbers)).collect());
}

#[test]
fn names_sort_as_the_files_came_though_the_clock_steps_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.jsonl");
    let mut log = log_at(&path, Rotation { max_bytes: 1, ..NEVER });
    for number in [9, 8, 7, 6] {
        log.deliver(&[record(number)]).unwrap();
    }
    let in_order: Vec<_> = files(dir.path()).into_values().flatten().collect();
    assert_eq!(in_order, [9, 8, 7, 6]);
}

#[test]
fn a_file_that_was_moved_or_deleted_or_cut_off_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("log"), dir.path().join("log.1"));
    let mut log = log_at(&path, NEVER);
    log.deliver(&[record(1)]).unwrap();
    fs::rename(&path, &moved).unwrap();
    log.deliver(&[record(2)]).unwrap();
    assert_eq!((numbers(&moved), numbers(&path)), (vec![1], vec![2]));
    fs::remove_file(&path).unwrap();
    log.deliver(&[record(3)]).unwrap();
    assert_eq!(numbers(&path), [3]);
    fs::File::create(&path).unwrap();
    log.deliver(&[record(4)]).unwrap();
    assert_eq!(numbers(&path), [4]);
}

#[test]
fn a_new_file_that_cannot_be_made_is_waited_for_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    let path = inner.join("log");
    let mut log = log_at(&path, NEVER);
    log.deliver(&[record(1)]).unwrap();
    // Something else takes the directory's place.
    fs::rename(&inner, dir.path().join("before")).unwrap();
    fs::write(&inner, "").unwrap();
    assert_eq!(log.deliver(&[record(2)]), Err(Refusal::Later("open")));
    assert_eq!(log.deliver(&[record(2)]), Err(Refusal::Later("open")));
    fs::remove_file(&inner).unwrap();
    log.deliver(&[record(2)]).unwrap();
    assert_eq!((numbers(&dir.path().join("before/log")), numbers(&path)), (vec![1], vec![2]));
}

#[test]
fn a_file_that_cannot_be_put_aside_grows_on() {
    let dir = tempfile::tempdir().unwrap();
    // With a time in it the name would be too long for the system.
    let path = dir.path().join("l".repeat(250));
    let mut log = log_at(&path, Rotation { max_bytes: 1, ..NEVER });
    for number in 1..=3 {
        log.deliver(&[record(number)]).unwrap();
    }
    assert_eq!(files(dir.path()), [("l".repeat(250), vec![1, 2, 3])].into_iter().collect());
}

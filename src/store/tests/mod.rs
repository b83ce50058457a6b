//! The store as a whole, through its two ends: what the writer is given, the reader gives back.

mod arbitrary;
mod checkpoint;
mod erase;
mod limits;
mod lists;
mod restart;
mod targets;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rusqlite::Connection;
use tempfile::TempDir;

use super::data_dir::database_file;
use super::*;
use crate::snapshot::outcome::Answer;
use crate::snapshot::{
    Attempt, Candidate, Decision, Document, Ending, Excluded, Fallback, Freshness, Health, Inputs, InstanceTag, Issued,
    Operation, Outcome, Policy, Quantity, Reading, Reason, Request, Sample, SnapshotId, Source, Target, Timings,
    TraceContext, TraceId,
};
use arbitrary::{NOW, TAG};

const SECOND: Duration = Duration::from_secs(1);

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A data directory, and the number of the run that is next.
struct Place {
    temp: TempDir,
    dir: Option<DataDir>,
    runs: u64,
}

impl Place {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("instance"), format!("{TAG}\n")).unwrap();
        Self { temp, dir: None, runs: 0 }
    }

    fn path(&self) -> &Path {
        self.temp.path()
    }

    fn open_at(&mut self, settings: &Settings, now: Moment) -> (Writer, Reader) {
        self.runs += 1;
        let config_text = "listen = \"…\"".into();
        let run = Run { started: now, config_text, ..(*arbitrary::run(self.runs)).clone() };
        let dir = self.dir.get_or_insert_with(|| DataDir::open(self.temp.path()).unwrap());
        let (writer, reader) = Store::open(dir, settings, Arc::new(run), now).unwrap();
        (writer, reader.patient())
    }

    fn open(&mut self) -> (Writer, Reader) {
        self.open_at(&small(), NOW)
    }

    /// A look at the tables from outside.
    fn sql<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        Connection::open(database_file(self.path())).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

/// The defaults, with a ballast that is quickly written.
fn small() -> Settings {
    Settings { ballast_bytes: 64 << 10, ..Settings::default() }
}

fn id_at(moment: Moment, random: u64) -> SnapshotId {
    SnapshotId::new(moment.unix_ms(), TAG, random)
}

fn sample(slot: u32, n: u64, published: Moment) -> Arc<Sample> {
    let target = Target::new(slot, &format!("vllm-{slot}"), &format!("10.0.0.{slot}:8000"));
    let target = Arc::new(Target { gpus: Some(1), ..target });
    let reading = |value| Reading {
        value: Some(value),
        observed: published.minus(Duration::from_millis(41)),
        source: Some(Source::Scrape),
        freshness: Freshness::Fresh,
    };
    let mut readings = [Reading::UNSUPPORTED; Quantity::COUNT];
    readings[Quantity::Waiting as usize] = reading(3.0);
    readings[Quantity::KvCacheUsage as usize] = reading(0.25 + n as f64 / 1000.0);
    Arc::new(Sample::new(target, n, published, Health::Healthy, readings, 10_000))
}

/// A completed request as most are, to the first of two targets.
fn plain(moment: Moment, random: u64, samples: &[Arc<Sample>]) -> Record {
    let id = id_at(moment, random);
    let candidate = |(index, sample): (usize, &Arc<Sample>)| Candidate {
        sample: Arc::clone(sample),
        place: Some(index as u32),
        in_flight: index as u32,
        requests_per_second: 9.1,
        tokens_per_second: 1480.0,
        score: Some(index as f64),
        score_parts: [index as f64, 0.0, 0.0],
    };
    let target = Arc::clone(&samples[0].target);
    let decision = Decision {
        policy: Policy::LeastRequest,
        reason: Reason::LowestScore,
        forced: false,
        fallback: None,
        decided_offset_ns: 41_200,
        choose_ns: 1_900,
        decided: moment,
        view_published: moment.minus(Duration::from_millis(41)),
        eligible: samples.len() as u32,
        excluded: Excluded::default(),
        candidates: samples.iter().enumerate().map(candidate).collect(),
        inputs: Inputs { draw: random, ..Inputs::default() },
    };
    let request = Request {
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        operation: Operation::Chat,
        model: Some("llama-3.1-8b".into()),
        stream: Some(true),
        body_bytes: 812,
        body_unread: false,
        max_tokens: Some(256),
        client_request_id: None,
        tenant: None,
        user_agent: Some("OpenAI/Python".into()),
        labels: Vec::new(),
    };
    let attempt = Attempt {
        target,
        started_offset_us: 90,
        connect_us: Some(0),
        first_byte_offset_us: Some(8_210),
        status: Some(200),
        error: None,
        retry: None,
    };
    let outcome = Outcome {
        ending: Ending::Completed,
        status: Some(200),
        error: None,
        attempts: vec![attempt],
        response_bytes: 20_480,
        events: 181,
        answer: Answer::default(),
        timings: Timings { first_byte_offset_us: Some(8_210), end_offset_us: 2_400_112, ..Timings::default() },
        trace_exported: None,
    };
    let (issued_at, run, trace) = (moment, arbitrary::run(1), TraceContext::root(id));
    Record::closed(Issued { id, issued_at, run, trace, request, decision: Some(decision) }, outcome)
}

fn plains(moment: Moment, randoms: std::ops::Range<u64>) -> Vec<Arc<Record>> {
    // A new state each second.
    let n = moment.0 / 1_000_000;
    let samples = [sample(0, n, moment), sample(1, n, moment)];
    randoms.map(|random| Arc::new(plain(moment, random, &samples))).collect()
}

fn named(moment: Moment, random: u64, trace: Option<u128>, client: Option<&str>) -> Arc<Record> {
    let mut record = plain(moment, random, &[sample(0, 1, moment)]);
    if let Some(trace) = trace {
        record.issued.trace.trace_id = TraceId::new(trace).unwrap();
    }
    record.issued.request.client_request_id = client.map(Into::into);
    Arc::new(record)
}

fn store(writer: &mut Writer, records: &[Arc<Record>], now: Moment) {
    writer.commit(writer.next_seq(), records, &[], &[], now).unwrap();
}

fn ids(records: &[Arc<Record>]) -> Vec<SnapshotId> {
    records.iter().map(|record| record.id()).collect()
}

/// Maintains until there is nothing left to do; answers how many records went.
fn maintain_all(writer: &mut Writer, now: Moment) -> u64 {
    let mut expired = 0;
    loop {
        let done = writer.maintain(now, false, Duration::from_millis(50));
        assert_eq!(done.problem, None);
        expired += done.expired;
        if done.expired == 0 {
            return expired;
        }
    }
}

/// Every floating-point number of a record, to the bit: `==` takes minus zero for zero.
fn bits(record: &Record) -> Vec<u64> {
    let candidates = record.issued.decision.iter().flat_map(|decision| decision.candidates.iter());
    candidates
        .flat_map(|candidate| {
            let rates = [candidate.requests_per_second, candidate.tokens_per_second];
            let scores = candidate.score.into_iter().chain(candidate.score_parts);
            rates.into_iter().chain(scores).chain(candidate.sample.readings.iter().filter_map(|reading| reading.value))
        })
        .map(f64::to_bits)
        .collect()
}

fn document(record: &Record) -> String {
    serde_json::to_string(&Document::of(record)).unwrap()
}

/// Lets the file grow by no more than so many pages.
fn fill_up(writer: &Writer, pages: i64) {
    let used: i64 = writer.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    writer.connection().pragma_update(None, "max_page_count", used + pages).unwrap();
}

#[test]
fn what_is_read_is_what_was_written() {
    let run = arbitrary::run(1);
    let batches = arbitrary::samples()
        .prop_flat_map(move |samples| prop::collection::vec(arbitrary::record(samples, Arc::clone(&run)), 1..8));
    let mut runner = TestRunner::new(Config { cases: 60, ..Config::default() });
    runner
        .run(&batches, |mut records| {
            let mut place = Place::new();
            let dir = DataDir::open(place.path()).unwrap();
            let (mut writer, reader) = Store::open(&dir, &small(), arbitrary::run(1), NOW).unwrap();
            place.dir = Some(dir);
            let mut seen = HashSet::new();
            records.retain(|record| seen.insert(record.id()));
            let records: Vec<_> = records.into_iter().map(Arc::new).collect();
            let first = writer.next_seq();
            writer.commit(first, &records, &[], &[], NOW).unwrap();

            let found = reader.after(0, u64::MAX, 100).unwrap();
            prop_assert_eq!(found.len(), records.len());
            for ((seq, read), (expected_seq, written)) in found.iter().zip((first..).zip(&records)) {
                prop_assert_eq!(*seq, expected_seq);
                prop_assert_eq!(&read.issued, &written.issued);
                prop_assert_eq!(read.issued.request.tenant.map(|t| t.0), written.issued.request.tenant.map(|t| t.0));
                prop_assert_eq!(read.outcome(), written.outcome());
                prop_assert_eq!(bits(read), bits(written));
                prop_assert_eq!(document(read), document(written));
                let resolved = reader.resolve(written.id(), NOW).unwrap();
                prop_assert!(matches!(resolved, Resolution::Found(found) if found.issued == written.issued));
                let by_trace = reader.by_trace(written.issued.trace.trace_id, 10).unwrap();
                prop_assert!(ids(&by_trace).contains(&written.id()));
                if let Some(client) = &written.issued.request.client_request_id {
                    prop_assert!(ids(&reader.by_client_request_id(client, 10).unwrap()).contains(&written.id()));
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn nonsense_from_an_engine_is_kept_as_it_is() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let odd = f64::from_bits(0x7ff8_0000_dead_beef);
    let mut state = Arc::into_inner(sample(0, 1, NOW)).unwrap();
    state.readings[0].value = Some(odd);
    state.readings[1].value = Some(-0.0);
    let mut record = plain(NOW, 1, &[Arc::new(state)]);
    let decision = record.issued.decision.as_mut().unwrap();
    decision.candidates.edit(|candidates| {
        candidates[0].score = Some(odd);
        candidates[0].tokens_per_second = f64::NEG_INFINITY;
    });
    let expected = bits(&record);
    store(&mut writer, &[Arc::new(record)], NOW);
    let (_, read) = reader.after(0, u64::MAX, 1).unwrap().remove(0);
    assert_eq!(bits(&read), expected);
    let waiting: Option<f64> = place.sql("SELECT waiting FROM snapshots");
    assert_eq!(waiting, None, "a query does not meet a NaN");
}

#[test]
fn records_share_what_they_shared() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    store(&mut writer, &plains(NOW, 0..20), NOW);
    let found = reader.after(0, u64::MAX, 20).unwrap();
    let state = |index: usize| found[index].1.issued.decision.as_ref().unwrap().chosen().sample;
    assert!(Arc::ptr_eq(state(0), state(19)) && Arc::ptr_eq(&found[0].1.issued.run, &found[19].1.issued.run));
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM samples"), 2);

    // A quiet target's state is used by records of the next half minute, then stored again.
    for (seconds, rows) in [(20, 2), (40, 2), (80, 4), (500, 6)] {
        let now = NOW.plus(SECOND * seconds);
        let samples = [sample(0, NOW.0 / 1_000_000, NOW), sample(1, NOW.0 / 1_000_000, NOW)];
        store(&mut writer, &[Arc::new(plain(now, 100 + u64::from(seconds), &samples))], now);
        assert_eq!(place.sql::<i64>("SELECT count(*) FROM samples"), rows, "after {seconds} s");
    }
}

#[test]
fn an_id_that_nobody_here_can_have_issued_is_known_at_once() {
    let mut place = Place::new();
    let (_writer, reader) = place.open();
    let elsewhere = SnapshotId::new(NOW.unix_ms(), InstanceTag(TAG.0 ^ 1), 7);
    assert!(matches!(reader.resolve(elsewhere, NOW).unwrap(), Resolution::IssuedElsewhere));
    for moment in [Moment(0), Moment(1_735_689_599_000_000), NOW.plus(SECOND * 61)] {
        assert!(matches!(reader.resolve(id_at(moment, 7), NOW).unwrap(), Resolution::Unknown), "{moment}");
    }
}

#[test]
fn what_was_dropped_says_why() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let second = NOW.0 / 1_000_000;
    let drops = [
        (DropReason::QueueFull, 2),
        (DropReason::StoreFailed, 3),
        (DropReason::QueueFull, 4),
        // Who misses a request that was served is not told that it was refused.
        (DropReason::RefusedFlood, 5_000),
    ];
    for (reason, count) in drops {
        writer.commit(writer.next_seq(), &[], &[], &[DropCount { second, reason, count }], NOW).unwrap();
    }
    match reader.resolve(id_at(NOW.plus(Duration::from_millis(999)), 7), NOW).unwrap() {
        Resolution::Dropped { reason: DropReason::QueueFull, second, count: 6 } => assert_eq!(second, NOW),
        answer => panic!("{answer:?}"),
    }
    let next = reader.resolve(id_at(NOW.plus(SECOND), 7), NOW.plus(SECOND)).unwrap();
    assert!(matches!(next, Resolution::Unknown), "{next:?}");
}

#[test]
fn names_that_repeat_answer_a_list_newest_first() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let day = SECOND * 86_400;
    let records = [
        named(NOW, 1, Some(77), Some("retry-1")),
        named(NOW.plus(SECOND), 2, Some(77), Some("retry-1")),
        named(NOW.plus(day * 3), 3, Some(77), Some("retry-1")),
        named(NOW.plus(day * 3), 4, Some(78), Some("other")),
        named(NOW.plus(day * 3), 5, None, None),
    ];
    store(&mut writer, &records, NOW);
    let (trace, root) = (TraceId::new(77).unwrap(), records[4].issued.trace.trace_id);
    let expected = [records[2].id(), records[1].id(), records[0].id()];
    assert_eq!(ids(&reader.by_trace(trace, 10).unwrap()), expected);
    assert_eq!(ids(&reader.by_client_request_id("retry-1", 10).unwrap()), expected);
    assert_eq!(ids(&reader.by_client_request_id("retry-1", 2).unwrap()), expected[..2]);
    assert_eq!(ids(&reader.by_trace(root, 10).unwrap()), [records[4].id()], "the snapshot ID is the trace ID");
    assert!(reader.by_client_request_id("retry", 10).unwrap().is_empty());
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM aliases"), 8, "a root trace is not entered");
}

#[test]
fn a_false_match_of_an_alias_is_not_answered() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    store(&mut writer, &[named(NOW, 1, None, Some("mine"))], NOW);
    let outside = Connection::open(database_file(place.path())).unwrap();
    let theirs = named(NOW, 2, None, Some("theirs"));
    alias::Alias::of_client_request_id("theirs").insert(&outside, theirs.id(), 1).unwrap();
    assert!(reader.by_client_request_id("theirs", 10).unwrap().is_empty());
}

#[test]
fn a_lane_that_catches_up_gets_everything_in_order() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let first = writer.next_seq();
    for batch in 0..4 {
        store(&mut writer, &plains(NOW, batch * 300..(batch + 1) * 300), NOW);
    }
    let (up_to, mut last, mut seqs) = (first + 1_099, first - 1, Vec::new());
    loop {
        let page = reader.after(last, up_to, 700).unwrap();
        let Some((seq, _)) = page.last() else { break };
        last = *seq;
        seqs.extend(page.iter().map(|(seq, _)| *seq));
    }
    assert_eq!(seqs, (first..=up_to).collect::<Vec<_>>());

    assert_eq!(reader.cursor("json_log").unwrap(), None);
    for cursor in [3, 9] {
        writer.commit(writer.next_seq(), &[], &[("json_log", cursor), ("otlp", 1)], &[], NOW).unwrap();
    }
    assert_eq!(reader.cursor("json_log").unwrap(), Some(9));
    assert_eq!(reader.config_text("c0ffee12").unwrap().as_deref(), Some("listen = \"…\""));
    assert_eq!(reader.config_text("none").unwrap(), None);
}

#[test]
fn readers_and_the_writer_do_not_stop_each_other() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let records = plains(NOW, 0..2_000);
    std::thread::scope(|scope| {
        let (done, watch) = std::sync::mpsc::channel::<()>();
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let (reader, done) = (reader.clone(), done.clone());
                let records = &records;
                scope.spawn(move || {
                    let mut found = 0;
                    while found < records.len() {
                        let id = records[found].id();
                        if let Resolution::Found(record) = reader.resolve(id, NOW).unwrap() {
                            assert_eq!(record.issued, records[found].issued);
                            found += 1;
                        }
                    }
                    drop(done);
                })
            })
            .collect();
        drop(done);
        for batch in records.chunks(50) {
            store(&mut writer, batch, NOW);
            writer.maintain(NOW, false, Duration::from_millis(2));
        }
        watch.recv_timeout(SECOND * 60).expect_err("nothing is ever sent");
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn people_read_it_with_names() {
    let mut place = Place::new();
    let (mut writer, _) = place.open();
    let mut record = plain(NOW, 1, &[sample(4, 1, NOW), sample(5, 1, NOW)]);
    record.issued.request.tenant = Some(crate::snapshot::Tenant([0x8f; 32]));
    record.issued.decision.as_mut().expect("it was decided").fallback = Some(Fallback::NoPrompt);
    let id = record.id().to_string();
    store(&mut writer, &[Arc::new(record)], NOW);
    let strangers = place.sql::<i64>("SELECT count(*) FROM snapshots WHERE tenant IS NULL");
    assert_eq!(strangers, 0);
    for (sql, expected) in [
        ("SELECT id FROM snapshots", id.as_str()),
        ("SELECT trace_id FROM snapshots", &id),
        ("SELECT issued_at FROM snapshots", "2026-11-23T12:13:15.000000Z"),
        ("SELECT ifnull(fallback, 'none') || ' ' || forced || ' ' || attempts FROM snapshots", "no_prompt 0 1"),
        (
            "SELECT policy || ' ' || reason || ' ' || ending || ' ' || operation FROM snapshots",
            "least_request lowest_score completed chat",
        ),
        ("SELECT path || ' ' || model FROM snapshots", "/v1/chat/completions llama-3.1-8b"),
        ("SELECT target || ' ' || outcome_target || ' ' || tenant FROM snapshots", "vllm-4 vllm-4 t_8f8f8f8f"),
        ("SELECT waiting || ' ' || waiting_age_ms || ' ' || gateway_tokens_per_second FROM snapshots", "3.0 41 1480"),
        ("SELECT instance || ' ' || instance_tag || ' ' || config FROM snapshots", "gw-1 a7f1 c0ffee12"),
        (
            "SELECT group_concat(rank || ':' || target || ':' || chosen || ':' || score, ' ') FROM snapshot_candidates",
            "1:vllm-4:1:0 2:vllm-5:0:1",
        ),
        (
            "SELECT waiting_source || ' ' || waiting_freshness || ' ' || running_freshness || ' ' || sample_age_ms FROM snapshot_candidates",
            "scrape fresh unsupported 0",
        ),
        (
            "SELECT group_concat(target || ' ' || address || ' ' || health, ', ') FROM sample_states",
            "vllm-4 10.0.0.4:8000 healthy, vllm-5 10.0.0.5:8000 healthy",
        ),
        ("PRAGMA integrity_check", "ok"),
    ] {
        assert_eq!(place.sql::<String>(sql), expected, "{sql}");
    }
}

#[test]
fn a_damaged_record_is_named_and_the_others_are_read() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let (first, records) = (writer.next_seq(), plains(NOW, 0..3));
    store(&mut writer, &records, NOW);
    let outside = Connection::open(database_file(place.path())).unwrap();
    for damage in [
        "candidates = '[]'",
        "candidates = '[[1,2]]'",
        "candidates = '[[999,0,0,0,0]]'",
        "ending = 77",
        "rest = x'ff'",
        "path = x'ff'",
    ] {
        let damaging = format!("UPDATE records SET {damage} WHERE seq = {first} + 1");
        outside.execute_batch(&damaging).unwrap();
        match reader.resolve(records[1].id(), NOW) {
            Err(ReadError::Corrupt { seq, what }) => assert!(seq == first + 1 && !what.is_empty(), "{damage}: {what}"),
            answer => panic!("{damage}: {answer:?}"),
        }
        assert!(matches!(reader.resolve(records[2].id(), NOW).unwrap(), Resolution::Found(_)));
    }
}

//! What a decision takes in the store does not grow with the fleet that it was made over.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use snapgate::choose;
use snapgate::clock::Clock;
use snapgate::fleet::{Fleet, Settings, TargetSettings};
use snapgate::snapshot::outcome::{Answer, Outcome, Timings};
use snapgate::snapshot::sample::mix;
use snapgate::snapshot::{
    Decision, Ending, FleetView, Inputs, Issued, Moment, Policy, Quantity, Record, Request, Run, RunId, SnapshotId,
    TraceContext,
};
use snapgate::store::{self, DataDir, Store};
use snapgate::telemetry::Metrics;

/// As `choice.width` is by default.
const WIDTH: usize = 16;

/// Decisions over each fleet.
const DECISIONS: u64 = 500;

/// Candidates are named by numbers: of a sample's row (two digits for a fleet of 60, four for one of 10,000), and of the
/// place among the eligible (two, and four). So much more each candidate may take.
const DIGITS_MORE: usize = 5;

/// What besides may be longer by a byte or two: the number of the eligible, and the chosen target's row.
const REST_MORE: usize = 8;

/// A fleet of which everything is known, and fresh.
fn fleet(targets: usize) -> Arc<Fleet> {
    let address = |n: usize| format!("10.0.{}.{}:8000", n >> 8, n & 255);
    let settings = (0..targets).map(|n| TargetSettings::new(&format!("vllm-{n}"), &address(n))).collect();
    let clock = Clock::start();
    // What was reported first is fresh when the last decision is made, however long all of them take.
    let settings = Settings { fresh_within: Duration::from_secs(3_600), ..Settings::new(settings) };
    let fleet = Fleet::new(settings, Arc::clone(&clock), Metrics::new());
    for (n, member) in fleet.view().members.iter().enumerate() {
        let mut values = [Some(0.25); Quantity::COUNT];
        values[Quantity::Waiting as usize] = Some((n % 5) as f64);
        values[Quantity::Running as usize] = Some((n % 7) as f64);
        member.live.reported(values, clock.now());
    }
    fleet.publish();
    fleet
}

fn record(view: &FleetView, run: &Arc<Run>, number: u64) -> Arc<Record> {
    let inputs = Inputs { draw: mix(number), ..Inputs::default() };
    let pool = view.pools.all();
    let choice = choose::target(view, pool, Policy::LeastQueue, WIDTH, &inputs, &[]).expect("everybody is eligible");
    assert_eq!((choice.fallback, choice.candidates.len()), (None, WIDTH));
    let issued_at = Moment(view.published.0 + 1_000);
    let decision = Decision {
        policy: Policy::LeastQueue,
        reason: choice.reason,
        forced: false,
        fallback: choice.fallback,
        decided_offset_ns: 41_200,
        choose_ns: 1_900,
        decided: issued_at,
        view_published: view.published,
        eligible: pool.eligible.len() as u32,
        excluded: choice.excluded,
        candidates: choice.candidates,
        inputs,
    };
    let outcome = Outcome {
        ending: Ending::Completed,
        status: Some(200),
        error: None,
        attempts: Vec::new(),
        response_bytes: 20_480,
        events: 181,
        answer: Answer::default(),
        timings: Timings { end_offset_us: 2_400_112, ..Timings::default() },
        trace_exported: None,
    };
    let id = SnapshotId::new(issued_at.unix_ms(), run.tag, number);
    let request = Request { method: "POST".into(), path: "/v1/chat/completions".into(), ..Request::default() };
    let trace = TraceContext::root(id);
    let issued = Issued { id, issued_at, run: Arc::clone(run), trace, request, decision: Some(decision) };
    Arc::new(Record::closed(issued, outcome))
}

/// What was stored of the decisions over one fleet.
#[derive(Debug)]
struct Stored {
    /// A record's columns, on average.
    record_bytes: usize,
    samples: u64,
}

fn stored(targets: usize) -> Stored {
    let temp = tempfile::tempdir().expect("there is room");
    let dir = DataDir::open(temp.path()).expect("a new directory can be opened");
    let (fleet, now) = (fleet(targets), Clock::start().now());
    let run = Arc::new(Run {
        id: RunId(7),
        instance: "test".into(),
        tag: dir.tag(),
        version: "0.1.0".into(),
        config: "c0ffee12".into(),
        config_text: "".into(),
        started: now,
    });
    let settings = store::Settings { ballast_bytes: 0, ..store::Settings::default() };
    let (mut writer, _reader) = Store::open(&dir, &settings, Arc::clone(&run), now).expect("a new store can be opened");
    let view = fleet.view();
    let records: Vec<_> = (0..DECISIONS).map(|number| record(&view, &run, number)).collect();
    writer.commit(writer.next_seq(), &records, &[], &[], now).expect("the disk has room");
    writer.close(now);
    measured(temp.path())
}

fn measured(dir: &Path) -> Stored {
    let store = rusqlite::Connection::open(dir.join("snapshots.db")).expect("the store can be opened");
    let mut columns = store.prepare("SELECT name FROM pragma_table_info('records')").expect("there is a table");
    let columns = columns.query_map([], |row| row.get::<_, String>(0)).expect("it has columns");
    let lengths = columns.map(|column| format!("ifnull(length(CAST({} AS BLOB)), 0)", column.expect("it has a name")));
    let one = |sql: &str| store.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("it can be counted") as u64;
    let bytes = one(&format!("SELECT sum({}) FROM records", lengths.collect::<Vec<_>>().join(" + ")));
    assert_eq!(one("SELECT count(*) FROM records"), DECISIONS);
    Stored { record_bytes: bytes.div_ceil(DECISIONS) as usize, samples: one("SELECT count(*) FROM samples") }
}

#[test]
fn a_decision_over_ten_thousand_targets_takes_no_more_than_one_over_sixty() {
    let (small, large) = (stored(60), stored(10_000));
    let most = small.record_bytes + WIDTH * DIGITS_MORE + REST_MORE;
    assert!(large.record_bytes <= most, "{large:?} against {small:?}, of which {most} bytes are allowed");
    // A state is stored when a decision first refers to it: never more of them than there are targets or candidates.
    assert_eq!(small.samples, 60);
    assert!(large.samples <= DECISIONS * WIDTH as u64, "{large:?}");
}

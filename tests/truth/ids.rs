//! Many requests at once, each looked up when its head is read and when it ends; and IDs that nobody issued.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use snapgate::demo::sim::SimSettings;
use snapgate::snapshot::id::EPOCH_UNIX_MS;
use snapgate::snapshot::{InstanceTag, SnapshotId};

use super::assert_ended;
use crate::gateway::client::id_of;
use crate::gateway::wire::Head;
use crate::gateway::{Client, End, Found, Gateway, Request, Setup, Sims, until};

/// How many requests are made, if the environment does not say.
const REQUESTS: usize = 2_000;

/// The variable that says.
const REQUESTS_VARIABLE: &str = "SNAPGATE_TRUTH_REQUESTS";

/// Clients at one time.
const CLIENTS: usize = 64;

/// Clients at one time that look up what is stored.
const READERS: usize = 4;

/// IDs of each kind that nobody issued.
const MADE_UP: usize = 500;

/// A century: an ID of a time that is further away was issued by nobody.
const CENTURY_MS: u64 = 100 * 365 * 24 * 3_600 * 1_000;

#[test]
fn every_id_resolves_from_its_head_on_and_reads_the_same_wherever_it_is_kept() {
    let pod =
        SimSettings { ttft: Duration::from_millis(1), token_time: Duration::from_millis(1), ..SimSettings::instant() };
    let sims = Sims::start(std::iter::repeat_n(pod, 3));
    // The longest there is, so that a lookup at a request's end finds it in the ledger and not yet in the store.
    let gateway = Setup::before(sims.addresses()).set("pipeline.commit_interval", "1s").start();
    let requests = std::env::var(REQUESTS_VARIABLE).map_or(REQUESTS, |text| text.parse().expect("a number"));

    let mut seen = make_requests(&gateway, requests);
    assert_eq!(seen.len(), requests, "every ID is another");
    // Nearly all are, for commits are rare. Should each lookup have come too late, there are more.
    until("one was answered from the ledger", || {
        let is_one = seen.values().any(|at_end| !at_end.stored());
        if !is_one {
            let (mut data, mut admin) = (Client::to(gateway.data), Client::to(gateway.admin));
            seen.extend([make_request(&mut data, &mut admin, 1)]);
        }
        is_one.then_some(())
    });
    seen.extend([leave_an_open_stream(&gateway)]);

    look_up_what_is_stored(&gateway, &seen);
    let newest = seen.keys().max().expect("there were requests").parse().expect("an ID is what it should be");
    look_up_what_nobody_issued(&gateway, newest);

    let stopped = gateway.stop();
    stopped.has_exactly(&seen.into_values().collect::<Vec<_>>());
}

/// Requests, and what their IDs resolve to when they have ended.
fn make_requests(gateway: &Gateway, requests: usize) -> HashMap<String, Found> {
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(HashMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let (mut data, mut admin) = (Client::to(gateway.data), Client::to(gateway.admin));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return;
                    }
                    let (id, one) = make_request(&mut data, &mut admin, 1 + number as u32 % 16);
                    seen.lock().expect("no client panicked").insert(id, one);
                }
            });
        }
    });
    seen.into_inner().expect("no client panicked")
}

/// Sends a request and reads the head of its answer; its ID, and what that resolves to by then.
fn head_of(request: &Request, data: &mut Client, admin: &mut Client) -> (Head, String, Found) {
    data.send(request);
    let head = data.head();
    let id = id_of(&head);
    let at_head = Found::by(admin, &format!("/v1/snapshots/{id}"));
    assert_eq!(at_head.status, 200, "{id} is known when its head is read: {}", at_head.text);
    assert_eq!(at_head.text_at("/decision/target"), head.header("target-pod"), "{}", at_head.text);
    assert_eq!(at_head.list("/decision/candidates").len(), 3, "{}", at_head.text);
    (head, id, at_head)
}

fn assert_same_request(at_head: &Found, at_end: &Found) {
    for part in ["/decision", "/request", "/trace", "/gateway", "/issued_at_unix_us"] {
        assert_eq!(at_head.at(part), at_end.at(part), "{part} does not change");
    }
}

/// One streamed request, and what its ID resolves to when its head and when its end is read.
fn make_request(data: &mut Client, admin: &mut Client, tokens: u32) -> (String, Found) {
    let (head, id, at_head) = head_of(&Request::stream(tokens), data, admin);
    let answer = data.rest_of(head);
    assert_eq!((answer.status, answer.end), (200, End::Clean));
    let at_end = Found::by(admin, &format!("/v1/snapshots/{id}?wait=1s"));
    assert_eq!((at_end.text_at("/phase"), at_end.text_at("/id")), (Some("complete"), Some(&*id)), "{}", at_end.text);
    assert_ended(&at_end, "completed", None, answer.status);
    let counted = (at_end.at("/outcome/response_bytes").as_u64(), at_end.at("/outcome/events").as_u64());
    assert_eq!(counted, (Some(answer.body.len() as u64), Some(answer.events().len() as u64)), "{}", at_end.text);
    assert_same_request(&at_head, &at_end);
    (id, at_end)
}

/// The same of a stream that has not ended when it is looked up: it never does, and its client leaves.
fn leave_an_open_stream(gateway: &Gateway) -> (String, Found) {
    let mut data = Client::to(gateway.data);
    let request = Request::stream(2).with("x-sim-fault", "hang-after=1");
    let (_, id, at_head) = head_of(&request, &mut data, &mut Client::to(gateway.admin));
    assert_eq!(at_head.text_at("/phase"), Some("in_flight"), "{}", at_head.text);
    drop(data);
    let at_end = gateway.ended(&id);
    assert_ended(&at_end, "client_disconnected", Some("client"), 200);
    assert_same_request(&at_head, &at_end);
    (id, at_end)
}

fn look_up_what_is_stored(gateway: &Gateway, seen: &HashMap<String, Found>) {
    let ids: Vec<_> = seen.iter().collect();
    std::thread::scope(|scope| {
        for part in ids.chunks(ids.len().div_ceil(READERS)) {
            scope.spawn(move || {
                let mut admin = Client::to(gateway.admin);
                for (id, at_end) in part {
                    let path = format!("/v1/snapshots/{id}");
                    let stored = until("it is stored", || Some(Found::by(&mut admin, &path)).filter(Found::stored));
                    assert_eq!(stored.document(), at_end.document(), "the store keeps what the ledger had");
                }
            });
        }
    });
}

/// IDs like one that was issued, and IDs like none.
fn look_up_what_nobody_issued(gateway: &Gateway, issued: SnapshotId) {
    let (now, ours) = (issued.unix_ms(), issued.instance_tag());
    let made_up = std::iter::repeat_with(|| SnapshotId::from_u128(rand::random()))
        // Of a time that can be, it could be another instance's.
        .filter(|id| !(EPOCH_UNIX_MS..EPOCH_UNIX_MS + CENTURY_MS).contains(&id.unix_ms()))
        .take(MADE_UP);
    let likely = std::iter::repeat_with(|| SnapshotId::new(now, ours, rand::random())).take(MADE_UP);
    let mut admin = Client::to(gateway.admin);
    let mut state_of = |id: SnapshotId| {
        let found = Found::by(&mut admin, &format!("/v1/snapshots/{id}"));
        (found.status, found.text_at("/state").map(str::to_owned))
    };
    for id in made_up.chain(likely) {
        assert_eq!(state_of(id), (404, Some("unknown".into())), "{id}");
    }
    let theirs = SnapshotId::new(now, InstanceTag(!ours.0), rand::random());
    assert_eq!(state_of(theirs), (404, Some("issued_elsewhere".into())), "{theirs}");
}

//! The fleet against real sockets: scripted pods on free ports.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{EngineSettings, Fleet, Input, MetricsAt, Row, Settings, TargetSettings};
use crate::clock::Clock;
use crate::snapshot::{Freshness, Health, Member, Quantity, Reading, Source, Watched};
use crate::telemetry::Metrics;

const BUSY: &str = include_str!("../../tests/fixtures/vllm-0.32.0/metrics-busy.txt");
pub(super) const MS: Duration = Duration::from_millis(1);

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longer than any test.
pub(super) const AGES: Duration = Duration::from_secs(3_600);

/// What a pod does with a request.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// Answers in one piece and keeps the connection.
    Answer(u16, String),
    /// The same, after a pause.
    Late(Duration, String),
    /// The n-th request, from 0, gets a page in which `{n}` is `n`.
    Counting(&'static str),
    /// Writes these bytes and closes.
    Raw(String),
    /// Sends chunks for ever.
    Endless,
    /// Says nothing and keeps the connection open.
    Hang,
}

/// A server whose replies can be changed while it runs. Dropping it ends all it does.
pub(super) struct Pod {
    pub(super) address: String,
    script: Arc<Script>,
    _server: JoinSet<()>,
}

#[derive(Debug)]
struct Script {
    metrics: Mutex<Reply>,
    health: Mutex<Reply>,
    pages: AtomicUsize,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl Pod {
    pub(super) async fn start(metrics: Reply, health: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script = Arc::new(Script {
            metrics: Mutex::new(metrics),
            health: Mutex::new(health),
            pages: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let (mut server, serving) = (JoinSet::new(), Arc::clone(&script));
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serving.accepted.fetch_add(1, Relaxed);
                serving.open.fetch_add(1, Relaxed);
                let script = Arc::clone(&serving);
                connections.spawn(async move {
                    // A client that goes away is part of the tests.
                    let _ended = script.serve(stream).await;
                    script.open.fetch_sub(1, Relaxed);
                });
            }
        });
        Self { address, script, _server: server }
    }

    pub(super) fn metrics(&self, reply: Reply) {
        *self.script.metrics.lock().unwrap() = reply;
    }

    fn health(&self, reply: Reply) {
        *self.script.health.lock().unwrap() = reply;
    }
}

impl Script {
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        while let Some(path) = request_path(&mut stream).await? {
            let is_page = path == "/metrics";
            let reply = if is_page { &self.metrics } else { &self.health }.lock().unwrap().clone();
            let n = if is_page { self.pages.fetch_add(1, Relaxed) } else { 0 };
            match reply {
                Reply::Answer(status, body) => answer(&mut stream, status, &body).await?,
                Reply::Late(pause, body) => {
                    tokio::time::sleep(pause).await;
                    answer(&mut stream, 200, &body).await?;
                }
                Reply::Counting(body) => answer(&mut stream, 200, &body.replace("{n}", &n.to_string())).await?,
                Reply::Raw(bytes) => return stream.write_all(bytes.as_bytes()).await,
                Reply::Endless => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                    loop {
                        stream.write_all(b"11\r\nthis_is_a_name 1\n\r\n").await?;
                    }
                }
                Reply::Hang => {
                    // Ends when the client has had enough.
                    stream.read_u8().await?;
                }
            }
        }
        Ok(())
    }
}

/// The path of the next request; `None` if there is none.
async fn request_path(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut words = head.split(' ');
    assert_eq!(words.next(), Some("GET"), "{head}");
    Ok(words.next().map(str::to_owned))
}

async fn answer(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).await
}

pub(super) fn ok(body: &str) -> Reply {
    Reply::Answer(200, body.to_owned())
}

/// A fleet that runs until it is dropped or stopped.
pub(super) struct Running {
    pub(super) fleet: Arc<Fleet>,
    pub(super) metrics: Arc<Metrics>,
    stop: oneshot::Sender<()>,
    tasks: JoinSet<()>,
}

fn described(name: &str, address: &str) -> TargetSettings {
    TargetSettings { gpus: Some(8), ..TargetSettings::new(name, address) }
}

/// Starts a fleet of these addresses, in quick motion.
pub(super) fn start(addresses: &[&str], change: impl FnOnce(&mut Settings)) -> Running {
    let target = |(n, address): (usize, &&str)| described(&format!("t{n}"), address);
    let mut settings = Settings {
        poll_interval: 10 * MS,
        poll_target_share: 1.0,
        poll_cpu_share: 100.0,
        publish_interval: 5 * MS,
        probe_interval: 10 * MS,
        fresh_within: AGES,
        ..Settings::new(addresses.iter().enumerate().map(target).collect())
    };
    change(&mut settings);
    let metrics = Metrics::new();
    let fleet = Fleet::new(settings, Clock::start(), Arc::clone(&metrics));
    let (stop, stopped) = oneshot::channel();
    let mut tasks = JoinSet::new();
    let running = Arc::clone(&fleet);
    tasks.spawn(async move {
        running
            .run(async {
                // A sender that is gone means stop, too.
                let _gone = stopped.await;
            })
            .await;
    });
    Running { fleet, metrics, stop, tasks }
}

impl Running {
    pub(super) fn member(&self, target: usize) -> Member {
        self.fleet.view().members[target].clone()
    }

    pub(super) fn reading(&self, target: usize, quantity: Quantity) -> Reading {
        *self.member(target).sample.reading(quantity)
    }

    fn watched(&self, target: usize) -> Arc<Watched> {
        self.member(target).live.watched()
    }

    /// Ends the fleet as the program does.
    async fn end(mut self) {
        self.stop.send(()).unwrap();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

/// Waits for a condition, or fails with the words.
pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: did not happen");
        tokio::time::sleep(MS).await;
    }
}

#[tokio::test]
async fn a_pods_page_becomes_the_view() {
    let pod = Pod::start(ok(BUSY), ok("")).await;
    let running = start(&[&pod.address], |_| {});
    assert_eq!(running.member(0).sample.health, Health::Unknown, "before anything was asked");
    until("health", || running.member(0).sample.health == Health::Healthy).await;
    until("a second page", || running.reading(0, Quantity::EngineTokensPerSecond).value.is_some()).await;

    let view = Arc::clone(&running.fleet.view());
    let sample = &view.members[0].sample;
    let expected = [Some(2.0), Some(4.0), Some(0.000_976_681_723_843_242_4), None, None, None, Some(0.0), Some(0.0)];
    assert_eq!(sample.readings.map(|reading| reading.value), expected);
    assert_eq!(sample.reading(Quantity::PrefixCacheHitRatio).freshness, Freshness::Missing, "nobody asked anything");
    let waiting = sample.reading(Quantity::Waiting);
    assert_eq!((waiting.freshness, waiting.source), (Freshness::Fresh, Some(Source::Scrape)));
    assert!(waiting.observed <= sample.published && sample.published <= view.published);
    assert_eq!((&*view.pools.all().eligible, sample.target.gpus), (&[0][..], Some(8)));
    let watched = running.watched(0);
    assert_eq!((&watched.scrape_error, &watched.probe_error, watched.garbage_lines), (&None, &None, 0));
    assert!(watched.series_missing.is_empty() && watched.scrape_duration.is_some());
    assert!(running.metrics.page().contains("snapgate_scrapes_total{target=\"t0\"}"));
}

#[tokio::test]
async fn every_way_to_fail_is_told_apart_and_leaves_values_missing() {
    const GOOD_LINE: &str = "vllm:num_requests_waiting 3\n";
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    let cases = [
        (Reply::Hang, "timeout", "no complete answer within"),
        (Reply::Late(AGES, GOOD_LINE.into()), "timeout", "no complete answer within"),
        (ok(&GOOD_LINE.repeat(100)), "too_large", "longer than 1000 bytes"),
        (Reply::Endless, "too_large", "longer than 1000 bytes"),
        (Reply::Answer(500, GOOD_LINE.into()), "status", "status 500"),
        (Reply::Answer(307, GOOD_LINE.into()), "status", "status 307"),
        (ok(""), "not_metrics", "no metrics"),
        (ok("<!doctype html>\n<title>vllm:num_requests_waiting 3</title>\n"), "not_metrics", "no metrics"),
        (ok("vllm:num_requests_waiting three\n"), "not_metrics", "no metrics"),
        (ok("tgi_queue_size 3\n"), "no_engine_series", "none that vllm or sglang has"),
        (Reply::Raw(String::new()), "broken", "no valid HTTP answer: connection closed"),
        (Reply::Raw("SSH-2.0-OpenSSH_9.6\r\n".into()), "broken", "no valid HTTP answer: "),
        (Reply::Raw(head(500) + GOOD_LINE), "broken", "broke within the answer"),
    ];
    let mut pods = Vec::new();
    for (reply, ..) in &cases {
        pods.push(Pod::start(reply.clone(), ok("")).await);
    }
    // Nobody listens there, and nobody can while the port is held.
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = held.local_addr().unwrap().to_string();
    let mut addresses: Vec<_> = pods.iter().map(|pod| pod.address.as_str()).collect();
    addresses.push(&refused);
    let mut expected: Vec<_> = cases.iter().map(|(_, reason, words)| (*reason, *words)).collect();
    expected.push(("connect", "cannot connect: "));

    let running = start(&addresses, |settings| {
        settings.poll_timeout = 200 * MS;
        settings.poll_bytes_max = 1000;
    });
    for (target, (reason, words)) in expected.into_iter().enumerate() {
        // While this machine is busy, an answer may come too late and be a timeout, too.
        until(&format!("{reason} of {target}: {words}"), || {
            let watched = running.watched(target);
            watched.scrape_failures >= 2 && watched.scrape_error.as_ref().is_some_and(|error| error.contains(words))
        })
        .await;
        let counted = format!("snapgate_scrape_failures_total{{target=\"t{target}\",reason=\"{reason}\"}}");
        let page = running.metrics.page();
        assert!(page.contains(&counted), "{counted} is not in {page}");
        assert_eq!(running.reading(target, Quantity::Waiting), Reading::MISSING, "{target}");
        let watched = running.watched(target);
        assert!(watched.scrape_duration.is_some() && watched.scrape_interval.is_some());
    }
}

#[tokio::test]
async fn values_age_while_a_page_is_away_and_freshen_when_it_is_back() {
    let pod = Pod::start(ok("vllm:num_requests_waiting 3\n"), ok("")).await;
    let running = start(&[&pod.address], |settings| settings.fresh_within = 300 * MS);
    until("a value", || running.reading(0, Quantity::Waiting).fresh() == Some(3.0)).await;

    pod.metrics(Reply::Answer(503, "loading".into()));
    until("stale", || running.reading(0, Quantity::Waiting).freshness == Freshness::Stale).await;
    let sample = running.member(0).sample;
    let stale = sample.reading(Quantity::Waiting);
    assert_eq!((stale.value, stale.fresh()), (Some(3.0), None), "the last value stays, but not for choices");
    assert!(stale.age_ms(sample.published).unwrap() >= 300);
    let published = running.fleet.view().published;
    until("more views", || running.fleet.view().published.ms_since(published) > 50).await;
    assert!(Arc::ptr_eq(&sample, &running.member(0).sample), "stale once, then shared");

    pod.metrics(ok("vllm:num_requests_waiting 4\n"));
    until("fresh again", || running.reading(0, Quantity::Waiting).fresh() == Some(4.0)).await;
    assert_eq!(running.watched(0).scrape_error, None);
    assert_eq!(running.watched(0).series_missing.len(), 6);
}

#[tokio::test]
async fn whatever_becomes_of_a_page_its_last_values_age_and_everybody_can_see_why() {
    const GOOD: &str = "vllm:num_requests_waiting 3\nvllm:num_requests_running 5\n";
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    let cases = [
        (Reply::Raw(head(GOOD.len() + 500) + GOOD), "broke within the answer"),
        (ok(&"vllm:num_requests_waiting 9\n".repeat(100)), "longer than 1000 bytes"),
        (Reply::Hang, "no complete answer within"),
        (ok("\u{0}\u{1}\u{fffd}{{{\n= = =\n"), "no metrics"),
    ];
    for (reply, words) in cases {
        let pod = Pod::start(ok(GOOD), ok("")).await;
        let running = start(&[&pod.address], |settings| {
            settings.fresh_within = 300 * MS;
            settings.poll_timeout = 100 * MS;
            settings.poll_bytes_max = 1000;
        });
        until("a value", || running.reading(0, Quantity::Waiting).fresh() == Some(3.0)).await;
        pod.metrics(reply);
        until("stale", || running.reading(0, Quantity::Waiting).freshness == Freshness::Stale).await;
        assert_eq!(running.reading(0, Quantity::Waiting).value, Some(3.0), "{words}: the last value stays");
        assert_eq!(running.reading(0, Quantity::Running).value, Some(5.0), "{words}");
        // While this machine is busy, an answer may come too late and be a timeout, too.
        until(words, || running.watched(0).scrape_error.as_ref().is_some_and(|error| error.contains(words))).await;
        let watched = running.watched(0);
        assert!(watched.scrape_failures > 0, "{watched:?}");
        assert_eq!(watched.engine.as_deref(), Some("vllm"), "{words}: what it was is known");
    }
}

#[tokio::test]
async fn a_page_with_broken_lines_counts_for_the_others_and_says_how_many() {
    // Its number may have been cut: the last line has no end.
    let pod = Pod::start(
        ok("vllm:num_requests_waiting 3\n{{{\nvllm:num_requests_running x\nvllm:kv_cache_usage_perc 0.0"),
        ok(""),
    )
    .await;
    let running = start(&[&pod.address], |_| {});
    until("a value", || running.reading(0, Quantity::Waiting).fresh() == Some(3.0)).await;
    let watched = running.watched(0);
    assert_eq!((watched.garbage_lines, watched.series_missing.len(), &watched.scrape_error), (3, 6, &None));
    assert_eq!(running.reading(0, Quantity::KvCacheUsage), Reading::MISSING);
}

#[tokio::test]
async fn each_target_goes_by_its_own_engine() {
    let pages = ["tgi_queue_size 4\n", "sglang:num_queue_reqs 5\n", "our_queue 6\n"];
    let mut pods = Vec::new();
    for page in pages {
        pods.push(Pod::start(ok(page), ok("")).await);
    }
    let addresses: Vec<_> = pods.iter().map(|pod| pod.address.as_str()).collect();
    let running = start(&addresses, |settings| {
        settings.targets[0].engine = Some("tgi".into());
        settings.targets[2].engine = Some("ours".into());
        let (input, names) = (Input::Waiting, vec!["our_queue".into()]);
        let rows = vec![Row { input, combine: input.combine(), scale: 1.0, names }];
        settings.engines = vec![EngineSettings { name: "ours".into(), rows, queue_time: None }];
    });
    for (target, (value, engine)) in [(4.0, "tgi"), (5.0, "sglang"), (6.0, "ours")].into_iter().enumerate() {
        until(engine, || running.reading(target, Quantity::Waiting).fresh() == Some(value)).await;
        assert_eq!(running.watched(target).engine.as_deref(), Some(engine));
    }
    let kv_cache = [0, 1, 2].map(|target| running.reading(target, Quantity::KvCacheUsage).freshness);
    assert_eq!(kv_cache, [Freshness::Unsupported, Freshness::Missing, Freshness::Unsupported]);
}

#[tokio::test]
async fn probes_alone_decide_on_health() {
    let pods = [Pod::start(Reply::Hang, ok("")).await, Pod::start(ok(BUSY), ok("")).await];
    let running = start(&[&pods[0].address, &pods[1].address], |settings| {
        settings.probe_timeout = 2_000 * MS;
        settings.healthy_after = 2;
    });
    let eligible = || {
        let view = running.fleet.view();
        (view.pools.all().eligible.to_vec(), view.pools.all().excluded.unhealthy)
    };
    let health = |target: usize| running.member(target).sample.health;
    until("both healthy", || health(0) == Health::Healthy && health(1) == Health::Healthy).await;
    assert_eq!(running.reading(0, Quantity::Waiting), Reading::MISSING, "its page hangs");
    assert_eq!(eligible(), (vec![0, 1], 0));

    pods[1].health(Reply::Answer(503, "going down".into()));
    until("unhealthy", || health(1) == Health::Unhealthy).await;
    assert_eq!(eligible(), (vec![0], 1));
    assert_eq!(running.watched(1).probe_error.as_deref(), Some("status 503 Service Unavailable instead of 2xx"));
    until("its page is still read", || running.reading(1, Quantity::Waiting).fresh() == Some(2.0)).await;

    // The status decides, even if the body never ends.
    pods[1].health(Reply::Endless);
    until("healthy again", || health(1) == Health::Healthy).await;
    assert_eq!((eligible(), &running.watched(1).probe_error), ((vec![0, 1], 0), &None));
}

#[tokio::test]
async fn rates_come_from_pages_and_from_the_gateways_own_counts() {
    let page = "vllm:generation_tokens_total 10{n}\nvllm:request_success_total 1{n}\n\
                vllm:prefix_cache_queries_total 3{n}0\nvllm:prefix_cache_hits_total 2{n}0\n";
    let pod = Pod::start(Reply::Counting(page), ok("")).await;
    let running = start(&[&pod.address], |_| {});
    let live = running.member(0).live;
    live.begin();
    live.add_tokens(300);
    for quantity in [Quantity::EngineTokensPerSecond, Quantity::EngineRequestsPerSecond, Quantity::PrefixCacheHitRatio]
    {
        until(quantity.name(), || running.reading(0, quantity).fresh().is_some_and(|value| value > 0.0)).await;
    }
    until("own rates", || live.rates().0 > 0.0).await;
    let (requests, tokens) = live.rates();
    assert!(requests <= 1.0 && (tokens / requests - 300.0).abs() < 1e-6, "{requests}, {tokens}");
}

#[tokio::test]
async fn connections_are_kept_and_all_are_closed_at_the_end() {
    let pod = Pod::start(ok(BUSY), ok("alive")).await;
    let running = start(&[&pod.address], |_| {});
    until("many pages", || pod.script.pages.load(Relaxed) >= 20).await;
    // One for pages and one for probes; a busy machine may be late to give one back.
    let accepted = pod.script.accepted.load(Relaxed);
    assert!((2..=5).contains(&accepted), "{accepted} connections for 20 pages");
    let fleet = Arc::clone(&running.fleet);
    running.end().await;
    let pages = pod.script.pages.load(Relaxed);
    let published = fleet.view().published;
    drop(fleet);
    until("closed", || pod.script.open.load(Relaxed) == 0).await;
    assert!(pod.script.pages.load(Relaxed) <= pages + 1, "nobody asks any more");
    assert!(published.0 > 0);
}

#[tokio::test]
async fn a_slow_page_is_asked_for_less_often() {
    let pod = Pod::start(Reply::Late(20 * MS, BUSY.into()), ok("")).await;
    let running = start(&[&pod.address], |settings| settings.poll_target_share = 0.02);
    until("it keeps to its share", || {
        let watched = running.watched(0);
        let Some((duration, interval)) = watched.scrape_duration.zip(watched.scrape_interval) else { return false };
        assert!(duration >= 20 * MS, "{duration:?}");
        interval >= duration.mul_f64(49.9)
    })
    .await;
}

#[tokio::test]
async fn a_page_that_is_read_seldom_stays_fresh_until_it_is_read_again_and_a_frozen_one_does_not() {
    const PAGE: &str = "vllm:num_requests_waiting 3\n";
    let pod = Pod::start(Reply::Late(50 * MS, PAGE.into()), ok("")).await;
    let running = start(&[&pod.address], |settings| {
        settings.poll_target_share = 0.1;
        settings.poll_timeout = 300 * MS;
        settings.fresh_within = 200 * MS;
    });
    let interval = || running.watched(0).scrape_interval.unwrap_or_default();
    let told = || running.watched(0).fresh_within.unwrap_or_default();
    until("it is read seldom", || interval() >= 500 * MS && told() >= 1_250 * MS).await;
    assert!(told() >= interval().mul_f64(2.49), "{:?}: two pages may fail to come", running.watched(0));
    // How old it was when it went stale, if it is, to the next millisecond. That may be between two pages, too, if this
    // machine stands still.
    let stale = || {
        let sample = running.member(0).sample;
        let reading = sample.reading(Quantity::Waiting);
        let age = Duration::from_millis(reading.age_ms(sample.published).unwrap()) + MS;
        (reading.freshness == Freshness::Stale).then_some(age)
    };
    let observed = || running.reading(0, Quantity::Waiting).observed;
    let (mut pages, mut last, mut within) = (0, observed(), told());
    until("its page is read again and again", || {
        // What is published is as old as the view, which may be from before the last page.
        let least = told().min(std::mem::replace(&mut within, told()));
        assert!(stale().is_none_or(|age| age >= least), "{:?} and not {least:?}", stale());
        pages += usize::from(std::mem::replace(&mut last, observed()) != last);
        pages >= 4
    })
    .await;
    assert_eq!(running.fleet.seldom(), 0, "{:?}", running.watched(0));

    pod.metrics(Reply::Hang);
    let asked = pod.script.pages.load(Relaxed);
    until("no page is on its way any more", || pod.script.pages.load(Relaxed) >= asked + 2).await;
    let last = told();
    until("stale", || stale().is_some()).await;
    assert!(stale().unwrap() >= last, "{:?} of {last:?}", stale());
    // A failure takes time, and an interval that it makes longer makes nothing fresh for longer.
    let failures = running.watched(0).scrape_failures;
    until("it fails again", || running.watched(0).scrape_failures >= failures + 2).await;
    assert!(told() == last && stale().is_some(), "{:?}", running.watched(0));
}

#[tokio::test]
async fn a_page_that_is_read_too_seldom_to_stay_fresh_is_told_of() {
    let pod = Pod::start(Reply::Late(50 * MS, "vllm:num_requests_waiting 3\n".into()), ok("")).await;
    let running = start(&[&pod.address], |settings| {
        settings.poll_target_share = 0.1;
        settings.fresh_within = 100 * MS;
        settings.fresh_within_max = 300 * MS;
    });
    until("it is read too seldom", || running.fleet.seldom() == 1).await;
    assert_eq!(running.watched(0).fresh_within, Some(300 * MS));
    // There are 200 ms of each interval to see it in.
    until("it is stale", || running.reading(0, Quantity::Waiting).freshness == Freshness::Stale).await;
    let observed = running.reading(0, Quantity::Waiting).observed;
    until("fresh when it is read again", || running.reading(0, Quantity::Waiting).fresh() == Some(3.0)).await;
    assert!(running.reading(0, Quantity::Waiting).observed > observed);
}

#[tokio::test]
async fn a_tick_that_panics_ends_neither_ticks_nor_polls() {
    /// Panics when the last view that brings it goes.
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("as this test wants it");
        }
    }
    let pod = Pod::start(ok("vllm:num_requests_waiting 3\n"), ok("")).await;
    let running = start(&[&pod.address], |_| {});
    running.fleet.attach(Some(Arc::new(Bomb)));
    // Only the view has it now: the next tick puts another one in its place.
    running.fleet.roster().with = None;
    until("the panic", || running.fleet.roster.is_poisoned()).await;
    pod.metrics(ok("vllm:num_requests_waiting 4\n"));
    until("a later value in a later view", || running.reading(0, Quantity::Waiting).fresh() == Some(4.0)).await;
    running.end().await;
}

#[tokio::test]
async fn a_page_may_be_at_another_port_than_requests_and_move() {
    let pod = Pod::start(Reply::Answer(404, String::new()), ok("")).await;
    let (page, moved) = (
        Pod::start(ok("vllm:num_requests_waiting 3\n"), ok("")).await,
        Pod::start(ok("vllm:num_requests_waiting 4\n"), ok("")).await,
    );
    let at = |page: &Pod| MetricsAt::parse(&format!(":{}", page.address.rsplit_once(':').unwrap().1)).unwrap();
    let running = start(&[&pod.address], |settings| settings.targets[0].metrics_at = at(&page));
    until("its page is read there", || running.reading(0, Quantity::Waiting).fresh() == Some(3.0)).await;
    until("and its health here", || running.member(0).sample.health == Health::Healthy).await;
    assert_eq!(pod.script.pages.load(Relaxed), 0, "nobody asks for metrics where there are none");
    let elsewhere = TargetSettings { metrics_at: at(&moved), ..described("t0", &pod.address) };
    let change = running.fleet.set_targets(&[elsewhere], None);
    assert_eq!((change.kept, change.added.len()), (1, 0), "it is the same target");
    until("its page is read where it is now", || running.reading(0, Quantity::Waiting).fresh() == Some(4.0)).await;
    running.end().await;
}

#[tokio::test]
async fn an_address_that_cannot_be_used_is_a_problem_and_no_panic() {
    let pod = Pod::start(ok(BUSY), ok("")).await;
    let running = start(&["not an address", &pod.address], |_| {});
    until("excluded", || *running.fleet.view().pools.all().eligible == [1]).await;
    assert!(running.watched(0).probe_error.as_ref().unwrap().contains("no part of a URL"));
    until("the other is watched", || running.reading(1, Quantity::Waiting).fresh() == Some(2.0)).await;
}

#[tokio::test]
async fn targets_come_and_go_while_it_runs() {
    let pods =
        [Pod::start(ok(BUSY), ok("")).await, Pod::start(ok(BUSY), ok("")).await, Pod::start(ok(BUSY), ok("")).await];
    let target = |name: &str, pod: usize| described(name, &pods[pod].address);
    let running = start(&[&pods[0].address, &pods[1].address], |settings| settings.drain_time = 20 * MS);
    until("all are known", || (0..2).all(|n| running.reading(n, Quantity::Waiting).value.is_some())).await;
    let kept = running.member(1);
    kept.live.begin();
    let removed = running.member(0);

    let change = running.fleet.set_targets(&[target("new", 2), target("t1", 1)], None);
    assert_eq!((change.added, change.removed, change.kept), (vec!["new".to_owned()], vec!["t0".to_owned()], 1));
    let view = Arc::clone(&running.fleet.view());
    let slots: Vec<_> = view.members.iter().map(|member| member.sample.target.slot).collect();
    assert_eq!(slots, [1, 2], "in the view at once, in a slot that nobody had");
    assert!(view.member(0).is_none() && Arc::ptr_eq(&view.member(1).unwrap().live, &kept.live));
    assert!(view.member(1).unwrap().sample.n >= kept.sample.n, "its samples go on");
    assert_eq!((view.member(1).unwrap().live.in_flight(), view.member(2).unwrap().sample.n), (1, 1));
    until("the new one is known", || running.reading(1, Quantity::Waiting).value.is_some()).await;
    until("nobody asks the removed one any more", || pods[0].script.open.load(Relaxed) == 0).await;
    until("nor counts it, when its time is over", || !running.metrics.page().contains("target=\"t0\"")).await;

    // It comes back, and is another one.
    running.fleet.set_targets(&[target("t0", 0), target("new", 2)], None);
    let back = running.member(1);
    assert_eq!((back.sample.target.slot, back.sample.n, back.sample.health), (3, 1, Health::Unknown));
    assert!(!Arc::ptr_eq(&back.live, &removed.live));
    until("it is watched again", || running.reading(1, Quantity::Waiting).value.is_some()).await;
    running.end().await;
}

#[tokio::test]
async fn a_target_that_is_described_otherwise_stays_the_one_it_is() {
    let pod = Pod::start(ok(BUSY), ok("")).await;
    let running = start(&[&pod.address], |_| {});
    until("known", || running.reading(0, Quantity::Waiting).value.is_some()).await;
    let before = running.member(0);
    let other = TargetSettings { gpus: Some(4), models: vec!["m".into()], ..TargetSettings::new("t0", &pod.address) };
    let change = running.fleet.set_targets(&[other], None);
    assert_eq!((change.added.len(), change.removed.len(), change.kept), (0, 0, 1));
    let view = Arc::clone(&running.fleet.view());
    let Member { sample, live } = &view.members[0];
    assert!(Arc::ptr_eq(live, &before.live) && sample.n > before.sample.n);
    assert_eq!((sample.target.slot, sample.target.gpus, sample.health), (0, Some(4), Health::Healthy));
    assert!(sample.reading(Quantity::Waiting).value.is_some());
    assert_eq!((view.pools.of_model(Some("m")).serving, view.pools.of_model(Some("x")).serving), (1, 0));
    running.end().await;
}

#[tokio::test]
async fn a_target_that_is_described_otherwise_keeps_the_health_that_it_had() {
    let pod = Pod::start(ok(BUSY), ok("")).await;
    let running = start(&[&pod.address], |settings| settings.unhealthy_after = 1_000_000);
    until("healthy", || running.member(0).sample.health == Health::Healthy).await;
    running.fleet.set_targets(&[TargetSettings::new("t0", &pod.address)], None);
    pod.health(Reply::Answer(503, String::new()));
    let failed = |running: &Running| running.watched(0).probe_error.as_ref().is_some_and(|error| error.contains("503"));
    until("its next watcher has seen a failure", || failed(&running)).await;
    running.fleet.publish();
    assert_eq!(running.member(0).sample.health, Health::Healthy, "one failure is none");
    running.end().await;
}

#[tokio::test]
async fn a_thousand_targets_are_read_within_the_share_of_a_processor() {
    const TARGETS: usize = 1_000;
    const SHARE: f64 = 0.1;
    let pod = Pod::start(ok(BUSY), ok("")).await;
    let addresses = vec![&*pod.address; TARGETS];
    let running = start(&addresses, |settings| {
        settings.poll_cpu_share = SHARE;
        settings.probe_interval = Duration::from_secs(600);
        settings.poll_timeout = PATIENCE;
    });
    let known = |running: &Running| (0..TARGETS).all(|n| running.reading(n, Quantity::Waiting).value.is_some());
    until("all are known", || known(&running)).await;
    // What a page costs is learned second by second; from then on as many are read as are allowed, and no more.
    let (mut since, mut pages) = (Instant::now(), pod.script.pages.load(Relaxed));
    until("scrapes keep to the share", || {
        let (elapsed, now) = (since.elapsed(), pod.script.pages.load(Relaxed));
        if elapsed < Duration::from_secs(1) {
            return false;
        }
        let used = (now - pages) as f64 * running.fleet.watch.budget.scrapes.cost_seconds() / elapsed.as_secs_f64();
        (since, pages) = (Instant::now(), now);
        used <= SHARE
    })
    .await;
    let interval = running.watched(0).scrape_interval.expect("it was read");
    assert!(interval > 10 * MS, "{interval:?} is more often than a thousand targets can be asked");
    running.end().await;
}

#[tokio::test]
async fn who_leaves_with_requests_is_listed_until_they_end_and_counted_until_its_time_is_over() {
    let pod = Pod::start(ok(BUSY), ok("")).await;
    let leave = async |drain_time| {
        let running = start(&[&pod.address], |settings| settings.drain_time = drain_time);
        let live = running.member(0).live;
        live.begin();
        running.fleet.replace_targets(&[TargetSettings::new("other", &pod.address)]);
        (running, live)
    };
    let (running, live) = leave(AGES).await;
    let leaving = running.fleet.leaving();
    assert_eq!((leaving.len(), &*leaving[0].name, leaving[0].in_flight), (1, "t0", 1));
    assert!(running.metrics.page().contains("snapgate_target_decisions_total{target=\"t0\"}"), "it is still counted");
    live.end();
    assert!(running.fleet.leaving().is_empty(), "it has nothing to end");
    until("that is counted", || running.metrics.page().contains("snapgate_targets_leaving 0")).await;
    // A request is counted when it is stored, which is after its end.
    for _ in 0..2 {
        let published = running.fleet.view().published;
        until("another view is published", || running.fleet.view().published > published).await;
    }
    assert!(running.metrics.page().contains("snapgate_target_decisions_total{target=\"t0\"}"), "it is still counted");
    running.end().await;

    let (running, live) = leave(20 * MS).await;
    until("its time is over", || running.fleet.leaving().is_empty()).await;
    assert_eq!(live.in_flight(), 1, "what it has goes on");
    until("it is counted no more", || !running.metrics.page().contains("target=\"t0\"")).await;
    running.end().await;
}

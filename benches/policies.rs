//! Every policy in front of four simulated pods that are busy, with requests of uneven size: how late the first token is,
//! and how the requests are spread.
//!
//! `cargo bench --bench policies -- [SECONDS]`, by default twenty for each policy and each of three [`SEEDS`]. With a seed the
//! same requests come at the same times whatever the policy is, and whether or not earlier ones were answered. What is shown is
//! read from the records: the median of the seeds, and from the least to the most.
//!
//! It fails (exit code 1, with each reason) when `least_queue` does not beat `round_robin` at p99 in the median of the seeds, or
//! when a policy herds with one of them: [`RUN_MAX`], [`SHARE_MAX`].
#![expect(clippy::print_stdout, reason = "a bench prints what it found")]

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};
use snapgate::app::App;
use snapgate::config::{Config, Machine, Sources, Targets};
use snapgate::demo::sim::{Sim, SimSettings, TOKENS_HEADER};
use snapgate::snapshot::{Ending, Policy, Record};
use snapgate::store::Reader;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Pods, all alike.
const PODS: usize = 4;

/// Requests that one pod works on at once; more wait in it.
const CAPACITY: u32 = 8;

/// Of each pod.
const FIRST_TOKEN: Duration = Duration::from_millis(40);
const EACH_TOKEN: Duration = Duration::from_millis(5);

/// Lengths of answers in tokens, and how many of four requests have each.
const SHORT: u32 = 10;
const LONG: u32 = 200;
const SHORT_OF_FOUR: u32 = 3;

/// How much of what the pods can do is asked for.
const LOAD: f64 = 0.8;

/// Conversations, each with a prompt and a session of its own.
const CONVERSATIONS: u32 = 64;

/// Requests of the first moments, when nothing is known of the pods yet and nothing is busy, are not counted.
const WARM_UP: Duration = Duration::from_secs(2);

/// Each makes the same traffic for every policy.
const SEEDS: [u64; 3] = [7, 11, 13];

/// A policy herds when it sends more requests than this one after the other to one pod. Whoever goes by what the pods said
/// half a second ago, and by nothing since, sends all of that time's to one: 40. A fair draw among four pods comes to 16 in
/// one of a million runs.
const RUN_MAX: usize = 16;

/// … or when a pod gets more than this of all requests. A fair share is a quarter; that of a pod to which more than a fair
/// share of the conversations belong is a little more.
const SHARE_MAX: f64 = 0.4;

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let seconds = seconds.map_or(Ok(20), |text| text.parse()).map_err(|_| "SECONDS is a whole number")?;
    let rate = rate();
    println!(
        "{PODS} pods of {CAPACITY} at {:.0} % load: {rate:.0} requests/s of {SHORT} or {LONG} tokens, {seconds} s each, {} seeds: \
         median (least..most)\n",
        LOAD * 100.0,
        SEEDS.len()
    );
    println!(
        "{:<17} {:>8}  {:>17}  {:>17}  {:>17}  {:>15}  {:>12}  {:>13}  {:>9}",
        "policy",
        "requests",
        "p50 ms",
        "p99 ms",
        "max ms",
        "share of a pod",
        "longest run",
        "most at a pod",
        "fallbacks"
    );
    let mut rows = Vec::new();
    for policy in Policy::ALL {
        let time = Duration::from_secs(seconds) + WARM_UP;
        let of_seed = |seed| measure(policy, rate, time, seed).map(|records| Row::of(&records));
        let seeds = Rows(SEEDS.into_iter().map(of_seed).collect::<Result<_, _>>()?);
        println!("{:<17} {seeds}", policy.name());
        rows.push((policy, seeds));
    }
    let wrong = wrong(&rows);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

/// What of the rows is not as it has to be.
fn wrong(rows: &[(Policy, Rows)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (policy, Rows(seeds)) in rows {
        for row in seeds {
            if row.longest_run > RUN_MAX || row.shares.1 > SHARE_MAX {
                let (run, share) = (row.longest_run, row.shares.1 * 100.0);
                wrong.push(format!(
                    "{} herds: {run} requests one after the other to one pod, {share:.1} % of all to one",
                    policy.name()
                ));
            }
        }
    }
    let p99 =
        |wanted| rows.iter().find(|(policy, _)| *policy == wanted).map(|(_, seeds)| seeds.median(|row| row.at(0.99)));
    let (by_queue, in_turn) = (p99(Policy::LeastQueue), p99(Policy::RoundRobin));
    if by_queue.partial_cmp(&in_turn) != Some(Ordering::Less) {
        wrong.push(format!("least_queue does not beat round_robin at p99, in ms: {by_queue:?} against {in_turn:?}"));
    }
    wrong
}

/// Requests per second that keep the pods as busy as they should be.
fn rate() -> f64 {
    let takes = |tokens: u32| (FIRST_TOKEN + EACH_TOKEN * (tokens - 1)).as_secs_f64();
    let short = f64::from(SHORT_OF_FOUR) / 4.0;
    let mean = short * takes(SHORT) + (1.0 - short) * takes(LONG);
    LOAD * PODS as f64 * f64::from(CAPACITY) / mean
}

/// The records of a policy's run, in the order of their decisions.
fn measure(policy: Policy, rate: f64, time: Duration, seed: u64) -> Result<Vec<Arc<Record>>, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let dir = tempfile::tempdir()?;
    let pods = pods(&runtime, seed)?;
    let app = App::start(configuration(policy, &pods, dir.path())?)?;
    let gateway = app.data;
    let failed = runtime.block_on(traffic(gateway, rate, time, seed));
    app.stop();
    if failed > 0 {
        return Err(format!("{failed} requests failed under {}", policy.name()).into());
    }
    let stored = Reader::open(dir.path())?.after(0, u64::MAX, usize::MAX)?;
    let mut records: Vec<_> = stored.into_iter().map(|(_, record)| record).collect();
    records.sort_by_key(|record| record.issued.issued_at);
    let begin = records.first().ok_or("nothing was recorded")?.issued.issued_at.plus(WARM_UP);
    records.retain(|record| record.issued.issued_at >= begin);
    Ok(records)
}

/// Starts the pods; they end with the runtime.
fn pods(runtime: &Runtime, seed: u64) -> Result<Vec<SocketAddr>, Box<dyn Error>> {
    let settings = SimSettings {
        ttft: FIRST_TOKEN,
        token_time: EACH_TOKEN,
        capacity: CAPACITY,
        jitter: 0.2,
        seed: Some(seed),
        ..SimSettings::default()
    };
    let start = |_| {
        let sim = runtime.block_on(Sim::bind((Ipv4Addr::LOCALHOST, 0).into(), settings.clone()))?;
        let address = sim.address();
        runtime.spawn(sim.run(std::future::pending()));
        Ok(address)
    };
    (0..PODS).map(start).collect()
}

fn configuration(policy: Policy, pods: &[SocketAddr], dir: &Path) -> Result<Config, Box<dyn Error>> {
    let mut text = format!(
        "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ndata_dir = {:?}\npolicy = \"{}\"\n",
        dir.display().to_string(),
        policy.name()
    );
    for pod in pods {
        text += &format!("[[targets]]\nurl = \"http://{pod}\"\n");
    }
    let sources = Sources::of_text("the bench", &text, Machine { hostname: "bench".into(), cores: 2 });
    Ok(Config::load(&sources, Targets::Required)?)
}

/// Sends requests at random moments for as long as told, and waits for their ends. Answers how many failed.
async fn traffic(gateway: SocketAddr, rate: f64, time: Duration, seed: u64) -> u64 {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut draws = SmallRng::seed_from_u64(seed);
    let (mut due, mut open) = (Instant::now(), JoinSet::new());
    let end = due + time;
    let mut failed = 0;
    while due < end {
        tokio::time::sleep_until(due).await;
        let request = request(gateway, &mut draws);
        let client = client.clone();
        open.spawn(async move {
            let Ok(answer) = client.request(request).await else { return false };
            answer.status().is_success() && answer.into_body().collect().await.is_ok()
        });
        due += Duration::from_secs_f64(-(1.0 - draws.random::<f64>()).ln() / rate);
    }
    while let Some(succeeded) = open.join_next().await {
        failed += u64::from(!succeeded.unwrap_or(false));
    }
    failed
}

fn request(gateway: SocketAddr, draws: &mut SmallRng) -> Request<Full<Bytes>> {
    let conversation = draws.random_range(0..CONVERSATIONS);
    let tokens = if draws.random_range(0..4) < SHORT_OF_FOUR { SHORT } else { LONG };
    // Too short for a prefix cache to matter: the question here is how requests are spread.
    let text = format!("conversation {conversation}");
    let body = serde_json::json!({
        "model": "llama-3.1-8b", "stream": true, "messages": [{"role": "user", "content": text}],
    });
    Request::post(format!("http://{gateway}/v1/chat/completions"))
        .header("content-type", "application/json")
        .header("x-session-id", conversation)
        .header(TOKENS_HEADER, tokens)
        .body(Full::from(body.to_string()))
        .expect("the parts of the request are valid")
}

/// A policy's run with one seed.
struct Row {
    requests: usize,
    /// Microseconds to the first token, sorted.
    first_tokens: Vec<u64>,
    /// Of the pods' shares the smallest and the largest.
    shares: (f64, f64),
    /// The most decisions one after the other for one pod.
    longest_run: usize,
    /// The most requests that a pod had in flight when it got another one.
    in_flight_max: u32,
    fallbacks: usize,
}

impl Row {
    fn of(records: &[Arc<Record>]) -> Self {
        let decisions = || records.iter().filter_map(|record| record.issued.decision.as_ref());
        let mut first_tokens: Vec<u64> = records.iter().filter_map(|record| first_token_us(record)).collect();
        first_tokens.sort_unstable();
        let mut counts = BTreeMap::<&str, usize>::new();
        decisions().for_each(|decision| *counts.entry(&decision.target().name).or_default() += 1);
        let mut counts: Vec<usize> = counts.into_values().collect();
        // A pod that got nothing has a share, too.
        counts.resize(PODS, 0);
        let share = |count: Option<&usize>| count.map_or(0.0, |count| *count as f64 / records.len() as f64);
        let targets: Vec<&str> = decisions().map(|decision| &*decision.target().name).collect();
        Self {
            requests: records.len(),
            first_tokens,
            shares: (share(counts.iter().min()), share(counts.iter().max())),
            longest_run: targets.chunk_by(|one, next| one == next).map(<[_]>::len).max().unwrap_or(0),
            in_flight_max: decisions().map(|decision| decision.chosen().in_flight).max().unwrap_or(0),
            fallbacks: decisions().filter(|decision| decision.fallback.is_some()).count(),
        }
    }

    /// A percentile of the time to the first token, in milliseconds.
    fn at(&self, share: f64) -> f64 {
        let last = self.first_tokens.len().saturating_sub(1);
        self.first_tokens.get((last as f64 * share).round() as usize).map_or(f64::NAN, |us| *us as f64 / 1e3)
    }
}

fn first_token_us(record: &Record) -> Option<u64> {
    let outcome = record.outcome().filter(|outcome| outcome.ending == Ending::Completed)?;
    outcome.timings.first_content_offset_us
}

/// A policy's runs, one a seed: one line of the table.
struct Rows(Vec<Row>);

impl Rows {
    /// What `of` says of each, from the least to the most.
    fn sorted(&self, of: impl Fn(&Row) -> f64) -> Vec<f64> {
        let mut values: Vec<_> = self.0.iter().map(of).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    }

    fn median(&self, of: impl Fn(&Row) -> f64) -> f64 {
        self.sorted(of)[self.0.len() / 2]
    }

    /// The median, and from the least to the most.
    fn shown(&self, of: impl Fn(&Row) -> f64) -> String {
        let values = self.sorted(of);
        format!("{:.0} ({:.0}..{:.0})", values[values.len() / 2], values[0], values[values.len() - 1])
    }
}

impl std::fmt::Display for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let least = self.sorted(|row| row.shares.0)[0] * 100.0;
        let most = self.sorted(|row| row.shares.1)[self.0.len() - 1] * 100.0;
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.shown(|row| row.at(share)));
        write!(
            f,
            "{:>8}  {p50:>17}  {p99:>17}  {max:>17}  {:>15}  {:>12}  {:>13}  {:>9}",
            self.median(|row| row.requests as f64),
            format!("{least:.1}..{most:.1} %"),
            self.shown(|row| row.longest_run as f64),
            self.shown(|row| f64::from(row.in_flight_max)),
            self.0.iter().map(|row| row.fallbacks).sum::<usize>(),
        )
    }
}

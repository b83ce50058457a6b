//! Varied traffic for a demonstration: what real clients send, and what they do wrong.
//!
//! An open loop: requests come at their own times, in bursts too, whether or not earlier ones have been answered. So a
//! fleet that is too slow is seen to queue.

mod plan;

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::draws::Draws;
use plan::{Plan, Planner};

/// Requests that are open at once; what comes beyond is skipped and counted, so that a gateway that hangs cannot fill
/// the memory.
const IN_FLIGHT_MAX: usize = 1_000;

/// A request that takes longer is given up and counted as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Share of arrivals that bring several requests at once, and how many.
const BURST_SHARE: f64 = 0.08;
const BURST: u32 = 4;

/// What to send where.
#[derive(Clone, Debug)]
pub struct TrafficSettings {
    /// Host and port of the gateway's data listener.
    pub gateway: Authority,
    /// Mean requests per second. Zero sends nothing.
    pub rate: f64,
    /// Repeats the requests of an earlier run, in order.
    pub seed: u64,
    /// Models that are asked for. Must not be empty.
    pub models: Vec<String>,
}

/// What became of the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficReport {
    /// Requests sent.
    pub sent: u64,
    /// Requests that came when too many were open, and were not sent.
    pub skipped: u64,
    /// Answered with success, to the end.
    pub completed: u64,
    /// Left by the client in the middle of the stream, as planned.
    pub left: u64,
    /// Answered with 4xx.
    pub refused: u64,
    /// Answered with 5xx.
    pub failed: u64,
    /// No answer, a broken one, or one that took too long.
    pub broken: u64,
    /// Still open at the stop, and then given up.
    pub open: u64,
}

/// How one request ended.
#[derive(Clone, Copy, Debug)]
enum Ended {
    Completed,
    Left,
    Refused,
    Failed,
    Broken,
}

impl TrafficReport {
    fn count(&mut self, ended: Ended) {
        let count = match ended {
            Ended::Completed => &mut self.completed,
            Ended::Left => &mut self.left,
            Ended::Refused => &mut self.refused,
            Ended::Failed => &mut self.failed,
            Ended::Broken => &mut self.broken,
        };
        *count += 1;
    }
}

/// When requests come: at random moments, some of them several at once.
struct Arrivals {
    draws: Draws,
    rate: f64,
}

impl Arrivals {
    /// How long after the last arrival the next one is, and how many requests it brings.
    fn next(&mut self) -> (Duration, u32) {
        let burst = if self.draws.unit() < BURST_SHARE { BURST } else { 1 };
        let mean_burst = 1.0 + BURST_SHARE * f64::from(BURST - 1);
        let mean_gap_seconds = mean_burst / self.rate;
        (Duration::from_secs_f64(-(1.0 - self.draws.unit()).ln() * mean_gap_seconds), burst)
    }
}

/// Sends traffic until `stop` is ready; open requests are then given up.
pub async fn run(settings: TrafficSettings, stop: impl Future<Output = ()>) -> TrafficReport {
    run_until(settings, stop, |_| false).await
}

/// The same, or until what became of it is enough.
async fn run_until(
    settings: TrafficSettings,
    stop: impl Future<Output = ()>,
    is_enough: impl Fn(&TrafficReport) -> bool,
) -> TrafficReport {
    let mut report = TrafficReport::default();
    let mut stop = pin!(stop);
    if settings.rate <= 0.0 {
        stop.await;
        return report;
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut planner = Planner::new(settings.seed, settings.models);
    let mut arrivals = Arrivals { draws: Draws::of(settings.seed, u64::MAX), rate: settings.rate };
    let mut open = JoinSet::new();
    let (gap, mut burst) = arrivals.next();
    let mut due = Instant::now() + gap;
    while !is_enough(&report) {
        tokio::select! {
            () = &mut stop => break,
            () = sleep_until(due) => {
                for plan in (0..burst).map(|_| planner.next()) {
                    if open.len() >= IN_FLIGHT_MAX {
                        report.skipped += 1;
                        continue;
                    }
                    report.sent += 1;
                    open.spawn(perform(client.clone(), request(&settings.gateway, &plan), plan.leave_after));
                }
                let (gap, requests) = arrivals.next();
                (due, burst) = (due + gap, requests);
            }
            Some(ended) = open.join_next() => report.count(ended.unwrap_or(Ended::Broken)),
        }
    }
    while let Some(ended) = open.try_join_next() {
        report.count(ended.unwrap_or(Ended::Broken));
    }
    report.open = open.len() as u64;
    report
}

fn request(gateway: &Authority, plan: &Plan) -> Request<Full<Bytes>> {
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(gateway.clone());
    let uri = uri.path_and_query(PathAndQuery::from_static(plan.path)).build().expect("all three parts are there");
    let mut request = Request::post(uri).body(Full::from(plan.body.clone())).expect("a URI and a method are there");
    request.headers_mut().extend(plan.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    request
}

async fn perform(
    client: Client<HttpConnector, Full<Bytes>>,
    request: Request<Full<Bytes>>,
    leave_after: Option<u32>,
) -> Ended {
    let exchange = async {
        let Ok(response) = client.request(request).await else { return Ended::Broken };
        let status = response.status();
        let mut body = response.into_body();
        let mut events = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Ended::Broken };
            // An event whose end is split over two frames is not counted: the client then leaves a little later.
            events += frame.data_ref().map_or(0, |data| memchr::memmem::find_iter(data, b"\n\n").count() as u32);
            if leave_after.is_some_and(|leave_after| events >= leave_after) && status.is_success() {
                return Ended::Left;
            }
        }
        ended_with(status)
    };
    timeout(REQUEST_TIMEOUT, exchange).await.unwrap_or(Ended::Broken)
}

fn ended_with(status: StatusCode) -> Ended {
    match status {
        status if status.is_server_error() => Ended::Failed,
        status if status.is_client_error() => Ended::Refused,
        _ => Ended::Completed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::sim::{Sim, SimSettings};
    use std::net::{Ipv4Addr, SocketAddr};
    use tokio::sync::oneshot;

    #[test]
    fn arrivals_come_at_the_rate_and_in_bursts() {
        let mut arrivals = Arrivals { draws: Draws::of(3, 3), rate: 8.0 };
        let (mut seconds, mut requests, mut bursts) = (0.0, 0, 0);
        for _ in 0..20_000 {
            let (gap, burst) = arrivals.next();
            seconds += gap.as_secs_f64();
            requests += burst;
            bursts += u32::from(burst > 1);
        }
        let rate = f64::from(requests) / seconds;
        assert!((7.7..8.3).contains(&rate), "{rate}");
        assert!((1_400..1_800).contains(&bursts), "{bursts}");
    }

    /// For traffic that does not come to what is waited for.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Traffic at a fast pod until every kind of end was seen.
    #[tokio::test]
    async fn every_request_has_one_end_and_all_kinds_occur() {
        let settings = SimSettings { model: "m".to_owned(), tokens: Some(40), ..SimSettings::instant() };
        let settings = SimSettings { token_time: Duration::from_millis(1), ..settings };
        let sim = Sim::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), settings).await.unwrap();
        let gateway: Authority = sim.address().to_string().parse().unwrap();
        let (stop_sim, sim_stopped) = oneshot::channel::<()>();
        let traffic = TrafficSettings { gateway, rate: 200.0, seed: 5, models: vec!["m".to_owned()] };
        let (report, ()) = tokio::join!(
            async {
                let all_kinds =
                    |report: &TrafficReport| report.completed >= 100 && report.left > 0 && report.refused > 0;
                let report = run_until(traffic, tokio::time::sleep(PATIENCE), all_kinds).await;
                stop_sim.send(()).unwrap();
                report
            },
            sim.run(async { sim_stopped.await.unwrap_or(()) }),
        );
        let ends = report.completed + report.left + report.refused + report.failed + report.broken + report.open;
        assert_eq!(report.sent, ends, "{report:?}");
        assert!(report.completed >= 100 && report.left > 0 && report.refused > 0, "{report:?}");
        assert_eq!((report.failed, report.broken, report.skipped), (0, 0, 0), "{report:?}");
    }

    #[tokio::test]
    async fn a_gateway_that_is_not_there_is_not_an_error_of_the_traffic() {
        let gateway = Authority::from_static("127.0.0.1:1");
        let settings = TrafficSettings { gateway, rate: 1_000.0, seed: 5, models: vec!["m".to_owned()] };
        let report = run_until(settings, tokio::time::sleep(PATIENCE), |report| report.broken > 0).await;
        assert_eq!(report.broken + report.open, report.sent, "{report:?}");
        assert!(report.broken > 0, "{report:?}");
    }

    #[tokio::test]
    async fn no_rate_is_no_traffic() {
        let gateway = Authority::from_static("127.0.0.1:1");
        let settings = TrafficSettings { gateway, rate: 0.0, seed: 5, models: vec!["m".to_owned()] };
        assert_eq!(run(settings, std::future::ready(())).await, TrafficReport::default());
    }
}

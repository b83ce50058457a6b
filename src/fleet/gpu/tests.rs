//! GPUs against real sockets: exporters that are scripted, and those of simulated pods.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::super::tests::{AGES, MS, Pod, Reply, Running, ok, start, until};
use super::super::{ExporterSettings, GpuId, GpusOf, PodGpus, Settings, TargetSettings};
use super::MISSED_AFTER;
use crate::demo::sim::{Sim, SimSettings};
use crate::snapshot::{Freshness, GpuExporter, Quantity, Reading, Source};

const GPU: [Quantity; 2] = [Quantity::GpuUtilization, Quantity::GpuMemoryUtilization];

/// One GPU's lines: its place, whose it is, how busy and how full.
fn gpu(index: u32, pod: &str, busy: u32, used: u32) -> String {
    let labels = format!("{{gpu=\"{index}\",UUID=\"GPU-{index}\",pod=\"{pod}\",namespace=\"llm\",container=\"vllm\"}}");
    format!(
        "DCGM_FI_DEV_GPU_UTIL{labels} {busy}\nDCGM_FI_DEV_FB_USED{labels} {used}\nDCGM_FI_DEV_FB_FREE{labels} {}\n\
         DCGM_FI_DEV_FB_RESERVED{labels} 10\n",
        90 - used
    )
}

async fn exporter(page: Reply) -> Pod {
    Pod::start(page, ok("")).await
}

/// An exporter's entry in the configuration.
fn entry(node: &str, exporter: &Pod) -> ExporterSettings {
    ExporterSettings { node: node.into(), url: format!("http://{}/metrics", exporter.address) }
}

fn named(pod: &str) -> Option<GpusOf> {
    Some(GpusOf::Pod(PodGpus { pod: pod.into(), ..PodGpus::default() }))
}

/// Targets `t0`, `t1`, … that nobody answers for, with these GPUs, and these exporters.
fn fleet(gpus_of: &[Option<GpusOf>], exporters: Vec<ExporterSettings>, change: impl FnOnce(&mut Settings)) -> Running {
    start(&[], |settings| {
        let target = |(n, gpus_of): (usize, &Option<GpusOf>)| TargetSettings {
            gpus_of: gpus_of.clone(),
            ..TargetSettings::new(&format!("t{n}"), "127.0.0.1:1")
        };
        settings.targets = gpus_of.iter().enumerate().map(target).collect();
        settings.gpu_exporters = exporters;
        settings.gpu_poll_interval = 10 * MS;
        settings.gpu_fresh_within = AGES;
        change(settings);
    })
}

impl Running {
    fn gpus(&self, target: usize) -> [Option<f64>; 2] {
        GPU.map(|quantity| self.reading(target, quantity).value)
    }

    fn uuids(&self, target: usize) -> Vec<String> {
        let uuids = self.member(target).sample.gpu_uuids.clone();
        uuids.iter().flat_map(|uuids| uuids.iter()).map(ToString::to_string).collect()
    }

    fn gpu_problem(&self, target: u32) -> Option<String> {
        self.fleet.gpus().problem(target).map(str::to_owned)
    }

    fn exporter(&self, place: usize) -> GpuExporter {
        self.fleet.gpus().exporters.swap_remove(place)
    }
}

#[tokio::test]
async fn one_page_is_read_for_all_targets_of_its_node_by_pod_and_by_place() {
    let page = [gpu(0, "v-0", 60, 90), gpu(1, "v-0", 20, 10), gpu(2, "v-1", 50, 30)].concat();
    let node = exporter(ok(&page)).await;
    let of_node = GpusOf::Node { node: "n".into(), ids: vec![GpuId::Index(2)] };
    let targets = [named("v-0"), named("v-1"), Some(of_node), named("v-9"), None];
    let running = fleet(&targets, vec![entry("n", &node)], |_| {});
    assert_eq!(*running.member(0).sample.reading(GPU[0]), Reading::MISSING, "before the first page");
    until("all are known", || (0..3).all(|target| running.gpus(target)[1].is_some())).await;

    assert_eq!(running.gpus(0), [Some(0.4), Some(0.5)], "the mean, and what is used of all there is");
    assert_eq!((running.uuids(0), running.member(0).sample.gpus()), (vec!["GPU-0".into(), "GPU-1".into()], Some(2)));
    for target in [1, 2] {
        assert_eq!((running.gpus(target), running.uuids(target)), ([Some(0.5), Some(0.3)], vec!["GPU-2".to_owned()]));
    }
    let reading = running.reading(0, GPU[0]);
    assert_eq!((reading.source, reading.freshness), (Some(Source::Dcgm), Freshness::Fresh));
    assert_eq!(*running.member(3).sample.reading(GPU[0]), Reading::MISSING, "no exporter knows its pod");
    assert_eq!(running.gpu_problem(3).as_deref(), Some("no exporter has told of its GPUs yet"));
    assert_eq!(*running.member(4).sample.reading(GPU[0]), Reading::UNSUPPORTED, "nobody is asked about it");
    assert_eq!((running.gpu_problem(0), running.gpu_problem(4)), (None, None));
    let exporter = running.exporter(0);
    assert_eq!((&*exporter.node, exporter.gpus, exporter.garbage_lines, exporter.error), ("n", 3, 0, None));
    assert!(running.metrics.page().contains("snapgate_gpu_exporter_scrapes_total{node=\"n\"}"));
}

#[tokio::test]
async fn exporters_come_and_go_and_who_stays_is_read_on() {
    let [first, second] = [exporter(ok(&gpu(0, "v-0", 60, 90))).await, exporter(ok(&gpu(0, "v-1", 50, 30))).await];
    let running = fleet(&[named("v-0"), named("v-1")], vec![entry("a", &first)], |_| {});
    until("the first tells", || running.gpus(0)[0] == Some(0.6)).await;
    let scrapes = "snapgate_gpu_exporter_scrapes_total{node=";
    running.fleet.set_gpu_exporters(&[entry("a", &first), entry("b", &second)]);
    until("the second tells, too", || running.gpus(1)[0] == Some(0.5)).await;
    assert_eq!((running.gpu_problem(0), running.gpu_problem(1)), (None, None));
    assert_eq!(running.metrics.page().matches(scrapes).count(), 2);

    running.fleet.set_gpu_exporters(&[entry("b", &second)]);
    let gone = "the exporter of a tells of its GPUs no more";
    until("the first is gone", || running.gpu_problem(0).as_deref() == Some(gone)).await;
    assert_eq!((running.gpus(0)[0], running.gpu_problem(1)), (Some(0.6), None), "what it has said ages");
    assert_eq!((running.exporter(0).node.to_string(), running.fleet.gpus().exporters.len()), ("b".to_owned(), 1));
    assert_eq!(running.metrics.page().matches(scrapes).count(), 1);

    // The node has another exporter, at an address of its own.
    let moved = exporter(ok(&[gpu(0, "v-0", 70, 20), gpu(1, "v-1", 10, 10)].concat())).await;
    running.fleet.set_gpu_exporters(&[entry("b", &moved)]);
    until("it tells of both", || running.gpus(0)[0] == Some(0.7) && running.gpus(1)[0] == Some(0.1)).await;
    until("and nothing is wrong", || running.gpu_problem(0).is_none() && running.gpu_problem(1).is_none()).await;
}

#[tokio::test]
async fn values_age_while_an_exporter_is_away_and_freshen_when_it_is_back_and_no_others_do() {
    let node = exporter(ok(&gpu(0, "v-0", 60, 90))).await;
    let engine = Pod::start(ok("vllm:num_requests_waiting 3\n"), ok("")).await;
    let running = fleet(&[named("v-0")], vec![entry("n", &node)], |settings| {
        settings.targets[0].address.clone_from(&engine.address);
        settings.gpu_fresh_within = 300 * MS;
    });
    until("known", || running.reading(0, GPU[0]).fresh() == Some(0.6)).await;
    let first = running.reading(0, GPU[0]).observed;
    for gone in [Reply::Answer(503, "starting".into()), Reply::Hang, Reply::Raw("HTTP/1.1 200 OK\r\n".into())] {
        node.metrics(gone);
        until("stale", || running.reading(0, GPU[0]).freshness == Freshness::Stale).await;
        assert_eq!(running.reading(0, Quantity::Waiting).fresh(), Some(3.0), "the engine's are fresh all the while");
        assert_eq!((running.gpus(0)[0], running.uuids(0)), (Some(0.6), vec!["GPU-0".to_owned()]), "the last stays");
        until("failures are told", || running.exporter(0).failures > 0).await;
        node.metrics(ok(&gpu(0, "v-0", 60, 90)));
        until("fresh again", || running.reading(0, GPU[0]).fresh() == Some(0.6)).await;
        until("and no failure", || running.exporter(0).error.is_none()).await;
    }
    assert!(running.reading(0, GPU[0]).observed > first);
}

#[tokio::test]
async fn every_way_an_exporter_fails_is_told_apart() {
    let good = gpu(0, "v-0", 60, 90);
    let cut = format!("HTTP/1.1 200 OK\r\ncontent-length: 990\r\n\r\n{good}");
    let cases = [
        (Reply::Hang, "timeout", "no complete answer within"),
        (Reply::Late(AGES, good.clone()), "timeout", "no complete answer within"),
        (Reply::Endless, "too_large", "longer than 1000 bytes"),
        (Reply::Answer(404, good.clone()), "status", "status 404"),
        (Reply::Raw(cut), "broken", "broke within the answer"),
        (ok("<!doctype html>\n"), "not_metrics", "no metrics"),
        (ok("node_cpu_seconds_total 3\n"), "no_gpu_series", "none of DCGM's"),
        (ok("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} 5\n"), "no_gpu_series", "none of DCGM's"),
    ];
    let mut nodes = Vec::new();
    for (reply, ..) in &cases {
        nodes.push(exporter(reply.clone()).await);
    }
    let entries = nodes.iter().enumerate().map(|(n, node)| entry(&format!("n{n}"), node)).collect();
    let running = fleet(&[named("v-0")], entries, |settings| {
        settings.poll_timeout = 200 * MS;
        settings.poll_bytes_max = 1000;
    });
    for (place, (_, reason, words)) in cases.iter().enumerate() {
        // While this machine is busy, an answer may come too late and be a timeout, too.
        until(&format!("{reason} of {place}: {words}"), || {
            let exporter = running.exporter(place);
            exporter.failures >= 2 && exporter.error.is_some_and(|error| error.contains(words))
        })
        .await;
        let counted = format!("snapgate_gpu_exporter_scrape_failures_total{{node=\"n{place}\",reason=\"{reason}\"}}");
        assert!(running.metrics.page().contains(&counted), "{counted}");
    }
    assert_eq!(*running.member(0).sample.reading(GPU[0]), Reading::MISSING);
}

#[tokio::test]
async fn what_is_garbage_on_a_page_is_counted_and_the_rest_is_taken() {
    let page = gpu(0, "v-0", 60, 90) + "DCGM_FI_DEV_GPU_UTIL{broken 5\nDCGM_FI_DEV_GPU_UTIL{UUID=\"GPU-7\"} 500\n";
    let node = exporter(ok(&page)).await;
    let running = fleet(&[named("v-0")], vec![entry("n", &node)], |_| {});
    until("known", || running.gpus(0) == [Some(0.6), Some(0.9)]).await;
    until("counted", || running.exporter(0).garbage_lines == 2).await;
}

#[tokio::test]
async fn two_exporters_that_claim_one_pod_are_believed_neither_until_one_lets_go() {
    let nodes = [exporter(ok(&gpu(0, "v-0", 60, 90))).await, exporter(ok(&gpu(1, "other", 0, 0))).await];
    let entries = vec![entry("a", &nodes[0]), entry("b", &nodes[1])];
    let pinned = GpusOf::Pod(PodGpus { pod: "v-0".into(), node: Some("b".into()), ..PodGpus::default() });
    let running = fleet(&[named("v-0"), Some(pinned)], entries, |_| {});
    until("known", || running.gpus(0) == [Some(0.6), Some(0.9)]).await;
    assert_eq!(running.gpus(1), [None, None], "the other node's is not asked");

    nodes[1].metrics(ok(&gpu(1, "v-0", 10, 20)));
    until("a problem", || running.gpu_problem(0).is_some_and(|problem| problem.contains("both tell of its GPUs")))
        .await;
    assert_eq!((running.gpus(0), running.uuids(0)), ([Some(0.6), Some(0.9)], vec!["GPU-0".to_owned()]));
    until("the pinned one knows", || running.gpus(1) == [Some(0.1), Some(0.2)]).await;
    until("the problem is counted", || running.metrics.page().contains("snapgate_gpu_problem_targets 1")).await;

    nodes[0].metrics(ok(&gpu(0, "other", 0, 0)));
    until("it has moved", || running.gpus(0) == [Some(0.1), Some(0.2)]).await;
    until("no problem", || running.gpu_problem(0).is_none()).await;
    assert_eq!(running.uuids(0), ["GPU-1"]);

    nodes[1].metrics(ok(&gpu(1, "other", 0, 0)));
    let gone = "the exporter of b tells of its GPUs no more";
    until("gone", || running.gpu_problem(0).as_deref() == Some(gone)).await;
}

#[tokio::test]
async fn the_configured_number_wins_and_a_disagreement_is_told() {
    let node = exporter(ok(&gpu(0, "v-0", 60, 90))).await;
    let missing = GpusOf::Node { node: "n".into(), ids: vec![GpuId::Index(0), GpuId::Index(1)] };
    let running = fleet(&[named("v-0"), Some(missing)], vec![entry("n", &node)], |settings| {
        settings.targets[0].gpus = Some(4);
    });
    until("known", || running.gpus(0) == [Some(0.6), Some(0.9)]).await;
    assert_eq!(running.member(0).sample.gpus(), Some(4));
    let words = "4 GPUs are configured, and the exporter of n tells of 1";
    assert_eq!(running.gpu_problem(0).as_deref(), Some(words));
    until("the missing one is told", || running.gpu_problem(1).as_deref() == Some("n has no GPU 1")).await;
    assert_eq!(running.gpus(1), [None, None], "half of them say nothing of both");
}

#[tokio::test]
async fn a_target_that_gets_other_gpus_forgets_those_it_had() {
    let node = exporter(ok(&[gpu(0, "v-0", 60, 90), gpu(1, "v-1", 10, 20)].concat())).await;
    let running = fleet(&[named("v-0")], vec![entry("n", &node)], |_| {});
    until("known", || running.gpus(0) == [Some(0.6), Some(0.9)]).await;
    let other = |pod: &str| TargetSettings { gpus_of: named(pod), ..TargetSettings::new("t0", "127.0.0.1:1") };
    running.fleet.set_targets(&[other("v-9")], None);
    assert_eq!((running.gpus(0), running.uuids(0).len()), ([None, None], 0));
    running.fleet.set_targets(&[other("v-1")], None);
    until("the others", || running.gpus(0) == [Some(0.1), Some(0.2)]).await;
}

#[tokio::test]
async fn a_target_that_is_described_otherwise_while_an_exporter_is_away_hears_that_its_gpus_are_gone() {
    let node = exporter(ok(&gpu(0, "v-0", 60, 90))).await;
    let running = fleet(&[named("v-0")], vec![entry("n", &node)], |settings| settings.poll_timeout = 200 * MS);
    until("known", || running.gpus(0) == [Some(0.6), Some(0.9)]).await;
    node.metrics(Reply::Hang);
    until("the exporter is away", || running.exporter(0).failures > 0).await;
    let models = vec!["m".into()];
    let otherwise = TargetSettings { gpus_of: named("v-0"), models, ..TargetSettings::new("t0", "127.0.0.1:1") };
    assert_eq!(running.fleet.set_targets(&[otherwise], None).kept, 1);
    assert_eq!(running.gpu_problem(0), None);
    node.metrics(ok(&gpu(0, "other", 0, 0)));
    let gone = "the exporter of n tells of its GPUs no more";
    until("gone", || running.gpu_problem(0).as_deref() == Some(gone)).await;
}

#[tokio::test]
async fn a_pod_that_no_exporter_tells_of_is_explained_when_all_have_been_read() {
    let nodes = [exporter(ok(&gpu(0, "v-0", 60, 90))).await, exporter(Reply::Hang).await];
    let entries = vec![entry("a", &nodes[0]), entry("b", &nodes[1])];
    let pod = |name: &str, namespace: &str, node: Option<&str>| {
        let (namespace, node) = (Some(namespace.to_owned()), node.map(str::to_owned));
        Some(GpusOf::Pod(PodGpus { pod: name.into(), namespace, node, ..PodGpus::default() }))
    };
    let targets =
        [pod("v-0", "test", None), pod("v-9", "llm", None), pod("v-0", "llm", None), pod("x", "y", Some("a"))];
    let running = fleet(&targets, entries, |settings| settings.poll_timeout = 200 * MS);
    let explain = |now| {
        let slots: Vec<_> = running.fleet.roster().slots().iter().map(Arc::clone).collect();
        running.fleet.watch.gpus.explain(&slots, now);
    };
    let none_yet = Some("no exporter has told of its GPUs yet".to_owned());
    until("one is read", || running.gpus(2)[0].is_some()).await;
    until("and the other is not", || running.exporter(1).failures > 0).await;
    let later = Instant::now() + MISSED_AFTER;
    explain(later);
    assert_eq!(running.gpu_problem(0), none_yet, "the other one may tell of it");
    let pinned = "no exporter tells of GPUs of pod x in namespace y on node a";
    assert_eq!(running.gpu_problem(3).as_deref(), Some(pinned));
    nodes[1].metrics(ok(&gpu(1, "other", 0, 0)));
    until("the other is read", || running.exporter(1).read.is_some()).await;
    explain(Instant::now());
    assert_eq!(running.gpu_problem(0), none_yet, "it may be too new for a page");
    explain(later);
    let words =
        "no exporter tells of GPUs of pod v-0 in namespace test, but of one of this name in llm (container vllm)";
    assert_eq!(running.gpu_problem(0).as_deref(), Some(words));
    let words = "no exporter tells of GPUs of pod v-9 in namespace llm";
    assert_eq!((running.gpu_problem(1).as_deref(), running.gpu_problem(2)), (Some(words), None));
    nodes[1].metrics(ok(&gpu(1, "v-9", 10, 20)));
    until("it is told of", || running.gpu_problem(1).is_none()).await;
}

#[tokio::test]
async fn exporters_that_name_no_pods_are_told_so() {
    let node = exporter(ok("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",UUID=\"GPU-0\"} 5\n")).await;
    let running = fleet(&[named("v-0")], vec![entry("n", &node)], |_| {});
    until("it is read", || running.exporter(0).read.is_some()).await;
    let slots: Vec<_> = running.fleet.roster().slots().iter().map(Arc::clone).collect();
    running.fleet.watch.gpus.explain(&slots, Instant::now() + MISSED_AFTER);
    assert!(running.gpu_problem(0).is_some_and(|problem| problem.contains("DCGM_EXPORTER_KUBERNETES")));
}

#[tokio::test]
async fn a_simulated_pods_gpus_are_read_as_an_exporters_are() {
    let settings = SimSettings { name: "sim-1".into(), gpus: 2, ..SimSettings::instant() };
    let sim = Sim::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), settings).await.unwrap();
    let url = format!("http://{}/dcgm/metrics", sim.address());
    let mut serving = JoinSet::new();
    serving.spawn(sim.run(std::future::pending()));
    let running = fleet(&[named("sim-1")], vec![ExporterSettings { node: "n".into(), url }], |_| {});
    until("known", || running.gpus(0)[1].is_some_and(|memory| (0.9..1.0).contains(&memory))).await;
    assert_eq!((running.gpus(0)[0], running.member(0).sample.gpus()), (Some(0.0), Some(2)), "nothing runs there");
}

//! A pod that comes while others are busy: it gets its part at once, and not all there is.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use serde_json::{Value, json};

use super::completion;
use crate::gateway::{Exchange, Gateway, PATIENCE, Setup, Then, Upstream, until};

/// Policies that compare what pods have to do.
const COMPARING: [&str; 4] = ["least_request", "power_of_two", "least_queue", "least_kv_cache"];

/// Pods that are there already, and what each of them has to do.
const OLD: usize = 3;
const EACH: usize = 4;

/// Requests that come after the newcomer: enough to fill it beyond the others, if it got all of them.
const MORE: usize = 12;

/// The share of the KV cache that one request has.
const KV_SHARE: f64 = 0.05;

/// Holds requests, and pages too when those are to stand still, until it opens.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
    pages_stand_still: AtomicBool,
}

impl Gate {
    fn wait(&self) {
        let is_open = self.is_open.lock().expect("nobody panics with it in hand");
        // If it never opens, the test fails elsewhere.
        drop(self.opened.wait_timeout_while(is_open, PATIENCE, |is_open| !*is_open));
    }

    fn open(&self) {
        *self.is_open.lock().expect("nobody panics with it in hand") = true;
        self.opened.notify_all();
    }
}

/// A pod whose page says what it has to do.
struct Pod {
    upstream: Upstream,
    held: Arc<AtomicUsize>,
}

impl Pod {
    fn start(gate: &Arc<Gate>) -> Self {
        let (held, gate) = (Arc::<AtomicUsize>::default(), Arc::clone(gate));
        let count = Arc::clone(&held);
        let upstream = Upstream::start(move |exchange: &mut Exchange<'_>| {
            if exchange.request.head.path() == "/page" {
                if gate.pages_stand_still.load(Relaxed) {
                    gate.wait();
                }
                let running = count.load(Relaxed);
                let kv = running as f64 * KV_SHARE;
                exchange.answer(
                    "200 OK",
                    "",
                    &format!(
                        "vllm:num_requests_waiting 0\nvllm:num_requests_running {running}\nvllm:kv_cache_usage_perc {kv}\n"
                    ),
                );
            } else {
                count.fetch_add(1, Relaxed);
                gate.wait();
                exchange.answer("200 OK", "", "{}");
            }
            Then::Next
        });
        Self { upstream, held }
    }

    fn held(&self) -> usize {
        self.held.load(Relaxed)
    }
}

/// The running requests of each target, as its page has them; of those whose state is fresh.
fn running(gateway: &Gateway) -> Vec<Value> {
    let page = gateway.admin("/v1/fleet");
    let targets = page.list("/targets").iter().filter(|target| target["health"] == "healthy");
    let fresh = targets.map(|target| &target["state"]).filter(|state| state["running_freshness"] == "fresh");
    fresh.map(|state| state["running"].clone()).collect()
}

#[test]
fn a_newcomer_gets_no_more_at_once_than_the_others_have() {
    for policy in COMPARING {
        let gate = Arc::<Gate>::default();
        let pods: Vec<_> = (0..=OLD).map(|_| Pod::start(&gate)).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("targets.json");
        let list = |pods: &[Pod]| {
            let urls: Vec<_> = pods.iter().map(|pod| format!("http://{}", pod.upstream.address)).collect();
            fs::write(path.with_extension("next"), json!(urls).to_string()).expect("the file can be written");
            fs::rename(path.with_extension("next"), &path).expect("the file can be moved");
        };
        list(&pods[..OLD]);
        let source =
            format!(r#"[{{ kind = "file", path = "{}", interval = "10ms", metrics = "/page" }}]"#, path.display());
        let gateway = Setup::before(&[])
            .set("discovery", source)
            .set("policy", policy)
            .set("fleet.poll_interval", "50ms")
            .set("fleet.poll_timeout", "60s")
            .set("fleet.fresh_within", "1h")
            .start();
        until("all are known", || (running(&gateway) == vec![json!(0); OLD]).then_some(()));
        let held = || pods.iter().map(Pod::held).collect::<Vec<_>>();
        thread::scope(|scope| {
            let mut asked = Vec::new();
            let mut ask = || {
                asked.push(scope.spawn(|| gateway.ask(&completion()).status));
                let total = asked.len();
                until("a pod has it", || (held().iter().sum::<usize>() == total).then_some(()));
            };
            (0..OLD * EACH).for_each(|_| ask());
            list(&pods);
            until("the newcomer is known, and what the others have to do", || {
                let mut running: Vec<_> = running(&gateway).iter().map(Value::as_u64).collect();
                let mut held: Vec<_> = held().into_iter().map(|held| Some(held as u64)).collect();
                running.sort_unstable();
                held.sort_unstable();
                (running == held).then_some(())
            });
            // From here on the engines' own numbers are those of the last page.
            gate.pages_stand_still.store(true, Relaxed);
            for _request in 0..MORE {
                ask();
                let (new, most) = (pods[OLD].held(), pods[..OLD].iter().map(Pod::held).max());
                // Of equals one is drawn, and then has one more.
                assert!(Some(new) <= most.map(|most| most + 1), "{policy}: {:?}", held());
            }
            assert!(pods[OLD].held() > 1, "{policy}: it gets its part: {:?}", held());
            gate.open();
            for answered in asked {
                assert_eq!(answered.join().expect("it is answered"), 200);
            }
        });
    }
}

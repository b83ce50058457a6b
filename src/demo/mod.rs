//! The demonstration: simulated pods, traffic for them, and a tour of what the gateway recorded.
//!
//! [`sim`] is a simulated vLLM pod, also behind `snapgate sim`, the tests and the benchmarks; [`traffic`] sends varied
//! requests to a gateway; [`tour`] makes one request as a person would and shows its snapshot.

mod draws;
mod show;
pub mod sim;
pub mod tour;
pub mod traffic;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

pub use show::{DemoError, Settings, run};
use sim::{Sim, SimSettings};

/// What differs from one pod of the demonstration to the next, so that a policy has something to choose by: time to
/// the first token and per token in milliseconds, capacity, KV blocks. With three pods and eight requests a second the
/// last is busy enough to queue whatever the policy is, and none is overrun by an even share.
const POD_KINDS: [(u64, u64, u32, u32); 3] = [(60, 10, 4, 192), (90, 14, 4, 144), (120, 18, 4, 112)];

/// Mean length of an answer in tokens; with the times above answers take half a second to three.
const POD_TOKENS: u32 = 80;

/// How far times and lengths vary.
const POD_JITTER: f64 = 0.4;

/// Simulated pods `vllm-1`, `vllm-2`, … on free ports of the loopback, all with one model and each a little different.
/// They are bound and not yet serving: the caller runs [`Sim::run`] of each.
pub async fn start_sims(count: usize, seed: u64) -> io::Result<Vec<Sim>> {
    let mut sims = Vec::with_capacity(count);
    for index in 0..count {
        sims.push(Sim::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), pod_settings(index, seed)).await?);
    }
    Ok(sims)
}

fn pod_settings(index: usize, seed: u64) -> SimSettings {
    let (ttft_ms, token_ms, capacity, kv_blocks) = POD_KINDS[index % POD_KINDS.len()];
    SimSettings {
        name: format!("vllm-{}", index + 1),
        ttft: Duration::from_millis(ttft_ms),
        token_time: Duration::from_millis(token_ms),
        jitter: POD_JITTER,
        capacity,
        kv_blocks,
        tokens: Some(POD_TOKENS),
        prompt_tokens_details: true,
        per_request_metrics: true,
        gpus: 1,
        seed: Some(seed.wrapping_add(index as u64)),
        ..SimSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_pod_has_its_own_name_address_and_draws_and_the_same_model() {
        let sims = start_sims(4, 7).await.unwrap();
        let distinct = |key: fn(&Sim) -> String| sims.iter().map(key).collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(distinct(|sim| sim.settings().name.clone()), 4);
        assert_eq!(distinct(|sim| sim.address().to_string()), 4);
        assert_eq!(distinct(|sim| format!("{:?}", sim.settings().seed)), 4);
        assert_eq!(distinct(|sim| sim.settings().model.clone()), 1);
        assert_eq!(distinct(|sim| format!("{:?}", sim.settings().token_time)), 3);
    }
}

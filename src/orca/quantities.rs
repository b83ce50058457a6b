//! Which metrics of a report are the gateway's quantities, by the names that engines give them.

use crate::snapshot::{LoadReport, Quantity};

/// The names of each quantity among a report's named metrics, in the order of [`Quantity::ALL`]; the first that is there
/// counts. `queue_depth` and `queue_size` are not here: some mean a share by them.
const NAMES: [&[&str]; Quantity::COUNT] = [
    &["num_requests_waiting", "num_waiting_reqs", "num_queue_reqs"],
    &["num_requests_running", "num_running_reqs"],
    &["kv_cache_usage_perc", "kv_cache_utilization", "gpu_cache_usage_perc", "token_usage"],
    &["prefix_cache_hit_rate", "cache_hit_rate", "gpu_prefix_cache_hit_rate", "kv_cache_hit_rate"],
    &["gpu_utilization", "gpu_util"],
    &["gpu_memory_utilization", "gpu_mem_utilization"],
    &["requests_per_second"],
    &["tokens_per_second", "gen_throughput", "generation_tokens_per_second"],
];

/// Their names among all other metrics.
const OTHER_NAMES: [&[&str]; Quantity::COUNT] = [
    &[],
    &[],
    &["utilization.kv_cache_usage_perc", "utilization.kv_cache_utilization"],
    &[],
    &["utilization.gpu"],
    &["utilization.gpu_memory"],
    &["rps_fractional", "rps"],
    &[],
];

/// Whether a quantity is a share of something, so that more than 1 is no value of it.
const fn is_ratio(quantity: Quantity) -> bool {
    match quantity {
        Quantity::KvCacheUsage
        | Quantity::PrefixCacheHitRatio
        | Quantity::GpuUtilization
        | Quantity::GpuMemoryUtilization => true,
        Quantity::Waiting | Quantity::Running | Quantity::EngineRequestsPerSecond | Quantity::EngineTokensPerSecond => {
            false
        }
    }
}

/// Whether the named metric is a quantity that is a share.
pub(super) fn is_share(name: &str) -> bool {
    Quantity::ALL.into_iter().zip(NAMES).any(|(quantity, names)| is_ratio(quantity) && names.contains(&name))
}

/// What the report says of each quantity, in the order of [`Quantity::ALL`]. `kv_cache_usage_perc` is a share of 1 in spite
/// of its name; whatever is more than 1 is not taken for one.
pub fn quantities(report: &LoadReport) -> [Option<f64>; Quantity::COUNT] {
    Quantity::ALL.map(|quantity| {
        let place = quantity as usize;
        let named = NAMES[place].iter().find_map(|name| report.named(name));
        let value = named.or_else(|| OTHER_NAMES[place].iter().find_map(|name| report.other(name)));
        value.filter(|value| !is_ratio(quantity) || *value <= 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(named: &[(&str, f64)], other: &[(&str, f64)]) -> LoadReport {
        let list = |metrics: &[(&str, f64)]| metrics.iter().map(|(name, value)| ((*name).into(), *value)).collect();
        LoadReport { named_metrics: list(named), other_metrics: list(other) }
    }

    #[test]
    fn every_name_is_its_quantitys() {
        for quantity in Quantity::ALL {
            let place = quantity as usize;
            let named = NAMES[place].iter().map(|name| report(&[(name, 0.5)], &[]));
            let other = OTHER_NAMES[place].iter().map(|name| report(&[], &[(name, 0.5)]));
            for report in named.chain(other) {
                let mut expected = [None; Quantity::COUNT];
                expected[place] = Some(0.5);
                assert_eq!(quantities(&report), expected, "{report:?}");
            }
        }
    }

    #[test]
    fn a_percentage_is_not_taken_for_a_share() {
        let percent = report(&[("kv_cache_usage_perc", 41.0), ("num_requests_waiting", 41.0)], &[]);
        assert_eq!(quantities(&percent)[..3], [Some(41.0), None, None]);
        assert!(is_share("kv_cache_usage_perc") && !is_share("num_requests_waiting"));
    }

    #[test]
    fn what_vllm_calls_a_quantity_goes_before_other_names_of_it() {
        let both = report(&[("num_queue_reqs", 7.0), ("num_requests_waiting", 3.0)], &[]);
        assert_eq!(quantities(&both)[0], Some(3.0));
    }
}

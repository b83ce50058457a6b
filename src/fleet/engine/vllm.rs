//! vLLM, version 1 engine: compared with pages of a real 0.32.0 (`tests/fixtures/vllm-0.32.0`).

use super::table::{Input, Table};

pub(super) const TABLE: Table = Table {
    name: "vllm",
    tried: true,
    rows: &[
        (Input::Waiting, &["vllm:num_requests_waiting"]),
        (Input::Running, &["vllm:num_requests_running"]),
        (Input::KvCacheUsage, &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"]),
        // Both count tokens, not requests.
        (Input::PrefixQueries, &["vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries"]),
        (Input::PrefixHits, &["vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits"]),
        // One series per finish reason: aborted and failed requests have finished, too.
        (Input::Requests, &["vllm:request_success"]),
        (Input::Tokens, &["vllm:generation_tokens"]),
    ],
    from_zero: &[],
    queue_time: None,
};

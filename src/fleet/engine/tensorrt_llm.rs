//! TensorRT-LLM's `trtllm-serve` (`/prometheus/metrics`): by documentation, not tried. It needs iteration statistics turned on.

use super::table::{Input, Table};

pub(super) const TABLE: Table = Table {
    name: "tensorrt_llm",
    tried: false,
    rows: &[
        (Input::Waiting, &["trtllm_num_requests_waiting"]),
        (Input::Running, &["trtllm_num_requests_running"]),
        (Input::KvCacheUsage, &["trtllm_kv_cache_utilization"]),
        // Blocks, not tokens.
        (Input::PrefixHits, &["trtllm_kv_cache_reused_blocks"]),
        (Input::PrefixMisses, &["trtllm_kv_cache_missed_blocks"]),
        (Input::Requests, &["trtllm_request_success"]),
        (Input::Tokens, &["trtllm_generation_tokens"]),
    ],
    from_zero: &[],
    queue_time: None,
};

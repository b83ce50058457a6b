//! Triton with its TensorRT-LLM backend (`:8002/metrics`): by documentation, not tried.

use super::table::{Input, Table};

pub(super) const TABLE: Table = Table {
    name: "triton",
    tried: false,
    rows: &[
        (Input::Waiting, &["nv_trt_llm_request_metrics{request_type=\"waiting\"}"]),
        (Input::Running, &["nv_trt_llm_request_metrics{request_type=\"active\"}"]),
        (Input::KvCacheUsage, &["nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\"}"]),
        // Of the busiest GPU.
        (Input::GpuUtilization, &["nv_gpu_utilization"]),
        (Input::Requests, &["nv_inference_request_success"]),
    ],
    from_zero: &[],
    queue_time: None,
};

//! Metrics pages of engines.

use std::time::{Duration, Instant};

use snapgate::fleet::{AUTO, Engines, Observation, Pages};
use snapgate::snapshot::Quantity;

use crate::attack::Parser;

pub(crate) const PARSER: Parser = Parser {
    name: "prometheus",
    fixtures: &[],
    words: &[
        "\n",
        "\r\n",
        "# HELP x ",
        "# TYPE vllm:num_requests_running gauge\n",
        "# EOF\n",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:request_success_total",
        "vllm:generation_tokens_total",
        "sglang:num_queue_reqs",
        "sglang:token_usage",
        "sglang:prompt_tokens_total",
        "sglang:cached_tokens_total",
        "sglang:num_requests_total",
        "nv_trt_llm_request_metrics",
        "nv_trt_llm_kv_cache_block_metrics",
        "nv_gpu_utilization",
        "nv_inference_request_success",
        "{model=\"m\",request_type=\"waiting\",version=\"1\"}",
        "{request_type=\"active\"}",
        "{kv_cache_block_type=\"fraction\"}",
        "_total",
        "_created",
        "{engine=\"0\"}",
        "{engine=\"1\",}",
        "{a=\"\\\"\\\\\\n\"}",
        "{}",
        " # {trace_id=\"t\"} 0.5",
        " 1795435755941",
        " ",
        "\t",
    ],
    bytes_max: 16 << 10,
    read,
};

/// By the engines that are recognised, and by one whose series are told apart by a label.
fn read(bytes: &[u8]) -> String {
    [AUTO, "triton"].map(|engine| read_as(engine, bytes)).concat()
}

/// Whatever comes: values that can be true, no more garbage than lines, and the same garbage however lines are handed over.
fn read_as(engine: &str, bytes: &[u8]) -> String {
    let (mut pages, start) = (Pages::new(Engines::new(&[]).possible(engine), Duration::from_secs(10)), Instant::now());
    let first = pages.read(bytes, start);
    check(first.as_ref(), bytes);
    // A part of the page, and the page again: counters fall and grow.
    let half = &bytes[..bytes.len() / 2];
    let at_a_line = memchr::memrchr(b'\n', half).map_or(0, |end| end + 1);
    let (top, bottom) = bytes.split_at(at_a_line);
    let parts = [top, half, bottom, bytes].map(|part| {
        let read = pages.read(part, start + Duration::from_secs(1));
        check(read.as_ref(), part);
        read
    });
    if let (Some(whole), [Some(top), _, Some(bottom), _]) = (&first, &parts) {
        // Only lines of the page's own engine are looked at.
        if [&top.engine, &bottom.engine].iter().all(|engine| **engine == whole.engine) {
            assert_eq!(whole.garbage, top.garbage + bottom.garbage);
        }
    }
    let [.., last] = parts;
    let size = |value: Option<f64>| value.map(|value| value.to_bits().leading_zeros());
    last.map_or_else(String::new, |page| {
        format!("{:?}{:?}{:?}", page.values.map(size), page.garbage.checked_ilog2(), page.absent)
    })
}

fn check(page: Option<&Observation>, text: &[u8]) {
    let Some(page) = page else { return };
    let lines = memchr::memchr_iter(b'\n', text).count() + 1;
    assert!(page.garbage as usize <= lines, "{page:?}");
    for quantity in Quantity::ALL {
        let value = page.values[quantity as usize].unwrap_or(0.0);
        let share =
            matches!(quantity, Quantity::KvCacheUsage | Quantity::PrefixCacheHitRatio | Quantity::GpuUtilization);
        assert!(value.is_finite() && value >= 0.0 && (!share || value <= 1.0), "{quantity:?} is {value}");
    }
}

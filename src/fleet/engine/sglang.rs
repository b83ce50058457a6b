//! SGLang with `--enable-metrics`: names read in its own source, not compared with a running one.

use super::table::{Input, Table};

pub(super) const TABLE: Table = Table {
    name: "sglang",
    tried: false,
    rows: &[
        (Input::Waiting, &["sglang:num_queue_reqs"]),
        (Input::Running, &["sglang:num_running_reqs"]),
        // The fullest of its pools.
        (Input::KvCacheUsage, &["sglang:token_usage"]),
        // Tokens of prompts, and by source those that were cached. `sglang:cache_hit_rate` is of one batch, not of a time.
        (Input::PrefixQueries, &["sglang:prompt_tokens"]),
        (Input::PrefixHits, &["sglang:cached_tokens"]),
        (Input::Requests, &["sglang:num_requests"]),
        (Input::Tokens, &["sglang:generation_tokens"]),
    ],
    // Added to only when a prompt has cached tokens.
    from_zero: &[Input::PrefixHits],
    queue_time: None,
};

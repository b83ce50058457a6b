//! Hugging Face's Text Generation Inference: by documentation, not tried. It says nothing of its KV cache.

use super::queue_time::TimeUnit;
use super::table::{Input, Table};

pub(super) const TABLE: Table = Table {
    name: "tgi",
    tried: false,
    rows: &[
        (Input::Waiting, &["tgi_queue_size"]),
        (Input::Running, &["tgi_batch_current_size"]),
        (Input::Requests, &["tgi_request_success"]),
        // The sum of a histogram grows like a counter.
        (Input::Tokens, &["tgi_request_generated_tokens_sum"]),
    ],
    from_zero: &[],
    // With answers that come in one piece: the head of a stream is sent before the request has waited.
    queue_time: Some(("x-queue-time", TimeUnit::Milliseconds)),
};

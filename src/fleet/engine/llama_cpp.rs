//! llama.cpp's server with `--metrics`: by documentation, not tried. It no longer says how full its KV cache is.

use super::table::{Input, Table};

pub(super) const TABLE: Table = Table {
    name: "llama_cpp",
    tried: false,
    rows: &[
        (Input::Waiting, &["llamacpp:requests_deferred"]),
        (Input::Running, &["llamacpp:requests_processing"]),
        (Input::Tokens, &["llamacpp:tokens_predicted"]),
    ],
    from_zero: &[],
    queue_time: None,
};

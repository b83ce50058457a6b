//! Every name that goes out: the conventions' and our own. `otel/attributes.csv` says what each means, and a test holds the
//! two, and what is really sent, together.
//!
//! The HTTP conventions are stable. Those for GenAI are not: these are the names of the conventions' version 1.41, which
//! most backends know; they have moved to a repository of their own since. Our own names are `snapgate.` and the place of
//! the value in the document.

/// Attributes by the conventions.
pub(super) mod conventions {
    pub(in super::super) const ERROR_TYPE: &str = "error.type";
    pub(in super::super) const HTTP_REQUEST_BODY_SIZE: &str = "http.request.body.size";
    pub(in super::super) const HTTP_REQUEST_METHOD: &str = "http.request.method";
    pub(in super::super) const HTTP_REQUEST_METHOD_ORIGINAL: &str = "http.request.method_original";
    pub(in super::super) const HTTP_REQUEST_RESEND_COUNT: &str = "http.request.resend_count";
    pub(in super::super) const HTTP_RESPONSE_BODY_SIZE: &str = "http.response.body.size";
    pub(in super::super) const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
    pub(in super::super) const HTTP_ROUTE: &str = "http.route";
    pub(in super::super) const K8S_NAMESPACE_NAME: &str = "k8s.namespace.name";
    pub(in super::super) const K8S_NODE_NAME: &str = "k8s.node.name";
    pub(in super::super) const K8S_POD_NAME: &str = "k8s.pod.name";
    pub(in super::super) const K8S_POD_UID: &str = "k8s.pod.uid";
    pub(in super::super) const SERVER_ADDRESS: &str = "server.address";
    pub(in super::super) const SERVER_PORT: &str = "server.port";
    pub(in super::super) const URL_FULL: &str = "url.full";
    pub(in super::super) const URL_PATH: &str = "url.path";
    pub(in super::super) const URL_SCHEME: &str = "url.scheme";
    pub(in super::super) const USER_AGENT_ORIGINAL: &str = "user_agent.original";

    pub(in super::super) const GEN_AI_OPERATION_NAME: &str = "gen_ai.operation.name";
    pub(in super::super) const GEN_AI_PROVIDER_NAME: &str = "gen_ai.provider.name";
    pub(in super::super) const GEN_AI_REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
    pub(in super::super) const GEN_AI_REQUEST_MODEL: &str = "gen_ai.request.model";
    pub(in super::super) const GEN_AI_REQUEST_STREAM: &str = "gen_ai.request.stream";
    pub(in super::super) const GEN_AI_RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
    pub(in super::super) const GEN_AI_RESPONSE_ID: &str = "gen_ai.response.id";
    pub(in super::super) const GEN_AI_RESPONSE_MODEL: &str = "gen_ai.response.model";
    pub(in super::super) const GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
    pub(in super::super) const GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
    pub(in super::super) const GEN_AI_USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    pub(in super::super) const GEN_AI_USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";

    pub(in super::super) const SERVICE_INSTANCE_ID: &str = "service.instance.id";
    pub(in super::super) const SERVICE_NAME: &str = "service.name";
    pub(in super::super) const SERVICE_VERSION: &str = "service.version";

    /// The value of `http.request.method` for a method that the conventions do not know.
    pub(in super::super) const OTHER: &str = "_OTHER";
}

/// Attributes of our own.
pub(super) mod own {
    pub(in super::super) const SNAPSHOT_ID: &str = "snapgate.snapshot.id";
    pub(in super::super) const INSTANCE_TAG: &str = "snapgate.gateway.instance_tag";
    pub(in super::super) const CONFIG: &str = "snapgate.gateway.config";
    pub(in super::super) const CLIENT_REQUEST_ID: &str = "snapgate.request.client_request_id";
    pub(in super::super) const TENANT: &str = "snapgate.request.tenant";

    pub(in super::super) const POLICY: &str = "snapgate.decision.policy";
    pub(in super::super) const REASON: &str = "snapgate.decision.reason";
    pub(in super::super) const TARGET: &str = "snapgate.decision.target";
    pub(in super::super) const FORCED: &str = "snapgate.decision.forced";
    pub(in super::super) const FALLBACK: &str = "snapgate.decision.fallback";
    pub(in super::super) const DECIDED_OFFSET_NS: &str = "snapgate.decision.decided_offset_ns";
    pub(in super::super) const VIEW_AGE_MS: &str = "snapgate.decision.view_age_ms";
    pub(in super::super) const ELIGIBLE: &str = "snapgate.decision.eligible";
    pub(in super::super) const EXCLUDED_UNHEALTHY: &str = "snapgate.decision.excluded.unhealthy";
    pub(in super::super) const EXCLUDED_EJECTED: &str = "snapgate.decision.excluded.ejected";
    pub(in super::super) const EXCLUDED_MODEL: &str = "snapgate.decision.excluded.model";
    pub(in super::super) const EXCLUDED_NO_FRESH_STATE: &str = "snapgate.decision.excluded.no_fresh_state";
    pub(in super::super) const PREFIX_HASH: &str = "snapgate.decision.inputs.prefix_hash";
    pub(in super::super) const SESSION_HASH: &str = "snapgate.decision.inputs.session_hash";

    pub(in super::super) const STATE_IN_FLIGHT: &str = "snapgate.decision.state.gateway_in_flight";
    pub(in super::super) const STATE_REQUESTS_PER_SECOND: &str = "snapgate.decision.state.gateway_requests_per_second";
    pub(in super::super) const STATE_TOKENS_PER_SECOND: &str = "snapgate.decision.state.gateway_tokens_per_second";
    pub(in super::super) const STATE_ENGINE_REQUESTS_PER_GPU: &str =
        "snapgate.decision.state.engine_requests_per_second_per_gpu";
    pub(in super::super) const STATE_ENGINE_TOKENS_PER_GPU: &str =
        "snapgate.decision.state.engine_tokens_per_second_per_gpu";
    pub(in super::super) const STATE_GATEWAY_REQUESTS_PER_GPU: &str =
        "snapgate.decision.state.gateway_requests_per_second_per_gpu";
    pub(in super::super) const STATE_GATEWAY_TOKENS_PER_GPU: &str =
        "snapgate.decision.state.gateway_tokens_per_second_per_gpu";
    pub(in super::super) const STATE_GPUS: &str = "snapgate.decision.state.gpus";
    pub(in super::super) const STATE_GPU_UUIDS: &str = "snapgate.decision.state.gpu_uuids";
    pub(in super::super) const STATE_WINDOW_MS: &str = "snapgate.decision.state.window_ms";

    pub(in super::super) const OUTCOME_TARGET: &str = "snapgate.outcome.target";
    pub(in super::super) const ATTEMPT_COUNT: &str = "snapgate.outcome.attempt_count";
    pub(in super::super) const ENDING: &str = "snapgate.outcome.ending";
    pub(in super::super) const FAULT: &str = "snapgate.outcome.fault";
    pub(in super::super) const ERROR: &str = "snapgate.outcome.error";
    pub(in super::super) const EVENTS: &str = "snapgate.outcome.events";
    pub(in super::super) const TOKENS_ESTIMATED: &str = "snapgate.outcome.tokens_estimated";

    pub(in super::super) const REPORT_SOURCE: &str = "snapgate.backend_report.source";
    pub(in super::super) const REPORT_FORMAT: &str = "snapgate.backend_report.format";
    pub(in super::super) const REPORT_PHASE: &str = "snapgate.backend_report.phase";
    pub(in super::super) const REPORT_RECEIVED_OFFSET_US: &str = "snapgate.backend_report.received_offset_us";
    /// Before the names of metrics, which are the target's.
    pub(in super::super) const REPORT_NAMED_METRICS: &str = "snapgate.backend_report.named_metrics.";
    pub(in super::super) const REPORT_OTHER_METRICS: &str = "snapgate.backend_report.other_metrics.";

    pub(in super::super) const CHOOSE_NS: &str = "snapgate.timings.choose_ns";
    pub(in super::super) const FIRST_BYTE_OFFSET_US: &str = "snapgate.timings.first_byte_offset_us";
    pub(in super::super) const FIRST_CONTENT_OFFSET_US: &str = "snapgate.timings.first_content_offset_us";
    pub(in super::super) const INTER_TOKEN_P50_US: &str = "snapgate.timings.inter_token_p50_us";
    pub(in super::super) const INTER_TOKEN_P99_US: &str = "snapgate.timings.inter_token_p99_us";
    pub(in super::super) const INTER_TOKEN_MAX_US: &str = "snapgate.timings.inter_token_max_us";
    pub(in super::super) const ENGINE_QUEUE_US: &str = "snapgate.timings.engine_queue_us";

    pub(in super::super) const ATTEMPT_TARGET: &str = "snapgate.attempt.target";
    pub(in super::super) const ATTEMPT_CONNECT_US: &str = "snapgate.attempt.connect_us";
    pub(in super::super) const ATTEMPT_FIRST_BYTE_OFFSET_US: &str = "snapgate.attempt.first_byte_offset_us";
    pub(in super::super) const ATTEMPT_REASON: &str = "snapgate.attempt.reason";
    pub(in super::super) const ATTEMPT_FALLBACK: &str = "snapgate.attempt.fallback";
    pub(in super::super) const ATTEMPT_VIEW_AGE_MS: &str = "snapgate.attempt.view_age_ms";
    pub(in super::super) const ATTEMPT_ELIGIBLE: &str = "snapgate.attempt.eligible";
    pub(in super::super) const ATTEMPT_EXCLUDED_UNHEALTHY: &str = "snapgate.attempt.excluded.unhealthy";
    pub(in super::super) const ATTEMPT_EXCLUDED_EJECTED: &str = "snapgate.attempt.excluded.ejected";
    pub(in super::super) const ATTEMPT_EXCLUDED_MODEL: &str = "snapgate.attempt.excluded.model";
    pub(in super::super) const ATTEMPT_EXCLUDED_NO_FRESH_STATE: &str = "snapgate.attempt.excluded.no_fresh_state";
    pub(in super::super) const ATTEMPT_CONSIDERED: &str = "snapgate.attempt.considered";
    pub(in super::super) const ATTEMPT_SCORE: &str = "snapgate.attempt.score";

    pub(in super::super) const CANDIDATE_TARGET: &str = "snapgate.candidate.target";
    pub(in super::super) const CANDIDATE_RANK: &str = "snapgate.candidate.rank";
    pub(in super::super) const CANDIDATE_SCORE: &str = "snapgate.candidate.score";
    pub(in super::super) const CANDIDATE_EXCLUDED: &str = "snapgate.candidate.excluded";
    pub(in super::super) const CANDIDATE_IN_FLIGHT: &str = "snapgate.candidate.gateway_in_flight";
    pub(in super::super) const CANDIDATE_REQUESTS_PER_SECOND: &str = "snapgate.candidate.gateway_requests_per_second";
    pub(in super::super) const CANDIDATE_TOKENS_PER_SECOND: &str = "snapgate.candidate.gateway_tokens_per_second";
    pub(in super::super) const CANDIDATE_SAMPLE_AGE_MS: &str = "snapgate.candidate.sample_age_ms";

    /// In log records, as other lines about the request have it.
    pub(in super::super) const LOG_SNAPSHOT_ID: &str = "snapshot_id";
}

/// Events of the request's span.
pub(super) mod events {
    pub(in super::super) const DECIDED: &str = "snapgate.decided";
    pub(in super::super) const CANDIDATE: &str = "snapgate.candidate";
    pub(in super::super) const FIRST_BYTE: &str = "snapgate.first_byte";
    pub(in super::super) const FIRST_CONTENT: &str = "snapgate.first_content";
    pub(in super::super) const END: &str = "snapgate.end";
    /// Of the log record.
    pub(in super::super) const SNAPSHOT: &str = "snapgate.snapshot";
}

/// The names of one quantity: value, age, source and freshness, of the chosen target and of a candidate.
pub(super) struct QuantityNames {
    pub(super) state: [&'static str; 4],
    pub(super) candidate: [&'static str; 4],
}

/// Makes the names of a quantity of its name in the document.
macro_rules! quantity {
    ($name:literal) => {
        QuantityNames {
            state: [
                concat!("snapgate.decision.state.", $name),
                concat!("snapgate.decision.state.", $name, "_age_ms"),
                concat!("snapgate.decision.state.", $name, "_source"),
                concat!("snapgate.decision.state.", $name, "_freshness"),
            ],
            candidate: [
                concat!("snapgate.candidate.", $name),
                concat!("snapgate.candidate.", $name, "_age_ms"),
                concat!("snapgate.candidate.", $name, "_source"),
                concat!("snapgate.candidate.", $name, "_freshness"),
            ],
        }
    };
}

/// In the order of [`crate::snapshot::Quantity::ALL`].
pub(super) const QUANTITIES: [QuantityNames; 8] = [
    quantity!("waiting"),
    quantity!("running"),
    quantity!("kv_cache_usage"),
    quantity!("prefix_cache_hit_ratio"),
    quantity!("gpu_utilization"),
    quantity!("gpu_memory_utilization"),
    quantity!("engine_requests_per_second"),
    quantity!("engine_tokens_per_second"),
];

//! Every metric there is: its name, type, unit, labels and meaning. No name stands anywhere else.
//!
//! `otel/metrics.csv` and `docs/metrics.md` are made from this list; a test holds both, and what the gateway really exposes,
//! to it. Names of OpenTelemetry's conventions are translated as its Prometheus exporters do: dots are underscores, and the
//! unit is the last word. A name that is here is on somebody's dashboard: it is not changed, it is replaced.

/// What kind of numbers a metric has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only ever grows; starts at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations, counted up to each of these upper bounds and beyond.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As in the registry and on the page.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Whether a metric may be renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Not without a new major version.
    Stable,
    /// With the conventions that it follows, which are not finished; the changelog says so.
    Development,
}

impl Stability {
    /// As in the registry, in OpenTelemetry's words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Development => "development",
        }
    }
}

/// One metric.
#[derive(Debug, PartialEq)]
pub struct Definition {
    /// As Prometheus knows it; a counter's ends in `_total`, to a histogram's it adds `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// What kind of numbers.
    pub kind: Kind,
    /// In the notation of UCUM, as OpenTelemetry has it.
    pub unit: &'static str,
    /// All of them, on every series; an empty value means that there is none.
    pub labels: &'static [&'static str],
    /// May it be renamed?
    pub stability: Stability,
    /// In a sentence.
    pub help: &'static str,
}

/// Upper bounds for what takes from a tenth of a millisecond to seconds inside the gateway.
const INTERNAL_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 1.0, 5.0];

/// Upper bounds for what takes microseconds.
const CHOOSE_SECONDS: &[f64] =
    &[0.000_000_5, 0.000_001, 0.000_002_5, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.0001, 0.001, 0.01];

/// The convention's for `http.server.request.duration`, and beyond them for long answers.
const HTTP_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// The convention's for `gen_ai.server.request.duration`, doubled on to half an hour.
const GEN_AI_SECONDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36,
    1310.72,
];

/// The convention's for `gen_ai.server.time_to_first_token`, and beyond them for prompts that have to queue.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
];

/// The convention's for `gen_ai.server.time_per_output_token`, and below them for small models.
const PER_TOKEN_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0];

/// Requests that wait in a queue.
const QUEUE_LENGTHS: &[f64] = &[0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Shares of something that can run out: finer where it does.
const SHARES: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0];

/// How old a value was when it was used: from a local scrape to one that should not have been used.
const AGE_SECONDS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0, 60.0];

/// Makes a constant of each row, and the list of all of them, so that none is forgotten there.
macro_rules! metrics {
    ($($constant:ident $name:literal $kind:expr, $unit:literal, [$($label:literal),*], $stability:ident, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Definition = Definition {
                name: $name,
                kind: $kind,
                unit: $unit,
                labels: &[$($label),*],
                stability: Stability::$stability,
                help: $help,
            };
        )+

        /// All there are, in the order of the page.
        pub const ALL: &[&Definition] = &[$(&$constant),+];
    };
}

use Kind::{Counter, Gauge, Histogram};

metrics! {
    // What clients see.
    HTTP_DURATION "http_server_request_duration_seconds" Histogram(HTTP_SECONDS), "s",
        ["http_request_method", "http_response_status_code", "error_type"], Stable,
        "From accept to the end of a request, whatever it was";
    REQUESTS "snapgate_requests_total" Counter, "{request}", ["ending", "fault"], Stable,
        "Finished requests, by what ended them and whose fault a bad end was";
    IN_FLIGHT "snapgate_requests_in_flight" Gauge, "{request}", [], Stable, "Requests between accept and finish";
    UNPARSED "snapgate_unparsed_requests_total" Counter, "{request}", [], Stable,
        "Requests whose head could not be parsed, hence without a snapshot";
    CONNECTIONS "snapgate_connections" Gauge, "{connection}", [], Stable, "Client connections open";
    CONNECTIONS_REFUSED "snapgate_connections_refused_total" Counter, "{connection}", [], Stable,
        "Client connections closed at accept, at the limit";
    SCAN_ERRORS "snapgate_response_scan_errors_total" Counter, "{request}", [], Stable,
        "Answers in which usage or events could not be read; they were passed on all the same";

    // What the fleet does for them. Of requests for which a target was chosen.
    GEN_AI_DURATION "gen_ai_server_request_duration_seconds" Histogram(GEN_AI_SECONDS), "s",
        ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "target", "error_type"], Development,
        "From accept to the end of a request that a target was chosen for, as the client saw it";
    FIRST_TOKEN "gen_ai_server_time_to_first_token_seconds" Histogram(FIRST_TOKEN_SECONDS), "s",
        ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "target"], Development,
        "From accept to the first text, reasoning or tool call of a streamed answer that ended well";
    PER_TOKEN "gen_ai_server_time_per_output_token_seconds" Histogram(PER_TOKEN_SECONDS), "s",
        ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "target"], Development,
        "Time per token after the first, of streamed answers of two tokens and more that ended well";
    PROMPT_TOKENS "snapgate_prompt_tokens_total" Counter, "{token}", ["model", "target"], Stable,
        "Tokens of prompts, as targets reported them";
    CACHED_TOKENS "snapgate_cached_prompt_tokens_total" Counter, "{token}", ["model", "target"], Stable,
        "Those of them that were found in a prefix cache, as targets reported them";
    COMPLETION_TOKENS "snapgate_completion_tokens_total" Counter, "{token}", ["model", "target"], Stable,
        "Tokens generated, as targets reported them, else counted in the stream";
    LABELS_OVERFLOWED "snapgate_labels_overflowed_total" Counter, "{request}", ["label"], Stable,
        "Requests counted under the value _other of a label, or without a status: there are as many values or combinations as there may be, or this one is not known";

    // Decisions.
    DECISIONS "snapgate_decisions_total" Counter, "{decision}", ["policy", "reason"], Stable,
        "Choices of a target, by policy and by why the target won";
    TARGET_DECISIONS "snapgate_target_decisions_total" Counter, "{decision}", ["target"], Stable,
        "Choices of this target";
    FALLBACKS "snapgate_decision_fallbacks_total" Counter, "{decision}", ["reason"], Stable,
        "Choices for which least_request stood in for the policy, by reason";
    EXCLUSIONS "snapgate_decision_exclusions_total" Counter, "{target}", ["reason"], Stable,
        "Targets that could not be chosen, summed over all choices, by reason";
    CHOOSE_DURATION "snapgate_decision_duration_seconds" Histogram(CHOOSE_SECONDS), "s", [], Stable,
        "Time to choose a target";
    CHOSEN_WAITING "snapgate_chosen_waiting_requests" Histogram(QUEUE_LENGTHS), "{request}", [], Stable,
        "Length of the engine's queue at the chosen target, as the choice saw it; choices that did not know are not counted";
    CHOSEN_KV_CACHE "snapgate_chosen_kv_cache_usage_ratio" Histogram(SHARES), "1", [], Stable,
        "KV cache in use at the chosen target, 0..1, as the choice saw it; choices that did not know are not counted";
    CHOSEN_AGE "snapgate_chosen_state_age_seconds" Histogram(AGE_SECONDS), "s", [], Stable,
        "Age of the queue length that the choice saw; choices that did not know it are not counted";
    RETRIES "snapgate_retries_total" Counter, "{attempt}", [], Stable,
        "Tries at another target after a request's first";
    RETRIES_DENIED "snapgate_retries_denied_total" Counter, "{attempt}", [], Stable,
        "Tries that upstream.retry_share did not allow";
    ATTEMPTS "snapgate_target_attempts_total" Counter, "{attempt}", ["target", "result"], Stable,
        "Tries to get an answer from this target: answered with a head, or failed without or after one";

    // Targets, as of the view that choices are made from. What is not known has no series: missing is never 0.
    TARGETS "snapgate_targets" Gauge, "{target}", [], Stable, "Targets in the fleet";
    VIEW_AGE "snapgate_view_age_seconds" Gauge, "s", [], Stable,
        "Time since the view of the fleet was published that choices are made from";
    TARGET_ELIGIBLE "snapgate_target_eligible" Gauge, "1", ["target"], Stable,
        "1 if the target may be chosen: it is neither down nor passed over for its failures";
    TARGET_HEALTHY "snapgate_target_healthy" Gauge, "1", ["target"], Stable,
        "1 if the target answers its probes, 0 if it does not; no series before the first probe";
    TARGET_EJECTIONS "snapgate_target_ejections_total" Counter, "{ejection}", ["target"], Stable,
        "How often the target was passed over for a while, because requests to it failed one after another";
    TARGET_IN_FLIGHT "snapgate_target_in_flight_requests" Gauge, "{request}", ["target"], Stable,
        "Requests of this gateway at the target";
    TARGET_GATEWAY_REQUESTS "snapgate_target_gateway_requests_per_second" Gauge, "{request}/s", ["target"], Stable,
        "Requests that this gateway sent the target, over fleet.window";
    TARGET_GATEWAY_TOKENS "snapgate_target_gateway_tokens_per_second" Gauge, "{token}/s", ["target"], Stable,
        "Tokens that this gateway saw from the target, over fleet.window";
    TARGET_WAITING "snapgate_target_waiting_requests" Gauge, "{request}", ["target"], Stable,
        "Requests waiting in the engine's queue";
    TARGET_RUNNING "snapgate_target_running_requests" Gauge, "{request}", ["target"], Stable,
        "Requests that the engine works on";
    TARGET_KV_CACHE "snapgate_target_kv_cache_usage_ratio" Gauge, "1", ["target"], Stable,
        "Share of the KV cache in use, 0..1";
    TARGET_HIT_RATIO "snapgate_target_prefix_cache_hit_ratio" Gauge, "1", ["target"], Stable,
        "Share of prompt tokens found in the prefix cache, over fleet.window, 0..1";
    TARGET_GPU "snapgate_target_gpu_utilization_ratio" Gauge, "1", ["target"], Stable,
        "Share of time that the GPUs were busy, 0..1";
    TARGET_GPU_MEMORY "snapgate_target_gpu_memory_utilization_ratio" Gauge, "1", ["target"], Stable,
        "Share of GPU memory in use, 0..1";
    TARGET_GPUS "snapgate_target_gpus" Gauge, "{gpu}", ["target"], Stable,
        "GPUs of the target, as configured, else as its exporter tells";
    TARGET_ENGINE_REQUESTS "snapgate_target_engine_requests_per_second" Gauge, "{request}/s", ["target"], Stable,
        "Requests that the engine finished, from all its clients, over fleet.window";
    TARGET_ENGINE_TOKENS "snapgate_target_engine_tokens_per_second" Gauge, "{token}/s", ["target"], Stable,
        "Tokens that the engine generated, for all its clients, over fleet.window";
    TARGET_AGE "snapgate_target_value_age_seconds" Gauge, "s", ["target", "quantity"], Stable,
        "Age of each value that is known of the target";
    TARGET_FRESH "snapgate_target_value_fresh" Gauge, "1", ["target", "quantity"], Stable,
        "1 if the value may be used for a choice, 0 if it is stale or missing; no series if no source can give it";
    TARGET_SERIES_MISSING "snapgate_target_series_missing" Gauge, "{series}", ["target"], Stable,
        "Series that were expected on the last metrics page of the target, by its engine's table, and were not on it";
    TARGET_GARBAGE_LINES "snapgate_target_garbage_lines" Gauge, "{line}", ["target"], Stable,
        "Lines of the last metrics page of the target that could not be read or believed";
    LEAVING "snapgate_targets_leaving" Gauge, "{target}", [], Stable,
        "Targets that have left the fleet and have requests to end, for fleet.drain_time at most";
    DISCOVERY_TARGETS "snapgate_discovery_targets" Gauge, "{target}", ["source"], Stable,
        "Targets in the last good view of a source of discovery";
    DISCOVERY_LEFT_OUT "snapgate_discovery_left_out_targets" Gauge, "{target}", ["source"], Stable,
        "Those of them that are not in the fleet, because others have their names or addresses";
    DISCOVERY_FAILING "snapgate_discovery_failing" Gauge, "1", ["source"], Stable,
        "1 while a source of discovery cannot say who the targets are: its last view stays, /v1/fleet says why";
    DISCOVERY_ANSWERS "snapgate_discovery_answers_total" Counter, "{answer}", ["source", "result"], Stable,
        "Answers of a source of discovery: views that were taken up, and failures";
    SCRAPES "snapgate_scrapes_total" Counter, "{scrape}", ["target"], Stable, "Metric pages of the target that were read";
    SCRAPE_FAILURES "snapgate_scrape_failures_total" Counter, "{scrape}", ["target", "reason"], Stable,
        "Metric pages of the target that could not be read, by reason";
    SCRAPE_DURATION "snapgate_scrape_duration_seconds" Histogram(INTERNAL_SECONDS), "s", [], Stable,
        "Time to read one metric page of a target or of a GPU exporter";
    TARGET_SCRAPE_DURATION "snapgate_target_scrape_duration_seconds" Gauge, "s", ["target"], Stable,
        "How long the last try to read the target's metrics page took, whether it was read or not";
    TARGET_SCRAPE_INTERVAL "snapgate_target_scrape_interval_seconds" Gauge, "s", ["target"], Stable,
        "From the start of that try to the start of the next: fleet.poll_interval, or more after failures and where fleet.target_share or fleet.cpu_share want it";
    GPU_EXPORTER_SCRAPES "snapgate_gpu_exporter_scrapes_total" Counter, "{scrape}", ["node"], Stable,
        "Pages of the node's GPU exporter that were read";
    GPU_EXPORTER_FAILURES "snapgate_gpu_exporter_scrape_failures_total" Counter, "{scrape}", ["node", "reason"], Stable,
        "Pages of the node's GPU exporter that could not be read, by reason";
    GPU_PROBLEMS "snapgate_gpu_problem_targets" Gauge, "{target}", [], Stable,
        "Targets whose GPUs are not known as they should be: /v1/fleet says why";

    LOAD_REPORTS "snapgate_load_reports_total" Counter, "{report}", ["format"], Stable,
        "Load reports that came with answers of targets and were read";
    LOAD_REPORTS_REFUSED "snapgate_load_reports_refused_total" Counter, "{report}", ["reason"], Stable,
        "Load reports that came with answers of targets and were of no use, by reason; the answers passed all the same";
    LOAD_REPORT_ENTRIES_DROPPED "snapgate_load_report_entries_dropped_total" Counter, "{entry}", ["reason"], Stable,
        "Entries of load reports that were dropped, or merged as duplicates, by reason; the rest was used";
    LOAD_REPORTS_TOLD "snapgate_load_reports_told_total" Counter, "{report}", ["format"], Stable,
        "Load reports sent to clients";
    LOAD_REPORTS_UNTOLD "snapgate_load_reports_untold_total" Counter, "{report}", ["reason"], Stable,
        "Load reports that clients wanted and did not get, by reason";
    LOAD_REPORTS_CUT "snapgate_load_reports_cut_total" Counter, "{report}", [], Stable,
        "Load reports sent to clients without what had no room in load_reports.bytes";

    // The pipeline: offered + recovered = delivered + rejected + dropped + skipped + pending, for every exit, on every page.
    OFFERED "snapgate_snapshots_offered_total" Counter, "{snapshot}", ["exit"], Stable,
        "Finished snapshots meant for an exit";
    RECOVERED "snapgate_snapshots_recovered_total" Counter, "{snapshot}", ["exit"], Stable,
        "Snapshots of an earlier run that an exit still owed";
    DELIVERED "snapgate_snapshots_delivered_total" Counter, "{snapshot}", ["exit"], Stable,
        "Snapshots that an exit has taken; of the exit named store, those that are stored";
    REJECTED "snapgate_snapshots_rejected_total" Counter, "{snapshot}", ["exit"], Stable,
        "Snapshots that an exit has refused for good";
    DROPPED "snapgate_snapshots_dropped_total" Counter, "{snapshot}", ["exit", "reason"], Stable,
        "Snapshots lost to an exit, by reason";
    SKIPPED "snapgate_snapshots_skipped_total" Counter, "{snapshot}", ["exit"], Stable,
        "Snapshots that an exit was not meant to get";
    PENDING "snapgate_snapshots_pending" Gauge, "{snapshot}", ["exit"], Stable,
        "Snapshots that an exit has still to take";
    EXIT_LAG "snapgate_exit_lag_seconds" Gauge, "s", ["exit"], Stable,
        "Age of the oldest finished snapshot that an exit has still to take, to the second; 0 if there is none";
    EXIT_ERRORS "snapgate_exit_errors_total" Counter, "{error}", ["exit", "reason"], Stable,
        "Failed tries to hand snapshots to an exit, by reason; what it meant for the snapshots is in the other counters";
    QUEUE_RECORDS "snapgate_queue_records" Gauge, "{snapshot}", ["queue"], Stable,
        "Finished snapshots in a queue: intake is before the store, the others before an exit";
    QUEUE_RECORDS_MAX "snapgate_queue_records_max" Gauge, "{snapshot}", ["queue"], Stable, "How many fit into it";
    QUEUE_BYTES "snapgate_queue_bytes" Gauge, "By", ["queue"], Stable, "Estimated memory of the snapshots in a queue";
    QUEUE_BYTES_MAX "snapgate_queue_bytes_max" Gauge, "By", ["queue"], Stable, "How much it may be";
    LEDGER "snapgate_ledger_records" Gauge, "{snapshot}", [], Stable,
        "Snapshots in memory: requests in flight and those not stored yet";
    COMMIT_DELAY "snapgate_commit_delay_seconds" Histogram(INTERNAL_SECONDS), "s", [], Stable,
        "From a request's finish to its commit in the store";
    COMMIT_DURATION "snapgate_commit_duration_seconds" Histogram(INTERNAL_SECONDS), "s", [], Stable,
        "One transaction of the store";
    STORE_BYTES "snapgate_store_bytes" Gauge, "By", [], Stable, "Size of the store's file";
    STORE_WAL_BYTES "snapgate_store_wal_bytes" Gauge, "By", [], Stable,
        "Size of the store's write-ahead log that readers may still need";
    STORE_BALLAST_BYTES "snapgate_store_ballast_bytes" Gauge, "By", [], Stable,
        "Size of the reserve on the store's disk; 0 once it was given back because the disk was full";
    STORE_IN_TROUBLE "snapgate_store_in_trouble" Gauge, "1", [], Stable,
        "1 while the store cannot do its work: /readyz says why";
    EXPIRED "snapgate_snapshots_expired_total" Counter, "{snapshot}", [], Stable, "Snapshots deleted by retention";
    ERASED "snapgate_snapshots_erased_total" Counter, "{snapshot}", [], Stable, "Snapshots deleted on request";

    // The gateway itself.
    READY "snapgate_ready" Gauge, "1", [], Stable, "1 if /readyz says that the gateway should get traffic";
    BUILD_INFO "snapgate_build_info" Gauge, "1", ["version"], Stable, "1, with the gateway's version";
    INSTANCE_INFO "snapgate_instance_info" Gauge, "1", ["name", "tag"], Stable,
        "1, with the instance's name and the tag that its snapshot IDs carry in digits 13 to 16";
    CONFIG_INFO "snapgate_config_info" Gauge, "1", ["hash"], Stable, "1, with the hash of the configuration in effect";
    CONFIG_WAITING "snapgate_config_keys_waiting" Gauge, "{key}", [], Stable,
        "Keys that a reload found changed and that wait for a restart";
    RELOADS "snapgate_reloads_total" Counter, "{reload}", ["result"], Stable,
        "Reloads of the configuration, by what came of them";
    RELOAD_SUCCEEDED "snapgate_reload_last_succeeded" Gauge, "1", [], Stable, "1 unless the last reload was refused";
    LOOKUPS_REFUSED "snapgate_lookups_refused_total" Counter, "{request}", ["reason"], Stable,
        "Requests to the admin listener refused, by reason";
    TOKEN_FILES_FAILING "snapgate_token_files_failing" Gauge, "{file}", [], Stable,
        "Files of admin tokens that hold no usable token; the tokens stay what they were";
    HANDSHAKE_FAILURES "snapgate_tls_handshake_failures_total" Counter, "{connection}", ["section", "reason"], Stable,
        "Clients without a TLS handshake, by the section of the configuration that is the listener's";
    ROTATIONS "snapgate_rotations_total" Counter, "{rotation}", ["section", "result"], Stable,
        "Changes of the files that a section of the configuration names: done, or refused as unusable";
    LOG_LINES_DROPPED "snapgate_log_lines_dropped_total" Counter, "{line}", [], Stable,
        "Lines of the gateway's own log that nobody read in time: requests never wait for it";
    PROCESS_CPU "process_cpu_seconds_total" Counter, "s", [], Stable, "Processor time used, user and system";
    PROCESS_RESIDENT "process_resident_memory_bytes" Gauge, "By", [], Stable, "Memory that the process has in RAM";
    PROCESS_VIRTUAL "process_virtual_memory_bytes" Gauge, "By", [], Stable, "Address space of the process";
    PROCESS_FDS "process_open_fds" Gauge, "{file}", [], Stable, "Open file descriptors";
    PROCESS_MAX_FDS "process_max_fds" Gauge, "{file}", [], Stable, "How many the process may have open";
    PROCESS_START "process_start_time_seconds" Gauge, "s", [], Stable, "When the process began, in Unix time";
}

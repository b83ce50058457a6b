#!/usr/bin/env python3
"""Makes the Grafana dashboards beside it: `python3 dashboards/build.py`. A test holds the files to what this makes."""

from __future__ import annotations

from pathlib import Path

from panels import (
    choice, dashboard, found, heatmap, known, lines, logged, number, percentiles, ratio, rendered, row, text, trace, written,
)

NO_REQUESTS = "no request ended in this time"
NO_GATEWAY = "the gateway is not scraped"
NEVER = "this did not happen"
UNKNOWN = "no target says this"
NO_CHOICE = "no target was chosen in this time"

ON_PURPOSE = "refused_flood|erased"
"""Why snapshots are dropped without anything being wrong: there are more refused requests than are to be recorded, or somebody
asked for their deletion."""

ADMIN = written("admin", "Admin listener", "http://127.0.0.1:8081")
SERVICE = written("service", "Service in Tempo and Loki", "snapgate")
TARGET = choice("target", 'label_values(snapgate_target_eligible{job=~"$job", instance=~"$instance"}, target)')
MODEL = choice(
    "model",
    'label_values(gen_ai_server_request_duration_seconds_count{job=~"$job", instance=~"$instance"}, gen_ai_request_model)',
)


def rate(metric: str, by: str = "", also: str = "") -> str:
    labels = f" by ({by})" if by else ""
    return f"sum{labels} (rate({metric}{{@{also}}}[~]))"


def requests() -> dict:
    all_requests = rate("snapgate_requests_total")
    failed = rate("snapgate_requests_total", also=', fault=~"target|gateway"')
    of_model = "{@, gen_ai_request_model=~\"$model\"}"
    first, duration, token = (
        f"gen_ai_server_{name}_seconds" for name in ("time_to_first_token", "request_duration", "time_per_output_token"))

    def by_model(histogram: str, q: float) -> str:
        return known(f"histogram_quantile({q}, sum by (le, gen_ai_request_model) (rate({histogram}_bucket{of_model}[~])))")

    legend = "{{gen_ai_request_model}}"
    return dashboard(
        "requests", "Requests", "What clients asked for, how it ended, and how long it took.",
        [
            row("Now"),
            number("Requests", "Finished requests a second.", "reqps", NO_REQUESTS, all_requests),
            number("Error ratio", "Share of requests that ended badly by a fault of a target or of the gateway.",
                   "percentunit", NO_REQUESTS, ratio(failed, all_requests), bad_above=0.01),
            number("In flight", "Requests between accept and finish.", "short", NO_GATEWAY,
                   "sum(snapgate_requests_in_flight{@})"),
            number("First token, p99", "99 of 100 streams had their first token sooner.", "s", "no stream ended in this time",
                   percentiles(first)["p99"]),
            number("Tokens generated", "Tokens a second, of all answers that ended.", "ops", NO_REQUESTS,
                   rate("snapgate_completion_tokens_total")),
            number("Ready", "Gateways that say they should get traffic.", "short", NO_GATEWAY, "sum(snapgate_ready{@})",
                   bad_below=1),
            row("Endings"),
            lines("Requests by ending", "Each request ends exactly once, and this is how.", "reqps", NO_REQUESTS,
                  {"{{ending}}": rate("snapgate_requests_total", "ending")}, stacked=True),
            lines("Bad ends by fault", "Whose fault it was: the client's, a target's, the gateway's.", "reqps", NO_REQUESTS,
                  {"{{fault}}": rate("snapgate_requests_total", "fault", ', fault!="none"')}, stacked=True),
            lines("Answers by status", "Statuses that clients were sent.", "reqps", NO_REQUESTS,
                  {"{{http_response_status_code}}":
                   rate("http_server_request_duration_seconds_count", "http_response_status_code")}, stacked=True),
            row("Latency: each orange mark is one request, and leads to its trace and its snapshot"),
            heatmap("Request duration", "From accept to the end, as the client saw it.", "s", NO_REQUESTS, duration),
            heatmap("Time to first token", "From accept to the first text, reasoning or tool call of a stream.", "s",
                    "no stream ended in this time", first),
            lines("Request duration", "Percentiles over all models; they are as fine as the buckets.", "s", NO_REQUESTS,
                  percentiles(duration), exemplars=True),
            lines("Time to first token", "Percentiles of streams that ended well.", "s", "no stream ended in this time",
                  percentiles(first), exemplars=True),
            lines("Time per output token", "Of streams that ended well, after the first token.", "s",
                  "no stream of two tokens and more ended in this time", percentiles(token), exemplars=True),
            row("By model"),
            lines("Requests by model", "Requests that a target was chosen for.", "reqps", NO_REQUESTS,
                  {legend: f"sum by (gen_ai_request_model) (rate({duration}_count{of_model}[~]))"}),
            lines("First token by model, p99", "99 of 100 streams had their first token sooner.", "s",
                  "no stream ended in this time", {legend: by_model(first, 0.99)}),
            lines("Duration by model, p99", "99 of 100 requests took less.", "s", NO_REQUESTS,
                  {legend: by_model(duration, 0.99)}),
            lines("Prompt tokens by model", "Tokens of prompts, as targets reported them.", "ops", NO_REQUESTS,
                  {"{{model}}": rate("snapgate_prompt_tokens_total", "model", ', model=~"$model"')}),
            lines("Found in a prefix cache", "Share of prompt tokens that targets found in their prefix caches.", "percentunit",
                  "no target reported usage",
                  {"{{model}}": ratio(rate("snapgate_cached_prompt_tokens_total", "model", ', model=~"$model"'),
                                      rate("snapgate_prompt_tokens_total", "model", ', model=~"$model"'))},
                  defaults={"max": 1}),
            lines("Tokens generated by model", "As targets reported them, else counted in the stream.", "ops", NO_REQUESTS,
                  {"{{model}}": rate("snapgate_completion_tokens_total", "model", ', model=~"$model"')}),
            row("At the door"),
            lines("Client connections", "Open connections of clients.", "short", NO_GATEWAY,
                  {"open": "sum(snapgate_connections{@})"}),
            lines("Not let in", "Connections closed at the limit, heads that could not be parsed, handshakes that failed.",
                  "ops", NEVER,
                  {"refused": rate("snapgate_connections_refused_total"), "unparsed": rate("snapgate_unparsed_requests_total"),
                   "TLS: {{reason}}": rate("snapgate_tls_handshake_failures_total", "reason")}),
            lines("Not understood", "Answers in which usage or events could not be read, and requests under the label _other.",
                  "ops", NEVER,
                  {"scan errors": rate("snapgate_response_scan_errors_total"),
                   "{{label}} overflowed": rate("snapgate_labels_overflowed_total", "label")}),
        ],
        MODEL,
    )


def fleet() -> dict:
    def each(quantity: str) -> dict[str, str]:
        """The mean over gateways, which all look at the same targets."""
        return {"{{target}}": f'avg by (target) (snapgate_target_{quantity}{{@, target=~"$target"}})'}

    def total(quantity: str) -> dict[str, str]:
        return {"{{target}}": f'sum by (target) (snapgate_target_{quantity}{{@, target=~"$target"}})'}

    def per_gpu(rate: str) -> dict[str, str]:
        gpus = 'avg by (target) (snapgate_target_gpus{@, target=~"$target"} > 0)'
        of = {"engine": each(f"engine_{rate}"), "gateways": total(f"gateway_{rate}")}
        return {f"{legend} {who}": f"{expr} / {gpus}" for who, rates in of.items() for legend, expr in rates.items()}

    share = {"max": 1}
    return dashboard(
        "fleet", "Fleet", "The targets, as the gateway sees them, and how old that is.",
        [
            row("Now"),
            number("Targets", "In the fleet.", "short", NO_GATEWAY, "max(snapgate_targets{@})", bad_below=1),
            number("Eligible", "May be chosen: neither down nor passed over for failures.", "short", "there is no target",
                   "min(sum by (instance) (snapgate_target_eligible{@}))", bad_below=1),
            number("Down", "Do not answer their probes.", "short", "no target was probed",
                   "sum(max by (target) (1 - snapgate_target_healthy{@}))", bad_above=1),
            number("Oldest view", "Time since the view of the fleet was published that choices are made from.", "s", NO_GATEWAY,
                   "max(snapgate_view_age_seconds{@})", bad_above=1),
            number("Pages not read", "Metric pages of targets that could not be read, a second.", "ops", NEVER,
                   rate("snapgate_scrape_failures_total"), bad_above=0.1),
            number("Values not fresh", "Values that are stale or missing although a source could give them.", "short", UNKNOWN,
                   "sum(1 - snapgate_target_value_fresh{@})", bad_above=1),
            row("Load"),
            lines("Waiting", "Requests waiting in the engine's queue.", "short", UNKNOWN, each("waiting_requests")),
            lines("Running", "Requests that the engine works on.", "short", UNKNOWN, each("running_requests")),
            lines("In flight from the gateways", "Requests of all gateways at the target.", "short", "there is no target",
                  total("in_flight_requests")),
            lines("KV cache", "Share of the KV cache in use.", "percentunit", UNKNOWN, each("kv_cache_usage_ratio"),
                  defaults=share),
            lines("Prefix cache hits", "Share of prompt tokens found in the prefix cache.", "percentunit",
                  "no target looked up a prompt", each("prefix_cache_hit_ratio"), defaults=share),
            lines("GPU", "Share of time that the GPUs were busy.", "percentunit", "no target tells of GPUs",
                  each("gpu_utilization_ratio"), defaults=share),
            lines("GPU memory", "Share of GPU memory in use.", "percentunit", "no target tells of GPUs",
                  each("gpu_memory_utilization_ratio"), defaults=share),
            lines("Requests from the gateways", "Requests that all gateways sent, over fleet.window.", "reqps",
                  "there is no target", total("gateway_requests_per_second")),
            lines("Tokens to the gateways", "Tokens that all gateways saw, over fleet.window.", "ops", "there is no target",
                  total("gateway_tokens_per_second")),
            lines("Requests of the engine", "Requests that the engine finished, whoever sent them.", "reqps", UNKNOWN,
                  each("engine_requests_per_second")),
            lines("Tokens of the engine", "Tokens that the engine generated, for whomever.", "ops", UNKNOWN,
                  each("engine_tokens_per_second")),
            lines("First token by target, p99", "99 of 100 streams of the target had their first token sooner.", "s",
                  "no stream ended in this time",
                  {"{{target}}": known("histogram_quantile(0.99, sum by (le, target) (rate("
                                         'gen_ai_server_time_to_first_token_seconds_bucket{@, target=~"$target"}[~])))')},
                  exemplars=True),
            lines("Requests per GPU", "Those that the engine finished, and those that all gateways sent, by GPU of the target.",
                  "reqps", "no target tells of GPUs", per_gpu("requests_per_second"), w=12),
            lines("Tokens per GPU", "Those that the engine generated, and those that all gateways saw, by GPU of the target.",
                  "ops", "no target tells of GPUs", per_gpu("tokens_per_second"), w=12),
            row("How old it is"),
            lines("Age by quantity", "The oldest value of each quantity over the targets.", "s", UNKNOWN,
                  {"{{quantity}}": 'max by (quantity) (snapgate_target_value_age_seconds{@, target=~"$target"})'}),
            lines("Targets with a fresh value", "Share of targets whose value may be used for a choice.", "percentunit",
                  UNKNOWN,
                  {"{{quantity}}": 'avg by (quantity) (snapgate_target_value_fresh{@, target=~"$target"})'}, defaults=share),
            lines("Healthy and eligible", "1: answers its probes; and may be chosen.", "none", "no target was probed",
                  {"{{target}} healthy": 'min by (target) (snapgate_target_healthy{@, target=~"$target"})',
                   "{{target}} eligible": 'min by (target) (snapgate_target_eligible{@, target=~"$target"})'}, defaults=share),
            row("Reading the targets' metrics"),
            lines("Pages read", "Metric pages of each target that were read.", "ops", "no page was read",
                  {"{{target}}": rate("snapgate_scrapes_total", "target", ', target=~"$target"')}),
            lines("Pages not read", "By target and reason.", "ops", NEVER,
                  {"{{target}} {{reason}}": rate("snapgate_scrape_failures_total", "target, reason", ', target=~"$target"')}),
            lines("Time to read a page", "From asking to the last byte, over all targets and GPU exporters.", "s",
                  "no page was read", percentiles("snapgate_scrape_duration_seconds")),
            lines("Time to read a page, by target", "Of the last try, whether the page was read or not; the longest over "
                  "gateways.", "s", "no page was asked for",
                  {"{{target}}": 'max by (target) (snapgate_target_scrape_duration_seconds{@, target=~"$target"})'}, w=12),
            lines("Time between two reads, by target", "fleet.poll_interval, or more: after failures, where a page takes the "
                  "target more than fleet.target_share, or all of them the gateway more than fleet.cpu_share.", "s",
                  "no page was asked for",
                  {"{{target}}": 'max by (target) (snapgate_target_scrape_interval_seconds{@, target=~"$target"})'}, w=12),
        ],
        TARGET,
    )


SAW = ("decision.state.waiting", "decision.state.waiting_age_ms", "decision.state.kv_cache_usage", "decision.target",
       "decision.policy", "decision.fallback", "timings.first_content_offset_us")
"""What a table of slow requests shows of each."""


def decisions() -> dict:
    chosen = rate("snapgate_target_decisions_total")
    each = rate("snapgate_target_decisions_total", "target")
    # Without those that have no series of their own, which are most often none.
    named = rate("snapgate_target_decisions_total", "target", ', target!="_other"')
    attributes = ", ".join(f"span.snapgate.{name}" for name in ("snapshot.id", *SAW))
    fields = ", ".join(f'{name.replace(".", "_")}="{name}"' for name in ("id", "timings.end_offset_us", *SAW))
    return dashboard(
        "decisions", "Decisions", "Which target was chosen, why, and what the choice saw.",
        [
            row("Now"),
            number("Choices", "Choices of a target a second.", "ops", NO_CHOICE, rate("snapgate_decisions_total")),
            number("Fallbacks", "Share of choices for which least_request stood in for the policy.", "percentunit", NO_CHOICE,
                   ratio(rate("snapgate_decision_fallbacks_total"), rate("snapgate_decisions_total")), bad_above=0.05),
            number("Time to choose, p99", "99 of 100 choices took less.", "s", NO_CHOICE,
                   percentiles("snapgate_decision_duration_seconds")["p99"], bad_above=0.001),
            number("Spread", "What the busiest target got over what all get on average: 1 is even.", "none", NO_CHOICE,
                   ratio(f"max({named})", f"avg({named})")),
            number("Retries", "Share of requests that were tried at another target.", "percentunit", NO_CHOICE,
                   ratio(rate("snapgate_retries_total"), chosen), bad_above=0.05),
            number("Ejections", "Targets passed over because requests to them failed one after another, in this time.", "short",
                   NEVER, "sum(increase(snapgate_target_ejections_total{@}[$__range]))", bad_above=1),
            row("Why"),
            lines("By policy", "Choices by the policy that was to be used.", "ops", NO_CHOICE,
                  {"{{policy}}": rate("snapgate_decisions_total", "policy")}, stacked=True),
            lines("By reason", "Why the target won.", "ops", NO_CHOICE,
                  {"{{reason}}": rate("snapgate_decisions_total", "reason")}, stacked=True),
            lines("Fallbacks", "Why least_request stood in for the policy.", "ops", NEVER,
                  {"{{reason}}": rate("snapgate_decision_fallbacks_total", "reason")}, stacked=True),
            row("Who"),
            lines("By target", "Choices of each target.", "ops", NO_CHOICE, {"{{target}}": each}, stacked=True),
            lines("Share of targets", "Share of all choices; equal targets under an even policy have equal shares.",
                  "percentunit", NO_CHOICE, {"{{target}}": ratio(each, f"on () group_left () {chosen}")}, defaults={"max": 1}),
            lines("Exclusions", "Targets that could not be chosen, on average over choices, by reason.", "short", NO_CHOICE,
                  {"{{reason}}": ratio(rate("snapgate_decision_exclusions_total", "reason"), f"on () group_left () {chosen}")}),
            lines("Attempts that failed", "Tries that got no answer, or a broken one, by target.", "ops", NEVER,
                  {"{{target}}": rate("snapgate_target_attempts_total", "target", ', result="failed"')}),
            lines("Retries", "Tries at another target, and those that upstream.retry_share did not allow.", "ops", NEVER,
                  {"retries": rate("snapgate_retries_total"), "denied": rate("snapgate_retries_denied_total")}),
            lines("Ejections", "How often each target was passed over for a while.", "ops", NEVER,
                  {"{{target}}": rate("snapgate_target_ejections_total", "target")}),
            row("What choices saw at the target they took"),
            heatmap("Queue", "Requests waiting in the engine, as the choice saw it.", "short", "no choice knew it",
                    "snapgate_chosen_waiting_requests", w=8),
            heatmap("KV cache", "Share in use, as the choice saw it.", "percentunit", "no choice knew it",
                    "snapgate_chosen_kv_cache_usage_ratio", w=8),
            heatmap("Age", "How old the queue's length was when it was used.", "s", "no choice knew it",
                    "snapgate_chosen_state_age_seconds", w=8),
            row("What slow requests had seen when they were scheduled"),
            found("Slow requests, from their spans", "Requests slower than `slow`, with the state of the target that they were "
                  "sent to, as it was known then.", "no span of a request is slower, or Tempo gets none",
                  f"{{ span.snapgate.snapshot.id != nil && kind = server && duration > $slow }} | select({attributes})"),
            logged("Slow requests, from the log of snapshots", "The same from the JSON log or the OTLP log records.",
                   "no snapshot of a slower request is in Loki",
                   f'{{service_name="$service"}} | json {fields} | timings_end_offset_us > ${{slow_us}} | line_format '
                   + "`{{.id}} {{.decision_target}} by {{.decision_policy}}: waiting {{.decision_state_waiting}} "
                   "({{.decision_state_waiting_age_ms}} ms old), KV {{.decision_state_kv_cache_usage}}, "
                   "first content {{.timings_first_content_offset_us}} us, end {{.timings_end_offset_us}} us`"),
        ],
        written("slow", "Slower than", "1s"), written("slow_us", "Slower than, in us", "1000000"), SERVICE,
        backends=("prometheus", "tempo", "loki"),
    )


def pipeline() -> dict:
    def count(noun: str) -> str:
        return f"snapgate_snapshots_{noun}"

    return dashboard(
        "pipeline", "Pipeline", "Is any snapshot lost, where is it late, and does the store keep up?",
        [
            row("Is anything lost?"),
            number("Dropped", "Snapshots lost to an exit, in this time, but for those that were dropped on purpose.", "short",
                   NO_GATEWAY, f'sum(increase({count("dropped_total")}{{@, reason!~"{ON_PURPOSE}"}}[$__range]))', bad_above=1),
            number("Rejected", "Snapshots that an exit has refused for good, in this time.", "short", NO_GATEWAY,
                   f'sum(increase({count("rejected_total")}{{@}}[$__range]))', bad_above=1),
            number("Out of balance", "offered + recovered - (delivered + rejected + skipped + dropped + pending): 0, always.",
                   "short", NO_GATEWAY,
                   f'sum({count("offered_total")}{{@}}) + sum({count("recovered_total")}{{@}}) '
                   f'- sum({count("delivered_total")}{{@}}) - sum({count("rejected_total")}{{@}}) '
                   f'- sum({count("skipped_total")}{{@}}) - sum({count("dropped_total")}{{@}}) - sum({count("pending")}{{@}})',
                   bad_above=1),
            number("Furthest behind", "Age of the oldest snapshot that an exit has still to take.", "s", NO_GATEWAY,
                   "max(snapgate_exit_lag_seconds{@})", bad_above=60),
            number("Finish to commit, p99.9", "From a request's finish to its commit in the store.", "s", NO_REQUESTS,
                   known("histogram_quantile(0.999, sum by (le) (rate(snapgate_commit_delay_seconds_bucket{@}[~])))"),
                   bad_above=0.1),
            number("Log lines dropped", "Lines of the gateway's own log that nobody read in time.", "short", NO_GATEWAY,
                   "sum(increase(snapgate_log_lines_dropped_total{@}[$__range]))", bad_above=1),
            lines("Dropped", "Lost to an exit, by reason.", "ops", NO_GATEWAY,
                  {"{{exit}} {{reason}}": rate(count("dropped_total"), "exit, reason", f', reason!~"{ON_PURPOSE}"')},
                  stacked=True, w=6),
            lines("Dropped on purpose", "refused_flood: requests without a target, beyond pipeline.refused_per_second. erased: "
                  "somebody asked for their deletion before the exit had them.", "ops", NO_GATEWAY,
                  {"{{exit}} {{reason}}": rate(count("dropped_total"), "exit, reason", f', reason=~"{ON_PURPOSE}"')},
                  stacked=True, w=6),
            lines("Rejected and skipped", "Refused by the exit for good, and not meant for it.", "ops", NO_GATEWAY,
                  {f"{{{{exit}}}} {noun}": rate(count(f"{noun}_total"), "exit") for noun in ("rejected", "skipped")}, w=6),
            lines("Failed tries", "By exit and reason; most are made good by the next try.", "ops", NEVER,
                  {"{{exit}} {{reason}}": rate("snapgate_exit_errors_total", "exit, reason")}, stacked=True, w=6),
            row("Where is it late?"),
            lines("Offered", "Snapshots meant for each exit, those of an earlier run included.", "ops", NO_GATEWAY,
                  {"{{exit}}": rate(count("offered_total"), "exit"),
                   "{{exit}} recovered": rate(count("recovered_total"), "exit")}),
            lines("Delivered", "Snapshots that each exit has taken.", "ops", NO_GATEWAY,
                  {"{{exit}}": rate(count("delivered_total"), "exit")}),
            lines("Pending", "Snapshots that each exit has still to take.", "short", NO_GATEWAY,
                  {"{{exit}}": f'sum by (exit) ({count("pending")}{{@}})'}),
            lines("Behind", "Age of the oldest snapshot that each exit has still to take.", "s", NO_GATEWAY,
                  {"{{exit}}": "max by (exit) (snapgate_exit_lag_seconds{@})"}),
            lines("Queues", "How full each queue is, by number and by memory; whichever is full first counts.", "percentunit",
                  NO_GATEWAY,
                  {"{{queue}} records": "max by (queue) (snapgate_queue_records{@} / snapgate_queue_records_max{@})",
                   "{{queue}} bytes": "max by (queue) (snapgate_queue_bytes{@} / snapgate_queue_bytes_max{@})"},
                  defaults={"max": 1}),
            lines("In memory", "Snapshots of requests in flight and those not stored yet.", "short", NO_GATEWAY,
                  {"{{instance}}": "sum by (instance) (snapgate_ledger_records{@})"}),
            row("The store"),
            heatmap("Finish to commit", "From a request's finish to its commit in the store.", "s", NO_REQUESTS,
                    "snapgate_commit_delay_seconds", w=6),
            lines("Finish to commit", "Until then a lookup says that it is not stored.", "s", NO_REQUESTS,
                  percentiles("snapgate_commit_delay_seconds"), w=6),
            lines("One commit", "One transaction of the store.", "s", NO_REQUESTS,
                  percentiles("snapgate_commit_duration_seconds"), w=6),
            lines("In trouble", "1 while the store cannot do its work, or soon will not: /readyz says why.", "none", NO_GATEWAY,
                  {"{{instance}}": "max by (instance) (snapgate_store_in_trouble{@})"}, defaults={"max": 1}, w=6),
            lines("Size", "The store's file, and the reserve on its disk, which is 0 once it was given back.", "bytes",
                  NO_GATEWAY,
                  {"store": "sum(snapgate_store_bytes{@})", "ballast": "sum(snapgate_store_ballast_bytes{@})"}),
            lines("Write-ahead log", "What readers may still need of it; past store.wal_max_bytes commits wait, and /readyz "
                  "warns.", "bytes", NO_GATEWAY, {"{{instance}}": "sum by (instance) (snapgate_store_wal_bytes{@})"}),
            lines("Deleted", "By retention, and on request.", "ops", NO_GATEWAY,
                  {"expired": rate("snapgate_snapshots_expired_total"), "erased": rate("snapgate_snapshots_erased_total")}),
            row("The process"),
            lines("Memory", "In RAM.", "bytes", NO_GATEWAY, {"{{instance}}": "process_resident_memory_bytes{@}"}),
            lines("Processor", "Cores in use.", "short", NO_GATEWAY, {"{{instance}}": "rate(process_cpu_seconds_total{@}[~])"}),
            lines("File descriptors", "Share of those it may have.", "percentunit", NO_GATEWAY,
                  {"{{instance}}": "process_open_fds{@} / process_max_fds{@}"}, defaults={"max": 1}),
            lines("Configuration", "Keys that wait for a restart, whether the last reload was refused, token files that fail.",
                  "short", NO_GATEWAY,
                  {"keys waiting": "sum(snapgate_config_keys_waiting{@})",
                   "reload refused": "sum(1 - snapgate_reload_last_succeeded{@})",
                   "token files failing": "sum(snapgate_token_files_failing{@})"}),
            lines("Lookups refused", "Requests to the admin listener, by reason.", "ops", NEVER,
                  {"{{reason}}": rate("snapgate_lookups_refused_total", "reason")}),
            lines("Log lines dropped", "Lines of the gateway's own log that nobody read in time.", "ops", NO_GATEWAY,
                  {"{{instance}}": rate("snapgate_log_lines_dropped_total", "instance")}),
        ],
    )


def snapshot() -> dict:
    return dashboard(
        "snapshot", "Snapshot", "One request: paste its snapshot ID above.",
        [
            text("Where it is", """Paste an ID of 32 digits into **Snapshot ID**.

- [The story: verdict, timeline, candidates](${admin:raw}/v1/snapshots/${snapshot:raw}?wait=5s)
- [What else went wrong at its target then](${admin:raw}/v1/snapshots/${snapshot:raw}?around=30s)

Both ask the gateway's admin listener, whose address stands above. Beyond loopback it wants a token; a browser sends none, so
there: `snapgate lookup --admin ${admin:raw} ${snapshot:raw}`."""),
            trace("Its trace", "The trace whose ID is the snapshot ID, which it is unless the client brought a trace.",
                  "Tempo has no trace of this ID: look for it to the right, by attribute", "${snapshot}"),
            found("Its spans, whatever their trace", "Spans that carry the snapshot ID.", "Tempo has no span of this snapshot",
                  '{ span.snapgate.snapshot.id = "${snapshot}" } | select(span.snapgate.outcome.ending, '
                  "span.snapgate.decision.target, span.snapgate.decision.reason, span.snapgate.decision.state.waiting, "
                  "span.snapgate.decision.state.kv_cache_usage, span.snapgate.timings.first_content_offset_us)", w=24),
            logged("The document", "The whole record, from the JSON log or the OTLP log records.",
                   "no line in Loki has this ID in the time above",
                   '{service_name="$service"} | snapshot_id="${snapshot}"', h=14),
        ],
        written("snapshot", "Snapshot ID"), ADMIN, SERVICE,
        backends=("tempo", "loki"), since="now-24h",
    )


def main() -> None:
    for board in (requests(), fleet(), decisions(), pipeline(), snapshot()):
        (Path(__file__).parent / f"{board['uid']}.json").write_text(rendered(board))


if __name__ == "__main__":
    main()

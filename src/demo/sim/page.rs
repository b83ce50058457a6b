//! The `/metrics` page, under vLLM's own names, labels, buckets and number format.

use std::fmt::Write;

use super::engine::{BLOCK_TOKENS, Load};
use super::totals::{FinishReason, Histogram, Totals};

/// What the page says besides what the engine counts.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) model: &'a str,
    pub(super) kv_blocks: u32,
    /// Unix seconds at which the engine started: every counter's `_created`.
    pub(super) created: f64,
}

impl Page<'_> {
    pub(super) fn text(&self, load: Load, totals: &Totals) -> String {
        let mut lines =
            Lines { text: String::with_capacity(16 * 1024), model: escaped(self.model), created: self.created };
        lines.gauges(load);
        lines.counters(totals);
        lines.histogram(
            "time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            &totals.first_token,
        );
        lines.histogram(
            "inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            &totals.inter_token,
        );
        lines.histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", &totals.whole);
        lines.histogram(
            "request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            &totals.queue,
        );
        lines.head("cache_config_info", "Information of the LLMEngine CacheConfig", "gauge");
        lines.add(format_args!(
            "vllm:cache_config_info{{block_size=\"{BLOCK_TOKENS}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",\
             engine=\"0\",gpu_memory_utilization=\"0.92\",num_gpu_blocks=\"{}\"}} 1.0\n",
            self.kv_blocks
        ));
        lines.text
    }
}

struct Lines {
    text: String,
    model: String,
    created: f64,
}

impl Lines {
    fn add(&mut self, line: std::fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect("writing to a string does not fail");
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.add(format_args!("# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n"));
    }

    /// One line. vLLM's client library sorts labels by name; `before` sorts before `model_name` and `after` after it.
    fn value(&mut self, name: &str, before: Label<'_>, after: Label<'_>, value: f64) {
        let model = std::mem::take(&mut self.model);
        let (number, before, after) =
            (number(value), before.map_or(String::new(), label), after.map_or(String::new(), label));
        let after = after.trim_end_matches(',');
        let comma = if after.is_empty() { "" } else { "," };
        self.add(format_args!("vllm:{name}{{engine=\"0\",{before}model_name=\"{model}\"{comma}{after}}} {number}\n"));
        self.model = model;
    }

    fn gauges(&mut self, load: Load) {
        let (running, waiting) = (load.running as f64, load.waiting as f64);
        self.head("num_requests_running", "Number of requests in model execution batches.", "gauge");
        self.value("num_requests_running", None, None, running);
        self.head("num_requests_waiting", "Number of requests waiting to be processed.", "gauge");
        self.value("num_requests_waiting", None, None, waiting);
        self.head(
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; \
             'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all \
             reasons equals vllm:num_requests_waiting.",
            "gauge",
        );
        self.value("num_requests_waiting_by_reason", None, Some(("reason", "capacity")), waiting);
        self.value("num_requests_waiting_by_reason", None, Some(("reason", "deferred")), 0.0);
        self.head("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", "gauge");
        self.value("kv_cache_usage_perc", None, None, load.kv_usage);
    }

    fn counters(&mut self, totals: &Totals) {
        let counters = [
            (
                "prefix_cache_queries",
                "Prefix cache queries, in terms of number of queried tokens.",
                totals.prefix_queries,
            ),
            ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", totals.prefix_hits),
            ("num_preemptions", "Cumulative number of preemption from the engine.", 0),
            ("prompt_tokens", "Number of prefill tokens processed.", totals.prompt_tokens),
            ("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", totals.prefix_hits),
            ("generation_tokens", "Number of generation tokens processed.", totals.generation_tokens),
        ];
        for (name, help, value) in counters {
            self.counter(name, help, &[(None, value)]);
        }
        let ended = FinishReason::ALL.map(|reason| (Some(("finished_reason", reason.name())), totals.ended_by(reason)));
        self.counter("request_success", "Count of successfully processed requests.", &ended);
    }

    fn counter(&mut self, name: &str, help: &str, values: &[(Label<'_>, u64)]) {
        let (total, created, created_at) = (format!("{name}_total"), format!("{name}_created"), self.created);
        self.head(&total, help, "counter");
        for (label, value) in values {
            self.value(&total, *label, None, *value as f64);
        }
        self.head(&created, help, "gauge");
        for (label, _) in values {
            self.value(&created, *label, None, created_at);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        let (bucket, created, created_at) = (format!("{name}_bucket"), format!("{name}_created"), self.created);
        self.head(name, help, "histogram");
        for (bound, count) in histogram.cumulative() {
            self.value(&bucket, Some(("le", &number(bound))), None, count as f64);
        }
        self.value(&format!("{name}_count"), None, None, histogram.count() as f64);
        self.value(&format!("{name}_sum"), None, None, histogram.sum_seconds());
        self.head(&created, help, "gauge");
        self.value(&created, None, None, created_at);
    }
}

/// A label besides engine and model.
type Label<'a> = Option<(&'a str, &'a str)>;

fn label((name, value): (&str, &str)) -> String {
    format!("{name}=\"{value}\",")
}

/// As Python's client library prints numbers: a point is always there, and from a million on an exponent too.
pub(super) fn number(value: f64) -> String {
    if value == f64::INFINITY {
        return "+Inf".to_owned();
    }
    let plain = format!("{value:?}");
    match plain.find('.') {
        Some(point) if point > 6 && value > 0.0 => {
            let digits = format!("{}.{}{}", &plain[..1], &plain[1..point], &plain[point + 1..]);
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits}e+{:02}", point - 1)
        }
        _ => plain,
    }
}

/// A label's value may hold anything; three characters need a backslash.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const REAL: &str = include_str!("../../../tests/fixtures/vllm-0.32.0/metrics-busy.txt");

    fn page(model: &str) -> String {
        Page { model, kv_blocks: 8192, created: 1_795_437_730.492_728 }.text(Load::default(), &Totals::default())
    }

    /// Everything but the values, in order, by metric.
    fn shape(page: &str) -> BTreeMap<String, Vec<String>> {
        let mut shape = BTreeMap::<_, Vec<_>>::new();
        let mut metric = String::new();
        for line in page.lines() {
            match line.strip_prefix("# HELP ") {
                Some(help) => metric = help.split(' ').next().unwrap().to_owned(),
                None if line.starts_with('#') => {}
                None => {
                    let series = line.rsplit_once(' ').unwrap().0.to_owned();
                    shape.entry(metric.clone()).or_default().push(series);
                    continue;
                }
            }
            shape.entry(metric.clone()).or_default().push(line.to_owned());
        }
        shape
    }

    #[test]
    fn every_metric_has_the_lines_of_a_real_vllm() {
        let (ours, real) = (shape(&page("tiny")), shape(REAL));
        assert!(ours.len() > 20, "{:?}", ours.keys());
        for (metric, lines) in ours.iter().filter(|(metric, _)| *metric != "vllm:cache_config_info") {
            assert_eq!(Some(lines), real.get(metric), "{metric}");
        }
    }

    #[test]
    fn the_configuration_is_a_part_of_a_real_one() {
        let labels = |page: &str| -> Vec<String> {
            let line = page.lines().find(|line| line.starts_with("vllm:cache_config_info{")).unwrap();
            let inner = line.split_once('{').unwrap().1.split_once('}').unwrap().0;
            inner.split(',').filter(|label| !label.starts_with("block_size")).map(str::to_owned).collect()
        };
        let real = labels(REAL);
        for label in labels(&page("tiny")) {
            assert!(real.contains(&label), "{label}");
        }
    }

    #[test]
    fn numbers_look_as_pythons() {
        for (value, text) in [
            (0.0, "0.0"),
            (1_332.0, "1332.0"),
            (0.000_976_681_723_843_242_4, "0.0009766817238432424"),
            (999_999.0, "999999.0"),
            (1_234_567.0, "1.234567e+06"),
            (2_000_000.0, "2e+06"),
            (1_795_437_730.620_962_9, "1.7954377306209629e+09"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_models_name_cannot_break_the_page() {
        assert!(page("a\"b\\c\nd").contains(r#"model_name="a\"b\\c\nd"}"#));
    }
}

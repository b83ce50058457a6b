//! The `/metrics` page under SGLang's names, as far as the simulated engine has numbers for them.

use std::fmt::Write;

use super::engine::Load;
use super::page::{escaped, number};
use super::totals::{FinishReason, Histogram, Totals};

/// The page of a pod that serves this model.
pub(super) fn text(model: &str, load: Load, totals: &Totals) -> String {
    let mut lines = Lines { text: String::with_capacity(8 * 1024), model: escaped(model) };
    lines.gauge("num_running_reqs", "The number of running requests.", load.running as f64);
    lines.gauge("num_queue_reqs", "The number of requests in the waiting queue.", load.waiting as f64);
    lines.gauge("token_usage", "The token usage.", load.kv_usage);
    lines.counter("prompt_tokens_total", "Number of prefill tokens processed.", None, totals.prompt_tokens);
    let cached = "Number of cached prompt tokens by source (device/host/storage).";
    lines.counter("cached_tokens_total", cached, Some("cache_source=\"device\""), totals.prefix_hits);
    lines.counter("generation_tokens_total", "Number of generation tokens processed.", None, totals.generation_tokens);
    let ended = FinishReason::ALL.map(|reason| totals.ended_by(reason)).into_iter().sum();
    lines.counter("num_requests_total", "Number of requests processed.", None, ended);
    let aborted = totals.ended_by(FinishReason::Abort);
    lines.counter("num_aborted_requests_total", "Number of requests aborted.", None, aborted);
    lines.histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", &totals.first_token);
    lines.histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", &totals.inter_token);
    lines.histogram("e2e_request_latency_seconds", "Histogram of End-to-end request latency in seconds", &totals.whole);
    lines.text
}

struct Lines {
    text: String,
    model: String,
}

impl Lines {
    fn add(&mut self, line: std::fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect("writing to a string does not fail");
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.add(format_args!("# HELP sglang:{name} {help}\n# TYPE sglang:{name} {kind}\n"));
    }

    fn value(&mut self, name: &str, label: Option<&str>, value: f64) {
        let (model, label) =
            (std::mem::take(&mut self.model), label.map_or(String::new(), |label| format!("{label},")));
        self.add(format_args!("sglang:{name}{{{label}model_name=\"{model}\"}} {}\n", number(value)));
        self.model = model;
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "gauge");
        self.value(name, Some("engine_type=\"unified\""), value);
    }

    fn counter(&mut self, name: &str, help: &str, label: Option<&str>, value: u64) {
        self.head(name, help, "counter");
        self.value(name, label, value as f64);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        for (bound, count) in histogram.cumulative() {
            self.value(&format!("{name}_bucket"), Some(&format!("le=\"{}\"", number(bound))), count as f64);
        }
        self.value(&format!("{name}_count"), None, histogram.count() as f64);
        self.value(&format!("{name}_sum"), None, histogram.sum_seconds());
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::fleet::{AUTO, Engines, Pages};

    #[test]
    fn the_fleet_takes_the_page_for_sglangs_and_misses_nothing() {
        let page = text("a\"b", Load { running: 3, waiting: 2, kv_usage: 0.5 }, &Totals::default());
        let mut pages = Pages::new(Engines::new(&[]).possible(AUTO), Duration::from_secs(10));
        let read = pages.read(page.as_bytes(), Instant::now()).unwrap();
        assert_eq!((&*read.engine, read.garbage, read.absent.len()), ("sglang", 0, 0), "{page}");
        assert_eq!(read.values[..3], [Some(2.0), Some(3.0), Some(0.5)]);
    }
}

//! What the page says of requests, targets and exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::requests::{ERRORS_MAX, HTTP_SERIES_MAX};
use super::*;
use crate::snapshot::outcome::Answer;
use crate::snapshot::record::tests::finished;
use crate::snapshot::{
    Attempt, Candidate, Decision, Ending, Excluded, Health, Inputs, Issued, Operation, Outcome, Policy, Quantity,
    Reading, Reason, Request, Sample, Source, Target, Timings,
};

/// A streamed chat of ten tokens that took two seconds at `target`.
fn chat(number: u64, model: &str, target: (u32, &str)) -> Record {
    let of = finished(number);
    let issued_at = of.issued.issued_at;
    let (slot, name) = target;
    let target = Arc::new(Target::new(slot, name, "10.0.3.1:8000"));
    let mut readings = [Reading::MISSING; Quantity::COUNT];
    let freshness = crate::snapshot::Freshness::Fresh;
    readings[0] = Reading { value: Some(3.0), observed: issued_at, source: Some(Source::Scrape), freshness };
    let sample = Sample::new(Arc::clone(&target), 1, issued_at, Health::Healthy, readings, 10_000);
    let candidate = Candidate {
        sample: Arc::new(sample),
        place: Some(0),
        in_flight: 1,
        requests_per_second: 1.0,
        tokens_per_second: 10.0,
        score: Some(0.0),
        score_parts: [0.0; 3],
    };
    let decision = Decision {
        policy: Policy::LeastQueue,
        reason: Reason::LowestScore,
        forced: false,
        fallback: None,
        decided_offset_ns: 40_000,
        choose_ns: 2_000,
        decided: issued_at.plus(Duration::from_millis(200)),
        view_published: issued_at,
        eligible: 1,
        excluded: Excluded { unhealthy: 2, ..Excluded::default() },
        candidates: [candidate].into_iter().collect(),
        inputs: Inputs::default(),
    };
    let request =
        Request { method: "POST".into(), operation: Operation::Chat, model: Some(model.into()), ..Request::default() };
    let attempt = Attempt {
        target,
        started_offset_us: 60,
        connect_us: Some(0),
        first_byte_offset_us: Some(9_000),
        status: Some(200),
        error: None,
        retry: None,
    };
    let answer =
        Answer { prompt_tokens: Some(50), completion_tokens: Some(10), cached_tokens: Some(20), ..Answer::default() };
    let timings = Timings { first_content_offset_us: Some(200_000), end_offset_us: 2_000_000, ..Timings::default() };
    let outcome = Outcome {
        ending: Ending::Completed,
        status: Some(200),
        error: None,
        attempts: vec![attempt],
        response_bytes: 1,
        events: 12,
        answer,
        timings,
        trace_exported: None,
    };
    Record::closed(Issued { request, decision: Some(decision), ..of.issued }, outcome)
}

/// The same request with another end.
fn ended(record: &Record, ending: Ending, status: u16) -> Record {
    let outcome = record.outcome().unwrap().clone();
    Record::closed(record.issued.clone(), Outcome { ending, status: Some(status), ..outcome })
}

#[track_caller]
fn assert_says(page: &str, lines: &[&str]) {
    for line in lines {
        assert!(page.lines().any(|other| other == *line), "{line} is not on the page:\n{page}");
    }
}

fn of_targets(targets: &[&str]) -> Arc<Metrics> {
    let metrics = Metrics::new();
    metrics.identify(&finished(0).issued.run, "vllm");
    metrics.set_targets(targets.iter().copied(), &["timeout"]);
    metrics
}

#[test]
fn a_finished_request_is_counted_by_what_it_was() {
    let metrics = of_targets(&["a"]);
    let mut observer = metrics.observer();
    let record = chat(1, "m", (0, "a"));
    observer.finished(&record);
    observer.finished(&ended(&record, Ending::UpstreamReset, 200));
    let id = record.id();
    assert_says(
        &metrics.page(),
        &[
            "snapgate_requests_total{ending=\"completed\",fault=\"none\"} 1",
            "snapgate_requests_total{ending=\"upstream_reset\",fault=\"target\"} 1",
            "snapgate_requests_total{ending=\"shutdown\",fault=\"gateway\"} 0",
            "http_server_request_duration_seconds_count{http_request_method=\"POST\",http_response_status_code=\"200\",error_type=\"upstream_reset\"} 1",
            "gen_ai_server_request_duration_seconds_sum{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"vllm\",gen_ai_request_model=\"m\",target=\"a\",error_type=\"\"} 2",
            "gen_ai_server_request_duration_seconds_count{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"vllm\",gen_ai_request_model=\"m\",target=\"a\",error_type=\"upstream_reset\"} 1",
            "gen_ai_server_time_per_output_token_seconds_sum{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"vllm\",gen_ai_request_model=\"m\",target=\"a\"} 0.2",
            &format!(
                "gen_ai_server_time_to_first_token_seconds_bucket{{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"vllm\",gen_ai_request_model=\"m\",target=\"a\",le=\"0.25\"}} 1 # {{snapshot_id=\"{id}\",trace_id=\"{id}\"}} 0.2 1795435997.001000"
            ),
            "snapgate_prompt_tokens_total{model=\"m\",target=\"a\"} 100",
            "snapgate_cached_prompt_tokens_total{model=\"m\",target=\"a\"} 40",
            "snapgate_decisions_total{policy=\"least_queue\",reason=\"lowest_score\"} 2",
            "snapgate_decision_exclusions_total{reason=\"unhealthy\"} 4",
            "snapgate_target_decisions_total{target=\"a\"} 2",
            "snapgate_target_attempts_total{target=\"a\",result=\"answered\"} 2",
            "snapgate_chosen_state_age_seconds_sum 0.4",
            "snapgate_scrape_failures_total{target=\"a\",reason=\"timeout\"} 0",
        ],
    );
}

#[test]
fn an_operation_that_is_not_known_makes_no_claim_about_its_provider() {
    let metrics = of_targets(&["a"]);
    let chat = chat(1, "m", (0, "a"));
    let request = Request { operation: Operation::Other, ..chat.issued.request.clone() };
    let other = Record::closed(Issued { request, ..chat.issued.clone() }, chat.outcome().unwrap().clone());
    metrics.finished(&other);
    let labels = r#"{gen_ai_operation_name="other",gen_ai_provider_name="",gen_ai_request_model="m",target="a"}"#;
    assert_says(&metrics.page(), &[&format!("gen_ai_server_time_to_first_token_seconds_sum{labels} 0.2")]);
}

#[test]
fn the_two_formats_say_the_same_and_only_one_has_exemplars() {
    let metrics = of_targets(&["a \"b\"\\"]);
    metrics.finished(&chat(1, "m\n", (0, "a \"b\"\\")));
    let (open, text) = (metrics.render(Format::OpenMetrics, None), metrics.render(Format::Text, None));
    assert!(open.ends_with("# EOF\n") && !text.contains("# EOF") && !text.contains("# UNIT"));
    assert_says(&open, &["# TYPE snapgate_requests counter", "# UNIT snapgate_store_bytes bytes"]);
    assert_says(&text, &["# TYPE snapgate_requests_total counter"]);
    let labels = r#"{model="m\n",target="a \"b\"\\"}"#;
    assert_says(&text, &[&format!("snapgate_completion_tokens_total{labels} 10")]);
    let series = |page: &str| -> Vec<String> {
        let lines = page.lines().filter(|line| !line.starts_with('#') && !line.starts_with("process_"));
        lines.map(|line| line.split(" # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(series(&open), series(&text));
    let exemplars: Vec<_> = open.lines().filter_map(|line| line.split_once(" # {")?.1.split_once('}')).collect();
    assert!(exemplars.len() >= 4 && !text.contains("snapshot_id"));
    for (labels, _) in exemplars {
        assert!(labels.replace(['"', '=', ','], "").len() <= 128, "{labels}");
    }
}

#[test]
fn the_series_of_a_target_leave_with_it_and_late_requests_are_nobodys() {
    let metrics = of_targets(&["a", "b"]);
    let mut observer = metrics.observer();
    let record = chat(1, "m", (0, "a"));
    observer.finished(&record);
    metrics.scraped("a", 0.01);
    metrics.scrape_paced("a", Duration::from_millis(10), Duration::from_millis(500));
    assert_says(
        &metrics.page(),
        &[
            "snapgate_target_scrape_duration_seconds{target=\"a\"} 0.01",
            "snapgate_target_scrape_interval_seconds{target=\"a\"} 0.5",
        ],
    );
    metrics.set_targets(["b"].into_iter(), &["timeout"]);
    assert!(!metrics.page().contains("target=\"a\""), "{}", metrics.page());
    observer.finished(&record);
    metrics.scraped("a", 0.01);
    metrics.scrape_paced("a", Duration::from_millis(10), Duration::from_millis(500));
    let page = metrics.page();
    assert!(!page.contains("snapgate_target_scrape_duration_seconds{"), "b was not read yet, and a is gone: {page}");
    assert!(!page.contains("target=\"a\"") && page.contains("snapgate_scrapes_total{target=\"b\"} 0\n"), "{page}");
    assert_says(
        &page,
        &[
            "snapgate_completion_tokens_total{model=\"m\",target=\"_other\"} 10",
            "snapgate_target_decisions_total{target=\"_other\"} 1",
            "snapgate_labels_overflowed_total{label=\"target\"} 1",
            "snapgate_requests_total{ending=\"completed\",fault=\"none\"} 2",
        ],
    );
    metrics.set_targets(["a", "b"].into_iter(), &["timeout"]);
    observer.finished(&record);
    assert_says(&metrics.page(), &["snapgate_target_decisions_total{target=\"a\"} 1"]);
}

#[test]
fn names_of_models_that_clients_make_up_take_no_room() {
    let metrics = of_targets(&["a"]);
    let mut observer = metrics.observer();
    for number in 0..300 {
        let made_up = chat(number, &format!("made-up-{number}"), (0, "a"));
        observer.finished(&ended(&made_up, Ending::Completed, 404));
    }
    for number in 0..120 {
        observer.finished(&chat(number, &format!("served-{number:03}"), (0, "a")));
    }
    observer.finished(&chat(1, &"long".repeat(40), (0, "a")));
    let page = metrics.page();
    assert!(
        !page.contains("made-up") && page.contains("model=\"served-099\"") && !page.contains("model=\"served-100\"")
    );
    assert_says(&page, &["snapgate_labels_overflowed_total{label=\"model\"} 321"]);
}

#[test]
fn a_models_name_can_neither_end_its_label_nor_its_line() {
    let metrics = of_targets(&["a"]);
    metrics.finished(&chat(1, "a\"} 1\nsnapgate_forged 2\\", (0, "a")));
    let labels = r#"{model="a\"} 1\nsnapgate_forged 2\\",target="a"}"#;
    for format in [Format::Text, Format::OpenMetrics] {
        let page = metrics.render(format, None);
        assert_says(&page, &[&format!("snapgate_completion_tokens_total{labels} 10")]);
        assert!(!page.lines().any(|line| line.starts_with("snapgate_forged")), "{page}");
    }
}

#[test]
fn what_has_no_series_of_its_own_for_want_of_room_is_counted() {
    let names: Vec<_> = (0..40).map(|number| format!("t{number}")).collect();
    let metrics = of_targets(&names.iter().map(|name| &**name).collect::<Vec<_>>());
    let mut observer = metrics.observer();
    // 2,000 combinations, and then 120 more; no label has more values than it may.
    for number in 0..53 {
        for (slot, name) in (0..).zip(&names) {
            observer.finished(&chat(number, &format!("m{number}"), (slot, name)));
        }
    }
    let statuses = (200..=450).map(|status| ended(&chat(1, "m0", (0, "t0")), Ending::Completed, status));
    statuses.for_each(|record| observer.finished(&record));
    let page = metrics.page();
    assert!(page.contains("gen_ai_request_model=\"m49\"") && !page.contains("gen_ai_request_model=\"m50\""));
    assert_says(
        &page,
        &[
            "snapgate_labels_overflowed_total{label=\"model\"} 120",
            "snapgate_labels_overflowed_total{label=\"target\"} 120",
            "snapgate_labels_overflowed_total{label=\"http_response_status_code\"} 51",
        ],
    );
}

#[test]
fn a_target_that_makes_up_statuses_takes_no_more_room_than_others() {
    let metrics = of_targets(&["a"]);
    let mut observer = metrics.observer();
    let record = chat(1, "m", (0, "a"));
    // As many as are told apart, without an error, and then a hundred errors.
    let statuses = (200..200 + HTTP_SERIES_MAX as u16).chain(500..=599);
    statuses.for_each(|status| observer.finished(&ended(&record, Ending::Completed, status)));
    observer.finished(&ended(&record, Ending::UpstreamReset, 599));
    let page = metrics.page();
    let series = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(series("http_server_request_duration_seconds_count"), HTTP_SERIES_MAX + 2);
    assert_eq!(series("gen_ai_server_request_duration_seconds_count"), 1 + ERRORS_MAX + 2);
    let of_model =
        "gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"vllm\",gen_ai_request_model=\"m\",target=\"a\"";
    assert_says(
        &page,
        &[
            "http_server_request_duration_seconds_count{http_request_method=\"POST\",http_response_status_code=\"\",error_type=\"_other\"} 100",
            "http_server_request_duration_seconds_count{http_request_method=\"POST\",http_response_status_code=\"\",error_type=\"upstream_reset\"} 1",
            &format!("gen_ai_server_request_duration_seconds_count{{{of_model},error_type=\"_other\"}} 80"),
            &format!("gen_ai_server_request_duration_seconds_count{{{of_model},error_type=\"upstream_reset\"}} 1"),
            "snapgate_labels_overflowed_total{label=\"error_type\"} 80",
            "snapgate_labels_overflowed_total{label=\"http_response_status_code\"} 101",
        ],
    );
}

#[test]
fn why_an_exit_may_fail_is_on_the_page_before_it_does() {
    let metrics = Metrics::new();
    let books = metrics.exit("json_log");
    books.may_fail(&["disk_full"]);
    let errors = |reason, count| format!("snapgate_exit_errors_total{{exit=\"json_log\",reason=\"{reason}\"}} {count}");
    assert_says(&metrics.page(), &[&errors("disk_full", 0), &errors("panic", 0)]);
    books.error("disk_full");
    books.may_fail(&["disk_full"]);
    assert_says(&metrics.page(), &[&errors("disk_full", 1)]);
}

#[test]
fn what_is_offered_and_what_became_of_it_are_equal_on_every_page() {
    let metrics = Metrics::new();
    let (books, stop) = (metrics.exit("json_log"), AtomicBool::new(false));
    books.recover(7);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                books.offer(10);
                books.settle(5, 1, 1);
                books.lose("expired", 3);
                books.offered_and_dropped("queue_full", 1);
                books.offered_and_skipped(2);
            }
        });
        for _ in 0..200 {
            let page = metrics.page();
            let sum = |noun: &str| -> u64 {
                let lines = page.lines().filter(|line| line.starts_with(&format!("snapgate_snapshots_{noun}{{")));
                lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
            };
            let became = ["delivered_total", "rejected_total", "dropped_total", "skipped_total", "pending"];
            assert_eq!(sum("offered_total") + sum("recovered_total"), became.map(sum).iter().sum::<u64>());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(books.sums().pending, 7);
}

//! Load reports: what targets send is read, recorded and kept from clients, and what clients get is what the choice saw.

use snapgate::demo::sim::{LoadReports, SimSettings};
use snapgate::orca::{Rules, read};

use crate::gateway::{Answer, Client, Found, Gateway, Request, Setup, Sims, Then, Upstream, until};

/// A target that answers in one piece with these header lines.
fn target(headers: &'static str) -> Upstream {
    Upstream::start(move |exchange| {
        exchange.answer("200 OK", headers, "{}");
        Then::Next
    })
}

/// A simulated pod that reports its load in every format.
fn reporting() -> Sims {
    Sims::start([SimSettings { load_reports: LoadReports::Full, ..SimSettings::instant() }])
}

/// The headers of an answer that are a load report in any spelling.
fn reports(answer: &Answer) -> Vec<(&str, &str)> {
    let lines = answer.head.headers.iter().map(|(name, value)| (&**name, &**value));
    lines.filter(|(name, _)| name.contains("endpoint-load-metrics")).collect()
}

fn ask_for(format: &str) -> Request {
    Request::chat().with("endpoint-load-metrics-format", format)
}

/// A counter on the metrics page; `None` if there is no such series.
fn counted(gateway: &Gateway, series: &str) -> Option<u64> {
    let page = Client::to(gateway.admin).ask(&Request::get("/metrics"));
    let line = page.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("it counts"))
}

/// The record's report, without its moment.
fn recorded(found: &Found) -> [Option<String>; 5] {
    ["source", "format", "phase", "named_metrics", "other_metrics"].map(|key| {
        let value = found.at(&format!("/backend_report/{key}"));
        (!value.is_null()).then(|| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    })
}

/// A quantity of the only target as `/v1/fleet` has it, once it has this source.
fn known(gateway: &Gateway, quantity: &str, source: &str) -> f64 {
    until("the target's state has that source", || {
        let fleet = gateway.admin("/v1/fleet");
        let state = "/targets/0/state";
        let is_it = fleet.text_at(&format!("{state}/{quantity}_source")) == Some(source);
        is_it.then(|| fleet.at(&format!("{state}/{quantity}")).as_f64().expect("it has a value"))
    })
}

#[test]
fn a_report_stands_in_the_record_and_freshens_the_state_and_no_client_sees_it() {
    let upstream = target(
        "endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0, cpu_utilization=1.5\r\n",
    );
    let gateway = Setup::before(&[upstream.address]).start();
    let answer = gateway.ask(&Request::chat());
    assert_eq!(reports(&answer), []);
    let found = gateway.ended(&answer.id());
    let named = r#"{"kv_cache_usage_perc":0.4,"num_requests_waiting":3}"#;
    let expected = ["orca", "text", "response_head", named, r#"{"cpu_utilization":1.5}"#];
    assert_eq!(recorded(&found), expected.map(|text| Some(text.to_owned())));
    let offset = |pointer: &str| found.at(pointer).as_u64().expect("it has a time");
    let (head, report, end) = (
        offset("/timings/first_byte_offset_us"),
        offset("/backend_report/received_offset_us"),
        offset("/timings/end_offset_us"),
    );
    assert!(head <= report && report <= end, "{head} {report} {end}");

    assert_eq!((known(&gateway, "waiting", "orca"), known(&gateway, "kv_cache_usage", "orca")), (3.0, 0.4));
    let fleet = gateway.admin("/v1/fleet");
    assert_eq!(fleet.text_at("/targets/0/state/running_freshness"), Some("missing"), "nobody has said: {}", fleet.text);
    let next = gateway.ask(&Request::chat());
    let next = gateway.ended(&next.id());
    assert_eq!(next.text_at("/decision/state/waiting_source"), Some("orca"), "the next choice knows it");
    assert_eq!(gateway.stored(&answer.id()).document(), found.document(), "it is stored whole");
    gateway.stop().has_exactly(&[found, next]);
}

#[test]
fn a_page_takes_the_place_of_a_report_and_the_other_way_round() {
    let sims = reporting();
    let gateway = Setup::before(sims.addresses())
        .set("load_reports.ask", "json")
        .set("fleet.poll_interval", "50ms")
        .set("fleet.publish_interval", "10ms")
        .start();
    for _round in 0..2 {
        known(&gateway, "waiting", "scrape");
        until("a report freshens it", || {
            gateway.ask(&Request::chat());
            let fleet = gateway.admin("/v1/fleet");
            (fleet.text_at("/targets/0/state/waiting_source") == Some("orca")).then_some(())
        });
    }
}

#[test]
fn a_report_that_nobody_can_use_is_counted_and_disturbs_nothing() {
    let good = "x-kept: yes\r\n";
    for (lines, reason) in [
        ("endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=nan\r\n", "out_of_range"),
        ("endpoint-load-metrics: JSON {\"eps\"\r\n", "not_json"),
        ("endpoint-load-metrics-bin: !\r\nendpoint-load-metrics: TEXT eps=1\r\n", "not_base64"),
        ("endpoint-load-metrics: \r\n", "unknown_format"),
        ("endpoint-load-metrics: TEXT \u{e9}=1\r\n", "unknown_name"),
    ] {
        let upstream = target([lines, good].concat().leak());
        let gateway = Setup::before(&[upstream.address]).start();
        let answer = gateway.ask(&Request::chat());
        assert_eq!((answer.status, answer.header("x-kept"), answer.text()), (200, Some("yes"), "{}"), "{lines}");
        assert_eq!(reports(&answer), [], "{lines}");
        assert_eq!(recorded(&gateway.ended(&answer.id())), [const { None }; 5], "{lines}");
        let refused = format!("snapgate_load_reports_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(counted(&gateway, &refused), Some(1), "{lines}");
    }
    let huge = format!("endpoint-load-metrics: TEXT eps=1,{}\r\n", "a".repeat(5_000));
    let upstream = target(huge.leak());
    let gateway = Setup::before(&[upstream.address]).start();
    assert_eq!(gateway.ask(&Request::chat()).text(), "{}");
    assert_eq!(counted(&gateway, "snapgate_load_reports_refused_total{reason=\"too_large\"}"), Some(1));
}

#[test]
fn what_can_be_understood_is_kept_unless_envoys_rules_are_wanted() {
    let two_engines = "endpoint-load-metrics: TEXT named_metrics.num_requests_waiting=2.0, named_metrics.num_requests_waiting=5.0\r\n";
    let upstream = target(two_engines);
    let named = |rules: &str| {
        let gateway = Setup::before(&[upstream.address]).set("load_reports.read", rules).start();
        let [.., named, _] = recorded(&gateway.ended(&gateway.ask(&Request::chat()).id()));
        let count = |series: &str| counted(&gateway, series).unwrap_or_else(|| panic!("there is no {series}"));
        let dropped = count("snapgate_load_report_entries_dropped_total{reason=\"duplicate\"}");
        (named, dropped, count("snapgate_load_reports_refused_total{reason=\"duplicate\"}"))
    };
    assert_eq!(named("lenient"), (Some(r#"{"num_requests_waiting":5}"#.to_owned()), 1, 0), "the longer queue");
    assert_eq!(named("strict"), (None, 0, 1));
    assert_eq!(named("off"), (None, 0, 0));
}

#[test]
fn a_report_may_come_at_the_end_and_the_first_that_can_be_read_counts() {
    for (head, first) in [
        ("", "end"),
        ("endpoint-load-metrics: TEXT nonsense\r\n", "end"),
        ("endpoint-load-metrics: TEXT eps=1\r\n", "head"),
    ] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{head}trailer: endpoint-load-metrics-bin\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\
             endpoint-load-metrics-bin: CQAAAAAAAOA/MQAAAAAAAFlAOQAAAAAAAABAQg4KA3JpZhEAAAAAAAAQQA\r\n\r\n"
        );
        let upstream = Upstream::start(move |exchange| {
            exchange.send(&answer);
            Then::Next
        });
        let gateway = Setup::before(&[upstream.address]).start();
        let found = gateway.ended(&gateway.ask(&Request::chat()).id());
        let [_, format, phase, ..] = recorded(&found);
        let expected = if first == "end" { ("bin", "response_end") } else { ("text", "response_head") };
        assert_eq!((format.as_deref(), phase.as_deref()), (Some(expected.0), Some(expected.1)), "{head}");
    }
}

#[test]
fn targets_are_asked_as_each_is_set_and_never_as_the_client_wishes() {
    let (asked, spared) = (target(""), target(""));
    let targets = format!(
        "[{{ name = \"asked\", url = \"http://{}\", ask_for_load_report = \"text\" }}, \
          {{ name = \"spared\", url = \"http://{}\", ask_for_load_report = \"none\" }}]",
        asked.address, spared.address
    );
    for (everybody, expected) in [("none", None), ("json", None)] {
        let gateway = Setup::before(&[])
            .set("targets", &targets)
            .set("load_reports.ask", everybody)
            .set("policy", "round_robin")
            .start();
        for _request in 0..2 {
            gateway.ask(&ask_for("bin"));
        }
        for (upstream, expected) in [(&asked, Some("text")), (&spared, expected)] {
            let seen = upstream.received().pop().expect("each got one").head;
            assert_eq!(seen.header("endpoint-load-metrics-format"), expected);
        }
    }
    let plain = target("");
    let gateway = Setup::before(&[plain.address]).set("load_reports.ask", "json").start();
    gateway.ask(&Request::chat());
    assert_eq!(plain.only().head.header("endpoint-load-metrics-format"), Some("json"));
}

#[test]
fn an_attempt_at_another_target_asks_as_that_one_is_set() {
    let (gone, spared) = (Sims::refusing(1), target(""));
    let targets = format!(
        "[{{ name = \"gone\", url = \"http://{}\", ask_for_load_report = \"text\" }}, {{ name = \"spared\", url = \"http://{}\" }}]",
        gone.addresses()[0],
        spared.address
    );
    let gateway = Setup::before(&[]).set("targets", &targets).set("choice.allow_forced", "false").start();
    for _request in 0..4 {
        assert_eq!(gateway.ask(&Request::chat()).status, 200);
    }
    for received in spared.received() {
        assert_eq!(received.head.header("endpoint-load-metrics-format"), None);
    }
}

/// A gateway before one pod whose page was read, for clients that are told of it.
fn telling(sims: &Sims, to_clients: &str) -> Gateway {
    let gateway = Setup::before(sims.addresses())
        .set("load_reports.to_clients", to_clients)
        .set("load_reports.trusted", "127.0.0.0/8")
        .set("fleet.publish_interval", "10ms")
        .set("fleet.fresh_within", "1h")
        .start();
    known(&gateway, "waiting", "scrape");
    gateway
}

#[test]
fn a_client_that_asks_and_may_is_told_what_the_choice_saw_in_the_format_it_asked_for() {
    let sims = Sims::one();
    let gateway = telling(&sims, "on_request");
    assert_eq!(reports(&gateway.ask(&Request::chat())), [], "it did not ask");
    for (format, header, begin) in [
        ("text", "endpoint-load-metrics", "TEXT named_metrics."),
        ("JSON", "endpoint-load-metrics", "JSON {\"named_metrics\":{"),
        ("Bin", "endpoint-load-metrics-bin", ""),
    ] {
        for request in [ask_for(format), Request::stream(2).with("endpoint-load-metrics-format", format)] {
            let answer = gateway.ask(&request);
            let [(name, value)] = reports(&answer)[..] else { panic!("one report: {:?}", answer.head) };
            assert!(name == header && value.starts_with(begin) && value.len() <= 512, "{name}: {value}");
            let mut headers = http::HeaderMap::new();
            headers.insert(header, value.parse().expect("it is visible ASCII"));
            let told = read(&headers, Rules::Strict).expect("Envoy takes it").expect("it is there").report;
            assert_eq!(told.other_metrics, [], "what balancers weigh by is told only if it is named");
            let found = gateway.ended(&answer.id());
            for (metric, quantity) in [
                ("num_requests_waiting", "waiting"),
                ("num_requests_running", "running"),
                ("kv_cache_usage_perc", "kv_cache_usage"),
            ] {
                let seen = found.at(&format!("/decision/state/{quantity}")).as_f64();
                assert!(seen.is_some() && told.named(metric) == seen, "{metric}: {told:?} and {seen:?}");
            }
            let age = told.named("snapshot_age_ms").expect("it has an age");
            assert_eq!(found.at("/decision/state/waiting_age_ms").as_f64(), Some(age));
            assert_eq!(told.named("gpu_utilization"), None, "unknown is not 0");
        }
    }
    assert_eq!(counted(&gateway, "snapgate_load_reports_told_total{format=\"json\"}"), Some(2));
    assert_eq!(reports(&gateway.ask(&ask_for("yaml"))), []);
    assert_eq!(counted(&gateway, "snapgate_load_reports_untold_total{reason=\"unknown_format\"}"), Some(1));
}

#[test]
fn after_a_second_attempt_the_target_that_answers_is_told_of_and_not_the_one_that_was_chosen_first() {
    let page = |waiting: u32| {
        Upstream::start(move |exchange| {
            let page = format!("vllm:num_requests_waiting {waiting}\n");
            let is_page = exchange.request.head.path() == "/page";
            exchange.answer("200 OK", "", if is_page { &page } else { "{}" });
            Then::Next
        })
    };
    // What refuses requests has a page all the same, so that there is something wrong to tell.
    let (gone, of_gone, there) = (Sims::refusing(1), page(7), page(3));
    let targets = format!(
        "[{{ name = \"gone\", url = \"http://{}\", metrics = \":{}/page\" }}, \
          {{ name = \"there\", url = \"http://{}\", metrics = \"/page\" }}]",
        gone.addresses()[0],
        of_gone.address.port(),
        there.address
    );
    let gateway = Setup::before(&[])
        .set("targets", targets)
        .set("policy", "round_robin")
        .set("fleet.unhealthy_after", "1000")
        .set("fleet.eject_after", "0")
        .set("fleet.fresh_within", "1h")
        .set("load_reports.to_clients", "always")
        .start();
    until("both are known", || {
        let fleet = gateway.admin("/v1/fleet");
        let waiting = |target: usize| fleet.at(&format!("/targets/{target}/state/waiting")).as_f64();
        ([waiting(0), waiting(1)] == [Some(7.0), Some(3.0)]).then_some(())
    });
    let mut attempts = Vec::new();
    for _request in 0..4 {
        let answer = gateway.ask(&ask_for("json"));
        let [(_, value)] = reports(&answer)[..] else { panic!("one report: {:?}", answer.head) };
        assert!(value.contains("\"num_requests_waiting\":3"), "{value}");
        let found = gateway.ended(&answer.id());
        assert_eq!(found.text_at("/outcome/target"), Some("there"));
        attempts.push((found.at("/outcome/attempt_count").clone(), found.at("/decision/state/waiting").clone()));
    }
    assert!(attempts.contains(&(2.into(), 7.into())), "one was first sent to who refuses it: {attempts:?}");
}

#[test]
fn who_may_not_ask_is_not_told() {
    let sims = Sims::one();
    for (to_clients, trusted, reason) in
        [("strip", "127.0.0.1", None), ("on_request", "10.0.0.0/8", Some("not_allowed"))]
    {
        let gateway = Setup::before(sims.addresses())
            .set("load_reports.to_clients", to_clients)
            .set("load_reports.trusted", trusted)
            .set("fleet.fresh_within", "1h")
            .start();
        known(&gateway, "waiting", "scrape");
        assert_eq!(reports(&gateway.ask(&ask_for("json"))), []);
        if let Some(reason) = reason {
            let series = format!("snapgate_load_reports_untold_total{{reason=\"{reason}\"}}");
            assert_eq!(counted(&gateway, &series), Some(1));
        }
    }
}

#[test]
fn of_a_target_that_nothing_is_known_of_nothing_is_told() {
    let upstream = target("endpoint-load-metrics: TEXT eps=1\r\n");
    let gateway = Setup::before(&[upstream.address]).set("load_reports.to_clients", "always").start();
    assert_eq!(reports(&gateway.ask(&Request::chat())), [], "and not what the target says of itself");
    assert_eq!(counted(&gateway, "snapgate_load_reports_untold_total{reason=\"nothing_known\"}"), Some(1));
}

#[test]
fn what_has_no_room_is_left_out_the_least_important_first() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses())
        .set("load_reports.to_clients", "always")
        .set("load_reports.bytes", "64B")
        .set("load_reports.format", "text")
        .set("fleet.fresh_within", "1h")
        .start();
    known(&gateway, "waiting", "scrape");
    let answer = gateway.ask(&Request::chat());
    assert_eq!(reports(&answer), [("endpoint-load-metrics", "TEXT named_metrics.kv_cache_usage_perc=0")]);
    assert_eq!(counted(&gateway, "snapgate_load_reports_cut_total"), Some(1));
}

#[test]
fn a_targets_own_report_passes_if_the_operator_wants_that_and_it_can_be_read() {
    for (line, passes) in [
        ("TEXT named_metrics.a=1, named_metrics.b=2", true),
        ("TEXT nonsense", false),
        (&*format!("TEXT eps=1,{}", ",".repeat(600)), false),
    ] {
        let upstream = target(format!("endpoint-load-metrics: {line}\r\n").leak());
        let gateway = Setup::before(&[upstream.address]).set("load_reports.to_clients", "pass").start();
        let answer = gateway.ask(&Request::chat());
        let expected: &[(&str, &str)] = if passes { &[("endpoint-load-metrics", line)] } else { &[] };
        assert_eq!(reports(&answer), expected);
    }
}

#[test]
fn a_refusal_of_the_gateways_own_tells_nothing() {
    let sims = Sims::one();
    let gateway = telling(&sims, "always");
    let answer = gateway.ask(&Request::get("/metrics"));
    assert_eq!((answer.status, reports(&answer)), (404, Vec::new()));
}

#[test]
fn reports_of_nonsense_cost_no_answer() {
    let sims = Sims::start([SimSettings { load_reports: LoadReports::Malformed, ..SimSettings::instant() }]);
    let gateway = Setup::before(sims.addresses()).set("load_reports.ask", "text").start();
    let mut client = Client::to(gateway.data);
    for number in 0..16 {
        let request = if number % 2 == 0 { Request::chat() } else { Request::stream(2) };
        let answer = client.ask(&request);
        assert_eq!((answer.status, reports(&answer)), (200, Vec::new()));
    }
    let page = Client::to(gateway.admin).ask(&Request::get("/metrics"));
    let refused = page
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("snapgate_load_reports_refused_total{")?.split_once("} "));
    assert_eq!(refused.map(|(_, count)| count.parse::<u64>().expect("it counts")).sum::<u64>(), 16);
}

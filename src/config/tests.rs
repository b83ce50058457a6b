//! What a user may write, and what is said about what he may not.

use std::collections::HashMap;
use std::path::Path;

use proptest::prelude::*;

use super::keys::{FLAGS, KEYS, Key};
use super::value::Kind;
use super::*;
use crate::fleet::{GpuId, GpusOf, PodGpus};
use crate::gateway::Routes;
use crate::lookup::Token;
use crate::sink::json_log::{Destination, Rotation};
use crate::snapshot::Policy;

const COMMITTED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/snapgate.example.toml"));

fn machine() -> Machine {
    Machine { hostname: "pod-7".to_owned(), cores: 6 }
}

fn file(text: &str) -> Sources {
    Sources::of_text("f.toml", text, machine())
}

fn environment(mut sources: Sources, variables: &[(&str, &str)]) -> Sources {
    sources.environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))));
    sources
}

fn load(sources: &Sources) -> Result<Config, Mistakes> {
    Config::load(sources, Targets::Optional)
}

/// The mistakes in this file, one a line.
fn mistakes(sources: &Sources) -> Vec<String> {
    load(sources).unwrap_err().list().iter().map(Mistake::to_string).collect()
}

#[test]
fn nothing_at_all_is_a_configuration() {
    let config = load(&file("")).unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.admin.to_string(), "127.0.0.1:8081");
    assert_eq!(config.data_dir, Path::new("./snapgate-data"));
    assert_eq!((config.instance.as_str(), config.gateway.threads), ("pod-7", 6));
    assert_eq!(config.json_log, None);
    assert_eq!(config.gateway.choice.policy.name(), "least_request");
    assert_eq!(config.gateway.body_bytes_max, 16 << 20);
    assert_eq!(config.gateway.head_timeout, Duration::from_secs(600));
    assert_eq!(config.fleet.poll_target_share, 0.02);
    assert_eq!(config.store.as_ref().unwrap().retention_age, Duration::from_secs(7 * 24 * 3600));
    assert_eq!(config.pipeline.queue_records, 65_536);
    assert!(matches!(&config.gateway.routes, Routes::Only { paths, .. } if paths.contains("/v1/chat/completions")));
    assert!(config.fleet.targets.is_empty() && config.lookup.tokens.is_empty());
}

#[test]
fn serving_needs_a_target() {
    let wrong = Config::load(&file(""), Targets::Required).unwrap_err().to_string();
    let expected = "targets: there is none: add [[targets]] or [[discovery]] to the file, or --target http://HOST:PORT, or SNAPGATE_TARGETS\n\
                    1 mistake in the configuration: nothing was started";
    assert_eq!(wrong, expected);
    let given = file("").with_flag("--target", "targets", vec!["a=http://h:1".into()]);
    assert_eq!(Config::load(&given, Targets::Required).unwrap().fleet.targets.len(), 1);
}

#[test]
fn flags_win_over_environment_over_file() {
    let written = file("listen = \":1\"\nadmin = \":2\"\ndata_dir = \"a\"\n[[targets]]\nurl = \"http://h:1\"");
    let written = environment(
        written,
        &[("SNAPGATE_LISTEN", ":3"), ("SNAPGATE_ADMIN", ":4"), ("SNAPGATE_TARGETS", "http://h:2")],
    );
    let sources = written.with_flag("--listen", "listen", vec![":5".into()]);
    let config = load(&sources).unwrap();
    assert_eq!((config.listen.port(), config.admin.port(), config.data_dir.as_path()), (5, 4, Path::new("a")));
    assert_eq!(config.fleet.targets[0].address, "h:2");
    let origins: Vec<_> = ["listen", "admin", "data_dir", "threads"]
        .map(|key| config.shown.iter().find(|shown| shown.key == key).unwrap().origin.to_string())
        .into();
    assert_eq!(origins, ["--listen", "SNAPGATE_ADMIN", "f.toml:3", "default"]);
}

#[test]
fn the_json_log_is_written_short_or_with_a_section() {
    let settings = |sources: &Sources| load(sources).unwrap().json_log.unwrap();
    let short = settings(&file("json_log = \"log.jsonl\""));
    assert_eq!(short, settings(&file("[json_log]\nto = \"log.jsonl\"")));
    assert_eq!(short, settings(&environment(file(""), &[("SNAPGATE_JSON_LOG", "log.jsonl")])));
    assert_eq!(short.destination, Destination::File("log.jsonl".into()));
    assert_eq!((short.rotation.max_bytes, short.rotation.keep, short.candidates), (1 << 30, 9, None));
    let long = "[json_log]\nto = \"stdout\"\ncandidates = 3\nmax_bytes = 0\nmax_age = \"0s\"\nkeep = 0";
    let long = settings(&file(long));
    assert_eq!(long.destination, Destination::Stdout);
    assert_eq!(long.rotation, Rotation { max_bytes: 0, max_age: Duration::ZERO, keep: 0 });
    let candidates =
        |word: &str| settings(&file(&format!("json_log.to = \"x\"\njson_log.candidates = {word}"))).candidates;
    assert_eq!(
        [candidates("3"), candidates("\"chosen\""), candidates("\"all\"")].map(|max| max.map_or(0, |max| max.get())),
        [3, 1, 0]
    );
    assert_eq!(long.candidates.map(|max| max.get()), Some(3));
    for wrong in ["0", "65", "\"some\"", "[]"] {
        assert_eq!(mistakes(&file(&format!("json_log.candidates = {wrong}"))).len(), 1, "{wrong}");
    }
}

#[test]
fn the_log_has_a_level_and_modules_may_have_others() {
    for level in ["error", "trace", "info,snapgate::gateway=debug", "snapgate::store=warn", "info, hyper=debug"] {
        load(&file(&format!("log.level = \"{level}\""))).unwrap();
    }
    for level in ["", "loud", "info,debug", "snapgate", "=info", "snapgate=loud", "a b=info"] {
        let wrong = mistakes(&file(&format!("log.level = \"{level}\"")));
        assert!(
            matches!(&wrong[..], [wrong] if wrong.contains("is no level: write error, warn")),
            "{level}: {wrong:?}"
        );
    }
}

/// A valid value of the key that is not its default.
fn other_value(key: &Key) -> String {
    let quoted = |text: &str| format!("\"{text}\"");
    match (key.kind, key.path) {
        (Kind::Duration { max, .. }, _) => quoted(&units::show_duration(max - Duration::from_micros(1))),
        (Kind::Bytes { max, .. }, _) => quoted(&units::show_bytes(max - 1)),
        (Kind::Count { max, .. }, _) => (max - 1).to_string(),
        (Kind::Share | Kind::Ratio, _) => "0.5".to_owned(),
        (Kind::Switch, _) => (key.default != "true").to_string(),
        (Kind::Choice(words), _) => quoted(words.iter().find(|word| **word != key.default).unwrap()),
        (Kind::Address { .. }, _) => quoted("127.0.0.9:9"),
        (Kind::Text(_), "instance") => quoted("gw-9"),
        (Kind::Text(_), "log.level") => quoted("debug"),
        (Kind::WordOrCount(_), _) => "3".to_owned(),
        (Kind::Text(_), "choice.session_header") => quoted("x-other"),
        (Kind::Text(_), "tenant.header") => quoted("x-tenant"),
        (Kind::Text(_), "links.trace" | "links.logs" | "links.dashboard") => quoted("https://tempo/{trace_id}"),
        (Kind::Text(_), "otlp.endpoint" | "otlp.traces_endpoint") => quoted("http://h:4317"),
        (Kind::Text(_), "otlp.logs_endpoint") => quoted("http://h:4318/v1/logs"),
        (Kind::Text(_), "otlp.traces_protocol" | "otlp.logs_protocol") => quoted("http/protobuf"),
        (Kind::Text(_), "otlp.traces_compression" | "otlp.logs_compression") => quoted("gzip"),
        (Kind::Text(_), "otlp.traces_timeout" | "otlp.logs_timeout") => quoted("59s"),
        (Kind::Text(_), "otlp.candidates") => quoted("all"),
        (Kind::Text(_), "otlp.provider" | "fleet.engine") => quoted("sglang"),
        (Kind::Text(_), _) => quoted("/other"),
        (Kind::List { .. }, "record.headers") => "[\"x-run-id\"]".to_owned(),
        (Kind::List { .. }, "routes.cors_origins") => "[\"https://chat.example\"]".to_owned(),
        (Kind::List { .. }, "tenant.trusted") => "[\"10.0.0.0/8\"]".to_owned(),
        (Kind::List { .. }, "trace.keep_tenants") => "[\"t_8f3a91c2\"]".to_owned(),
        (Kind::List { .. }, "otlp.resource") => "[\"a.b=c\"]".to_owned(),
        (Kind::Headers { file: false }, _) => quoted("x-key=a%20b"),
        (Kind::Headers { file: true }, _) => {
            let file = std::env::temp_dir().join("snapgate-test-headers");
            std::fs::write(&file, "x-key=a%20b\n").unwrap();
            quoted(&file.display().to_string())
        }
        (Kind::Secret { file: false }, _) => quoted("0123456789abcdef"),
        (Kind::Secret { file: true }, _) => {
            let file = std::env::temp_dir().join("snapgate-test-secret");
            std::fs::write(&file, "0123456789abcdef").unwrap();
            quoted(&file.display().to_string())
        }
        (Kind::List { .. }, "load_reports.trusted") => "[\"10.0.0.0/8\"]".to_owned(),
        (Kind::List { .. }, "load_reports.metrics") => "[\"rps_fractional\"]".to_owned(),
        (Kind::List { .. }, _) => "[\"/v9\"]".to_owned(),
        (Kind::Targets, _) => "[{ url = \"http://h:1\" }]".to_owned(),
        (Kind::Authorization, _) => quoted("Bearer 0123456789abcdef"),
        (Kind::Models, _) => "[{ name = \"m\", policy = \"random\" }]".to_owned(),
        (Kind::Engines, _) => "[{ name = \"mine\", waiting = \"queue\" }]".to_owned(),
        (Kind::GpuExporters, _) => "[{ node = \"n\", url = \"http://h:9400/metrics\" }]".to_owned(),
        (Kind::Discovery, _) => "[{ kind = \"file\", path = \"targets.json\" }]".to_owned(),
        (Kind::Tokens, _) => "[{ name = \"ops\", token = \"0123456789abcdef\" }]".to_owned(),
    }
}

/// What would not fit together with a value near the end of its range.
fn companions(key: &str) -> &'static str {
    match key {
        "limits.body_bytes" => "limits.buffered_bytes = \"1TiB\"\n",
        "fleet.gpu_poll_interval" => "fleet.gpu_fresh_within = \"1d\"\n",
        "fleet.poll_interval" | "fleet.publish_interval" => "fleet.fresh_within = \"1d\"\nfleet.window = \"1h\"\n",
        "json_log.candidates" | "json_log.max_bytes" | "json_log.max_age" | "json_log.keep" => {
            "json_log.to = \"log\"\n"
        }
        "tenant.header" => "tenant.trusted = [\"10.0.0.1\"]\n",
        "load_reports.to_clients" => "load_reports.trusted = [\"10.0.0.1\"]\n",
        "otlp.logs_endpoint" => "otlp.logs = true\n",
        "otlp.protocol" => "otlp.endpoint = \"http://h:4318\"\n",
        logs if logs.starts_with("otlp.logs_") => "otlp.endpoint = \"http://h:4317\"\notlp.logs = true\n",
        otlp if otlp.starts_with("otlp.") && !otlp.ends_with("endpoint") => "otlp.endpoint = \"http://h:4317\"\n",
        keep if keep.starts_with("trace.keep_") => "otlp.endpoint = \"http://h:4317\"\n",
        "store.wal_checkpoint_bytes" => "store.wal_max_bytes = \"1TiB\"\n",
        _ => "",
    }
}

/// Certificates and keys come in pairs, and tokens have to be there: they have tests of their own.
fn is_file(key: &Key) -> bool {
    let name = key.split().1;
    let own = name.strip_prefix("traces_").or(name.strip_prefix("logs_")).unwrap_or(name);
    ["cert", "key", "ca", "client_ca", "authorization_file"].contains(&own)
}

#[test]
fn every_key_reaches_a_setting_from_the_file_and_from_its_variable() {
    for key in KEYS.iter().filter(|key| !is_file(key)) {
        let meaning = |sources: &Sources| {
            let mut config = load(sources).unwrap_or_else(|wrong| panic!("{}: {wrong}", key.path));
            config.shown.clear();
            format!("{config:?}")
        };
        let value = other_value(key);
        let around = companions(key.path);
        let default = meaning(&file(around));
        let from_file = meaning(&file(&format!("{around}{} = {value}", key.path)));
        assert_ne!(default, from_file, "{} changes nothing", key.path);
        let variable = environment(file(around), &[(&key.variable(), value.trim_matches('"'))]);
        assert_eq!(meaning(&variable), from_file, "{}", key.path);
    }
}

fn otlp(text: &str, variables: &[(&str, &str)]) -> crate::sink::otlp::Settings {
    load(&environment(file(text), variables)).unwrap_or_else(|wrong| panic!("{text} {variables:?}: {wrong}")).otlp
}

#[test]
fn an_endpoint_says_how_it_is_spoken_to_unless_the_protocol_does() {
    const GRPC: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let cases = [
        ("otlp.endpoint = \"http://h:4317\"", format!("http://h:4317{GRPC}")),
        ("otlp.endpoint = \"https://h:4317/\"", format!("https://h:4317{GRPC}")),
        ("otlp.endpoint = \"http://h:4318\"", "http://h:4318/v1/traces".to_owned()),
        ("otlp.endpoint = \"http://h/otlp\"", "http://h/otlp/v1/traces".to_owned()),
        ("otlp.endpoint = \"http://h/otlp/\"", "http://h/otlp/v1/traces".to_owned()),
        ("otlp.endpoint = \"http://h:9\"\notlp.protocol = \"http/protobuf\"", "http://h:9/v1/traces".to_owned()),
        ("otlp.endpoint = \"http://h:4318\"\notlp.protocol = \"grpc\"", format!("http://h:4318{GRPC}")),
        ("otlp.traces_endpoint = \"http://h:4318/mine\"", "http://h:4318/mine".to_owned()),
        ("otlp.endpoint = \"http://h:4318\"\notlp.traces_endpoint = \"http://t:1/x\"", "http://t:1/x".to_owned()),
    ];
    for (text, url) in cases {
        let settings = otlp(text, &[]);
        assert!(settings.logs.is_none());
        assert_eq!(settings.traces.map(|receiver| receiver.url.to_string()), Some(url), "{text}");
    }
    assert!(!otlp("", &[]).is_on());
    for text in ["localhost:4317", "ftp://h:1", "http://", "http://u:p@h:1", "http://h:1?x=1"] {
        assert!(load(&file(&format!("otlp.endpoint = \"{text}\""))).is_err(), "{text}");
    }
    let grpc = load(&file("otlp.endpoint = \"http://h:4317/otlp\"\notlp.protocol = \"grpc\"")).unwrap_err().to_string();
    assert!(grpc.contains("f.toml:1: otlp.endpoint: /otlp: gRPC has a path of its own"), "{grpc}");
}

#[test]
fn opentelemetrys_own_variables_stand_below_the_file() {
    let all = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-b=2"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=from-resource,k8s.pod.name=a%2Cb"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
    ];
    let settings = otlp("", &all);
    let traces = settings.traces.unwrap();
    assert_eq!(traces.url.to_string(), "http://h:4318/v1/traces");
    assert_eq!(traces.headers["authorization"], "Bearer abc");
    assert_eq!(
        (traces.timeout, traces.gzip, &*settings.service_name),
        (Duration::from_millis(2_500), true, "from-resource")
    );
    assert!(settings.resource.contains(&("k8s.pod.name".into(), "a,b".into())));
    let config = load(&environment(file(""), &all)).unwrap();
    assert_eq!(config.gateway.sampling.ratio, crate::snapshot::Ratio::of(0.25));
    let shown = config.text();
    assert!(shown.contains("otlp.headers = \"<set>\"") && !shown.contains("abc"), "{shown}");

    let name = |text, variables: &[(&str, &str)]| otlp(text, variables).service_name;
    let otel = ("OTEL_SERVICE_NAME", "otel");
    assert_eq!(name("", &[otel]), "otel");
    assert_eq!(name("otlp.service_name = \"file\"", &[otel]), "file");
    assert_eq!(name("otlp.service_name = \"file\"", &[otel, ("SNAPGATE_OTLP_SERVICE_NAME", "ours")]), "ours");
    assert!(!otlp("", &[all[0], ("OTEL_SDK_DISABLED", "true")]).is_on());
    assert!(otlp("otlp.endpoint = \"http://h:1\"", &[("OTEL_SDK_DISABLED", "true")]).is_on(), "the file has said so");
    assert!(otlp("", &[all[0], ("OTEL_TRACES_EXPORTER", "none")]).traces.is_none());
    assert_eq!(name("", &[("OTEL_SERVICE_NAME", "")]), "snapgate", "empty is not set");
}

/// Whole clusters are given them, so none keeps a gateway from starting.
#[test]
fn what_opentelemetrys_variables_say_in_vain_is_a_warning_and_ours_are_strict() {
    let untouched = load(&file("")).unwrap().text();
    for (variable, value, why) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "otlp.protocol: \"http/json\" is not one of"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "otlp.compression: \"zstd\" is not one of"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "otlp.timeout: "),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "120000", "otlp.timeout: "),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "otlp.timeout: \"soon\" is not a whole number of milliseconds"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "trace.sample_ratio: \"jaeger_remote\" is no sampler here"),
        ("OTEL_TRACES_EXPORTER", "console", "otlp.traces: \"console\" is no exporter that there is here"),
        ("OTEL_RESOURCE_ATTRIBUTES", "[a", "otlp.resource: not a list in TOML"),
        ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/json", "otlp.logs_protocol: \"http/json\" is none of"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", "otlp.traces_compression: \"zstd\" is none of"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "61000", "otlp.traces_timeout: 61000ms is not from 1ms to 1m"),
    ] {
        let config = load(&environment(file(""), &[(variable, value)])).unwrap();
        let [ignored] = config.ignored() else { panic!("{variable}={value}: {:?}", config.ignored()) };
        let ignored = ignored.to_string();
        assert!(ignored.starts_with(&format!("{variable}: {why}")), "{ignored}");
        assert_eq!(config.text(), untouched, "what was in effect stays");
    }
    let json = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
    let named = load(&environment(file("otlp.protocol = \"grpc\""), &[json])).unwrap();
    assert_eq!(named.ignored(), [], "whoever has named it needs no warning");
    for ours in [file("otlp.protocol = \"http/json\""), environment(file(""), &[("SNAPGATE_OTLP_PROTOCOL", json.1)])] {
        assert!(load(&ours).unwrap_err().to_string().contains("otlp.protocol: \"http/json\" is not one of"));
    }
    let both = load(&environment(file(""), &[("OTEL_TRACES_EXPORTER", "otlp,console")])).unwrap();
    assert_eq!(both.ignored(), [], "one of them is ours");
}

#[test]
fn each_signal_may_have_a_receiver_of_its_own_and_what_it_does_not_say_is_common() {
    use crate::sink::otlp::{Protocol, Receiver};
    let seen = |receiver: &Receiver| {
        let said = |name: &str| receiver.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        (
            receiver.url.to_string(),
            receiver.protocol,
            said("authorization"),
            receiver.gzip,
            receiver.timeout.as_millis(),
        )
    };
    // As docs and the example have it: Tempo over gRPC beside Loki, which has a path.
    let text = "otlp.endpoint = \"http://tempo:4317\"\notlp.logs = true\n\
                otlp.logs_endpoint = \"http://loki:3100/otlp/v1/logs\"\n";
    let settings = otlp(text, &[]);
    let [traces, logs] = [settings.traces.unwrap(), settings.logs.unwrap()].map(|receiver| seen(&receiver));
    let grpc = "http://tempo:4317/opentelemetry.proto.collector.trace.v1.TraceService/Export".to_owned();
    assert_eq!(traces, (grpc.clone(), Protocol::Grpc, None, false, 10_000));
    assert_eq!(logs, ("http://loki:3100/otlp/v1/logs".to_owned(), Protocol::Http, None, false, 10_000));

    let common = [("HEADERS", "authorization=both"), ("TIMEOUT", "5000"), ("COMPRESSION", "gzip")];
    let own = [("HEADERS", "authorization=own"), ("TIMEOUT", "2000"), ("COMPRESSION", "none")];
    let variables: Vec<(String, &str)> = [("", common), ("LOGS_", own)]
        .iter()
        .flat_map(|(signal, said)| said.map(|(name, value)| (format!("OTEL_EXPORTER_OTLP_{signal}{name}"), value)))
        .collect();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (&**name, *value)).collect();
    let settings = otlp(text, &variables);
    let [traces, logs] = [settings.traces.unwrap(), settings.logs.unwrap()].map(|receiver| seen(&receiver));
    assert_eq!(traces, (grpc, Protocol::Grpc, Some("both".into()), true, 5_000));
    assert_eq!((logs.2, logs.3, logs.4), (Some("own".into()), false, 2_000));

    let protocols = |variables: &[(&str, &str)]| {
        let settings = otlp("otlp.endpoint = \"http://h:4317\"\notlp.logs = true", variables);
        [settings.traces.unwrap().protocol, settings.logs.unwrap().protocol]
    };
    let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
    assert_eq!(protocols(&[of_traces]), [Protocol::Http, Protocol::Grpc]);
    let of_logs = ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc");
    let of_both = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    assert_eq!(protocols(&[of_both, of_logs]), [Protocol::Http, Protocol::Grpc]);

    for (variable, value, why) in [
        ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", "/absent.pem", "/absent.pem"),
        ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE", "/absent.pem", "otlp.logs_cert: needs otlp.logs_key as well"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/absent.pem", "otlp.traces_key: needs otlp.traces_cert as well"),
    ] {
        let wrong = load(&environment(file(text), &[(variable, value)])).unwrap_err().to_string();
        assert!(wrong.starts_with(&format!("{variable}: ")) && wrong.contains(why), "{variable}: {wrong}");
    }
    let grpc = "otlp.logs = true\notlp.logs_protocol = \"grpc\"\notlp.logs_endpoint = \"http://h:1/x\"";
    let wrong = load(&file(grpc)).unwrap_err().to_string();
    assert!(
        wrong.contains("f.toml:3: otlp.logs_endpoint: /x: gRPC") && wrong.contains("set otlp.logs_protocol"),
        "{wrong}"
    );
}

#[test]
fn headers_may_be_in_one_place_and_are_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("headers");
    std::fs::write(&path, "authorization=Basic%20c2VjcmV0\nx-scope-orgid = team\n").unwrap();
    let from_file = format!("otlp.headers_file = {:?}\n", path.display().to_string());
    let headers = otlp(&format!("{from_file}otlp.endpoint = \"http://h:4317\"\n"), &[]).traces.unwrap().headers;
    assert_eq!(
        (&headers["authorization"], &headers["x-scope-orgid"]),
        (&"Basic c2VjcmV0".parse().unwrap(), &"team".parse().unwrap())
    );
    assert!(!format!("{headers:?}").contains("c2VjcmV0"));
    let both = load(&file(&format!("{from_file}otlp.headers = \"a=b\"\n"))).unwrap_err().to_string();
    assert!(both.contains("otlp.headers is set as well"), "{both}");
    for wrong in ["secret", "=secret", "a b=secret", "a=sec%00ret"] {
        let wrong = load(&file(&format!("otlp.headers = \"{wrong}\""))).unwrap_err().to_string();
        assert!(!wrong.contains("sec"), "{wrong}");
    }
}

#[test]
fn a_reload_changes_what_it_can_and_names_what_waits() {
    const TARGET: &str = "[[targets]]\nurl = \"http://h:1\"";
    let text = |text: &str| file(&format!("{text}{TARGET}"));
    let before = load(&text("threads = 1\nlimits.in_flight = 5\n")).unwrap();
    let written = text("threads = 2\nadmin = \"127.0.0.1:1\"\nlimits.in_flight = 6\n");
    let Reload { config, changed, waiting } = before.reload(&written).unwrap();
    assert_eq!((changed, &waiting), (vec!["limits.in_flight"], &vec!["admin", "threads"]));
    assert_eq!((config.gateway.threads, config.gateway.in_flight_max), (1, 6));
    assert_eq!(
        config.hash(),
        load(&text("threads = 1\nlimits.in_flight = 6\n")).unwrap().hash(),
        "of what is in effect"
    );
    let again = config.reload(&written).unwrap();
    assert_eq!((again.changed.len(), &again.waiting), (0, &waiting), "it still waits");

    let wrong = before.reload(&file("limits.in_flight = 0\nlimits.inflight = 5")).unwrap_err();
    assert_eq!(wrong.list().len(), 3, "all at once: {wrong}");
}

#[test]
fn what_a_reload_changes_are_keys_that_exist() {
    for path in keys::LIVE {
        assert!(keys::find(path).is_some_and(Key::is_live), "{path}");
    }
}

#[test]
fn a_certificate_is_tried_before_a_port_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for name in ["a", "b"] {
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(path(&format!("{name}.crt")), cert.pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), signing_key.serialize_pem()).unwrap();
    }
    let section = |section: &str, lines: &[(&str, &str)]| {
        let set = |(key, name): &(&str, &str)| format!("{key} = {:?}\n", path(name));
        file(&format!("[{section}]\n{}", lines.iter().map(set).collect::<String>()))
    };
    let tls = |lines: &[(&str, &str)]| section("tls", lines);
    let pair = [("cert", "a.crt"), ("key", "a.key")];
    let config = load(&tls(&[pair[0], pair[1], ("client_ca", "b.crt")])).unwrap();
    let expected = tls::ServerSettings {
        cert: path("a.crt").into(),
        key: path("a.key").into(),
        client_ca: Some(path("b.crt").into()),
    };
    assert_eq!((config.tls, config.admin_tls), (Some(expected), None));
    let config = load(&section("admin_tls", &pair)).unwrap();
    assert_eq!((config.tls, config.admin_tls.unwrap().key.as_path()), (None, Path::new(&path("a.key"))));
    let admin = mistakes(&section("admin_tls", &pair[1..]));
    assert_eq!(admin, ["f.toml:2: [admin_tls] admin_tls.cert and admin_tls.key go together: set both"]);
    let variables = environment(
        file(""),
        &[("SNAPGATE_TLS_CERT", path("b.crt").as_str()), ("SNAPGATE_TLS_KEY", path("b.key").as_str())],
    );
    assert_eq!(load(&variables).unwrap().tls.unwrap().key, Path::new(&path("b.key")));
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&pair[..1], "f.toml:2: [tls] tls.cert and tls.key go together: set both"),
        (&pair[1..], "tls.cert and tls.key go together"),
        (&[("client_ca", "b.crt")], "tls.cert and tls.key go together"),
        (&[pair[0], ("key", "b.key")], "do not serve"),
        (&[pair[0], ("key", "none")], "none: No such file"),
        (&[pair[0], ("key", "a.crt")], "a.crt holds no private key in PEM"),
    ];
    for (lines, expected) in cases {
        let mistakes = mistakes(&tls(lines));
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(mistakes[0].contains(expected), "{expected}: {mistakes:?}");
    }
}

#[test]
fn flags_are_for_keys_that_exist() {
    for (flag, path) in FLAGS {
        assert_eq!(keys::find(path).and_then(Key::flag), Some(flag));
    }
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_places() {
    let text = r#"listen = "8080"
lisetn = "0.0.0.0:1"
policy = "least_requests"
threads = "four"
limits.in_flight = 0

[timeouts]
connect = 500
response_head = "1 hour"
poll_timeout = "1s"

[limts]
headers = 5

[routes]
allow = ["/v1/chat/completions", "v1/x"]

[record]
headers = ["x-run-id", "Authorization"]

[fleet]
poll_interval = "1m"
target_share = 2

[[targets]]
url = "http://a:1"
[[targets]]
name = "b"
url = "http://a:1"
[[targets]]
name = "b c"
url = "ftp://a:2"
gpu = 4
[[targets]]
name = "d"
"#;
    let sources =
        environment(file(text), &[("SNAPGATE_STORE_ENABLED", "yes"), ("SNAPGATE_LIMITS_INFLIGHT", "3"), ("HOME", "/")]);
    let sources = sources.with_flag("--admin", "admin", vec!["here".into()]);
    let expected = [
        r#"f.toml:1: listen: "8080" is not an address to listen on: write IP:PORT, such as 0.0.0.0:8080 or [::]:8080, or :PORT"#,
        "f.toml:2: unknown key `lisetn`: did you mean `listen`?",
        r#"f.toml:3: policy: "least_requests" is not one of round_robin, least_request, random, least_queue, least_kv_cache, power_of_two, prefix_affinity, session_affinity"#,
        "f.toml:4: threads: expected a whole number without quotes, found a string",
        "f.toml:5: limits.in_flight: 0 is less than 1",
        r#"f.toml:8: timeouts.connect: 500 has no unit: write "500ms" or "500s""#,
        r#"f.toml:9: timeouts.response_head: "1 hour" is not a duration: write a whole number with its unit, such as 500ms, 2s or 1h30m"#,
        "f.toml:10: unknown key `timeouts.poll_timeout`: did you mean `fleet.poll_timeout`?",
        "f.toml:12: unknown section [limts]: did you mean `limits`?",
        r#"f.toml:16: routes.allow: "v1/x" is not a request's path: it starts with / and has no spaces, query or fragment"#,
        "f.toml:19: record.headers: authorization holds credentials, which are never recorded",
        r#"f.toml:22: fleet.poll_interval ("1m") is more than fleet.fresh_within ("2s"): every value would be stale before the next poll"#,
        r#"f.toml:22: fleet.poll_interval ("1m") is more than fleet.window ("10s"): rates need two polls within the window"#,
        "f.toml:23: fleet.target_share: 2 is not above 0 and up to 1",
        "f.toml:27: targets: a:1 is already the address of a-1 (f.toml:25)",
        r#"f.toml:31: targets: "b c" is not a name: use 1 to 64 letters, digits, dots, underscores and hyphens"#,
        r#"f.toml:32: targets: "ftp://a:2": ftp is not a protocol for targets: write http://HOST:PORT or https://HOST:PORT"#,
        "f.toml:33: targets: unknown field `gpu`: did you mean `gpus`?",
        r#"f.toml:34: targets: a target needs a `url`, such as "http://10.0.3.2:8000""#,
        "SNAPGATE_LIMITS_INFLIGHT: no key has this variable: did you mean `SNAPGATE_LIMITS_IN_FLIGHT`?",
        r#"SNAPGATE_STORE_ENABLED: store.enabled: "yes" is neither true nor false"#,
        r#"--admin: admin: "here" is not an address to listen on: write IP:PORT, such as 0.0.0.0:8080 or [::]:8080, or :PORT"#,
    ];
    assert_eq!(mistakes(&sources), expected);
    assert!(load(&sources).unwrap_err().to_string().ends_with("22 mistakes in the configuration: nothing was started"));
}

#[test]
fn models_have_their_targets_and_policies() {
    let text = r#"
policy = "random"
[[targets]]
url = "http://a:1"
models = ["m", "org/n=8b"]
[[models]]
name = "m"
policy = "least_queue"
"#;
    let config = load(&file(text)).unwrap();
    assert_eq!(config.fleet.targets[0].models, ["m", "org/n=8b"]);
    assert_eq!(config.gateway.choice.policy_of_model, HashMap::from([("m".into(), Policy::LeastQueue)]));
    let variable = environment(file(text), &[("SNAPGATE_MODELS", "org/n=8b=power_of_two")]);
    let by_variable = load(&variable).unwrap().gateway.choice.policy_of_model;
    assert_eq!(by_variable, HashMap::from([("org/n=8b".into(), Policy::PowerOfTwo)]));

    let wrong = r#"
[[targets]]
url = "http://a:1"
models = []
[[targets]]
url = "http://a:2"
models = "m"
[[targets]]
url = "http://a:3"
models = ["m", ""]
[[models]]
name = "n"
policy = "least_que"
[[models]]
policy = "random"
"#;
    let all = Policy::NAMES.join(", ");
    let expected = [
        "f.toml:4: targets: `models` has to name 1 to 256 models; leave it out for any".to_owned(),
        r#"f.toml:7: targets: `models` has to be a list of texts, such as ["llama-3.1-8b"]"#.to_owned(),
        r#"f.toml:10: targets: "" is not a model's name: use 1 to 256 bytes of text"#.to_owned(),
        format!("f.toml:11: models: a model needs a `policy`, one of {all}; \"least_que\" is none"),
        r#"f.toml:14: models: "" is not a model's name: use 1 to 256 bytes of text"#.to_owned(),
    ];
    assert_eq!(mistakes(&file(wrong)), expected);
    let unserved =
        "[[targets]]\nurl = \"http://a:1\"\nmodels = [\"m\"]\n[[models]]\nname = \"n\"\npolicy = \"random\"\n";
    assert_eq!(
        mistakes(&file(unserved)),
        ["f.toml:4: models: no target serves n: name it in the `models` of a target"]
    );
}

#[test]
fn gpus_have_their_exporters_and_targets_their_gpus() {
    let text = r#"
[[gpu_exporters]]
node = "n1"
url = "http://10.0.0.1:9400"
[[gpu_exporters]]
url = "https://n2:9400/dcgm"
[[targets]]
name = "a"
url = "http://a:1"
gpus = { node = "n1", ids = [0, "1:9", "GPU-7"] }
[[targets]]
name = "b"
url = "http://b:1"
gpus = { pod = "vllm-0", namespace = "llm", container = "vllm", node = "n2", count = 2 }
[[targets]]
name = "c"
url = "http://c:1"
gpus = 4
[[targets]]
name = "d"
url = "http://d:1"
gpus = { node = "n2" }
[[targets]]
name = "e"
url = "http://e:1"
gpus = { namespace = "llm" }
"#;
    let config = load(&file(text)).unwrap();
    let exporters: Vec<_> = config.fleet.gpu_exporters.iter().map(|it| (it.node.as_str(), it.url.as_str())).collect();
    assert_eq!(exporters, [("n1", "http://10.0.0.1:9400/metrics"), ("n2", "https://n2:9400/dcgm")]);
    let some = |text: &str| Some(text.to_owned());
    let pod = |pod: &str| PodGpus { pod: pod.to_owned(), ..PodGpus::default() };
    let ids = vec![GpuId::Index(0), GpuId::Instance(1, 9), GpuId::Uuid("GPU-7".into())];
    let full = PodGpus { namespace: some("llm"), container: some("vllm"), node: some("n2"), ..pod("vllm-0") };
    let expected = [
        (Some(3), GpusOf::Node { node: "n1".into(), ids }),
        (Some(2), GpusOf::Pod(full)),
        (Some(4), GpusOf::Pod(pod("c"))),
        (None, GpusOf::Node { node: "n2".into(), ids: Vec::new() }),
        (None, GpusOf::Pod(PodGpus { namespace: some("llm"), ..pod("e") })),
    ];
    let read: Vec<_> = config.fleet.targets.iter().map(|it| (it.gpus, it.gpus_of.clone().unwrap())).collect();
    assert_eq!(read, expected);
    let again = load(&file(&config.text())).unwrap();
    assert_eq!((again.text(), again.fleet.targets), (config.text(), config.fleet.targets));
    let variable = environment(
        file("[[targets]]\nurl = \"http://a:1\""),
        &[("SNAPGATE_GPU_EXPORTERS", "n=http://h:1,http://i:1")],
    );
    let nodes: Vec<_> = load(&variable).unwrap().fleet.gpu_exporters.into_iter().map(|it| it.node).collect();
    assert_eq!(nodes, ["n", "i"]);
    let nobody = load(&file("[[targets]]\nurl = \"http://a:1\"\ngpus = 2")).unwrap();
    assert_eq!((nobody.fleet.targets[0].gpus, &nobody.fleet.targets[0].gpus_of), (Some(2), &None));
}

#[test]
fn mistakes_about_gpus_are_all_told() {
    let text = r#"
[[gpu_exporters]]
node = "node-1"
url = "http://a:1"
[[gpu_exporters]]
node = "node-1"
url = "http://a:2"
[[gpu_exporters]]
node = "node-2"
url = "http://a:1/metrics"
[[gpu_exporters]]
node = "node 3"
url = "a:1"
[[gpu_exporters]]
nod = "x"
[[targets]]
url = "http://b:1"
gpus = "two"
[[targets]]
url = "http://b:2"
gpus = { node = "node-1", ids = [0, 0] }
[[targets]]
url = "http://b:3"
gpus = { ids = [0], nodes = 1 }
[[targets]]
url = "http://b:4"
gpus = { node = "node-1", ids = ["x"], count = 0 }
[[targets]]
url = "http://b:5"
gpus = { pod = "p q", ids = [] }
"#;
    let form = "a whole number, or a table such as { node = \"node-1\", ids = [0, 1] } or { pod = \"vllm-0\" }";
    let name = "is not a name: use 1 to 253 letters, digits, dots, underscores and hyphens";
    let url = "is not a URL: write http://HOST:PORT/PATH or https://HOST:PORT/PATH";
    let expected = [
        "f.toml:5: gpu_exporters: the node node-1 has an exporter already (f.toml:2)".to_owned(),
        "f.toml:8: gpu_exporters: http://a:1/metrics is already the exporter of node-1".to_owned(),
        format!("f.toml:11: gpu_exporters: \"a:1\" {url}, such as http://10.0.3.1:9400/metrics"),
        format!("f.toml:11: gpu_exporters: \"node 3\" {name}"),
        "f.toml:14: gpu_exporters: a GPU exporter needs a `url`, such as \"http://10.0.3.1:9400/metrics\"".to_owned(),
        "f.toml:15: gpu_exporters: unknown field `nod`: did you mean `node`?".to_owned(),
        format!("f.toml:18: targets: `gpus` has to be {form}"),
        "f.toml:21: targets: the GPU 0 is there twice".to_owned(),
        "f.toml:24: targets: `ids` are GPUs of a node: name the `node`".to_owned(),
        "f.toml:24: targets: unknown field `nodes`: did you mean `node`?".to_owned(),
        "f.toml:27: targets: `count` has to be a whole number from 1 to 1024".to_owned(),
        "f.toml:27: targets: `ids` has to be a list of GPUs: places on the node such as 0, instances of a divided one such \
         as \"0:9\", or UUIDs such as \"GPU-…\""
            .to_owned(),
        "f.toml:27: targets: `ids` say how many GPUs there are: leave out `count`".to_owned(),
        format!("f.toml:30: targets: \"p q\" {name}"),
        "f.toml:30: targets: `ids` has to name 1 to 112 GPUs; leave it out for all of the node".to_owned(),
        "f.toml:30: targets: the exporter says which GPUs a pod has: leave out `ids`, or the pod".to_owned(),
    ];
    let mut expected = expected.to_vec();
    expected.sort_by_key(|text| text.split(':').nth(1).unwrap().parse::<u32>().unwrap());
    let mut found = mistakes(&file(text));
    found.sort();
    expected.sort();
    assert_eq!(found, expected);

    let target = "[[targets]]\nname = \"a\"\nurl = \"http://b:1\"\ngpus = { node = \"node-2\" }\n";
    let nobody = "f.toml:1: targets: a: `gpus` says whom to ask, and there is nobody: add [[gpu_exporters]]";
    assert_eq!(mistakes(&file(target)), [nobody]);
    let other = format!("{target}[[gpu_exporters]]\nnode = \"node-1\"\nurl = \"http://a:1\"\n");
    let unknown = "f.toml:1: targets: a: no entry of [[gpu_exporters]] is of the node node-2: did you mean `node-1`?";
    assert_eq!(mistakes(&file(&other)), [unknown]);
}

#[test]
fn a_broken_file_says_where_and_other_layers_are_still_checked() {
    let sources = environment(file("listen = \nadmin = \":x\"\n"), &[("SNAPGATE_THREADS", "-1")]);
    let found = mistakes(&sources);
    assert!(found[0].starts_with("f.toml:1: "), "{found:?}");
    assert!(found[1].starts_with("f.toml:2: admin: \":x\" is not"), "{found:?}");
    assert_eq!(found[2], "SNAPGATE_THREADS: threads: \"-1\" is not a whole number from 0 to 1024");
}

#[test]
fn a_key_that_is_there_twice_is_named() {
    for (text, line, key) in [
        ("policy = \"random\"\npolicy = \"random\"", 2, "policy"),
        ("[lookup]\n[limits]\nin_flight = 1\nheaders = 20\nin_flight = 2", 5, "in_flight"),
    ] {
        assert_eq!(mistakes(&file(text))[0], format!("f.toml:{line}: duplicate key `{key}`: keep one of them"));
    }
}

#[test]
fn single_mistakes_say_what_to_do() {
    let cases = [
        ("limits = 5", "f.toml:1: `limits` is a section: write [limits] on a line of its own"),
        (
            "[listen]\na = 1",
            "f.toml:1: listen: expected an address in quotes, such as \"127.0.0.1:8081\", found a table",
        ),
        ("in_flight = 5", "f.toml:1: unknown key `in_flight`: did you mean `limits.in_flight`?"),
        ("colour = 5", "f.toml:1: unknown key `colour`"),
        ("targets = \"http://a:1\"", "f.toml:1: targets: expected a list of tables: write [[targets]]"),
        ("targets = [5]", "f.toml:1: targets: expected a table, found integer"),
        ("[[targets]]\nurl = 5", "f.toml:2: targets: `url` has to be a text in quotes, not integer"),
        (
            "targets = [{ url = \"http://a:1\", gpus = 0 }]",
            "f.toml:1: targets: `gpus` has to be a whole number from 1 to 1024",
        ),
        (
            "targets = [\"x=http://a:1\", \"x=http://a:2\"]",
            "f.toml:1: targets: the name x is already taken (f.toml:1): names are unique",
        ),
        ("listen = \":9\"\nadmin = \":9\"", "f.toml:2: listen (0.0.0.0:9) and admin (127.0.0.1:9) need two ports"),
        ("routes.allow = []", "f.toml:1: routes.allow: is empty: nothing would be forwarded"),
        (
            "routes.allow = [\"/v1/*/cancel\"]",
            "f.toml:1: routes.allow: \"/v1/*/cancel\": a * stands at the end, such as /v1/models/* for every path below it, or \
             alone for every path",
        ),
        (
            "routes.allow = [\"/*\"]",
            "f.toml:1: routes.allow: \"/*\": a * stands at the end, such as /v1/models/* for every path below it, or alone for \
             every path",
        ),
        ("routes.allow = [\"*\", \"/x\"]", "f.toml:1: routes.allow: \"*\" forwards everything: it stands alone"),
        (
            "routes.allow = \"*\"",
            "f.toml:1: routes.allow: expected a list of texts, such as [\"a\", \"b\"], found a string",
        ),
        ("record.headers = [\"a\", \"A\"]", "f.toml:1: record.headers: \"a\" is there twice"),
        (
            "limits.body_bytes = \"16MB\"",
            "f.toml:1: limits.body_bytes: \"16MB\" is not a size: write a whole number with B, KiB, MiB, GiB or TiB, such as 16MiB (1MiB is 1048576 bytes)",
        ),
        (
            "limits.body_bytes = \"1GiB\"",
            "f.toml:1: limits.body_bytes (\"1GiB\") is more than limits.buffered_bytes (\"256MiB\"): a body of the largest size could never be held",
        ),
        (
            "limits.buffered_bytes = \"1MiB\"",
            "f.toml:1: limits.body_bytes (\"16MiB\") is more than limits.buffered_bytes (\"1MiB\"): a body of the largest size could never be held",
        ),
        (
            "instance = \"a b\"",
            "f.toml:1: instance: \"a b\" is not a name: use 1 to 64 letters, digits, dots, underscores and hyphens",
        ),
        (
            "fleet.cpu_share = \"0.1\"",
            "f.toml:1: fleet.cpu_share: expected a number above 0 and up to 1, without quotes, found a string",
        ),
        ("store.enabled = 1", "f.toml:1: store.enabled: expected true or false without quotes, found an integer"),
    ];
    for (text, expected) in cases {
        assert_eq!(mistakes(&file(text)), [expected], "{text}");
    }
    let many: Vec<_> = (0..17).map(|n| format!("\"x-{n}\"")).collect();
    let many = format!("record.headers = [{}]", many.join(","));
    assert_eq!(mistakes(&file(&many)), ["f.toml:1: record.headers: 17 entries are more than 16"]);
}

#[test]
fn other_peoples_variables_are_not_mistakes() {
    let variables = [
        ("SNAPGATE_CONFIG", "f.toml"),
        ("SNAPGATE_TOKEN", "secret"),
        ("SNAPGATE_SERVICE_HOST", "10.0.0.1"),
        ("SNAPGATE_PORT", "tcp://10.0.0.1:80"),
        ("SNAPGATE_ADMIN_PORT_8081_TCP_ADDR", "10.0.0.1"),
    ];
    load(&environment(file(""), &variables)).unwrap();
    let meant = environment(file(""), &[("SNAPGATE_PORT", "8080")]);
    assert!(mistakes(&meant)[0].starts_with("SNAPGATE_PORT: no key has this variable"));
}

#[test]
fn lists_in_variables_are_short_or_toml() {
    let short = environment(
        file(""),
        &[("SNAPGATE_TARGETS", "a=http://h:1, http://h:2"), ("SNAPGATE_RECORD_HEADERS", "X-A,x-b")],
    );
    let long = environment(
        file(""),
        &[
            ("SNAPGATE_TARGETS", r#"[{name="a",url="http://h:1"},{url="http://h:2"}]"#),
            ("SNAPGATE_RECORD_HEADERS", r#"["x-a", "x-b"]"#),
        ],
    );
    let (short, long) = (load(&short).unwrap(), load(&long).unwrap());
    assert_eq!(short.text(), long.text());
    assert_eq!(short.fleet.targets[1].name, "h-2");
}

#[test]
fn tokens_come_from_file_variable_or_text_and_are_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "from-a-file-000000\n").unwrap();
    let text = format!(
        "[[lookup.tokens]]\nname = \"a\"\ntoken = \"in-the-text-000000\"\n\
         [[lookup.tokens]]\nname = \"b\"\ntoken_file = {path:?}\n\
         [[lookup.tokens]]\nname = \"c\"\ntoken_env = \"SNAPGATE_OPS\"\n"
    );
    let config = load(&environment(file(&text), &[("SNAPGATE_OPS", "in-a-variable-0000")])).unwrap();
    let secrets = ["in-the-text-000000", "from-a-file-000000", "in-a-variable-0000"];
    let names = ["a", "b", "c"];
    let mut expected: Vec<_> = names.into_iter().zip(secrets).map(|(name, secret)| Token::new(name, secret)).collect();
    expected[1] = expected[1].clone().from_file(path.clone());
    assert_eq!(config.lookup.tokens, expected);
    let printed = format!("{config:?}{}{:?}", config.text(), config.shown());
    assert!(!secrets.iter().any(|secret| printed.contains(secret)), "{printed}");
    assert!(config.text().contains(r#"lookup.tokens = [{ name = "a", token = "<set>" }, "#));
}

#[test]
fn wrong_tokens_say_what_is_wrong_but_not_what_they_are() {
    let cases = [
        ("name = \"a\"\ntoken = \"hunter2\"", "f.toml:3: lookup.tokens: the token has 7 characters: use 16 to 512"),
        ("name = \"a\"", "f.toml:1: lookup.tokens: a token needs exactly one of `token`, `token_file` and `token_env`"),
        (
            "name = \"a\"\ntoken = \"x\"\ntoken_env = \"Y\"",
            "f.toml:1: lookup.tokens: a token needs exactly one of `token`, `token_file` and `token_env`",
        ),
        (
            "token = \"hunter2hunter2hunter2\"",
            "f.toml:1: lookup.tokens: a token needs a `name`: it says in the log who asked",
        ),
        (
            "name = \"a\"\ntoken_env = \"NOT_SET\"",
            "f.toml:3: lookup.tokens: the environment variable NOT_SET is not set, or is not UTF-8",
        ),
        (
            "name = \"a\"\ntoken = \"hunter2hunter2hunter2\"\nscope = [\"read\", \"write\"]",
            "f.toml:4: lookup.tokens: `scope` has to be a list of \"read\" and \"delete\"",
        ),
        (
            "name = \"a\"\nsecret = \"hunter2\"\ntoken = \"hunter2hunter2hunter2\"",
            "f.toml:3: lookup.tokens: unknown field `secret`",
        ),
    ];
    for (fields, expected) in cases {
        assert_eq!(mistakes(&file(&format!("[[lookup.tokens]]\n{fields}"))), [expected], "{fields}");
    }
    let missing = mistakes(&file("[[lookup.tokens]]\nname = \"a\"\ntoken_file = \"/does/not/exist\""));
    assert!(
        missing[0].starts_with("f.toml:3: lookup.tokens: the file /does/not/exist cannot be read: "),
        "{missing:?}"
    );
    let twice = "ops=0123456789abcdef,dev=0123456789abcdef";
    let twice = mistakes(&environment(file(""), &[("SNAPGATE_LOOKUP_TOKENS", twice)]));
    assert_eq!(
        twice,
        ["SNAPGATE_LOOKUP_TOKENS: lookup.tokens: dev has the same secret as ops: nobody could tell who asked"]
    );
    let broken =
        mistakes(&environment(file(""), &[("SNAPGATE_LOOKUP_TOKENS", "[{name=\"a\",token=\"hunter2hunter2\"")]));
    assert!(broken.len() == 1 && !broken[0].contains("hunter2"), "{broken:?}");
}

#[test]
fn the_text_is_toml_that_means_the_same() {
    let config = load(&file("threads = 3\ninstance = \"gw\"\n[[targets]]\nurl = \"http://h:1\"\ngpus = 2")).unwrap();
    let again = load(&file(&config.text())).unwrap();
    assert_eq!(again.text(), config.text());
    assert_eq!(again.fleet.targets, config.fleet.targets);
    assert!(config.text().is_ascii() && config.text().lines().is_sorted());
}

#[test]
fn the_hash_is_of_the_meaning() {
    let hash = |sources: &Sources| load(sources).unwrap().hash();
    let plain = hash(&file(""));
    assert!(plain.len() == 8 && plain.bytes().all(|byte| byte.is_ascii_hexdigit()));
    // Neither where it was written, nor how, nor on which machine.
    assert_eq!(hash(&file("# said twice\nlisten = \":8080\"\ntimeouts.response_head = \"600s\"")), plain);
    assert_eq!(hash(&environment(file(""), &[("SNAPGATE_LIMITS_BODY_BYTES", "16777216")])), plain);
    assert_eq!(hash(&Sources::of_text("g.toml", "", Machine { hostname: "other".into(), cores: 1 })), plain);
    assert_ne!(hash(&file("threads = 1")), plain);
}

#[test]
fn the_committed_example_is_the_generated_one() {
    let hint = "run: cargo run -- check --example > deploy/snapgate.example.toml";
    assert!(COMMITTED == example(), "deploy/snapgate.example.toml is not what the table says; {hint}");
}

#[test]
fn the_example_is_the_defaults() {
    let example = Config::load(&file(COMMITTED), Targets::Required).unwrap();
    let defaults = load(&file("[[targets]]\nname = \"vllm-0\"\nurl = \"http://127.0.0.1:8000\"")).unwrap();
    assert_eq!(example.text(), defaults.text());
    for key in KEYS {
        assert!(COMMITTED.contains(&key.variable()), "{} is not explained", key.path);
    }
}

#[test]
fn what_the_example_leaves_commented_is_valid_too() {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    let text: String = COMMITTED.lines().map(uncomment).collect();
    let config = load(&environment(file(&text), &[("OPERATORS_TOKEN", "0123456789abcdef")])).unwrap();
    assert_eq!((config.fleet.targets.len(), config.fleet.targets[0].gpus), (2, Some(1)));
    assert_eq!((config.fleet.gpu_exporters.len(), config.fleet.targets[1].gpus), (1, Some(2)));
    assert_eq!(config.gateway.choice.policy_of_model.len(), 1);
    assert_eq!(config.lookup.tokens.len(), 1);
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake_among_others() {
    let sources = Sources::of_process(Some(Path::new("/does/not/exist.toml")), Vec::new()).with_flag(
        "--admin",
        "admin",
        vec!["x".into()],
    );
    let found = load(&sources).unwrap_err();
    assert!(found.to_string().starts_with("/does/not/exist.toml: cannot be read: "), "{found}");
    assert!(found.to_string().contains("(os error 2): name another one, or write it: `snapgate check"), "{found}");
    assert!(found.list().iter().any(|mistake| mistake.key == Some("admin")), "{found}");
}

#[test]
fn what_has_no_end_or_no_text_is_no_configuration() {
    let of = |path| mistakes(&Sources::of_process(Some(path), Vec::new())).remove(0);
    assert_eq!(of(Path::new("/dev/zero")), "/dev/zero: is larger than 4MiB: it is not a configuration");
    let binary = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&binary, [0xff]).unwrap();
    assert!(of(binary.path()).ends_with(": is not UTF-8: it is not a configuration"));
}

proptest! {
    #[test]
    fn no_file_panics(text in "([a-z_.]{1,12} ?= ?(\"[a-z0-9:/]{0,8}\"|[0-9]{1,4}|\\[.{0,6}\\])\n|\\[{1,2}(targets|limits|lookup\\.tokens|x)\\]{1,2}\n|.{0,10}\n){0,8}") {
        match load(&file(&text)) {
            Ok(config) => prop_assert!(!config.shown().is_empty()),
            Err(wrong) => prop_assert!(!wrong.list().is_empty()),
        }
    }

    #[test]
    fn no_variable_panics(place in 0..KEYS.len(), value in "\\[?.{0,16}") {
        let sources = environment(file(""), &[(&KEYS[place].variable(), &value)]);
        if let Err(wrong) = load(&sources) {
            prop_assert!(!wrong.list().is_empty());
        }
    }
}

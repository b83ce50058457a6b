//! What is made of which header: the cases of Envoy's own parser, those that engines really send, and those that are said
//! to be sent, by strict rules and by lenient ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::{REPORT_BYTES_MAX, Read, Rules, read};
use crate::snapshot::load_report::Flaw::{self, *};
use crate::snapshot::load_report::METRICS_MAX;

/// What is expected of one kind of rules: metrics as `name=value` in order, fields before named metrics; or a flaw; or no
/// report at all.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Report(&'static str),
    /// Read, although this was met.
    Flawed(&'static str, &'static [Flaw]),
    Refused(Flaw),
    None,
    /// As by strict rules.
    Same,
}

use Expected::{Flawed, Refused, Report, Same};

const LOAD: &str = "endpoint-load-metrics";
const BIN: &str = "endpoint-load-metrics-bin";

/// Every number and every group but the request's cost, as Envoy's tests have it.
const FULL: &str = "application_utilization=0.8 cpu_utilization=0.7 eps=2 mem_utilization=0.9 rps_fractional=1000 \
                    utilization.total=0.5 bar=0.2 foo=123";

/// The message of [`FULL`], made by another encoder.
const FULL_BASE64: &str = "CWZmZmZmZuY/Ec3MzMzMzOw/KhAKBXRvdGFsEQAAAAAAAOA/MQAAAAAAQI9AOQAAAAAAAABAQg4KA2JhchGamZmZmZnJP0IOCgNmb28RAAAAAADAXkBJmpmZmZmZ6T8=";
const FULL_UNPADDED: &str = "CWZmZmZmZuY/Ec3MzMzMzOw/KhAKBXRvdGFsEQAAAAAAAOA/MQAAAAAAQI9AOQAAAAAAAABAQg4KA2JhchGamZmZmZnJP0IOCgNmb28RAAAAAADAXkBJmpmZmZmZ6T8";
const FULL_BIN: &str = "BIN CWZmZmZmZuY/Ec3MzMzMzOw/KhAKBXRvdGFsEQAAAAAAAOA/MQAAAAAAQI9AOQAAAAAAAABAQg4KA2JhchGamZmZmZnJP0IOCgNmb28RAAAAAADAXkBJmpmZmZmZ6T8=";
const FULL_BIN_UNPADDED: &str = "BIN CWZmZmZmZuY/Ec3MzMzMzOw/KhAKBXRvdGFsEQAAAAAAAOA/MQAAAAAAQI9AOQAAAAAAAABAQg4KA2JhchGamZmZmZnJP0IOCgNmb28RAAAAAADAXkBJmpmZmZmZ6T8";
/// The first half of its bytes.
const FULL_HALF: &str = "CWZmZmZmZuY/Ec3MzMzMzOw/KhAKBXRvdGFsEQAAAAAAAOA/MQAAAAAAQI9AOQA=";

/// As gRPC for Go sends it.
const OF_GRPC_GO: &str = "CQAAAAAAAOA/MQAAAAAAAFlAOQAAAAAAAABAQg4KA3JpZhEAAAAAAAAQQA";
const OF_GRPC_GO_PADDED: &str = "CQAAAAAAAOA/MQAAAAAAAFlAOQAAAAAAAABAQg4KA3JpZhEAAAAAAAAQQA==";
const OF_GRPC_GO_SAYS: &str = "cpu_utilization=0.5 eps=2 rps_fractional=100 rif=4";

/// One answer's headers, and what is made of them.
type Case = (&'static [(&'static str, &'static str)], Expected, Expected);

#[rustfmt::skip] // a table: headers, strict, lenient
const CASES: &[Case] = &[
    // The cases of Envoy's parser.
    (&[], Expected::None, Same),
    (&[("wrong-header", "wrong-value")], Expected::None, Same),
    (&[(LOAD, "BAD random-value")], Refused(UnknownFormat), Same),
    (&[(LOAD, "BADBAD random-value")], Refused(UnknownFormat), Same),
    (&[(LOAD, "")], Refused(UnknownFormat), Same),
    (&[(LOAD, "TEXT cpu_utilization=0.7,application_utilization=0.8,mem_utilization=0.9,rps_fractional=1000,eps=2,\
               named_metrics.foo=123,named_metrics.bar=0.2,utilization.total=0.5")], Report(FULL), Same),
    (&[(LOAD, "TEXT cpu_utilization:0.7,application_utilization:0.8,mem_utilization:0.9,rps_fractional:1000,eps:2,\
               named_metrics.foo:123,named_metrics.bar:0.2,utilization.total:0.5")], Report(FULL), Same),
    (&[(LOAD, "TEXT cpu_utilization=\"0.7\"")], Refused(NotANumber), Same),
    (&[(LOAD, "TEXT cpu_utilization=nan")], Refused(OutOfRange), Same),
    (&[(LOAD, "TEXT cpu_utilization=inf")], Refused(OutOfRange), Same),
    (&[(LOAD, "TEXT cpu_utilization=-1")], Refused(OutOfRange), Same),
    (&[(LOAD, "TEXT cpu_utilization=0.7,cpu_utilization=0.8")], Refused(Duplicate), Flawed("cpu_utilization=0.8", &[Duplicate])),
    (&[(LOAD, "TEXT cpu_utilization=0.7,unsupported_metric=0.8")], Refused(UnknownName), Flawed("cpu_utilization=0.7", &[UnknownName])),
    (&[(LOAD, "TEXT utilization.=0.9")], Refused(BadKey), Same),
    (&[(LOAD, "TEXT named_metrics.foo=123,named_metrics.duplicate=123,named_metrics.duplicate=0.2")],
        Refused(Duplicate), Flawed("duplicate=123 foo=123", &[Duplicate])),
    (&[(LOAD, "TEXT named_metrics.=123")], Refused(BadKey), Same),
    (&[(LOAD, "TEXT not-a-list-of-key-value-pairs")], Refused(NoValue), Same),
    (&[(LOAD, r#"JSON {"cpu_utilization": 0.7, "application_utilization": 0.8, "mem_utilization": 0.9, "rps_fractional": 1000, "eps": 2, "named_metrics": {"foo": 123,"bar": 0.2}, "utilization": {"total": 0.5}}"#)],
        Report(FULL), Same),
    (&[(LOAD, "JSON JSON not-a-valid-json-string")], Refused(NotJson), Same),
    (&[(LOAD, r#"JSON {"cpu_utilization": 0.7, "application_utilization": 0.8, "mem_utilization": 0.9, "rps_fractional": 1000, "eps": 2, "named_metrics": {"foo": 123,"bar": 0.2}, "utilization": {"total": 0.5}, "unknown_field": 2}"#)],
        Refused(UnknownName), Flawed(FULL, &[UnknownName])),
    (&[(LOAD, r#"JSON {"cpu_utilization": "0.7""#)], Refused(NotJson), Same),
    (&[(BIN, FULL_BASE64)], Report(FULL), Same),
    (&[(BIN, FULL_UNPADDED)], Report(FULL), Same),
    (&[(BIN, OF_GRPC_GO)], Report(OF_GRPC_GO_SAYS), Same),
    (&[(BIN, OF_GRPC_GO_PADDED)], Report(OF_GRPC_GO_SAYS), Same),
    (&[(LOAD, FULL_BIN)], Report(FULL), Same),
    (&[(LOAD, FULL_BIN_UNPADDED)], Report(FULL), Same),
    (&[(BIN, FULL_HALF)], Refused(NotProtobuf), Same),
    (&[(BIN, "not-a-valid-binary-proto")], Refused(NotBase64), Same),
    (&[(BIN, "")], Refused(Empty), Same),
    (&[(LOAD, "cpu_utilization:0.7"), (BIN, FULL_BASE64)], Report(FULL), Same),

    // What its code does besides.
    (&[(LOAD, "TEXT =0.5")], Refused(NoValue), Same),
    (&[(LOAD, "TEXT cpu_utilization=")], Refused(NoValue), Same),
    (&[(LOAD, "text cpu_utilization=0.5")], Refused(UnknownFormat), Report("cpu_utilization=0.5")),
    (&[(LOAD, "TEXT\tcpu_utilization=0.5")], Refused(UnknownFormat), Report("cpu_utilization=0.5")),
    (&[(LOAD, "TEXT  ")], Report(""), Same),
    (&[(LOAD, "TEXT cpu_utilization=1.7")], Report("cpu_utilization=1.7"), Same),
    (&[(LOAD, "TEXT mem_utilization=1.2")], Refused(OutOfRange), Same),
    (&[(LOAD, "TEXT utilization.x=1.2")], Refused(OutOfRange), Same),
    (&[(LOAD, "TEXT ,cpu_utilization=0.5,, eps=1 ,")], Report("cpu_utilization=0.5 eps=1"), Same),
    (&[(LOAD, "TEXT cpu_utilization=1e-1")], Report("cpu_utilization=0.1"), Same),
    (&[(LOAD, "TEXT cpu_utilization=1e999")], Refused(OutOfRange), Same),
    (&[(LOAD, "TEXT named_metrics.a.b=1")], Report("a.b=1"), Same),
    (&[(LOAD, "TEXT request_cost.tokens=10")], Refused(UnknownName), Same),
    (&[(LOAD, "TEXT rps=3")], Refused(UnknownName), Same),
    (&[(LOAD, "TEXT cpu_utilization = 0.5")], Refused(UnknownName), Report("cpu_utilization=0.5")),
    (&[(LOAD, "TEXT cpu_utilization=0.5,eps:1")], Report("cpu_utilization=0.5 eps=1"), Same),
    (&[(LOAD, r#"JSON {"cpuUtilization":0.5,"namedMetrics":{"a":1},"requestCost":{"tokens":7},"rps":3}"#)],
        Report("cpu_utilization=0.5 request_cost.tokens=7 rps=3 a=1"), Same),
    (&[(LOAD, r#"JSON {"cpu_utilization":null,"eps":1,"named_metrics":null}"#)], Report("eps=1"), Same),
    (&[(LOAD, r#"JSON {"eps":1,"eps":2}"#)], Refused(Duplicate), Flawed("eps=2", &[Duplicate])),
    // Where Envoy looks no further than protobuf does, we do.
    (&[(LOAD, r#"JSON {"cpu_utilization":"NaN"}"#)], Refused(NotANumber), Refused(OutOfRange)),
    (&[(LOAD, r#"JSON {"cpu_utilization":"0.7"}"#)], Refused(NotANumber), Report("cpu_utilization=0.7")),
    (&[(LOAD, r#"JSON {"cpu_utilization":-1}"#)], Refused(OutOfRange), Same),
    (&[(LOAD, r#"JSON {"named_metrics":{"a":1e400}}"#)], Refused(NotJson), Same),
    (&[(LOAD, r#"JSON {"named_metrics":{"a":[1]},"eps":true}"#)], Refused(NotANumber), Same),
    (&[(LOAD, r#"JSON ["cpu_utilization"]"#)], Refused(NotJson), Same),
    (&[(BIN, "CQAAAAAAAPh/")], Refused(OutOfRange), Same), // cpu_utilization is NaN
    (&[(BIN, "CQAAAAAAAPC/")], Refused(OutOfRange), Same), // cpu_utilization is -1
    (&[(BIN, "EQAAAAAAAPg/")], Refused(OutOfRange), Same), // mem_utilization is 1.5
    (&[(LOAD, "TEXT cpu_utilization=0.1"), (LOAD, "TEXT cpu_utilization=0.9")],
        Report("cpu_utilization=0.1"), Flawed("cpu_utilization=0.1", &[RepeatedHeader])),
    (&[(BIN, "!"), (LOAD, "TEXT cpu_utilization=0.5")], Refused(NotBase64), Same),

    // What engines send, and what others are said to send.
    (&[(LOAD, "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0")],
        Report("kv_cache_usage_perc=0.4 num_requests_waiting=3"), Same),
    (&[(LOAD, r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 3.0}}"#)],
        Report("kv_cache_usage_perc=0.4 num_requests_waiting=3"), Same),
    // vLLM with two engines: the fuller one and the longer queue.
    (&[(LOAD, "TEXT named_metrics.kv_cache_usage_perc=0.1, named_metrics.kv_cache_usage_perc=0.6, \
               named_metrics.num_requests_waiting=2.0, named_metrics.num_requests_waiting=0.0")],
        Refused(Duplicate), Flawed("kv_cache_usage_perc=0.6 num_requests_waiting=2", &[Duplicate, Duplicate])),
    // vLLM without statistics.
    (&[(LOAD, "TEXT")], Refused(UnknownFormat), Report("")),
    (&[(LOAD, r#"JSON {"named_metrics": {}}"#)], Report(""), Same),
    // Triton.
    (&[(LOAD, "TEXT named_metrics.kv_cache_utilization=0.980000, named_metrics.max_token_capacity=1024")],
        Report("kv_cache_utilization=0.98 max_token_capacity=1024"), Same),
    // Without a word for the format.
    (&[(LOAD, "named_metrics.kv_cache_usage_perc=0.75,named_metrics.num_requests_waiting=3")],
        Refused(UnknownFormat), Report("kv_cache_usage_perc=0.75 num_requests_waiting=3")),
    (&[(LOAD, r#"{"eps": 1}"#)], Refused(UnknownFormat), Report("eps=1")),
    (&[("x-endpoint-load-metrics", "TEXT eps=1")], Expected::None, Report("eps=1")),
    (&[("x-endpoint-load-metrics-bin", OF_GRPC_GO)], Expected::None, Report(OF_GRPC_GO_SAYS)),
    (&[("endpoint-load-metrics-json", r#"{"eps": 1}"#)], Expected::None, Same),
    // A percentage where there should be a share: Envoy cannot know, and neither is it divided by a guess.
    (&[(LOAD, "TEXT named_metrics.kv_cache_usage_perc=41,eps=1")],
        Report("eps=1 kv_cache_usage_perc=41"), Flawed("eps=1", &[OutOfRange])),
    // Two lines that somebody on the way made one.
    (&[(LOAD, "TEXT named_metrics.a=1, TEXT named_metrics.b=2")], Refused(UnknownName), Flawed("a=1", &[UnknownName])),
    // Names that would be others' header values.
    (&[(LOAD, "JSON {\"named_metrics\":{\"a\\r\\nset-cookie\":1,\"b\":2}}")], Refused(BadKey), Flawed("b=2", &[BadKey])),
    // The specification's own example, and two of a documentation that no parser takes.
    (&[(BIN, "CZqZmZmZmbk/MQAAAAAAAABAQg4KA2ZvbxGamZmZmZm5P0IOCgNiYXIRmpmZmZmZyT8=")],
        Report("cpu_utilization=0.1 rps_fractional=2 bar=0.2 foo=0.1"), Same),
    (&[(BIN, "Cg4KCHNvbWUta2V5Eg0AAAAAAADwPw==")], Refused(NotProtobuf), Same),
    (&[(LOAD, "TEXT cpu=0.3,mem=0.8")], Refused(UnknownName), Same),
];

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    lines.iter().map(line).collect()
}

fn shown(read: &Read) -> String {
    let metrics = read.report.other_metrics.iter().chain(&read.report.named_metrics);
    metrics.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_case_is_read_as_it_should_be_by_both_rules() {
    for (lines, strict, lenient) in CASES {
        let lenient = if matches!(lenient, Same) { strict } else { lenient };
        for (rules, expected) in [(Rules::Strict, strict), (Rules::Lenient, lenient)] {
            let read = read(&headers(lines), rules);
            let (expected, flaws): (_, &[Flaw]) = match expected {
                Report(report) => (Ok(Some((*report).to_owned())), &[]),
                Flawed(report, flaws) => (Ok(Some((*report).to_owned())), flaws),
                Refused(flaw) => (Err(*flaw), &[]),
                Expected::None => (Ok(None), &[]),
                Same => unreachable!("only the lenient column refers to the other"),
            };
            if let Ok(Some(read)) = &read {
                let met = read.flaws.iter().flat_map(|(flaw, count)| std::iter::repeat_n(flaw, count as usize));
                assert_eq!(met.collect::<Vec<_>>(), flaws, "{rules:?}: {lines:?}");
            }
            assert_eq!(read.map(|read| read.as_ref().map(shown)), expected, "{rules:?}: {lines:?}");
        }
    }
}

#[test]
fn a_report_is_bounded() {
    let entry = |number: usize| format!("named_metrics.m{number}=1");
    let list = |count: usize| format!("TEXT {}", (0..count).map(entry).collect::<Vec<_>>().join(","));
    let long_key = |length: usize| format!("TEXT eps=1,named_metrics.{}=1", "k".repeat(length));
    let padded = |length: usize| format!("TEXT eps=1,{}", ",".repeat(length - "TEXT eps=1,".len()));
    for rules in [Rules::Strict, Rules::Lenient] {
        let of = |value: String| read(&headers(&[(LOAD, &value)]), rules).map(|read| read.unwrap().report.len());
        assert_eq!(of(list(METRICS_MAX)), Ok(METRICS_MAX));
        assert_eq!(of(list(METRICS_MAX + 1)), Err(TooManyMetrics));
        assert_eq!(of(long_key(64)), Ok(2));
        assert_eq!(of(long_key(65)), if rules == Rules::Strict { Err(BadKey) } else { Ok(1) });
        assert_eq!(of(padded(REPORT_BYTES_MAX)), Ok(1));
        assert_eq!(of(padded(REPORT_BYTES_MAX + 1)), Err(TooLarge));
    }
    let mut bytes = HeaderMap::new();
    bytes.insert(LOAD, HeaderValue::from_bytes(b"TEXT eps=1,\xff=2").unwrap());
    assert_eq!(read(&bytes, Rules::Lenient), Err(NotText));
}

/// Whatever was read is what may be kept.
fn assert_sound(read: &Read) {
    assert!(read.report.len() <= METRICS_MAX);
    for (name, value) in read.report.named_metrics.iter().chain(&read.report.other_metrics) {
        assert!(value.is_finite() && *value >= 0.0 && value.is_sign_positive(), "{name}={value}");
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
    }
    for value in super::quantities(&read.report).into_iter().flatten() {
        assert!(value.is_finite() && value >= 0.0);
    }
}

/// Something like a report: the pieces they are made of, in any order.
fn likely() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "TEXT ",
            "text ",
            "JSON ",
            "BIN ",
            "named_metrics.",
            "utilization.",
            "cpu_utilization",
            "eps",
            "rps",
            "=",
            ":",
            ",",
            ", ",
            "{",
            "}",
            "[",
            "]",
            "\"",
            "\"named_metrics\":{",
            "\"eps\":",
            "null",
            "nan",
            "-1",
            "1e999",
            "0.5",
            "kv_cache_usage_perc",
            "num_requests_waiting",
            OF_GRPC_GO,
            FULL_BASE64,
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,8}",
        any::<f64>().prop_map(|number| number.to_string()),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn whatever_is_read_is_sound_and_lenient_rules_read_no_less(value in likely(), bin: bool) {
        let headers = headers(&[(if bin { BIN } else { LOAD }, value.trim())]);
        let (strict, lenient) = (read(&headers, Rules::Strict), read(&headers, Rules::Lenient));
        for read in [&strict, &lenient].into_iter().flatten().flatten() {
            assert_sound(read);
        }
        if let Ok(Some(strict)) = strict {
            // But for shares above 1, which only lenient rules know for what they are.
            let lenient = lenient.map(|read| read.map(|read| read.report));
            let shares = strict.report.named_metrics.iter().any(|(name, value)| super::quantities::is_share(name) && *value > 1.0);
            prop_assert!(shares || lenient == Ok(Some(strict.report)));
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), bin: bool) {
        let value = if bin { STANDARD.encode(&bytes).into_bytes() } else { [b"TEXT ", &bytes[..]].concat() };
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.insert(if bin { BIN } else { LOAD }, value);
        }
        for rules in [Rules::Strict, Rules::Lenient] {
            if let Ok(Some(read)) = read(&headers, rules) {
                assert_sound(&read);
            }
        }
    }
}

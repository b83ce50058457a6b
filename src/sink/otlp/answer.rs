//! What a receiver's answer means: taken, taken in part, later, or never. By the OTLP specification's tables.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use prost::Message;

use crate::sink::Refusal;

/// What became of one export request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Taken, except for so many items that were refused for good.
    Taken {
        /// Spans or log records.
        rejected: u64,
        /// What the receiver said of that, or of something else.
        message: String,
    },
    /// Not taken.
    Refused {
        /// Whether to come again.
        refusal: Refusal,
        /// What the receiver said.
        message: String,
    },
}

/// `ExportTraceServiceResponse` and `ExportLogsServiceResponse`, which have the same numbers.
#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// `google.rpc.Status`: the details of a gRPC answer, and the body of an HTTP one that refuses.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<ProtoDuration>,
}

#[derive(Clone, PartialEq, Message)]
struct ProtoDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

impl RpcStatus {
    /// How long the receiver wants to be left alone, if it says so.
    fn retry_delay(&self) -> Option<Duration> {
        let info = self.details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
        let delay = RetryInfo::decode(&info.value[..]).ok()?.retry_delay.unwrap_or_default();
        let nanos = u32::try_from(delay.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
        Some(Duration::new(u64::try_from(delay.seconds).ok()?, nanos?))
    }
}

/// An answer over HTTP. `now` is for a date in `Retry-After`.
pub(super) fn of_http(status: StatusCode, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Answer {
    let protobuf = headers.get(http::header::CONTENT_TYPE).is_some_and(|it| it.as_bytes().starts_with(super::PROTOBUF));
    if status.is_success() {
        return taken(if protobuf { body } else { b"" });
    }
    let said = if protobuf { RpcStatus::decode(body).unwrap_or_default() } else { RpcStatus::default() };
    let reason = http_reason(status);
    let refusal = match status.as_u16() {
        429 | 502..=504 => later(reason, retry_after(headers, now)),
        _ => Refusal::Hopeless(reason),
    };
    let message = if said.message.is_empty() { status.to_string() } else { format!("{status}: {}", said.message) };
    Answer::Refused { refusal, message }
}

/// An answer over gRPC: its HTTP status, the headers that say how the call ended, which are trailers unless it ended at once,
/// and the message.
pub(super) fn of_grpc(status: StatusCode, ended: &HeaderMap, message: Option<&[u8]>) -> Answer {
    let code = ended.get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<u8>().ok());
    let said = ended.get("grpc-message").map(|text| percent_encoding::percent_decode(text.as_bytes()));
    let said = said.map_or_else(String::new, |text| text.decode_utf8_lossy().into_owned());
    let Some(code) = code else {
        // No gRPC at all: a proxy on the way has answered, or nobody knew how the call ended.
        let refusal = match status.as_u16() {
            200 => Refusal::Later("broken"),
            429 | 502..=504 => Refusal::Later(http_reason(status)),
            _ => Refusal::Hopeless(http_reason(status)),
        };
        return Answer::Refused { refusal, message: format!("{status} without a gRPC status") };
    };
    if code == 0 {
        return taken(message.unwrap_or_default());
    }
    let details = ended.get("grpc-status-details-bin").and_then(|text| BASE64.decode(text.as_bytes()).ok());
    let delay = details.and_then(|bytes| RpcStatus::decode(&bytes[..]).ok()).and_then(|status| status.retry_delay());
    let (reason, again) = grpc_code(code);
    let again = match again {
        Again::Yes => true,
        Again::IfAsked => delay.is_some(),
        Again::No => false,
    };
    let refusal = if again { later(reason, delay) } else { Refusal::Hopeless(reason) };
    Answer::Refused { refusal, message: said }
}

/// As gRPC writes binary metadata: padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn taken(body: &[u8]) -> Answer {
    // What cannot be read says nothing against the success.
    let partial = ExportResponse::decode(body).ok().and_then(|response| response.partial_success).unwrap_or_default();
    Answer::Taken { rejected: partial.rejected.max(0).cast_unsigned(), message: partial.error_message }
}

fn later(reason: &'static str, asked: Option<Duration>) -> Refusal {
    asked.map_or(Refusal::Later(reason), |asked| Refusal::After(reason, asked))
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = text.parse().map(Duration::from_secs).ok();
    seconds.or_else(|| httpdate::parse_http_date(text).ok()?.duration_since(now).ok())
}

/// All there are, also of `client.rs`: they are labels of a metric.
pub(super) const REASONS: &[&str] = &[
    "timeout",
    "connect",
    "broken",
    "http_400",
    "http_401",
    "http_403",
    "http_404",
    "http_405",
    "http_413",
    "http_415",
    "http_429",
    "http_502",
    "http_503",
    "http_504",
    "http_3xx",
    "http_4xx",
    "http_5xx",
    "grpc_cancelled",
    "grpc_unknown",
    "grpc_invalid_argument",
    "grpc_deadline_exceeded",
    "grpc_not_found",
    "grpc_already_exists",
    "grpc_permission_denied",
    "grpc_resource_exhausted",
    "grpc_failed_precondition",
    "grpc_aborted",
    "grpc_out_of_range",
    "grpc_unimplemented",
    "grpc_internal",
    "grpc_unavailable",
    "grpc_data_loss",
    "grpc_unauthenticated",
    "grpc_status",
];

/// What to look at when that is the reason; `None` where the receiver's own words have to do.
pub(super) fn advice(reason: &str) -> Option<&'static str> {
    match reason {
        "connect" => Some("check that it listens there: otlp.endpoint"),
        "broken" => Some("check otlp.protocol: this is how somebody answers who speaks another one"),
        "http_401" | "http_403" | "grpc_unauthenticated" | "grpc_permission_denied" => Some("check otlp.headers"),
        "http_404" | "http_405" | "http_415" | "grpc_unimplemented" => {
            Some("check otlp.protocol, and the path in otlp.endpoint")
        }
        _ => None,
    }
}

/// One of [`REASONS`].
const fn http_reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "http_400",
        401 => "http_401",
        403 => "http_403",
        404 => "http_404",
        405 => "http_405",
        413 => "http_413",
        415 => "http_415",
        429 => "http_429",
        502 => "http_502",
        503 => "http_503",
        504 => "http_504",
        other => match other / 100 {
            3 => "http_3xx",
            4 => "http_4xx",
            _ => "http_5xx",
        },
    }
}

/// Whether to come again after a gRPC status.
enum Again {
    Yes,
    /// Only if the receiver says when.
    IfAsked,
    No,
}

const fn grpc_code(code: u8) -> (&'static str, Again) {
    match code {
        1 => ("grpc_cancelled", Again::Yes),
        2 => ("grpc_unknown", Again::No),
        3 => ("grpc_invalid_argument", Again::No),
        4 => ("grpc_deadline_exceeded", Again::Yes),
        5 => ("grpc_not_found", Again::No),
        6 => ("grpc_already_exists", Again::No),
        7 => ("grpc_permission_denied", Again::No),
        8 => ("grpc_resource_exhausted", Again::IfAsked),
        9 => ("grpc_failed_precondition", Again::No),
        10 => ("grpc_aborted", Again::Yes),
        11 => ("grpc_out_of_range", Again::Yes),
        12 => ("grpc_unimplemented", Again::No),
        13 => ("grpc_internal", Again::No),
        14 => ("grpc_unavailable", Again::Yes),
        15 => ("grpc_data_loss", Again::Yes),
        16 => ("grpc_unauthenticated", Again::No),
        _ => ("grpc_status", Again::No),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::time::UNIX_EPOCH;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn http(status: u16, pairs: &[(&'static str, &str)], body: &[u8]) -> Answer {
        of_http(
            StatusCode::from_u16(status).unwrap(),
            &headers(pairs),
            body,
            UNIX_EPOCH + Duration::from_secs(784_111_777),
        )
    }

    #[test]
    fn every_answer_has_a_reason_of_the_list() {
        for code in 0..=u8::MAX {
            assert!(code == 0 || REASONS.contains(&grpc_code(code).0), "{code}");
        }
        for status in 100..1_000 {
            let reason = http_reason(StatusCode::from_u16(status).unwrap());
            assert!(REASONS.contains(&reason), "{status}");
        }
    }

    fn refusal(answer: Answer) -> Refusal {
        match answer {
            Answer::Refused { refusal, .. } => refusal,
            Answer::Taken { .. } => panic!("{answer:?}"),
        }
    }

    #[test]
    fn http_statuses_mean_what_the_specification_says() {
        let seconds = |seconds| Duration::from_secs(seconds);
        let cases = [
            (429, None, Refusal::Later("http_429")),
            (429, Some("7"), Refusal::After("http_429", seconds(7))),
            (503, Some("Sun, 06 Nov 1994 08:49:47 GMT"), Refusal::After("http_503", seconds(10))),
            (503, Some("Sun, 06 Nov 1994 08:00:00 GMT"), Refusal::Later("http_503")),
            (502, Some("soon"), Refusal::Later("http_502")),
            (504, Some("0"), Refusal::After("http_504", seconds(0))),
            (400, Some("7"), Refusal::Hopeless("http_400")),
            (401, None, Refusal::Hopeless("http_401")),
            (404, None, Refusal::Hopeless("http_404")),
            (413, None, Refusal::Hopeless("http_413")),
            (418, None, Refusal::Hopeless("http_4xx")),
            (307, None, Refusal::Hopeless("http_3xx")),
            (500, None, Refusal::Hopeless("http_5xx")),
            (501, None, Refusal::Hopeless("http_5xx")),
        ];
        for (status, after, expected) in cases {
            let pairs: Vec<_> = after.map(|after| ("retry-after", after)).into_iter().collect();
            assert_eq!(refusal(http(status, &pairs, b"")), expected, "{status} {after:?}");
        }
    }

    #[test]
    fn grpc_statuses_mean_what_the_specification_says() {
        let again = [1, 4, 10, 11, 14, 15];
        for code in 1..=16 {
            let refused = refusal(of_grpc(StatusCode::OK, &headers(&[("grpc-status", &code.to_string())]), None));
            assert_eq!(matches!(refused, Refusal::Later(_)), again.contains(&code), "{code}: {refused:?}");
        }
        let proxied = |status| refusal(of_grpc(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), None));
        assert_eq!(proxied(503), Refusal::Later("http_503"));
        assert_eq!(proxied(404), Refusal::Hopeless("http_404"));
        assert_eq!(proxied(200), Refusal::Later("broken"), "the answer was cut off");
    }

    #[test]
    fn a_receiver_may_say_when_to_come_again() {
        let delay = Some(ProtoDuration { seconds: 3, nanos: 500_000_000 });
        let info = RetryInfo { retry_delay: delay }.encode_to_vec();
        let details = vec![
            Any { type_url: "type.googleapis.com/google.rpc.DebugInfo".into(), value: vec![1] },
            Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info },
        ];
        let status = RpcStatus { message: "slow down".into(), details }.encode_to_vec();
        let texts =
            [base64::prelude::BASE64_STANDARD.encode(&status), base64::prelude::BASE64_STANDARD_NO_PAD.encode(&status)];
        for text in texts {
            let asked = |code| {
                let ended = headers(&[
                    ("grpc-status", code),
                    ("grpc-message", "slow%20down"),
                    ("grpc-status-details-bin", &text),
                ]);
                of_grpc(StatusCode::OK, &ended, None)
            };
            let after = Duration::from_millis(3_500);
            let exhausted = Refusal::After("grpc_resource_exhausted", after);
            assert_eq!(asked("8"), Answer::Refused { refusal: exhausted, message: "slow down".into() });
            assert_eq!(refusal(asked("14")), Refusal::After("grpc_unavailable", after));
            assert_eq!(refusal(asked("3")), Refusal::Hopeless("grpc_invalid_argument"));
        }
    }

    #[test]
    fn partial_success_is_read_and_garbage_is_no_refusal() {
        let partial = PartialSuccess { rejected: 3, error_message: "too old".into() };
        let body = ExportResponse { partial_success: Some(partial) }.encode_to_vec();
        let some = Answer::Taken { rejected: 3, message: "too old".into() };
        let all = Answer::Taken { rejected: 0, message: String::new() };
        assert_eq!(http(200, &[("content-type", "application/x-protobuf")], &body), some);
        assert_eq!(http(200, &[("content-type", "application/json")], b"{}"), all);
        assert_eq!(http(202, &[("content-type", "application/x-protobuf")], b"\xff\xff"), all);
        let ok = headers(&[("grpc-status", "0")]);
        assert_eq!(of_grpc(StatusCode::OK, &ok, Some(&body)), some);
        assert_eq!(of_grpc(StatusCode::OK, &ok, None), all);
    }
}

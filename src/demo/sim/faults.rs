//! Misbehaviour on demand: for a whole simulated pod, or for one request by a header.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::settings::{SimSettings, duration};
use crate::demo::draws::Draws;

/// The request header that asks for a fault: one of the forms of [`Fault`], or `none` to be spared the pod's own.
pub const FAULT_HEADER: &str = "x-sim-fault";

/// The request header that sets the length of the answer in tokens.
pub const TOKENS_HEADER: &str = "x-sim-tokens";

/// What goes wrong with one answer. Events are `data:` lines of a stream; an answer in one piece breaks halfway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `reset-after=N`: a TCP reset after N events.
    ResetAfter(u32),
    /// `hang-after=N`: nothing more after N events, and the connection stays open.
    HangAfter(u32),
    /// `garbage-after=N`: an event that is neither JSON nor UTF-8 after N events; then the stream goes on.
    GarbageAfter(u32),
    /// `hang`: never a response head; the request keeps its slot until the client leaves.
    Hang,
    /// `reset`: a TCP reset instead of a response head.
    Reset,
    /// `error=STATUS`: an error answer, 400 to 599.
    Error(StatusCode),
    /// `slow-head=DURATION`: the request is only looked at after so long.
    SlowHead(Duration),
}

/// A fault or a token count that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultError {
    header: &'static str,
    value: String,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = match self.header {
            TOKENS_HEADER => "a number of tokens from 1 on",
            _ => {
                "reset-after=N, hang-after=N, garbage-after=N, hang, reset, error=STATUS (400 to 599), \
                  slow-head=DURATION or none"
            }
        };
        write!(f, "{} `{}` is not understood; use {expected}", self.header, self.value)
    }
}

impl std::error::Error for FaultError {}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (kind, value) = text.split_once('=').map_or((text, None), |(kind, value)| (kind, Some(value)));
        let count = || value.and_then(|value| value.parse().ok());
        let fault = match (kind, value) {
            ("reset-after", _) => count().map(Self::ResetAfter),
            ("hang-after", _) => count().map(Self::HangAfter),
            ("garbage-after", _) => count().map(Self::GarbageAfter),
            ("hang", None) => Some(Self::Hang),
            ("reset", None) => Some(Self::Reset),
            ("error", Some(value)) => value
                .parse()
                .ok()
                .filter(|status: &StatusCode| status.is_client_error() || status.is_server_error())
                .map(Self::Error),
            ("slow-head", Some(value)) => duration(value).ok().map(Self::SlowHead),
            _ => None,
        };
        fault.ok_or_else(|| FaultError { header: FAULT_HEADER, value: text.to_owned() })
    }
}

impl Fault {
    /// What goes wrong with this request: what its header says, else what the pod is set to, if the draw falls so.
    pub(super) fn of_request(
        headers: &HeaderMap,
        settings: &SimSettings,
        draws: &mut Draws,
    ) -> Result<Option<Self>, FaultError> {
        match text_of(headers, FAULT_HEADER)? {
            Some("none") => Ok(None),
            Some(asked) => asked.parse().map(Some),
            None if draws.unit() < settings.error_rate => Ok(Some(Self::Error(StatusCode::INTERNAL_SERVER_ERROR))),
            None => Ok(settings.misbehaviour.fault().filter(|_| draws.unit() < settings.misbehaviour.fault_rate)),
        }
    }
}

/// The answer's length that the request asks for by header.
pub(super) fn tokens_of_request(headers: &HeaderMap) -> Result<Option<u32>, FaultError> {
    let Some(asked) = text_of(headers, TOKENS_HEADER)? else { return Ok(None) };
    match asked.parse() {
        Ok(tokens) if tokens > 0 => Ok(Some(tokens)),
        _ => Err(FaultError { header: TOKENS_HEADER, value: asked.to_owned() }),
    }
}

fn text_of<'a>(headers: &'a HeaderMap, header: &'static str) -> Result<Option<&'a str>, FaultError> {
    let Some(value) = headers.get(header) else { return Ok(None) };
    match value.to_str() {
        Ok(text) => Ok(Some(text.trim())),
        Err(_) => Err(FaultError { header, value: format!("{value:?}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for (text, fault) in [
            ("reset-after=3", Fault::ResetAfter(3)),
            ("hang-after=0", Fault::HangAfter(0)),
            ("garbage-after=12", Fault::GarbageAfter(12)),
            ("hang", Fault::Hang),
            ("reset", Fault::Reset),
            ("error=503", Fault::Error(StatusCode::SERVICE_UNAVAILABLE)),
            ("slow-head=200ms", Fault::SlowHead(Duration::from_millis(200))),
        ] {
            assert_eq!(text.parse(), Ok(fault), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named_with_what_would_be() {
        for text in ["", "reset-after", "reset-after=-1", "hang=1", "error=200", "error=x", "slow-head=5", "explode"] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("reset-after=N"), "{error}");
        }
    }

    #[test]
    fn a_header_wins_over_the_pod_and_none_spares() {
        let mut settings = SimSettings { error_rate: 1.0, ..SimSettings::default() };
        let of = |header: Option<&'static str>, settings: &SimSettings| {
            let headers = header.map(|value| (http::HeaderName::from_static(FAULT_HEADER), value.parse().unwrap()));
            Fault::of_request(&headers.into_iter().collect(), settings, &mut Draws::of(1, 1)).unwrap()
        };
        assert_eq!(of(None, &settings), Some(Fault::Error(StatusCode::INTERNAL_SERVER_ERROR)));
        assert_eq!(of(Some("hang"), &settings), Some(Fault::Hang));
        assert_eq!(of(Some("none"), &settings), None);
        settings.error_rate = 0.0;
        settings.misbehaviour.hang_after = Some(4);
        assert_eq!(of(None, &settings), Some(Fault::HangAfter(4)));
        settings.misbehaviour.fault_rate = 0.0;
        assert_eq!(of(None, &settings), None);
    }
}

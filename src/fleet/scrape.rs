//! One reading of a metrics page, whoever's it is, and why it may give nothing.

use std::error::Error;
use std::fmt;

use http::{StatusCode, Uri};

use super::fetch::{FetchError, Fetcher};
use super::{Settings, prometheus};

/// Why a page gave nothing.
#[derive(Debug)]
pub(super) enum ScrapeError {
    /// It did not come, or not all of it.
    Fetch(FetchError),
    /// It came with another status than 200.
    Status(StatusCode),
    /// Nothing on it is a sample: a web page, an error in words, an empty body.
    NotMetrics,
    /// It has samples, but none of those that are looked for.
    Foreign(Foreign),
}

/// What is missing on a page of somebody else's metrics.
#[derive(Debug)]
pub(super) struct Foreign {
    /// For counting.
    pub(super) reason: &'static str,
    /// Whose samples there are none of, and what to do.
    pub(super) text: String,
}

/// Asks once, and makes of the page what `parse` does, if it finds something of what it looks for.
pub(super) async fn read<T>(
    fetcher: &Fetcher,
    settings: &Settings,
    uri: &Uri,
    parse: impl FnOnce(&[u8]) -> Result<T, Foreign>,
) -> Result<T, ScrapeError> {
    let answer = fetcher.get(uri, settings.poll_timeout, settings.poll_bytes_max).await.map_err(ScrapeError::Fetch)?;
    if answer.status != StatusCode::OK {
        return Err(ScrapeError::Status(answer.status));
    }
    let text = answer.body.map_err(ScrapeError::Fetch)?;
    parse(&text).map_err(|foreign| match prometheus::has_samples(&text) {
        true => ScrapeError::Foreign(foreign),
        false => ScrapeError::NotMetrics,
    })
}

impl ScrapeError {
    /// Every reason there is, with that of a [`Foreign`] page.
    pub(super) const fn reasons(foreign: &'static str) -> [&'static str; 7] {
        ["timeout", "connect", "broken", "too_large", "status", "not_metrics", foreign]
    }

    /// For counting.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.reason(),
            Self::Status(_) => "status",
            Self::NotMetrics => "not_metrics",
            Self::Foreign(foreign) => foreign.reason,
        }
    }
}

impl fmt::Display for ScrapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetch(error) => fmt::Display::fmt(error, f),
            Self::Status(status) => write!(f, "status {status} instead of 200, check the page's address and path"),
            Self::NotMetrics => f.write_str("the page has no metrics, check its address and path"),
            Self::Foreign(foreign) => write!(f, "the page has metrics, but none {}", foreign.text),
        }
    }
}

impl Error for ScrapeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Fetch(error) => error.source(),
            Self::Status(_) | Self::NotMetrics | Self::Foreign(_) => None,
        }
    }
}

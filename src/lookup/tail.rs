//! `snapgate tail`: finished snapshots as they are stored, from now on, over restarts of the gateway.

use std::fmt;
use std::io;
use std::time::Duration;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::sleep;

use super::client::{Admin, FetchError, FetchedDocument};
use super::export::Selection;
use super::problem::{self, Problem};

/// How long a gateway may hold back an answer in which nothing is: so long a gateway that stops may have to wait for it.
const WAIT: &str = "1s";

/// How soon a gateway that is away is looked for again, and how seldom at least.
const AWAY_MIN: Duration = Duration::from_millis(100);
const AWAY_MAX: Duration = Duration::from_secs(2);

/// Why following ended.
#[derive(Debug)]
pub enum TailError {
    /// The gateway could not be asked in the first place, or is none.
    Fetch(FetchError),
    /// The gateway refused.
    Refused(Box<Problem>),
    /// A line could not be written.
    Write(io::Error),
}

impl fmt::Display for TailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetch(error) => error.fmt(f),
            Self::Refused(problem) => write!(f, "{}: {}", problem.title, problem.advice()),
            Self::Write(error) => write!(f, "a line could not be written: {error}"),
        }
    }
}

impl std::error::Error for TailError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Fetch(error) => Some(error),
            Self::Refused(_) => None,
            Self::Write(error) => Some(error),
        }
    }
}

/// A page of what was stored.
#[derive(Deserialize)]
struct Page {
    snapshots: Vec<Box<RawValue>>,
    next: Option<String>,
}

/// Hands each snapshot that is stored from now on to `show`, in their order, and says by `note` what gets in between. Ends
/// only with an error; to be dropped when it is enough.
///
/// # Errors
/// The gateway was never there, it refuses, or a line cannot be written.
pub async fn tail(
    admin: &Admin,
    selection: &Selection,
    mut show: impl FnMut(&FetchedDocument) -> io::Result<()>,
    mut note: impl FnMut(&dyn fmt::Display),
) -> TailError {
    let path = format!("/v1/snapshots?{}&order=stored", selection.parameters());
    let (mut next, mut away): (Option<String>, Option<Duration>) = (None, None);
    loop {
        let page = match &next {
            // Where the end is, is to be known at once: it is where to go on if the gateway stops in between.
            None => ask(admin, &path).await,
            Some(next) => ask(admin, &format!("{path}&wait={WAIT}&page={next}")).await,
        };
        match page {
            Ok(page) => {
                if away.take().is_some() {
                    note(&"the gateway is there again");
                }
                for snapshot in page.snapshots {
                    let shown =
                        FetchedDocument::read(snapshot).map_err(|error| admin.not_snapgate(StatusCode::OK, error));
                    let shown = match shown {
                        Ok(document) => show(&document),
                        Err(error) => return TailError::Fetch(error),
                    };
                    if let Err(error) = shown {
                        return TailError::Write(error);
                    }
                }
                next = page.next.or(next);
            }
            Err(TailError::Refused(problem)) if next.is_some() && problem.reason.as_deref() == Some(problem::PAGE) => {
                note(&"the gateway has another store than before: following it from its end");
                next = None;
            }
            Err(error) if next.is_some() && passes(&error) => {
                if away.is_none() {
                    note(&format_args!("{error}; trying again until it is there"));
                }
                let pause = away.map_or(AWAY_MIN, |pause| (pause * 2).min(AWAY_MAX));
                away = Some(pause);
                sleep(pause).await;
            }
            Err(error) => return error,
        }
    }
}

/// Whether it may be otherwise in a moment: a gateway that restarts is unreachable, and one that is asked much is busy.
fn passes(error: &TailError) -> bool {
    match error {
        TailError::Fetch(error) => matches!(error, FetchError::Unreachable { .. } | FetchError::TimedOut { .. }),
        TailError::Refused(problem) => problem.status == 429 || problem.status >= 500,
        TailError::Write(_) => false,
    }
}

async fn ask(admin: &Admin, path: &str) -> Result<Page, TailError> {
    let answer = admin.get(path, "application/json").await.map_err(TailError::Fetch)?;
    if answer.status != StatusCode::OK {
        return Err(match admin.problem(&answer) {
            Ok(problem) => TailError::Refused(Box::new(problem)),
            Err(error) => TailError::Fetch(error),
        });
    }
    serde_json::from_slice(&answer.body).map_err(|error| TailError::Fetch(admin.not_snapgate(answer.status, error)))
}

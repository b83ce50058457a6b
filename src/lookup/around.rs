//! `?around=30s`: what else went wrong at the target of a request at that time.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Lookup;
use super::render::{bounded, words};
use super::resolve::{LookupError, TURN_WAIT_MAX, in_turn};
use crate::snapshot::{Ending, Moment, Record};
use crate::store::{Near, ReadError, Reader, Surroundings};

/// The widest that may be asked for: half of what is looked at.
pub(super) const WIDTH_MAX: Duration = Duration::from_secs(600);

/// How far before and after the request, as `30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width(Duration);

impl FromStr for Width {
    /// What is to be said after the text.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = text.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
        let limit = WIDTH_MAX.as_secs();
        match span {
            Some(span) if !span.is_zero() && span <= WIDTH_MAX => Ok(Self(span)),
            None if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(format!("has no unit: write {text}s, at most {limit}s"))
            }
            _ => Err(format!(
                "is no duration that can be looked at: give a number with its unit, such as 30s, up to {limit}s"
            )),
        }
    }
}

/// What else was recorded of the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Around {
    /// The target.
    pub target: Option<String>,
    /// From when on requests were looked at, by their issue.
    pub from: String,
    /// Until when.
    pub to: String,
    /// Others that the target got then and that have ended.
    pub requests: u64,
    /// Those of them that went wrong, by how they ended, most first.
    pub wrong: Vec<Wrong>,
    /// Some of these, those nearest in time first.
    pub nearest: Vec<Nearest>,
    /// Everything from `from` to `to` was looked at. Otherwise what is nearest in time was.
    pub complete: bool,
}

/// Requests that went wrong in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// How they ended.
    pub ending: Ending,
    /// The status that their clients got, if they got one.
    pub status: Option<u16>,
    /// How many.
    pub count: u64,
}

impl Wrong {
    /// What came to its end is told by its status, which is what was wrong with it.
    fn shown(&self) -> String {
        match (self.ending, self.status) {
            (Ending::Completed, Some(status)) => format!("{} x {status}", self.count),
            (ending, _) => format!("{} x {}", self.count, ending.name()),
        }
    }
}

/// One request that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// Its ID.
    pub id: String,
    /// The status that its client got, if it got one.
    pub status: Option<u16>,
    /// How it ended.
    pub ending: Ending,
    /// How long it took, in microseconds.
    pub end_offset_us: Option<u64>,
}

impl From<Near> for Nearest {
    fn from(Near { id, status, ending, end_offset_us }: Near) -> Self {
        Self { id: id.to_string(), status, ending, end_offset_us }
    }
}

impl Nearest {
    /// In the words and the order of a line of `snapgate tail`.
    fn shown(&self) -> String {
        let status = self.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        let took = self.end_offset_us.map_or_else(|| "-".to_owned(), words::micros);
        // It went wrong, so what came to its end was an error.
        let ending = if self.ending == Ending::Completed { "failed" } else { self.ending.name() };
        format!("  {}  {status:>3}  {ending}  {took}", words::clean(&self.id))
    }
}

/// Looks around a request. One without a target has no surroundings.
pub(super) async fn look(lookup: &Lookup, record: &Record, width: Width) -> Result<Around, LookupError> {
    let (id, target) = (record.id(), target_of(record));
    let found = match target.clone() {
        None => None,
        Some(name) => {
            let look =
                move |reader: Option<&Reader>| reader.map(|reader| reader.around(&name, id, width.0)).transpose();
            in_turn(lookup, TURN_WAIT_MAX, look).await?
        }
    };
    Ok(Around::new(target, record, width, found))
}

/// The same in a store. Blocks.
///
/// # Errors
/// The store cannot be read.
pub fn look_in(reader: &Reader, record: &Record, width: Width) -> Result<Around, ReadError> {
    let target = target_of(record);
    let found = target.as_ref().map(|name| reader.around(name, record.id(), width.0)).transpose()?;
    Ok(Around::new(target, record, width, found))
}

fn target_of(record: &Record) -> Option<String> {
    let outcome = record.outcome().and_then(|outcome| outcome.target());
    let target = outcome.or(record.issued.decision.as_ref().map(|decision| decision.target()));
    target.map(|target| target.name.to_string())
}

impl Around {
    fn new(target: Option<String>, record: &Record, Width(width): Width, found: Option<Surroundings>) -> Self {
        let issued = record.issued.issued_at;
        let Some(found) = found else {
            let (from, to) = (issued.minus(width).to_string(), issued.plus(width).to_string());
            return Self { target, from, to, complete: true, ..Self::default() };
        };
        Self {
            target,
            from: Moment(found.from_unix_ms * 1000).to_string(),
            to: Moment(found.to_unix_ms * 1000).to_string(),
            requests: found.requests,
            wrong: found.wrong.into_iter().map(|(ending, status, count)| Wrong { ending, status, count }).collect(),
            nearest: found.nearest.into_iter().map(Nearest::from).collect(),
            complete: found.complete,
        }
    }

    /// For a person: one sentence, and a line for each of those that are nearest.
    pub fn render(&self, width: usize) -> String {
        let width = bounded(width);
        let Some(target) = &self.target else {
            return "No target was chosen, so nothing happened around it.\n".to_owned();
        };
        let wrong: u64 = self.wrong.iter().map(|wrong| wrong.count).sum();
        let mut sentence = format!(
            "Around it, {} got {} from {} to {}, of which {wrong} went wrong",
            words::clean(target),
            words::counted(self.requests, "other request"),
            words::clean(&self.from),
            words::clean(&self.to)
        );
        for (place, wrong) in self.wrong.iter().enumerate() {
            sentence.push_str(if place == 0 { ": " } else { ", " });
            sentence.push_str(&wrong.shown());
        }
        sentence.push_str(if self.complete {
            "."
        } else {
            "; there were more at that time, and these are the nearest."
        });
        let mut text = words::wrapped(&sentence, width);
        for nearest in &self.nearest {
            text.push_str(&format!("{}\n", words::line(&nearest.shown(), width)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_width_has_a_unit_and_a_limit() {
        for (text, want) in
            [("30s", Some(30)), ("10m", Some(600)), ("601s", None), ("0s", None), ("-1s", None), ("30", None)]
        {
            assert_eq!(text.parse::<Width>().ok(), want.map(|seconds| Width(Duration::from_secs(seconds))), "{text}");
        }
    }

    #[test]
    fn it_reads_as_a_sentence() {
        let around = Around {
            target: Some("vllm-2".to_owned()),
            from: "2026-11-23T12:12:45.000000Z".to_owned(),
            to: "2026-11-23T12:13:45.000000Z".to_owned(),
            requests: 412,
            wrong: vec![
                Wrong { ending: Ending::UpstreamReset, status: Some(200), count: 3 },
                Wrong { ending: Ending::Completed, status: Some(404), count: 1 },
            ],
            nearest: vec![Nearest {
                id: "019ab3c2d1e0a7f11122334455667788".to_owned(),
                status: Some(404),
                ending: Ending::Completed,
                end_offset_us: Some(1_040),
            }],
            complete: false,
        };
        let text = around.render(60);
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            words.contains("412 other requests") && words.contains("4 went wrong: 3 x upstream_reset, 1 x 404; "),
            "{text}"
        );
        assert!(text.ends_with("\n  019ab3c2d1e0a7f11122334455667788  404  failed  1.04 ms\n"), "{text}");
    }
}

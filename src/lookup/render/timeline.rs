//! The life of a request as a picture: a bar for every stage, on one scale from accept to the end.

use super::{verdict, words};
use crate::snapshot::Document;
use crate::snapshot::document::Phase;

/// Columns for the name of a stage.
const NAME_WIDTH: usize = 14;

/// Columns for a time: `59 min 59 s` is the widest of a gateway's making.
const TIME_WIDTH: usize = 11;

/// Attempts that are drawn one by one.
const ATTEMPTS_MAX: usize = 8;

/// One stage, in microseconds from accept.
struct Stage {
    name: &'static str,
    from: u64,
    /// `None` while it lasts.
    to: Option<u64>,
    /// Said on a line of its own below the bar.
    note: Option<String>,
}

/// The picture; empty if nothing has a time yet.
pub(super) fn picture(document: &Document<'_>, width: usize) -> String {
    let stages = stages(document);
    let latest = stages.iter().map(|stage| stage.to.unwrap_or(stage.from).max(stage.from)).max().unwrap_or(0);
    if stages.is_empty() {
        return String::new();
    }
    // What still lasts is drawn on to the edge, a quarter beyond the last that is known.
    let open = document.phase == Phase::InFlight;
    let total = if open { latest.saturating_add(latest / 4) } else { latest }.max(1);
    let cells = width - (2 + NAME_WIDTH + 2 * TIME_WIDTH + 4);

    let until = if open { "...".to_owned() } else { words::micros(total) };
    let axis = format!("0{until:>rest$}", rest = cells - 1);
    let mut text = row("timeline", "at", "took", &axis, 0, width);
    for stage in &stages {
        let to = stage.to.map(|to| to.max(stage.from));
        let at = to.map_or_else(|| "...".to_owned(), words::micros);
        let took = to.map_or_else(|| "...".to_owned(), |to| words::micros(to - stage.from));
        text.push_str(&row(stage.name, &at, &took, &bar(stage, total, cells), 2, width));
        if let Some(note) = &stage.note {
            text.push_str(&words::hanging("", &words::clean(note), 4, width));
        }
    }
    if let Some(pauses) = pauses(document) {
        text.push_str(&words::hanging("", &pauses, 2, width));
    }
    if let Some(wait) = document.timings.engine_queue_us {
        let said = format!("in the engine's queue: {}, as it says itself", words::micros(wait));
        text.push_str(&words::hanging("", &said, 2, width));
    }
    text
}

fn row(name: &str, at: &str, took: &str, rest: &str, indent: usize, width: usize) -> String {
    let name_width = NAME_WIDTH + 2 - indent;
    let line = format!("{:indent$}{name:<name_width$}{at:>TIME_WIDTH$}{took:>TIME_WIDTH$}  {rest}", "");
    format!("{}\n", words::line(&line, width))
}

/// Every bar has at least one cell: what happened is seen, however short it was.
fn bar(stage: &Stage, total: u64, cells: usize) -> String {
    let cell = |at: u64| at as f64 / total as f64 * cells as f64;
    let from = (cell(stage.from).floor() as usize).min(cells - 1);
    let (to, stroke) = match stage.to {
        Some(to) => ((cell(to).ceil() as usize).clamp(from + 1, cells), "━"),
        None => (cells, "┅"),
    };
    if stage.name == END {
        return format!("{}┫", " ".repeat(cells - 1));
    }
    format!("{}{}", " ".repeat(from), stroke.repeat(to - from))
}

/// The last row of what has ended.
const END: &str = "end";

/// The stages in order. Each begins where the one before ended, so that a gap in what is known is part of a stage.
fn stages(document: &Document<'_>) -> Vec<Stage> {
    let timings = &document.timings;
    let end = timings.end_offset_us;
    let mut stages = Vec::new();
    let mut last = 0;
    let mut push = |last: &mut u64, name, to: Option<u64>, note| {
        stages.push(Stage { name, from: *last, to, note });
        *last = to.unwrap_or(*last).max(*last);
    };
    if let Some(decided_ns) = document.decision.decided_offset_ns {
        push(&mut last, "decide", Some(decided_ns / 1_000), None);
    }
    let attempts = &document.attempts;
    for (place, attempt) in attempts.iter().enumerate().take(ATTEMPTS_MAX) {
        last = last.max(attempt.started_offset_us);
        let next = attempts.get(place + 1).map(|next| next.started_offset_us);
        let connected = attempt.connect_us.map(|took| attempt.started_offset_us.saturating_add(took));
        // A try that never connected lasted until the next one began, or to the end.
        let to = connected.or(next).or(if attempt.error.is_some() { end } else { None });
        let result = match (&attempt.error, attempt.status) {
            (Some(error), _) => error.to_string(),
            (None, Some(status)) => format!("answered {status}"),
            (None, None) => "no answer".to_owned(),
        };
        let telling = attempts.len() > 1 || attempt.error.is_some();
        // The verdict says why the first one was tried.
        let why = verdict::anew(&document.decision, &attempt.choice).filter(|_| place > 0);
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        let note = telling.then(|| format!("{}{why}: {result}", attempt.target));
        if let Some(to) = to {
            push(&mut last, "connect", Some(to), note);
        }
    }
    let streamed = document.request.stream == Some(true);
    let body = if streamed { "streaming" } else { "body" };
    let decided = document.decision.target.is_some();
    if let Some(first_byte) = timings.first_byte_offset_us {
        push(&mut last, "first byte", Some(first_byte), None);
        if let Some(first_content) = timings.first_content_offset_us {
            push(&mut last, "first content", Some(first_content), None);
        }
        push(&mut last, body, end, None);
    } else if decided && end.is_none_or(|end| end > last) {
        push(&mut last, if end.is_some() { "no answer" } else { "first byte" }, end, None);
    }
    if end.is_some() {
        stages.push(Stage { name: END, from: 0, to: end, note: None });
    } else if stages.is_empty() {
        stages.push(Stage { name: "decide", from: 0, to: None, note: None });
    }
    stages
}

/// How evenly the tokens came.
fn pauses(document: &Document<'_>) -> Option<String> {
    let timings = &document.timings;
    let (half, most, longest) = (timings.inter_token_p50_us?, timings.inter_token_p99_us?, timings.inter_token_max_us?);
    let [half, most, longest] = [half, most, longest].map(words::micros);
    Some(format!("between tokens: half within {half}, 99 % within {most}, the longest {longest}"))
}

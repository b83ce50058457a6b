//! A snapshot in one line, for those who watch many go by.

use super::words;
use crate::snapshot::{Document, Ending};

/// When, which, how it ended, where, and how long it took. As long as its names are; nothing in it moves a cursor.
pub(super) fn of(document: &Document<'_>) -> String {
    let outcome = &document.outcome;
    let or_dash = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), words::clean);
    let time = document.issued_at.get(11..23).unwrap_or(&document.issued_at);
    let status = outcome.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
    // In the words of the verdict: an error that came whole has not gone well.
    let failed = outcome.ending == Some(Ending::Completed) && outcome.fault.is_some();
    let ending = outcome.ending.map_or(document.phase.name(), |ending| if failed { "failed" } else { ending.name() });
    let target = outcome.target.as_deref().or(document.decision.target.as_deref());
    let mut parts = vec![
        words::clean(time),
        words::clean(&document.id),
        format!("{status:>3}"),
        ending.to_owned(),
        or_dash(target),
        or_dash(document.request.model.as_deref()),
    ];
    parts.extend(document.timings.end_offset_us.map(words::micros));
    let first = document.timings.first_content_offset_us.filter(|_| !failed);
    parts.extend(first.map(|first| format!("first content {}", words::micros(first))));
    let about = if outcome.tokens_estimated == Some(true) { "about " } else { "" };
    let tokens = outcome.completion_tokens;
    parts.extend(tokens.map(|tokens| format!("{about}{}", words::counted(tokens, "token"))));
    parts.extend(outcome.error.as_deref().map(words::clean));
    words::line(&parts.join("  "), usize::MAX)
}

//! Holds the readable page of attributes to the published list, which `tests` holds to what is sent.
//! `SNAPGATE_REGENERATE=1 cargo test --lib registry` writes it.

use std::fmt::Write as _;

use crate::telemetry::registry::hold_to;

/// What attributes stand on, as the list has it, and what that is.
const PLACES: [(&str, &str, &str); 5] = [
    (
        "resource",
        "The resource",
        "Of all spans and log records. `otlp.resource` and `OTEL_RESOURCE_ATTRIBUTES` add to it.",
    ),
    ("server span", "The span of a request", "Of kind SERVER, from accept to the end."),
    (
        "client span",
        "The span of an attempt",
        "Of kind CLIENT, one for each target that was tried, below the request's.",
    ),
    (
        "event snapgate.candidate",
        "The event `snapgate.candidate`",
        "Of the request's span: one for each of the best candidates, as many as `otlp.candidates` says, at the time of the decision. \
         Its other events, `snapgate.decided`, `snapgate.first_byte`, `snapgate.first_content` and `snapgate.end`, say when that was \
         and nothing more.",
    ),
    ("log record", "The log record", "With `otlp.logs`: its body is the document, its event name `snapgate.snapshot`."),
];

const BEFORE: &str = "\
# Attributes of spans and log records

What goes out over OTLP: `[otlp]`, `--otlp URL` or the `OTEL_EXPORTER_OTLP_*` variables. What is not known is not there: missing
is never 0. Names of OpenTelemetry's conventions are `stable`, or `development` as GenAI's are: those may change with the
conventions, and the changelog says so. Names marked `snapgate` are ours.

This page is generated from `otel/attributes.csv` with `SNAPGATE_REGENERATE=1 cargo test --lib registry`; a test fails when it is
not of today, and another one when the list is not what is sent.
";

/// A line of the list: name, on, type, unit, stability, meaning.
type Row = [String; 6];

/// A field is in quotation marks where it has commas; none has quotation marks of its own.
fn row(line: &str) -> Row {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    for c in line.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            c => fields.last_mut().expect("there is one from the start").push(c),
        }
    }
    fields.try_into().unwrap_or_else(|fields| panic!("{line} has not six fields: {fields:?}"))
}

/// `docs/attributes.md`, for people.
fn page(list: &[Row]) -> String {
    let mut text = BEFORE.to_owned();
    for (place, title, what) in PLACES {
        write!(
            text,
            "\n## {title}\n\n{what}\n\n| attribute | type | unit | stability | meaning |\n|---|---|---|---|---|\n"
        )
        .unwrap();
        for [name, _, kind, unit, stability, meaning] in list.iter().filter(|[_, on, ..]| on == place) {
            let unit = if unit.is_empty() { String::new() } else { format!("`{unit}`") };
            writeln!(text, "| `{name}` | {kind} | {unit} | {stability} | {meaning} |").unwrap();
        }
    }
    text
}

#[test]
fn the_page_of_attributes_is_of_today() {
    let list: Vec<_> = include_str!("../../../otel/attributes.csv").lines().skip(1).map(row).collect();
    for [name, on, _, _, stability, meaning] in &list {
        assert!(PLACES.iter().any(|(place, ..)| on == place), "{name}: nothing is said of {on}");
        assert!(["stable", "development", "snapgate"].contains(&&**stability), "{name}: {stability}");
        assert!(meaning.ends_with('.') && !meaning.contains('|'), "{name}: {meaning}");
    }
    let text = page(&list);
    hold_to("docs/attributes.md", &text);
    assert_eq!(text.matches("\n| `").count(), list.len(), "each attribute is there once");
}

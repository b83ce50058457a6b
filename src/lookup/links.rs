//! Where to look next: addresses that the operator's templates make of a snapshot.
//!
//! They stand beside a document in an answer and never in it: a document is what was seen, a template is what somebody
//! finds useful now.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::snapshot::{Document, SnapshotId};

/// So much before a request and after its end is shown as well: what led to it, and what came of it.
const MARGIN_MS: u64 = 60_000;

/// The templates of an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The request's trace.
    pub trace: Option<LinkTemplate>,
    /// The log lines of that time.
    pub logs: Option<LinkTemplate>,
    /// The dashboard of that time.
    pub dashboard: Option<LinkTemplate>,
}

/// What an answer offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// The request's trace.
    pub trace: Option<String>,
    /// The log lines of that time.
    pub logs: Option<String>,
    /// The dashboard of that time.
    pub dashboard: Option<String>,
}

impl Links {
    /// What is offered for a document.
    pub fn of(&self, document: &Document<'_>) -> Offered {
        let link = |template: &Option<LinkTemplate>| template.as_ref().map(|template| template.fill(document));
        Offered { trace: link(&self.trace), logs: link(&self.logs), dashboard: link(&self.dashboard) }
    }
}

impl Offered {
    /// Those there are, with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [("trace", &self.trace), ("logs", &self.logs), ("dashboard", &self.dashboard)];
        all.into_iter().filter_map(|(name, link)| Some((name, link.as_deref()?)))
    }
}

/// An address with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkTemplate {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Placeholder),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placeholder {
    Id,
    TraceId,
    Target,
    Model,
    Instance,
    FromUnixMs,
    ToUnixMs,
    FromUnixS,
    ToUnixS,
}

impl Placeholder {
    const ALL: [(&'static str, Self); 9] = [
        ("id", Self::Id),
        ("trace_id", Self::TraceId),
        ("target", Self::Target),
        ("model", Self::Model),
        ("instance", Self::Instance),
        ("from_unix_ms", Self::FromUnixMs),
        ("to_unix_ms", Self::ToUnixMs),
        ("from_unix_s", Self::FromUnixS),
        ("to_unix_s", Self::ToUnixS),
    ];
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateError {
    /// It is no web address.
    Scheme,
    /// A brace without its partner.
    Brace,
    /// A placeholder that does not exist.
    Unknown(String),
    /// A character that no address holds.
    Character(char),
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme => f.write_str("is not an address that begins with http:// or https://"),
            Self::Brace => f.write_str("has a brace that belongs to no placeholder: write %7B and %7D for braces"),
            Self::Unknown(name) => {
                let known: Vec<_> = Placeholder::ALL.iter().map(|(name, _)| format!("{{{name}}}")).collect();
                write!(f, "has no placeholder {{{name}}} to fill: there are {}", known.join(", "))
            }
            Self::Character(c) => write!(f, "holds {c:?}, which no address does: percent-encode it"),
        }
    }
}

impl std::error::Error for TemplateError {}

impl FromStr for LinkTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Err(TemplateError::Scheme);
        }
        if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '"' | '<' | '>' | '\\' | '`')) {
            return Err(TemplateError::Character(c));
        }
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or(TemplateError::Brace)?;
            let found = Placeholder::ALL.iter().find(|(known, _)| *known == name);
            let (_, placeholder) = found.ok_or_else(|| TemplateError::Unknown(name.to_owned()))?;
            pieces.extend([Piece::Text(before.to_owned()), Piece::Value(*placeholder)]);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        let stray = pieces.iter().any(|piece| matches!(piece, Piece::Text(text) if text.contains('}')));
        if stray { Err(TemplateError::Brace) } else { Ok(Self { pieces }) }
    }
}

impl LinkTemplate {
    /// The address for a document. What clients and targets wrote is encoded, so that it stays one value of the address.
    fn fill(&self, document: &Document<'_>) -> String {
        let issued_ms = SnapshotId::parse_lenient(&document.id).map_or(0, SnapshotId::unix_ms);
        let lasted_ms = document.timings.end_offset_us.unwrap_or(0) / 1000;
        let (from, to) = (issued_ms.saturating_sub(MARGIN_MS), issued_ms.saturating_add(lasted_ms + MARGIN_MS));
        let target = document.outcome.target.as_deref().or(document.decision.target.as_deref());
        let mut link = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => link.push_str(text),
                Piece::Value(Placeholder::Id) => encode(&document.id, &mut link),
                Piece::Value(Placeholder::TraceId) => encode(&document.trace.trace_id, &mut link),
                Piece::Value(Placeholder::Target) => encode(target.unwrap_or_default(), &mut link),
                Piece::Value(Placeholder::Model) => {
                    encode(document.request.model.as_deref().unwrap_or_default(), &mut link)
                }
                Piece::Value(Placeholder::Instance) => encode(&document.gateway.instance, &mut link),
                Piece::Value(Placeholder::FromUnixMs) => link.push_str(&from.to_string()),
                Piece::Value(Placeholder::ToUnixMs) => link.push_str(&to.to_string()),
                Piece::Value(Placeholder::FromUnixS) => link.push_str(&(from / 1000).to_string()),
                Piece::Value(Placeholder::ToUnixS) => link.push_str(&to.div_ceil(1000).to_string()),
            }
        }
        link
    }
}

/// Appends a text of which everything but the unreserved characters of RFC 3986 is encoded, so that it is one segment of a
/// path or one value of a query.
pub(super) fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02X}").expect("writing to a string does not fail"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::specimen;
    use super::*;

    #[test]
    fn a_template_is_filled_from_the_document_and_its_id() {
        let record = specimen::completed();
        let mut document = Document::of(&record);
        let fill = |template: &str, document: &Document<'_>| template.parse::<LinkTemplate>().unwrap().fill(document);
        let (id, trace) = (document.id.to_string(), document.trace.trace_id.to_string());
        assert_eq!(fill("https://t/{trace_id}?s={id}", &document), format!("https://t/{trace}?s={id}"));
        let issued = record.id().unix_ms();
        let end = issued + document.timings.end_offset_us.unwrap() / 1000 + MARGIN_MS;
        assert_eq!(
            fill("http://g/{from_unix_ms}-{to_unix_ms}", &document),
            format!("http://g/{}-{end}", issued - MARGIN_MS)
        );
        let (from, to) = ((issued - MARGIN_MS) / 1000, end.div_ceil(1000));
        assert_eq!(fill("http://g/{from_unix_s}-{to_unix_s}", &document), format!("http://g/{from}-{to}"));
        document.request.model = Some("a/b&from=0\r\n<\u{fc}>".into());
        assert_eq!(fill("http://g/?m={model}", &document), "http://g/?m=a%2Fb%26from%3D0%0D%0A%3C%C3%BC%3E");
        document.request.model = None;
        assert_eq!(fill("http://g/?m={model}&x", &document), "http://g/?m=&x");
    }

    #[test]
    fn a_template_that_cannot_be_filled_is_refused_at_the_start() {
        for (text, want) in [
            ("javascript:alert(1)", TemplateError::Scheme),
            ("", TemplateError::Scheme),
            ("https://t/{trace", TemplateError::Brace),
            ("https://t/trace}", TemplateError::Brace),
            ("https://t/{{id}}", TemplateError::Unknown("{id".to_owned())),
            ("https://t/{traceid}", TemplateError::Unknown("traceid".to_owned())),
            ("https://t/{}", TemplateError::Unknown(String::new())),
            ("https://t/a b", TemplateError::Character(' ')),
            ("https://t/\r\nx", TemplateError::Character('\r')),
            ("https://t/\"onload=", TemplateError::Character('"')),
        ] {
            assert_eq!(text.parse::<LinkTemplate>(), Err(want), "{text}");
        }
    }

    #[test]
    fn what_is_not_configured_is_not_offered() {
        let record = specimen::completed();
        let document = Document::of(&record);
        assert_eq!(Links::default().of(&document).iter().count(), 0);
        let links = Links { logs: Some("http://l/{target}".parse().unwrap()), ..Links::default() };
        let offered = links.of(&document);
        assert_eq!(offered.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["logs"]);
    }
}

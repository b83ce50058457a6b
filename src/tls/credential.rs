//! What we present to targets in the header `authorization`: text, or a file that is followed as it changes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;

use super::kept::{Kept, Rotate};
use super::{LoadError, files};
use crate::telemetry::Metrics;

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSettings {
    /// Here. It is marked as sensitive, and so is never printed.
    Text(HeaderValue),
    /// In a file of one line.
    File(PathBuf),
}

impl CredentialSettings {
    fn value(&self) -> Result<HeaderValue, LoadError> {
        let file = match self {
            Self::Text(value) => return Ok(value.clone()),
            Self::File(file) => file,
        };
        let text = files::read(file)?;
        authorization(text.trim_ascii()).ok_or_else(|| LoadError::Header(file.clone()))
    }
}

/// The value of the header, if this is one. A token alone is a bearer token.
pub fn authorization(text: &[u8]) -> Option<HeaderValue> {
    let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    if text.is_empty() || !text.iter().all(printable) {
        return None;
    }
    let scheme: &[u8] = if text.contains(&b' ') { b"" } else { b"Bearer " };
    let mut value = HeaderValue::from_bytes(&[scheme, text].concat()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether this could be presented. Blocks.
pub fn check_credential(settings: &CredentialSettings) -> Result<(), LoadError> {
    settings.value().map(drop)
}

/// What is presented now.
#[derive(Debug)]
pub struct Credential(Kept<HeaderValue>);

impl Credential {
    /// Reads the file, if there is one. Blocks. `section` is the configuration's that names it, for log and metrics.
    pub fn load(section: &'static str, settings: CredentialSettings) -> Result<Self, LoadError> {
        let files = match &settings {
            CredentialSettings::Text(_) => Vec::new(),
            CredentialSettings::File(file) => vec![file.clone()],
        };
        Kept::new(section, files, move || settings.value()).map(Self)
    }

    /// The present value.
    pub fn value(&self) -> HeaderValue {
        HeaderValue::clone(&self.0.current())
    }
}

/// Credentials by the name of the target that gets them.
pub type Credentials = HashMap<Box<str>, Arc<Credential>>;

/// Those that are in use, and followed; others replace all of them.
#[derive(Debug, Default)]
pub struct Followed(ArcSwap<Credentials>);

impl Followed {
    /// From now on these are.
    pub fn set(&self, credentials: Credentials) {
        self.0.store(Arc::new(credentials));
    }
}

impl Rotate for Followed {
    fn look(&self, metrics: &Metrics) {
        self.0.load().values().for_each(|credential| credential.look(metrics));
    }
}

impl Rotate for Credential {
    fn look(&self, metrics: &Metrics) {
        self.0.look(metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_alone_is_a_bearer_token_and_nothing_is_printed() {
        for (text, value) in [("abc", "Bearer abc"), ("Bearer abc", "Bearer abc"), ("Basic YTpi", "Basic YTpi")] {
            let header = authorization(text.as_bytes()).unwrap();
            assert_eq!(header.as_bytes(), value.as_bytes());
            assert!(!format!("{header:?}").contains("abc"), "{header:?}");
        }
        for text in ["", "a\r\nb", "\u{e9}"] {
            assert_eq!(authorization(text.as_bytes()), None, "{text:?}");
        }
    }
}

//! A secret, the one setting that needs a type of its own here; every other belongs to the module that uses it.

use std::fmt;
use std::path::Path;

use crate::lookup::token;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides it.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for hashing it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<set>")
    }
}

/// The message never shows the secret.
pub(super) fn check_secret(secret: &str, what: &str) -> Result<Secret, String> {
    token::check_secret(secret).map_err(|error| format!("{what} {error}"))?;
    Ok(Secret::new(secret.to_owned()))
}

/// The secret in a file.
pub(super) fn read_secret(file: &str) -> Result<Secret, String> {
    token::read_secret(Path::new(file)).map(Secret::new).map_err(|error| format!("the file {file} {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_in_a_message() {
        for secret in ["hunter2", "hunter2 with spaces in it", "hunter2-\u{e9}-0123456789"] {
            let text = check_secret(secret, "the token").unwrap_err();
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert_eq!(format!("{:?}", check_secret("0123456789abcdef", "it").unwrap()), "<set>");
    }
}

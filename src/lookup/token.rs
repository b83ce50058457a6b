//! The tokens that make an operator: what each may do, and how one that lives in a file is replaced while we run.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// The shortest secret: 16 random characters cannot be guessed over a network.
const SECRET_CHARS_MIN: usize = 16;

/// The longest secret: it has to fit into a request's head.
const SECRET_CHARS_MAX: usize = 512;

/// A file that is larger holds no token.
const FILE_BYTES_MAX: u64 = 4096;

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To read every snapshot, and the fleet.
    Read,
    /// To delete snapshots, for a person who asks for it.
    Delete,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Read, Self::Delete];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Delete => "delete",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// A secret that makes its bearer an operator. Only its hash is kept, and hashes are compared in constant time.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    name: String,
    digest: blake3::Hash,
    scopes: Vec<Scope>,
    file: Option<PathBuf>,
}

impl Token {
    /// A token that may read. `name` is for logs; the secret is forgotten at once.
    pub fn new(name: impl Into<String>, secret: &str) -> Self {
        Self { name: name.into(), digest: blake3::hash(secret.as_bytes()), scopes: vec![Scope::Read], file: None }
    }

    /// The same, allowed this and nothing else.
    pub fn allowed(mut self, scopes: Vec<Scope>) -> Self {
        self.scopes = scopes;
        self
    }

    /// The same, read from this file, which is looked at again each second.
    pub fn from_file(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    /// What operators call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it allows.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// Whether this hash is its own; the comparison of blake3's hashes takes the same time whatever they are.
    pub(super) fn has(&self, digest: blake3::Hash) -> bool {
        self.digest == digest
    }
}

/// Without the hash: a short secret could be guessed from it.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .field("scopes", &self.scopes)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Why a text is no secret. The message never shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretError {
    /// It could not be sent in a header.
    Characters,
    /// So many characters are too few or too many.
    Length(usize),
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Characters => {
                f.write_str("has characters other than visible ASCII: it could not be sent in a header")
            }
            Self::Length(length) => write!(f, "has {length} characters: use {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX}"),
        }
    }
}

impl std::error::Error for SecretError {}

/// Whether a text can be a secret.
pub fn check_secret(secret: &str) -> Result<(), SecretError> {
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(SecretError::Characters);
    }
    if !(SECRET_CHARS_MIN..=SECRET_CHARS_MAX).contains(&secret.len()) {
        return Err(SecretError::Length(secret.len()));
    }
    Ok(())
}

/// The secret that a file holds, without the end of its line. Blocks.
///
/// # Errors
/// In words that follow the file's name, and never show what it holds.
pub fn read_secret(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(file).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(SecretError::Characters.to_string()),
        Err(error) => return Err(format!("cannot be read: {error}")),
        Ok(_) => {}
    }
    let secret = text.trim_end();
    check_secret(secret).map_err(|error| error.to_string())?;
    Ok(secret.to_owned())
}

/// Reads the files again. Blocks.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    /// What is wrong, by token: said in the log when it begins and when it ends.
    failing: Vec<(String, String)>,
}

impl Rotation {
    /// The tokens with what their files hold now, if that is anything else. One whose file is wrong stays as it is.
    pub(super) fn look(&mut self, tokens: &[Token]) -> Option<Vec<Token>> {
        let mut rotated = tokens.to_vec();
        let mut failing = Vec::new();
        for (place, token) in tokens.iter().enumerate() {
            let Some(file) = &token.file else { continue };
            match reread(file, place, &rotated) {
                Ok(digest) if token.has(digest) => {}
                Ok(digest) => {
                    tracing::info!(token = token.name, "the token was replaced: the old one opens nothing any more");
                    rotated[place].digest = digest;
                }
                Err(error) => failing.push((token.name.clone(), format!("{} {error}", file.display()))),
            }
        }
        for (token, error) in failing.iter().filter(|wrong| !self.failing.contains(wrong)) {
            tracing::error!(token, error, "the token's file is wrong: the token stays what it was");
        }
        for (token, _) in self.failing.iter().filter(|(token, _)| failing.iter().all(|(still, _)| still != token)) {
            tracing::info!(token, "the token's file is right again");
        }
        self.failing = failing;
        (rotated != tokens).then_some(rotated)
    }

    /// How many files are wrong.
    pub(super) fn failing(&self) -> usize {
        self.failing.len()
    }
}

/// What the file of the token at `place` holds now, if it can be told from the others' secrets.
fn reread(file: &Path, place: usize, tokens: &[Token]) -> Result<blake3::Hash, String> {
    let digest = blake3::hash(read_secret(file)?.as_bytes());
    let mut others = tokens.iter().enumerate().filter(|(other, _)| *other != place);
    match others.find(|(_, other)| other.has(digest)) {
        Some((_, other)) => Err(format!("holds the secret of {}: nobody could tell who asked", other.name)),
        None => Ok(digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_shows_its_secret() {
        let shown = format!("{:?}", Token::new("ops", "s3cret"));
        assert!(shown.contains("ops") && !shown.contains("s3cret"), "{shown}");
        assert!(!shown.contains(&blake3::hash(b"s3cret").to_hex().to_string()), "{shown}");
        assert!(!format!("{:?}", check_secret("hunter2")).contains("hunter2"));
    }

    #[test]
    fn a_token_file_is_taken_when_it_is_right_and_kept_out_when_it_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "the-first-secret-1\n").unwrap();
        let ops = Token::new("ops", &read_secret(&file).unwrap()).from_file(file.clone());
        let mut tokens = vec![ops, Token::new("ci", "the-other-secret-1")];
        let mut rotation = Rotation::default();
        let opens = |tokens: &[Token], secret: &str| tokens[0].has(blake3::hash(secret.as_bytes()));

        assert_eq!(rotation.look(&tokens), None, "nothing has changed");
        std::fs::write(&file, "the-second-secret\n").unwrap();
        tokens = rotation.look(&tokens).expect("it has changed");
        assert!(opens(&tokens, "the-second-secret") && !opens(&tokens, "the-first-secret-1"));

        for wrong in ["", "short", "two words that are long enough", "the-other-secret-1", "na\u{ef}ve-naive-naive-"] {
            std::fs::write(&file, wrong).unwrap();
            assert_eq!((rotation.look(&tokens), rotation.failing()), (None, 1), "{wrong:?}");
        }
        std::fs::write(&file, [0xff; 20]).unwrap();
        assert_eq!((rotation.look(&tokens), rotation.failing()), (None, 1), "not UTF-8");
        std::fs::remove_file(&file).unwrap();
        assert_eq!((rotation.look(&tokens), rotation.failing()), (None, 1), "not there");

        std::fs::write(&file, "the-third-secret-1").unwrap();
        tokens = rotation.look(&tokens).expect("it is right again");
        assert!(opens(&tokens, "the-third-secret-1") && rotation.failing() == 0);
    }
}

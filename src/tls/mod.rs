//! TLS and credentials: who we are to others, and whom we believe.
//!
//! Certificates and keys are files, and whoever issues them replaces them without telling us. So whatever is made of files
//! is `kept`: looked at each second off the data path, made anew when a file has changed, and swapped only if it is good.
//!
//! Cryptography is ring's. aws-lc-rs, the other choice, would add post-quantum key exchange for minutes of building C;
//! `provider` is the one place to change.

mod client;
mod credential;
mod dial;
mod files;
mod kept;
mod server;
mod stream;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem;

pub use client::{ClientSettings, Connector, check_client};
pub use credential::{Credential, CredentialSettings, Credentials, Followed, authorization, check_credential};
pub use dial::Dialer;
pub use kept::{Rotate, rotate};
pub use server::{Acceptor, ServerSettings, check};
pub use stream::Stream;

/// What is offered by ALPN where only HTTP/1.1 is spoken.
pub const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// What is offered where HTTP/2 is spoken too, the better first.
pub const HTTP2_OR_1: &[&[u8]] = &[HTTP2, b"http/1.1"];

/// What is offered where nothing else will do.
pub const HTTP2_ONLY: &[&[u8]] = &[HTTP2];

const HTTP2: &[u8] = b"h2";

/// As rustls wants them.
fn alpn(protocols: &[&[u8]]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.to_vec()).collect()
}

/// Where all cryptography comes from.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Why files cannot be used for TLS. Nothing of a key is ever in it.
#[derive(Debug)]
pub enum LoadError {
    /// A file cannot be read.
    Read {
        /// Which.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is larger than any that holds certificates.
    TooLarge(PathBuf),
    /// A file is not PEM, or has nothing of what it should hold.
    Pem {
        /// Which.
        file: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// Certificate and key do not serve together.
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// A file holds nothing that could stand in a header.
    Header(PathBuf),
    /// No certificate in a file can vouch for another.
    Authorities(PathBuf),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, source } => write!(f, "cannot read {}: {source}", file.display()),
            Self::TooLarge(file) => {
                write!(f, "{} is larger than {} bytes: it holds no certificates", file.display(), files::BYTES_MAX)
            }
            Self::Pem { file, wanted, source } => write!(f, "{} holds no {wanted} in PEM: {source}", file.display()),
            Self::Pair { cert, key, source } => {
                write!(
                    f,
                    "the certificate in {} and the key in {} do not serve: {source}",
                    cert.display(),
                    key.display()
                )
            }
            Self::Header(file) => write!(f, "{} holds no token, and no line that a header can carry", file.display()),
            Self::Authorities(file) => {
                write!(
                    f,
                    "{} holds no certificate that could vouch for others: give one of an authority",
                    file.display()
                )
            }
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Pem { source, .. } => Some(source),
            Self::Pair { source, .. } => Some(source),
            Self::TooLarge(_) | Self::Header(_) | Self::Authorities(_) => None,
        }
    }
}

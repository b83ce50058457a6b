//! A listener's side: its certificate, whom it lets in, and the handshake.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::rustls::{Error as TlsError, RootCertStore};

use super::kept::{Kept, Rotate};
use super::{LoadError, Stream, alpn, files, provider};
use crate::telemetry::Metrics;

/// The first byte of whoever speaks TLS: a record of the handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// What somebody is told who speaks plain HTTP here.
const PLAIN_TEXT_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\
    content-length: 44\r\n\r\nthis port speaks TLS: write https, not http\n";

/// What is read for nothing, and for how long, of a client that was turned away: a socket that is closed with unread
/// bytes in it resets the connection, and the client would not see why.
const FAREWELL_BYTES_MAX: u64 = 64 * 1024;
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// Where a listener's identity is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// The certificate, and those that lead from it to an authority; PEM.
    pub cert: PathBuf,
    /// Its private key; PEM.
    pub key: PathBuf,
    /// The authorities whose certificate every client has to present; `None` asks for none.
    pub client_ca: Option<PathBuf>,
}

impl ServerSettings {
    fn files(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }

    fn config(&self) -> Result<ServerConfig, LoadError> {
        let (chain, key) = (files::certificates(&self.cert)?, files::private_key(&self.key)?);
        let pair = |source| LoadError::Pair { cert: self.cert.clone(), key: self.key.clone(), source };
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(pair)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let authorities: Arc<RootCertStore> = files::authorities(file)?.into();
                let verifier = WebPkiClientVerifier::builder_with_provider(authorities, provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|_| LoadError::Authorities(file.clone()))?)
            }
        };
        builder.with_single_cert(chain, key).map_err(pair)
    }
}

/// Whether a listener could use these files. Blocks.
pub fn check(settings: &ServerSettings) -> Result<(), LoadError> {
    settings.config().map(drop)
}

/// Makes TLS of what one listener accepts.
#[derive(Debug)]
pub struct Acceptor {
    section: &'static str,
    config: Kept<ServerConfig>,
    handshake_timeout: Duration,
    metrics: Arc<Metrics>,
}

/// Why there was no handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// Not within the time.
    Timeout,
    /// The client left.
    Closed,
    /// The client does not speak TLS.
    NotTls,
    /// The client presented no certificate.
    NoCertificate,
    /// The client's certificate is expired, or of an authority that is not ours, or otherwise none.
    BadCertificate,
    /// The client turned us away: it does not know our authority, or our name.
    Refused,
    /// Client and gateway have no version, cipher or protocol in common.
    Incompatible,
    /// The client broke the rules of TLS.
    Protocol,
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()) {
            None => Self::Closed,
            Some(TlsError::NoCertificatesPresented) => Self::NoCertificate,
            Some(TlsError::InvalidCertificate(_)) => Self::BadCertificate,
            Some(TlsError::AlertReceived(_)) => Self::Refused,
            Some(TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol) => Self::Incompatible,
            Some(_) => Self::Protocol,
        }
    }

    /// For counting.
    const fn reason(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::NotTls => "not_tls",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::Refused => "refused",
            Self::Incompatible => "incompatible",
            Self::Protocol => "protocol",
        }
    }
}

impl Acceptor {
    /// Reads the files. Blocks. `section` is the configuration's that names them, for log and metrics.
    pub fn load(
        section: &'static str,
        settings: ServerSettings,
        protocols: &'static [&'static [u8]],
        handshake_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LoadError> {
        let config = Kept::new(section, settings.files(), move || {
            let mut config = settings.config()?;
            config.alpn_protocols = alpn(protocols);
            Ok(config)
        })?;
        Ok(Self { section, config, handshake_timeout, metrics })
    }

    /// The handshake. `None` if there was none: that is counted, and the client was told what it can be told.
    pub async fn accept(&self, stream: TcpStream) -> Option<Stream> {
        let (failure, stream) = match timeout(self.handshake_timeout, self.handshake(stream)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err((failure, stream))) => (failure, Some(stream)),
            Err(_) => (Failure::Timeout, None),
        };
        self.metrics.handshake_failed(self.section, failure.reason());
        if let Some(stream) = stream {
            farewell(stream).await;
        }
        None
    }

    async fn handshake(&self, mut stream: TcpStream) -> Result<Stream, (Failure, TcpStream)> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) if first[0] == HANDSHAKE_RECORD => {}
            Ok(1) => {
                if first[0].is_ascii_uppercase() {
                    // A client that has gone needs no answer.
                    stream.write_all(PLAIN_TEXT_ANSWER).await.ok();
                }
                return Err((Failure::NotTls, stream));
            }
            _ => return Err((Failure::Closed, stream)),
        }
        let accepted = TlsAcceptor::from(self.config.current()).accept(stream).into_fallible().await;
        accepted.map(|stream| Stream::Tls(Box::new(stream.into()))).map_err(|(error, stream)| {
            tracing::debug!(section = self.section, %error, "a TLS handshake failed");
            (Failure::of(&error), stream)
        })
    }
}

impl Rotate for Acceptor {
    fn look(&self, metrics: &Metrics) {
        self.config.look(metrics);
    }
}

/// Lets a client that was turned away read why.
async fn farewell(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut rest = stream.take(FAREWELL_BYTES_MAX);
    // Whatever becomes of it, the connection is over.
    timeout(FAREWELL_TIME, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_in_plain_text_is_as_long_as_it_says() {
        let answer = std::str::from_utf8(PLAIN_TEXT_ANSWER).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}

//! A client's side: whom it believes, what it presents, and the handshake.

use std::io;
use std::path::PathBuf;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::kept::{Kept, Rotate};
use super::{HTTP1, LoadError, Stream, alpn, files, provider};
use crate::telemetry::Metrics;

/// Whom a client believes, and what it presents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientSettings {
    /// The authorities to believe, and no others, in PEM; `None` for the system's.
    pub ca: Option<PathBuf>,
    /// A certificate to present and its private key, in PEM; `None` for none.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientSettings {
    fn files(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(identity).cloned().collect()
    }

    fn config(&self, protocols: &[&[u8]]) -> Result<ClientConfig, LoadError> {
        let roots = self.ca.as_deref().map_or_else(|| Ok(system_roots()), files::authorities)?;
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("the provider has what it needs").with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, private) = (files::certificates(cert)?, files::private_key(key)?);
                let pair = |source| LoadError::Pair { cert: cert.clone(), key: key.clone(), source };
                builder.with_client_auth_cert(chain, private).map_err(pair)?
            }
        };
        config.alpn_protocols = alpn(protocols);
        Ok(config)
    }
}

/// What the system believes. A machine that has none can still speak plain text; with TLS it believes nobody, which the
/// failed handshake then says.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Whether a client could use these files. Blocks.
pub fn check_client(settings: &ClientSettings) -> Result<(), LoadError> {
    settings.config(HTTP1).map(drop)
}

/// Makes TLS of connections to servers. Sessions are resumed, whichever thread or purpose they were for.
#[derive(Debug)]
pub struct Connector(Kept<ClientConfig>);

impl Connector {
    /// Reads the files. Blocks. `section` is the configuration's that names them, for log and metrics.
    pub fn load(section: &'static str, settings: ClientSettings) -> Result<Self, LoadError> {
        Self::speaking(HTTP1, section, settings)
    }

    /// The same, for servers that are spoken to in these protocols.
    pub fn speaking(
        protocols: &'static [&'static [u8]],
        section: &'static str,
        settings: ClientSettings,
    ) -> Result<Self, LoadError> {
        Kept::new(section, settings.files(), move || settings.config(protocols)).map(Self)
    }

    /// The handshake with a server that has to prove that it is `host`, a name or an address. Whoever calls bounds its
    /// time.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Stream> {
        // As URLs write IPv6 addresses.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(self.0.current()).connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

impl Rotate for Connector {
    fn look(&self, metrics: &Metrics) {
        self.0.look(metrics);
    }
}

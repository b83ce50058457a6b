//! An authority of the tests' own, what it certifies, and the client's end of TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use super::client::Client;
use super::wire::Wire;

/// Whose name every certificate bears.
pub(crate) const LOCALHOST: &str = "localhost";

/// Somebody who certifies.
#[derive(Debug)]
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, new_key()).expect("these parameters can be signed"))
    }

    /// A certificate for [`LOCALHOST`].
    pub(crate) fn certify(&self) -> Identity {
        self.certify_until(2999)
    }

    /// One that was good until this year began.
    pub(crate) fn certify_until(&self, year: i32) -> Identity {
        let mut params = CertificateParams::new([LOCALHOST.to_owned()]).expect("it is a name");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = new_key();
        let cert = params.signed_by(&key, &self.0).expect("these parameters can be signed");
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// Its own certificate, in PEM.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// How a server accepts that this authority certifies, and that lets in those whom `clients` certifies, or anybody.
    pub(crate) fn server(&self, clients: Option<&Self>) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let versions = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = versions.expect("the provider has them");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(clients.roots().into(), provider).build();
                builder.with_client_cert_verifier(verifier.expect("there is an authority"))
            }
        };
        let Identity { cert, key } = self.certify();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("it is a key");
        Arc::new(builder.with_single_cert(vec![der(&cert)], key).expect("they belong together"))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("it is an authority");
        roots
    }

    /// How a client connects that believes this authority and presents an identity or none.
    pub(crate) fn client(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = versions.expect("the provider has them").with_root_certificates(self.roots());
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("it is a key");
                builder.with_client_auth_cert(vec![der(cert)], key).expect("they belong together")
            }
        };
        Arc::new(config)
    }
}

impl Identity {
    /// Writes `tls.crt` and `tls.key`, as Kubernetes calls them.
    pub(crate) fn write(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let (cert, key) = (dir.join("tls.crt"), dir.join("tls.key"));
        std::fs::write(&cert, &self.cert).expect("a file can be written");
        std::fs::write(&key, &self.key).expect("a file can be written");
        (cert, key)
    }
}

/// A connection in TLS, the handshake of which happens with the first bytes.
pub(crate) fn dial(address: SocketAddr, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let socket = TcpStream::connect(address).expect("the gateway accepts connections");
    over(socket, config)
}

fn over(socket: TcpStream, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let name = LOCALHOST.try_into().expect("it is a name");
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).expect("the configuration is whole"), socket)
}

/// A client that speaks HTTP over it.
pub(crate) fn client(address: SocketAddr, config: &Arc<ClientConfig>) -> Client {
    let socket = TcpStream::connect(address).expect("the gateway accepts connections");
    Client::over(address, Wire::over(socket, |socket| over(socket, config)))
}

/// The server's end of a connection.
pub(crate) fn serve(socket: TcpStream, config: &Arc<ServerConfig>) -> Wire {
    let connection = ServerConnection::new(Arc::clone(config)).expect("the configuration is whole");
    Wire::over(socket, |socket| StreamOwned::new(connection, socket))
}

/// How an attempt to ask for anything is turned down.
pub(crate) fn refusal(address: SocketAddr, config: &Arc<ClientConfig>) -> String {
    let mut stream = dial(address, config);
    let asked = stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n");
    // Not in its words but in its parts, which name the alert.
    format!("{:?}", asked.and_then(|()| stream.read(&mut [0; 1])).expect_err("it is turned down"))
}

/// The certificate that a listener presents now.
pub(crate) fn presented(address: SocketAddr, config: &Arc<ClientConfig>) -> CertificateDer<'static> {
    let mut stream = dial(address, config);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).expect("the handshake is completed");
    }
    stream.conn.peer_certificates().expect("a server presents one")[0].clone()
}

/// The first certificate of a PEM text.
pub(crate) fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is a certificate")
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key can be made")
}

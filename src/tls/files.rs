//! Certificates and keys from PEM files.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::LoadError;

/// A file that is larger is not one of ours: all the world's authorities take a quarter of a MiB.
pub(super) const BYTES_MAX: u64 = 4 << 20;

/// The certificates in a file, the first of which is our own, or all of which are authorities. At least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let not_pem = |source| LoadError::Pem { file: file.to_owned(), wanted: "certificate", source };
    let certificates = CertificateDer::pem_slice_iter(&read(file)?).collect::<Result<Vec<_>, _>>().map_err(not_pem)?;
    if certificates.is_empty() {
        return Err(not_pem(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// The first private key in a file.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let not_pem = |source| LoadError::Pem { file: file.to_owned(), wanted: "private key", source };
    PrivateKeyDer::from_pem_slice(&read(file)?).map_err(not_pem)
}

/// The authorities in a file. Old bundles may have some that nobody can use any more: these are passed over.
pub(super) fn authorities(file: &Path) -> Result<RootCertStore, LoadError> {
    let mut store = RootCertStore::empty();
    let (usable, _) = store.add_parsable_certificates(certificates(file)?);
    if usable == 0 { Err(LoadError::Authorities(file.to_owned())) } else { Ok(store) }
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, LoadError> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|source| LoadError::Read { file: file.to_owned(), source })?;
    if bytes.len() as u64 > BYTES_MAX { Err(LoadError::TooLarge(file.to_owned())) } else { Ok(bytes) }
}

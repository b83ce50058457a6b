//! Why a gateway does not start.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::{store, tls};

/// Why the gateway did not start. No request was accepted.
#[derive(Debug)]
pub enum StartError {
    /// An address could not be listened on.
    Bind {
        /// Which setting named it.
        setting: &'static str,
        /// What it said.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The data directory could not be used.
    DataDir(store::DataDirError),
    /// The store could not be opened.
    Store(store::OpenError),
    /// The JSON log could not be opened.
    JsonLog(crate::sink::json_log::OpenError),
    /// A certificate or a key could not be used.
    Tls(tls::LoadError),
    /// A thread or a runtime could not be started.
    Thread(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { setting, address, source } => {
                write!(f, "cannot listen on {address}: {source}: choose another address with --{setting}")
            }
            Self::DataDir(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::JsonLog(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::Thread(error) => write!(f, "a thread could not be started: {error}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { source, .. } => Some(source),
            Self::DataDir(error) => Some(error),
            Self::Store(error) => Some(error),
            Self::JsonLog(error) => Some(error),
            Self::Tls(error) => Some(error),
            Self::Thread(error) => Some(error),
        }
    }
}

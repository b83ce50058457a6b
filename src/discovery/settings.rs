//! What a source is asked, and what is said of all targets that it finds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::fleet::{GpusOf, MetricsAt, PodGpus, TargetSettings};
use crate::snapshot::{Place, ReportFormat};

/// One source of targets. No duration is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Unique among sources: log, metrics and `/v1/fleet` call it so.
    pub name: String,
    /// Who is asked.
    pub kind: Kind,
    /// What holds for each of its targets.
    pub defaults: Defaults,
}

impl Settings {
    /// Whether both find the same targets, whatever they are called.
    pub(super) fn asks_the_same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.defaults == other.defaults
    }
}

/// What holds for targets of which the source says nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// The models they serve; none named means any.
    pub models: Vec<String>,
    /// How many GPUs each has.
    pub gpus: Option<u32>,
    /// Whether they are spoken to in TLS.
    pub tls: bool,
    /// For addresses without one.
    pub port: Option<u16>,
    /// Whose metrics they serve; `None` if what all others do.
    pub engine: Option<String>,
    /// Where they have their metrics, as far as that is elsewhere.
    pub metrics_at: MetricsAt,
    /// In which format they are asked for load reports, none being one, too; `None` if as all others are.
    pub ask_for_load_report: Option<Option<ReportFormat>>,
    /// What may be said of one that serves another engine's metrics.
    pub engines: Vec<String>,
    /// Whether there is anybody to ask about their GPUs.
    pub gpus_are_told: bool,
}

impl Defaults {
    /// A target of which nothing else is said.
    pub(super) fn target(&self, name: &str, address: &str) -> TargetSettings {
        TargetSettings {
            gpus: self.gpus,
            models: self.models.clone(),
            engine: self.engine.clone(),
            metrics_at: self.metrics_at.clone(),
            ask_for_load_report: self.ask_for_load_report,
            ..TargetSettings::new(name, address)
        }
    }

    /// Which GPUs are a target's: those of its pod, else those of the pod that is called as somebody has named it. `None` if
    /// there is nobody to ask, or nobody knows which pod it is.
    pub(super) fn gpus_of(&self, place: Option<&Place>, named: Option<&str>) -> Option<GpusOf> {
        let pod = match place {
            Some(Place { pod, namespace, .. }) => {
                let namespace = Some(namespace.to_string()).filter(|namespace| !namespace.is_empty());
                PodGpus { pod: pod.to_string(), namespace, ..PodGpus::default() }
            }
            None => PodGpus { pod: named?.to_owned(), ..PodGpus::default() },
        };
        self.gpus_are_told.then_some(GpusOf::Pod(pod))
    }
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File(FileSettings),
    /// The domain name system.
    Dns(DnsSettings),
    /// The API of a Kubernetes cluster.
    Kubernetes(KubernetesSettings),
}

impl Kind {
    /// As the configuration calls it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Dns(_) => "dns",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

/// A file with a list of targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSettings {
    /// Ends in `.toml` if it is TOML; else it is JSON.
    pub path: PathBuf,
    /// How often it is looked at.
    pub interval: Duration,
}

/// A name with the targets' addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// As in a zone. One without a dot at its end is looked for in the search domains, too.
    pub host: String,
    /// What is asked for.
    pub records: Records,
    /// Who is asked; none for the system's.
    pub servers: Vec<SocketAddr>,
    /// The least time from one question to the next, whatever the records' time to live.
    pub interval: Duration,
}

/// The pods of a service, by its EndpointSlices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// `https://HOST:PORT` of the API server.
    pub api: String,
    /// The authorities to believe for it, in PEM; `None` for the system's.
    pub ca: Option<PathBuf>,
    /// What is presented to it; it is followed as it changes. `None` for nothing.
    pub token_file: Option<PathBuf>,
    /// Where the service is; `None` for the namespace that the gateway itself runs in.
    pub namespace: Option<String>,
    /// Labels that the EndpointSlices have.
    pub selector: String,
    /// The name of the port, if there are several and [`Defaults::port`] says none.
    pub port_name: Option<String>,
}

/// Kinds of DNS records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// Addresses of both kinds.
    Address,
    /// IPv4 alone.
    A,
    /// IPv6 alone.
    Aaaa,
    /// Names and ports, whose addresses are asked for next.
    Srv,
}

impl Records {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Address, Self::A, Self::Aaaa, Self::Srv];

    /// As the configuration calls them.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::A => "a",
            Self::Aaaa => "aaaa",
            Self::Srv => "srv",
        }
    }
}

//! File, environment and flags become one [`Config`], or a list of everything that is wrong with them.
//!
//! `keys.rs` is the one table: it drives reading, checking, the example file and what `snapgate check` prints. The way of
//! a value:
//!
//! ```text
//! file ─────────┐
//! environment ──┼─ layers: Kind::parse, bounds, origin ──▶ Effective ── build: what fits together ──▶ Config
//! flags ────────┘            └──────── mistakes ────────────────┴──▶ Mistakes: all at once, before a port is bound
//! ```
//!
//! OpenTelemetry's own variables are one more layer, below the file (`otlp.rs`).
//!
//! A variable's name is the key's path in capitals with underscores, `SNAPGATE_LIMITS_IN_FLIGHT` for `limits.in_flight`. It
//! is looked up in the table and never taken apart, and a test holds that no two keys share one.

mod build;
mod discovery;
mod engines;
mod example;
mod fleet;
mod gpus;
mod keys;
mod layers;
mod logs;
mod mistake;
mod orca;
mod otlp;
mod secret;
mod tables;
mod texts;
mod tokens;
mod units;
mod value;
mod watch;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use example::example;
use layers::Effective;
pub use mistake::{Mistake, Mistakes, Origin};
pub use secret::Secret;
pub use watch::Watch;

use crate::sink::json_log;
use crate::{gateway, lookup, pipeline, store, telemetry, tenant, tls};

/// The variable that names the file when no `--config` does.
pub const FILE_VARIABLE: &str = "SNAPGATE_CONFIG";

/// The variable that holds the token `snapgate lookup` presents.
pub const TOKEN_VARIABLE: &str = "SNAPGATE_TOKEN";

/// The largest configuration file: a file that is larger is not one.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this gateway in records; `instance`, or the machine's host name.
    pub instance: String,
    /// Where requests come in.
    pub listen: SocketAddr,
    /// Where lookups, health and metrics are served.
    pub admin: SocketAddr,
    /// The identity of `listen`; `None` for plain text.
    pub tls: Option<tls::ServerSettings>,
    /// The identity of `admin`; `None` for plain text.
    pub admin_tls: Option<tls::ServerSettings>,
    /// How targets are spoken to in TLS.
    pub upstream_tls: tls::ClientSettings,
    /// What targets get in place of the client's `authorization`.
    pub upstream_authorization: Option<tls::CredentialSettings>,
    /// What single targets get in place of that, by their names.
    pub target_authorization: Vec<(String, tls::CredentialSettings)>,
    /// What polls and probes present.
    pub fleet_authorization: Option<tls::CredentialSettings>,
    /// For a client's TLS handshake.
    pub tls_handshake_timeout: Duration,
    /// Where everything that must survive a restart lives.
    pub data_dir: PathBuf,
    /// Where finished snapshots are written as JSON lines; `None` if they are not.
    pub json_log: Option<json_log::Settings>,
    /// Where spans and log records go.
    pub otlp: crate::sink::otlp::Settings,
    /// The gateway's own log.
    pub log: telemetry::LogSettings,
    /// The targets and how they are watched.
    pub fleet: crate::fleet::Settings,
    /// Sources of more targets.
    pub discovery: Vec<crate::discovery::Settings>,
    /// The data path.
    pub gateway: gateway::Settings,
    /// How long open requests may go on after a stop.
    pub shutdown_grace: Duration,
    /// How long it goes on serving after it has called itself not ready.
    pub shutdown_delay: Duration,
    /// The hand-off.
    pub pipeline: pipeline::Settings,
    /// The store; none if `store.enabled` is off.
    pub store: Option<store::Settings>,
    /// Whose a request is.
    pub tenants: tenant::Settings,
    /// The read side.
    pub lookup: lookup::Settings,
    /// Whether the file is watched.
    pub watch: bool,
    shown: Vec<Shown>,
    effective: Effective,
}

/// A running gateway's configuration, read again.
#[derive(Clone, Debug)]
pub struct Reload {
    /// What is in effect from now on.
    pub config: Config,
    /// The keys whose values are others than before.
    pub changed: Vec<&'static str>,
    /// The keys that were changed and wait for a restart; in effect is what was.
    pub waiting: Vec<&'static str>,
}

/// One key as it is in effect, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its path, such as `limits.in_flight`.
    pub key: &'static str,
    /// Its value in TOML; a secret is `<set>`.
    pub value: String,
    /// Where it was written.
    pub origin: Origin,
    /// Whether a reload changes it.
    pub live: bool,
}

/// Whether a configuration without targets is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// It is a mistake: nothing could be forwarded.
    Required,
    /// It is fine: they come from somewhere else.
    Optional,
}

/// What the machine is asked about.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its host name; in a pod, the pod's name.
    pub hostname: String,
    /// How many threads can run at once.
    pub cores: usize,
}

/// A key's value from the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As the user knows it, such as `--target`.
    pub name: &'static str,
    /// The key's path.
    pub key: &'static str,
    /// As written; several only where a flag may be repeated.
    pub values: Vec<String>,
}

/// Everything a configuration is made from, exactly as written. Tests make it by hand: nothing else is read, except the
/// files that `token_file`, `tenant.secret_file` and the sections on TLS name.
#[derive(Clone)]
pub struct Sources {
    /// The file's name, and its text or why there is none.
    pub file: Option<(String, Result<String, String>)>,
    /// The process's environment.
    pub environment: BTreeMap<String, OsString>,
    /// What the command line says.
    pub flags: Vec<Flag>,
    /// What the machine says.
    pub machine: Machine,
}

/// Without the values of the environment: they hold secrets of others.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file.as_ref().map(|(name, _)| name))
            .field("variables", &self.environment.len())
            .field("flags", &self.flags)
            .field("machine", &self.machine)
            .finish()
    }
}

impl Sources {
    /// Reads the environment, the file if there is one, and asks the machine.
    pub fn of_process(file: Option<&Path>, flags: Vec<Flag>) -> Self {
        // A name that is not UTF-8 cannot be one of ours.
        let environment: BTreeMap<_, _> =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        let file = file_of_process(file).map(|path| (path.display().to_string(), read_file(&path)));
        Self { file, environment, flags, machine: Machine::this() }
    }

    /// A file's text and nothing else.
    pub fn of_text(name: &str, text: &str, machine: Machine) -> Self {
        let file = Some((name.to_owned(), Ok(text.to_owned())));
        Self { file, environment: BTreeMap::new(), flags: Vec::new(), machine }
    }

    /// Sets a key as a flag of this name does.
    pub fn with_flag(mut self, name: &'static str, key: &'static str, values: Vec<String>) -> Self {
        self.flags.push(Flag { name, key, values });
        self
    }
}

impl Machine {
    /// This one. A host name that cannot be asked for is `snapgate`.
    pub fn this() -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
        Self {
            hostname: hostname.map_or_else(|_| "snapgate".to_owned(), |name| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Config {
    /// Reads all layers, checks each value by itself and with the others, and answers everything that is wrong at once.
    pub fn load(sources: &Sources, targets: Targets) -> Result<Self, Mistakes> {
        let (effective, mut mistakes) = layers::read(sources);
        // What a file that cannot be read would have set nobody knows.
        if !matches!(sources.file, Some((_, Err(_)))) {
            build::check(&effective, targets, &mut mistakes);
        }
        mistakes.or(|| build::config(&effective, &sources.machine))
    }

    /// Reads all layers again, for a process that runs with this configuration. What a reload can change is as it is written
    /// now; the rest stays as it is, which the answer says.
    ///
    /// # Errors
    /// Something is wrong with what is written: nothing of it is to be used.
    pub fn reload(&self, sources: &Sources) -> Result<Reload, Mistakes> {
        let written = Self::load(sources, Targets::Required)?;
        let (effective, waiting) = written.effective.after(&self.effective);
        let mut mistakes = Mistakes::default();
        // What is new has to fit to what stays.
        build::check(&effective, Targets::Required, &mut mistakes);
        let config = mistakes.or(|| build::config(&effective, &sources.machine))?;
        Ok(Reload { changed: config.effective.changes(&self.effective), config, waiting })
    }

    /// Every key with its value and origin, in the order of the example file.
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// Values of OpenTelemetry's own variables that are not understood and were passed over.
    pub fn ignored(&self) -> &[Mistake] {
        self.effective.ignored()
    }

    /// The configuration in effect as TOML, one key per line, sorted; secrets are `<set>`. Replicas that are configured
    /// alike have the same text: a host name that was not configured is not in it.
    pub fn text(&self) -> String {
        let mut lines: Vec<_> = self.shown.iter().map(|shown| format!("{} = {}\n", shown.key, shown.value)).collect();
        lines.sort();
        lines.concat()
    }

    /// What records say of the configuration: the first 8 hex digits of its text's BLAKE3 hash.
    pub fn hash(&self) -> String {
        blake3::hash(self.text().as_bytes()).to_hex()[..8].to_owned()
    }
}

/// An address to listen on, as the keys `listen` and `admin` take it; `host` stands for an empty one.
pub fn parse_address(text: &str, host: IpAddr) -> Result<SocketAddr, String> {
    value::parse_address(text, host)
}

/// A duration as the configuration shows it, such as `1m30s`.
pub fn show_duration(duration: Duration) -> String {
    units::show_duration(duration)
}

/// The URL of a receiver, as the key `otlp.endpoint` takes it.
pub fn parse_receiver(text: &str) -> Result<String, String> {
    otlp::endpoint(text)
}

/// The file that a process's configuration is read from, if there is one: `named`, else the variable's.
pub fn file_of_process(named: Option<&Path>) -> Option<PathBuf> {
    let variable = || std::env::var_os(FILE_VARIABLE).filter(|file| !file.is_empty()).map(PathBuf::from);
    named.map(Path::to_path_buf).or_else(variable)
}

fn read_file(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| {
        let advice = if error.kind() == io::ErrorKind::NotFound {
            "name another one, or write it: `snapgate check --example` prints it with every key"
        } else {
            "the user that snapgate runs as has to be able to read it"
        };
        format!("cannot be read: {error}: {advice}")
    };
    let mut bytes = Vec::new();
    // One byte more shows that there is more: pipes and devices do not say how much they have.
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {}: it is not a configuration", units::show_bytes(FILE_BYTES_MAX)));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8: it is not a configuration".to_owned())
}

#[cfg(test)]
mod tests;

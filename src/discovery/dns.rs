//! Targets by the addresses of a name, asked for again when the records' time to live is over.
//!
//! A headless service of Kubernetes is such a name. An answer counts if it is whole: both kinds of address where both are
//! wanted, and the addresses of every name that an SRV record gives. What is empty, refused or late leaves the last view:
//! an empty answer is what a server says that has just lost its zone, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::address::{at, default_name};
use super::settings::{Defaults, DnsSettings, Records};
use super::{Report, Trouble};
use crate::fleet::TargetSettings;

/// Where the system says whom to ask.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// For one try of one question to a server that is configured here.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long it is waited at most after answers that were none; at first as long as after a good one, then twice as long
/// each time.
const FAILED_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The longest time to live that is believed.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Names of SRV records whose addresses are asked for at the same time.
const QUESTIONS_AT_ONCE: usize = 16;

/// Why there is no answer.
#[derive(Debug)]
enum DnsError {
    /// Nobody can be asked.
    System(io::Error),
    /// What is asked for is no name.
    Name(String),
    /// This name has no such records.
    Empty(Name, RecordType),
    /// A question about this name was not answered, or not by a list.
    Failed(Name, RecordType, Box<NetError>),
}

impl DnsError {
    const fn trouble(&self) -> Trouble {
        match self {
            Self::System(_) | Self::Failed(..) => Trouble::Away,
            Self::Name(_) | Self::Empty(..) => Trouble::Unusable,
        }
    }
}

impl fmt::Display for DnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => write!(f, "{RESOLV_CONF} does not say whom to ask: {error}; or name `servers`"),
            Self::Name(text) => f.write_str(text),
            Self::Empty(name, kind) => write!(f, "{name} has no {kind} records"),
            Self::Failed(name, kind, error) => write!(f, "the {kind} records of {name} could not be had: {error}"),
        }
    }
}

/// Where targets are, and for how long that is true.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    sockets: BTreeSet<(IpAddr, Option<u16>)>,
    ttl: Duration,
}

/// Asks for ever. The owner of the task ends it.
pub(super) async fn run(settings: DnsSettings, defaults: Defaults, report: Report) {
    let (mut resolver, mut failures) = (None, 0);
    loop {
        let pause = match ask(&settings, &mut resolver).await {
            Ok(Answer { sockets, ttl }) => {
                failures = 0;
                match targets(&sockets, &defaults) {
                    Ok(targets) => report.found(targets),
                    Err(text) => report.failed(Trouble::Unusable, text),
                }
                ttl.clamp(settings.interval, TTL_MAX.max(settings.interval))
            }
            Err(error) => {
                report.failed(error.trouble(), error.to_string());
                // The next question is asked over other sockets, of servers that the system may name by then.
                resolver = None;
                let doubled = settings.interval.saturating_mul(1 << u32::min(failures, 16));
                failures += 1;
                doubled.min(FAILED_PAUSE_MAX.max(settings.interval))
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn ask(settings: &DnsSettings, resolver: &mut Option<TokioResolver>) -> Result<Answer, DnsError> {
    let resolver = match resolver {
        Some(resolver) => resolver,
        none => none.insert(resolver_of(settings)?),
    };
    let host = Name::from_ascii(&settings.host).map_err(|error| DnsError::Name(error.to_string()))?;
    match settings.records {
        Records::Srv => services(resolver, host).await,
        records => {
            let (addresses, ttl) = addresses(resolver, host, records).await?;
            Ok(Answer { sockets: addresses.into_iter().map(|address| (address, None)).collect(), ttl })
        }
    }
}

/// The sockets of the services of the first priority: those after it are for when none of them is left.
async fn services(resolver: &TokioResolver, host: Name) -> Result<Answer, DnsError> {
    let lookup = lookup(resolver, &host, RecordType::SRV).await?;
    let services: Vec<_> = lookup.answers().iter().filter_map(service).collect();
    let first = services.iter().map(|(priority, ..)| *priority).min();
    // A root for a name says that there is no such service.
    let first = services.into_iter().filter(|(priority, name, _)| Some(*priority) == first && !name.is_root());
    // Each name is asked for once, however many of its ports there are.
    let mut ports = BTreeMap::<Name, Vec<u16>>::new();
    for (_, name, port) in first {
        ports.entry(name).or_default().push(port);
    }
    if ports.is_empty() {
        return Err(DnsError::Empty(host, RecordType::SRV));
    }
    let told = &lookup;
    let located = ports.into_iter().map(async |(name, ports)| {
        let (addresses, ttl) = match beside(told, &name) {
            Some(addresses) => addresses,
            None => addresses(resolver, name, Records::Address).await?,
        };
        Ok((addresses, ports, ttl))
    });
    let mut answer = Answer { sockets: BTreeSet::new(), ttl: ttl(lookup.answers()) };
    let mut located = futures_util::stream::iter(located).buffer_unordered(QUESTIONS_AT_ONCE);
    while let Some(part) = located.next().await {
        let (addresses, ports, ttl) = part?;
        let sockets = |address| ports.iter().map(move |port| (address, Some(*port)));
        answer.sockets.extend(addresses.into_iter().flat_map(sockets));
        answer.ttl = answer.ttl.min(ttl);
    }
    Ok(answer)
}

/// Priority, name and port of an SRV record.
fn service(record: &Record) -> Option<(u16, Name, u16)> {
    match &record.data {
        RData::SRV(service) => Some((service.priority, service.target.clone(), service.port)),
        _ => None,
    }
}

/// The addresses of a name that came with the answer without being asked for; `None` if there are none.
fn beside(lookup: &Lookup, name: &Name) -> Option<(Vec<IpAddr>, Duration)> {
    let of_name = || lookup.additionals().iter().filter(|record| record.name == *name && address(record).is_some());
    let addresses: Vec<_> = of_name().filter_map(address).collect();
    (!addresses.is_empty()).then(|| (addresses, ttl(of_name())))
}

/// The addresses of a name: of each kind that is asked for, or it is not known which are missing.
async fn addresses(
    resolver: &TokioResolver,
    name: Name,
    records: Records,
) -> Result<(Vec<IpAddr>, Duration), DnsError> {
    let of = async |kind| match lookup(resolver, &name, kind).await {
        Ok(lookup) => Ok(Some(lookup)),
        Err(DnsError::Empty(..)) => Ok(None),
        Err(error) => Err(error),
    };
    let none = async { Ok(None) };
    let (first, second) = match records {
        Records::A => (of(RecordType::A).await?, none.await?),
        Records::Aaaa => (of(RecordType::AAAA).await?, none.await?),
        _ => tokio::try_join!(of(RecordType::A), of(RecordType::AAAA))?,
    };
    let answers = || [&first, &second].into_iter().flatten().flat_map(|lookup| lookup.answers());
    let addresses: Vec<_> = answers().filter_map(address).collect();
    if addresses.is_empty() {
        let kind = if records == Records::Aaaa { RecordType::AAAA } else { RecordType::A };
        return Err(DnsError::Empty(name, kind));
    }
    Ok((addresses, ttl(answers())))
}

async fn lookup(resolver: &TokioResolver, name: &Name, kind: RecordType) -> Result<Lookup, DnsError> {
    resolver.lookup(name.clone(), kind).await.map_err(|error| match error {
        error if error.is_no_records_found() && has_answered(&error) => DnsError::Empty(name.clone(), kind),
        error => DnsError::Failed(name.clone(), kind, Box::new(error)),
    })
}

/// That there is nothing was said, and not merely meant: a server that fails has no records to give either.
fn has_answered(error: &NetError) -> bool {
    use hickory_resolver::net::DnsError::NoRecordsFound;
    use hickory_resolver::proto::op::ResponseCode;
    matches!(error, NetError::Dns(NoRecordsFound(none)) if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain))
}

fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

/// For how long all of these are true.
fn ttl<'a>(records: impl IntoIterator<Item = &'a Record>) -> Duration {
    let least = records.into_iter().map(|record| record.ttl).min().unwrap_or_default();
    Duration::from_secs(least.into())
}

fn targets(sockets: &BTreeSet<(IpAddr, Option<u16>)>, defaults: &Defaults) -> Result<Vec<TargetSettings>, String> {
    let target = |(ip, port): &(IpAddr, Option<u16>)| {
        let port = port.or(defaults.port).ok_or("addresses have no ports: set `port`")?;
        let address = at(SocketAddr::new(*ip, port), defaults.tls)?;
        Ok(defaults.target(&default_name(&address)?, &address))
    };
    sockets.iter().map(target).collect()
}

/// Nothing is cached: when to ask again is decided here.
fn resolver_of(settings: &DnsSettings) -> Result<TokioResolver, DnsError> {
    let (config, mut options) = if settings.servers.is_empty() {
        of_system().map_err(DnsError::System)?
    } else {
        of_servers(&settings.servers)
    };
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|error| DnsError::System(io::Error::other(error)))
}

fn of_servers(servers: &[SocketAddr]) -> (ResolverConfig, ResolverOpts) {
    let server = |server: &SocketAddr| {
        let at_port = |mut connection: ConnectionConfig| {
            connection.port = server.port();
            connection
        };
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(at_port);
        NameServerConfig::new(server.ip(), true, connections.into())
    };
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.timeout = TIMEOUT;
    (config, options)
}

fn of_system() -> io::Result<(ResolverConfig, ResolverOpts)> {
    let system = resolv_conf::Config::parse(fs::read(RESOLV_CONF)?).map_err(io::Error::other)?;
    let servers: Vec<_> =
        system.nameservers.iter().map(|server| NameServerConfig::udp_and_tcp(server.into())).collect();
    if servers.is_empty() {
        return Err(io::Error::other("it names no server"));
    }
    let search = system.get_last_search_or_domain().filter_map(|domain| Name::from_ascii(domain).ok());
    let config = ResolverConfig::from_parts(None, search.collect(), servers);
    let mut options = ResolverOpts::default();
    options.ndots = system.ndots as usize;
    options.timeout = Duration::from_secs(u64::from(system.timeout).max(1));
    options.attempts = system.attempts as usize;
    Ok((config, options))
}

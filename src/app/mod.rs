//! The only place that builds, starts and stops things.
//!
//! Ports are bound before anything is opened, and requests are accepted last, when whatever they need is there. Everything
//! is stopped in the direction of flow, so nothing is lost on the way: stop accepting, let requests end, drain the worker,
//! drain the exits, and only then stop answering lookups.

mod error;
mod membership;
mod upstream;

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config::{Config, Mistakes, Reload};
use crate::discovery::Discovery;
use crate::fleet::{Change, Fleet};
use crate::gateway::{self, Gateway, Hurry, Server};
use crate::ledger::Ledger;
use crate::lookup::{self, EraseSource, LookupState, Readiness};
use crate::pipeline::{self, Balance, Intake, Pipeline};
use crate::sink::Sink;
use crate::sink::json_log::JsonLog;
use crate::sink::otlp::{Otlp, Protocol, Receiver};
use crate::snapshot::{Health, InstanceTag, Members, Run, RunId};
use crate::store::{DataDir, Reader, Store, Writer};
use crate::telemetry::{Metrics, ReloadResult};
use crate::tenant::{self, Tenants};
use crate::tls::{self, Acceptor, Connector, Followed, ServerSettings};
pub use error::StartError;
use upstream::{Upstream, credentials_of_targets};

/// The longest that the exits may go on after the last request has ended, if there is so much left of the requests' own grace.
const LANES_GRACE: Duration = Duration::from_secs(5);

/// What they have in any case: else an answer that took all of the grace would be in no log.
const LANES_AT_LEAST: Duration = Duration::from_secs(1);

/// How long lookups under way may take at the very end.
const LOOKUP_GRACE: Duration = Duration::from_secs(2);

/// A running gateway.
#[derive(Debug)]
pub struct App {
    /// Where clients connect.
    pub data: SocketAddr,
    /// Where lookups are answered.
    pub admin: SocketAddr,
    /// From not being ready any more to not accepting any more.
    pub shutdown_delay: Duration,
    shutdown_grace: Duration,
    server: Server,
    pipeline: Pipeline,
    /// For the fleet's polling and for lookups: nothing of the data path runs on it.
    control: Runtime,
    polling: (oneshot::Sender<()>, JoinHandle<()>),
    discovering: (oneshot::Sender<()>, JoinHandle<()>),
    lookup: (oneshot::Sender<()>, JoinHandle<()>),
    /// What a reload reaches, besides the server.
    run: Arc<Run>,
    metrics: Arc<Metrics>,
    lookup_settings: Arc<ArcSwap<lookup::Settings>>,
    target_credentials: Arc<Followed>,
    fleet: Arc<Fleet>,
    discovery: Arc<Discovery>,
    /// Set first thing at the stop, so that nobody sends new clients here.
    stopping: Arc<AtomicBool>,
    /// Held for the lifetime of the process: its lock keeps a second one out.
    _data_dir: Option<DataDir>,
}

/// The parts that outlive the request and are shared by several modules.
struct Shared {
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    ledger: Arc<Ledger>,
    run: Arc<Run>,
    tenants: Arc<Tenants>,
    problem: Arc<ArcSwapOption<String>>,
    flood: Arc<ArcSwapOption<String>>,
    lookup_settings: Arc<ArcSwap<lookup::Settings>>,
    stopping: Arc<AtomicBool>,
}

impl App {
    /// Builds and starts everything.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let ((data, _), admin) = (bind("listen", config.listen)?, bind("admin", config.admin)?);
        let admin_address = admin.1;
        let (clock, metrics) = (Clock::start(), Metrics::new());
        let data_dir = config.store.as_ref().map(|_| DataDir::open(&config.data_dir)).transpose();
        let data_dir = data_dir.map_err(StartError::DataDir)?;
        let run = Arc::new(this_run(&config, data_dir.as_ref(), &clock));
        metrics.identify(&run, &config.otlp.provider);
        let (problem, flood, stopping) = (Arc::default(), Arc::default(), Arc::default());
        let lookup_settings = Arc::new(ArcSwap::from_pointee(config.lookup.clone()));
        let own_key = tenant::Key::new(data_dir.as_ref().map_or_else(rand::random, |dir| *dir.secret()));
        let tenants = Arc::new(Tenants::new(&config.tenants, own_key));
        let shared =
            Shared { clock, metrics, ledger: Arc::default(), run, tenants, problem, flood, lookup_settings, stopping };

        let acceptor = load_acceptor(("tls", tls::HTTP2_OR_1), config.tls.as_ref(), &config, &shared)?;
        let admin_acceptor = load_acceptor(("admin_tls", tls::HTTP1), config.admin_tls.as_ref(), &config, &shared)?;
        let store = open_store(&config, data_dir.as_ref(), &shared)?;
        let reader = store.as_ref().map(|(_, reader)| reader.clone());
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("snapgate-control")
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;

        let otlp = load_otlp(&config)?;
        let sinks = open_sinks(&config, &otlp, &shared, &control)?;
        let (intake, pipeline) = start_pipeline(&config, &shared, store, sinks)?;
        let upstream = Upstream::load(&config)?;
        let fleet = Fleet::new(upstream.fleet(&config), Arc::clone(&shared.clock), Arc::clone(&shared.metrics));
        let erase = pipeline.eraser().map(|eraser| -> EraseSource { Arc::new(move |erasure| eraser.erase(erasure)) });
        start_rotation(&upstream, otlp, acceptor.iter().chain(&admin_acceptor), &shared, &control);
        let discovery = upstream.discovery(&config, &fleet, &shared.metrics);
        let known = (&fleet, &discovery);
        let lookup = start_lookup(&shared, known, (reader, erase), (admin, admin_acceptor), &control)?;
        let target_credentials = Arc::clone(&upstream.target_credentials);
        let polling = start(&control, |stopped| Arc::clone(&fleet).run(stopped));
        let discovering = start(&control, |stopped| Arc::clone(&discovery).run(stopped));
        let server = start_gateway(&config, &shared, &fleet, intake, (data, acceptor, upstream))?;
        Ok(Self {
            data: server.address(),
            admin: admin_address,
            shutdown_delay: config.shutdown_delay,
            shutdown_grace: config.shutdown_grace,
            server,
            pipeline,
            polling,
            discovering,
            lookup,
            control,
            fleet,
            discovery,
            target_credentials,
            run: shared.run,
            metrics: shared.metrics,
            lookup_settings: shared.lookup_settings,
            stopping: shared.stopping,
            _data_dir: data_dir,
        })
    }

    /// Takes up a configuration that was read again: from the next request on it is in effect, and named by its record.
    pub fn reload(&mut self, reload: &Reload) {
        let Reload { config, changed, waiting } = reload;
        self.metrics.config_waiting.set(waiting.len() as i64);
        if !waiting.is_empty() {
            tracing::warn!(
                keys = waiting.join(", "),
                "changed, but a reload cannot change them: they wait for a restart"
            );
        }
        if changed.is_empty() {
            self.metrics.reloaded(ReloadResult::Unchanged);
            return tracing::info!(config = &*self.run.config, "the configuration was read again and is the same");
        }
        let credentials = match credentials_of_targets(config) {
            Ok(credentials) => credentials,
            Err(error) => {
                self.metrics.reloaded(ReloadResult::Refused);
                return tracing::error!(%error, "the configuration was not reloaded: nothing has changed");
            }
        };
        self.target_credentials.set(credentials.clone());
        let run = Run { config: config.hash().into(), config_text: config.text().into(), ..(*self.run).clone() };
        self.run = Arc::new(run);
        let settings = gateway::Settings { authorization_of: credentials, ..config.gateway.clone() };
        let (server, run) = (&self.server, Arc::clone(&self.run));
        let take_up = |targets: &[_]| server.reload(settings, run, targets);
        self.fleet.set_gpu_exporters(&config.fleet.gpu_exporters);
        let Change { added, removed, kept } =
            self.discovery.reload(config.fleet.targets.clone(), &config.discovery, take_up);
        self.lookup_settings.store(Arc::new(config.lookup.clone()));
        (self.shutdown_delay, self.shutdown_grace) = (config.shutdown_delay, config.shutdown_grace);
        self.metrics.config_in_effect(&self.run.config);
        self.metrics.reloaded(ReloadResult::Applied);
        let (changed, added, removed) = (changed.join(", "), added.join(", "), removed.join(", "));
        tracing::info!(config = &*self.run.config, changed, added, removed, kept, "the configuration was reloaded");
    }

    /// Says why a configuration that was read again is not taken up. All goes on as it was.
    pub fn refuse(&self, mistakes: &Mistakes) {
        self.metrics.reloaded(ReloadResult::Refused);
        for mistake in mistakes.list() {
            tracing::error!(%mistake, "the configuration is wrong");
        }
        let count = mistakes.list().len();
        tracing::error!(
            mistakes = count,
            config = &*self.run.config,
            "the configuration was not reloaded: nothing has changed"
        );
    }

    /// Calls itself not ready, and goes on: who sends clients here has `shutdown_delay` to notice, and clients that are
    /// connected are asked to go.
    pub fn retire(&self) {
        self.stopping.store(true, Relaxed);
        self.server.retire();
    }

    /// For a stop that takes too long for somebody.
    pub fn hurry(&self) -> Hurry {
        self.server.hurry()
    }

    /// Stops in the direction of flow. Blocks for the configured grace at most, then until what has ended is stored.
    pub fn stop(self) -> Balance {
        self.retire();
        let grace_ends = Instant::now() + self.shutdown_grace;
        self.server.stop(grace_ends);
        for (what, (stop, task)) in [("discovery", self.discovering), ("fleet", self.polling)] {
            // Gone already only if the task has ended.
            stop.send(()).ok();
            if self.control.block_on(task).is_err() {
                tracing::error!(what, "a task panicked");
            }
        }
        let now = Instant::now();
        let balance = self.pipeline.join(grace_ends.clamp(now + LANES_AT_LEAST, now + LANES_GRACE));
        let (stop_lookup, lookup) = self.lookup;
        // Likewise.
        stop_lookup.send(()).ok();
        if self.control.block_on(async { tokio::time::timeout(LOOKUP_GRACE, lookup).await }).is_err() {
            tracing::warn!("lookups under way were cut short");
        }
        self.control.shutdown_timeout(LOOKUP_GRACE);
        balance
    }
}

fn this_run(config: &Config, data_dir: Option<&DataDir>, clock: &Clock) -> Run {
    Run {
        id: RunId(rand::random()),
        instance: config.instance.as_str().into(),
        tag: data_dir.map_or_else(|| InstanceTag(rand::random()), DataDir::tag),
        version: env!("CARGO_PKG_VERSION").into(),
        config: config.hash().into(),
        config_text: config.text().into(),
        started: clock.now(),
    }
}

/// Listens for a runtime, which may not be held up by it; answers where, too.
fn bind(setting: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    listen().map_err(|source| StartError::Bind { setting, address, source })
}

fn load_acceptor(
    (section, protocols): (&'static str, &'static [&'static [u8]]),
    settings: Option<&ServerSettings>,
    config: &Config,
    shared: &Shared,
) -> Result<Option<Arc<Acceptor>>, StartError> {
    let load = |settings: &ServerSettings| {
        Acceptor::load(section, settings.clone(), protocols, config.tls_handshake_timeout, Arc::clone(&shared.metrics))
    };
    settings.map(load).transpose().map(|acceptor| acceptor.map(Arc::new)).map_err(StartError::Tls)
}

/// Follows the files of certificates, keys and credentials. It ends with the runtime: nothing is lost when it is cut off.
fn start_rotation<'a>(
    upstream: &Upstream,
    otlp: Vec<Arc<Connector>>,
    acceptors: impl IntoIterator<Item = &'a Arc<Acceptor>>,
    shared: &Shared,
    control: &Runtime,
) {
    let acceptors = acceptors.into_iter().map(|acceptor| Arc::clone(acceptor) as _);
    let otlp = otlp.into_iter().map(|connector| connector as _);
    let all = upstream.rotating().chain(otlp).chain(acceptors).collect();
    control.spawn(tls::rotate(all, Arc::clone(&shared.metrics)));
}

fn open_store(
    config: &Config,
    data_dir: Option<&DataDir>,
    shared: &Shared,
) -> Result<Option<(Writer, Reader)>, StartError> {
    let (Some(settings), Some(data_dir)) = (&config.store, data_dir) else { return Ok(None) };
    let run = Arc::clone(&shared.run);
    let opened = Store::open(data_dir, settings, run, shared.clock.now());
    opened.map(Some).map_err(StartError::Store)
}

/// For receivers of OTLP with `https`: one for each signal that is exported.
fn load_otlp(config: &Config) -> Result<Vec<Arc<Connector>>, StartError> {
    let load = |receiver: &Receiver| {
        let protocols = match receiver.protocol {
            Protocol::Grpc => tls::HTTP2_ONLY,
            Protocol::Http => tls::HTTP1,
        };
        Connector::speaking(protocols, "otlp", receiver.tls.clone()).map(Arc::new).map_err(StartError::Tls)
    };
    config.otlp.receivers().map(|(_, receiver)| load(receiver)).collect()
}

fn open_sinks(
    config: &Config,
    otlp: &[Arc<Connector>],
    shared: &Shared,
    control: &Runtime,
) -> Result<Vec<Box<dyn Sink>>, StartError> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if let Some(settings) = &config.json_log {
        sinks.push(Box::new(JsonLog::open(settings).map_err(StartError::JsonLog)?));
    }
    for exit in Otlp::exits(&config.otlp, otlp, &shared.clock, control.handle()) {
        sinks.push(Box::new(exit));
    }
    Ok(sinks)
}

fn start_pipeline(
    config: &Config,
    shared: &Shared,
    store: Option<(Writer, Reader)>,
    sinks: Vec<Box<dyn Sink>>,
) -> Result<(Intake, Pipeline), StartError> {
    let parts = pipeline::Parts {
        ledger: Arc::clone(&shared.ledger),
        store,
        sinks,
        clock: Arc::clone(&shared.clock),
        metrics: Arc::clone(&shared.metrics),
        problem: Arc::clone(&shared.problem),
        flood: Arc::clone(&shared.flood),
    };
    pipeline::start(&config.pipeline, parts).map_err(StartError::Thread)
}

fn start_gateway(
    config: &Config,
    shared: &Shared,
    fleet: &Arc<Fleet>,
    intake: Intake,
    (listener, acceptor, upstream): (TcpListener, Option<Arc<Acceptor>>, Upstream),
) -> Result<Server, StartError> {
    let parts = gateway::Parts {
        clock: Arc::clone(&shared.clock),
        run: Arc::clone(&shared.run),
        tenants: Arc::clone(&shared.tenants),
        fleet: Arc::clone(fleet),
        ledger: Arc::clone(&shared.ledger),
        intake,
        metrics: Arc::clone(&shared.metrics),
        acceptor,
        connector: Some(upstream.connector),
        authorization: upstream.authorization,
    };
    let settings = gateway::Settings { authorization_of: upstream.authorization_of, ..config.gateway.clone() };
    gateway::start(Gateway::new(settings, parts), listener).map_err(StartError::Thread)
}

/// Starts what runs until it is told to stop.
fn start<F: Future<Output = ()> + Send + 'static>(
    control: &Runtime,
    run: impl FnOnce(Stopped) -> F,
) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped: Stopped = Box::pin(async {
        // Dropped or sent, both mean stop.
        drop(stopped.await);
    });
    (stop, control.spawn(run(stopped)))
}

/// Ends when somebody is to stop.
type Stopped = Pin<Box<dyn Future<Output = ()> + Send>>;

fn start_lookup(
    shared: &Shared,
    (fleet, discovery): (&Arc<Fleet>, &Arc<Discovery>),
    (reader, erase): (Option<Reader>, Option<EraseSource>),
    ((listener, address), acceptor): ((TcpListener, SocketAddr), Option<Arc<Acceptor>>),
    control: &Runtime,
) -> Result<(oneshot::Sender<()>, JoinHandle<()>), StartError> {
    let readiness = {
        let (fleet, stopping) = (Arc::clone(fleet), Arc::clone(&shared.stopping));
        let warnings = [("store", Arc::clone(&shared.problem)), ("pipeline", Arc::clone(&shared.flood))];
        let (metrics, discovery) = (Arc::clone(&shared.metrics), Arc::clone(discovery));
        Arc::new(move || readiness(&fleet, &discovery, &warnings, stopping.load(Relaxed), &metrics))
    };
    let (view, gpus) = (Arc::clone(fleet), Arc::clone(fleet));
    let settings = Arc::clone(&shared.lookup_settings);
    let router = lookup::router(LookupState {
        run: Arc::clone(&shared.run),
        ledger: Arc::clone(&shared.ledger),
        reader,
        metrics: Arc::clone(&shared.metrics),
        clock: Arc::clone(&shared.clock),
        fleet: Arc::new(move || Arc::clone(&view.view())),
        gpus: Arc::new(move || gpus.gpus()),
        membership: membership::of(fleet, discovery),
        readiness,
        tenants: Arc::clone(&shared.tenants),
        erase,
        settings: Arc::clone(&settings),
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let listen = || {
        if acceptor.is_none() && !address.ip().is_loopback() {
            tracing::warn!(
                "the admin listener is open beyond loopback without TLS: tokens and records travel in clear; set \
                 admin_tls.cert and admin_tls.key"
            );
        }
        if settings.load().tokens.is_empty() && !address.ip().is_loopback() {
            tracing::warn!(
                "lookups are closed, from this machine too: the admin listener is bound beyond loopback, and there are no \
                 lookup.tokens; callers can look up their own requests if lookup.own_records is on"
            );
        }
        let _context = control.enter();
        tokio::net::TcpListener::from_std(listener)
    };
    let listener = listen().map_err(|source| StartError::Bind { setting: "admin", address, source })?;
    let metrics = Arc::clone(&shared.metrics);
    let serving = control.spawn(async move {
        let rotating = lookup::rotate_tokens(Arc::clone(&settings), Arc::clone(&metrics));
        let served = lookup::serve((listener, acceptor), router, settings, metrics, async {
            // Dropped or sent, both mean stop.
            drop(stopped.await);
        });
        tokio::select! {
            () = served => {}
            never = rotating => match never {},
        }
    });
    Ok((stop, serving))
}

/// Ready means: requests can be served. That they can be recorded is another matter, which fails none of them, and a limit that
/// some of them have met would be met by all at the replicas that are left.
fn readiness(
    fleet: &Fleet,
    discovery: &Discovery,
    warnings: &[(&str, Arc<ArcSwapOption<String>>)],
    stopping: bool,
    metrics: &Metrics,
) -> Readiness {
    let mut reasons = Vec::new();
    if stopping {
        reasons.push("the gateway is stopping".to_owned());
    }
    let view = fleet.view();
    reasons.extend(membership::nobody_serves(&view, discovery));
    let said =
        |(whose, warning): &(&str, Arc<ArcSwapOption<String>>)| Some(format!("{whose}: {}", warning.load_full()?));
    let limits = metrics.reached.warnings(Instant::now()).map(str::to_owned);
    let own = warnings.iter().filter_map(said).chain(limits);
    let of_fleet = unhealthy(&view.members).into_iter().chain(membership::seldom(fleet, view.members.len()));
    let warnings = own.chain(membership::warnings(discovery)).chain(of_fleet).collect();
    Readiness { reasons, warnings }
}

/// Unhealthy targets that a warning names.
const NAMED_MAX: usize = 3;

/// That some targets are unhealthy, and which. Their names alone: who asks shows no token, and is told no address.
fn unhealthy(members: &Members) -> Option<String> {
    let unhealthy = members.iter().filter(|member| member.sample.health == Health::Unhealthy);
    let mut names: Vec<_> = unhealthy.map(|member| &*member.sample.target.name).collect();
    let count = names.len();
    if count == 0 {
        return None;
    }
    names.truncate(NAMED_MAX);
    if count > NAMED_MAX {
        names.push("…");
    }
    let verb = if count == 1 { "is" } else { "are" };
    Some(format!("{count} of {} targets {verb} unhealthy: {}", members.len(), names.join(", ")))
}

//! `snapgate demo`: pods, gateway and traffic in one process, and the tour through what it recorded.

use std::fmt;
use std::fs::DirBuilder;
use std::future::Future;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::tour::{self, TourError, TourSettings};
use super::traffic::{self, TrafficSettings};
use super::{sim::SimSettings, start_sims};
use crate::app::{App, StartError};
use crate::config::{Config, Machine, Sources, Targets};
use crate::telemetry;

/// Where the demonstration listens, if nothing else does: the defaults of `snapgate serve`.
const USUAL_PORTS: (u16, u16) = (8080, 8081);

/// What the demonstration's draws begin with: it is the same one every time.
const SEED: u64 = 795;

/// How to see the requests in a tracing backend; the README has the same commands.
const BESIDE: &str = "\
The same in Grafana, from the project's directory:
  SNAPGATE_TOKEN=not-used-by-these docker compose -f deploy/compose.yaml up -d grafana
  snapgate demo --otlp http://127.0.0.1:4317
  then http://127.0.0.1:3000/d/snapgate-snapshot, which takes an ID
or in Jaeger:
  docker run -d --rm -p 127.0.0.1:16686:16686 -p 127.0.0.1:4317:4317 docker.io/jaegertracing/jaeger:2.20.0
  snapgate demo --otlp http://127.0.0.1:4317
  then http://127.0.0.1:16686/trace/ and the ID
";

/// What becomes visible there, and what does not.
const FILLED: &str = "\
In Grafana they fill the dashboard Snapshot and the slow requests on Decisions.
Panels of metrics stay empty: the Prometheus of Compose does not reach this
gateway, which listens on loopback.";

/// How long traffic runs before the tour, so that there is a state worth seeing.
const WARM_UP: Duration = Duration::from_secs(2);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// End after the tour.
    pub once: bool,
    /// Simulated pods.
    pub targets: usize,
    /// Requests per second of the traffic.
    pub rate: f64,
    /// Where spans go, as the configuration takes it; `None` if they do not.
    pub otlp: Option<String>,
}

/// Why the demonstration ended early.
#[derive(Debug)]
pub enum DemoError {
    /// There is no place for its records.
    Scratch(io::Error),
    /// A pod could not be started.
    Sim(io::Error),
    /// The gateway's log could not be started.
    Log(io::Error),
    /// The gateway could not be started.
    Start(StartError),
    /// The tour broke off.
    Tour(TourError),
}

impl fmt::Display for DemoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scratch(error) => write!(f, "a temporary directory could not be made: {error}: set TMPDIR"),
            Self::Sim(error) => write!(f, "a simulated pod could not be started: {error}"),
            Self::Log(error) => write!(f, "the log could not be started: {error}"),
            Self::Start(error) => error.fmt(f),
            Self::Tour(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DemoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Scratch(error) | Self::Sim(error) | Self::Log(error) => Some(error),
            Self::Start(error) => Some(error),
            Self::Tour(error) => Some(error),
        }
    }
}

/// A directory of its own for the demonstration's records, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    /// A new one: a name that another user made before is not taken over.
    fn new() -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("snapgate-demo-{:016x}", rand::random::<u64>()));
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it cannot be removed, the system's own cleaning of temporary files will.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Runs the demonstration until `stopped`, or until the end of the tour.
pub fn run(
    settings: &Settings,
    colour: bool,
    runtime: &Runtime,
    stopped: impl Future<Output = ()>,
    out: &mut (dyn Write + Send),
) -> Result<(), DemoError> {
    let scratch = Scratch::new().map_err(DemoError::Scratch)?;
    let (stop, stopping) = watch::channel(());
    let mut tasks = JoinSet::new();
    let _context = runtime.enter();

    let sims = runtime.block_on(start_sims(settings.targets, SEED)).map_err(DemoError::Sim)?;
    let pods: Vec<_> = sims.iter().map(|sim| (sim.settings().name.clone(), sim.address())).collect();
    for sim in sims {
        tasks.spawn(sim.run(ended(stopping.clone())));
    }
    let config = configuration(&pods, settings.otlp.as_deref(), &scratch.0);
    let _log = telemetry::start_log(&config.log).map_err(DemoError::Log)?;
    let app = App::start(config).map_err(DemoError::Start)?;
    let traffic = TrafficSettings {
        gateway: app.data.to_string().parse().expect("a socket address is an authority"),
        rate: settings.rate,
        seed: SEED,
        models: vec![SimSettings::default().model],
    };
    tasks.spawn(async move {
        traffic::run(traffic, ended(stopping)).await;
    });

    let shown = runtime.block_on(guide(settings, (&app, &scratch.0), colour, stopped, out));
    // Without a receiver they have all ended.
    stop.send(()).ok();
    runtime.block_on(async { while tasks.join_next().await.is_some() {} });
    app.stop();
    shown.map_err(DemoError::Tour)
}

/// The tour, and then, unless that was all, waiting.
async fn guide(
    settings: &Settings,
    (app, data_dir): (&App, &Path),
    colour: bool,
    stopped: impl Future<Output = ()>,
    out: &mut (dyn Write + Send),
) -> Result<(), TourError> {
    let mut stopped = std::pin::pin!(stopped);
    let Settings { targets, rate, once, otlp } = settings;
    writeln!(out, "{targets} simulated pods, a gateway in front of them, and {rate} requests a second.\n")?;
    let tour = TourSettings {
        data: app.data,
        admin: app.admin,
        model: SimSettings::default().model,
        program: tour::program(),
        data_dir: data_dir.to_owned(),
        once: *once,
        colour,
    };
    let toured = async {
        tokio::time::sleep(WARM_UP).await;
        tour::run(&tour, out).await
    };
    tokio::select! {
        toured = toured => toured?,
        () = &mut stopped => return Ok(()),
    };
    match otlp {
        None if *once => {}
        Some(receiver) => {
            writeln!(out, "\nSpans go to {receiver}; a request's trace ID is its snapshot ID.")?;
            writeln!(out, "{FILLED}")?;
            if !once {
                writeln!(out, "One on this machine can scrape http://{}/metrics.", app.admin)?;
            }
        }
        None => write!(out, "\n{BESIDE}")?,
    }
    if !once {
        writeln!(out, "\nServing until you stop it with Ctrl-C.")?;
        stopped.await;
    }
    Ok(())
}

async fn ended(mut stopping: watch::Receiver<()>) {
    // An error says that the sender is gone, which means the same.
    stopping.changed().await.ok();
}

/// The defaults, with these pods, on the usual ports or on free ones.
fn configuration(pods: &[(String, SocketAddr)], otlp: Option<&str>, data_dir: &Path) -> Config {
    let mut text = format!(
        "listen = \"{}\"\nadmin = \"{}\"\ndata_dir = {:?}\n[log]\nformat = \"text\"\nlevel = \"warn\"\n",
        usual_or_free(USUAL_PORTS.0),
        usual_or_free(USUAL_PORTS.1),
        data_dir.display().to_string(),
    );
    if let Some(receiver) = otlp {
        text += &format!("[otlp]\nendpoint = {receiver:?}\n");
    }
    for (name, address) in pods {
        text += &format!("[[targets]]\nname = \"{name}\"\nurl = \"http://{address}\"\ngpus = 1\n");
        // Each has a node of its own, whose exporter names the pod.
        text += &format!("[[gpu_exporters]]\nnode = \"node-of-{name}\"\nurl = \"http://{address}/dcgm/metrics\"\n");
    }
    let sources = Sources::of_text("the demonstration", &text, Machine::this());
    Config::load(&sources, Targets::Required).expect("the demonstration's configuration is valid")
}

fn usual_or_free(port: u16) -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if TcpListener::bind(usual).is_ok() { usual } else { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_same_commands_and_compose_the_same_port() {
        let read = |file| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let (readme, compose) = (read("README.md"), read("deploy/compose.yaml"));
        let commands: Vec<_> = BESIDE.lines().filter_map(|line| line.strip_prefix("  ")).collect();
        let commands = commands.iter().filter(|line| !line.starts_with("then "));
        assert_eq!(commands.clone().count(), 4);
        for command in commands {
            assert!(readme.contains(command), "{command}");
        }
        for port in ["127.0.0.1:4317:4317", "127.0.0.1:3000:3000"] {
            assert!(compose.contains(port), "{port}");
        }
    }
}

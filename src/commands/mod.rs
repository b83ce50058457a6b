//! What each command of the command line does.

mod ask;

use std::fmt::Display;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::App;
use crate::cli::{self, Command, DemoArgs, Exit, ReplayArgs, ServeArgs, SimArgs};
use crate::clock::Clock;
use crate::config::{self, Config, Targets, Watch};
use crate::demo;
use crate::demo::sim::Sim;
use crate::lookup::moment::moment;
use crate::lookup::terminal::shown;
use crate::pipeline::{Balance, ExitBalance};
use crate::replay;
use crate::store::Reader;
use crate::telemetry;

/// Files that are open besides clients' and targets' connections: the store's, lookups, idle connections.
const OPEN_FILES_BESIDES: u64 = 1_024;

/// How often the configuration's file is looked at, if it is watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Does what was typed.
pub fn run(command: Command) -> Exit {
    let done = match command {
        Command::Serve(args) => serve(&args),
        Command::Demo(args) => show(&args),
        Command::Sim(args) => sim(*args),
        Command::Lookup(args) => ask::lookup(&args),
        Command::Replay(args) => replay(&args),
        Command::Tail(args) => ask::tail(&args),
        Command::Export(args) => ask::export(&args),
        Command::Delete(args) => ask::delete(&args),
        Command::Check(args) => {
            cli::check(&args, &mut io::stdout().lock(), &mut io::stderr().lock()).map_err(|error| failed(&error))
        }
    };
    done.unwrap_or_else(|exit| exit)
}

/// Says on standard error what went wrong, and that the program has failed.
fn failed(error: &dyn Display) -> Exit {
    complain(error);
    Exit::Failure
}

/// Says what is wrong with the command line.
fn misused(error: &dyn Display) -> Exit {
    complain(error);
    Exit::Usage
}

fn complain(text: &dyn Display) {
    complain_to(&mut io::stderr().lock(), text);
}

/// In one piece: the log writes to the same place, and not by the standard library's lock.
fn complain_to(err: &mut dyn Write, text: &dyn Display) {
    let line = format!("snapgate: {}\n", shown(&text.to_string()));
    // Nobody can be told that telling failed.
    err.write_all(line.as_bytes()).ok();
}

fn serve(args: &ServeArgs) -> Result<Exit, Exit> {
    // Before the file is read: what comes after this look is a change.
    let watch = config::file_of_process(args.config.as_deref()).map(Watch::new);
    let config = Config::load(&args.sources(), Targets::Required).map_err(|mistakes| {
        complain(&mistakes);
        Exit::Usage
    })?;
    let log = telemetry::start_log(&config.log).map_err(|error| failed(&error))?;
    telemetry::log::log_panics(&log);
    // What was said before stands before it.
    let failed = |error: &dyn Display| {
        log.catch_up();
        failed(error)
    };
    for ignored in config.ignored() {
        tracing::warn!(variable = %ignored.origin, key = ignored.key, "passed over: {}", ignored.text);
    }
    raise_open_files(config.gateway.connections_max);
    let (runtime, mut signals) = signals().map_err(|error| failed(&error))?;
    let hangup = {
        let _context = runtime.enter();
        signal(SignalKind::hangup()).map_err(|error| failed(&error))?
    };
    let (hash, store) = (config.hash(), config.store.is_some());
    let data_dir = config.data_dir.clone();
    let mut app = App::start(config.clone()).map_err(|error| failed(&error))?;
    let announce = |line: &serde_json::Value| log.announce(&line.to_string());
    announce(&serde_json::json!({
        "event": "listening",
        "listen": app.data.to_string(),
        "admin": app.admin.to_string(),
        "data_dir": store.then(|| data_dir.display().to_string()),
        "config": hash,
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
    }));
    let mut reloads = Reloads { args: args.clone(), config, watch, hangup };
    runtime.block_on(async {
        loop {
            tokio::select! {
                () = signals.next() => return,
                () = reloads.due() => reloads.reload(&mut app).await,
            }
        }
    });
    let balance = runtime.block_on(stop(app, &mut signals));
    let exits: serde_json::Map<_, _> = balance
        .exits
        .iter()
        .map(|&ExitBalance { name, sums }| {
            let of = serde_json::json!({
                "offered": sums.offered,
                "recovered": sums.recovered,
                "delivered": sums.delivered,
                "rejected": sums.rejected,
                "dropped": sums.dropped,
                "skipped": sums.skipped,
                "left": sums.pending,
            });
            (name.to_owned(), of)
        })
        .collect();
    announce(&serde_json::json!({
        "event": "stopped",
        "offered": balance.offered,
        "stored": balance.stored,
        "dropped": balance.dropped,
        "exits": exits,
    }));
    Ok(Exit::Success)
}

/// Raises the limit of open files as far as the system lets us, and says so if that is not far enough: at the limit no
/// connection is accepted, and nobody would know why.
fn raise_open_files(connections_max: usize) {
    // Each client's request may have a connection to a target.
    let wanted = OPEN_FILES_BESIDES + 2 * connections_max as u64;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused only if somebody else has lowered it meanwhile.
    setrlimit(Resource::Nofile, limit).ok();
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if limit < wanted {
        tracing::warn!(
            limit,
            wanted,
            "too few open files for limits.connections: raise the limit (ulimit -Hn, LimitNOFILE=), or lower the setting"
        );
    }
}

/// When the configuration is read again, and what comes of it.
struct Reloads {
    args: ServeArgs,
    /// In effect.
    config: Config,
    /// `None` without a file, or while it is looked at.
    watch: Option<Watch>,
    hangup: Signal,
}

impl Reloads {
    /// SIGHUP, or a change of the file.
    async fn due(&mut self) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => return,
                () = tokio::time::sleep(WATCH_INTERVAL), if self.config.watch => {}
            }
            let Some(mut watch) = self.watch.take() else { continue };
            let (watch, changed) = aside(move || {
                let changed = watch.look();
                (watch, changed)
            })
            .await;
            self.watch = Some(watch);
            if changed {
                return;
            }
        }
    }

    async fn reload(&mut self, app: &mut App) {
        let (args, before, watch) = (self.args.clone(), self.config.clone(), self.watch.take());
        let (watch, read) = aside(move || {
            let watch = watch.map(Watch::taken);
            (watch, before.reload(&args.sources()))
        })
        .await;
        self.watch = watch;
        match read {
            Ok(reload) => {
                app.reload(&reload);
                self.config = reload.config;
            }
            Err(mistakes) => app.refuse(&mistakes),
        }
    }
}

/// Reads files where a slow disk keeps nobody from stopping the program.
async fn aside<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Not ready any more, then the delay, then the stop. One more signal ends the delay and cuts open requests short.
async fn stop(app: App, signals: &mut Signals) -> Balance {
    app.retire();
    let delay = config::show_duration(app.shutdown_delay);
    tracing::info!(delay, "not ready any more; then no new connections, and open requests may end");
    let hurry = app.hurry();
    let mut hurried = tokio::time::timeout(app.shutdown_delay, signals.next()).await.is_ok();
    let mut stopped = tokio::task::spawn_blocking(|| app.stop());
    loop {
        if hurried {
            tracing::warn!("told to stop again: open requests are cut short");
            hurry.now();
        }
        tokio::select! {
            balance = &mut stopped => return balance.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
            () = signals.next() => hurried = true,
        }
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// The next of either.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A runtime for waiting, and the signals to wait for.
fn signals() -> io::Result<(Runtime, Signals)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _context = runtime.enter();
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? }
    };
    Ok((runtime, signals))
}

/// The same, for what stops at the first of them.
fn until_stopped() -> io::Result<(Runtime, impl Future<Output = ()>)> {
    let (runtime, mut signals) = signals()?;
    Ok((runtime, async move { signals.next().await }))
}

fn sim(args: SimArgs) -> Result<Exit, Exit> {
    let (runtime, stopped) = until_stopped().map_err(|error| failed(&error))?;
    let SimArgs { listen, settings } = args;
    let name = settings.name.clone();
    let sim = runtime.block_on(Sim::bind(listen, settings)).map_err(|error| failed(&error))?;
    let line = serde_json::json!({"event": "listening", "listen": sim.address().to_string(), "name": name});
    // Nobody can be told that telling failed.
    writeln!(io::stderr().lock(), "{line}").ok();
    runtime.block_on(sim.run(stopped));
    Ok(Exit::Success)
}

fn show(args: &DemoArgs) -> Result<Exit, Exit> {
    let (runtime, stopped) = until_stopped().map_err(|error| failed(&error))?;
    let settings =
        demo::Settings { once: args.once, targets: args.targets.into(), rate: args.rate, otlp: args.otlp.clone() };
    let mut out = io::stdout();
    let colour = out.is_terminal();
    demo::run(&settings, colour, &runtime, stopped, &mut out).map_err(|error| failed(&error))?;
    Ok(Exit::Success)
}

fn replay(args: &ReplayArgs) -> Result<Exit, Exit> {
    let now = Clock::start().now();
    let when = |text: &Option<String>| text.as_deref().map(|text| moment(text, now)).transpose();
    let since = when(&args.since).map_err(|error| misused(&format_args!("--since: {error}")))?;
    let until = when(&args.until).map_err(|error| misused(&format_args!("--until: {error}")))?;
    let question = replay::Question { policy: args.policy, since, until };
    let reader = Reader::open(&args.data_dir).map_err(|error| failed(&error))?;
    let mut err = io::stderr();
    let watched = err.is_terminal();
    let show = |progress: replay::Progress| {
        if watched {
            // Nobody can be told that telling failed.
            write!(err, "\r{} of about {} records", progress.read, progress.all).ok();
        }
    };
    let report = replay::run(&reader, &question, show);
    if watched {
        // Likewise.
        write!(io::stderr(), "\r{:60}\r", "").ok();
    }
    let report = report.map_err(|error| failed(&error))?;
    if args.json {
        let json = serde_json::to_string(&report).expect("a report has only what JSON has");
        print(&format!("{json}\n"))?;
    } else {
        print(&report.text())?;
    }
    Ok(if report.explains_all() { Exit::Success } else { Exit::Failure })
}

fn print(text: &str) -> Result<Exit, Exit> {
    let text = if io::stdout().is_terminal() { shown(text) } else { text.into() };
    cli::print(&text).map_err(|error| failed(&error))?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes in one piece is kept as one.
    #[derive(Default)]
    struct Pieces(Vec<String>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_complaint_is_written_in_one_piece() {
        let mut err = Pieces::default();
        complain_to(&mut err, &format_args!("{}: {}", "a", 1));
        assert_eq!(err.0, ["snapgate: a: 1\n"]);
    }
}

//! What each command of the command line does.

use std::fmt::Display;
use std::future::Future;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::App;
use crate::cli::{
    self, AdminArgs, Command, DemoArgs, Exit, ExportArgs, LookupArgs, ReplayArgs, ServeArgs, SimArgs, TailArgs,
};
use crate::clock::Clock;
use crate::config::{self, Config, Targets, Watch};
use crate::demo;
use crate::demo::sim::Sim;
use crate::lookup::client::{self, Admin, Fetched};
use crate::lookup::export::{ExportError, Output, Pages, Selection};
use crate::lookup::moment::moment;
use crate::lookup::resolve::{self, Matches};
use crate::lookup::shape::{self, Layout};
use crate::lookup::tail::{self, TailError};
use crate::lookup::{Key, Problem, render};
use crate::pipeline::{Balance, ExitBalance};
use crate::replay;
use crate::snapshot::Moment;
use crate::store::{DataDir, Reader};
use crate::telemetry;

/// Columns of an explanation when the terminal does not say how many it has.
const COLUMNS: usize = 100;

/// Files that are open besides clients' and targets' connections: the store's, lookups, idle connections.
const OPEN_FILES_BESIDES: u64 = 1_024;

/// How often a long export says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// How often the configuration's file is looked at, if it is watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Does what was typed.
pub fn run(command: Command) -> Exit {
    let done = match command {
        Command::Serve(args) => serve(&args),
        Command::Demo(args) => show(&args),
        Command::Sim(args) => sim(*args),
        Command::Lookup(args) => lookup(&args),
        Command::Replay(args) => replay(&args),
        Command::Tail(args) => tail(&args),
        Command::Export(args) => export(&args),
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

fn complain(text: &dyn Display) {
    // Nobody can be told that telling failed.
    writeln!(io::stderr().lock(), "snapgate: {text}").ok();
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
        .map(|&ExitBalance { name, delivered, rejected, dropped, left }| {
            let of = serde_json::json!({
                "delivered": delivered, "rejected": rejected, "dropped": dropped, "left": left,
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
    tracing::info!(delay = ?app.shutdown_delay, "not ready any more; then no new connections, and open requests may end");
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
    let sim = runtime
        .block_on(Sim::bind(listen, settings))
        .map_err(|error| failed(&format_args!("cannot listen on {listen}: {error}: choose another --listen")))?;
    let line = serde_json::json!({"event": "listening", "listen": sim.address().to_string(), "name": name});
    // Nobody can be told that telling failed.
    writeln!(io::stderr().lock(), "{line}").ok();
    runtime.block_on(sim.run(stopped));
    Ok(Exit::Success)
}

fn show(args: &DemoArgs) -> Result<Exit, Exit> {
    let (runtime, stopped) = until_stopped().map_err(|error| failed(&error))?;
    let settings = demo::Settings { once: args.once, targets: args.targets.into(), rate: args.rate };
    let mut out = io::stdout();
    let colour = out.is_terminal();
    demo::run(&settings, colour, &runtime, stopped, &mut out).map_err(|error| failed(&error))?;
    Ok(Exit::Success)
}

fn lookup(args: &LookupArgs) -> Result<Exit, Exit> {
    match &args.data_dir {
        Some(dir) => lookup_in_store(dir, args),
        None => lookup_at_gateway(args),
    }
}

fn lookup_at_gateway(args: &LookupArgs) -> Result<Exit, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    let token = args.gateway.token();
    let asked = client::fetch(&args.gateway.admin, &args.key, token.as_ref().map(|token| token.expose()));
    match runtime.block_on(asked).map_err(|error| failed(&error))? {
        Fetched::One(found) if args.json => print(&format!("{}\n", found.json())),
        Fetched::One(found) => {
            let extras = render::extras(&found.links, found.around.as_ref(), COLUMNS);
            print(&(render::render(&found.document(), COLUMNS) + &extras))
        }
        Fetched::Several { documents, .. } if args.json => {
            print(&documents.iter().map(|document| format!("{}\n", document.json())).collect::<String>())
        }
        Fetched::Several { documents, complete } => {
            let documents: Vec<_> = documents.iter().map(client::FetchedDocument::document).collect();
            print(&render::render_matches(&documents, complete, COLUMNS))
        }
        Fetched::Problem(problem) => nothing(&problem, args.json),
    }
}

fn lookup_in_store(dir: &Path, args: &LookupArgs) -> Result<Exit, Exit> {
    let tag = DataDir::open_read_only(dir).map_err(|error| failed(&error))?.tag();
    let reader = Reader::open(dir).map_err(|error| failed(&error))?;
    let key = match Key::parse(&args.key) {
        Ok(key) => key,
        Err(error) => return nothing(&Problem::malformed_key(error), args.json),
    };
    let answer = resolve::search(None, Some(&reader), &key, Clock::start().now()).map_err(|error| failed(&error))?;
    let (found, complete) = match answer {
        Ok(Matches::One(found)) => (vec![found], true),
        Ok(Matches::Several { found, complete }) => (found, complete),
        Err(absence) => return nothing(&Problem::absent(&absence, &key, tag), args.json),
    };
    let documents: Vec<_> = found.iter().map(resolve::Found::document).collect();
    match &documents[..] {
        documents if args.json => {
            let mut lines = Vec::new();
            for document in documents {
                document.write(&mut lines);
                lines.push(b'\n');
            }
            print(&String::from_utf8_lossy(&lines))
        }
        [document] => print(&render::render(document, COLUMNS)),
        documents => print(&render::render_matches(documents, complete, COLUMNS)),
    }
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

fn admin(args: &AdminArgs) -> Result<Admin, Exit> {
    let token = args.token();
    Admin::new(&args.admin, token.as_ref().map(|token| token.expose())).map_err(|error| failed(&error))
}

/// Filters that make no sense are a wrong command line.
fn selection(filters: &[(String, String)], now: Moment) -> Result<Selection, Exit> {
    Selection::new(filters, now).map_err(|error| misused(&error))
}

fn misused(error: &dyn Display) -> Exit {
    complain(error);
    Exit::Usage
}

fn tail(args: &TailArgs) -> Result<Exit, Exit> {
    let selection = selection(&args.filters.parameters(), Clock::start().now())?;
    let admin = admin(&args.gateway)?;
    let (runtime, stopped) = until_stopped().map_err(|error| failed(&error))?;
    let show = |found: &client::FetchedDocument| {
        let line = if args.json { found.json().to_owned() } else { render::line(&found.document()) };
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush())
    };
    let following = tail::tail(&admin, &selection, show, |note| complain(note));
    let ended = runtime.block_on(async {
        tokio::select! {
            error = following => Err(error),
            () = stopped => Ok(Exit::Success),
        }
    });
    ended.or_else(|error| match error {
        // Who reads has gone, and so may we.
        TailError::Write(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Success),
        error => Err(failed(&error)),
    })
}

fn export(args: &ExportArgs) -> Result<Exit, Exit> {
    if args.columns {
        return print(&shape::columns_page(args.shape.unwrap_or_default()));
    }
    let layout = Layout::new(args.shape, args.format).map_err(|error| misused(&error))?;
    let now = Clock::start().now();
    let selection = selection(&args.parameters(), now)?;
    let mut pages = match &args.data_dir {
        None => Pages::of_gateway(admin(&args.gateway)?, &selection, layout),
        Some(dir) => {
            let tag = DataDir::open_read_only(dir).map_err(|error| failed(&error))?.tag();
            let reader = Reader::open(dir).map_err(|error| failed(&error))?;
            Pages::of_store(reader, tag, &selection, layout, now).map_err(|error| misused(&error))?
        }
    };
    let (runtime, stopped) = until_stopped().map_err(|error| failed(&error))?;
    let mut output = Output::open(args.output.as_deref()).map_err(|error| failed(&error))?;
    let exported = runtime.block_on(async {
        tokio::select! {
            rows = write_all(&mut pages, &mut output) => rows,
            () = stopped => Err(ExportError::Stopped),
        }
    });
    match exported.and_then(|rows| output.finish().map(|()| rows).map_err(ExportError::Write)) {
        Ok(rows) => {
            if let Some(file) = &args.output {
                complain(&format_args!("{rows} rows are in {}", file.display()));
            }
            Ok(Exit::Success)
        }
        // Who reads has gone, as `head` does, with all it wants.
        Err(ExportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Success),
        Err(error) => Err(failed(&error)),
    }
}

/// Writes page after page, and says now and then how far it is.
async fn write_all(pages: &mut Pages, out: &mut Output) -> Result<u64, ExportError> {
    let (mut rows, mut said) = (0, Instant::now());
    while let Some(more) = pages.write_next(out).await? {
        rows += more;
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            complain(&format_args!("{rows} rows so far"));
        }
    }
    Ok(rows)
}

fn print(text: &str) -> Result<Exit, Exit> {
    cli::print(text).map_err(|error| failed(&error))?;
    Ok(Exit::Success)
}

/// Nothing was found: the reason goes where the answer would have gone, and the exit code says so.
fn nothing(problem: &Problem, json: bool) -> Result<Exit, Exit> {
    if json {
        print(&format!("{}\n", serde_json::json!(problem)))?;
    } else {
        print(&render::problem(problem, COLUMNS))?;
    }
    Ok(Exit::Failure)
}

//! The command line: what can be typed, what it becomes, and what `snapgate check` prints.
//!
//! Exit codes: 0 for success, 1 when something failed while running or a lookup found nothing, 64 when the command line or
//! the configuration is wrong.

mod ask;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use ask::{AdminArgs, DeleteArgs, ExportArgs, FilterArgs, LookupArgs, TailArgs};

use crate::config::{self, Config, Flag, Origin, Sources, Targets};
use crate::demo::sim::SimSettings;
use crate::snapshot::Policy;

/// Simulated pods of a demo at most: they share this machine's cores with the gateway.
const DEMO_TARGETS_MAX: u16 = 64;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Success,
    /// Something failed while running, or a lookup found nothing.
    Failure,
    /// The command line or the configuration is wrong; nothing was started.
    Usage,
}

impl Exit {
    /// The number the shell sees; 64 is `EX_USAGE` of sysexits.h.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 64,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

const ABOUT: &str = "\
snapgate stands in front of LLM inference pods and chooses one for each request. Every response carries an ID in \
`x-snapshot-id`; what the gateway saw when it chose, why it chose as it did and how the request ended is found with that \
ID, at once.";

const EXAMPLES: &str = "\
Examples:
  snapgate demo                                   see it all here, without an engine
  snapgate serve --target http://127.0.0.1:8000   serve one pod
  snapgate check --example > snapgate.toml        begin a configuration: every key, explained
  snapgate check snapgate.toml                    what is wrong with it, or what is in effect
  snapgate serve --config snapgate.toml
  snapgate lookup 019ab3c2d1e0a7f14c1f7a0f3e5b9d26
  snapgate replay --policy least_queue --since 1h
  snapgate tail --status 5xx                      what goes wrong, as it does
  snapgate export --since 1h --shape flat --format csv -o last_hour.csv

Exit codes: 0 success; 1 failed while running, or a lookup found nothing; 64 wrong command line or configuration.";

#[derive(Debug, Parser)]
#[command(name = "snapgate", version, about = "An LLM gateway that can always say why", long_about = ABOUT)]
#[command(after_long_help = EXAMPLES, after_help = "`snapgate help COMMAND` explains a command.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway
    ///
    /// Every key of the configuration can be set in the file and by an environment variable, SNAPGATE_SECTION_KEY; the
    /// commonest also by the flags below. Flags win over the environment, the environment over the file. All mistakes are
    /// reported at once, before a port is bound. `snapgate check --example` explains every key.
    ///
    /// On start, one JSON line on standard error says the addresses that were bound. SIGTERM and SIGINT stop it: open
    /// requests may end, then everything recorded is stored.
    Serve(ServeArgs),
    /// Show everything on this machine: simulated pods, a gateway, varied traffic
    ///
    /// Starts simulated pods, a gateway in front of them and varied traffic, all in this process, on free ports if the usual
    /// ones are taken. Makes one request as a person would, shows its headers and its snapshot, and says what to try next. Goes
    /// on serving until it is stopped.
    Demo(DemoArgs),
    /// Run one simulated vLLM pod
    ///
    /// It answers /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics as vLLM does, under vLLM's own metric
    /// names, and queues what is beyond its capacity. On start, one JSON line on standard error says the address bound.
    Sim(Box<SimArgs>),
    /// Explain one request: how it ended, why it went where it went, what the gateway saw
    ///
    /// KEY is a snapshot ID (x-snapshot-id of the response; any case, hyphens allowed), a trace ID, the client's own
    /// x-request-id, or an answer's id such as chatcmpl-019ab3…. It is looked up at a running gateway, or with --data-dir in the
    /// store of one, running or not, which is only read.
    ///
    /// Exit code 1 says that nothing was found, or that nobody could be asked.
    Lookup(LookupArgs),
    /// Show finished requests as they are recorded, one line each
    ///
    /// Begins now and goes on until it is stopped, over restarts of the gateway. A request appears when it has ended and is
    /// stored.
    Tail(TailArgs),
    /// Write finished requests as a table or as documents, newest first
    ///
    /// They come from a running gateway, or with --data-dir from the store of one, running or not, which is only read. A file
    /// is there when it is whole: until then it is called FILE.partial, and if the export fails or is stopped it is removed.
    /// Long exports say on standard error how far they are.
    ///
    /// Exit code 1 says that not all was written.
    Export(ExportArgs),
    /// Delete what is recorded of requests, for a person who asks for it
    ///
    /// The gateway deletes what it has stored and keeps out what is on its way, and this says how much that was; a token with
    /// scope `delete` is needed. What a JSON log or another exit already has, and copies of the store, stay as they are. On a
    /// terminal it asks whether that is meant, elsewhere it needs --yes. Deleting again does no harm.
    ///
    /// Exit code 1 says that something was not deleted, or was not there.
    Delete(DeleteArgs),
    /// Make recorded choices again, by their own policy or by another one
    ///
    /// Reads the store of a gateway, running or not, and chooses again from what each record says was known at that moment: how
    /// often and where another policy would have gone elsewhere, and what it would have found there. It says what the policy
    /// would have chosen then, not what the pods would have become of it.
    ///
    /// Exit code 1 says that the store cannot be read, or that a decision's own policy does not give what was recorded.
    Replay(ReplayArgs),
    /// Say what is wrong with a configuration, or what is in effect
    ///
    /// Reads the file and the environment exactly as `snapgate serve` does and starts nothing. Prints every key with where it
    /// was set, as TOML; secrets are never printed. Exit code 64 says that something is wrong.
    Check(CheckArgs),
}

/// What `snapgate serve` is told.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The configuration file, in TOML [variable: SNAPGATE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A pod, such as a=http://10.0.3.2:8000; may be repeated, and replaces the targets of the file
    #[arg(long = "target", value_name = "[NAME=]URL")]
    pub targets: Vec<String>,
    /// How a target is chosen, such as least_queue; `snapgate check --example` has all policies [default: least_request]
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// Where requests come in; port 0 lets the system choose [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Where lookups, health and metrics are served [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// The directory of the store and of what must survive a restart [default: ./snapgate-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Finished snapshots as JSON lines; with stdout, it carries nothing else [default: off]
    #[arg(long, value_name = "off|stdout|FILE")]
    pub json_log: Option<String>,
    /// Where OpenTelemetry's spans go, such as http://localhost:4317 [default: nowhere]
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
}

/// What `snapgate demo` is told.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// End after the tour
    #[arg(long)]
    pub once: bool,
    /// How many simulated pods
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(DEMO_TARGETS_MAX)))]
    pub targets: u16,
    /// Requests per second of the traffic; 0 for none
    #[arg(long, value_name = "R", default_value_t = 8.0, value_parser = rate)]
    pub rate: f64,
    /// Where OpenTelemetry's spans go, such as http://localhost:4317 [default: nowhere]
    #[arg(long, value_name = "URL", value_parser = config::parse_receiver)]
    pub otlp: Option<String>,
}

/// What `snapgate sim` is told.
#[derive(Args, Clone, Debug)]
pub struct SimArgs {
    /// Where to listen; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub listen: SocketAddr,
    /// How it behaves
    #[command(flatten)]
    pub settings: SimSettings,
}

/// What `snapgate replay` is told.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The policy to choose by [default: each decision's own, which has to give what was recorded]
    #[arg(long, value_name = "NAME", value_parser = policy)]
    pub policy: Option<Policy>,
    /// Issued then or later: RFC 3339, Unix seconds, milliseconds or microseconds, or how long ago, such as 15m
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Issued before
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// The gateway's data directory, which is only read
    #[arg(long, value_name = "DIR", default_value = "./snapgate-data")]
    pub data_dir: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `snapgate check` is told.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The configuration file [variable: SNAPGATE_CONFIG]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Print an example file that explains every key, and check nothing
    #[arg(long, conflicts_with = "file")]
    pub example: bool,
}

impl ServeArgs {
    /// The configuration's sources: the file, this process's environment, and these flags.
    pub fn sources(&self) -> Sources {
        let one = |value: &Option<String>| value.clone().map_or_else(Vec::new, |value| vec![value]);
        let flags = [
            ("--target", "targets", self.targets.clone()),
            ("--policy", "policy", one(&self.policy)),
            ("--listen", "listen", one(&self.listen)),
            ("--admin", "admin", one(&self.admin)),
            ("--data-dir", "data_dir", one(&self.data_dir)),
            ("--json-log", "json_log.to", one(&self.json_log)),
            ("--otlp", "otlp.endpoint", one(&self.otlp)),
        ];
        let flags = flags.into_iter().filter(|(_, _, values)| !values.is_empty());
        let flags = flags.map(|(name, key, values)| Flag { name, key, values }).collect();
        Sources::of_process(self.config.as_deref(), flags)
    }
}

/// What was typed; or how to end, after help, the version or what was wrong has been printed.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Exit> {
    Cli::try_parse_from(arguments).map(|cli| cli.command).map_err(|error| {
        // Nobody can be told that telling failed.
        let _printed = error.print();
        if error.use_stderr() { Exit::Usage } else { Exit::Success }
    })
}

/// `snapgate check`: what is in effect goes to `out`, what is wrong to `err`.
pub fn check(args: &CheckArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    if args.example {
        out.write_all(config::example().as_bytes())?;
        return Ok(Exit::Success);
    }
    check_sources(&Sources::of_process(args.file.as_deref(), Vec::new()), out, err)
}

fn check_sources(sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    match Config::load(sources, Targets::Optional) {
        Ok(config) => {
            let whence = sources.file.as_ref().map_or("no file", |(name, _)| name);
            out.write_all(summary(whence, &config).as_bytes())?;
            Ok(Exit::Success)
        }
        Err(mistakes) => {
            writeln!(err, "{mistakes}")?;
            Ok(Exit::Usage)
        }
    }
}

/// One line that says ok, notes, and the configuration in effect as TOML with the origin of what was set.
fn summary(whence: &str, config: &Config) -> String {
    let targets = config.fleet.targets.len();
    let plural = if targets == 1 { "" } else { "s" };
    let sources: Vec<_> =
        config.discovery.iter().map(|source| format!("{} ({})", source.name, source.kind.name())).collect();
    let targeted = match &sources[..] {
        [] => format!("{targets} target{plural}"),
        sources => format!("{targets} fixed target{plural}, and those of discovery {}", sources.join(", ")),
    };
    let mut text = format!(
        "ok: {whence}: {targeted}, {}, requests on {}, admin on {}, configuration {}\n",
        config.gateway.choice.policy.name(),
        config.listen,
        config.admin,
        config.hash(),
    );
    if targets == 0 && config.discovery.is_empty() {
        text += "note: without targets here, `snapgate serve` needs --target or SNAPGATE_TARGETS\n";
    }
    if !config.admin.ip().is_loopback() && config.lookup.tokens.is_empty() {
        text += "note: admin is open beyond loopback: without lookup.tokens it serves no lookups\n";
    }
    if !config.admin.ip().is_loopback() && config.admin_tls.is_none() {
        text += "note: admin is open beyond loopback without TLS: tokens and records travel in clear\n";
    }
    if config.store.is_none() {
        text += "note: without the store, only requests in flight can be looked up\n";
    }
    for ignored in config.ignored() {
        text += &format!("note: passed over: {ignored}\n");
    }
    text.push('\n');
    for shown in config.shown() {
        let setting = format!("{} = {}", shown.key, shown.value);
        text += &match &shown.origin {
            Origin::Default => format!("{setting}\n"),
            origin if shown.live => format!("{setting:<40} # {origin}\n"),
            origin => format!("{setting:<40} # {origin}; a change needs a restart\n"),
        };
    }
    text
}

/// Writes to standard output. A reader that went away, as `head` does, is no failure.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    config::parse_address(text, IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn policy(text: &str) -> Result<Policy, String> {
    Policy::from_name(text).ok_or_else(|| format!("`{text}` is not one of {}", Policy::NAMES.join(", ")))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "it has to be a number, 0 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::ask::ADMIN_URL;
    use super::*;
    use crate::config::Machine;
    use crate::lookup::shape::Format;

    fn typed(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
    }

    fn machine() -> Machine {
        Machine { hostname: "pod-7".to_owned(), cores: 6 }
    }

    fn checked(text: &str) -> (Exit, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let sources = Sources::of_text("f.toml", text, machine());
        let exit = check_sources(&sources, &mut out, &mut err).unwrap();
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn the_definition_is_sound_and_all_help_can_be_printed() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        assert!(command.render_long_help().to_string().contains("Exit codes: 0 success; 1"));
        let explained = [
            ("serve", "Flags win over the environment"),
            ("demo", "Goes on serving"),
            ("sim", "as vLLM does"),
            ("lookup", "a trace ID"),
            ("tail", "over restarts of the gateway"),
            ("export", "FILE.partial"),
            ("delete", "a token with scope `delete`"),
            ("check", "secrets are never printed"),
        ];
        for (name, words) in explained {
            let help = command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
            assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains(words), "{name}: {help}");
        }
    }

    #[test]
    fn serve_hands_its_flags_to_the_configuration() {
        let line = "snapgate serve --target a=http://h:1 --target http://h:2 --policy round_robin --listen :0 --admin :0 \
                    --data-dir d --json-log stdout";
        let Command::Serve(args) = typed(line).unwrap() else { panic!("serve is serve") };
        let sources = Sources { environment: Default::default(), file: None, machine: machine(), ..args.sources() };
        let config = Config::load(&sources, Targets::Required).unwrap();
        let names: Vec<_> = config.fleet.targets.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(names, ["a", "h-2"]);
        assert_eq!((config.listen.to_string(), config.admin.to_string()), ("0.0.0.0:0".into(), "127.0.0.1:0".into()));
        let set: Vec<_> = config
            .shown()
            .iter()
            .filter(|shown| shown.origin != Origin::Default)
            .map(|shown| shown.origin.to_string())
            .collect();
        assert_eq!(set, ["--listen", "--admin", "--data-dir", "--policy", "--target", "--json-log"]);
    }

    #[test]
    fn every_flag_that_sets_a_key_is_typed_as_the_example_says() {
        let help = Cli::command().find_subcommand_mut("serve").unwrap().render_long_help().to_string();
        let example = config::example();
        let flags: Vec<_> = example.split("Flag ").skip(1).filter_map(|rest| rest.split('.').next()).collect();
        assert_eq!(flags.len(), 7);
        for flag in flags {
            assert!(help.contains(&format!("{flag} <")), "{flag}");
        }
    }

    #[test]
    fn what_is_typed_is_understood() {
        let Command::Demo(demo) = typed("snapgate demo --once --rate 2.5").unwrap() else { panic!("demo is demo") };
        assert_eq!((demo.once, demo.targets, demo.rate), (true, 3, 2.5));
        let Command::Sim(sim) = typed("snapgate sim --listen :0").unwrap() else { panic!("sim is sim") };
        assert_eq!(sim.listen.to_string(), "127.0.0.1:0");
        let Command::Replay(replay) =
            typed("snapgate replay --policy random --since 1h --until 2026-11-23T12:00:00Z").unwrap()
        else {
            panic!("replay is replay")
        };
        assert_eq!((replay.policy, replay.data_dir.as_path()), (Some(Policy::Random), Path::new("./snapgate-data")));
        assert_eq!((replay.since.as_deref(), replay.until.as_deref()), (Some("1h"), Some("2026-11-23T12:00:00Z")));
        let Command::Lookup(lookup) = typed("snapgate lookup abc --json --token t").unwrap() else {
            panic!("lookup is lookup")
        };
        assert_eq!((lookup.key.as_str(), lookup.gateway.admin.as_str(), lookup.json), ("abc", ADMIN_URL, true));
        assert_eq!(lookup.gateway.token().unwrap().expose(), "t");
        assert!(!format!("{lookup:?}").contains("\"t\""));
        let line = "snapgate export --since 1h --status 5xx --label x-run-id=a=b --format csv -o f --data-dir d";
        let Command::Export(export) = typed(line).unwrap() else { panic!("export is export") };
        let want = [("since", "1h"), ("status", "5xx"), ("label.x-run-id", "a=b")];
        assert_eq!(export.parameters(), want.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!((export.format(), export.shape, export.output), (Format::Csv, None, Some("f".into())));
        for (words, format) in [
            ("", Format::Ndjson),
            ("-o f.csv", Format::Csv),
            ("-o f.CSV", Format::Csv),
            ("-o f.jsonl", Format::Ndjson),
            ("-o csv", Format::Ndjson),
            ("-o f.csv --format ndjson", Format::Ndjson),
        ] {
            let Command::Export(export) = typed(&format!("snapgate export {words}")).unwrap() else {
                panic!("export is export")
            };
            assert_eq!(export.format(), format, "{words}");
        }
        let Command::Tail(tail) = typed("snapgate tail --model m --json").unwrap() else { panic!("tail is tail") };
        assert_eq!((tail.filters.parameters(), tail.json), (vec![("model".to_owned(), "m".to_owned())], true));
    }

    #[test]
    fn what_is_wrong_on_the_command_line_ends_with_64() {
        let lines = [
            "snapgate",
            "snapgate fly",
            "snapgate serve --lisen :0",
            "snapgate sim",
            "snapgate sim --listen here",
            "snapgate demo --targets 0",
            "snapgate demo --rate -1",
            "snapgate demo --rate NaN",
            "snapgate lookup",
            "snapgate lookup a --data-dir d --admin http://h:1",
            "snapgate lookup a --data-dir d --ca f",
            "snapgate lookup a --client-cert f",
            "snapgate delete",
            "snapgate delete a --tenant t",
            "snapgate tail --since 1h",
            "snapgate tail --label run",
            "snapgate export --format json",
            "snapgate export --shape round",
            "snapgate export --data-dir d --admin http://h:1",
            "snapgate check f --example",
        ];
        for line in lines {
            assert!(typed(line).unwrap_err().use_stderr(), "{line}");
        }
        assert_eq!(parse(["snapgate".into(), "fly".into()]).unwrap_err().code(), 64);
        assert_eq!(parse(["snapgate".into(), "--version".into()]).unwrap_err().code(), 0);
    }

    #[test]
    fn delete_says_that_it_takes_ids_or_a_tenant() {
        let wrong = typed("snapgate delete --yes").unwrap_err().to_string();
        assert!(wrong.contains("ID") && wrong.contains("--tenant <TENANT>"), "{wrong}");
        assert!(typed("snapgate delete a --tenant t_8f3a91c2").is_err(), "one or the other");
        let Command::Delete(delete) = typed("snapgate delete a b").unwrap() else { panic!("delete is delete") };
        assert_eq!((delete.ids.len(), delete.tenant), (2, None));
    }

    #[test]
    fn check_prints_what_is_in_effect_and_where_it_was_set() {
        let (exit, out, err) = checked("limits.in_flight = 5\n[[targets]]\nurl = \"http://h:1\"\n");
        assert_eq!((exit, err.as_str()), (Exit::Success, ""));
        let first = out.lines().next().unwrap();
        assert!(first.starts_with(
            "ok: f.toml: 1 target, least_request, requests on 0.0.0.0:8080, admin on 127.0.0.1:8081, configuration "
        ));
        assert!(out.contains("\nlimits.in_flight = 5                     # f.toml:1\n"), "{out}");
        assert!(out.contains("\nlimits.headers = 100\n"), "{out}");
        assert!(!out.contains("note:"), "{out}");
        // Below the first paragraph it is a file that means the same.
        let (_, settings) = out.split_once("\n\n").unwrap();
        let again = Config::load(&Sources::of_text("g", settings, machine()), Targets::Required).unwrap();
        assert!(first.ends_with(&again.hash()));
    }

    #[test]
    fn check_takes_the_file_and_the_targets_of_the_environment_as_serve_does() {
        let Command::Check(args) = typed("snapgate check").unwrap() else { panic!("check is check") };
        assert_eq!((args.file, args.example), (None, false));
        let environment = [("SNAPGATE_TARGETS".to_owned(), "a=http://h:1".into())].into();
        let sources = Sources { file: None, environment, flags: Vec::new(), machine: machine() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(check_sources(&sources, &mut out, &mut err).unwrap(), Exit::Success);
        let out = String::from_utf8(out).unwrap();
        assert!(out.starts_with("ok: no file: 1 target, least_request, "), "{out}");
    }

    #[test]
    fn check_names_the_sources_of_targets_that_it_cannot_count() {
        let (_, out, _) = checked(
            "[[discovery]]\nkind = \"file\"\npath = \"t.json\"\n[[discovery]]\nkind = \"dns\"\nhost = \"h\"\nport = 1\n",
        );
        let want = "ok: f.toml: 0 fixed targets, and those of discovery file-1 (file), dns-2 (dns), least_request, ";
        assert!(out.starts_with(want), "{out}");
    }

    #[test]
    fn check_says_what_a_reload_cannot_change() {
        let (_, out, _) = checked("threads = 2\npolicy = \"random\"");
        let line = |setting: &str, origin: &str| format!("\n{setting:<40} # {origin}\n");
        assert!(out.contains(&line("threads = 2", "f.toml:1; a change needs a restart")), "{out}");
        assert!(out.contains(&line("policy = \"random\"", "f.toml:2")), "{out}");
    }

    #[test]
    fn check_notes_what_may_surprise() {
        let (exit, out, _) = checked("admin = \"0.0.0.0:1\"\nstore.enabled = false");
        assert_eq!(exit, Exit::Success);
        for note in [
            "note: without targets",
            "note: admin is open beyond loopback: without lookup.tokens",
            "note: admin is open beyond loopback without TLS",
            "note: without the store",
        ] {
            assert!(out.contains(note), "{out}");
        }
    }

    #[test]
    fn check_notes_what_a_variable_of_opentelemetry_says_in_vain() {
        let mut sources = Sources::of_text("f.toml", "", machine());
        sources.environment.insert("OTEL_EXPORTER_OTLP_PROTOCOL".into(), "http/json".into());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(check_sources(&sources, &mut out, &mut err).unwrap(), Exit::Success);
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains("\nnote: passed over: OTEL_EXPORTER_OTLP_PROTOCOL: otlp.protocol: \"http/json\" is"),
            "{out}"
        );
    }

    #[test]
    fn check_lists_mistakes_on_standard_error_and_ends_with_64() {
        let (exit, out, err) = checked("listen = 5\nlisetn = 5");
        assert_eq!((exit.code(), out.as_str()), (64, ""));
        assert_eq!(err.lines().count(), 3);
        assert!(err.ends_with("2 mistakes in the configuration: nothing was started\n"), "{err}");
    }

    #[test]
    fn check_prints_the_example() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let args = CheckArgs { file: None, example: true };
        assert_eq!(check(&args, &mut out, &mut err).unwrap(), Exit::Success);
        assert_eq!(String::from_utf8(out).unwrap(), config::example());
    }
}

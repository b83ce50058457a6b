//! The knobs of a simulated pod. The comments of the fields are the text of `snapgate sim --help`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::faults::Fault;

/// Tokens of an answer for which neither the request nor the pod names a length.
pub(super) const ANSWER_TOKENS: u32 = 16;

/// A simulated vLLM pod: what it serves and how fast.
///
/// Single requests can be scripted by header: `x-sim-tokens: N` sets the answer's length, `x-sim-fault: …` makes it
/// misbehave (`reset-after=N`, `hang-after=N`, `garbage-after=N`, `hang`, `reset`, `error=STATUS`,
/// `slow-head=DURATION`, or `none` to be spared the pod's own misbehaviour).
#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_help = "Single requests can be scripted by header: `x-sim-tokens: N` sets the answer's length, and \
`x-sim-fault: FAULT` makes it misbehave, where FAULT is reset-after=N, hang-after=N, garbage-after=N, hang, reset, \
error=STATUS, slow-head=DURATION, or none to be spared the pod's own misbehaviour.")]
pub struct SimSettings {
    /// Name of the pod, as the start line shows it
    #[arg(long, default_value = "sim")]
    pub name: String,

    /// Name of the model it serves; any other is answered with 404
    #[arg(long, default_value = "llama-3.1-8b")]
    pub model: String,

    /// Time to the first token of a prompt of which nothing is cached
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = duration)]
    pub ttft: Duration,

    /// Time from one token to the next
    #[arg(long, value_name = "DURATION", default_value = "10ms", value_parser = duration)]
    pub token_time: Duration,

    /// How far both times and `--tokens` vary: 0.2 is ±20 %
    #[arg(long, value_name = "0..1", default_value_t = 0.0, value_parser = share)]
    pub jitter: f64,

    /// Requests that run at once; more wait, first come, first served
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub capacity: u32,

    /// Size of the KV cache in blocks of 16 tokens; a request waits until prompt and answer have room
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub kv_blocks: u32,

    /// Length of an answer in tokens, cut by the request's max_tokens; unset: max_tokens itself, or 16
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: Option<u32>,

    /// Say in `usage` how many prompt tokens came from the prefix cache, as vLLM does when asked by the same name
    #[arg(long = "enable-prompt-tokens-details")]
    pub prompt_tokens_details: bool,

    /// Say in `metrics` how long the request waited, as vLLM does when asked by the same name; with a stream if it asks for usage
    #[arg(long = "enable-per-request-metrics")]
    pub per_request_metrics: bool,

    /// Share of requests answered with 500
    #[arg(long, value_name = "0..1", default_value_t = 0.0, value_parser = share)]
    pub error_rate: f64,

    /// Repeats texts, times, errors and IDs of an earlier run with the same requests; unset: drawn at start
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Close a connection that has been idle for so long, as uvicorn does after 5s; unset: never
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub keep_alive: Option<Duration>,

    /// Answer /health with 503
    #[arg(long)]
    pub unhealthy: bool,

    /// Whose names are on the /metrics page; answers are vLLM's in either case
    #[arg(long, value_enum, default_value_t = SimEngine::Vllm)]
    pub engine: SimEngine,

    /// Serve this file as the /metrics page, whatever the pod does
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,

    /// Time to make the /metrics page
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub metrics_delay: Duration,

    /// How the pod reports its load with an answer when a request asks for that by endpoint-load-metrics-format
    #[arg(long, value_enum, value_name = "HOW", default_value_t = LoadReports::Vllm)]
    pub load_reports: LoadReports,
    /// GPUs of which /dcgm/metrics tells as NVIDIA's DCGM exporter does, in the name of a pod called as this one; 0: none
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=16))]
    pub gpus: u32,

    /// What goes wrong
    #[command(flatten)]
    pub misbehaviour: Misbehaviour,
}

/// How a pod reports its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoadReports {
    /// As vLLM does: text and JSON, of what waits and of the cache, with answers in one piece
    Vllm,
    /// In every format, of what runs as well, also with streams
    Full,
    /// So that no two in a row are wrong in the same way
    Malformed,
}

/// Whose names a simulated pod uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimEngine {
    /// vLLM's.
    Vllm,
    /// SGLang's.
    Sglang,
}

/// What goes wrong at a pod as a whole.
#[derive(Args, Clone, Debug, PartialEq)]
#[group(skip)]
#[command(next_help_heading = "Misbehaviour (of generation requests, one kind at a time)")]
pub struct Misbehaviour {
    /// Reset the TCP connection after N events of a stream, or halfway through a JSON answer
    #[arg(long, value_name = "N", group = "misbehaviour")]
    pub reset_after: Option<u32>,

    /// Fall silent after N events of a stream, or halfway through a JSON answer
    #[arg(long, value_name = "N", group = "misbehaviour")]
    pub hang_after: Option<u32>,

    /// Send an event that is neither JSON nor UTF-8 after N events of a stream; a JSON answer breaks off in garbage
    #[arg(long, value_name = "N", group = "misbehaviour")]
    pub garbage_after: Option<u32>,

    /// Take the request and never answer
    #[arg(long, group = "misbehaviour")]
    pub hang_before_head: bool,

    /// Take the request and reset the TCP connection
    #[arg(long, group = "misbehaviour")]
    pub reset_before_head: bool,

    /// Look at the request only after so long
    #[arg(long, value_name = "DURATION", group = "misbehaviour", value_parser = duration)]
    pub slow_head: Option<Duration>,

    /// Refuse every connection, as a pod that has died
    #[arg(long, group = "misbehaviour")]
    pub refuse: bool,

    /// Share of the requests that the misbehaviour befalls
    #[arg(long, value_name = "0..1", default_value_t = 1.0, value_parser = share)]
    pub fault_rate: f64,
}

impl Misbehaviour {
    /// What goes wrong with each request, if anything does. To refuse is a matter of the listener.
    pub(super) fn fault(&self) -> Option<Fault> {
        None.or(self.reset_after.map(Fault::ResetAfter))
            .or(self.hang_after.map(Fault::HangAfter))
            .or(self.garbage_after.map(Fault::GarbageAfter))
            .or(self.hang_before_head.then_some(Fault::Hang))
            .or(self.reset_before_head.then_some(Fault::Reset))
            .or(self.slow_head.map(Fault::SlowHead))
    }
}

/// What the command line takes when nothing is said.
impl Default for SimSettings {
    fn default() -> Self {
        Self {
            name: "sim".to_owned(),
            model: "llama-3.1-8b".to_owned(),
            ttft: Duration::from_millis(50),
            token_time: Duration::from_millis(10),
            jitter: 0.0,
            capacity: 16,
            kv_blocks: 4096,
            tokens: None,
            prompt_tokens_details: false,
            per_request_metrics: false,
            error_rate: 0.0,
            seed: None,
            keep_alive: None,
            unhealthy: false,
            engine: SimEngine::Vllm,
            page: None,
            metrics_delay: Duration::ZERO,
            load_reports: LoadReports::Vllm,
            gpus: 0,
            misbehaviour: Misbehaviour::default(),
        }
    }
}

impl Default for Misbehaviour {
    fn default() -> Self {
        Self {
            reset_after: None,
            hang_after: None,
            garbage_after: None,
            hang_before_head: false,
            reset_before_head: false,
            slow_head: None,
            refuse: false,
            fault_rate: 1.0,
        }
    }
}

impl SimSettings {
    /// A pod that takes no time at all and never queues: what benchmarks put behind a gateway.
    pub fn instant() -> Self {
        Self {
            ttft: Duration::ZERO,
            token_time: Duration::ZERO,
            capacity: 1 << 20,
            kv_blocks: 1 << 24,
            ..Self::default()
        }
    }
}

/// `20ms`, `1.5s`, `2m`: a number with its unit, not negative.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let complaint = || format!("`{text}` is not a duration; write a number and its unit, such as 20ms or 1.5s");
    let signed: jiff::SignedDuration = text.parse().map_err(|_| complaint())?;
    Duration::try_from(signed).map_err(|_| complaint())
}

fn share(text: &str) -> Result<f64, String> {
    let complaint = || format!("`{text}` is not a share; write a number from 0 to 1");
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(complaint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        settings: SimSettings,
    }

    fn parsed(arguments: &[&str]) -> Result<SimSettings, String> {
        let words = std::iter::once("sim").chain(arguments.iter().copied());
        Command::try_parse_from(words).map(|command| command.settings).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_code() {
        assert_eq!(parsed(&[]), Ok(SimSettings::default()));
    }

    #[test]
    fn knobs_are_read() {
        let settings =
            parsed(&["--ttft", "1.5s", "--token-time=250us", "--jitter", "0.2", "--hang-after", "3"]).unwrap();
        assert_eq!(settings.ttft, Duration::from_millis(1_500));
        assert_eq!(settings.token_time, Duration::from_micros(250));
        assert_eq!(settings.jitter, 0.2);
        assert_eq!(settings.misbehaviour.fault(), Some(Fault::HangAfter(3)));
    }

    #[test]
    fn mistakes_are_named() {
        for (arguments, part) in [
            (&["--ttft", "20"][..], "20ms or 1.5s"),
            (&["--ttft=-1s"], "20ms or 1.5s"),
            (&["--jitter", "1.1"], "from 0 to 1"),
            (&["--error-rate", "NaN"], "from 0 to 1"),
            (&["--capacity", "0"], "1.."),
            (&["--refuse", "--hang-after", "3"], "cannot be used with"),
        ] {
            let error = parsed(arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn help_documents_the_request_headers() {
        let mut command = <Command as clap::CommandFactory>::command();
        let help = command.render_long_help().to_string();
        assert!(help.starts_with("A simulated vLLM pod"), "{help}");
        for part in ["x-sim-fault", "x-sim-tokens", "--reset-after", "Time to the first token", "Misbehaviour"] {
            assert!(help.contains(part), "{part} is missing in:\n{help}");
        }
    }
}

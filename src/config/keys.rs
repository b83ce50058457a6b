//! The one table of all keys: what each means, what it may hold, and what it is when nobody says.

use std::net::{IpAddr, Ipv4Addr};

use super::logs::{candidates, log_level};
use super::texts::{file, header, header_name, instance, link, network, optional_header, origin, path, route};
use super::value::Kind;
pub(super) use super::value::{bytes, count, time};
use super::{fleet, orca, otlp};
use crate::snapshot::Policy;

/// Paths in `routes.allow` at most: they are compared one by one with every request.
const PATHS_MAX: usize = 256;

/// Origins in `routes.cors_origins` at most: they are compared one by one.
const ORIGINS_MAX: usize = 64;

/// Networks in `tenant.trusted` at most: they are compared one by one.
const NETWORKS_MAX: usize = 64;

/// Names in `record.headers` at most: each may take a place in every record.
const RECORDED_HEADERS_MAX: usize = 16;

/// Milliseconds that a body may take at most: deleting on request waits for what is not in the ledger yet.
const REQUEST_BODY_MAX: u64 = crate::pipeline::UNLISTED_MAX.as_millis() as u64;

/// Candidates of one decision at most.
pub(super) const WIDTH_MAX: u64 = 64;

/// Headers that are never recorded, because what they hold opens doors.
pub(super) const CREDENTIALS: [&str; 6] =
    ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key"];

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Section and name: `limits.in_flight`; a name alone for what stands before the first section.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// As an environment variable would say it.
    pub(super) default: &'static str,
    /// For the example file.
    pub(super) doc: &'static str,
}

impl Key {
    /// The environment variable that sets it.
    pub(super) fn variable(&self) -> String {
        let (short, long) = SHORT;
        let path = if self.path == long { short } else { self.path };
        format!("SNAPGATE_{}", path.replace('.', "_").to_ascii_uppercase())
    }

    /// The flag of `snapgate serve` that sets it.
    pub(super) fn flag(&self) -> Option<&'static str> {
        FLAGS.iter().find(|(_, path)| *path == self.path).map(|(flag, _)| *flag)
    }

    /// Whether a reload changes it; else it waits for a restart.
    pub(super) fn is_live(&self) -> bool {
        LIVE.contains(&self.path) || self.split().0 == orca::SECTION
    }

    /// Its section, and its name within it.
    pub(super) fn split(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').unwrap_or(("", self.path))
    }
}

/// A key that was there before its section, and by what it still goes: in a file that has no such section, and in its variable.
const SHORT: (&str, &str) = ("json_log", "json_log.to");

/// The key with this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    let (short, long) = SHORT;
    let path = if path == short { long } else { path };
    KEYS.iter().find(|key| key.path == path)
}

/// Flags of `snapgate serve`, each with its key's path.
pub(super) const FLAGS: [(&str, &str); 7] = [
    ("--target", "targets"),
    ("--policy", "policy"),
    ("--listen", "listen"),
    ("--admin", "admin"),
    ("--data-dir", "data_dir"),
    ("--json-log", "json_log.to"),
    ("--otlp", "otlp.endpoint"),
];

/// Keys that a reload changes. All others are read once: they size, open or start something that lives as long as the process.
pub(super) const LIVE: [&str; 47] = [
    "policy",
    "targets",
    "gpu_exporters",
    "discovery",
    "models",
    "limits.in_flight",
    "limits.connections",
    "limits.connections_per_address",
    "limits.body_bytes",
    "limits.buffered_bytes",
    "timeouts.request_header",
    "timeouts.request_body",
    "timeouts.connect",
    "timeouts.response_head",
    "timeouts.response_idle",
    "timeouts.client_stall",
    "timeouts.websocket_idle",
    "timeouts.shutdown_delay",
    "timeouts.shutdown_grace",
    "upstream.request_id",
    "upstream.retries",
    "upstream.retry_share",
    "upstream.retry_timeouts",
    "routes.allow",
    "routes.cors_origins",
    "choice.width",
    "choice.prefix_bytes",
    "choice.session_header",
    "choice.allow_forced",
    "record.headers",
    "trace.trust_parent",
    "trace.unsampled_parent",
    "trace.sample_ratio",
    "trace.keep_errors",
    "trace.keep_slower_than",
    "trace.keep_forced",
    "trace.keep_tenants",
    "lookup.own_records",
    "lookup.requests_per_second",
    "lookup.own_requests_per_second",
    "lookup.failures_per_minute",
    "lookup.connections",
    "lookup.tokens",
    "links.trace",
    "links.logs",
    "links.dashboard",
    "reload.watch",
];

/// Sections in the order of the example file, with what they are about.
pub(super) const SECTIONS: [(&str, &str); 20] = [
    (
        "log",
        "The gateway's own log, on standard error. Requests never wait for it: where nobody reads it, lines are dropped and counted.",
    ),
    ("json_log", "Finished snapshots as JSON lines."),
    ("limits", "What one gateway takes at most. Everything is bounded; at a bound the client is told so at once."),
    ("timeouts", "How long each step of a request may take."),
    ("tls", "TLS for the clients' requests. Without a certificate they come in plain text."),
    (
        "admin_tls",
        "TLS for lookups, health and metrics. Without a certificate tokens and records travel in plain text.",
    ),
    ("upstream", "The connections to the targets."),
    ("routes", "Which requests are forwarded."),
    ("choice", "How a target is chosen."),
    ("record", "What is recorded beyond the decision and the outcome."),
    (orca::SECTION, orca::DOC),
    (
        "trace",
        "The distributed trace a request is part of. With a sampled trace the target is told to record its spans, too; all \
         spans of the gateway itself are made when the request has ended, so that it can still keep what turned out to be \
         worth it.",
    ),
    (
        "otlp",
        "OpenTelemetry: a span for each request and one for each attempt, and if wanted the snapshot as a log record. \
         OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and its kin, for all or for one signal, OTEL_SERVICE_NAME, \
         OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER) count, too, below what this file says, and a value that is \
         not understood is passed over with a warning; OTEL_SDK_DISABLED=true makes them count for nothing.",
    ),
    ("fleet", "How the targets are watched: a poll of their metrics, and a probe that they are alive."),
    ("store", "The embedded store, which answers lookups."),
    ("pipeline", "The hand-off from the data path to the store."),
    ("tenant", "Whose a request is."),
    ("lookup", "Who may read snapshots, and how much of the gateway that may take."),
    (
        "links",
        "What an answer offers an operator to look at next: addresses with placeholders {id}, {trace_id}, {target}, \
         {model}, {instance}, and for the minute before the request to the minute after it {from_unix_ms}, {to_unix_ms}, \
         {from_unix_s} and {to_unix_s}. Empty: no such link.",
    ),
    ("reload", "Taking up a changed configuration while running, on SIGHUP or by itself."),
];

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(super) const MS: u64 = 1;
pub(super) const S: u64 = 1000 * MS;
pub(super) const H: u64 = 3600 * S;
pub(super) const D: u64 = 24 * H;
pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// All keys, by section in the order of the example file: what has no section first, because TOML wants it so.
pub(super) const KEYS: &[Key] = &joined::<{ OTHERS.len() + otlp::KEYS.len() }>(OTHERS, &otlp::KEYS);

const OTHERS: &[Key] = &joined::<{ MOST.len() + orca::KEYS.len() }>(MOST, &orca::KEYS);

const MOST: &[Key] = &joined::<{ COMMON.len() + fleet::KEYS.len() }>(COMMON, &fleet::KEYS);

const fn joined<const N: usize>(some: &[Key], others: &[Key]) -> [Key; N] {
    let mut all = [some[0]; N];
    let mut place = 0;
    while place < N {
        all[place] = if place < some.len() { some[place] } else { others[place - some.len()] };
        place += 1;
    }
    all
}

/// All but those about the fleet, load reports, traces and OTLP.
#[rustfmt::skip] // a table: one key, one place
const COMMON: &[Key] = &[
    Key { path: "listen", kind: Kind::Address { host: ANY }, default: "0.0.0.0:8080",
        doc: "Where requests come in. Port 0 lets the system choose; a line on standard error says what it chose." },
    Key { path: "admin", kind: Kind::Address { host: LOOPBACK }, default: "127.0.0.1:8081",
        doc: "Where lookups, fleet, health and metrics are served. Beyond loopback it serves lookups only if there \
              are tokens, see [lookup]." },
    Key { path: "data_dir", kind: Kind::Text(path), default: "./snapgate-data",
        doc: "The directory of everything that must survive a restart: the store, the instance tag, the tenant \
              secret. One gateway at a time." },
    Key { path: "instance", kind: Kind::Text(instance), default: "",
        doc: "The name of this gateway in its records. Empty: the machine's host name, which in a pod is the pod's \
              name." },
    Key { path: "policy", kind: Kind::Choice(&Policy::NAMES), default: "least_request",
        doc: "The rule that chooses a target. round_robin: each in turn. least_request: the one with the fewest \
              requests of this gateway in flight. random: any. least_queue: the one whose engine has the shortest \
              queue, as its metrics say and by what this gateway has sent it since. least_kv_cache: the one with \
              the most room in its KV cache, likewise. power_of_two: of two drawn ones the one with fewer requests \
              in flight. prefix_affinity: the one that prompts with the same beginning go to, so that it has them \
              cached, unless it has far more to do than the others. session_affinity: the one that the session's \
              other requests went to. Whatever a policy needs and does not have, least_request stands in for it, \
              and the record says so." },
    Key { path: "threads", kind: count(0, 1024), default: "0",
        doc: "Data threads. 0: one for each core." },
    Key { path: "targets", kind: Kind::Targets, default: "",
        doc: "The inference pods. A target is http://HOST:PORT or https://HOST:PORT; its name is for everybody and goes into answers \
              and metrics, its address is for operators. Without a name, 10.0.3.2:8000 is called 10.0.3.2-8000. \
              `gpus` is how many GPUs it has, if you want that recorded, or a table that says which: { node = \"node-1\", \
              ids = [0, 1] } are GPUs of a node, all of them without `ids`; { pod = \"vllm-0\", namespace = \"llm\", \
              container = \"vllm\" } are those that the node's exporter says the pod has, where what is left out may be \
              anything, and `count` how many there have to be. Without a table they are those of the pod that is called as \
              the target is, if there are [[gpu_exporters]]. `models` are the models it serves; without them it serves \
              any. `engine` is whose metrics it serves, in place of fleet.engine; `metrics` where, as \":PORT\", \"/PATH\" or both, \
              in place of its own port and of fleet.metrics_path. A request for a model that no target \
              serves is answered 404. `authorization`, or `authorization_file` with the name of a file, is what its \
              requests present in place of upstream.authorization; its polls present fleet.authorization. \
              `ask_for_load_report` is none, text, json or bin, in place of load_reports.ask. --target [NAME=]URL may be \
              repeated and replaces this list; the variable takes [NAME=]URL,[NAME=]URL or a list in TOML." },
    Key { path: "discovery", kind: Kind::Discovery, default: "",
        doc: "Sources of more targets, which come and go while the gateway runs; docs/discovery.md has all of it. `kind` is \
              \"file\" for a list in the file `path`, in TOML or JSON, or as Prometheus reads it (file_sd, in JSON); \"dns\" for \
              the addresses of `host`, by `record` (\"address\" for A and AAAA, \"a\", \"aaaa\" or \"srv\") from `servers` or \
              the system's, asked again when their time to live is over; \"kubernetes\" for the pods of `service` in \
              `namespace`, at the port `port_name`. `interval` is how often a file is looked at, and the \
              least time from one question to the next. `models`, `gpus`, `engine`, `metrics`, `ask_for_load_report`, \
              `scheme` and `port` hold for all its targets that say nothing else. What cannot be read or believed leaves the last targets as they are, and /readyz warns. \
              The variable takes a list in TOML." },
    Key { path: "models", kind: Kind::Models, default: "",
        doc: "Models with a policy of their own. The variable takes MODEL=POLICY,MODEL=POLICY or a list in TOML." },
    Key { path: "engines", kind: Kind::Engines, default: "",
        doc: "Engines that snapgate does not know: what each calls its numbers on its metrics page. A number is the name of a \
              series, NAME or NAME{label=\"value\"}, a list of names of which the first that is there counts, or { names = [...], \
              combine = \"sum\" or \"max\" (of several series), scale = a factor }. There are waiting, running, kv_cache_usage, \
              prefix_cache_hit_ratio, gpu_utilization and gpu_memory_utilization (0 to 1), and the counters \
              prefix_cache_queries, prefix_cache_hits, prefix_cache_misses, requests and tokens. queue_time = { header = \"x-wait\", \
              unit = \"ms\" } names the header of its answers that says how long a request waited. docs/engines.md says more." },
    Key { path: "gpu_exporters", kind: Kind::GpuExporters, default: "",
        doc: "NVIDIA's DCGM exporters, one a node: each is read once for all targets that have GPUs of its node. `url` is \
              its page, http://HOST:PORT/PATH or https:// with upstream.ca; without a path it is /metrics. `node` is \
              what targets call the node by; without it, the URL's host. Without any exporter nobody is asked how busy \
              and how full the GPUs are. The variable takes NODE=URL,NODE=URL or a list in TOML." },
    Key { path: "log.format", kind: Kind::Choice(&["json", "text", "auto"]), default: "json",
        doc: "One JSON object per line, text for people, or text on a terminal and JSON elsewhere." },
    Key { path: "log.level", kind: Kind::Text(log_level), default: "info",
        doc: "The least important level that is written. error: data is lost, or somebody is needed. warn: something is \
              worse than it should be, and is being tried again. info: what began, changed or ended. debug: single \
              requests and connections. trace: more than anybody wants. A module may have a level of its own, as in \
              \"info,snapgate::gateway=debug\"; libraries say nothing below warn unless they are named." },
    Key { path: "json_log.to", kind: Kind::Text(path), default: "off",
        doc: "\"off\", \"stdout\" (which then carries nothing else), or a file to append to. Without this section it may be \
              written as json_log = \"…\" at the top of this file. Who moves the file away, as logrotate does, need not \
              tell: it is begun anew." },
    Key { path: "json_log.candidates", kind: Kind::WordOrCount(candidates), default: "all",
        doc: "Candidates of a decision that stand in its line: \"all\", \"chosen\", or at most so many, the best ones, \
              from 1 to 64. `eligible` and `excluded` say in any case how many targets there were." },
    Key { path: "json_log.max_bytes", kind: bytes(0, TIB), default: "1GiB",
        doc: "When a file would become larger, it is put aside for a new one: snapshots.jsonl as \
              snapshots-20261126T193000.123456Z.jsonl, by the time up to which its snapshots had ended. 0 for never." },
    Key { path: "json_log.max_age", kind: time(0, 3650 * D), default: "1d",
        doc: "Likewise when its first snapshot ended so long before the next one. 0s for never." },
    Key { path: "json_log.keep", kind: count(0, 100_000), default: "9",
        doc: "Files put aside that stay; older ones are deleted. 0 keeps all, and then somebody else has to delete them." },
    Key { path: "limits.in_flight", kind: count(1, 1_000_000), default: "10000",
        doc: "Requests between accept and finish. One more is answered 503 at once." },
    Key { path: "limits.connections", kind: count(1, 1_000_000), default: "10000",
        doc: "Client connections. One more is closed at accept." },
    Key { path: "limits.connections_per_address", kind: count(0, 1_000_000), default: "0",
        doc: "Those of one address (of one /64 in IPv6); 0 for any number. For gateways that clients reach without a balancer." },
    Key { path: "limits.body_bytes", kind: bytes(KIB, GIB), default: "16MiB",
        doc: "One request's body. It is held to read the model from it and to try a second target. A longer one is \
              answered 413." },
    Key { path: "limits.buffered_bytes", kind: bytes(MIB, TIB), default: "256MiB",
        doc: "The bodies of all requests that are held at once; more are answered 503. An eighth of it is for bodies up to 64 KiB \
              alone, as far as one of limits.body_bytes still fits beside that." },
    Key { path: "limits.header_bytes", kind: bytes(8 * KIB, 16 * MIB), default: "64KiB",
        doc: "The head of a request or of an answer." },
    Key { path: "limits.headers", kind: count(16, 4096), default: "100",
        doc: "Header lines of a request or of an answer." },
    Key { path: "timeouts.tls_handshake", kind: time(10 * MS, 60 * S), default: "10s",
        doc: "Until a client's TLS handshake is complete." },
    Key { path: "timeouts.request_header", kind: time(10 * MS, H), default: "60s",
        doc: "Until a request's head is complete; on a kept connection counted from the last answer, so that idle \
              clients are let go, in HTTP/2 too. A change is for connections opened from then on." },
    Key { path: "timeouts.request_body", kind: time(10 * MS, REQUEST_BODY_MAX), default: "30s",
        doc: "Until a request's body is complete." },
    Key { path: "timeouts.connect", kind: time(MS, 60 * S), default: "2s",
        doc: "Until a connection to a target stands. After that the next candidate is tried." },
    Key { path: "timeouts.response_head", kind: time(10 * MS, D), default: "10m",
        doc: "From the request sent to the head of the answer. An engine that does not stream sends nothing until \
              it has generated everything." },
    Key { path: "timeouts.response_idle", kind: time(10 * MS, D), default: "5m",
        doc: "Between two pieces of the answer's body." },
    Key { path: "timeouts.websocket_idle", kind: time(10 * MS, D), default: "5m",
        doc: "How long a WebSocket may stay without a byte in either direction; pings count." },
    Key { path: "timeouts.client_stall", kind: time(10 * MS, D), default: "60s",
        doc: "How long a client may leave what is sent to it lying: then its connection is closed, and with it the \
              target's. A change is for connections opened from then on." },
    Key { path: "timeouts.shutdown_delay", kind: time(0, H), default: "0s",
        doc: "How long after SIGTERM new connections are still accepted, while /readyz already says no. Behind a load \
              balancer: as long as it takes to notice. A second signal ends the delay and the grace at once." },
    Key { path: "timeouts.shutdown_grace", kind: time(0, H), default: "30s",
        doc: "How long open requests may go on after that. What is left of it, 5 s at most and 1 s at least, the \
              exits have to deliver the last records: a receiver that does not answer holds up a stop no longer." },
    Key { path: "timeouts.pool_idle", kind: time(0, H), default: "4s",
        doc: "How long an unused connection to a target is kept. Shorter than the target's own limit, or requests \
              meet closing connections: uvicorn, which serves vLLM, closes after 5 s." },
    Key { path: "tls.cert", kind: Kind::Text(file), default: "",
        doc: "A file with the certificate, and those that lead from it to an authority, in PEM. It is looked at each \
              second: a changed certificate and key are used for new connections, if they are good." },
    Key { path: "tls.key", kind: Kind::Text(file), default: "",
        doc: "A file with its private key in PEM." },
    Key { path: "tls.client_ca", kind: Kind::Text(file), default: "",
        doc: "A file with authorities in PEM: every client has to present a certificate of theirs." },
    Key { path: "admin_tls.cert", kind: Kind::Text(file), default: "",
        doc: "As tls.cert. It may be the same file." },
    Key { path: "admin_tls.key", kind: Kind::Text(file), default: "",
        doc: "As tls.key." },
    Key { path: "admin_tls.client_ca", kind: Kind::Text(file), default: "",
        doc: "As tls.client_ca. Whoever probes health and scrapes metrics then needs a certificate, too; tokens are \
              asked for as ever." },
    Key { path: "upstream.request_id", kind: Kind::Choice(&["snapshot", "client", "off"]), default: "snapshot",
        doc: "The x-request-id an engine gets: the snapshot ID, which vLLM then uses in its answer and its log; \
              the client's own; or none." },
    Key { path: "upstream.pool_idle_per_target", kind: count(0, 65_536), default: "64",
        doc: "Unused connections kept per target and data thread." },
    Key { path: "upstream.retries", kind: count(0, 10), default: "2",
        doc: "How often a request is tried again, each time at a target that it has not met, when a target could not be \
              connected to or broke the connection before its answer began. After a reload another try has the new targets, \
              width and credentials, and still the policy of the first." },
    Key { path: "upstream.retry_share", kind: Kind::Share, default: "0.1",
        doc: "The share of requests that may be tried again, lest an outage is multiplied; some more at first. In \
              thousandths: one at least, unless it is 0." },
    Key { path: "upstream.retry_timeouts", kind: Kind::Switch, default: "false",
        doc: "Try again as well when the head of the answer did not come in time. The first target may still be at work." },
    Key { path: "upstream.ca", kind: Kind::Text(file), default: "",
        doc: "A file with the authorities in PEM that certify the targets with https; without it, those that the \
              system believes. Names and addresses have to be in the targets' certificates. This file and the next two \
              are looked at each second, like [tls]." },
    Key { path: "upstream.cert", kind: Kind::Text(file), default: "",
        doc: "A file with the certificate that is presented to targets with https, in PEM." },
    Key { path: "upstream.key", kind: Kind::Text(file), default: "",
        doc: "A file with its private key in PEM." },
    Key { path: "upstream.authorization", kind: Kind::Authorization, default: "",
        doc: "What targets get in the header authorization, in place of what the client sent: a token, or a scheme and \
              what belongs to it. It is never recorded or shown." },
    Key { path: "upstream.authorization_file", kind: Kind::Text(file), default: "",
        doc: "A file that holds it, instead. A changed one is used within a second." },
    Key { path: "routes.allow", kind: Kind::List { max: PATHS_MAX, check: route },
        default: "/v1/chat/completions,/v1/completions,/v1/responses,/v1/messages,/v1/messages/count_tokens,\
                  /v1/embeddings,/v1/rerank,/v1/score,/v1/audio/transcriptions,/v1/audio/translations,/v1/models,\
                  /v1/realtime",
        doc: "Paths that are forwarded, each compared whole; another one is answered 404. /v1/models/* stands for every \
              path below /v1/models; /v1/* opens adapter loading, too. [\"*\"] forwards everything, which opens the \
              engines' metrics, adapter loading and cache flushing to every client." },
    Key { path: "routes.cors_origins", kind: Kind::List { max: ORIGINS_MAX, check: origin }, default: "",
        doc: "Origins (\"https://chat.example\") whose scripts may read the gateway's own answers, its refusals, and the \
              IDs in them; [\"*\"] for any. For a target's answers the target says that." },
    Key { path: "choice.width", kind: count(1, WIDTH_MAX), default: "16",
        doc: "How many targets are scored for one request, drawn at random when there are more. It bounds the cost \
              and the record of a decision." },
    Key { path: "choice.prefix_bytes", kind: bytes(64, 64 * KIB), default: "512B",
        doc: "How much of a prompt's beginning prefix_affinity goes by, as it stands in the JSON. Prompts that are \
              alike so far go to the same target; what is shorter is hardly worth caching." },
    Key { path: "choice.session_header", kind: Kind::Text(header_name), default: "x-session-id",
        doc: "The request header that names the session, for session_affinity. Records hold a keyed hash of it." },
    Key { path: "choice.allow_forced", kind: Kind::Switch, default: "false",
        doc: "Whether a request may name its target in the header target-pod. It can name only targets of this \
              list, and gets there whatever the policy says, and whether or not the target is up. Otherwise the \
              header is ignored." },
    Key { path: "record.headers", kind: Kind::List { max: RECORDED_HEADERS_MAX, check: header }, default: "",
        doc: "Request headers copied into request.labels of the record, by name, at most 16; each value is cut at \
              128 bytes. Headers that hold credentials are refused." },
    Key { path: "store.enabled", kind: Kind::Switch, default: "true",
        doc: "Without the store, lookups know only requests in flight." },
    Key { path: "store.durability", kind: Kind::Choice(&["process", "power"]), default: "process",
        doc: "What a committed record survives: the end of the process, however it came; or a power cut too, at \
              the price of a disk flush per commit." },
    Key { path: "store.retention_age", kind: time(60 * S, 3650 * D), default: "7d",
        doc: "How old a record may become." },
    Key { path: "store.retention_bytes", kind: bytes(16 * MIB, 64 * TIB), default: "10GiB",
        doc: "How large the store may become, give or take one commit: the oldest records go first, and commits wait for it. \
              It stays smaller where the disk has less left than ballast_bytes and twice wal_checkpoint_bytes." },
    Key { path: "store.wal_checkpoint_bytes", kind: bytes(MIB, 64 * GIB), default: "8MiB",
        doc: "Past this size of the write-ahead log it is moved into the store, beside the commits." },
    Key { path: "store.wal_max_bytes", kind: bytes(MIB, TIB), default: "512MiB",
        doc: "How large the write-ahead log may become, give or take one commit: then commits wait for it. Only while another \
              program keeps a read transaction open it grows on. /readyz warns and says which it is; requests go on." },
    Key { path: "store.ballast_bytes", kind: bytes(0, GIB), default: "16MiB",
        doc: "A file of this size is freed when the disk is full, so that old records can still be deleted." },
    Key { path: "pipeline.queue_records", kind: count(1, 16_777_216), default: "65536",
        doc: "Finished records that may wait for the store. One more is dropped and counted: requests never wait." },
    Key { path: "pipeline.queue_bytes", kind: bytes(MIB, 64 * GIB), default: "64MiB",
        doc: "Their size together." },
    Key { path: "pipeline.commit_interval", kind: time(MS, S), default: "25ms",
        doc: "The longest a record waits for others before they are committed together." },
    Key { path: "pipeline.commit_records", kind: count(1, 100_000), default: "2000",
        doc: "Records in one commit at most." },
    Key { path: "pipeline.refused_per_second", kind: count(0, 1_000_000), default: "10",
        doc: "Requests refused before a target was chosen (unknown path, body too large, no target) that are recorded a second, \
              besides one for each that was decided and a burst of 2000, so that a flood cannot displace the others: ten take \
              2 to 7 GiB in a week. The rest is dropped for refused_flood, reaches no exit, and counts in the metrics." },
    Key { path: "tenant.header", kind: Kind::Text(optional_header), default: "",
        doc: "A request header that names the tenant, for gateways behind a proxy that knows its users. It is believed \
              only from tenant.trusted, and stands above the API key. Empty: tenants are told apart by their API key, \
              of which only a keyed hash is kept." },
    Key { path: "tenant.trusted", kind: Kind::List { max: NETWORKS_MAX, check: network }, default: "",
        doc: "Addresses and networks (10.0.0.0/8) of the proxies that set tenant.header. Whoever can connect from \
              there, to either listener, can be any tenant." },
    Key { path: "tenant.secret", kind: Kind::Secret { file: false }, default: "",
        doc: "What the hash of API keys and names is keyed with. Replicas that share it know a tenant, a \
              prompt's beginning and a session by the same hash. Empty: drawn once and kept in data_dir. Another secret makes other tenants: what is stored then \
              is the operators' alone. Better in the variable than in this file." },
    Key { path: "tenant.secret_file", kind: Kind::Secret { file: true }, default: "",
        doc: "A file that holds it, in place of tenant.secret. It is read at the start." },
    Key { path: "lookup.own_records", kind: Kind::Switch, default: "true",
        doc: "Whoever presents the API key that a request bore may look that request up by its snapshot ID, without \
              addresses and losing candidates. It takes both, the key and the ID; everybody else is told that there \
              is no such request." },
    Key { path: "lookup.requests_per_second", kind: count(1, 1_000_000), default: "1000",
        doc: "Requests of one token; more are answered 429. Without any token, whoever is on this machine is not limited." },
    Key { path: "lookup.own_requests_per_second", kind: count(1, 1_000_000), default: "5",
        doc: "Requests of one tenant for its own records." },
    Key { path: "lookup.failures_per_minute", kind: count(1, 1_000_000), default: "60",
        doc: "Requests of one address (of one /64 in IPv6) with a wrong token, or for a record that is not the \
              caller's. Then it gets 429, except with a right token: a guess at random has no chance at any rate, and \
              nobody shall lock the operators out." },
    Key { path: "lookup.connections", kind: count(8, 65_536), default: "256",
        doc: "Connections to the admin listener, a quarter of them for one address. For one more the longest idle one makes room." },
    // Last of its section: in TOML a list of tables ends it.
    Key { path: "lookup.tokens", kind: Kind::Tokens, default: "",
        doc: "Tokens of operators. Each has a name, and exactly one of `token`, `token_file` (a file that holds it; it \
              is looked at each second, and a new token replaces the old one at once) and `token_env` (a variable that \
              does). `scope` says what it allows: [\"read\"], to read everything, if nothing is said; [\"read\", \
              \"delete\"] to delete snapshots as well. Without any token, everything can be read on loopback, nothing \
              can be deleted, and beyond loopback there are only lookup.own_records. The variable takes \
              NAME=TOKEN,NAME=TOKEN or a list in TOML." },
    Key { path: "links.trace", kind: Kind::Text(link), default: "",
        doc: "The request's trace, such as \"https://tempo.example/trace/{trace_id}?start={from_unix_s}&end={to_unix_s}\"." },
    Key { path: "links.logs", kind: Kind::Text(link), default: "",
        doc: "The log lines of that time." },
    Key { path: "links.dashboard", kind: Kind::Text(link), default: "",
        doc: "The dashboard of that time, such as \
              \"https://grafana.example/d/snapgate?var-target={target}&from={from_unix_ms}&to={to_unix_ms}\"." },
    Key { path: "reload.watch", kind: Kind::Switch, default: "false",
        doc: "Reload by itself when this file has changed and has stood unchanged for a second, as with SIGHUP. Follows \
              symbolic links, so that a Kubernetes ConfigMap is taken up when its volume is." },
];

//! The keys about traces and OTLP: what they mean together, and OpenTelemetry's own variables for them.
//!
//! Those stand between the defaults and the file, so that what is said to snapgate by name wins, and what they say that is
//! not understood is a warning. `OTEL_SDK_DISABLED=true` makes them count for nothing.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::build::Values;
use super::keys::{D, KIB, Key, MIB, MS, S, bytes, count, find, time};
use super::layers::Effective;
use super::mistake::Mistakes;
use super::texts::{check_name, file};
use super::units::parse_duration;
use super::value::Kind;
use crate::sink::otlp::{Protocol, Receiver, Settings, Signal};
use crate::snapshot::{Keep, Ratio, Sampling};
use crate::tls;

/// Tenants in `trace.keep_tenants` at most: they are compared one by one with every request.
const KEPT_TENANTS_MAX: usize = 256;

/// Attributes in `otlp.resource` at most: they are in every export.
const RESOURCE_ATTRIBUTES_MAX: usize = 64;

/// Candidates that a setting can ask for at most: more are never looked at.
const CANDIDATES_MAX: usize = 64;

/// The port that everybody gives OTLP over HTTP.
const HTTP_PORT: u16 = 4318;

/// How a receiver may be spoken to, for both signals or for one alone.
const PROTOCOLS: &[&str] = &["auto", "grpc", "http/protobuf"];

/// How exports may be compressed, likewise.
const COMPRESSIONS: &[&str] = &["none", "gzip"];

/// The longest that one export may be given, in milliseconds.
const TIMEOUT_MAX: u64 = 60 * S;

/// What [`Settings::service_name`] is when nobody says.
const SERVICE_NAME: &str = "snapgate";

/// One of OpenTelemetry's variables, the key that it sets, and how its text becomes ours: `None` if it says nothing to us.
type Standard = (&'static str, &'static str, fn(&str) -> Result<Option<String>, String>);

/// The variable that makes the others count for nothing.
pub(super) const DISABLED: &str = "OTEL_SDK_DISABLED";

/// Later ones win over earlier ones.
pub(super) const STANDARD: [Standard; 30] = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp.endpoint", same),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "otlp.traces_endpoint", same),
    ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "otlp.logs_endpoint", same),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "otlp.protocol", same),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "otlp.traces_protocol", same),
    ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "otlp.logs_protocol", same),
    ("OTEL_EXPORTER_OTLP_HEADERS", "otlp.headers", same),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "otlp.traces_headers", same),
    ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "otlp.logs_headers", same),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "otlp.timeout", milliseconds),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "otlp.traces_timeout", milliseconds),
    ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "otlp.logs_timeout", milliseconds),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "otlp.compression", same),
    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "otlp.traces_compression", same),
    ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "otlp.logs_compression", same),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "otlp.ca", same),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "otlp.traces_ca", same),
    ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", "otlp.logs_ca", same),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "otlp.cert", same),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "otlp.traces_cert", same),
    ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE", "otlp.logs_cert", same),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "otlp.key", same),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "otlp.traces_key", same),
    ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY", "otlp.logs_key", same),
    ("OTEL_SERVICE_NAME", "otlp.service_name", same),
    ("OTEL_RESOURCE_ATTRIBUTES", "otlp.resource", same),
    ("OTEL_TRACES_EXPORTER", "otlp.traces", exporter),
    ("OTEL_LOGS_EXPORTER", "otlp.logs", exporter),
    ("OTEL_TRACES_SAMPLER", "trace.sample_ratio", sampler),
    // Means nothing without the sampler, which `read` looks at.
    ("OTEL_TRACES_SAMPLER_ARG", "trace.sample_ratio", same),
];

/// The keys, in the order of the example file.
#[rustfmt::skip] // a table: one key, one place
pub(super) const KEYS: [Key; 40] = [
    Key { path: "trace.trust_parent", kind: Kind::Switch, default: "true",
        doc: "Go on with the trace that a client names in traceparent. Otherwise each request begins a trace of its own, \
              whose ID is the snapshot ID, with a link to the client's: for clients who must not make others record." },
    Key { path: "trace.unsampled_parent", kind: Kind::Choice(&["respect", "keep"]), default: "respect",
        doc: "What counts when the client says that its trace is not sampled: that; or, behind a mesh that samples one \
              request in a hundred, trace.sample_ratio." },
    Key { path: "trace.sample_ratio", kind: Kind::Ratio, default: "1.0",
        doc: "The share of traces that are sampled, of those that no parent has decided on, by the random part of their \
              IDs: everybody who goes by the same bits takes the same ones." },
    Key { path: "trace.keep_errors", kind: Kind::Switch, default: "true",
        doc: "Export the spans of requests that ended badly by a fault of the target or of the gateway, sampled or not." },
    Key { path: "trace.keep_slower_than", kind: time(0, D), default: "0s",
        doc: "Export those of requests that took so long or longer, sampled or not; 0s for none." },
    Key { path: "trace.keep_forced", kind: Kind::Switch, default: "true",
        doc: "Export those of requests that named their target, sampled or not." },
    Key { path: "trace.keep_tenants", kind: Kind::List { max: KEPT_TENANTS_MAX, check: tenant }, default: "",
        doc: "Export those of these tenants, as records show them (t_8f3a91c2), sampled or not." },
    Key { path: "otlp.endpoint", kind: Kind::Text(endpoint), default: "",
        doc: "Where a receiver of OTLP is, such as \"http://localhost:4317\". Empty: nothing is exported." },
    Key { path: "otlp.traces_endpoint", kind: Kind::Text(endpoint), default: "",
        doc: "Another one for spans; over HTTP it is used as it is, without a path added." },
    Key { path: "otlp.logs_endpoint", kind: Kind::Text(endpoint), default: "",
        doc: "Another one for log records, likewise, such as \"http://loki:3100/otlp/v1/logs\"." },
    Key { path: "otlp.protocol", kind: Kind::Choice(PROTOCOLS), default: "auto",
        doc: "How it is spoken to. `auto` is http/protobuf if the endpoint has the port 4318 or a path, else grpc: each endpoint \
              by itself." },
    Key { path: "otlp.traces", kind: Kind::Switch, default: "true",
        doc: "Export spans." },
    Key { path: "otlp.logs", kind: Kind::Switch, default: "false",
        doc: "Export each snapshot as a log record, whose body is the document in JSON." },
    Key { path: "otlp.headers", kind: Kind::Headers { file: false }, default: "",
        doc: "Headers of each export, NAME=VALUE,NAME=VALUE, with percent-encoded values. They are never recorded or shown. \
              Better in the variable than in this file. Both receivers get them: where logs go to somebody else, give \
              traces_headers and logs_headers instead." },
    Key { path: "otlp.headers_file", kind: Kind::Headers { file: true }, default: "",
        doc: "A file that holds them, one a line, instead. It is read at the start." },
    Key { path: "otlp.compression", kind: Kind::Choice(COMPRESSIONS), default: "none",
        doc: "gzip makes an export a tenth as large for some 20 us of a core a snapshot." },
    Key { path: "otlp.timeout", kind: time(MS, TIMEOUT_MAX), default: "10s",
        doc: "The longest an export may take. What failed is tried again for as long as it takes." },
    Key { path: "otlp.ca", kind: Kind::Text(file), default: "",
        doc: "A file with the authorities in PEM that certify a receiver with https; without it, those that the system \
              believes. This file and the next two are looked at each second, like [tls]." },
    Key { path: "otlp.cert", kind: Kind::Text(file), default: "",
        doc: "A file with the certificate that is presented to a receiver with https, in PEM." },
    Key { path: "otlp.key", kind: Kind::Text(file), default: "",
        doc: "A file with its private key in PEM." },
    Key { path: "otlp.traces_protocol", kind: Kind::Text(own_protocol), default: "",
        doc: "otlp.protocol for spans alone. Empty: what that says; so with the keys that follow." },
    Key { path: "otlp.traces_headers", kind: Kind::Headers { file: false }, default: "",
        doc: "otlp.headers for spans alone, in place of those and of otlp.headers_file." },
    Key { path: "otlp.traces_compression", kind: Kind::Text(own_compression), default: "",
        doc: "otlp.compression for spans alone: none or gzip." },
    Key { path: "otlp.traces_timeout", kind: Kind::Text(own_timeout), default: "",
        doc: "otlp.timeout for spans alone." },
    Key { path: "otlp.traces_ca", kind: Kind::Text(file), default: "",
        doc: "otlp.ca for spans alone." },
    Key { path: "otlp.traces_cert", kind: Kind::Text(file), default: "",
        doc: "otlp.cert for spans alone, with otlp.traces_key." },
    Key { path: "otlp.traces_key", kind: Kind::Text(file), default: "",
        doc: "otlp.key for spans alone." },
    Key { path: "otlp.logs_protocol", kind: Kind::Text(own_protocol), default: "",
        doc: "otlp.protocol for log records alone. Empty: what that says; so with the keys that follow." },
    Key { path: "otlp.logs_headers", kind: Kind::Headers { file: false }, default: "",
        doc: "otlp.headers for log records alone, in place of those and of otlp.headers_file." },
    Key { path: "otlp.logs_compression", kind: Kind::Text(own_compression), default: "",
        doc: "otlp.compression for log records alone: none or gzip." },
    Key { path: "otlp.logs_timeout", kind: Kind::Text(own_timeout), default: "",
        doc: "otlp.timeout for log records alone." },
    Key { path: "otlp.logs_ca", kind: Kind::Text(file), default: "",
        doc: "otlp.ca for log records alone." },
    Key { path: "otlp.logs_cert", kind: Kind::Text(file), default: "",
        doc: "otlp.cert for log records alone, with otlp.logs_key." },
    Key { path: "otlp.logs_key", kind: Kind::Text(file), default: "",
        doc: "otlp.key for log records alone." },
    Key { path: "otlp.batch_bytes", kind: bytes(64 * KIB, 64 * MIB), default: "3MiB",
        doc: "The largest export, before compression. Most receivers take 4 MiB over gRPC." },
    Key { path: "otlp.in_flight", kind: count(1, 64), default: "4",
        doc: "Exports of one signal on their way at once: what a receiver takes a second, if it answers slowly, is this \
              many times batch_bytes for each answer, or 16,384 snapshots. They take this much memory." },
    Key { path: "otlp.candidates", kind: Kind::Text(candidates), default: "3",
        doc: "How many candidates of a decision a span tells of, best first: all, chosen (the first), or a number." },
    Key { path: "otlp.service_name", kind: Kind::Text(service_name), default: "",
        doc: "service.name of what is exported. Empty: snapgate." },
    Key { path: "otlp.resource", kind: Kind::List { max: RESOURCE_ATTRIBUTES_MAX, check: resource_attribute }, default: "",
        doc: "Further attributes of its resource, such as [\"deployment.environment.name=production\"]." },
    Key { path: "otlp.provider", kind: Kind::Text(check_name), default: "vllm",
        doc: "gen_ai.provider.name of the attempts, and of metrics: what the targets are." },
];

fn same(text: &str) -> Result<Option<String>, String> {
    Ok(Some(text.to_owned()))
}

fn milliseconds(text: &str) -> Result<Option<String>, String> {
    let number: u64 = text.parse().map_err(|_| format!("\"{text}\" is not a whole number of milliseconds"))?;
    Ok(Some(format!("{number}ms")))
}

/// Other exporters are not ours: what is meant for them is passed over beside ours.
fn exporter(text: &str) -> Result<Option<String>, String> {
    let named = |name| text.split(',').any(|part| part.trim() == name);
    let known = (named("otlp") || named("none")).then(|| Some(named("otlp").to_string()));
    known.ok_or_else(|| format!("\"{text}\" is no exporter that there is here: say otlp or none"))
}

/// A parent decides whatever the sampler is called: `trace.unsampled_parent` is for that.
fn sampler(text: &str) -> Result<Option<String>, String> {
    match text.strip_prefix("parentbased_").unwrap_or(text) {
        "always_on" => Ok(Some("1.0".to_owned())),
        "always_off" => Ok(Some("0.0".to_owned())),
        "traceidratio" => Ok(None),
        _ => Err(format!("\"{text}\" is no sampler here: use parentbased_traceidratio or trace.sample_ratio")),
    }
}

/// Whether [`STANDARD`]'s argument of the sampler means anything beside this sampler.
pub(super) fn sampler_takes_argument(sampler: Option<&str>) -> bool {
    sampler.is_some_and(|sampler| sampler.ends_with("traceidratio"))
}

/// An `http` or `https` URL, perhaps with a path.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let form = "write http://HOST:PORT or https://HOST:PORT, such as http://localhost:4317";
    let url: Uri = text.parse().map_err(|_| format!("\"{text}\" is not a URL: {form}"))?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    let authority = url.authority().filter(|authority| known && !authority.host().is_empty());
    match authority {
        None => Err(format!("\"{text}\" is not a URL of a receiver: {form}")),
        Some(authority) if authority.as_str().contains('@') => {
            Err("a receiver's URL cannot hold a user name or password: use otlp.headers".to_owned())
        }
        Some(_) if url.query().is_some() => Err(format!("\"{text}\": a receiver's URL has no query: {form}")),
        Some(_) => Ok(text.to_owned()),
    }
}

/// What a signal may say of itself; empty for what both have in common.
fn own_protocol(text: &str) -> Result<String, String> {
    one_of(text, PROTOCOLS)
}

fn own_compression(text: &str) -> Result<String, String> {
    one_of(text, COMPRESSIONS)
}

fn own_timeout(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let timeout = parse_duration(text)?;
    let fits = (Duration::from_millis(MS)..=Duration::from_millis(TIMEOUT_MAX)).contains(&timeout);
    if fits { Ok(text.to_owned()) } else { Err(format!("{text} is not from 1ms to 1m")) }
}

fn one_of(text: &str, words: &[&str]) -> Result<String, String> {
    if text.is_empty() || words.contains(&text) {
        return Ok(text.to_owned());
    }
    let known: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    Err(format!("\"{text}\" is none of {}", known.join(", ")))
}

fn service_name(text: &str) -> Result<String, String> {
    if text.len() > 128 || text.chars().any(char::is_control) {
        return Err("is longer than 128 bytes or has control characters: it is no name of a service".to_owned());
    }
    Ok(text.to_owned())
}

/// `NAME=VALUE`, percent-encoded.
pub(super) fn resource_attribute(text: &str) -> Result<String, String> {
    pair(text).map(|_| text.to_owned())
}

/// `all`, `chosen`, or how many.
pub(super) fn candidates(text: &str) -> Result<String, String> {
    parse_candidates(text)
        .map(|_| text.to_owned())
        .ok_or_else(|| format!("\"{text}\" is neither all nor chosen nor a whole number up to {CANDIDATES_MAX}"))
}

fn parse_candidates(text: &str) -> Option<usize> {
    match text {
        "all" => Some(CANDIDATES_MAX),
        "chosen" => Some(1),
        number => number.parse().ok().filter(|number| *number <= CANDIDATES_MAX),
    }
}

/// A tenant as records show it.
pub(super) fn tenant(text: &str) -> Result<String, String> {
    let known = parse_tenant(text).map(|_| text.to_owned());
    known.ok_or_else(|| format!("\"{text}\" is not a tenant as records show it, such as t_8f3a91c2"))
}

fn parse_tenant(text: &str) -> Option<[u8; 4]> {
    let digits = text.strip_prefix("t_").filter(|digits| digits.len() == 8)?;
    let lower = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u32::from_str_radix(digits, 16).ok().filter(|_| lower).map(u32::to_be_bytes)
}

/// `NAME=VALUE,NAME=VALUE`, or one a line. Messages never show a value.
pub(super) fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for item in text.split([',', '\n']).map(str::trim).filter(|item| !item.is_empty()) {
        let (name, value) = pair(item).map_err(|_| "has a part that is not NAME=VALUE".to_owned())?;
        let header = HeaderName::try_from(&*name).map_err(|_| "has a part whose name is not a header's".to_owned())?;
        let value = HeaderValue::try_from(value);
        let mut value = value.map_err(|_| format!("has a value for {header} that a header cannot carry"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

/// The same, from a file.
pub(super) fn read_headers(file: &str) -> Result<HeaderMap, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("the file {file} cannot be read: {error}"))?;
    headers(&text).map_err(|error| format!("the file {file} {error}"))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("\"{text}\" is not NAME=VALUE");
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    let decode = |part: &str| percent_encoding::percent_decode_str(part.trim()).decode_utf8().map(|it| it.into_owned());
    let (name, value) = decode(name).and_then(|name| Ok((name, decode(value)?))).map_err(|_| wrong())?;
    if name.is_empty() { Err(wrong()) } else { Ok((name, value)) }
}

/// Notes what does not fit together.
pub(super) fn check(effective: &Effective, mistakes: &mut Mistakes) {
    let values = Values::of(effective);
    let mut noted = Vec::new();
    let mut wrong = |key: &'static str, text: String| {
        // What both signals have in common is wrong once.
        if !noted.contains(&key) {
            noted.push(key);
            mistakes.add(effective.get(key).1.clone(), Some(key), text);
        }
    };
    if !values.headers("otlp.headers").is_empty() && !values.headers("otlp.headers_file").is_empty() {
        wrong("otlp.headers_file", "otlp.headers is set as well: keep one of them".to_owned());
    }
    for [cert, key] in
        [["otlp.cert", "otlp.key"], ["otlp.traces_cert", "otlp.traces_key"], ["otlp.logs_cert", "otlp.logs_key"]]
    {
        match (values.text(cert).is_empty(), values.text(key).is_empty()) {
            (false, true) => wrong(cert, format!("needs {key} as well")),
            (true, false) => wrong(key, format!("needs {cert} as well")),
            _ => {}
        }
    }
    let settings = settings(&values);
    for (signal, receiver) in settings.receivers() {
        let said = Said { values: &values, signal };
        let (endpoint, url) = said.endpoint();
        if receiver.protocol == Protocol::Grpc && has_path(&url) {
            let (path, protocol) = (url.path(), said.key("protocol"));
            wrong(
                endpoint,
                format!("{path}: gRPC has a path of its own: leave it out, or set {protocol} = \"http/protobuf\""),
            );
        }
        let named =
            ["cert", "key", "ca"].map(|name| said.key(name)).into_iter().find(|key| !values.text(key).is_empty());
        if let Err(error) = tls::check_client(&receiver.tls) {
            wrong(named.unwrap_or("otlp.ca"), error.to_string());
        }
    }
}

/// What is set for one signal: its own, or what both have in common.
struct Said<'a> {
    values: &'a Values<'a>,
    signal: Signal,
}

impl<'a> Said<'a> {
    /// The key whose value counts: `otlp.logs_ca`, or `otlp.ca` if that is empty.
    fn key(&self, name: &str) -> &'static str {
        let own = self.own(name);
        let is_set = match name {
            "headers" => !self.values.headers(own).is_empty(),
            _ => !self.values.text(own).is_empty(),
        };
        if is_set { own } else { key(&format!("otlp.{name}")) }
    }

    fn own(&self, name: &str) -> &'static str {
        let signal = match self.signal {
            Signal::Traces => "traces",
            Signal::Logs => "logs",
        };
        key(&format!("otlp.{signal}_{name}"))
    }

    fn text(&self, name: &str) -> &'a str {
        self.values.text(self.key(name))
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.values.file(self.key(name))
    }

    /// Which key says where it goes, and what. Of what is wrong by itself there is no endpoint.
    fn endpoint(&self) -> (&'static str, Uri) {
        (self.key("endpoint"), self.text("endpoint").parse().unwrap_or_default())
    }

    /// As it says, else by the endpoint: the port of OTLP over HTTP, or a path, which gRPC has of its own.
    fn protocol(&self) -> Protocol {
        match self.text("protocol") {
            "grpc" => Protocol::Grpc,
            "http/protobuf" => Protocol::Http,
            _ => {
                let (_, url) = self.endpoint();
                if url.port_u16() == Some(HTTP_PORT) || has_path(&url) { Protocol::Http } else { Protocol::Grpc }
            }
        }
    }

    /// A signal's own endpoint is taken as it is, the common one gets the signal's path.
    fn url(&self) -> Option<Uri> {
        let (key, origin) = self.endpoint();
        let (scheme, authority) = (origin.scheme_str()?, origin.authority()?);
        match self.protocol() {
            Protocol::Grpc => format!("{scheme}://{authority}{}", self.signal.grpc_path()).parse().ok(),
            Protocol::Http if key == "otlp.endpoint" => {
                let base = self.values.text(key).trim_end_matches('/');
                format!("{base}{}", self.signal.http_path()).parse().ok()
            }
            Protocol::Http => Some(origin),
        }
    }

    fn headers(&self) -> HeaderMap {
        let key = self.key("headers");
        let mut headers = self.values.headers(key).clone();
        if key == "otlp.headers" {
            headers.extend(self.values.headers("otlp.headers_file").clone());
        }
        headers
    }

    fn timeout(&self) -> Duration {
        let own = self.values.text(self.own("timeout"));
        parse_duration(own).unwrap_or_else(|_| self.values.duration("otlp.timeout"))
    }

    fn receiver(&self) -> Option<Receiver> {
        Some(Receiver {
            url: self.url()?,
            protocol: self.protocol(),
            headers: self.headers(),
            gzip: self.text("compression") == "gzip",
            timeout: self.timeout(),
            tls: tls::ClientSettings { ca: self.file("ca"), identity: self.file("cert").zip(self.file("key")) },
        })
    }
}

/// The key of that path.
fn key(path: &str) -> &'static str {
    find(path).expect("the table has every key that is asked for").path
}

fn has_path(url: &Uri) -> bool {
    !matches!(url.path(), "" | "/")
}

/// Where spans and log records go. Of what is wrong by itself it makes something, so that all mistakes can be looked for.
pub(super) fn settings(values: &Values<'_>) -> Settings {
    let receiver = |signal, switch| values.switch(switch).then(|| Said { values, signal }.receiver()).flatten();
    let resource: Vec<(String, String)> =
        values.list("otlp.resource").iter().filter_map(|item| pair(item).ok()).collect();
    let inherited = resource.iter().find(|(key, _)| key == "service.name").map(|(_, name)| &**name);
    let named = [Some(values.text("otlp.service_name")), inherited].into_iter().flatten().find(|name| !name.is_empty());
    Settings {
        traces: receiver(Signal::Traces, "otlp.traces"),
        logs: receiver(Signal::Logs, "otlp.logs"),
        batch_bytes: values.size("otlp.batch_bytes"),
        in_flight: values.count("otlp.in_flight"),
        candidates: parse_candidates(values.text("otlp.candidates")).unwrap_or(CANDIDATES_MAX),
        service_name: named.unwrap_or(SERVICE_NAME).to_owned(),
        resource,
        provider: values.text("otlp.provider").to_owned(),
        https: values.file("tls.cert").is_some(),
    }
}

/// Which traces are gone on with, sampled and exported.
pub(super) fn sampling(values: &Values<'_>) -> Sampling {
    let slower_than = Some(values.duration("trace.keep_slower_than")).filter(|limit| *limit > Duration::ZERO);
    let keep = Keep {
        errors: values.switch("trace.keep_errors"),
        slower_than,
        forced: values.switch("trace.keep_forced"),
        tenants: values.list("trace.keep_tenants").iter().filter_map(|tenant| parse_tenant(tenant)).collect(),
    };
    Sampling {
        trust_parent: values.switch("trace.trust_parent"),
        respect_unsampled: values.text("trace.unsampled_parent") == "respect",
        ratio: Ratio::of(values.share("trace.sample_ratio")),
        keep: settings(values).traces.map(|_| keep),
    }
}

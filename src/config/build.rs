//! From checked values to settings: what has to fit together, and one function per section.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::discovery::{self, sources};
use super::layers::Effective;
use super::logs::{json_log_settings, log_settings};
use super::mistake::{Mistakes, Origin};
use super::tables::Target;
use super::value::Value;
use super::{Config, Machine, Secret, Shown, Targets, engines, fleet, gpus, orca, otlp};
use crate::gateway::{ChoiceSettings, Routes, UpstreamRequestId};
use crate::snapshot::Policy;
use crate::store::Durability;
use crate::{gateway, lookup, pipeline, store, tenant, tls};

/// Pairs of which the first must not be more than the second, and what would happen.
const IN_ORDER: [(&str, &str, &str); 7] = [
    ("limits.body_bytes", "limits.buffered_bytes", "a body of the largest size could never be held"),
    ("fleet.poll_interval", "fleet.fresh_within", "every value would be stale before the next poll"),
    ("fleet.gpu_poll_interval", "fleet.gpu_fresh_within", "every value would be stale before the next poll"),
    ("fleet.poll_interval", "fleet.window", "rates need two polls within the window"),
    ("fleet.publish_interval", "fleet.fresh_within", "a view would be older than what it calls fresh"),
    ("store.wal_checkpoint_bytes", "store.wal_max_bytes", "the gateway would warn of it before it checkpoints"),
    ("store.ballast_bytes", "store.retention_bytes", "the ballast would be larger than the store"),
];

/// Notes what does not fit together. A key that is wrong by itself is left out.
pub(super) fn check(effective: &Effective, targets: Targets, mistakes: &mut Mistakes) {
    for (less, more, otherwise) in IN_ORDER {
        let ((small, origin), (large, large_origin)) = (effective.get(less), effective.get(more));
        if small.order(large) == Ordering::Greater && !mistakes.about(less) && !mistakes.about(more) {
            let origin = if *origin == Origin::Default { large_origin } else { origin };
            mistakes.add(origin.clone(), None, format!("{less} ({small}) is more than {more} ({large}): {otherwise}"));
        }
    }
    check_addresses(effective, mistakes);
    check_routes(effective, mistakes);
    check_models(effective, mistakes);
    gpus::check(effective, mistakes);
    check_tenant(effective, mistakes);
    for section in ["tls", "admin_tls"] {
        check_server_tls(section, effective, mistakes);
    }
    check_upstream_tls(effective, mistakes);
    for section in ["upstream", "fleet"] {
        check_credential(section, effective, mistakes);
    }
    otlp::check(effective, mistakes);
    orca::check(effective, mistakes);
    engines::check(effective, mistakes);
    let (Value::Targets(list), _) = effective.get("targets") else { unreachable!("targets are targets") };
    let none = list.is_empty() && sources(effective).is_empty();
    if targets == Targets::Required && none && !mistakes.about("targets") && !mistakes.about("discovery") {
        let text = "there is none: add [[targets]] or [[discovery]] to the file, or --target http://HOST:PORT, or SNAPGATE_TARGETS";
        mistakes.add(Origin::Default, Some("targets"), text);
    }
}

fn check_addresses(effective: &Effective, mistakes: &mut Mistakes) {
    let ((Value::Address(listen), listen_origin), (Value::Address(admin), origin)) =
        (effective.get("listen"), effective.get("admin"))
    else {
        unreachable!("both are addresses")
    };
    let same_host = listen.ip() == admin.ip() || listen.ip().is_unspecified() || admin.ip().is_unspecified();
    let wrong = mistakes.about("listen") || mistakes.about("admin");
    if same_host && listen.port() == admin.port() && listen.port() != 0 && !wrong {
        let origin = if *origin == Origin::Default { listen_origin } else { origin };
        mistakes.add(origin.clone(), None, format!("listen ({listen}) and admin ({admin}) need two ports"));
    }
}

fn check_routes(effective: &Effective, mistakes: &mut Mistakes) {
    let (Value::List(allow), origin) = effective.get("routes.allow") else { unreachable!("routes are a list") };
    if allow.is_empty() {
        mistakes.add(origin.clone(), Some("routes.allow"), "is empty: nothing would be forwarded");
    } else if allow.len() > 1 && allow.iter().any(|route| route == "*") {
        mistakes.add(origin.clone(), Some("routes.allow"), "\"*\" forwards everything: it stands alone");
    }
}

fn check_models(effective: &Effective, mistakes: &mut Mistakes) {
    let ((Value::Targets(targets), _), (Value::Models(models), origin)) =
        (effective.get("targets"), effective.get("models"))
    else {
        unreachable!("both are lists of tables")
    };
    let served = |name: &String| targets.iter().any(|target| target.models.is_empty() || target.models.contains(name));
    // What a file or a zone will say nobody knows; of a source that names models they are known.
    let discovered = |name: &String| {
        sources(effective)
            .iter()
            .any(|source| source.defaults.models.is_empty() || source.defaults.models.contains(name))
    };
    let known = |name: &String| served(name) || discovered(name);
    let nowhere = targets.is_empty() && sources(effective).is_empty();
    for model in models.iter().filter(|model| !nowhere && !known(&model.name)) {
        let text = format!("no target serves {}: name it in the `models` of a target", model.name);
        mistakes.add(origin.clone(), Some("models"), text);
    }
}

fn check_tenant(effective: &Effective, mistakes: &mut Mistakes) {
    let ((Value::Text(header), origin), (Value::List(trusted), _)) =
        (effective.get("tenant.header"), effective.get("tenant.trusted"))
    else {
        unreachable!("a text and a list")
    };
    if !header.is_empty() && trusted.is_empty() && !mistakes.about("tenant.trusted") {
        let text = "nobody is believed: name the proxies that set it in tenant.trusted";
        mistakes.add(origin.clone(), Some("tenant.header"), text);
    }
    let ((Value::Secret(Some(_)), _), (Value::Secret(Some(_)), origin)) =
        (effective.get("tenant.secret"), effective.get("tenant.secret_file"))
    else {
        return;
    };
    mistakes.add(origin.clone(), Some("tenant.secret_file"), "tenant.secret is set as well: keep one of them");
}

/// A certificate without its key serves nobody, and neither does one that does not fit it.
fn check_server_tls(section: &str, effective: &Effective, mistakes: &mut Mistakes) {
    let (values, keys) = (Values(effective), ["cert", "key", "client_ca"].map(|name| format!("{section}.{name}")));
    let wrong = match server_tls(section, &values) {
        Some(settings) => tls::check(&settings).err().map(|error| (&keys[0], error.to_string())),
        None => {
            let alone = keys.iter().find(|key| values.file(key).is_some());
            alone.map(|key| (key, format!("{} and {} go together: set both", keys[0], keys[1])))
        }
    };
    if let Some((key, text)) = wrong {
        mistakes.add(effective.get(key).1.clone(), None, format!("[{section}] {text}"));
    }
}

fn check_upstream_tls(effective: &Effective, mistakes: &mut Mistakes) {
    let values = Values(effective);
    let (cert, key) = (values.file("upstream.cert"), values.file("upstream.key"));
    let wrong = match (cert.is_some(), key.is_some()) {
        (true, false) => Some(("upstream.cert", "upstream.cert needs upstream.key as well".to_owned())),
        (false, true) => Some(("upstream.key", "upstream.key needs upstream.cert as well".to_owned())),
        (named, _) => {
            let blamed = if named { "upstream.cert" } else { "upstream.ca" };
            tls::check_client(&client_tls(&values)).err().map(|error| (blamed, format!("[upstream] {error}")))
        }
    };
    if let Some((key, text)) = wrong {
        mistakes.add(effective.get(key).1.clone(), None, text);
    }
}

fn check_credential(section: &str, effective: &Effective, mistakes: &mut Mistakes) {
    let (text, file) = (format!("{section}.authorization"), format!("{section}.authorization_file"));
    let values = Values(effective);
    let wrong = match credential(section, &values) {
        Some(_) if values.authorization(&text).is_some() && values.file(&file).is_some() => {
            Some(format!("{text} and {file} are both set: leave one out"))
        }
        credential => {
            credential.and_then(|settings| tls::check_credential(&settings).err()).map(|error| error.to_string())
        }
    };
    if let Some(wrong) = wrong {
        mistakes.add(effective.get(&file).1.clone(), None, wrong);
    }
}

/// The configuration. Only called when nothing is wrong.
pub(super) fn config(effective: &Effective, machine: &Machine) -> Config {
    let values = Values(effective);
    let admin = values.address("admin");
    Config {
        instance: instance(values.text("instance"), machine),
        listen: values.address("listen"),
        admin,
        tls: server_tls("tls", &values),
        admin_tls: server_tls("admin_tls", &values),
        upstream_tls: client_tls(&values),
        upstream_authorization: credential("upstream", &values),
        target_authorization: target_credentials(&values),
        fleet_authorization: credential("fleet", &values),
        tls_handshake_timeout: values.duration("timeouts.tls_handshake"),
        data_dir: PathBuf::from(values.text("data_dir")),
        json_log: json_log_settings(&values),
        otlp: otlp::settings(&values),
        log: log_settings(&values),
        fleet: fleet::settings(&values),
        discovery: discovery::settings(&values, effective),
        gateway: gateway_settings(&values, machine),
        shutdown_grace: values.duration("timeouts.shutdown_grace"),
        shutdown_delay: values.duration("timeouts.shutdown_delay"),
        pipeline: pipeline_settings(&values),
        store: values.switch("store.enabled").then(|| store_settings(&values)),
        tenants: tenant_settings(&values),
        lookup: lookup_settings(&values, admin.ip().is_loopback()),
        watch: values.switch("reload.watch"),
        shown: shown(effective),
        effective: effective.clone(),
    }
}

/// The configured name, else the host name in the form of a name.
fn instance(configured: &str, machine: &Machine) -> String {
    if !configured.is_empty() {
        return configured.to_owned();
    }
    let name: String =
        machine.hostname.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).take(64).collect();
    if name.is_empty() { "snapgate".to_owned() } else { name }
}

/// `None` without certificate and key.
fn server_tls(section: &str, values: &Values<'_>) -> Option<tls::ServerSettings> {
    let file = |name: &str| values.file(&format!("{section}.{name}"));
    Some(tls::ServerSettings { cert: file("cert")?, key: file("key")?, client_ca: file("client_ca") })
}

fn client_tls(values: &Values<'_>) -> tls::ClientSettings {
    let identity = values.file("upstream.cert").zip(values.file("upstream.key"));
    tls::ClientSettings { ca: values.file("upstream.ca"), identity }
}

fn credential(section: &str, values: &Values<'_>) -> Option<tls::CredentialSettings> {
    let text = values.authorization(&format!("{section}.authorization")).cloned().map(tls::CredentialSettings::Text);
    text.or_else(|| values.file(&format!("{section}.authorization_file")).map(tls::CredentialSettings::File))
}

fn target_credentials(values: &Values<'_>) -> Vec<(String, tls::CredentialSettings)> {
    let own = |target: &Target| Some((target.name.clone(), target.authorization.clone()?));
    values.targets().iter().filter_map(own).collect()
}

fn gateway_settings(values: &Values<'_>, machine: &Machine) -> gateway::Settings {
    let (allow, threads) = (values.list("routes.allow"), values.count("threads"));
    let header = |name: &String| HeaderName::try_from(name.as_str()).expect("the table's check has parsed it");
    let origin = |origin: &String| HeaderValue::try_from(origin.as_str()).expect("the table's check has parsed it");
    gateway::Settings {
        choice: choice_settings(values),
        routes: Routes::of(allow),
        threads: if threads == 0 { machine.cores } else { threads },
        in_flight_max: values.count("limits.in_flight"),
        connections_max: values.count("limits.connections"),
        connections_per_address_max: values.count("limits.connections_per_address"),
        body_bytes_max: values.size("limits.body_bytes"),
        buffered_bytes_max: values.size("limits.buffered_bytes"),
        head_bytes_max: values.size("limits.header_bytes"),
        headers_max: values.count("limits.headers"),
        request_head_timeout: values.duration("timeouts.request_header"),
        request_body_timeout: values.duration("timeouts.request_body"),
        connect_timeout: values.duration("timeouts.connect"),
        head_timeout: values.duration("timeouts.response_head"),
        silence_max: values.duration("timeouts.response_idle"),
        websocket_idle: values.duration("timeouts.websocket_idle"),
        client_stall: values.duration("timeouts.client_stall"),
        pool_idle_timeout: values.duration("timeouts.pool_idle"),
        pool_idle_per_target: values.count("upstream.pool_idle_per_target"),
        retries_max: values.count("upstream.retries"),
        retry_share: values.share("upstream.retry_share"),
        retry_timeouts: values.switch("upstream.retry_timeouts"),
        // Loaded when it starts.
        authorization_of: tls::Credentials::new(),
        cors_origins: values.list("routes.cors_origins").iter().map(origin).collect(),
        request_id: match values.text("upstream.request_id") {
            "off" => UpstreamRequestId::Off,
            "client" => UpstreamRequestId::Client,
            _ => UpstreamRequestId::Snapshot,
        },
        label_headers: values.list("record.headers").iter().map(header).collect(),
        sampling: otlp::sampling(values),
        load_reports: orca::settings(values),
    }
}

fn choice_settings(values: &Values<'_>) -> ChoiceSettings {
    let (Value::Models(models), _) = values.0.get("models") else { unreachable!("models are models") };
    ChoiceSettings {
        policy: Policy::from_name(values.text("policy")).expect("the table has only policies that exist"),
        policy_of_model: models.iter().map(|model| (model.name.as_str().into(), model.policy)).collect(),
        width: values.count("choice.width"),
        prefix_bytes: values.size("choice.prefix_bytes"),
        session_header: HeaderName::try_from(values.text("choice.session_header")).expect("its check has parsed it"),
        allow_forced: values.switch("choice.allow_forced"),
    }
}

fn pipeline_settings(values: &Values<'_>) -> pipeline::Settings {
    pipeline::Settings {
        queue_records: values.count("pipeline.queue_records"),
        queue_bytes: values.size("pipeline.queue_bytes"),
        commit_interval: values.duration("pipeline.commit_interval"),
        commit_records: values.count("pipeline.commit_records"),
        refused_per_second: values.count("pipeline.refused_per_second") as u32,
    }
}

fn store_settings(values: &Values<'_>) -> store::Settings {
    store::Settings {
        durability: match values.text("store.durability") {
            "power" => Durability::Power,
            _ => Durability::Process,
        },
        retention_age: values.duration("store.retention_age"),
        retention_bytes: values.bytes("store.retention_bytes"),
        wal_max_bytes: values.bytes("store.wal_max_bytes"),
        wal_checkpoint_bytes: values.bytes("store.wal_checkpoint_bytes"),
        ballast_bytes: values.bytes("store.ballast_bytes"),
    }
}

fn tenant_settings(values: &Values<'_>) -> tenant::Settings {
    let header = Some(values.text("tenant.header")).filter(|header| !header.is_empty());
    let network = |network: &String| network.parse().expect("the table's check has parsed it");
    let secret = values.secret("tenant.secret").or_else(|| values.secret("tenant.secret_file"));
    tenant::Settings {
        header: header.map(|header| HeaderName::try_from(header).expect("the table's check has parsed it")),
        trusted: values.list("tenant.trusted").iter().map(network).collect(),
        key: secret.map(|secret| tenant::Key::of_secret(secret.expose())),
    }
}

fn lookup_settings(values: &Values<'_>, loopback: bool) -> lookup::Settings {
    let (Value::Tokens(tokens), _) = values.0.get("lookup.tokens") else { unreachable!("tokens are tokens") };
    let token = |token: &super::tokens::Token| {
        let made = lookup::Token::new(&token.name, token.secret.expose()).allowed(token.scopes.clone());
        match &token.file {
            Some(file) => made.from_file(file.clone()),
            None => made,
        }
    };
    let link = |path| {
        let template = Some(values.text(path)).filter(|template| !template.is_empty());
        template.map(|template| template.parse().expect("the table's check has parsed it"))
    };
    lookup::Settings {
        tokens: tokens.iter().map(token).collect(),
        loopback,
        own_records: values.switch("lookup.own_records"),
        requests_per_second: values.small("lookup.requests_per_second"),
        own_requests_per_second: values.small("lookup.own_requests_per_second"),
        failures_per_minute: values.small("lookup.failures_per_minute"),
        connections_max: values.count("lookup.connections"),
        links: lookup::Links {
            trace: link("links.trace"),
            logs: link("links.logs"),
            dashboard: link("links.dashboard"),
        },
    }
}

fn shown(effective: &Effective) -> Vec<Shown> {
    let each = effective.iter();
    each.map(|(key, value, origin)| Shown {
        key: key.path,
        value: value.to_string(),
        origin: origin.clone(),
        live: key.is_live(),
    })
    .collect()
}

/// Values by kind. The table gives each key its kind, so that another one here is a mistake in this program; the test
/// that builds the defaults finds it.
pub(super) struct Values<'a>(&'a Effective);

impl<'a> Values<'a> {
    pub(super) fn of(effective: &'a Effective) -> Self {
        Self(effective)
    }

    pub(super) fn headers(&self, path: &str) -> &'a HeaderMap {
        match self.0.get(path).0 {
            Value::Headers(headers) => headers,
            other => unreachable!("{path} is no list of headers but {other}"),
        }
    }

    pub(super) fn duration(&self, path: &str) -> Duration {
        match self.0.get(path).0 {
            Value::Duration(duration) => *duration,
            other => unreachable!("{path} is no duration but {other}"),
        }
    }

    pub(super) fn bytes(&self, path: &str) -> u64 {
        match self.0.get(path).0 {
            Value::Bytes(bytes) => *bytes,
            other => unreachable!("{path} is no size but {other}"),
        }
    }

    /// Bytes in memory.
    pub(super) fn size(&self, path: &str) -> usize {
        usize::try_from(self.bytes(path)).unwrap_or(usize::MAX)
    }

    pub(super) fn small(&self, path: &str) -> u32 {
        match self.0.get(path).0 {
            Value::Count(count) => u32::try_from(*count).expect("the table bounds it"),
            other => unreachable!("{path} is no count but {other}"),
        }
    }

    pub(super) fn count(&self, path: &str) -> usize {
        self.small(path) as usize
    }

    pub(super) fn share(&self, path: &str) -> f64 {
        match self.0.get(path).0 {
            Value::Share(share) => *share,
            other => unreachable!("{path} is no share but {other}"),
        }
    }

    pub(super) fn switch(&self, path: &str) -> bool {
        match self.0.get(path).0 {
            Value::Switch(on) => *on,
            other => unreachable!("{path} is no switch but {other}"),
        }
    }

    fn address(&self, path: &str) -> std::net::SocketAddr {
        match self.0.get(path).0 {
            Value::Address(address) => *address,
            other => unreachable!("{path} is no address but {other}"),
        }
    }

    pub(super) fn text(&self, path: &str) -> &'a str {
        match self.0.get(path).0 {
            Value::Text(text) => text,
            other => unreachable!("{path} is no text but {other}"),
        }
    }

    fn secret(&self, path: &str) -> Option<&'a Secret> {
        match self.0.get(path).0 {
            Value::Secret(secret) => secret.as_ref(),
            other => unreachable!("{path} is no secret but {other}"),
        }
    }

    /// `None` for one that is left out.
    pub(super) fn file(&self, path: &str) -> Option<PathBuf> {
        Some(self.text(path)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn authorization(&self, path: &str) -> Option<&'a HeaderValue> {
        match self.0.get(path).0 {
            Value::Authorization(value) => value.as_ref(),
            other => unreachable!("{path} is no credential but {other}"),
        }
    }

    pub(super) fn targets(&self) -> &'a [Target] {
        match self.0.get("targets").0 {
            Value::Targets(targets) => targets,
            other => unreachable!("targets are no list of tables but {other}"),
        }
    }

    pub(super) fn gpu_exporters(&self) -> &'a [gpus::Exporter] {
        match self.0.get("gpu_exporters").0 {
            Value::GpuExporters(exporters) => exporters,
            other => unreachable!("exporters are no list of tables but {other}"),
        }
    }

    pub(super) fn engines(&self) -> &'a [engines::Engine] {
        match self.0.get("engines").0 {
            Value::Engines(engines) => engines,
            other => unreachable!("engines are no list of tables but {other}"),
        }
    }

    pub(super) fn list(&self, path: &str) -> &'a [String] {
        match self.0.get(path).0 {
            Value::List(list) => list,
            other => unreachable!("{path} is no list but {other}"),
        }
    }
}

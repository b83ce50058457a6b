//! The keys about the fleet: who the targets are, and how they are watched.

use super::build::Values;
use super::engines::{self, engine_name};
use super::gpus;
use super::keys::{D, GIB, H, KIB, Key, MS, S, bytes, count, time};
use super::tables::Target;
use super::texts::{file, request_path};
use super::value::Kind;
use crate::fleet::{Settings, TargetSettings};

/// The keys, in the order of the example file.
#[rustfmt::skip] // a table: one key, one place
pub(super) const KEYS: [Key; 23] = [
    Key { path: "fleet.poll_interval", kind: time(10 * MS, H), default: "500ms",
        doc: "Pause between two polls of a target's metrics, jittered." },
    Key { path: "fleet.poll_timeout", kind: time(MS, 60 * S), default: "2s",
        doc: "The longest a poll may take, of a target or of a GPU exporter." },
    Key { path: "fleet.poll_bytes", kind: bytes(KIB, GIB), default: "4MiB",
        doc: "The largest metrics page that is read." },
    Key { path: "fleet.target_share", kind: Kind::Share, default: "0.02",
        doc: "The largest share of a target's time that polls may take: when it answers slowly, it is asked less \
              often, each time at most half as often as before." },
    Key { path: "fleet.cpu_share", kind: Kind::Share, default: "0.1",
        doc: "The largest share of one core that all polls may take here: when there are many targets, each is \
              asked less often." },
    Key { path: "fleet.fresh_within", kind: time(MS, D), default: "2s",
        doc: "Up to this age a value is fresh, beyond it is stale. A page that is read less often, because it is slow or there \
              are many, is fresh for 2.5 of its own intervals." },
    Key { path: "fleet.fresh_within_max", kind: time(MS, D), default: "15s",
        doc: "But for no longer than this, or than fleet.fresh_within if that is more." },
    Key { path: "fleet.gpu_poll_interval", kind: time(10 * MS, H), default: "1s",
        doc: "Pause between two polls of a GPU exporter, jittered. Exporters measure no more often than they are told \
              (DCGM_EXPORTER_INTERVAL, 30 s if nobody says): what they say is older by up to that." },
    Key { path: "fleet.gpu_fresh_within", kind: time(MS, D), default: "5s",
        doc: "As fleet.fresh_within, for what GPU exporters say." },
    Key { path: "fleet.window", kind: time(S, H), default: "10s",
        doc: "Over how long rates per second and the prefix cache's hit ratio are taken." },
    Key { path: "fleet.publish_interval", kind: time(10 * MS, 60 * S), default: "100ms",
        doc: "Pause between two views of the fleet, from which targets are chosen." },
    Key { path: "fleet.metrics_path", kind: Kind::Text(request_path), default: "/metrics",
        doc: "Where a target's metrics are, unless its `metrics` says otherwise." },
    Key { path: "fleet.engine", kind: Kind::Text(engine_name), default: "auto",
        doc: "Whose metrics the targets serve. auto: vLLM's or SGLang's, whichever is on the page. By documentation and not \
              tried: tensorrt_llm, triton, tgi, llama_cpp. Else the name of one of [[engines]]. A target with an `engine` of \
              its own goes by that." },
    Key { path: "fleet.probe_path", kind: Kind::Text(request_path), default: "/health",
        doc: "Where a target says that it is alive, with a status of 2xx." },
    Key { path: "fleet.probe_interval", kind: time(10 * MS, H), default: "1s",
        doc: "Pause between two probes of a target." },
    Key { path: "fleet.probe_timeout", kind: time(MS, 60 * S), default: "1s",
        doc: "The longest a probe may take." },
    Key { path: "fleet.unhealthy_after", kind: count(1, 1000), default: "3",
        doc: "Failed probes in a row after which a target gets no more requests." },
    Key { path: "fleet.healthy_after", kind: count(1, 1000), default: "1",
        doc: "Good probes in a row after which it gets requests again." },
    Key { path: "fleet.eject_after", kind: count(0, 1_000_000), default: "5",
        doc: "Requests failed in a row (not connected, broken off, timed out, or answered with 5xx) after which a target \
              is passed over for a while, but never more than half of those that serve a model; 0 for never." },
    Key { path: "fleet.drain_time", kind: time(0, H), default: "1m",
        doc: "How long what ends at a target that has left the fleet is still counted under its name; as long it is listed \
              while it has requests. It gets no new ones from the start, and none of them is cut off at the end." },
    Key { path: "fleet.eject_time", kind: time(10 * MS, H), default: "10s",
        doc: "For how long at first; twice as long each time it comes back only to fail, up to 32 times as long." },
    Key { path: "fleet.authorization", kind: Kind::Authorization, default: "",
        doc: "What polls and probes present in the header authorization: a token, or a scheme and what belongs to it. It is never recorded or shown." },
    Key { path: "fleet.authorization_file", kind: Kind::Text(file), default: "",
        doc: "A file that holds it, instead. A changed one is used within a second." },
];

pub(super) fn settings(values: &Values<'_>) -> Settings {
    let exporters = values.gpu_exporters();
    let target = |target: &Target| TargetSettings {
        gpus: target.gpus.count(),
        gpus_of: (!exporters.is_empty()).then(|| target.gpus.of(&target.name)),
        models: target.models.clone(),
        engine: target.engine.clone(),
        metrics_at: target.metrics_at.clone(),
        ask_for_load_report: target.ask_for_load_report,
        ..TargetSettings::new(&target.name, &target.address)
    };
    Settings {
        targets: values.targets().iter().map(target).collect(),
        poll_interval: values.duration("fleet.poll_interval"),
        poll_timeout: values.duration("fleet.poll_timeout"),
        poll_bytes_max: values.size("fleet.poll_bytes"),
        poll_target_share: values.share("fleet.target_share"),
        poll_cpu_share: values.share("fleet.cpu_share"),
        fresh_within: values.duration("fleet.fresh_within"),
        fresh_within_max: values.duration("fleet.fresh_within_max"),
        window: values.duration("fleet.window"),
        publish_interval: values.duration("fleet.publish_interval"),
        probe_path: values.text("fleet.probe_path").to_owned(),
        probe_interval: values.duration("fleet.probe_interval"),
        probe_timeout: values.duration("fleet.probe_timeout"),
        unhealthy_after: values.small("fleet.unhealthy_after"),
        healthy_after: values.small("fleet.healthy_after"),
        metrics_path: values.text("fleet.metrics_path").to_owned(),
        engine: values.text("fleet.engine").to_owned(),
        engines: engines::settings(values),
        eject_after: values.small("fleet.eject_after"),
        eject_time: values.duration("fleet.eject_time"),
        drain_time: values.duration("fleet.drain_time"),
        // Loaded when it starts.
        connector: None,
        authorization: None,
        gpu_exporters: exporters.iter().map(gpus::Exporter::settings).collect(),
        gpu_poll_interval: values.duration("fleet.gpu_poll_interval"),
        gpu_fresh_within: values.duration("fleet.gpu_fresh_within"),
    }
}

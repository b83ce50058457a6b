"""The configurations of what the gateway's telemetry goes to: they know each other, the gateway, and Compose's names.

Only Prometheus's own is checked by its program; of the others none is to be had from Debian or PyPI.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from conftest import ROOT, Program, ask, serving, simulated_pod, until
from registries import fields

COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
BESIDE_COMPOSE = {"jaeger"}
"""Hosts that the configurations name and Compose does not start."""

FINGERPRINT = 1000
"""Bytes at its beginning by which the Collector knows a file, whatever it is called: `fingerprint_size` unless it is set."""


def otel(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"otel/{name}.yaml").read_text())


def provisioned(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"dashboards/provisioning/{name}.yaml").read_text())


def components(pipelines: dict[str, Any], kind: str) -> set[str]:
    return {name for pipeline in pipelines.values() for name in pipeline[kind]}


def test_promtool_accepts_the_configuration(promtool: str):
    done = subprocess.run([promtool, "check", "config", ROOT / "otel/prometheus.yaml"], text=True, capture_output=True)
    assert done.returncode == 0 and "1 rule files found" in done.stdout, done.stdout + done.stderr
    assert "--enable-feature=exemplar-storage" in COMPOSE["prometheus"]["command"]


def test_a_pipeline_uses_what_is_defined():
    for name in ("collector", "jaeger"):
        config = otel(name)
        for kind in ("receivers", "processors", "exporters"):
            used = components(config["service"]["pipelines"], kind)
            assert used <= set(config[kind]), (name, kind)
        assert set(config["service"]["extensions"]) == set(config["extensions"]), name


def test_hosts_are_services_and_listen_where_they_are_asked():
    ports = {
        "tempo": {otel("tempo")["server"]["http_listen_port"], 4317, 4318},
        "loki": {otel("loki")["server"]["http_listen_port"]},
        "jaeger": {16686, 4317, 4318},
        "prometheus": {9090},
        "gateway": {8081},
    }
    text = json.dumps([otel("collector")["exporters"], otel("prometheus")["scrape_configs"], provisioned("datasources")])
    asked = re.findall(r'(?:"|//)([a-z]+):(\d+)', text)
    assert {host for host, _ in asked} == {"tempo", "loki", "jaeger", "prometheus", "gateway"}
    for host, port in asked:
        assert int(port) in ports[host]
        assert host in COMPOSE or host in BESIDE_COMPOSE
    for name in ("tempo", "jaeger", "collector"):
        config = otel(name)
        receivers = config["distributor"]["receivers"] if name == "tempo" else config["receivers"]
        protocols = receivers["otlp"]["protocols"]
        assert [protocols[kind]["endpoint"] for kind in ("grpc", "http")] == ["0.0.0.0:4317", "0.0.0.0:4318"]


def test_the_collector_reads_the_gateways_log_and_takes_fields_that_it_has():
    log = COMPOSE["gateway"]["environment"]["SNAPGATE_JSON_LOG"]
    receiver = otel("collector")["receivers"]["filelog/snapshots"]
    assert receiver["include"][0] == log and "fingerprint_size" not in receiver
    volume = f"log:{PurePosixPath(log).parent}"
    assert volume in COMPOSE["gateway"]["volumes"]
    ours = [mount for mount in COMPOSE["collector"]["volumes"] if not mount.startswith("../otel/")]
    assert ours == [f"{volume}:ro"], "neither the store nor the secret behind `tenant`"
    taken = re.findall(r"attributes\.snapshot\.([\w.]+)", json.dumps(receiver))
    assert set(taken) <= fields() and {"id", "trace.trace_id"} <= set(taken)
    moved = [operator["to"] for operator in receiver["operators"] if operator["type"] == "move"]
    assert moved == ["attributes.snapshot_id"]


def test_the_collector_reads_files_that_were_put_aside_too_and_each_one_once(snapgate: Program, tmp_path: Path):
    log = tmp_path / "log" / PurePosixPath(COMPOSE["gateway"]["environment"]["SNAPGATE_JSON_LOG"]).name
    env = {"SNAPGATE_JSON_LOG": str(log), "SNAPGATE_JSON_LOG_MAX_BYTES": "8KiB"}
    with simulated_pod() as pod, serving(pod, tmp_path / "data", env) as gateway:
        until("some files were put aside", lambda: ask(gateway) and len(list(log.parent.glob("*"))) > 3)
    files = sorted(log.parent.iterdir())
    patterns = [PurePosixPath(pattern) for pattern in otel("collector")["receivers"]["filelog/snapshots"]["include"]]
    assert {pattern.parent for pattern in patterns} == {PurePosixPath("/var/log/snapgate")}
    assert sorted(file for pattern in patterns for file in log.parent.glob(pattern.name)) == files
    beginnings = {file.read_bytes()[:FINGERPRINT] for file in files}
    assert len(beginnings) == len(files) and {len(beginning) for beginning in beginnings} == {FINGERPRINT}


def test_data_sources_lead_to_each_other():
    sources = {source["uid"]: source for source in provisioned("datasources")["datasources"]}
    text = json.dumps(sources)
    assert set(re.findall(r'"datasourceUid": "(\w+)"', text)) == {"tempo", "loki"} <= set(sources)
    exemplars = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    # src/telemetry/metrics/histogram.rs
    assert {each["name"] for each in exemplars} == {"trace_id", "snapshot_id"}
    derived = sources["loki"]["jsonData"]["derivedFields"]
    assert {each["matcherRegex"] for each in derived} == {"trace_id", "snapshot_id"}
    assert not re.search(r"(?<!\$)\$\{", text), "a $ that Grafana would take for a variable of its environment"


def test_compose_provisions_what_is_there():
    mounts = dict(volume.split(":")[1::-1] for volume in COMPOSE["grafana"]["volumes"])
    for source in mounts.values():
        assert (ROOT / "deploy" / source).exists(), source
    (provider,) = provisioned("dashboards")["providers"]
    assert mounts[provider["options"]["path"]] == "../dashboards"

"""deploy/compose.yaml: valid by the Compose specification, and agrees with the program and the files it mounts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Program, seconds, shutdown_seconds

FILE = ROOT / "deploy/compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]
PODS = {name: service for name, service in SERVICES.items() if service.get("command", [""])[0] == "sim"}


def validated(file: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", file]
    return subprocess.run(command, text=True, capture_output=True)


def mounted(path: str):
    """A file of ours as a service sees it."""
    sources = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    (source,) = [source for source, target, *_ in sources if target == path]
    return yaml.safe_load((FILE.parent / source).read_text())


def test_it_is_valid_and_a_mistake_would_be_found(tmp_path: Path):
    done = validated(FILE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("stop_grace_period", "stop_grace"))
    assert "stop_grace" in validated(wrong).stdout


def test_the_gateway_takes_its_variables(snapgate: Program):
    gateway = SERVICES["gateway"]
    variables = {name: re.sub(r"\$\{.*\}", "0123456789abcdef", value) for name, value in gateway["environment"].items()}
    settings = snapgate.effective(env=variables)
    listened = [settings[key].rpartition(":")[2] for key in ("listen", "admin")]
    assert [port.rpartition(":")[2] for port in gateway["ports"]] == listened
    assert mounted("/etc/prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"] == [
        f"gateway:{listened[1]}"
    ]
    ports = {
        name: pod["command"][pod["command"].index("--listen") + 1].rpartition(":")[2] for name, pod in PODS.items()
    }
    assert {target["name"]: target["url"] for target in settings["targets"]} == {
        name: f"http://{name}:{port}" for name, port in ports.items()
    }
    assert {exporter["url"] for exporter in settings["gpu_exporters"]} == {
        f"http://{name}:{port}/dcgm/metrics" for name, port in ports.items()
    }
    assert seconds(gateway["stop_grace_period"]) >= shutdown_seconds(settings)
    assert settings["lookup"]["tokens"], "beyond loopback there are no lookups without"


@pytest.mark.parametrize("name", ["gateway", *PODS])
def test_a_command_is_accepted_and_its_container_is_confined(snapgate: Program, name: str):
    service = SERVICES[name]
    snapgate.assert_accepts(service["command"])
    assert service["read_only"] and service["cap_drop"] == ["ALL"]


def test_grafana_asks_services_that_are_there():
    for source in mounted("/etc/grafana/provisioning/datasources/snapgate.yaml")["datasources"]:
        assert re.match(r"http://(\w+):", source["url"])[1] in SERVICES
    assert mounted("/etc/tempo.yaml")["server"]["http_listen_port"] == 3200


def test_other_images_have_a_version_and_nothing_is_published_beyond_this_machine():
    for name, service in SERVICES.items():
        assert re.search(r"^snapgate$|:v?\d+\.\d+\.\d+$", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name

"""The program under test, and a gateway in front of a simulated pod; each on ports that the system chooses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(os.environ.get("SNAPGATE_BIN", ROOT / "target/debug/snapgate")).absolute()

PATIENCE = 30.0
"""Seconds that something may take that should take no time."""

SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / "otel/snapshot.schema.json").read_text()))
"""What every document has to comply with."""

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SNAPGATE_")}
"""Without variables that the program would take for its configuration."""


class Program:
    """The command line."""

    def run(self, *arguments: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        command = [str(PROGRAM), *arguments]
        return subprocess.run(command, env={**ENVIRONMENT, **env}, text=True, capture_output=True, timeout=PATIENCE)

    def assert_accepts(self, arguments: list[str]) -> None:
        """That a command line is well-formed, without running it: help is printed only after what precedes it was read."""
        done = self.run(*arguments, "--help")
        assert done.returncode == 0, done.stderr

    def effective(self, file: Path = Path(os.devnull), env: Mapping[str, str] = {}) -> dict[str, Any]:
        """The whole configuration that a file and variables amount to, once `snapgate check` has accepted them."""
        done = self.run("check", str(file), env=env)
        assert done.returncode == 0, done.stderr
        return tomllib.loads(done.stdout.partition("\n\n")[2])


def checked(document: dict[str, Any]) -> dict[str, Any]:
    """The document, once the published schema has no objection."""
    errors = [f"{error.json_path}: {error.message}" for error in SCHEMA.iter_errors(document)]
    assert not errors, f"{document}\nis no valid document:\n" + "\n".join(errors)
    return document


@pytest.fixture(scope="session")
def snapgate() -> Program:
    assert PROGRAM.exists(), f"{PROGRAM} is missing: cargo build"
    return Program()


@dataclass
class Gateway:
    """Where it listens."""

    url: str
    admin: str


@contextlib.contextmanager
def listening(*arguments: str, env: Mapping[str, str] = {}) -> Iterator[dict[str, Any]]:
    """Runs a command until the end of the block; gives its line that says where it listens."""
    command = [str(PROGRAM), *arguments]
    process = subprocess.Popen(command, env={**ENVIRONMENT, **env}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = (json.loads(line) for line in process.stderr)
        started = next(line for line in lines if line.get("event") == "listening")
        # Its log goes on, and nobody may wait for a full pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield started
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="session")
def gateway(snapgate: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with simulated_pod() as pod, serving(pod, tmp_path_factory.mktemp("data")) as gateway:
        yield gateway


@contextlib.contextmanager
def simulated_pod(*more: str) -> Iterator[str]:
    """Its URL."""
    with listening("sim", "--listen", "127.0.0.1:0", "--ttft", "5ms", "--token-time", "1ms", *more) as pod:
        yield f"http://{pod['listen']}"


@contextlib.contextmanager
def serving(pod: str, data_dir: Path, env: Mapping[str, str] = {}) -> Iterator[Gateway]:
    """A gateway in front of a pod, once it is ready. At the end of the block it gets SIGTERM and is waited for."""
    options = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", str(data_dir))
    with listening("serve", *options, "--target", f"vllm-0={pod}", env=env) as started:
        gateway = Gateway(f"http://{started['listen']}", f"http://{started['admin']}")
        wait_until_ready(gateway)
        yield gateway


def wait_until_ready(gateway: Gateway) -> None:
    """The first probe of the pod has to come back."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{gateway.admin}/readyz"):
                return
        except urllib.error.HTTPError as error:
            assert time.monotonic() < deadline, error.read()
            time.sleep(0.01)


MODEL = "llama-3.1-8b"
"""What the simulated pod serves."""


@pytest.fixture(scope="module")
def used(snapgate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that has answered, streamed, refused and failed: in front of a pod that is configured and one that a file names,
    with exporters that tell of the GPUs of both."""
    home = tmp_path_factory.mktemp("home")
    with (
        simulated_pod("--name", "vllm-0", "--gpus", "1") as pod,
        simulated_pod("--name", "vllm-1", "--gpus", "2") as found,
    ):
        pods = home / "pods.json"
        pods.write_text(json.dumps([{"name": "vllm-1", "url": found}]))
        exporters = [f'{{ node = "node-{n}", url = "{url}/dcgm/metrics" }}' for n, url in enumerate((pod, found))]
        env = {
            "SNAPGATE_JSON_LOG": str(home / "snapshots.json"),
            "SNAPGATE_DISCOVERY": f'[{{ kind = "file", path = "{pods}" }}]',
            "SNAPGATE_GPU_EXPORTERS": f"[{', '.join(exporters)}]",
        }
        with serving(pod, home / "data", env) as gateway:
            for _ in range(20):
                ask(gateway)
                ask(gateway, stream=True)
            ask(gateway, path="/v1/files")
            yield gateway


def ask(gateway: Gateway, path: str = "/v1/chat/completions", **more: Any) -> int:
    question = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 5} | more
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(gateway.url + path, json.dumps(question).encode(), headers)
    try:
        with urllib.request.urlopen(request) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def scrape(gateway: Gateway, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"{gateway.admin}/metrics", headers={"accept": accept})
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def until(what: str, done: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def promtool() -> str:
    return installed("promtool")


@pytest.fixture(scope="module")
def prometheus(used: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scraped(used.admin, tmp_path_factory.mktemp("prometheus")) as url:
        yield url


@contextlib.contextmanager
def scraped(admin: str, folder: Path) -> Iterator[str]:
    """The URL of a Prometheus that scrapes the gateway with this admin listener and looks for alerts each second."""
    program = installed("prometheus")
    target = admin.removeprefix("http://")
    job = {"job_name": "snapgate", "static_configs": [{"targets": [target]}]}
    config = folder / "prometheus.yml"
    # JSON is YAML.
    often = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    alerts = [str(ROOT / "otel/alerts.yaml")]
    config.write_text(json.dumps({"global": often, "scrape_configs": [job], "rule_files": alerts}))
    address = free_address()
    with (folder / "log").open("w") as log, running(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--enable-feature=exemplar-storage",
        ],
        log,
    ):
        until("Prometheus is ready", lambda: answers(f"http://{address}/-/ready"))
        yield f"http://{address}"


def installed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is missing: install Debian's package prometheus")
    return path


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def running(command: list[str], log: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status == 200
    except OSError:
        return False


def api(prometheus: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}") as answer:
        return json.load(answer)["data"]


def seconds(duration: str) -> float:
    """A duration as the configuration, systemd and Compose write it: `1m30s`."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    parts = re.findall(r"(\d+)(ms|s|m|h)", duration)
    assert "".join(map("".join, parts)) == duration, duration
    return sum(int(number) * units[unit] for number, unit in parts)


def size(text: str) -> int:
    """Bytes of a size as the configuration and Kubernetes write it: `16MiB`, `20Gi`."""
    number, power = re.fullmatch(r"(\d+)([KMGT])iB?", text).groups()
    return int(number) << 10 * ("KMGT".index(power) + 1)


def shutdown_seconds(settings: Mapping[str, Any]) -> float:
    """The longest a gateway takes from SIGTERM to its end: both waits, then what src/app/mod.rs allows each stage."""
    stages = re.findall(r"const \w+_GRACE: Duration = Duration::from_secs\((\d+)\)", (ROOT / "src/app/mod.rs").read_text())
    assert stages
    waits = (settings["timeouts"][key] for key in ("shutdown_delay", "shutdown_grace"))
    return sum(map(seconds, waits)) + sum(map(int, stages))

"""What is compared: how each subject is started, proved to work, and held to what it says it records."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import load
from backend import PODS, Workload
from processes import Failure, Process, free_ports, nginx_user, render, start_nginx

READY_SECONDS = 30.0
"""How long a subject may take until its first good answer."""

SETTLE_SECONDS = 60.0
"""How long a subject may take after a round until everything it records is written."""

POLL_SECONDS = 0.25
"""Between two looks at what is still to be written; what is the same twice has settled."""

LOOKUP_SECONDS = 5.0
"""How long the last proving request may take to be stored, or without a store to be forgotten."""

PROOFS = 4 * PODS
"""Requests that prove a subject before it is timed: enough to meet every pod in turn."""

CHECKED_BYTES = 1 << 20
"""How much of a log is read as JSON after a round, from its end; the lines before are only counted."""

BODY_BYTES_MAX = 16 << 20
"""The request body every subject accepts at most: snapgate's default."""

SNAPSHOT_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Kind:
    """One kind of subject."""

    about: str
    id_header: str | None = None
    """The header of an answer that names the request."""
    store: bool = False
    log_id: str | None = None
    """The key of a log line that names the request; none if there is no log."""
    goal: float | None = None
    """The share of nginx's requests per second it has to reach."""


KINDS = {
    "nginx": Kind("nginx, round robin, request ID, JSON access log", id_header="x-request-id", log_id="request_id"),
    "vllm-router": Kind("vllm-router, round robin, its log and metrics at defaults", id_header="x-request-id"),
    "snapgate": Kind("snapgate, round robin, recording off", id_header="x-snapshot-id", goal=0.9),
    "snapgate-record": Kind(
        "snapgate, round robin, store and JSON log", id_header="x-snapshot-id", store=True, log_id="id", goal=0.75
    ),
    "snapgate-store": Kind("snapgate, round robin, store alone", id_header="x-snapshot-id", store=True),
    "snapgate-log": Kind("snapgate, round robin, JSON log alone", id_header="x-snapshot-id", log_id="id"),
    "direct": Kind("no proxy: the load generator on one pod, the ceiling of this set-up"),
}
DEFAULT_SUBJECTS = ("nginx", "vllm-router", "snapgate", "snapgate-record")


@dataclass(frozen=True)
class Tools:
    """The programs, each found and runnable."""

    nginx: str
    wrk: str
    router: str | None
    snapgate: str | None
    threads: int


@dataclass(frozen=True)
class Books:
    """What a subject recorded of one round."""

    lines: int | None = None
    """New lines of its log; none if it has no log."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Records it says it dropped or rejected, by exit and reason."""
    settle_seconds: float = 0.0
    """From the end of the load until all was written."""


class Subject:
    """A subject that has been started."""

    def __init__(
        self, name: str, process: Process | None, port: int, log: Path | None = None, admin: int | None = None
    ):
        self.name = name
        self.kind = KINDS[name]
        self.process = process
        self.port = port
        self._log = log
        self._admin = admin
        self._lost: dict[str, int] = {}

    def wait_until_ready(self, workload: Workload) -> None:
        """Waits for the first good answer."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self.process is not None:
                self.process.check()
            try:
                answer = load.post(self.port, workload.request)
                said = f"status {answer.status}: {answer.body[:300]!r}"
                if answer.status == 200:
                    return
            except OSError as error:
                said = str(error)
            if time.monotonic() > deadline:
                words = self.process.last_words() if self.process else "(none)"
                raise Failure(
                    f"{self.name} was not ready after {READY_SECONDS:.0f} s ({said}); its last words:\n{words}"
                )
            time.sleep(0.1)

    def prove(self, workload: Workload) -> None:
        """Shows that answers are the backend's to the byte, from all pods, each with an ID, recorded or not as told."""
        pods, ids = set(), []
        for _ in range(PROOFS):
            answer = load.post(self.port, workload.request)
            if (answer.status, answer.body) != (200, workload.answer):
                raise Failure(
                    f"{self.name} does not pass the answer on as it is: {answer.status} {answer.body[:300]!r}"
                )
            pods.add(answer.headers.get("x-pod"))
            if self.kind.id_header:
                ids.append(answer.headers.get(self.kind.id_header, ""))
        if self.name == "direct":
            return
        if len(pods) != PODS:
            raise Failure(f"{self.name} used {len(pods)} of {PODS} pods in {PROOFS} requests")
        if not all(ids) or len(set(ids)) != PROOFS:
            raise Failure(f"{self.name} sent no {self.kind.id_header} of its own with each answer: {ids}")
        if self._admin is not None:
            self._prove_lookup(ids, self._admin)

    def _prove_lookup(self, ids: list[str], admin: int) -> None:
        """With the store the last ID resolves; without it, it soon must not: else recording is not off."""
        if not all(SNAPSHOT_ID.fullmatch(each) for each in ids):
            raise Failure(f"{self.name} sent IDs that are not 32 hex digits: {ids}")
        deadline = time.monotonic() + LOOKUP_SECONDS
        while True:
            answer = load.get(admin, f"/v1/snapshots/{ids[-1]}")
            document = json.loads(answer.body) if answer.status == 200 else {}
            if (document.get("id") == ids[-1] and document.get("phase") == "complete") == self.kind.store:
                return
            if time.monotonic() > deadline:
                state = "on" if self.kind.store else "off"
                said = f"{answer.status} {answer.body[:300]!r}"
                raise Failure(f"{self.name}: its store should be {state}, but a lookup says {said}")
            time.sleep(POLL_SECONDS)

    def open_books(self) -> None:
        """Forgets what was recorded so far: call it before a round, when all has settled."""
        self._settle()
        if self._log is not None:
            _take_lines(self._log, None)
        self._lost = self._lost_records()

    def close_books(self, requests: int, connections: int) -> Books:
        """Waits until all is written and compares it with what the load generator counted."""
        started = time.monotonic()
        self._settle()
        seconds = time.monotonic() - started
        before = self._lost
        lost = {reason: count - before.get(reason, 0) for reason, count in self._lost_records().items()}
        lost = {reason: count for reason, count in lost.items() if count}
        if self._log is None:
            return Books(None, lost, seconds)
        lines = _take_lines(self._log, self.kind.log_id)
        # What was in flight when the load ended is in the log but was never counted.
        if lines > requests + connections:
            raise Failure(f"{self.name} logged {lines} lines for {requests} requests on {connections} connections")
        if lines + sum(lost.values()) < requests:
            raise Failure(
                f"{self.name} logged {lines} lines for {requests} requests and owns up to {lost or 'no drops'}"
            )
        return Books(lines, lost, seconds)

    def _settle(self) -> None:
        """Waits until nothing more is written and nothing is pending."""
        deadline = time.monotonic() + SETTLE_SECONDS
        last = None
        while True:
            size = self._log.stat().st_size if self._log else 0
            page = self._metrics()
            pending = sum(value for (name, _), value in page.items() if name == "snapgate_snapshots_pending")
            now = (size, [value for (name, _), value in sorted(page.items()) if name.startswith("snapgate_snapshots_")])
            if now == last and pending == 0:
                return
            if time.monotonic() > deadline:
                raise Failure(f"{self.name} still had {pending:.0f} records to write after {SETTLE_SECONDS:.0f} s")
            last = now
            time.sleep(POLL_SECONDS)

    def _lost_records(self) -> dict[str, int]:
        """Records dropped or rejected since the start, by the labels of their counter."""
        lost = ("snapgate_snapshots_dropped_total", "snapgate_snapshots_rejected_total")
        return {
            f"{name.split('_')[2]} {labels}": int(value)
            for (name, labels), value in self._metrics().items()
            if name in lost
        }

    def _metrics(self) -> dict[tuple[str, str], float]:
        if self._admin is None:
            return {}
        answer = load.get(self._admin, "/metrics")
        if answer.status != 200:
            raise Failure(f"{self.name}: /metrics answers {answer.status} {answer.body[:300]!r}")
        return parse_metrics(answer.body.decode())


def parse_metrics(page: str) -> dict[tuple[str, str], float]:
    """Samples by name and labels (as written) of a page in the OpenMetrics or Prometheus text format."""
    samples = {}
    for line in page.splitlines():
        match = re.match(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
        if match:
            samples[match[1], match[2] or ""] = float(match[3])
    return samples


def _take_lines(path: Path, id_key: str | None) -> int:
    """Counts a log's lines and empties it, so that old lines neither fill the disk nor wait to be written back to it.

    With `id_key` the last lines are read as JSON, and that key must differ in each.
    """
    count, size = 0, 0
    with open(path, "rb") as log:
        while block := log.read(1 << 20):
            if size == 0 and block.startswith(b"\0"):
                raise Failure(f"{path.name} has a hole: its writer does not append, so it cannot be emptied while open")
            count += block.count(b"\n")
            size += len(block)
        log.seek(max(0, size - CHECKED_BYTES))
        end = log.read()
    if end and not end.endswith(b"\n"):
        raise Failure(f"{path.name} ends within a line: {end[-300:]!r}")
    if id_key:
        lines = end.splitlines()[1 if size > CHECKED_BYTES else 0 :]  # the first may be half a line
        ids = [json.loads(line)[id_key] for line in lines]
        if len(set(ids)) != len(ids):
            raise Failure(f"{path.name} names the same {id_key} twice")
    os.truncate(path, 0)
    return count


def start(name: str, tools: Tools, directory: Path, pods: list[int]) -> Subject:
    """Starts a subject in front of these pods, with everything it writes in `directory`."""
    if name == "direct":
        return Subject(name, None, pods[0])
    if name == "nginx":
        return _start_nginx(tools, directory, pods)
    if name == "vllm-router":
        return _start_router(tools, directory, pods)
    return _start_snapgate(name, tools, directory, pods)


def _start_nginx(tools: Tools, directory: Path, pods: list[int]) -> Subject:
    (port,) = free_ports(1)
    values = {
        "USER": nginx_user(),
        "THREADS": str(tools.threads),
        "PORT": str(port),
        "SERVERS": " ".join(f"server 127.0.0.1:{pod};" for pod in pods),
    }
    configuration = render(Path(__file__).with_name("nginx-proxy.conf"), values)
    return Subject(
        "nginx", start_nginx("nginx", tools.nginx, directory, configuration), port, directory / "access.json"
    )


def _start_router(tools: Tools, directory: Path, pods: list[int]) -> Subject:
    port, metrics = free_ports(2)
    command = [str(tools.router), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--worker-urls", *(f"http://127.0.0.1:{pod}" for pod in pods)]
    command += ["--prometheus-port", str(metrics), "--max-payload-size", str(BODY_BYTES_MAX)]
    # It has no option for its threads; tokio, on which it runs, takes them from here.
    environment = {**os.environ, "TOKIO_WORKER_THREADS": str(tools.threads)}
    return Subject("vllm-router", Process("vllm-router", command, directory, environment), port)


def _start_snapgate(name: str, tools: Tools, directory: Path, pods: list[int]) -> Subject:
    kind = KINDS[name]
    port, admin = free_ports(2)
    log = directory / "snapshots.json" if kind.log_id else None
    command = [str(tools.snapgate), "serve", "--policy", "round_robin", "--data-dir", str(directory / "data")]
    command += ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--json-log", str(log or "off")]
    for number, pod in enumerate(pods):
        command += ["--target", f"pod-{number}=http://127.0.0.1:{pod}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SNAPGATE_")}
    environment["SNAPGATE_STORE_ENABLED"] = "true" if kind.store else "false"
    environment["SNAPGATE_THREADS"] = str(tools.threads)
    if log:
        log.touch()
    return Subject(name, Process(name, command, directory, environment), port, log, admin)

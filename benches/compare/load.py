"""The load: wrk for the rounds, and single requests for the checks around them."""

from __future__ import annotations

import http.client
import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from processes import Failure, run_bounded

PATH = "/v1/chat/completions"
REQUEST_SECONDS = 10.0
"""The longest a single request may take."""

WRK_GRACE_SECONDS = 30.0
"""How much longer than told wrk may take before it counts as hanging."""


@dataclass(frozen=True)
class Load:
    """What wrk saw in one round."""

    requests: int
    seconds: float
    p50_us: int
    p99_us: int
    max_us: int
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class Answer:
    """One answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes


def run_wrk(program: str, port: int, body: Path, seconds: float, connections: int, answer_bytes: int) -> Load:
    """One round of load. Fails on any error: a fast wrong answer is not a result."""
    script = Path(__file__).with_name("load.lua")
    url = f"http://127.0.0.1:{port}{PATH}"
    command = [program, "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "10s", "-s", str(script), url]
    environment = {**os.environ, "COMPARE_BODY": str(body)}
    before = _children_cpu_seconds()
    code, output = run_bounded(command, seconds + WRK_GRACE_SECONDS, environment)
    if code != 0:
        raise Failure(f"wrk ended with {code}: {output.strip()}")
    return parse_wrk(output, answer_bytes, _children_cpu_seconds() - before)


def parse_wrk(output: str, answer_bytes: int, cpu_seconds: float) -> Load:
    """Reads the line that load.lua prints."""
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if len(lines) != 1:
        raise Failure(f"wrk printed no result:\n{output.strip()}")
    result = json.loads(lines[0].removeprefix("RESULT "))
    errors = {kind: count for kind, count in result["errors"].items() if count}
    if errors:
        said = ", ".join(f"{count} {kind}" for kind, count in errors.items())
        raise Failure(f"{said} errors among {result['requests']} requests (status: not 2xx or 3xx)")
    if result["requests"] == 0:
        raise Failure("not one request was answered")
    if result["bytes"] < result["requests"] * answer_bytes:
        raise Failure(
            f"{result['bytes']} bytes came for {result['requests']} answers of {answer_bytes} each: some are short"
        )
    seconds = result["duration_us"] / 1e6
    return Load(result["requests"], seconds, result["p50_us"], result["p99_us"], result["max_us"], cpu_seconds)


def post(port: int, body: bytes) -> Answer:
    """One chat request on a connection of its own."""
    return _request(port, "POST", PATH, body, {"content-type": "application/json"})


def get(port: int, path: str) -> Answer:
    """One GET on a connection of its own."""
    return _request(port, "GET", path, None, {})


def _request(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        got = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, got, response.read())
    finally:
        connection.close()


def _children_cpu_seconds() -> float:
    """CPU time of all children waited for; between two calls around a run, of that run."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

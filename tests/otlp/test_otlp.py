"""Spans and log records as a receiver gets them, whatever it does with them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ENVIRONMENT, PATIENCE, PROGRAM, Gateway, checked, simulated_pod, wait_until_ready
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from receiver import LARGEST, Answer, Identity, Receiver, attributes, free_port, receiving

BOTH = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])

PARENT = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"


@pytest.fixture(scope="module")
def pod() -> Iterator[str]:
    with simulated_pod() as pod:
        yield pod


class Running(Gateway):
    """A gateway, and how to look at it and end it."""

    def __init__(self, process: subprocess.Popen[str], started: Mapping[str, Any], home: Path, log: list[str]) -> None:
        super().__init__(f"http://{started['listen']}", f"http://{started['admin']}")
        object.__setattr__(self, "process", process)
        object.__setattr__(self, "home", home)
        object.__setattr__(self, "log", log)

    def ask(self, count: int, **headers: str) -> list[str]:
        """Makes requests; gives their snapshot IDs."""
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda number: self.ask_once(number, headers), range(count)))

    def ask_once(self, number: int, headers: Mapping[str, str], path: str = "/v1/chat/completions") -> str:
        messages = [{"role": "user", "content": "Hi"}]
        body = {"model": "llama-3.1-8b", "max_tokens": 3, "stream": number % 2 == 0, "messages": messages}
        names = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), names)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                answer.read()
                return answer.headers["x-snapshot-id"]
        except urllib.error.HTTPError as refused:
            return refused.headers["x-snapshot-id"]

    def books(self, exit: str) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.admin}/metrics") as answer:
            page = answer.read().decode()
        books = dict.fromkeys(["offered", "recovered", "delivered", "rejected", "skipped", "dropped", "pending"], 0)
        line = rf'^snapgate_snapshots_(\w+?)(?:_total)?{{exit="{exit}".*}} (\d+)$'
        for noun, count in re.findall(line, page, re.MULTILINE):
            books[noun] += int(count)
        return books

    def errors(self, exit: str) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.admin}/metrics") as answer:
            page = answer.read().decode()
        found = re.findall(rf'^snapgate_exit_errors_total{{exit="{exit}",reason="(\w+)"}} (\d+)$', page, re.MULTILINE)
        return {reason: int(count) for reason, count in found if int(count) > 0}

    def settled(self, count: int, exit: str = "otlp_traces") -> dict[str, int]:
        """The books once so many records are done with; they balance."""

        def done() -> bool:
            books = self.books(exit)
            return books["offered"] + books["recovered"] >= count and books["pending"] == 0

        eventually(f"{count} are done with", done)
        books = self.books(exit)
        became = sum(books[noun] for noun in ["delivered", "rejected", "skipped", "dropped", "pending"])
        assert books["offered"] + books["recovered"] == became
        return books

    def stop(self) -> None:
        """Ends it as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0

    def documents(self) -> dict[str, dict[str, Any]]:
        """What its store has, by ID; it may run or not."""
        command = [str(PROGRAM), "export", "--data-dir", str(self.home / "data")]
        done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, timeout=PATIENCE, check=True)
        documents = [checked(json.loads(line)) for line in done.stdout.splitlines()]
        # Which only lookups add.
        assert all(document.pop("stored") for document in documents)
        return {document["id"]: document for document in documents}

    def lines(self) -> dict[str, dict[str, Any]]:
        """Its JSON log, by ID."""
        text = (self.home / "log.jsonl").read_text()
        return {document["id"]: document for document in map(checked, map(json.loads, text.splitlines()))}

    def warnings(self, message: str) -> list[dict[str, Any]]:
        """What its own log has of this."""
        lines = [json.loads(line) for line in list(self.log)]
        return [line for line in lines if line.get("level") == "WARN" and message in line.get("message", "")]


@contextmanager
def serving(
    pod: str, home: Path, endpoint: str, protocol: str, config: str = "", env: Mapping[str, str] = {}
) -> Iterator[Running]:
    """A gateway that exports to the endpoint."""
    file = home / "snapgate.toml"
    file.write_text(config)
    command = [str(PROGRAM), "serve", "--config", str(file), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    command += ["--data-dir", str(home / "data"), "--json-log", str(home / "log.jsonl"), "--target", f"vllm-0={pod}"]
    command += ["--otlp", endpoint]
    variables = {**ENVIRONMENT, "SNAPGATE_OTLP_PROTOCOL": protocol, **env}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        started = next(line for line in map(json.loads, process.stderr) if line.get("event") == "listening")
        log: list[str] = []
        threading.Thread(target=log.extend, args=(process.stderr,), daemon=True).start()
        gateway = Running(process, started, home, log)
        wait_until_ready(gateway)
        yield gateway
    finally:
        process.kill()
        process.wait(PATIENCE)


def eventually(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


@BOTH
def test_spans_lines_and_store_agree_to_the_last_id(protocol: str, pod: str, tmp_path: Path):
    receiver = Receiver()
    env = {
        "OTEL_SERVICE_NAME": "edge",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "SNAPGATE_OTLP_HEADERS": "authorization=Bearer%20abc",
        "SNAPGATE_OTLP_COMPRESSION": "gzip" if protocol == "grpc" else "none",
    }
    with receiving(receiver, protocol) as endpoint, serving(pod, tmp_path, endpoint, protocol, env=env) as gateway:
        asked = set(gateway.ask(150))
        asked |= set(gateway.ask(10, traceparent=f"00-{PARENT}-01"))
        asked.add(gateway.ask_once(0, {}, "/nothing/here"))
        books = gateway.settled(len(asked))
        gateway.stop()
        documents, lines = gateway.documents(), gateway.lines()
    assert receiver.ids() == asked == set(documents) == set(lines)
    assert lines == documents, "each says the same, in the log and in the store"
    assert (books["delivered"], books["skipped"], books["rejected"]) == (len(asked), 0, 0)
    assert len(receiver.spans) == sum(1 + len(document["attempts"]) for document in documents.values())
    assert max(receiver.seen.values()) == 1, "each came once"

    for server in receiver.servers():
        said = attributes(server.attributes)
        document = documents[said["snapgate.snapshot.id"]]
        trace = document["trace"]
        assert (server.trace_id.hex(), server.span_id.hex()) == (trace["trace_id"], trace["span_id"])
        assert (server.parent_span_id.hex() or None) == trace["parent_span_id"]
        assert (trace["exported"], trace["sampled"]) == (True, True)
        clients = [span for span in receiver.spans.values() if span.parent_span_id == server.span_id]
        assert [span.kind for span in clients] == [Span.SPAN_KIND_CLIENT] * len(document["attempts"])
        assert all(span.trace_id == server.trace_id for span in clients)
        assert said["snapgate.outcome.ending"] == document["outcome"]["ending"]
        assert server.status.code == Status.STATUS_CODE_UNSET
        if document["attempts"]:
            state = document["decision"]["state"]
            assert said["snapgate.decision.state.waiting_freshness"] == state["waiting_freshness"]
            assert server.name == "POST /v1/chat/completions" and clients[0].name == "chat llama-3.1-8b"
    parents = {documents[snapshot]["trace"]["trace_id"] for snapshot in documents} & {PARENT[:32]}
    assert parents, "the client's trace goes on"
    resource = receiver.resources[0]
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("edge", "test")
    assert all(headers["authorization"] == "Bearer abc" for _, headers in receiver.requests)


@BOTH
def test_what_was_sent_while_nobody_listened_arrives(protocol: str, pod: str, tmp_path: Path):
    receiver, port = Receiver(), free_port()
    with serving(pod, tmp_path, f"http://127.0.0.1:{port}", protocol) as gateway:
        asked = set(gateway.ask(100))
        eventually("it has tried in vain", lambda: gateway.errors("otlp_traces").get("connect", 0) >= 2)
        eventually("all are pending", lambda: gateway.books("otlp_traces")["pending"] == len(asked))
        with receiving(receiver, protocol, port):
            assert gateway.settled(len(asked))["delivered"] == len(asked)
    assert receiver.ids() == asked


@BOTH
@pytest.mark.parametrize(
    ("status", "reasons"), [(429, ("grpc_resource_exhausted", "http_429")), (503, ("grpc_unavailable", "http_503"))]
)
def test_a_receiver_that_is_busy_is_asked_again_when_it_says(
    protocol: str, status: int, reasons: tuple[str, str], pod: str, tmp_path: Path
):
    times: list[float] = []

    def busy(spans: list[Span]) -> Answer:
        times.append(time.monotonic())
        return Answer(status, retry_after=1) if len(times) == 1 else Answer()

    receiver = Receiver(rule=busy)
    with receiving(receiver, protocol) as endpoint, serving(pod, tmp_path, endpoint, protocol) as gateway:
        asked = {gateway.ask_once(0, {})}
        eventually("it was asked", lambda: len(times) > 0)
        asked |= set(gateway.ask(20))
        books = gateway.settled(len(asked))
        assert times[1] - times[0] > 0.9, "it was left alone"
        assert gateway.errors("otlp_traces") == {reasons[protocol != "grpc"]: 1}
    assert (receiver.ids(), books["delivered"], books["rejected"]) == (asked, len(asked), 0)


@BOTH
def test_a_receiver_that_is_busy_after_it_took_some_is_left_alone_too(protocol: str, pod: str, tmp_path: Path):
    """Of the requests that went side by side it took the first."""
    times: list[float] = []

    def busy(spans: list[Span]) -> Answer:
        agents = [attributes(span.attributes).get("user_agent.original") for span in spans]
        if "last" not in agents:
            return Answer()
        times.append(time.monotonic())
        return Answer(429, retry_after=1) if len(times) == 1 else Answer()

    receiver, port = Receiver(rule=busy), free_port()
    config = "[otlp]\nbatch_bytes = \"64KiB\"\nin_flight = 64\n"
    with serving(pod, tmp_path, f"http://127.0.0.1:{port}", protocol, config) as gateway:
        asked = set(gateway.ask(200)) | {gateway.ask_once(0, {"user_agent": "last"})}
        with receiving(receiver, protocol, port):
            books = gateway.settled(len(asked))
            errors = gateway.errors("otlp_traces")
    assert (receiver.ids(), books["delivered"], books["rejected"]) == (asked, len(asked), 0)
    assert receiver.most_at_once > 1, "they went side by side"
    first, again = times
    assert again - first > 0.9, "it was left alone"
    assert errors["grpc_resource_exhausted" if protocol == "grpc" else "http_429"] == 1


@BOTH
def test_a_request_that_is_refused_for_good_is_found_and_passed(protocol: str, pod: str, tmp_path: Path):
    def poisoned(spans: list[Span]) -> Answer:
        agents = [attributes(span.attributes).get("user_agent.original") for span in spans]
        return Answer(400) if "poison" in agents else Answer()

    receiver = Receiver(rule=poisoned)
    with receiving(receiver, protocol) as endpoint, serving(pod, tmp_path, endpoint, protocol) as gateway:
        asked = set(gateway.ask(40))
        poison = {gateway.ask_once(0, {"user_agent": "poison"})}
        asked |= set(gateway.ask(40))
        books = gateway.settled(len(asked) + 1)
        assert set(gateway.errors("otlp_traces")) == {"grpc_invalid_argument" if protocol == "grpc" else "http_400"}
        assert poison <= set(gateway.documents()), "the store has it"
    assert (receiver.ids(), books["delivered"], books["rejected"]) == (asked, len(asked), 1)


@BOTH
def test_what_is_refused_in_part_is_counted_and_not_sent_again(protocol: str, pod: str, tmp_path: Path):
    receiver = Receiver(script=[Answer(rejected=1), Answer(rejected=2)])
    with receiving(receiver, protocol) as endpoint, serving(pod, tmp_path, endpoint, protocol) as gateway:
        asked = set(gateway.ask(1))
        eventually("the first were asked", lambda: len(receiver.requests) == 1)
        asked |= set(gateway.ask(60))
        books = gateway.settled(len(asked))
    assert max(receiver.seen.values()) == 1
    # The second request may have held one record only.
    assert books["rejected"] in (2, 3) and books["delivered"] + books["rejected"] == len(asked)


@BOTH
def test_what_a_receiver_warns_of_is_logged_and_not_without_end(protocol: str, pod: str, tmp_path: Path):
    receiver = Receiver(rule=lambda spans: Answer(warning="attributes were cut short"))
    with receiving(receiver, protocol) as endpoint, serving(pod, tmp_path, endpoint, protocol) as gateway:
        asked: set[str] = set()
        for _ in range(12):
            asked |= set(gateway.ask(1))
            books = gateway.settled(len(asked))
        gateway.stop()
    assert (receiver.ids(), books["delivered"], books["rejected"]) == (asked, len(asked), 0)
    said = gateway.warnings("the receiver took a request and warns")
    assert 0 < len(said) < len(receiver.requests), "a few times"
    assert (said[0]["said"], said[0]["exit"]) == ("attributes were cut short", "otlp_traces")


@BOTH
def test_a_slow_receiver_slows_nobody(protocol: str, pod: str, tmp_path: Path):
    all_have_ended = threading.Event()
    receiver = Receiver(rule=lambda spans: Answer(once=all_have_ended))
    with receiving(receiver, protocol) as endpoint, serving(pod, tmp_path, endpoint, protocol) as gateway:
        asked = set(gateway.ask(200))
        assert gateway.books("otlp_traces")["delivered"] == 0, "requests have ended, and the receiver has not answered"
        all_have_ended.set()
        assert gateway.settled(len(asked))["delivered"] == len(asked)
    assert receiver.ids() == asked
    assert len(receiver.requests) < 10, "what waited goes together"


@BOTH
def test_an_answer_that_breaks_off_costs_a_repeat_with_the_same_ids(protocol: str, pod: str, tmp_path: Path):
    receiver = Receiver(script=[Answer(close=True)] * 3)
    with receiving(receiver, protocol) as endpoint, serving(pod, tmp_path, endpoint, protocol) as gateway:
        asked = set(gateway.ask(30))
        books = gateway.settled(len(asked))
    assert (receiver.ids(), books["delivered"]) == (asked, len(asked))
    assert max(receiver.seen.values()) > 1, "the receiver can tell by the IDs"


@BOTH
@pytest.mark.parametrize(
    "answers",
    [
        [],
        [Answer(after=1.0)] * 3,
        [Answer(429, retry_after=0)] * 4,
        [Answer(503, retry_after=1)] * 2,
        [Answer(400)] * 6,
        [Answer(rejected=1)] * 3,
        [Answer(close=True)] * 3,
        None,
    ],
    ids=["taking", "slow", "refusing", "busy", "refusing for good", "taking a part", "breaking off", "dead"],
)
def test_a_gateway_that_is_killed_goes_on_where_it_was(
    protocol: str, answers: list[Answer] | None, pod: str, tmp_path: Path
):
    receiver, port = Receiver(script=[*(answers or [])]), free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with ExitStack() as open_receiver:
        if answers is not None:
            open_receiver.enter_context(receiving(receiver, protocol, port))
        with serving(pod, tmp_path, endpoint, protocol) as gateway:
            asked = set(gateway.ask(100))
            tried = "connect" if answers is None else ""
            eventually("it has tried", lambda: bool(receiver.requests or gateway.errors("otlp_traces").get(tried)))
            asked |= set(gateway.ask(100))
            eventually("all are stored", lambda: gateway.books("store")["delivered"] == len(asked))
            gateway.process.kill()
            gateway.process.wait(PATIENCE)
        if answers is None:
            open_receiver.enter_context(receiving(receiver, protocol, port))
        with serving(pod, tmp_path, endpoint, protocol) as gateway:
            asked |= set(gateway.ask(10))
            gateway.settled(10)
            gateway.stop()
            documents = gateway.documents()
    # What was refused for good when it came alone has been passed; everything else is there.
    assert asked == set(documents)
    assert asked - receiver.ids() <= receiver.refused_alone
    assert receiver.refused_alone == set() or Answer(400) in (answers or [])
    came = [document for snapshot, document in documents.items() if snapshot in receiver.ids()]
    assert len(receiver.spans) == sum(1 + len(document["attempts"]) for document in came)


def test_what_waits_goes_in_requests_of_bounded_size_some_at_once(pod: str, tmp_path: Path):
    receiver, port = Receiver(rule=lambda spans: Answer(after=0.2)), free_port()
    with serving(pod, tmp_path, f"http://127.0.0.1:{port}", "grpc", "[otlp]\nbatch_bytes = \"64KiB\"\n") as gateway:
        asked = set(gateway.ask(200))
        with receiving(receiver, "grpc", port):
            gateway.settled(len(asked))
    assert receiver.ids() == asked
    assert 4 < len(receiver.requests) and max(size for size, _ in receiver.requests) <= 64 * 1024 < LARGEST
    assert receiver.most_at_once == 4, "otlp.in_flight"


def test_what_is_not_sampled_is_skipped_unless_a_rule_keeps_it(pod: str, tmp_path: Path):
    receiver = Receiver()
    config = "[choice]\nallow_forced = true\n[trace]\nsample_ratio = 0\n"
    with receiving(receiver, "grpc") as endpoint, serving(pod, tmp_path, endpoint, "grpc", config) as gateway:
        unsampled = set(gateway.ask(20)) | set(gateway.ask(5, traceparent=f"00-{PARENT}-00"))
        sampled = set(gateway.ask(5, traceparent=f"00-{PARENT}-01"))
        forced = set(gateway.ask(3, target_pod="vllm-0"))
        books = gateway.settled(33)
        gateway.stop()
        documents, lines = gateway.documents(), gateway.lines()
    assert receiver.ids() == sampled | forced
    assert (books["delivered"], books["skipped"]) == (8, 25)
    assert documents == lines
    said = {snapshot: (it["trace"]["sampled"], it["trace"]["exported"]) for snapshot, it in documents.items()}
    expected = dict.fromkeys(unsampled, (False, False)) | dict.fromkeys(sampled, (True, True))
    assert said == expected | dict.fromkeys(forced, (False, True))


def test_a_client_that_is_not_believed_gets_a_link(pod: str, tmp_path: Path):
    receiver = Receiver()
    config = "[trace]\ntrust_parent = false\n"
    with receiving(receiver, "grpc") as endpoint, serving(pod, tmp_path, endpoint, "grpc", config) as gateway:
        snapshot = gateway.ask_once(0, {"traceparent": f"00-{PARENT}-00", "tracestate": "a=1"})
        gateway.settled(1)
        document = gateway.documents()[snapshot]
    (server,) = receiver.servers()
    (link,) = server.links
    assert f"{link.trace_id.hex()}-{link.span_id.hex()}" == PARENT
    assert (server.trace_id.hex(), server.parent_span_id) == (snapshot, b"")
    trace = document["trace"]
    assert f"{trace['linked_trace_id']}-{trace['linked_span_id']}" == PARENT and trace["sampled"]


@BOTH
def test_tls_with_an_authority_and_a_certificate_of_ones_own(protocol: str, pod: str, tmp_path: Path):
    receiver, identity = Receiver(), Identity.made_in(tmp_path)
    env = {
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(identity.ca),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(identity.client_cert),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(identity.client_key),
    }
    with receiving(receiver, protocol, identity=identity) as endpoint:
        with serving(pod, tmp_path, endpoint, protocol, env=env) as gateway:
            asked = set(gateway.ask(20))
            assert gateway.settled(len(asked))["delivered"] == len(asked)
        assert receiver.ids() == asked
        strange = tmp_path / "strange"
        strange.mkdir()
        env["OTEL_EXPORTER_OTLP_CERTIFICATE"] = str(Identity.made_in(strange).ca)
        with serving(pod, strange, endpoint, protocol, env=env) as gateway:
            gateway.ask(1)
            eventually("it does not believe the receiver", lambda: gateway.errors("otlp_traces").get("connect", 0) > 1)
    assert receiver.ids() == asked


def test_the_demonstration_fills_a_receiver_with_the_request_of_its_tour():
    receiver = Receiver()
    with receiving(receiver, "grpc") as endpoint:
        command = [str(PROGRAM), "demo", "--once", "--otlp", endpoint]
        done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    assert f"\nSpans go to {endpoint};" in done.stdout and "Panels of metrics stay empty" in done.stdout
    snapshot = re.search(r"x-snapshot-id: ([0-9a-f]{32})", done.stdout)[1]
    spans = [span for span in receiver.spans.values() if span.trace_id.hex() == snapshot]
    (server,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert attributes(server.attributes)["snapgate.snapshot.id"] == snapshot
    (attempt,) = [span for span in spans if span.kind == Span.SPAN_KIND_CLIENT]
    target = attributes(attempt.attributes)["snapgate.attempt.target"]
    assert attempt.parent_span_id == server.span_id and f"target-pod: {target}" in done.stdout
    assert len(receiver.ids()) > 3, "and the traffic around it"
    assert {resource["service.name"] for resource in receiver.resources} == {"snapgate"}


@BOTH
def test_log_records_hold_the_document(protocol: str, pod: str, tmp_path: Path):
    receiver = Receiver()
    config = "[otlp]\nlogs = true\ntraces = false\n"
    with receiving(receiver, protocol) as endpoint, serving(pod, tmp_path, endpoint, protocol, config) as gateway:
        asked = set(gateway.ask(30))
        books = gateway.settled(len(asked), "otlp_logs")
        gateway.stop()
        lines = gateway.lines()
    assert books["delivered"] == len(asked) and not receiver.spans
    bodies = {snapshot: json.loads(record.body.string_value) for snapshot, record in receiver.logs.items()}
    assert {snapshot: checked(body) for snapshot, body in bodies.items()} == lines
    assert set(lines) == asked
    for record in receiver.logs.values():
        trace = lines[attributes(record.attributes)["snapshot_id"]]["trace"]
        assert (record.trace_id.hex(), record.span_id.hex()) == (trace["trace_id"], trace["span_id"])
        assert trace["exported"] is None, "spans are not"

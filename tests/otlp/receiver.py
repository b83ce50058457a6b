"""A receiver of OTLP on OpenTelemetry's own messages, over gRPC and HTTP, that misbehaves as it is told to."""

from __future__ import annotations

import gzip
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TraceRequest = trace_service_pb2.ExportTraceServiceRequest
LogsRequest = logs_service_pb2.ExportLogsServiceRequest

LARGEST = 4 * 1024 * 1024
"""What receivers take over gRPC at most, if nobody says otherwise."""

GRPC_OF_HTTP = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


@dataclass
class Answer:
    """What one request gets: by default it is taken."""

    status: int = 200
    retry_after: int | None = None
    """In whole seconds."""
    rejected: int = 0
    """Items of it that are refused for good."""
    warning: str = ""
    """What is said although it is taken, or about what is not."""
    after: float = 0.0
    """Seconds that it takes."""
    once: threading.Event | None = None
    """It waits for this."""
    close: bool = False
    """It is taken, and the connection is cut while the answer is under way."""


@dataclass
class Receiver:
    """What has come, and what the next requests get."""

    script: list[Answer] = field(default_factory=list)
    rule: Callable[[list[Span]], Answer] = lambda spans: Answer()
    """For whatever the script does not say."""
    spans: dict[bytes, Span] = field(default_factory=dict)
    """By their IDs: a repeat is the same span."""
    logs: dict[str, LogRecord] = field(default_factory=dict)
    resources: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Each one's size and headers."""
    seen: Counter[bytes] = field(default_factory=Counter)
    refused_alone: set[str] = field(default_factory=set)
    """Snapshots that were refused for good in requests of their own: nobody has to offer them again."""
    now: int = 0
    most_at_once: int = 0
    """Requests that waited for their answers together."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def traces(self, request: TraceRequest, size: int, headers: dict[str, str]) -> Answer:
        scopes = [scope for of_resource in request.resource_spans for scope in of_resource.scope_spans]
        spans = [span for scope in scopes for span in scope.spans]
        answer = self.answer(spans, size, headers)
        with self.lock:
            self.resources += [attributes(of_resource.resource.attributes) for of_resource in request.resource_spans]
            self.seen.update(span.span_id for span in spans)
            if answer.status == 200:
                self.spans.update((span.span_id, span) for span in spans)
            refused = {attributes(span.attributes)["snapgate.snapshot.id"] for span in spans} if answer.status == 400 else set()
            self.refused_alone |= refused if len(refused) == 1 else set()
        return answer

    def lines(self, request: LogsRequest, size: int, headers: dict[str, str]) -> Answer:
        scopes = [scope for of_resource in request.resource_logs for scope in of_resource.scope_logs]
        answer = self.answer([], size, headers)
        with self.lock:
            if answer.status == 200:
                for record in (record for scope in scopes for record in scope.log_records):
                    self.logs[attributes(record.attributes)["snapshot_id"]] = record
        return answer

    def answer(self, spans: list[Span], size: int, headers: dict[str, str]) -> Answer:
        with self.lock:
            self.requests.append((size, headers))
            answer = self.script.pop(0) if self.script else self.rule(spans)
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(answer.after)
        if answer.once:
            answer.once.wait()
        with self.lock:
            self.now -= 1
        return answer

    def servers(self) -> list[Span]:
        """The spans of requests."""
        with self.lock:
            return [span for span in self.spans.values() if span.kind == Span.SPAN_KIND_SERVER]

    def ids(self) -> set[str]:
        """The snapshots whose spans have come."""
        return {attributes(span.attributes)["snapgate.snapshot.id"] for span in self.servers()}


def attributes(pairs: Any) -> dict[str, Any]:
    names = [pair.key for pair in pairs]
    assert len(names) == len(set(names)), names
    return {pair.key: value(pair.value) for pair in pairs}


def value(it: AnyValue) -> Any:
    kind = it.WhichOneof("value")
    return [value(item) for item in it.array_value.values] if kind == "array_value" else getattr(it, kind)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@dataclass
class Identity:
    """Certificates and keys of a receiver, of its clients, and of who vouches for both."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path

    @classmethod
    def made_in(cls, home: Path) -> Identity:
        files = cls(*(home / name for name in ["ca.pem", "cert.pem", "key.pem", "client_cert.pem", "client_key.pem"]))
        ca_key = home / "ca_key.pem"
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        run([*new, "-days", "1", "-subj", "/CN=test authority", "-keyout", ca_key, "-out", files.ca])
        vouched = ["-days", "1", "-CA", files.ca, "-CAkey", ca_key, "-addext", "basicConstraints=critical,CA:FALSE"]
        server, client = "subjectAltName=IP:127.0.0.1", "extendedKeyUsage=clientAuth"
        for key, cert, use in [(files.key, files.cert, server), (files.client_key, files.client_cert, client)]:
            run([*new, *vouched, "-subj", "/CN=test", "-addext", use, "-keyout", key, "-out", cert])
        return files


def run(command: list[Any]) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def receiving(receiver: Receiver, protocol: str, port: int = 0, identity: Identity | None = None) -> Iterator[str]:
    """Serves until the end of the block; gives the endpoint. With an identity in TLS, to clients that have theirs."""
    serve = {"grpc": serving_grpc, "http/protobuf": serving_http}[protocol]
    with serve(receiver, port, identity) as bound:
        yield f"{'https' if identity else 'http'}://127.0.0.1:{bound}"


# gRPC


def traces_response(answer: Answer) -> Any:
    response = trace_service_pb2.ExportTraceServiceResponse()
    if answer.rejected or answer.warning:
        response.partial_success.rejected_spans = answer.rejected
        response.partial_success.error_message = answer.warning or "some of it"
    return response


class Wire(socketserver.ThreadingTCPServer):
    """Stands before a server that cannot cut its connections, passes on what comes, and can."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, behind: int) -> None:
        self.behind, self.ends, self.lock = behind, set[socket.socket](), threading.Lock()
        super().__init__(("127.0.0.1", port), socketserver.BaseRequestHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with socket.create_connection(("127.0.0.1", self.behind)) as server:
            both = {request, server}
            with self.lock:
                self.ends |= both
            back = threading.Thread(target=self.pass_on, args=(server, request), daemon=True)
            back.start()
            self.pass_on(request, server)
            back.join()
            with self.lock:
                self.ends -= both

    def pass_on(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                to.sendall(piece)
        close([source, to])

    def cut(self) -> None:
        with self.lock:
            close(self.ends)


def close(ends: Iterable[socket.socket]) -> None:
    for end in ends:
        # The other end may have gone first.
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: Receiver, wire: Wire) -> None:
        self.receiver, self.wire = receiver, wire

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        answer = self.receiver.traces(request, request.ByteSize(), dict(context.invocation_metadata()))
        end(answer, context, self.wire)
        return traces_response(answer)


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def __init__(self, receiver: Receiver, wire: Wire) -> None:
        self.receiver, self.wire = receiver, wire

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        answer = self.receiver.lines(request, request.ByteSize(), dict(context.invocation_metadata()))
        end(answer, context, self.wire)
        return logs_service_pb2.ExportLogsServiceResponse()


def end(answer: Answer, context: grpc.ServicerContext, wire: Wire) -> None:
    if answer.close:
        # The head is on its way, and the rest will never come.
        context.send_initial_metadata(())
        wire.cut()
        return
    if answer.status == 200:
        return
    code = GRPC_OF_HTTP[answer.status]
    if answer.retry_after is not None:
        info = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=answer.retry_after))
        detail = any_pb2.Any()
        detail.Pack(info)
        status = status_pb2.Status(code=code.value[0], message="not now", details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, "not now")


@contextmanager
def serving_grpc(receiver: Receiver, port: int, identity: Identity | None) -> Iterator[int]:
    options = (("grpc.max_receive_message_length", LARGEST), ("grpc.so_reuseport", 0))
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    if identity:
        own = [(identity.key.read_bytes(), identity.cert.read_bytes())]
        credentials = grpc.ssl_server_credentials(own, identity.ca.read_bytes(), require_client_auth=True)
        behind = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        behind = server.add_insecure_port("127.0.0.1:0")
    wire = Wire(port, behind)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(receiver, wire), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(receiver, wire), server)
    server.start()
    threading.Thread(target=wire.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield wire.server_address[1]
    finally:
        wire.shutdown()
        wire.server_close()
        wire.cut()
        server.stop(None).wait()


# HTTP


@contextmanager
def serving_http(receiver: Receiver, port: int, identity: Identity | None) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): text for name, text in self.headers.items()}
            if headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert headers["content-type"] == "application/x-protobuf"
            if self.path == "/v1/traces":
                answer = receiver.traces(TraceRequest.FromString(body), len(body), headers)
            else:
                assert self.path == "/v1/logs"
                answer = receiver.lines(LogsRequest.FromString(body), len(body), headers)
            self.reply(answer)

        def reply(self, answer: Answer) -> None:
            body = traces_response(answer).SerializeToString()
            self.send_response(answer.status)
            if answer.retry_after is not None:
                self.send_header("retry-after", str(answer.retry_after))
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(body) + (100 if answer.close else 0)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = answer.close

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            # A gateway that was killed is no error here.
            if not isinstance(sys.exc_info()[1], ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", port), Handler)
    if identity:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=identity.ca)
        context.load_cert_chain(identity.cert, identity.key)
        context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()

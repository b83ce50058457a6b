"""WebSockets through the gateway, with an implementation of its own at both ends."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Gateway, serving
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

PIECES = [b"", b"x", b"\x00" * 70_000, bytes(range(256)) * 4_096]


def answer(websocket: ServerConnection) -> None:
    """Sends back what it gets, until it is told to fail."""
    for message in websocket:
        if message == "fail":
            websocket.close(1011, "as the test wants it")
            return
        websocket.send(message)


def health(websocket: ServerConnection, request: Request) -> Response | None:
    return None if request.path.startswith("/v1/realtime") else websocket.respond(200, "")


@contextlib.contextmanager
def realtime_pod() -> Iterator[str]:
    """Its URL."""
    with serve(answer, "127.0.0.1", 0, process_request=health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.socket.getsockname()
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def realtime(tmp_path_factory: pytest.TempPathFactory, snapgate: Any) -> Iterator[Gateway]:
    with realtime_pod() as pod, serving(pod, tmp_path_factory.mktemp("data")) as gateway:
        yield gateway


def opened(gateway: Gateway, path: str = "/v1/realtime?model=llama-3.1-8b") -> ClientConnection:
    return connect(gateway.url.replace("http", "ws", 1) + path, max_size=None)


def snapshot(gateway: Gateway, headers: Any) -> dict[str, Any]:
    with urllib.request.urlopen(f"{gateway.admin}/v1/snapshots/{headers['x-snapshot-id']}?wait=5s") as found:
        return json.load(found)


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages_pass_and_the_record_counts_them(realtime: Gateway, compression: str | None):
    url = realtime.url.replace("http", "ws", 1) + "/v1/realtime?model=llama-3.1-8b"
    with connect(url, max_size=None, compression=compression) as websocket:
        for piece in PIECES:
            websocket.send(piece)
            assert websocket.recv() == piece
        # In fragments, with a ping between them.
        websocket.send(iter(["frag", "ments"]))
        assert websocket.ping().wait(5)
        assert websocket.recv() == "fragments"
    found = snapshot(realtime, websocket.response.headers)
    outcome = found["outcome"]
    assert (outcome["ending"], outcome["status"], outcome["error"]) == ("completed", 101, None)
    assert (outcome["events"], found["request"]["model"]) == (len(PIECES) + 1, "llama-3.1-8b")
    assert compression or outcome["response_bytes"] > sum(map(len, PIECES))


def test_a_targets_goodbye_reaches_the_client_with_its_reason(realtime: Gateway):
    with opened(realtime) as websocket:
        websocket.send("fail")
        with pytest.raises(ConnectionClosedError) as raised:
            websocket.recv()
    assert raised.value.rcvd is not None and raised.value.rcvd.code == 1011
    assert snapshot(realtime, websocket.response.headers)["outcome"]["ending"] == "completed"


def test_a_path_that_is_not_served_opens_nothing(realtime: Gateway):
    with pytest.raises(InvalidStatus) as raised:
        opened(realtime, "/v1/other")
    response = raised.value.response
    assert response.status_code == 404
    assert snapshot(realtime, response.headers)["outcome"]["ending"] == "rejected"

"""A rollout under load: gateways replaced one after another behind a balancer of connections, as a Kubernetes Service is one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conftest import Gateway, Program, serving, simulated_pod, until

CLIENTS = 16
ROUNDS = 2
"""How often each gateway is replaced."""

DELAY = {"SNAPGATE_TIMEOUTS_SHUTDOWN_DELAY": "3s"}
"""Far longer than the balancer takes to notice that a gateway is not ready any more."""


class Balancer:
    """Gives each new connection to the next of the gateways, and never looks into one."""

    def __init__(self) -> None:
        self.gateways: list[Gateway] = []
        self.turn = itertools.count()

    def notice(self, leaving: Gateway) -> None:
        """Waits until a gateway says that it is leaving, and gives it no more connections."""
        until("a gateway is not ready", lambda: not is_ready(leaving))
        self.gateways = [gateway for gateway in self.gateways if gateway is not leaving]

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Where it listens, in a thread of its own."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self.connect, "127.0.0.1", 0), loop).result()
        try:
            yield "http://{}:{}".format(*server.sockets[0].getsockname())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gateway = self.gateways[next(self.turn) % len(self.gateways)]
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        answers, requests = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pass_on(reader, requests), pass_on(answers, writer))


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while some := await reader.read(65536):
        writer.write(some)
        await writer.drain()
    writer.close()


def ask(url: str, tokens: int, stream: bool) -> str:
    """One request on a connection of its own, answered whole; gives its ID."""
    question = {"model": "llama-3.1-8b", "prompt": "Hello", "max_tokens": tokens, "stream": stream}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(question).encode())
    with urllib.request.urlopen(request) as answer:
        whole = answer.read()
    assert whole.endswith(b"data: [DONE]\n\n" if stream else b"}"), whole[-200:]
    return answer.headers["x-snapshot-id"]


def is_ready(gateway: Gateway) -> bool:
    try:
        with urllib.request.urlopen(f"{gateway.admin}/readyz"):
            return True
    except urllib.error.HTTPError:
        return False


def phase(gateways: list[Gateway], snapshot: str) -> str | None:
    for gateway in gateways:
        with contextlib.suppress(urllib.error.HTTPError):
            with urllib.request.urlopen(f"{gateway.admin}/v1/snapshots/{snapshot}?wait=5s") as answer:
                return json.load(answer)["phase"]
    return None


def test_a_rollout_loses_no_request_and_no_record(snapgate: Program, tmp_path: Path):
    balancer, finished = Balancer(), threading.Event()

    def load(url: str, number: int) -> list[str]:
        """Short answers and streams that outlast a replacement's first steps, until the rollout is over."""
        stream = number % 4 == 0
        return [ask(url, 400 if stream else 4, stream) for _ in iter(finished.is_set, True)]

    with simulated_pod() as pod, balancer.listening() as url, contextlib.ExitStack() as running:
        stacks = [running.enter_context(contextlib.ExitStack()) for _ in range(2)]
        directories = [tmp_path / str(number) for number in range(2)]
        gateways = [stack.enter_context(serving(pod, dir, DELAY)) for stack, dir in zip(stacks, directories)]
        balancer.gateways = list(gateways)
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            loads = [pool.submit(load, url, number) for number in range(CLIENTS)]
            try:
                for number in [0, 1] * ROUNDS:
                    noticing = pool.submit(balancer.notice, gateways[number])
                    stacks[number].close()
                    noticing.result()
                    gateways[number] = stacks[number].enter_context(serving(pod, directories[number], DELAY))
                    balancer.gateways = list(gateways)
            finally:
                finished.set()
            snapshots = [snapshot for load in loads for snapshot in load.result()]
        phases = [phase(gateways, snapshot) for snapshot in snapshots]
    assert len(phases) > CLIENTS * ROUNDS
    assert set(phases) == {"complete"}

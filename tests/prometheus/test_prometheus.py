"""What the metrics page says, held to the registry, and read by a real Prometheus."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from conftest import ROOT, Gateway, api, ask, scrape, serving, simulated_pod, until

OPEN_METRICS = "application/openmetrics-text;version=1.0.0"
SERIES = re.compile(r"(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')

LATE = (
    # They are differences: the pod has to be read twice, with requests in between.
    "snapgate_target_prefix_cache_hit_ratio",
    "snapgate_target_engine_tokens_per_second",
    # Exporters are read apart.
    "snapgate_target_gpu_utilization_ratio",
    "snapgate_target_gpu_memory_utilization_ratio",
)
"""Metrics of targets that are not known at once."""

Series = list[tuple[str, dict[str, str], float]]


def series(page: str) -> Series:
    lines = (line.partition(" # ")[0] for line in page.splitlines() if not line.startswith("#"))
    found = [SERIES.fullmatch(line) for line in lines]
    assert all(found), page
    return [(m["name"], dict(LABEL.findall(m["labels"] or "")), float(m["value"])) for m in found if m]


def registry() -> dict[str, dict[str, str]]:
    with (ROOT / "otel/metrics.csv").open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def metric(name: str, types: dict[str, str]) -> str:
    """The metric that a series belongs to."""
    base = re.sub("_(bucket|sum|count)$", "", name)
    return base if types.get(base) == "histogram" else name


def test_what_is_exposed_is_registered_and_what_is_registered_is_exposed(used: Gateway):
    page = until("rates and GPUs of both pods are known", lambda: page_with_all(used))
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    registered = registry()
    assert types == {name: row["type"] for name, row in registered.items()}
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", page, re.M))
    assert helps == {name: row["description"].removesuffix(".") for name, row in registered.items()}
    shown = set()
    for name, labels, _ in series(page):
        base = metric(name, types)
        shown.add(base)
        assert sorted(set(labels) - {"le"}) == sorted(registered[base]["labels"].split()), (name, labels)
    assert set(registered) == shown
    bounds = {
        base: [label["le"] for name, label, _ in series(page) if name == f"{base}_bucket"]
        for base, kind in types.items()
        if kind == "histogram"
    }
    for base, found in bounds.items():
        expected = [*registered[base]["buckets"].split(), "+Inf"]
        assert found[: len(expected)] == expected, base


def page_with_all(gateway: Gateway) -> str | None:
    ask(gateway)
    page = scrape(gateway)
    return page if all(f'{name}{{target="vllm-{n}"}}' in page for name in LATE for n in range(2)) else None


def test_gpus_and_discovered_targets_are_on_the_page(used: Gateway):
    page = series(until("rates and GPUs of both pods are known", lambda: page_with_all(used)))
    assert {labels["node"] for name, labels, value in page if name == "snapgate_gpu_exporter_scrapes_total" and value} == {
        "node-0", "node-1"
    }
    gpus = {labels["target"]: value for name, labels, value in page if name == "snapgate_target_gpus"}
    assert gpus == {"vllm-0": 1, "vllm-1": 2}
    ratios = [value for name, _, value in page if re.fullmatch(r"snapgate_target_gpu_(memory_)?utilization_ratio", name)]
    assert len(ratios) == 4 and all(0 <= ratio <= 1 for ratio in ratios)
    discovery = {name: value for name, labels, value in page if labels.get("source") == "file-1"}
    assert discovery["snapgate_discovery_targets"] == 1 and discovery["snapgate_discovery_failing"] == 0


def test_a_pod_whose_page_takes_long_is_seen_by_its_time_and_by_how_seldom_it_is_read(snapgate, tmp_path: Path):
    with simulated_pod("--metrics-delay", "100ms") as pod, serving(pod, tmp_path) as gateway:
        page = until("its page was read", lambda: page_read(gateway))
    took, interval = (
        next(value for name, labels, value in page if name == f"snapgate_target_scrape_{what}_seconds" and labels)
        for what in ("duration", "interval")
    )
    # Half as often as fleet.poll_interval says, and each time half as often again, because of fleet.target_share.
    assert took >= 0.1 and interval > 0.9


def page_read(gateway: Gateway) -> Series | None:
    page = scrape(gateway)
    return series(page) if "snapgate_target_scrape_interval_seconds{" in page else None


def balance(page: Series) -> dict[str, tuple[float, float]]:
    """By exit: what came, and what became of it."""
    sums: dict[str, list[float]] = {}
    for name, labels, value in page:
        noun = name.removeprefix("snapgate_snapshots_").removesuffix("_total")
        if name.startswith("snapgate_snapshots_") and "exit" in labels:
            sums.setdefault(labels["exit"], [0, 0])[noun not in ("offered", "recovered")] += value
    return {exit: (came, became) for exit, (came, became) in sums.items()}


def test_the_books_balance_under_way_and_at_rest(used: Gateway):
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            ask(used)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        seen = set()
        for _ in range(100):
            books = balance(series(scrape(used)))
            assert set(books) == {"store", "json_log"}
            assert all(came == became for came, became in books.values()), books
            seen.add(books["json_log"][0])
        assert len(seen) > 3, "there was something under way"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    until("nothing is pending, and every exit's books have each request", lambda: at_rest(series(scrape(used))))


def at_rest(page: Series) -> bool:
    values = {name: value for name, labels, value in page if not labels or labels == {"exit": "json_log"}}
    still = ("snapgate_snapshots_pending", "snapgate_requests_in_flight", "snapgate_ledger_records")
    requests = sum(value for name, _, value in page if name == "snapgate_requests_total")
    # A request counts before the exits are offered its record: for a moment there may be nothing that is still pending.
    counted = {exit: (requests, requests) for exit in ("store", "json_log")}
    return not any(values[name] for name in still) and balance(page) == counted


def test_promtool_is_content(used: Gateway, promtool: str):
    for accept in ("text/plain", "*/*"):
        done = subprocess.run([promtool, "check", "metrics"], input=scrape(used, accept), text=True, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_prometheus_reads_every_series(used: Gateway, prometheus: str):
    up = until("it was scraped", lambda: api(prometheus, "query", query='up{job="snapgate"} == 1')["result"])
    assert len(up) == 1
    (target,) = api(prometheus, "targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    names = set(api(prometheus, "label/__name__/values"))
    assert {name for name, _, _ in series(scrape(used))} <= names
    balanced = " + ".join(f"snapgate_snapshots_{noun}_total" for noun in ("delivered", "rejected", "skipped"))
    lost = "sum by (exit) (snapgate_snapshots_dropped_total)"
    came = "sum by (exit) (snapgate_snapshots_offered_total + snapgate_snapshots_recovered_total)"
    became = f"sum by (exit) ({balanced} + snapgate_snapshots_pending) + {lost}"
    result = api(prometheus, "query", query=f"{came} - ({became})")["result"]
    assert {row["metric"]["exit"]: row["value"][1] for row in result} == {"store": "0", "json_log": "0"}


def test_an_exemplar_leads_to_its_snapshot(used: Gateway, prometheus: str):
    ask(used, stream=True)

    def exemplars() -> list[dict[str, Any]]:
        now = time.time()
        query = "gen_ai_server_time_to_first_token_seconds_bucket"
        found = api(prometheus, "query_exemplars", query=query, start=str(now - 300), end=str(now + 60))
        return [exemplar for row in found for exemplar in row["exemplars"]]

    for exemplar in until("there are exemplars", exemplars):
        labels = exemplar["labels"]
        with urllib.request.urlopen(f"{used.admin}/v1/snapshots/{labels['snapshot_id']}?wait=5s") as answer:
            snapshot = json.load(answer)
        assert snapshot["trace"]["trace_id"] == labels["trace_id"]
        first = snapshot["timings"]["first_content_offset_us"] / 1e6
        assert abs(first - float(exemplar["value"])) < 1e-6

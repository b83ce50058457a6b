"""Every expression of every panel and alert, asked of a real Prometheus that scrapes a gateway in use."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from conftest import ENVIRONMENT, PATIENCE, PROGRAM, ROOT, Gateway, api, ask, scrape, scraped, until
from registries import VARIABLES, never_said

BOARDS = [json.loads(file.read_text()) for file in sorted((ROOT / "dashboards").glob("*.json"))]
ALERTS = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((ROOT / "otel/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
WINDOW = "10s"
"""In place of Grafana's rate interval, which is four scrapes at least."""

COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}


def shown() -> Iterator[tuple[tuple[str, str], str]]:
    for board in BOARDS:
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                if "expr" in target and target["datasource"]["type"] == "prometheus":
                    expression = target["expr"].replace("$__rate_interval", WINDOW)
                    for name, value in VARIABLES.items():
                        expression = expression.replace(name, value)
                    yield (board["uid"], panel["title"]), expression


def compared(expression: str) -> Iterator[str]:
    """What an alert compares with its thresholds: the whole returns nothing as long as all is well."""
    node = promql_parser.parse(expression)
    while isinstance(node, promql_parser.ParenExpr):
        node = node.expr
    sides = (node.lhs, node.rhs)
    if str(node.op) in COMPARISONS:
        yield node.lhs.prettify()
    else:
        assert str(node.op) in ("and", "or"), expression
        for side in sides:
            yield from compared(side.prettify())


@pytest.fixture(scope="module")
def busy(used: Gateway) -> Iterator[None]:
    """Requests, streamed or not, for as long as it is asked."""
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            ask(used)
            ask(used, stream=True)
            stop.wait(0.05)

    thread = threading.Thread(target=load)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture(scope="module")
def demonstrated(snapgate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that scrapes `snapgate demo`, which nobody else talks to."""
    command = [str(PROGRAM), "demo"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        proposed = (re.search(r"curl (http://\S+)/v1/snapshots/", line) for line in process.stdout)
        admin = next(found.group(1) for found in proposed if found)
        # The tour goes on, and it may not wait for a full pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        with scraped(admin, tmp_path_factory.mktemp("demonstrated")) as prometheus:
            yield prometheus
    finally:
        process.terminate()
        process.wait(PATIENCE)


NOT_DEMONSTRATED = {"SnapgateDiscoveryFailing": "the pods of the demonstration are known from the start, no source finds them"}
"""Alerts that have nothing to compare there, and why."""


def has_data(prometheus: str, expression: str) -> bool:
    """Whether there is at least one number."""
    return any(row["value"][1] != "NaN" for row in api(prometheus, "query", query=expression)["result"])


def test_no_panel_of_an_idle_gateway_shows_nan(prometheus: str):
    """What divides by the requests there were shows what no data means, instead."""
    scraped_twice = f"sum(rate(snapgate_requests_total[{WINDOW}])) == 0"
    until("a window without requests", lambda: api(prometheus, "query", query=scraped_twice)["result"])
    for panel, expression in shown():
        values = [row["value"][1] for row in api(prometheus, "query", query=expression)["result"]]
        assert "NaN" not in values, panel


def test_every_panel_shows_something(prometheus: str, busy: None):
    wanted = list(shown())
    assert len(wanted) > 100
    until_all_have_data(prometheus, wanted)


def test_every_alert_has_something_to_compare(prometheus: str, busy: None):
    until_all_have_data(prometheus, [(name, each) for name, expression in ALERTS.items() for each in compared(expression)])


def test_the_demonstration_shows_something_in_every_panel_and_gives_every_alert_something_to_compare(demonstrated: str):
    alerts = {name: expression for name, expression in ALERTS.items() if name not in NOT_DEMONSTRATED}
    assert len(alerts) == len(ALERTS) - len(NOT_DEMONSTRATED)
    compares = [(name, each) for name, expression in alerts.items() for each in compared(expression)]
    until_all_have_data(demonstrated, [*shown(), *compares])


def test_labels_are_compared_with_values_that_the_gateway_says(used: Gateway, prometheus: str, busy: None):
    until("the pods' pages were read", lambda: "snapgate_target_value_fresh{" in scrape(used))
    expressions = [target["expr"] for board in BOARDS for panel in board["panels"] for target in panel.get("targets", [])
                   if target["datasource"]["type"] == "prometheus"]
    page = scrape(used)
    assert [wrong for expression in [*expressions, *ALERTS.values()] for wrong in never_said(expression, page)] == []
    for wrong in ('reason="no_such"', 'reason=~"panic|no_such"', 'exit!="no_such"'):
        assert never_said(f"sum(rate(snapgate_snapshots_dropped_total{{{wrong}}}[1m]))", page), wrong


def until_all_have_data(prometheus: str, wanted: list[tuple[Any, str]]) -> None:
    missing = wanted

    def none_missing() -> bool:
        nonlocal missing
        missing = [(what, expression) for what, expression in missing if not has_data(prometheus, expression)]
        return not missing

    try:
        until("all have data", none_missing)
    except AssertionError:
        pytest.fail("\n".join(f"{what}: {expression}" for what, expression in missing))


def test_prometheus_looks_for_every_alert_and_a_gateway_that_is_well_raises_none(prometheus: str, busy: None):
    def looked_for() -> list[dict[str, Any]] | None:
        rules = [rule for group in api(prometheus, "rules")["groups"] for rule in group["rules"]]
        return rules if rules and all(rule["health"] != "unknown" for rule in rules) else None

    rules = until("all rules were evaluated", looked_for)
    assert {rule["name"] for rule in rules} == set(ALERTS)
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []

"""The alerts: they are about metrics that exist, fire when they should, and tell people what to do."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml
from conftest import ROOT
from registries import BY_PROMETHEUS, OF_PROMETHEUS, unknown, uses, words

FILE = ROOT / "otel/alerts.yaml"
CASES = ROOT / "tests/dashboards/alerts.test.yaml"
BOARDS = [json.loads(file.read_text()) for file in (ROOT / "dashboards").glob("*.json")]
PANELS = {
    f"{board['title'].removeprefix('snapgate / ')} / {panel['title']}"
    for board in BOARDS
    for panel in board["panels"]
    if panel["type"] != "row"
}
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_about_metrics_that_exist_and_says_what_to_do(name: str):
    rule = ALERTS[name]
    assert unknown(rule["expr"]) == []
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    # An aggregation keeps only the labels that it names; a series by itself keeps all, of which these two are always there.
    aggregated = " by (" in rule["expr"]
    kept = [use.labels if aggregated and use.labels else use.labels | BY_PROMETHEUS for use in uses(rule["expr"])]
    shown = set().union(*(words(text) for text in rule["annotations"].values())) - {"value"}
    assert shown <= frozenset.intersection(*kept)


def test_panels_that_alerts_lead_to_exist_and_are_named_with_their_dashboards():
    """`*Fleet / Waiting*`, and never in another way, which this would not see."""
    led = set()
    for name, rule in ALERTS.items():
        for text in rule["annotations"].values():
            led |= set(re.findall(r"\*([^*]+)\*", text))
            rest = re.sub(r"\*[^*]+\*", "", text)
            assert "*" not in rest and not re.search(r"\b(panel|dashboard)", rest, re.IGNORECASE), (name, rest)
    assert len(led) > 10
    assert led - PANELS == set()


def test_promtool_accepts_the_rules(promtool: str):
    done = subprocess.run([promtool, "check", "rules", FILE], text=True, capture_output=True)
    assert done.returncode == 0 and f"{len(ALERTS)} rules found" in done.stdout, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_before(promtool: str):
    cases = [test["alert_rule_test"][0] for test in yaml.safe_load(CASES.read_text())["tests"]]
    for name in ALERTS:
        fired = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == name]
        assert fired == [False, True], name
    done = subprocess.run([promtool, "test", "rules", CASES], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_prometheus_adds_is_no_metric_of_the_gateway():
    assert {use.series for rule in ALERTS.values() for use in uses(rule["expr"])} & set(OF_PROMETHEUS) == {"up"}

"""The dashboards: made from their source, read by Grafana's own types, and by the rules of its dashboard-linter.

Of the linter's rules (v0.2.0), `template-on-time-change-reload` is in the test of variables, `target-promql` and
`template-label-promql` go through a parser of PromQL. Left out are `target-logql` and `target-logql-auto`, because there is no
parser of LogQL to be had: the fields that a LogQL expression takes from the document are compared with its schema instead.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard
from registries import attributes, fields, filled, unknown, uses, words

# The options of panels and the queries of data sources have types, too.
register_default_plugins()

FOLDER = ROOT / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))
BOARDS = {file.stem: json.loads(file.read_text()) for file in FILES}

COUNTED_SINCE_THE_START = {"Out of balance"}
"""Panels that compare counters with each other, so that they need no rate."""

BESIDE_THE_LINE = {"snapshot_id", "trace_id"}
"""What Loki keeps beside a line: the OTLP exit sends it so, and otel/collector.yaml makes it so."""

UNITS = {value for value in vars(units).values() if isinstance(value, str)}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


PANELS = [
    pytest.param(board, panel, id=f"{uid}-{panel['title']}") for uid, board in BOARDS.items() for panel in panels(board)
]


def expressions(panel: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [target for target in panel.get("targets", []) if target["datasource"]["type"] == kind]


def variable(board: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in board["templating"]["list"] if each["name"] == name]
    return found


def test_the_files_are_what_their_source_makes(tmp_path: Path):
    for file in ("build.py", "panels.py"):
        (tmp_path / file).write_bytes((FOLDER / file).read_bytes())
    subprocess.run([sys.executable, tmp_path / "build.py"], check=True)
    made = {file.name: file.read_bytes() for file in tmp_path.glob("*.json")}
    assert made == {file.name: file.read_bytes() for file in FILES}
    assert len(made) == 5


def lost(ours: Any, theirs: Any, place: str) -> list[str]:
    """What is not in the other one, with its place."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        gone = [f"{place}.{key}" for key in ours if key not in theirs]
        return gone + [each for key in ours if key in theirs for each in lost(ours[key], theirs[key], f"{place}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [each for n, pair in enumerate(zip(ours, theirs)) for each in lost(*pair, f"{place}[{n}]")]
    return [] if ours == theirs else [f"{place}: {ours!r} became {theirs!r}"]


@pytest.mark.parametrize("uid", BOARDS)
def test_grafanas_own_types_lose_nothing_of_a_dashboard(uid: str):
    """A misspelt key would not survive: the types are generated from Grafana's schema and keep what they know. They do not look
    into values: units and links have tests of their own.
    """
    board = BOARDS[uid]
    read = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    assert lost(board, read, uid) == []


def test_a_misspelt_key_would_be_found():
    board = json.loads(json.dumps(BOARDS["snapgate-fleet"]))
    board["panels"][1]["fieldConfig"]["defaults"]["noValues"] = "misspelt"
    board["panels"][1]["options"]["colourMode"] = "misspelt"
    read = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    assert len(lost(board, read, "")) == 2


@pytest.mark.parametrize("uid", BOARDS)
def test_variables_are_as_the_linter_wants_them(uid: str):
    board = BOARDS[uid]
    backends = [each for each in board["templating"]["list"] if each["type"] == "datasource"]
    for each in backends:
        assert (each["name"], each["label"]) == (f"{each['query']}_datasource", f"{each['query'].title()} data source")
    asked = [each for each in board["templating"]["list"] if each["type"] == "query"]
    for each in asked:
        assert each["datasource"]["uid"] == "${prometheus_datasource}"
        assert each["label"] == each["name"].title() and each["multi"] and each["allValue"] == ".+"
        assert each["refresh"] == 2, "values are read again when the time changes"
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", each["query"]["query"]).groups()
        assert unknown(selector) == [] and unknown(f"sum by ({label}) ({selector})") == []
    of_metrics = "prometheus" in {each["query"] for each in backends}
    assert ({each["name"] for each in asked} >= {"job", "instance"}) == of_metrics
    assert board["editable"] is False and board["schemaVersion"] == 42


@pytest.mark.parametrize("uid", BOARDS)
def test_panels_have_places_of_their_own_and_every_used_variable_exists(uid: str):
    board = BOARDS[uid]
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    names = {each["name"] for each in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board)))
    assert {name for name in used if not name.startswith("__")} <= names
    assert names <= used, "a variable that nothing uses"


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_a_panel_says_what_it_shows(board: dict[str, Any], panel: dict[str, Any]):
    assert panel["title"] and panel["description"].endswith(".")
    if panel["type"] == "text":
        return
    defaults = panel["fieldConfig"]["defaults"]
    assert len(defaults["noValue"]) > 10, "what no data means"
    if panel["type"] not in ("logs", "traces"):
        assert defaults["unit"] in UNITS
    kind = panel["datasource"]["type"]
    assert panel["datasource"]["uid"] == f"${{{variable(board, f'{kind}_datasource')['name']}}}"
    assert panel["targets"]
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_expressions_of_metrics_are_right(board: dict[str, Any], panel: dict[str, Any]):
    for target in expressions(panel, "prometheus"):
        expression = target["expr"]
        assert unknown(expression) == []
        for use in uses(expression):
            assert {("job", ".+"), ("instance", ".+")} <= use.matchers, expression
            counter = use.series.endswith(("_total", "_bucket", "_count", "_sum"))
            if counter and panel["title"] not in COUNTED_SINCE_THE_START:
                assert use.within[:1] in (("rate",), ("irate",), ("increase",)), expression
            if use.within[:1] in (("rate",), ("irate",)):
                assert f"{use.series}{{" in expression and use.seconds == 60, "rates are over $__rate_interval"
        legend = words(target["legendFormat"])
        assert not legend or any(legend <= use.labels for use in uses(expression)), expression


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_expressions_of_spans_and_lines_name_what_there_is(board: dict[str, Any], panel: dict[str, Any]):
    for target in expressions(panel, "tempo"):
        query = target["query"]
        named = set(re.findall(r"\bspan\.([\w.]+)", query))
        assert named <= attributes(), query
        assert named or query == "${snapshot}"
    for target in expressions(panel, "loki"):
        query = filled(target["expr"])
        assert query.startswith('{service_name="snapgate"}')
        taken = dict(re.findall(r'(\w+)="([\w.]+)"', "".join(re.findall(r"\| json ([^|]*)", query))))
        assert set(taken.values()) <= fields(), query
        assert set(re.findall(r'\| (\w+)="', query)) <= BESIDE_THE_LINE
        shown = set(re.findall(r"\{\{\.(\w+)\}\}", query)) | set(re.findall(r"\| (\w+) >", query))
        assert shown <= set(taken), query


def test_links_lead_to_dashboards_that_exist():
    text = "".join(file.read_text() for file in FILES) + (FOLDER / "provisioning/datasources.yaml").read_text()
    linked = re.findall(r"/d/([\w-]+)\?var-(\w+)=", text)
    assert linked
    for uid, name in linked:
        assert variable(BOARDS[uid], name)["type"] == "textbox"

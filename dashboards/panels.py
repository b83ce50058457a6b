"""What the dashboards are made of: panels, variables, their places.

Classic dashboards, schema version 42. In expressions `{@` stands for the matchers of the variables job and instance, and
`[~]` for Grafana's rate interval.
"""

from __future__ import annotations

import json
from typing import Any

SCHEMA_VERSION = 42
MATCHERS = 'job=~"$job", instance=~"$instance"'
WIDTH = 24
"""Columns of Grafana's grid."""

Panel = dict[str, Any]


def source(kind: str) -> dict[str, str]:
    return {"type": kind, "uid": f"${{{kind}_datasource}}"}


def promql(text: str) -> str:
    return text.replace("{@", "{" + MATCHERS).replace("[~]", "[$__rate_interval]")


def panel(kind: str, title: str, description: str, *, backend: str = "prometheus", unit: str | None = None,
          empty: str = "", w: int = 8, h: int = 8, custom: dict[str, Any] | None = None,
          options: dict[str, Any] | None = None, **more: Any) -> Panel:
    """`empty` is what it means when there is no data: it is shown in place of them."""
    defaults: dict[str, Any] = {"noValue": empty} | more.pop("defaults", {})
    if unit is not None:
        defaults["unit"] = unit
    if custom is not None:
        defaults["custom"] = custom
    return {
        "type": kind,
        "title": title,
        "description": f"{description} No data: {empty}.",
        "datasource": source(backend),
        "gridPos": {"w": w, "h": h, "x": 0, "y": 0},
        "fieldConfig": {"defaults": defaults, "overrides": more.pop("overrides", [])},
        "options": options or {},
    } | more


def queries(expressions: dict[str, str], **more: Any) -> list[dict[str, Any]]:
    """From legends to expressions."""
    return [
        {"refId": chr(ord("A") + n), "datasource": source("prometheus"), "expr": promql(expr), "legendFormat": legend,
         "editorMode": "code", "range": True} | more
        for n, (legend, expr) in enumerate(expressions.items())
    ]


def lines(title: str, description: str, unit: str, empty: str, expressions: dict[str, str], *, stacked: bool = False,
          exemplars: bool = False, **more: Any) -> Panel:
    """Values over time, one line a legend."""
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 30 if stacked else 5, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults = {"min": 0} | more.pop("defaults", {})
    targets = queries(expressions, **({"exemplar": True} if exemplars else {}))
    return panel("timeseries", title, description, unit=unit, empty=empty, custom=custom, options=options,
                 defaults=defaults, targets=targets, **more)


def number(title: str, description: str, unit: str, empty: str, expression: str, *, bad_above: float | None = None,
           bad_below: float | None = None, **more: Any) -> Panel:
    """One value of now, green or red."""
    steps: list[dict[str, Any]] = [{"color": "red" if bad_below is not None else "green", "value": None}]
    if bad_above is not None:
        steps.append({"color": "red", "value": bad_above})
    if bad_below is not None:
        steps.append({"color": "green", "value": bad_below})
    options = {
        "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "wideLayout": True,
        "showPercentChange": False, "percentChangeColorMode": "standard",
    }
    return panel("stat", title, description, unit=unit, empty=empty, options=options, w=more.pop("w", 4), h=4,
                 defaults={"thresholds": {"mode": "absolute", "steps": steps}}, targets=queries({"": expression}), **more)


def heatmap(title: str, description: str, unit: str, empty: str, histogram: str, **more: Any) -> Panel:
    """How a histogram's buckets fill over time, with exemplars: each is one request and leads to it."""
    options = {
        "calculate": False, "cellGap": 1, "cellValues": {"unit": "short"}, "filterValues": {"le": 1e-9},
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5, "fill": "dark-orange",
                  "scale": "exponential", "reverse": False},
        "exemplars": {"color": "rgba(255,120,0,0.9)"}, "legend": {"show": True}, "rowsFrame": {"layout": "auto"},
        "showValue": "never", "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    expression = f"sum by (le) (increase({histogram}_bucket{{@}}[~]))"
    targets = queries({"{{le}}": expression}, format="heatmap", exemplar=True)
    return panel("heatmap", title, description, unit=unit, empty=empty, options=options, targets=targets,
                 w=more.pop("w", 12), **more)


def known(expression: str) -> str:
    """Nothing in place of NaN, which is what 0 / 0 is: so that a panel says what no data means."""
    return f"{expression} >= 0"


def ratio(part: str, whole: str) -> str:
    return known(f"{part} / {whole}")


def percentiles(histogram: str) -> dict[str, str]:
    return {
        f"p{q}": known(f"histogram_quantile({q / 100}, sum by (le) (rate({histogram}_bucket{{@}}[~])))") for q in (50, 90, 99)
    }


SNAPSHOT_LINKS = [
    {"title": "This snapshot", "url": "/d/snapgate-snapshot?var-snapshot=${__value.raw}", "targetBlank": True},
]
"""Of a cell that holds a snapshot ID."""


def found(title: str, description: str, empty: str, traceql: str, **more: Any) -> Panel:
    """A table of spans."""
    target = {"refId": "A", "datasource": source("tempo"), "queryType": "traceql", "query": traceql, "tableType": "spans",
              "limit": 20, "spss": 3}
    linked = {"matcher": {"id": "byName", "options": "snapgate.snapshot.id"},
              "properties": [{"id": "links", "value": SNAPSHOT_LINKS}]}
    return panel("table", title, description, backend="tempo", unit="none", empty=empty, targets=[target], overrides=[linked],
                 options={"showHeader": True, "cellHeight": "sm"}, w=more.pop("w", 12), h=more.pop("h", 10), **more)


def trace(title: str, description: str, empty: str, trace_id: str) -> Panel:
    target = {"refId": "A", "datasource": source("tempo"), "queryType": "traceql", "query": trace_id}
    return panel("traces", title, description, backend="tempo", empty=empty, targets=[target], w=16, h=10)


def logged(title: str, description: str, empty: str, logql: str, **more: Any) -> Panel:
    target = {"refId": "A", "datasource": source("loki"), "expr": logql, "queryType": "range", "editorMode": "code",
              "maxLines": 100}
    options = {"showTime": True, "showLabels": False, "showCommonLabels": False, "wrapLogMessage": True,
               "prettifyLogMessage": True, "enableLogDetails": True, "dedupStrategy": "none", "sortOrder": "Descending"}
    return panel("logs", title, description, backend="loki", empty=empty, targets=[target], options=options,
                 w=more.pop("w", 24), h=more.pop("h", 10), **more)


def text(title: str, content: str) -> Panel:
    options = {"mode": "markdown", "content": content}
    return {"type": "text", "title": title, "description": "Where the snapshot can be looked at.", "options": options,
            "gridPos": {"w": 8, "h": 10, "x": 0, "y": 0}}


def row(title: str) -> Panel:
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": WIDTH, "h": 1, "x": 0, "y": 0}}


def placed(panels: list[Panel]) -> list[Panel]:
    """From left to right, then down; each gets a number."""
    x = y = height = 0
    for number, each in enumerate(panels, 1):
        place = each["gridPos"]
        if x + place["w"] > WIDTH:
            x, y, height = 0, y + height, 0
        place["x"], place["y"], each["id"] = x, y, number
        x, height = x + place["w"], max(height, place["h"])
    return panels


def choice(name: str, query: str) -> dict[str, Any]:
    """A variable whose values Prometheus knows."""
    return {
        "type": "query", "name": name, "label": name.title(), "datasource": source("prometheus"),
        "query": {"query": query, "refId": "StandardVariableQuery"}, "refresh": 2, "sort": 1, "multi": True,
        "includeAll": True, "allValue": ".+", "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [], "hide": 0, "regex": "", "skipUrlSync": False,
    }


def backend(kind: str) -> dict[str, Any]:
    return {"type": "datasource", "name": f"{kind}_datasource", "label": f"{kind.title()} data source", "query": kind,
            "current": {}, "options": [], "hide": 0, "refresh": 1, "regex": "", "multi": False, "includeAll": False,
            "skipUrlSync": False}


def written(name: str, label: str, value: str = "") -> dict[str, Any]:
    """A variable that is typed."""
    current = {"selected": True, "text": value, "value": value}
    return {"type": "textbox", "name": name, "label": label, "query": value, "hide": 0, "skipUrlSync": False,
            "current": current, "options": [current]}


def dashboard(uid: str, title: str, description: str, panels: list[Panel], *variables: dict[str, Any],
              backends: tuple[str, ...] = ("prometheus",), since: str = "now-1h") -> dict[str, Any]:
    common = [backend(kind) for kind in backends]
    if "prometheus" in backends:
        common += [choice("job", "label_values(snapgate_build_info, job)"),
                   choice("instance", 'label_values(snapgate_build_info{job=~"$job"}, instance)')]
    return {
        "uid": f"snapgate-{uid}", "title": f"snapgate / {title}", "description": description, "tags": ["snapgate"],
        "schemaVersion": SCHEMA_VERSION, "version": 1, "editable": False, "graphTooltip": 1, "timezone": "browser",
        "refresh": "30s", "time": {"from": since, "to": "now"}, "timepicker": {}, "fiscalYearStartMonth": 0,
        "weekStart": "", "liveNow": False, "preload": False,
        "links": [{"type": "dashboards", "title": "snapgate", "tags": ["snapgate"], "asDropdown": True, "icon": "external link",
                   "includeVars": True, "keepTime": True, "targetBlank": False, "tooltip": "", "url": ""}],
        "annotations": {"list": []}, "templating": {"list": [*common, *variables]}, "panels": placed(panels),
    }


def rendered(board: dict[str, Any]) -> str:
    return json.dumps(board, indent=2, ensure_ascii=False) + "\n"

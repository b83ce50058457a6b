"""What there is to show: metrics with their labels and values of them, attributes of spans, fields of the document; and what
an expression uses of it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser
from conftest import ROOT

VARIABLES = {
    "$__rate_interval": "1m", "$__range": "1h", "$job": ".+", "$instance": ".+", "$target": ".+", "$model": ".+",
    "${slow_us}": "1", "$slow": "1s", "$service": "snapgate", "${snapshot}": "0" * 32,
}
"""What Grafana puts in their place."""

OF_PROMETHEUS = {"up": set()}
"""Series that Prometheus adds to what it scrapes."""

OVERFLOW = "_other"
"""The value of a label that has no room for another; a page has it once that has happened."""

BY_PROMETHEUS = {"job", "instance"}
"""Labels that it adds."""


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def metrics() -> dict[str, set[str]]:
    """From the names of series to their labels."""
    series: dict[str, set[str]] = dict(OF_PROMETHEUS)
    with (ROOT / "otel/metrics.csv").open() as file:
        for row in csv.DictReader(file):
            labels = set(row["labels"].split()) | BY_PROMETHEUS
            if row["type"] == "histogram":
                series |= {f"{row['name']}_sum": labels, f"{row['name']}_count": labels}
                series[f"{row['name']}_bucket"] = labels | {"le"}
            else:
                series[row["name"]] = labels
    return series


def attributes() -> set[str]:
    with (ROOT / "otel/attributes.csv").open() as file:
        return {row["name"] for row in csv.DictReader(file)}


def fields() -> set[str]:
    """Paths of the document: `outcome.ending`."""
    schema = json.loads((ROOT / "otel/snapshot.schema.json").read_text())
    paths: set[str] = set()

    def walk(node: dict, path: str) -> None:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        for each in node.get("allOf", []) + node.get("oneOf", []) + node.get("anyOf", []):
            walk(each, path)
        for name, below in node.get("properties", {}).items():
            paths.add(f"{path}{name}")
            walk(below, f"{path}{name}.")

    walk(schema, "")
    return paths


@dataclass(frozen=True)
class Use:
    """Of one series, by a selector or by whatever is around it."""

    series: str
    labels: frozenset[str]
    within: tuple[str, ...]
    """Functions around it, the nearest first."""
    seconds: float | None
    """Of its range."""
    matchers: frozenset[tuple[str, str]]


def uses(expression: str) -> list[Use]:
    return list(_uses(promql_parser.parse(filled(expression)), (), frozenset()))


def _uses(node, within: tuple[str, ...], labels: frozenset[str]) -> Iterator[Use]:
    match type(node).__name__:
        case "VectorSelector":
            yield _use(node, within, labels, None)
        case "MatrixSelector":
            yield _use(node.vector_selector, within, labels, node.range.total_seconds())
        case "AggregateExpr":
            added = node.modifier.labels if node.modifier else []
            yield from _uses(node.expr, within, labels | set(added))
        case "Call":
            for argument in node.args:
                yield from _uses(argument, (node.func.name, *within), labels)
        case "BinaryExpr":
            matching = node.modifier.matching.labels if node.modifier and node.modifier.matching else []
            for side in (node.lhs, node.rhs):
                yield from _uses(side, within, labels | set(matching))
        case "ParenExpr" | "UnaryExpr" | "SubqueryExpr":
            yield from _uses(node.expr, within, labels)
        case "NumberLiteral" | "StringLiteral":
            pass
        case other:
            raise AssertionError(f"nobody has said what a {other} uses")


def _use(selector, within: tuple[str, ...], labels: frozenset[str], seconds: float | None) -> Use:
    matchers = frozenset((matcher.name, matcher.value) for matcher in selector.matchers.matchers)
    names = frozenset(name for name, _ in matchers)
    return Use(selector.name, labels | names, within, seconds, matchers)


def unknown(expression: str) -> list[str]:
    """What an expression uses of metrics that are not there."""
    known, wrong = metrics(), []
    for use in uses(expression):
        if use.series not in known:
            wrong.append(f"{use.series} is no series")
        elif use.series not in OF_PROMETHEUS:
            wrong += [f"{use.series} has no label {label}" for label in use.labels - known[use.series]]
    return wrong


def said(page: str) -> dict[tuple[str, str], set[str]]:
    """From a series and a label to its values on a page of `/metrics`."""
    values: dict[tuple[str, str], set[str]] = {}
    for series, labels in re.findall(r'^(\w+)\{(.*)\} ', page, re.M):
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            values.setdefault((series, label), set()).add(value)
    return values


def never_said(expression: str, page: str) -> list[str]:
    """Values that an expression compares labels with and that are not on the page. Values of closed sets are all there from the
    start; what a variable or Prometheus puts in its place is not the gateway's."""
    there, wrong = said(page), []
    for selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
        series, matchers = selector
        for label, operator, text in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label in BY_PROMETHEUS or "$" in text or text == OVERFLOW:
                continue
            for value in text.split("|") if "~" in operator else [text]:
                if value not in there.get((series, label), set()):
                    wrong.append(f"{series} has no {label} {value!r}")
    return wrong


def words(series: str) -> set[str]:
    """Fields in braces of a legend or a template."""
    return set(re.findall(r"\{\{\s*(?:\$labels)?\.?(\w+)\s*\}\}", series))

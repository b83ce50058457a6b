"""The README's example that joins a benchmark with what the gateway saw, as it stands there."""

from __future__ import annotations

import csv
import json
import re
import urllib.request
from typing import Any

import pandas
import pytest
from conftest import ROOT, Gateway

SECTION = re.compile(r"^## Joining with your benchmark$.*?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def example(gateway: Gateway) -> dict[str, Any]:
    """What the example's names stand for at its end."""
    (code,) = SECTION.findall((ROOT / "README.md").read_text())
    assert len(code.splitlines()) <= 32, "it is to be read at a glance"
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEWAY", gateway.url)
        patch.setenv("ADMIN", gateway.admin)
        exec(compile(code, "README.md", "exec"), names)
    return names


def test_every_request_joins(example: dict[str, Any]):
    mine, joined = example["mine"], example["joined"]
    assert list(joined["key"]) == list(mine["key"]) and joined["key"].is_unique
    assert (joined["state"] == "found").all() and (joined["phase"] == "complete").all()
    assert (joined["id"] == joined["key"]).all()
    assert (joined["outside_ms"] > 0).all(), "the client's time has the gateway's in it"
    streamed = joined[joined["request_stream"]]
    assert len(streamed) == len(joined) / 2
    assert (streamed["client_first_ms"] > streamed["timings_first_content_offset_us"] / 1e3).all()


def test_no_id_and_no_integer_loses_a_digit(example: dict[str, Any], gateway: Gateway):
    theirs = example["theirs"]
    url = f"{gateway.admin}/v1/snapshots/resolve?shape=flat&format=ndjson&wait=5s"
    with urllib.request.urlopen(url, "\n".join(theirs["key"]).encode()) as answer:
        rows = {row["key"]: row for row in map(json.loads, answer)}
    with open(ROOT / "otel/snapshot_flat.csv", newline="") as published:
        types = {column["column"]: column["type"] for column in csv.DictReader(published)}
    compared = 0
    for _, got in theirs.iterrows():
        want = rows[got["key"]]
        for column, kind in types.items():
            if want[column] is None:
                assert pandas.isna(got[column]), column
            elif kind == "integer" or column in example["texts"]:
                assert str(got[column]) == str(want[column]), column
                compared += 1
    assert compared > 30 * len(theirs)

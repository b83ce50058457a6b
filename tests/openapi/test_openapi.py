"""The description of the admin interface, and the interface by it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Gateway, serving, simulated_pod
from openapi_spec_validator import validate

HERE = Path(__file__).parent
TOKEN = "schemathesis-0123456789"
MODEL = "llama-3.1-8b"


@dataclass
class Recorded:
    """A gateway that has records of every kind."""

    gateway: Gateway
    keys: list[str]
    tenants: list[str]


@pytest.fixture(scope="module")
def recorded(snapgate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    environment = {
        "SNAPGATE_LOOKUP_TOKENS": f'[{{name = "all", token = "{TOKEN}", scope = ["read", "delete"]}}]',
        # With a key of its own a caller is answered 404, which cannot be told from a token that is not looked at.
        "SNAPGATE_LOOKUP_OWN_RECORDS": "false",
        "SNAPGATE_LOOKUP_REQUESTS_PER_SECOND": "100000",
        "SNAPGATE_RECORD_HEADERS": "x-run-id",
    }
    with simulated_pod() as pod, serving(pod, tmp_path_factory.mktemp("data"), environment) as gateway:
        clients = [openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=f"sk-{n}", max_retries=0) for n in range(3)]
        question = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4}
        keys = ["often", "0af7651916cd43dd8448eb211c80319c"]
        for client in clients * 5:
            answer = client.chat.completions.create(**question, extra_headers={"x-run-id": "run-17"})
            stream = client.chat.completions.create(**question, stream=True)
            list(stream)
            keys += [answer.id, answer._request_id, stream.response.headers["x-snapshot-id"]]
            traced = {"x-request-id": keys[0], "traceparent": f"00-{keys[1]}-00f067aa0ba902b7-01"}
            client.chat.completions.create(**question, extra_headers=traced)
            with pytest.raises(openai.NotFoundError) as refused:
                client.files.list()
            with pytest.raises(openai.NotFoundError) as no_model:
                client.chat.completions.create(**question | {"model": "no-such-model"})
            keys += [refused.value.request_id, no_model.value.request_id]
        left = client.chat.completions.create(**question | {"max_tokens": 50_000}, stream=True)
        next(iter(left))
        left.close()
        going = client.chat.completions.create(**question | {"max_tokens": 50_000}, stream=True)
        next(iter(going))
        keys += [stream.response.headers["x-snapshot-id"] for stream in (left, going)]
        keys.append(keys[2][:20] + "ffff" + keys[2][24:])
        rows = resolve(gateway, keys)
        assert {row["state"] for row in rows} >= {"found"}
        tenants = {match["request"]["tenant"] for row in rows for match in row["matches"]} - {None}
        yield Recorded(gateway, keys, sorted(tenants))
        going.close()


def resolve(gateway: Gateway, keys: Any) -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    url = f"{gateway.admin}/v1/snapshots/resolve?format=json"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(keys).encode(), headers)) as answer:
        return json.load(answer)


def test_the_document_is_valid_openapi(gateway: Gateway):
    with urllib.request.urlopen(f"{gateway.admin}/openapi.json") as answer:
        validate(json.load(answer))


def test_a_body_that_is_said_to_be_json_is_an_array(recorded: Recorded):
    with pytest.raises(urllib.error.HTTPError) as refused:
        resolve(recorded.gateway, {"keys": recorded.keys})
    assert refused.value.code == 400 and "JSON array" in json.load(refused.value)["detail"]


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "text/csv"])
def test_schemathesis_finds_nothing(recorded: Recorded, tmp_path: Path, accept: str):
    shutil.copy(HERE / "schemathesis.toml", tmp_path)
    for name, values in [("keys", recorded.keys), ("tenants", recorded.tenants)]:
        (tmp_path / f"{name}.txt").write_text("\n".join(map(json.dumps, values)))
    command = [Path(sys.executable).parent / "schemathesis", "--config-file", tmp_path / "schemathesis.toml", "run"]
    command += [f"{recorded.gateway.admin}/openapi.json", "-H", f"Authorization: Bearer {TOKEN}", "-H", f"Accept: {accept}"]
    command += ["--checks", "all", "--continue-on-failure", "--seed", "1", "--request-timeout", "30"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HERE / "hooks.py"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

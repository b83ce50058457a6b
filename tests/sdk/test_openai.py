"""The OpenAI SDK against the gateway: IDs stand where its users look for them, and resolve."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import openai
import pytest
from conftest import Gateway

QUESTION: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "messages": [{"role": "user", "content": "Why did this request go there?"}],
    "max_tokens": 8,
}


@pytest.fixture(scope="session")
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-test", max_retries=0)


def resolve(gateway: Gateway, key: str) -> dict[str, Any]:
    """The snapshot of a request that has ended, or is about to."""
    with urllib.request.urlopen(f"{gateway.admin}/v1/snapshots/{key}?wait=5s") as answer:
        return json.load(answer)


def assert_told(snapshot: dict[str, Any], ending: str, status: int) -> None:
    outcome = snapshot["outcome"]
    assert (snapshot["phase"], outcome["ending"], outcome["status"]) == ("complete", ending, status)
    assert snapshot["request"]["user_agent"].startswith("OpenAI/Python")


def test_an_answer_has_its_request_id(client: openai.OpenAI, gateway: Gateway):
    answer = client.chat.completions.create(**QUESTION)
    snapshot = resolve(gateway, answer._request_id)
    assert_told(snapshot, "completed", 200)
    assert answer.id == f"chatcmpl-{snapshot['id']}"
    usage, outcome = answer.usage, snapshot["outcome"]
    assert (usage.prompt_tokens, usage.completion_tokens) == (outcome["prompt_tokens"], outcome["completion_tokens"])


def test_a_stream_has_it_on_the_raw_response_and_in_every_chunk(client: openai.OpenAI, gateway: Gateway):
    # The SDK sets `_request_id` on objects that it parsed whole; a stream is none.
    raw = client.chat.completions.with_raw_response.create(**QUESTION, stream=True)
    with raw.parse() as stream:
        chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert len(text.split()) == QUESTION["max_tokens"]
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{raw.request_id}"}
    snapshot = resolve(gateway, raw.request_id)
    assert_told(snapshot, "completed", 200)
    assert snapshot["request"]["stream"] and snapshot["outcome"]["finish_reason"] == "length"


def test_a_stream_that_is_left_was_left_by_the_client(client: openai.OpenAI, gateway: Gateway):
    stream = client.chat.completions.create(**QUESTION | {"max_tokens": 50_000}, stream=True)
    next(iter(stream))
    stream.close()
    assert_told(resolve(gateway, stream.response.headers["x-snapshot-id"]), "client_disconnected", 200)


def test_a_clients_own_request_id_comes_back_and_finds_the_snapshot(client: openai.OpenAI, gateway: Gateway):
    answer = client.chat.completions.create(**QUESTION, extra_headers={"x-request-id": "ticket-4711"})
    assert answer._request_id == "ticket-4711"
    (snapshot,) = resolve(gateway, "ticket-4711")["matches"]
    assert answer.id == f"chatcmpl-{snapshot['id']}"


def test_an_exceptions_text_carries_the_id_of_what_the_gateway_refused(client: openai.OpenAI, gateway: Gateway):
    with pytest.raises(openai.NotFoundError) as raised:
        client.files.list()
    found = re.search(r"\(snapshot ([0-9a-f]{32})\)", str(raised.value))
    assert found and found[1] == raised.value.request_id
    assert_told(resolve(gateway, found[1]), "rejected", 404)


def test_an_engines_own_error_passes_and_its_exception_knows_the_id(client: openai.OpenAI, gateway: Gateway):
    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(**QUESTION, extra_headers={"x-sim-fault": "error=500"})
    assert_told(resolve(gateway, raised.value.request_id), "completed", 500)

"""The three pods behind every subject: what they answer, and the nginx that answers it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Process, free_ports, nginx_user, render, start_nginx

MODEL = "llama-3.1-8b"
PODS = 3
EVENTS = 32
"""Events of a stream, without the closing [DONE]."""

EVENT_BYTES = 288
"""Each event's size: vLLM's are 230 to 330. All alike, so that nginx can be told to write them one by one."""

_ID = "chatcmpl-019ab3c2d1e0a7f15b2c8d3e4f607182"
_CREATED = 1795437734
_FINGERPRINT = "vllm-0.32.0-869ba3d5"
_FILLER = "queue length and cache use were the lowest of the three pods at that moment, hence this one was chosen "


@dataclass(frozen=True)
class Workload:
    """One kind of request, and the bytes that every subject must pass on."""

    name: str
    request: bytes
    answer: bytes


def workload(name: str) -> Workload:
    """The workload `json` or `stream`."""
    if name == "json":
        return Workload(name, _request(stream=False), _chat_answer())
    return Workload(name, _request(stream=True), _chat_stream())


def start(
    program: str, directory: Path, load: Workload, workers: int, events_per_write: int
) -> tuple[Process, list[int]]:
    """Starts the pods; also answers their ports."""
    ports = free_ports(PODS)
    answers = directory / "answers"
    answers.mkdir()
    (answers / "metrics.txt").write_text(metrics_page())
    if load.name == "stream":
        (answers / "stream.sse").write_bytes(load.answer)
        answer = "error_page 405 =200 /stream.sse; return 405;"
    else:
        text = load.answer.decode()
        if any(special in text for special in "'\\$"):
            raise ValueError("the answer has characters that mean something to nginx")
        answer = f"return 200 '{text}';"
    values = {
        "USER": nginx_user(),
        "WORKERS": str(workers),
        "LISTEN": " ".join(f"listen 127.0.0.1:{port};" for port in ports),
        "ANSWER": answer,
        "MODEL": MODEL,
        "WRITE_BYTES": str(EVENT_BYTES * events_per_write),
    }
    configuration = render(Path(__file__).with_name("nginx-backend.conf"), values)
    return start_nginx("the backend", program, directory, configuration), ports


def metrics_page() -> str:
    """A page of vLLM's size and kind, about 50 KB, because gateways that poll must read it whole."""
    labels = f'engine="0",model_name="{MODEL}"'
    values = {
        "num_requests_running": ("gauge", 4.0),
        "num_requests_waiting": ("gauge", 2.0),
        "kv_cache_usage_perc": ("gauge", 0.4125),
        "prefix_cache_queries_total": ("counter", 133200.0),
        "prefix_cache_hits_total": ("counter", 61730.0),
        "prompt_tokens_total": ("counter", 210400.0),
        "generation_tokens_total": ("counter", 180022.0),
    }
    lines = []
    for name, (kind, value) in values.items():
        lines += [f"# HELP vllm:{name} As vLLM exports it.", f"# TYPE vllm:{name} {kind}"]
        lines.append(f"vllm:{name}{{{labels}}} {value}")
    phases = ("queue", "prefill", "decode", "inference", "first_token", "inter_token", "e2e", "prompt", "generation")
    for name in (f"request_{phase}_{of}" for phase in phases for of in ("seconds", "tokens")):
        lines += [f"# HELP vllm:{name} As vLLM exports it.", f"# TYPE vllm:{name} histogram"]
        for step in range(30):
            lines.append(f'vllm:{name}_bucket{{engine="0",le="{0.3 * 1.5**step:.1f}",model_name="{MODEL}"}} {step}.0')
        lines.append(f'vllm:{name}_bucket{{engine="0",le="+Inf",model_name="{MODEL}"}} 30.0')
        lines += [f"vllm:{name}_count{{{labels}}} 30.0", f"vllm:{name}_sum{{{labels}}} 21.75"]
    return "\n".join(lines) + "\n"


def _request(stream: bool) -> bytes:
    """A short conversation of about 600 bytes."""
    system = "You answer operators of an inference cluster. Be brief, name numbers, and say what you do not know."
    question = (
        "Yesterday at 14:03 a request took nine seconds to its first token, although two of our three pods were "
        "nearly idle. Which pod did it go to, what did the gateway know about the queues at that time, and why did "
        "it not choose one of the others? Answer in at most three sentences, and "
        "end with the snapshot ID, so that I can look it up."
    )
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 64, "temperature": 0.2, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return _compact(body)


def _chat_answer() -> bytes:
    """One vLLM 0.32 chat completion of about 700 bytes."""
    message = {"role": "assistant", "content": _FILLER.strip(), "refusal": None, "annotations": None, "audio": None}
    message |= {"function_call": None, "reasoning": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    choice |= {"token_ids": None, "routed_experts": None}
    answer = {"id": _ID, "object": "chat.completion", "created": _CREATED, "model": MODEL, "choices": [choice]}
    answer |= {"service_tier": None, "system_fingerprint": _FINGERPRINT, "usage": _usage()}
    answer |= {"prompt_logprobs": None, "prompt_token_ids": None, "kv_transfer_params": None}
    return _compact(answer)


def _chat_stream() -> bytes:
    """One vLLM 0.32 chat stream: role, contents, finish, usage, and the closing line."""
    events = [_event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})]
    while len(events) < EVENTS - 2:
        events.append(_event({"delta": {"content": ""}, "finish_reason": None, "token_ids": None}))
    events.append(_event({"delta": {"content": ""}, "finish_reason": "stop", "stop_reason": None}))
    events.append(_event(None))
    return b"".join(events) + b"data: [DONE]\n\n"


def _event(choice: dict[str, Any] | None) -> bytes:
    """One event of EVENT_BYTES: a choice, filled up with text, or the usage, with a fingerprint as long as it takes."""
    event: dict[str, Any] = {"id": _ID, "object": "chat.completion.chunk", "created": _CREATED, "model": MODEL}
    if choice is None:
        event |= {"choices": [], "usage": _usage(), "system_fingerprint": ""}
        filled, key = event, "system_fingerprint"
    else:
        event["choices"] = [{"index": 0, **choice, "logprobs": None}]
        filled, key = choice["delta"], "content"
    missing = EVENT_BYTES - len(_framed(event))
    if missing < 0:
        raise ValueError(f"an event is {-missing} bytes longer than EVENT_BYTES")
    filled[key] = (_FILLER * EVENT_BYTES)[:missing]
    return _framed(event)


def _framed(event: dict[str, Any]) -> bytes:
    return b"data: " + _compact(event) + b"\n\n"


def _usage() -> dict[str, Any]:
    return {"prompt_tokens": 132, "total_tokens": 164, "completion_tokens": 32, "prompt_tokens_details": None}


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

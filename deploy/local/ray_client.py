"""A streaming client for the tests: what a user of the OpenAI API sees of an answer, chunk by chunk."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import psutil

from deploy.local.patience import wait_for
from deploy.local.server_process import free_port
from workers.cluster.loopback import is_loopback

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
KEY_VARIABLE, KEY = "DDTREE_TEST_API_KEY", "only-for-tests"
"""The variable in which a tested ingress finds its key, and the key; every request here carries it by default."""


@dataclass
class Streamed:
    """A whole streamed answer: its text, finish reasons, usage, error events, and number of chunks of text."""

    text: str = ""
    finish_reasons: list[str] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    num_chunks: int = 0


def post(url: str, body: dict[str, Any], timeout_s: float = 1800.0, key: str = KEY) -> Any:
    """The open response to a POST of JSON."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    return OPENER.open(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=timeout_s)


def get(url: str, timeout_s: float = 60.0, key: str = KEY) -> tuple[int, str]:
    """Status and text of the answer to a GET."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with OPENER.open(request, timeout=timeout_s) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def stream(url: str, body: dict[str, Any], at_chunk: Callable[[int], None] | None = None) -> Streamed:
    """Ask for a stream with usage and read it to its end; `at_chunk` is called after each chunk of text."""
    answer = Streamed()
    with post(url, {**body, "stream": True, "stream_options": {"include_usage": True}}) as response:
        for line in response:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                answer.errors.append(event["error"])
                continue
            answer.usage = event.get("usage") or answer.usage
            for choice in event["choices"]:
                answer.text += choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
                answer.finish_reasons += [choice["finish_reason"]] if choice.get("finish_reason") else []
                answer.num_chunks += 1
                if at_chunk is not None:
                    at_chunk(answer.num_chunks)
    return answer


def completed(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The decoded answer to a chat request that is not streamed."""
    with post(f"{url}/v1/chat/completions", body) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def same_answer(answer: dict[str, Any], other: dict[str, Any]) -> bool:
    """True if text, finish reason and numbers of tokens are the same."""
    parts = [(one["choices"][0]["message"]["content"], one["choices"][0]["finish_reason"]) for one in (answer, other)]
    numbers = [(one["usage"]["prompt_tokens"], one["usage"]["completion_tokens"]) for one in (answer, other)]
    return parts[0] == parts[1] and numbers[0] == numbers[1]


def ready_replicas(url: str) -> int | None:
    """Ready replicas as `/health` counts them; None while the ingress itself does not answer."""
    try:
        body = json.loads(get(f"{url}/health")[1])
    except (OSError, HTTPException, ValueError):
        return None
    return body.get("ready_replicas") if isinstance(body, dict) else None


def wait_until_ready(url: str, replicas: int, timeout_s: float = 600.0) -> None:
    """Return once `/health` counts that many replicas."""
    wait_for(lambda: ready_replicas(url) == replicas, f"{replicas} ready replicas", timeout_s)


def metric(url: str, name: str) -> float:
    """The value of one of the ingress's own counters."""
    lines = get(f"{url}/metrics")[1].splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"ddtree_ingress_{name} "))


def open_to_others() -> set[tuple[str, str]]:
    """Addresses beyond the loopback interface on which this process's Ray listens, with the process that does."""
    family = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            family[process.pid] = process.name()
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in family]
    assert listening, "Ray listens somewhere"
    return {(c.laddr.ip, family[c.pid]) for c in listening if not is_loopback(c.laddr.ip)}


@contextmanager
def serving() -> Iterator[int]:
    """Serve on this process's Ray, which ends with it; its port."""
    import ray
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()

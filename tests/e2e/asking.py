"""Small client for the tests: native generation with ids, at once or one by one."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deploy.local.client import flush_cache, post
from tests.e2e.servers import Server

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time in a small village,",
    "Q: What is 17 + 25?\nA:",
    "List three uses of copper:\n1.",
    "The quick brown fox",
    "Dear Sir or Madam,\n\nI am writing to",
    "In physics, entropy is",
)


def ask(url: str, prompt: str | Sequence[int], max_new_tokens: int = 32, **sampling: Any) -> dict[str, Any]:
    """One answer of `/generate`; keyword arguments are sampling parameters, `body` merges into the request."""
    body = sampling.pop("body", {})
    key = "text" if isinstance(prompt, str) else "input_ids"
    value = prompt if isinstance(prompt, str) else list(prompt)
    request = {
        key: value,
        "sampling_params": {"temperature": 0.0, "max_new_tokens": max_new_tokens, **sampling},
        **body,
    }
    answer: dict[str, Any] = post(url, "/generate", request)
    return answer


def ask_all(url: str, prompts: Sequence[str | Sequence[int]], at_once: int, **options: Any) -> list[dict[str, Any]]:
    """All prompts, `at_once` of them at any time, answers in order."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda prompt: ask(url, prompt, **options), prompts))


def chunks(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON of every event of a stream, read by newlines alone: text may hold other separators of lines."""
    request = urllib.request.Request(
        url + path, json.dumps({**body, "stream": True}).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=300) as response:
        lines = [raw.decode().strip() for raw in response]
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]


def metrics(url: str, beginning: str) -> list[str]:
    """What the server exports by names that begin like this."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/metrics", timeout=60) as response:
        return [line for line in response.read().decode().splitlines() if line.startswith(beginning)]


def rounds_of(trace: Path) -> list[dict[str, Any]]:
    """The trace of a server so far, one entry per round."""
    return [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]


def num_rounds(server: Server) -> int:
    """Rounds that a server has traced so far. Traces grow long, so they are not decoded for that."""
    return server.trace.read_bytes().count(b"\n")


def rounds_since(server: Server, first: int) -> list[dict[str, Any]]:
    """The entries from that round on."""
    return [json.loads(line) for line in server.trace.read_bytes().splitlines()[first:]]


def free_slots(server: Server) -> int:
    """Free slots of the pool as one short request, alone after a flush, finds them in its first round."""
    flush_cache(server.url)
    before = num_rounds(server)
    ask(server.url, "The quick brown fox", 4)
    return int(rounds_since(server, before)[0]["free_slots"])

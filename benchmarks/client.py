"""Ask a server for tokens and measure: token ids in, token ids and times out, one request or many at once.

Uses SGLang's native `/generate` with ids, so that what is compared is what the model chose, not its text.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Generation:
    """One finished request. Times in seconds at the client; `num_rounds` is 0 without speculation.

    `first_token_s` runs from sending to the first token, `decode_s` from there to the last one.
    """

    output_ids: tuple[int, ...]
    first_token_s: float
    decode_s: float
    num_rounds: int
    finish_reason: str


@dataclass(frozen=True)
class Batch:
    """Requests sent at once, and the time from the first one's sending to the last one's end."""

    generations: tuple[Generation, ...]
    wall_s: float

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(one.output_ids) for one in self.generations)


def post(url: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = 600.0) -> Any:
    """POST JSON, return the decoded JSON answer (text when it is none). HTTP errors raise with the body."""
    request = urllib.request.Request(url + path, json.dumps(body or {}).encode(), {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{path} answered {error.code}: {error.read().decode()[:1000]}") from error
    try:
        return json.loads(text)
    except ValueError:
        return text


def flush_cache(url: str) -> None:
    """Empty the prefix cache, so that every measurement starts from the same state."""
    post(url, "/flush_cache?timeout=30")


def generate(url: str, input_ids: Sequence[int], max_new_tokens: int) -> Generation:
    """Greedy continuation of `input_ids`, streamed."""
    body = {
        "input_ids": list(input_ids),
        "sampling_params": {"temperature": 0.0, "max_new_tokens": max_new_tokens},
        "stream": True,
    }
    request = urllib.request.Request(url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    started = time.perf_counter()
    first = last = None
    event: dict[str, Any] = {}
    with _OPENER.open(request, timeout=600.0) as response:
        for raw in response:
            line = raw.strip()
            if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
                continue
            event = json.loads(line[5:])
            if "error" in event:
                raise RuntimeError(f"/generate failed: {event['error']}")
            last = time.perf_counter()
            first = last if first is None else first
    if first is None or last is None:
        raise RuntimeError("/generate sent no token")
    meta = event["meta_info"]
    return Generation(
        output_ids=tuple(event["output_ids"]),
        first_token_s=first - started,
        decode_s=last - first,
        num_rounds=int(meta.get("spec_verify_ct", 0)),
        finish_reason=str((meta.get("finish_reason") or {}).get("type")),
    )


def generate_batch(url: str, prompts: Sequence[Sequence[int]], max_new_tokens: int, at_once: int) -> Batch:
    """All `prompts`, `at_once` of them at any time."""
    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda ids: generate(url, ids, max_new_tokens), prompts))
    return Batch(tuple(answers), time.perf_counter() - started)


def target_logprobs(url: str, input_ids: Sequence[int], token_ids: Sequence[int]) -> dict[int, float]:
    """Log-probability of each of `token_ids` as the next token after `input_ids`, by the served model."""
    answer = post(
        url,
        "/generate",
        {
            "input_ids": list(input_ids),
            "sampling_params": {"temperature": 0.0, "max_new_tokens": 1},
            "return_logprob": True,
            "token_ids_logprob": list(token_ids),
        },
    )
    first = answer["meta_info"]["output_token_ids_logprobs"][0]
    return {int(token): float(logprob) for logprob, token, *_ in first}

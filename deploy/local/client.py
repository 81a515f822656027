"""Ask a server for tokens and measure: token ids in, token ids and times out, one request or many at once.

Uses SGLang's native `/generate` with ids, so that what is compared is what the model chose, not its text.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 600.0
"""Seconds without a byte from the server after which a request has failed; `--client-timeout` of the benchmarks."""

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Generation:
    """One finished request. Times in seconds at the client; `num_rounds` is 0 without speculation.

    `first_token_s` runs from sending to the first token, `decode_s` from there to the last one. `histogram[k]` counts
    verify rounds of which the target accepted k drafted tokens; empty without speculation.
    """

    output_ids: tuple[int, ...]
    first_token_s: float
    decode_s: float
    num_rounds: int
    finish_reason: str
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Answers to several prompts. `wall_s`: seconds from sending the first request to the end of the last answer."""

    generations: tuple[Generation, ...]
    wall_s: float

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(one.output_ids) for one in self.generations)

    @property
    def num_rounds(self) -> int:
        """Verify rounds of all answers; 0 without speculation."""
        return sum(one.num_rounds for one in self.generations)


class ClientError(RuntimeError):
    """A server refused, broke off an answer or did not answer; the message says which."""


@contextmanager
def _answer(url: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Iterator[Any]:
    """The response to a POST of JSON, or to a GET without a body; what goes wrong in the block is a ClientError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise ClientError(f"{path} answered {error.code}: {error.read().decode()[:1000]}") from error
    except TimeoutError as error:
        raise ClientError(f"{path}: no byte from the server for {timeout_s:.0f} s; its log tells why") from error
    except (http.client.HTTPException, OSError) as error:
        # IncompleteRead, RemoteDisconnected, a refused connection: mostly a server that has died meanwhile.
        if isinstance(getattr(error, "reason", None), TimeoutError):
            raise ClientError(f"{path}: no connection to the server within {timeout_s:.0f} s") from error
        raise ClientError(
            f"{path}: the server broke off ({type(error).__name__}: {error}); its log tells why"
        ) from error


def post(url: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = TIMEOUT_S) -> Any:
    """POST JSON, return the decoded JSON answer (text when it is none).

    Raises:
        ClientError: no answer, a broken one, or an HTTP error, with its body.
    """
    with _answer(url, path, body or {}, timeout_s) as response:
        text = response.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


def server_info(url: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The server's resolved arguments and state (SGLang's entrypoints/http_server.py, server_info)."""
    with _answer(url, "/server_info", None, timeout_s) as response:
        return dict(json.loads(response.read().decode()))


def flush_cache(url: str) -> None:
    """Empty the prefix cache of the server, so that each measurement starts with an empty one."""
    post(url, "/flush_cache?timeout=30")


def events(url: str, path: str, body: dict[str, Any], timeout_s: float = TIMEOUT_S) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer, as they come; `body` asks for a stream.

    Raises:
        ClientError: as `post` does, one of the events is an error, there is none, or the stream breaks off.
    """
    is_complete, is_empty = False, True
    with _answer(url, path, body, timeout_s) as response:
        for raw in response:
            line = raw.strip()
            is_complete = is_complete or line.endswith(b"[DONE]")
            if not line.startswith(b"data:") or is_complete:
                continue
            event = json.loads(line[5:])
            if "error" in event:
                raise ClientError(f"{path} failed: {event['error']}")
            is_empty = False
            yield event
    if is_empty:
        raise ClientError(f"{path} sent no token")
    if not is_complete:
        # A chunked answer that breaks off between two lines reads like one that ends.
        raise ClientError(f"{path}: the server broke off in the middle of an answer; its log tells why")


def generate(
    url: str,
    input_ids: Sequence[int],
    max_new_tokens: int,
    timeout_s: float = TIMEOUT_S,
    temperature: float = 0.0,
    custom_params: Mapping[str, Any] | None = None,
) -> Generation:
    """Continuation of `input_ids`, streamed, greedy by default; raises ClientError as `post` does."""
    sampling: dict[str, Any] = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    if custom_params:
        sampling["custom_params"] = dict(custom_params)
    body = {"input_ids": list(input_ids), "sampling_params": sampling, "stream": True}
    started = time.perf_counter()
    first = last = 0.0
    meta: dict[str, Any] = {}
    for event in events(url, "/generate", body, timeout_s):
        last = time.perf_counter()
        first = first or last
        meta, output_ids = event["meta_info"], event["output_ids"]
    return Generation(
        output_ids=tuple(output_ids),
        first_token_s=first - started,
        decode_s=last - first,
        num_rounds=int(meta.get("spec_verify_ct", 0)),
        finish_reason=str((meta.get("finish_reason") or {}).get("type")),
        histogram=tuple(map(int, meta.get("spec_correct_drafts_histogram") or ())),
    )


def generate_batch(
    url: str,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    at_once: int,
    timeout_s: float = TIMEOUT_S,
    temperature: float = 0.0,
    custom_params: Mapping[str, Any] | None = None,
) -> Batch:
    """All `prompts`, `at_once` of them at any time."""

    def answer(input_ids: Sequence[int]) -> Generation:
        return generate(url, input_ids, max_new_tokens, timeout_s, temperature, custom_params)

    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(answer, prompts))
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

"""A client of the server's OpenAI-compatible API that also measures: one streamed answer with its numbers.

Standard library only. Knows HTTP and server-sent events, nothing of how the server decodes.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


class ChatError(Exception):
    """The server refused the request or broke off."""


@dataclass(frozen=True)
class ChatAnswer:
    """One finished answer. Times in seconds, measured at the client.

    `first_token_s`: from sending to the first text. `decode_s`: from the first text to the end.
    `accept_length`: tokens per verify round, bonus included (SGLang's `spec_accept_length`); None without
    speculation.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    decode_s: float
    accept_length: float | None

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: the tokens after the first over the time after the first."""
        if self.completion_tokens < 2 or self.decode_s <= 0:
            return 0.0
        return (self.completion_tokens - 1) / self.decode_s


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Decoded `data:` payloads of a server-sent event stream."""
    for raw in response:
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return
        event = json.loads(payload)
        if "error" in event:
            raise ChatError(str(event["error"]))
        yield event
    raise ChatError("the server broke the stream off before [DONE]")


def stream_chat(
    url: str,
    messages: Sequence[dict[str, str]],
    max_tokens: int,
    on_text: Callable[[str], None] = lambda _text: None,
    *,
    timeout_s: float = 600.0,
    **request: Any,
) -> ChatAnswer:
    """Ask for one greedy answer; `on_text` gets each piece as it comes; `request` adds fields to the request.

    Raises ChatError when the server refuses, breaks off, or cannot be reached.
    """
    body = {
        "model": "default",
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_spec_tokens_details": True,
        **request,
    }
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=timeout_s)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        started = time.perf_counter()
        response = connection.getresponse()
        if response.status != 200:
            reason = response.read().decode(errors="replace")[:2000]
            raise ChatError(f"status {response.status}: {reason}")
        return _collect(response, started, on_text)
    except (OSError, http.client.HTTPException) as error:
        raise ChatError(f"no answer from {url}: {error!r}") from error
    finally:
        connection.close()


def _collect(response: http.client.HTTPResponse, started: float, on_text: Callable[[str], None]) -> ChatAnswer:
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    accept_length: float | None = None
    finish_reason: str | None = None
    first = last = started
    for event in _events(response):
        usage = event.get("usage") or usage
        details = (event.get("sglext") or {}).get("spec_tokens_details")
        if details:
            accept_length = float(details["spec_accept_length"])
        for choice in event.get("choices") or []:
            finish_reason = choice.get("finish_reason") or finish_reason
            piece = (choice.get("delta") or {}).get("content")
            if piece:
                last = time.perf_counter()
                first = first if pieces else last
                pieces.append(piece)
                on_text(piece)
    return ChatAnswer(
        text="".join(pieces),
        finish_reason=finish_reason,
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        completion_tokens=int(usage.get("completion_tokens", 0)),
        first_token_s=first - started,
        decode_s=last - first,
        accept_length=accept_length,
    )

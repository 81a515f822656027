"""Streams of every endpoint that has one: what is asked, and how their events are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.e2e.asking import PROMPTS, chunks
from tests.e2e.conformance.comparing import Comparison
from tests.e2e.conformance.sending import ASSEMBLERS
from tests.e2e.grammar_cases import CITY, TOOL_CHOICES
from tests.e2e.servers import Server

Event = dict[str, Any]
ATTEMPTS = 12

_USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
_GREEDY = {"model": "default", "temperature": 0}
_QUESTION = [{"role": "user", "content": "Name three uses of copper, with a reason for each."}]
_CHAT = {**_GREEDY, "messages": _QUESTION, "max_tokens": 24}
_TOOL = {"name": "weather", "description": "Get the weather of a city", "input_schema": CITY}


@dataclass(frozen=True)
class StreamCase:
    """A name for the test, the endpoint, and the body without `stream`."""

    name: str
    path: str
    body: Mapping[str, Any]


def _responses(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same tools as `/v1/responses` takes them."""
    tools = [{"type": "function", **tool["function"]} for tool in body["tools"]]
    return {**_GREEDY, "input": body["messages"], "tools": tools, "tool_choice": body["tool_choice"]}


CASES = (
    StreamCase(
        "chat-n-usage-logprobs",
        "/v1/chat/completions",
        {**_CHAT, **_USAGE, "n": 2, "logprobs": True, "top_logprobs": 2},
    ),
    StreamCase("chat-stop", "/v1/chat/completions", {**_CHAT, **_USAGE, "stop": [" the", "\n"]}),
    StreamCase("chat-tools", "/v1/chat/completions", {**TOOL_CHOICES["required"], **_USAGE, "logprobs": True}),
    StreamCase("chat-tools-n", "/v1/chat/completions", {**TOOL_CHOICES["named"], "n": 2}),
    StreamCase(
        "completions-echo-n-logprobs",
        "/v1/completions",
        {**_GREEDY, **_USAGE, "prompt": PROMPTS[2], "max_tokens": 24, "echo": True, "n": 2, "logprobs": 2},
    ),
    StreamCase(
        "completions-prompts",
        "/v1/completions",
        {**_GREEDY, **_USAGE, "prompt": list(PROMPTS[:2]), "max_tokens": 16, "return_token_ids": True},
    ),
    StreamCase("responses", "/v1/responses", {**_GREEDY, "input": _QUESTION, "max_output_tokens": 24}),
    StreamCase("responses-tools", "/v1/responses", {**_responses(TOOL_CHOICES["required"]), "max_output_tokens": 64}),
    StreamCase("messages", "/v1/messages", _CHAT),
    StreamCase("messages-stop", "/v1/messages", {**_CHAT, "stop_sequences": [" the", "\n"]}),
    StreamCase(
        "messages-tools", "/v1/messages", {**_CHAT, "max_tokens": 64, "tools": [_TOOL], "tool_choice": {"type": "any"}}
    ),
)
FEW = tuple(case for case in CASES if case.name in ("chat-n-usage-logprobs", "chat-tools", "messages"))
"""For servers of the embedded model, which take a second for each; those of the tiny pair are asked for all."""


def events_of(server: Server, case: StreamCase) -> list[Event]:
    """The stream's events. Those of different choices come in any order, so each choice's stand together."""
    return sorted(chunks(server.url, case.path, dict(case.body)), key=_choice_of)


def alike(plain: Server, ddtree: Server, case: StreamCase) -> tuple[list[Event], list[Event]]:
    """Both servers' events, unjoined: either joins some when its reader is late, and not at the same place.

    A joined stream is shorter than an unjoined one, so that only a longer one replaces what was seen before: a fault
    that comes and goes stays in what is returned.
    """
    expected, mine = events_of(plain, case), events_of(ddtree, case)
    for _ in range(ATTEMPTS):
        if not differences(expected, mine):
            break
        expected, mine = (
            max(seen, events_of(server, case), key=len) for seen, server in ((expected, plain), (mine, ddtree))
        )
    return expected, mine


def _choice_of(event: Event) -> int:
    choices = event.get("choices")
    if choices is None:
        return 0
    return int(choices[0]["index"]) if choices else len(event) + 1_000


def differences(plain: Sequence[Event], ddtree: Sequence[Event]) -> list[str]:
    """What differs, event by event; ids and times are left out."""
    return [str(one) for one in Comparison().differences(list(plain), list(ddtree))]


def assembled(case: StreamCase, events: Sequence[Event]) -> Any:
    """What all events say together."""
    return _messages(events) if case.path == "/v1/messages" else ASSEMBLERS[case.path](events)


def _messages(events: Sequence[Event]) -> Event:
    """A message's blocks with their pieces joined, and what its other events say."""
    body: Event = {"blocks": [], "others": []}
    for event in events:
        if event["type"] == "content_block_start":
            body["blocks"].append({"block": event["content_block"], "pieces": ""})
        elif event["type"] == "content_block_delta":
            (name,) = event["delta"].keys() - {"type"}
            body["blocks"][event["index"]]["pieces"] += event["delta"][name]
        else:
            body["others"].append(event)
    return body

"""Send a request to a server, whole or streamed, and put a stream's events together into the body of a whole answer."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 300.0

Event = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Status and decoded body. For a stream: the assembled body, and the status that its error event names."""

    status: int
    body: Any


def send(url: str, path: str, body: dict[str, Any]) -> Answer:
    """POST a body; an answer that is a stream is assembled.

    Raises:
        ValueError: a stream that breaks off before its end mark.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        if response.status == 200 and "text/event-stream" in response.headers.get("Content-Type", ""):
            return _assembled(path, text)
        return Answer(response.status, _decoded(text))
    finally:
        connection.close()


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _assembled(path: str, text: str) -> Answer:
    lines = [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    if not events or (path != "/v1/responses" and lines[-1] != "[DONE]"):
        raise ValueError(f"{path}: a stream of {len(lines)} events without an end: {lines[-1:]}")
    errors = [event["error"] for event in events if event.get("error")]
    if errors:
        return Answer(int(errors[0].get("code") or 500), {"error": errors[0]})
    return Answer(200, ASSEMBLERS[path](events))


def _generate(events: Sequence[Event]) -> Any:
    """Each event holds all that was generated so far; a batch's events name their prompt."""
    last = {event.get("index", 0): event for event in events}
    bodies = [last[index] for index in sorted(last)]
    return bodies if "index" in bodies[0] else bodies[0]


def _choices(events: Sequence[Event], merge: Callable[[dict[str, Any], dict[str, Any]], None]) -> Event:
    """The last event's fields, with all events' choices merged by their index."""
    body: Event = {}
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        body.update({name: value for name, value in event.items() if name != "choices" and value is not None})
        for piece in event["choices"]:
            merge(choices.setdefault(piece["index"], {"index": piece["index"]}), piece)
    return {**body, "choices": [choices[index] for index in sorted(choices)]}


def _completion(events: Sequence[Event]) -> Event:
    def merge(choice: dict[str, Any], piece: dict[str, Any]) -> None:
        for name, value in piece.items():
            if name == "text":
                choice["text"] = choice.get("text", "") + value
            elif name == "token_ids" and value is not None:
                choice["token_ids"] = (choice.get("token_ids") or []) + value
            elif name == "logprobs" and value is not None:
                kept = choice["logprobs"] = choice.get("logprobs") or {}
                for field, rows in value.items():
                    kept[field] = kept.get(field, []) + rows
            elif value is not None or name not in choice:
                choice[name] = value

    return _choices(events, merge)


def _chat(events: Sequence[Event]) -> Event:
    def merge(choice: dict[str, Any], piece: dict[str, Any]) -> None:
        message = choice.setdefault("message", {"content": None})
        for name, value in piece["delta"].items():
            if name == "tool_calls" and value:
                _merge_tool_calls(message.setdefault("tool_calls", []), value)
            elif name in ("content", "reasoning_content") and value is not None:
                message[name] = (message.get(name) or "") + value
            elif value is not None:
                message[name] = value
        for name, value in piece.items():
            if name == "logprobs" and value is not None:
                before = choice.get("logprobs") or {"content": []}
                choice["logprobs"] = {"content": before["content"] + value["content"]}
            elif name != "delta" and (value is not None or name not in choice):
                choice[name] = value

    return _choices(events, merge)


def _merge_tool_calls(calls: list[dict[str, Any]], pieces: Sequence[dict[str, Any]]) -> None:
    """A call begins with a name; what follows with its index adds to its arguments."""
    for piece in pieces:
        known = [call for call in calls if call["index"] == piece["index"]]
        function = piece["function"]
        if known and not function.get("name"):
            known[0]["function"]["arguments"] += function.get("arguments") or ""
        else:
            calls.append({**piece, "function": {**function, "arguments": function.get("arguments") or ""}})


def _responses(events: Sequence[Event]) -> Event:
    """The last event carries the whole response; the text that was streamed has to be its text."""
    body: Event = dict(next(event["response"] for event in reversed(events) if "response" in event))
    kinds = ("response.output_text.delta", "response.function_call_arguments.delta")
    for kind in kinds:
        body[kind] = "".join(event["delta"] for event in events if event["type"] == kind)
    return body


ASSEMBLERS: dict[str, Callable[[Sequence[Event]], Any]] = {
    "/generate": _generate,
    "/v1/completions": _completion,
    "/v1/chat/completions": _chat,
    "/v1/responses": _responses,
}

"""One request of a run, made from the run's seed and the request's number."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fuzz.generation import native, openai, session, valid, wrong
from tests.fuzz.values import mutated, of_schema, resolved, strange, text

JSON = "application/json"

BY_DESIGN: dict[str, str] = {
    "/pause_generation": "holds every request until /continue_generation",
    "/slow_down": "makes the scheduler sleep before each forward, for as long as it is told",
    "/start_profile": "traces every operator until it is stopped, into files and memory",
    "/scale_elastic_ep": "changes the number of workers",
    "/is_scaling_elastic_ep": "belongs to it",
    "/set_internal_state": "sets the batch size of a running scheduler",
    "/add_external_corpus": "reads files of the server's machine",
}
"""Endpoints that do what would be a fault elsewhere; SGLang guards them with --admin-api-key. They get bodies that are
no objects alone: an object without the field that counts has its default, which for a pause is to abort everybody."""

NO_OBJECTS = (b"[]", b"{", b"0", b'"text"', b"\xff\xfe\x00", b"[" * 5000, b"[{}]", b"true")

ABORTING = ("abort_all", "abort_all_requests")
"""Fields by which everybody's requests end, by design; `/update_weight_version` has one that is on where it is left
out. So they are sent, as false."""

HARMFUL = frozenset({"dump_requests_folder", "crash_dump_folder", "log_level"})
"""Fields that write where they say, or hide what is said, by design."""

LASTING: dict[str, str] = {
    "/begin_weight_update": "opens a session of new weights, which lasts until /end_weight_update",
    "/configure_logging": "changes what the server logs, which other tests read",
    "/continue_generation": "belongs to a pause",
    "/end_weight_update": "belongs to /begin_weight_update",
    "/freeze_gc": "keeps what lives from the collector, for good",
    "/set_trace_level": "changes what the server traces",
    "/update_weight_version": "changes what every answer says of its weights",
}
"""Endpoints whose requests are not over when they are answered: not for a server that others ask afterwards."""


@dataclass(frozen=True)
class Case:
    """A request.

    Attributes:
        expects_answer: valid, so that 200 is the only right status where its parameters are served.
        hangs_up_after_s: its client closes the connection after this time, whatever came; None: it waits.
    """

    number: int
    method: str
    path: str
    body: bytes
    content_type: str = JSON
    expects_answer: bool = False
    hangs_up_after_s: float | None = None

    def described(self) -> str:
        """As a line that can be sent again with curl."""
        return f"#{self.number} {self.method} {self.path} {self.body[:400]!r}"


@dataclass(frozen=True)
class Served:
    """What a server says of itself.

    Attributes:
        document: its OpenAPI document.
        model: the name of its model.
        adapters: names of adapters that it has loaded, for valid requests.
    """

    document: Mapping[str, Any]
    model: str = "default"
    adapters: tuple[str, ...] = ()


def make_case(seed: int, number: int, served: Served, valid_share: float = 0.2) -> Case:
    """Request `number` of the run with this seed, for this server."""
    draw = random.Random(f"{seed}:{number}")
    document = served.document
    kind = draw.random()
    if kind < valid_share:
        path, body = valid(draw)
        if path == "/v1/responses":
            # The one endpoint that takes no other name.
            body["model"] = served.model
        if served.adapters and path == "/generate" and draw.random() < 0.5:
            body["lora_path"] = draw.choice(served.adapters)
        return Case(number, "POST", path, encoded(body), expects_answer=True)
    if kind < valid_share + 0.1:
        path, body = draw.choice((native, openai))(draw)
        return Case(number, "POST", path, encoded(body), hangs_up_after_s=_patience(draw, 0.5))
    if kind < valid_share + 0.15:
        path, body = session(draw)
        return Case(number, "POST", path, encoded(body), hangs_up_after_s=_patience(draw, 0.1))
    if kind < valid_share + 0.5:
        path, body = wrong(draw)
        if draw.random() < 0.3:
            body = {**_of_schema(draw, document, path), **body}
        return Case(number, "POST", path, encoded(body), hangs_up_after_s=_patience(draw, 0.05))
    return _of_document(draw, number, document)


def _patience(draw: random.Random, share_that_hangs_up: float) -> float | None:
    return draw.uniform(0.0, 0.3) if draw.random() < share_that_hangs_up else None


def _of_schema(draw: random.Random, document: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Some fields of an endpoint's body, whatever they are for; empty where the server does not have it."""
    content = document["paths"].get(path, {}).get("post", {}).get("requestBody", {}).get("content", {})
    schema = next(iter(content.values()), {}).get("schema", {})
    body = of_schema(draw, schema, document["components"]["schemas"]) if schema else {}
    return body if isinstance(body, dict) else {}


def _of_document(draw: random.Random, number: int, document: Mapping[str, Any]) -> Case:
    """Any endpoint, with a body that its schema allows, one that is not quite that, or something else altogether."""
    path = draw.choice(sorted(document["paths"]))
    method = draw.choice(sorted(document["paths"][path]))
    content = document["paths"][path][method].get("requestBody", {}).get("content", {})
    where = path.replace("{model}", "x").replace("{response_id}", "resp_x").replace("{model:path}", "x") + _query(draw)
    if path in BY_DESIGN:
        return Case(number, method.upper(), where, draw.choice(NO_OBJECTS), draw.choice((JSON, JSON, "text/plain", "")))
    if draw.random() < 0.15:
        return Case(number, method.upper(), where, _garbage(draw), draw.choice((JSON, JSON, "text/plain", "")))
    schema = next(iter(content.values()), {}).get("schema")
    if schema is None:
        return Case(number, method.upper(), where, b"" if draw.random() < 0.7 else encoded(strange(draw)))
    named = document["components"]["schemas"]
    body = of_schema(draw, schema, named)
    if draw.random() < 0.5:
        body = mutated(draw, body)
    return Case(number, method.upper(), where, encoded(_harmless(body, resolved(schema, named))))


def _harmless(body: Any, schema: Mapping[str, Any]) -> Any:
    """An endpoint that aborts everybody is told not to, whether the body says so or its default."""
    if not isinstance(body, dict):
        return body
    kept = {name: value for name, value in body.items() if name not in HARMFUL}
    return kept | {name: False for name in ABORTING if name in schema.get("properties", {}) or name in kept}


def _query(draw: random.Random) -> str:
    if draw.random() < 0.9:
        return ""
    name = draw.choice(("timeout", "level", "rank", "dp_rank", "include", "format"))
    return f"?{name}=" + draw.choice(("0", "-1", "x", "1e9", "%00", "99999999999999999999"))


def _garbage(draw: random.Random) -> bytes:
    """Bodies that are no JSON, or no object."""
    nested = draw.choice((50, 5000))
    return draw.choice(
        (
            b"",
            b"[]",
            b"null",
            b"{",
            b"0",
            b'"text"',
            b"\xff\xfe\x00",
            b"[" * nested,
            b'{"a":' * nested + b"1" + b"}" * nested,
            text(draw).encode("utf-8", "replace"),
        )
    )


def encoded(body: Any) -> bytes:
    """JSON with NaN and infinities as Python's server reads them, and lone surrogates escaped."""
    return json.dumps(body).encode()

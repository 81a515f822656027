"""One request of a run, made from the run's seed and the request's number."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fuzz.generation import native, openai, valid, wrong
from tests.fuzz.values import mutated, of_schema, strange, text

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
"""Endpoints that do what would be a fault elsewhere; SGLang guards them with --admin-api-key. They get bodies of the
wrong kind alone, and no valid one."""


HARMFUL = frozenset({"abort_all", "abort_all_requests", "dump_requests_folder", "crash_dump_folder", "log_level"})
"""Fields that end other clients' requests, or write where they say, by design."""


@dataclass(frozen=True)
class Case:
    """A request. `expects_answer`: valid, so that 200 is the only right status where its parameters are served."""

    number: int
    method: str
    path: str
    body: bytes
    content_type: str = JSON
    expects_answer: bool = False

    def described(self) -> str:
        """As a line that can be sent again with curl."""
        return f"#{self.number} {self.method} {self.path} {self.body[:400]!r}"


def make_case(seed: int, number: int, document: Mapping[str, Any], valid_share: float = 0.2) -> Case:
    """Request `number` of the run with this seed, for the server with this OpenAPI document."""
    draw = random.Random(f"{seed}:{number}")
    kind = draw.random()
    if kind < valid_share:
        path, body = valid(draw)
        return Case(number, "POST", path, encoded(body), expects_answer=True)
    if kind < valid_share + 0.1:
        path, body = draw.choice((native, openai))(draw)
        return Case(number, "POST", path, encoded(body))
    if kind < valid_share + 0.5:
        path, body = wrong(draw)
        return Case(number, "POST", path, encoded(body))
    return _of_document(draw, number, document)


def _of_document(draw: random.Random, number: int, document: Mapping[str, Any]) -> Case:
    """Any endpoint, with a body that its schema allows, one that is not quite that, or something else altogether."""
    path = draw.choice(sorted(document["paths"]))
    method = draw.choice(sorted(document["paths"][path]))
    content = document["paths"][path][method].get("requestBody", {}).get("content", {})
    where = path.replace("{model}", "x").replace("{response_id}", "resp_x").replace("{model:path}", "x") + _query(draw)
    if path in BY_DESIGN or draw.random() < 0.15:
        return Case(number, method.upper(), where, _garbage(draw), draw.choice((JSON, JSON, "text/plain", "")))
    schema = next(iter(content.values()), {}).get("schema")
    if schema is None:
        return Case(number, method.upper(), where, b"" if draw.random() < 0.7 else encoded(strange(draw)))
    body = of_schema(draw, schema, document["components"]["schemas"])
    if draw.random() < 0.5:
        body = mutated(draw, body)
    return Case(number, method.upper(), where, encoded(_harmless(body)))


def _harmless(body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    return {name: value for name, value in body.items() if name not in HARMFUL}


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

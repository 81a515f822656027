"""The request shapes of each endpoint: rows of its covering array, written as bodies."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.e2e.conformance import chat_fields, completions_fields, generate_fields, responses_fields
from tests.e2e.conformance.covering import Row, covering_rows
from tests.e2e.conformance.factors import Factor, Subject, make_subject, put

Forbidden = Mapping[str, Sequence[tuple[tuple[str, str], tuple[str, str]]]]


@dataclass(frozen=True)
class Endpoint:
    """A path, the schema of its request in the OpenAPI document, and what its fields may be."""

    path: str
    schema: str
    factors: Mapping[str, Factor]
    forbidden: Forbidden
    left_out: Mapping[str, str]

    def without(self, features: Collection[str]) -> Mapping[str, Factor]:
        """Its factors without the levels that ask for one of `features`."""
        return {
            name: Factor({key: level for key, level in factor.levels.items() if level.feature not in features})
            for name, factor in self.factors.items()
        }


ENDPOINTS = (
    Endpoint(
        "/generate",
        "GenerateReqInput",
        generate_fields.FACTORS,
        generate_fields.FORBIDDEN,
        generate_fields.LEFT_OUT,
    ),
    Endpoint(
        "/v1/completions",
        "CompletionRequest",
        completions_fields.FACTORS,
        completions_fields.FORBIDDEN,
        completions_fields.LEFT_OUT,
    ),
    Endpoint(
        "/v1/chat/completions",
        "ChatCompletionRequest",
        chat_fields.FACTORS,
        chat_fields.FORBIDDEN,
        chat_fields.LEFT_OUT,
    ),
    Endpoint(
        "/v1/responses",
        "ResponsesRequest",
        responses_fields.FACTORS,
        responses_fields.FORBIDDEN,
        responses_fields.LEFT_OUT,
    ),
)
STREAM_FIELDS = ("stream", "stream_options")


@dataclass(frozen=True)
class Shape:
    """One request: the levels of its factors, and its body as it is streamed or not by its own choice."""

    endpoint: Endpoint
    row: Row
    subject: Subject

    @property
    def name(self) -> str:
        """Endpoint and number, with the levels that are not off."""
        unusual = [f"{factor}={level}" for factor, level in self.row.items() if level != "off"]
        return f"{self.endpoint.path} #{self.subject.number} ({', '.join(unusual)})"

    @property
    def is_streamed(self) -> bool:
        """True when it asks for a stream, too."""
        return self.row.get("stream", "off") != "off"

    @property
    def is_drawn(self) -> bool:
        """True when its tokens are drawn at random, so that two servers' tokens differ."""
        return self.row.get("sampling") == "drawn"

    def body(self, turn: str, streamed: bool) -> dict[str, Any]:
        """The request; `turn` tells its ids from those of the same shape's other requests."""
        body: dict[str, Any] = {}
        for factor, level in self.row.items():
            for path, value in self.endpoint.factors[factor].levels[level].body.items():
                made = value(self.subject) if callable(value) else copy.deepcopy(value)
                put(body, path, made.format(turn=turn) if path in ("rid", "request_id") else made)
        return body if streamed else {name: body[name] for name in body if name not in STREAM_FIELDS}


def make_shapes(
    lacking: Collection[str] = (),
    times: int = 2,
    endpoints: Sequence[Endpoint] = ENDPOINTS,
) -> list[Shape]:
    """Every pair of levels of every endpoint's factors, `times` times; levels of features that are lacking apart."""
    shapes: list[Shape] = []
    for endpoint in endpoints:
        factors = endpoint.without(lacking)
        levels = {name: list(factor.levels) for name, factor in factors.items()}
        forbidden = {frozenset(pair) for pairs in endpoint.forbidden.values() for pair in pairs}
        for row in covering_rows(levels, forbidden, times):
            shapes.append(Shape(endpoint, row, make_subject(len(shapes))))
    return shapes

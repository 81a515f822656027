"""Values of the right kind, of the wrong kind, and at the edges of both, drawn from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

INF, NAN = float("inf"), float("nan")

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    288,
    1000,
    65536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**40,
    2**63 - 1,
    2**63,
)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e-9, 1e-300, 1e9, 1e39, 1e300, -1e300, INF, -INF, NAN)
TEXTS = (
    "",
    " ",
    "a",
    "0",
    "null",
    "true",
    "<eos>",
    "<mask>",
    "\x00",
    "\n",
    "é",
    "日本",
    "🙂",
    "\ud800",
    "a" * 300,
    "../..",
    "{",
    "[",
)
TEXTS_OF_A_FORMAT = (
    "{}",
    "[]",
    '{"type": "object"}',
    "(",
    "[a-z]+",
    "(a+)+$",
    "root ::= x",
    "data:,x",
    "http://127.0.0.1:9/",
)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, "a"],
    {"a": {"b": {"c": [1]}}},
    2**70,
)


def integer(draw: random.Random) -> int:
    """Small ones mostly: a server that works for an hour on one request shows nothing."""
    return draw.randrange(0, 9) if draw.random() < 0.5 else draw.choice(INTEGERS)


def number(draw: random.Random) -> float:
    """Of the size that parameters have, mostly."""
    return round(draw.uniform(0, 2), 3) if draw.random() < 0.5 else draw.choice(FLOATS)


def text(draw: random.Random) -> str:
    """Words, names of fields' values, broken UTF-16, the starts of other formats."""
    if draw.random() < 0.4:
        return "".join(draw.choices("abcdefgh ", k=draw.randrange(1, 12)))
    return draw.choice((*TEXTS, *TEXTS_OF_A_FORMAT))


def strange(draw: random.Random, depth: int = 0) -> Any:
    """A value of any kind, without regard to what is expected."""
    kind = draw.randrange(7 if depth < 3 else 4)
    if kind == 0:
        return integer(draw)
    if kind == 1:
        return number(draw)
    if kind == 2:
        return text(draw)
    if kind == 3:
        return draw.choice(OTHERS)
    if kind == 4:
        return [strange(draw, depth + 1) for _ in range(draw.randrange(0, 4))]
    if kind == 5:
        return {text(draw): strange(draw, depth + 1) for _ in range(draw.randrange(0, 3))}
    return [strange(draw, depth + 1)] * draw.choice((1, 2, 40))


def of_schema(draw: random.Random, schema: Mapping[str, Any], names: Mapping[str, Any], depth: int = 0) -> Any:
    """A value that a JSON schema of an OpenAPI document allows; `names` are the document's own schemas."""
    if "$ref" in schema:
        return of_schema(draw, names[schema["$ref"].rsplit("/", 1)[1]], names, depth)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return of_schema(draw, draw.choice(schema[several]), names, depth)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return _object(draw, schema, names, depth)
    if kind == "array":
        items = schema.get("items", {})
        return [of_schema(draw, items, names, depth + 1) for _ in range(draw.randrange(0, 3 if depth < 4 else 1))]
    plain = {"integer": integer, "number": number, "string": text, "boolean": lambda draw: draw.random() < 0.5}
    if kind in plain:
        return plain[kind](draw)
    return None if kind == "null" else strange(draw, depth)


def resolved(schema: Mapping[str, Any], names: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference names, or the first of several that is an object's."""
    if "$ref" in schema:
        return resolved(names[schema["$ref"].rsplit("/", 1)[1]], names)
    for several in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(several, ()):
            found = resolved(one, names)
            if "properties" in found:
                return found
    return schema


def _object(draw: random.Random, schema: Mapping[str, Any], names: Mapping[str, Any], depth: int) -> dict[str, Any]:
    fields = schema.get("properties", {})
    required = set(schema.get("required", ()))
    few = 3 / (3 + len(fields)) if depth == 0 else 0.1
    chosen = {name: one for name, one in fields.items() if name in required or draw.random() < few}
    made = {name: of_schema(draw, one, names, depth + 1) for name, one in chosen.items()}
    if not fields and schema.get("additionalProperties"):
        made[text(draw)] = strange(draw, depth + 1)
    return made


def mutated(draw: random.Random, value: Any) -> Any:
    """A value with one part of it replaced, left out, or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(sorted(value, key=str))
        if draw.random() < 0.1:
            return {other: kept for other, kept in value.items() if other != name}
        return {**value, name: mutated(draw, value[name])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], mutated(draw, value[place]), *value[place + 1 :]]
    return strange(draw)

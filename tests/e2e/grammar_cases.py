"""Requests with a grammar: what is asked, and what an answer that ended must be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema

_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "object": ("Describe a person as JSON:", _PERSON),
    "nested": (
        "Describe a company and its founder as JSON:",
        {
            "type": "object",
            "properties": {"company": {"type": "string", "maxLength": 10}, "founder": _PERSON},
            "required": ["company", "founder"],
            "additionalProperties": False,
        },
    ),
    "array": (
        "The first prime numbers as a JSON list:",
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    ),
    "enum": ("The sky is, as a JSON string,", {"enum": ["red", "green", "blue", "light blue"]}),
    "number": ("Pi as JSON:", {"type": "number"}),
    "union": (
        "An answer, either a number or a word, as JSON:",
        {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 8}, {"type": "null"}]},
    ),
    "recursive": (
        "A tree as JSON:",
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "value": {"type": "boolean"},
                        "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    },
                    "required": ["value", "left"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/node",
        },
    ),
    "pattern": ("A phone number as JSON:", {"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"}),
    "bounds": ("A percentage as JSON:", {"type": "integer", "minimum": 0, "maximum": 100}),
    "optional": (
        "A city as JSON:",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 10},
                "country": {"type": "string", "maxLength": 10},
                "capital": {"type": "boolean"},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    ),
    "tuple": (
        "A point as JSON:",
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "integer"}, {"type": "boolean"}],
            "minItems": 3,
            "maxItems": 3,
            "items": False,
        },
    ),
    "format": ("Today's date as JSON:", {"type": "string", "format": "date"}),
    "lengths": (
        "A code of letters as JSON:",
        {"type": "string", "minLength": 3, "maxLength": 6},
    ),
}


@dataclass(frozen=True)
class GrammarCase:
    """A prompt, the sampling parameters that constrain it, and whether a whole answer obeys them."""

    name: str
    prompt: str
    sampling: dict[str, Any]
    holds: Callable[[str], bool]
    max_new_tokens: int = 64


def _obeys(schema: dict[str, Any]) -> Callable[[str], bool]:
    def holds(text: str) -> bool:
        jsonschema.validate(json.loads(text), schema)
        return True

    return holds


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text, re.DOTALL) is not None


REGEXES = {
    "digits": ("The year is ", r"(19|20)[0-9]{2}"),
    "address": ("The server's address is ", r"([0-9]{1,3}\.){3}[0-9]{1,3}"),
    "choice": ("Yes, no or maybe? The answer is ", r"(yes|no|maybe)( indeed)?"),
    "words": ("Once upon a time", r"( [a-z]+){5}\."),
}

JSON_CASES = tuple(
    GrammarCase(f"schema-{name}", prompt, {"json_schema": json.dumps(schema)}, _obeys(schema))
    for name, (prompt, schema) in SCHEMAS.items()
)
REGEX_CASES = tuple(
    GrammarCase(f"regex-{name}", prompt, {"regex": pattern}, _matches(pattern))
    for name, (prompt, pattern) in REGEXES.items()
)

_CALL = '<function=weather>{"city": '
_TAG = {
    "type": "structural_tag",
    "structures": [
        {
            "begin": "<function=weather>",
            "schema": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 10}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "end": "</function>",
        }
    ],
    "triggers": ["<function="],
}
STRUCTURAL_TAG = GrammarCase(
    "structural-tag",
    'Call <function=weather>{"city": "Paris"}</function>. Call <function=weather>{"city": "Rome"}</function>. Call',
    {"structural_tag": json.dumps(_TAG)},
    lambda text: all(json.loads(call) for call in re.findall(r"<function=weather>(.*?)</function>", text)),
    48,
)
EBNF_XGRAMMAR = GrammarCase(
    "ebnf",
    "A sum: ",
    {"ebnf": 'root ::= term (" + " term)* " = " term\nterm ::= [0-9] | [1-9] [0-9]\n'},
    _matches(r"\d\d?( \+ \d\d?)* = \d\d?"),
)
EBNF_LLGUIDANCE = GrammarCase(
    "ebnf",
    "A sum: ",
    {"ebnf": 'start: TERM (" + " TERM)* " = " TERM\nTERM: /[0-9]|[1-9][0-9]/\n'},
    _matches(r"\d\d?( \+ \d\d?)* = \d\d?"),
)

XGRAMMAR_CASES = (*JSON_CASES, *REGEX_CASES, EBNF_XGRAMMAR, STRUCTURAL_TAG)
LLGUIDANCE_CASES = (*JSON_CASES, *REGEX_CASES, EBNF_LLGUIDANCE, STRUCTURAL_TAG)

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 10}}, "required": ["city"]}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Get the {name} of a city",
            "parameters": {**CITY, "additionalProperties": False},
            "strict": True,
        },
    }
    for name in ("weather", "time")
]


def _chat(question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "default", "messages": messages, "max_tokens": 64, "temperature": 0, **fields}


RESPONSE_FORMATS = {
    "json_object": _chat("Give me a JSON object.", response_format={"type": "json_object"}),
    "json_schema": _chat(
        "Describe a person.",
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON, "strict": True}},
    ),
    "structural_tag": _chat("Call the weather function for Paris.", response_format=_TAG),
}
TOOL_CHOICES = {
    "required": _chat("What is the weather in Paris?", tools=_TOOLS, tool_choice="required"),
    "named": _chat(
        "What is the time in Rome?", tools=_TOOLS, tool_choice={"type": "function", "function": {"name": "time"}}
    ),
    "auto": _chat("What is the weather in Paris?", tools=_TOOLS, tool_choice="auto"),
    "none": _chat("What is the weather in Paris?", tools=_TOOLS, tool_choice="none"),
}
"""Bodies of `/v1/chat/completions`."""

"""More than a hundred JSON schemas of the kinds that public suites hold, each with a question; written here.

Strings and arrays are bounded, so that a small model's greedy answer ends: an unbounded string never has to. Some
are not, on purpose; `ends` is False for them, and the answer may reach its length limit instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any] | bool


@dataclass(frozen=True)
class SchemaCase:
    """One schema. `ends`: an answer of 96 tokens always completes it."""

    kind: str
    question: str
    schema: Schema
    ends: bool = True


def string(**bounds: Any) -> Schema:
    """A string of at most 8 characters, unless told otherwise."""
    return {"type": "string", "maxLength": 8} | bounds


def record(required: Any = None, /, **properties: Any) -> dict[str, Any]:
    """An object of these properties and no others; all required, unless a list of names says which."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def array(items: Schema, **bounds: Any) -> dict[str, Any]:
    """An array of at most three items, unless told otherwise."""
    return {"type": "array", "items": items, "maxItems": 3} | bounds


INTEGER: Schema = {"type": "integer", "minimum": 0, "maximum": 999}
BOOLEAN: Schema = {"type": "boolean"}
COLOUR: Schema = {"enum": ["red", "green", "blue"]}

_TYPES: dict[str, Schema] = {
    "Is water wet?": BOOLEAN,
    "Nothing at all:": {"type": "null"},
    "How many legs has a spider?": {"type": "integer", "minimum": -99, "maximum": 99},
    "Name a colour:": string(),
    "Name a month:": string(minLength=3, maxLength=9),
    "A number or a word:": {"type": ["integer", "boolean", "null"]},
    "A person:": record(name=string(), age=INTEGER),
    "Two numbers:": array(INTEGER, minItems=2, maxItems=2),
    "A person with a flag:": record(name=string(), is_member=BOOLEAN, manager={"type": "null"}),
    "A price, with its currency:": record(currency={"enum": ["EUR", "USD"]}, price=INTEGER),
}
_ENUMS: dict[str, Schema] = {
    "A primary colour:": COLOUR,
    "A weekday:": {"type": "string", "enum": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]},
    "A small prime:": {"enum": [2, 3, 5, 7, 11, 13]},
    "Anything:": {"enum": [None, True, "yes", 0, "no"]},
    "Words that begin alike:": {"enum": ["in", "inn", "inner", "inning", "innings"]},
    "The answer:": {"const": 42},
    "The greeting:": {"const": "Hello, world!"},
    "A fixed list:": {"const": [1, "two", None]},
    "A fixed object:": {"const": {"a": 1, "b": [True]}},
    "A car:": record(make={"enum": ["Audi", "Ford", "Fiat"]}, colour=COLOUR, wheels={"const": 4}),
    "Escapes:": {"enum": ['say "hi"', "back\\slash", "new\nline", "tab\there"]},
    "A size, and a size in words:": record(size={"enum": [1, 10, 100]}, words={"enum": ["one", "ten", "a hundred"]}),
}
_NESTED: dict[str, Schema] = {
    "A city and where it is:": record(city=string(), place=record(lat=INTEGER, lon=INTEGER)),
    "A book:": record(title=string(), author=record(first=string(), last=string())),
    "Boxes in boxes:": record(box=record(box=record(box=record(box=BOOLEAN)))),
    "A matrix:": array(array({"type": "integer", "minimum": 0, "maximum": 9}, minItems=2, maxItems=2), minItems=2),
    "People:": array(record(name=string(), age=INTEGER), minItems=1, maxItems=2),
    "A menu:": record(dishes=array(record(dish=string(), price=INTEGER), minItems=1, maxItems=2), tip=BOOLEAN),
    "A team:": record(lead=record(name=string()), members=array(record(name=string()), maxItems=2)),
    "A shape with its corners:": record(
        shape={"enum": ["triangle", "square"]}, corners=array(record(x=INTEGER, y=INTEGER), minItems=1, maxItems=2)
    ),
    "Settings:": record(ui=record(dark=BOOLEAN, size={"enum": [8, 10, 12]}), net=record(proxy={"type": "null"})),
    "A tree of two levels:": record(root=record(left=record(value=INTEGER), right=record(value=INTEGER))),
}
_ARRAYS: dict[str, Schema] = {
    "Up to three words:": array(string()),
    "At least two words:": array(string(), minItems=2),
    "Exactly three flags:": array(BOOLEAN, minItems=3),
    "Nothing, in a list:": array(INTEGER, maxItems=0),
    "One or two colours:": array(COLOUR, minItems=1, maxItems=2),
    "A pair of a word and a number:": {
        "type": "array",
        "prefixItems": [string(), INTEGER],
        "items": False,
        "minItems": 2,
        "maxItems": 2,
    },
    "A pair, then flags:": {
        "type": "array",
        "prefixItems": [{"const": "pair"}, INTEGER],
        "items": BOOLEAN,
        "minItems": 2,
        "maxItems": 4,
    },
    "Lists of lists:": array(array(COLOUR, maxItems=2), maxItems=2),
    "Numbers or words:": array({"anyOf": [INTEGER, COLOUR]}, minItems=1),
    "A list in an object in a list:": array(record(tags=array(COLOUR, maxItems=2)), minItems=1, maxItems=2),
}
_OBJECTS: dict[str, Schema] = {
    "Any of these, or none:": record([], a=BOOLEAN, b=INTEGER, c=COLOUR),
    "The first one at least:": record(["a"], a=BOOLEAN, b=INTEGER, c=COLOUR),
    "The last one at least:": record(["c"], a=BOOLEAN, b=INTEGER, c=COLOUR),
    "The middle one at least:": record(["b"], a=BOOLEAN, b=INTEGER, c=COLOUR),
    "Two of four:": record(["b", "d"], a=INTEGER, b=INTEGER, c=INTEGER, d=INTEGER),
    "Nothing:": {"type": "object", "properties": {}, "additionalProperties": False},
    "Names that begin alike:": record(["value"], val=INTEGER, value=INTEGER, values=array(INTEGER)),
    "Names with signs:": record(**{"first name": string(), "e-mail?": BOOLEAN, "a.b/c": INTEGER}),
    "Names of many letters:": record(**{"internationalization": BOOLEAN, "the_quick_brown_fox": INTEGER}),
    "Optional inside optional:": record(["outer"], outer=record([], inner=record([], flag=BOOLEAN))),
    "Ages by name, at most two:": {
        "type": "object",
        "patternProperties": {"^[a-z]{2,6}$": INTEGER},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "Six fields in order:": record(one=BOOLEAN, two=BOOLEAN, three=BOOLEAN, four=BOOLEAN, five=BOOLEAN, six=BOOLEAN),
}
_UNIONS: dict[str, Schema] = {
    "A number, or a word for it:": {"anyOf": [INTEGER, {"enum": ["one", "two", "many"]}]},
    "A cat or a dog:": {
        "anyOf": [
            record(kind={"const": "cat"}, lives={"enum": [7, 9]}),
            record(kind={"const": "dog"}, barks=BOOLEAN),
        ]
    },
    "One shape:": {
        "oneOf": [record(circle=record(radius=INTEGER)), record(square=record(side=INTEGER)), {"type": "null"}]
    },
    "A value, or none:": record(value={"anyOf": [INTEGER, {"type": "null"}]}),
    "An answer or an error:": {
        "oneOf": [record(ok={"const": True}, answer=string()), record(ok={"const": False}, error=string())]
    },
    "A list or one thing:": {"anyOf": [COLOUR, array(COLOUR, minItems=1)]},
    "All of one:": {"allOf": [record(name=string(), age=INTEGER)]},
    "A union in a list:": array(
        {"anyOf": [record(a=INTEGER), record(b=BOOLEAN), {"const": "end"}]}, minItems=1, maxItems=2
    ),
    "Nested unions:": {"anyOf": [{"anyOf": [{"const": "a"}, {"const": "ab"}]}, {"anyOf": [{"const": 1}, BOOLEAN]}]},
    "Two ways to pay:": record(
        pay={"oneOf": [record(card={"type": "string", "pattern": "^[0-9]{4}$"}), record(cash=BOOLEAN)]}
    ),
}
_REFERENCES: dict[str, Schema] = {
    "A point by reference:": {"$defs": {"n": INTEGER}, **record(x={"$ref": "#/$defs/n"}, y={"$ref": "#/$defs/n"})},
    "Two people by reference:": {
        "$defs": {"person": record(name=string(), age=INTEGER)},
        **record(buyer={"$ref": "#/$defs/person"}, seller={"$ref": "#/$defs/person"}),
    },
    "A reference to a reference:": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": COLOUR},
        **record(colour={"$ref": "#/$defs/a"}),
    },
    "Old definitions:": {"definitions": {"flag": BOOLEAN}, **record(flag={"$ref": "#/definitions/flag"})},
    "A list of references:": {
        "$defs": {"item": record(id=INTEGER)},
        **array({"$ref": "#/$defs/item"}, minItems=1, maxItems=2),
    },
    "Optional references:": {
        "$defs": {"c": COLOUR, "d": {"enum": ["light", "dark"]}},
        **record(["main"], main={"$ref": "#/$defs/c"}, shade={"$ref": "#/$defs/d"}),
    },
    "A union of references:": {
        "$defs": {"yes": {"const": "yes"}, "no": record(why=string())},
        "anyOf": [{"$ref": "#/$defs/yes"}, {"$ref": "#/$defs/no"}],
    },
}
_RECURSIVE: dict[str, Schema] = {
    "A chain of nodes:": {
        "$defs": {"node": record(["value"], value=INTEGER, next={"$ref": "#/$defs/node"})},
        "$ref": "#/$defs/node",
    },
    "A tree of nodes:": {
        "$defs": {
            "tree": record(["leaf"], leaf=BOOLEAN, children=array({"$ref": "#/$defs/tree"}, maxItems=2)),
        },
        "$ref": "#/$defs/tree",
    },
    "Lists in lists, or an end:": {
        "$defs": {"list": {"anyOf": [{"const": "end"}, array({"$ref": "#/$defs/list"}, minItems=1, maxItems=1)]}},
        "$ref": "#/$defs/list",
    },
    "An expression:": {
        "$defs": {
            "expr": {
                "anyOf": [
                    INTEGER,
                    record(op={"enum": ["+", "-"]}, left={"$ref": "#/$defs/expr"}, right={"$ref": "#/$defs/expr"}),
                ]
            }
        },
        "$ref": "#/$defs/expr",
    },
}
_STRINGS: dict[str, Schema] = {
    "Three digits:": {"type": "string", "pattern": "^[0-9]{3}$"},
    "A product code:": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "A word in small letters:": {"type": "string", "pattern": "^[a-z]{3,8}$"},
    "Yes or no, in many ways:": {"type": "string", "pattern": "^(y|yes|yeah|n|no|nope)$"},
    "A phone number:": record(phone={"type": "string", "pattern": "^\\+[0-9]{2} [0-9]{3}-[0-9]{4}$"}),
    "A colour in hex:": record(colour={"type": "string", "pattern": "^#[0-9a-f]{6}$"}),
    "A version:": {"type": "string", "pattern": "^v[0-9]{1,2}\\.[0-9]{1,2}\\.[0-9]{1,2}$"},
    "A date:": {"type": "string", "format": "date"},
    "A time of the day:": record(at={"type": "string", "format": "time"}),
    "A day and a colour:": record(day={"type": "string", "format": "date"}, colour=COLOUR),
    "An address of four numbers:": {"type": "string", "format": "ipv4"},
    "An identifier:": {"type": "string", "format": "uuid"},
    "Exactly five letters:": string(minLength=5, maxLength=5),
    "One letter:": string(minLength=1, maxLength=1),
    "No letter:": string(maxLength=0),
}
_NUMBERS: dict[str, Schema] = {
    "From one to six:": {"type": "integer", "minimum": 1, "maximum": 6},
    "Below zero:": {"type": "integer", "minimum": -50, "exclusiveMaximum": 0},
    "A large one:": {"type": "integer", "minimum": 1000, "maximum": 9999},
    "Between two large ones:": {"type": "integer", "minimum": 123456, "maximum": 123499},
    "Above ten, below twelve:": {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 12},
    "Either side of zero:": record(a={"type": "integer", "minimum": -5, "maximum": 5}, b={"const": 0}),
    "A share:": {"type": "number", "minimum": 0, "maximum": 1},
}
_UNICODE: dict[str, Schema] = {
    "Ein Wort:": record(größe=INTEGER, weiß=BOOLEAN),
    "都市:": record(**{"名前": {"enum": ["東京", "大阪"]}, "人口": INTEGER}),
    "An emoji:": {"enum": ["😀", "👩‍🚀", "🏳️‍🌈"]},
    "Accents:": {"enum": ["naïve", "café", "Ångström", "ça va"]},
    "ключ:": record(**{"ключ": {"const": "значение"}}),
}
_OPEN: dict[str, Schema] = {
    "A long story:": record(story={"type": "string"}),
    "Any object:": {"type": "object"},
    "Any list of words:": {"type": "array", "items": {"type": "string"}},
}
_KINDS = {
    "type": _TYPES,
    "enum and const": _ENUMS,
    "nested": _NESTED,
    "array": _ARRAYS,
    "object": _OBJECTS,
    "union": _UNIONS,
    "reference": _REFERENCES,
    "recursive": _RECURSIVE,
    "string": _STRINGS,
    "number": _NUMBERS,
    "unicode": _UNICODE,
    "open": _OPEN,
}
# A chain may go on as long as it likes, and an unbounded string or share, too.
_ENDLESS = ("recursive", "open")
_ENDLESS_QUESTIONS = ("A share:", "A time of the day:")

CASES: tuple[SchemaCase, ...] = tuple(
    SchemaCase(kind, question, schema, kind not in _ENDLESS and question not in _ENDLESS_QUESTIONS)
    for kind, cases in _KINDS.items()
    for question, schema in cases.items()
)
"""All of them, kind by kind."""

"""What a factor of a request is: the fields that it sets, its levels, and the feature that a level asks for."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PROMPTS = (
    "The capital of France is not far from the sea, is it?",
    "def double(n):\n    return n + n\n\nprint(double(4), [1, 2, 3])\n",
    "Once upon a time, in a small café, a naïve cook fed the cats. ",
    "Q: What is 17 + 25? A: 42. Q: What is 21 + 13? A:",
    '{"name": "Ada", "age": 36, "ok": true} {"name": "Bob", "age": 4',
    "red, 12 and blue, 34 and green, 56 and red, 78 and blue, 9",
)


@dataclass(frozen=True)
class Subject:
    """The prompts of one shape; each begins with two letters of its own, so that caches know no more of it.

    `other` is the second prompt of a batch. Prompts are longer than the tiny target looks back.
    """

    number: int
    text: str
    ids: tuple[int, ...]
    other: str
    other_ids: tuple[int, ...]


Value = Any | Callable[[Subject], Any]


@dataclass(frozen=True)
class Level:
    """One way to set a factor: paths of the body (`sampling_params.stop`) and their values.

    `feature` names what DDTREE has to have for it (exceptions.py lists those that it lacks).
    """

    body: Mapping[str, Value] = field(default_factory=dict)
    feature: str | None = None


@dataclass(frozen=True)
class Factor:
    """Levels by name, the "off" first; `fields` are all the fields that they may set."""

    levels: Mapping[str, Level]

    @property
    def fields(self) -> frozenset[str]:
        """Paths that some level sets."""
        return frozenset(path for level in self.levels.values() for path in level.body)


def switch(path: str, value: Value = True, feature: str | None = None) -> Factor:
    """A field that is left out, or has one value."""
    return choice(path, feature=feature, on=value)


def choice(path: str, feature: str | None = None, **values: Value) -> Factor:
    """A field that is left out, or has one of several values."""
    return Factor({"off": Level(), **{name: Level({path: value}, feature) for name, value in values.items()}})


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SAMPLING_MASK_LEFT_OUT = dict.fromkeys(
    ("return_sampling_mask", "sampling_logprobs_mode"),
    "SGLang answers some with a 500 beside other requests in a batch; tests/e2e/test_sampling_masks.py compares them",
)

REGEX = "(red|green|blue), [0-9]{2}( and [a-z]{3,6}){1,2}"
EBNF = 'root ::= word " = " number\nword ::= [a-z]+\nnumber ::= [0-9]+ ("." [0-9])?'
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "</n>"}],
    "triggers": ["<n>"],
}
END = 256
"""The tiny model's end token. It never chooses it, unless a bias favours it."""
USER = 258
"""The token that begins a user's turn in its chat template."""
LIKELY_TOKENS = (ord("e"), ord("1"))
RARE_TOKENS = (ord("~"), 1)
BANNED = {str(ord(letter)): -40.0 for letter in " ea"}
FAVOURED = {str(END): 9.0, str(ord("t")): 1.5}
DISALLOWED = {
    "token_ids": [ord("w"), ord(".")]
}  # letters that no grammar here insists on: SGLang ends where nothing is left


def disallowing_processor() -> str:
    """SGLang's own processor that forbids the tokens in its `token_ids`, as its `to_str` writes it.

    The class is pickled by its name, which needs no import of the engine.
    """
    name = b"csglang.srt.sampling.custom_logit_processor\nDisallowedTokensLogitsProcessor\n."
    return json.dumps({"callable": name.hex()})


def sampling_factors(at: str = "") -> dict[str, Factor]:
    """Factors of the sampling parameters that all three completion endpoints name alike, `at` the place in the body."""
    greedy, temperature = {at + "temperature": 0.0}, {at + "temperature": 1.3}
    return {
        "sampling": Factor(
            {
                "greedy": Level(greedy),
                # Each of them leaves one token. SGLang's log-probabilities of a request with top_k 1 hang on whether
                # all others of its batch are greedy, too: at temperature 1 that changes nothing.
                "top_k": Level({at + "temperature": 1.0, at + "top_k": 1}),
                "top_p": Level({**temperature, at + "top_p": 1e-6}),
                "min_p": Level({**temperature, at + "min_p": 1.0}),
                "drawn": Level({**temperature, at + "top_k": 40, at + "top_p": 0.9, at + "min_p": 0.01}),
            }
        ),
        "frequency_penalty": choice(at + "frequency_penalty", "penalties", high=0.9, negative=-0.3),
        "presence_penalty": choice(at + "presence_penalty", "penalties", high=1.2),
        "repetition_penalty": choice(at + "repetition_penalty", "penalties", high=1.3, low=0.9),
        "stop": choice(at + "stop", likely=" ", several=["th", "e", "a "], rare="xyzzy"),
        "stop_token_ids": choice(at + "stop_token_ids", likely=list(LIKELY_TOKENS), rare=list(RARE_TOKENS)),
        "stop_regex": choice(at + "stop_regex", likely="[0-9.]", several=["[a-z]{3} ", "(n|r)[aeiou]"], rare="q{7}"),
        "no_stop_trim": switch(at + "no_stop_trim"),
        "ignore_eos": switch(at + "ignore_eos"),
        "skip_special_tokens": switch(at + "skip_special_tokens", False),
        "logit_bias": choice(at + "logit_bias", banned=BANNED, favoured=FAVOURED),
        "n": switch(at + "n", 2),
    }


def put(body: dict[str, Any], path: str, value: Any) -> None:
    """Set `a.b` in nested dictionaries."""
    *folders, name = path.split(".")
    for folder in folders:
        body = body.setdefault(folder, {})
    body[name] = value


def letters(number: int) -> str:
    """Two letters for each number below 1,352."""
    return string.ascii_uppercase[number % 26] + string.ascii_letters[number // 26]


def make_subject(number: int) -> Subject:
    """The shape's prompts. The tiny model's tokens are bytes."""
    text, other = (f"{letters(2 * number + which)}. {PROMPTS[(number + 3 * which) % len(PROMPTS)]}" for which in (0, 1))
    return Subject(number, text, tuple(text.encode()), other, tuple(other.encode()))

"""Requests whose constraints hang on the tokens before: a schema, or penalties of random size. Plain data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.json_schemas import CASES
from benchmarks.harness.prompts import HELD_OUT, sample_prompts

EMBEDDED_END = {"2": 6.0}
"""The end token of the embedded model, favoured."""


@dataclass(frozen=True)
class RequestCase:
    """One request: its prompt and what it asks of sampling; `check` says whether an answer's text is valid."""

    name: str
    prompt: str
    sampling: Mapping[str, Any]
    check: Callable[[str], bool] | None = None


def fits(schema: Any) -> Callable[[str], bool]:
    """True for the text of a JSON document that the schema allows, by `jsonschema`."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)

    def check(text: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(text)))
        except ValueError:
            return False

    return check


def grammar_cases(max_new_tokens: int = 96) -> list[RequestCase]:
    """One for every schema. Where an answer need not end, there is no check: it may be cut off."""
    return [
        RequestCase(
            f"{case.kind}: {case.question}",
            f"{case.question} Answer in JSON.\n",
            {"json_schema": json.dumps(case.schema), "max_new_tokens": max_new_tokens},
            fits(case.schema) if case.ends else None,
        )
        for case in CASES
    ]


def penalty_cases(
    count: int = 100, seed: int = 0, max_new_tokens: int = 32, likely_end: Mapping[str, float] = EMBEDDED_END
) -> list[RequestCase]:
    """Prompts of two sets, each with one to four of the penalties at random sizes over most of their range.

    `likely_end` is a bias that makes the model's end token likely at once, so that a minimum length has something to
    hold back.
    """
    rng = random.Random(seed)
    prompts = sample_prompts([HELD_OUT, "mtbench"], min(50, -(-count // 2)), seed)
    cases = []
    for index in range(count):
        values: dict[str, float] = {
            "frequency_penalty": round(rng.uniform(-1.0, 2.0), 2),
            "presence_penalty": round(rng.uniform(-1.0, 2.0), 2),
            "repetition_penalty": round(rng.uniform(0.8, 1.8), 2),
            "min_new_tokens": rng.randrange(1, max_new_tokens),
        }
        chosen = rng.sample(sorted(values), rng.randint(1, 4))
        prompt = prompts[index % len(prompts)].text
        sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, **{name: values[name] for name in chosen}}
        if "min_new_tokens" in chosen:
            sampling["logit_bias"] = dict(likely_end)
        cases.append(
            RequestCase(f"{index}: {', '.join(f'{name} {values[name]}' for name in chosen)}", prompt, sampling)
        )
    return cases


def spread(cases: Sequence[RequestCase], count: int) -> list[RequestCase]:
    """`count` of them, evenly over the list, so that every kind is among them; all of them when there are fewer."""
    count = min(count, len(cases))
    return [cases[index * len(cases) // count] for index in range(count)]

"""`/v1/completions`: each of its fields is a factor, or is left out by name."""

from __future__ import annotations

import json

from tests.e2e.conformance.factors import (
    EBNF,
    REGEX,
    SCHEMA,
    TAG,
    Factor,
    Level,
    choice,
    sampling_factors,
    switch,
)
from tests.e2e.conformance.openai_common import (
    COMMON_LEFT_OUT,
    COMPLETION,
    NAMED_SCHEMA,
)

FACTORS: dict[str, Factor] = {
    "prompt": Factor(
        {
            "text": Level({"prompt": lambda s: s.text}),
            "ids": Level({"prompt": lambda s: list(s.ids)}),
            "texts": Level({"prompt": lambda s: [s.text, s.other]}),
            "rows of ids": Level({"prompt": lambda s: [list(s.ids), list(s.other_ids)]}),
        }
    ),
    "length": choice("max_tokens", middle=24, one=1, long=60),
    **sampling_factors(),
    **COMPLETION,
    "logprobs": choice("logprobs", none=0, three=3),
    "echo": switch("echo"),
    "suffix": switch("suffix", " the end"),
    "best_of": switch("best_of", 2),
    "return_token_ids": switch("return_token_ids"),
    "custom_labels": switch("custom_labels", {"team": "a"}),
    "grammar": Factor(
        {
            "off": Level(),
            "json_schema": Level({"json_schema": json.dumps(SCHEMA)}, "grammars"),
            "regex": Level({"regex": REGEX}, "grammars"),
            "ebnf": Level({"ebnf": EBNF}, "grammars"),
            "response_format": Level({"response_format": NAMED_SCHEMA}, "grammars"),
            "json_object": Level({"response_format": {"type": "json_object"}}, "grammars"),
            "text": Level({"response_format": {"type": "text"}}),
            "structural_tag": Level({"response_format": TAG}, "grammars"),
        }
    ),
}
FORBIDDEN = {
    "SGLang forbids a stop token before the minimum length, and ends a grammar that needs it": [
        (("min_tokens", "on"), ("stop_token_ids", "likely"))
    ],
    "an object may be over before the minimum length, and then no token is left": [
        (("min_tokens", "on"), ("grammar", "json_object"))
    ],
    "SGLang refuses a minimum length above the maximum": [(("min_tokens", "on"), ("length", "one"))],
}
LEFT_OUT = dict(COMMON_LEFT_OUT)

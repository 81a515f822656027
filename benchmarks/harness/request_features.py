"""Features of requests whose cost in a round is measured: what a request has with each, and has not without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ADAPTER = "random"
"""The name of the adapter that requests ask for."""

BARE: tuple[str, ...] = ()
ENABLED = (
    "--enable-custom-logit-processor",
    "--enable-return-hidden-states",
    "--constrained-json-disable-any-whitespace",
)
"""Flags of a server that answers all features but adapters. Without the last one a small model writes blank lines."""

OWN_STAGES = ("prepare", "build", "accept", "commit", "between")
"""Where a feature's time is that leaves both models' forwards as they are. `between`: the scheduler, between rounds."""
ALL_STAGES = ("prepare", "draft", "build", "verify", "accept", "commit", "context", "between")


@dataclass(frozen=True)
class Feature:
    """`sampling`: parameters, `body`: further fields of a request that has the feature.

    `beside` are parameters of requests with it and without. `stages` are those whose time counts.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    stages: tuple[str, ...] = OWN_STAGES


def forbidding_processor() -> str:
    """SGLang's own processor that forbids the tokens of its `token_ids`, as its `to_str` writes it.

    Pickled by its name, which needs no import of the engine.
    """
    name = b"csglang.srt.sampling.custom_logit_processor\nDisallowedTokensLogitsProcessor\n."
    return json.dumps({"callable": name.hex()})


_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

FEATURES: dict[str, Feature] = {
    "penalties": Feature(
        {"frequency_penalty": 0.2, "presence_penalty": 0.1, "repetition_penalty": 1.05, "min_new_tokens": 8}
    ),
    # Neither grammar can be over before the answer is.
    "json_schema": Feature({"json_schema": json.dumps({"type": "array", "items": _PERSON, "minItems": 40})}),
    "regex": Feature({"regex": r"([a-z]{1,8} ){200}"}),
    "processor": Feature({"custom_params": {"token_ids": [5, 6]}}, {"custom_logit_processor": forbidding_processor()}),
    # States of accepted nodes are gathered beside the drafter's context.
    "hidden_states": Feature(body={"return_hidden_states": True}, stages=(*OWN_STAGES, "context")),
    "logprobs": Feature(body={"return_logprob": True, "top_logprobs_num": 5, "logprob_start_len": -1}),
    "sampling_mask": Feature(
        body={"return_sampling_mask": True}, beside={"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    ),
    # None of them comes, and each token is looked at for all of them.
    "ends": Feature(
        {"stop": ["xyzzy", "plugh"], "stop_regex": ["q{7}"], "stop_token_ids": [5, 6], "ignore_eos": False}
    ),
}
"""Of requests to a server with `ENABLED`."""

LORA = Feature(body={"lora_path": ADAPTER}, stages=ALL_STAGES)
"""An adapter works in the target's forward."""

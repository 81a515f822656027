"""Kinds of a request's values: SGLang's scheduler slices, counts and concatenates with them, and ends over others.

`/generate` has a schema. Other endpoints send on what they are sent, such as Ollama's `num_predict` of 1.5, which is
`max_new_tokens`, or a list as a chat's `extra_key`.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

_WHOLE, _NUMBER, _TEXT = ("a whole number", Integral), ("a number", Real), ("a text", str)

SAMPLING: dict[str, tuple[str, type]] = {
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "top_k", "stream_interval", "sampling_seed"), _WHOLE),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"), _NUMBER
    ),
    **dict.fromkeys(("json_schema", "regex", "ebnf", "structural_tag"), _TEXT),
}
"""Of `SamplingParams`, read once SGLang has put its defaults in; None where there is none."""

REQUEST: dict[str, tuple[str, type]] = {
    **dict.fromkeys(("logprob_start_len", "top_logprobs_num", "routed_experts_start_len", "priority"), _WHOLE),
    **dict.fromkeys(("rid", "lora_id", "session_id", "extra_key", "cache_salt", "routing_key"), _TEXT),
}
"""Of `TokenizedGenerateReqInput`."""


def check_kinds(request: Any, vocab_size: int) -> str | None:
    """The first value of another kind, named; None where there is none."""
    for holder, kinds in ((request.sampling_params, SAMPLING), (request, REQUEST)):
        for name, (described, kind) in kinds.items():
            value = getattr(holder, name)
            if value is not None and not isinstance(value, kind):
                return f"{name} must be {described}, got {value!r}; leave it out for the default."
    return None

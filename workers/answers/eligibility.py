"""Which requests may go on at another replica from their prompt and tokens alone.

For some requests a replica keeps state beside the tokens: the position in a grammar, how often each token was chosen,
what a logit processor has seen. A new attempt takes the answer so far as its prompt, so that state would start again in
the middle of the answer. This module knows SGLang's names of such fields, and imports nothing of SGLang.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.answers.protocol import TokenRequest

_GRAMMAR = "the grammar would begin anew in the middle of the answer"
_PENALTY = "the penalty counts the tokens that one replica generated"
_PER_TOKEN = "it is returned for every token, and a lost replica's part is lost with it"

# Sampling parameter -> (values that leave it off, why an answer may not go on).
STATEFUL_SAMPLING: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "json_schema": ((None, ""), _GRAMMAR),
    "regex": ((None, ""), _GRAMMAR),
    "ebnf": ((None, ""), _GRAMMAR),
    "structural_tag": ((None, ""), _GRAMMAR),
    "presence_penalty": ((None, 0), _PENALTY),
    "frequency_penalty": ((None, 0), _PENALTY),
    "repetition_penalty": ((None, 1), _PENALTY),
    # A match of a regex may begin any number of tokens before the cut; a stop string has a length.
    "stop_regex": ((None, "", [], ()), "a match may straddle the cut"),
    "beam_width": ((None, 0, 1), "the other beams are lost with the replica"),
    "watermark": ((None, False), "the watermark depends on the tokens that one replica generated"),
}
# Field of the request beside the sampling parameters -> (values that leave it off, why an answer may not go on).
STATEFUL_FIELDS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "custom_logit_processor": ((None, ""), "the processor may keep what it saw"),
    "return_hidden_states": ((None, False), _PER_TOKEN),
    "token_ids_logprob": ((None, [], ()), _PER_TOKEN),
    "return_sampling_mask": ((None, False), _PER_TOKEN),
    "return_routed_experts": ((None, False), _PER_TOKEN),
    "return_indexer_topk": ((None, False), _PER_TOKEN),
    # Unlike session_id, which only names the conversation, session_params make the engine rebuild the prompt.
    "session_params": ((None,), "the session lives in one replica"),
    "max_thinking_tokens": ((None,), "the thinking budget would begin anew"),
    "watermark": ((None, False), "the watermark depends on the tokens that one replica generated"),
}


def why_not_resumable(request: TokenRequest) -> str | None:
    """Why this request may not go on at another replica after its first token; None if it may."""
    for fields, values in ((STATEFUL_SAMPLING, request.sampling), (STATEFUL_FIELDS, request.extra)):
        for name, (neutral, reason) in fields.items():
            if name in values and values[name] not in neutral:
                return f"{name}: {reason}"
    if (request.sampling.get("custom_params") or {}).get("thinking_budget") is not None:
        return "custom_params.thinking_budget: the thinking budget would begin anew"
    start = request.extra.get("logprob_start_len")
    if request.return_logprob and start is not None and start >= 0:
        return "logprob_start_len: the prompt's log-probabilities would include the answer so far"
    return None

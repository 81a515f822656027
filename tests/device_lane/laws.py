"""What tokens that were drawn without a known seed must be: from the target's law behind each token's own prefix.

A token outside its law's support is wrong for certain. That draws follow the probabilities is seen in all of a wave's
tokens together: how surprising each was, beside what its law expects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from tests.device_lane.draws import is_near_the_border
from tests.device_lane.references import Asked, Reference

FARTHEST = 4.0
"""Standard deviations. The sum of many tokens' surprises is close to normal: beyond that one in 16,000."""
MAX_ERROR = 1e-3

Law = dict[int, float]
"""Log-probabilities of the tokens that may be drawn."""


@torch.inference_mode()
def laws(reference: Reference, asked: Asked, tokens: Sequence[int]) -> list[Law | None]:
    """Of each of an answer's tokens, behind those before it; None where rounding decides what may be drawn."""
    row = torch.tensor([[*asked.prompt, *tokens]])
    logits = reference.target(asked)(row, use_cache=False).logits[0, len(asked.prompt) - 1 : -1]
    return [None if is_near_the_border(one, asked) else _law(one, asked) for one in logits]


def _law(logits: torch.Tensor, asked: Asked) -> Law:
    best = (logits / asked.temperature).topk(asked.top_k)
    return dict(zip(best.indices.tolist(), best.values.double().log_softmax(-1).tolist(), strict=True))


def problems_of_draws(asked: Asked, answer: dict[str, Any], reference: Reference, with_supports: bool) -> list[str]:
    """What is wrong with the tokens of one answer, and with the supports that the server says they were drawn from."""
    tokens, meta = answer["output_ids"], answer["meta_info"]
    found = [f"{len(tokens)} tokens, expected {asked.max_new_tokens}"] if len(tokens) != asked.max_new_tokens else []
    expected = laws(reference, asked, tokens)
    for index, (token, law) in enumerate(zip(tokens, expected, strict=True)):
        if law is not None and token not in law:
            found.append(f"token {index} is {token}, expected one of {sorted(law)}")
    if not with_supports:
        return found
    masks, logprobs = meta["output_token_sampling_mask"], meta["output_token_sampling_logprobs"]
    for index, (mask, values, law) in enumerate(zip(masks, logprobs, expected, strict=True)):
        support = dict(zip(mask, values, strict=True))
        if law is not None and not _equal(support, law):
            found.append(f"token {index} was drawn from {support}, expected {law}")
    return found


def _equal(support: Law, law: Law) -> bool:
    return support.keys() == law.keys() and all(abs(support[token] - law[token]) < MAX_ERROR for token in law)


def distance(drawn: Iterable[tuple[int, Law]]) -> float:
    """How many standard deviations the surprise of tokens is from what their laws expect; 0 of none."""
    difference = variance = 0.0
    for token, law in drawn:
        shares = [(torch.tensor(logprob).exp().item(), -logprob) for logprob in law.values()]
        mean = sum(share * surprise for share, surprise in shares)
        difference += -law[token] - mean
        variance += sum(share * surprise**2 for share, surprise in shares) - mean**2
    return difference / variance**0.5 if variance > 0 else 0.0

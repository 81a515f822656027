"""A custom logit processor for the lane, once as a client sends it and once as the reference applies it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import dill
import torch


def favoured(tokens: Sequence[int], calls: int, vocabulary: int) -> int:
    """The token that gets an advantage after `tokens`, in the request's call number `calls`."""
    return (5 * tokens[-1] + 3 * tokens[-2] + tokens[-3] + calls) % (vocabulary - 3)


ADVANTAGE = 4.0


def change(logits: torch.Tensor, tokens: Sequence[int], calls: int) -> torch.Tensor:
    """What the processor makes of a row `[V]`: no token twice in a row, and one that hangs on all that it knows."""
    changed = logits.clone()
    changed[tokens[-1]] = float("-inf")
    changed[favoured(tokens, calls, len(logits))] += ADVANTAGE
    return changed


@cache
def serialized() -> str:
    """The same as a class that goes by value, which servers do not import this module for.

    As SGLang's `CustomLogitProcessor.to_str` writes a class that derives from it; the import of SGLang would change the
    environment that servers are forked with, in the middle of another scene's start.
    """

    def pick(tokens: list[int], calls: int, vocabulary: int) -> int:
        return (5 * tokens[-1] + 3 * tokens[-2] + tokens[-3] + calls) % (vocabulary - 3)

    class Favouring:
        def __call__(self, logits: Any, custom_param_list: Any = None) -> Any:
            for row, params in enumerate(custom_param_list):
                req = params["__req__"]
                tokens = [*req.origin_input_ids, *req.output_ids]
                logits[row, tokens[-1]] = float("-inf")
                logits[row, pick(tokens, params["calls"], logits.shape[1])] += 4.0
                params["calls"] += 1
            return logits

    return json.dumps({"callable": dill.dumps(Favouring).hex()})

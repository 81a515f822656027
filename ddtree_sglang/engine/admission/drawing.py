"""Drawing from a row that leaves no token: it must not end the server.

A grammar and a client's own bans may leave nothing together, such as a grammar that is over and `min_new_tokens`, which
bans the end. The row's softmax is NaN then, and torch raises over it in the middle of a batch, on a GPU by an assertion
that ends the process (`--sampling-backend pytorch`). A tree meets such rows off its path as well. FlashInfer's kernels
draw something. So does this, and a grammar that refuses the token ends its request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ddtree_sglang.engine.device_path import is_device_path


def draw_where_nothing_is_left(original: Callable[..., Any], probs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on the two functions that draw: rows of `probs [B, V]` without a total are certain of token 0."""
    return original(_with_a_total(probs), *args, **kwargs)


def _with_a_total(probs: torch.Tensor) -> torch.Tensor:
    total = probs.sum(-1)
    has_none = ~(torch.isfinite(total) & (total > 0))
    # On a device the host would wait to know that.
    if not is_device_path() and not bool(has_none.any()):
        return probs
    mended = probs.masked_fill(has_none.unsqueeze(-1), 0.0)
    mended[:, 0] += has_none
    return mended

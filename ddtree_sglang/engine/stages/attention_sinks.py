"""Attention sinks of a tree verify on SGLang's FA3 backend, counted once.

A sink is one more logit of a head's softmax, with no value. In layers without a window the backend attends to a tree's
prefix and to its nodes apart and merges the two (flashattention_backend.py, `use_cascade_attn`), and hands the sinks to
both, which would count them twice. So both are called without them. The merge gives each row's log-sum-exp L over all
keys, and a sink s takes its part from the merged row: softmax over the keys and the sink is that over the keys alone,
times 1 / (1 + exp(s - L)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

_left_out: list[torch.Tensor] = []
"""The sinks `[heads]` of the layer that attends, until they are merged; empty for every other layer."""


def attending_without_sinks(original: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of `FlashAttentionBackend.forward_extend`: sinks wait for the merge where there is one."""

    @wraps(original)
    def forward_extend(
        backend: Any, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, *others: Any, **options: Any
    ) -> Any:
        merges = forward_batch.forward_mode.is_target_verify() and backend.topk > 1 and layer.sliding_window_size < 0
        if not merges or options.get("sinks") is None:
            return original(backend, q, k, v, layer, forward_batch, *others, **options)
        with _waiting(options.pop("sinks")):
            return original(backend, q, k, v, layer, forward_batch, *others, **options)

    return forward_extend


@contextmanager
def _waiting(sinks: torch.Tensor) -> Iterator[None]:
    """Within it a merge takes the sinks in.

    Raises:
        RuntimeError: none did, so the layer's result lacks them.
    """
    _left_out.append(sinks)
    try:
        yield
        if _left_out:
            raise RuntimeError(
                "a tree's verify on FA3 must merge what it attends to, and did not: its sinks would be missing; "
                "use --attention-backend triton"
            )
    finally:
        _left_out.clear()


def merging_with_sinks(
    original: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """In the place of `flashattention_backend.merge_state_v2_wrapper`."""

    @wraps(original)
    def merge_state_v2_wrapper(*states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, log_sums = original(*states)
        if not _left_out:
            return out, log_sums
        return with_sinks(out, log_sums, _left_out.pop()), log_sums

    return merge_state_v2_wrapper


def with_sinks(out: torch.Tensor, log_sums: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Attention with sinks from attention without.

    Args:
        out: `[rows, heads, head size]`.
        log_sums: `[rows, heads]` float32, natural logarithm of the sum of exponentials of a row's scores.
        sinks: `[heads]`, in the units of scores.
    """
    share = torch.sigmoid(log_sums - sinks.float())
    return (out.float() * share.unsqueeze(-1)).to(out.dtype)

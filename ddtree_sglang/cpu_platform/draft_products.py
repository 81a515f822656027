"""Products of drafters in bfloat16 where that was measured faster: a drafter proposes, and decides nothing.

With one request a draft block's rows cost what reading the weights costs, of which the target's LM head alone is half.
Processors with instructions for bfloat16 read half as much. Which of the two is faster is measured when a drafter is
loaded, on its own weights, unless the environment names one. The stock chain's drafter has the same products as
DDTREE's.

Weights of 8 bits were tried and are not taken: with one scale for all activations, as the stock wheel's product has it,
the head's best token was another one for 6 % of positions (benchmarks/LOG.md).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence

import psutil
import torch

from ddtree_sglang.cpu_platform.names import DRAFTS_ENV
from ddtree_sglang.cpu_platform.packed_products import dense_linear, pack
from ddtree_sglang.exceptions import DDTreeConfigError

logger = logging.getLogger(__name__)

ROWS, MANY_ROWS = 8, 128
"""Of a draft block, by which the two are compared; and of many, or of a prompt: where bfloat16 has no instructions,
what reading half as much brings to few rows is lost there."""
LEAST_ELEMENTS = 4_000_000
"""Of a weight, or of a drafter's weights together: smaller ones lie in a cache, and are not worth a second thought."""
WORTH = 1.03
"""Bfloat16 must be faster by this factor. Of two that are nearly equal either is right."""
TURNS = 12
SHARE_OF_MEMORY = 0.1
"""What the copies may take of what is free."""


def reduced_linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear` of `x [..., in]`, with a weight that was packed in bfloat16; result in x's dtype."""
    reduced = None if bias is None else bias.bfloat16()
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), packed, reduced, "none", [], "")
    return result.to(x.dtype)


def reduce_weights(weights: Sequence[torch.Tensor], packed: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """These weights `[out, in]` packed in bfloat16; None where that is no faster than `packed`, their own form."""
    num_elements = sum(weight.numel() for weight in weights)
    if not weights or not _may_reduce(num_elements, weights[0].dtype):
        return None
    reduced = [pack(weight.bfloat16()) for weight in weights]
    return reduced if _asked() == "bfloat16" or is_reduced_faster(weights, packed, reduced) else None


def is_reduced_faster(
    weights: Sequence[torch.Tensor], packed: Sequence[torch.Tensor], reduced: Sequence[torch.Tensor]
) -> bool:
    """Multiply by all weights in turn, as a draft does, so that each is read from memory; in both forms by turns."""

    def seconds(rows: int) -> list[float]:
        inputs = even_inputs(weights, rows)

        def as_they_are() -> None:
            for x, weight, one in zip(inputs, weights, packed, strict=True):
                dense_linear(x, weight, None, one)

        def in_bfloat16() -> None:
            for x, one in zip(inputs, reduced, strict=True):
                reduced_linear(x, one, None)

        return least_seconds(as_they_are, in_bfloat16)

    own, other = seconds(ROWS)
    faster = own > WORTH * other
    if faster:
        of_many, other_of_many = seconds(MANY_ROWS)
        faster = of_many > other_of_many
    logger.info(
        "CPU platform: drafts multiply %d %s weights of %.1f MB %s: %.2f ms for %d rows, %.2f ms in bfloat16",
        len(weights),
        str(weights[0].dtype).removeprefix("torch."),
        sum(weight.numel() * weight.element_size() for weight in weights) / 1e6,
        "in bfloat16" if faster else "as they are",
        1e3 * own,
        ROWS,
        1e3 * other,
    )
    return faster


def _asked() -> str:
    """What the environment names, empty for nothing.

    Raises:
        DDTreeConfigError: it is neither of the two.
    """
    asked = os.environ.get(DRAFTS_ENV, "").strip()
    if asked not in ("", "model", "bfloat16"):
        raise DDTreeConfigError(f"{DRAFTS_ENV} must be bfloat16, model or empty, got {asked!r}; unset it.")
    return asked


def _may_reduce(num_elements: int, dtype: torch.dtype) -> bool:
    return (
        _asked() != "model"
        and num_elements >= LEAST_ELEMENTS
        and dtype is torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        # Once plain, once packed.
        and 2 * num_elements * torch.bfloat16.itemsize <= SHARE_OF_MEMORY * psutil.virtual_memory().available
    )


def even_inputs(weights: Sequence[torch.Tensor], rows: int) -> list[torch.Tensor]:
    """`[rows, in]` for each weight `[out, in]`, in its dtype, to time its product by.

    No random numbers: requests without a seed draw from the generator that gave them.
    """
    return [torch.linspace(-1, 1, rows * weight.shape[1]).view(rows, -1).to(weight.dtype) for weight in weights]


def least_seconds(*forms: Callable[[], None]) -> list[float]:
    """Of each form its fastest turn: a neighbour makes turns slower, and none faster."""
    times = [math.inf] * len(forms)
    for _ in range(TURNS):
        for place, form in enumerate(forms):
            began = time.perf_counter()
            form()
            times[place] = min(times[place], time.perf_counter() - began)
    return times

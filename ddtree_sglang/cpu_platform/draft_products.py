"""Products of drafters in bfloat16 where that was measured faster: a drafter proposes, and decides nothing.

With one request a draft block's rows cost what reading the weights costs, of which the target's LM head alone is half.
Processors with instructions for bfloat16 read half as much. Where the environment asks for it, which of the two is
faster is measured when a drafter is loaded, on its own weights; others keep the model's dtype. The stock chain's
drafter has the same products as DDTREE's.

Weights of 8 bits were tried and are not taken: with one scale for all activations, as the stock wheel's product has it,
the head's best token was another one for 6 % of positions (benchmarks/LOG.md).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from ddtree_sglang.cpu_platform.names import DRAFTS_ENV
from ddtree_sglang.cpu_platform.packed_products import dense_linear, pack
from ddtree_sglang.exceptions import DDTreeConfigError

logger = logging.getLogger(__name__)

ROWS = 8
"""Of a draft block, by which the two are compared."""
LEAST_ELEMENTS = 4_000_000
"""Of a weight, or of a drafter's weights together: smaller ones lie in a cache, and are not worth a second thought."""
WORTH = 1.15
"""Bfloat16 must be faster by this factor, so that noise does not choose between equals."""
TURNS = 7


def reduced_linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear` of `x [..., in]`, with a weight that was packed in bfloat16; result in x's dtype."""
    reduced = None if bias is None else bias.bfloat16()
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), packed, reduced, "none", [], "")
    return result.to(x.dtype)


def is_reduced_faster(weight: torch.Tensor, packed: torch.Tensor, reduced: torch.Tensor) -> bool:
    """Measure `weight [out, in]` packed in its own dtype beside the same in bfloat16."""
    x = torch.randn(ROWS, weight.shape[1], dtype=weight.dtype)
    own = _seconds(lambda: dense_linear(x, weight, None, packed))
    other = _seconds(lambda: reduced_linear(x, reduced, None))
    faster = own > WORTH * other
    logger.info(
        "CPU platform: drafts multiply %s weights of %d x %d %s: %.2f ms for %d rows, %.2f ms in bfloat16",
        str(weight.dtype).removeprefix("torch."),
        *weight.shape,
        "in bfloat16" if faster else "as they are",
        1e3 * own,
        ROWS,
        1e3 * other,
    )
    return faster


def reduce_weights(weights: Sequence[torch.Tensor], packed: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """These weights packed in bfloat16; None where that is not faster than `packed`, judged by the largest of them."""
    if not weights or not _may_reduce(sum(weight.numel() for weight in weights), weights[0].dtype):
        return None
    largest = max(range(len(weights)), key=lambda index: weights[index].numel())
    first = pack(weights[largest].bfloat16())
    if not is_reduced_faster(weights[largest], packed[largest], first):
        return None
    return [first if index == largest else pack(weight.bfloat16()) for index, weight in enumerate(weights)]


def _is_asked_for() -> bool:
    """Whether the environment asks for bfloat16.

    Raises:
        DDTreeConfigError: it asks for something else.
    """
    asked = os.environ.get(DRAFTS_ENV, "").strip()
    if asked not in ("", "model", "bfloat16"):
        raise DDTreeConfigError(f"{DRAFTS_ENV} must be bfloat16, model or empty, got {asked!r}; unset it.")
    return asked == "bfloat16"


def _may_reduce(num_elements: int, dtype: torch.dtype) -> bool:
    return (
        _is_asked_for()
        and num_elements >= LEAST_ELEMENTS
        and dtype is torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _seconds(product: Callable[[], torch.Tensor]) -> float:
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        product()
        times.append(time.perf_counter() - began)
    # The first ones touch memory and make oneDNN choose.
    return median(times[2:])

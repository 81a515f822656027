"""Products of bfloat16 weights on processors without instructions for it: of many rows in float32.

Such a processor widens the weight anew in each product. For one row that is hidden behind reading the weight, which has
half the bytes; nine rows take two to five times what the same product takes in float32, so that a tree's round is
dearer than the tokens that it brings. So weights get a second copy, in float32 and packed, which products of
some rows and more read. From how many rows on is measured at load, on the model's own weights.

Sums are float32's in both forms, and results are rounded to bfloat16 once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch.nn import functional

from ddtree_sglang.cpu_platform.draft_products import even_inputs, least_seconds

logger = logging.getLogger(__name__)

ROWS = (1, 2, 3, 4, 6, 9)
"""Rows by which the two forms are compared. Where float32 is not faster by the last of them, no copy is kept."""
WORTH = 1.1
"""Float32 must be faster by this factor: its copy takes memory."""
MEASURED_ELEMENTS = 24_000_000
"""Of the weights that are measured together: more than a cache holds."""


def widened_linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear` of `x [..., in]`, with a weight that was packed in float32; result in x's dtype."""
    widened = None if bias is None else bias.float()
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.float(), packed, widened, "none", [], "")
    return result.to(x.dtype)


def least_rows(weights: Sequence[torch.Tensor], packed: Sequence[torch.Tensor]) -> int | None:
    """From how many rows on `packed`, in float32, is faster than `weights [out, in]` as they lie; None: from none."""
    found: int | None = None
    own = other = 0.0
    for rows in ROWS:
        own, other = _seconds(weights, packed, rows)
        if own > WORTH * other:
            found = rows
            break
    logger.info(
        "CPU platform: %d bfloat16 weights of %.1f MB, which this processor has no instructions for, are multiplied %s "
        "(%.2f ms for %d rows as they are, %.2f ms in float32)",
        len(weights),
        sum(weight.numel() * weight.element_size() for weight in weights) / 1e6,
        "as they are" if found is None else f"in float32 from {found} rows on",
        1e3 * own,
        rows,
        1e3 * other,
    )
    return found


def measured(weights: Sequence[torch.Tensor]) -> int:
    """How many of the first weights stand for all."""
    elements = 0
    for count, weight in enumerate(weights, 1):
        elements += weight.numel()
        if elements >= MEASURED_ELEMENTS:
            return count
    return len(weights)


def _seconds(weights: Sequence[torch.Tensor], packed: Sequence[torch.Tensor], rows: int) -> tuple[float, float]:
    inputs = even_inputs(weights, rows)

    def as_they_are() -> None:
        for x, weight in zip(inputs, weights, strict=True):
            functional.linear(x, weight)

    def in_float32() -> None:
        for x, one in zip(inputs, packed, strict=True):
            widened_linear(x, one, None)

    own, other = least_seconds(as_they_are, in_float32)
    return own, other

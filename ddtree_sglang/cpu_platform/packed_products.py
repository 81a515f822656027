"""A product with a weight that was laid out in oneDNN's blocks; `cpu_platform.dense_linear` says why."""

from __future__ import annotations

import torch
from torch.nn import functional

PACKED_FOR_ROWS = 17
"""Rows that oneDNN chooses the blocks for. Blocks chosen for one row are no faster than plain weights at nine."""


def dense_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, packed: torch.Tensor | None = None
) -> torch.Tensor:
    """`functional.linear`: `x [..., in]`, `weight [out, in]`, `bias [out]` -> `[..., out]`.

    `packed` is `pack(weight)`, or None for a weight that was not packed.
    """
    if x.dtype is not weight.dtype:
        return functional.linear(x, weight, bias)
    if packed is not None:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    if weight.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """`weight [out, in]` in oneDNN's blocks: an opaque tensor that only `dense_linear` reads."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKED_FOR_ROWS)

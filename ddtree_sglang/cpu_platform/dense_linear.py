"""Matrix products with float32 weights through oneDNN, where the stock wheel's BLAS is slow.

The PyPI wheel of torch sends float32 products to MKL. On AMD cores, for the few rows of a decoding or verifying pass,
oneDNN needs a fifth to a half less time for the same product, and does not stall when another process holds a core. A
product with one row is bound by memory, and reads a weight that lies column by column (``[in, out]`` contiguous) nearly
twice as fast as one that lies row by row. So weights that widen (out > in) are laid out that way once, after loading;
their shape and values stay, and all code that uses them as ``[out, in]`` tensors goes on to work. bfloat16 is left
alone: torch sends it to oneDNN itself.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
from torch.nn import functional


def dense_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``functional.linear``: ``x [M, in]``, ``weight [out, in]`` of any layout, ``bias [out]`` -> ``[M, out]``."""
    if weight.dtype is not torch.float32 or x.dtype is not torch.float32:
        return functional.linear(x, weight, bias)
    if x.dim() == 2 and x.shape[0] == 1 and weight.stride(0) == 1:
        row = torch.mv(weight, x[0]) if bias is None else torch.addmv(bias, weight, x[0])
        return row.unsqueeze(0)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class CpuLinearMethod(UnquantizedLinearMethod):  # type: ignore[misc]
    """SGLang's plain linear layer with our product."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x [M, in]`` -> ``[M, out]``."""
        return dense_linear(x, layer.weight, bias)


class CpuEmbeddingMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """SGLang's plain embedding and LM head with our product."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """LM head: ``x [M, hidden]`` -> logits ``[M, vocabulary]`` in the weight's dtype."""
        return dense_linear(x.to(layer.weight.dtype), layer.weight, bias)


_REPLACEMENTS: dict[type, type] = {
    UnquantizedLinearMethod: CpuLinearMethod,
    UnquantizedEmbeddingMethod: CpuEmbeddingMethod,
}


def install(model: torch.nn.Module) -> int:
    """Swap the products of every plain float32 layer of ``model``; returns how many layers changed."""
    if not torch.backends.mkldnn.is_available():
        return 0
    changed = 0
    for module in model.modules():
        replacement = _REPLACEMENTS.get(type(getattr(module, "quant_method", None)))
        weight = getattr(module, "weight", None)
        if replacement is None or weight is None or weight.dtype is not torch.float32:
            continue
        module.quant_method = replacement()
        if replacement is CpuLinearMethod and weight.shape[0] > weight.shape[1]:
            weight.data = weight.data.t().contiguous().t()
        changed += 1
    return changed

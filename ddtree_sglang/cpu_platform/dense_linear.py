"""Matrix products through oneDNN with weights packed once, where the stock wheel's BLAS is slow.

torch sends float32 products to MKL, which on AMD cores needs up to twice the time of oneDNN for the few rows of a
decoding or verifying pass, and sends bfloat16 ones to oneDNN with the weight as it lies, so that oneDNN rearranges it
in every call. Here each weight is laid out in oneDNN's blocks after loading. Five to nine rows then cost what one row
does, which is what makes verifying a tree worth its while (benchmarks/LOG.md has the table).

A processor without instructions for bfloat16 packs none: there products of some rows are float32's, where that is
measured to be faster (`cpu_platform.widened_products`).

The price is a second copy of the weights. The plain one stays, because SGLang's code reads it in places (tied
embeddings, the drafter's KV projection); so a model whose copy would take more than `MAX_SHARE_OF_MEMORY` of what is
free keeps its plain weights, and online weight updates are refused, since they would not reach the copy.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import psutil
import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
from torch.nn import functional

from ddtree_sglang.cpu_platform.draft_products import reduce_weights, reduced_linear
from ddtree_sglang.cpu_platform.packed_products import dense_linear, pack
from ddtree_sglang.cpu_platform.widened_products import least_rows, measured, widened_linear

logger = logging.getLogger(__name__)

MAX_SHARE_OF_MEMORY = 0.25

UPDATE_REFUSAL = (
    "Online weight updates are not supported on the CPU platform: the matrix products read copies of the weights that "
    "were packed after loading, and would go on to serve the old values. Restart the server with the new weights."
)


class CpuLinearMethod(UnquantizedLinearMethod):  # type: ignore[misc]
    """SGLang's plain linear layer with our product; one object per layer, which holds its packed weight."""

    def __init__(self, packed: torch.Tensor | None) -> None:
        super().__init__()
        self.packed = packed

    @property
    def form(self) -> str:
        """What a product's time hangs on, in words."""
        return "plain" if self.packed is None else "packed"

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x [..., in]` -> `[..., out]`."""
        return dense_linear(x, layer.weight, bias, self.packed)


class ReducedLinearMethod(CpuLinearMethod):
    """A drafter's linear layer with its weight in bfloat16."""

    @property
    def form(self) -> str:
        """See `CpuLinearMethod.form`."""
        return "bfloat16"

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x [..., in]` -> `[..., out]`."""
        assert self.packed is not None
        return reduced_linear(x, self.packed, bias)


class CpuEmbeddingMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """SGLang's plain embedding and LM head with our product."""

    def __init__(self, packed: torch.Tensor | None) -> None:
        super().__init__()
        self.packed = packed
        self._is_prepared = False
        self._of_drafts: torch.Tensor | None = None  # the head's weight as drafts multiply by it, if another one

    @property
    def form(self) -> str:
        """What the head's products' time hangs on, in words; final once drafts were prepared."""
        own = "plain" if self.packed is None else "packed"
        return f"head {own}" if self._of_drafts is None else f"head {own}, of drafts bfloat16"

    def prepare_drafts(self, layer: Any) -> None:
        """A drafter will use this head, too: choose the form of its product."""
        if self.packed is not None and not self._is_prepared:
            self._is_prepared = True
            reduced = reduce_weights([layer.weight], [self.packed]) if _is_one_rank() else None
            self._of_drafts = None if reduced is None else reduced[0]

    def draft_logits(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """Like `apply`, for what a drafter proposes, whose logits decide nothing."""
        if self._of_drafts is None:
            return self.apply(layer, x)
        return reduced_linear(x.to(layer.weight.dtype), self._of_drafts, None)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """LM head: `x [M, H]` -> logits `[M, V]` in the weight's dtype."""
        return dense_linear(x.to(layer.weight.dtype), layer.weight, bias, self.packed)


class WidenedLinearMethod(CpuLinearMethod):
    """SGLang's plain linear layer of bfloat16, whose products of some rows and more are float32's."""

    def __init__(self, packed: torch.Tensor, rows: int) -> None:
        super().__init__(packed)
        self.rows = rows

    @property
    def form(self) -> str:
        """See `CpuLinearMethod.form`."""
        return f"float32 from {self.rows} rows"

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x [..., in]` -> `[..., out]`."""
        return _by_rows(x, layer.weight, bias, self)


class WidenedEmbeddingMethod(CpuEmbeddingMethod):
    """SGLang's LM head of bfloat16, likewise."""

    def __init__(self, packed: torch.Tensor, rows: int) -> None:
        super().__init__(packed)
        self.rows = rows

    @property
    def form(self) -> str:
        """See `CpuEmbeddingMethod.form`."""
        return f"head float32 from {self.rows} rows"

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """LM head: `x [M, H]` -> logits `[M, V]` in the weight's dtype."""
        return _by_rows(x.to(layer.weight.dtype), layer.weight, bias, self)


def _by_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    method: WidenedLinearMethod | WidenedEmbeddingMethod,
) -> torch.Tensor:
    if x.dtype is not weight.dtype or x.numel() // x.shape[-1] < method.rows:
        return functional.linear(x, weight, bias)
    assert method.packed is not None
    return widened_linear(x, method.packed, bias)


_REPLACEMENTS: dict[type, type[CpuLinearMethod] | type[CpuEmbeddingMethod]] = {
    UnquantizedLinearMethod: CpuLinearMethod,
    UnquantizedEmbeddingMethod: CpuEmbeddingMethod,
}


def install(model: torch.nn.Module, available_bytes: int | None = None) -> int:
    """Swap the products of every plain layer of `model`; returns how many weights have a packed copy.

    `available_bytes` bounds the copies (None: what the machine has free).
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    available = psutil.virtual_memory().available if available_bytes is None else available_bytes
    num_widened = 0 if _has_bfloat16_instructions() else _widen(model, available)
    if num_widened and available_bytes is None:
        available = psutil.virtual_memory().available
    # A tied head shares its weight with the embedding; nothing multiplies by an embedding that is no head.
    multiplied = [layer for layer in _plain_layers(model, _packed_dtypes()) if not _is_lookup_only(model, layer)]
    needed = sum(layer.weight.numel() * layer.weight.element_size() for layer in multiplied)
    packs = _fits("packing the weights", needed, available)
    for layer in multiplied:
        kind = CpuLinearMethod if type(layer) is torch.nn.Linear else _REPLACEMENTS[type(layer.quant_method)]
        _put(layer, kind(pack(layer.weight) if packs else None))
    if num_widened or (packs and multiplied):
        # SGLang's weight updater looks for this name on every module and refuses with its text.
        model._derived_weight_cache_error = UPDATE_REFUSAL  # type: ignore[assignment]
    return num_widened + (len(multiplied) if packs else 0)


def reduce_drafter(drafter: torch.nn.Module) -> int:
    """Swap the packed products of a drafter for ones in bfloat16 where that is faster; returns how many were swapped.

    Not on several ranks: each would measure for itself, and what every rank computes for itself, as the scores of
    pairs, must be the same on all of them.
    """
    found = ((layer, _method_of(layer)) for layer in drafter.modules()) if _is_one_rank() else ()
    layers: dict[Any, torch.Tensor] = {
        layer: method.packed for layer, method in found if type(method) is CpuLinearMethod and method.packed is not None
    }
    reduced = reduce_weights([layer.weight for layer in layers], list(layers.values())) or []
    for layer, packed in zip(layers, reduced, strict=False):
        _put(layer, ReducedLinearMethod(packed))
    return len(reduced)


def forms(model: torch.nn.Module) -> list[str]:
    """The forms of this model's products, each once, in order; SGLang's own are not among them.

    What a round costs hangs on them, and they differ from start to start: copies are made if memory is free, and forms
    are compared by the clock.
    """
    found = (_method_of(layer) for layer in model.modules())
    return sorted({one.form for one in found if isinstance(one, CpuLinearMethod | CpuEmbeddingMethod)})


def _put(layer: Any, method: CpuLinearMethod | CpuEmbeddingMethod) -> None:
    """Have the layer multiply by this method; torch's own layer has no place for one but its `forward`."""
    if type(layer) is torch.nn.Linear:
        layer.forward = partial(_forward_by, method, layer)  # type: ignore[method-assign]
    else:
        layer.quant_method = method


def _method_of(layer: Any) -> Any:
    """What `_put` gave the layer, or its own."""
    if type(layer) is torch.nn.Linear:
        return layer.forward.args[0] if isinstance(layer.forward, partial) else None
    return getattr(layer, "quant_method", None)


def _forward_by(method: CpuLinearMethod, layer: Any, x: torch.Tensor) -> torch.Tensor:
    """`nn.Linear.forward` of the drafter's projection of the context features."""
    return method.apply(layer, x, layer.bias)


def _is_one_rank() -> bool:
    from sglang.srt.runtime_context import get_parallel

    return bool(get_parallel().tp_size == 1)


def _widen(model: torch.nn.Module, available: int) -> int:
    """Swap products of bfloat16 for ones in float32 from some rows on, where that is faster; how many were swapped.

    The head by itself, for it is as large as many layers. Not on several ranks, which would measure apart.
    """
    layers = [one for one in _plain_layers(model, {torch.bfloat16}) if not _is_lookup_only(model, one)]
    needed = sum(layer.weight.numel() * torch.float32.itemsize for layer in layers)
    if not layers or not _is_one_rank() or not _fits("float32 copies of bfloat16 weights", needed, available):
        return 0
    heads = [layer for layer in layers if isinstance(_method_of(layer), UnquantizedEmbeddingMethod)]
    others = [layer for layer in layers if not isinstance(_method_of(layer), UnquantizedEmbeddingMethod)]
    swapped = 0
    for group in filter(None, (heads, others)):
        sample = [layer.weight for layer in group[: measured([layer.weight for layer in group])]]
        packed = [pack(weight.float()) for weight in sample]
        if (rows := least_rows(sample, packed)) is None:
            continue
        packed += [pack(layer.weight.float()) for layer in group[len(sample) :]]
        kind = WidenedEmbeddingMethod if group is heads else WidenedLinearMethod
        for layer, one in zip(group, packed, strict=True):
            _put(layer, kind(one, rows))
        swapped += len(group)
    return swapped


def _fits(what: str, needed: int, available: int) -> bool:
    """Whether copies of weights may take so many bytes; the log says if not."""
    if needed <= MAX_SHARE_OF_MEMORY * available:
        return True
    logger.warning(
        "CPU platform: %s would take %.1f GB of %.1f GB free, more than %d %%; they stay plain, and products of a few "
        "rows are slower.",
        what,
        needed / 1e9,
        available / 1e9,
        100 * MAX_SHARE_OF_MEMORY,
    )
    return False


def _has_bfloat16_instructions() -> bool:
    """oneDNN multiplies bfloat16 on any AVX-512, where it widens weights in each product unless there are these."""
    return bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )


def _packed_dtypes() -> set[torch.dtype]:
    """Those that oneDNN packs here."""
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {torch.float32, torch.bfloat16} if has_bfloat16 else {torch.float32}


def _plain_layers(model: torch.nn.Module, dtypes: set[torch.dtype]) -> list[Any]:
    """Layers with torch's or SGLang's own unquantised product, in one of these dtypes.

    Not a head of bfloat16 whose logits are asked for in float32 (`--enable-fp32-lm-head`, or the checkpoint says so):
    SGLang multiplies by its own only where it knows the method by name (logits_processor.py `_compute_lm_head`).
    """
    return [
        module
        for module in model.modules()
        if (type(module) is torch.nn.Linear or type(getattr(module, "quant_method", None)) in _REPLACEMENTS)
        and getattr(getattr(module, "weight", None), "dtype", None) in dtypes
        and not (module is getattr(model, "lm_head", None) and _is_widened_by_sglang(model, module.weight.dtype))
    ]


def _is_widened_by_sglang(model: torch.nn.Module, dtype: torch.dtype) -> bool:
    """Whether SGLang multiplies a head of this dtype in float32."""
    wants = (one.use_fp32_lm_head for one in model.modules() if isinstance(one, LogitsProcessor))
    return dtype is not torch.float32 and any(wants)


def _is_lookup_only(model: Any, layer: Any) -> bool:
    """True for an embedding whose rows are only looked up."""
    method = getattr(layer, "quant_method", None)
    return type(method) is UnquantizedEmbeddingMethod and layer is not getattr(model, "lm_head", None)

"""Quantized checkpoints on a CPU: weights of 8 bits become the model's own type once they are loaded.

SGLang's products for them are kernels of GPUs and of AMX. Here the product is the plain one with the value of each
weight, times its scale. Activations stay as they are, where a GPU rounds them to 8 bits as well, so answers may differ
from a GPU's; plain decoding and speculation have the same weights. Memory is that of the plain model.

Subclasses of SGLang's configurations, because its layers choose a loader by the name of their method's class
(layers/linear.py, `WEIGHT_LOADER_V2_SUPPORTED`): the methods stay its own, but for what follows the loading.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.quantization.fp8 import Fp8Config
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.quantization.w8a8_int8 import W8A8Int8Config

from ddtree_sglang.cpu_platform.names import QUANTIZATIONS
from ddtree_sglang.exceptions import DDTreeConfigError

_SCALES = ("weight_scale", "weight_scale_inv", "input_scale")


def quantization_config(name: str) -> type:
    """The configuration class of a quantization.

    Raises:
        DDTreeConfigError: there is none here.
    """
    found = {"fp8": CpuFp8Config, "w8a8_int8": CpuInt8Config}.get(name)
    if found is None:
        raise DDTreeConfigError(refusal(name))
    return found


def refusal(name: str) -> str:
    """Why a quantization is not served."""
    return (
        f"a machine without a GPU serves plain weights and those of {' and '.join(QUANTIZATIONS)}, got {name}; use "
        "another checkpoint."
    )


class CpuFp8Config(Fp8Config):  # type: ignore[misc]
    """FP8 weights with a scale per tensor or per block, from a checkpoint that holds them."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """All that the platform serves."""
        return [torch.float32, torch.bfloat16, torch.float16]

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """SGLang's own for a linear layer, which is a plain one after loading; none for the rest."""
        if not self.is_checkpoint_fp8_serialized:
            raise DDTreeConfigError(refusal("plain weights to be made fp8"))
        if not _is_linear(layer):
            return None
        return _plain_after_loading(super().get_quant_method(layer, prefix), self.weight_block_size)


class CpuInt8Config(W8A8Int8Config):  # type: ignore[misc]
    """Weights of 8 bits with a scale per output channel."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """All that the platform serves."""
        return [torch.float32, torch.bfloat16, torch.float16]

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """As `CpuFp8Config`'s."""
        return _plain_after_loading(super().get_quant_method(layer, prefix)) if _is_linear(layer) else None


def _is_linear(layer: torch.nn.Module) -> bool:
    if isinstance(layer, FusedMoE):
        raise DDTreeConfigError(refusal("quantized experts"))
    return isinstance(layer, LinearBase)


def _plain_after_loading(method: Any, block: Sequence[int] | None = None) -> Any:
    if not isinstance(method, UnquantizedLinearMethod):
        method.process_weights_after_loading = partial(make_plain, block=block)
    return method


def make_plain(layer: Any, block: Sequence[int] | None = None) -> None:
    """Replace a loaded linear layer's weight by its values in the model's dtype, and its method by the plain one.

    `block`: rows and columns that have a scale in common, where there is one per block.

    Raises:
        DDTreeConfigError: the checkpoint held no scale for it.
    """
    weight = layer.weight.data.float() * _scales(layer, block)
    for name in _SCALES:
        layer.register_parameter(name, None)
    layer.weight = torch.nn.Parameter(weight.to(layer.params_dtype), requires_grad=False)
    layer.quant_method = UnquantizedLinearMethod()


def _scales(layer: Any, block: Sequence[int] | None) -> torch.Tensor:
    """Of a weight `[out, in]`, something that broadcasts to it."""
    rows, columns = layer.weight.shape
    scale = (layer.weight_scale if block is None else layer.weight_scale_inv).data.float()
    if bool((scale <= 0).any()) or not bool(scale.isfinite().all()):
        raise DDTreeConfigError(
            "a quantized checkpoint must hold a positive scale for each weight, got none for one of "
            f"{rows} x {columns}; export it again."
        )
    if block is not None:
        height, width = block
        return scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
    if scale.dim() == 2:
        return scale
    return scale.repeat_interleave(torch.tensor(layer.logical_widths))[:, None]

"""Quantized targets in the lane: SGLang's own methods, above products by torch in the place of CUDA's.

AWQ's kernel gives weights back, which is exact. The product of 8-bit integers rounds each row of activations as that of
SGLang does (kernels/ops/quantization/int8_kernel.py); sums of such products are exact in float64.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from tests.device_lane.module_patches import Patch, on_import, package_folder, replace, require_signature
from tests.support.quantize import LINEARS, awq_values

_METHODS = "sglang.srt.layers.quantization"
_KERNELS = "sglang.srt.hardware_backend.gpu.quantization.awq_kernels"


def install_quantized() -> None:
    """The products, and the lane's dtype among those that SGLang has kernels for. Before `sgl_kernel` is replaced.

    Raises:
        PinnedNameError: a kernel takes other arguments.
    """
    global _installed
    if _installed:
        return
    _installed = True
    require_signature(package_folder("sgl_kernel") / "gemm.py", "int8_scaled_mm", int8_scaled_mm)
    kernels = package_folder("sglang") / "kernels/ops/quantization"
    require_signature(kernels / "awq_dequantize.py", "awq_dequantize", awq_dequantize)
    require_signature(kernels / "int8_kernel.py", "per_token_quant_int8", per_token_quant_int8)
    on_import(f"{_METHODS}.w8a8_int8", Patch(_multiply_integers))
    on_import(f"{_METHODS}.awq.awq", Patch(_take_float32_for_awq))
    on_import(_KERNELS, Patch(_give_weights_back))


_installed = False


def _multiply_integers(module: ModuleType) -> None:
    replace(module, "per_token_quant_int8", per_token_quant_int8)
    # CUDA's branch alone imports it.
    module.int8_scaled_mm = int8_scaled_mm  # type: ignore[attr-defined]
    replace(module.W8A8Int8Config, "get_supported_act_dtypes", classmethod(lambda _: [torch.float32]))


def _take_float32_for_awq(module: ModuleType) -> None:
    replace(module.AWQConfig, "get_supported_act_dtypes", lambda _: [torch.float32])


def _give_weights_back(module: ModuleType) -> None:
    replace(module, "awq_dequantize", awq_dequantize)


def awq_dequantize(qweight: torch.Tensor, scales: torch.Tensor, qzeros: torch.Tensor) -> torch.Tensor:
    """[in, out] of eight 4-bit columns in each int32 [in, out / 8], zeros and scales per group of inputs."""
    column = torch.arange(8, dtype=torch.int32, device=qweight.device)
    shifts = column // 2 * 4 + column % 2 * 16  # AWQ_SHIFTS, which no graph could copy from the host

    def columns(packed: torch.Tensor) -> torch.Tensor:
        return ((packed.unsqueeze(-1) >> shifts) & 0xF).flatten(1)

    return awq_values(columns(qweight), columns(qzeros), scales)


def per_token_quant_int8(
    x: torch.Tensor, scale_dtype: torch.dtype = torch.float32, cal_sum: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., H] as int8, and their scales [..., 1].

    Raises:
        NotImplementedError: sums are wanted, which only experts do.
    """
    if cal_sum:
        raise NotImplementedError("sums of rows are not needed for linear layers")
    largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-10)
    return (x * (127 / largest)).round().to(torch.int8), (largest / 127).to(scale_dtype)


def int8_scaled_mm(
    mat_a: torch.Tensor,  # [M, K] int8
    mat_b: torch.Tensor,  # [K, N] int8
    scales_a: torch.Tensor,  # [M, 1]
    scales_b: torch.Tensor,  # [N, 1]
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """[M, N]"""
    out = (mat_a.double() @ mat_b.double()) * scales_a.double() * scales_b.double().T
    return (out if bias is None else out + bias).to(out_dtype)


def round_activations(model: Any) -> None:
    """Make a model in memory multiply what a server with 8-bit activations does."""
    for name, module in model.named_modules():
        if name.endswith(LINEARS):
            module.register_forward_pre_hook(_rounded)


def _rounded(_module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    rows, scales = per_token_quant_int8(given[0])
    return rows.float() * scales, *given[1:]

"""Quantized targets in the lane: SGLang's own methods, above products by torch in the place of CUDA's.

AWQ's kernel gives weights back, which is exact, and so does what stands for Marlin's product of GPTQ's weights, which
are left as a checkpoint has them. The products of 8-bit integers and floats round each row of activations, or each
block of one, as those of SGLang do (kernels/ops/quantization); sums of such products are exact in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from tests.device_lane.module_patches import Patch, on_import, package_folder, replace, require_signature
from tests.support.quantize import BLOCK, LINEARS, How, awq_values, gptq_values

_METHODS = "sglang.srt.layers.quantization"
_KERNELS = "sglang.srt.hardware_backend.gpu.quantization"
_LARGEST_FP8 = torch.finfo(torch.float8_e4m3fn).max


def install_quantized() -> None:
    """The products, and the lane's dtype among those that SGLang has kernels for. Before `sgl_kernel` is replaced.

    Raises:
        PinnedNameError: a kernel takes other arguments.
    """
    global _installed
    if _installed:
        return
    _installed = True
    for product in ("int8_scaled_mm", "fp8_scaled_mm"):
        require_signature(package_folder("sgl_kernel") / "gemm.py", product, scaled_mm)
    engine = package_folder("sglang")
    kernels, methods = engine / "kernels/ops/quantization", engine / "srt/layers/quantization"
    require_signature(kernels / "awq_dequantize.py", "awq_dequantize", awq_dequantize)
    require_signature(kernels / "int8_kernel.py", "per_token_quant_int8", per_token_quant_int8)
    require_signature(kernels / "gptq_marlin_repack.py", "gptq_marlin_repack", _as_stored)
    require_signature(methods / "fp8_utils.py", "triton_w8a8_block_fp8_linear", block_fp8_linear)
    require_signature(methods / "marlin_utils.py", "apply_gptq_marlin_linear", gptq_linear)
    on_import(f"{_METHODS}.w8a8_int8", Patch(_multiply_integers))
    on_import(f"{_METHODS}.fp8_utils", Patch(_multiply_floats))
    for module, config in (("awq.awq", "AWQConfig"), ("fp8", "Fp8Config")):
        on_import(f"{_METHODS}.{module}", Patch(partial(_take_float32, config)))
    on_import(f"{_METHODS}.gptq.gptq", Patch(_take_gptq))
    on_import(f"{_METHODS}.gptq.schemes.gptq_marlin", Patch(_verify_no_marlin))
    on_import(f"{_KERNELS}.awq_kernels", Patch(_give_weights_back))
    on_import(f"{_KERNELS}.gptq_kernels", Patch(_leave_weights_as_stored))


_installed = False


def _multiply_integers(module: ModuleType) -> None:
    replace(module, "per_token_quant_int8", per_token_quant_int8)
    # CUDA's branch alone imports it.
    module.int8_scaled_mm = scaled_mm  # type: ignore[attr-defined]
    _take_float32("W8A8Int8Config", module)


def _multiply_floats(module: ModuleType) -> None:
    replace(module, "sglang_per_token_quant_fp8", per_token_quant_fp8, ("x", "dtype", "output_q", "output_s"))
    replace(module, "triton_w8a8_block_fp8_linear", block_fp8_linear)
    # CUDA's branches, which alone import a product.
    replace(module, "_is_cuda", True)
    replace(module, "cutlass_fp8_supported", lambda: True)
    replace(module, "get_w8a8_channelwise_fp8_config", lambda N, K, M: None, ("N", "K", "M"))
    module.fp8_scaled_mm = scaled_mm  # type: ignore[attr-defined]


def _take_float32(config: str, module: ModuleType) -> None:
    replace(getattr(module, config), "get_supported_act_dtypes", classmethod(lambda _: [torch.float32]))


def _take_gptq(module: ModuleType) -> None:
    _take_float32("GPTQMarlinConfig", module)
    replace(module, "check_marlin_supported", lambda quant_type, group_size: True)
    replace(module.GPTQMarlinConfig, "TYPE_MAP", {(4, True): SimpleNamespace(size_bits=4)})


def _verify_no_marlin(module: ModuleType) -> None:
    replace(module, "verify_marlin_supported", lambda quant_type, group_size: None)


def _give_weights_back(module: ModuleType) -> None:
    replace(module, "awq_dequantize", awq_dequantize)


def _leave_weights_as_stored(module: ModuleType) -> None:
    replace(module, "gptq_marlin_repack", _as_stored)
    scales = ("s", "size_k", "size_n", "group_size")
    replace(module, "marlin_permute_scales", lambda s, size_k, size_n, group_size: s, scales)
    replace(module, "marlin_make_workspace", _no_workspace)
    replace(module, "apply_gptq_marlin_linear", gptq_linear)


def _no_workspace(device: torch.device, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(0, dtype=torch.int32, device=device)


def _as_stored(b_q_weight: torch.Tensor, perm: torch.Tensor, size_k: int, size_n: int, num_bits: int) -> torch.Tensor:
    return b_q_weight


def gptq_linear(
    input: torch.Tensor,  # [..., in]
    weight: torch.Tensor,  # [in / 8, out] int32
    weight_scale: torch.Tensor,  # [groups, out]
    weight_zp: torch.Tensor,
    g_idx: torch.Tensor,
    g_idx_sort_indices: torch.Tensor,
    workspace: torch.Tensor,
    wtype: Any,
    output_size_per_partition: int,
    input_size_per_partition: int,
    is_k_full: bool,
    bias: torch.Tensor | None = None,
    use_fp32_reduce: bool = True,
) -> torch.Tensor:
    """`[..., out]`, by 4-bit weights without zeros of their own, whose groups are in the order of inputs."""
    assert g_idx.numel() == 0, "weights in the order of their activations are not read here"
    shifts = 4 * torch.arange(8, dtype=torch.int32, device=weight.device)
    rows = ((weight.unsqueeze(1) >> shifts[:, None]) & 0xF).flatten(0, 1)
    return torch.nn.functional.linear(input, gptq_values(rows, weight_scale.float()).T.to(input.dtype), bias)


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


def per_token_quant_fp8(
    x: torch.Tensor,
    dtype: torch.dtype = torch.float8_e4m3fn,
    *,
    output_q: torch.Tensor | None = None,
    output_s: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., H] as 8-bit floats, and their scales [..., 1].

    Raises:
        NotImplementedError: they are to be written somewhere, which linear layers do not ask.
    """
    if output_q is not None or output_s is not None:
        raise NotImplementedError("outputs of others are not needed for linear layers")
    scales = x.abs().amax(-1, keepdim=True).clamp(min=1e-10) / _LARGEST_FP8
    return (x / scales).clamp(-_LARGEST_FP8, _LARGEST_FP8).to(dtype), scales.float()


def block_fp8_linear(
    input: torch.Tensor,  # [..., K]
    weight: torch.Tensor,  # [N, K]
    block_size: Sequence[int],
    weight_scale: torch.Tensor,  # [blocks of N, blocks of K]
    input_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    act_scale_ue8m0: bool = False,
    weight_bf16: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[..., N]`, by rows that are rounded block by block.

    Raises:
        NotImplementedError: rows come rounded, or scales are powers of two.
    """
    if input_scale is not None or act_scale_ue8m0 or weight_bf16 is not None:
        raise NotImplementedError("only plain rows and scales are multiplied here")
    rows, columns = weight.shape
    wide = weight_scale.repeat_interleave(block_size[0], 0)[:rows]
    values = weight.double() * wide.repeat_interleave(block_size[1], 1)[:, :columns]
    out = _in_blocks(input, block_size[1]).double() @ values.T
    return (out if bias is None else out + bias).to(input.dtype)


def _in_blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """Rows [..., H] with the values that are left of them in 8-bit floats, by blocks of columns."""
    blocks, scales = per_token_quant_fp8(x.unflatten(-1, (-1, size)))
    return (blocks.float() * scales).flatten(-2)


def scaled_mm(
    mat_a: torch.Tensor,  # [M, K] int8 or fp8
    mat_b: torch.Tensor,  # [K, N] of the same
    scales_a: torch.Tensor,  # [M, 1]
    scales_b: torch.Tensor,  # [N, 1]
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """[M, N]"""
    out = (mat_a.double() @ mat_b.double()) * scales_a.double() * scales_b.double().T
    return (out if bias is None else out + bias).to(out_dtype)


def round_activations(model: Any, how: How) -> None:
    """Make a model in memory multiply what a server does whose weights are stored like that."""
    if how not in _ROUNDED:
        return
    for name, module in model.named_modules():
        if name.endswith(LINEARS):
            module.register_forward_pre_hook(lambda _, given: (_ROUNDED[how](given[0]), *given[1:]))


def _in_rows(round_rows: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    rows, scales = round_rows(x)
    return rows.float() * scales


_ROUNDED: dict[How, Callable[[torch.Tensor], torch.Tensor]] = {
    "w8a8_int8": partial(_in_rows, per_token_quant_int8),
    "fp8": partial(_in_rows, per_token_quant_fp8),
    "fp8-blocks": partial(_in_blocks, size=BLOCK),
}

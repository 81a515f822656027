"""Tiny pairs quantized by hand, as checkpoints hold them; the models in memory get the values that are left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from tests.device_lane.pairs import TinyPair

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BLOCK = 16
How = Literal["plain", "fp8", "fp8-blocks", "w8a8_int8", "awq", "gptq"]
Stored = dict[str, torch.Tensor]


def quantize(pair: TinyPair, target: How, drafter: How) -> None:
    """Rewrite the folders of a pair, and give the models in memory the weights that a loader finds there."""
    _rewrite(Path(pair.model), pair.target, target)
    _rewrite(Path(pair.draft), pair.drafter, drafter)


@torch.no_grad()
def _rewrite(folder: Path, model: Any, how: How) -> None:
    if how == "plain":
        return
    make, named = FORMS[how]
    stored: Stored = {}
    parameters = dict(model.named_parameters())
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(tuple(f"{linear}.weight" for linear in LINEARS)):
            stored[name] = tensor
            continue
        tensors, values = make(tensor.float())
        stored |= {f"{name.removesuffix('weight')}{kind}": one.contiguous() for kind, one in tensors.items()}
        parameters[name].copy_(values)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": named}), encoding="utf-8")


def fp8(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    """One scale per tensor: what is stored, and its values."""
    scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    rounded = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": rounded, "weight_scale": scale.view(1)}, rounded.float() * scale


def fp8_blocks(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    """One scale per block; the last ones may be smaller."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    for row, column in torch.cartesian_prod(*map(torch.arange, scales.shape)).tolist():
        block = weight[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
        scales[row, column] = block.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    wide = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    rounded = (weight / wide).to(torch.float8_e4m3fn)
    return {"weight": rounded, "weight_scale_inv": scales}, rounded.float() * wide


def int8(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    """One scale per output channel."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    rounded = (weight / scale).round().to(torch.int8)
    return {"weight": rounded, "weight_scale": scale}, rounded.float() * scale


AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
"""Of each of eight columns in their int32, in bits: even columns come before odd ones."""


def awq(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    """Four bits, with a zero and a scale per output and block of inputs; inputs before outputs."""
    groups = weight.T.unflatten(0, (-1, BLOCK))  # [groups, inputs, outputs]
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales).round().clamp(0, 15).int()
    rounded = (groups / scales[:, None]).round().int() + zeros[:, None]
    columns = rounded.clamp(0, 15).flatten(0, 1)
    stored = {"qweight": _packed(columns), "qzeros": _packed(zeros), "scales": scales}
    return stored, awq_values(columns, zeros, scales.float()).T.contiguous()


def awq_values(columns: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`[in, out]` of 4-bit columns, with zeros and scales `[groups, out]`."""
    size = len(columns) // len(zeros)
    return (columns - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)


def gptq(weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    """Four bits about a zero of 8, with a scale per output; eight inputs of an output in one int32."""
    rows = weight.T  # [in, out]
    scales = (rows.abs().amax(0, keepdim=True) / 7).half()
    rounded = (rows / scales).round().int().clamp(-8, 7) + 8
    nibbles = rounded.unflatten(0, (-1, 8)).long() << (4 * torch.arange(8))[:, None]
    zeros = torch.full((1, weight.shape[0] // 8), 0x77777777, dtype=torch.int32)
    groups = torch.zeros(weight.shape[1], dtype=torch.int32)
    stored = {"qweight": nibbles.sum(1).to(torch.int32), "qzeros": zeros, "scales": scales, "g_idx": groups}
    return stored, gptq_values(rounded, scales.float()).T.contiguous()


def gptq_values(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`[in, out]` of 4-bit rows, with scales `[groups, out]`."""
    return (rows - 8) * scales.repeat_interleave(len(rows) // len(scales), 0)


def _packed(columns: torch.Tensor) -> torch.Tensor:
    """`[in, out]` of four bits each as int32 `[in, out / 8]`."""
    shifted = columns.unflatten(1, (-1, 8)).long() << torch.tensor(AWQ_SHIFTS)
    return shifted.sum(-1).to(torch.int32)


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
FORMS: dict[str, tuple[Callable[[torch.Tensor], tuple[Stored, torch.Tensor]], dict[str, Any]]] = {
    "fp8": (fp8, _FP8),
    "fp8-blocks": (fp8_blocks, {**_FP8, "weight_block_size": [BLOCK, BLOCK]}),
    "w8a8_int8": (int8, {"quant_method": "w8a8_int8"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": BLOCK, "zero_point": True, "version": "gemm"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False, "sym": True}),
}

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
How = Literal["plain", "fp8", "fp8-blocks", "w8a8_int8"]
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


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
FORMS: dict[str, tuple[Callable[[torch.Tensor], tuple[Stored, torch.Tensor]], dict[str, Any]]] = {
    "fp8": (fp8, _FP8),
    "fp8-blocks": (fp8_blocks, {**_FP8, "weight_block_size": [BLOCK, BLOCK]}),
    "w8a8_int8": (int8, {"quant_method": "w8a8_int8"}),
}

"""Folders of drafters as tools leave them: quantized, or without some tensors; and SGLang's model of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter

NUM_LAYERS = 2
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]


def export(folder: Path) -> Path:
    """A small drafter with random weights."""
    torch.manual_seed(0)
    shape = DrafterConfig(32, NUM_LAYERS, 2, 1, 16, 48, 32, 4, (0, 1), 4, 31, "w31", 1e-6, 1e4, 128)
    return export_drafter(DFlashDrafter(shape), folder)


def changed(exported: Path, folder: Path, change: Change, quantization: str | None = None) -> Path:
    """The drafter with other tensors, and a configuration that names a quantization."""
    config = json.loads((exported / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = {"quant_method": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(change(load_file(exported / "model.safetensors")), folder / "model.safetensors")
    return folder


def reconfigured(folder: Path, **fields: Any) -> Path:
    """The same with other fields, those of `dflash_config` beside its own."""
    config = json.loads((folder / "config.json").read_text())
    dflash = {**config["dflash_config"], **fields.pop("dflash_config", {})}
    (folder / "config.json").write_text(json.dumps({**config, **fields, "dflash_config": dflash}))
    return folder


def without(*names: str) -> Change:
    """Leave these tensors out."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def build(folder: Path, device: str = "meta", quantization: Any = None) -> Any:
    """SGLang's drafter of a folder, as its loader builds it, by default on no device."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.models import dflash, dspark, lfm2_dspark, lilicorr

    config = ModelConfig(str(folder), trust_remote_code=False, is_draft_model=True).hf_config
    name = config.architectures[0]
    found = next(module for module in (dflash, lilicorr, dspark, lfm2_dspark) if hasattr(module, name))
    with torch.device(device):
        return getattr(found, name)(config, quantization)

"""LoRA adapters of a tiny pair's target, and the target that each makes of it, for plain torch to answer with.

An adapter changes every product of every layer by about as much as is there, so that its answers are its own from the
first tokens on. The files are those that PEFT writes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.device_lane.pairs import TinyPair

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALPHA_PER_RANK = 2
SCALE = 0.5
"""Standard deviation of what an adapter adds to a product, for inputs of unit variance."""


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, and a copy of the target with it merged in."""

    path: str
    merged: Any  # a Hugging Face causal language model, float32


def make_adapters(pair: TinyPair, folder: Path, ranks: Mapping[str, int]) -> dict[str, Adapter]:
    """One of each name and rank, all different."""
    return {name: _make(pair, folder / name, rank, seed) for seed, (name, rank) in enumerate(ranks.items())}


def flags_of(adapters: Mapping[str, Adapter]) -> tuple[str, ...]:
    """What a server is told to load them by."""
    return ("--lora-paths", *(f"{name}={one.path}" for name, one in adapters.items())) if adapters else ()


def _make(pair: TinyPair, folder: Path, rank: int, seed: int) -> Adapter:
    """Random matrices of this rank for every layer, and their product added to a copy of the target."""
    generator = torch.Generator().manual_seed(seed)
    target = copy.deepcopy(pair.target)
    weights: dict[str, torch.Tensor] = {}
    for module_name, module in target.named_modules():
        if module_name.rpartition(".")[2] not in MODULES:
            continue
        rows, columns = module.weight.shape
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        up = torch.randn(rows, rank, generator=generator) * SCALE / ALPHA_PER_RANK / rank**0.5
        with torch.no_grad():
            module.weight.add_(ALPHA_PER_RANK * up @ down)
        weights[f"base_model.model.{module_name}.lora_A.weight"] = down
        weights[f"base_model.model.{module_name}.lora_B.weight"] = up
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA_PER_RANK * rank, "target_modules": list(MODULES)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Adapter(str(folder), target)

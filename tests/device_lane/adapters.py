"""LoRA adapters of a tiny pair's target, and the target that each makes of it, for plain torch to answer with.

An adapter changes every product of every layer by about as much as is there, so that its answers are its own from the
first tokens on; one of them changes the embedding, too. The files are those that PEFT writes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.demo.random_adapter import EMBEDDING, MODULES, write_adapter
from tests.device_lane.pairs import TinyPair

WITH_EMBEDDING = "second"
"""Name of the adapters that change the embedding as well."""
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


def flags_of(adapters: Mapping[str, Adapter], pinned: bool = False) -> tuple[str, ...]:
    """What a server is told to load them by; `pinned`: they keep their places, as groups of DP attention want it."""
    if not adapters:
        return ()
    told = ({"lora_name": name, "lora_path": one.path, "pinned": pinned} for name, one in adapters.items())
    return ("--lora-paths", *map(json.dumps, told))


def _make(pair: TinyPair, folder: Path, rank: int, seed: int) -> Adapter:
    """Random matrices of this rank for every layer, and their product added to a copy of the target."""
    target = copy.deepcopy(pair.target)
    matrices: dict[str, tuple[torch.Tensor, ...]] = {}
    for name, one in target.named_modules():
        if "shared_expert" in name:
            continue  # SGLang takes an adapter of these for one of all experts, which is refused
        if name.rpartition(".")[2] in MODULES:
            matrices[name] = (one.weight,)
        elif hasattr(one, "in_proj_z"):
            # A gated delta net of Qwen3.5: SGLang keeps, and changes, two matrices as one.
            matrices[f"{name}.in_proj_qkvz"] = (one.in_proj_qkv.weight, one.in_proj_z.weight)
            matrices[f"{name}.out_proj"] = (one.out_proj.weight,)
    if folder.name == WITH_EMBEDDING:
        matrices[f"model.{EMBEDDING}"] = (target.model.embed_tokens.weight,)
    shapes = {name: (sum(map(len, parts)), parts[0].shape[1]) for name, parts in matrices.items()}
    with torch.no_grad():
        for name, change in write_adapter(folder, shapes, rank, seed, SCALE).items():
            parts = matrices[name]
            for part, rows in zip(parts, change.split([len(part) for part in parts]), strict=True):
                part.add_(rows)
    return Adapter(str(folder), target)

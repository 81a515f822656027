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
_IN_PROJ = ("gate_proj", "x_proj")
"""Of a Mamba2, what SGLang stacks to `in_proj`, whose other rows no adapter reaches (lora/lora.py)."""
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
        if ".mlp." in name and hasattr(target.config, "first_k_dense_replace"):
            continue  # likewise, of dense layers before layers of experts
        if name.rpartition(".")[2] in MODULES:
            matrices[name] = (one.weight,)
        elif hasattr(one, "in_proj_z"):
            # A gated delta net of Qwen3.5: SGLang keeps, and changes, two matrices as one.
            matrices[f"{name}.in_proj_qkvz"] = (one.in_proj_qkv.weight, one.in_proj_z.weight)
            matrices[f"{name}.out_proj"] = (one.out_proj.weight,)
        elif hasattr(one, "A_log") and hasattr(one, "in_proj"):
            # A Mamba2: what goes into its gate and into its convolution are two adapters of one matrix's rows.
            inner = one.out_proj.weight.shape[1]
            rows = one.in_proj.weight.data.split([inner, inner, len(one.in_proj.weight) - 2 * inner])
            matrices |= {f"{name}.{part}": (of_part,) for part, of_part in zip(_IN_PROJ, rows, strict=False)}
            matrices[f"{name}.out_proj"] = (one.out_proj.weight,)
    if folder.name == WITH_EMBEDDING:
        matrices[f"model.{EMBEDDING}"] = (target.model.embed_tokens.weight,)
    shapes = {name: (sum(map(len, parts)), parts[0].shape[1]) for name, parts in matrices.items()}
    with torch.no_grad():
        for name, change in write_adapter(folder, shapes, rank, seed, SCALE).items():
            parts = matrices[name]
            for part, rows in zip(parts, change.split([len(part) for part in parts]), strict=True):
                part.add_(rows)
    _name_in_proj(folder / "adapter_config.json")
    return Adapter(str(folder), target)


def _name_in_proj(config: Path) -> None:
    """Say of an adapter with both parts of a Mamba2's `in_proj` that it is of that one, as SGLang names the buffer."""
    said = json.loads(config.read_text(encoding="utf-8"))
    if set(_IN_PROJ) <= set(said["target_modules"]):
        said["target_modules"] = [*(one for one in said["target_modules"] if one not in _IN_PROJ), "in_proj"]
        config.write_text(json.dumps(said), encoding="utf-8")

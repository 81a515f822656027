"""A LoRA adapter of random weights, as PEFT writes one: for tests and measurements, which do not read its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EMBEDDING = "embed_tokens"
ALPHA_PER_RANK = 2


def write_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, int]], rank: int, seed: int, scale: float
) -> dict[str, torch.Tensor]:
    """Write an adapter of these modules to the new FOLDER; returns what it adds to each one's weight, float32.

    `shapes` are a module's name in the target and its weight's `(rows, columns)`; an embedding is a module of its own
    kind, which is looked up. `scale` is the standard deviation of what the adapter adds to a product, for inputs of
    unit variance, or to an embedding.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    added = {}
    for name, (rows, columns) in shapes.items():
        if name.endswith(EMBEDDING):
            down = torch.randn(rank, rows, generator=generator)
            up = torch.randn(columns, rank, generator=generator) * scale / ALPHA_PER_RANK / rank**0.5
            weights[f"base_model.model.{name}.lora_embedding_A"] = down
            weights[f"base_model.model.{name}.lora_embedding_B"] = up
            added[name] = ALPHA_PER_RANK * (up @ down).T
            continue
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        up = torch.randn(rows, rank, generator=generator) * scale / ALPHA_PER_RANK / rank**0.5
        weights[f"base_model.model.{name}.lora_A.weight"] = down
        weights[f"base_model.model.{name}.lora_B.weight"] = up
        added[name] = ALPHA_PER_RANK * up @ down
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA_PER_RANK * rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return added


def shapes_of(model: Path) -> dict[str, tuple[int, int]]:
    """The modules of a model folder that an adapter changes here, and the shapes of their weights."""
    return {name: (rows, columns) for name, rows, columns in _matrices(model) if name.rpartition(".")[2] in MODULES}


def _matrices(model: Path) -> Iterator[tuple[str, int, int]]:
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                shape = file.get_slice(name).get_shape()
                if name.endswith(".weight") and len(shape) == 2:
                    yield name.removesuffix(".weight"), *shape

"""What some published drafters have besides the ones that the training package makes: other rotations, biases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ddtree_sglang.training.model.drafter_model import DFlashDrafter, Rotary

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
BIAS = 0.1
"""Their standard deviation."""


class ScaledRotary(Rotary):
    """A rotation by Hugging Face's frequencies for a kind such as YaRN, and its factor."""

    def __init__(self, head_dim: int, rope: Mapping[str, Any]) -> None:
        super().__init__(head_dim, rope["rope_theta"])
        config = Qwen3Config(
            head_dim=head_dim,
            max_position_embeddings=int(rope["factor"] * rope["original_max_position_embeddings"]),
            rope_parameters=dict(rope),
        )
        self.inv_freq, self.factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As the base class's, times the factor."""
        cos, sin = super().forward(positions)
        return cos * self.factor, sin * self.factor


def rotate_as(drafter: DFlashDrafter, rope: Mapping[str, Any]) -> DFlashDrafter:
    """Give a new drafter a rotation of this kind."""
    if rope["rope_type"] != "default":
        drafter.rotary = ScaledRotary(drafter.config.head_dim, rope)
    return drafter


def state_parts(folder: Path, **fields: Any) -> None:
    """Write fields to an exported drafter's `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


@torch.no_grad()
def add_biases(drafter: DFlashDrafter, folder: Path, seed: int) -> None:
    """Give each projection of an exported drafter's attention a random bias, in the module and in the files."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for index, layer in enumerate(drafter.layers):
        for name in PROJECTIONS:
            weight = getattr(layer.self_attn, name).weight
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.copy_(weight)
            linear.bias.copy_(BIAS * torch.randn(linear.bias.shape, generator=generator))
            setattr(layer.self_attn, name, linear)
            tensors[f"layers.{index}.self_attn.{name}.bias"] = linear.bias.clone()
    _save(folder, tensors)
    state_parts(folder, attention_bias=True)


def rotate_neighbours(folder: Path, head_dim: int) -> None:
    """Store an exported drafter as one that rotates neighbours of a head, 2i and 2i + 1, as LFM2's drafters do.

    The module rotates i and i + d/2. It is the same drafter once rows of queries, of keys and of their norms are in the
    other order.
    """
    order = torch.arange(head_dim).view(2, -1).T.flatten()
    named = load_file(folder / "model.safetensors")
    parts = tuple(f"self_attn.{part}.weight" for part in ("q_proj", "k_proj", "q_norm", "k_norm"))
    turned = {
        name: one.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1).contiguous()
        for name, one in named.items()
        if name.endswith(parts)
    }
    _save(folder, turned)
    state_parts(folder, rope_is_neox_style=False)


def _save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})

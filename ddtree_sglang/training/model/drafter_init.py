"""Start a drafter from the target's own layers instead of from random weights.

A copied target layer turns a residual stream into keys, values and next-token directions from the first step on. `fc`
starts as the identity on the deepest context feature, so the copied projections read the kind of stream that they were
trained on. Two differences remain. Context tokens pass no `input_layernorm`, so the projections take in its weight. The
drafter normalises queries and keys per head: those norms are copied from a target that has them (Qwen3), and otherwise
start at the size that queries and keys have without norms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ddtree_sglang.training.model.drafter_model import DFlashDrafter, DrafterLayer
from ddtree_sglang.training.model.target_check import copy_problems


@torch.no_grad()
def start_from_target(drafter: DFlashDrafter, target: Any, layer_ids: tuple[int, ...]) -> None:
    """Overwrite the drafter's weights, layer i from target layer layer_ids[i].

    Expects features that were scaled to unit root mean square. `target` is a Hugging Face Llama-shaped model.

    Raises:
        ValueError: the number of layers or the hidden size differs, or a target layer has weights that a drafter's
            layer does not have, such as biases.
    """
    if len(layer_ids) != len(drafter.layers):
        raise ValueError(
            f"one target layer per drafter layer is needed, got {list(layer_ids)} for "
            f"{len(drafter.layers)} layers: pass as many ids in --start-layers."
        )
    hidden = drafter.config.hidden_size
    if target.config.hidden_size != hidden:
        raise ValueError(
            f"the target's hidden size must be the drafter's, got {target.config.hidden_size} and {hidden}."
        )
    for index in layer_ids:
        problems = copy_problems(target.model.layers[index])
        if problems:
            raise ValueError(
                f"a drafter's layer starts as a copy of a target's; layer {index} {'; '.join(problems)}: pass "
                "--random-start."
            )
    drafter.fc.weight.normal_(std=0.1 / hidden**0.5)
    drafter.fc.weight[:, -hidden:].add_(torch.eye(hidden))
    drafter.norm.weight.copy_(target.model.norm.weight)
    for layer, index in zip(drafter.layers, layer_ids, strict=True):
        assert isinstance(layer, DrafterLayer)
        _copy_layer(layer, target.model.layers[index])


def _copy_layer(layer: DrafterLayer, source: Any) -> None:
    attention, norm_weight = source.self_attn, source.input_layernorm.weight.float()
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(layer.self_attn, name).weight.copy_(getattr(attention, name).weight.float() * norm_weight)
    layer.self_attn.o_proj.weight.copy_(attention.o_proj.weight)
    for name in ("q", "k"):
        norm, own = getattr(layer.self_attn, f"{name}_norm"), getattr(attention, f"{name}_norm", None)
        if own is None:
            norm.weight.fill_(_typical_output_size(getattr(layer.self_attn, f"{name}_proj")))
        else:
            norm.weight.copy_(own.weight)
    layer.post_attention_layernorm.weight.copy_(source.post_attention_layernorm.weight)
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(layer.mlp, name).weight.copy_(getattr(source.mlp, name).weight)


def _typical_output_size(projection: nn.Linear) -> float:
    """Root mean square of the outputs for inputs with independent entries of unit variance."""
    return float(projection.weight.float().pow(2).sum(dim=1).mean().sqrt())

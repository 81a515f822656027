"""A drafter of which some layers see a window and their block causally, as plain torch: what SGLang serves by
`layer_types` and `sliding_window` of a drafter's config.json (models/dflash.py, `_get_dflash_layer_attention_params`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.drafter_model import BlockAttention, DFlashDrafter, Rope, rotate

SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = 8
"""Tokens that a layer with a sliding window sees, the query's own included: prompts and answers are longer."""


class SlidingAttention(BlockAttention):
    """Each query sees itself and the `window` - 1 positions before it, in its context and in its block."""

    def __init__(self, config: DrafterConfig, window: int) -> None:
        super().__init__(config)
        self.window = window

    def forward(self, x: Tensor, context: Tensor, block_rope: Rope, context_rope: Rope, context_bias: Tensor) -> Tensor:
        """Sizes are those of the base class; an anchor's context is what `context_bias` does not hide."""
        groups = self.heads // self.kv_heads
        q = rotate(self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))), *block_rope)
        block_k, block_v = (part.repeat_interleave(groups, -2) for part in self.keys_values(x, block_rope))
        k, v = (part.repeat_interleave(groups, -2) for part in self.keys_values(context, context_rope))
        anchors = (context_bias[:, 0, 0, :, 0] == 0).sum(-1)  # [C, A]
        places = torch.arange(x.shape[2])
        queries, keys = anchors[..., None] + places, torch.arange(context.shape[1])
        in_context = (keys < anchors[..., None, None]) & (keys > queries[..., None] - self.window)  # [C, A, S, T]
        in_block = (places <= places[:, None]) & (places > places[:, None] - self.window)  # [S, S]
        scores = torch.cat(
            [
                torch.einsum("cashd,cthd->cahst", q, k).masked_fill(~in_context[:, :, None], -torch.inf),
                torch.einsum("cashd,caihd->cahsi", q, block_k).masked_fill(~in_block, -torch.inf),
            ],
            dim=-1,
        )
        weights = (scores * self.head_dim**-0.5).softmax(-1)
        of_context, of_block = weights[..., : context.shape[1]], weights[..., context.shape[1] :]
        out = torch.einsum("cahst,cthd->cashd", of_context, v) + torch.einsum("cahsi,caihd->cashd", of_block, block_v)
        projected: Tensor = self.o_proj(out.flatten(-2))
        return projected


def with_sliding_layers(drafter: DFlashDrafter, kinds: Sequence[str], window: int) -> DFlashDrafter:
    """Let each layer of a new drafter attend by its kind."""
    for layer, kind in zip(drafter.layers, kinds, strict=True):
        if kind == SLIDING:
            layer.self_attn = SlidingAttention(drafter.config, window)
    return drafter


def state_kinds(folder: Path, drafter: DFlashDrafter) -> None:
    """Write the kinds of a drafter's layers to its exported config.json, if any has a window."""
    layers = [layer.self_attn for layer in drafter.layers]
    windows = {layer.window for layer in layers if isinstance(layer, SlidingAttention)}
    if not windows:
        return
    file = folder / "config.json"
    kinds = [SLIDING if isinstance(layer, SlidingAttention) else FULL for layer in layers]
    stated = {"layer_types": kinds, "sliding_window": windows.pop(), "use_sliding_window": True}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **stated}), encoding="utf-8")

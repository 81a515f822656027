"""What a drafter proposes for the blocks of one conversation: its states, and its best tokens at each position."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddtree_sglang.training.model.drafter_model import DFlashDrafter

BLOCKS_AT_ONCE = 64
"""Blocks whose logits over the whole vocabulary are in memory at once."""


class Drafts(NamedTuple):
    """A blocks of D drafted positions, the best K tokens of each, on the CPU."""

    states: Tensor  # [A, D, H] float32
    topk_ids: Tensor  # [A, D, K] int64, best first
    topk_logprobs: Tensor  # [A, D, K] float32, over the whole vocabulary


def draft_blocks(
    model: DFlashDrafter,
    embedding: Tensor,  # [V, H] float32
    head: Tensor,  # [V, H]; its dtype is that of the products
    features: Tensor,  # [1, T, F*H] float32, scaled
    anchors: Tensor,  # [1, A] int64
    anchor_tokens: Tensor,  # [1, A] int64
    top_k: int,
) -> Drafts:
    """Run the drafter at every anchor; K is `top_k`, or the whole vocabulary where that is smaller."""
    device = embedding.device
    embeds = embedding[model.block_token_ids(anchor_tokens.to(device))].float()
    with torch.autocast(device.type, torch.bfloat16, enabled=head.dtype == torch.bfloat16):
        states = model(embeds, features.to(device), anchors.to(device))[0, :, 1:]
    ids, logprobs = [], []
    for part in states.split(BLOCKS_AT_ONCE):
        logits = (part.to(head.dtype) @ head.T).float()
        top = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        ids.append(top.indices.cpu())
        logprobs.append((top.values - logits.logsumexp(-1, keepdim=True)).cpu())
    return Drafts(states.cpu(), torch.cat(ids), torch.cat(logprobs))

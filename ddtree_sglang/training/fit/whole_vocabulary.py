"""The training loss over the whole vocabulary, exact, with its gradient in closed form.

The gradient of a cross-entropy with respect to the logits is the drafter's distribution less the wanted one. Rows are
independent, so a part of them is computed at a time, and no logits outlive their part: the memory is that of one part.
Letters: N rows, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LossGradient(NamedTuple):
    """A loss, its gradient, and which labels were the drafter's best token."""

    loss: Tensor  # scalar
    gradient: Tensor  # [N, H] float32, with respect to the states
    right: Tensor  # [N] bool


@torch.no_grad()
def whole_vocabulary_loss(
    states: Tensor,  # [N, H] of the drafter
    head: Tensor,  # [V, H] of the target; its dtype is that of the products
    labels: Tensor,  # [N] int64
    target_states: Tensor,  # [N, H] of the target, after the token before each label
    weights: Tensor,  # [N] float32; their sum is 1 for a mean
    *,
    soft_share: float,
    rows_at_once: int,
) -> LossGradient:
    """Weighted sum over rows of (1 - soft_share) * hard + soft_share * soft cross-entropy.

    `soft_share` 0 trains on the text alone, 1 on the target's distribution alone.
    """
    loss = torch.zeros((), device=states.device)
    gradient = torch.empty(states.shape, dtype=torch.float32, device=states.device)
    right = torch.empty(len(states), dtype=torch.bool, device=states.device)
    for first in range(0, len(states), rows_at_once):
        part = slice(first, first + rows_at_once)
        label, weight = labels[part, None], weights[part]
        logits = F.linear(states[part].to(head.dtype), head).float()
        right[part] = logits.argmax(-1) == label[:, 0]
        logprobs = logits.log_softmax(-1)
        loss -= (1 - soft_share) * (weight * logprobs.gather(1, label)[:, 0]).sum()
        wanted = torch.zeros_like(logprobs)
        if soft_share > 0:
            wanted = F.linear(target_states[part].to(head.dtype), head).float().softmax(-1).mul_(soft_share)
            loss -= (weight * (wanted * logprobs).sum(-1)).sum()
        wanted.scatter_add_(1, label, torch.full_like(label, 1 - soft_share, dtype=torch.float32))
        surplus = logprobs.exp_().sub_(wanted)
        gradient[part] = (surplus.to(head.dtype) @ head).float() * weight[:, None]
    return LossGradient(loss, gradient, right)

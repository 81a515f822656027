"""The training loss: match the target's next-token distributions, on a sampled part of the vocabulary.

The LM head (vocabulary x hidden) costs several times as much as a small drafter's layers. A step therefore scores every
label and every target candidate of its batch, and a uniform sample of the other tokens. The logits of that sample are
raised by log(others / sample), which keeps the partition function unbiased (sampled softmax).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddtree_sglang.training.fit.anchor_batches import AnchorBatch


@dataclass(frozen=True)
class Candidates:
    """Vocabulary rows that a step scores."""

    ids: Tensor  # [C] int64
    log_weight: Tensor  # [C] float32, 0 for those that are always there
    column: Tensor  # [V] int64, column of a token id, -1 for those that are not scored

    def to(self, device: torch.device) -> Candidates:
        """The candidates with all their tensors on a device."""
        return Candidates(self.ids.to(device), self.log_weight.to(device), self.column.to(device))


@dataclass(frozen=True)
class StepLoss:
    """Loss of one step and what to show of it."""

    loss: Tensor  # scalar, with gradient
    correct: Tensor  # [D] float32, labels that were the best candidate: at least as many as over the whole vocabulary
    counted: Tensor  # [D] float32, labels that exist


def choose_candidates(batch: AnchorBatch, vocab_size: int, num_sampled: int, generator: torch.Generator) -> Candidates:
    """Labels and target candidates of the batch, and `num_sampled` of the others (all if fewer remain)."""
    needed = torch.zeros(vocab_size, dtype=torch.bool)
    needed[batch.labels.reshape(-1)] = True
    needed[batch.teacher_ids.reshape(-1)] = True
    rest = (~needed).nonzero()[:, 0]
    kept = needed.nonzero()[:, 0]
    picked = rest[torch.randperm(len(rest), generator=generator)[:num_sampled]]
    ids = torch.cat([kept, picked])
    log_weight = torch.zeros(len(ids))
    if len(picked):
        log_weight[len(kept) :] = torch.tensor(len(rest) / len(picked)).log()
    column = torch.full((vocab_size,), -1, dtype=torch.int64)
    column[ids] = torch.arange(len(ids))
    return Candidates(ids, log_weight, column)


def distillation_loss(
    hidden: Tensor,
    embedding: Tensor,
    batch: AnchorBatch,
    candidates: Candidates,
    *,
    depth_weights: Tensor,
    soft_share: float,
    confidence_floor: float | None = None,
) -> StepLoss:
    """Weighted mean over draft positions of (1 - soft_share) * hard + soft_share * soft cross-entropy.

    Args:
        hidden: [C, A, S, H] drafter output; slot 0 (the bonus token) is not scored.
        embedding: [V, H] the target's LM head, frozen.
        depth_weights: [D] float32 weight of each draft position.
        soft_share: 0 trains on the text alone, 1 on the target's distribution alone. The target's mass
            outside its stored candidates is matched as one bucket.
        confidence_floor: also weight a position by the product, over the labels before it, of
            floor + (1 - floor) * the drafter's probability of the label (D-PACE's prefix weights, as in SpecForge).
            A position after a draft that is likely to be refused then weighs less. None for no such weight.
    """
    scores = (hidden[:, :, 1:].to(embedding.dtype) @ embedding[candidates.ids].T).float()  # [C, A, D, candidates]
    logits = scores + candidates.log_weight
    log_partition = logits.logsumexp(-1, keepdim=True)
    label_column = candidates.column[batch.labels][..., None]
    hard = (log_partition - logits.gather(-1, label_column))[..., 0]
    loss = hard
    if soft_share > 0:
        teacher = batch.teacher_logprobs.exp()
        logq = logits.gather(-1, candidates.column[batch.teacher_ids]) - log_partition
        tail = (1 - teacher.sum(-1)).clamp_min(0)
        tail_logq = torch.log1p(-logq.exp().sum(-1).clamp_max(1 - 1e-5))
        soft = -(teacher * logq).sum(-1) - tail * tail_logq
        loss = (1 - soft_share) * hard + soft_share * soft
    weights = batch.valid * depth_weights
    if confidence_floor is not None:
        weights = weights * _chance_to_be_reached(hard.detach(), batch.valid, confidence_floor)
    with torch.no_grad():
        # A sampled token stands for many in the partition function, but for itself alone where the best one is asked.
        right = (scores.argmax(-1, keepdim=True) == label_column)[..., 0] & batch.valid
    return StepLoss(
        (loss * weights).sum() / weights.sum().clamp_min(1e-9),
        right.float().sum((0, 1)),
        batch.valid.float().sum((0, 1)),
    )


def _chance_to_be_reached(hard: Tensor, valid: Tensor, floor: float) -> Tensor:
    """[C, A, D]: product over the positions before of `floor + (1 - floor) * probability of the label`."""
    kept = floor + (1 - floor) * torch.exp(-hard)
    kept = torch.where(valid, kept, torch.ones_like(kept))
    return torch.cat((torch.ones_like(kept[..., :1]), kept[..., :-1]), dim=-1).cumprod(-1)

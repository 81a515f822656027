"""Training batches: the blocks of conversations that a step sees, with the target's distributions for them.

A batch follows from the seed and the step alone, so a resumed run sees exactly the batches of an uninterrupted run, and
a checkpoint holds no state of a sampler.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.features.cache import FeatureCache


@dataclass(frozen=True)
class AnchorBatch:
    """C conversations, A anchors each, D draft positions, K target candidates per position."""

    features: Tensor  # [C, T, F*H] bfloat16, zero padded
    anchors: Tensor  # [C, A] int64
    anchor_tokens: Tensor  # [C, A] int64
    labels: Tensor  # [C, A, D] int64, 0 where there is none
    valid: Tensor  # [C, A, D] bool: the label exists
    teacher_ids: Tensor  # [C, A, D, K] int64
    teacher_logprobs: Tensor  # [C, A, D, K] float32, over the whole vocabulary

    def to(self, device: torch.device) -> AnchorBatch:
        """The batch with all its tensors on a device."""
        return AnchorBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


def batch_at(
    step: int,
    seed: int,
    conversations: Conversations,
    cache: FeatureCache,
    train: list[int],
    *,
    rows: int,
    anchors_per_row: int,
    num_drafts: int,
    uncertainty: float = 0.0,
) -> AnchorBatch:
    """The batch of one step: conversations by epoch-wise permutation, anchors drawn in each answer.

    `uncertainty` in 0 to 1 is the share of an anchor's weight that comes from how unsure the target was of the next
    token (1 minus its largest probability); 0 draws uniformly.
    """
    per_epoch = max(1, len(train) // rows)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    chosen = [train[i] for i in order[position * rows : (position + 1) * rows].tolist()]
    generator = torch.Generator().manual_seed((seed + 1) * 7_000_003 + step)
    anchors = [_sample_anchors(conversations, cache, i, anchors_per_row, uncertainty, generator) for i in chosen]
    return gather_batch(conversations, cache, chosen, anchors, num_drafts)


def _sample_anchors(
    conversations: Conversations,
    cache: FeatureCache,
    index: int,
    count: int,
    uncertainty: float,
    generator: torch.Generator,
) -> Tensor:
    """Anchors [count] int64: answer tokens but the last, all different where the answer has enough of them."""
    start, length = int(conversations.answer_start[index]), len(conversations.token_ids(index))
    candidates = max(1, length - 1 - start)
    if uncertainty == 0:
        picks = torch.randperm(candidates, generator=generator)
    else:
        first = int(conversations.offsets[index]) + start
        unsure = 1 - cache.next_token_logprobs(first, first + candidates)[:, 0].exp()
        weights = (1 - uncertainty) / candidates + uncertainty * (unsure + 1e-3) / (unsure + 1e-3).sum()
        picks = torch.multinomial(weights, candidates, generator=generator)  # all, in an order that favours the unsure
    picks = picks.repeat(-(-count // candidates))[:count]
    return (start + picks).clamp_max(length - 1)


def gather_batch(
    conversations: Conversations,
    cache: FeatureCache,
    indices: list[int],
    anchors: list[Tensor],
    num_drafts: int,
) -> AnchorBatch:
    """The batch of these conversations and their anchors; every conversation must have equally many anchors."""
    longest = max(len(conversations.token_ids(i)) for i in indices)
    first = cache.features(0, 1)
    features = torch.zeros(len(indices), longest, first.shape[1], dtype=first.dtype)
    tokens, labels, valid, ids, logprobs = [], [], [], [], []
    for row, (index, row_anchors) in enumerate(zip(indices, anchors, strict=True)):
        start, stop = int(conversations.offsets[index]), int(conversations.offsets[index + 1])
        length, token_ids = stop - start, conversations.token_ids(index)
        features[row, :length] = cache.features(start, stop)
        position = row_anchors[:, None] + torch.arange(1, num_drafts + 1)  # [A, D]
        exists = position < length
        position = position.clamp_max(length - 1)
        tokens.append(token_ids[row_anchors])
        labels.append(torch.where(exists, token_ids[position], 0))
        valid.append(exists)
        # The distribution of the token at position p is what the target says after reading p - 1.
        ids.append(cache.next_token_ids(start, stop)[position - 1])
        logprobs.append(cache.next_token_logprobs(start, stop)[position - 1])
    return AnchorBatch(
        features,
        torch.stack(anchors),
        torch.stack(tokens),
        torch.stack(labels),
        torch.stack(valid),
        torch.stack(ids),
        torch.stack(logprobs),
    )

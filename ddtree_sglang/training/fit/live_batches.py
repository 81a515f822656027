"""Training batches whose features the target computes anew in each step, so that none are stored.

Conversations lie on the device. A batch holds ones of similar length, so that little of it is padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.model.target_forward import TargetForward

BATCHES_SORTED_TOGETHER = 32


@dataclass(frozen=True)
class LiveBatch:
    """C conversations, A anchors each, D draft positions."""

    features: Tensor  # [C, T, F*H], as the target gives them
    anchors: Tensor  # [C, A] int64
    anchor_tokens: Tensor  # [C, A] int64
    labels: Tensor  # [C, A, D] int64
    valid: Tensor  # [C, A, D] bool: the anchor and the label exist
    target_states: Tensor  # [C, A, D, H] after the token before each label


class TextOnDevice:
    """All conversations, where the target is."""

    def __init__(self, conversations: Conversations, device: torch.device) -> None:
        self._tokens = conversations.tokens.to(device)
        self._first = conversations.offsets[:-1].to(device)
        self._lengths = conversations.offsets.diff().to(device)
        self._starts = conversations.answer_start.to(device)
        self.lengths_cpu = conversations.offsets.diff().numpy()

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [C, T] int64, 0 behind the end, lengths [C] and answer starts [C]."""
        chosen = torch.from_numpy(indices).to(self._tokens.device)
        lengths = self._lengths[chosen, None]
        place = torch.arange(int(self.lengths_cpu[indices].max()), device=self._tokens.device)
        ids = self._tokens[self._first[chosen, None] + torch.minimum(place, lengths - 1)]
        return ids.masked_fill(place >= lengths, 0), lengths[:, 0], self._starts[chosen]


def similar_lengths(lengths: np.ndarray, rows: int, numbers: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of places in `lengths`, without end: each place once in an epoch but for a last part of few."""
    while True:
        order, batches = numbers.permutation(len(lengths)), []
        for first in range(0, len(order), rows * BATCHES_SORTED_TOGETHER):
            pool = order[first : first + rows * BATCHES_SORTED_TOGETHER]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[at : at + rows] for at in range(0, max(1, len(pool) - rows + 1), rows)]
        for at in numbers.permutation(len(batches)):
            yield batches[at]


def live_batch(
    text: TextOnDevice,
    target: TargetForward,
    indices: np.ndarray,  # [C]
    layers: tuple[int, ...],
    anchors_per_row: int,
    num_drafts: int,
    generator: torch.Generator,
) -> LiveBatch:
    """The batch of these conversations: anchors are answer tokens but the last, drawn without one twice."""
    ids, lengths, starts = text.rows(indices)
    seen = target.see(ids, layers)
    place = torch.arange(ids.shape[1], device=ids.device)
    may_be = (place >= starts[:, None]) & (place < lengths[:, None] - 1)
    keys = torch.rand(ids.shape, generator=generator, device=ids.device).masked_fill(~may_be, -1.0)
    drawn, anchors = keys.topk(min(anchors_per_row, ids.shape[1]), dim=1)
    exists = drawn >= 0
    anchors = torch.where(exists, anchors, 1)
    position = anchors[..., None] + torch.arange(1, num_drafts + 1, device=ids.device)
    valid = exists[..., None] & (position < lengths[:, None, None])
    position = position.clamp_max(ids.shape[1] - 1)
    row = torch.arange(len(ids), device=ids.device)[:, None, None]
    return LiveBatch(
        seen.features,
        anchors,
        ids.gather(1, anchors),
        ids[row, position],
        valid,
        seen.states[row, position - 1],
    )

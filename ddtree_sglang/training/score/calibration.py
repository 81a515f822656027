"""Compare a drafter's probabilities, by which a tree is ranked, with how often the target chooses the candidates.

Reliability follows Guo et al. (arXiv 1706.04599): candidates are sorted into bins by probability; in each bin the mean
probability is compared with the share of candidates that the target chose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_BINS = 20


@dataclass(frozen=True)
class Reliability:
    """Reliability at one draft depth; every value lies in 0 to 1."""

    confidence: float  # mean probability of the first candidate
    accuracy: float  # share of positions where it was right
    calibration_error: float  # mean over candidates of |probability - frequency| of their bin


class ReliabilityCounter:
    """Sums over any number of blocks; D depths, the best K candidates of each."""

    def __init__(self, num_drafts: int) -> None:
        self._count = torch.zeros(num_drafts, NUM_BINS, dtype=torch.float64)
        self._probability = torch.zeros_like(self._count)
        self._right = torch.zeros_like(self._count)
        self._first = torch.zeros(num_drafts, 3, dtype=torch.float64)

    def add(self, top_ids: Tensor, top_logprobs: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Count blocks: ids and full-vocabulary log-probabilities [A, D, K], labels and valid [A, D]."""
        probability = top_logprobs.double().exp()
        right = (top_ids == labels.unsqueeze(-1)).double()
        weight = valid.double().unsqueeze(-1).expand_as(right)
        bins = (probability * NUM_BINS).long().clamp_max(NUM_BINS - 1)
        for total, value in (
            (self._count, weight),
            (self._probability, weight * probability),
            (self._right, weight * right),
        ):
            flat = torch.zeros(value.shape[0], *total.shape, dtype=torch.float64)
            total += flat.scatter_add_(2, bins, value).sum(0)
        seen = valid.double()
        first = torch.stack((seen, seen * probability[..., 0], seen * right[..., 0]), dim=-1)
        self._first += first.sum(0)

    def merged(self, other: ReliabilityCounter) -> ReliabilityCounter:
        """A counter with the sums of this one and another."""
        result = ReliabilityCounter(len(self._first))
        result._count = self._count + other._count
        result._probability = self._probability + other._probability
        result._right = self._right + other._right
        result._first = self._first + other._first
        return result

    def by_depth(self) -> tuple[Reliability, ...]:
        """One entry per depth; a depth that was never seen is all zero."""
        positions = self._first[:, 0].clamp_min(1)
        gap = (self._probability - self._right).abs().sum(1) / self._count.sum(1).clamp_min(1)
        columns = zip(
            (self._first[:, 1] / positions).tolist(),
            (self._first[:, 2] / positions).tolist(),
            gap.tolist(),
            strict=True,
        )
        return tuple(Reliability(*column) for column in columns)

"""What a drafter's head that scores pairs of candidates is asked, and what it is told of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ddtree_sglang.core.candidates import DraftCandidates


@dataclass(frozen=True, slots=True)
class BlockRoots:
    """What a batch's blocks begin with, and whose they are."""

    token_ids: torch.Tensor  # [B] integers
    rows: torch.Tensor  # [B] integers, the requests' rows in SGLang's request table

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.token_ids)


class PairwiseScorer(Protocol):
    """A drafter's head that scores a candidate by its depth and its parent."""

    top_k: int
    """K, the candidates that the head scores per depth."""

    def scores(
        self,
        states: torch.Tensor,  # [B, D, H] of the drafter, one per drafted position
        roots: BlockRoots,
        ranked: DraftCandidates,  # [B, D, K]
    ) -> torch.Tensor:
        """`[B, D, K, K]` of any float dtype, parent's rank, then the candidate's; at depth 1 row 0 is the root's.

        Normalised over the candidates they are the head's law. Nothing is read back to the host.
        """

    def prepare(self, num_rows: int) -> None:
        """Make what is kept by request; SGLang's request table has `num_rows` rows."""

    def keep(self, rows: torch.Tensor, anchors: torch.Tensor) -> None:
        """Take the features `[B, H]` of each request's last committed token, for the requests in `rows [B]`."""

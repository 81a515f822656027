"""What a reference asks of a drafter's head; `pair_heads` has some."""

from __future__ import annotations

from typing import Protocol

import torch


class PairHead(Protocol):
    """A drafter's head that scores pairs of adjacent candidates, in plain torch."""

    top_k: int
    """Candidates per depth that it scores."""

    def scores(
        self,
        states: torch.Tensor,
        root_ids: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_logprobs: torch.Tensor,
        anchors: torch.Tensor,
    ) -> torch.Tensor:
        """`[B, D, K, K]`, the parent's rank and its own, of states `[B, D, H]`, roots `[B]`, candidates `[B, D, K]`.

        `anchors` `[B, H]` are the drafter's projected features of the last token before the root.
        """

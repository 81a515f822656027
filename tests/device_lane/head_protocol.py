"""What a reference asks of a drafter's head; `pair_heads` has some."""

from __future__ import annotations

from typing import Literal, Protocol

import torch

Read = Literal["pairs", "states", "anchors"]
"""pairs: of candidates and their parents; states: of positions; anchors: of the last token before the root."""


class PairHead(Protocol):
    """A drafter's head that scores pairs of adjacent candidates, in plain torch."""

    top_k: int
    """Candidates per depth that it scores."""
    reads: tuple[Read, ...]
    """What its scores hang on."""
    from_anchor: bool
    """Whether each position of a block proposes the next token, and not the masks their own."""

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


class WrongHead:
    """A head as it would be if the product gave it something else than what it is to read.

    `instead` of pairs it scores candidates alone, of states those of the position before, of anchors none.
    """

    def __init__(self, head: PairHead, instead: Read) -> None:
        self.head, self.instead = head, instead
        self.top_k, self.reads, self.from_anchor = head.top_k, head.reads, head.from_anchor

    def scores(
        self,
        states: torch.Tensor,
        root_ids: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_logprobs: torch.Tensor,
        anchors: torch.Tensor,
    ) -> torch.Tensor:
        """As `PairHead` has them."""
        if self.instead == "pairs":
            return topk_logprobs.unsqueeze(2).repeat(1, 1, topk_logprobs.shape[2], 1)
        states = states.roll(1, dims=1) if self.instead == "states" else states
        anchors = torch.zeros_like(anchors) if self.instead == "anchors" else anchors
        return self.head.scores(states, root_ids, topk_ids, topk_logprobs, anchors)

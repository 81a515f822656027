"""A head that scores pairs of adjacent candidates: DFlash2's selector, with the names that SGLang 0.5.23 loads.

The score of candidate c at depth d after token p is the drafter's own log-probability of c, plus the product of row p
of one table, weighed by a projection of the drafter's state at d, and row c of another (SGLang's `CandidateSelector`,
srt/models/dflash.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CandidateSelector(nn.Module):
    """The tables of the head, one row per token of the vocabulary."""

    def __init__(self, hidden_size: int, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.predecessor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.successor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.hidden_projection = nn.Linear(hidden_size, rank, bias=False)

    def scores(self, states: Tensor, root_ids: Tensor, topk_ids: Tensor, topk_logprobs: Tensor) -> Tensor:
        """Scores [A, D, K, K] float32 of A blocks: depth, the parent's rank, the candidate's.

        Args:
            states: [A, D, H] of the drafter, one per drafted position.
            root_ids: [A] int64, the parents at depth 1, where all K rows are alike.
            topk_ids: [A, D, K] int64.
            topk_logprobs: [A, D, K] float32.
        """
        first = root_ids[:, None, None].expand(-1, 1, topk_ids.shape[2])
        parent_ids = torch.cat((first, topk_ids[:, :-1]), dim=1)
        parents = self.predecessor_codebook[parent_ids] * self.hidden_projection(states).unsqueeze(2)
        return topk_logprobs.unsqueeze(2) + parents @ self.successor_codebook[topk_ids].transpose(2, 3)

"""Ranking logits: the K most probable tokens of a distribution, in an order that leaves nothing open.

The order is total, so that every rank of a tensor-parallel group, every way to cut the vocabulary and every kernel
agree: logit descending, then token id ascending. NaN ranks as -inf; one NaN makes all log-probabilities of its row NaN,
which a tree builder reads as impossible.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DraftCandidates:
    """What the tree builder needs of a draft block."""

    topk_ids: torch.Tensor  # [B, D, K] int64, best first, ids of the whole vocabulary
    topk_logprobs: torch.Tensor  # [B, D, K] float32, log-softmax over the whole vocabulary, descending along K
    # [B, D, K, K] float32, of a drafter that scores pairs: parent's rank, then the candidate's; core.tree_builder.
    # Under a grammar on a host there are more candidates than these K.
    pair_logprobs: torch.Tensor | None = None

    def scored(self) -> DraftCandidates:
        """Of a drafter that scores pairs, the candidates that it scores; else all."""
        if self.pair_logprobs is None:
            return self
        k = self.pair_logprobs.shape[-1]
        ids, logprobs = (part[..., :k].contiguous() for part in (self.topk_ids, self.topk_logprobs))
        return DraftCandidates(ids, logprobs, self.pair_logprobs)

    def first(self, batch_size: int) -> DraftCandidates:
        """Views of the first requests."""
        pairs = None if self.pair_logprobs is None else self.pair_logprobs[:batch_size]
        return DraftCandidates(self.topk_ids[:batch_size], self.topk_logprobs[:batch_size], pairs)


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a checkpoint does to its logits before the softmax; it never changes the order of two logits.

    Attributes:
        scale: multiplies the logits, above 0; 1.0 for none.
        softcap: logits are `softcap * tanh(logits / softcap)`, above 0; None for none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of any float dtype -> float32 of the same shape."""
        values = logits.float()
        if self.scale != 1.0:
            values = values * self.scale
        if self.softcap is not None:
            values = torch.tanh(values / self.softcap) * self.softcap
        return values


def pair_conditionals(
    scores: torch.Tensor,  # [B, D, K, K] of any float dtype: parent's rank, then the candidate's
    topk_logprobs: torch.Tensor,  # [B, D, K] float32
) -> torch.Tensor:
    """A drafter's scores of pairs as log-probabilities `[B, D, K, K]` float32, for a tree builder.

    Its head chooses among the K candidates, so scores are normalised over those. That the next token is one of them has
    the probability that the factorised law gives all K, whatever the parent: without that factor a position where the
    drafter knows little would count as one where it is certain. Scores that are `topk_logprobs` after every parent
    give `topk_logprobs`.
    """
    covered = torch.logsumexp(topk_logprobs, dim=-1)
    return torch.log_softmax(scores.float(), dim=-1) + covered[..., None, None]


def rank_logits(
    logits: torch.Tensor,  # [rows, V] of any float dtype
    top_k: int,  # K
    transform: LogitTransform,
) -> DraftCandidates:
    """`[rows, K]` ids and log-probabilities in the module's order; where V < K the rest has id 0 and -inf.

    The oracle of the kernels; it sorts the whole vocabulary.
    """
    ranked = torch.where(logits.isnan(), -torch.inf, logits)
    # Sorted as they come: two logits that a cap makes equal keep their order.
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[:, :top_k]
    values = transform(logits)
    logprobs = transform(ranked).gather(-1, order) - torch.logsumexp(values, dim=-1, keepdim=True)
    missing = (0, top_k - order.shape[-1])
    return DraftCandidates(
        torch.nn.functional.pad(order, missing), torch.nn.functional.pad(logprobs, missing, value=-torch.inf)
    )

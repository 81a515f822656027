"""A selector as it is trained, from what the target says of pairs without a context; its tables, and its loss.

A table of V rows has far more parameters than a small run has labels: trained from nothing it learns the pairs of its
own text by heart (benchmarks/LOG.md). What may follow a token is known, though: the target says it after that token
alone. Its logits there, less what it says after any token, are a V x V matrix of rank H; the best approximation of
rank r, by the frequencies of both tokens, is where the tables begin. How much of it a position wants is learned: little
where the drafter's state knows its parent, as at depth 1, and more below. A gate of r x H parameters says so.

Parents are the text's own tokens (teacher forcing). Nothing else is needed: a path's probability under the drafter's
law is a product of conditionals, each of which is that of a token given the one before it *if the text goes that way*,
and texts that do are where it is learned. What the target would say after a token that it did not choose is asked by no
walk: a walk that leaves the text's path ends.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddtree_sglang.training.fit.drafted_blocks import DraftedBlocks
from ddtree_sglang.training.model.candidate_selector import CandidateSelector

RARE = 0.02
"""Weight of a token that the blocks do not hold, where one occurrence weighs 1."""


class SelectorLoss(NamedTuple):
    """Of one batch of blocks."""

    loss: Tensor  # scalar, with gradient
    right: Tensor  # [D] labels that were the best candidate under the head
    right_without: Tensor  # [D] and without it
    counted: Tensor  # [D] labels among the candidates


class SelectorHead(nn.Module):
    """Projections of the target's rows per token to both tables, and of the drafter's state to weights of a product."""

    def __init__(self, token_states: Tensor, head: Tensor, blocks: DraftedBlocks, rank: int, strength: float) -> None:
        """The tables begin as the target's pairs, weighed alike by `strength` whatever the state.

        Args:
            token_states: [V, H] float32 the target's last state after each token alone.
            head: [V, H] float32 its LM head.
            blocks: whose tokens say how often each occurs.
            rank: r, at most H.
        """
        super().__init__()
        parents = torch.cat((blocks.parent_ids().flatten(), blocks.topk_ids[..., 0].flatten()))
        parent_weights = _weights(parents, len(head))
        candidate_weights = _weights(blocks.topk_ids.flatten(), len(head))
        self.token_states = token_states - _mean(token_states, parent_weights)
        self.head = head - _mean(head, candidate_weights)
        hidden_size = head.shape[1]
        self.predecessor = nn.Linear(hidden_size, rank, bias=False)
        self.successor = nn.Linear(hidden_size, rank, bias=False)
        self.hidden_projection = nn.Linear(hidden_size, rank, bias=False)
        left, right = _low_rank(self.token_states, parent_weights, self.head, candidate_weights, rank)
        mean = blocks.states.float().flatten(0, 1).mean(0)
        with torch.no_grad():
            self.predecessor.weight.copy_(left.T)
            self.successor.weight.copy_(right.T)
            self.hidden_projection.weight.copy_((strength * mean / mean.square().sum()).expand(rank, -1))

    def forward(self, states: Tensor, parent_ids: Tensor, topk_ids: Tensor) -> Tensor:
        """The products [n, D, K] of a given parent [n, D] and each candidate [n, D, K]; states [n, D, H] float32."""
        weighed = self.predecessor(self.token_states[parent_ids]) * self.hidden_projection(states)
        ids, places = topk_ids.unique(return_inverse=True)
        rows = functional.embedding(places, self.successor(self.head[ids]))
        return (rows @ weighed.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def tables(self) -> CandidateSelector:
        """The head as it is served."""
        vocab_size, hidden_size = self.head.shape
        selector = CandidateSelector(hidden_size, vocab_size, self.predecessor.out_features)
        selector.predecessor_codebook.copy_(self.predecessor(self.token_states))
        selector.successor_codebook.copy_(self.successor(self.head))
        selector.hidden_projection.weight.copy_(self.hidden_projection.weight)
        return selector


def selector_loss(head: SelectorHead, blocks: DraftedBlocks, depth_weights: Tensor) -> SelectorLoss:
    """Weighted mean cross-entropy of the text's token among the K candidates, where it is one of them.

    Args:
        depth_weights: [D] float32.
    """
    topk_ids = blocks.topk_ids.long()
    products = head(blocks.states.float(), blocks.parent_ids(), topk_ids)
    hits = topk_ids == blocks.labels.unsqueeze(-1)
    ranks, known = hits.int().argmax(-1), hits.any(-1)
    scores = blocks.topk_logprobs + products
    losses = functional.cross_entropy(scores.flatten(0, 1), ranks.flatten(), reduction="none").view(ranks.shape)
    weights = known * depth_weights
    with torch.no_grad():
        right = ((scores.argmax(-1) == ranks) & known).float().sum(0)
        right_without = ((ranks == 0) & known).float().sum(0)
    loss = (losses * weights).sum() / weights.sum().clamp_min(1e-9)
    return SelectorLoss(loss, right, right_without, known.float().sum(0))


def _weights(ids: Tensor, vocab_size: int) -> Tensor:
    """[V] float32 frequencies that sum to 1."""
    counts = torch.bincount(ids.long(), minlength=vocab_size) + RARE
    return counts / counts.sum()


def _mean(rows: Tensor, weights: Tensor) -> Tensor:
    return weights @ rows


def _low_rank(
    left: Tensor, left_weights: Tensor, right: Tensor, right_weights: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """Projections [H, r] each, of rows [V, H] each, whose products are closest to those of the rows.

    Closest in the mean square over pairs of rows that are drawn by these weights. With second moments L and R of the
    rows, that is the singular value decomposition of L^1/2 R^1/2, in the coordinates where the rows are white.
    """
    roots = [
        _square_root(rows.T @ (rows * weights[:, None]))
        for rows, weights in ((left, left_weights), (right, right_weights))
    ]
    (left_root, left_white), (right_root, right_white) = roots
    u, values, v = torch.linalg.svd(left_root @ right_root)
    scale = values[:rank].sqrt()
    return (left_white @ u[:, :rank] * scale).float(), (right_white @ v[:rank].T * scale).float()


def _square_root(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a matrix [H, H], and its inverse; an empty direction counts as a small one."""
    values, vectors = torch.linalg.eigh(moments.double())
    values = values.clamp_min(1e-9 * values.max())
    return vectors * values.sqrt() @ vectors.T, vectors / values.sqrt() @ vectors.T

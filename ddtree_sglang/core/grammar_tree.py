"""The most probable prefixes that a grammar allows, as a tree, with the masks of its nodes.

The drafter's law of a position, after the parent if it knows pairs, is cut to the tokens that the grammar allows after
a path, and renormalised: that is the law of a target under the same mask, as far as the drafter knows the target. So no
node is spent on a token that cannot be chosen, and a token that the grammar forces costs its path no probability. The
N - 1 most probable prefixes of that law are found best first, as in `tree_builder`; each node's mask, which its
children need, is the mask that the verify needs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.node_masks import Grammar, GrammarWalk


@dataclass
class GrammarTree:
    """One tree: its nodes' tokens, parents, depths and path log-probabilities, the root first, without padding."""

    token_ids: list[int] = field(default_factory=lambda: [0])
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    logprobs: list[float] = field(default_factory=lambda: [0.0])

    def write_into(self, trees: DraftTree, row: int) -> None:
        """Replace one request's tree by this one, padding behind it; the root's token stays."""
        missing = trees.num_nodes - len(self.parents)
        trees.token_ids[row, 1:] = torch.tensor(self.token_ids[1:] + missing * [0], dtype=torch.int64)
        trees.parents[row] = torch.tensor(self.parents + missing * [-1])
        trees.depths[row] = torch.tensor(self.depths + missing * [0])
        trees.logprobs[row] = torch.tensor(self.logprobs + missing * [-torch.inf])


class Offer(NamedTuple):
    """What may follow a node, best first."""

    tokens: list[int]
    ranks: list[int]  # among the position's candidates
    logprobs: list[float]  # of their paths, in float32


@dataclass(frozen=True)
class Drafted:
    """What the drafter proposes at one position."""

    ids: torch.Tensor  # [K] int64, best first
    logprobs: torch.Tensor  # [K] float64, descending
    words: torch.Tensor  # [K] int64, word of each token's bit in a mask row
    bits: torch.Tensor  # [K] int32, place of the bit
    # [k, k] float64, of a drafter that scores pairs of the first k candidates: parent's rank, then the candidate's
    pairs: torch.Tensor | None = None

    @classmethod
    def of(cls, ids: torch.Tensor, logprobs: torch.Tensor, pairs: torch.Tensor | None = None) -> Drafted:
        """From `[K]` ids and log-probabilities and `[k, k]` conditionals on the host."""
        return cls(ids, logprobs.double(), ids >> 5, (ids & 31).int(), None if pairs is None else pairs.double())

    def allowed(self, row: torch.Tensor, path_logprob: float, parent_rank: int) -> Offer:
        """The tokens that a mask row allows after a parent, best first, with their paths' log-probabilities."""
        law = self._after(parent_rank)
        kept = ((row[self.words] >> self.bits & 1).bool() & (law > -torch.inf)).nonzero().squeeze(1)
        if self.pairs is not None:
            kept = kept[law[kept].sort(descending=True, stable=True).indices]
        logprobs = law[kept]
        scores = (logprobs - logprobs.logsumexp(0)).clamp(max=0) + path_logprob
        return Offer(self.ids[kept].tolist(), kept.tolist(), scores.float().tolist())

    def _after(self, parent_rank: int) -> torch.Tensor:
        """The log-probabilities `[K]` after the parent of this rank.

        Candidates that the pairs leave out, and those after parents that they leave out, have the position's own.
        """
        if self.pairs is None or parent_rank >= len(self.pairs):
            return self.logprobs
        return torch.cat((self.pairs[parent_rank], self.logprobs[len(self.pairs) :]))


def build_grammar_tree(
    grammar: Grammar,  # in the state after the root
    drafted: Sequence[Drafted],  # of D positions
    num_nodes: int,  # N, root included
    mask: torch.Tensor,  # [rows, words] int32 on the host, all bits 1 in the tree's rows
    first_row: int,  # row of the root
) -> GrammarTree:
    """At most N nodes, the most probable prefixes under the grammar among those of the K candidates per depth.

    At depth 1 row 0 of pairs is the root's.

    Fills the rows of the nodes as `fill_node_masks` does and leaves the grammar as it was.

    Raises:
        ValueError: the grammar gave up at the root.
        GrammarGaveUp: it gave up below.
    """
    tree = GrammarTree()
    walk = GrammarWalk(grammar)
    offers: list[Offer] = []  # of each node
    ranks = [0]  # of each node among its position's candidates
    heap: list[tuple[float, int, int, int]] = []  # minus log-probability, depth, parent, rank among its children

    def offer(parent: int, rank: int) -> None:
        logprobs = offers[parent].logprobs
        if rank < len(logprobs):
            heapq.heappush(heap, (-logprobs[rank], tree.depths[parent] + 1, parent, rank))

    def arrive(node: int) -> None:
        depth = tree.depths[node]
        offers.append(Offer([], [], []))
        if grammar.is_terminated():
            return
        grammar.fill_vocab_mask(mask, first_row + node)
        if depth < len(drafted):
            offers[node] = drafted[depth].allowed(mask[first_row + node], tree.logprobs[node], ranks[node])
            offer(node, 0)

    arrive(0)
    at = 0  # the node that the grammar stands at
    while heap and len(tree.parents) < num_nodes:
        minus_score, depth, parent, rank = heapq.heappop(heap)
        offer(parent, rank + 1)
        at = _go(walk, tree, at, parent)
        token = offers[parent].tokens[rank]
        if not walk.down(token):
            continue
        at = len(tree.parents)
        tree.token_ids.append(token)
        tree.parents.append(parent)
        tree.depths.append(depth)
        tree.logprobs.append(-minus_score)
        ranks.append(offers[parent].ranks[rank])
        arrive(at)
    _go(walk, tree, at, 0)
    return tree


def allowed_first(
    ranked: DraftCandidates,  # [B, D, K]
    mask: torch.Tensor,  # [B, words] int32, of the roots, on the candidates' device
) -> DraftCandidates:
    """The candidates, with those of the first position that may not follow the root at its end, at -inf.

    Their paths keep their order without a renormalisation, which would change all of them by the same factor. A law of
    pairs has no order along K, so there they stay where they are.
    """
    ids, logprobs = ranked.topk_ids[:, 0], ranked.topk_logprobs[:, 0]
    allowed = mask.gather(1, ids >> 5) >> (ids & 31) & 1
    if ranked.pair_logprobs is not None:
        first = ranked.pair_logprobs[:, :1].masked_fill(allowed[:, None, None] == 0, -torch.inf)
        pairs = torch.cat((first, ranked.pair_logprobs[:, 1:]), dim=1)
        return DraftCandidates(ranked.topk_ids, ranked.topk_logprobs, pairs)
    logprobs, order = logprobs.masked_fill(allowed == 0, -torch.inf).sort(dim=1, descending=True, stable=True)
    return DraftCandidates(
        torch.cat((ids.gather(1, order).unsqueeze(1), ranked.topk_ids[:, 1:]), dim=1),
        torch.cat((logprobs.unsqueeze(1), ranked.topk_logprobs[:, 1:]), dim=1),
    )


def _go(walk: GrammarWalk, tree: GrammarTree, start: int, end: int) -> int:
    """Take the grammar from one node to another, and say which it stands at."""
    down: list[int] = []
    meeting = end
    while start != meeting:
        if tree.depths[meeting] >= tree.depths[start]:
            down.append(meeting)
            meeting = tree.parents[meeting]
        else:
            walk.up()
            start = tree.parents[start]
    for node in reversed(down):
        walk.down(tree.token_ids[node])
    return end

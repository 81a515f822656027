"""How probable a drafted token really is: the drafter's own word, corrected by what the target accepted.

A drafter is too sure of itself, most in the middle of its block, and worse off the spine, the path of its first
choices: its positions do not know which token was taken before them. Both are seen in every round that is looked at.
Each node whose parent was accepted is a trial, and it was accepted or not.

Trials are counted by depth, by whether the parent lies on the spine, by whether the node is its parent's most probable
child, and by what the drafter said. In each such class the correction is a line through the bins' shares, made monotone
(pool adjacent violators) and pulled to the same class of all depths, and that to the drafter's own word, by trials that
were not made. Old trials fade, because texts change.

Host arithmetic on copies of a round's small tensors. Letters as in `core.draft_tree`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ddtree_sglang.core.round_loops import (
    BINS,
    EDGES,
    MAX_DEPTH,
    Bools,
    Floats,
    Ints,
    Logprobs,
    classify_nodes,
    count_trials,
    follow_paths,
)

POOLED_TRIALS, OWN_TRIALS = 20.0, 40.0
"""Trials that were not made: of the drafter's word in a class of all depths, and of that in a class of one depth."""
FARTHEST_MEAN = 3.0
"""A bin's trials count as at most so many times below its middle."""
MEMORY = 20_000.0
"""Trials of all classes after which all are halved."""
REFRESH = 32
"""Rounds that are learned from between two looks at the counts."""
KINDS = MAX_DEPTH * 4
"""Classes without their bins: each depth with its parent on or off the spine, first child or not."""


@dataclass(frozen=True)
class NodeClasses:
    """What a correction depends on, of each node."""

    conditional: Floats  # [B, N] the drafter's probability of a node given its parent; 1 at the root, 0 at padding
    cells: Ints  # [B, N] row and column of the tables in one number: depth, spine, rank, and the bin of `conditional`
    parents: Ints  # [B, N], the root and padding their own

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> NodeClasses:
        """To be filled by who looks at the nodes."""
        return cls(np.empty(shape), np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64))

    def first(self, num_nodes: int) -> NodeClasses:
        """Those of the first nodes, whose parents are among them."""
        return NodeClasses(self.conditional[:, :num_nodes], self.cells[:, :num_nodes], self.parents[:, :num_nodes])


@dataclass(frozen=True)
class RoundTrees:
    """A round's trees on the host."""

    logprobs: Logprobs  # [B, N] of whole paths, the drafter's word; -inf at padding
    parents: Ints  # [B, N], -1 at the root and at padding
    depths: Ints  # [B, N]

    def first(self, num_nodes: int) -> RoundTrees:
        """The same trees, cut; what was found out about their nodes stays known."""
        cut = RoundTrees(self.logprobs[:, :num_nodes], self.parents[:, :num_nodes], self.depths[:, :num_nodes])
        cut.__dict__["classes"] = self.classes.first(num_nodes)
        return cut

    def keep_classes(self, classes: NodeClasses) -> None:
        """They were looked at by somebody else."""
        self.__dict__["classes"] = classes

    @cached_property
    def classes(self) -> NodeClasses:
        """Of its nodes, looked at once."""
        return classify(self)


def classify(trees: RoundTrees) -> NodeClasses:
    """Look at the nodes of B trees; parents stand before their children."""
    classes = NodeClasses.empty(trees.parents.shape)
    classify_nodes(trees.logprobs, trees.parents, trees.depths, classes.conditional, classes.cells, classes.parents)
    return classes


class HonestProbs:
    """Learns the correction of one pair; begins with the drafter's own word."""

    def __init__(self) -> None:
        self._said, self._hits, self._trials = (np.zeros(KINDS * BINS) for _ in range(3))
        self._rounds = 0
        self._refresh()

    def of_nodes(self, trees: RoundTrees) -> Floats:
        """`[B, N]`: probability that the target accepts each node whose parent it did; 1 at the root, 0 at padding."""
        classes = trees.classes
        held: Floats = self.base[classes.cells] + self.slope[classes.cells] * classes.conditional
        held[trees.parents < 0] = 0.0
        held[:, 0] = 1.0
        return held

    def of_paths(self, trees: RoundTrees) -> Floats:
        """`[B, N]`: probability that the target accepts each node; 1 at the root, 0 at padding."""
        classes, held = trees.classes, np.empty(trees.parents.shape)
        follow_paths(self.base, self.slope, classes.cells, classes.conditional, classes.parents, held)
        return held

    def learn(self, trees: RoundTrees, accept_index: Ints, counted: Bools) -> None:
        """What a round's targets accepted.

        Args:
            trees: those that were verified.
            accept_index: `[B, P]` nodes of each path, the root first, then -1.
            counted: `[B, N]`, False at nodes that no target was asked about: a request's own limit, its end.
        """
        at = trees.classes
        tables = self._said, self._hits, self._trials
        count_trials(accept_index, counted, at.cells, at.conditional, at.parents, *tables)
        self._rounds += 1
        if self._rounds % REFRESH == 0:
            self._refresh()

    def _refresh(self) -> None:
        if self._trials.sum() > MEMORY:
            for counts in (self._said, self._hits, self._trials):
                counts /= 2
        middles = (EDGES[1:] + EDGES[:-1]) / 2
        own = np.stack([self._said, self._hits, self._trials]).reshape(3, KINDS, BINS)
        pooled = _share(own.reshape(3, MAX_DEPTH, 4, BINS).sum(1), POOLED_TRIALS, middles, middles)
        shares = _share(own, OWN_TRIALS, np.tile(pooled, (MAX_DEPTH, 1)), middles)
        for row in np.flatnonzero((np.diff(shares, axis=1) < 0).any(1)):
            shares[row] = pool_adjacent_violators(shares[row], own[2, row] + 1.0)
        self.base, self.slope = (part.ravel() for part in _line(shares, middles))

    def table(self) -> list[dict[str, float]]:
        """The reliability diagram: of each bin that was tried what the drafter said, and what was accepted."""
        rows = []
        for cell in np.flatnonzero(self._trials):
            kind, trials = int(cell) // BINS, self._trials[cell]
            rows.append(
                {
                    "depth": kind // 4 + 1,
                    "on_spine": not (kind // 2) % 2,
                    "first_child": not kind % 2,
                    "trials": float(trials),
                    "said": float(self._said[cell] / trials),
                    "accepted": float(self._hits[cell] / trials),
                }
            )
        return rows


def trials(trees: RoundTrees, accept_index: Ints, counted: Bools) -> tuple[Bools, Bools]:
    """`[B, N]` each: nodes that the target was asked about, because it accepted their parent, and those it accepted."""
    accepted = _accepted(accept_index, trees.parents.shape)
    rows = np.arange(len(accepted))[:, None]
    return (trees.parents >= 0) & accepted[rows, trees.classes.parents] & counted, accepted


def _share(counts: Floats, weight: float, prior: Floats, middles: Floats) -> Floats:
    """Accepted shares at the bins' middles, where trials of another mean are moved to; of said, hits and trials."""
    said, hits, trials = counts
    # Far below its bin's middle a trial says little of it: one hit of a word of 1e-5 would be a thousand there.
    mean_said = np.maximum(np.where(trials > 0, said / np.maximum(trials, 1e-9), middles), middles / FARTHEST_MEAN)
    shares: Floats = np.minimum((hits * middles / mean_said + weight * prior) / (trials + weight), 1.0)
    return shares


def _line(shares: Floats, middles: Floats) -> tuple[Floats, Floats]:
    """`[classes, BINS]` offset and slope in each bin, of the line through the shares at the middles."""
    part = (EDGES[1:-1] - middles[:-1]) / np.diff(middles)
    inner = shares[:, :-1] + part * np.diff(shares, axis=1)
    last = shares[:, -1:] + (shares[:, -1:] - inner[:, -1:]) * (1.0 - middles[-1]) / (middles[-1] - EDGES[-2])
    values = np.concatenate([np.zeros((len(shares), 1)), inner, np.minimum(last, 1.0)], axis=1)
    slope = np.diff(values, axis=1) / np.diff(EDGES)
    return values[:, :-1] - slope * EDGES[:-1], slope


def _accepted(accept_index: Ints, shape: tuple[int, ...]) -> Bools:
    """`[B, N]`: which nodes lie on their request's path."""
    accepted = np.zeros((shape[0], shape[1] + 1), dtype=np.bool_)
    np.put_along_axis(accepted, np.where(accept_index < 0, shape[1], accept_index), True, 1)
    return accepted[:, :-1]


def pool_adjacent_violators(values: Floats, weights: Floats) -> Floats:
    """The closest ascending values by weighted squares: neighbours that descend get their mean."""
    blocks: list[list[float]] = []  # mean, weight, how many
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            last, before = blocks.pop(), blocks.pop()
            total = before[1] + last[1]
            blocks.append([(before[0] * before[1] + last[0] * last[1]) / total, total, before[2] + last[2]])
    ascending: Floats = np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])
    return ascending

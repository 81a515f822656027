"""How probable a drafted token really is: the drafter's own word, corrected by what the target accepted.

A drafter is too sure of itself, most in the middle of its block, and worse off the spine, the path of its first
choices: its positions do not know which token was taken before them. Both are seen in every round. Each node whose
parent was accepted is a trial, and it was accepted or not.

Trials are counted by depth, by whether the parent lies on the spine, by whether the node is its parent's most probable
child, and by what the drafter said. In each such class the correction is a line through the bins' shares, made monotone
(pool adjacent violators) and pulled to the same class of all depths, and that to the drafter's own word, by trials that
were not made. Old trials fade, because texts change.

Host arithmetic on copies of a round's small tensors. Letters as in `core.draft_tree`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

EDGES: Floats = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
"""Bins of the probability of a node given its parent, as the drafter says."""
BINS = len(EDGES) - 1
POOLED_TRIALS, OWN_TRIALS = 20.0, 40.0
"""Trials that were not made: of the drafter's word in a class of all depths, and of that in a class of one depth."""
MEMORY = 20_000.0
"""Trials of all classes after which all are halved."""
REFRESH = 16
"""Rounds between two looks at the counts."""
MAX_DEPTH = 16
"""Deeper nodes share a class."""


@dataclass(frozen=True)
class RoundTrees:
    """A round's trees and paths on the host."""

    logprobs: Floats  # [B, N] of whole paths, the drafter's word; -inf at padding
    parents: Ints  # [B, N], -1 at the root and at padding
    depths: Ints  # [B, N]

    def first(self, num_nodes: int) -> RoundTrees:
        """The same trees, cut."""
        return RoundTrees(self.logprobs[:, :num_nodes], self.parents[:, :num_nodes], self.depths[:, :num_nodes])


@dataclass(frozen=True)
class NodeClasses:
    """What a correction depends on, of each node."""

    conditional: Floats  # [B, N] the drafter's probability of a node given its parent; 1 at the root, 0 at padding
    kind: Ints  # [B, N] row of the tables: depth, spine and rank in one number
    bins: Ints  # [B, N] of `conditional` in EDGES
    parents: Ints  # [B, N], the root and padding their own


def classify(trees: RoundTrees) -> NodeClasses:
    """Look at the nodes of B trees."""
    batch_size, num_nodes = trees.parents.shape
    index = np.arange(num_nodes)
    real = trees.parents >= 0
    parents = np.where(real, trees.parents, index)
    rows = np.arange(batch_size)[:, None]
    with np.errstate(invalid="ignore"):
        conditional = np.exp(np.minimum(trees.logprobs - trees.logprobs[rows, parents], 0.0))
    conditional = np.where(real, conditional, 0.0)
    conditional[:, 0] = 1.0
    # Nodes stand in descending probability: a parent's first child is its most probable one.
    children = np.full((batch_size, num_nodes), num_nodes)
    np.minimum.at(children, (np.broadcast_to(rows, parents.shape)[:, 1:], parents[:, 1:]), index[1:])
    is_first = children[rows, parents] == index
    is_first[:, 0] = True
    on_spine = _all_ancestors(is_first, parents, rows)
    depth = np.clip(trees.depths, 1, MAX_DEPTH) - 1
    kind = (depth * 2 + ~on_spine[rows, parents]) * 2 + ~is_first
    bins = np.minimum(np.searchsorted(EDGES, conditional, side="right") - 1, BINS - 1)
    return NodeClasses(conditional, kind, bins, parents)


def _all_ancestors(flags: Bools, parents: Ints, rows: Ints) -> Bools:
    """`[B, N]`: whether the flag holds at a node and at all of its ancestors, by doubling."""
    held, jump = flags, parents
    for _ in range(int(np.ceil(np.log2(MAX_DEPTH + 1)))):
        held = held & held[rows, jump]
        jump = jump[rows, jump]
    return held


class HonestProbs:
    """Learns the correction of one pair; begins with the drafter's own word."""

    def __init__(self) -> None:
        shape = (MAX_DEPTH * 4, BINS)
        self._said, self._hits, self._trials = (np.zeros(shape) for _ in range(3))
        self._rounds = 0
        self._refresh()

    def of_paths(self, trees: RoundTrees) -> Floats:
        """`[B, N]`: probability that the target accepts each node; 1 at the root, 0 at padding."""
        classes = classify(trees)
        rows = np.arange(len(classes.kind))[:, None]
        cell = classes.kind, classes.bins
        held = self._base[cell] + self._slope[cell] * (classes.conditional - EDGES[classes.bins])
        held = np.where(trees.parents >= 0, held, 0.0)
        held[:, 0] = 1.0
        with np.errstate(divide="ignore"):
            logs = np.log(held)
        jump = classes.parents
        # The root is its own parent, with a logarithm of 0; so is padding, with one of minus infinity.
        for _ in range(int(np.ceil(np.log2(max(int(trees.depths.max(initial=1)), 1) + 1)))):
            logs = logs + logs[rows, jump]
            jump = jump[rows, jump]
        probs: Floats = np.exp(logs)
        return probs

    def learn(self, trees: RoundTrees, accept_index: Ints, counted: Bools) -> None:
        """What a round's targets accepted.

        Args:
            trees: those that were verified.
            accept_index: `[B, P]` nodes of each path, the root first, then -1.
            counted: `[B, N]`, False at nodes that no target was asked about: a request's own limit, its end.
        """
        if trees.parents.shape[1] > 1:
            classes = classify(trees)
            accepted = _accepted(accept_index, trees.parents.shape)
            rows = np.arange(len(accepted))[:, None]
            tried = (trees.parents >= 0) & accepted[rows, classes.parents] & counted
            cell = classes.kind[tried], classes.bins[tried]
            np.add.at(self._trials, cell, 1.0)
            np.add.at(self._said, cell, classes.conditional[tried])
            np.add.at(self._hits, cell, accepted[tried])
        self._rounds += 1
        if self._rounds % REFRESH == 0:
            self._refresh()

    def _refresh(self) -> None:
        if self._trials.sum() > MEMORY:
            for counts in (self._said, self._hits, self._trials):
                counts /= 2
        middles = (EDGES[1:] + EDGES[:-1]) / 2
        own = np.stack([self._said, self._hits, self._trials])
        pooled = _share(own.reshape(3, MAX_DEPTH, 4, BINS).sum(1), POOLED_TRIALS, middles, middles)
        shares = _share(own, OWN_TRIALS, np.tile(pooled, (MAX_DEPTH, 1)), middles)
        shares = np.stack([pool_adjacent_violators(*pair) for pair in zip(shares, self._trials + 1.0, strict=True)])
        self._base, self._slope = _line(shares, middles)

    def table(self) -> list[dict[str, float]]:
        """The reliability diagram: of each bin that was tried what the drafter said, and what was accepted."""
        rows = []
        for kind, which in np.argwhere(self._trials > 0):
            trials = self._trials[kind, which]
            rows.append(
                {
                    "depth": int(kind // 4) + 1,
                    "on_spine": not (kind // 2) % 2,
                    "first_child": not kind % 2,
                    "trials": float(trials),
                    "said": float(self._said[kind, which] / trials),
                    "accepted": float(self._hits[kind, which] / trials),
                }
            )
        return rows


def _share(counts: Floats, weight: float, prior: Floats, middles: Floats) -> Floats:
    """Accepted shares at the bins' middles, where trials of another mean are moved to; of said, hits and trials."""
    said, hits, trials = counts
    mean_said = np.where(trials > 0, said / np.maximum(trials, 1e-9), middles)
    shares: Floats = np.minimum((hits * middles / mean_said + weight * prior) / (trials + weight), 1.0)
    return shares


def _line(shares: Floats, middles: Floats) -> tuple[Floats, Floats]:
    """`[classes, BINS]` value at each bin's lower edge, and slope within it, of the line through the shares."""
    part = (EDGES[1:-1] - middles[:-1]) / np.diff(middles)
    inner = shares[:, :-1] + part * np.diff(shares, axis=1)
    last = shares[:, -1:] + (shares[:, -1:] - inner[:, -1:]) * (1.0 - middles[-1]) / (middles[-1] - EDGES[-2])
    values = np.concatenate([np.zeros((len(shares), 1)), inner, np.minimum(last, 1.0)], axis=1)
    return values[:, :-1], np.diff(values, axis=1) / np.diff(EDGES)


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

"""Is what the drafter says true? Probabilities against acceptance, before the correction and after it.

Each round is judged by what the correction had learned from earlier rounds, then learned from, so the "after" is what a
server would have believed at that moment, and no trial vouches for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddtree_sglang.core.honest_probs import HonestProbs, RoundTrees, trials
from ddtree_sglang.core.round_loops import BINS, EDGES, MAX_DEPTH, Bools, Floats, Ints
from ddtree_sglang.core.width_choice import drafted_tokens


@dataclass(frozen=True)
class Judged:
    """Trials of one kind: their number, and means of what was said, corrected, and came."""

    trials: int
    said: float
    corrected: float
    accepted: float


@dataclass(frozen=True)
class WidthTokens:
    """Drafted tokens of a request and round, its tree cut after `num_nodes`: said, corrected, and those that came."""

    num_nodes: int
    said: float
    corrected: float
    accepted: float


class Reliability:
    """Collects rounds, oldest first; a node is a trial once its parent was accepted."""

    def __init__(self, widths: Sequence[int]) -> None:
        """`widths`: nodes at which trees are cut for `tokens_by_width`, ascending."""
        self.widths = tuple(widths)
        self.probs = HonestProbs()
        # Trials, said, corrected, hits: by depth, on or off the spine, and the bin of what was said or corrected.
        self._by_said, self._by_corrected = (np.zeros((4, MAX_DEPTH, 2, BINS)) for _ in range(2))
        self._squares = np.zeros(2)
        self._tokens = np.zeros((3, len(self.widths)))
        self._requests = 0

    def observe(self, trees: RoundTrees, accept_index: Ints, counted: Bools) -> None:
        """One round; arguments as of `HonestProbs.learn`. Requests of which no node is counted are left out."""
        tried, accepted = trials(trees, accept_index, counted)
        said, corrected = trees.classes.conditional[tried], self.probs.of_nodes(trees)[tried]
        hits = accepted[tried].astype(np.float64)
        kind = trees.classes.cells[tried] // BINS
        for counts, by in ((self._by_said, said), (self._by_corrected, corrected)):
            bins = np.minimum(np.searchsorted(EDGES, by, side="right") - 1, BINS - 1)
            place = kind // 4, kind // 2 % 2, bins
            for row, values in enumerate((np.ones_like(hits), said, corrected, hits)):
                np.add.at(counts[row], place, values)
        self._squares += ((said - hits) ** 2).sum(), ((corrected - hits) ** 2).sum()
        self._add_tokens(trees, accepted, counted)
        self.probs.learn(trees, accept_index, counted)

    def _add_tokens(self, trees: RoundTrees, accepted: Bools, counted: Bools) -> None:
        whole = counted[:, 1:].any(1)
        paths = (np.exp(trees.logprobs), self.probs.of_paths(trees), accepted.astype(np.float64))
        for row, values in enumerate(paths):
            walkable = np.where(counted, values, 0.0)
            walkable[:, 0] = 1.0
            self._tokens[row] += drafted_tokens(walkable[whole], np.array(self.widths)).sum(0)
        self._requests += int(whole.sum())

    @property
    def num_trials(self) -> int:
        """Nodes that were judged."""
        return int(self._by_said[0].sum())

    @property
    def squares(self) -> tuple[float, float]:
        """Mean square of probability less outcome (Brier's score), as said and as corrected; 0 is a prophet's."""
        said, corrected = self._squares / max(self.num_trials, 1)
        return float(said), float(corrected)

    @property
    def distances(self) -> tuple[float, float]:
        """Mean distance of a bin's probability from the share that was accepted, as said and as corrected."""
        found = []
        for row, counts in ((1, self._by_said), (2, self._by_corrected)):
            pooled = counts.sum(1)
            found.append(float(np.abs(pooled[row] - pooled[3]).sum() / max(pooled[0].sum(), 1.0)))
        return found[0], found[1]

    def by_depth(self, on_spine: bool) -> dict[int, Judged]:
        """By the node's depth, of nodes whose parent lies on the spine or off it."""
        counts = self._by_said[:, :, int(not on_spine)].sum(-1)
        return {depth + 1: _judged(counts[:, depth]) for depth in range(MAX_DEPTH) if counts[0, depth]}

    def by_said(self, on_spine: bool) -> dict[float, Judged]:
        """By the drafter's probability: lower edges of the bins."""
        return _bins(self._by_said[:, :, int(not on_spine)].sum(1))

    def by_corrected(self, on_spine: bool) -> dict[float, Judged]:
        """By the corrected probability: lower edges of the bins."""
        return _bins(self._by_corrected[:, :, int(not on_spine)].sum(1))

    def tokens_by_width(self) -> list[WidthTokens]:
        """Drafted tokens of a request and round by the nodes of its tree."""
        means = self._tokens / max(self._requests, 1)
        return [WidthTokens(width, *map(float, means[:, place])) for place, width in enumerate(self.widths)]


def _bins(counts: Floats) -> dict[float, Judged]:
    return {float(EDGES[place]): _judged(counts[:, place]) for place in range(BINS) if counts[0, place]}


def _judged(counts: Floats) -> Judged:
    number, said, corrected, hits = counts.tolist()
    return Judged(int(number), said / number, corrected / number, hits / number)

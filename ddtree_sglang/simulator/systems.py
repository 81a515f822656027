"""What is compared: plain decoding, the chain of first choices, trees of a fixed budget, and the adaptive budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ddtree_sglang.core.cost_model import CostModel
from ddtree_sglang.core.honest_probs import RoundTrees
from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget
from ddtree_sglang.engine.stages.round_records import RoundRecord
from ddtree_sglang.engine.stages.round_times import RoundTimes
from ddtree_sglang.simulator.recording import Tree
from ddtree_sglang.simulator.replay import Round, Running


class Plain:
    """One token a request and round."""

    name = "plain"

    def round(self, running: Sequence[Running]) -> Round:
        """See `System`."""
        return Round(1, [0] * len(running))

    def ended(self, spent: float) -> None:
        """Nothing is learned."""


class Chain:
    """The drafter's first choices, a block of them: what DFLASH verifies, at what a round of as many nodes takes."""

    name = "chain"

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def round(self, running: Sequence[Running]) -> Round:
        """See `System`."""
        made = Round(self.block_size, [])
        for one in running:
            tree, stands_in = one.answer.tree_at(one.position)
            accepted, ends = tree.accepted_of_chain(self.block_size)
            made.accepted.append(accepted)
            made.stand_ins += stands_in
            made.beyond += ends
        return made

    def ended(self, spent: float) -> None:
        """Nothing is learned."""


class FixedTree:
    """The same number of nodes in each round."""

    def __init__(self, budget: int) -> None:
        self.name = f"tree {budget}"
        self.num_nodes = budget + 1

    def round(self, running: Sequence[Running]) -> Round:
        """See `System`."""
        made = Round(self.num_nodes, [])
        for one in running:
            tree, stands_in = one.answer.tree_at(one.position)
            made.accepted.append(len(tree.accepted(self.num_nodes)) - 1)
            made.stand_ins += stands_in
        return made

    def ended(self, spent: float) -> None:
        """Nothing is learned."""


class Adaptive:
    """The server's own `AdaptiveBudget` with this server's clock: it explores, learns, waits and errs as there."""

    name = "adaptive"

    def __init__(
        self, widths: Sequence[int], costs: CostModel, *, on_device: bool, kind: type[AdaptiveBudget] = AdaptiveBudget
    ) -> None:
        """`on_device`: trees are not at hand on the host, which is one round behind; `kind`: of another rule."""
        self._now = 0.0
        self._lag = int(on_device)
        self.budget = kind(widths, costs, lag=self._lag, times=RoundTimes(self._lag, lambda: self._now))
        self._pending: list[float] = []

    def round(self, running: Sequence[Running]) -> Round:
        """See `System`."""
        budget, limits = self.budget, [self.budget.widths[-1]] * len(running)
        narrows = self._lag == 0
        reqs: list[Any] = list(running)
        mean_prefix = sum(one.position for one in running) / len(running)
        num_nodes = budget.begin(reqs, limits, mean_prefix, budget.widths[-1], narrows=narrows)
        if num_nodes == 1:
            budget.end(None)
            return Round(1, [0] * len(running))
        found = [one.answer.tree_at(one.position) for one in running]
        trees = [tree for tree, _ in found]
        if narrows:
            num_nodes = budget.narrow(reqs, limits, round_trees(trees, num_nodes))
        paths = [tree.accepted(num_nodes) for tree in trees]
        budget.end(_record(reqs, limits, paths, None if narrows else round_trees(trees, num_nodes)))
        return Round(num_nodes, [len(path) - 1 for path in paths], sum(stands_in for _, stands_in in found))

    def ended(self, spent: float) -> None:
        """Where scheduling overlaps, the next round begins when the one before this is over."""
        self._pending.append(spent)
        if len(self._pending) > self._lag:
            self._now += self._pending.pop(0)


def round_trees(trees: Sequence[Tree], num_nodes: int) -> RoundTrees:
    """The trees' first nodes as arrays, padded where one is short."""
    shape = len(trees), num_nodes
    logprobs, parents, depths = np.full(shape, -np.inf), np.full(shape, -1), np.zeros(shape, dtype=np.int64)
    for row, tree in enumerate(trees):
        own = min(num_nodes, len(tree.parents))
        with np.errstate(divide="ignore"):
            logprobs[row, :own] = np.log(np.minimum(tree.path_probs[:own], 1.0))
        parents[row, :own], depths[row, :own] = tree.parents[:own], tree.depths[:own]
    return RoundTrees(logprobs, parents, depths)


def _record(
    reqs: Sequence[Any], limits: Sequence[int], paths: Sequence[tuple[int, ...]], trees: RoundTrees | None
) -> RoundRecord:
    index = np.full((len(paths), max(map(len, paths))), -1)
    for row, path in enumerate(paths):
        index[row, : len(path)] = path
    parts = None
    if trees is not None:
        parts = tuple(torch.from_numpy(part) for part in (trees.logprobs, trees.parents, trees.depths))
    return RoundRecord(tuple(reqs), tuple(limits), torch.from_numpy(index), parts)  # type: ignore[arg-type]

"""A server without models: rounds that take what a made-up cost says, and accept what a made-up target would.

A drafted node is accepted, once its parent is, with the drafter's own probability raised to `truth`: 1 is an honest
drafter, 2 one that is too sure of itself, and a large number one that never hits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget
from ddtree_sglang.engine.stages.round_records import RoundRecord, host_trees
from tests.engine.requests import FakeRequest

DEPTH, CANDIDATES = 7, 16


def running_request() -> Any:
    return FakeRequest(finished=lambda: False)


@dataclass
class Served:
    """Rounds of one controller, and what they brought."""

    budget: AdaptiveBudget
    seconds_of: Callable[[int, int], float]  # by requests and nodes; 1 node: nothing is drafted
    sureness: float = 1.5  # scale of the drafter's logits: how peaked its positions are
    truth: float = 1.0
    noise: float = 0.03  # of a round's time, in logarithms
    seed: int = 0
    mean_prefix: float = 300.0
    now: float = 1000.0
    tokens: int = 0
    seconds: float = 0.0
    widths: list[int] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.budget.times.clock = lambda: self.now

    def drafted(self, batch_size: int, num_nodes: int) -> DraftTree:
        scores = self.rng.standard_normal((batch_size, DEPTH, CANDIDATES)) * self.sureness
        logprobs = torch.log_softmax(torch.tensor(-np.sort(-scores, axis=2), dtype=torch.float32), dim=2)
        ids = torch.arange(CANDIDATES).expand(batch_size, DEPTH, CANDIDATES).contiguous()
        return build_draft_tree(ids, logprobs, torch.zeros(batch_size, dtype=torch.int64), num_nodes)

    def round(self, reqs: list[Any], limit: int | None = None, most: int | None = None) -> int:
        """One round; its number of nodes."""
        budget, size = self.budget, len(reqs)
        narrows = budget._lag == 0
        limits = [limit or budget.widths[-1]] * size
        num_nodes = budget.begin(reqs, limits, self.mean_prefix, most or budget.widths[-1], narrows=narrows)
        record = None
        if num_nodes > 1:
            tree = self.drafted(size, num_nodes)
            if narrows:
                num_nodes = budget.narrow(reqs, limits, host_trees(tree.logprobs, tree.parents, tree.depths))
                tree = tree.first_nodes(num_nodes)
            path = self.accepted(tree)
            record = RoundRecord.of(reqs, limits, None if narrows else tree, path)
            self.tokens += int(path.commit_lens.sum())
        else:
            self.tokens += size
        seconds = self.seconds_of(size, num_nodes) * float(np.exp(self.noise * self.rng.standard_normal()))
        self.launch(seconds)
        budget.end(record)
        self.finish(seconds)
        self.widths.append(num_nodes)
        return num_nodes

    def launch(self, _seconds: float) -> None:
        """The host has launched a round that takes so long."""

    def finish(self, seconds: float) -> None:
        """Where scheduling overlaps, the next round begins when the one before this is over."""
        self.pending.append(seconds)
        if len(self.pending) > self.budget._lag:
            self.now += self.pending.pop(0)
        self.seconds += seconds

    def rounds(self, number: int, reqs: list[Any]) -> Served:
        for _ in range(number):
            self.round(reqs)
        return self

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    def accepted(self, tree: DraftTree) -> AcceptedPath:
        """At each accepted node one child at most, each by its own chance."""
        parents, logprobs = tree.parents.numpy(), tree.logprobs.double().numpy()
        paths = np.full((len(parents), DEPTH + 1), -1)
        for row in range(len(parents)):
            node, depth = 0, 0
            while True:
                paths[row, depth] = node
                children = np.flatnonzero(parents[row] == node)
                chances = np.exp(logprobs[row, children] - logprobs[row, node]) ** self.truth
                drawn = self.rng.random()
                hit = np.flatnonzero(chances.cumsum() > drawn)
                if not len(hit):
                    break
                node, depth = children[hit[0]], depth + 1
        index = torch.tensor(paths)
        lens = (index >= 0).sum(1)
        return AcceptedPath(index, lens - 1, lens, torch.zeros_like(index), torch.zeros(len(lens), dtype=torch.int64))

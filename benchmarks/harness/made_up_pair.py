"""Answers of a pair that nobody has here: a made-up drafter, tuned to the mean accepted lengths that were published.

At each position of a text and each depth of its block, the drafter's distribution over ranks falls as a power of the
rank; how steep it is differs by position and by depth, and lies lower deep in the block. The text's own token has a
rank drawn from that distribution, so the drafter is honest. What real drafters have and this one lacks: positions that
know of each other (a real one is worse after an accepted sibling), texts whose difficulty comes in stretches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.simulator.recording import Answer, Tree, walked

CANDIDATES = 64


@dataclass(frozen=True)
class Drafter:
    """`steepness` is the mean logarithm of the exponent, and what it spreads by position and by depth; `fade` its
    factor from one depth to the next.
    """

    name: str
    block_size: int
    steepness: float
    spread: float = 0.5
    own_spread: float = 0.7
    fade: float = 0.93

    def logprobs(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`[count, block - 1, CANDIDATES]` of ranks, best first."""
        depths = self.block_size - 1
        noise = self.spread * rng.standard_normal((count, 1)) + self.own_spread * rng.standard_normal((count, depths))
        exponents = np.exp(self.steepness + noise) * self.fade ** np.arange(depths)
        scores = -exponents[:, :, None] * np.log(np.arange(1, CANDIDATES + 1))
        found: np.ndarray = scores - np.log(np.exp(scores).sum(2, keepdims=True))
        return found

    def answers(self, count: int, length: int, num_nodes: int, prompt: int = 200, seed: int = 0) -> list[Answer]:
        """`count` answers of `length` tokens after `prompt`, with a tree of `num_nodes` at each position."""
        rng = np.random.default_rng(seed)
        found = []
        for number in range(count):
            trees = self._trees(length, num_nodes, prompt, rng)
            found.append(Answer(f"{self.name}-{number}", prompt, prompt + length, dict(enumerate(trees, prompt))))
        return found

    def _trees(self, length: int, num_nodes: int, prompt: int, rng: np.random.Generator) -> list[Tree]:
        """Tokens are their positions; a wrong candidate is a negative number."""
        logprobs = self.logprobs(length, rng)
        drawn = rng.random(logprobs.shape[:2])
        ranks = (np.exp(logprobs).cumsum(2) < drawn[:, :, None]).sum(2)
        ids = np.broadcast_to(-1 - np.arange(CANDIDATES), logprobs.shape).copy()
        places, depths = np.nonzero(ranks < CANDIDATES)
        ids[places, depths, ranks[places, depths]] = prompt + places + depths + 1
        roots = torch.arange(prompt, prompt + length)
        built = build_draft_tree(torch.from_numpy(ids), torch.from_numpy(logprobs).float(), roots, num_nodes)
        text = {position: position for position in range(prompt, prompt + length + 1)}
        rows = zip(built.token_ids.tolist(), built.parents.tolist(), built.logprobs.exp().tolist(), strict=True)
        return [walked(*row, text, prompt + place) for place, row in enumerate(rows)]


MATHS = Drafter("mathematics", 16, 1.914)
"""Tuned to 7.79 tokens a round of the chain, published of Qwen3-8B and its DFlash drafter on MATH-500, greedy."""
CHAT = Drafter("chat", 16, 1.245)
"""Tuned to 4.28, published of the same pair on MT-Bench."""

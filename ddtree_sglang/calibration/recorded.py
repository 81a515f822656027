"""Rounds of a trace as the arrays that `ddtree_sglang.core` computes with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddtree_sglang.core.honest_probs import RoundTrees
from ddtree_sglang.core.round_loops import Bools, Ints
from ddtree_sglang.viewer.rounds import Part


def depths_of(parents: Sequence[int]) -> list[int]:
    """Depth of each node, whose parent stands before it; the root's parent is -1."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


def trees_of(parts: Sequence[Part]) -> tuple[RoundTrees, Ints, Bools]:
    """Trees of parts that have one, their paths `[B, P]`, and `[B, N]` which nodes the walk could enter."""
    size, num_nodes = len(parts), max(len(part.parents) for part in parts)
    longest = max(len(part.path) for part in parts)
    logprobs = np.full((size, num_nodes), -np.inf)
    parents, depths = np.full((size, num_nodes), -1), np.zeros((size, num_nodes), dtype=np.int64)
    paths = np.full((size, max(longest, 1)), -1)
    counted = np.zeros((size, num_nodes), dtype=np.bool_)
    for row, part in enumerate(parts):
        own = len(part.parents)
        with np.errstate(divide="ignore"):
            logprobs[row, :own] = np.log(np.minimum(part.path_probs, 1.0))
        parents[row, :own] = part.parents
        depths[row, :own] = depths_of(part.parents)
        paths[row, : len(part.path)] = part.path
        paths[row, 0] = 0
        counted[row, : part.walkable] = True
    return RoundTrees(logprobs, parents, depths), paths, counted

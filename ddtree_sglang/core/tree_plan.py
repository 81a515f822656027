"""The index tables of `tree_builder`: which prefixes can be in a tree, by sizes alone.

A pair is (parent by rank within its depth, candidate by rank), both counted from 0. Only pairs that can be among the
N - 1 best are listed. The pair (i, j) at depth d >= 2 comes after the i + 1 best nodes of depth d - 1 and after one
node of each smaller depth, whatever the conditionals. Where they are the same after every parent, it also comes after
all pairs of no larger ranks, (i + 1)(j + 1) with itself; conditionals of pairs say nothing of the kind, so all
candidates of a parent are listed.

The pairs of all depths are numbered in one sequence. A slot holds one prefix that is kept; the slots of all depths are
numbered in one sequence, too. The root is pair 0 and slot 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class TreePlan:
    """The tables for one set of sizes, on one device."""

    parent_ranks: tuple[torch.Tensor, ...]  # for each depth from 2: [pairs of the depth] int64
    num_pairs: tuple[int, ...]  # for each depth from 1: its pairs
    num_kept: tuple[int, ...]  # for each depth from 1: its slots, at most its pairs
    candidates: torch.Tensor  # [pairs - 1] int64, of each but the root: (depth - 1) * K + candidate rank
    pair_table: torch.Tensor  # [3, pairs] int64, of each: candidate, depth, slot of the parent
    first_pair: torch.Tensor  # [slots] int64, of each: number of its depth's first pair
    slot_numbers: torch.Tensor  # [slots] int64: 0, 1, ...


@lru_cache(maxsize=64)
def tree_plan(num_nodes: int, depth: int, num_candidates: int, pairwise: bool, device: torch.device) -> TreePlan:
    """The tables for trees of N = `num_nodes`. Cached, since they cost milliseconds and never change.

    Args:
        num_nodes: N, root included.
        depth: D.
        num_candidates: K.
        pairwise: whether a candidate's probability depends on its parent.
        device: of the candidates.
    """
    budget = num_nodes - 1
    # A table made under inference mode could not serve a later caller that differentiates.
    with torch.inference_mode(False):
        # Best first, the N - 1 first are enough; unordered, any of the K may be the best.
        candidate_ranks = [torch.arange(num_candidates if pairwise else min(num_candidates, budget))]
        parent_ranks = [torch.zeros_like(candidate_ranks[0])]
        num_kept = [min(num_candidates, budget)]
        for d in range(2, min(depth, budget) + 1):
            i, j = torch.meshgrid(torch.arange(num_kept[-1]), torch.arange(num_candidates), indexing="ij")
            before = i + 2 if pairwise else (i + 1) * (j + 2)
            possible = before + (d - 2) <= budget
            parent_ranks.append(i[possible])
            candidate_ranks.append(j[possible])
            num_kept.append(min(len(parent_ranks[-1]), budget - d + 1))
        return _assemble(parent_ranks, candidate_ranks, num_kept, num_candidates, device)


def _assemble(
    parent_ranks: list[torch.Tensor],
    candidate_ranks: list[torch.Tensor],
    num_kept: list[int],
    num_candidates: int,
    device: torch.device,
) -> TreePlan:
    """Number pairs and slots over all depths, and move the tables to the device."""
    num_depths = len(num_kept)
    num_pairs = [len(ranks) for ranks in parent_ranks]
    first_slot = [0] + [1 + sum(num_kept[:d]) for d in range(num_depths)]  # of each depth, the root's first
    first_pair = [0] + [1 + sum(num_pairs[:d]) for d in range(num_depths)]
    root = torch.zeros(1, dtype=torch.int64)
    candidates = torch.cat([d * num_candidates + ranks for d, ranks in enumerate(candidate_ranks)])
    depths = torch.repeat_interleave(torch.arange(num_depths + 1), torch.tensor([1, *num_pairs]))
    parent_slots = torch.cat([root] + [first_slot[d] + ranks for d, ranks in enumerate(parent_ranks)])
    return TreePlan(
        parent_ranks=tuple(ranks.to(device) for ranks in parent_ranks[1:]),
        num_pairs=tuple(num_pairs),
        num_kept=tuple(num_kept),
        candidates=candidates.to(device),
        pair_table=torch.stack((torch.cat((root, candidates)), depths, parent_slots)).to(device),
        first_pair=torch.repeat_interleave(torch.tensor(first_pair), torch.tensor([1, *num_kept])).to(device),
        slot_numbers=torch.arange(1 + sum(num_kept), device=device),
    )

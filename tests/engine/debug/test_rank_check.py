"""Ranks that build different trees are noticed, on every rank, with the request and the ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddtree_sglang.core import BuiltTree, build_draft_tree, complete_tree
from ddtree_sglang.engine.debug.rank_check import RanksDisagreeError, require_equal_trees, tree_digest

RANKS = 3


def trees() -> BuiltTree:
    generator = torch.Generator().manual_seed(0)
    logprobs, ids = torch.log_softmax(torch.randn(2, 3, 5, generator=generator), -1).sort(-1, descending=True)
    tree = build_draft_tree(ids, logprobs, torch.tensor([7, 8]), 6)
    return complete_tree(tree, torch.tensor([4, 2]))


class Ranks:
    """The other ranks' digests, as an all-gather would bring them."""

    world_size = RANKS

    def __init__(self, per_rank: list[BuiltTree]) -> None:
        self.digests = [tree_digest(built) for built in per_rank]

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        assert tensor.shape == self.digests[0].shape
        return torch.cat(self.digests, dim=dim)


def changed(built: BuiltTree, request: int, node: int) -> BuiltTree:
    token_ids = built.tree.token_ids.clone()
    token_ids[request, node] += 1
    return replace(built, tree=replace(built.tree, token_ids=token_ids))


def test_equal_trees_pass() -> None:
    require_equal_trees(trees(), Ranks([trees()] * RANKS))


@pytest.mark.parametrize(("request_row", "rank"), [(0, 1), (1, 2)])
def test_one_token_of_one_rank_is_noticed(request_row: int, rank: int) -> None:
    per_rank = [trees()] * RANKS
    per_rank[rank] = changed(trees(), request_row, 5)
    with pytest.raises(RanksDisagreeError, match=rf"request {request_row} of the batch ranks \[{rank}\] differ"):
        require_equal_trees(trees(), Ranks(per_rank))


def test_positions_and_parents_count_too() -> None:
    built = trees()
    moved = replace(built, layout=replace(built.layout, positions=built.layout.positions + 1))
    parents = built.tree.parents.clone()
    parents[0, 5] = 0 if int(parents[0, 5]) else 1
    rewired = replace(built, tree=replace(built.tree, parents=parents))
    digests = {tuple(tree_digest(one)[0].tolist()) for one in (built, moved, rewired)}
    assert len(digests) == 3

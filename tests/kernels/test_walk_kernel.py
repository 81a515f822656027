"""SGLang's tree walk on a GPU against core's, over random trees and target choices; there is no interpreter for it."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import build_draft_tree, complete_tree, walk_tree
from tests.core.tree_cases import random_candidates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.sglang,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

FIELDS = ("accept_index", "num_correct_drafts", "commit_lens", "token_ids", "bonus_ids")


@pytest.mark.parametrize(
    ("batch_size", "depth", "num_nodes"), [(1, 7, 17), (3, 15, 33), (32, 15, 65), (2, 7, 129), (5, 3, 200)]
)
def test_kernel_walks_as_core_does(batch_size: int, depth: int, num_nodes: int) -> None:
    from ddtree_sglang.engine.stages.walk import walk_with_engine_kernel

    for seed in range(5):
        block = random_candidates(seed, batch_size, depth, max(60, num_nodes), num_nodes - 1)
        tree = build_draft_tree(block.ids.cuda(), block.logprobs.cuda(), block.root_ids.cuda(), num_nodes)
        built = complete_tree(tree, torch.zeros(batch_size, dtype=torch.int64, device="cuda"))
        generator = torch.Generator(device="cuda").manual_seed(seed)
        # Half of the nodes agree with their first child, so that paths have some length.
        children = built.layout.retrieve_next_token
        first = tree.token_ids.gather(1, children.clamp(min=0))
        agrees = (torch.rand(children.shape, generator=generator, device="cuda") < 0.5) & (children >= 0)
        target_ids = torch.where(agrees, first, torch.full_like(first, -7))
        found = walk_with_engine_kernel(built, target_ids, depth + 1)
        expected = walk_tree(tree, target_ids, depth + 1)
        for name in FIELDS:
            assert torch.equal(getattr(found, name), getattr(expected, name)), name

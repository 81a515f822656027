"""On a GPU: the round in one CUDA graph, replayed on new inputs, equals the oracle on the host."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import ancestor_mask, build_draft_tree, build_draft_tree_heap, layout_draft_tree, walk_tree
from tests.core.tree_cases import FIELDS, random_candidates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize(("batch_size", "num_nodes", "depth"), [(1, 17, 7), (8, 65, 15)])
def test_captured_round_replayed_on_new_candidates_equals_the_heap(batch_size: int, num_nodes: int, depth: int) -> None:
    def candidates(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        block = random_candidates(seed, batch_size, depth, 200, num_nodes - 1)
        return block.ids, block.logprobs, block.root_ids

    ids, logprobs, roots = (tensor.cuda() for tensor in candidates(0))
    prefix_lens = torch.full((batch_size,), 9, device="cuda")
    target_ids = torch.zeros(batch_size, num_nodes, dtype=torch.int64, device="cuda")

    def run():
        tree = build_draft_tree(ids, logprobs, roots, num_nodes)
        layout = layout_draft_tree(tree, prefix_lens)
        return tree, layout, ancestor_mask(tree.parents, depth), walk_tree(tree, target_ids, depth + 1)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # fills the cache of index tables
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tree, layout, mask, accepted = run()

    for seed in (1, 2):
        fresh = candidates(seed)
        expected = build_draft_tree_heap(*fresh, num_nodes)
        choices = torch.randint(200, (batch_size, num_nodes), generator=torch.Generator().manual_seed(seed))
        choices[:, 0] = expected.token_ids[:, 1]  # the first step is accepted
        for static, new in zip((ids, logprobs, roots, target_ids), (*fresh, choices), strict=True):
            static.copy_(new)
        graph.replay()
        for field in FIELDS:
            assert torch.equal(getattr(tree, field).cpu(), getattr(expected, field)), field
        assert torch.equal(mask.cpu(), ancestor_mask(expected.parents))
        expected_layout = layout_draft_tree(expected, prefix_lens.cpu())
        for field in ("positions", "retrieve_next_token", "retrieve_next_sibling"):
            assert torch.equal(getattr(layout, field).cpu(), getattr(expected_layout, field)), field
        expected_walk = walk_tree(expected, choices, depth + 1)
        assert torch.equal(accepted.accept_index.cpu(), expected_walk.accept_index)
        assert torch.equal(accepted.token_ids.cpu(), expected_walk.token_ids)

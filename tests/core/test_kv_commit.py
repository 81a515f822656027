"""The commit plan moves accepted rows to the front of the window."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddtree_sglang.core import build_draft_tree, commit_plan, walk_tree
from tests.core.tree_cases import SAMPLE_TREE, random_candidates


def test_commit_of_a_path_off_the_front_moves_its_rows_to_depth_order() -> None:
    """The path 0 -> 1 -> 3 -> 6: rows 0, 1, 3, 6 of the window become slots 0, 1, 2, 3."""
    target_ids = torch.tensor([[7, 4, 0, 9, 0, 0, 33, 0]])
    accepted = walk_tree(SAMPLE_TREE, target_ids, 5)
    plan = commit_plan(accepted)
    assert plan.source_slots.tolist() == [[0, 1, 3, 6, 0]]
    assert plan.target_slots.tolist() == [[0, 1, 2, 3, 0]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), num_nodes=st.integers(1, 20), depth=st.integers(1, 6), vocab=st.integers(1, 3))
def test_commit_leaves_the_path_at_the_front(seed: int, num_nodes: int, depth: int, vocab: int) -> None:
    candidates = random_candidates(seed, 3, depth, vocab, vocab)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes)
    target_ids = torch.randint(vocab, (3, num_nodes), generator=torch.Generator().manual_seed(seed))
    accepted = walk_tree(tree, target_ids, depth + 1)
    plan = commit_plan(accepted)
    # A safe plan moves backwards only and never outside the window, also past the path's end.
    assert bool(((plan.source_slots >= plan.target_slots) & (plan.source_slots < num_nodes)).all())
    window = torch.arange(3 * num_nodes).view(3, num_nodes)  # a row's content names its request and node
    ascending = window.clone()
    for j in range(depth + 1):  # without reading all first, and without looking for the path's end
        for b in range(3):
            ascending[b, plan.target_slots[b, j]] = ascending[b, plan.source_slots[b, j]]
    at_once = window.clone().scatter_(1, plan.target_slots, window.gather(1, plan.source_slots))
    for b in range(3):
        path = [node for node in accepted.accept_index[b].tolist() if node >= 0]
        assert ascending[b, : len(path)].tolist() == [b * num_nodes + node for node in path]
        assert at_once[b, : len(path)].tolist() == ascending[b, : len(path)].tolist()

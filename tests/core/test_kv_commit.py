"""The commit plan moves accepted rows to the front of the window and accounts for every slot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddtree_sglang.core import build_draft_tree, commit_plan, gather_rows, walk_tree
from tests.core.tree_cases import random_candidates, sample_tree


def test_commit_of_a_path_off_the_front_moves_its_rows_to_depth_order() -> None:
    """
    0: 50 (root)        accepted: 0 -> 1 -> 3 -> 6, rows 0 1 3 6 of the window
    |-- 1: 7            become    slots 0 1 2 3
    |   |-- 3: 4
    |   |   `-- 6: 9
    |   `-- 4: 7
    `-- 2: 4
        `-- 5: 7
    """
    target_ids = torch.tensor([[7, 4, 0, 9, 0, 0, 33, 0]])
    accepted = walk_tree(sample_tree(), target_ids, 5)
    plan = commit_plan(accepted, 8)
    assert plan.source_slots.tolist() == [[0, 1, 3, 6, 0]]
    assert plan.target_slots.tolist() == [[0, 1, 2, 3, 0]]
    assert plan.valid.tolist() == [[True, True, True, True, False]]
    assert plan.unused.tolist() == [[False] * 4 + [True] * 4]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), num_nodes=st.integers(1, 20), depth=st.integers(1, 6), vocab=st.integers(1, 3))
def test_commit_leaves_the_path_at_the_front_and_every_slot_committed_or_unused(
    seed: int, num_nodes: int, depth: int, vocab: int
) -> None:
    candidates = random_candidates(seed, 3, depth, vocab, vocab)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes)
    target_ids = torch.randint(vocab, (3, num_nodes), generator=torch.Generator().manual_seed(seed))
    accepted = walk_tree(tree, target_ids, depth + 1)
    plan = commit_plan(accepted, num_nodes)
    # A safe plan moves backwards only and never outside the window, also where not valid.
    assert bool(((plan.source_slots >= plan.target_slots) & (plan.source_slots < num_nodes)).all())
    window = torch.arange(3 * num_nodes).view(3, num_nodes)  # a row's content names its request and node
    ascending = window.clone()
    for j in range(depth + 1):  # without reading all first, and without looking at `valid`
        for b in range(3):
            ascending[b, plan.target_slots[b, j]] = ascending[b, plan.source_slots[b, j]]
    at_once = window.clone().scatter_(1, plan.target_slots, window.gather(1, plan.source_slots))
    for b in range(3):
        path = [node for node in accepted.accept_index[b].tolist() if node >= 0]
        assert ascending[b, : len(path)].tolist() == [b * num_nodes + node for node in path]
        assert at_once[b, : len(path)].tolist() == ascending[b, : len(path)].tolist()
        assert plan.unused[b].tolist() == [slot >= len(path) for slot in range(num_nodes)]


@pytest.mark.parametrize("row_shape", [(), (4,), (2, 3)])
def test_gather_rows_takes_the_accepted_rows_in_path_order(row_shape: tuple[int, ...]) -> None:
    rows = torch.randn(2, 5, *row_shape)
    accept_index = torch.tensor([[0, 2, 4], [0, 3, -1]])
    gathered = gather_rows(rows, accept_index)
    assert gathered.shape == (2, 3, *row_shape)
    assert torch.equal(gathered[0], rows[0, [0, 2, 4]])
    assert torch.equal(gathered[1], rows[1, [0, 3, 0]])  # the root's row where the path has ended


def test_gather_rows_with_a_flat_batch_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="view the flat verify output"):
        gather_rows(torch.zeros(10, 4), torch.zeros(2, 3, dtype=torch.int64))

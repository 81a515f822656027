"""Positions and links of the layout, against following parents one at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddtree_sglang.core import build_draft_tree, layout_draft_tree
from tests.core.tree_cases import SAMPLE_TREE, Candidates, batch_of, chain_tree, tie_prone_candidates


def test_layout_of_the_sample_tree_links_children_in_node_order() -> None:
    layout = layout_draft_tree(SAMPLE_TREE, torch.tensor([20]))
    assert layout.positions.tolist() == [[20, 21, 21, 22, 22, 22, 23, 20]]
    assert layout.retrieve_index.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert layout.retrieve_next_token.tolist() == [[1, 3, 5, 6, -1, -1, -1, -1]]
    assert layout.retrieve_next_sibling.tolist() == [[-1, 2, -1, 4, -1, -1, -1, -1]]


def test_layout_of_a_batch_offsets_the_flat_index_alone() -> None:
    layout = layout_draft_tree(batch_of(SAMPLE_TREE, chain_tree(8)), torch.tensor([20, 0]))
    assert layout.positions[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert layout.retrieve_index[1].tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert layout.retrieve_next_token[1].tolist() == [1, 2, 3, 4, 5, 6, 7, -1]
    assert layout.retrieve_next_sibling[1].tolist() == [-1] * 8


@settings(max_examples=60, deadline=None)
@given(candidates=tie_prone_candidates(), num_nodes=st.integers(1, 30))
def test_links_visit_each_real_node_once_in_depth_first_order(candidates: Candidates, num_nodes: int) -> None:
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes)
    layout = layout_draft_tree(tree, torch.arange(tree.batch_size) * 7)
    assert torch.equal(layout.positions, tree.depths + torch.arange(tree.batch_size).view(-1, 1) * 7)
    for b in range(tree.batch_size):
        next_token = layout.retrieve_next_token[b].tolist()
        next_sibling = layout.retrieve_next_sibling[b].tolist()
        for node in range(num_nodes):
            children, child = [], next_token[node]
            while child >= 0:
                children.append(child)
                child = next_sibling[child]
            assert children == [n for n in range(num_nodes) if tree.parents[b, n] == node]
        assert next_sibling[0] == -1


@pytest.mark.parametrize(
    ("prefix_lens", "message"),
    [
        (torch.tensor([1, 2]), r"prefix_lens must be \[B\] = \[1\]"),
        (torch.tensor([1], dtype=torch.int32), "prefix_lens must be torch.int64"),
        (torch.zeros(1, dtype=torch.int64, device="meta"), "prefix_lens must be on cpu"),
    ],
)
def test_layout_with_bad_prefix_lens_names_the_argument(prefix_lens: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout_draft_tree(SAMPLE_TREE, prefix_lens)

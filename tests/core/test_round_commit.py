"""What a round makes final beside its path, by hand."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import commit_round
from tests.core.tree_cases import batch_of, make_tree

# Two requests: 0 -> 1 -> 3 and 0 -> 2, with the tokens 7, 4 below the root and 9 below node 1.
TREE = batch_of(make_tree([50, 7, 4, 9], [-1, 0, 0, 1]), make_tree([60, 7, 4, 9], [-1, 0, 0, 1]))
TARGET_IDS = torch.tensor([[7, 9, 0, 88], [4, 0, 99, 0]])
PREFIX_LENS = torch.tensor([10, 20])


def test_rows_past_the_end_of_a_path_are_the_roots() -> None:
    made = commit_round(TREE, TARGET_IDS, PREFIX_LENS, 4)
    assert made.path.accept_index.tolist() == [[0, 1, 3, -1], [0, 2, -1, -1]]
    assert made.context_rows.tolist() == [[0, 1, 3, 0], [4, 6, 4, 4]]
    assert made.context_positions.tolist() == [[10, 11, 12, 13], [20, 21, 22, 23]]
    assert made.new_seq_lens.tolist() == [13, 22]
    assert made.accept_lens.tolist() == [3, 2]
    assert made.accept_lens.dtype == torch.int32


@pytest.mark.parametrize(("max_path_len", "context_len"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_the_context_has_no_more_rows_than_the_tree_has_nodes(max_path_len: int, context_len: int) -> None:
    made = commit_round(TREE, TARGET_IDS, PREFIX_LENS, max_path_len)
    assert made.path.accept_index.shape == (2, max_path_len)
    assert made.context_rows.shape == made.context_positions.shape == (2, context_len)


def test_prefix_lengths_of_another_number_of_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prefix_lens must be \[B\] = \[2\]"):
        commit_round(TREE, TARGET_IDS, torch.tensor([10]), 4)

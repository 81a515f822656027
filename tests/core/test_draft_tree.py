"""`check_invariants` accepts valid trees and names what is wrong with each kind of invalid one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ddtree_sglang.core import DraftTree
from tests.core.tree_cases import SAMPLE_TREE, batch_of, chain_tree


def replaced(tree: DraftTree, field: str, node: int, value: float) -> DraftTree:
    tensor = getattr(tree, field).clone()
    tensor[0, node] = value
    return dataclasses.replace(tree, **{field: tensor})


def test_check_invariants_with_valid_trees_passes() -> None:
    SAMPLE_TREE.check_invariants()
    chain_tree(8).check_invariants()
    batch_of(SAMPLE_TREE, chain_tree(8)).check_invariants()


def test_sizes_and_is_real_of_the_sample_tree() -> None:
    tree = batch_of(SAMPLE_TREE, chain_tree(8))
    assert (tree.batch_size, tree.num_nodes, tree.device) == (2, 8, torch.device("cpu"))
    assert tree.is_real.tolist() == [[True] * 7 + [False], [True] * 8]


@pytest.mark.parametrize(
    ("field", "node", "value", "message"),
    [
        ("parents", 0, 0, "root has no parent"),
        ("depths", 0, 1, "root has depth 0"),
        ("logprobs", 0, -0.1, "root has log-probability 0"),
        ("parents", 3, 4, "before its children"),
        ("parents", 3, 3, "before its children"),
        ("parents", 6, -1, "-inf exactly at padding"),
        ("parents", 2, -1, "padding comes after"),
        ("logprobs", 4, -9.0, "descending"),
        ("logprobs", 7, -9.0, "-inf exactly at padding"),
        ("depths", 7, 1, "padding has depth 0"),
        ("depths", 6, 2, "one deeper"),
        ("token_ids", 4, 4, "siblings"),
    ],
)
def test_check_invariants_with_one_value_broken_names_the_rule(
    field: str, node: int, value: float, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        replaced(SAMPLE_TREE, field, node, value).check_invariants()


@pytest.mark.parametrize("field", ["token_ids", "parents", "depths", "logprobs"])
def test_check_invariants_with_a_wrong_dtype_or_shape_names_the_tensor(field: str) -> None:
    tensor = getattr(SAMPLE_TREE, field)
    with pytest.raises(AssertionError, match=field):
        dataclasses.replace(SAMPLE_TREE, **{field: tensor.to(torch.int32)}).check_invariants()
    if field != "token_ids":  # which defines the shape
        with pytest.raises(AssertionError, match=field):
            dataclasses.replace(SAMPLE_TREE, **{field: tensor[:, :-1]}).check_invariants()

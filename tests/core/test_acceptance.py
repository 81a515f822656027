"""The walk, by hand and against a walk one node at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddtree_sglang.core import DraftTree, build_draft_tree, walk_tree
from tests.core.tree_cases import SAMPLE_TREE, batch_of, chain_tree, make_tree, random_candidates


def walk_one_at_a_time(tree: DraftTree, target_ids: torch.Tensor, b: int) -> tuple[list[int], list[int]]:
    """Nodes visited and tokens emitted for request b, by looking for the child with the target's token."""
    node, nodes, tokens = 0, [0], []
    while True:
        tokens.append(int(target_ids[b, node]))
        children = [
            n
            for n in range(tree.num_nodes)
            if int(tree.parents[b, n]) == node and int(tree.token_ids[b, n]) == tokens[-1]
        ]
        if not children:
            return nodes, tokens
        node = children[0]
        nodes.append(node)


@pytest.mark.parametrize(
    ("choices", "nodes", "tokens"),
    [
        ({0: 99}, [0], [99]),
        ({0: 7, 1: 99}, [0, 1], [7, 99]),
        ({0: 7, 1: 4, 3: 9, 6: 99}, [0, 1, 3, 6], [7, 4, 9, 99]),
        ({0: 7, 1: 7, 4: 9}, [0, 1, 4], [7, 7, 9]),
        ({0: 4, 2: 7, 5: 9}, [0, 2, 5], [4, 7, 9]),
        ({0: 4, 2: 4}, [0, 2], [4, 4]),  # 4 is the root's child, not node 2's
        ({0: 50}, [0], [50]),  # the root's own token leads nowhere
        ({0: 0}, [0], [0]),  # nor does padding's
    ],
)
def test_walk_goes_where_the_target_chooses_and_stops_where_no_child_matches(
    choices: dict[int, int], nodes: list[int], tokens: list[int]
) -> None:
    target_ids = torch.tensor([[choices.get(node, 77) for node in range(8)]])
    accepted = walk_tree(SAMPLE_TREE, target_ids, 5)
    padded = 5 - len(nodes)
    assert accepted.accept_index.tolist() == [nodes + [-1] * padded]
    assert accepted.token_ids.tolist() == [tokens + [0] * padded]
    assert accepted.num_correct_drafts.tolist() == [len(nodes) - 1]
    assert accepted.commit_lens.tolist() == [len(nodes)]
    assert accepted.bonus_ids.tolist() == [tokens[-1]]


@pytest.mark.parametrize("max_path_len", [1, 2, 3, 5, 9])
def test_walk_with_a_shorter_limit_stops_there_with_a_bonus(max_path_len: int) -> None:
    """root -> 1 -> 2 -> 3 -> 4, all correct, and 55 after the last."""
    accepted = walk_tree(chain_tree(5), torch.tensor([[1, 2, 3, 4, 55]]), max_path_len)
    num_nodes = min(max_path_len, 5)
    assert accepted.commit_lens.tolist() == [num_nodes]
    assert accepted.accept_index.tolist() == [list(range(num_nodes)) + [-1] * (max_path_len - num_nodes)]
    assert accepted.bonus_ids.tolist() == [[1, 2, 3, 4, 55][num_nodes - 1]]


def test_walk_of_the_root_alone_emits_the_bonus() -> None:
    accepted = walk_tree(make_tree([50], [-1]), torch.tensor([[6]]), 4)
    assert accepted.token_ids.tolist() == [[6, 0, 0, 0]]


def test_walk_with_siblings_of_one_token_takes_the_first() -> None:
    """root -> 1: 7 -> 3: 5 and root -> 2: 7 (an invalid tree must not lead the walk astray)."""
    tree = make_tree([50, 7, 7, 5], [-1, 0, 0, 1])
    assert walk_tree(tree, torch.tensor([[7, 5, 8, 9]]), 3).accept_index.tolist() == [[0, 1, 3]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_nodes=st.integers(1, 25), depth=st.integers(1, 6), vocab=st.integers(1, 4))
def test_walk_equals_one_node_at_a_time(seed: int, num_nodes: int, depth: int, vocab: int) -> None:
    candidates = random_candidates(seed, 4, depth, vocab, vocab)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes)
    target_ids = torch.randint(vocab, (4, num_nodes), generator=torch.Generator().manual_seed(seed))
    accepted = walk_tree(tree, target_ids, depth + 1)
    for b in range(4):
        nodes, tokens = walk_one_at_a_time(tree, target_ids, b)
        padded = depth + 1 - len(nodes)
        assert accepted.accept_index[b].tolist() == nodes + [-1] * padded
        assert accepted.token_ids[b].tolist() == tokens + [0] * padded
        assert int(accepted.commit_lens[b]) == len(nodes)
        assert int(accepted.num_correct_drafts[b]) == len(nodes) - 1
        assert int(accepted.bonus_ids[b]) == tokens[-1]


def test_walk_of_a_batch_keeps_requests_apart() -> None:
    tree = batch_of(SAMPLE_TREE, chain_tree(8))
    target_ids = torch.tensor([[4, 0, 7, 0, 0, 1, 0, 0], [1, 2, 3, 9, 0, 0, 0, 0]])
    accepted = walk_tree(tree, target_ids, 8)
    assert accepted.commit_lens.tolist() == [3, 4]
    assert accepted.accept_index[:, :4].tolist() == [[0, 2, 5, -1], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("target_ids", "max_path_len", "message"),
    [
        (torch.zeros(1, 7, dtype=torch.int64), 4, r"target_ids must be \[B, N\] = \(1, 8\)"),
        (torch.zeros(1, 8, dtype=torch.int32), 4, "target_ids must be torch.int64"),
        (torch.zeros(1, 8, dtype=torch.int64, device="meta"), 4, "target_ids must be on cpu"),
        (torch.zeros(1, 8, dtype=torch.int64), 0, "max_path_len must be at least 1"),
    ],
)
def test_walk_with_bad_input_names_the_argument(target_ids: torch.Tensor, max_path_len: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        walk_tree(SAMPLE_TREE, target_ids, max_path_len)

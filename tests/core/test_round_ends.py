"""Where a path is cut: at tokens that end a request, at its length, at the nodes that it allows itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddtree_sglang.core import DraftTree, RoundEnds, build_draft_tree, commit_round, walk_tree
from ddtree_sglang.core.round_ends import NO_LIMIT
from tests.core.tree_cases import SAMPLE_TREE, batch_of, chain_tree, random_candidates, random_ends

# root -> 1 -> 2 -> 3 -> 4, all of the target's choice, and 55 after the last.
CHAIN, CHOICES = chain_tree(5), torch.tensor([[1, 2, 3, 4, 55]])


def ends_of(end_ids: list[list[int]], limit_lens: list[int], node_limits: list[int]) -> RoundEnds:
    return RoundEnds(torch.tensor(end_ids), torch.tensor(limit_lens), torch.tensor(node_limits))


def cut_one_at_a_time(
    tree: DraftTree, target_ids: torch.Tensor, b: int, ends: RoundEnds, prefix_len: int
) -> tuple[list[int], list[int]]:
    """As plain decoding: emit a token, look whether it ends the request, only then go on."""
    stop_ids = set(ends.end_ids[b].tolist()) - {-1}
    node, nodes, tokens = 0, [0], []
    while True:
        tokens.append(int(target_ids[b, node]))
        if tokens[-1] in stop_ids or prefix_len + len(tokens) >= int(ends.limit_lens[b]):
            return nodes, tokens
        children = [
            n
            for n in range(min(tree.num_nodes, int(ends.node_limits[b])))
            if int(tree.parents[b, n]) == node and int(tree.token_ids[b, n]) == tokens[-1]
        ]
        if not children:
            return nodes, tokens
        node = children[0]
        nodes.append(node)


@pytest.mark.parametrize(("end", "tokens"), [(1, [1]), (3, [1, 2, 3]), (55, [1, 2, 3, 4, 55]), (9, [1, 2, 3, 4, 55])])
def test_the_token_that_ends_a_request_is_the_last_that_is_emitted(end: int, tokens: list[int]) -> None:
    made = walk_tree(CHAIN, CHOICES, 5, ends_of([[7, end]], [NO_LIMIT], [NO_LIMIT]))
    assert made.token_ids[0, : len(tokens)].tolist() == tokens
    assert made.commit_lens.tolist() == [len(tokens)]
    assert made.bonus_ids.tolist() == [tokens[-1]]


def test_the_root_may_be_an_end_token_since_it_was_judged_before() -> None:
    made = walk_tree(CHAIN, CHOICES, 5, ends_of([[int(CHAIN.token_ids[0, 0])]], [NO_LIMIT], [NO_LIMIT]))
    assert made.commit_lens.tolist() == [5]


@pytest.mark.parametrize(("limit", "emitted"), [(14, 4), (13, 3), (11, 1), (10, 1), (3, 1), (15, 5), (99, 5)])
def test_a_path_stops_at_the_requests_length_and_keeps_its_root(limit: int, emitted: int) -> None:
    made = commit_round(CHAIN, CHOICES, torch.tensor([10]), 5, ends_of([[-1]], [limit], [NO_LIMIT]))
    assert made.path.commit_lens.tolist() == made.accept_lens.tolist() == [emitted]
    assert made.new_seq_lens.tolist() == [10 + emitted]
    assert made.path.bonus_ids.tolist() == [CHOICES[0, emitted - 1]]


@pytest.mark.parametrize(("limit", "path"), [(1, [0]), (2, [0]), (3, [0, 2]), (5, [0, 2]), (6, [0, 2, 5])])
def test_nodes_past_a_requests_own_limit_are_not_entered(limit: int, path: list[int]) -> None:
    """The walk goes 0 -> 2 -> 5: node 5 is there with a limit of 6, not of 5."""
    target_ids = torch.tensor([[4, 77, 7, 77, 77, 9, 77, 77]])
    made = walk_tree(SAMPLE_TREE, target_ids, 5, ends_of([[-1]], [NO_LIMIT], [limit]))
    assert made.accept_index[0, : len(path)].tolist() == path
    assert made.commit_lens.tolist() == [len(path)]


def test_requests_of_a_batch_have_ends_of_their_own() -> None:
    tree = batch_of(*[CHAIN] * 4)
    ends = ends_of([[2, -1], [3, 9], [-1, -1], [-1, -1]], [NO_LIMIT, NO_LIMIT, 11, NO_LIMIT], [9, 9, 9, 2])
    made = commit_round(tree, CHOICES.repeat(4, 1), torch.tensor([10] * 4), 5, ends)
    assert made.accept_lens.tolist() == [2, 3, 1, 2]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), num_nodes=st.integers(1, 25), depth=st.integers(1, 6), vocab=st.integers(2, 5))
def test_a_cut_walk_is_plain_decodings(seed: int, num_nodes: int, depth: int, vocab: int) -> None:
    block = random_candidates(seed, 4, depth, vocab, vocab)
    tree = build_draft_tree(block.ids, block.logprobs, block.root_ids, num_nodes)
    target_ids = torch.randint(vocab, (4, num_nodes), generator=torch.Generator().manual_seed(seed))
    ends, prefix_lens = random_ends(seed, 4, vocab, depth, num_nodes)
    made = walk_tree(tree, target_ids, depth + 1, ends, prefix_lens)
    for b in range(4):
        nodes, tokens = cut_one_at_a_time(tree, target_ids, b, ends, int(prefix_lens[b]))
        assert made.accept_index[b].tolist() == nodes + [-1] * (depth + 1 - len(nodes))
        assert made.token_ids[b].tolist() == tokens + [0] * (depth + 1 - len(tokens))
        assert int(made.bonus_ids[b]) == tokens[-1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_nodes=st.integers(2, 25), limit=st.integers(1, 25))
def test_a_request_that_allows_itself_n_nodes_is_walked_in_the_best_tree_of_n(
    seed: int, num_nodes: int, limit: int
) -> None:
    """The first n nodes of a tree are the tree that n nodes would have been built to."""
    limit = min(limit, num_nodes)
    block = random_candidates(seed, 3, 4, 5, 5)
    whole, small = (build_draft_tree(block.ids, block.logprobs, block.root_ids, n) for n in (num_nodes, limit))
    target_ids = torch.randint(5, (3, num_nodes), generator=torch.Generator().manual_seed(seed))
    cut = walk_tree(whole, target_ids, 5, ends_of([[-1]] * 3, [NO_LIMIT] * 3, [limit] * 3))
    assert torch.equal(cut.token_ids, walk_tree(small, target_ids[:, :limit], 5).token_ids)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"end_ids": torch.zeros(2, 1, dtype=torch.int64)}, "end_ids"),
        ({"limit_lens": torch.zeros(1, dtype=torch.int32)}, "limit_lens"),
        ({"node_limits": torch.zeros(1, dtype=torch.int64, device="meta")}, "node_limits"),
    ],
)
def test_ends_of_another_batch_are_refused(changed: dict[str, Any], name: str) -> None:
    none = RoundEnds.none(1, torch.device("cpu"))
    given_ = {"end_ids": none.end_ids, "limit_lens": none.limit_lens, "node_limits": none.node_limits, **changed}
    with pytest.raises(ValueError, match=f"{name} must have 1 requests first"):
        walk_tree(CHAIN, CHOICES, 5, RoundEnds(**given_))

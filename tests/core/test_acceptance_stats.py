"""Accept length and rounds by hand, and Proposition 1 of the paper over random rounds."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import (
    DraftTree,
    accept_length,
    build_draft_tree,
    chain_commit_lens,
    chain_nodes,
    count_rounds,
    walk_tree,
)
from tests.core.tree_cases import SAMPLE_TREE, batch_of, chain_tree, random_candidates


def test_accept_length_counts_the_bonus_token() -> None:
    # Rounds that accept 0, 2 and 3 drafted tokens commit 1, 3 and 4.
    assert accept_length(1 + 3 + 4, 3) == pytest.approx(8 / 3)


def test_accept_length_without_a_round_is_none() -> None:
    assert accept_length(12, 0) is None


@pytest.mark.parametrize(
    ("commit_lens", "rounds"),
    [
        ([], 0),
        ([1, 1, 1], 3),
        ([3, 9, 9, 1, 2, 9], 3),  # rounds at 0, 3 and 4
        ([2, 9, 4, 9], 2),  # the last round would commit past the end
    ],
)
def test_each_round_starts_where_the_one_before_ended(commit_lens: list[int], rounds: int) -> None:
    assert count_rounds(commit_lens) == rounds


def test_chain_is_the_first_node_of_each_depth() -> None:
    """SAMPLE_TREE's chain is 0 -> 1 -> 3 -> 6."""
    assert chain_nodes(SAMPLE_TREE).nonzero()[:, 1].tolist() == [0, 1, 3, 6]
    assert bool(chain_nodes(chain_tree(8)).all())


@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0])
def test_chain_is_that_of_the_best_candidates_ties_included(scale: float) -> None:
    candidates = random_candidates(3, 8, 4, 6, 5, scale)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, 12)
    chain = chain_nodes(tree)
    for b in range(8):
        tokens = tree.token_ids[b][chain[b]].tolist()[1:]
        assert tokens == candidates.ids[b, : len(tokens), 0].tolist()
        parents = tree.parents[b][chain[b]].tolist()
        assert parents == [-1, *chain[b].nonzero().flatten().tolist()[:-1]]


def test_chain_commits_the_accepted_nodes_on_it() -> None:
    """On the sample tree: nothing accepted; 0 -> 1 -> 4, of which node 1 is on the chain; the whole chain."""
    tree = batch_of(SAMPLE_TREE, SAMPLE_TREE, SAMPLE_TREE)
    target_ids = torch.tensor([[99] * 8, [7, 7, 0, 0, 99, 0, 0, 0], [7, 4, 0, 9, 0, 0, 99, 0]])
    accepted = walk_tree(tree, target_ids, 5)
    assert accepted.commit_lens.tolist() == [1, 3, 4]
    assert chain_commit_lens(tree, accepted).tolist() == [1, 2, 4]


def test_path_probabilities_forecast_accept_length_when_the_target_draws_from_the_drafter() -> None:
    """Proposition 1 of the paper, for a target whose law is the drafter's own."""
    candidates = random_candidates(5, 1, 3, 4, 4, 1.0)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, 9)
    num_draws = 20_000
    ranks = torch.multinomial(candidates.logprobs[0].exp(), num_draws, True, generator=torch.Generator().manual_seed(2))
    tokens = candidates.ids[0].gather(1, ranks)  # [D, draws], one factorised continuation per draw
    tokens = torch.cat((tokens, torch.zeros(1, num_draws, dtype=torch.int64)))
    many = DraftTree(
        *(part.expand(num_draws, -1) for part in (tree.token_ids, tree.parents, tree.depths, tree.logprobs))
    )
    accepted = walk_tree(many, tokens.T.gather(1, many.depths), 4)
    measured = accept_length(int(accepted.commit_lens.sum()), num_draws)
    assert measured == pytest.approx(float(tree.logprobs.exp().sum()), abs=0.03)

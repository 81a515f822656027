"""Each metric by hand on a drawn tree, and its identities over random rounds."""

from __future__ import annotations

import math

import pytest
import torch

from ddtree_sglang.core import AcceptanceCounts, build_draft_tree, count_round, spine_nodes, walk_tree
from tests.core.tree_cases import batch_of, chain_tree, random_candidates, sample_tree


def test_spine_is_the_first_node_of_each_depth() -> None:
    """
    0: 50 (root)              spine: 0 -> 1 -> 3 -> 6
    |-- 1: 7
    |   |-- 3: 4
    |   |   `-- 6: 9
    |   `-- 4: 7
    `-- 2: 4
        `-- 5: 7
    7: padding
    """
    assert spine_nodes(sample_tree()).nonzero()[:, 1].tolist() == [0, 1, 3, 6]
    assert bool(spine_nodes(chain_tree(8)).all())


@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0])
def test_spine_is_the_chain_of_best_candidates_ties_included(scale: float) -> None:
    candidates = random_candidates(3, 8, 4, 6, 5, scale)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, 12)
    spine = spine_nodes(tree)
    for b in range(8):
        tokens = tree.token_ids[b][spine[b]].tolist()[1:]
        assert tokens == candidates.ids[b, : len(tokens), 0].tolist()
        parents = tree.parents[b][spine[b]].tolist()
        assert parents == [-1, *spine[b].nonzero().flatten().tolist()[:-1]]


def three_rounds() -> AcceptanceCounts:
    """On the drawn tree: nothing accepted; 0 -> 1 -> 4, of which node 1 is on the spine; the whole spine."""
    tree = batch_of(sample_tree(), sample_tree(), sample_tree())
    target_ids = torch.tensor([[99] * 8, [7, 7, 0, 0, 99, 0, 0, 0], [7, 4, 0, 9, 0, 0, 99, 0]])
    return count_round(tree, walk_tree(tree, target_ids, 5))


def test_summary_of_three_rounds_by_hand() -> None:
    summary = three_rounds().summarize()
    assert summary.num_rounds == 3
    assert summary.num_commit_tokens == 1 + 3 + 4
    assert summary.accept_length == pytest.approx(8 / 3)
    assert summary.accept_histogram == (1, 0, 1, 1, 0)
    assert summary.spine_accept_length == pytest.approx((1 + 2 + 4) / 3)
    assert summary.off_spine_share == pytest.approx(1 / 5)
    assert summary.per_depth_acceptance[:3] == pytest.approx((2 / 3, 1.0, 1 / 2))
    assert summary.per_depth_acceptance[3] == 0.0
    forecast = 1 + sum(math.exp(-0.5 * node) for node in range(1, 7))
    assert summary.expected_accept_length == pytest.approx(forecast, rel=1e-6)


def test_counts_of_two_batches_add_up() -> None:
    total = AcceptanceCounts.empty(5) + three_rounds() + three_rounds()
    assert total.summarize().num_rounds == 6
    assert total.summarize().accept_length == three_rounds().summarize().accept_length


def test_inactive_rows_are_no_rounds() -> None:
    tree = batch_of(sample_tree(), sample_tree())
    accepted = walk_tree(tree, torch.tensor([[99] * 8, [7, 99, 0, 0, 0, 0, 0, 0]]), 5)
    counts = count_round(tree, accepted, torch.tensor([False, True]))
    assert counts.accepted.tolist() == [0, 1, 0, 0, 0]
    assert counts.accepted_on_spine.tolist() == [0, 1, 0, 0, 0]
    assert counts.summarize().expected_accept_length == pytest.approx(
        1 + sum(math.exp(-0.5 * node) for node in range(1, 7)), rel=1e-6
    )


def test_summary_of_no_rounds_is_not_a_number_rather_than_an_error() -> None:
    summary = AcceptanceCounts.empty(4).summarize()
    assert summary.num_rounds == 0
    assert math.isnan(summary.accept_length)
    assert all(math.isnan(rate) for rate in summary.per_depth_acceptance)


def test_forecast_equals_accept_length_when_the_target_draws_from_the_drafter() -> None:
    """Proposition 1 of the paper, for a target whose law is the drafter's own."""
    candidates = random_candidates(5, 1, 3, 4, 4, 1.0)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, 9)
    num_draws = 20_000
    probs = candidates.logprobs[0].exp()
    ranks = torch.multinomial(probs, num_draws, True, generator=torch.Generator().manual_seed(2))
    tokens = candidates.ids[0].gather(1, ranks)  # [D, draws], one factorised continuation per draw
    tokens = torch.cat((tokens, torch.zeros(1, num_draws, dtype=torch.int64)))
    many = batch_of(tree)
    many = type(tree)(*(getattr(many, f).expand(num_draws, -1) for f in ("token_ids", "parents", "depths", "logprobs")))
    target_ids = tokens.T.gather(1, many.depths)
    summary = count_round(many, walk_tree(many, target_ids, 4)).summarize()
    assert summary.accept_length == pytest.approx(summary.expected_accept_length, abs=0.03)
    assert summary.accept_length > summary.spine_accept_length + 0.1

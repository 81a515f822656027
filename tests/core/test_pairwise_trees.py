"""Trees of a law of pairs: ten thousand blocks against the heap, as many against brute force, and the propositions."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from ddtree_sglang.core import build_draft_tree, build_draft_tree_heap
from tests.core.tree_cases import (
    TIE_PRONE,
    Candidates,
    assert_same_tree,
    brute_force_tree,
    build,
    build_heap,
    pair_candidates,
    prefixes,
    random_candidates,
)

INF = float("inf")
BUILDERS = pytest.mark.parametrize("builder", [build_draft_tree, build_draft_tree_heap])
ALL_TIES = (-0.5,)
FEW_POSSIBLE = (-INF, -INF, -INF, -0.25, -1.0)
ZEROS = (0.0, -0.0, -1e-30)
KINDS = {
    "random": (),
    "tie-prone": TIE_PRONE,
    "all equal": ALL_TIES,
    "mostly impossible": FEW_POSSIBLE,
    "zeros of both signs": ZEROS,
}

# B, D, K, N: one candidate, one depth, fewer candidates than nodes, fewer prefixes than nodes, serving sizes.
SIZES = [
    (100, 1, 1, 2),
    (100, 1, 5, 4),
    (100, 1, 4, 9),
    (100, 4, 1, 9),
    (700, 2, 2, 40),
    (600, 3, 2, 5),
    (500, 3, 4, 12),
    (180, 5, 6, 17),
    (40, 7, 16, 33),
]
# Those of which brute force scores every prefix: a parent counts in each, as there are two depths and two candidates.
SMALL_SIZES = [
    (500, 2, 2, 5),
    (400, 2, 2, 40),
    (400, 2, 5, 9),
    (400, 3, 2, 8),
    (250, 3, 4, 17),
    (250, 4, 3, 12),
]


def test_hand_made_pairs_give_the_order_of_path_probability() -> None:
    """After 5 the likelier token is 9, after 6 it is 8.

    100 (root)
    |-- 5   0.6
    |   |-- 9   0.6 * 0.7 = 0.42
    |   `-- 8   0.6 * 0.3 = 0.18
    `-- 6   0.4
        |-- 8   0.4 * 0.9 = 0.36
        `-- 9   0.4 * 0.1 = 0.04
    """
    pairs = torch.tensor([[[[0.6, 0.4], [0.0, 0.0]], [[0.3, 0.7], [0.9, 0.1]]]]).log()
    candidates = Candidates(torch.tensor([[[5, 6], [8, 9]]]), torch.zeros(1, 2, 2), torch.tensor([100]), pairs)
    for tree in (build(candidates, 7), build_heap(candidates, 7)):
        assert prefixes(tree) == [(), (5,), (5, 9), (6,), (6, 8), (5, 8), (6, 9)]
        torch.testing.assert_close(tree.logprobs.exp(), torch.tensor([[1.0, 0.6, 0.42, 0.4, 0.36, 0.18, 0.04]]))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_trees_equal_the_heaps(kind: str, sizes: tuple[int, int, int, int]) -> None:
    batch_size, depth, num_candidates, num_nodes = sizes
    candidates = pair_candidates(num_nodes, batch_size, depth, num_candidates, KINDS[kind])
    assert_same_tree(build(candidates, num_nodes), build_heap(candidates, num_nodes))


@pytest.mark.parametrize("sizes", SMALL_SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_trees_equal_brute_force_on_ten_thousand_blocks(kind: str, sizes: tuple[int, int, int, int]) -> None:
    batch_size, depth, num_candidates, num_nodes = sizes
    candidates = pair_candidates(100 + num_nodes, batch_size, depth, num_candidates, KINDS[kind])
    expected = brute_force_tree(candidates, num_nodes)
    assert_same_tree(build(candidates, num_nodes), expected)
    assert_same_tree(build_heap(candidates, num_nodes), expected)


def test_both_oracles_have_ten_thousand_blocks_in_which_a_parent_counts() -> None:
    for sizes in (SIZES, SMALL_SIZES):
        counted = [size[0] for size in sizes if size[1] > 1 and size[2] > 1]
        assert len(KINDS) * sum(counted) >= 10_000
    assert len(KINDS) * sum(size[0] for size in SMALL_SIZES) >= 10_000


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5, 9, 17, 60, 400])
@pytest.mark.parametrize(("depth", "num_candidates"), [(1, 4), (2, 5), (4, 3), (5, 1), (3, 4)])
def test_trees_equal_brute_force_over_all_prefixes(depth: int, num_candidates: int, num_nodes: int) -> None:
    for seed, values in enumerate(KINDS.values()):
        candidates = pair_candidates(seed, 6, depth, num_candidates, values)
        expected = brute_force_tree(candidates, num_nodes)
        assert_same_tree(build(candidates, num_nodes), expected)
        assert_same_tree(build_heap(candidates, num_nodes), expected)


@pytest.mark.parametrize("num_nodes", [2, 7, 30])
def test_a_law_that_ignores_the_parent_gives_the_factorised_tree(num_nodes: int) -> None:
    unary = random_candidates(3, 4, 5, 20, 6)
    pairs = unary.logprobs.unsqueeze(2).expand(-1, -1, 6, -1)
    assert_same_tree(build(dataclasses.replace(unary, pairs=pairs), num_nodes), build(unary, num_nodes))


def test_a_batch_equals_its_requests_one_by_one() -> None:
    candidates = pair_candidates(8, 5, 4, 3, TIE_PRONE)
    together = build(candidates, 14)
    for b in range(5):
        alone = build(candidates.request(b), 14)
        assert torch.equal(together.token_ids[b], alone.token_ids[0])
        assert torch.equal(together.parents[b], alone.parents[0])


@BUILDERS
def test_rows_of_parents_that_do_not_exist_are_not_read(builder) -> None:
    candidates = pair_candidates(4, 2, 3, 4)
    pairs = candidates.pairs
    assert pairs is not None
    expected = builder(candidates.ids, candidates.logprobs, candidates.root_ids, 12, pair_logprobs=pairs)
    spoilt = pairs.clone()
    spoilt[:, 0, 1:] = 0.0
    unary = torch.full_like(candidates.logprobs, float("nan"))
    assert_same_tree(builder(candidates.ids, unary, candidates.root_ids, 12, pair_logprobs=spoilt), expected)


@BUILDERS
@pytest.mark.parametrize(("bad", "counts_as"), [(float("nan"), -INF), (1e-6, 0.0), (INF, 0.0)])
def test_nan_and_positive_values_are_read_as_of_a_factorised_law(builder, bad: float, counts_as: float) -> None:
    candidates = pair_candidates(4, 2, 3, 4)
    assert candidates.pairs is not None
    trees = []
    for value in (bad, counts_as):
        pairs = candidates.pairs.clone()
        pairs[:, :, ::2, 1] = value
        trees.append(builder(candidates.ids, candidates.logprobs, candidates.root_ids, 20, pair_logprobs=pairs))
    trees[0].check_invariants()
    assert_same_tree(*trees)


@BUILDERS
def test_no_possible_pair_leaves_the_root(builder) -> None:
    candidates = pair_candidates(0, 2, 3, 4, (-INF,))
    tree = builder(candidates.ids, candidates.logprobs, candidates.root_ids, 5, pair_logprobs=candidates.pairs)
    assert tree.is_real.tolist() == [[True, False, False, False, False]] * 2


def test_expected_accept_length_is_the_sum_of_the_nodes_probabilities() -> None:
    """Proposition 1 for pairs, by enumeration: every whole path, its probability, how much of it the tree holds."""
    depth, num_candidates = 4, 3
    candidates = pair_candidates(11, 1, depth, num_candidates)
    assert candidates.pairs is not None
    probs, ids = candidates.pairs[0].double().exp(), candidates.ids[0]
    tree = build(candidates, 10)
    held = set(prefixes(tree))
    expected = 0.0
    for ranks in itertools.product(range(num_candidates), repeat=depth):
        tokens = tuple(int(ids[d, rank]) for d, rank in enumerate(ranks))
        steps = [probs[d, ranks[d - 1] if d else 0, rank] for d, rank in enumerate(ranks)]
        length = max(n for n in range(depth + 1) if tokens[:n] in held)
        expected += float(torch.stack(steps).prod()) * length
    assert expected == pytest.approx(float(tree.logprobs[0, 1:].double().exp().sum()), rel=1e-6)


@BUILDERS
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (torch.zeros(2, 3, 4), r"pair_logprobs must be \[B, D, K, K\] for topk_ids \(2, 3, 4\), got \(2, 3, 4\)"),
        (torch.zeros(2, 3, 4, 5), "pair_logprobs must be"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16), "pair_logprobs must be torch.float32"),
        (torch.zeros(2, 3, 4, 4, device="meta"), "pair_logprobs must be on cpu"),
    ],
)
def test_bad_pairs_are_named(builder, pairs: torch.Tensor, message: str) -> None:
    ids, logprobs, roots = torch.zeros(2, 3, 4).long(), torch.zeros(2, 3, 4), torch.zeros(2).long()
    with pytest.raises(ValueError, match=message):
        builder(ids, logprobs, roots, 5, pair_logprobs=pairs)

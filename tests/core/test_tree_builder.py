"""Both builders against brute force over all prefixes, and against each other on every shape and tie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddtree_sglang.core import build_draft_tree, build_draft_tree_heap
from tests.core.tree_cases import (
    FIELDS,
    Candidates,
    assert_same_tree,
    brute_force_tree,
    build,
    build_heap,
    prefixes,
    random_candidates,
    tie_prone_candidates,
    top_candidates,
)

BUILDERS = pytest.mark.parametrize("builder", [build_draft_tree, build_draft_tree_heap])
INF = float("inf")


def hand_candidates() -> Candidates:
    """Two positions, two candidates each, whose path probabilities are easy to follow.

    100 (root)
    |-- 5   0.6
    |   |-- 8   0.6 * 0.7 = 0.42
    |   `-- 9   0.6 * 0.3 = 0.18
    `-- 6   0.4
        |-- 8   0.4 * 0.7 = 0.28
        `-- 9   0.4 * 0.3 = 0.12
    """
    logprobs = torch.tensor([[[0.6, 0.4], [0.7, 0.3]]]).log()
    return Candidates(torch.tensor([[[5, 6], [8, 9]]]), logprobs, torch.tensor([100]))


@BUILDERS
def test_build_with_hand_made_probabilities_gives_the_order_of_path_probability(builder) -> None:
    candidates = hand_candidates()
    tree = builder(candidates.ids, candidates.logprobs, candidates.root_ids, 7)
    assert tree.token_ids.tolist() == [[100, 5, 8, 6, 8, 9, 9]]
    assert tree.parents.tolist() == [[-1, 0, 1, 0, 3, 1, 3]]
    assert tree.depths.tolist() == [[0, 1, 2, 1, 2, 2, 2]]
    expected = torch.tensor([[1.0, 0.6, 0.42, 0.4, 0.28, 0.18, 0.12]])
    torch.testing.assert_close(tree.logprobs.exp(), expected)


@BUILDERS
def test_build_with_a_budget_of_three_drops_the_least_probable_paths(builder) -> None:
    candidates = hand_candidates()
    tree = builder(candidates.ids, candidates.logprobs, candidates.root_ids, 4)
    assert prefixes(tree) == [(), (5,), (5, 8), (6,)]


@BUILDERS
def test_build_with_more_nodes_than_prefixes_pads_out_of_reach(builder) -> None:
    candidates = hand_candidates()
    tree = builder(candidates.ids, candidates.logprobs, candidates.root_ids, 10)
    tree.check_invariants()
    assert len(prefixes(tree)) == 7
    assert tree.is_real.tolist() == [[True] * 7 + [False] * 3]
    assert tree.token_ids[0, 7:].tolist() == [0, 0, 0]


@BUILDERS
def test_build_with_one_node_is_the_root_alone(builder) -> None:
    candidates = hand_candidates()
    tree = builder(candidates.ids, candidates.logprobs, candidates.root_ids, 1)
    tree.check_invariants()
    assert tree.token_ids.tolist() == [[100]]


@pytest.mark.parametrize("num_nodes", [2, 3, 5, 9, 17, 60, 400])
@pytest.mark.parametrize(
    ("depth", "vocab", "num_candidates"),
    [(1, 4, 4), (2, 5, 5), (4, 3, 3), (3, 5, 2), (5, 3, 1), (4, 4, 4)],
)
def test_build_against_brute_force_over_all_prefixes(
    depth: int, vocab: int, num_candidates: int, num_nodes: int
) -> None:
    for seed in range(3):
        for scale in (0.0, 0.5, 4.0):  # equal probabilities, flat, peaked
            candidates = random_candidates(seed, 2, depth, vocab, num_candidates, scale)
            expected = brute_force_tree(candidates, num_nodes)
            assert_same_tree(build(candidates, num_nodes), expected)
            assert_same_tree(build_heap(candidates, num_nodes), expected)


@settings(max_examples=100, deadline=None)
@given(candidates=tie_prone_candidates(), num_nodes=st.integers(1, 40))
def test_build_with_ties_and_impossible_candidates_equals_brute_force(candidates: Candidates, num_nodes: int) -> None:
    expected = brute_force_tree(candidates, num_nodes)
    assert_same_tree(build(candidates, num_nodes), expected)
    assert_same_tree(build_heap(candidates, num_nodes), expected)
    build(candidates, num_nodes).check_invariants()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 15), st.integers(1, 20)),
    vocab=st.integers(1, 20),
    num_nodes=st.integers(1, 70),
    scale=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
)
def test_build_with_random_logits_equals_the_heap(
    seed: int, sizes: tuple[int, int, int], vocab: int, num_nodes: int, scale: float
) -> None:
    batch_size, depth, num_candidates = sizes
    candidates = random_candidates(seed, batch_size, depth, vocab, min(num_candidates, vocab), scale)
    tree = build(candidates, num_nodes)
    tree.check_invariants()
    assert_same_tree(tree, build_heap(candidates, num_nodes))


@settings(max_examples=60, deadline=None)
@given(candidates=tie_prone_candidates(), num_nodes=st.integers(1, 30))
def test_build_of_a_batch_equals_one_by_one(candidates: Candidates, num_nodes: int) -> None:
    together = build(candidates, num_nodes)
    for b in range(len(candidates.root_ids)):
        alone = build(candidates.request(b), num_nodes)
        for field in FIELDS:
            assert torch.equal(getattr(together, field)[b : b + 1], getattr(alone, field)), field


@pytest.mark.parametrize(("num_nodes", "depth"), [(257, 15), (65, 7), (300, 3)])
def test_build_at_serving_sizes_equals_the_heap(num_nodes: int, depth: int) -> None:
    for scale in (0.05, 1.0, 6.0):
        candidates = random_candidates(3, 3, depth, 900, num_nodes - 1, scale)
        tree = build(candidates, num_nodes)
        tree.check_invariants()
        assert_same_tree(tree, build_heap(candidates, num_nodes))


def test_build_with_as_many_candidates_as_budget_loses_nothing_to_the_whole_vocabulary() -> None:
    """Lemma 1 of the paper: the top N - 1 candidates per depth span the best tree of N - 1 nodes."""
    full = (torch.randn(4, 5, 200, generator=torch.Generator().manual_seed(5)) * 2).log_softmax(-1)
    assert_same_tree(build(top_candidates(full, 24), 25), build(top_candidates(full, 200), 25))


def test_build_with_one_candidate_per_depth_is_the_chain() -> None:
    """The stock drafter's chain: 100 -> a -> b -> c, whatever the budget above D."""
    candidates = random_candidates(1, 1, 3, 50, 1)
    tree = build(candidates, 8)
    assert tree.parents.tolist() == [[-1, 0, 1, 2, -1, -1, -1, -1]]
    assert tree.token_ids[0, 1:4].tolist() == candidates.ids[0, :, 0].tolist()


def test_build_contains_the_chain_whenever_the_budget_reaches_the_whole_vocabulary_tree() -> None:
    """A certain drafter (probability 1 per position) yields the chain: other paths have probability 0."""
    logprobs = torch.tensor([[[0.0, -INF, -INF]] * 4])
    tree = build(Candidates(torch.arange(12).view(1, 4, 3), logprobs, torch.tensor([9])), 7)
    tree.check_invariants()
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 3, -1, -1]]


@pytest.mark.parametrize("step", [0.0, -1e-30])
def test_build_where_float32_swallows_a_step_keeps_the_parent_first(step: float) -> None:
    """Score of a child equal to its parent's, and to its uncle's: depth decides, so nobody precedes a parent.

    100 (root)
    |-- 0  -0.5      node 1
    |   `-- 5  -0.5  node 3
    `-- 1  -0.5      node 2
        `-- 5  -0.5  node 4
    """
    logprobs = torch.tensor([[[-0.5, -0.5], [step, -9.0]]])
    candidates = Candidates(torch.tensor([[[0, 1], [5, 6]]]), logprobs, torch.tensor([100]))
    for tree in (build(candidates, 5), build_heap(candidates, 5)):
        tree.check_invariants()
        assert tree.parents.tolist() == [[-1, 0, 0, 1, 2]]


@BUILDERS
def test_build_with_nothing_possible_is_the_root_and_padding(builder) -> None:
    tree = builder(torch.ones(1, 2, 3, dtype=torch.int64), torch.full((1, 2, 3), -INF), torch.tensor([4]), 5)
    tree.check_invariants()
    assert tree.is_real.tolist() == [[True, False, False, False, False]]


@BUILDERS
def test_build_with_an_impossible_depth_stops_above_it(builder) -> None:
    logprobs = torch.tensor([[[-0.1, -2.0], [-INF, -INF], [-0.1, -2.0]]])
    tree = builder(torch.arange(6).view(1, 3, 2), logprobs, torch.tensor([4]), 6)
    assert prefixes(tree) == [(), (0,), (1,)]


@BUILDERS
@pytest.mark.parametrize(("bad", "counts_as"), [(float("nan"), -INF), (1e-6, 0.0), (INF, 0.0)])
def test_build_with_nan_or_positive_logprobs_is_still_a_tree(builder, bad: float, counts_as: float) -> None:
    """A log-partition rounded apart from its logits can exceed 0; a NaN is a broken drafter."""
    ids, roots = torch.arange(6).view(1, 3, 2), torch.tensor([4])
    logprobs = torch.tensor([[[-0.1, -0.2], [bad, -0.3], [bad, -0.4]]])
    tree = builder(ids, logprobs, roots, 9)
    tree.check_invariants()
    cleaned = torch.tensor([[[-0.1, -0.2], [counts_as, -0.3], [counts_as, -0.4]]])
    assert_same_tree(tree, builder(ids, cleaned, roots, 9))
    assert (2 in tree.token_ids) == (counts_as == 0.0)


@BUILDERS
def test_build_of_an_empty_batch_is_an_empty_batch(builder) -> None:
    """An idle data-parallel rank runs rounds without requests."""
    tree = builder(torch.zeros(0, 3, 4).long(), torch.zeros(0, 3, 4), torch.zeros(0).long(), 6)
    tree.check_invariants()
    assert tuple(tree.token_ids.shape) == (0, 6)


def test_build_leaves_its_inputs_alone_and_returns_contiguous_tensors() -> None:
    candidates = random_candidates(0, 2, 4, 9, 5)
    copies = [tensor.clone() for tensor in (candidates.ids, candidates.logprobs, candidates.root_ids)]
    for num_nodes in (1, 9, 500):
        tree = build(candidates, num_nodes)
        assert all(getattr(tree, field).is_contiguous() for field in FIELDS)
    assert torch.equal(candidates.ids, copies[0])
    assert torch.equal(candidates.logprobs, copies[1])
    assert torch.equal(candidates.root_ids, copies[2])


def test_build_with_strided_inputs_equals_contiguous() -> None:
    candidates = random_candidates(0, 4, 6, 9, 8)
    strided = Candidates(candidates.ids[::2, 1:, ::2], candidates.logprobs[::2, 1:, ::2], candidates.root_ids[::2])
    packed = Candidates(strided.ids.contiguous(), strided.logprobs.contiguous(), strided.root_ids.contiguous())
    assert_same_tree(build(strided, 12), build(packed, 12))


def test_build_after_inference_mode_still_serves_a_caller_that_differentiates() -> None:
    candidates = random_candidates(0, 1, 3, 11, 7)
    with torch.inference_mode():
        build(candidates, 14)
    logprobs = candidates.logprobs.clone().requires_grad_()
    tree = build_draft_tree(candidates.ids, logprobs, candidates.root_ids, 14)
    tree.logprobs.exp().sum().backward()
    assert logprobs.grad is not None


@BUILDERS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk_ids": torch.zeros(2, 3, dtype=torch.int64)}, "topk_ids must be"),
        ({"topk_ids": torch.zeros(2, 0, 4, dtype=torch.int64)}, "topk_ids must be"),
        (
            {"topk_ids": torch.zeros(2, 3, 4, dtype=torch.int32)},
            "topk_ids must be torch.int64, got torch.int32",
        ),
        (
            {"topk_logprobs": torch.zeros(2, 3, 5)},
            r"topk_logprobs must have the shape of topk_ids \(2, 3, 4\)",
        ),
        (
            {"topk_logprobs": torch.zeros(2, 3, 4, dtype=torch.bfloat16)},
            "topk_logprobs must be torch.float32",
        ),
        ({"topk_logprobs": torch.zeros(2, 3, 4, device="meta")}, "topk_logprobs must be on cpu"),
        ({"root_ids": torch.zeros(3, dtype=torch.int64)}, r"root_ids must be \[B\] = \[2\]"),
        ({"root_ids": torch.zeros(2, dtype=torch.int32)}, "root_ids must be torch.int64"),
        ({"num_nodes": 0}, "num_nodes must be at least 1"),
    ],
)
def test_build_with_bad_input_names_the_argument(builder, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "topk_ids": torch.zeros(2, 3, 4, dtype=torch.int64),
        "topk_logprobs": torch.zeros(2, 3, 4),
        "root_ids": torch.zeros(2, dtype=torch.int64),
        "num_nodes": 5,
    }
    with pytest.raises(ValueError, match=message):
        builder(**(arguments | change))


@pytest.mark.parametrize("kept", [1, 2, 9, 16])
def test_the_first_nodes_of_a_tree_are_the_best_tree_of_that_many(kept: int) -> None:
    candidates = random_candidates(batch_size=3, depth=5, vocab=20, num_candidates=16, seed=kept)
    cut = build(candidates, 17).first_nodes(kept)
    cut.check_invariants()
    assert_same_tree(cut, build(candidates, kept))

"""The correction of a drafter's probabilities: identity at first, then what the target accepted."""

from __future__ import annotations

import numpy as np
import pytest

from ddtree_sglang.core.honest_probs import KINDS, HonestProbs, RoundTrees, classify, pool_adjacent_violators
from ddtree_sglang.core.round_loops import BINS, EDGES
from ddtree_sglang.core.tree_builder import build_draft_tree
from tests.core.tree_cases import SAMPLE_TREE


def trees_of(batch_size: int, num_nodes: int, seed: int) -> RoundTrees:
    import torch

    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(batch_size, 7, 16, generator=generator).mul(2).log_softmax(2).sort(dim=2, descending=True)[0]
    ids = torch.arange(16).expand(batch_size, 7, 16).contiguous()
    tree = build_draft_tree(ids, logprobs, torch.zeros(batch_size, dtype=torch.int64), num_nodes)
    return RoundTrees(tree.logprobs.double().numpy(), tree.parents.numpy(), tree.depths.numpy())


def accept(trees: RoundTrees, rng: np.random.Generator, power: float) -> np.ndarray:
    """Paths of a target that accepts a child with the drafter's probability, raised to `power`."""
    paths = np.full((len(trees.parents), 8), -1)
    for row, parents in enumerate(trees.parents):
        node, depth = 0, 0
        while True:
            paths[row, depth] = node
            children = np.flatnonzero(parents == node)
            chances = np.exp(trees.logprobs[row, children] - trees.logprobs[row, node]) ** power
            hit = np.flatnonzero(chances.cumsum() > rng.random())
            if not len(hit):
                break
            node, depth = int(children[hit[0]]), depth + 1
    return paths


def learned(power: float, rounds: int = 600) -> HonestProbs:
    probs, rng = HonestProbs(), np.random.default_rng(1)
    for seed in range(rounds):
        trees = trees_of(4, 17, seed)
        probs.learn(trees, accept(trees, rng, power), np.ones(trees.parents.shape, dtype=np.bool_))
    return probs


@pytest.mark.parametrize("num_nodes", [1, 2, 17, 65])
def test_at_first_the_drafters_word_counts(num_nodes: int) -> None:
    trees = trees_of(3, num_nodes, 0)
    assert HonestProbs().of_paths(trees) == pytest.approx(np.exp(trees.logprobs), abs=1e-9)


def test_padding_is_never_accepted() -> None:
    tree = SAMPLE_TREE
    trees = RoundTrees(tree.logprobs.double().numpy(), tree.parents.numpy(), tree.depths.numpy())
    probs = HonestProbs().of_paths(trees)
    padding = (trees.parents < 0) & (np.arange(trees.parents.shape[1]) > 0)
    assert padding.any()
    assert (probs[padding] == 0).all()
    assert (probs[~padding] > 0).all()


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_sums_of_path_probabilities_come_true(power: float) -> None:
    """Expected and realised drafted tokens over new rounds; the drafter's own word is off by the power."""
    probs, rng = learned(power), np.random.default_rng(2)
    said = honest = kept = 0.0
    for seed in range(10_000, 10_600):
        trees = trees_of(4, 17, seed)
        said += np.exp(trees.logprobs)[:, 1:].sum()
        honest += probs.of_paths(trees)[:, 1:].sum()
        kept += (accept(trees, rng, power) > 0).sum()
    assert honest == pytest.approx(kept, rel=0.12)
    assert (said == pytest.approx(kept, rel=0.5)) == (power == 1.0)


def test_corrections_are_monotone_in_what_the_drafter_says() -> None:
    probs = learned(3.0, rounds=100)
    base, slope = probs.base.reshape(KINDS, BINS), probs.slope.reshape(KINDS, BINS)
    lower, upper = base + slope * EDGES[:-1], base + slope * EDGES[1:]
    assert lower[:, 1:] == pytest.approx(upper[:, :-1])
    assert (slope >= -1e-12).all()
    assert (lower >= -1e-12).all()
    assert (upper <= 1 + 1e-12).all()


def test_spine_and_rank_are_told_apart() -> None:
    """A drafter that is right on its spine and never off it: the siblings of a spine are believed less."""
    probs, rng = HonestProbs(), np.random.default_rng(3)
    for seed in range(400):
        trees = trees_of(4, 17, seed)
        paths = np.full((4, 8), -1)
        for row in range(4):
            node, depth = 0, 0
            while True:
                paths[row, depth] = node
                children = np.flatnonzero(trees.parents[row] == node)
                first = children[:1]
                if not len(first) or rng.random() > np.exp(trees.logprobs[row, first[0]] - trees.logprobs[row, node]):
                    break
                node, depth = int(first[0]), depth + 1
        probs.learn(trees, paths, np.ones(trees.parents.shape, dtype=np.bool_))
    trees = trees_of(8, 17, 99_999)
    ratio = probs.of_paths(trees) / np.exp(trees.logprobs)
    is_first = classify(trees).cells // BINS % 2 == 0
    inner = np.arange(17) > 0
    at_depth_1 = (trees.depths == 1) & inner
    assert np.median(ratio[at_depth_1 & is_first]) == pytest.approx(1.0, abs=0.12)
    assert np.median(ratio[at_depth_1 & ~is_first]) < 0.3


def test_what_was_not_asked_is_no_trial() -> None:
    probs, trees = HonestProbs(), trees_of(2, 17, 0)
    paths = np.zeros((2, 8), dtype=np.int64) - 1
    paths[:, 0] = 0
    probs.learn(trees, paths, np.zeros(trees.parents.shape, dtype=np.bool_))
    assert probs.table() == []
    counted = np.ones(trees.parents.shape, dtype=np.bool_)
    counted[1] = False
    probs.learn(trees, paths, counted)
    assert sum(row["trials"] for row in probs.table()) == (trees.parents[0] == 0).sum()
    assert {row["depth"] for row in probs.table()} == {1}


def test_a_hit_of_a_word_far_below_its_bin_says_little_of_the_bin() -> None:
    """One node in ten that the drafter gave 1e-5 is accepted; one that it gives 0.008 is not certain for that."""

    def star(prob: float) -> RoundTrees:
        logprobs = np.log(np.array([[1.0] + 10 * [prob]]))
        return RoundTrees(logprobs, np.array([[-1] + 10 * [0]]), np.array([[0] + 10 * [1]]))

    probs, trees = HonestProbs(), star(1e-5)
    path = np.array([[0, 5, -1]])
    for _ in range(64):
        probs.learn(trees, path, np.ones((1, 11), dtype=np.bool_))
    assert 0.008 < probs.of_nodes(star(0.008))[0, 2:].max() < 0.5
    assert probs.of_nodes(star(0.15))[0, 2:].max() < 0.5


def test_pooling_is_the_closest_ascending_sequence() -> None:
    assert pool_adjacent_violators(np.array([1.0, 2.0, 3.0]), np.ones(3)).tolist() == [1, 2, 3]
    assert pool_adjacent_violators(np.array([3.0, 1.0, 2.0]), np.ones(3)).tolist() == [2, 2, 2]
    assert pool_adjacent_violators(np.array([1.0, 4.0, 1.0]), np.array([1.0, 1.0, 3.0])).tolist() == [1, 1.75, 1.75]

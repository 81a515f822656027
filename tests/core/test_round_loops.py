"""What a round's trees and requests come to in one call, beside the same request by request."""

from __future__ import annotations

import numpy as np
import pytest

from ddtree_sglang.core import round_loops
from ddtree_sglang.core.honest_probs import HonestProbs, NodeClasses, RoundTrees
from ddtree_sglang.core.round_loops import CURVE, DOUBT_OF_LUCK, KEPT, LONG_MEMORY, MEMORY, PACE, PROMISED, SEEN
from ddtree_sglang.core.width_choice import best_width, drafted_tokens
from tests.core.test_honest_probs import trees_of

WIDTHS = np.array([1, 2, 3, 5, 9, 17])
NEW = 1
"""Of the rows below, the one that no tree was drafted for yet."""


def records(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of three requests and the usual one."""
    table = np.concatenate([30 * rng.random((3, 2)), np.full((3, 1), 2.0), rng.random((3, 6)).cumsum(1)], axis=1)
    table[NEW] = 0.0
    return table, np.array([20.0, 15.0, 3.0, *rng.random(6).cumsum()])


def honest(record: np.ndarray, usual: float) -> float:
    doubt = 12.0 if record[KEPT] < usual * record[PROMISED] else DOUBT_OF_LUCK
    return float((doubt * usual + record[KEPT]) / (doubt + record[PROMISED]))


def test_a_round_follows_each_request_and_the_usual_one_the_mean_of_them() -> None:
    rng = np.random.default_rng(0)
    table, usual = records(rng)
    curves, before, usual_before = rng.random((3, 6)).cumsum(1), table.copy(), usual.copy()
    round_loops.follow_round(table, usual, curves, 4, WIDTHS)
    # No width is hoped for: all were seen that are wider than none.
    first = slice(CURVE, CURVE + 4)
    for row in (0, 2):
        np.testing.assert_allclose(table[row, first], (1 - PACE) * before[row, first] + PACE * curves[row, :4])
    np.testing.assert_allclose(table[NEW, first], (1 - PACE) * usual_before[first] + PACE * curves[NEW, :4])
    np.testing.assert_allclose(usual[first], (1 - PACE) * usual_before[first] + PACE * curves[:, :4].mean(0))
    assert table[:, SEEN].tolist() == [4.0, 4.0, 4.0]
    np.testing.assert_array_equal(table[:, :SEEN], before[:, :SEEN])


def test_what_is_expected_of_a_new_request_is_the_usual_and_each_ends_at_its_limit() -> None:
    rng = np.random.default_rng(1)
    table, usual = records(rng)
    tokens, last = np.zeros(6), np.array([5, 2, 3])
    seconds = 0.02 + 0.01 * rng.random(5)
    best = round_loops.expect_round(table, usual, last, seconds, tokens)
    expected, factor = np.full(6, 3.0), honest(usual, 1.0)
    for row, limit in enumerate(last):
        curve, own = (usual, factor) if row == NEW else (table[row], honest(table[row], factor))
        expected += own * curve[CURVE:][np.minimum(np.arange(6), limit)]
    np.testing.assert_allclose(tokens, expected)
    assert best == 1 + best_width(tokens[1:5], seconds[1:])


def test_what_targets_kept_counts_for_requests_that_go_on() -> None:
    table, usual = records(np.random.default_rng(2))
    before, usual_before = table.copy(), usual.copy()
    curves = np.arange(18.0).reshape(3, 6) / 10
    came = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    hoped = round_loops.keep_round(table, usual, curves, np.array([5, 5, 1]), 3, came)
    factor = honest(usual_before, 1.0)
    # The last one allowed itself two nodes.
    promised = [curves[0, 3], curves[1, 3], curves[2, 1]]
    np.testing.assert_allclose(came[:, 2], [honest(before[row], factor) * promised[row] for row in range(3)])
    assert hoped == pytest.approx(came[:2, 2].sum())
    for row in (0, 1):
        kept = [MEMORY * before[row, PROMISED] + promised[row], MEMORY * before[row, KEPT] + came[row, 0]]
        np.testing.assert_allclose(table[row, :SEEN], kept)
    np.testing.assert_array_equal(table[2], before[2])
    of_usual = LONG_MEMORY * (LONG_MEMORY * usual_before[KEPT] + 2.0)
    assert usual[KEPT] == pytest.approx(of_usual)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_look_at_trees_is_all_its_parts(kind: type) -> None:
    rng = np.random.default_rng(3)
    trees, probs = trees_of(3, 9, 4), HonestProbs()
    trees = RoundTrees(trees.logprobs.astype(np.float32).astype(kind), trees.parents, trees.depths)
    table, usual = records(rng)
    own_table, own_usual, last, seconds = table.copy(), usual.copy(), np.array([5, 5, 2]), 0.02 + 0.01 * rng.random(6)
    classes, curves, tokens = NodeClasses.empty((3, 9)), np.zeros((3, 6)), np.zeros(6)
    seconds[5] = 0.001
    best = round_loops.look_at_trees(
        *(trees.logprobs, trees.parents, trees.depths, probs.base, probs.slope),
        *(classes.conditional, classes.cells, classes.parents, WIDTHS, curves, table, usual, last, seconds, tokens),
    )
    np.testing.assert_array_equal(curves, drafted_tokens(probs.of_paths(trees), WIDTHS))
    for part in ("conditional", "cells", "parents"):
        np.testing.assert_array_equal(getattr(classes, part), getattr(trees.classes, part))
    round_loops.follow_round(own_table, own_usual, curves, 5, WIDTHS)
    np.testing.assert_array_equal(table, own_table)
    np.testing.assert_array_equal(usual, own_usual)
    own_tokens = np.zeros(6)
    round_loops.expect_tokens(table, usual, curves, last, own_tokens)
    np.testing.assert_array_equal(tokens, own_tokens)
    assert best == 1 + best_width(tokens[1:5], seconds[1:5]), "the widest would be, but no tree has as many nodes"

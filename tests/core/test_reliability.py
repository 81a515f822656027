"""The reliability diagram: trials, means and tokens by hand, and a correction that never vouches for itself."""

from __future__ import annotations

import numpy as np
import pytest

from ddtree_sglang.core.honest_probs import REFRESH, RoundTrees
from ddtree_sglang.core.reliability import Judged, Reliability

# 0 ─┬─ 1 (0.8) ─┬─ 3 (0.5 of it)      spine: 0, 1, 3
#    │           └─ 4 (0.25 of it)
#    └─ 2 (0.1) ─── 5 (0.6 of it)
PARENTS = np.array([[-1, 0, 0, 1, 1, 2]])
DEPTHS = np.array([[0, 1, 1, 2, 2, 2]])
TREE = RoundTrees(np.log([[1.0, 0.8, 0.1, 0.4, 0.2, 0.06]]), PARENTS, DEPTHS)
ALL = np.ones((1, 6), dtype=bool)


def observed(*paths: list[int], counted: np.ndarray = ALL, widths: tuple[int, ...] = (2, 3, 6)) -> Reliability:
    found = Reliability(widths)
    for path in paths:
        found.observe(TREE, np.array([path]), counted)
    return found


def assert_judged(one: Judged, trials: int, said: float, accepted: float) -> None:
    assert (one.trials, one.said, one.accepted) == (trials, pytest.approx(said), pytest.approx(accepted))


def test_children_of_accepted_nodes_are_the_trials() -> None:
    """Two rounds: 0 1 4, and 0 2 without 5."""
    found = observed([0, 1, 4], [0, 2, -1])
    assert found.num_trials == 4 + 3
    on, off = found.by_depth(True), found.by_depth(False)
    assert_judged(on[1], 4, (0.8 + 0.1) / 2, 2 / 4)
    assert_judged(on[2], 2, (0.5 + 0.25) / 2, 1 / 2)
    assert_judged(off[2], 1, 0.6, 0.0)
    assert set(on) == {1, 2}
    assert set(off) == {2}
    said = found.by_said(True)
    assert_judged(said[0.8], 2, 0.8, 1 / 2)
    assert_judged(said[0.1], 2, 0.1, 1 / 2)
    assert_judged(said[0.5], 1, 0.5, 0.0)
    assert_judged(said[0.2], 1, 0.25, 1.0)


def test_before_anything_was_learned_corrected_is_what_was_said() -> None:
    found = observed([0, 1, 4])
    assert found.by_corrected(True)[0.8].corrected == pytest.approx(0.8)
    # 0.8 hit, 0.1 not, 0.5 not, 0.25 hit.
    square = (0.2**2 + 0.1**2 + 0.5**2 + 0.75**2) / 4
    assert found.squares == (pytest.approx(square), pytest.approx(square))
    assert found.distances[0] == pytest.approx((0.2 + 0.1 + 0.5 + 0.75) / 4)


def test_tokens_of_a_tree_that_is_cut_are_those_of_its_first_nodes() -> None:
    found = observed([0, 1, 4], [0, 2, -1])
    said = [(one.num_nodes, one.said) for one in found.tokens_by_width()]
    assert said == [(2, pytest.approx(0.8)), (3, pytest.approx(0.9)), (6, pytest.approx(0.8 + 0.1 + 0.4 + 0.2 + 0.06))]
    # Of the first path node 1 is among two nodes, and 4 among six; of the second node 2 among three.
    assert [one.accepted for one in found.tokens_by_width()] == [0.5, 1.0, 1.5]


def test_nodes_that_nobody_was_asked_about_do_not_count() -> None:
    limited = ALL & (np.arange(6) < 3)
    found = observed([0, 1, -1], counted=limited)
    assert found.num_trials == 2
    assert found.tokens_by_width()[-1].said == pytest.approx(0.9)
    assert observed([0, -1, -1], counted=ALL & (np.arange(6) < 1)).num_trials == 0


def test_what_was_learned_corrects_later_rounds_alone() -> None:
    """Node 1 is said to be 0.8 and never comes: the correction knows that after its first look, and not before."""
    found = observed(*[[0, -1, -1]] * REFRESH)
    assert found.by_corrected(True).keys() == {0.8, 0.1}
    found.observe(TREE, np.array([[0, -1, -1]]), ALL)
    corrected = found.by_corrected(True)
    assert corrected[0.8].trials == REFRESH
    (lower,) = [edge for edge in corrected if 0.1 < edge < 0.8]
    assert corrected[lower].trials == 1
    assert corrected[lower].corrected == pytest.approx(float(found.probs.of_nodes(TREE)[0, 1]))
    assert found.squares[1] < found.squares[0]

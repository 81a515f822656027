"""When plain decoding and trees that were left are looked at again."""

from __future__ import annotations

import numpy as np
import pytest

from ddtree_sglang.core.second_looks import FIRST_PLAIN, FIRST_TREES, RARELY, SOON, STALE, SecondLooks

WIDTHS = (1, 5, 9, 17)
TOKENS = np.array([1.0, 2.2, 2.6, 2.9])
SECONDS = np.array([0.020, 0.041, 0.044, 0.060])
BEST = 2


def looks(one: SecondLooks, numbers: range, seconds: np.ndarray = SECONDS, saved: float = 1.0) -> list[tuple[int, int]]:
    """Rounds in which a tree is looked at, and its nodes."""
    found = []
    for number in numbers:
        look = one.tree(WIDTHS, TOKENS, seconds, BEST, number, saved)
        if look is not None:
            found.append((number, WIDTHS[look.place]))
    return found


def test_trees_that_may_be_the_best_are_looked_at_in_turn_and_ever_more_rarely() -> None:
    found = looks(SecondLooks(), range(1000))
    assert [nodes for _, nodes in found[:4]] == [5, 17, 5, 17]
    gaps = np.diff([number for number, _ in found])
    assert found[0][0] == FIRST_TREES
    assert (gaps[:2] == [2 * FIRST_TREES, 4 * FIRST_TREES]).all()


def test_a_width_beyond_hope_is_left_alone_and_plain_decoding_has_its_own_times() -> None:
    dear = SECONDS * np.array([0.1, 2.0, 1.0, 2.0])
    assert looks(SecondLooks(), range(1000), dear) == []


def test_what_cannot_be_paid_waits() -> None:
    one = SecondLooks()
    assert looks(one, range(500), saved=0.0) == []
    assert looks(one, range(500, 501)) == [(500, 5)]


def test_what_can_be_paid_does_not_wait_for_what_cannot() -> None:
    dear = np.array([0.020, 0.041, 0.044, 0.056])
    one = SecondLooks()
    one.tree(WIDTHS, TOKENS, dear, 1, 0, 1.0)
    # 17 nodes were never served, and their look is too dear; 5 were the best in round 0.
    found = looks(one, range(1, 300), dear, saved=0.12)
    assert found
    assert {nodes for _, nodes in found} == {5}


def test_a_width_that_was_served_lately_is_not_stale() -> None:
    one = SecondLooks()
    one.tree(WIDTHS, TOKENS, SECONDS, 1, 100, 1.0)
    (first, nodes), *_ = looks(one, range(101, 300))
    assert (first, nodes) == (100 + FIRST_TREES, 17)
    assert STALE > FIRST_TREES, "so that one that was just the best is not asked for"


@pytest.mark.parametrize(("factor", "is_surprise"), [(0.7, True), (0.97, False), (1.5, False)])
def test_a_look_that_was_much_faster_is_repeated_soon(factor: float, is_surprise: bool) -> None:
    one = SecondLooks()
    ((number, nodes),) = looks(one, range(FIRST_TREES + 1))
    one.took(nodes, factor * 0.041, 0.041, 0.05, is_far=is_surprise, is_try=True)
    found = looks(one, range(number + 1, number + 1 + FIRST_TREES))
    assert found == ([(number + SOON, nodes)] if is_surprise else [])


def test_what_was_no_look_is_no_surprise() -> None:
    one = SecondLooks()
    looks(one, range(FIRST_TREES + 1))
    one.took(5, 0.020, 0.041, 0.05, is_far=True, is_try=False)
    assert looks(one, range(FIRST_TREES + 1, 2 * FIRST_TREES)) == []


def test_plain_decoding_is_looked_at_soon_again_behind_what_was_not_expected() -> None:
    one = SecondLooks()
    assert [one.is_time_for_plain(1.5) for _ in range(FIRST_PLAIN)] == [False] * (FIRST_PLAIN - 1) + [True]
    one.took(1, 0.05, 0.02, 0.05, is_far=True, is_try=True)
    assert [one.is_time_for_plain(9.0) for _ in range(SOON)] == [False] * (SOON - 1) + [True]
    one.took(1, 0.02, 0.02, 0.05, is_far=False, is_try=True)
    assert not any(one.is_time_for_plain(9.0) for _ in range(RARELY - 1))
    assert one.is_time_for_plain(9.0)

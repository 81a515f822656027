"""Where two answers part, and when that counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from deploy.local.divergence import find_divergence

INPUT = [1, 2, 3]


def logprobs_with(margin: float, seen: list[tuple[list[int], list[int]]]):
    """A target that prefers the first token asked about by `margin`."""

    def logprobs(prefix: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        seen.append((list(prefix), list(tokens)))
        return {tokens[0]: -1.0, tokens[1]: -1.0 - margin}

    return logprobs


def test_equal_answers_have_no_divergence() -> None:
    assert find_divergence("p", INPUT, (5, 6), (5, 6), logprobs_with(0.0, [])) is None


def test_first_difference_is_asked_about_after_the_shared_prefix() -> None:
    seen: list[tuple[list[int], list[int]]] = []
    found = find_divergence("p", INPUT, (5, 6, 7, 8), (5, 6, 9, 1), logprobs_with(0.25, seen))
    assert found is not None
    assert (found.position, found.plain_token, found.other_token) == (2, 7, 9)
    assert found.margin == pytest.approx(0.25)
    assert not found.is_near_tie
    assert seen == [([1, 2, 3, 5, 6], [7, 9])]


@pytest.mark.parametrize(("margin", "near"), [(5e-5, True), (-5e-5, True), (2e-4, False), (-2e-4, False)])
def test_near_tie_is_within_1e_4_either_way(margin: float, near: bool) -> None:
    found = find_divergence("p", INPUT, (5,), (6,), logprobs_with(margin, []))
    assert found is not None
    assert found.is_near_tie is near


@pytest.mark.parametrize(("plain", "other"), [((5, 6), (5,)), ((5,), (5, 6))])
def test_answer_that_only_ends_earlier_is_a_mismatch(plain: tuple[int, ...], other: tuple[int, ...]) -> None:
    found = find_divergence("p", INPUT, plain, other, logprobs_with(0.0, []))
    assert found is not None
    assert found.position == 1
    assert found.margin is None
    assert not found.is_near_tie


def test_tolerance_says_which_margins_are_ties() -> None:
    margin = logprobs_with(0.2, [])
    assert not find_divergence("p", INPUT, (5,), (6,), margin).is_near_tie
    assert find_divergence("p", INPUT, (5,), (6,), margin, tolerance=0.25).is_near_tie

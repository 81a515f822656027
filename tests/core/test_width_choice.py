"""The width with the most tokens per second, against brute force, cliffs and nonsense times included."""

from __future__ import annotations

import numpy as np
import pytest

from ddtree_sglang.core.width_choice import best_width, drafted_tokens


def test_drafted_tokens_are_sums_of_path_probabilities() -> None:
    probs = np.array([[1.0, 0.5, 0.25, 0.1], [1.0, 0.8, 0.0, 0.0]])
    drafted = drafted_tokens(probs, np.array([1, 2, 3, 4, 9]))
    assert drafted == pytest.approx(np.array([[0, 0.5, 0.75, 0.85, 0.85], [0, 0.8, 0.8, 0.8, 0.8]]))


def test_the_best_of_all_widths_is_taken_beyond_the_first_drop() -> None:
    """CaDDTree's stop at the first drop would take the second width here."""
    tokens = np.array([1.0, 1.6, 1.8, 2.4])
    assert best_width(tokens, np.array([1.0, 1.1, 1.9, 1.2])) == 3
    assert best_width(tokens, np.array([1.0, 1.9, 2.9, 3.2])) == 0


def test_brute_force_agrees() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        tokens, seconds = rng.random((2, 8)) + 0.1
        rates = [token / second for token, second in zip(tokens, seconds, strict=True)]
        assert best_width(tokens, seconds) == rates.index(max(rates))


def test_of_equals_the_first_and_nonsense_never() -> None:
    assert best_width(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])) == 0
    assert best_width(np.array([1.0, 9.0, 9.0, 9.0]), np.array([1.0, 0.0, -1.0, np.nan])) == 0


@pytest.mark.parametrize(("tokens", "seconds"), [(2, 3), (0, 0)])
def test_lengths_must_agree(tokens: int, seconds: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        best_width(np.ones(tokens), np.ones(seconds))

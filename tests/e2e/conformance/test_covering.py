"""Rows cover every pair as often as asked, never hold a forbidden one, and are few."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.e2e.conformance.covering import covering_rows, pairs_of, row_pairs

FACTORS = {f"factor {i}": ["off", *(f"level {j}" for j in range(1 + i % 4))] for i in range(12)}
FORBIDDEN = {
    frozenset({("factor 1", "level 0"), ("factor 2", "level 1")}),
    frozenset({("factor 3", "level 2"), ("factor 7", "off")}),
}


@pytest.mark.parametrize("times", [1, 2])
def test_every_pair_that_is_allowed_occurs_as_often_as_asked(times: int) -> None:
    rows = covering_rows(FACTORS, FORBIDDEN, times)
    seen = Counter(pair for row in rows for pair in row_pairs(row))
    assert all(seen[pair] >= times for pair in pairs_of(FACTORS, FORBIDDEN))
    assert not seen.keys() & FORBIDDEN
    assert all(row.keys() == FACTORS.keys() for row in rows)
    # Five levels twice are 25 pairs, so no array has fewer rows.
    assert 25 * times <= len(rows) <= 50 * times
    assert rows == covering_rows(FACTORS, FORBIDDEN, times)


def test_a_level_that_no_row_can_hold_is_an_error() -> None:
    factors = {"a": ["off", "on"], "b": ["off", "on"], "c": ["off"]}
    forbidden = {frozenset({("a", "on"), ("c", "off")})}
    with pytest.raises(ValueError, match="no row can hold the pair"):
        covering_rows(factors, forbidden)

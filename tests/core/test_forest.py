"""Verified nodes shared out over a batch, against every other way to share them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ddtree_sglang.core.forest import share_nodes


def _rows(rng: np.random.Generator, batch_size: int, num_nodes: int, grid: int) -> np.ndarray:
    drafted = -np.sort(-rng.integers(0, grid + 1, (batch_size, num_nodes - 1)) / grid, axis=1)
    return np.concatenate([np.ones((batch_size, 1)), drafted], axis=1)


@pytest.mark.parametrize("grid", [3, 1000])
def test_no_other_way_to_share_brings_more(grid: int) -> None:
    rng = np.random.default_rng(grid)
    for _ in range(300):
        batch_size, num_nodes = int(rng.integers(1, 4)), int(rng.integers(1, 6))
        probs = _rows(rng, batch_size, num_nodes, grid)
        total = int(rng.integers(batch_size, batch_size * num_nodes + 2))
        shares = share_nodes(probs, total)
        sums = probs.cumsum(1)
        brings = sums[np.arange(batch_size), shares - 1].sum()
        every_way = product(range(1, num_nodes + 1), repeat=batch_size)
        best = max(
            sum(sums[row, width - 1] for row, width in enumerate(widths))
            for widths in every_way
            if sum(widths) <= total
        )
        assert shares.sum() <= total
        assert shares.min() >= 1
        assert brings == pytest.approx(best)


def test_equals_go_to_the_earlier_request_and_padding_to_none() -> None:
    probs = np.array([[1.0, 0.5, 0.25, 0.0], [1.0, 0.5, 0.25, 0.25]])
    assert share_nodes(probs, 3).tolist() == [2, 1]
    assert share_nodes(probs, 5).tolist() == [3, 2]
    assert share_nodes(probs, 100).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("probs", "total", "message"),
    [
        ([[1.0, 0.2, 0.3]], 2, "must not rise"),
        ([[1.0, 0.2], [1.0, 0.1]], 1, "each of 2 requests"),
        ([1.0, 0.2], 2, r"must be \[B, N\]"),
    ],
)
def test_what_is_no_forest_is_refused(probs: list[float], total: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        share_nodes(np.array(probs), total)

"""Intervals over prompts: the known answers of small cases, and widths that are the textbook's."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness import intervals


def test_width_is_the_textbooks_for_prompts_of_one_round() -> None:
    values = np.random.default_rng(1).normal(5.0, 1.0, size=400)
    found = intervals.Resampling(400).estimate(intervals.columns(values, np.ones(400)), intervals.ratio)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert found.low < found.value < found.high


def test_rounds_of_one_prompt_are_drawn_together() -> None:
    """A hundred rounds of each of four prompts, alike within a prompt, are four observations and not four hundred."""
    prompts = np.repeat(np.arange(4), 100)
    terms = intervals.columns(np.repeat([1.0, 2.0, 3.0, 4.0], 100), np.ones(400))
    found = intervals.Resampling(4).estimate(intervals.sums_by(prompts, terms, 4), intervals.ratio)
    assert found.value == pytest.approx(2.5)
    assert found.high - found.low > 1.5


def test_difference_of_the_same_prompts_is_paired() -> None:
    hard = np.random.default_rng(2).normal(10.0, 5.0, size=50)
    sums = intervals.columns(hard + 1.0, np.ones(50), hard, np.ones(50))
    found = intervals.Resampling(50).estimate(sums, intervals.difference_of_ratios)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_correlation_is_numpys() -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=200)
    y = x + random.normal(size=200)
    found = intervals.Resampling(200).estimate(intervals.correlation_terms(x, y), intervals.correlation)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    flat = intervals.correlation_terms(np.ones(5), np.arange(5.0))
    assert intervals.Resampling(5).estimate(flat, intervals.correlation).to_json()["value"] is None


def test_equal_values_share_their_mean_rank() -> None:
    assert intervals.ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_no_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        intervals.Resampling(0).estimate(np.zeros((0, 2)), intervals.ratio)

"""Reliability on candidates whose true frequency is known."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.training.score.calibration import ReliabilityCounter


def _blocks(probability: float, frequency: float, count: int) -> tuple[torch.Tensor, ...]:
    """`count` blocks of one depth and one candidate that is said to be right with one rate and is with another."""
    labels = torch.full((count, 1), 7)
    labels[: round(frequency * count)] = 3
    logprobs = torch.full((count, 1, 1), probability).log()
    return torch.full((count, 1, 1), 3), logprobs, labels, torch.ones(count, 1, dtype=torch.bool)


@pytest.mark.parametrize(("probability", "frequency"), [(0.3, 0.3), (0.9, 0.5), (0.1, 0.6)])
def test_error_is_the_gap_between_probability_and_frequency(probability: float, frequency: float) -> None:
    counter = ReliabilityCounter(1)
    counter.add(*_blocks(probability, frequency, 1000))
    (depth,) = counter.by_depth()
    assert depth.confidence == pytest.approx(probability, abs=1e-6)
    assert depth.accuracy == pytest.approx(frequency, abs=1e-6)
    assert depth.calibration_error == pytest.approx(abs(probability - frequency), abs=1e-6)


def test_errors_of_opposite_sign_in_different_bins_do_not_cancel() -> None:
    counter = ReliabilityCounter(1)
    counter.add(*_blocks(0.2, 0.4, 500))
    counter.add(*_blocks(0.8, 0.6, 500))
    (depth,) = counter.by_depth()
    assert depth.confidence == pytest.approx(depth.accuracy)
    assert depth.calibration_error == pytest.approx(0.2, abs=1e-6)


def test_positions_past_the_end_and_depths_never_seen_do_not_count() -> None:
    ids, logprobs, labels, valid = _blocks(0.5, 0.5, 100)
    ids, logprobs = ids.expand(-1, 2, -1), logprobs.expand(-1, 2, -1)
    labels, valid = labels.repeat(1, 2), valid.repeat(1, 2)
    valid[:, 1] = False
    valid[50:, 0] = False  # the half that is wrong
    counter = ReliabilityCounter(2)
    counter.add(ids, logprobs, labels, valid)
    first, second = counter.by_depth()
    assert first.accuracy == 1
    assert first.calibration_error == pytest.approx(0.5)
    assert (second.confidence, second.accuracy, second.calibration_error) == (0, 0, 0)

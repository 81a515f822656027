"""A row that leaves no token draws one all the same; others draw what they would."""

from __future__ import annotations

import math

import pytest
import torch

from ddtree_sglang.engine.admission.drawing import draw_where_nothing_is_left


def draw(probs: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(probs, 1).view(-1)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_row_without_a_total_ends_nothing(value: float) -> None:
    probs = torch.tensor([[0.0, 1.0, 0.0], [value, value, value], [0.0, 0.0, 1.0]])
    with pytest.raises(RuntimeError):
        draw(probs)
    kept = probs.clone()
    assert draw_where_nothing_is_left(draw, probs).tolist() == [1, 0, 2]
    assert torch.equal(probs, kept) or math.isnan(value)


def test_rows_with_a_total_are_handed_on_as_they_are() -> None:
    probs = torch.rand(4, 9)
    assert draw_where_nothing_is_left(lambda given: given, probs) is probs


def test_torch_raises_no_more_in_sglangs_sampler() -> None:
    """The seams are the ones that SGLang's sampler calls by these names."""
    from sglang.srt.layers import sampler

    probs = torch.full((1, 8), math.nan)
    assert draw_where_nothing_is_left(sampler.sampling_from_probs_torch, probs).tolist() == [0]
    chosen = draw_where_nothing_is_left(
        sampler.top_k_top_p_min_p_sampling_from_probs_torch,
        probs,
        torch.tensor([4]),
        torch.tensor([0.9]),
        torch.tensor([0.1]),
        True,
        None,
        torch.tensor([0]),
    )
    assert chosen.tolist() == [0]

"""The order of candidates is total: against sorting in Python, with ties, NaN, masked tokens and small vocabularies."""

from __future__ import annotations

import math

import pytest
import torch

from ddtree_sglang.core.candidates import LogitTransform, rank_logits

NOTHING = -math.inf


def by_sorting(row: list[float], top_k: int) -> list[int]:
    """Ids by logit descending, NaN as -inf, then by id."""
    return sorted(range(len(row)), key=lambda token: (math.inf if math.isnan(row[token]) else -row[token], token))[
        :top_k
    ]


@pytest.mark.parametrize(
    "row",
    [
        [1.0, 3.0, 2.0, 3.0, 1.0],
        [0.0, -0.0, 0.0, -1.0],
        [NOTHING, 2.0, NOTHING, 1.0],
        [NOTHING] * 4,
        [1.0, math.nan, 2.0, math.nan],
        [math.inf, 1.0, math.inf],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logit_descending_then_id_ascending(row: list[float], dtype: torch.dtype) -> None:
    ranked = rank_logits(torch.tensor([row], dtype=dtype), 3, LogitTransform())
    assert ranked.topk_ids[0].tolist() == by_sorting(row, 3)


def test_log_probabilities_are_of_the_whole_vocabulary() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    ranked = rank_logits(logits, 7, LogitTransform(scale=0.5, softcap=2.0))
    capped = 2.0 * torch.tanh(0.5 * logits / 2.0)
    torch.testing.assert_close(ranked.topk_logprobs, torch.log_softmax(capped, -1).gather(-1, ranked.topk_ids))


def test_one_nan_makes_its_row_impossible_and_no_other() -> None:
    logits = torch.tensor([[1.0, math.nan, 0.0], [1.0, 2.0, 0.0]])
    logprobs = rank_logits(logits, 2, LogitTransform()).topk_logprobs
    assert logprobs[0].isnan().all()
    assert logprobs[1].isfinite().all()


def test_a_cap_that_makes_logits_equal_keeps_their_order() -> None:
    ranked = rank_logits(torch.tensor([[50.0, 90.0, 70.0]]), 3, LogitTransform(softcap=1.0))
    assert ranked.topk_ids.tolist() == [[1, 2, 0]]
    assert ranked.topk_logprobs[0].unique().numel() == 1


def test_a_vocabulary_smaller_than_k_fills_up_with_the_impossible() -> None:
    ranked = rank_logits(torch.tensor([[1.0, 2.0]]), 4, LogitTransform())
    assert ranked.topk_ids.tolist() == [[1, 0, 0, 0]]
    assert ranked.topk_logprobs[0, 2:].tolist() == [NOTHING, NOTHING]

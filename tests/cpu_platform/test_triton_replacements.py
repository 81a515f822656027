"""Torch replacements against loops that spell out what each kernel writes."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.cpu_platform.triton_replacements import (
    apply_token_mask,
    assign_req_to_token_pool,
    extend_cache_locs,
    last_slots,
)

pytestmark = pytest.mark.sglang

WINDOWS = [
    ([2], [5], [9]),
    ([0, 3, 1], [0, 4, 7], [8, 12, 15]),
    ([1, 0], [6, 2], [6, 10]),  # the first request has nothing new
    ([3, 2], [3, 3], [3, 3]),  # nobody has
]


def table() -> torch.Tensor:
    return torch.arange(4 * 20, dtype=torch.int32).view(4, 20)


@pytest.mark.parametrize(("rows", "starts", "ends"), WINDOWS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_assign_writes_each_request_in_order_and_nothing_else(
    rows: list[int], starts: list[int], ends: list[int], dtype: torch.dtype
) -> None:
    total = sum(end - start for start, end in zip(starts, ends, strict=True))
    slots = torch.arange(1000, 1000 + total)
    expected, actual, used = table(), table(), 0
    for row, start, end in zip(rows, starts, ends, strict=True):
        for column in range(start, end):
            expected[row, column] = slots[used]
            used += 1
    assign_req_to_token_pool(
        torch.tensor(rows), actual, torch.tensor(starts, dtype=dtype), torch.tensor(ends), slots, len(rows)
    )
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("rows", [[2], [0, 3, 1]])
def test_window_slots_come_back_request_by_request(rows: list[int]) -> None:
    starts = torch.tensor([5, 0, 11][: len(rows)])
    slots = extend_cache_locs(
        torch.tensor(rows), table(), starts, starts + 6, len(rows), draft_token_num=6, device="cpu"
    )
    expected = [
        int(table()[row, start + i]) for row, start in zip(rows, starts.tolist(), strict=True) for i in range(6)
    ]
    assert slots.dtype == torch.int64
    assert slots.tolist() == expected


def test_writing_then_reading_a_window_round_trips() -> None:
    rows, starts = torch.tensor([3, 0]), torch.tensor([2, 9])
    slots, cells = torch.arange(500, 510), table()
    assign_req_to_token_pool(rows, cells, starts, starts + 5, slots, 2)
    assert torch.equal(extend_cache_locs(rows, cells, starts, starts + 5, 2, 5, "cpu"), slots)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_last_slot_is_sglangs_own_and_minus_one_before_the_first_token(dtype: torch.dtype) -> None:
    from sglang.srt.mem_cache.allocation import get_last_loc_torch

    rows, lengths = torch.tensor([3, 0, 2], dtype=dtype), torch.tensor([7, 0, 20], dtype=dtype)
    found = last_slots(table(), rows, lengths)
    assert found.dtype == torch.int64
    assert found.tolist() == [66, -1, 59]
    assert found.tolist() == get_last_loc_torch(table(), rows, lengths).tolist()


@pytest.mark.parametrize("vocabulary", [32, 50, 64])
def test_tokens_without_their_bit_are_forbidden(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    words = torch.randint(-(2**31), 2**31 - 1, (3, (vocabulary + 31) // 32), generator=generator, dtype=torch.int64)
    logits = torch.randn(3, vocabulary, generator=generator)
    expected = logits.clone()
    for row in range(3):
        for token in range(vocabulary):
            if not int(words[row, token // 32]) >> token % 32 & 1:
                expected[row, token] = float("-inf")
    apply_token_mask(logits, words.to(torch.int32))
    assert torch.equal(logits, expected)
    assert 0 < int(logits.isinf().sum()) < logits.numel()

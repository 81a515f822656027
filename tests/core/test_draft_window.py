"""A windowed drafter's table of slots, against a list per request written out token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddtree_sglang.core.draft_window import copy_windows, window_starts

ROW_LEN = 96


@given(
    prefix_lens=st.lists(st.integers(1, 80), min_size=1, max_size=4),
    window=st.integers(1, 90),
    page_size=st.sampled_from([1, 4, 16]),
    block_size=st.integers(2, 16),
)
def test_a_row_holds_the_last_tokens_in_whole_pages_and_the_block(
    prefix_lens: list[int], window: int, page_size: int, block_size: int
) -> None:
    rows = list(range(len(prefix_lens), 0, -1))
    table = torch.arange((len(rows) + 1) * ROW_LEN, dtype=torch.int32).view(-1, ROW_LEN)
    seen, lens = torch.full_like(table, -1), torch.tensor(prefix_lens)
    starts = window_starts(lens, window, page_size)
    copy_windows(seen, table, torch.tensor(rows), starts, window + page_size - 1 + block_size)
    for row, length, start in zip(rows, prefix_lens, starts.tolist(), strict=True):
        first = max(0, length - window)
        assert start == next(page for page in range(first, -1, -1) if page % page_size == 0)
        end = min(length + block_size, ROW_LEN)
        assert seen[row, : end - start].tolist() == table[row, start:end].tolist()
    assert (seen[0] == -1).all(), "a row of no request was written"


def test_places_behind_a_rows_end_are_not_another_rows() -> None:
    table = torch.arange(3 * 8, dtype=torch.int32).view(3, 8)
    seen = torch.zeros_like(table)
    copy_windows(seen, table, torch.tensor([1]), torch.tensor([5]), width=7)
    assert seen[1].tolist() == [13, 14, 15, 15, 15, 15, 15, 0]


@pytest.mark.parametrize(("length", "start"), [(8, 0), (9, 0), (12, 0), (13, 4), (16, 4), (17, 8)])
def test_a_window_of_nine_tokens_in_pages_of_four(length: int, start: int) -> None:
    assert window_starts(torch.tensor([length]), 9, 4).tolist() == [start]

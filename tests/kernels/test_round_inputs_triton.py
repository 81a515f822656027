"""The one-launch inputs of a round against core."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core.round_inputs import RoundInputs, round_inputs
from ddtree_sglang.kernels.round_inputs_triton import round_inputs_triton

NAMES = ("node_slots", "block_slots", "block_ids", "block_positions")
MASK = 151_669


def table(rows: int, row_len: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Slots in no order, as a pool in use hands them out."""
    generator = torch.Generator().manual_seed(rows)
    return torch.randperm(rows * row_len, generator=generator).to(dtype).view(rows, row_len)


def assert_equals_core(
    device: torch.device,
    slots: torch.Tensor,
    requests: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_nodes: int,
    block_size: int,
) -> RoundInputs:
    sizes = {"mask_token_id": MASK, "num_nodes": num_nodes, "block_size": block_size}
    found = round_inputs_triton(slots.to(device), *(part.to(device) for part in requests), **sizes)
    expected = round_inputs(slots, *requests, **sizes)
    for name in NAMES:
        got, wanted = getattr(found, name), getattr(expected, name)
        assert got.dtype == wanted.dtype, name
        assert got.is_contiguous(), name
        assert torch.equal(got.cpu(), wanted), name
    return found


def requests_of(batch_size: int, rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch_size)
    indices = torch.randperm(rows, generator=generator)[:batch_size]
    prefix_lens = torch.randint(0, longest + 1, (batch_size,), generator=generator)
    return indices, prefix_lens, torch.randint(0, 200_000, (batch_size,), generator=generator)


@pytest.mark.parametrize(
    ("batch_size", "num_nodes", "block_size"),
    [(1, 2, 1), (1, 1, 16), (3, 17, 8), (40, 5, 16), (5, 16, 16), (7, 65, 16), (2, 256, 32), (3, 33, 32)],
)
def test_random_rounds(device: torch.device, batch_size: int, num_nodes: int, block_size: int) -> None:
    row_len = 300
    longest = row_len - max(num_nodes, block_size)
    requests = requests_of(batch_size, 48, longest)
    requests[1][0] = longest  # the window ends where the row does
    assert_equals_core(device, table(48, row_len), requests, num_nodes, block_size)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_either_integer_type_is_read(device: torch.device, dtype: torch.dtype) -> None:
    indices, prefix_lens, roots = requests_of(4, 9, 30)
    requests = (indices.to(dtype), prefix_lens.to(dtype), roots)
    assert_equals_core(device, table(9, 64, dtype), requests, 17, 8)


def test_columns_of_a_wider_table_are_read_by_its_row_stride(device: torch.device) -> None:
    narrow = table(6, 90)[:, :50]
    found = assert_equals_core(device, narrow, requests_of(3, 6, 20), 9, 16)
    assert found.node_slots.shape == (3, 9)


def test_a_position_past_the_rows_end_gets_the_padding_slot(device: torch.device) -> None:
    slots = torch.arange(1, 21, dtype=torch.int32).view(2, 10).to(device)
    first_row, ends = torch.tensor([0], device=device), torch.tensor([8], device=device)
    made = round_inputs_triton(
        slots, first_row, ends, torch.tensor([5], device=device), mask_token_id=MASK, num_nodes=4, block_size=3
    )
    assert made.node_slots.tolist() == [[9, 10, 0, 0]]
    assert made.block_slots.tolist() == [[9, 10, 0]]


def test_a_table_of_strided_rows_is_refused(device: torch.device) -> None:
    slots = table(4, 40).to(device)[:, ::2]
    given = [part.to(device) for part in requests_of(2, 4, 5)]
    with pytest.raises(ValueError, match=r"rows of req_to_token must be contiguous, got strides \(40, 2\)"):
        round_inputs_triton(slots, *given, mask_token_id=MASK, num_nodes=4, block_size=4)

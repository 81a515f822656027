"""Slots and blocks of a round, by hand."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core.round_inputs import RoundInputs, round_inputs

TABLE = torch.arange(3 * 10, dtype=torch.int32).view(3, 10)
ROWS, PREFIX_LENS, ROOTS = torch.tensor([2, 0]), torch.tensor([4, 1]), torch.tensor([70, 80])


def made(num_nodes: int, block_size: int) -> RoundInputs:
    return round_inputs(TABLE, ROWS, PREFIX_LENS, ROOTS, mask_token_id=99, num_nodes=num_nodes, block_size=block_size)


def test_slots_start_at_the_committed_length_of_each_request() -> None:
    inputs = made(3, 2)
    assert inputs.node_slots.tolist() == [[24, 25, 26], [1, 2, 3]]
    assert inputs.block_slots.tolist() == [[24, 25], [1, 2]]
    assert inputs.node_slots.dtype == torch.int64


def test_a_block_is_the_root_and_masks_from_its_position_on() -> None:
    inputs = made(1, 4)
    assert inputs.block_ids.tolist() == [[70, 99, 99, 99], [80, 99, 99, 99]]
    assert inputs.block_positions.tolist() == [[4, 5, 6, 7], [1, 2, 3, 4]]
    assert inputs.node_slots.tolist() == [[24], [1]]


@pytest.mark.parametrize("wrong", ["req_to_token", "req_pool_indices", "prefix_lens", "root_ids"])
def test_arguments_of_another_form_are_refused_by_name(wrong: str) -> None:
    given = {"req_to_token": TABLE, "req_pool_indices": ROWS, "prefix_lens": PREFIX_LENS, "root_ids": ROOTS}
    given[wrong] = given[wrong].flatten()[:1] if wrong != "root_ids" else ROOTS.to(torch.int32)
    with pytest.raises(ValueError, match=wrong):
        round_inputs(**given, mask_token_id=99, num_nodes=2, block_size=2)

"""The lengths on the host that the drafter's attention plans for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.round_inputs import round_inputs

pytestmark = pytest.mark.sglang

BLOCK, NODES, HIDDEN = 4, 9, 2
PREFIX_LENS = torch.tensor([5, 130, 2])
RESERVED_LENS = PREFIX_LENS + 2 * NODES


def slot_table() -> torch.Tensor:
    return torch.arange(3 * 200, dtype=torch.int32).view(3, 200)


def drafter_batch(seq_lens_cpu: torch.Tensor | None, host_lens: torch.Tensor | None, seen: Any = None) -> Any:
    """The drafter's batch of three requests whose windows are of more slots than a block."""
    from ddtree_sglang.engine.stages.draft_block import DraftBlock
    from ddtree_sglang.engine.stages.kv_window import RoundWindow

    translator = SimpleNamespace(plan=lambda **_: SimpleNamespace(bind=lambda *_: None))
    block = DraftBlock(
        SimpleNamespace(kv_index_translator=translator),
        lambda ids: torch.zeros(*ids.shape, HIDDEN),
        None,
        1.0,
        mask_token_id=0,
        spec_info=None,
        seen=seen,
    )
    batch = SimpleNamespace(seq_lens_cpu=seq_lens_cpu, req_pool_indices=torch.arange(3), can_run_decode_cuda_graph=True)
    rows, table = torch.arange(3), slot_table()
    inputs = round_inputs(table, rows, PREFIX_LENS, rows, mask_token_id=0, num_nodes=NODES, block_size=BLOCK)
    window = RoundWindow(PREFIX_LENS, rows, inputs, host_lens, plan=None, ends=None, max_path_len=BLOCK)
    return block.forward_batch(batch, window)


@pytest.mark.parametrize("host_lens", [PREFIX_LENS, None], ids=["kept by the scheduler", "read from the device"])
def test_known_lengths_are_those_that_the_device_reads(host_lens: torch.Tensor | None) -> None:
    """FlashInfer's plan lays out partials by these and its kernel by the device's: they have to be equal."""
    forward_batch = drafter_batch(host_lens, host_lens)
    assert forward_batch.seq_lens_cpu.tolist() == (PREFIX_LENS + BLOCK).tolist()
    assert forward_batch.seq_lens_cpu.dtype == torch.int32
    assert forward_batch.seq_lens_sum == int(PREFIX_LENS.sum()) + 3 * BLOCK
    assert forward_batch.seq_lens is PREFIX_LENS


def test_where_the_scheduler_keeps_no_lengths_the_reservation_bounds_them() -> None:
    forward_batch = drafter_batch(None, RESERVED_LENS)
    assert forward_batch.seq_lens_cpu.tolist() == RESERVED_LENS.tolist()
    assert bool((forward_batch.seq_lens_cpu >= PREFIX_LENS + BLOCK).all())


def window_of(size: int, page_size: int) -> Any:
    from ddtree_sglang.engine.stages.draft_window import DraftWindow

    return DraftWindow(size, page_size, slot_table(), torch.full((3, 200), -1, dtype=torch.int32))


@pytest.mark.parametrize(("page_size", "lens"), [(1, [5, 16, 2]), (16, [5, 18, 2])])
def test_a_drafter_with_a_window_is_planned_for_what_it_sees(page_size: int, lens: list[int]) -> None:
    seen = window_of(16, page_size)
    forward_batch = drafter_batch(PREFIX_LENS, PREFIX_LENS, seen)
    assert forward_batch.seq_lens.tolist() == lens
    assert forward_batch.seq_lens_cpu.tolist() == [length + BLOCK for length in lens]
    for row, (length, prefix_len) in enumerate(zip(lens, PREFIX_LENS.tolist(), strict=True)):
        slots = slot_table()[row, prefix_len - length : prefix_len + BLOCK]
        assert seen.seen[row, : length + BLOCK].tolist() == slots.tolist()
    # Positions are those of the context: keys were rotated at them.
    assert forward_batch.positions.view(3, BLOCK)[:, 0].tolist() == PREFIX_LENS.tolist()


def test_a_reservation_bounds_a_window_and_its_block() -> None:
    seen = window_of(16, 4)
    forward_batch = drafter_batch(None, RESERVED_LENS, seen)
    assert forward_batch.seq_lens.tolist() == [5, 18, 2]
    assert forward_batch.seq_lens_cpu.tolist() == [23, 23, 20]
    assert seen.seen[1, : 18 + BLOCK].tolist() == slot_table()[1, 112 : 130 + BLOCK].tolist()


def test_a_table_with_too_few_rows_is_refused() -> None:
    from ddtree_sglang.engine.stages.draft_window import DraftWindow

    target, drafter = (
        SimpleNamespace(req_to_token_pool=SimpleNamespace(req_to_token=slot_table()[:rows])) for rows in (3, 2)
    )
    with pytest.raises(ValueError, match=r"each of the target's 3, got 2; remove --speculative-draft-window-size"):
        DraftWindow.of(16, 1, target, drafter)
    assert DraftWindow.of(None, 1, target, drafter) is None

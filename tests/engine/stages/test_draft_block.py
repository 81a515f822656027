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


def drafter_batch(seq_lens_cpu: torch.Tensor | None, host_lens: torch.Tensor | None) -> Any:
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
    )
    batch = SimpleNamespace(seq_lens_cpu=seq_lens_cpu, req_pool_indices=torch.arange(3), can_run_decode_cuda_graph=True)
    rows, table = torch.arange(3), torch.arange(3 * 200).view(3, 200)
    inputs = round_inputs(table, rows, PREFIX_LENS, rows, mask_token_id=0, num_nodes=NODES, block_size=BLOCK)
    return block.forward_batch(batch, RoundWindow(PREFIX_LENS, rows, inputs, host_lens, plan=None, ends=None))


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

"""One launch makes the inputs of a round: slots for the tree and for the block, the block's tokens and positions.

One warp per request. Sizes are arguments, so another batch size compiles nothing; only the power of two above N and R
is part of the code. Oracle: `core.round_inputs.round_inputs`; parity in tests/kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ddtree_sglang.core.round_inputs import RoundInputs, check_round_inputs
from ddtree_sglang.kernels.compile_case import Argument, CompileCase

_POINTERS = range(8)
"""The kernel's first arguments. No two launches differ in what is known of addresses, so none compiles it anew."""


@triton.jit(
    do_not_specialize=["row_stride", "row_len", "mask_token_id", "num_nodes", "block_size"],
    do_not_specialize_on_alignment=_POINTERS,
)
def _round_inputs_kernel(  # type: ignore[no-untyped-def]
    req_to_token,  # [rows, row_len] int32 or int64
    req_pool_indices,  # [B] int32 or int64, and so is the next
    prefix_lens,
    root_ids,  # [B] int64
    node_slots,  # [B, N] int64
    block_slots,  # [B, R] int64, and so are the next two
    block_ids,
    block_positions,
    row_stride,
    row_len,
    mask_token_id,
    num_nodes,
    block_size,
    WINDOW: tl.constexpr,  # power of two, at least N and R
):
    request = tl.program_id(0).to(tl.int64)
    steps = tl.arange(0, WINDOW)
    positions = tl.load(prefix_lens + request).to(tl.int64) + steps
    row = tl.load(req_pool_indices + request).to(tl.int64) * row_stride
    in_nodes = steps < num_nodes
    in_block = steps < block_size
    # Slot 0 is SGLang's padding slot: a position past the row's end must not become another request's.
    in_row = positions < row_len
    slots = tl.load(req_to_token + row + positions, mask=(in_nodes | in_block) & in_row, other=0).to(tl.int64)
    tl.store(node_slots + request * num_nodes + steps, slots, mask=in_nodes)
    block = request * block_size + steps
    tl.store(block_slots + block, slots, mask=in_block)
    ids = tl.where(steps == 0, tl.load(root_ids + request), mask_token_id)
    tl.store(block_ids + block, ids, mask=in_block)
    tl.store(block_positions + block, positions, mask=in_block)


def round_inputs_triton(
    req_to_token: torch.Tensor,  # [rows, row_len] int32 or int64, slot of each position of each row
    req_pool_indices: torch.Tensor,  # [B] int32 or int64, row of each request
    prefix_lens: torch.Tensor,  # [B] int64, committed lengths
    root_ids: torch.Tensor,  # [B] int64
    *,
    mask_token_id: int,
    num_nodes: int,  # N
    block_size: int,  # R
) -> RoundInputs:
    """Look up the slots and write the blocks out, in one launch; equal to `core.round_inputs`.

    A position past its row's end gets slot 0, where core fails.

    Raises:
        ValueError: a shape is wrong, the roots are not int64, or rows of `req_to_token` are not contiguous.
    """
    check_round_inputs(req_to_token, req_pool_indices, prefix_lens, root_ids)
    if req_to_token.stride(1) != 1:
        raise ValueError(f"rows of req_to_token must be contiguous, got strides {req_to_token.stride()}")
    batch_size = len(root_ids)

    def empty(length: int) -> torch.Tensor:
        return torch.empty((batch_size, length), dtype=torch.int64, device=root_ids.device)

    made = RoundInputs(empty(num_nodes), empty(block_size), empty(block_size), empty(block_size))
    _round_inputs_kernel[(batch_size,)](
        req_to_token,
        req_pool_indices.contiguous(),
        prefix_lens.contiguous(),
        root_ids.contiguous(),
        made.node_slots,
        made.block_slots,
        made.block_ids,
        made.block_positions,
        req_to_token.stride(0),
        req_to_token.shape[1],
        mask_token_id,
        num_nodes,
        block_size,
        WINDOW=max(32, triton.next_power_of_2(max(num_nodes, block_size))),
        num_warps=1,
    )
    return made


def compile_cases() -> Iterator[CompileCase]:
    """Each size of window, with SGLang's table of 32-bit slots."""
    pointers = _round_inputs_kernel.arg_names[: len(_POINTERS)]
    arguments: dict[str, Argument] = {
        **dict.fromkeys(pointers, torch.int64),
        "req_to_token": torch.int32,
        "row_stride": 8192,
        "row_len": 8192,
        "mask_token_id": 151669,
        "num_nodes": 65,
        "block_size": 16,
    }
    for window in (32, 64, 128, 256):
        yield CompileCase(_round_inputs_kernel, arguments, {"WINDOW": window}, num_warps=1)

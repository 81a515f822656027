"""One launch moves the accepted rows of all layers' keys and values to the front of each request's window.

A program has a byte range of one buffer and all rows of one request in it. It loads every row that moves, waits for all
its warps, then stores. A slot may be both a source and a target, as in the path [0, 2, 3, 5], whose moves are 2 -> 1,
3 -> 2 and 5 -> 3: without the barrier a warp could store slot 2 before another has read it. Windows of different
requests share no slot but the padding slot, whose row nobody needs, so programs need no order among themselves. Rows
that stay are neither read nor written, and nothing is read back: no mask, no list of moves.

Oracle: `core.kv_commit.commit_plan`; parity, byte for byte, in tests/kernels. It knows neither the pool nor pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ddtree_sglang.kernels.compile_case import Argument, CompileCase
from ddtree_sglang.kernels.tree_builder_triton import MAX_DEPTH

MAX_PATH_LEN = MAX_DEPTH + 1
_NUM_WARPS = 4
# Words that a thread holds between load and store: 32 registers when words have 8 bytes. Twice as many spill on sm_80.
_WORDS_PER_THREAD = 16
_WORD_TYPES = {1: tl.uint8, 2: tl.uint16, 4: tl.uint32, 8: tl.uint64}


@triton.jit(
    do_not_specialize=["num_slots", "max_path_len"],
    do_not_specialize_on_alignment=["data_ptrs", "row_bytes", "slots", "accept_index"],
)
def _move_rows_kernel(  # type: ignore[no-untyped-def]
    data_ptrs,  # [M] uint64
    row_bytes,  # [M] int64
    slots,  # [B, W] int64
    accept_index,  # [B, P] int64
    num_slots,  # W
    max_path_len,  # P
    ALIGNMENT: tl.constexpr,  # bytes, divides every address and every row's size
    WORD_TYPE: tl.constexpr,
    WORD_BYTES: tl.constexpr,
    ROWS: tl.constexpr,  # power of two, at least P
    TILE: tl.constexpr,  # words of a row that a program moves
):
    tile, buffer, request = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    depth = tl.arange(0, ROWS)
    path = accept_index + request * max_path_len
    node = tl.load(path + depth, mask=depth < max_path_len, other=-1).to(tl.int32)
    moves = (node >= 0) & (node != depth)
    if tl.max(moves.to(tl.int32), axis=0) == 0:
        return
    window = slots + request * num_slots
    source = tl.load(window + node, mask=moves, other=0)
    target = tl.load(window + depth, mask=moves, other=0)

    # What the hints promise is read from memory, so the compiler cannot see it; without them it moves single words.
    row_words = tl.multiple_of(tl.load(row_bytes + buffer) // WORD_BYTES, ALIGNMENT // WORD_BYTES)
    base = tl.load(data_ptrs + buffer).to(tl.pointer_type(WORD_TYPE))
    base = tl.multiple_of(base, ALIGNMENT)
    word = tile * TILE + tl.arange(0, TILE)
    moved = moves[:, None] & (word < row_words)[None, :]
    rows = tl.load(base + source[:, None] * row_words + word[None, :], mask=moved)
    tl.debug_barrier()  # every warp has its rows before any stores
    tl.store(base + target[:, None] * row_words + word[None, :], rows, mask=moved)


@dataclass(frozen=True)
class KVRows:
    """M buffers in which row s belongs to slot s, such as the keys and the values of all layers."""

    data_ptrs: torch.Tensor  # [M] uint64, addresses
    row_bytes: torch.Tensor  # [M] int64
    widest_row_bytes: int
    alignment: int  # bytes: 1, 2, 4, 8 or 16, divides every address and every row's size

    @classmethod
    def of(cls, buffers: Sequence[torch.Tensor]) -> KVRows:
        """Describe buffers `[slots, ...]`; the addresses are copied to their device, which waits: once, not per round.

        The buffers must outlive what is returned.

        Raises:
            ValueError: there is no buffer, or one is not contiguous.
        """
        if not buffers or not all(buffer.is_contiguous() for buffer in buffers):
            shapes = [(tuple(buffer.shape), buffer.stride()) for buffer in buffers]
            raise ValueError(f"rows are moved in at least one buffer, each contiguous, got (shape, strides) {shapes}")
        addresses = [buffer.data_ptr() for buffer in buffers]
        widths = [buffer.stride(0) * buffer.element_size() for buffer in buffers]
        device = buffers[0].device
        return cls(
            torch.tensor(addresses, dtype=torch.uint64, device=device),
            torch.tensor(widths, dtype=torch.int64, device=device),
            max(widths),
            math.gcd(16, *addresses, *widths),
        )


def _check_path(slots: torch.Tensor, accept_index: torch.Tensor) -> None:
    """Refuse what the kernel would read wrongly; never look at values."""
    for name, tensor in (("slots", slots), ("accept_index", accept_index)):
        if tensor.ndim != 2 or tensor.dtype != torch.int64 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be 2-D int64 and contiguous, got {tuple(tensor.shape)} {tensor.dtype} with strides "
                f"{tensor.stride()}"
            )
    (batch_size, path_len), num_windows = accept_index.shape, len(slots)
    if num_windows != batch_size or not 1 <= path_len <= MAX_PATH_LEN:
        raise ValueError(
            f"accept_index must be [B, P] with P from 1 to {MAX_PATH_LEN} for slots [B, W], got "
            f"{tuple(accept_index.shape)} for slots {tuple(slots.shape)}"
        )


def move_accepted_rows(
    rows: KVRows,
    slots: torch.Tensor,  # [B, W] int64, slot of each place of a window; none but the padding slot is in two
    accept_index: torch.Tensor,  # [B, P] int64, places whose rows become final, in order, at most W of them; then -1
) -> None:
    """Copy, in every buffer, row `slots[b, accept_index[b, j]]` to row `slots[b, j]`: all at once, whatever the order.

    Raises:
        ValueError: a shape or dtype is wrong, or a tensor is not contiguous; P is above 32.
    """
    _check_path(slots, accept_index)
    batch_size, path_len = accept_index.shape
    if batch_size == 0 or min(path_len, slots.shape[1]) <= 1:
        return  # the root stays
    constants = _constants(rows.alignment, rows.widest_row_bytes, path_len)
    row_words = rows.widest_row_bytes // constants["WORD_BYTES"]
    _move_rows_kernel[(triton.cdiv(row_words, constants["TILE"]), len(rows.data_ptrs), batch_size)](
        rows.data_ptrs,
        rows.row_bytes,
        slots,
        accept_index,
        slots.shape[1],
        path_len,
        **constants,
        num_warps=_NUM_WARPS,
    )


def _constants(alignment: int, widest_row_bytes: int, path_len: int) -> dict[str, Any]:
    """The specialization for rows of that size and alignment, and paths of that length."""
    word_bytes = min(alignment, 8)
    rows = triton.next_power_of_2(path_len)
    words = triton.next_power_of_2(max(1, widest_row_bytes // word_bytes))
    return {
        "ALIGNMENT": alignment,
        "WORD_TYPE": _WORD_TYPES[word_bytes],
        "WORD_BYTES": word_bytes,
        "ROWS": rows,
        "TILE": min(words, _WORDS_PER_THREAD * 32 * _NUM_WARPS // rows),
    }


def compile_cases() -> Iterator[CompileCase]:
    """Paths of 8, 16 and 32 nodes; rows from one head of 128 in bf16 to 64 of them; rows of odd sizes."""
    arguments: dict[str, Argument] = {
        "data_ptrs": torch.uint64,
        "row_bytes": torch.int64,
        "slots": torch.int64,
        "accept_index": torch.int64,
        "num_slots": 65,
        "max_path_len": 16,
    }
    for path_len in (8, 16, 32):
        for alignment, row_bytes in ((16, 256), (16, 16384), (8, 1000), (4, 100), (2, 98), (1, 99)):
            constants = _constants(alignment, row_bytes, path_len)
            yield CompileCase(_move_rows_kernel, arguments, constants, num_warps=_NUM_WARPS)

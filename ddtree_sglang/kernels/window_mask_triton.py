"""One launch turns the cells of a flat tree mask into the mask of the layers that have a sliding window.

One program per node: its row of tree cells says its depth, and with it where its window begins. A running count over
the row gives each ancestor's depth, because parents come before their children. It writes into buffers that exist, so
it can stand in a CUDA graph. Oracle: `core.window_mask.window_tree_mask`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ddtree_sglang.core.window_mask import WindowMask
from ddtree_sglang.kernels.compile_case import Argument, CompileCase

_POINTERS = range(4)
"""The kernel's first arguments. No two launches differ in what is known of addresses, so none compiles it anew."""

_COLUMNS = 256
"""Prefix cells that are written at a time."""


@triton.jit(do_not_specialize=["window", "num_nodes"], do_not_specialize_on_alignment=_POINTERS)
def _window_mask_kernel(  # type: ignore[no-untyped-def]
    tree_mask,  # bool or uint8 cells in the flat layout (core.tree_mask); prefix cells are not read
    prefix_lens,  # [B] int32 or int64
    cells,  # bool cells, written
    starts,  # [B + 1] int64, written
    window,
    num_nodes,
    LANES: tl.constexpr,  # power of two, at least N
    COLUMNS: tl.constexpr,
):
    request, node = tl.program_id(0), tl.program_id(1)
    chunk = tl.arange(0, 32)
    before = tl.zeros([32], tl.int64)
    near_before = tl.zeros([32], tl.int64)
    for start in range(0, request, 32):
        earlier = start + chunk < request
        lens = tl.load(prefix_lens + start + chunk, mask=earlier, other=-num_nodes).to(tl.int64)
        before += lens + num_nodes
        near_before += tl.minimum(lens, window) + num_nodes
    prefix_len = tl.load(prefix_lens + request).to(tl.int64)
    width = tl.minimum(prefix_len, window)
    first = tl.sum(near_before, axis=0) * num_nodes
    if node == 0:
        # The first request's program writes the zero as well.
        tl.store(starts + request, first)
        tl.store(starts + request + 1, first + (width + num_nodes) * num_nodes)

    lanes = tl.arange(0, LANES)
    in_row = lanes < num_nodes
    row = tree_mask + tl.sum(before, axis=0) * num_nodes + (prefix_len + num_nodes) * node + prefix_len
    sees = ((tl.load(row + lanes, mask=in_row, other=0) != 0) | (lanes == node)) & in_row
    rank = tl.cumsum(sees.to(tl.int32), axis=0)  # of a node that is seen, its depth and one
    depth = tl.sum(sees.to(tl.int32), axis=0) - 1
    out = cells + first + (width + num_nodes) * node
    tl.store(out + width + lanes, sees & (rank - 1 >= depth - window), mask=in_row)
    columns = tl.arange(0, COLUMNS)
    for start in range(0, width, COLUMNS):
        column = start + columns
        tl.store(out + column, column - width >= depth - window, mask=column < width)


def window_mask_into(
    made: WindowMask,  # of B requests or more
    flat_mask: torch.Tensor,  # 1-D bool or uint8, at least sum_b N * (prefix_len_b + N) cells, or one cell of those
    prefix_lens: torch.Tensor,  # [B] int32 or int64
    num_nodes: int,  # N
    window: int,  # positions before a node's own that it may attend to
) -> None:
    """Write the mask, in one launch; equal to `core.window_tree_mask`, but that a node always sees itself.

    Of `flat_mask` the address is read, not the size.

    Raises:
        ValueError: `made` has no room for so many requests.
    """
    batch_size = len(prefix_lens)
    room = batch_size * num_nodes * (window + num_nodes)
    if len(made.starts) <= batch_size or len(made.cells) < room:
        raise ValueError(
            f"the mask of {batch_size} requests may need {room} cells and {batch_size + 1} starts, got "
            f"{len(made.cells)} and {len(made.starts)}; make it with WindowMask.empty({batch_size}, ...)"
        )
    _window_mask_kernel[(batch_size, num_nodes)](
        flat_mask,
        prefix_lens.contiguous(),
        made.cells,
        made.starts,
        window,
        num_nodes,
        LANES=max(32, triton.next_power_of_2(num_nodes)),
        COLUMNS=_COLUMNS,
        num_warps=1,
    )


def compile_cases() -> Iterator[CompileCase]:
    """Each number of lanes."""
    arguments: dict[str, Argument] = {
        "tree_mask": torch.uint8,
        **dict.fromkeys(("prefix_lens", "starts"), torch.int64),
        "cells": torch.bool,
        "window": 4096,
        "num_nodes": 65,
    }
    for lanes in (32, 64, 128, 256):
        yield CompileCase(_window_mask_kernel, arguments, {"LANES": lanes, "COLUMNS": _COLUMNS}, num_warps=1)

"""One launch turns the cells of a flat tree mask into the page tables that FA3 verifies nodes with.

One warp per node: it reads its N cells and N slots, and a running count says where each slot goes. It writes into
buffers that exist, so it can stand in a CUDA graph. Oracle: `core.ancestor_pages.ancestor_pages`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ddtree_sglang.core.ancestor_pages import AncestorPages
from ddtree_sglang.kernels.compile_case import Argument, CompileCase

_POINTERS = range(6)
"""The kernel's first arguments. No two launches differ in what is known of addresses, so none compiles it anew."""


@triton.jit(do_not_specialize=["row_stride", "row_len", "num_nodes"], do_not_specialize_on_alignment=_POINTERS)
def _ancestor_pages_kernel(  # type: ignore[no-untyped-def]
    mask,  # bool or uint8 cells in the flat layout (core.tree_mask)
    req_to_token,  # [rows, row_len] int32
    req_pool_indices,  # [B] int32 or int64, and so is the next
    prefix_lens,
    counts,  # [B * N] int32
    page_table,  # [B * N, N] int32
    row_stride,
    row_len,
    num_nodes,
    LANES: tl.constexpr,  # power of two, at least N
):
    request, node = tl.program_id(0), tl.program_id(1)
    chunk = tl.arange(0, 32)
    before = tl.zeros([32], tl.int64)
    for start in range(0, request, 32):
        earlier = start + chunk < request
        before += tl.load(prefix_lens + start + chunk, mask=earlier, other=-num_nodes).to(tl.int64) + num_nodes
    prefix_len = tl.load(prefix_lens + request).to(tl.int64)
    cells = mask + tl.sum(before, axis=0) * num_nodes + (prefix_len + num_nodes) * node + prefix_len

    lanes = tl.arange(0, LANES)
    in_row = lanes < num_nodes
    # A padded request's cells may be anything; a node that read no key at all would be a division by zero.
    sees = (tl.load(cells + lanes, mask=in_row, other=0) != 0) | (lanes == node)
    column = prefix_len + lanes
    row = tl.load(req_pool_indices + request).to(tl.int64) * row_stride
    slots = tl.load(req_to_token + row + column, mask=in_row & (column < row_len), other=0)
    rank = tl.cumsum(sees.to(tl.int32), axis=0)
    count = tl.sum(sees.to(tl.int32), axis=0)
    place = tl.where(sees, rank - 1, count + lanes - rank)
    out = request.to(tl.int64) * num_nodes + node
    tl.store(page_table + out * num_nodes + place, slots, mask=in_row)
    tl.store(counts + out, count)


def ancestor_pages_into(
    made: AncestorPages,  # of B trees of N nodes
    flat_mask: torch.Tensor,  # 1-D bool or uint8, at least sum_b N * (prefix_len_b + N) cells
    req_to_token: torch.Tensor,  # [rows, row_len] int32, slot of each position of each row
    req_pool_indices: torch.Tensor,  # [B] int32 or int64, row of each request
    prefix_lens: torch.Tensor,  # [B] int32 or int64; node i stands in the slot of position prefix_len + i
) -> None:
    """Write the nodes' page tables, in one launch; equal to `core.ancestor_pages`, but that a node always sees itself.

    Raises:
        ValueError: the tensors of `made` are not contiguous, or of another number of requests.
    """
    num_rows, num_nodes = made.page_table.shape
    batch_size = len(prefix_lens)
    if num_rows != batch_size * num_nodes or len(made.counts) != num_rows:
        raise ValueError(
            f"page_table must be [B * N, N] and counts [B * N] for B = {batch_size}, got "
            f"{tuple(made.page_table.shape)} and {tuple(made.counts.shape)}"
        )
    if not (made.page_table.is_contiguous() and made.counts.is_contiguous() and req_to_token.stride(1) == 1):
        raise ValueError(
            "the kernel reads and writes contiguous rows, got strides of page_table, counts, req_to_token "
            f"{made.page_table.stride()}, {made.counts.stride()}, {req_to_token.stride()}"
        )
    _ancestor_pages_kernel[(batch_size, num_nodes)](
        flat_mask,
        req_to_token,
        req_pool_indices.contiguous(),
        prefix_lens.contiguous(),
        made.counts,
        made.page_table,
        req_to_token.stride(0),
        req_to_token.shape[1],
        num_nodes,
        LANES=max(32, triton.next_power_of_2(num_nodes)),
        num_warps=1,
    )


def compile_cases() -> Iterator[CompileCase]:
    """Each number of lanes."""
    arguments: dict[str, Argument] = {
        "mask": torch.uint8,
        **dict.fromkeys(("req_to_token", "counts", "page_table"), torch.int32),
        **dict.fromkeys(("req_pool_indices", "prefix_lens"), torch.int64),
        "row_stride": 8192,
        "row_len": 8192,
        "num_nodes": 65,
    }
    for lanes in (32, 64, 128, 256):
        yield CompileCase(_ancestor_pages_kernel, arguments, {"LANES": lanes}, num_warps=1)

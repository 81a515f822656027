"""One launch builds the trees of a whole batch: nodes, links, positions and mask cells.

Algorithm 1 of the paper (arXiv 2604.12989), one warp per request, its heap replaced by a table. Lane p of the warp
holds the next child of node p that is not yet in the tree, so the frontier is at most N entries, always in registers,
and the best one is a maximum over lanes. After a pop, lane p moves on to the next sibling, and the lane of the new node
opens with its first child. A launch of N - 1 such steps does no sort, no barrier and reads nothing back.

The order of ties is core's: score descending, then depth, then parent, then candidate rank, the last three packed into
one number. Scores are compared as 32-bit integers in the order of the floats, because a warp's maximum or sum of those
is one instruction from sm_80 on; of floats it is a chain of five shuffles, of 64-bit numbers one of ten.

Oracle: `core.tree_builder.build_draft_tree`, `core.tree_layout`, `core.tree_mask`; parity, bit for bit, in
tests/kernels, under Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ddtree_sglang.core.built_tree import BuiltTree
from ddtree_sglang.core.tree_builder import check_builder_inputs
from ddtree_sglang.core.tree_layout import check_prefix_lens
from ddtree_sglang.kernels.compile_case import Argument, CompileCase

MAX_NODES = 256
MAX_DEPTH = 31

_POINTERS = range(13)
"""The kernel's first arguments. No two launches differ in what is known of addresses, so none compiles it anew."""

# Key of a lane that has no candidate; below that of any score. As an annotated constant a kernel may read it.
_NOTHING: tl.constexpr = tl.constexpr(-(2**31))
# Depth, parent and rank take 5 + 8 + 8 bits; they are subtracted from this, so that smaller ones win.
_TIE_BITS: tl.constexpr = tl.constexpr(2**21 - 1)


@triton.jit
def _usable(logprob):  # type: ignore[no-untyped-def]
    """As core reads candidates: NaN is -inf, and nothing is above 0."""
    return tl.minimum(tl.where(logprob == logprob, logprob, float("-inf")), 0.0)


@triton.jit
def _ordered(score):  # type: ignore[no-untyped-def]
    """Scores as int32 in the same order; that of an impossible candidate, -inf, is `_NOTHING`."""
    bits = score.to(tl.int32, bitcast=True)
    # Two's complement in the order of the floats: negative ones have their other bits turned around.
    return tl.where(score > float("-inf"), bits ^ ((bits >> 31) & 0x7FFFFFFF), _NOTHING)


@triton.jit
def _tie(depth, parent, rank):  # type: ignore[no-untyped-def]
    """Larger for those that come earlier among candidates of equal score."""
    return _TIE_BITS - ((depth << 16) | (parent << 8) | rank)


@triton.jit(
    do_not_specialize=[
        "root_stride",
        "prefix_stride",
        "draft_depth",
        "num_candidates",
        "num_used",
        "num_nodes",
    ],
    do_not_specialize_on_alignment=_POINTERS,
)
def _build_tree_kernel(  # type: ignore[no-untyped-def]
    topk_ids,  # [B, D, K] int64
    topk_logprobs,  # [B, D, K] float32
    root_ids,  # [B] int64, root_stride apart
    prefix_lens,  # [B] int64, prefix_stride apart
    token_ids,  # [B, N] int64, and so are the next seven but path_logprobs, float32
    parents,
    depths,
    path_logprobs,
    positions,
    node_rows,
    next_tokens,
    next_siblings,
    mask,  # bool cells
    root_stride,
    prefix_stride,
    draft_depth,
    num_candidates,
    num_used,  # candidates per position that are looked at: those past N - 1 are never reached, and not in the key
    num_nodes,
    IS_FLAT: tl.constexpr,
    LANES: tl.constexpr,  # power of two, at least N
):
    # One function of some ninety lines: all of it shares the lane table, which lives in registers.
    request = tl.program_id(0)
    lanes = tl.arange(0, LANES)
    in_row = lanes < num_nodes
    row = request.to(tl.int64) * num_nodes
    block = request.to(tl.int64) * draft_depth * num_candidates
    prefix_len = tl.load(prefix_lens + request * prefix_stride)
    if IS_FLAT:
        # Tokens and nodes of the requests before, 32 requests at a time: their number is no part of the code.
        chunk = tl.arange(0, 32)
        before = tl.zeros([32], tl.int64)
        for start in range(0, request, 32):
            earlier = start + chunk < request
            lens = tl.load(prefix_lens + (start + chunk) * prefix_stride, mask=earlier, other=-num_nodes)
            before += lens + num_nodes
        row_len = prefix_len + num_nodes
        cells = mask + tl.sum(before, axis=0) * num_nodes + prefix_len
    else:
        row_len = num_nodes.to(tl.int64)
        cells = mask + row * num_nodes

    # The root, what links hold where there is none, and the rows of the flat verify batch.
    tl.store(node_rows + row + lanes, row + lanes, mask=in_row)
    tl.store(next_tokens + row + lanes, tl.full([LANES], -1, tl.int64), mask=in_row)
    tl.store(next_siblings + row + lanes, tl.full([LANES], -1, tl.int64), mask=in_row)
    tl.debug_barrier()  # links are stored one at a time below, by another thread
    tl.store(token_ids + row, tl.load(root_ids + request * root_stride))
    tl.store(parents + row, -1)
    tl.store(depths + row, 0)
    tl.store(path_logprobs + row, 0.0)
    tl.store(positions + row, prefix_len)
    tl.store(cells + lanes, lanes == 0, mask=in_row)

    # Lane p: the score and depth of node p, and its child in waiting: rank, key, tie, and the node of the rank before.
    score = tl.zeros([LANES], tl.float32)
    depth = tl.zeros([LANES], tl.int32)
    rank = tl.zeros([LANES], tl.int32)
    previous = tl.full([LANES], -1, tl.int32)
    first = _usable(tl.load(topk_logprobs + block)) + score
    key = tl.where(lanes == 0, _ordered(first), _NOTHING)
    tie = tl.where(lanes == 0, _tie(depth + 1, lanes, rank), 0)

    for node in range(1, num_nodes):
        best = tl.max(key, axis=0)
        found = best > _NOTHING
        best_tie = tl.max(tl.where(key == best, tie, -1), axis=0)
        here = (key == best) & (tie == best_tie) & found  # ties differ, so one lane or none
        place = _TIE_BITS - best_tie
        node_depth = tl.where(found, place >> 16, 0)
        parent = tl.where(found, (place >> 8) & 255, -1)
        node_rank = place & 255
        bits = best ^ ((best >> 31) & 0x7FFFFFFF)
        node_score = tl.where(found, bits.to(tl.float32, bitcast=True), float("-inf"))
        score_bits = tl.sum(tl.where(here, score.to(tl.int32, bitcast=True), 0), axis=0)
        parent_score = score_bits.to(tl.float32, bitcast=True)
        sibling = tl.sum(tl.where(here, previous, 0), axis=0)

        candidate = block + (node_depth - 1) * num_candidates + node_rank
        tl.store(token_ids + row + node, tl.load(topk_ids + candidate, mask=found, other=0))
        tl.store(parents + row + node, parent)
        tl.store(depths + row + node, node_depth)
        tl.store(path_logprobs + row + node, node_score)
        tl.store(positions + row + node, prefix_len + node_depth)
        tl.store(next_tokens + row + parent, node, mask=found & (node_rank == 0))
        tl.store(next_siblings + row + sibling, node, mask=found & (node_rank > 0))
        if LANES >= 64:
            # With two or more lanes to a thread, the thread that loads a cell of the parent's row need not be the one
            # that stored it: bytes are stored and loaded in vectors, and the compiler lays out each by itself.
            tl.debug_barrier()
        above = tl.load(cells + parent * row_len + lanes, mask=in_row & found, other=0) != 0
        tl.store(cells + node * row_len + lanes, above | (lanes == node), mask=in_row)

        # The next sibling waits in the parent's lane, the first child in the new node's.
        has_next = found & (node_rank + 1 < num_used)
        step = tl.load(topk_logprobs + candidate + 1, mask=has_next, other=float("-inf"))
        key = tl.where(here, _ordered(parent_score + _usable(step)), key)
        tie = tl.where(here, _tie(node_depth, parent, node_rank + 1), tie)
        rank = tl.where(here, node_rank + 1, rank)
        previous = tl.where(here, node, previous)
        has_child = found & (node_depth < draft_depth)
        step = tl.load(topk_logprobs + block + node_depth * num_candidates, mask=has_child, other=float("-inf"))
        opens = (lanes == node) & has_child
        key = tl.where(opens, _ordered(node_score + _usable(step)), key)
        tie = tl.where(opens, _tie(node_depth + 1, node, 0), tie)
        score = tl.where(lanes == node, node_score, score)


def _check_sizes(num_nodes: int, draft_depth: int) -> None:
    """Refuse what the key of a candidate has no bits for."""
    if num_nodes > MAX_NODES or draft_depth > MAX_DEPTH:
        raise ValueError(
            f"the Triton builder takes up to {MAX_NODES} nodes and {MAX_DEPTH} drafted positions, got {num_nodes} and "
            f"{draft_depth}; use core.build_draft_tree"
        )


def build_draft_tree_triton(
    topk_ids: torch.Tensor,  # [B, D, K] int64, best first
    topk_logprobs: torch.Tensor,  # [B, D, K] float32, descending along K
    root_ids: torch.Tensor,  # [B] int64
    prefix_lens: torch.Tensor,  # [B] int64
    num_nodes: int,  # N
    flat_mask: torch.Tensor | None = None,  # 1-D bool, at least sum_b N * (prefix_len_b + N) cells
) -> BuiltTree:
    """Build, lay out and mask the trees of a batch in one launch; the trees are those of `core.build_draft_tree`.

    Without `flat_mask` the mask is a new `[B, N, N]` tensor. With it, only the tree cells of FlashInfer's flat layout
    (`core.tree_mask`) are written; the prefix cells are left as they are.

    Raises:
        ValueError: a shape, dtype or device is wrong, N is above 256, or D above 31.
    """
    built = BuiltTree.empty(len(root_ids), num_nodes, topk_ids.device, flat_mask)
    build_into(built, topk_ids, topk_logprobs, root_ids, prefix_lens)
    return built


def build_into(
    built: BuiltTree,  # of B requests (of a larger one, `first(B)`)
    topk_ids: torch.Tensor,  # [B, D, K] int64, best first
    topk_logprobs: torch.Tensor,  # [B, D, K] float32, descending along K
    root_ids: torch.Tensor,  # [B] int64, of any stride
    prefix_lens: torch.Tensor,  # [B] int64, of any stride
) -> None:
    """Build, lay out and mask a batch's trees into tensors that exist, as a CUDA graph needs: results keep their place.

    Raises:
        ValueError: a shape, dtype or device is wrong, N is above 256, D above 31, or a tensor of `built` is not
            contiguous or of another number of requests.
    """
    tree, layout, num_nodes = built.tree, built.layout, built.tree.num_nodes
    check_builder_inputs(topk_ids, topk_logprobs, root_ids, num_nodes)
    batch_size, draft_depth, num_candidates = topk_ids.shape
    check_prefix_lens(prefix_lens, batch_size, topk_ids.device)
    _check_sizes(num_nodes, draft_depth)
    outputs = (
        tree.token_ids,
        tree.parents,
        tree.depths,
        tree.logprobs,
        layout.positions,
        layout.retrieve_index,
        layout.retrieve_next_token,
        layout.retrieve_next_sibling,
        built.mask.cells,
    )
    if tree.batch_size != batch_size or not all(output.is_contiguous() for output in outputs):
        raise ValueError(
            f"the kernel writes contiguous rows of exactly {batch_size} requests, got {tree.batch_size}; pass "
            "BuiltTree.first(B)"
        )
    _build_tree_kernel[(batch_size,)](
        topk_ids.contiguous(),
        topk_logprobs.contiguous(),
        root_ids,
        prefix_lens,
        *outputs,
        root_ids.stride(0),
        prefix_lens.stride(0),
        draft_depth,
        num_candidates,
        min(num_candidates, max(1, num_nodes - 1)),
        num_nodes,
        IS_FLAT=built.mask.is_flat,
        LANES=max(32, triton.next_power_of_2(num_nodes)),
        num_warps=1,
    )


def compile_cases() -> Iterator[CompileCase]:
    """Each number of lanes with both layouts."""
    sizes = {"draft_depth": 15, "num_candidates": 64, "num_used": 64, "num_nodes": 65}
    pointers = _build_tree_kernel.arg_names[: len(_POINTERS)]
    arguments: dict[str, Argument] = {
        **dict.fromkeys(pointers, torch.int64),
        **dict.fromkeys(("topk_logprobs", "path_logprobs"), torch.float32),
        "mask": torch.bool,
        **dict.fromkeys(("root_stride", "prefix_stride"), 1),
        **sizes,
    }
    for lanes in (32, 64, 128, 256):
        for is_flat in (False, True):
            constants = {"IS_FLAT": is_flat, "LANES": lanes}
            yield CompileCase(_build_tree_kernel, arguments, constants, num_warps=1)

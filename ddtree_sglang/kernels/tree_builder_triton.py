"""One launch builds the trees of a whole batch: nodes, links, positions and mask cells.

Algorithm 1 of the paper (arXiv 2604.12989), one warp per request, its heap replaced by a table. Lane p of the warp
holds the next child of node p that is not yet in the tree, so the frontier is at most N entries, always in registers,
and the best one is a maximum over lanes. After a pop, lane p moves on to the next sibling, and the lane of the new node
opens with its first child. A launch of N - 1 such steps does no sort, no barrier and reads nothing back.

A law of pairs changes one thing: the children of a node are in no order. A node's next child is then the best of its
row of K conditionals that comes after the child before, a maximum and a minimum over the row. The row is loaded anew
each time: it is one line of the cache, and a sorted copy would be one launch more and K times the registers.

The order of ties is core's: score descending, then depth, then parent, then candidate rank, the last three packed into
one number. Scores are compared as 32-bit integers in the order of the floats, because a warp's maximum or sum of those
is one instruction from sm_80 on; of floats it is a chain of five shuffles, of 64-bit numbers one of ten.

Oracle: `core.tree_builder.build_draft_tree`, `core.tree_layout`, `core.tree_mask`; parity, bit for bit, in
tests/kernels, under Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import itertools
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
MAX_CHOICES = 256
"""Candidates per position of a law of pairs."""

_POINTERS = range(13)
"""The kernel's first arguments. No two launches differ in what is known of addresses, so none compiles it anew."""

# Key of a lane that has no candidate; below that of any score. As an annotated constant a kernel may read it.
_NOTHING: tl.constexpr = tl.constexpr(-(2**31))
# Last key of a node none of whose children is in the tree.
_EVERYTHING: tl.constexpr = tl.constexpr(2**31 - 1)
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


@triton.jit
def _next_child(row, parent_score, last_key, last_rank, width, CHOICES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Key and rank of the best of a row's candidates that comes after the last one; `_NOTHING` if none does."""
    ranks = tl.arange(0, CHOICES)
    steps = tl.load(row + ranks, mask=ranks < width, other=float("-inf"))
    keys = _ordered(parent_score + _usable(steps))
    after = (keys < last_key) | ((keys == last_key) & (ranks > last_rank))
    keys = tl.where(after, keys, _NOTHING)
    best = tl.max(keys, axis=0)
    return best, tl.min(tl.where(keys == best, ranks, CHOICES - 1), axis=0)


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
    law,  # [B, D, K] float32 or, of pairs, [B, D, K, K]
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
    num_used,  # candidates of a factorised law that are looked at: those past N - 1 are never reached
    num_nodes,
    IS_FLAT: tl.constexpr,
    LANES: tl.constexpr,  # power of two, at least N
    CHOICES: tl.constexpr,  # of a law of pairs: power of two, at least K; 0 for a factorised law
):
    # One function of some hundred lines: all of it shares the lane table, which lives in registers.
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
    # Of a law of pairs: node p's own candidate rank, which is its row for its children. At depth 1 row 0 is the root's.
    own_rank = tl.zeros([LANES], tl.int32)
    if CHOICES == 0:
        first_key, first_rank = _ordered(_usable(tl.load(law + block))), 0
    else:
        first_key, first_rank = _next_child(law + block * num_candidates, 0.0, _EVERYTHING, -1, num_candidates, CHOICES)
    key = tl.where(lanes == 0, first_key, _NOTHING)
    rank = tl.where(lanes == 0, first_rank, rank)
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
        tl.store(next_tokens + row + parent, node, mask=found & (sibling < 0))
        tl.store(next_siblings + row + sibling, node, mask=found & (sibling >= 0))
        if LANES >= 64:
            # With two or more lanes to a thread, the thread that loads a cell of the parent's row need not be the one
            # that stored it: bytes are stored and loaded in vectors, and the compiler lays out each by itself.
            tl.debug_barrier()
        above = tl.load(cells + parent * row_len + lanes, mask=in_row & found, other=0) != 0
        tl.store(cells + node * row_len + lanes, above | (lanes == node), mask=in_row)

        # The next sibling waits in the parent's lane, the first child in the new node's.
        has_child = found & (node_depth < draft_depth)
        if CHOICES == 0:
            has_next = found & (node_rank + 1 < num_used)
            step = tl.load(law + candidate + 1, mask=has_next, other=float("-inf"))
            next_key, next_rank = _ordered(parent_score + _usable(step)), node_rank + 1
            step = tl.load(law + block + node_depth * num_candidates, mask=has_child, other=float("-inf"))
            child_key, child_rank = _ordered(node_score + _usable(step)), 0
        else:
            parent_rank = tl.sum(tl.where(here, own_rank, 0), axis=0)
            last = tl.where(found, best, _NOTHING)  # after it comes nothing
            siblings = law + (block + tl.maximum(node_depth - 1, 0) * num_candidates + parent_rank) * num_candidates
            next_key, next_rank = _next_child(siblings, parent_score, last, node_rank, num_candidates, CHOICES)
            width = tl.where(has_child, num_candidates, 0)
            children = law + (block + node_depth * num_candidates + node_rank) * num_candidates
            child_key, child_rank = _next_child(children, node_score, _EVERYTHING, -1, width, CHOICES)
            own_rank = tl.where(lanes == node, node_rank, own_rank)
        key = tl.where(here, next_key, key)
        tie = tl.where(here, _tie(node_depth, parent, next_rank), tie)
        rank = tl.where(here, next_rank, rank)
        previous = tl.where(here, node, previous)
        opens = (lanes == node) & has_child
        key = tl.where(opens, child_key, key)
        tie = tl.where(opens, _tie(node_depth + 1, node, child_rank), tie)
        score = tl.where(lanes == node, node_score, score)


def _check_sizes(num_nodes: int, draft_depth: int, num_choices: int) -> None:
    """Refuse what the key of a candidate has no bits for."""
    if num_choices > MAX_CHOICES:
        raise ValueError(
            f"the Triton builder takes pairs of up to {MAX_CHOICES} candidates, got {num_choices}; use "
            "core.build_draft_tree"
        )
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
    pair_logprobs: torch.Tensor | None = None,  # [B, D, K, K] float32
) -> BuiltTree:
    """Build, lay out and mask the trees of a batch in one launch; the trees are those of `core.build_draft_tree`.

    Without `flat_mask` the mask is a new `[B, N, N]` tensor. With it, only the tree cells of FlashInfer's flat layout
    (`core.tree_mask`) are written; the prefix cells are left as they are.

    Raises:
        ValueError: a shape, dtype or device is wrong, N is above 256, D above 31 or, with pairs, K above 256.
    """
    built = BuiltTree.empty(len(root_ids), num_nodes, topk_ids.device, flat_mask)
    build_into(built, topk_ids, topk_logprobs, root_ids, prefix_lens, pair_logprobs)
    return built


def build_into(
    built: BuiltTree,  # of B requests (of a larger one, `first(B)`)
    topk_ids: torch.Tensor,  # [B, D, K] int64, best first
    topk_logprobs: torch.Tensor,  # [B, D, K] float32, descending along K
    root_ids: torch.Tensor,  # [B] int64, of any stride
    prefix_lens: torch.Tensor,  # [B] int64, of any stride
    pair_logprobs: torch.Tensor | None = None,  # [B, D, K, K] float32, as core takes them
) -> None:
    """Build, lay out and mask a batch's trees into tensors that exist, as a CUDA graph needs: results keep their place.

    Raises:
        ValueError: a shape, dtype or device is wrong, N is above 256, D above 31, with pairs K above 256, or a tensor
            of `built` is not contiguous or of another number of requests.
    """
    tree, layout, num_nodes = built.tree, built.layout, built.tree.num_nodes
    check_builder_inputs(topk_ids, topk_logprobs, root_ids, num_nodes, pair_logprobs)
    batch_size, draft_depth, num_candidates = topk_ids.shape
    check_prefix_lens(prefix_lens, batch_size, topk_ids.device)
    choices = 0 if pair_logprobs is None else num_candidates
    _check_sizes(num_nodes, draft_depth, choices)
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
        (topk_logprobs if pair_logprobs is None else pair_logprobs).contiguous(),
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
        CHOICES=0 if choices == 0 else max(32, triton.next_power_of_2(choices)),
        num_warps=1,
    )


def compile_cases() -> Iterator[CompileCase]:
    """Each number of lanes with both layouts, factorised and of pairs; of pairs, also the most candidates."""
    sizes = {"draft_depth": 15, "num_candidates": 64, "num_used": 64, "num_nodes": 65}
    pointers = _build_tree_kernel.arg_names[: len(_POINTERS)]
    arguments: dict[str, Argument] = {
        **dict.fromkeys(pointers, torch.int64),
        **dict.fromkeys(("law", "path_logprobs"), torch.float32),
        "mask": torch.bool,
        **dict.fromkeys(("root_stride", "prefix_stride"), 1),
        **sizes,
    }
    for lanes in (32, 64, 128, MAX_NODES):
        for is_flat, choices in itertools.product((False, True), (0, 32)):
            constants = {"IS_FLAT": is_flat, "LANES": lanes, "CHOICES": choices}
            yield CompileCase(_build_tree_kernel, arguments, constants, num_warps=1)
    constants = {"IS_FLAT": False, "LANES": MAX_NODES, "CHOICES": MAX_CHOICES}
    yield CompileCase(_build_tree_kernel, arguments, constants, num_warps=1)

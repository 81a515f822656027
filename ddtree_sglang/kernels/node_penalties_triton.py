"""Penalties of a tree's nodes in one launch before the target chooses, and one launch to count what it chose.

A program takes a block of the vocabulary at one node. It walks from the node to the root, a dozen tokens at most, and
counts those of its block on top of the request's row. Only logits that change are read and written: of all others the
row's marks, a byte each, are all that moves. Neither launch reads a value back, and a batch of any size uses the same
code. Oracle: `core.node_penalties`; parity, bit for bit, in tests/kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.node_penalties import PenaltyState, check_counted, check_node_logits
from ddtree_sglang.kernels.compile_case import Argument, CompileCase

MAX_BLOCK = 2048
"""Tokens of the vocabulary per program: some fifty registers per thread of four warps."""


@triton.jit(
    do_not_specialize=["num_nodes", "vocab_size", "logits_stride"],
    do_not_specialize_on_alignment=range(12),
)
def _penalize_kernel(  # type: ignore[no-untyped-def]
    logits,  # [B * N, V]
    slots,  # [B] int64
    slot_rows,  # [R] int64
    sums,  # [C, V] float32
    marks,  # [C, V] uint8: bit 1 emitted, bit 2 an end
    lens,  # [C] int64
    frequency,  # [C] float32, and so are the next two
    presence,
    repetition,
    min_lens,  # [C] int64
    token_ids,  # [B, N] int64, and so is the next
    parents,
    num_nodes,
    vocab_size,
    logits_stride,
    BLOCK: tl.constexpr,  # power of two
):
    place = tl.program_id(0).to(tl.int64)
    request = place // num_nodes
    tree = request * num_nodes
    row = tl.load(slot_rows + tl.load(slots + request)).to(tl.int64)
    if row >= 0:
        offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < vocab_size
        cells = row * vocab_size + offsets
        mark = tl.load(marks + cells, mask=inside, other=0)
        emitted = (mark & 1) != 0
        per_token = tl.load(frequency + row)
        summed = tl.load(sums + cells, mask=emitted, other=0.0)
        count = tl.load(lens + row)
        node = (place - tree).to(tl.int64)
        while node >= 0:
            here = offsets == tl.load(token_ids + tree + node)
            summed = tl.where(here, summed + per_token, summed)
            emitted = emitted | here
            count += 1
            node = tl.load(parents + tree + node)
        barred = ((mark & 2) != 0) & (count < tl.load(min_lens + row))
        changed = inside & (emitted | barred)
        additive = (0.0 - summed) - tl.where(emitted, tl.load(presence + row), 0.0)
        additive = tl.where(barred, float("-inf"), additive)
        target = logits + place * logits_stride + offsets
        before = tl.load(target, mask=changed, other=0.0)
        # Plain decoding adds in place, which rounds to the dtype of the logits.
        adjusted = (before.to(tl.float32) + additive).to(before.dtype).to(tl.float32)
        scaling = tl.where(emitted, tl.load(repetition + row), 1.0)
        # The rounded quotient, as on the host; `/` is a few units in the last place off.
        scaled = tl.where(adjusted < 0, adjusted * scaling, tl.div_rn(adjusted, scaling))
        tl.store(target, scaled.to(before.dtype), mask=changed)


@triton.jit(
    do_not_specialize=["vocab_size", "max_path_len"],
    do_not_specialize_on_alignment=range(9),
)
def _count_kernel(  # type: ignore[no-untyped-def]
    slots,  # [B] int64
    slot_rows,  # [R] int64
    sums,  # [C, V] float32
    marks,  # [C, V] uint8
    lens,  # [C] int64
    frequency,  # [C] float32
    root_ids,  # [B] int64
    emitted_ids,  # [B, P] int64
    commit_lens,  # [B] int64
    vocab_size,
    max_path_len,
    PATH: tl.constexpr,  # power of two, at least P
):
    request = tl.program_id(0).to(tl.int64)
    row = tl.load(slot_rows + tl.load(slots + request)).to(tl.int64)
    if row >= 0:
        commit_len = tl.load(commit_lens + request)
        columns = tl.arange(0, PATH)
        inside = columns < commit_len
        behind_root = inside & (columns > 0)
        token = tl.load(emitted_ids + request * max_path_len + columns - 1, mask=behind_root, other=-1)
        token = tl.where(columns == 0, tl.load(root_ids + request), token)
        # Column i holds its token's sum after i + 1 tokens; the token's last column writes it.
        same = (token[:, None] == token[None, :]) & inside[:, None] & inside[None, :]
        count = tl.sum((same & (columns[None, :] <= columns[:, None])).to(tl.int32), axis=1)
        later = tl.sum((same & (columns[None, :] > columns[:, None])).to(tl.int32), axis=1)
        last = inside & (later == 0)
        cells = row * vocab_size + token
        summed = tl.load(sums + cells, mask=last, other=0.0)
        per_token = tl.load(frequency + row)
        for times in range(max_path_len):
            summed = tl.where(count > times, summed + per_token, summed)
        tl.store(sums + cells, summed, mask=last)
        mark = tl.load(marks + cells, mask=last, other=0)
        tl.store(marks + cells, mark | 1, mask=last)
        tl.store(lens + row, tl.load(lens + row) + commit_len)


def penalize_nodes_triton(
    logits: torch.Tensor,  # [B * N, V], changed in place
    state: PenaltyState,
    slots: torch.Tensor,  # [B] int64, slot of each request
    tree: DraftTree,
) -> None:
    """Give each node's row its penalties, in one launch; equal to `core.penalize_nodes`.

    Raises:
        ValueError: a shape is wrong, or rows of the logits are not contiguous.
    """
    check_node_logits(logits, state, slots, tree)
    if logits.stride(1) != 1:
        raise ValueError(f"rows of logits must be contiguous, got strides {logits.stride()}")
    vocab_size = state.sums.shape[1]
    block = min(MAX_BLOCK, triton.next_power_of_2(vocab_size))
    _penalize_kernel[(logits.shape[0], triton.cdiv(vocab_size, block))](
        logits,
        slots.contiguous(),
        state.slot_rows,
        state.sums,
        state.marks,
        state.lens,
        state.frequency,
        state.presence,
        state.repetition,
        state.min_lens,
        tree.token_ids.contiguous(),
        tree.parents.contiguous(),
        tree.num_nodes,
        vocab_size,
        logits.stride(0),
        BLOCK=block,
        num_warps=4,
    )


def count_tokens_triton(
    state: PenaltyState,
    slots: torch.Tensor,  # [B] int64, slot of each request
    root_ids: torch.Tensor,  # [B] int64, this round's roots
    emitted_ids: torch.Tensor,  # [B, P] int64, tokens that the round emits
    commit_lens: torch.Tensor,  # [B] int64, how many of them
) -> None:
    """Count what a round made final, in one launch; equal to `core.count_tokens`.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_counted(slots, root_ids, emitted_ids, commit_lens)
    batch_size, max_path_len = emitted_ids.shape
    _count_kernel[(batch_size,)](
        slots.contiguous(),
        state.slot_rows,
        state.sums,
        state.marks,
        state.lens,
        state.frequency,
        root_ids.contiguous(),
        emitted_ids.contiguous(),
        commit_lens.contiguous(),
        state.sums.shape[1],
        max_path_len,
        PATH=max(2, triton.next_power_of_2(max_path_len)),
        num_warps=1,
    )


def compile_cases() -> Iterator[CompileCase]:
    """Logits in float32 and bfloat16 over a large vocabulary; paths of 8 and of 32 nodes."""
    state: dict[str, Argument] = {
        **dict.fromkeys(("sums", "frequency", "presence", "repetition"), torch.float32),
        "marks": torch.uint8,
        "vocab_size": 151936,
    }
    pointers = dict.fromkeys(_penalize_kernel.arg_names[:12], torch.int64)
    sizes: dict[str, Argument] = {"num_nodes": 65, "logits_stride": 151936}
    for dtype in (torch.float32, torch.bfloat16):
        arguments = {**pointers, **state, **sizes, "logits": dtype}
        yield CompileCase(_penalize_kernel, arguments, {"BLOCK": MAX_BLOCK}, num_warps=4)
    counted: dict[str, Argument] = {**dict.fromkeys(_count_kernel.arg_names[:9], torch.int64), "max_path_len": 16}
    counted |= {name: kind for name, kind in state.items() if name in _count_kernel.arg_names}
    for path in (8, 32):
        yield CompileCase(_count_kernel, counted, {"PATH": path}, num_warps=1)

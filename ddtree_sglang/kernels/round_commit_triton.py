"""One launch ends a round's verify: it walks the trees of a batch and writes all that the rest of the round reads.

One warp per request. Lane n holds node n and whether the target chose its token at its parent, so a step of the walk is
one minimum over lanes: of the chosen children of the node that the walk stands on. Nothing is read back, and nothing is
compiled anew for another batch size: sizes are arguments, and only N's power of two and P's are part of the code.

Oracle: `core.round_commit.commit_round`; parity, bit for bit, in tests/kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ddtree_sglang.core.acceptance import AcceptedPath, check_walk
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.round_commit import RoundCommit
from ddtree_sglang.core.round_ends import RoundEnds, check_ends
from ddtree_sglang.core.tree_layout import check_prefix_lens
from ddtree_sglang.kernels.compile_case import Argument, CompileCase

_POINTERS = range(16)
"""The kernel's first arguments. No two launches differ in what is known of addresses, so none compiles it anew."""


@triton.jit(
    do_not_specialize=["num_nodes", "max_path_len", "context_len", "num_ends"],
    do_not_specialize_on_alignment=_POINTERS,
)
def _commit_round_kernel(  # type: ignore[no-untyped-def]
    token_ids,  # [B, N] int64, and so are the next two
    parents,
    target_ids,
    prefix_lens,  # [B] int64
    end_ids,  # [B, E] int64
    limit_lens,  # [B] int64, and so is the next
    node_limits,
    accept_index,  # [B, P] int64, and so is the next
    emitted_ids,
    num_correct_drafts,  # [B] int64, and so are the next four but accept_lens, int32
    commit_lens,
    accept_lens,
    bonus_ids,
    new_seq_lens,
    context_rows,  # [B, L] int64, and so is the next
    context_positions,
    num_nodes,
    max_path_len,
    context_len,
    num_ends,  # E
    LANES: tl.constexpr,  # power of two, at least N
    PATH: tl.constexpr,  # power of two, at least P
):
    request = tl.program_id(0).to(tl.int64)
    row = request * num_nodes
    lanes = tl.arange(0, LANES)
    in_row = lanes < num_nodes
    parent = tl.load(parents + row + lanes, mask=in_row, other=-1).to(tl.int32)
    has_parent = parent >= 0
    token = tl.load(token_ids + row + lanes, mask=in_row, other=0)
    chosen = has_parent & (tl.load(target_ids + row + parent, mask=has_parent, other=0) == token)
    chosen = chosen & (lanes < tl.load(node_limits + request))
    # A token that ends the request is emitted by its parent; the node that carries it is not entered.
    for end in range(num_ends):
        chosen = chosen & (token != tl.load(end_ids + request * num_ends + end))
    prefix_len = tl.load(prefix_lens + request).to(tl.int64)
    tokens_left = tl.load(limit_lens + request) - prefix_len

    # Column j: the walk's node at depth j, -1 once it has stopped. A stopped walk stands on N, which has no children.
    columns = tl.arange(0, PATH)
    path = tl.where(columns == 0, 0, -1)
    node = tl.full((), 0, tl.int32)
    for depth in range(1, max_path_len):
        node = tl.min(tl.where(chosen & (parent == node) & (depth < tokens_left), lanes, num_nodes), axis=0)
        path = tl.where((columns == depth) & (node < num_nodes), node, path)

    on_path = path >= 0
    num_drafts = tl.sum(on_path.to(tl.int32), axis=0) - 1
    emitted = tl.load(target_ids + row + path, mask=on_path, other=0)
    tl.store(num_correct_drafts + request, num_drafts.to(tl.int64))
    tl.store(commit_lens + request, num_drafts.to(tl.int64) + 1)
    tl.store(accept_lens + request, num_drafts + 1)
    tl.store(bonus_ids + request, tl.sum(tl.where(columns == num_drafts, emitted, 0), axis=0))
    tl.store(new_seq_lens + request, prefix_len + num_drafts + 1)
    in_path = columns < max_path_len
    tl.store(accept_index + request * max_path_len + columns, path.to(tl.int64), mask=in_path)
    tl.store(emitted_ids + request * max_path_len + columns, emitted, mask=in_path)
    in_context = columns < context_len
    context = request * context_len + columns
    tl.store(context_rows + context, row + tl.where(on_path, path, 0), mask=in_context)
    tl.store(context_positions + context, prefix_len + columns, mask=in_context)


def commit_round_triton(
    tree: DraftTree,
    target_ids: torch.Tensor,  # [B, N] int64, the target's choice of the token after each node
    prefix_lens: torch.Tensor,  # [B] int64, committed lengths before the round
    max_path_len: int,  # P
    ends: RoundEnds | None = None,  # None: nothing ends a request
) -> RoundCommit:
    """Walk the trees and say what the round makes final, in one launch; equal to `core.commit_round`.

    Raises:
        ValueError: an argument has another shape, dtype or device, or `max_path_len` is below 1.
    """
    check_walk(tree, target_ids, max_path_len)
    batch_size, num_nodes = target_ids.shape
    check_prefix_lens(prefix_lens, batch_size, tree.device)
    ends = RoundEnds.none(batch_size, tree.device) if ends is None else ends
    check_ends(ends, batch_size, tree.device)
    made = _empty(batch_size, max_path_len, min(max_path_len, num_nodes), target_ids.device)
    path = made.path
    _commit_round_kernel[(batch_size,)](
        tree.token_ids.contiguous(),
        tree.parents.contiguous(),
        target_ids.contiguous(),
        prefix_lens.contiguous(),
        ends.end_ids.contiguous(),
        ends.limit_lens.contiguous(),
        ends.node_limits.contiguous(),
        path.accept_index,
        path.token_ids,
        path.num_correct_drafts,
        path.commit_lens,
        made.accept_lens,
        path.bonus_ids,
        made.new_seq_lens,
        made.context_rows,
        made.context_positions,
        num_nodes,
        max_path_len,
        made.context_rows.shape[1],
        ends.end_ids.shape[1],
        LANES=max(32, triton.next_power_of_2(num_nodes)),
        PATH=triton.next_power_of_2(max_path_len),
        num_warps=1,
    )
    return made


def _empty(batch_size: int, max_path_len: int, context_len: int, device: torch.device) -> RoundCommit:
    """Tensors of a commit, for the kernel to fill."""

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return RoundCommit(
        path=AcceptedPath(
            accept_index=empty(batch_size, max_path_len),
            num_correct_drafts=empty(batch_size),
            commit_lens=empty(batch_size),
            token_ids=empty(batch_size, max_path_len),
            bonus_ids=empty(batch_size),
        ),
        accept_lens=empty(batch_size, dtype=torch.int32),
        new_seq_lens=empty(batch_size),
        context_rows=empty(batch_size, context_len),
        context_positions=empty(batch_size, context_len),
    )


def compile_cases() -> Iterator[CompileCase]:
    """Each number of lanes, with paths of 8 and of 32 nodes."""
    pointers = _commit_round_kernel.arg_names[: len(_POINTERS)]
    arguments: dict[str, Argument] = {
        **dict.fromkeys(pointers, torch.int64),
        "accept_lens": torch.int32,
        "num_nodes": 65,
        "max_path_len": 16,
        "context_len": 16,
        "num_ends": 2,
    }
    for lanes in (32, 64, 128, 256):
        for path in (8, 32):
            yield CompileCase(_commit_round_kernel, arguments, {"LANES": lanes, "PATH": path}, num_warps=1)

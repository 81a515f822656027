"""At start-up every kernel of a round is compiled and loaded, so that no round waits for a compiler.

Triton compiles a kernel for its constants and the types of its arguments. Between the rounds of one server only the
number of nodes varies, and whether a mask is made in the attention backend's buffer or in a tensor of its own: sizes,
strides and addresses are no part of the code. A launch for no request compiles and loads, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddtree_sglang.core.built_tree import root_trees
from ddtree_sglang.core.node_penalties import PenaltyState
from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.core.window_mask import WindowMask
from ddtree_sglang.engine.stages.candidates import BlockRoots, CandidateRanking, DraftCandidates
from ddtree_sglang.engine.stages.trees import DeviceTrees, MaskBuffer


def rehearse_rounds(ranking: CandidateRanking, node_counts: Sequence[int], req_to_token: torch.Tensor) -> None:
    """Launch what rounds of these numbers of nodes launch; `req_to_token` is the target's table of slots.

    The ranking has tensor-parallel collectives, so every rank takes part.
    """
    device, head = req_to_token.device, ranking.shard.lm_head.weight
    block = torch.zeros(ranking.block_size, head.shape[1], dtype=head.dtype, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    nothing = ranking.rank(block, BlockRoots(zero, zero)).first(0)
    for num_nodes in node_counts:
        no_cells = MaskBuffer(torch.empty(0, dtype=torch.bool, device=device), 0, in_place=True, by_address=True)
        for buffers in ({}, {num_nodes: no_cells}):
            _rehearse(DeviceTrees(ranking, buffers), nothing, num_nodes, req_to_token)


def rehearse_penalties(max_path_len: int, vocab_size: int, device: torch.device) -> None:
    """Launch what rounds of requests with penalties launch besides; P = `max_path_len`, V = `vocab_size`."""
    from ddtree_sglang.kernels.node_penalties_triton import count_tokens_triton, penalize_nodes_triton

    state = PenaltyState.empty(1, 1, vocab_size, device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    # Float32, which SGLang's logits are (layers/logits_processor.py).
    logits = torch.empty(0, vocab_size, dtype=torch.float32, device=device)
    penalize_nodes_triton(logits, state, none, root_trees(none, none).tree)
    count_tokens_triton(state, none, none, torch.empty(0, max_path_len, dtype=torch.int64, device=device), none)


def rehearse_windows(node_counts: Sequence[int], window: int | None, device: torch.device) -> None:
    """Launch what rounds launch besides where a target's window is part of a mask; None for other targets."""
    if window is None:
        return
    from ddtree_sglang.kernels.window_mask_triton import window_mask_into

    none = torch.empty(0, dtype=torch.int64, device=device)
    for num_nodes in node_counts:
        if num_nodes > 1:
            nothing = WindowMask.empty(0, num_nodes, window, device)
            window_mask_into(nothing, none.view(torch.uint8), none, num_nodes, window)


def _rehearse(trees: DeviceTrees, nothing: DraftCandidates, num_nodes: int, req_to_token: torch.Tensor) -> None:
    """One round of no request."""
    none = torch.empty(0, dtype=torch.int64, device=req_to_token.device)
    block_size = trees.ranking.block_size
    trees.inputs(req_to_token, none, none, none, mask_token_id=0, num_nodes=num_nodes, block_size=block_size)
    built = root_trees(none, none) if num_nodes == 1 else trees.build(nothing, num_nodes, none, none)
    trees.walk(built, built.tree.token_ids, none, RoundEnds.none(0, req_to_token.device))

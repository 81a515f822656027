"""What a round works on: the KV slots that it may write, and the drafter's block.

Tree and block write the same slots, one after the other: those of the positions from the committed length on. Each gets
them as a tensor of its own, so that either is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RoundInputs:
    """Inputs of a round of B requests, for trees of N nodes and blocks of R tokens."""

    node_slots: torch.Tensor  # [B, N] int64, slots of positions prefix_len + 0, 1, ...
    block_slots: torch.Tensor  # [B, R] int64, likewise
    block_ids: torch.Tensor  # [B, R] int64, the root and R - 1 mask tokens
    block_positions: torch.Tensor  # [B, R] int64, prefix_len + 0, 1, ...


def round_inputs(
    req_to_token: torch.Tensor,  # [rows, row_len] int32 or int64, slot of each position of each row
    req_pool_indices: torch.Tensor,  # [B] int32 or int64, row of each request
    prefix_lens: torch.Tensor,  # [B] int64, committed lengths; a row must be longer by N and by R
    root_ids: torch.Tensor,  # [B] int64
    *,
    mask_token_id: int,
    num_nodes: int,  # N
    block_size: int,  # R
) -> RoundInputs:
    """Look up the slots, and write the blocks out.

    Raises:
        ValueError: `req_to_token` is not a table, or the other tensors are not all of `[B]`.
    """
    check_round_inputs(req_to_token, req_pool_indices, prefix_lens, root_ids)
    steps = torch.arange(max(num_nodes, block_size), device=prefix_lens.device)
    positions = prefix_lens.unsqueeze(1) + steps
    slots = req_to_token[req_pool_indices.to(torch.int64).unsqueeze(1), positions].to(torch.int64)
    block_ids = root_ids.new_full((len(root_ids), block_size), mask_token_id)
    block_ids[:, 0] = root_ids
    return RoundInputs(
        node_slots=slots[:, :num_nodes].contiguous(),
        block_slots=slots[:, :block_size].contiguous(),
        block_ids=block_ids,
        block_positions=positions[:, :block_size].contiguous(),
    )


def check_round_inputs(
    req_to_token: torch.Tensor, req_pool_indices: torch.Tensor, prefix_lens: torch.Tensor, root_ids: torch.Tensor
) -> None:
    """Check shapes and the roots' dtype; never values."""
    if req_to_token.dim() != 2:
        raise ValueError(f"req_to_token must be [rows, row_len], got shape {tuple(req_to_token.shape)}")
    batch_size = len(root_ids)
    for name, tensor in (
        ("req_pool_indices", req_pool_indices),
        ("prefix_lens", prefix_lens),
        ("root_ids", root_ids),
    ):
        if tuple(tensor.shape) != (batch_size,):
            raise ValueError(f"{name} must be [B] = [{batch_size}], got shape {tuple(tensor.shape)}; one per request")
    if root_ids.dtype != torch.int64:
        raise ValueError(f"root_ids must be torch.int64, got {root_ids.dtype}; convert it first")

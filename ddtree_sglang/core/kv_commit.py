"""Which rows of a verify window become final, and where they go.

A request's verify window is N consecutive slots, slot i holding node i's keys and values at position prefix
+ depth. After the walk the accepted nodes' rows move to the front, one slot per depth, so that window slot
j then holds position prefix + j, and the rest of the window is unused. The root never moves.

The module computes indices; it knows neither the pool nor pages. Sources never precede their targets
(accept_index[j] >= j), so copying in ascending j, or reading all rows before writing any, is safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.core.acceptance import AcceptedPath


@dataclass(frozen=True)
class CommitPlan:
    """Moves within the verify windows of B requests; P is the longest path in nodes."""

    source_slots: torch.Tensor  # [B, P] int64, window slot of the j-th accepted node; 0 where not valid
    target_slots: torch.Tensor  # [B, P] int64, window slot j; 0 where not valid, so that the move is a no-op
    valid: torch.Tensor  # [B, P] bool, there is a j-th accepted node
    unused: torch.Tensor  # [B, N] bool, window slots that hold nothing final after the moves


def commit_plan(accepted: AcceptedPath, num_nodes: int) -> CommitPlan:
    """Plan the moves for one round with windows of `num_nodes` slots.

    `valid & (source_slots != target_slots)` are the rows that really move; the other moves copy a slot to
    itself.
    """
    index = accepted.accept_index
    valid = index >= 0
    target = torch.arange(index.shape[1], device=index.device).expand_as(index)
    window = torch.arange(num_nodes, device=index.device)
    return CommitPlan(
        source_slots=index.masked_fill(~valid, 0),
        target_slots=target.masked_fill(~valid, 0),
        valid=valid,
        unused=window >= accepted.commit_lens.unsqueeze(1),
    )


def gather_rows(
    rows: torch.Tensor,  # [B, N, ...], one row per node
    accept_index: torch.Tensor,  # [B, P] int64, -1 padded
) -> torch.Tensor:
    """[B, P, ...]: the accepted nodes' rows in path order; where the path has ended, the root's row again.

    Reads P rows per request instead of cloning N.
    """
    if rows.shape[0] != accept_index.shape[0] or rows.dim() < 2:
        raise ValueError(
            f"rows must be [B, N, ...] with B = {accept_index.shape[0]}, got {tuple(rows.shape)}; "
            "view the flat verify output as [B, N, ...] first"
        )
    batch_size, num_nodes = rows.shape[:2]
    first = torch.arange(batch_size, device=accept_index.device).unsqueeze(1) * num_nodes
    flat = (accept_index.clamp(min=0) + first).flatten()
    return rows.flatten(0, 1).index_select(0, flat).view(*accept_index.shape, *rows.shape[2:])

"""Which rows of a verify window become final, and where they go.

A request's verify window is N slots in a row, slot i with node i's keys and values at position prefix + depth. After
the walk the accepted nodes' rows move to the front, one slot per depth, so that window slot j then holds position
prefix + j, and the rest of the window is unused. The root never moves.

The module computes indices; it knows neither the pool nor pages. Sources never precede their targets
(accept_index[j] >= j), so copying in ascending j, or reading all rows before writing any, is safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.core.acceptance import AcceptedPath


@dataclass(frozen=True)
class CommitPlan:
    """Moves within the verify windows of B requests, from one slot to another; past the path's end from 0 to 0."""

    source_slots: torch.Tensor  # [B, P] int64, window slot of the j-th accepted node
    target_slots: torch.Tensor  # [B, P] int64, window slot j


def commit_plan(accepted: AcceptedPath) -> CommitPlan:
    """Plan the moves of one round; where a source equals its target, the move changes nothing."""
    index = accepted.accept_index
    ended = index < 0
    target = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return CommitPlan(source_slots=index.masked_fill(ended, 0), target_slots=target.masked_fill(ended, 0))

"""Which node's recurrent state a request goes on with, and which one the prefix cache keeps.

A layer with a recurrent state (GDN, Mamba2, a short convolution) has one state per request, that after its committed
tokens. A tree's verify leaves that state alone and keeps one per node, that after the node's own path, so the state
after a round is the one of the last node of its path.

The prefix cache can resume a text only where it has a state, so the engine keeps one each time that a request's
committed length passes a multiple of an interval. At most one multiple is passed in a round, because the interval is
longer than a path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.tree_layout import check_prefix_lens

NO_NODE = -1


@dataclass(frozen=True, slots=True)
class StateSteps:
    """Nodes of B trees, by their index within the request."""

    last: torch.Tensor  # [B] int64, the one whose state is the request's from now on
    tracked: torch.Tensor | None  # [B] int64, the one whose state the prefix cache keeps, or -1; None: it keeps none


def state_steps(path: AcceptedPath, prefix_lens: torch.Tensor, interval: int | None) -> StateSteps:
    """The nodes whose states a round keeps.

    Args:
        path: what the round accepted, of at least one node per request.
        prefix_lens: `[B]` int64, committed lengths before the round.
        interval: committed lengths that are multiples of it are kept for the prefix cache; None: none are.

    Raises:
        ValueError: `prefix_lens` is not `[B]` int64 on the path's device, or `interval` is below 1.
    """
    check_prefix_lens(prefix_lens, path.accept_index.shape[0], path.accept_index.device)
    last = _node_at(path, path.commit_lens - 1)
    if interval is None:
        return StateSteps(last, None)
    if interval < 1:
        raise ValueError(f"interval must be at least 1 token, got {interval}; pass None to keep nothing")
    kept_len = (prefix_lens + path.commit_lens) // interval * interval
    # The state at a node of depth d is that after prefix + d + 1 tokens.
    depth = kept_len - prefix_lens - 1
    tracked = torch.where(depth >= 0, _node_at(path, depth.clamp(min=0)), NO_NODE)
    return StateSteps(last, tracked)


def _node_at(path: AcceptedPath, depth: torch.Tensor) -> torch.Tensor:
    return path.accept_index.gather(1, depth.unsqueeze(1)).squeeze(1)

"""A tree's mask for layers with a sliding window: a node's window ends at its position, not at its index in the tree.

A node of depth d stands at position prefix_len + d and may attend to keys of the last `window` positions before it and
to itself. Of the prefix only the last w = min(prefix_len, window) tokens can be in any node's window, so the flat
layout of `core.tree_mask` shrinks to requests of N rows of w + N cells, the prefix columns first. In it column c < w is
the token at position prefix_len - w + c, column w + j is node j.

Polarity: True = may attend. A padding node attends to itself and to the prefix as the root does; nobody reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class WindowMask:
    """The mask of B trees of N nodes, and where each request's cells begin."""

    cells: torch.Tensor  # 1-D bool, at least sum_b N * (w_b + N)
    starts: torch.Tensor  # [B + 1] int64, offset of each request's first cell, and the end of the last one's

    @classmethod
    def empty(cls, max_batch: int, num_nodes: int, window: int, device: torch.device) -> WindowMask:
        """Room for requests of any length; memory is N * (window + N) bytes a request."""
        return cls(
            torch.zeros(max_batch * num_nodes * (window + num_nodes), dtype=torch.bool, device=device),
            torch.zeros(max_batch + 1, dtype=torch.int64, device=device),
        )


def window_tree_mask(
    ancestors: torch.Tensor,  # [B, N, N] bool, a node sees itself; parents come before their children
    prefix_lens: torch.Tensor,  # [B] int64
    window: int,  # positions before a node's own that it may attend to
) -> WindowMask:
    """The mask of B trees; its size is read back from the lengths."""
    depths = ancestors.sum(2) - 1
    near = ancestors & (depths.unsqueeze(1) >= depths.unsqueeze(2) - window)
    widths = prefix_lens.clamp(max=window)
    parts = []
    for request, width in enumerate(widths.tolist()):
        # Positions, relative to the first token behind the prefix.
        columns = torch.arange(-width, 0, device=ancestors.device)
        prefix = columns >= depths[request].unsqueeze(1) - window
        parts.append(torch.cat((prefix, near[request]), dim=1).flatten())
    num_nodes = ancestors.shape[1]
    starts = torch.nn.functional.pad(torch.cumsum((widths + num_nodes) * num_nodes, 0), (1, 0))
    return WindowMask(torch.cat(parts), starts)

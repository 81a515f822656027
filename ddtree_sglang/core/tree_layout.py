"""Where each node of a draft tree stands in the verify forward, and its links in SGLang's form.

The links follow the contract of SGLang 0.5.23's `EagleVerifyInput` (srt/speculative/eagle_info.py) and of
xgrammar's draft-tree traversal: first child and next sibling as indices within a request, -1 for none.
Children of a node are linked in node order, so the most probable child comes first. Padding has no links
and nothing links to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.core.draft_tree import DraftTree


@dataclass(frozen=True)
class TreeLayout:
    """Positions and links of B draft trees of N nodes."""

    positions: torch.Tensor  # [B, N] int64, prefix length + depth; the prefix length at padding
    retrieve_index: torch.Tensor  # [B, N] int64, row of the node in the flat verify batch: b * N + i
    retrieve_next_token: torch.Tensor  # [B, N] int64, first child within the request; -1 none
    retrieve_next_sibling: torch.Tensor  # [B, N] int64, next sibling within the request; -1 none

    @property
    def root_rows(self) -> torch.Tensor:
        """`[B, 1]` int64: row of each request's root in the flat verify batch; node i is i rows further."""
        return self.retrieve_index[:, :1]


def layout_draft_tree(tree: DraftTree, prefix_lens: torch.Tensor) -> TreeLayout:
    """Lay the trees out after prefixes of `prefix_lens [B]` int64 tokens (the root's position is the prefix
    length).

    Raises:
        ValueError: `prefix_lens` is not `[B]` int64 on the tree's device.
    """
    check_prefix_lens(prefix_lens, tree.batch_size, tree.device)
    return TreeLayout(
        positions=tree.depths + prefix_lens.unsqueeze(1),
        retrieve_index=node_rows(tree.batch_size, tree.num_nodes, tree.device),
        retrieve_next_token=_first_children(tree.parents),
        retrieve_next_sibling=_next_siblings(tree.parents),
    )


def node_rows(batch_size: int, num_nodes: int, device: torch.device) -> torch.Tensor:
    """`[B, N]` int64: row of each node in the flat verify batch, b * N + i."""
    return torch.arange(batch_size * num_nodes, device=device).view(batch_size, num_nodes)


def _first_children(parents: torch.Tensor) -> torch.Tensor:
    """`[B, N]` int64: the smallest child of each node, -1 for none."""
    batch_size, num_nodes = parents.shape
    index = torch.arange(num_nodes, device=parents.device).expand_as(parents)
    # Column 0 collects the root and padding, whose parent is -1.
    first = torch.full((batch_size, num_nodes + 1), num_nodes, dtype=torch.int64, device=parents.device)
    first = first.scatter_reduce_(1, parents + 1, index, "amin")[:, 1:]
    return first.masked_fill(first == num_nodes, -1)


def _next_siblings(parents: torch.Tensor) -> torch.Tensor:
    """`[B, N]` int64: the next node with the same parent, -1 for none.

    A stable sort by parent puts siblings side by side in node order.
    """
    grouped, node = torch.sort(parents, dim=1, stable=True)
    same = (grouped[:, :-1] == grouped[:, 1:]) & (grouped[:, :-1] >= 0)
    following = torch.where(same, node[:, 1:], -1)
    return torch.full_like(parents, -1).scatter_(1, node[:, :-1], following)


def check_prefix_lens(prefix_lens: torch.Tensor, batch_size: int, device: torch.device) -> None:
    """Raise ValueError unless `prefix_lens` is `[B]` int64 on `device`."""
    if tuple(prefix_lens.shape) != (batch_size,):
        raise ValueError(
            f"prefix_lens must be [B] = [{batch_size}], got shape {tuple(prefix_lens.shape)}; "
            "pass one length per request"
        )
    if prefix_lens.dtype != torch.int64:
        raise ValueError(f"prefix_lens must be torch.int64, got {prefix_lens.dtype}; convert it first")
    if prefix_lens.device != device:
        raise ValueError(f"prefix_lens must be on {device} like the tree, got {prefix_lens.device}; move it there")

"""A tree's mask as page tables: for each node the KV slots of its ancestors and itself.

FA3 has no custom mask. SGLang verifies a tree with it in two parts: all nodes over the prefix, and each node alone over
a page table of its own, of which it reads as many entries as it has ancestors, itself included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AncestorPages:
    """Pages of one token for B trees of N nodes."""

    counts: torch.Tensor  # [B * N] int32, how many entries of its row a node reads
    page_table: torch.Tensor  # [B * N, N] int32, slots of what the node sees in node order, then of all others


def ancestor_pages(
    ancestors: torch.Tensor,  # [B, N, N] bool, a node sees itself
    slots: torch.Tensor,  # [B, N], slot of each node
) -> AncestorPages:
    """Order each node's row."""
    batch_size, num_nodes, _ = ancestors.shape
    order = torch.sort((~ancestors).to(torch.int8), dim=2, stable=True).indices
    rows = slots.unsqueeze(1).expand(-1, num_nodes, -1).gather(2, order)
    shape = (batch_size * num_nodes, num_nodes)
    return AncestorPages(ancestors.sum(2).flatten().to(torch.int32), rows.reshape(shape).to(torch.int32))

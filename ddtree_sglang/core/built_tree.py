"""All that a round needs of its trees, in one value: nodes, links, positions and mask."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch

from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.tree_layout import TreeLayout, check_prefix_lens, layout_draft_tree, node_rows
from ddtree_sglang.core.tree_mask import AncestorMask, FlatMask, TreeMask, ancestor_mask

Rows = TypeVar("Rows", DraftTree, TreeLayout)


@dataclass(frozen=True)
class BuiltTree:
    """B trees of N nodes, laid out for the target, with their mask."""

    tree: DraftTree
    layout: TreeLayout
    mask: TreeMask

    @classmethod
    def empty(
        cls, batch_size: int, num_nodes: int, device: torch.device, flat_mask: torch.Tensor | None = None
    ) -> BuiltTree:
        """Tensors for a builder to fill.

        With `flat_mask`, 1-D bool, that buffer is the mask, else a new `[B, N, N]` bool tensor.

        Raises:
            ValueError: `flat_mask` is not 1-D bool.
        """
        shape = (batch_size, num_nodes)
        token_ids, parents, depths, positions, rows, next_tokens, next_siblings = (
            torch.empty(shape, dtype=torch.int64, device=device) for _ in range(7)
        )
        logprobs = torch.empty(shape, dtype=torch.float32, device=device)
        return cls(
            DraftTree(token_ids, parents, depths, logprobs),
            TreeLayout(positions, rows, next_tokens, next_siblings),
            AncestorMask(torch.empty(*shape, num_nodes, dtype=torch.bool, device=device))
            if flat_mask is None
            else FlatMask(flat_mask, num_nodes),
        )

    def first(self, batch_size: int) -> BuiltTree:
        """Views of the first requests."""
        return BuiltTree(
            _first_rows(self.tree, batch_size), _first_rows(self.layout, batch_size), self.mask.first(batch_size)
        )


def _first_rows(parts: Rows, batch_size: int) -> Rows:
    """`parts`, a dataclass of `[B, N]` tensors, with each cut to a view of its first rows."""
    return replace(parts, **{field.name: getattr(parts, field.name)[:batch_size] for field in fields(parts)})


def complete_tree(tree: DraftTree, prefix_lens: torch.Tensor, max_depth: int | None = None) -> BuiltTree:
    """Lay out a tree and mask it, after prefixes of `prefix_lens [B]` int64 tokens.

    No node may be deeper than `max_depth`, which makes the mask cheaper; None for no bound.
    """
    mask = AncestorMask(ancestor_mask(tree.parents, max_depth))
    return BuiltTree(tree, layout_draft_tree(tree, prefix_lens), mask)


def root_trees(root_ids: torch.Tensor, prefix_lens: torch.Tensor) -> BuiltTree:
    """Trees of one node, the root `[B]` int64, after prefixes of `[B]` int64 tokens: a round that drafts nothing."""
    batch_size, device = len(root_ids), root_ids.device
    check_prefix_lens(prefix_lens, batch_size, device)
    none = torch.full((batch_size, 1), -1, device=device)
    zeros = torch.zeros((batch_size, 1), dtype=torch.int64, device=device)
    return BuiltTree(
        DraftTree(root_ids.unsqueeze(1), none, zeros, torch.zeros((batch_size, 1), device=device)),
        TreeLayout(prefix_lens.unsqueeze(1), node_rows(batch_size, 1, device), none, none),
        AncestorMask(torch.ones((batch_size, 1, 1), dtype=torch.bool, device=device)),
    )

"""All that a round needs of its trees, in one value: nodes, links, positions and mask."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch

from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.tree_layout import TreeLayout, layout_draft_tree
from ddtree_sglang.core.tree_mask import ancestor_mask

Rows = TypeVar("Rows", DraftTree, TreeLayout)


@dataclass(frozen=True)
class BuiltTree:
    """B trees of N nodes, laid out for the target, with their mask in one of two forms."""

    tree: DraftTree
    layout: TreeLayout
    mask: torch.Tensor  # bool: [B, N, N], or 1-D: FlashInfer's flat layout, of which only tail cells may be valid

    @property
    def is_flat(self) -> bool:
        """True when `mask` is in the flat layout."""
        return self.mask.dim() == 1

    @classmethod
    def empty(
        cls, batch_size: int, num_nodes: int, device: torch.device, flat_mask: torch.Tensor | None = None
    ) -> BuiltTree:
        """Tensors for a builder to fill; the row indices, which no tree changes, are already there.

        Raises:
            ValueError: `flat_mask` is not 1-D bool.
        """
        if flat_mask is not None and (flat_mask.dim() != 1 or flat_mask.dtype != torch.bool):
            raise ValueError(
                f"a flat mask must be 1-D torch.bool, got {tuple(flat_mask.shape)} {flat_mask.dtype}; view it so"
            )
        shape = (batch_size, num_nodes)
        token_ids, parents, depths, positions, next_tokens, next_siblings = (
            torch.empty(shape, dtype=torch.int64, device=device) for _ in range(6)
        )
        logprobs = torch.empty(shape, dtype=torch.float32, device=device)
        rows = torch.arange(batch_size * num_nodes, device=device).view(shape)
        if flat_mask is None:
            flat_mask = torch.empty(*shape, num_nodes, dtype=torch.bool, device=device)
        return cls(
            DraftTree(token_ids, parents, depths, logprobs),
            TreeLayout(positions, rows, next_tokens, next_siblings),
            flat_mask,
        )

    def first(self, batch_size: int) -> BuiltTree:
        """Views of the first requests; a flat mask is shared whole, its first cells are theirs."""
        mask = self.mask if self.is_flat else self.mask[:batch_size]
        return BuiltTree(_first_rows(self.tree, batch_size), _first_rows(self.layout, batch_size), mask)


def _first_rows(parts: Rows, batch_size: int) -> Rows:
    """The same dataclass of [B, N] tensors, each cut to views of its first rows."""
    return replace(parts, **{field.name: getattr(parts, field.name)[:batch_size] for field in fields(parts)})


def complete_tree(tree: DraftTree, prefix_lens: torch.Tensor, max_depth: int | None = None) -> BuiltTree:
    """Lay out a tree and mask it, after prefixes of `prefix_lens` [B] int64 tokens; `max_depth` as `ancestor_mask`."""
    return BuiltTree(tree, layout_draft_tree(tree, prefix_lens), ancestor_mask(tree.parents, max_depth))


def root_trees(root_ids: torch.Tensor, prefix_lens: torch.Tensor) -> BuiltTree:
    """Trees of the root alone, [B] int64 tokens after [B] int64 prefixes: a round that drafts nothing."""
    nothing = torch.full_like(root_ids, -1).unsqueeze(1)
    zeros = torch.zeros_like(nothing)
    tree = DraftTree(root_ids.unsqueeze(1), nothing, zeros, zeros.to(torch.float32))
    return complete_tree(tree, prefix_lens)

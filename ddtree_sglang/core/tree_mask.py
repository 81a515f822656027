"""Which node may attend to which: the ancestor mask, and its place in FlashInfer's flat layout.

Q side: the N nodes of a request. KV side: its committed prefix, then the same N nodes. A node may attend to
the whole prefix, to its ancestors and to itself. It may not attend to siblings, cousins or descendants. A
padding node attends to itself alone (a softmax over nothing would be NaN), and no other node to it.
Polarity: True = may attend, as in FlashInfer and SGLang.

Flat layout: requests one after another, each a row-major [N, prefix_len + N] matrix, prefix columns first
and True, so sum_b N * (prefix_len_b + N) cells. The cells of the last N columns are the tree cells: backends
that never read the prefix columns need only those, at `tree_cell_index`.

A built tree holds its mask in one of two forms, `AncestorMask` or `FlatMask`; both are a `TreeMask`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ddtree_sglang.core.tree_layout import check_prefix_lens


class TreeMask(Protocol):
    """The mask of B trees of N nodes, in one of its forms."""

    is_flat: ClassVar[bool]

    @property
    def cells(self) -> torch.Tensor:
        """Bool, in the form's own layout."""

    def first(self, batch_size: int) -> TreeMask:
        """The first requests' mask, on the same memory."""

    def flat(self, prefix_lens: torch.Tensor, total_prefix_len: int | None = None) -> torch.Tensor:
        """1-D bool: the flat layout after prefixes of `prefix_lens [B]` int64 tokens.

        `total_prefix_len` is their sum or an upper bound of it, None where the host does not know it.
        """


@dataclass(frozen=True)
class AncestorMask:
    """The tree cells alone."""

    cells: torch.Tensor  # [B, N, N] bool
    is_flat: ClassVar[bool] = False

    def first(self, batch_size: int) -> AncestorMask:
        """Views of the first requests' cells."""
        return AncestorMask(self.cells[:batch_size])

    def flat(self, prefix_lens: torch.Tensor, total_prefix_len: int | None = None) -> torch.Tensor:
        """A new mask, filled; see `flat_tree_mask`."""
        return flat_tree_mask(self.cells, prefix_lens, total_prefix_len)


@dataclass(frozen=True)
class FlatMask:
    """A buffer in the flat layout, as long as it is or longer; its prefix columns need not be valid.

    Raises:
        ValueError: `cells` is not 1-D bool.
    """

    cells: torch.Tensor  # 1-D bool
    num_nodes: int
    is_flat: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the buffer's form."""
        if self.cells.dim() != 1 or self.cells.dtype != torch.bool:
            raise ValueError(
                f"a flat mask must be 1-D torch.bool, got {tuple(self.cells.shape)} {self.cells.dtype}; view it so"
            )

    def first(self, batch_size: int) -> FlatMask:
        """The whole buffer, since the cells of the first requests come first."""
        return self

    def flat(self, prefix_lens: torch.Tensor, total_prefix_len: int | None = None) -> torch.Tensor:
        """The buffer as far as it is used: a backend that copies what it is given copies no more than that."""
        if total_prefix_len is None:
            return self.cells
        return self.cells[: _num_cells(len(prefix_lens), self.num_nodes, total_prefix_len)]


def _num_cells(batch_size: int, num_nodes: int, total_prefix_len: int) -> int:
    """Cells of the flat layout."""
    return num_nodes * (total_prefix_len + batch_size * num_nodes)


def ancestor_mask(
    parents: torch.Tensor,  # [B, N] int64, -1 at the root and at padding
    max_depth: int | None = None,
) -> torch.Tensor:
    """`[B, N, N]` bool: cell (i, j) says that node j is node i or an ancestor of it.

    `max_depth` is the deepest node that can occur (the draft depth); giving it shortens the work from
    log2(N) to log2(max_depth) steps. Nodes below it would lose ancestors.
    """
    if parents.dim() != 2 or parents.dtype != torch.int64:
        raise ValueError(
            f"parents must be [B, N] torch.int64, got {tuple(parents.shape)} {parents.dtype}; pass DraftTree.parents"
        )
    batch_size, num_nodes = parents.shape
    farthest = num_nodes - 1 if max_depth is None else min(max_depth, num_nodes - 1)
    index = torch.arange(num_nodes, device=parents.device)
    # The root and padding count as their own parent, so that following parents never leaves the row.
    jump = torch.where(parents < 0, index, parents)
    ancestors = index.expand_as(parents).unsqueeze(2)  # [B, N, nodes within reach]
    while ancestors.shape[2] <= farthest:
        jump_rows = jump.unsqueeze(2).expand_as(ancestors)
        ancestors = torch.cat((ancestors, ancestors.gather(1, jump_rows)), dim=2)
        jump = jump.gather(1, jump)
    mask = torch.zeros(batch_size, num_nodes, num_nodes, dtype=torch.bool, device=parents.device)
    return mask.scatter_(2, ancestors, True)


def flat_tree_mask(
    ancestors: torch.Tensor,  # [B, N, N] bool
    prefix_lens: torch.Tensor,  # [B] int64
    total_prefix_len: int | None = None,
) -> torch.Tensor:
    """The mask in FlashInfer's flat layout: 1-D bool of sum_b N * (prefix_len_b + N) cells.

    The size depends on the lengths: without `total_prefix_len` (their sum, known to the host) it is read
    back from the device, which on a GPU waits for it.
    """
    batch_size, num_nodes, _ = ancestors.shape
    check_prefix_lens(prefix_lens, batch_size, ancestors.device)
    cells = tree_cell_index(prefix_lens, num_nodes)
    total = int(prefix_lens.sum()) if total_prefix_len is None else total_prefix_len
    mask = torch.ones(_num_cells(batch_size, num_nodes, total), dtype=torch.bool, device=ancestors.device)
    return mask.scatter_(0, cells.flatten(), ancestors.flatten())


def tree_cell_index(
    prefix_lens: torch.Tensor,  # [B] int64
    num_nodes: int,
) -> torch.Tensor:
    """`[B, N, N]` int64: offset in the flat layout of the cell (node i of request b, node j of request b)."""
    row_lens = prefix_lens + num_nodes  # [B]
    request_ends = torch.cumsum(row_lens, 0) * num_nodes
    first_tree_cells = request_ends - row_lens * num_nodes + prefix_lens
    node = torch.arange(num_nodes, device=prefix_lens.device)
    return (first_tree_cells.view(-1, 1, 1) + node.view(1, -1, 1) * row_lens.view(-1, 1, 1)) + node

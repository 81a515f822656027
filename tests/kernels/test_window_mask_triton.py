"""The mask of layers with a sliding window: by definition, and the kernel against core."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import ancestor_mask, build_draft_tree, flat_tree_mask, tree_cell_index
from ddtree_sglang.core.window_mask import WindowMask, window_tree_mask
from ddtree_sglang.kernels.window_mask_triton import window_mask_into
from tests.core.tree_cases import random_candidates


def random_ancestors(num_nodes: int, batch_size: int, depth: int) -> torch.Tensor:
    block = random_candidates(num_nodes, batch_size, depth, 60, 30)
    return ancestor_mask(build_draft_tree(block.ids, block.logprobs, block.root_ids, num_nodes).parents)


@pytest.mark.parametrize("window", [1, 2, 3, 8, 100])
def test_core_allows_exactly_the_positions_within_the_window(window: int) -> None:
    """Written out cell by cell from the tree's parents."""
    prefix_lens = torch.tensor([0, 5, 40])
    ancestors = random_ancestors(17, 3, 7)
    made = window_tree_mask(ancestors, prefix_lens, window)
    for request, prefix_len in enumerate(prefix_lens.tolist()):
        width = min(prefix_len, window)
        cells = made.cells[made.starts[request] : made.starts[request + 1]].view(17, width + 17)
        for node in range(17):
            position = prefix_len + int(ancestors[request, node].sum()) - 1
            for column in range(width):
                key = prefix_len - width + column
                assert bool(cells[node, column]) == (position - key <= window)
            for other in range(17):
                key = prefix_len + int(ancestors[request, other].sum()) - 1
                allowed = bool(ancestors[request, node, other]) and position - key <= window
                assert bool(cells[node, width + other]) == allowed


def test_siblings_have_one_window() -> None:
    """Six children of a root, at one position: by index the last would have lost five tokens more than the first."""
    ancestors = ancestor_mask(torch.tensor([[-1, 0, 0, 0, 0, 0, 0]]))
    rows = window_tree_mask(ancestors, torch.tensor([20]), 4).cells.view(7, 4 + 7)
    assert rows[0, :4].tolist() == [True] * 4
    assert rows[1:, :4].tolist() == [[False, True, True, True]] * 6


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize(
    ("batch_size", "depth", "num_nodes", "window"),
    [(1, 1, 2, 1), (3, 7, 17, 8), (3, 7, 17, 3), (40, 2, 3, 5), (2, 15, 65, 300), (1, 15, 200, 127)],
)
def test_random_trees(
    device: torch.device, batch_size: int, depth: int, num_nodes: int, window: int, mask_dtype: torch.dtype
) -> None:
    ancestors = random_ancestors(num_nodes, batch_size, depth)
    prefix_lens = torch.randint(0, 600, (batch_size,), generator=torch.Generator().manual_seed(batch_size))
    prefix_lens[-1] = 0
    flat = flat_tree_mask(ancestors, prefix_lens)
    # Prefix cells are not read: here they hold what a full mask would not.
    tail = torch.zeros_like(flat)
    index = tree_cell_index(prefix_lens, num_nodes).flatten()
    tail[index] = flat[index]
    made = WindowMask.empty(batch_size + 1, num_nodes, window, device)
    made.cells.fill_(True)
    window_mask_into(made, tail.to(mask_dtype).to(device), prefix_lens.to(device), num_nodes, window)
    expected = window_tree_mask(ancestors, prefix_lens, window)
    assert torch.equal(made.starts[:-1].cpu(), expected.starts)
    assert torch.equal(made.cells[: len(expected.cells)].cpu(), expected.cells)
    assert bool(made.cells[len(expected.cells) :].all()), "cells behind the last request were written"


def test_a_mask_without_room_is_refused(device: torch.device) -> None:
    flat, lens = torch.zeros(400, dtype=torch.bool, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"3 requests may need 84 cells and 4 starts, got 56 and 3"):
        window_mask_into(WindowMask.empty(2, 4, 3, device), flat, lens, 4, 3)

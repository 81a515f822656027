"""Page tables of a tree's nodes against core."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import ancestor_mask, build_draft_tree, flat_tree_mask, tree_cell_index
from ddtree_sglang.core.ancestor_pages import AncestorPages, ancestor_pages
from ddtree_sglang.kernels.ancestor_pages_triton import ancestor_pages_into
from tests.core.tree_cases import random_candidates

ROWS, ROW_LEN = 60, 340


def empty_pages(batch_size: int, num_nodes: int, device: torch.device) -> AncestorPages:
    num_rows = batch_size * num_nodes
    counts = torch.empty(num_rows, dtype=torch.int32, device=device)
    return AncestorPages(counts, torch.empty((num_rows, num_nodes), dtype=torch.int32, device=device))


def test_core_puts_what_a_node_sees_first_in_node_order() -> None:
    #  0 -> 1 -> 2, and 0 -> 3
    made = ancestor_pages(ancestor_mask(torch.tensor([[-1, 0, 1, 0]])), torch.tensor([[50, 51, 52, 53]]))
    assert made.counts.tolist() == [1, 2, 3, 2]
    assert made.page_table.tolist() == [[50, 51, 52, 53], [50, 51, 52, 53], [50, 51, 52, 53], [50, 53, 51, 52]]


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize(
    ("batch_size", "depth", "num_nodes"), [(1, 1, 2), (3, 7, 17), (40, 2, 3), (2, 15, 65), (1, 15, 200)]
)
def test_random_trees(
    device: torch.device, batch_size: int, depth: int, num_nodes: int, mask_dtype: torch.dtype
) -> None:
    block = random_candidates(num_nodes, batch_size, depth, 60, 30)
    ancestors = ancestor_mask(build_draft_tree(block.ids, block.logprobs, block.root_ids, num_nodes).parents)
    generator = torch.Generator().manual_seed(batch_size)
    table = torch.randperm(ROWS * ROW_LEN, generator=generator).to(torch.int32).view(ROWS, ROW_LEN)
    rows = torch.randperm(ROWS, generator=generator)[:batch_size]
    prefix_lens = torch.randint(0, ROW_LEN - num_nodes + 1, (batch_size,), generator=generator)
    flat = flat_tree_mask(ancestors, prefix_lens)
    # Prefix cells are not read: here they hold what a full mask would not.
    tail = torch.zeros_like(flat)
    cells = tree_cell_index(prefix_lens, num_nodes).flatten()
    tail[cells] = flat[cells]
    made = empty_pages(batch_size, num_nodes, device)
    moved = (part.to(device) for part in (tail.to(mask_dtype), table, rows, prefix_lens))
    ancestor_pages_into(made, *moved)
    slots = table[rows.unsqueeze(1), prefix_lens.unsqueeze(1) + torch.arange(num_nodes)]
    expected = ancestor_pages(ancestors, slots)
    assert torch.equal(made.counts.cpu(), expected.counts)
    assert torch.equal(made.page_table.cpu(), expected.page_table)


def test_a_padded_requests_node_reads_itself_and_nothing_past_the_row(device: torch.device) -> None:
    table = torch.arange(1, 13, dtype=torch.int32, device=device).view(2, 6)
    made = empty_pages(1, 4, device)
    rows, prefix_lens = torch.tensor([0], device=device), torch.tensor([4], device=device)
    ancestor_pages_into(made, torch.zeros(32, dtype=torch.bool, device=device), table, rows, prefix_lens)
    assert made.counts.tolist() == [1, 1, 1, 1]
    assert made.page_table[:, 0].tolist() == [5, 6, 0, 0]


def test_a_table_of_another_number_of_requests_is_refused(device: torch.device) -> None:
    table, rows = torch.zeros(2, 9, dtype=torch.int32, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    mask = torch.zeros(99, dtype=torch.bool, device=device)
    with pytest.raises(ValueError, match=r"counts \[B \* N\] for B = 2, got \(12, 4\)"):
        ancestor_pages_into(empty_pages(3, 4, device), mask, table, rows, rows)

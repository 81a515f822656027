"""The ancestor mask, its flat layout, and what attention under it can and cannot see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from ddtree_sglang.core import ancestor_mask, build_draft_tree, flat_tree_mask, tree_cell_index
from tests.core.tree_cases import (
    SAMPLE_TREE,
    Candidates,
    ancestors_of,
    batch_of,
    chain_tree,
    random_candidates,
    tie_prone_candidates,
)


def test_ancestor_mask_of_the_sample_tree() -> None:
    assert ancestor_mask(SAMPLE_TREE.parents).int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0],
            [1, 0, 1, 0, 0, 0, 0, 0],
            [1, 1, 0, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 1, 0, 0, 0],
            [1, 0, 1, 0, 0, 1, 0, 0],
            [1, 1, 0, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 0, 0, 1],
        ]
    ]


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33])
def test_ancestor_mask_with_chain_tree_equals_causal(num_nodes: int) -> None:
    """root -> 1 -> 2 -> ...: each node sees every node before it, as in plain decoding."""
    causal = torch.ones(num_nodes, num_nodes).tril().bool()
    parents = chain_tree(num_nodes).parents
    assert torch.equal(ancestor_mask(parents)[0], causal)
    assert torch.equal(ancestor_mask(parents, max_depth=num_nodes - 1)[0], causal)


@settings(max_examples=60, deadline=None)
@given(candidates=tie_prone_candidates(), num_nodes=st.integers(1, 30))
def test_ancestor_mask_equals_following_parents_one_at_a_time(candidates: Candidates, num_nodes: int) -> None:
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes)
    mask = ancestor_mask(tree.parents, max_depth=candidates.ids.shape[1])
    assert torch.equal(mask, ancestor_mask(tree.parents))
    for b in range(tree.batch_size):
        for node in range(num_nodes):
            assert set(mask[b, node].nonzero().flatten().tolist()) == ancestors_of(tree, node, b)


def attend(tree_mask: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[B, N, 4] float64: N queries over prefix + nodes, in one small attention head."""
    queries = torch.randn(
        tree_mask.shape[0], tree_mask.shape[1], 4, generator=torch.Generator().manual_seed(8)
    ).double()
    return scaled_dot_product_attention(queries, keys, values, attn_mask=tree_mask)


@pytest.mark.parametrize("prefix_len", [0, 3])
def test_hiding_one_key_changes_exactly_the_nodes_that_may_attend_to_it(prefix_len: int) -> None:
    """Every key that the mask shows matters, and no other: hide it, and change it, one key at a time."""
    candidates = random_candidates(2, 1, 4, 6, 4)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, 12)
    prefix_lens = torch.tensor([prefix_len])
    mask = flat_tree_mask(ancestor_mask(tree.parents), prefix_lens).view(1, 12, prefix_len + 12)
    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(1, prefix_len + 12, 4, generator=generator).double()
    values = torch.randn(1, prefix_len + 12, 4, generator=generator).double()
    before = attend(mask, keys, values)
    assert bool(torch.isfinite(before).all())
    for key in range(prefix_len + 12):
        visible = mask[0, :, key]
        other_values = values.clone()
        other_values[0, key] += 1.0
        changed = (attend(mask, keys, other_values) != before).any(-1)[0]
        assert torch.equal(changed, visible), f"key {key}"
        hidden = mask.clone()
        hidden[0, :, key] = False
        hidden_rows = visible & hidden[0].any(-1)  # a row that sees itself alone has nothing left
        changed = (attend(hidden, keys, values) - before).abs().amax(-1)[0] > 1e-9
        assert torch.equal(changed[hidden[0].any(-1)], hidden_rows[hidden[0].any(-1)]), f"key {key}"


def test_flat_mask_concatenates_one_matrix_per_request_with_the_prefix_visible() -> None:
    tree = batch_of(SAMPLE_TREE, chain_tree(8), SAMPLE_TREE)
    prefix_lens = torch.tensor([3, 0, 5])
    ancestors = ancestor_mask(tree.parents)
    expected = torch.cat(
        [torch.cat((torch.ones(8, length).bool(), ancestors[b]), dim=1).flatten() for b, length in enumerate([3, 0, 5])]
    )
    assert torch.equal(flat_tree_mask(ancestors, prefix_lens), expected)
    assert torch.equal(flat_tree_mask(ancestors, prefix_lens, total_prefix_len=8), expected)
    assert expected.numel() == sum(8 * (length + 8) for length in (3, 0, 5))


def test_tail_cells_are_the_node_columns_of_the_flat_mask_and_nothing_else() -> None:
    tree = batch_of(SAMPLE_TREE, chain_tree(8))
    prefix_lens = torch.tensor([3, 1])
    ancestors = ancestor_mask(tree.parents)
    cells = tree_cell_index(prefix_lens, 8)
    assert tuple(cells.shape) == (2, 8, 8)
    assert torch.equal(flat_tree_mask(ancestors, prefix_lens)[cells], ancestors)
    assert cells.flatten().unique().numel() == cells.numel()
    row_lens = [11] * 8 + [9] * 8  # prefix + nodes, per row of the flat layout
    ends = torch.tensor(row_lens).cumsum(0)
    assert cells[:, :, -1].flatten().tolist() == (ends - 1).tolist()


def test_writing_only_the_tail_cells_leaves_the_prefix_of_a_reused_buffer() -> None:
    prefix_lens = torch.tensor([2, 4])
    tree = batch_of(SAMPLE_TREE, chain_tree(8))
    buffer = torch.full((200,), 7, dtype=torch.uint8)
    cells = tree_cell_index(prefix_lens, 8)
    buffer[cells] = ancestor_mask(tree.parents).to(torch.uint8)
    untouched = torch.ones(200, dtype=torch.bool)
    untouched[cells.flatten()] = False
    assert bool((buffer[untouched] == 7).all())
    assert int(untouched.sum()) == 200 - 2 * 64


@pytest.mark.parametrize("parents", [torch.zeros(3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int32)])
def test_ancestor_mask_with_bad_parents_names_the_argument(parents: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="parents must be"):
        ancestor_mask(parents)


@pytest.mark.parametrize(
    ("lens", "message"),
    [
        (torch.tensor([1, 2]), "prefix_lens must be"),
        (torch.tensor([1], dtype=torch.int32), "prefix_lens must be"),
    ],
)
def test_flat_mask_with_bad_prefix_lens_names_the_argument(lens: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flat_tree_mask(ancestor_mask(SAMPLE_TREE.parents), lens)

"""The one-launch builder against core, bit for bit: trees, links, positions, masks of both layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddtree_sglang.core import BuiltTree, build_draft_tree
from ddtree_sglang.core.tree_layout import layout_draft_tree
from ddtree_sglang.core.tree_mask import ancestor_mask, flat_tree_mask, tree_cell_index
from ddtree_sglang.kernels.tree_builder_triton import build_draft_tree_triton, build_into
from tests.core.tree_cases import (
    TIE_PRONE,
    Candidates,
    assert_same_tree,
    pair_candidates,
    random_candidates,
    tie_prone_candidates,
)

LINKS = ("positions", "retrieve_index", "retrieve_next_token", "retrieve_next_sibling")
_ONE_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def _build(candidates: Candidates, num_nodes: int, device: torch.device, flat: bool = False) -> BuiltTree:
    batch_size = len(candidates.root_ids)
    prefix_lens = _prefix_lens(batch_size)
    buffer = None
    if flat:
        # One more cell than needed, all of a value that would show: only tail cells may change.
        cells = int((prefix_lens + num_nodes).sum()) * num_nodes + 1
        buffer = torch.ones(cells, dtype=torch.bool, device=device)
    return build_draft_tree_triton(
        candidates.ids.to(device),
        candidates.logprobs.to(device),
        candidates.root_ids.to(device),
        prefix_lens.to(device),
        num_nodes,
        buffer,
        None if candidates.pairs is None else candidates.pairs.to(device),
    )


def _prefix_lens(batch_size: int) -> torch.Tensor:
    return torch.arange(batch_size) * 3 % 7


def _assert_equals_core(candidates: Candidates, num_nodes: int, device: torch.device) -> None:
    built = _build(candidates, num_nodes, device)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes, candidates.pairs)
    assert_same_tree(_on_host(built), tree)
    layout = layout_draft_tree(tree, _prefix_lens(tree.batch_size))
    for name in LINKS:
        assert torch.equal(getattr(built.layout, name).cpu(), getattr(layout, name)), name
    assert torch.equal(built.mask.cells.cpu(), ancestor_mask(tree.parents))


def _on_host(built: BuiltTree) -> object:
    tree = built.tree
    return type(tree)(tree.token_ids.cpu(), tree.parents.cpu(), tree.depths.cpu(), tree.logprobs.cpu())


@pytest.mark.parametrize(
    ("batch_size", "depth", "num_candidates", "num_nodes"),
    [
        (1, 1, 1, 1),
        (1, 1, 1, 2),
        (3, 7, 16, 17),
        (2, 15, 8, 33),
        (5, 4, 3, 64),
        (1, 31, 40, 40),
        (2, 7, 300, 100),
        (1, 15, 255, 256),
        (2, 2, 2, 20),  # fewer prefixes than nodes
    ],
)
def test_random_blocks(device: torch.device, batch_size: int, depth: int, num_candidates: int, num_nodes: int) -> None:
    candidates = random_candidates(num_nodes, batch_size, depth, max(num_candidates, 50), num_candidates)
    _assert_equals_core(candidates, num_nodes, device)


def test_several_lanes_to_a_thread_in_a_full_batch(device: torch.device) -> None:
    """64 lanes are two to a thread; 48 requests are what a server takes by default (the interpreter: minutes)."""
    batch_size = 48 if device.type == "cuda" else 2
    _assert_equals_core(random_candidates(64, batch_size, 7, 80, 63), 64, device)


@_ONE_FIXTURE
@given(candidates=tie_prone_candidates(), num_nodes=st.integers(1, 24))
def test_ties_and_impossible_candidates(device: torch.device, candidates: Candidates, num_nodes: int) -> None:
    _assert_equals_core(candidates, num_nodes, device)


def test_nan_and_values_above_zero_are_read_as_core_reads_them(device: torch.device) -> None:
    values = [[0.5, -0.25, -1.0], [float("inf"), -0.5, float("nan")], [-0.125, -0.125, float("nan")]]
    ids = torch.arange(9).view(1, 3, 3)
    _assert_equals_core(Candidates(ids, torch.tensor([values]), torch.tensor([9])), 12, device)


@pytest.mark.parametrize(
    ("batch_size", "depth", "num_candidates", "num_nodes"),
    [
        (1, 1, 1, 1),
        (1, 1, 1, 2),
        (3, 1, 5, 9),  # one depth
        (2, 2, 2, 20),  # fewer prefixes than nodes
        (3, 7, 16, 17),
        (2, 4, 3, 40),  # fewer candidates than nodes, two lanes to a thread
        (1, 3, 33, 12),  # more candidates than lanes
        (1, 31, 2, 33),
        (1, 2, 256, 9),
    ],
)
def test_random_pairs(device: torch.device, batch_size: int, depth: int, num_candidates: int, num_nodes: int) -> None:
    _assert_equals_core(pair_candidates(num_nodes, batch_size, depth, num_candidates), num_nodes, device)


@settings(_ONE_FIXTURE, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)),
    num_nodes=st.integers(1, 24),
    values=st.sampled_from([TIE_PRONE, (*TIE_PRONE, -0.0), (-0.5,), (float("-inf"), float("nan"), -1.0, 0.5)]),
)
def test_pairs_that_tie_and_impossible_pairs(
    device: torch.device, seed: int, sizes: tuple[int, int, int], num_nodes: int, values: tuple[float, ...]
) -> None:
    _assert_equals_core(pair_candidates(seed, *sizes, values), num_nodes, device)


def test_pairs_write_the_flat_layout(device: torch.device) -> None:
    candidates = pair_candidates(5, 4, 5, 6)
    built = _build(candidates, 12, device, flat=True)
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, 12, candidates.pairs)
    assert torch.equal(built.mask.cells.cpu()[:-1], flat_tree_mask(ancestor_mask(tree.parents), _prefix_lens(4)))


def test_pairs_of_more_candidates_than_the_key_has_bits_for_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"pairs of up to 256 candidates, got 257; use core\.build_draft_tree"):
        _build(pair_candidates(0, 1, 2, 257), 5, device)


@pytest.mark.parametrize("num_nodes", [1, 6, 17])
def test_flat_layout_gets_its_tail_cells_and_nothing_else(device: torch.device, num_nodes: int) -> None:
    candidates = random_candidates(5, 4, 7, 40, 16)
    prefix_lens = _prefix_lens(4)
    built = _build(candidates, num_nodes, device, flat=True)
    parents = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes).parents
    expected = flat_tree_mask(ancestor_mask(parents), prefix_lens)
    assert torch.equal(built.mask.cells.cpu()[:-1], expected)
    # The same on a buffer of zeros: prefix cells stay as they were.
    buffer = torch.zeros_like(built.mask.cells)
    candidates_on_device = (x.to(device) for x in (candidates.ids, candidates.logprobs, candidates.root_ids))
    build_draft_tree_triton(*candidates_on_device, prefix_lens.to(device), num_nodes, buffer)
    tail = torch.zeros_like(expected).scatter_(0, tree_cell_index(prefix_lens, num_nodes).flatten(), True)
    assert torch.equal(buffer.cpu()[:-1], expected & tail)
    assert not bool(buffer[-1])


@pytest.mark.parametrize("batch_size", [33, 64, 70])
def test_the_flat_layout_of_more_requests_than_a_warp_has_lanes(device: torch.device, batch_size: int) -> None:
    candidates = random_candidates(6, batch_size, 2, 5, 3)
    built = _build(candidates, 3, device, flat=True)
    parents = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, 3).parents
    assert torch.equal(built.mask.cells.cpu()[:-1], flat_tree_mask(ancestor_mask(parents), _prefix_lens(batch_size)))


def test_columns_are_read_where_they_stand_and_candidates_past_the_budget_are_not_reached(device: torch.device) -> None:
    """In a graph, roots and prefix lengths are columns of the block's inputs."""
    candidates = random_candidates(7, 3, 4, 60, 40)
    roots = torch.stack([candidates.root_ids, candidates.root_ids + 1], dim=1).to(device)
    prefix_lens = torch.stack([_prefix_lens(3), _prefix_lens(3) + 9], dim=1).to(device)
    buffer = torch.ones(int((_prefix_lens(3) + 9).sum()) * 9, dtype=torch.bool, device=device)
    ids, logprobs = candidates.ids.to(device), candidates.logprobs.to(device)
    built = build_draft_tree_triton(ids, logprobs, roots[:, 0], prefix_lens[:, 0], 9, buffer)
    expected = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, 9)
    assert_same_tree(_on_host(built), expected)
    assert torch.equal(built.layout.positions.cpu(), layout_draft_tree(expected, _prefix_lens(3)).positions)
    assert torch.equal(buffer.cpu(), flat_tree_mask(ancestor_mask(expected.parents), _prefix_lens(3)))


@pytest.mark.parametrize(("depth", "num_nodes"), [(32, 8), (4, 257)])
def test_sizes_beyond_the_key_are_refused(device: torch.device, depth: int, num_nodes: int) -> None:
    candidates = random_candidates(0, 1, depth, 10, 4)
    with pytest.raises(ValueError, match=r"takes up to 256 nodes and 31 drafted positions"):
        _build(candidates, num_nodes, device)


def test_an_empty_batch_launches_nothing(device: torch.device) -> None:
    empty = Candidates(torch.zeros(0, 3, 4, dtype=torch.int64), torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64))
    assert _build(empty, 5, device).tree.token_ids.shape == (0, 5)


def test_rows_of_another_number_of_requests_are_refused(device: torch.device) -> None:
    candidates = random_candidates(0, 2, 3, 10, 4)
    given = [x.to(device) for x in (candidates.ids, candidates.logprobs, candidates.root_ids, _prefix_lens(2))]
    with pytest.raises(ValueError, match=r"exactly 2 requests, got 3; pass BuiltTree\.first"):
        build_into(BuiltTree.empty(3, 5, device), *given)

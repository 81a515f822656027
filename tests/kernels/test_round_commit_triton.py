"""The one-launch end of a verify against core, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch

from ddtree_sglang.core import DraftTree, RoundCommit, RoundEnds, build_draft_tree, commit_round, layout_draft_tree
from ddtree_sglang.core.round_ends import NO_LIMIT
from ddtree_sglang.kernels.round_commit_triton import commit_round_triton
from tests.core.tree_cases import batch_of, chain_tree, make_tree, random_candidates, random_ends


def tensors(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a dataclass of tensors and such dataclasses, with its name."""
    for field in fields(value):
        held = getattr(value, field.name)
        if is_dataclass(held):
            yield from tensors(held)
        else:
            yield field.name, held


def commit_on(
    device: torch.device, tree: DraftTree, target_ids: torch.Tensor, max_path_len: int, ends: RoundEnds | None = None
) -> RoundCommit:
    """What the kernel makes of a round, after prefixes of 0, 5, 10, ... tokens."""
    moved = DraftTree(*(tensor.to(device) for _, tensor in tensors(tree)))
    there = None if ends is None else RoundEnds(*(tensor.to(device) for _, tensor in tensors(ends)))
    return commit_round_triton(moved, target_ids.to(device), prefix_lens(tree).to(device), max_path_len, there)


def prefix_lens(tree: DraftTree) -> torch.Tensor:
    return torch.arange(tree.batch_size) * 5


def assert_equals_core(
    device: torch.device, tree: DraftTree, target_ids: torch.Tensor, max_path_len: int, ends: RoundEnds | None = None
) -> RoundCommit:
    found = commit_on(device, tree, target_ids, max_path_len, ends)
    expected = commit_round(tree, target_ids, prefix_lens(tree), max_path_len, ends)
    for (name, got), (_, wanted) in zip(tensors(found), tensors(expected), strict=True):
        assert got.dtype == wanted.dtype, name
        assert torch.equal(got.cpu(), wanted), name
    return expected


def choices(tree: DraftTree, seed: int) -> torch.Tensor:
    """`[B, N]` int64: at nine of ten nodes with children the token of one of them, else one that may be anywhere."""
    generator = torch.Generator().manual_seed(seed)
    layout = layout_draft_tree(tree, prefix_lens(tree))
    child = layout.retrieve_next_token.clamp(min=0)
    sibling = layout.retrieve_next_sibling.gather(1, child)
    take_sibling = (torch.rand(child.shape, generator=generator) < 0.4) & (sibling >= 0)
    agreed = tree.token_ids.gather(1, torch.where(take_sibling, sibling, child))
    has_child = layout.retrieve_next_token >= 0
    agrees = has_child & (torch.rand(child.shape, generator=generator) < 0.9)
    return torch.where(agrees, agreed, torch.randint(0, 12, child.shape, generator=generator))


@pytest.mark.parametrize(
    ("batch_size", "depth", "num_nodes"),
    [
        (1, 1, 2),
        (7, 3, 3),
        (3, 7, 17),
        (40, 15, 33),  # more requests than a warp has lanes
        (5, 15, 64),
        (5, 31, 65),
        (3, 7, 129),
        (2, 31, 256),
    ],
)
def test_random_rounds(device: torch.device, batch_size: int, depth: int, num_nodes: int) -> None:
    longest = 0
    for seed in range(3):
        block = random_candidates(seed, batch_size, depth, 12, 6, scale=1.0)
        tree = build_draft_tree(block.ids, block.logprobs, block.root_ids, num_nodes)
        made = assert_equals_core(device, tree, choices(tree, seed), depth + 1)
        longest = max(longest, int(made.path.commit_lens.max()))
    assert longest > 1


@pytest.mark.parametrize(
    ("batch_size", "depth", "num_nodes"), [(1, 1, 2), (6, 7, 17), (40, 15, 33), (5, 31, 65), (2, 31, 256)]
)
def test_random_ends(device: torch.device, batch_size: int, depth: int, num_nodes: int) -> None:
    cut = 0
    for seed in range(6):
        block = random_candidates(seed, batch_size, depth, 12, 6, scale=1.0)
        tree = build_draft_tree(block.ids, block.logprobs, block.root_ids, num_nodes)
        ends, lens = random_ends(seed, batch_size, 12, depth, num_nodes)
        ends = RoundEnds(ends.end_ids, ends.limit_lens - lens + prefix_lens(tree), ends.node_limits)
        made = assert_equals_core(device, tree, choices(tree, seed), depth + 1, ends)
        whole = commit_round(tree, choices(tree, seed), prefix_lens(tree), depth + 1)
        cut += int((made.accept_lens < whole.accept_lens).sum())
    assert cut > 0


@pytest.mark.parametrize("end", [1, 3, 88, 2**33 + 1])
def test_an_end_token_is_emitted_and_no_node_with_it_entered(device: torch.device, end: int) -> None:
    """The chain's second node carries a token of more than 32 bits, whose low half is another end's."""
    tree = make_tree([0, 2**33 + 1, 3, 4], [-1, 0, 1, 2])
    target_ids = torch.tensor([[2**33 + 1, 3, 4, 88]])
    ends = RoundEnds(torch.tensor([[-1, end]]), torch.tensor([NO_LIMIT]), torch.tensor([NO_LIMIT]))
    made = assert_equals_core(device, tree, target_ids, 4, ends)
    assert made.accept_lens.tolist() == [{1: 4, 3: 2, 88: 4, 2**33 + 1: 1}[end]]


@pytest.mark.parametrize("left", [-3, 0, 1, 2, 3, 4, 5])
def test_a_path_of_the_tokens_that_are_left(device: torch.device, left: int) -> None:
    tree = batch_of(chain_tree(4), chain_tree(4))
    ends = RoundEnds.none(2, torch.device("cpu"))
    ends = RoundEnds(ends.end_ids[:, :0], torch.tensor([NO_LIMIT, 5 + left]), ends.node_limits)
    made = assert_equals_core(device, tree, torch.tensor([[1, 2, 3, 9], [1, 2, 3, 9]]), 4, ends)
    assert made.accept_lens.tolist() == [4, max(1, min(left, 4))]


@pytest.mark.parametrize("depth", [1, 7, 31])
def test_a_full_path_ends_with_a_bonus(device: torch.device, depth: int) -> None:
    tree = chain_tree(depth + 1)
    target_ids = torch.cat([tree.token_ids[:, 1:], torch.tensor([[88]])], dim=1)
    made = assert_equals_core(device, tree, target_ids, depth + 1)
    assert made.path.commit_lens.tolist() == [depth + 1]
    assert made.path.bonus_ids.tolist() == [88]


@pytest.mark.parametrize("max_path_len", [1, 2, 5])
def test_a_limit_below_the_trees_depth_stops_the_walk(device: torch.device, max_path_len: int) -> None:
    tree = chain_tree(8)
    target_ids = torch.cat([tree.token_ids[:, 1:], torch.tensor([[88]])], dim=1)
    assert assert_equals_core(device, tree, target_ids, max_path_len).path.commit_lens.tolist() == [max_path_len]


def test_padding_is_never_walked_to(device: torch.device) -> None:
    """Two prefixes and five padding nodes, whose token is 0: a target that chooses 0 stops."""
    block = random_candidates(0, 3, 1, 2, 2)
    tree = build_draft_tree(block.ids, block.logprobs, block.root_ids, 8)
    padded = DraftTree(tree.token_ids + 1, tree.parents, tree.depths, tree.logprobs)
    padded.token_ids[tree.parents < 0] = 0
    made = assert_equals_core(device, padded, torch.zeros(3, 8, dtype=torch.int64), 2)
    assert made.path.commit_lens.tolist() == [1, 1, 1]


def test_one_token_in_several_places_is_told_apart_by_its_parent(device: torch.device) -> None:
    """Token 7 below the root and below both of its children; 4 below the root alone."""
    tree = make_tree([7, 7, 4, 7, 7], [-1, 0, 0, 1, 2])
    for target in ([7, 7, 0, 4, 0], [4, 0, 7, 0, 7], [7, 4, 0, 0, 0], [0, 0, 0, 0, 0]):
        assert_equals_core(device, tree, torch.tensor([target]), 4)


def test_of_siblings_of_one_token_the_first_is_taken(device: torch.device) -> None:
    """No builder makes such a tree; a kernel that took another would still differ from core."""
    tree = make_tree([1, 5, 5, 6, 6], [-1, 0, 0, 1, 2])
    made = assert_equals_core(device, tree, torch.tensor([[5, 6, 6, 0, 0]]), 4)
    assert made.path.accept_index.tolist() == [[0, 1, 3, -1]]


def test_a_root_alone_emits_the_targets_choice(device: torch.device) -> None:
    tree = batch_of(chain_tree(1), chain_tree(1))
    made = assert_equals_core(device, tree, torch.tensor([[3], [0]]), 16)
    assert made.path.bonus_ids.tolist() == [3, 0]
    assert made.context_rows.tolist() == [[0], [1]]


def test_token_ids_of_more_than_32_bits_are_compared_whole(device: torch.device) -> None:
    far = 2**33
    tree = make_tree([0, far + 5, 5], [-1, 0, 0])
    made = assert_equals_core(device, tree, torch.tensor([[5, 1, far + 2]]), 2)
    assert made.path.token_ids.tolist() == [[5, far + 2]]


def test_views_of_larger_buffers_are_read_as_they_are(device: torch.device) -> None:
    """A graph's trees are the first rows of its buffers; target ids may be columns of something wider."""
    block = random_candidates(4, 4, 5, 12, 6)
    tree = build_draft_tree(block.ids, block.logprobs, block.root_ids, 9)
    wide = torch.cat([choices(tree, 1), torch.full((4, 3), -5)], dim=1)
    first = DraftTree(*(tensor[:2] for _, tensor in tensors(tree)))
    assert_equals_core(device, first, wide[:2, :9], 6)


def test_target_ids_of_another_dtype_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"target_ids must be torch\.int64, got torch\.int32"):
        commit_on(device, chain_tree(3), torch.zeros(1, 3, dtype=torch.int32), 3)

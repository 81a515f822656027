"""Penalties of nodes and the count of what a round emits against core, bit for bit."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from ddtree_sglang.core import DraftTree
from ddtree_sglang.core.node_penalties import PenaltyState, count_tokens, penalize_nodes
from ddtree_sglang.kernels import node_penalties_triton
from ddtree_sglang.kernels.node_penalties_triton import compile_cases, count_tokens_triton, penalize_nodes_triton
from tests.core.plain_penalties import Asked, V, random_asked
from tests.core.test_node_penalties import PATH_LEN, count_all, path_of, random_tree, state_of
from tests.core.tree_cases import make_tree


def moved(state: PenaltyState, device: torch.device) -> PenaltyState:
    """A copy, so that core and kernel count on their own."""
    return PenaltyState(*(getattr(state, one.name).clone().to(device) for one in fields(state)))


def assert_penalized_alike(
    device: torch.device, logits: torch.Tensor, state: PenaltyState, slots: torch.Tensor, tree: DraftTree
) -> torch.Tensor:
    found = logits.clone().to(device)
    on_device = DraftTree(*(part.to(device) for part in (tree.token_ids, tree.parents, tree.depths, tree.logprobs)))
    penalize_nodes_triton(found, moved(state, device), slots.to(device), on_device)
    penalize_nodes(logits, state, slots, tree)
    assert torch.equal(found.cpu(), logits)
    return logits


def assert_counted_alike(
    device: torch.device,
    state: PenaltyState,
    slots: torch.Tensor,
    roots: torch.Tensor,
    emitted: torch.Tensor,
    lens: torch.Tensor,
) -> None:
    found = moved(state, device)
    count_tokens_triton(found, *(part.to(device) for part in (slots, roots, emitted, lens)))
    count_tokens(state, slots, roots, emitted, lens)
    for one in fields(state):
        assert torch.equal(getattr(found, one.name).cpu(), getattr(state, one.name)), one.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_random_rounds(device: torch.device, dtype: torch.dtype) -> None:
    """Penalized, then counted, twice: what was counted is penalized.

    Of the short types float16: Triton's interpreter does not round to bfloat16, it cuts off.
    """
    generator = torch.Generator().manual_seed(0)
    for case in range(40):
        batch_size, num_nodes = 1 + case % 4, (1, 2, 7, 12)[case // 4 % 4]
        rarely = torch.rand(batch_size, generator=generator) < 0.2
        asked = [None if none else random_asked(generator) for none in rarely.tolist()]
        state, slots = state_of(asked)
        for _ in range(2):
            tree = random_tree(generator, batch_size, num_nodes)
            logits = (3 * torch.randn(batch_size * num_nodes, V, generator=generator)).to(dtype)
            assert_penalized_alike(device, logits, state, slots, tree)
            emitted = torch.randint(0, 4, (batch_size, PATH_LEN), generator=generator)
            lens = torch.randint(1, PATH_LEN + 1, (batch_size,), generator=generator)
            assert_counted_alike(device, state, slots, tree.token_ids[:, 0], emitted, lens)


def test_a_vocabulary_of_several_blocks_with_padded_rows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens on both sides of each block's end; columns behind the vocabulary stay as they are."""
    monkeypatch.setattr(node_penalties_triton, "MAX_BLOCK", 16)
    state, slots = state_of([Asked(1.0, 0.5, 1.5, 9, (15, 16, 39))], vocab_size=40)
    tree = make_tree([0, 15, 16, 31, 32, 39], [-1, 0, 1, 2, 3, 4])
    wide = torch.arange(6 * 50, dtype=torch.float32).view(6, 50) - 100
    found = wide.clone().to(device)
    on_device = DraftTree(*(part.to(device) for part in (tree.token_ids, tree.parents, tree.depths, tree.logprobs)))
    penalize_nodes_triton(found[:, :40], moved(state, device), slots.to(device), on_device)
    expected = wide.clone()
    penalize_nodes(expected[:, :40], state, slots, tree)
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(found[:, 40:].cpu(), wide[:, 40:])


def test_one_token_all_along_a_path_of_thirty_two(device: torch.device) -> None:
    state, slots = state_of([Asked(frequency=0.1)])
    tree = make_tree([4] * 32, list(range(-1, 31)))
    logits = assert_penalized_alike(device, torch.zeros(32, V), state, slots, tree)
    assert path_of(tree, 0, 31) == [4] * 32
    assert float(logits[31, 4]) != float(-(torch.tensor(0.1) * 32)), "a product would do"
    assert_counted_alike(device, state, slots, torch.tensor([4]), torch.full((1, 32), 4), torch.tensor([32]))


def test_requests_without_a_row_are_left_alone(device: torch.device) -> None:
    state, slots = state_of([None, Asked(frequency=1.0), None])
    count_all(state, slots, [[1], [2], [3]])
    tree = random_tree(torch.Generator().manual_seed(0), 3, 7)
    before = torch.randn(21, V)
    after = assert_penalized_alike(device, before.clone(), state, slots, tree)
    assert torch.equal(after[:7], before[:7])
    assert torch.equal(after[14:], before[14:])


def test_rows_of_logits_that_are_not_contiguous_are_refused(device: torch.device) -> None:
    state, slots = state_of([Asked()])
    with pytest.raises(ValueError, match="rows of logits must be contiguous"):
        penalize_nodes_triton(torch.zeros(V, 3).T, state, slots, make_tree([1, 2, 3], [-1, 0, 0]))


def test_every_kernel_is_among_the_compile_cases() -> None:
    assert len({id(case.kernel) for case in compile_cases()}) == 2

"""Under DP attention: what groups of ranks agree on, and the cells of requests that pad a batch."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.built_tree import complete_tree
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.core.tree_mask import FlatMask, flat_tree_mask

pytestmark = pytest.mark.sglang

NUM_NODES, PREFIX_LENS = 5, (3, 6)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module on a server with two groups of two ranks."""
    from ddtree_sglang.engine.stages import attention_ranks

    monkeypatch.setattr(attention_ranks, "is_dp_attention_enabled", lambda: True)
    return attention_ranks


def trees() -> tuple[Any, Any, torch.Tensor]:
    """Two trees, their window, and their mask in the flat layout."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, generator=generator).log_softmax(-1).sort(-1, descending=True).values
    tree = build_draft_tree(torch.arange(24).view(2, 3, 4), scores, torch.tensor([30, 31]), NUM_NODES)
    prefix_lens = torch.tensor(PREFIX_LENS)
    built = complete_tree(tree, prefix_lens, 3)
    window = SimpleNamespace(prefix_lens=prefix_lens, total_prefix_len=sum(PREFIX_LENS))
    return built, window, flat_tree_mask(built.mask.cells, prefix_lens)


@pytest.mark.parametrize("num_more", [0, 2])
def test_padding_has_cells_behind_those_of_the_batch(ranks: Any, num_more: int) -> None:
    built, window, mask = trees()
    padded = ranks.padded_mask(mask, built, window, num_more, prefix_len=1)
    lens = torch.tensor([*PREFIX_LENS, *[1] * num_more])
    assert len(padded) == NUM_NODES * int((lens + NUM_NODES).sum())
    assert torch.equal(padded[: len(mask)], mask)
    assert padded[len(mask) :].all()


def test_a_mask_that_stands_for_a_buffer_is_written_out(ranks: Any) -> None:
    built, window, mask = trees()
    buffer = torch.cat((mask, torch.zeros(1000, dtype=torch.bool)))
    in_place = SimpleNamespace(tree=built.tree, mask=FlatMask(buffer, NUM_NODES))
    padded = ranks.padded_mask(buffer[:1], in_place, window, 1, prefix_len=1)
    assert torch.equal(padded[: len(mask)], mask)
    assert padded[len(mask) :].all()
    assert len(padded) == len(mask) + NUM_NODES * (1 + NUM_NODES)


@pytest.mark.parametrize(
    ("most", "num_nodes", "num_ranks", "padded"),
    [(3, 8, 1, 3), (3, 5, 2, 3), (3, 1, 2, 4), (7, 2, 4, 8), (1, 2, 4, 2), (1, 3, 8, 2), (1, 17, 8, 1)],
)
def test_padding_has_room_for_a_request_more_where_ranks_are_many(
    ranks: Any, most: int, num_nodes: int, num_ranks: int, padded: int
) -> None:
    from sglang.srt.utils.common import ceil_align

    assert ranks.num_requests_padded_to(most, num_nodes, num_ranks) == padded
    assert ceil_align(most * num_nodes, num_ranks) // num_nodes == padded  # as forward_batch_info.py has it


def test_paddings_nodes_are_chains(ranks: Any) -> None:
    layout = trees()[0].layout
    links = layout.retrieve_next_token, layout.retrieve_next_sibling
    assert ranks.padded_links(*links, 0) == links
    children, siblings = ranks.padded_links(*links, 2)
    for padded, own in ((children, links[0]), (siblings, links[1])):
        assert padded.dtype is own.dtype
        assert padded.is_contiguous()
        assert torch.equal(padded[:2], own)
    assert children[2:].tolist() == [[*range(1, NUM_NODES), -1]] * 2
    assert siblings[2:].tolist() == [[-1] * NUM_NODES] * 2


def test_an_idle_group_stays_idle_beside_a_verify_of_recurrent_layers(ranks: Any) -> None:
    """Of what is no draft's, SGLang makes a verify of padding there (forward_batch_info.py)."""
    from sglang.srt.model_executor import forward_batch_info
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    nothing = ranks.IdleVerifyInput.create_idle_input(4, 3, NUM_NODES, "cpu")
    assert nothing.is_draft_input()
    source = inspect.getsource(ForwardBatch.prepare_mlp_sync_batch)
    assert "and not self.spec_info.is_draft_input()" in source
    padded = inspect.getsource(forward_batch_info.ForwardBatch._pad_inputs_to_size)
    assert "spec_info.pad_batch(self._pad_tensor_to_size, bs)" in padded
    nothing.pad_batch(None, 3)
    assert nothing.hidden_states is None

"""Slots of a round, and the room that a row of the request table must leave near the context limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.round_inputs import round_inputs
from ddtree_sglang.engine.stages import kv_window

pytestmark = pytest.mark.sglang


class FakeSpec(SimpleNamespace):
    @contextmanager
    def override(self, **values: Any) -> Iterator[None]:
        saved = {name: getattr(self, name) for name in values}
        self.__dict__.update(values)
        yield
        self.__dict__.update(saved)


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> FakeSpec:
    fake = FakeSpec(speculative_algorithm="DDTREE", speculative_num_draft_tokens=17, speculative_dflash_block_size=8)
    monkeypatch.setattr(kv_window, "get_spec", lambda: fake)
    return fake


@pytest.mark.parametrize(
    ("num_nodes", "block_size", "max_path_len"),
    [(9, 4, 4), (4, 4, 4), (2, 4, 4), (9, 4, 5), (5, 4, 5), (4, 4, 5), (3, 4, 5)],
)
def test_the_context_is_written_to_the_slots_of_the_longest_path(
    num_nodes: int, block_size: int, max_path_len: int
) -> None:
    table = torch.arange(20).view(1, 20)
    ids = torch.tensor([3])
    sizes = {"mask_token_id": 0, "num_nodes": num_nodes, "block_size": block_size}
    inputs = round_inputs(table, torch.tensor([0]), torch.tensor([5]), ids, **sizes)
    window = kv_window.RoundWindow(torch.tensor([5]), ids, inputs, None, None, None, max_path_len)
    assert window.num_nodes == num_nodes
    assert window.context_slots.tolist() == [list(range(5, 5 + min(num_nodes, max_path_len)))]
    assert window.context_slots.is_contiguous()


def test_window_is_as_long_as_the_longer_of_block_and_tree(spec: FakeSpec) -> None:
    assert kv_window.window_len() == 17
    spec.speculative_num_draft_tokens = 2
    assert kv_window.window_len() == 8


@pytest.mark.parametrize("num_nodes", [2, 8, 17, 64, 256])
@pytest.mark.parametrize("context_len", [64, 8192])
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_row_holds_two_windows_of_a_request_at_the_context_limit(
    spec: FakeSpec, monkeypatch: pytest.MonkeyPatch, num_nodes: int, context_len: int, page_size: int
) -> None:
    """A request's committed length reaches the context length minus 3; the next round reserves two windows of pages."""
    monkeypatch.setattr(kv_window, "get_alloc_page_size", lambda: page_size)
    spec.speculative_num_draft_tokens = num_nodes

    def stock() -> int:
        return 4 + num_nodes

    row_len = context_len + kv_window.row_headroom(stock)
    reserved = context_len - 3 + 2 * kv_window.window_len()
    longest_write = -(-reserved // page_size) * page_size
    assert longest_write <= row_len
    if num_nodes >= 8:
        assert longest_write > context_len + stock(), "stock room would have been enough: the hook proves nothing"


def test_row_headroom_leaves_other_algorithms_alone(spec: FakeSpec) -> None:
    spec.speculative_algorithm = "DFLASH"
    assert kv_window.row_headroom(lambda: 21) == 21


def test_hook_is_what_the_pools_call() -> None:
    from sglang.srt.mem_cache import allocation_sizing, kv_cache_configurator
    from sglang.srt.plugins import load_plugins

    load_plugins()
    wrapped = allocation_sizing.get_req_to_token_extra_context_len
    assert hasattr(wrapped, "__wrapped__")
    assert kv_cache_configurator.get_req_to_token_extra_context_len is wrapped


def test_reserve_covers_the_drafters_block_when_the_tree_is_smaller(
    spec: FakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budget 1 verifies 2 nodes but drafts a block of 8: reserving 2 would let the block write foreign slots."""
    spec.speculative_num_draft_tokens = 2
    seen = []
    monkeypatch.setattr(
        kv_window.DFlashDraftInputV2,
        "prepare_for_decode",
        lambda self, batch: seen.append(spec.speculative_num_draft_tokens),
    )
    state = kv_window.DDTreeDraftInput.carry(torch.tensor([5]), torch.tensor([9]))
    state.prepare_for_decode(None)
    assert seen == [8]
    assert spec.speculative_num_draft_tokens == 2


def test_carried_state_filters_and_merges_like_the_batch() -> None:
    state = kv_window.DDTreeDraftInput.carry(torch.tensor([5, 6, 7]), torch.tensor([9, 8, 7]))
    state.filter_batch(torch.tensor([0, 2]))
    state.merge_batch(kv_window.DDTreeDraftInput.carry(torch.tensor([1]), torch.tensor([4])))
    assert state.bonus_tokens.tolist() == [5, 7, 1]
    assert state.new_seq_lens.tolist() == [9, 7, 4]
    assert isinstance(kv_window.DDTreeDraftInput.create_idle_input(torch.device("cpu")), kv_window.DDTreeDraftInput)


@pytest.mark.parametrize("overlap", [False, True])
def test_first_tokens_of_another_server_are_the_state_before_a_first_round(overlap: bool) -> None:
    """It joins a running batch's state; under overlap both are places in the relay, which holds the tokens."""
    from ddtree_sglang.engine.algorithm import DDTreeSpecAlgo

    slots, lens, tokens = torch.tensor([2, 4]), torch.tensor([9, 8]), torch.tensor([5, 6])
    batch = SimpleNamespace(enable_overlap=overlap, req_pool_indices=slots, seq_lens=lens)
    relay = SimpleNamespace(
        publish=lambda where, values: relayed.update(slots=where, lens=values),
        stash=lambda _where, payload: relayed.update(tokens=payload.bonus_tokens),
    )
    relayed: dict[str, torch.Tensor] = {}
    state = DDTreeSpecAlgo.build_disagg_draft_input(SimpleNamespace(), batch, tokens, relay)
    assert isinstance(state, kv_window.DDTreeDraftInput)
    running = kv_window.DDTreeDraftInput.carry(torch.tensor([1]), torch.tensor([3]), slots[:1] if overlap else None)
    running.merge_batch(state)
    if overlap:
        assert running.future_indices.tolist() == [2, 2, 4]
        assert {name: values.tolist() for name, values in relayed.items()} == {
            "slots": [2, 4],
            "lens": [9, 8],
            "tokens": [5, 6],
        }
    else:
        assert relayed == {}
        assert running.bonus_tokens.tolist() == [1, 5, 6]
        assert running.new_seq_lens.tolist() == [3, 9, 8]

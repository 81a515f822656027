"""Routed experts of a round: the accepted nodes' rows, at the slots where their keys are, under both schedules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.sglang

LAYERS, TOP_K, NUM_SLOTS = 2, 3, 40
NODE_SLOTS = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23]])
ROWS = torch.tensor([[0, 3, 0], [4, 5, 7]])  # of the first request two nodes, of the second three


def window() -> Any:
    block_slots = NODE_SLOTS[:, :3]
    return SimpleNamespace(inputs=SimpleNamespace(node_slots=NODE_SLOTS), context_slots=block_slots)


def chosen_by(rows: torch.Tensor) -> torch.Tensor:
    """What the routers of each row of the verify chose, different everywhere."""
    return rows.view(-1, 1, 1) * 100 + torch.arange(LAYERS * TOP_K).view(1, LAYERS, TOP_K)


@pytest.fixture
def capturer(monkeypatch: pytest.MonkeyPatch) -> Any:
    from ddtree_sglang.engine.stages import routed_experts

    made = SimpleNamespace(
        host_cache=SimpleNamespace(buffer=torch.full((NUM_SLOTS, LAYERS, TOP_K), -1)),
        device_cache=SimpleNamespace(buffer=torch.zeros(8, LAYERS, TOP_K)),
    )
    monkeypatch.setattr(routed_experts, "get_global_experts_capturer", lambda: made)
    monkeypatch.setattr(routed_experts, "get_schedule", lambda: SimpleNamespace(chunked_prefill_size=8))
    return made


def check(cells: torch.Tensor) -> None:
    for request, length in ((0, 2), (1, 3)):
        slots, rows = NODE_SLOTS[request, :length], ROWS[request, :length]
        assert torch.equal(cells[slots], chosen_by(rows))


def test_under_overlap_the_rows_travel_to_the_slots_of_the_path(capturer: Any) -> None:
    from sglang.srt.state_capturer.base import TopkCaptureOutput

    from ddtree_sglang.engine.stages.routed_experts import experts_of_path

    captured = TopkCaptureOutput(NODE_SLOTS.view(-1).clone(), chosen_by(torch.arange(8)), capturer.host_cache)
    moved = experts_of_path(SimpleNamespace(routed_experts_output=captured), window(), ROWS)
    moved.finalize()
    check(capturer.host_cache.buffer)
    assert (capturer.host_cache.buffer[13] == -1).all(), "a node that was not accepted, past the path's slots"


def test_under_synchronous_scheduling_they_are_moved_on_the_host(capturer: Any) -> None:
    from ddtree_sglang.engine.stages.routed_experts import experts_of_path

    capturer.host_cache.buffer[NODE_SLOTS.view(-1)] = chosen_by(torch.arange(8))
    assert experts_of_path(SimpleNamespace(routed_experts_output=None), window(), ROWS) is None
    check(capturer.host_cache.buffer)


def test_without_a_capturer_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.engine.stages import routed_experts

    monkeypatch.setattr(routed_experts, "get_global_experts_capturer", lambda: None)
    assert routed_experts.experts_of_path(SimpleNamespace(routed_experts_output=None), window(), ROWS) is None
    routed_experts.make_capture_room(10**9)


def test_a_verify_that_does_not_fit_the_buffer_gets_a_larger_one(capturer: Any) -> None:
    from sglang.srt.state_capturer.base import BaseDeviceCache

    from ddtree_sglang.engine.stages.routed_experts import make_capture_room

    capturer.device_cache = cache = BaseDeviceCache(8, LAYERS, TOP_K, "cpu", "test")
    before = cache.buffer
    make_capture_room(8)
    assert cache.buffer is before
    rest, kind = before.shape[1:], (before.dtype, before.device)
    make_capture_room(20)
    assert cache.buffer.shape == (20, *rest)
    assert (cache.buffer.dtype, cache.buffer.device) == kind
    chosen = torch.ones(20, rest[1], dtype=before.dtype)
    cache.capture(0, chosen)
    assert torch.equal(cache.buffer[:, 0], chosen)


def test_rows_of_all_ranks_get_as_many_times_the_room(capturer: Any) -> None:
    from ddtree_sglang.engine.stages.routed_experts import make_capture_room

    capturer.gather_buffer = torch.empty(16, 3, dtype=torch.int32)
    make_capture_room(9)
    assert capturer.gather_buffer.shape == (18, 3)


def test_prefills_that_come_whole_are_refused(capturer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.engine.stages import routed_experts
    from ddtree_sglang.exceptions import DDTreeConfigError

    monkeypatch.setattr(routed_experts, "get_schedule", lambda: SimpleNamespace(chunked_prefill_size=-1))
    with pytest.raises(DDTreeConfigError, match="a --chunked-prefill-size above 0, got -1"):
        routed_experts.make_capture_room(1)
    monkeypatch.setattr(routed_experts, "get_global_experts_capturer", lambda: None)
    routed_experts.make_capture_room(1)


def test_a_prefill_that_is_longer_than_sglangs_buffer_ends_its_forward() -> None:
    """What the refusal of whole prefills is for."""
    from sglang.srt.state_capturer.base import BaseDeviceCache

    cache = BaseDeviceCache(8, LAYERS, TOP_K, "cpu", "test")
    with pytest.raises(RuntimeError, match="must match the existing size"):
        cache.capture(0, torch.ones(9, TOP_K, dtype=torch.int32))

"""A retracted request takes the drafter's keys along: SGLang's own pools and request, while others have its slots."""

from __future__ import annotations

import gc
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from ddtree_sglang.engine.stages import retraction_copies
from ddtree_sglang.engine.stages.retraction_copies import (
    copy_beside_the_targets,
    copy_drafter_keys,
    restore_drafter_keys,
)

pytestmark = pytest.mark.sglang
SLOTS, LAYERS = 16, 2


def pool() -> Any:
    made = object.__new__(MHATokenToKVPool)
    made.use_hnd, made.cpu_offloading_chunk_size, made.layer_num = False, 3, LAYERS
    made.k_buffer, made.v_buffer = ([torch.randn(SLOTS, 1, 4) for _ in range(LAYERS)] for _ in range(2))
    return made


class Setting:
    """A target's pool and its drafter's, and a request in slots 3 to 7, of which its last token has no keys yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sglang.srt.mem_cache import memory_pool

        monkeypatch.setattr(memory_pool, "current_platform", SimpleNamespace(synchronize=lambda: None))
        self.target, self.drafter = pool(), pool()
        self.allocator = object.__new__(TokenToKVPoolAllocator)
        self.allocator._kvcache = self.target
        self.rows = SimpleNamespace(req_to_token=torch.zeros(2, 8, dtype=torch.int64))
        self.req = object.__new__(Req)
        self.req.kv = SimpleNamespace(req_pool_idx=1, mamba_pool_idx=None, holds_mamba=False, retraction_backup=None)
        self.req.origin_input_ids, self.req.output_ids = [1, 2, 3], [4, 5, 6]
        self.target.cpu_copy_carries_mamba = True
        self.place(3)

    def place(self, first: int) -> torch.Tensor:
        slots = torch.arange(first, first + 5)
        self.rows.req_to_token[1, :5] = slots
        return slots

    def keys(self, of: Any, slots: torch.Tensor) -> torch.Tensor:
        return torch.stack([buffer[slots] for buffer in (*of.k_buffer, *of.v_buffer)])

    # Another test of the process may have installed the hooks.

    def offload(self) -> None:
        copy_drafter_keys(inspect.unwrap(Req.offload_kv_cache), self.req, self.rows, self.allocator)

    def load(self) -> None:
        restore_drafter_keys(inspect.unwrap(Req.load_kv_cache), self.req, self.rows, self.allocator)

    def overwrite(self) -> None:
        """Other requests take the slots."""
        for buffer in (*self.target.k_buffer, *self.target.v_buffer, *self.drafter.k_buffer, *self.drafter.v_buffer):
            buffer.fill_(9.0)


def test_keys_of_both_come_back_in_other_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch)
    copy_beside_the_targets(setting.allocator, setting.drafter)
    slots = torch.arange(3, 8)
    before = [setting.keys(one, slots) for one in (setting.target, setting.drafter)]
    setting.offload()
    setting.overwrite()
    slots = setting.place(9)
    setting.load()
    for one, keys in zip((setting.target, setting.drafter), before, strict=True):
        assert torch.equal(setting.keys(one, slots), keys)
        others = torch.tensor([0, 3, 8, 14])
        assert (setting.keys(one, others) == 9.0).all()
    assert setting.req not in retraction_copies._copies


def test_another_algorithms_requests_keep_the_targets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch)
    setting.offload()
    assert setting.req not in retraction_copies._copies
    setting.overwrite()
    setting.load()
    assert (setting.keys(setting.drafter, torch.arange(SLOTS)) == 9.0).all()


def test_a_request_that_is_aborted_while_it_waits_takes_its_copy_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch)
    copy_beside_the_targets(setting.allocator, setting.drafter)
    setting.offload()
    assert len(retraction_copies._copies) == 1
    del setting.req
    gc.collect()
    assert len(retraction_copies._copies) == 0

"""Memory is released by an idle server that has some, and what is resumed was released."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.entry import memory
from ddtree_sglang.engine.entry.memory import (
    check_checkpoint,
    check_handles,
    check_release,
    check_resume,
    check_sleep,
    check_weights,
)


async def sent(manager: Any, obj: Any, *args: Any) -> str:
    return "sent"


def manager(num_requests: int = 0, is_pause: bool = False) -> Any:
    return SimpleNamespace(rid_to_state=dict.fromkeys(range(num_requests)), is_pause=is_pause)


def ask(hook: Any, tags: list[str] | None, asked: Any = None) -> Any:
    return asyncio.run(hook(sent, asked or manager(), SimpleNamespace(tags=tags)))


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "is_active", lambda: False)
    monkeypatch.setattr(memory, "_released", set())
    monkeypatch.setattr("sglang.srt.runtime_context.get_serving", lambda: SimpleNamespace(tokenizer_worker_num=1))
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm=None))


@pytest.mark.parametrize("hook", [check_release, check_resume])
def test_a_cpu_has_nothing_to_release(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "is_active", lambda: True)
    with pytest.raises(ValueError, match="CPU platform"):
        ask(hook, None)


def test_a_cpu_waits_for_no_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(check_handles, None) == "sent"
    monkeypatch.setattr(memory, "is_active", lambda: True)
    with pytest.raises(ValueError, match="takes no new weights"):
        check_handles(sent, manager(), SimpleNamespace())


def test_handles_are_sent_once_and_a_drafter_would_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm="DDTREE"))
    with pytest.raises(ValueError, match="into the drafter, too; use update_weights_from_tensor"):
        check_handles(sent, manager(), SimpleNamespace())


@pytest.mark.parametrize("given", [0, 1, 3])
def test_each_rank_needs_new_weights_of_its_own(given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: SimpleNamespace(tp_size=2))
    with pytest.raises(ValueError, match=f"each of 2 tensor-parallel ranks, got {given};"):
        check_weights(sent, manager(), SimpleNamespace(serialized_named_tensors=["weights"] * given))


def test_new_weights_are_sent_to_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: SimpleNamespace(tp_size=2))
    asked = SimpleNamespace(serialized_named_tensors=["weights"] * 2)
    assert asyncio.run(check_weights(sent, manager(), asked)) == "sent"
    monkeypatch.setattr(memory, "is_active", lambda: True)
    with pytest.raises(ValueError, match="takes no new weights"):
        check_weights(sent, manager(), asked)


@pytest.mark.parametrize("algorithm", ["DDTREE", "DFLASH", "EAGLE", None])
def test_a_drafter_does_not_get_the_targets_checkpoint(algorithm: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm=algorithm))
    asked = SimpleNamespace(load_format="SafeTensors")
    if algorithm is None:
        assert asyncio.run(check_checkpoint(sent, manager(), asked)) == "sent"
        assert asyncio.run(check_checkpoint(sent, manager(), SimpleNamespace(load_format=None))) == "sent"
        with pytest.raises(ValueError, match="got 'tape'"):
            check_checkpoint(sent, manager(), SimpleNamespace(load_format="tape"))
        monkeypatch.setattr(memory, "is_active", lambda: True)
    with pytest.raises(ValueError, match="CPU platform" if algorithm is None else "into the drafter, too"):
        check_checkpoint(sent, manager(), asked)


@pytest.mark.parametrize(
    ("seconds", "is_sent"),
    [(None, True), (0, True), (-1e300, True), (3600, True), (3601, False), (1e300, False), (float("nan"), False)],
)
def test_a_scheduler_sleeps_as_long_as_it_can(seconds: float | None, is_sent: bool) -> None:
    asked = SimpleNamespace(forward_sleep_time=seconds)
    if is_sent:
        assert asyncio.run(check_sleep(sent, manager(), asked)) == "sent"
    else:
        with pytest.raises(ValueError, match=re.escape(f"at most 3600 s, got {seconds};")):
            check_sleep(sent, manager(), asked)


def test_a_busy_server_keeps_its_memory_unless_it_is_paused() -> None:
    with pytest.raises(ValueError, match="2 requests"):
        ask(check_release, None, manager(2))
    assert ask(check_release, None, manager(2, is_pause=True)) == "sent"


def test_what_was_not_released_is_not_resumed() -> None:
    assert ask(check_release, ["weights"]) == "sent"
    with pytest.raises(ValueError, match="got kv_cache;"):
        ask(check_resume, ["weights", "kv_cache"])
    assert ask(check_resume, ["weights"]) == "sent"
    with pytest.raises(ValueError, match="got weights;"):
        ask(check_resume, ["weights"])


def test_what_another_process_released_may_be_resumed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.runtime_context.get_serving", lambda: SimpleNamespace(tokenizer_worker_num=2))
    assert ask(check_resume, ["weights"]) == "sent"


def test_no_tags_are_all_of_them() -> None:
    ask(check_release, None)
    assert ask(check_resume, list(memory.RELEASABLE)) == "sent"


def test_a_tag_must_be_one_of_sglangs() -> None:
    from sglang.srt.constants import GPU_MEMORY_ALL_TYPES

    assert list(memory.RELEASABLE) == GPU_MEMORY_ALL_TYPES
    with pytest.raises(ValueError, match="got 'disk'"):
        ask(check_release, ["disk"])


def test_stock_says_on_a_cpu_that_it_released_what_it_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the refusal is for: without a driver there is nothing that could take memory away and give it back."""
    from sglang.srt.managers.io_struct import ReleaseMemoryOccupationReqInput, ReleaseMemoryOccupationReqOutput
    from sglang.srt.managers.scheduler_components import weight_updater
    from sglang.srt.utils.torch_memory_saver_adapter import TorchMemorySaverAdapter

    model = torch.nn.Linear(2, 2)
    where = model.weight.data_ptr()
    monkeypatch.setattr(torch.distributed, "barrier", lambda _group: None)
    monkeypatch.setattr(weight_updater, "get_model", lambda: SimpleNamespace(weight_cache_mode="off"))
    monkeypatch.setattr(torch, "get_device_module", lambda: torch.cpu)
    idle = SimpleNamespace(
        scheduler=None,
        is_fully_idle=lambda **_: True,
        offload_tags=set(),
        memory_saver_adapter=TorchMemorySaverAdapter.create(enable=False),
        flush_cache=lambda: True,
        _assert_weight_cache_inactive=lambda _op: None,
        tp_worker=SimpleNamespace(model_runner=SimpleNamespace(model=model)),
        tp_cpu_group=None,
    )
    release = weight_updater.SchedulerWeightUpdaterManager.release_memory_occupation
    answer = release(idle, ReleaseMemoryOccupationReqInput())
    assert type(answer) is ReleaseMemoryOccupationReqOutput
    assert model.weight.data_ptr() == where
    assert model.weight.untyped_storage().nbytes() == model.weight.nbytes

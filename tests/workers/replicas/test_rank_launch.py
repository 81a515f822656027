"""What is launched, and that the launcher goes on while ranks load."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from workers.replicas import rank_launch

pytestmark = pytest.mark.sglang


def launched(**extra: Any) -> Any:
    """A finished launch, as `RayEngine` returns it."""
    from sglang.srt.ray.engine import RaySchedulerInitResult

    return RaySchedulerInitResult(scheduler_infos=[{"max_req_input_len": 5}], scheduler_actors=["rank"], **extra)


def test_launcher_goes_on_while_ranks_load() -> None:
    loaded, exits = threading.Event(), []

    def launch(*args: Any, **kwargs: Any) -> tuple[Any, None]:
        assert (args, kwargs) == ((1,), {"placement_group": "g"})
        assert loaded.wait(300)
        return launched(block_until_scheduler_exits=lambda: exits.append(1), all_child_pids=[7]), None

    early, processes = rank_launch.start_launching(launch, 1, placement_group="g")
    assert processes is None
    assert early.scheduler_infos == []
    # What the engine notes of its own children between launch and waiting stays.
    early.all_child_pids.append(3)
    loaded.set()
    early.wait_for_ready()
    assert early.scheduler_infos == [{"max_req_input_len": 5}]
    assert early.scheduler_actors == ["rank"]
    assert early.all_child_pids == [3, 7]
    early.block_until_scheduler_exits()
    assert exits == [1]


def test_failed_launch_is_raised_where_it_is_waited_for() -> None:
    def launch() -> Any:
        raise RuntimeError("no bundle")

    early, _ = rank_launch.start_launching(launch)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no bundle"):
            early.wait_for_ready()


def test_cpu_ranks_need_a_bundle_each_but_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddtree_sglang.cpu_platform.is_active", lambda: True)
    group = SimpleNamespace(bundle_specs=[{"CPU": 1}])
    rank_launch.check_bundles(pytest.fail, group, 1)
    with pytest.raises(ValueError, match="each of 2 ranks, got 1"):
        rank_launch.check_bundles(pytest.fail, group, 2)


def test_on_a_gpu_sglangs_own_rule_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddtree_sglang.cpu_platform.is_active", lambda: False)
    asked = []
    rank_launch.check_bundles(lambda *args: asked.append(args), "group", 2)
    assert asked == [("group", 2)]


@pytest.mark.parametrize("free", [True, False])
def test_cpus_that_are_not_to_be_had_are_an_error_and_not_a_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    removed: list[Any] = []
    group = SimpleNamespace(wait=lambda timeout_seconds: free)
    monkeypatch.setattr("ddtree_sglang.cpu_platform.is_active", lambda: True)
    parallel = SimpleNamespace(num_dp_ranks=1, tp_size=3, pp_size=1)
    monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: parallel)
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.5})
    monkeypatch.setattr("ray.util.placement_group", lambda bundles, strategy: group)
    monkeypatch.setattr("ray.util.remove_placement_group", removed.append)
    monkeypatch.setattr(rank_launch, "start_launching", lambda original, cls, **kwargs: kwargs["placement_group"])
    if free:
        assert rank_launch.launch_on_this_platform(lambda: None, object) is group
        assert removed == []
        return
    with pytest.raises(RuntimeError, match=r"3 rank\(s\) need 1\.5 free CPUs"):
        rank_launch.launch_on_this_platform(lambda: None, object)
    assert removed == [group]

"""Hooks on how `RayEngine` starts its ranks: bundles without GPUs on a CPU platform, and a launch in a thread."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# How long to wait for free CPUs. If a node must be started first this fails; a retry then succeeds.
PLACEMENT_TIMEOUT_S = 60.0


def launch_on_this_platform(original: Callable[..., Any], cls: type, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on `RayEngine._launch_scheduler_processes`: without a GPU, ranks get bundles of CPUs.

    Without a placement group, stock asks for bundles of GPUs, and on a cluster without GPUs would wait without end.

    Raises:
        RuntimeError: no node had the CPUs free within `PLACEMENT_TIMEOUT_S` seconds.
    """
    import ray
    from sglang.srt.runtime_context import get_parallel

    from ddtree_sglang.cpu_platform import is_active

    given = kwargs.get("placement_group") or ray.util.get_current_placement_group()
    if given is not None or not is_active():
        return start_launching(original, cls, *args, **kwargs)
    parallel = get_parallel()
    ranks = parallel.num_dp_ranks * parallel.tp_size * parallel.pp_size
    share = min(1.0, ray.cluster_resources().get("CPU", 1.0) / ranks)
    group = ray.util.placement_group([{"CPU": share}] * ranks, strategy="STRICT_PACK")
    if not group.wait(timeout_seconds=PLACEMENT_TIMEOUT_S):
        ray.util.remove_placement_group(group)
        raise RuntimeError(
            f"{ranks} rank(s) need {ranks * share:g} free CPUs on one node, and no node had them within "
            f"{PLACEMENT_TIMEOUT_S:.0f} s; see what books them with `ray status` and end it, or add a node."
        )
    return start_launching(original, cls, *args, **{**kwargs, "placement_group": group})


def start_launching(launch: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, None]:
    """Launch in a thread. The result's `wait_for_ready` waits for the launch, raises its error, and fills the result.

    `RayEngine` itself waits for its ranks before it starts the detokenizer and the tokenizer, and each of the three
    spends half a minute of a core on imports. With the launch in a thread they start side by side, as they do in
    SGLang's engine with processes.
    """
    from sglang.srt.ray.engine import RaySchedulerInitResult

    launched: Future[Any] = Future()

    def run() -> None:
        try:
            launched.set_result(launch(*args, **kwargs)[0])
        except BaseException as error:  # noqa: BLE001  (wait_for_ready raises it again)
            launched.set_exception(error)

    # A daemon thread: a launch that hangs must not keep the process from exiting.
    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="rank-launch", daemon=True).start()
    early = RaySchedulerInitResult(scheduler_infos=[])

    def wait_for_ready() -> None:
        result = launched.result()
        result.wait_for_ready()
        early.scheduler_infos = result.scheduler_infos
        early.scheduler_actors = result.scheduler_actors
        early.block_until_scheduler_exits = result.block_until_scheduler_exits
        early.all_child_pids += result.all_child_pids

    early.wait_for_ready = wait_for_ready
    return early, None


def check_bundles(original: Callable[..., None], group: Any, world_size: int) -> None:
    """AROUND hook on `_validate_custom_placement_group`: stock requires a GPU in each bundle; CPU ranks need none.

    Raises:
        ValueError: fewer bundles than ranks.
    """
    from ddtree_sglang.cpu_platform import is_active

    if not is_active():
        original(group, world_size)
    elif len(group.bundle_specs) < world_size:
        raise ValueError(
            f"the placement group needs a bundle for each of {world_size} ranks, got {len(group.bundle_specs)}; "
            "add bundles or lower --tp-size."
        )
